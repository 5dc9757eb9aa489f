"""Reward right final answers (the accuracy reward of DeepSeek-R1, section 2.2.2, https://huggingface.co/papers/2501.12948)."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from ..answers import Verdict, extract_answer, shared_grader
from ..answers.numbers import clean
from ..formats import ThinkFormat
from .completions import Completion, CompletionReader, LogExtra, LogMetric, Tokenizer

Kind = Literal["auto", "math", "choice", "exact"]
_LETTER = re.compile(r"(?:(?i:option|choice|choose|select)\s|选项?\s?)?\(?([A-J])(?:\)|\s?[.:,、]|$)")
_CHOSEN = re.compile(
    r"(?:\b(?i:option|choice|choose|chose|pick|select)\s{1,3}(?:is\s)?|选择?项?[为是]?\s{0,3})[(（*]{0,3}([A-J])(?![A-Za-z])"
)
_REWARDS: dict[Verdict, float | None] = {"right": 1.0, "wrong": 0.0, "stopped": 0.0, "gold_unreadable": None}


def accuracy_reward(
    completions: list[Completion], solution: Sequence | None = None, **kwargs: Any
) -> list[float | None]:
    r"""
    Reward function that gives 1.0 to a right final answer and 0.0 to a wrong one.

    Unlike [`trl.rewards.accuracy_reward`], it reads the answer part only (a box inside the reasoning earns nothing,
    nor does reasoning that was cut off), takes `reasoning_content` messages, plain strings and the last turn of a
    tool run, finds `<answer>42</answer>`, "The answer is 42.", "答案是42。" and a bare `42`, reads gold answers like
    `B`, `\pi`, `1,-2` and `#### 5`, and cannot hang: algebra runs in processes that are killed after 5 seconds.

    The reasoning is told by `<think>`, or by any opening marker of [`FORMATS`] with which the completion begins. A
    reward without a tokenizer cannot see that a chat template had already written the marker when no closing one came,
    and not a marker that is a special token and was erased: such reasoning looks like an answer. Use
    `get_accuracy_reward(tokenizer=tokenizer)` with these.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions, as text or messages.
        solution (`list`):
            Gold answers, one per completion: `5`, `$5$`, `#### 5`, `\boxed{5}`, a choice letter, a word.
        **kwargs:
            What the trainer passes. `log_metric` gets how many answers could not be found (`accuracy/no_answer`) or
            were stopped at the deadline (`accuracy/stopped`) and how many gold answers could not be read
            (`accuracy/gold_unreadable`); `log_extra` gets the answers found as the column `answer`.

    Returns:
        `list[float | None]`: `None` where the gold answer cannot be read. TRL takes `None` for 0 in a group in which
        another reward gives a number.

    Raises:
        `ValueError`: If `solution` is missing or of another length.

    Example:

    ```python
    >>> from think_tools.rewards import accuracy_reward

    >>> completions = ["<think>6*7</think>\\boxed{42}", "<think>\\boxed{42}</think>I do not know", "42"]
    >>> accuracy_reward(completions, solution=["42", "42", ""])
    [1.0, 0.0, None]
    ```
    """
    return get_accuracy_reward()(completions, solution, **kwargs)


def get_accuracy_reward(
    kind: Kind = "auto",
    last_number: bool = False,
    timeout: float = 5.0,
    tokenizer: "Tokenizer | None" = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[float | None]]:
    """
    Reward function like [`accuracy_reward`], with settings.

    Args:
        kind (`str`, *optional*, defaults to `"auto"`):
            What the gold answers are. `"auto"`: each is read as what it looks like. `"math"`: values and formulas; a
            single letter is a variable, so `(B) 5` does not answer `B`. `"choice"`: letters from A to J; "I choose
            (B)" and "选B" count too, and any other gold answer gives `None`. `"exact"`: texts, compared letter by
            letter but for case, width and white space; the answer found or the whole answer part must match.
        last_number (`bool`, *optional*, defaults to `False`):
            Whether an answer without box, tag or sentence is read as the last number in it. This pays guesses.
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds of wall time for one answer. What takes longer is wrong and counted in `accuracy/stopped`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. With it a generation prompt that opens the reasoning, cut-off outputs and think
            markers that are special tokens are read right, from `completion_ids`.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning. `None`: the tokenizer's, found by `detect_format`; without a tokenizer, or if it
            shows none, those of [`FORMATS`] with which a completion begins, else `<think>`.

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`].

    Raises:
        `ValueError`: If `kind` is not one of the four or `timeout` is not positive.

    Example:

    ```python
    >>> from think_tools.rewards import get_accuracy_reward

    >>> reward = get_accuracy_reward(last_number=True)
    >>> reward(["<think>6*7</think>That makes 42, I think."], solution=["42"])
    [1.0]
    >>> get_accuracy_reward("choice")(["<think>r</think>So I choose (B)."], solution=["B"])
    [1.0]
    ```
    """
    if kind not in get_args(Kind):
        raise ValueError(f"`kind` must be one of {list(get_args(Kind))}, got {kind!r}.")
    if timeout <= 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout}.")
    return _AccuracyReward(kind, last_number, timeout, CompletionReader(tokenizer, fmt))


class _AccuracyReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "accuracy_reward"

    def __init__(self, kind: Kind, last_number: bool, timeout: float, reader: CompletionReader) -> None:
        self.kind = kind
        self.last_number = last_number
        self.timeout = timeout
        self.reader = reader

    def __call__(
        self,
        completions: list[Completion],
        solution: Sequence | None = None,
        *,
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        _check_solution(solution, completions, columns)
        assert solution is not None
        traces = self.reader.read(completions, **columns)
        answers, verdicts = self._grade([trace.answer for trace in traces], solution)
        if log_metric:
            log_metric("accuracy/no_answer", float(answers.count(None)))
            log_metric("accuracy/stopped", float(verdicts.count("stopped")))
            log_metric("accuracy/gold_unreadable", float(verdicts.count("gold_unreadable")))
        if log_extra:
            log_extra("answer", [answer or "" for answer in answers])
        return [_REWARDS[verdict] for verdict in verdicts]

    def _grade(self, texts: list[str], golds: Sequence) -> tuple[list[str | None], list[Verdict]]:
        """The answers found in `texts`, and how they compare with `golds`."""
        if self.kind == "choice":
            answers = [_choice(text) for text in texts]
            return answers, [_verdict(_choice(str(gold)), [a]) for a, gold in zip(answers, golds, strict=True)]
        answers = [extract_answer(text, last_number=self.last_number) for text in texts]
        if self.kind == "exact":
            read = [[_folded(text), _folded(answer)] for text, answer in zip(texts, answers, strict=True)]
            return answers, [_verdict(_folded(gold), found) for gold, found in zip(golds, read, strict=True)]
        if self.kind == "math":  # a letter equals nothing but itself
            rows = zip(answers, golds, strict=True)
            answers = [None if _is_letter(gold) and clean(a or "") != gold.strip() else a for a, gold in rows]
        return answers, shared_grader().verdicts(answers, golds, timeout=self.timeout)


def _is_letter(gold: object) -> bool:
    return isinstance(gold, str) and bool(re.fullmatch("[A-J]", gold.strip()))


def _choice(text: str) -> str | None:
    """The choice letter that a text gives as its answer: in the answer found, in a sentence, or in the last line."""
    answer = extract_answer(text)
    if answer and (letter := _LETTER.match(clean(answer))):
        return letter[1]
    if chosen := _CHOSEN.findall(text):
        return chosen[-1]
    letter = _LETTER.match(clean(text.strip().rpartition("\n")[2]))
    return letter[1] if letter else None


def _folded(text: object) -> str | None:
    """A text without what `kind="exact"` overlooks; numbers are written out, `None` for everything else."""
    if not isinstance(text, (str, int, float)) or isinstance(text, bool):
        return None
    folded = " ".join(unicodedata.normalize("NFKC", str(text)).casefold().split())
    return folded.strip(".。!\"'“”") or None


def _verdict(gold: str | None, found: Sequence[str | None]) -> Verdict:
    if gold is None:
        return "gold_unreadable"
    return "right" if gold in found else "wrong"


def _check_solution(solution: Sequence | None, completions: list, columns: dict[str, object]) -> None:
    if solution is None:
        given = sorted(name for name, value in columns.items() if isinstance(value, list))
        raise ValueError(
            f"`solution` is missing: gold answers are read from the dataset's column `solution`, got the columns "
            f"{given}. Rename yours with `dataset.rename_column`."
        )
    if isinstance(solution, str) or len(solution) != len(completions):
        raise ValueError(
            f"`solution` must hold one gold answer per completion, got {len(solution)} for {len(completions)}: pass "
            "a list."
        )
