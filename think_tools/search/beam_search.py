"""Search over the steps of the reasoning, guided by a verifier: one beam, or several trees that stay apart (DVTS)."""

from collections.abc import Iterable, Sequence
from typing import Unpack

from ..backends import SamplingParams
from .session import Backend, Options, Problem, SearchResult, Session
from .tree import Branch, distinct, grow, judge, plant
from .verifiers import Verifier


def beam_search(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    verifier: Verifier,
    width: int = 4,
    max_steps: int = 40,
    threshold: float | None = None,
    lookahead: int = 0,
    weighted: bool = False,
    **options: Unpack[Options],
) -> list[SearchResult]:
    r"""
    Write `params.n` next steps, keep the best `width`, go on from these, until all that are kept have ended.

    A turn that has ended keeps its place as long as its score does. Steps that come twice are one. When the reasoning
    is closed, the answer is written in the same step.

    Source: Snell et al. 2024, section 5, https://huggingface.co/papers/2408.03314.

    Args:
        backend ([`TransformersBackend`], [`ClientBackend`] or [`ScriptedBackend`]):
            What samples; it must be able to `extend`.
        problems (`Iterable`):
            Messages, or rows with them as `prompt`; `solution`, if given, marks the leaves of the tree.
        params ([`SamplingParams`]):
            How to sample: `n` steps per round; a step ends at one of `stop`, by default at a blank line
            (`stop=("</step>",)` for [`~think_tools.prompts.step_tags`]); `max_tokens` holds for a whole turn.
        verifier (`Callable`):
            `verifier(messages, texts)` scores turns so far, see [`verify`].
        width (`int`, *optional*, defaults to `4`):
            Turns to keep; `params.n` is a multiple of it.
        max_steps (`int`, *optional*, defaults to `40`):
            Rounds; what is kept then is written to its end.
        threshold (`float`, *optional*):
            Score below which a turn is dropped even if there is room, unless it is the best. `None` drops none.
        lookahead (`int`, *optional*, defaults to `0`):
            Steps that are written on, greedily, before a turn is scored, and then forgotten.
        weighted (`bool`, *optional*, defaults to `False`):
            Whether equal answers of the kept turns add up their scores; otherwise the best turn wins.
        options (*optional*):
            `on_event`, `stop`, `reduce`, `chat_template_kwargs`: see [`Options`].

    Returns:
        `list[SearchResult]`: One per problem. Its candidates are the kept turns, best first, all ended unless `stop`
        said so; its `tree` has all steps.

    Raises:
        `ValueError`: If an argument is out of its range, or the verifier does not give a finite score for every turn.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import beam_search

    >>> backend = ScriptedBackend(lambda _, prefix, i: f"{i}</think>7" if prefix else f"<think>{i}\n\n")
    >>> [result] = beam_search(
    ...     backend,
    ...     [[{"role": "user", "content": "3+4=?"}]],
    ...     SamplingParams(n=4),
    ...     verifier=lambda messages, texts: [text.count("2") for text in texts],
    ...     width=2,
    ... )
    >>> result.candidate.text, result.usage.completion_tokens
    ('<think>2\n\n0</think>7', 84)
    ```
    """
    session = Session(backend, problems, params, verifier, **options)
    return _search(session, 1, width, max_steps, threshold, lookahead, weighted)


def dvts(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    verifier: Verifier,
    num_trees: int = 4,
    max_steps: int = 40,
    lookahead: int = 0,
    weighted: bool = False,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """
    Diverse verifier tree search: `num_trees` separate searches that each keep one turn, so that no beginning, however
    good it looks, takes all places.

    Source: Beeching et al. 2024, https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute. There
    the last steps come back as they are; here every candidate is written to its end.

    Args:
        backend, problems, params, verifier, max_steps, lookahead, weighted, options:
            As in [`beam_search`].
        num_trees (`int`, *optional*, defaults to `4`):
            Searches; each gets an equal share of the `params.n` steps per round.

    Returns:
        `list[SearchResult]`: One per problem. Its candidates are the last of each tree, best first.

    Raises:
        `ValueError`: As [`beam_search`].

    Example:

    ```python
    from think_tools.search import ProcessVerifier, dvts

    results = dvts(backend, problems, SamplingParams(n=16), verifier=ProcessVerifier(model, tokenizer))
    ```
    """
    session = Session(backend, problems, params, verifier, **options)
    return _search(session, num_trees, 1, max_steps, None, lookahead, weighted)


def _search(
    session: Session,
    num_trees: int,
    width: int,
    max_steps: int,
    threshold: float | None,
    lookahead: int,
    weighted: bool,
) -> list[SearchResult]:
    n, places = session.params.n, num_trees * width
    if min(places, max_steps) < 1 or lookahead < 0 or n % max(1, places):
        raise ValueError(
            f"`params.n` must be a multiple of `width` or `num_trees`, which like `max_steps` must be positive; got "
            f"n={n}, {num_trees} trees of width {width}, max_steps={max_steps}, lookahead={lookahead}."
        )
    roots = plant(session)
    # Dealt out, because a server that gets one prompt and seed twice answers the same twice.
    beams = [group[tree::num_trees] for group in grow(session, roots, n) for tree in range(num_trees)]
    beams = _keep(session, beams, width, threshold, lookahead)
    for step in range(1, max_steps + 1):
        growing = [branch for beam in beams for branch in beam if not branch.ended]
        if not growing or session.stopped():
            break
        last = step == max_steps
        children = dict(zip(growing, grow(session, growing, 1 if last else n // places, to_end=last), strict=True))
        pools = [[child for branch in beam for child in children.get(branch) or [branch]] for beam in beams]
        beams = _keep(session, pools, width, threshold, 0 if last else lookahead)
    kept = [
        sorted((branch for beam in beams for branch in beam if branch.problem == i), key=lambda b: -b.score)
        for i in range(len(roots))
    ]
    return session.results(
        [[branch.turn for branch in own] for own in kept],
        [[branch.score for branch in own] for own in kept],
        weighted=weighted,
        trees=[root.node for root in roots],
    )


def _keep(
    session: Session, pools: Sequence[Sequence[Branch]], width: int, threshold: float | None, lookahead: int
) -> list[list[Branch]]:
    """The best of each pool, after the new ones among them were scored."""
    pools = [distinct(pool) for pool in pools]
    new = [branch for pool in pools for branch in pool if not branch.node]
    judge(session, dict(zip(new, _look_ahead(session, new, lookahead), strict=True)))
    ranked = [sorted(pool, key=lambda branch: -branch.score)[:width] for pool in pools]
    if threshold is None:
        return ranked
    return [[branch for branch in pool if branch.score >= threshold] or pool[:1] for pool in ranked]


def _look_ahead(session: Session, branches: Sequence[Branch], num_steps: int) -> list[list[Branch]]:
    """What to score for each branch: where the likeliest next steps lead."""
    ahead = list(branches)
    for _ in range(num_steps):
        going = [i for i, branch in enumerate(ahead) if not branch.ended]
        for i, group in zip(going, grow(session, [ahead[i] for i in going], 1, greedy=True), strict=True):
            ahead[i] = group[0] if group else ahead[i]
    return [[branch] for branch in ahead]
