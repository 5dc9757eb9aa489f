r"""
How often rewards agree with the labels of real completions: ours, and TRL's with plain and with wrapped golds.

```
THINK_TOOLS_DATA=<folder of the shared rows> python -m tests.benchmarks.agreement
```

`math_samples_8x50.jsonl` holds 50 MATH problems x 8 completions with labels by Qwen's rules, and
`gsm8k_model_solutions.jsonl` 600 GSM8K questions x 4 solutions, which mark no answer: the last number counts.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from trl.rewards import accuracy_reward as trl_accuracy_reward

from think_tools import extract_answer
from think_tools.rewards import accuracy_reward, get_accuracy_reward

Labelled = list[tuple[str, str, bool]]  # completion, gold answer, label


def read_rows(path: Path) -> Iterator[dict]:
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def math_samples(folder: Path) -> Labelled:
    return [
        (completion, row["answer"], bool(label))
        for row in read_rows(folder / "math_samples_8x50.jsonl")
        for completion, label in zip(row["completions"], row["is_correct"], strict=True)
    ]


def gsm8k_solutions(folder: Path) -> Labelled:
    return [
        (solution["solution"], extract_answer(row["answer"], last_number=True) or "", solution["is_correct"])
        for row in read_rows(folder / "gsm8k_model_solutions.jsonl")
        for solution in row["solutions"]
    ]


def report(name: str, rewards: list[float | None], rows: Labelled) -> int:
    """Print and return how many rewards are the label."""
    agreed = sum(reward == float(label) for reward, (_, _, label) in zip(rewards, rows, strict=True))
    paid = sum(reward == 1.0 and not label for reward, (_, _, label) in zip(rewards, rows, strict=True))
    missed = sum(reward == 0.0 and label for reward, (_, _, label) in zip(rewards, rows, strict=True))
    print(f"{name:<34}{agreed}/{len(rows)}   paid wrong {paid}, missed right {missed}, None {rewards.count(None)}")
    return agreed


def main(folder: str) -> dict[str, int]:
    """
    Print and return the agreement with the labels.

    Args:
        folder (`str`):
            Folder of the two files.
    """
    logging.disable(logging.WARNING)
    rows = math_samples(Path(folder))
    completions = [[{"role": "assistant", "content": completion}] for completion, _, _ in rows]
    golds = [gold for _, gold, _ in rows]
    wrapped = [f"\\boxed{{{gold}}}" for gold in golds]
    last_number = get_accuracy_reward(last_number=True)
    solutions = gsm8k_solutions(Path(folder))
    texts, numbers = [text for text, _, _ in solutions], [gold for _, gold, _ in solutions]
    return {
        "math": report("math, ours", accuracy_reward(completions, golds), rows),
        "math_trl": report("math, TRL", trl_accuracy_reward(completions, golds), rows),
        "math_trl_wrapped": report("math, TRL with wrapped golds", trl_accuracy_reward(completions, wrapped), rows),
        "gsm8k": report("gsm8k, ours (last_number)", last_number(texts, numbers), solutions),
    }


if __name__ == "__main__":
    main(os.path.join(os.environ["THINK_TOOLS_DATA"], "data"))
