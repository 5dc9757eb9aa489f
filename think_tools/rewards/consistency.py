"""Reward an answer that is what the reasoning came to, whether right or wrong."""

import re
from collections.abc import Callable
from typing import Any

from ..answers import extract_answer, shared_grader
from ..answers.numbers import clean, read_number
from ..formats import ThinkFormat
from ..parsing import Trace
from .completions import Completion, CompletionReader, LogMetric, Tokenizer

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_LAST_LINES, _LAST_CHARS = 3, 600


def consistency_reward(completions: list[Completion], **kwargs: Any) -> list[float | None]:
    r"""
    Reward function that gives 1.0 where the answer agrees with the conclusion of the reasoning and 0.0 where not.

    No model judges; three rules are tried in order on the last three lines of the reasoning. A conclusion that is
    marked (a box, "the answer is 4") must equal the answer, by algebra if need be. Else, an answer that is a number
    must equal one of the numbers there. Else, an answer of more than a letter that stands there word for word agrees.
    What no rule decides gets `None`.

    It says nothing about right and wrong, so add it to an accuracy reward: it is meant against answers that ignore the
    reasoning, a sign that a policy has learned to guess.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions, as text or messages.
        **kwargs:
            What the trainer passes. `log_metric` gets how many completions no rule decided, as `consistency/none`.

    Returns:
        `list[float | None]`: `None` also for a completion without reasoning or without an answer. Wrap the reward in
        `guard(consistency_reward, fill_none=True)` so that `None` does not weigh as 0 in a group.

    Example:

    ```python
    >>> from think_tools.rewards import consistency_reward

    >>> consistency_reward(["<think>So it is 42.</think>42", "<think>So it is 42.</think>43", "42"])
    [1.0, 0.0, None]
    ```
    """
    return get_consistency_reward()(completions, **kwargs)


def get_consistency_reward(
    timeout: float = 5.0, tokenizer: "Tokenizer | None" = None, fmt: ThinkFormat | None = None
) -> Callable[..., list[float | None]]:
    """
    Reward function like [`consistency_reward`], with settings.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds of wall time for one comparison. What takes longer does not agree.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, to read prefilled, cut and special-token output right.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning, see [`get_accuracy_reward`].

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`].

    Raises:
        `ValueError`: If `timeout` is not positive.

    Example:

    ```python
    >>> from think_tools.rewards import get_consistency_reward

    >>> get_consistency_reward(timeout=2.0)(["<think>答案是5。</think>5"])
    [1.0]
    ```
    """
    if timeout <= 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout}.")
    return _ConsistencyReward(timeout, CompletionReader(tokenizer, fmt))


class _ConsistencyReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "consistency_reward"

    def __init__(self, timeout: float, reader: CompletionReader) -> None:
        self.timeout = timeout
        self.reader = reader

    def __call__(
        self,
        completions: list[Completion],
        *,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[float | None]:
        traces = self.reader.read(completions, **columns)
        rewards = [self._agree(trace) for trace in traces]
        if log_metric:
            log_metric("consistency/none", float(rewards.count(None)))
        return rewards

    def _agree(self, trace: Trace) -> float | None:
        answer = extract_answer(trace.answer)
        lines = [line for line in (trace.reasoning or "").splitlines() if line.strip()]
        end = "\n".join(lines[-_LAST_LINES:])[-_LAST_CHARS:]
        if answer is None or not end:
            return None
        # The line before keeps `extract_answer` from taking a short sentence for a bare value.
        conclusion = extract_answer(f".\n{end}")
        stated = [conclusion] if conclusion else []
        if not stated and read_number(clean(answer)) and (numbers := _NUMBER.findall(end)):
            stated = [*numbers, end.rpartition("\n")[2]]  # the last line may be `x = 42 cm`
        if stated:
            return float(any(shared_grader().grade(stated, [answer] * len(stated), timeout=self.timeout)))
        # Chinese writes no blanks between words, so only the ends of a Latin word can be checked.
        whole = rf"(?<![A-Za-z0-9]){re.escape(answer)}(?![A-Za-z0-9])"
        return 1.0 if len(answer) > 1 and re.search(whole, end, re.IGNORECASE) else None
