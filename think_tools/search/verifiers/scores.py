"""What a verifier is, the score that a search makes of its scores, and a reward function as a verifier."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, Protocol, runtime_checkable

from ...backends import Messages
from ...backends.client import run_sync
from ...formats import THINK, ThinkFormat
from ...parsing import read_completion
from ...steps import split_steps

# From the messages of one problem and several outputs, whole or cut after a step, to a score for each (outcome), or to
# the scores of the steps of each (process); the higher the better.
Verifier = Callable[[Messages, Sequence[str]], Sequence[float] | Sequence[Sequence[float]]]
Reduce = Literal["last", "min", "prod", "mean"]

_REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": math.prod,
    "mean": fmean,
}


@runtime_checkable
class CountsTokens(Protocol):
    """A verifier that says what it costs, as all of this folder do."""

    num_tokens: int

    def __call__(self, messages: Messages, texts: Sequence[str], /) -> Sequence[float] | Sequence[Sequence[float]]: ...


def verify(
    verifier: Verifier, messages: Messages, texts: Sequence[str], *, reduce: Reduce = "last"
) -> tuple[list[float], int]:
    """
    One score for each output, whatever the verifier, and the tokens that this took: what every search calls.

    Args:
        verifier (`Callable`):
            `verifier(messages, texts)` gives a score for each text, or a list with one score per step. One of this
            folder, or any function; an attribute `num_tokens`, if it has one, counts its tokens over all calls.
        messages (`list[dict]`):
            The problem.
        texts (`Sequence[str]`):
            Outputs with their markers, whole or cut after a step.
        reduce (`str`, *optional*, defaults to `"last"`):
            Makes one score of those of the steps. `"last"` is for models that foretell whether the answer will be
            right, such as those trained on labels of [`label_steps`]; `"min"` and `"prod"` are for models that say
            whether a step is right in itself; `"mean"` forgives one bad step.

    Returns:
        `tuple[list[float], int]`: The scores, and the verifier's tokens, read and written; 0 if it does not count.

    Raises:
        `ValueError`: If `reduce` is unknown, or the verifier does not give a finite score for every text.

    Example:

    ```python
    >>> from think_tools.search.verifiers import verify

    >>> def steps(messages, texts):
    ...     return [[0.9, 0.5], [0.8]]
    >>> verify(steps, [{"role": "user", "content": "1+1+1=?"}], ["1+1=2\\n\\n2+1=4", "3"], reduce="min")
    ([0.5, 0.8], 0)
    ```
    """
    if reduce not in _REDUCE:
        raise ValueError(f"`reduce` must be one of {sorted(_REDUCE)}, got {reduce!r}.")
    before = verifier.num_tokens if isinstance(verifier, CountsTokens) else 0
    found = verifier(messages, texts) if texts else []
    spent = verifier.num_tokens - before if isinstance(verifier, CountsTokens) else 0
    steps = [[*map(float, one)] if isinstance(one, Iterable) else [float(one)] for one in found]
    if len(steps) != len(texts) or not all(steps):
        raise ValueError(
            f"`verifier` must give a score, or one per step, for each of {len(texts)} texts, got {found}."
        )
    scores = [float(_REDUCE[reduce](some)) for some in steps]
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"`verifier` must give finite scores, got {scores}.")
    return scores, spent


def steps_of(text: str, fmt: ThinkFormat = THINK) -> list[str]:
    r"""
    The steps of an output that a verifier scores: those of its reasoning, then those of its answer.

    A right reasoning may be followed by a wrong answer, and it is the answer that counts. An output of white space has
    one step, which is empty, so that nothing is left without a score.

    Example:

    ```python
    >>> from think_tools.search.verifiers import steps_of

    >>> steps_of("<think>2*3=6\n\n1+6=7</think>7"), steps_of("<think>2*3=6\n\n"), steps_of("7")
    (['2*3=6\n\n', '1+6=7', '7'], ['2*3=6'], ['7'])
    ```
    """
    trace = read_completion(text, fmt=fmt)
    return [*split_steps(trace.reasoning or ""), *split_steps(trace.answer)] or [""]


def problem_text(messages: Messages) -> str:
    """The texts of all messages, as [`label_steps`] writes them into its column `prompt`."""
    return "\n\n".join(str(turn["content"]) for turn in messages)


@dataclass
class RewardVerifier:
    """
    Outcome verifier of a reward function of TRL's form, ours included: a format, a length, tests, a judge.

    Args:
        reward (`Callable`):
            The reward function, asynchronous or not. It gets one assistant message per output, and `prompts`.
        columns (`Callable`, *optional*):
            From the messages to further columns, with one value that holds for every output, such as
            `lambda messages: {"solution": gold[messages[-1]["content"]]}`, which makes an oracle. `None` gives none.

    Raises:
        `ValueError`: When it runs, if the reward is `None` for an output: leave that output out, or wrap the reward.

    Example:

    ```python
    >>> from think_tools.rewards import format_reward
    >>> from think_tools.search import RewardVerifier

    >>> RewardVerifier(format_reward)([{"role": "user", "content": "1+1=?"}], ["<think>1+1</think>2", "2</think>"])
    [1.0, 0.0]
    ```
    """

    reward: Callable[..., Any]
    columns: Callable[[Messages], dict[str, Any]] | None = None
    num_tokens: int = field(default=0, init=False)

    def __call__(self, messages: Messages, texts: Sequence[str]) -> list[float]:
        values = self.columns(messages) if self.columns else {}
        columns = {name: [value] * len(texts) for name, value in values.items()}
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        rewards = self.reward(completions, prompts=[messages] * len(texts), **columns)
        rewards = list(run_sync(rewards) if inspect.iscoroutine(rewards) else rewards)
        if None in rewards:
            raise ValueError(f"`reward` must give a number for every output, got {rewards}. Wrap what is None.")
        return rewards
