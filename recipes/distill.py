# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools", "transformers[serving]"]
# ///
"""
Distil: ask a model behind a server, filter its answers, and write what is left as rows to train on.

```
python recipes/distill.py --config recipes/tiny/distill.yaml                   # on a CPU, starts its own server
python recipes/distill.py --model Qwen/Qwen3-32B --base_url http://localhost:8000/v1 \
    --train_file alpaca.jsonl --max_tokens 16384 --concurrency 64 --n 4 --output_dir out/distilled
```

Without `base_url` it starts `transformers serve` (`pip install "transformers[serving]"`) with the embedded model, the
adapter merged into it, and stops it in the end. A run that was interrupted goes on where it was.
"""

import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from transformers.utils.import_utils import is_serve_available
from trl import TrlParser

from think_tools.backends import SamplingParams
from think_tools.data import apply_filters, distill, select, to_think
from think_tools.data.filters import complete, dedup, filter_section, language, legible, repetition, verified
from think_tools.tiny import arithmetic_problems, load_tiny
from think_tools.tiny.small_talk import small_talk


@dataclass
class DistillArguments:
    """Whom to ask, what, and how."""

    model: str | None = field(default=None, metadata={"help": "Name of the model at `base_url`."})
    base_url: str | None = field(default=None, metadata={"help": "Server; without it, one is started for `adapter`."})
    adapter: str = field(default="thinker", metadata={"help": "Adapter of the embedded model that is served."})
    train_file: str | None = field(
        default=None, metadata={"help": "JSON Lines file that `to_think` reads; without it, built-in questions."}
    )
    num_questions: int = field(default=200, metadata={"help": "Most questions to ask."})
    n: int = field(default=1, metadata={"help": "Answers per question."})
    temperature: float = field(default=0.6, metadata={"help": "Sampling temperature."})
    max_tokens: int = field(default=384, metadata={"help": "Longest answer, in tokens."})
    concurrency: int = field(default=8, metadata={"help": "Requests in flight."})
    output_dir: str = field(default="out/distilled", metadata={"help": "Folder of the answers and of the rows."})


def built_in_questions(n: int) -> list[dict]:
    """Three products to one instruction without a number to find, half of all in Chinese, in alpaca's columns."""
    rng = random.Random("distill")
    rows = []
    for row in arithmetic_problems("train", n, seed=2):
        question, answer = row["prompt"][0]["content"], row["solution"]
        if rng.random() < 0.25:
            question, answer = small_talk(rng, row["language"])
        rows.append({"instruction": question, "input": "", "output": answer})
    return rows


@contextmanager
def serve_tiny(adapter: str, folder: Path) -> Iterator[str]:
    """`transformers serve` with the embedded model on a free port, as the address of its API."""
    if not is_serve_available():
        raise ImportError(
            "`transformers serve` needs openai, fastapi and uvicorn, and one of them is missing: "
            'pip install "transformers[serving]". Or give `base_url` of a server that runs already.'
        )
    model, tokenizer = load_tiny(adapter)
    model = model.merge_and_unload()
    # The server takes a request's temperature, but draws only if the model says so.
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: int = 300) -> None:
    """Until the server answers; a `RuntimeError` with the end of its log if it does not."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:  # not yet
            time.sleep(0.5)
    raise RuntimeError(f"`transformers serve` did not start within {seconds} s: {log.read_text()[-2000:]}")


def run(args: DistillArguments, model: str, base_url: str) -> None:
    source = load_dataset("json", data_files=args.train_file, split="train") if args.train_file else None
    questions = to_think(source or built_in_questions(args.num_questions))
    questions = questions.select(range(min(args.num_questions, len(questions))))
    # In alpaca's columns the answer is the completion: it is the gold answer here, where it can be compared.
    gold = [row["solution"] or row["completion"][-1]["content"] for row in questions.to_list()]
    questions = questions.remove_columns([*{"solution"} & set(questions.column_names)]).add_column("solution", gold)

    out = Path(args.output_dir)
    params = SamplingParams(temperature=args.temperature, max_tokens=args.max_tokens, seed=0)
    start = time.monotonic()
    answers = distill(
        questions,
        model,
        base_url=base_url,
        out=out / "answers.jsonl",
        n=args.n,
        params=params,
        concurrency=args.concurrency,
    )
    print(f"{len(answers)} answers of {len(questions) * args.n} asked for, {time.monotonic() - start:.0f} s", end=", ")
    print(f"{sum(answers['num_tokens']):,} tokens")

    filters = [complete(), legible(), repetition(), language(), verified(), dedup()]
    annotated, report = apply_filters(answers, filters)
    print(filter_section(report))
    kept = select(annotated)  # where a filter cannot tell, the row stays
    kept.to_json(out / "rows.jsonl", force_ascii=False)
    print(f"{len(questions) * args.n} asked -> {len(answers)} answered", end="")
    for name, counts in report.items():
        print(f" -> {name} {counts['left']}", end="")
    print(f" -> kept {len(kept)}: {out / 'rows.jsonl'}")


def main(args: DistillArguments) -> None:
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    if args.base_url:
        if not args.model:
            raise ValueError("`model` is missing: the name of the model at `base_url`.")
        run(args, args.model, args.base_url)
        return
    folder = Path(args.output_dir).resolve() / "served"
    with serve_tiny(args.adapter, folder) as base_url:
        run(args, str(folder), base_url)


if __name__ == "__main__":
    main(*TrlParser((DistillArguments,)).parse_args_and_config())
