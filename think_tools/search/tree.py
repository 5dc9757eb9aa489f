"""The tree of a search over steps: branches that grow, are scored, and are written down for training data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from ..answers import extract_answer
from ..backends import Candidate, SamplingParams
from ..parsing import Trace
from .session import Session

_NOTHING = Candidate("", Trace(None, "", "no_think"), "stop", num_tokens=0, num_reasoning_tokens=0, stop_reason="")
_LEAF = ("answer", "correct")


@dataclass(eq=False)
class Branch:
    """The turn so far, and its node in the exported tree."""

    problem: int
    parent: "Branch | None" = None
    turn: Candidate = _NOTHING
    node: dict[str, Any] = field(default_factory=dict)
    children: "list[Branch]" = field(default_factory=list)
    score: float = 0.0
    visits: int = 0

    @property
    def ended(self) -> bool:
        return self.turn.stop_reason is None


def plant(session: Session) -> list[Branch]:
    """The root of each problem's tree."""
    names = ("prompt", "solution", "source", "id")
    rows = [{name: problem.get(name) for name in names} for problem in session.problems]
    return [Branch(i, node={**row, "children": []}) for i, row in enumerate(rows)]


def grow(
    session: Session, branches: Sequence[Branch], n: int, *, to_end: bool = False, greedy: bool = False
) -> list[list[Branch]]:
    """
    `n` children of each branch, one step longer or `to_end`; none if the search is to stop.

    Once its reasoning is closed a turn is written to its end in the same step.
    """
    if session.stopped() or not branches:
        return [[] for _ in branches]
    params = replace(session.params, n=1, temperature=0.0) if greedy else session.params
    groups = _extend(session, branches, replace(params, n=n, stop=() if to_end else step_ends(session)))
    children = [
        [Branch(parent.problem, parent, turn) for turn in group]
        for parent, group in zip(branches, groups, strict=True)
    ]
    new = [branch for group in children for branch in group]
    while not session.stopped() and (
        going := [b for b in new if not b.ended and (to_end or b.turn.trace.status == "complete")]
    ):
        for branch, [turn] in zip(going, _extend(session, going, replace(params, n=1, stop=())), strict=True):
            branch.turn = turn
    return children


def step_ends(session: Session) -> tuple[str, ...]:
    """Texts that end a step."""
    return session.params.stop or ("\n\n",)


def distinct(branches: Sequence[Branch]) -> list[Branch]:
    """The first of those that read alike."""
    return list({branch.turn.text: branch for branch in reversed(branches)}.values())[::-1]


def judge(session: Session, shown: dict[Branch, list[Branch]]) -> list[list[float]]:
    """
    Score the branches that are shown for each branch (itself, or what follows from it), give it their mean, and write
    it into the tree, with those that follow if they have ended.
    """
    found = []
    for problem in dict.fromkeys(branch.problem for branch in shown):
        own = {branch: ends for branch, ends in shown.items() if branch.problem == problem}
        scores = iter(session.score(problem, [end.turn for ends in own.values() for end in ends]))
        new = []
        for branch, ends in own.items():
            found.append([next(scores) for _ in ends])
            branch.score = fmean(found[-1])
            new += _write(session, branch, branch.score)
            for end, score in zip(ends, found[-1], strict=True):
                new += _write(session, end, score) if end.ended and end is not branch else []
        session.tell("steps", problem, nodes=new)
    return found


def _write(session: Session, branch: Branch, score: float) -> list[dict[str, Any]]:
    """Add a node for each step by which the branch is longer than its parent; those that read alike are there."""
    assert branch.parent is not None, "a root is not scored"
    trace, before = branch.turn.trace, branch.parent.turn.trace
    part = "answer" if trace.reasoning is None else "reasoning"
    text = vars(trace)[part].removeprefix(vars(before)[part] or "").strip()
    leaf = {}
    if branch.ended:
        [correct] = session.right(branch.problem, [branch.turn])
        leaf = {"answer": extract_answer(trace.answer) if part == "answer" else trace.answer, "correct": correct}
    for end in step_ends(session):
        text = text.replace(end, f"{end}\0")
    # Where the step before closed the reasoning, nothing is left but the answer.
    steps = [step.strip() for step in text.split("\0") if step.strip()] or [leaf.get("answer") or ""]
    branch.node, new = branch.parent.node, []
    for number, step in enumerate(steps, start=1):
        node = {"text": step, **(leaf if number == len(steps) else {})}
        alike = [n for n in branch.node["children"] if all(n.get(k) == node.get(k) for k in ("text", *_LEAF))]
        if not alike:
            new.append({**node, "value": score, "children": []})
            branch.node["children"].append(new[-1])
        branch.node = alike[0] if alike else new[-1]
    return new


def _extend(session: Session, branches: Sequence[Branch], params: SamplingParams) -> list[list[Candidate]]:
    """The whole turns that go on from each branch."""
    spent = [branch.turn.num_tokens for branch in branches]
    # One limit holds for a call: the branch that has least left sets it, and what it cuts of others goes on later.
    limit = params.max_tokens - max(spent)
    groups = session.ask(
        [branch.problem for branch in branches],
        replace(params, max_tokens=limit),
        prefixes=[branch.turn.token_ids or branch.turn.text for branch in branches] if any(spent) else None,
    )
    return [
        [_joined(branch.turn, new, cut=new.num_tokens == limit and so_far < max(spent)) for new in group]
        for branch, so_far, group in zip(branches, spent, groups, strict=True)
    ]


def _joined(before: Candidate, new: Candidate, *, cut: bool) -> Candidate:
    """The whole turn. One that only the limit of a call has cut reads as if an empty stop text had ended the step."""
    if cut and new.finish_reason == "length":
        new = replace(new, finish_reason="stop", stop_reason="")
    sizes = [(part.num_tokens, part.num_tokens - part.num_reasoning_tokens) for part in (before, new)]
    return replace(
        new,
        text=before.text + new.text,
        num_tokens=before.num_tokens + new.num_tokens,
        num_reasoning_tokens=before.num_reasoning_tokens + new.num_reasoning_tokens,
        num_prompt_tokens=before.num_prompt_tokens or new.num_prompt_tokens,
        token_ids=before.token_ids + new.token_ids,
        logprob=_mean((before.logprob, sizes[0][0]), (new.logprob, sizes[1][0])),
        answer_logprob=_mean((before.answer_logprob, sizes[0][1]), (new.answer_logprob, sizes[1][1])),
    )


def _mean(*parts: tuple[float | None, int]) -> float | None:
    known = [(value, size) for value, size in parts if value is not None]
    total = sum(size for _, size in known)
    return sum(value * size for value, size in known) / total if total else None
