"""Reward a length of the reasoning, in tokens: near a target, within a budget, or shorter than its own group."""

from collections.abc import Callable
from math import cos, pi
from typing import Any, Literal, get_args

from ..formats import ThinkFormat
from .accuracy import get_accuracy_reward
from .completions import Completion, CompletionReader, Reward, Tokenizer, count_reasoning_tokens, group_rows

Mode = Literal["linear", "cosine", "exact"]

# Settings of papers, for `get_think_length_reward(budget=…, **LENGTH_PRESETS["l1_max"])`.
LENGTH_PRESETS: dict[str, dict[str, Any]] = {
    # L1, https://huggingface.co/papers/2503.04697: with `target`, and with `budget`.
    "l1_exact": {"mode": "exact", "alpha": 0.0003},
    "l1_max": {"mode": "linear", "alpha": 0.0003},
    # Demystifying long CoT, https://huggingface.co/papers/2502.03373, section 4.2: with `budget`.
    "long_cot": {"mode": "cosine", "right": (2.0, 1.0), "wrong": (-10.0, 0.0), "exceeded": -10.0},
}


def get_think_length_reward(
    *,
    target: int | None = None,
    budget: int | None = None,
    mode: Mode = "linear",
    alpha: float | None = None,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    exceeded: float | None = None,
    accuracy: Reward | None = None,
    tokenizer: "Tokenizer | None" = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[float | None]]:
    r"""
    Reward function for the number of reasoning tokens, n; TRL's length rewards count the whole completion.

    | setting | reward | range | needs `solution` |
    |---|---|---|---|
    | `target`, `"linear"` | 1 - alpha·\|n - target\| | [0, 1] | no |
    | `target`, `"cosine"` | (1 + cos(π·min(\|n - target\| / target, 1))) / 2 | [0, 1] | no |
    | `target`, `"exact"` | right - alpha·\|n - target\| (L1-Exact; `right` is 1 or 0) | [-1, 1] | yes |
    | `budget`, `"linear"` | right · (0.5 + alpha·(budget - n)) (L1-Max) | [0, 1] | yes |
    | `budget`, `"cosine"` | half a cosine from `right[0]` or `wrong[0]` at n = 0 to `[1]` at budget | given | yes |

    All are clamped to their range at both ends, also far beyond the budget. Sources: L1
    (https://huggingface.co/papers/2503.04697, which counts all output tokens), the cosine of "Demystifying long
    chain-of-thought" (https://huggingface.co/papers/2502.03373); their constants are in `LENGTH_PRESETS`. The default
    `right` and `wrong` are those of TRL and Open-R1. Only modes that look at `solution` are safe from a policy that
    writes nonsense of the right length; the others are meant to be added to an accuracy reward.

    Args:
        target (`int`, *optional*):
            Reasoning tokens to aim at. Exactly one of `target` and `budget` is needed.
        budget (`int`, *optional*):
            Most reasoning tokens to spend.
        mode (`str`, *optional*, defaults to `"linear"`):
            `"linear"`, `"cosine"`, or, with `target`, `"exact"`.
        alpha (`float`, *optional*):
            Reward per token in the modes `"linear"` and `"exact"`. `None` is 1/target, or 0.5/budget.
        right (`tuple[float, float]`, *optional*, defaults to `(1.0, 0.5)`):
            Cosine within a budget: reward of a right answer at no reasoning, and at the budget.
        wrong (`tuple[float, float]`, *optional*, defaults to `(-1.0, -0.5)`):
            The same for a wrong answer.
        exceeded (`float`, *optional*):
            Cosine within a budget: reward of a completion that reaches the budget, instead of the curve's end.
        accuracy (`Callable`, *optional*):
            Reward function that tells which answers are right (above 0.5). `None` is [`get_accuracy_reward`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, to read the completions right and to count tokens. Without it the number is
            estimated from `completion_ids` and the reasoning's share of the characters.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning, see [`get_accuracy_reward`].

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`]. A direct answer has 0 reasoning tokens.
        `None` where `accuracy` gives `None`.

    Raises:
        `ValueError`: If the settings contradict one another; when called, if tokens cannot be counted or `solution`
            is missing.

    Example:

    ```python
    >>> from think_tools.rewards import LENGTH_PRESETS, get_think_length_reward

    >>> completions = ["<think>2+2</think>4", "<think>2+2=5</think>5"]
    >>> reward = get_think_length_reward(budget=1000, **LENGTH_PRESETS["l1_max"])
    >>> reward(completions, solution=["4", "4"], completion_ids=[[1] * 400, [1] * 600])
    [0.71, 0.0]
    ```
    """
    limit = _limit(target, budget, mode)
    if alpha is not None and alpha <= 0:
        raise ValueError(f"`alpha` must be positive, got {alpha}.")
    slope = alpha or (1.0 if target else 0.5) / limit
    accuracy = accuracy or get_accuracy_reward(tokenizer=tokenizer, fmt=fmt)
    reader = CompletionReader(tokenizer, fmt)
    return _ThinkLengthReward(target is not None, limit, mode, slope, right, wrong, exceeded, accuracy, reader)


def _limit(target: int | None, budget: int | None, mode: Mode) -> int:
    limit = budget if target is None else target
    if limit is None or (target is not None and budget is not None) or limit < 1:
        raise ValueError(
            f"`target` or `budget` must be a positive number of tokens and the other None, got {target} and {budget}."
        )
    if mode not in get_args(Mode) or (mode == "exact" and target is None):
        raise ValueError(
            f"`mode` must be 'linear' or 'cosine', or 'exact' with `target`, got {mode!r} with "
            f"{'`target`' if budget is None else '`budget`'}."
        )
    return limit


class _ThinkLengthReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "think_length_reward"

    def __init__(
        self,
        aims: bool,
        limit: int,
        mode: Mode,
        slope: float,
        right: tuple[float, float],
        wrong: tuple[float, float],
        exceeded: float | None,
        accuracy: Reward,
        reader: CompletionReader,
    ) -> None:
        self.aims, self.limit, self.mode, self.slope = aims, limit, mode, slope
        self.right, self.wrong, self.exceeded = right, wrong, exceeded
        self.accuracy, self.reader = accuracy, reader

    def __call__(
        self,
        completions: list[Completion],
        *,
        completion_ids: list[list[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        columns["completion_ids"] = completion_ids
        traces = self.reader.read(completions, **columns)
        lengths = count_reasoning_tokens(traces, completion_ids, self.reader.tokenizer)
        if self.aims and self.mode != "exact":
            return [self._near_target(length) for length in lengths]
        correct = graded(self.accuracy, completions, columns)
        return [
            None if is_right is None else self._of_answer(length, is_right)
            for length, is_right in zip(lengths, correct, strict=True)
        ]

    def _near_target(self, length: int) -> float:
        distance = abs(length - self.limit)
        if self.mode == "linear":
            return max(0.0, 1 - self.slope * distance)
        return _half_cosine(distance / self.limit)

    def _of_answer(self, length: int, is_right: bool) -> float:
        if self.mode == "exact":
            return max(-1.0, is_right - self.slope * abs(length - self.limit))
        if self.mode == "linear":
            return is_right * min(1.0, max(0.0, 0.5 + self.slope * (self.limit - length)))
        if self.exceeded is not None and length >= self.limit:
            return self.exceeded
        start, end = self.right if is_right else self.wrong
        return end + (start - end) * _half_cosine(length / self.limit)


def _half_cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1, and 0 beyond."""
    return (1 + cos(pi * min(progress, 1.0))) / 2


def graded(accuracy: Reward, completions: list[Completion], columns: dict[str, Any]) -> list[bool | None]:
    """
    Tell by an accuracy reward which completions are right, without logging anything a second time.

    Example:

    ```python
    >>> from think_tools.rewards import accuracy_reward
    >>> from think_tools.rewards.length import graded

    >>> graded(accuracy_reward, ["<think>r</think>4", "5", "5"], {"solution": ["4", "4", ""]})
    [True, False, None]
    ```
    """
    quiet = {name: value for name, value in columns.items() if name not in ("log_metric", "log_extra")}
    rewards = accuracy(completions=completions, **quiet)
    return [None if reward is None else reward > 0.5 for reward in rewards]


def get_group_length_reward(
    accuracy: Reward | None = None,
    tokenizer: "Tokenizer | None" = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[float | None]]:
    r"""
    Reward function that prefers the shorter right answers among the completions of the same prompt.

    With λ = 0.5 - (length - shortest) / (longest - shortest), a right answer gets λ and a wrong one min(0, λ); all get
    0 when all have the same length. The range is `[-0.5, 0.5]`. Source: Kimi k1.5, section 2.3.3
    (https://huggingface.co/papers/2501.12599). As there, the length is that of the whole completion, in tokens of
    `completion_ids`, so nothing is gained by thinking in the answer; the paper adds it only after a warm-up.

    Groups are made by prompt, not over the batch: a hard question does not pay for an easy one. A group that TRL
    spreads over several processes is compared within each process.

    Args:
        accuracy (`Callable`, *optional*):
            Reward function that tells which answers are right (above 0.5). `None` is [`get_accuracy_reward`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, for the default `accuracy` to read the completions right.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning, see [`get_accuracy_reward`].

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`]. `None` where `accuracy` gives `None`.

    Raises:
        `ValueError`: When called, if `prompts` or `completion_ids` are missing.

    Example:

    ```python
    >>> from think_tools.rewards import get_group_length_reward

    >>> ids = [[1] * length for length in (10, 20, 30)]
    >>> get_group_length_reward()(["4", "4", "5"], prompts=["2+2?"] * 3, completion_ids=ids, solution=["4"] * 3)
    [0.5, 0.0, -0.5]
    ```
    """
    return _GroupLengthReward(accuracy or get_accuracy_reward(tokenizer=tokenizer, fmt=fmt))


class _GroupLengthReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "group_length_reward"

    def __init__(self, accuracy: Reward) -> None:
        self.accuracy = accuracy

    def __call__(
        self,
        completions: list[Completion],
        *,
        prompts: list | None = None,
        completion_ids: list[list[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if prompts is None or completion_ids is None:
            missing = "prompts" if prompts is None else "completion_ids"
            raise ValueError(f"`{missing}` is missing: the length is compared in tokens within each prompt's group.")
        correct = graded(self.accuracy, completions, {"prompts": prompts, "completion_ids": completion_ids} | columns)
        rewards: list[float | None] = [None] * len(completions)
        for rows in group_rows(prompts):
            lengths = [len(completion_ids[row]) for row in rows]
            shortest, spread = min(lengths), max(lengths) - min(lengths)
            for row, length in zip(rows, lengths, strict=True):
                share = 0.5 - (length - shortest) / spread if spread else 0.0
                rewards[row] = None if correct[row] is None else share if correct[row] else min(0.0, share)
        return rewards
