"""Self-consistency: sample, vote, and stop as soon as the vote is decided."""

from collections.abc import Iterable
from typing import Unpack

from ..backends import Candidate, SamplingParams
from .session import Backend, Options, Problem, SearchResult, Session, answers_of
from .vote import canonical_answers, votes_missing


def self_consistency(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    confidence: float | None = 0.95,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """
    Sample up to `params.n` outputs per problem and vote; a problem whose vote is decided is sampled no further.

    For votes with weights there are [`best_of_n`] with `weighted=True`, and [`weighted_vote`] on the candidates.

    Sources: Wang et al. 2022, https://huggingface.co/papers/2203.11171; early stop, Adaptive-Consistency,
    https://huggingface.co/papers/2305.11860.

    Args:
        backend ([`TransformersBackend`], [`ClientBackend`] or [`ScriptedBackend`]):
            What samples.
        problems (`Iterable`):
            Messages, or rows with them as `prompt`.
        params ([`SamplingParams`]):
            How to sample; `n` is the most samples per problem.
        confidence (`float`, *optional*, defaults to `0.95`):
            Probability with which a vote counts as decided, see [`votes_missing`]. `None` takes all samples, at once.
        options (*optional*):
            `on_event`, `stop`, `chat_template_kwargs`: see [`Options`].

    Returns:
        `list[SearchResult]`: One per problem. `details["share"]` is the share of the answers that could be
        read that are equal to the winner, `None` if there are none.

    Raises:
        `ValueError`: If `confidence` is out of its range.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import self_consistency

    >>> backend = ScriptedBackend(lambda messages, prefix, number: "78777777"[number % 8])
    >>> [result] = self_consistency(backend, [[{"role": "user", "content": "3+4=?"}]], SamplingParams(n=16))
    >>> result.answer, len(result.candidates)
    ('7', 5)
    ```
    """
    session = Session(backend, problems, params, **options)
    groups: list[list[Candidate]] = [[] for _ in session.problems]
    missing = [params.n if confidence is None else votes_missing([], params.n, confidence)] * len(groups)
    while any(missing) and not session.stopped():
        for size in sorted(set(missing) - {0}):
            asked = [i for i, number in enumerate(missing) if number == size]
            for i, group in zip(asked, session.sample(asked, size), strict=True):
                groups[i] += group
        alike = canonical_answers(map(answers_of, groups))
        missing = [votes_missing(own, params.n - len(own), confidence or 1.0) for own in alike]

    def share(i: int, answers: list[str | None], number: int) -> dict[str, float | None]:
        voting = [answer for answer in answers if answer is not None]
        return {"share": voting.count(answers[number] or "") / len(voting) if voting else None}

    return session.results(groups, details=share)
