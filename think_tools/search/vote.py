"""Choose among stored answers: by counting, by weights, by scores; and how often each way is right."""

import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from ..answers import Grader, shared_grader

Answers = Sequence[str | None]


def canonical_answers(questions: Iterable[Answers], *, grader: Grader | None = None) -> list[list[str | None]]:
    """
    Write equal answers of a question alike, in the words of the first that gave it, as [`same_answer`] sees them.

    What votes often over the same samples calls this once, for all questions together, and passes `canonical=True` on:
    equal strings are then equal answers. Each answer is compared with the first of every class, the earliest first.

    Args:
        questions (`Iterable[Sequence[str | None]]`):
            For each question one answer per sample.
        grader ([`Grader`], *optional*):
            What compares. `None` is the one that [`same_answer`] uses.

    Returns:
        `list[list[str | None]]`: The same with equal answers alike; an answer that is missing or blank is `None`.

    Example:

    ```python
    >>> from think_tools.search import canonical_answers

    >>> canonical_answers([["7", "1/2", None, "0.5"], ["x", ""]])
    [['7', '1/2', None, '1/2'], ['x', None]]
    ```
    """
    samples = [[answer if answer and answer.strip() else None for answer in answers] for answers in questions]
    alike: list[dict[str | None, str | None]] = [{None: None} for _ in samples]
    left = [[answer for answer in dict.fromkeys(answers) if answer is not None] for answers in samples]
    while any(left):  # one more class for each question that has any answer left
        pairs = [(i, answer, some[0]) for i, some in enumerate(left) for answer in some[1:]]
        equal = (grader or shared_grader()).grade([answer for _, answer, _ in pairs], [first for *_, first in pairs])
        for known, some in zip(alike, left, strict=True):
            known |= {first: first for first in some[:1]}
        left = [[] for _ in samples]
        for (i, answer, first), same in zip(pairs, equal, strict=True):
            if same:
                alike[i][answer] = first
            else:
                left[i].append(answer)
    return [[known[answer] for answer in answers] for known, answers in zip(alike, samples, strict=True)]


def majority_vote(answers: Answers, *, canonical: bool = False) -> str | None:
    """
    The answer given most often, in the words of the first sample that gave it (self-consistency).

    Answers are equal when [`same_answer`] says so: `0.5` and `1/2` vote together.

    Source: Wang et al. 2022, https://huggingface.co/papers/2203.11171.

    Args:
        answers (`Sequence[str | None]`):
            One answer per sample. `None`, an answer that could not be read, never votes.
        canonical (`bool`, *optional*, defaults to `False`):
            Whether the answers come from [`canonical_answers`], so that equal strings are all there is to compare.

    Returns:
        `str | None`: The winner. With a tie it is the answer that came first; without any vote it is `None`.

    Example:

    ```python
    >>> from think_tools.search import majority_vote

    >>> majority_vote(["7", "1/2", None, "0.5"])
    '1/2'
    ```
    """
    return weighted_vote(answers, [1.0] * len(answers), canonical=canonical)


def weighted_vote(
    answers: Answers, weights: Sequence[float], *, temperature: float | None = None, canonical: bool = False
) -> str | None:
    """
    The answer whose samples weigh most together: scores of a verifier, or how confident the model was.

    Sources: Li et al. 2022 (sum of a verifier's scores), https://huggingface.co/papers/2206.02336; CISC (softmax of
    confidences), https://huggingface.co/papers/2502.06233.

    Args:
        answers (`Sequence[str | None]`):
            One answer per sample. `None`, an answer that could not be read, never votes.
        weights (`Sequence[float]`):
            One number per sample, the higher the better. Those of samples without an answer are not looked at. Sums of
            negative numbers, such as log-probabilities, punish an answer for each vote: give a `temperature`.
        temperature (`float`, *optional*):
            Weigh by `softmax(weights / temperature)` over the samples that vote, as CISC does. `None` takes the
            weights as they are.
        canonical (`bool`, *optional*, defaults to `False`):
            Whether the answers come from [`canonical_answers`].

    Returns:
        `str | None`: The winner in the words of its first sample. With a tie it is the answer that came first; without
        any vote it is `None`.

    Raises:
        `ValueError`: If there is not one weight per answer, a weight that counts is no finite number, or `temperature`
        is not positive.

    Example:

    ```python
    >>> from think_tools.search import weighted_vote

    >>> weighted_vote(["7", "8", "7"], [0.2, 0.9, 0.3]), weighted_vote(["7", "8", "7"], [0.2, 0.9, 0.3], temperature=2)
    ('8', '7')
    ```
    """
    _check_scores("weights", weights, answers)
    if temperature is not None:
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive or None, got {temperature}.")
        highest = max((w for a, w in zip(answers, weights, strict=True) if a is not None), default=0.0)
        weights = [
            0.0 if a is None else math.exp((w - highest) / temperature) for a, w in zip(answers, weights, strict=True)
        ]
    sums: dict[str, float] = {}
    for answer, weight in zip(answers if canonical else canonical_answers([answers])[0], weights, strict=True):
        if answer is not None:
            sums[answer] = sums.get(answer, 0.0) + weight
    return max(sums, key=sums.__getitem__) if sums else None


def best_candidate(scores: Sequence[float], answers: Answers | None = None) -> int | None:
    """
    The number of the sample with the highest score (best-of-N).

    Args:
        scores (`Sequence[float]`):
            One number per sample, the higher the better.
        answers (`Sequence[str | None]`, *optional*):
            The answer of each. Given, a sample whose answer is `None` is passed over, whatever its score.

    Returns:
        `int | None`: Its index, of several with the same score the first; `None` if there is no sample to choose.

    Raises:
        `ValueError`: If there is not one score per answer, or a score that counts is no finite number.

    Example:

    ```python
    >>> from think_tools.search import best_candidate

    >>> best_candidate([0.2, 0.9, 0.5]), best_candidate([0.2, 0.9, 0.5], ["7", None, "8"])
    (1, 2)
    ```
    """
    return max(filter_top(scores, 1, answers), default=None)


def filter_top(scores: Sequence[float], keep: float, answers: Answers | None = None) -> list[int]:
    """
    The numbers of the samples with the highest scores, in their own order; the others are not to vote (DeepConf).

    Source: Fu et al. 2025, https://huggingface.co/papers/2508.15260, which keeps 0.1 or 0.9 by confidence, then takes
    the weighted vote.

    Args:
        scores (`Sequence[float]`):
            One number per sample, the higher the better.
        keep (`float` or `int`):
            Share of the samples to keep in `(0, 1]` if it is a `float`, rounded up; number of samples if it is an
            `int`.
        answers (`Sequence[str | None]`, *optional*):
            The answer of each. Given, a sample whose answer is `None` is neither kept nor counted.

    Returns:
        `list[int]`: Their indices; of several with the same score the first are kept.

    Raises:
        `ValueError`: If `keep` is out of its range, there is not one score per answer, or a score that counts is no
        finite number.

    Example:

    ```python
    >>> from think_tools.search import filter_top

    >>> filter_top([0.2, 0.9, 0.5, 0.7], 0.5), filter_top([0.2, 0.9, 0.5, 0.7], 3)
    ([1, 3], [1, 2, 3])
    ```
    """
    _check_scores("scores", scores, answers)
    if not (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1):
        raise ValueError(f"`keep` must be a share in (0, 1] as a float, or a number of at least 1, got {keep!r}.")
    voting = [i for i in range(len(scores)) if answers is None or answers[i] is not None]
    # 0.07 * 100 is a little more than 7.
    number = keep if isinstance(keep, int) else math.ceil(keep * len(voting) - 1e-9)
    return sorted(sorted(voting, key=lambda i: -scores[i])[:number])


def votes_missing(answers: Answers, num_left: int, confidence: float = 0.95) -> int:
    """
    The fewest further samples that could decide a vote, if all agree with the leader; 0 when it is decided.

    Decided means that the leader, with the probability `confidence`, still leads when all samples are there: those to
    come fall to the two leading answers by a share of which all values were equally likely at first. With endless
    samples to come it is the rule of Adaptive-Consistency (https://huggingface.co/papers/2305.11860); with few to come
    it is decided earlier.

    Args:
        answers (`Sequence[str | None]`):
            Answers so far, from [`canonical_answers`]; `None` never votes.
        num_left (`int`):
            Samples that may still come.
        confidence (`float`, *optional*, defaults to `0.95`):
            Probability that is enough, in `(0, 1]`. 1 stops when the leader cannot be overtaken.

    Raises:
        `ValueError`: If `confidence` is out of its range.

    Example:

    ```python
    >>> from think_tools.search import votes_missing

    >>> votes_missing([], 16), votes_missing(["7"] * 3, 13), votes_missing(["7", "7", "8"], 13)
    (3, 0, 2)
    ```
    """
    if not 0 < confidence <= 1:
        raise ValueError(f"`confidence` must be in (0, 1], got {confidence}.")
    counts = Counter(answer for answer in answers if answer is not None)
    order, leaders = list(counts), counts.most_common(2)
    first, second = [*(number for _, number in leaders), 0, 0][:2]
    # A tie goes to the answer that came first.
    late = len(leaders) == 2 and order.index(leaders[0][0]) > order.index(leaders[1][0])

    def leads(won: int) -> float:
        """Probability that the second wins too few of the rest to catch up, by a beta-binomial distribution."""
        lead, left = first + won, num_left - won
        ways = sum(
            math.comb(lost + second, lost) * math.comb(left - lost + lead, lead)
            for lost in range(min(left, (left + lead - second - late) // 2) + 1)
        )
        return ways / math.comb(left + lead + second + 1, left)

    return next((won for won in range(num_left) if leads(won) >= confidence), num_left)


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """
    Probability that at least one of `k` samples is right, estimated without bias from all samples of a question.

    Source: Chen et al. 2021, section 2.1, https://huggingface.co/papers/2107.03374.

    Args:
        correct (`Sequence[bool]`):
            Whether each sample is right.
        k (`int`):
            Number of samples drawn, from 1 to all.

    Raises:
        `ValueError`: If `k` is out of its range.

    Example:

    ```python
    >>> from think_tools.search import pass_at_k

    >>> pass_at_k([True, False, False, False], 2)
    0.5
    ```
    """
    _check_k(k, len(correct))
    return 1.0 - math.comb(sum(not right for right in correct), k) / math.comb(len(correct), k)


def maj_at_k(
    answers: Answers, correct: Sequence[bool], k: int, *, num_subsets: int = 32, seed: int = 0, canonical: bool = False
) -> float:
    """
    Probability that the majority of `k` samples is right, averaged over random subsets of all samples of a question.

    Args:
        answers (`Sequence[str | None]`):
            One answer per sample; `None` never votes.
        correct (`Sequence[bool]`):
            Whether each sample is right. Of the samples that gave the winning answer the first of all decides.
        k (`int`):
            Number of samples that vote, from 1 to all.
        num_subsets (`int`, *optional*, defaults to `32`):
            Subsets to average over, see [`mean_over_subsets`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the subsets.
        canonical (`bool`, *optional*, defaults to `False`):
            Whether the answers come from [`canonical_answers`].

    Raises:
        `ValueError`: If `k` or `num_subsets` is out of its range, or `answers` and `correct` differ in length.

    Example:

    ```python
    >>> from think_tools.search import maj_at_k

    >>> maj_at_k(["7", "8", "0.7e1"], [True, False, True], 1), maj_at_k(["7", "8", "0.7e1"], [True, False, True], 3)
    (0.6666666666666666, 1.0)
    ```
    """
    if len(answers) != len(correct):
        raise ValueError(f"`correct` must have one value per answer, got {len(correct)} for {len(answers)}.")
    alike = answers if canonical else canonical_answers([answers])[0]
    right: dict[str | None, bool] = {None: False}
    for answer, value in zip(alike, correct, strict=True):
        right.setdefault(answer, value)
    return mean_over_subsets(
        lambda chosen: right[majority_vote([alike[i] for i in chosen], canonical=True)],
        len(alike), k, num_subsets=num_subsets, seed=seed,
    )  # fmt: skip


def mean_over_subsets(
    measure: Callable[[Sequence[int]], float], num_samples: int, k: int, *, num_subsets: int = 32, seed: int = 0
) -> float:
    """
    Mean of a measure over subsets of `k` samples; the first `k` alone would tell much less about a method.

    All subsets are taken if there are at most `num_subsets`, else as many random ones, the same for every question
    with as many samples.

    Args:
        measure (`Callable`):
            From the indices of a subset, in their order, to a number, such as whether a vote among them is right.
        num_samples (`int`):
            Samples of the question.
        k (`int`):
            Samples in a subset, from 1 to `num_samples`.
        num_subsets (`int`, *optional*, defaults to `32`):
            Number of subsets, at least 1.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the subsets.

    Raises:
        `ValueError`: If `k` or `num_subsets` is out of its range.

    Example:

    ```python
    >>> from think_tools.search.vote import mean_over_subsets

    >>> scores, correct = [0.9, 0.8, 0.1], [False, True, True]
    >>> mean_over_subsets(lambda chosen: correct[max(chosen, key=scores.__getitem__)], 3, k=2)  # bon@2
    0.3333333333333333
    ```
    """
    _check_k(k, num_samples)
    if num_subsets < 1:
        raise ValueError(f"`num_subsets` must be at least 1, got {num_subsets}.")
    chosen = _subsets(num_samples, k, num_subsets, seed)
    return sum(map(measure, chosen)) / len(chosen)


@functools.lru_cache(maxsize=256)
def _subsets(num_samples: int, k: int, num_subsets: int, seed: int) -> list[tuple[int, ...]]:
    if math.comb(num_samples, k) <= num_subsets:
        return list(combinations(range(num_samples), k))
    rng = random.Random(f"{num_samples}/{k}/{seed}")
    return [tuple(sorted(rng.sample(range(num_samples), k))) for _ in range(num_subsets)]


def _check_k(k: int, num_samples: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"`k` must be from 1 to the number of samples, {num_samples}, got {k}.")


def _check_scores(name: str, scores: Sequence[float], answers: Answers | None) -> None:
    if answers is not None and len(answers) != len(scores):
        raise ValueError(f"`{name}` must have one number per answer, got {len(scores)} for {len(answers)} answers.")
    for i, score in enumerate(scores):
        if (score is None or not math.isfinite(score)) and (answers is None or answers[i] is not None):
            raise ValueError(f"`{name}` must be finite numbers, got {score} for sample {i}: leave that sample out.")
