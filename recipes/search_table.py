# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
One table of what test-time compute buys: accuracy and tokens of every way to spend them, on the embedded model.

```
python recipes/label_steps.py --config recipes/tiny/label_steps.yaml
python recipes/train_verifier.py --config recipes/tiny/outcome_verifier.yaml
python recipes/train_verifier.py --config recipes/tiny/process_verifier.yaml
python recipes/search_table.py --config recipes/tiny/search.yaml
```

Each line is written to `table.jsonl` in the output folder once it is known; what stands there is not measured again.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from statistics import median

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from trl import TrlParser

from think_tools import extract_answer, same_answer
from think_tools.backends import Candidate, SamplingParams, TransformersBackend
from think_tools.search import (
    OutcomeVerifier,
    ProcessVerifier,
    SearchResult,
    beam_search,
    best_candidate,
    dvts,
    majority_vote,
    mcts,
    sequential_revision,
    verify,
    weighted_vote,
)
from think_tools.tiny import arithmetic_problems, load_tiny


@dataclass
class TableArguments:
    """Flags of this recipe."""

    outcome_verifier: str = field(metadata={"help": "Folder of the trained outcome model."})
    process_verifier: str = field(metadata={"help": "Folder of the trained process model."})
    output_dir: str = field(metadata={"help": "Folder for table.jsonl."})
    adapter: str | None = field(default="cold_start", metadata={"help": "Adapter of the embedded model."})
    num_problems: int = field(default=400, metadata={"help": "Test problems."})
    temperature: float = field(default=1.0, metadata={"help": "Of everything that samples more than once."})
    max_tokens: int = field(default=384, metadata={"help": "Longest output, in tokens."})
    num_simulations: int = field(default=8, metadata={"help": "Simulations of MCTS, each of eight steps."})
    batch_size: int = field(default=64, metadata={"help": "Sequences generated at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})


@dataclass(frozen=True)
class Line:
    """One line of the table; tokens are means per problem."""

    method: str
    accuracy: float
    num_problems: int
    tokens: float
    thinking_tokens: float
    verifier_tokens: float
    seconds: float

    def __str__(self) -> str:
        # Wilson's 95 % interval, which is no point where all answers are right.
        share = 1.96**2 / self.num_problems
        middle = (self.accuracy + share / 2) / (1 + share)
        reach = math.sqrt(share * (self.accuracy * (1 - self.accuracy) + share / 4)) / (1 + share)
        bounds = f"{100 * (middle - reach):.0f}–{100 * (middle + reach):.0f}"
        numbers = f"{self.tokens:.0f} | {self.thinking_tokens:.0f} | {self.verifier_tokens:.0f}"
        return f"| {self.method} | {self.accuracy:.1%} | {bounds} | {numbers} |"


@dataclass(frozen=True)
class Found:
    """The answers of a method and what it spent on all problems together."""

    answers: list[str | None]
    tokens: int
    thinking_tokens: int
    verifier_tokens: int = 0


def answer_of(candidate: Candidate) -> str | None:
    return extract_answer(candidate.trace.answer)


def of_candidates(groups: Sequence[Sequence[Candidate]], answers: list[str | None], verifier_tokens: int = 0) -> Found:
    every = [candidate for group in groups for candidate in group]
    tokens = (
        sum(candidate.num_tokens for candidate in every),
        sum(candidate.num_reasoning_tokens for candidate in every),
    )
    return Found(answers, *tokens, verifier_tokens)


def of_results(results: Sequence[SearchResult]) -> Found:
    used = [result.usage for result in results]
    return Found(
        [result.answer for result in results],
        sum(usage.completion_tokens for usage in used),
        sum(usage.thinking_tokens for usage in used),
        sum(usage.verifier_tokens for usage in used),
    )


def methods(backend: TransformersBackend, rows: Dataset, args: TableArguments) -> dict[str, Callable[[], Found]]:
    """Every line's name and what measures it."""
    prompts = rows["prompt"][:]
    greedy = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    sampled = SamplingParams(8, args.temperature, max_tokens=args.max_tokens, seed=args.seed, logprobs=True)
    opened = [f"{backend.fmt.open}\n"] * len(prompts)
    outcome = OutcomeVerifier(
        AutoModelForSequenceClassification.from_pretrained(args.outcome_verifier),
        AutoTokenizer.from_pretrained(args.outcome_verifier),
    )
    process = ProcessVerifier(
        AutoModelForTokenClassification.from_pretrained(args.process_verifier),
        AutoTokenizer.from_pretrained(args.process_verifier),
    )

    def once(**changes: bool) -> Found:
        groups = backend.sample(prompts, greedy, **changes)
        return of_candidates(groups, [answer_of(candidate) for [candidate] in groups])

    @cache
    def thoughts(**changes: int) -> list[list[Candidate]]:
        return backend.extend(prompts, opened, replace(greedy, **changes))

    def thinking(**changes: int) -> Found:
        return of_candidates(thoughts(**changes), [answer_of(candidate) for [candidate] in thoughts(**changes)])

    def budget(share: float) -> Found:
        natural = median(candidate.num_reasoning_tokens for [candidate] in thoughts())
        return thinking(thinking_token_budget=round(share * natural))

    @cache
    def samples() -> list[list[Candidate]]:
        return backend.sample(prompts, sampled)

    @cache
    def scores(by: str) -> tuple[list[list[float]], int]:
        """Scores of all samples, and the verifier's tokens."""
        if by == "confidence":  # the sampling has left it behind
            return [[candidate.logprob for candidate in group] for group in samples()], 0
        if by == "gold":  # what the best verifier could reach: pass@8
            pairs = zip(samples(), rows["solution"], strict=True)
            return [[float(same_answer(answer_of(one), gold) is True) for one in group] for group, gold in pairs], 0
        verifier = {"outcome": outcome, "process": process}[by]
        pairs = [
            verify(verifier, prompt, [candidate.text for candidate in group])
            for prompt, group in zip(prompts, samples(), strict=True)
        ]
        return [scores for scores, _ in pairs], sum(tokens for _, tokens in pairs)

    def choose(pick: Callable[[list[str | None], list[float]], str | None], by: str | None = None) -> Found:
        answers = [[answer_of(candidate) for candidate in group] for group in samples()]
        scored, spent = scores(by) if by else ([[1.0] * len(group) for group in answers], 0)
        return of_candidates(samples(), list(map(pick, answers, scored)), spent)

    def one() -> Found:
        groups = [group[:1] for group in samples()]
        return of_candidates(groups, [answer_of(candidate) for [candidate] in groups])

    def best(answers: list[str | None], scores: list[float]) -> str | None:
        number = best_candidate(scores, answers)
        return None if number is None else answers[number]

    steps = partial(mcts, verifier=process, num_simulations=args.num_simulations)
    return {
        "direct, greedy": partial(once, enable_thinking=False),
        "thinks when it likes, greedy": once,
        "always thinks, greedy": thinking,
        **{
            f"thinks at most {share:.0%} of the median length": partial(budget, share)
            for share in (0.25, 0.5, 0.75, 1.0)
        },
        **{f"thinks on after {n} × Wait": partial(thinking, num_wait=n) for n in (1, 2)},
        "one sample": one,
        "vote of 8": partial(choose, lambda answers, scores: majority_vote(answers)),
        "vote of 8, weighted by the outcome model": partial(choose, weighted_vote, "outcome"),
        "best of 8 by the gold answers (pass@8)": partial(choose, best, "gold"),
        "best of 8 by its own confidence": partial(choose, best, "confidence"),
        "best of 8 by the outcome model": partial(choose, best, "outcome"),
        "best of 8 by the process model": partial(choose, best, "process"),
        "beam search, 8 steps, 2 kept": lambda: of_results(
            beam_search(backend, prompts, sampled, verifier=process, width=2)
        ),
        "DVTS, 8 steps in 4 trees": lambda: of_results(dvts(backend, prompts, sampled, verifier=process)),
        f"MCTS, {args.num_simulations} simulations of 8 steps": lambda: of_results(steps(backend, prompts, sampled)),
        "vote of 8 that revise those before": lambda: of_results(sequential_revision(backend, prompts, sampled)),
    }


def main(args: TableArguments) -> list[Line]:
    backend = TransformersBackend(*load_tiny(args.adapter))
    # Searches ask as ever for 16 at once, but so small a model is faster with more.
    backend.sample = partial(backend.sample, batch_size=args.batch_size)
    backend.extend = partial(backend.extend, batch_size=args.batch_size)
    rows = arithmetic_problems("test", args.num_problems)
    file = Path(args.output_dir) / "table.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    settings = asdict(args)
    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    if any(line.pop("settings") != settings for line in written):
        raise ValueError(f"`output_dir` holds {file} of other settings: give another folder, or delete it.")
    known = {line["method"]: Line(**line) for line in written}
    for method, run in methods(backend, rows, args).items():
        if method in known:
            continue
        started = time.process_time()
        found = run()
        seconds = time.process_time() - started
        right = [same_answer(*pair) is True for pair in zip(found.answers, rows["solution"], strict=True)]
        spent = [n / len(rows) for n in (found.tokens, found.thinking_tokens, found.verifier_tokens)]
        known[method] = Line(method, sum(right) / len(rows), len(rows), *spent, seconds)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(known[method]) | {"settings": settings}) + "\n")
        print(known[method], flush=True)
    print(
        "| method | right | 95 % | tokens | thinking | verifier |\n|---|---|---|---|---|---|",
        *known.values(),
        sep="\n",
    )
    return list(known.values())


if __name__ == "__main__":
    [args] = TrlParser([TableArguments]).parse_args_and_config()
    main(args)
