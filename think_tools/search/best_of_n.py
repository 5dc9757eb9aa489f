"""Best-of-N: sample, let a verifier score, take the best."""

from collections.abc import Iterable
from typing import Unpack

from ..backends import SamplingParams
from .session import Backend, Options, Problem, SearchResult, Session
from .verifiers import Verifier


def best_of_n(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    verifier: Verifier,
    weighted: bool = False,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """
    Sample `params.n` outputs per problem and choose by a verifier.

    A weak verifier loses to the plain vote: look at both ([`evaluate`] prints them side by side).

    Sources: Cobbe et al. 2021, https://huggingface.co/papers/2110.14168; the weighted vote, Li et al. 2022,
    https://huggingface.co/papers/2206.02336.

    Args:
        backend ([`TransformersBackend`], [`ClientBackend`] or [`ScriptedBackend`]):
            What samples.
        problems (`Iterable`):
            Messages, or rows with them as `prompt`.
        params ([`SamplingParams`]):
            How to sample.
        verifier (`Callable`):
            `verifier(messages, texts)` gives scores, see [`verify`].
        weighted (`bool`, *optional*, defaults to `False`):
            Whether equal answers add up their scores, which must not be negative; otherwise the best output wins.
        options (*optional*):
            `on_event`, `stop`, `reduce`, `chat_template_kwargs`: see [`Options`].

    Returns:
        `list[SearchResult]`: One per problem. An output whose answer cannot be read is chosen only if there is no
        other.

    Raises:
        `ValueError`: If the verifier does not give a finite score for every output.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import best_of_n

    >>> backend = ScriptedBackend(lambda messages, prefix, number: str(number))
    >>> problems = [[{"role": "user", "content": "3+4=?"}]]
    >>> [result] = best_of_n(backend, problems, SamplingParams(n=8), verifier=lambda _, texts: list(map(float, texts)))
    >>> result.answer
    '7'
    ```
    """
    session = Session(backend, problems, params, verifier, **options)
    groups = session.sample(range(len(session.problems)), params.n)
    scores = [session.score(i, group) for i, group in enumerate(groups)]
    return session.results(groups, scores, weighted=weighted)
