"""Reward the think format (the format reward of DeepSeek-R1, section 2.2.2, https://huggingface.co/papers/2501.12948)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..formats import THINK, ThinkFormat
from ..parsing import Trace
from .completions import Completion, CompletionReader, Tokenizer

_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


def format_reward(completions: list[Completion], **kwargs: Any) -> list[float]:
    """
    Reward function that gives 1.0 to `<think>reasoning</think>answer` and 0.0 to everything else, other families'
    markers such as `[THINK]` included: `get_format_reward(tokenizer=tokenizer)` asks for those of its model.

    Strict, because every slack is found by a policy: each marker once and in order, nothing but white space before
    the first, text in both parts. [`trl.rewards.think_format_reward`] pays empty parts and a repeated `</think>`; it
    gives 0.0 to messages with `reasoning_content`, to outputs whose `<think>` the chat template wrote, and to a
    leading line break.

    Without a tokenizer `reasoning</think>answer` counts as the end of a prefilled prompt; an output cut by the length
    limit inside the answer looks whole; think markers that are special tokens have been erased from the text, which
    gives 0.0. `get_format_reward(tokenizer=tokenizer)` reads all three right.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions, as text or messages.
        **kwargs:
            What the trainer passes.

    Returns:
        `list[float]`: 1.0 or 0.0.

    Example:

    ```python
    >>> from think_tools.rewards import format_reward

    >>> format_reward(["<think>2+2</think>4", "<think></think>4", "<think>2+2</think>4</think>", "4"])
    [1.0, 0.0, 0.0, 0.0]
    ```
    """
    return get_format_reward()(completions, **kwargs)


def get_format_reward(
    answer_tags: bool = False,
    allow_empty: bool = False,
    allow_no_think: bool = False,
    tokenizer: "Tokenizer | None" = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[float]]:
    """
    Reward function like [`format_reward`], with settings.

    Args:
        answer_tags (`bool`, *optional*, defaults to `False`):
            Whether the answer must stand in one `<answer>…</answer>` and nothing beside it, as in R1-Zero; in the
            answer markers of the format, if it has any.
        allow_empty (`bool`, *optional*, defaults to `False`):
            Whether the reasoning may be empty.
        allow_no_think (`bool`, *optional*, defaults to `False`):
            Whether a direct answer without any marker is well formed too, so that a model thinks because it pays and
            not because thinking is rewarded. Pass `tokenizer` with it if the chat template opens the reasoning:
            without, reasoning that never ends passes for a direct answer.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. With it a generation prompt that opens the reasoning and think markers that are
            special tokens are read right, and an output that the length limit cut gets 0.0, from `completion_ids`.
        fmt ([`ThinkFormat`], *optional*):
            The markers that are asked for; no other pair is ever paid. `None`: the tokenizer's, found by
            `detect_format`; `<think>` and `</think>` without a tokenizer, or if it shows none.

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`]; each reward is 1.0 or 0.0.

    Example:

    ```python
    >>> from think_tools.rewards import get_format_reward

    >>> reward = get_format_reward(answer_tags=True, allow_no_think=True)
    >>> reward(["<think>2+2</think><answer>4</answer>", "<think>2+2</think>4", "<answer>4</answer>"])
    [1.0, 0.0, 1.0]
    ```
    """
    return _FormatReward(answer_tags, allow_empty, allow_no_think, CompletionReader(tokenizer, fmt, strict=True))


class _FormatReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "format_reward"

    def __init__(self, answer_tags: bool, allow_empty: bool, allow_no_think: bool, reader: CompletionReader) -> None:
        self.answer_tags = answer_tags
        self.allow_empty = allow_empty
        self.allow_no_think = allow_no_think
        self.reader = reader

    def __call__(self, completions: list[Completion], **columns: Any) -> list[float]:
        fmt = _asked_for(self.reader, self.answer_tags)
        traces = self.reader.read(completions, **columns)
        return [float(self._well_formed(trace, fmt)) for trace in traces]

    def _well_formed(self, trace: Trace, fmt: ThinkFormat) -> bool:
        answer = _inside(trace.answer, fmt)
        if answer is None and not self.answer_tags:  # left out, but not by half
            answer = trace.answer
        text = f"{trace.reasoning}\n{answer}"
        if not answer or trace.finished is False or any(marker in text for marker in _markers(fmt)):
            return False
        if trace.status == "no_think":
            return self.allow_no_think
        return trace.status == "complete" and bool(trace.reasoning or self.allow_empty)


def tag_count_reward(completions: list[Completion], **kwargs: Any) -> list[float]:
    """
    Reward function that gives 0.25 for each of four things: reasoning that was opened, something in it, its closing
    marker, something in the answer behind it.

    A softer slope than [`format_reward`] for a policy that never gets the format right by chance. In Open-R1's tag
    count, from which the idea is, order and content do not matter; here a tag only counts where it belongs, a marker
    that is written twice loses its 0.25, and markers are no content.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions, as text or messages.
        **kwargs:
            What the trainer passes.

    Returns:
        `list[float]`: 0.0, 0.25, 0.5, 0.75 or 1.0. A direct answer gets 0.0.

    Example:

    ```python
    >>> from think_tools.rewards import tag_count_reward

    >>> tag_count_reward(["<think>2+2</think>4", "<think>2+2</think>", "<think>2+2", "<think><think><think>", "4"])
    [1.0, 0.75, 0.5, 0.0, 0.0]
    ```
    """
    return get_tag_count_reward()(completions, **kwargs)


def get_tag_count_reward(
    answer_tags: bool = False, tokenizer: "Tokenizer | None" = None, fmt: ThinkFormat | None = None
) -> Callable[..., list[float]]:
    """
    Reward function like [`tag_count_reward`], with settings.

    Args:
        answer_tags (`bool`, *optional*, defaults to `False`):
            Whether `<answer>` and `</answer>` around the answer, or the format's own answer markers, count as well.
            Each of the six things gives 1/6 then.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, to read prefilled, cut and special-token output right.
        fmt ([`ThinkFormat`], *optional*):
            The markers that are asked for, see [`get_format_reward`].

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`]; each reward is in `[0.0, 1.0]`.

    Example:

    ```python
    >>> from think_tools.rewards import get_tag_count_reward

    >>> get_tag_count_reward(answer_tags=True)(["<think>2+2</think><answer>4</answer>", "<think>2+2</think><answer>"])
    [1.0, 0.6666666666666666]
    ```
    """
    return _TagCountReward(answer_tags, CompletionReader(tokenizer, fmt, strict=True))


class _TagCountReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "tag_count_reward"

    def __init__(self, answer_tags: bool, reader: CompletionReader) -> None:
        self.answer_tags = answer_tags
        self.reader = reader

    def __call__(self, completions: list[Completion], **columns: Any) -> list[float]:
        fmt = _asked_for(self.reader, self.answer_tags)
        traces = self.reader.read(completions, **columns)
        return [self._share(trace, fmt) for trace in traces]

    def _share(self, trace: Trace, fmt: ThinkFormat) -> float:
        if trace.reasoning is None:
            return 0.0
        closed, text = trace.status == "complete", f"{trace.reasoning}\n{trace.answer}"
        earned = [
            fmt.open not in text,
            _has_content(trace.reasoning, fmt),
            closed and fmt.close not in text,
            closed and _has_content(trace.answer, fmt),
        ]
        if self.answer_tags:
            earned.append(trace.answer.startswith(fmt.answer_open) and text.count(fmt.answer_open) == 1)
            earned.append(trace.answer.endswith(fmt.answer_close) and text.count(fmt.answer_close) == 1)
        return sum(earned) / len(earned)


def _asked_for(reader: CompletionReader, answer_tags: bool) -> ThinkFormat:
    fmt = reader.known_format() or THINK
    if answer_tags and not fmt.answer_open:
        return replace(fmt, answer_open=_ANSWER_OPEN, answer_close=_ANSWER_CLOSE)
    return fmt


def _markers(fmt: ThinkFormat) -> list[str]:
    return [marker for marker in (fmt.open, fmt.close, fmt.answer_open, fmt.answer_close) if marker]


def _has_content(part: str, fmt: ThinkFormat) -> bool:
    for marker in (*_markers(fmt), _ANSWER_OPEN, _ANSWER_CLOSE):
        part = part.replace(marker, "")
    return bool(part.strip())


def _inside(answer: str, fmt: ThinkFormat) -> str | None:
    """What stands between the answer markers of a format; `None` if they are not at both ends, or it has none."""
    inside = answer.removeprefix(fmt.answer_open).removesuffix(fmt.answer_close)
    wrapped = len(answer) == len(fmt.answer_open) + len(inside) + len(fmt.answer_close)
    return inside.strip() if wrapped and fmt.answer_open else None
