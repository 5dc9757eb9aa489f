"""Self-consistency: sample, vote, and stop as soon as the vote is decided."""

from collections.abc import Callable, Iterable
from typing import Unpack

from ..backends import Candidate, SamplingParams
from .session import Backend, Options, Problem, SearchResult, Session, answers_of, choose
from .vote import canonical_answers, filter_top, is_decided


def self_consistency(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    confidence: float | None = 0.95,
    round_size: int = 4,
    weight: Callable[[Candidate], float] | None = None,
    temperature: float | None = None,
    keep: float = 1.0,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """
    Sample up to `params.n` outputs per problem and vote; a problem whose vote is decided is sampled no further.

    Sources: Wang et al. 2022, https://huggingface.co/papers/2203.11171; early stop, Adaptive-Consistency,
    https://huggingface.co/papers/2305.11860; weights, CISC, https://huggingface.co/papers/2502.06233, and DeepConf,
    https://huggingface.co/papers/2508.15260.

    Args:
        backend ([`TransformersBackend`], [`ClientBackend`] or [`ScriptedBackend`]):
            What samples.
        problems (`Iterable`):
            Messages, or rows with them as `prompt`.
        params ([`SamplingParams`]):
            How to sample; `n` is the most samples per problem.
        confidence (`float`, *optional*, defaults to `0.95`):
            When a vote is decided, see [`is_decided`]. `None` takes all samples, in one round.
        round_size (`int`, *optional*, defaults to `4`):
            Samples per problem and round.
        weight (`Callable`, *optional*):
            From a candidate to its weight, such as `lambda candidate: candidate.logprob` with
            `SamplingParams(logprobs=True)`. `None`: every sample counts the same. The early stop counts heads.
        temperature (`float`, *optional*):
            Weigh by `softmax(weight / temperature)`, see [`weighted_vote`]. Weights below 0 need one.
        keep (`float` or `int`, *optional*, defaults to `1.0`):
            Which samples vote, by weight, see [`filter_top`].
        options (*optional*):
            `on_event`, `stop`, `chat_template_kwargs`: see [`Options`].

    Returns:
        `list[SearchResult]`: One per problem. Its `scores` are the weights; `details["share"]` is how many of the
        answers that could be read are equal to the winner, `None` if there are none.

    Raises:
        `ValueError`: If an argument is out of its range, or a weight is no finite number.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import self_consistency

    >>> backend = ScriptedBackend(lambda messages, prefix, number: "7 8 7 7 7 7 7 7"[2 * (number % 8)])
    >>> [result] = self_consistency(backend, [[{"role": "user", "content": "3+4=?"}]], SamplingParams(n=16))
    >>> result.answer, len(result.candidates)
    ('7', 8)
    ```
    """
    if round_size < 1:
        raise ValueError(f"`round_size` must be at least 1, got {round_size}.")
    session = Session(backend, problems, params, **options)
    size = params.n if confidence is None else round_size
    groups: list[list[Candidate]] = [[] for _ in session.problems]
    open_votes = list(range(len(groups)))
    for drawn in range(0, params.n, size):
        for i, group in zip(open_votes, session.sample(open_votes, min(size, params.n - drawn)), strict=True):
            groups[i] += group
        if confidence is not None:
            alike = canonical_answers([answers_of(groups[i]) for i in open_votes])
            left = max(0, params.n - drawn - size)
            open_votes = [i for i, own in zip(open_votes, alike, strict=True) if not is_decided(own, left, confidence)]
    scores = [[weight(candidate) for candidate in group] for group in groups] if weight else None

    def pick(i: int, answers: list[str | None], weights: list[float] | None) -> int:
        if weights is None or not any(answers):
            return choose(answers, None)
        kept = filter_top(weights, keep, answers)
        voting = [answer if j in kept else None for j, answer in enumerate(answers)]
        return choose(voting, weights, weighted=True, temperature=temperature)

    def share(i: int, answers: list[str | None], number: int) -> dict[str, float | None]:
        voting = [answer for answer in answers if answer is not None]
        return {"share": voting.count(answers[number] or "") / len(voting) if voting else None}

    return session.results(groups, scores, pick=pick, details=share)
