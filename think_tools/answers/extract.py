r"""Find the final answer in the answer part of a completion: `\boxed{}`, `<answer>`, `####`, a sentence, a value."""

import re

from .numbers import clean, read_number, unwrap

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
# Between boxes that are one answer together: "\boxed{1} and \boxed{2}", but not "\boxed{1}, no: \boxed{2}".
_JOINT = re.compile(
    r"(?:[\s$]|\\q?quad|\\[()\[\],;]|,|;|\b(?:and|or)\b|\\text\{\s?(?:,|and|or)\s?\}|[和或与及、，]){1,20}"
)
_BLANK = re.compile(r"(?:[\s$]|\\q?quad|\\[()\[\]])*")
_VISIBLE = re.compile(r"\S")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]{0,9}(\S[^\n]*)")
# White space is bounded everywhere: two neighbouring `\s*` cost quadratic time on a long run of blanks.
_ENGLISH = re.compile(
    r"\banswer\b[*_]{0,2}"
    r"(?:\s{0,9}[:=]|\s{0,9}(?=\$|\\[(\[])"
    r"|\s{1,9}(?:to\b[^.\n:]{0,80}?\s)?(?:is|are|equals|would be|should be)\b\s{0,3}:?)"
    r"[*_]{0,2}\s{0,20}",
    re.IGNORECASE,
)
_CHINESE = re.compile(
    r"(?:答案|(?:最终|最后|计算)结果)(?:应该|应当|应)?\s{0,3}(?:是|为|等于|[:：=])\s{0,3}[:：]?\s{0,20}"
    r"|(?:^|[\n。；，])\s{0,9}答\s?[:：]\s{0,20}"
)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|\*|$)|[。！？；]")
_REASON = re.compile(
    r",?\s(?:because|since|which|where|so that|as (?:we|the|it|shown))\b|，\s?(?:因|所以|即|也|其|这|故)"
)
_COPULA = re.compile(r"\b(?:is|are|equals)\s|[是为]")
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|can|will|would|think|know|am|do|does|i|we|you)\b", re.IGNORECASE
)
_CHINESE_VERB = re.compile(r"[是为，、：？吗呢]|等于|所以|因为|应该|可能")
_NUMBER_IN_TEXT = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")


def extract_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""
    Find the final answer in the answer part of a completion.

    The first of these that is there: the last balanced `\boxed{…}`; the last `<answer>…</answer>`; `#### …` as
    GSM8K writes it; the last sentence such as "the answer is 42", "Final answer: 42", "答案是42" or "最终答案为42";
    the whole text if it is short and nothing but a value (`42`, `$\frac12$`, `Paris`).

    Math-Verify's own extraction also takes any number it finds and knows no Chinese; this one would rather return
    `None`. Reasoning is not an answer: pass [`Trace`]`.answer`, not the whole completion.

    Args:
        text (`str`):
            The answer part.
        last_number (`bool`, *optional*, defaults to `False`):
            Whether to fall back on the last number in the text. This pays guesses, so it must be asked for.

    Returns:
        `str` or `None`: The answer without `$`, bold marks and final full stop, `None` if there is none.

    Raises:
        `TypeError`: If `text` is not a string.

    Example:

    ```python
    >>> from think_tools import extract_answer

    >>> extract_answer(r"So we get \boxed{\frac12}."), extract_answer("所以答案是42。"), extract_answer("Maybe 42?")
    ('\\frac12', '42', None)
    ```
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a string, got {type(text).__name__}. Pass the `answer` of a `Trace`.")
    answer = marked_answer(text) or stated_answer(text) or _bare(text)
    if answer is None and last_number:
        numbers = _NUMBER_IN_TEXT.findall(text)
        return numbers[-1] if numbers else None
    return answer


def marked_answer(text: str) -> str | None:
    r"""
    Return what stands in the last `\boxed{…}`, else in the last `<answer>…</answer>`, else after `####`.

    Boxes that only a comma, "and" or "or" joins are one answer with several parts.

    A line of `####` that is not the last one counts only with a plain number, because Markdown writes headings so.

    Example:

    ```python
    >>> from think_tools.answers.extract import marked_answer

    >>> marked_answer("#### Sum\nAdd them.\n#### 10"), marked_answer("#### Sum\nAdd them."), marked_answer("10")
    ('10', None, None)
    ```
    """
    for found in (_boxed(text), _tagged(text), _hashed(text)):
        if found is not None and (answer := unwrap(found)):
            return answer
    return None


def _boxed(text: str) -> str | None:
    """Content of the box that closes last, with those it is joined to; `{` without `}` hides no box before it."""
    boxes = _boxes(text) if "box" in text else []
    joined = []
    for box, after in zip(reversed(boxes), [None, *reversed(boxes)], strict=False):
        if after and not (_JOINT.fullmatch(between := text[box[3] : after[0]]) and not _BLANK.fullmatch(between)):
            break
        joined.append(text[box[1] : box[2]])
    return ", ".join(reversed(joined)) or None


def _boxes(text: str) -> list[tuple[int, int, int, int]]:
    """Start, start and end of the content, and end of each box in one pass; of nested boxes only the inner one."""
    boxes: list[tuple[int, int, int, int]] = []
    inner: tuple[int, int] | None = None  # where the box closed last begins (its backslash) and ends
    openers: list[tuple[int, int]] = []  # (start of the token, start of the content or -1)
    for token in _BOX_TOKEN.finditer(text):
        mark, start, end = token[0], token.start(), token.end()
        if mark == "{" or (len(mark) > 2 and mark.endswith("{")):
            openers.append((start, end if mark != "{" else -1))
        elif mark == "}" and openers:
            opened_at, content = openers.pop()
            if content < 0:
                continue
            if inner == (content, start) and boxes:
                boxes[-1] = (opened_at, *boxes[-1][1:3], end)  # a box that holds nothing but a box
            elif _VISIBLE.search(text, content, start):
                boxes.append((opened_at, content, start, end))
            inner = (opened_at, end)
    return boxes


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def _hashed(text: str) -> str | None:
    lines = list(_HASHES.finditer(text)) if "####" in text else []
    for line in reversed(lines):
        if not _VISIBLE.search(text, line.end()) or read_number(clean(line[1])):
            return line[1].rpartition("####")[2]
    return None


def stated_answer(text: str) -> str | None:
    """
    Return the value of the last sentence that says what the answer is, in English or Chinese.

    Example:

    ```python
    >>> from think_tools.answers.extract import stated_answer

    >>> stated_answer("First 41. So the answer is 42, because 6*7=42."), stated_answer("It may be 42.")
    ('42', None)
    ```
    """
    ends = [anchor.end() for pattern in (_ENGLISH, _CHINESE) for anchor in pattern.finditer(text)]
    if not ends:
        return None
    value = text[max(ends) : max(ends) + 300].partition("\n")[0]
    for cut in (_SENTENCE_END, _REASON):
        value = cut.split(value, maxsplit=1)[0]
    return unwrap(_COPULA.split(value)[-1]) or None  # "Final answer: The largest n is 34."


def _bare(text: str) -> str | None:
    """The whole text, if it is one short line that says nothing but a value."""
    value = unwrap(text)
    if not value or len(value) > 80 or "\n" in value or "boxed" in value or _SENTENCE_END.search(value):
        return None
    if len(value.split()) > 8 or _VERB.search(value) or _CHINESE_VERB.search(value):
        return None
    return value
