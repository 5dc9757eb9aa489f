"""Monte Carlo tree search over the steps of the reasoning."""

import math
from collections.abc import Iterable
from typing import Unpack

from ..backends import Candidate, SamplingParams
from .session import Backend, Options, Problem, SearchResult, Session
from .tree import Branch, distinct, grow, judge, plant
from .verifiers import Verifier


def mcts(
    backend: Backend,
    problems: Iterable[Problem],
    params: SamplingParams,
    *,
    verifier: Verifier | None = None,
    num_simulations: int = 32,
    num_rollouts: int = 0,
    exploration: float = 0.2,
    max_steps: int = 16,
    weighted: bool = False,
    **options: Unpack[Options],
) -> list[SearchResult]:
    r"""
    Grow a tree of steps where it promises most (UCT): each simulation goes down by `value + exploration *
    sqrt(ln(visits of the parent) / visits)`, writes `params.n` next steps there, and carries their values up.

    With golds and roll-outs, and no verifier, it makes training data: the `tree` of a result goes into
    [`~think_tools.data.journey`] and [`~think_tools.data.to_preference`].

    Sources: Kocsis and Szepesvári 2006 (UCT); rStar-Math, https://huggingface.co/papers/2501.04519, and AlphaMath,
    https://huggingface.co/papers/2405.03553, for steps as nodes.

    Args:
        backend ([`TransformersBackend`], [`ClientBackend`] or [`ScriptedBackend`]):
            What samples; it must be able to `extend`.
        problems (`Iterable`):
            Messages, or rows with them as `prompt`; `solution`, if given, marks the leaves of the tree.
        params ([`SamplingParams`]):
            How to sample: `n` steps per simulation; steps and `max_tokens` as in [`beam_search`].
        verifier (`Callable`, *optional*):
            `verifier(messages, texts)` scores turns, best in `[0, 1]`, see [`verify`]. `None`: a turn is worth 1 if
            its answer equals `solution`, else 0, which needs `num_rollouts`.
        num_simulations (`int`, *optional*, defaults to `32`):
            Simulations per problem.
        num_rollouts (`int`, *optional*, defaults to `0`):
            Times that each new step is written to the end; its value is their mean. `0`: the verifier scores the turn
            as it is.
        exploration (`float`, *optional*, defaults to `0.2`):
            How much a step that was seldom tried gains. With values in `[0, 1]` and some dozen simulations much more
            than this spends them all near the root.
        max_steps (`int`, *optional*, defaults to `16`):
            Depth of the tree; the steps there are written to the end.
        weighted (`bool`, *optional*, defaults to `False`):
            Whether equal answers add up their scores; otherwise the best turn wins.
        options (*optional*):
            `on_event`, `stop`, `reduce`, `chat_template_kwargs`: see [`Options`].

    Returns:
        `list[SearchResult]`: One per problem. Its candidates are all turns that have ended, roll-outs included; if
        there is none, the best branch is written to its end. Its `tree` has them all, in steps; nodes at which a
        simulation has been have `visits` beside their `value`.

    Raises:
        `ValueError`: If an argument is out of its range, there is neither a verifier nor golds and roll-outs, or the
            verifier does not give a finite score for every turn.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.data import journey
    >>> from think_tools.search import mcts

    >>> script = lambda messages, prefix, i: f"done</think>{7 + ('1' in prefix)}" if prefix else f"<think>try {i}\n\n"
    >>> backend = ScriptedBackend(script)
    >>> problem = {"prompt": [{"role": "user", "content": "3+4=?"}], "solution": "7"}
    >>> [result] = mcts(backend, [problem], SamplingParams(n=2), num_simulations=3, num_rollouts=1)
    >>> result.answer, [child["visits"] for child in result.tree["children"]]
    ('7', [3, 1])
    >>> journey(result.tree)[0]["completion"][0]["content"]
    '7'
    ```
    """
    session = Session(backend, problems, params, verifier, **options)
    known = all(problem.get("solution") is not None for problem in session.problems)
    if not verifier and not (known and num_rollouts):
        raise ValueError("`verifier` must be given, or a `solution` for every problem and `num_rollouts` above 0.")
    if min(num_simulations, max_steps) < 1 or min(num_rollouts, exploration) < 0:
        raise ValueError(
            "`num_simulations` and `max_steps` must be positive, `num_rollouts` and `exploration` not negative; got "
            f"{num_simulations}, {max_steps}, {num_rollouts} and {exploration}."
        )
    roots = plant(session)
    ended: list[list[tuple[Candidate, float]]] = [[] for _ in roots]
    for _ in range(num_simulations):
        if session.stopped():
            break
        paths = [_descend(root, exploration) for root in roots]
        for path in paths:
            if path[-1].ended:
                _carry_up(path, path[-1].score)
        for deep in (False, True):
            growing = [path for path in paths if not path[-1].ended and (len(path) >= max_steps) == deep]
            groups = grow(session, [path[-1] for path in growing], params.n, to_end=deep)
            _evaluate(session, growing, groups, num_rollouts, ended)
    paths = [_descend(root, 0.0) for root in roots if not ended[root.problem]]
    _evaluate(session, paths, grow(session, [path[-1] for path in paths], 1, to_end=True), 0, ended)
    for *before, last in paths:
        if before and not ended[last.problem]:  # stopped
            ended[last.problem] = [(last.turn, last.score)]
    return session.results(
        [[turn for turn, _ in own] for own in ended],
        [[score for _, score in own] for own in ended],
        weighted=weighted,
        trees=[root.node for root in roots],
    )


def _descend(root: Branch, exploration: float) -> list[Branch]:
    """The way from the root to a branch without children, by the upper confidence bound of each."""
    path = [root]
    while children := path[-1].children:
        log_visits = math.log(path[-1].visits)
        bounds = [child.score + exploration * math.sqrt(log_visits / child.visits) for child in children]
        path.append(children[bounds.index(max(bounds))])
    return path


def _evaluate(
    session: Session,
    paths: list[list[Branch]],
    groups: list[list[Branch]],
    num_rollouts: int,
    ended: list[list[tuple[Candidate, float]]],
) -> None:
    """Put the new branches at the end of each path, value them, note the turns that have ended, carry values up."""
    for path, group in zip(paths, groups, strict=True):
        path[-1].children = distinct(group)
    new = [branch for path in paths for branch in path[-1].children]
    unsure = [branch for branch in new if num_rollouts and not branch.ended]
    ends = dict(zip(unsure, grow(session, unsure, num_rollouts, to_end=True), strict=True))
    shown = {branch: ends.get(branch) or [branch] for branch in new}
    for (branch, own), scores in zip(shown.items(), judge(session, shown), strict=True):
        ended[branch.problem] += [(end.turn, score) for end, score in zip(own, scores, strict=True) if end.ended]
    for path in paths:
        for branch in path[-1].children:
            _carry_up([*path, branch], branch.score)


def _carry_up(path: list[Branch], value: float) -> None:
    for branch in path:
        branch.visits += 1
        branch.score += (value - branch.score) / branch.visits
        branch.node |= {"value": branch.score, "visits": branch.visits}
