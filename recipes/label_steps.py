# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
Data for verifiers from a model's own samples: which outputs are right, and which steps can still reach the answer
(Math-Shepherd, https://huggingface.co/papers/2312.08935).

```
python recipes/label_steps.py --config recipes/tiny/label_steps.yaml                  # minutes on one core
python recipes/label_steps.py --model_name_or_path Qwen/Qwen3-0.6B --train_file questions.jsonl --output_dir out/labels
```

Writes `candidates.jsonl`, one row per output with `correct`, and `steps.jsonl`, TRL's stepwise columns `prompt`,
`completions` and `labels`. Both are for `recipes/train_verifier.py`.
"""

import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import TrlParser

from think_tools import split_steps
from think_tools.backends import Candidate, Messages, SamplingParams, TransformersBackend
from think_tools.data import label_steps, sample_candidates
from think_tools.search.verifiers import problem_text
from think_tools.tiny import load_tiny


@dataclass
class LabelArguments:
    """Flags of this recipe."""

    train_file: str = field(metadata={"help": "JSON Lines file with `prompt` (messages) and `solution`."})
    output_dir: str = field(metadata={"help": "Folder for candidates.jsonl and steps.jsonl."})
    model_name_or_path: str = field(default="tiny", metadata={"help": "Model that answers and rolls out."})
    adapter: str | None = field(default=None, metadata={"help": "Adapter of the embedded model."})
    num_problems: int | None = field(default=None, metadata={"help": "Questions to take; all of them by default."})
    num_samples: int = field(default=8, metadata={"help": "Answers to each question."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of answers and roll-outs."})
    max_tokens: int = field(default=4096, metadata={"help": "Longest answer, in tokens."})
    max_traces: int = field(default=1000, metadata={"help": "Traces with reasoning to roll out, half of them wrong."})
    num_rollouts: int = field(default=8, metadata={"help": "Roll-outs from each step."})
    search: str = field(default="all", metadata={"help": "'all' steps, or 'binary' search for the first wrong one."})
    batch_size: int = field(default=16, metadata={"help": "Sequences generated at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples and of the choice of traces."})


def load_backend(args: LabelArguments) -> TransformersBackend:
    """The embedded model by its name `tiny`, any other from a folder or the Hub."""
    if args.model_name_or_path == "tiny":
        return TransformersBackend(*load_tiny(args.adapter))
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    return TransformersBackend(AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype="auto"), tokenizer)


def choose_traces(candidates: Dataset, max_traces: int, seed: int) -> Dataset:
    """Traces with reasoning, half of them with a wrong answer if there are so many: only these have wrong steps."""
    chosen: list[int] = []
    for correct in (False, True):
        rows = [i for i, row in enumerate(candidates) if row["correct"] is correct and row["status"] == "complete"]
        random.Random(seed).shuffle(rows)
        chosen += rows[: max_traces // 2]
    return candidates.select(sorted(chosen))


def with_answers(steps: Dataset, traces: Dataset) -> Dataset:
    """Add each trace's answer to its steps: a right reasoning may be followed by a wrong answer."""

    def add(row: dict) -> dict:
        answer = split_steps(traces[int(row["id"])]["completion"][0]["content"])
        return {
            "prompt": row["prompt"],
            "completions": row["completions"] + answer,
            "labels": row["labels"] + [row["correct"]] * len(answer),
        }

    return steps.map(add, remove_columns=steps.column_names)


def direct_rows(candidates: Dataset, max_rows: int, seed: int) -> Dataset:
    """Answers of one step without reasoning, so that a verifier has seen some."""
    rows = [
        {"prompt": problem_text(row["prompt"]), "completions": answer, "labels": [row["correct"]]}
        for row in candidates
        if row["status"] == "no_think" and row["correct"] is not None
        if len(answer := split_steps(row["completion"][0]["content"])) == 1
    ]
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows[:max_rows])


def main(args: LabelArguments) -> Dataset:
    backend = load_backend(args)
    problems = load_dataset("json", data_files=args.train_file, split="train")
    problems = problems.select(range(min(args.num_problems or len(problems), len(problems))))
    params = SamplingParams(args.num_samples, args.temperature, max_tokens=args.max_tokens, seed=args.seed)
    candidates = sample_candidates(problems, partial(backend.sample, params=params, batch_size=args.batch_size))

    def roll_out(prompts: list[Messages], reasonings: list[str]) -> list[list[Candidate]]:
        again = SamplingParams(args.num_rollouts, args.temperature, max_tokens=args.max_tokens, seed=args.seed + 1)
        prefixes = [f"{backend.fmt.open}\n{reasoning}" for reasoning in reasonings]
        return backend.extend(prompts, prefixes, again, batch_size=args.batch_size)

    traces = choose_traces(candidates, args.max_traces, args.seed)
    traces = traces.remove_columns("id").add_column("id", [str(i) for i in range(len(traces))])
    steps = with_answers(label_steps(traces, roll_out, search=args.search), traces)
    direct = direct_rows(candidates, len(steps), args.seed)
    steps = concatenate_datasets([steps, direct]) if len(direct) else steps

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    candidates.to_json(folder / "candidates.jsonl", force_ascii=False)
    steps.to_json(folder / "steps.jsonl", force_ascii=False)
    labels = [label for row in steps for label in row["labels"]]
    right = candidates["correct"].count(True)
    print(f"{len(candidates)} outputs, {right} right, {candidates['status'].count('complete')} with reasoning")
    print(f"{len(traces)} traces with reasoning, {len(direct)} direct: {len(labels)} steps, {labels.count(True)} good")
    return steps


if __name__ == "__main__":
    [args] = TrlParser([LabelArguments]).parse_args_and_config()
    main(args)
