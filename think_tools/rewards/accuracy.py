"""Reward right final answers (the accuracy reward of DeepSeek-R1, section 2.2.2, https://huggingface.co/papers/2501.12948)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..answers import Verdict, extract_answer, shared_grader
from .completions import Completion, LogExtra, LogMetric, read_traces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

    A reward without a tokenizer cannot see that a chat template had already written `<think>` when no `</think>` came,
    and not a think marker that is a special token and was erased: such reasoning looks like an answer. Use
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
    return _AccuracyReward(last_number=False, timeout=5.0, tokenizer=None)(completions, solution, **kwargs)


def get_accuracy_reward(
    last_number: bool = False, timeout: float = 5.0, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Callable[..., list[float | None]]:
    """
    Reward function like [`accuracy_reward`], with settings.

    Args:
        last_number (`bool`, *optional*, defaults to `False`):
            Whether an answer without box, tag or sentence is read as the last number in it. This pays guesses.
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds of wall time for one answer. What takes longer is wrong and counted in `accuracy/stopped`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer. With it a generation prompt that ends in `<think>`, cut-off outputs and think
            markers that are special tokens are read right, from `completion_ids`.

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`].

    Raises:
        `ValueError`: If `timeout` is not positive.

    Example:

    ```python
    >>> from think_tools.rewards import get_accuracy_reward

    >>> reward = get_accuracy_reward(last_number=True)
    >>> reward(["<think>6*7</think>That makes 42, I think."], solution=["42"])
    [1.0]
    ```
    """
    if timeout <= 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout}.")
    return _AccuracyReward(last_number, timeout, tokenizer)


class _AccuracyReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "accuracy_reward"

    def __init__(self, last_number: bool, timeout: float, tokenizer: "PreTrainedTokenizerBase | None"):
        self.last_number = last_number
        self.timeout = timeout
        self.tokenizer = tokenizer

    def __call__(
        self,
        completions: list[Completion],
        solution: Sequence | None = None,
        *,
        prompts: list | None = None,
        completion_ids: list[list[int]] | None = None,
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: object,
    ) -> list[float | None]:
        _check_solution(solution, completions, columns)
        assert solution is not None
        traces = read_traces(completions, prompts=prompts, completion_ids=completion_ids, tokenizer=self.tokenizer)
        answers = [extract_answer(trace.answer, last_number=self.last_number) for trace in traces]
        verdicts = shared_grader().verdicts(answers, solution, timeout=self.timeout)
        if log_metric:
            log_metric("accuracy/no_answer", float(answers.count(None)))
            log_metric("accuracy/stopped", float(verdicts.count("stopped")))
            log_metric("accuracy/gold_unreadable", float(verdicts.count("gold_unreadable")))
        if log_extra:
            log_extra("answer", [answer or "" for answer in answers])
        return [_REWARDS[verdict] for verdict in verdicts]


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
