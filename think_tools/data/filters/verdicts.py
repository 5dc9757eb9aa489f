"""Filters that tell right answers from wrong ones and good rows from bad: the grader, judges, and pass rates."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from ...answers import extract_answer, shared_grader
from ...backends import Candidate, ClientBackend, Messages, SamplingParams, TransformersBackend
from ...backends.client import run_sync
from ...parsing import read_completion
from ...rewards.judge import Criteria, describe_criteria, judge_messages, read_scores
from .apply import Annotation, Filter, note, read_question

logger = logging.getLogger(__name__)

# Any model that answers prompts: a backend, or a function from prompts to one reply each.
Judge = ClientBackend | TransformersBackend | Callable[[list[Messages]], Sequence[str]]

_KEEP = {"right": True, "wrong": False, 10.0: True, 0.0: False}  # nothing else tells
_EXAM = {"exam": "10 if the answer says the same as the reference answer, in whatever form, else 0. Nothing between."}
_AXES = ("harmlessness", "helpfulness", "correctness")
# Not greedy: an unreadable reply would come back as it was.
_PARAMS = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=8192)


def verified(*, last_number: bool = False, timeout: float = 5.0) -> Filter:
    r"""
    Filter that keeps right answers: the answer part compared with the column `solution`, by the package's [`Grader`].

    Undecided, never wrong, is an answer that cannot be found, one whose comparison takes too long, and a row without a
    gold answer that can be read: put [`judge_exam`] behind. The value is the answer that was found.

    Args:
        last_number (`bool`, *optional*, defaults to `False`):
            Whether an answer without box, tag or sentence is read as the last number in it, see [`extract_answer`].
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds of wall time for one comparison.

    Example:

    ```python
    >>> from think_tools.data.filters import verified

    >>> answer = {"role": "assistant", "reasoning_content": "6/12", "content": r"So it is \boxed{\frac12}."}
    >>> verified()({"prompt": "6/12?", "completion": [answer], "solution": "0.5"})
    {'value': '\\frac12', 'keep': True, 'reason': None}
    ```
    """

    def annotate(rows: Sequence[dict]) -> Iterator[Annotation]:
        texts = (read_completion(row["completion"]).answer for row in rows)
        answers = [extract_answer(text, last_number=last_number) for text in texts]
        grades = shared_grader().verdicts(answers, [row.get("solution") for row in rows], timeout=timeout)
        for answer, grade in zip(answers, grades, strict=True):
            grade = "no answer found" if answer is None and grade == "wrong" else grade
            yield note(answer, _KEEP.get(grade), grade)

    return Filter("verified", annotate, "batch")


def judge_exam(judge: Judge, *, params: SamplingParams = _PARAMS) -> Filter:
    """
    Filter that keeps answers which a model calls equal to the column `solution`: 10 is right, 0 is wrong.

    A row that [`verified`] has decided before keeps that verdict, and nobody is asked. Undecided is a row without
    `solution`, one whose reply could not be read twice, and any score between. The value is the score.

    Args:
        judge (`ClientBackend`, `TransformersBackend` or `Callable`):
            The model; or a function from a list of prompts (messages) to the replies, texts in the same order.
        params ([`SamplingParams`], *optional*):
            How a backend samples; a function decides that itself.

    Example:

    ```python
    >>> from think_tools.data.filters import judge_exam

    >>> rule = judge_exam(lambda prompts: ["Both name the same city.\\nexam: 10"] * len(prompts))
    >>> rule({"prompt": "Capital of France?", "completion": "It's Paris, la Ville Lumière.", "solution": "Paris"})
    {'value': 10.0, 'keep': True, 'reason': None}
    ```
    """

    def annotate(rows: Sequence[dict]) -> Iterator[Annotation]:
        known = [(row.get("f_verified") or {}).get("keep") for row in rows]
        asked = [row if keep is None and row.get("solution") else None for row, keep in zip(rows, known, strict=True)]
        for keep, scores in zip(known, _ask(judge, params, asked, _EXAM), strict=True):
            score = scores["exam"] if scores else None if keep is None else 10.0 * keep
            yield note(score, _KEEP.get(score), "no verdict" if score is None else f"score {score:g}")

    return Filter("judge_exam", annotate, "batch")


def judge_quality(
    judge: Judge, criteria: Criteria = _AXES, *, min_score: float = 7.0, params: SamplingParams = _PARAMS
) -> Filter:
    """
    Filter that keeps rows to which a model gives high scores from 0 to 10, by the worst of them.

    The value holds each score and their minimum, `min`. A row whose reply could not be read twice is undecided.

    Args:
        judge (`ClientBackend`, `TransformersBackend` or `Callable`):
            The model; or a function from a list of prompts (messages) to the replies, texts in the same order.
        criteria (`str`, `Sequence[str]` or `dict[str, str]`, *optional*):
            Names, or your own with what each asks for, as [`get_judge_reward`] takes them. Harmlessness, helpfulness
            and correctness unless you say otherwise.
        min_score (`float`, *optional*, defaults to `7.0`):
            Least minimum.
        params ([`SamplingParams`], *optional*):
            How a backend samples; a function decides that itself.

    Raises:
        `ValueError`: If a criterion is unknown.

    Example:

    ```python
    >>> from think_tools.data.filters import judge_quality

    >>> rule = judge_quality(lambda prompts: ["helpfulness: 9\\ncorrectness: 4"], ["helpfulness", "correctness"])
    >>> rule({"prompt": "2+2?", "completion": "5"})
    {'value': {'helpfulness': 9.0, 'correctness': 4.0, 'min': 4.0}, 'keep': False, 'reason': 'a score below 7'}
    ```
    """
    asked = describe_criteria(criteria)

    def annotate(rows: Sequence[dict]) -> Iterator[Annotation]:
        for scores in _ask(judge, params, rows, asked):
            if scores:
                scores["min"] = min(scores.values())
            reason = f"a score below {min_score:g}" if scores else "no verdict"
            yield note(scores, scores["min"] >= min_score if scores else None, reason)

    return Filter("judge_quality", annotate, "batch")


def _ask(
    judge: Judge, params: SamplingParams, rows: Sequence[dict | None], criteria: dict[str, str]
) -> list[dict[str, float] | None]:
    """The scores of each row, `None` where there is no row; what cannot be read is asked once more."""
    prompts = {
        i: judge_messages(criteria, read_question(row), read_completion(row["completion"]), row.get("solution"))
        for i, row in enumerate(rows)
        if row
    }
    found: dict[int, dict[str, float] | None] = {}
    for _ in range(2):
        asked = [i for i in prompts if not found.get(i)]
        replies = _replies(judge, params, [prompts[i] for i in asked]) if asked else []
        found |= {i: read_scores(reply, criteria) for i, reply in zip(asked, replies, strict=True)}
    return [found.get(i) for i in range(len(rows))]


def _replies(judge: Judge, params: SamplingParams, prompts: list[Messages]) -> Sequence[str]:
    """The answer to each prompt, `""` where a server gave none."""
    if isinstance(judge, TransformersBackend):
        return [candidate.trace.answer for [candidate] in judge.sample(prompts, params)]
    if not isinstance(judge, ClientBackend):
        return judge(prompts)

    async def collect() -> dict[int, Candidate | ConnectionError]:
        requests = ((i, prompt, params) for i, prompt in enumerate(prompts))
        return {i: result async for i, result in judge.as_completed(requests)}

    found = run_sync(collect())  # `sample` would raise after one failure and lose what the others have cost
    if failed := [result for result in found.values() if isinstance(result, ConnectionError)]:
        logger.warning("The judge did not reply to %d of %d prompts: %s", len(failed), len(prompts), failed[0])
    return [result.trace.answer if isinstance(result, Candidate) else "" for _, result in sorted(found.items())]


def pass_rate(*, low: float = 0.1, high: float = 0.9, by: str = "verified") -> Filter:
    """
    Filter that keeps questions which are neither too easy nor too hard: some of their rows are right, and some wrong.

    Rows with one prompt are samples of one question; those that are undecided do not count. The value is the share of
    the right ones, `None` if none was decided. Source: `compute_pass_rate.py` of
    https://github.com/huggingface/open-r1.

    Args:
        low (`float`, *optional*, defaults to `0.1`):
            The share must be above.
        high (`float`, *optional*, defaults to `0.9`):
            The share must be below.
        by (`str`, *optional*, defaults to `"verified"`):
            Name of the filter that told right from wrong; it must have run before.

    Raises:
        `ValueError`: If it has not.

    Example:

    ```python
    >>> from think_tools.data import apply_filters
    >>> from think_tools.data.filters import pass_rate, verified

    >>> rows = [{"prompt": "2+2?", "completion": text, "solution": "4"} for text in ("4", "5")]
    >>> apply_filters(rows, [verified(), pass_rate()])[0]["f_pass_rate"][0]
    {'value': 0.5, 'keep': True, 'reason': None}
    ```
    """

    def annotate(rows: Sequence[dict]) -> Iterator[Annotation]:
        if any(f"f_{by}" not in row for row in rows):
            raise ValueError(f"`by` is {by!r}, which has not annotated the rows: put it before `pass_rate`.")
        verdicts = defaultdict(list)
        for row in rows:
            verdicts[read_question(row)].append(row[f"f_{by}"]["keep"])
        for row in rows:
            keeps = [keep for keep in verdicts[read_question(row)] if keep is not None]
            rate = sum(keeps) / len(keeps) if keeps else None
            keep = None if rate is None else low < rate < high
            yield note(rate, keep, "none decided" if rate is None else "too hard" if rate <= low else "too easy")

    return Filter("pass_rate", annotate, "dataset")
