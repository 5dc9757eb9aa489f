"""How good a model is with more samples: accuracy of each way to choose among them, with intervals, and its tokens."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from ..answers import extract_answer
from ..parsing import read_completion
from ..rewards import accuracy_reward
from .vote import best_candidate, canonical_answers, maj_at_k, mean_over_subsets, pass_at_k, weighted_vote

logger = logging.getLogger(__name__)

# A reward function for TRL: 1.0 is right, less is wrong, None is unknown.
Reward = Callable[..., Sequence[float | None]]

_SCORES = ("scores", "rm_score")
_PER_COMPLETION = ("completions", "is_correct", "finish_reason", "num_tokens", "num_reasoning_tokens")
_GOLDS = ("answer", "solution")  # `solution` may be a worked one beside a short `answer`


class _Question(NamedTuple):
    """The samples of one question."""

    answers: list[str | None]  # equal ones written alike, `None` where none could be read
    correct: list[bool]
    scores: list[float] | None
    weights: list[float] | None  # the scores, or their softmax
    right: dict[str | None, bool]  # whether each answer is
    selected: bool | None  # whether the answer that a search took is right


def evaluate(
    rows: Iterable[Any],
    *,
    ks: Sequence[int] | None = None,
    score: str | None = None,
    reward: Reward = accuracy_reward,
    num_subsets: int = 32,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Measure stored candidates: how often one of `k` samples is right, and how often the one that a selector takes.

    No model is asked, so a selection can be measured again at any time. [`collect`] makes the rows; those of others
    will do, for instance with `problem`, `answer`, `completions`, `is_correct` and `rm_score`.

    Args:
        rows (`Iterable[dict]`):
            One row per question with `completions` (text, message or messages each) and the gold answer in `answer` or
            `solution`. Each of these columns, if it is there, holds one value per completion: `is_correct` (else
            `reward` grades), `scores` or `rm_score`, `finish_reason`, `num_tokens`, `num_reasoning_tokens`. And of
            the whole question: `selected` (the answer that a search took) and `usage` (what that search spent).
        ks (`Sequence[int]`, *optional*):
            Numbers of samples. `None`: the powers of two up to the smallest number of completions of a question, and
            that number. All completions serve every `k`.
        score (`str`, *optional*):
            Column with the scores for `weighted@k` and `bon@k`, the higher the better, such as `"logprob"`. `None`
            looks for `scores` and `rm_score`; without them the two are left out.
        reward (`Callable`, *optional*, defaults to [`accuracy_reward`]):
            Reward function of TRL's form; 1.0 is right. It sees one completion for each answer of a question.
        num_subsets (`int`, *optional*, defaults to `32`):
            Random subsets of `k` completions to average over; all of them, where there are no more.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples of the questions for the intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of both.

    Returns:
        `dict`, ready for JSON:

        - `questions`, `ungraded` (their gold answer cannot be read; they count nowhere else), `samples` (completions
          per question, mean).
        - `metrics`: for each `k` `pass@k` (unbiased), `maj@k`, `weighted@k` (sums of the scores, or of their softmax
          if any of the file is negative) and `bon@k`; `selected`, if given; `headroom` (pass@k - pass@1 at the largest
          `k`); `mixed`, `all_right`, `all_wrong` (shares of questions by their samples: GRPO learns from the mixed
          ones alone). Each with `value` and the bounds `low` and `high` of the 95 % bootstrap interval over questions.
        - `tokens` per question, all its samples together: `thinking`, `answer`, `pruned` (spent on what is not among
          the completions), `verifier`. `None` where the rows do not say.
        - `truncated`, `unparsed`: shares of the completions cut by the length limit (`None` without `finish_reason`)
          and without an answer, which never vote and are never chosen.

    Raises:
        `ValueError`: If there is nothing to evaluate, a column is missing or has another length, or `ks` is out of
        range.

    Example:

    ```python
    >>> from think_tools.search import evaluate

    >>> rows = [
    ...     {"solution": "12", "completions": ["12", "12", "<think>6+6</think>12", "13"]},
    ...     {"solution": "1/2", "completions": ["0.5", "2", "2", "3"]},
    ... ]
    >>> metrics = evaluate(rows)["metrics"]
    >>> {name: metrics[name]["value"] for name in ("pass@1", "pass@4", "maj@4", "mixed")}
    {'pass@1': 0.5, 'pass@4': 1.0, 'maj@4': 0.5, 'mixed': 1.0}
    ```
    """
    rows = list(rows)
    score = _check_rows(rows, score)
    graded = [(row, some) for row, some in zip(rows, _read(rows, score, reward), strict=True) if some is not None]
    if not graded:
        raise ValueError("`rows` hold no gold answer that can be read. Grade them into a column `is_correct`.")
    if ungraded := len(rows) - len(graded):
        logger.warning("`evaluate` leaves out %d of %d questions: no gold answer.", ungraded, len(rows))
    rows, questions = [row for row, _ in graded], [question for _, question in graded]
    sizes = [len(question.correct) for question in questions]
    ks = sorted(set(ks or [min(sizes), *(2**i for i in range(min(sizes).bit_length()))]))
    if not 1 <= ks[0] <= ks[-1] <= min(sizes):
        raise ValueError(f"`ks` must be from 1 to the fewest completions of a question, {min(sizes)}, got {ks}.")
    values = [_values(question, ks, num_subsets, seed) for question in questions]
    cut = [reason == "length" for row in rows for reason in row.get("finish_reason") or []]
    return {
        "questions": len(rows),
        "ungraded": ungraded,
        "samples": fmean(sizes),
        "metrics": _intervals(values, num_resamples, seed),
        "tokens": _tokens(rows),
        "truncated": fmean(cut) if cut else None,
        "unparsed": fmean(answer is None for question in questions for answer in question.answers),
    }


def _check_rows(rows: list[dict], score: str | None) -> str | None:
    """The column with the scores, if there is one; a `ValueError` if the rows are none of candidates."""
    if not rows:
        raise ValueError("`rows` is empty: there is nothing to evaluate.")
    score = score or next((name for name in _SCORES if name in rows[0]), None)
    for i, row in enumerate(rows):
        lengths = {name: len(row[name]) for name in (score, *_PER_COMPLETION) if row.get(name or "") is not None}
        needed = ["completions", *([score] if score else []), *(["selected"] if "selected" in rows[0] else [])]
        if (
            not row.get("completions")
            or not {*needed} <= {*lengths, *({*row} & {"selected"})}
            or len(set(lengths.values())) > 1
        ):
            raise ValueError(
                f"`rows[{i}]` must have {needed}, and one value per completion in each of {list(_PER_COMPLETION)} "
                f"that it has, got the columns {sorted(row)} with {lengths} values. See `collect`."
            )
    return score


def _read(rows: list[dict], score: str | None, reward: Reward) -> list[_Question | None]:
    """The questions, read and graded; `None` where the gold answer cannot be read."""
    answers, keys, asked = [], [], {}
    for i, row in enumerate(rows):
        reasons = row.get("finish_reason") or [None] * len(row["completions"])
        pairs = list(zip(row["completions"], reasons, strict=True))
        texts = [read_completion(text, finished=None if why is None else why == "stop").answer for text, why in pairs]
        answers.append([*map(extract_answer, texts), row.get("selected")])
        keys.append([(i, answer or text) for answer, text in zip(answers[i], texts, strict=False)])
        if row.get("is_correct") is None:
            asked |= dict(zip(keys[i], row["completions"], strict=True))
    golds = [next((row[name] for name in _GOLDS if row.get(name) is not None), None) for row in rows]
    rewards = reward(list(asked.values()), solution=[golds[i] for i, _ in asked]) if asked else []
    verdicts = dict(zip(asked, rewards, strict=True))
    negative = score and any(number is not None and number < 0 for row in rows for number in row[score])
    questions: list[_Question | None] = []
    for i, (row, alike, mine) in enumerate(zip(rows, canonical_answers(answers), keys, strict=True)):
        marks = row.get("is_correct")
        marks = [verdicts[key] for key in mine] if marks is None else marks
        correct = [mark >= 1 for mark in marks if mark is not None]
        if len(correct) < len(marks):
            questions.append(None)
            continue
        scores = [math.nan if number is None else float(number) for number in row[score]] if score else None
        highest = max(filter(math.isfinite, scores or []), default=0.0)
        weights = [math.exp(number - highest) for number in scores] if scores and negative else scores
        # Of equal answers the first decides, as in a vote.
        right = {None: False} | dict(reversed(list(zip(alike[:-1], correct, strict=True)))) | {None: False}
        if alike[-1] not in right:
            raise ValueError(f"`rows[{i}]['selected']` is {alike[-1]!r}, which none of its completions answers.")
        selected = right[alike[-1]] if "selected" in row else None
        questions.append(_Question(alike[:-1], correct, scores, weights, right, selected))
    return questions


def _values(question: _Question, ks: list[int], num_subsets: int, seed: int) -> dict[str, float]:
    """The metrics of one question."""
    answers, correct, scores, weights, right = question[:5]
    values = {}
    for k in ks:
        values[f"pass@{k}"] = pass_at_k(correct, k)
        values[f"maj@{k}"] = maj_at_k(answers, correct, k, num_subsets=num_subsets, seed=seed, canonical=True)
        if scores and weights:

            def weighted(chosen: Sequence[int]) -> float:
                return right[weighted_vote([answers[i] for i in chosen], [weights[i] for i in chosen], canonical=True)]

            def best(chosen: Sequence[int]) -> float:
                found = best_candidate([scores[i] for i in chosen], [answers[i] for i in chosen])
                return found is not None and correct[chosen[found]]

            for name, measure in (("weighted", weighted), ("bon", best)):
                mean = mean_over_subsets(measure, len(correct), k, num_subsets=num_subsets, seed=seed)
                values[f"{name}@{k}"] = mean
    if question.selected is not None:
        values["selected"] = float(question.selected)
    share = fmean(correct)
    values["headroom"] = pass_at_k(correct, ks[-1]) - share
    return values | {"mixed": float(0 < share < 1), "all_right": float(share == 1), "all_wrong": float(share == 0)}


def _intervals(values: list[dict[str, float]], num_resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Mean of each metric over the questions, and bounds of its 95 % bootstrap interval (percentiles)."""
    table = np.array([list(some.values()) for some in values])  # (questions, metrics)
    draws = np.random.default_rng(seed).multinomial(len(table), [1 / len(table)] * len(table), num_resamples)
    low, high = np.percentile(draws @ table / len(table), [2.5, 97.5], axis=0)
    columns = zip(values[0], table.mean(0), low, high, strict=True)
    return {name: {"value": float(v), "low": float(a), "high": float(b)} for name, v, a, b in columns}


def _tokens(rows: list[dict]) -> dict[str, float | None]:
    """Mean tokens of a question's samples together, by what they were spent on; `None` where a row does not say."""

    def mean(count: Callable[[dict], float]) -> float | None:
        try:
            return fmean(map(count, rows))
        except (KeyError, TypeError):  # no such column, or `None` in it
            return None

    def pruned(row: dict) -> float:
        kept = sum(row["num_tokens"])
        return row["usage"]["completion_tokens"] - kept if row.get("usage") else 0

    return {
        "thinking": mean(lambda row: sum(row["num_reasoning_tokens"])),
        "answer": mean(lambda row: sum(row["num_tokens"]) - sum(row["num_reasoning_tokens"])),
        "pruned": mean(pruned),
        "verifier": mean(lambda row: row["usage"]["verifier_tokens"]),
    }
