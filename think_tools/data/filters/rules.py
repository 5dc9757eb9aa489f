"""Filters that read one row and ask nobody: is it whole, readable, in one language, of the right length, no loop."""

import re
from collections.abc import Mapping
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from ...formats import FORMATS, STOP_TOKENS, TOOL_MARKERS
from ...parsing import read_completion
from ...rewards.language import LANGUAGES, count_words
from .apply import Annotation, Filter, note, read_question

_MARKERS = {marker for fmt in FORMATS.values() for marker in (fmt.open, fmt.close) if not marker[0].isalnum()}
_TOKENS = {*STOP_TOKENS, *TOOL_MARKERS, "[INST]", "[/INST]", "\ufffd"}
_CODE = re.compile(r"```.{0,50000}?```|`[^`\n]{0,500}`", re.DOTALL)
# What no partner is needed for: the bracket of `\left\{`, which `\right.` may end, and of an item, as in "b) …".
_ALONE = re.compile(r"\\(?:left|right|[Bb]igg?[lr]?)\s?\\?[^\s\\A-Za-z]|\\[{}]|(?m:^\s{0,9}\w{1,2}[)）])")
_WIDE = str.maketrans("（）［］【】｛｝", "()[][]{}")
_LATEX = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\begin{", r"\end{"))
# Scripts that write no blanks between words: Thai, Lao, Burmese, Khmer, kana, Han.
DENSE = r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff\uf900-\ufaff\U00020000-\U000323af"
# Their characters, and the words of all others.
UNITS = re.compile(rf"[{DENSE}]|[^\s{DENSE}]+")


def complete(*, thinking: bool = True) -> Filter:
    """
    Filter that keeps what came to its end: finished, reasoning that was closed, an answer, no think marker in either.

    Whether it was cut is read from `finish_reason`, `finished` and `status`, where a row has them, as [`distill`]
    writes them. The value lists all that was found. Source of the idea: `is_reasoning_complete` of
    https://huggingface.co/datasets/open-r1/OpenR1-Math-220k.

    Args:
        thinking (`bool`, *optional*, defaults to `True`):
            Whether there must be reasoning. `False` for data in which some rows answer at once.

    Example:

    ```python
    >>> from think_tools.data.filters import complete

    >>> answer = {"role": "assistant", "reasoning_content": "2+2 is", "content": ""}
    >>> complete()({"prompt": "2+2?", "completion": [answer], "finish_reason": "length"})
    {'value': ['cut', 'no answer'], 'keep': False, 'reason': 'cut'}
    ```
    """

    def annotate(row: dict) -> Annotation:
        trace = read_completion(row["completion"])
        text = f"{trace.reasoning}\n{trace.answer}"
        found = {
            "cut": row.get("finish_reason") not in (None, "stop") or row.get("finished") is False,
            "reasoning not closed": row.get("status") in ("truncated", "unclosed"),
            "no reasoning": thinking and not trace.reasoning,
            "no answer": not trace.answer,
            "think marker in the text": _marked(text),
        }
        return _defects(found)

    return Filter("complete", annotate)


def legible(*, max_unmatched: int = 2) -> Filter:
    r"""
    Filter that keeps text one can read: brackets, LaTeX and code fences in pairs, no stray tokens, no broken bytes.

    The value lists what was found. Code is left out, and so are single `$`, which are money as often as mathematics.

    Args:
        max_unmatched (`int`, *optional*, defaults to `2`):
            Most round and square brackets without a partner, of one side; two are no rarity (`:)`, "1) …"), and
            `[0, 1)` is a pair. Braces must match.

    Example:

    ```python
    >>> from think_tools.data.filters import legible

    >>> answer = {"role": "assistant", "reasoning_content": "In [0, 1).<|im_end|>", "content": r"\\boxed{\\frac{1}{2}"}
    >>> legible()({"prompt": "?", "completion": [answer]})["value"]
    ['unbalanced brackets', 'stray tokens']
    ```
    """

    def annotate(row: dict) -> Annotation:
        trace = read_completion(row["completion"])
        text = f"{trace.reasoning or ''}\n{trace.answer}"
        prose = _CODE.sub(" ", text).replace(r"\\", " ")  # a line break, as in `\\[4pt]`, opens no formula
        count = _ALONE.sub(" ", prose.translate(_WIDE)).count
        unmatched = abs(count("(") + count("[") - count(")") - count("]"))
        found = {
            "unbalanced brackets": unmatched > max_unmatched or count("{") != count("}"),
            "unbalanced LaTeX": any(prose.count(a) != prose.count(b) for a, b in _LATEX) or prose.count("$$") % 2,
            "unbalanced code fences": text.count("```") % 2,
            # An end token is no part of what was read, but the template would write it once more.
            "stray tokens": any(token in str(row["completion"]) for token in _TOKENS),
            "think marker in the text": _marked(text),
        }
        return _defects(found)

    return Filter("legible", annotate)


def _marked(text: str) -> bool:
    return any(marker in text for marker in _MARKERS)


def _defects(found: Mapping[str, object]) -> Annotation:
    """The annotation of a row: all defects as its value, the first one as its reason."""
    defects = [defect for defect, there in found.items() if there]
    return note(defects, not defects, "".join(defects[:1]))


def language(target: str | None = None, *, min_share: float = 0.9) -> Filter:
    """
    Filter that keeps rows in one language, reasoning and answer looked at apart; code and formulas do not count.

    The value holds the share of the target among the words of the `reasoning` and of the `answer`, in `[0, 1]`, as
    [`count_words`] counts them; `None` for a part of fewer than ten words. Source: DeepSeek-R1, section 2.3.3
    (https://huggingface.co/papers/2501.12948).

    Args:
        target (`str`, *optional*):
            `"zh"`, `"ja"`, `"ko"`, `"ru"`, `"ar"`, `"hi"`, `"th"`, `"el"`, `"he"`, or `"en"`, which is any language in
            Latin letters. `None`: the language of most words of each row's question.
        min_share (`float`, *optional*, defaults to `0.9`):
            Least share in each part. A Chinese text may well name a few things in Latin letters.

    Raises:
        `ValueError`: If `target` is no such language.

    Example:

    ```python
    >>> from think_tools.data.filters import language

    >>> answer = {"role": "assistant", "reasoning_content": "先算十二乘以十三, then we add it all.", "content": "156"}
    >>> language()({"prompt": "十二乘以十三等于多少？", "completion": [answer]})["value"]
    {'reasoning': 0.5, 'answer': None}
    ```
    """
    if target is not None and target not in LANGUAGES:
        raise ValueError(f"`target` must be one of {sorted(LANGUAGES)} or None, got {target!r}.")

    def annotate(row: dict) -> Annotation:
        trace, question = read_completion(row["completion"]), count_words(read_question(row))
        asked = target or max(question, key=lambda name: question[name], default=None)
        value = {"reasoning": _share(trace.reasoning or "", asked), "answer": _share(trace.answer, asked)}
        shares = [share for share in value.values() if share is not None]
        reason = f"less than {min_share:.0%} {target or 'in the language of the question'}"
        return note(value, min(shares) >= min_share if shares else None, reason if shares else "too few words to tell")

    return Filter("language", annotate)


def _share(text: str, language: str | None) -> float | None:
    words = count_words(text)
    return words[language] / words.total() if language and words.total() >= 10 else None  # a few tell nothing


def length(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Filter:
    """
    Filter that keeps rows of at most `max_tokens` tokens.

    The value holds the tokens of `prompt`, `reasoning`, `answer` and their sum, `total`, without those that the chat
    template adds; [`prepare_sft`] with `max_length` is exact. Other limits are up to [`select`], as in
    `select(rows, length=lambda tokens: 64 <= tokens["reasoning"] <= 4096)`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model that will be trained.
        max_tokens (`int`):
            Most tokens in all.

    Example:

    ```python
    >>> from think_tools.data.filters import length
    >>> from think_tools.tiny import load_tiny

    >>> answer = {"role": "assistant", "reasoning_content": "2+2 is 4", "content": "4"}
    >>> length(load_tiny()[1], 10)({"prompt": "2+2?", "completion": [answer]})
    {'value': {'prompt': 4, 'reasoning': 8, 'answer': 1, 'total': 13}, 'keep': False, 'reason': 'more than 10 tokens'}
    ```
    """

    def annotate(row: dict) -> Annotation:
        trace = read_completion(row["completion"])
        parts = {"prompt": read_question(row), "reasoning": trace.reasoning or "", "answer": trace.answer}
        # `verbose` would warn of a text longer than the model's context, which is what is asked here.
        encoded = tokenizer(list(parts.values()), add_special_tokens=False, verbose=False)["input_ids"]
        value = {part: len(ids) for part, ids in zip(parts, encoded, strict=True)}
        value["total"] = sum(value.values())
        return note(value, value["total"] <= max_tokens, f"more than {max_tokens:,} tokens")

    return Filter("length", annotate)


def code_block() -> Filter:
    """
    Filter that keeps rows whose reasoning holds no block of code; the value counts the fences.

    Source: DeepSeek-R1, section 2.3.3 (https://huggingface.co/papers/2501.12948).

    Example:

    ```python
    >>> from think_tools.data.filters import code_block

    >>> answer = {"role": "assistant", "reasoning_content": "2+2 is 4", "content": "```python\\nprint(4)\\n```"}
    >>> code_block()({"prompt": "Print 2+2.", "completion": [answer]})["keep"]
    True
    ```
    """

    def annotate(row: dict) -> Annotation:
        fences = (read_completion(row["completion"]).reasoning or "").count("```")
        return note(fences, not fences, "code in the reasoning")

    return Filter("code_block", annotate)


def repetition(*, n: int = 8, max_share: float = 0.4, max_lines: int = 4) -> Filter:
    """
    Filter that keeps traces that do not go round in circles.

    The value holds `share`, that of the n-grams that came before (1 - distinct / all, words counted, or characters of
    Chinese), and `lines`, the longest run of equal lines. Source of the share: Open-R1's repetition penalty, whose
    3-grams repeat by chance in long mathematics. Among 400 MATH samples, 4,400 GSM8K solutions and 1,200 Chinese
    answers four 8-gram shares are above 0.3, none is above 0.4, and no run is longer than 4.

    Args:
        n (`int`, *optional*, defaults to `8`):
            Words or characters of an n-gram.
        max_share (`float`, *optional*, defaults to `0.4`):
            Greatest share.
        max_lines (`int`, *optional*, defaults to `4`):
            Longest run.

    Example:

    ```python
    >>> from think_tools.data.filters import repetition

    >>> answer = {"role": "assistant", "reasoning_content": "让我再检查一遍这个结果。" * 9, "content": "4"}
    >>> repetition()({"prompt": "2+2?", "completion": [answer]})["reason"]
    'repeats itself'
    ```
    """

    def annotate(row: dict) -> Annotation:
        trace = read_completion(row["completion"])
        text = f"{trace.reasoning or ''}\n{trace.answer}"
        units = UNITS.findall(text)
        grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
        share = 1 - len(set(grams)) / len(grams) if grams else 0.0
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        run = max((len(list(same)) for _, same in groupby(lines)), default=0)
        return note({"share": share, "lines": run}, share <= max_share and run <= max_lines, "repeats itself")

    return Filter("repetition", annotate)
