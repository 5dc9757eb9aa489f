"""Log how the policy thinks, without rewarding it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..parsing import Trace
from .completions import Completion, LogMetric, read_traces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def think_monitor(completions: list[Completion], *, log_metric: LogMetric | None = None, **kwargs: Any) -> list[None]:
    """
    Reward function that rewards nothing and logs how the policy thinks; TRL's own metrics tell reasoning and answer
    never apart.

    Logged for each batch: the shares `think/closed` (reasoning, then an answer), `think/truncated` (cut off inside the
    reasoning), `think/unclosed` (stopped inside it) and `think/no_think`, and the mean `think/reasoning_chars` of the
    completions that think and `think/answer_chars` of those that answer, in characters.

    Without a tokenizer truncation cannot be told from stopping, and a generation prompt that ends in `<think>` is
    noticed only in outputs that close it; [`get_think_monitor`] with a tokenizer sees both and counts tokens.

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
    >>> think_monitor(["<think>2+2</think>4", "4"], log_metric=metrics.__setitem__)
    [None, None]
    >>> metrics["think/closed"], metrics["think/reasoning_chars"]
    (0.5, 3.0)
    ```
    """
    return get_think_monitor()(completions, log_metric=log_metric, **kwargs)


def get_think_monitor(tokenizer: "PreTrainedTokenizerBase | None" = None) -> Callable[..., list[None]]:
    """
    Reward function like [`think_monitor`] that knows the tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. With it a generation prompt that ends in `<think>`, cut-off outputs and think
            markers that are special tokens are read right, from `completion_ids`, and the lengths are logged in
            tokens, as `think/reasoning_tokens` and `think/answer_tokens` (the parts tokenized anew, without markers).

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`] that returns `None` for every completion.

    Example:

    ```python
    >>> from think_tools.rewards import get_think_monitor

    >>> get_think_monitor()(["<think>2+2</think>4"])
    [None]
    ```
    """
    return _ThinkMonitor(tokenizer)


class _ThinkMonitor:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "think_monitor"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None"):
        self.tokenizer = tokenizer

    def __call__(
        self,
        completions: list[Completion],
        *,
        prompts: list | None = None,
        completion_ids: list[list[int]] | None = None,
        log_metric: LogMetric | None = None,
        **columns: object,
    ) -> list[None]:
        if log_metric and completions:
            traces = read_traces(completions, prompts=prompts, completion_ids=completion_ids, tokenizer=self.tokenizer)
            for name, value in self._metrics(traces).items():
                log_metric(name, value)
        return [None] * len(completions)

    def _metrics(self, traces: Sequence[Trace]) -> dict[str, float]:
        statuses = [trace.status for trace in traces]
        metrics = {
            "think/closed": statuses.count("complete") / len(traces),
            "think/truncated": statuses.count("truncated") / len(traces),
            "think/unclosed": statuses.count("unclosed") / len(traces),
            "think/no_think": statuses.count("no_think") / len(traces),
        }
        unit = "chars" if self.tokenizer is None else "tokens"
        parts = {
            "reasoning": [trace.reasoning for trace in traces if trace.reasoning],
            "answer": [trace.answer for trace in traces if trace.answer],
        }
        # Nothing is logged for a part that no completion has: 0 would pass for a length.
        return metrics | {f"think/{part}_{unit}": self._mean_length(texts) for part, texts in parts.items() if texts}

    def _mean_length(self, texts: list[str]) -> float:
        if self.tokenizer is None:
            return sum(map(len, texts)) / len(texts)
        return sum(len(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts) / len(texts)
