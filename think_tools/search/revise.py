"""Let the model look at its earlier answers and try again: in one chain, or in several side by side."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, Unpack, get_args

from ..backends import Candidate, Messages, SamplingParams
from ..prompts import revise
from .session import Backend, Options, Problem, SearchResult, Session, answers_of, choose
from .verifiers import Verifier
from .vote import canonical_answers, majority_vote

Select = Literal["majority", "verifier", "last"]
# From the messages of a problem and the texts of earlier answers, oldest first, to the messages that ask again.
Revise = Callable[[Messages, Sequence[str]], Messages]


def sequential_revision(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    select: Select = "majority",
    verifier: Verifier | None = None,
    keep_last: int = 4,
    prompt: Revise = revise,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """
    Answer, then revise `params.n - 1` times, each time with the latest answers in the prompt; choose among all.

    Models that were not trained to revise gain little by it and spoil right answers
    (https://huggingface.co/papers/2310.01798), so the last answer is not the default: look at `details`.

    Source: Snell et al. 2024, section 6, https://huggingface.co/papers/2408.03314, where 38 % of the right answers of
    a trained revision model turned wrong.

    Args:
        backend ([`TransformersBackend`], [`ClientBackend`] or [`ScriptedBackend`]):
            What samples.
        problems (`Iterable`):
            Messages, or rows with them as `prompt`; with `solution`, flips are counted.
        params ([`SamplingParams`]):
            How to sample; `n` is the number of answers in the chain.
        select (`str`, *optional*, defaults to `"majority"`):
            `"majority"` of the chain, the best by the `"verifier"`, or the `"last"` answer.
        verifier (`Callable`, *optional*):
            `verifier(messages, texts)` gives scores, see [`verify`]; needed by `select="verifier"`.
        keep_last (`int`, *optional*, defaults to `4`):
            Earlier answers that the model sees, without their reasoning.
        prompt (`Callable`, *optional*, defaults to [`~think_tools.prompts.revise`]):
            Asks again: `prompt(messages, texts)` gives messages.
        options (*optional*):
            `on_event`, `stop`, `reduce`, `chat_template_kwargs`: see [`Options`].

    Returns:
        `list[SearchResult]`: One per problem, its candidates in the order of the chain. `details` has `correct` (for
        each of them `True`, `False`, or `None` without a readable `solution`), `right_to_wrong` and `wrong_to_right`,
        the flips from one answer to the next.

    Raises:
        `ValueError`: If an argument is out of its range or `verifier` is missing.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import sequential_revision

    >>> backend = ScriptedBackend(lambda messages, prefix, number: "7" if "8" in messages[-1]["content"] else "8")
    >>> problem = {"prompt": [{"role": "user", "content": "3+4=?"}], "solution": "7"}
    >>> [result] = sequential_revision(backend, [problem], SamplingParams(n=3))
    >>> result.answer, result.details
    ('7', {'correct': [False, True, True], 'right_to_wrong': 0, 'wrong_to_right': 1})
    ```
    """
    if select not in get_args(Select) or (select == "verifier") != (verifier is not None):
        raise ValueError(
            f"`select` must be one of {list(get_args(Select))}, and `verifier` be given with 'verifier' and with no "
            f"other, got {select!r} and {verifier!r}."
        )
    session = Session(backend, problems, params, verifier, **options)
    chains = [list(group) for group in session.sample(range(len(session.problems)), 1)]
    _prolong(session, [(i, chain, params.n - 1) for i, chain in enumerate(chains)], keep_last, prompt)
    scores = [session.score(i, chain) for i, chain in enumerate(chains)] if verifier else None

    def pick(i: int, answers: list[str | None], own: list[float] | None) -> int:
        return choose(answers, list(map(float, range(len(answers)))) if select == "last" else own)

    def flips(i: int, answers: list[str | None], number: int) -> dict[str, Any]:
        correct = session.right(i, chains[i])
        pairs = list(pairwise(correct))
        return {
            "correct": correct,
            "right_to_wrong": pairs.count((True, False)),
            "wrong_to_right": pairs.count((False, True)),
        }

    return session.results(chains, scores, pick=pick, details=flips)


def parallel_sequential(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    num_first: int | None = None,
    verifier: Verifier | None = None,
    keep_last: int = 4,
    prompt: Revise = revise,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """
    Sample a few answers, then share the other samples out between revisions of these and new ones: the more the first
    agree, the more is revised.

    Easy questions gain from revisions, hard ones from other approaches; how many of the first answers agree tells them
    apart without a gold answer. Chosen is first within each chain, then among the chains.

    Source: Snell et al. 2024, section 6.2, https://huggingface.co/papers/2408.03314 (there the ratio is looked up by
    the difficulty of the question).

    Args:
        backend, problems, keep_last, prompt, options:
            As in [`sequential_revision`].
        params ([`SamplingParams`]):
            How to sample; `n` is the number of answers in all.
        num_first (`int`, *optional*):
            Answers before the split. `None` is the square root of `params.n`, rounded down.
        verifier (`Callable`, *optional*):
            Chooses the best of each chain and of all chains, see [`verify`]. `None` takes the majority both times.

    Returns:
        `list[SearchResult]`: One per problem. `details` has the `agreement` of the first answers in `[0, 1]` and the
        `chains`, lists of indices of the candidates.

    Raises:
        `ValueError`: If `num_first` is not between 1 and `params.n`.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import parallel_sequential

    >>> backend = ScriptedBackend(lambda messages, prefix, number: "7")
    >>> [result] = parallel_sequential(backend, [[{"role": "user", "content": "3+4=?"}]], SamplingParams(n=6))
    >>> result.details
    {'agreement': 1.0, 'chains': [[0, 1, 2], [3, 4, 5]]}
    ```
    """
    first = math.isqrt(params.n) if num_first is None else num_first
    if not 1 <= first <= params.n:
        raise ValueError(f"`num_first` must be from 1 to `params.n`, {params.n}, or None, got {num_first}.")
    session = Session(backend, problems, params, verifier, **options)
    begun = session.sample(range(len(session.problems)), first)
    agreements = []
    for alike in canonical_answers(map(answers_of, begun)):
        winner = majority_vote(alike, canonical=True)
        agreements.append(sum(answer == winner for answer in alike) / len(alike) if winner is not None else 0.0)
    revisions = [round(agreement * (params.n - first)) for agreement in agreements]
    for number in sorted({params.n - first - revised for revised in revisions} - {0}):
        fresh = [i for i, revised in enumerate(revisions) if params.n - first - revised == number]
        for i, group in zip(fresh, session.sample(fresh, number), strict=True):
            begun[i] = begun[i] + group
    chains = [[[candidate] for candidate in group] for group in begun]
    shares = [[left // first + (j < left % first) for j in range(first)] for left in revisions]
    begun_first = [(i, *pair) for i, own in enumerate(chains) for pair in zip(own, shares[i], strict=False)]
    _prolong(session, begun_first, keep_last, prompt)
    groups = [[candidate for chain in own for candidate in chain] for own in chains]
    ends = [list(accumulate(map(len, own))) for own in chains]
    places = [[list(range(*pair)) for pair in pairwise([0, *own])] for own in ends]
    scores = [session.score(i, group) for i, group in enumerate(groups)] if verifier else None

    def pick(i: int, answers: list[str | None], own: list[float] | None) -> int:
        def best(numbers: Sequence[int]) -> int:
            return numbers[choose([answers[j] for j in numbers], [own[j] for j in numbers] if own else None)]

        return best([best(chain) for chain in places[i]])

    return session.results(
        groups, scores, pick=pick, details=lambda i, *_: {"agreement": agreements[i], "chains": places[i]}
    )


def _prolong(
    session: Session, chains: Sequence[tuple[int, list[Candidate], int]], keep_last: int, prompt: Revise
) -> None:
    """Add revisions to chains, each given with its problem and how many it gets; all take a step together."""
    if keep_last < 1:
        raise ValueError(f"`keep_last` must be at least 1, got {keep_last}.")
    for step in range(max((left for *_, left in chains), default=0)):
        going = [(i, chain) for i, chain, left in chains if step < left and chain]
        prompts = [
            prompt(session.problems[i]["prompt"], [candidate.trace.answer for candidate in chain[-keep_last:]])
            for i, chain in going
        ]
        for (_, chain), group in zip(going, session.sample([i for i, _ in going], 1, prompts), strict=True):
            chain.extend(group)
