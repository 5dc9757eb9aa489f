"""Log how the policy thinks, without rewarding it."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..formats import THINK, ThinkFormat
from ..parsing import Trace
from .accuracy import get_accuracy_reward
from .completions import Completion, CompletionReader, LogMetric, Reward, Tokenizer
from .language import count_words
from .length import graded

# Phrases with which traces check, explore and plan. They count how a trace talks; whether it does what it says, no
# counter can tell.
_PHRASES = {
    "checking": re.compile(
        r"\b(?:wait\b|hold on|(?:double|re)-?check|let(?:'s| me) (?:check|verify)|to verify"
        r"|verify(?:ing)? (?:that|this)|is that right"
        r"|that(?:'s| is)(?: not|n't) right|does(?:n't| not) (?:look|seem) right|sanity check)"
        r"|等等|等一下|检查|验证|验算|核对|再算一遍|重新(?:计算|审视|考虑)|不对|确认一下",
        re.IGNORECASE,
    ),
    "exploring": re.compile(
        r"\b(?:alternatively|another (?:way|approach|method|idea|option)|what if|on the other hand"
        r"|or (?:maybe|perhaps)|let(?:'s| me) try|(?:different|other) (?:way|approach|method))\b"
        r"|或者|另一(?:种|个)|换(?:一?[种个])?(?:思路|方法|角度|做法)|试试|尝试|会不会",
        re.IGNORECASE,
    ),
    "planning": re.compile(
        r"\b(?:first(?:ly)?,|next,|step by step|(?:my|the) plan|let(?:'s| me) (?:start|begin|break)|(?:i|we) need to)"
        r"|首先|接下来|第一步|下一步|逐步|一步一步|分步|计划|需要先",
        re.IGNORECASE,
    ),
}
_BRACKETS = str.maketrans("（）［］｛｝", "()[]{}")
_PAIRS = ("()", "[]", "{}")


def think_monitor(completions: list[Completion], *, log_metric: LogMetric | None = None, **kwargs: Any) -> list[None]:
    """
    Reward function that rewards nothing and logs how the policy thinks; TRL's own metrics tell reasoning and answer
    never apart.

    Logged for each batch, if there is anything to count:

    * shares of the completions: `think/closed` (reasoning, then an answer), `think/truncated` (cut off inside the
      reasoning), `think/unclosed` (stopped inside it), `think/no_think`, `think/multi_block` (reasoning opened once
      more later on), and `think/prefilled` (the prompt wrote the opening marker; only where prompts tell, which
      messages without a tokenizer do not);
    * mean lengths in characters: `think/reasoning_chars` of the completions that think and `think/answer_chars` of
      those that answer; with a column `solution` also `think/reasoning_chars_right` and `_wrong`, of right and wrong
      answers apart;
    * `think/checking_per_1k_chars`, `exploring` and `planning`: phrases such as "wait", "alternatively" and "first,",
      "等等", "换个思路" and "首先" per 1,000 characters of reasoning;
    * `think/language_zh`, `think/language_en` …: share of each language among the words of all reasoning, as
      [`get_language_consistency_reward`] counts them;
    * `think/unbalanced`: share of the closed completions with more opening than closing brackets of a kind, or fewer,
      which rises when a policy falls apart.

    Without a tokenizer truncation cannot be told from stopping, a generation prompt that opens the reasoning is
    noticed only in outputs that close it, and `think/multi_block` counts `<think>` alone; [`get_think_monitor`] with a
    tokenizer sees all three and counts tokens.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions, as text or messages.
        log_metric (`Callable`, *optional*):
            `log_metric(name, value)`, as [`~trl.GRPOTrainer`] passes it.
        **kwargs:
            What else the trainer passes.

    Returns:
        `list[None]`: `None` for every completion, which TRL does not count as long as another reward gives numbers.

    Example:

    ```python
    >>> from think_tools.rewards import think_monitor

    >>> metrics = {}
    >>> think_monitor(["<think>2 and 2, 4</think>4", "4"], log_metric=metrics.__setitem__)
    [None, None]
    >>> metrics["think/closed"], metrics["think/reasoning_chars"], metrics["think/language_en"]
    (0.5, 10.0, 1.0)
    ```
    """
    return get_think_monitor()(completions, log_metric=log_metric, **kwargs)


def get_think_monitor(
    tokenizer: "Tokenizer | None" = None,
    accuracy: Reward | None = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[None]]:
    """
    Reward function like [`think_monitor`] that knows the tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. With it a generation prompt that opens the reasoning, cut-off outputs and think
            markers that are special tokens are read right, from `completion_ids`, and everything that
            [`think_monitor`] counts in characters is counted in tokens, as `think/reasoning_tokens`,
            `think/checking_per_1k_tokens` and so on (the parts tokenized anew, without markers).
        accuracy (`Callable`, *optional*):
            Reward function that tells right from wrong (above 0.5) for the lengths apart. `None` is
            [`get_accuracy_reward`] where the dataset has a column `solution`, and nothing where it has not.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning, see [`get_accuracy_reward`].

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`] that returns `None` for every completion.

    Example:

    ```python
    >>> from think_tools.rewards import get_think_monitor

    >>> get_think_monitor()(["<think>2+2</think>4"])
    [None]
    ```
    """
    return _ThinkMonitor(CompletionReader(tokenizer, fmt), accuracy)


class _ThinkMonitor:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "think_monitor"

    def __init__(self, reader: CompletionReader, accuracy: Reward | None) -> None:
        self.reader, self.tokenizer = reader, reader.tokenizer
        self.accuracy = accuracy

    def __call__(
        self,
        completions: list[Completion],
        *,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[None]:
        if log_metric and completions:
            traces = self.reader.read(completions, **columns)
            lengths = [self._length(trace.reasoning or "") for trace in traces]
            metrics = (
                self._shares(traces, self.reader.opened(columns.get("prompts"), len(traces)))
                | self._lengths(traces, lengths, self._grade(completions, columns))
                | self._phrases(traces, sum(lengths))
                | _languages(traces)
            )
            for name, value in metrics.items():
                log_metric(f"think/{name}", value)
        return [None] * len(completions)

    @property
    def _unit(self) -> str:
        return "chars" if self.tokenizer is None else "tokens"

    def _length(self, text: str) -> int:
        return len(text if self.tokenizer is None else self.tokenizer.encode(text, add_special_tokens=False))

    def _grade(self, completions: list[Completion], columns: dict[str, Any]) -> list[bool | None]:
        if self.accuracy is None and columns.get("solution") is None:
            return [None] * len(completions)
        return graded(
            self.accuracy or get_accuracy_reward(tokenizer=self.tokenizer, fmt=self.reader.fmt), completions, columns
        )

    def _shares(self, traces: Sequence[Trace], opened: Sequence[bool | None]) -> dict[str, float]:
        statuses, opener = Counter(trace.status for trace in traces), (self.reader.known_format() or THINK).open
        closed = [f"{trace.reasoning}\n{trace.answer}" for trace in traces if trace.status == "complete"]
        counts = {
            "closed": statuses["complete"],
            "truncated": statuses["truncated"],
            "unclosed": statuses["unclosed"],
            "no_think": statuses["no_think"],
            "multi_block": sum(opener in f"{trace.reasoning}\n{trace.answer}" for trace in traces),
        }
        shares = {name: count / len(traces) for name, count in counts.items()}
        if known := [is_open for is_open in opened if is_open is not None]:
            shares["prefilled"] = sum(known) / len(known)
        if closed:
            shares["unbalanced"] = sum(map(_is_unbalanced, closed)) / len(closed)
        return shares

    def _lengths(
        self, traces: Sequence[Trace], lengths: Sequence[int], correct: Sequence[bool | None]
    ) -> dict[str, float]:
        thinking = [(length, is_right) for length, is_right in zip(lengths, correct, strict=True) if length]
        parts = {
            f"reasoning_{self._unit}": [length for length, _ in thinking],
            f"reasoning_{self._unit}_right": [length for length, is_right in thinking if is_right],
            f"reasoning_{self._unit}_wrong": [length for length, is_right in thinking if is_right is False],
            f"answer_{self._unit}": [self._length(trace.answer) for trace in traces if trace.answer],
        }
        # Nothing is logged for a part that no completion has: 0 would pass for a length.
        return {name: sum(found) / len(found) for name, found in parts.items() if found}

    def _phrases(self, traces: Sequence[Trace], length: int) -> dict[str, float]:
        if not length:
            return {}
        return {
            f"{name}_per_1k_{self._unit}": 1000
            * sum(len(pattern.findall(trace.reasoning or "")) for trace in traces)
            / length
            for name, pattern in _PHRASES.items()
        }


def _languages(traces: Sequence[Trace]) -> dict[str, float]:
    words = sum((count_words(trace.reasoning) for trace in traces if trace.reasoning), Counter())
    return {f"language_{language}": count / words.total() for language, count in words.items()}


def _is_unbalanced(text: str) -> bool:
    text = re.sub(r"(?m)^\s{0,9}\w{1,2}\)", "", text.translate(_BRACKETS))  # `a)` begins an item of a list
    return any(text.count(opening) != text.count(closing) for opening, closing in _PAIRS)
