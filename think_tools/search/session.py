"""What all strategies share: problems in, results out, every token counted, a viewer told, a stop heeded."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

from ..answers import extract_answer, shared_grader
from ..backends import Candidate, ClientBackend, Messages, SamplingParams, ScriptedBackend, TransformersBackend
from .verifiers import Reduce, Verifier, verify
from .vote import Answers, best_candidate, canonical_answers, majority_vote, weighted_vote

# A row of the package's type (only `prompt` is needed, `solution` is used where it is there), or its messages.
Problem = dict[str, Any] | Messages
Backend = TransformersBackend | ClientBackend | ScriptedBackend
# From the number of a problem, its canonical answers and their scores to the number of the chosen one.
Pick = Callable[[int, list[str | None], list[float] | None], int]
# From the number of a problem, its canonical answers and the number of the chosen one to what else there is to say.
Details = Callable[[int, list[str | None], int], dict[str, Any]]


class Options(TypedDict, total=False):
    """
    What every strategy takes beside its own arguments.

    Args:
        on_event (`Callable`, *optional*):
            Called with each event while the search runs: a `dict` with `type`, `problem` (its number) and, by the
            type, `candidates` (`"samples"`), `nodes` new in the tree (`"steps"`), or `result` (`"result"`).
        stop (`Callable`, *optional*):
            Asked before each call of the model, `threading.Event().is_set` for example. Once it says `True`, the
            results are made of what there is by then.
        reduce (`str`, *optional*, defaults to `"last"`):
            Makes one score of those that a process verifier gives to the steps, see [`verify`].
        chat_template_kwargs (`dict`, *optional*):
            Variables of the chat template, such as `{"enable_thinking": False}`.
    """

    on_event: Callable[[dict[str, Any]], object] | None
    stop: Callable[[], bool] | None
    reduce: Reduce
    chat_template_kwargs: dict[str, Any] | None


@dataclass(frozen=True)
class Usage:
    """
    What one problem has cost.

    Args:
        completion_tokens (`int`):
            All that was generated: branches that were pruned, roll-outs and look-aheads included.
        thinking_tokens (`int`):
            Those of them that belong to reasoning.
        prompt_tokens (`int`):
            Tokens of the prompt and of what was continued, once per sample, as if no cache had kept any.
        verifier_tokens (`int`):
            Tokens that the verifier has read and written; 0 for one that does not count them, see [`verify`].
        calls (`int`):
            Calls of the backend and of the verifier in which the problem took part.
        seconds (`float`):
            From the start until its last sample or score; problems run side by side.
    """

    completion_tokens: int = 0
    thinking_tokens: int = 0
    prompt_tokens: int = 0
    verifier_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """
    What a strategy found for one problem.

    Args:
        answer (`str`, *optional*):
            The answer that was chosen. `None` if no candidate has one that could be read.
        candidate ([`Candidate`], *optional*):
            The output it stands in; without an answer the best output. `None` if the search was stopped before any.
        candidates (`list[Candidate]`):
            The finished outputs among which was chosen. If the search was stopped, those of a step search may be
            unfinished: their `stop_reason` is not `None`.
        scores (`list[float]`, *optional*):
            The score of each. `None` where nothing scored them.
        usage ([`Usage`]):
            What it cost.
        tree (`dict`, *optional*):
            All steps that were tried, in the form that [`~think_tools.data.journey`] and
            [`~think_tools.data.to_preference`] read. `None` where there are no steps.
        details (`dict`):
            What else the strategy says, see there.
    """

    answer: str | None
    candidate: Candidate | None
    candidates: list[Candidate]
    scores: list[float] | None
    usage: Usage
    tree: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Session:
    """One call of a strategy: its problems, and what they have cost so far."""

    def __init__(
        self,
        backend: Backend,
        problems: Iterable[Problem],
        params: SamplingParams,
        verifier: Verifier | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.backend, self.params, self.verifier, self.options = backend, params, verifier, options
        self.problems = [problem if isinstance(problem, dict) else {"prompt": problem} for problem in problems]
        for i, problem in enumerate(self.problems):
            if not isinstance(problem.get("prompt"), list):
                raise ValueError(f"`problems[{i}]` must be messages, or a row with a `prompt`, got {problem!r:.99}.")
        self._usage = [Counter[str]() for _ in self.problems]
        self._seconds = [0.0] * len(self.problems)
        self._started, self._drawn = time.monotonic(), 0

    def stopped(self) -> bool:
        """Whether somebody wants the search to end."""
        stop = self.options.get("stop")
        return stop is not None and stop()

    def tell(self, kind: str, problem: int, **news: Any) -> None:
        """Tell the viewer."""
        if on_event := self.options.get("on_event"):
            on_event({"type": kind, "problem": problem, **news})

    def ask(
        self,
        numbers: Sequence[int],
        params: SamplingParams,
        *,
        prompts: Sequence[Messages] | None = None,
        prefixes: Sequence[Sequence[int] | str] | None = None,
    ) -> list[list[Candidate]]:
        """What the backend gives for the problems of these numbers, counted; the seed is one no sample has had."""
        if params.seed is not None:
            params = replace(params, seed=params.seed + self._drawn)
        prompts = prompts or [self.problems[i]["prompt"] for i in numbers]
        self._drawn += params.n * len(prompts)
        template = self.options.get("chat_template_kwargs") or {}
        if prefixes is None:
            groups = self.backend.sample(prompts, params, **template)
        else:
            groups = self.backend.extend(prompts, prefixes, params, **template)
        for i, group in zip(numbers, groups, strict=True):
            self._usage[i]["completion_tokens"] += sum(candidate.num_tokens for candidate in group)
            self._usage[i]["thinking_tokens"] += sum(candidate.num_reasoning_tokens for candidate in group)
            self._usage[i]["prompt_tokens"] += sum(candidate.num_prompt_tokens for candidate in group)
        self._note(numbers)
        return groups

    def sample(
        self, numbers: Sequence[int], n: int, prompts: Sequence[Messages] | None = None
    ) -> list[list[Candidate]]:
        """`n` whole outputs for each problem of these numbers, for other prompts than its own if some are given."""
        if self.stopped() or not numbers:
            return [[] for _ in numbers]
        groups = self.ask(numbers, replace(self.params, n=n), prompts=prompts)
        for i, group in zip(numbers, groups, strict=True):
            self.tell("samples", i, candidates=group)
        return groups

    def score(self, problem: int, candidates: Sequence[Candidate]) -> list[float]:
        """What the verifier thinks of each; without a verifier whether it is right."""
        if not self.verifier:
            return [float(right is True) for right in self.right(problem, candidates)]
        prompt, reduce = self.problems[problem]["prompt"], self.options.get("reduce", "last")
        scores, spent = verify(self.verifier, prompt, [candidate.text for candidate in candidates], reduce=reduce)
        self._usage[problem]["verifier_tokens"] += spent
        self._note([problem])
        return scores

    def right(self, problem: int, candidates: Sequence[Candidate]) -> list[bool | None]:
        """Whether each answers as the problem's `solution` does; `None` where that is unknown."""
        gold = self.problems[problem].get("solution")
        return shared_grader().grade(answers_of(candidates), [gold] * len(candidates))

    def results(
        self,
        candidates: Sequence[list[Candidate]],
        scores: Sequence[list[float]] | None = None,
        *,
        weighted: bool = False,
        pick: Pick | None = None,
        trees: Sequence[dict[str, Any]] | None = None,
        details: Details = lambda *_: {},
    ) -> list[SearchResult]:
        """Choose among the candidates of each problem, and report."""
        answers = canonical_answers(map(answers_of, candidates))
        found = []
        for i, (group, alike) in enumerate(zip(candidates, answers, strict=True)):
            own = scores[i] if scores is not None else None
            answer, chosen, more = None, None, {}
            if group:
                number = pick(i, alike, own) if pick else choose(alike, own, weighted=weighted)
                answer, chosen, more = alike[number], group[number], details(i, alike, number)
            usage = Usage(**self._usage[i], seconds=self._seconds[i])
            found.append(SearchResult(answer, chosen, group, own, usage, trees[i] if trees else None, more))
            self.tell("result", i, result=found[-1])
        return found

    def _note(self, numbers: Iterable[int]) -> None:
        for i in set(numbers):
            self._usage[i]["calls"] += 1
            self._seconds[i] = time.monotonic() - self._started


def answers_of(candidates: Iterable[Candidate]) -> list[str | None]:
    """The final answer of each output, `None` if it has none that can be read."""
    return [extract_answer(candidate.trace.answer) for candidate in candidates]


def choose(answers: Answers, scores: Sequence[float] | None, *, weighted: bool = False) -> int:
    """The number of the sample that stands for the best of canonical answers; without any, of the best sample."""
    if scores is None:
        return answers.index(majority_vote(answers, canonical=True))
    winner = weighted_vote(answers, scores, canonical=True) if weighted else None
    best = best_candidate(scores, [answer if winner in (None, answer) else None for answer in answers])
    return max(range(len(scores)), key=scores.__getitem__) if best is None else best
