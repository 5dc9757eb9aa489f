r"""
What grading costs, beside TRL's `accuracy_reward`, in completions per CPU-second; the CPU time of our worker
processes counts as ours.

```
THINK_TOOLS_DATA=<folder of the shared rows> python -m tests.benchmarks.rewards
```

Both graders are imported, and our workers started, before the clock starts; every cache of ours is empty then. All
500 golds are distinct, and the 400 MATH completions come as 8 passes over 50 distinct golds with empty caches before
each, so nothing learnt from one row helps another.
"""

import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from trl.rewards import accuracy_reward as trl_accuracy_reward

from think_tools.answers import shared_grader
from think_tools.rewards import accuracy_reward

Row = tuple[str, str]  # completion, gold answer
SENTENCES = [
    "Let me think about this step by step.",
    "Wait, I should double-check that.",
    r"Hmm, so \(x_{%d} = \frac{%d}{%d}\) which means the ratio is fixed.",
    "We have $a_{%d}+b = %d$ and therefore $c^2 = %d$.",
    "So the total is %d, and dividing by %d gives %d.",
    r"Alternatively, consider the sum \[ \sum_{k=1}^{%d} k = \frac{%d \cdot %d}{2}. \]",
    r"That gives $\sqrt{%d}$, approximately %d.%d.",
    "But earlier I found %d, which contradicts %d mod %d.",
    r"Then $\begin{pmatrix} %d & %d \\ 1 & %d \end{pmatrix}$ is invertible.",
    "Okay, the next case is when n = %d.",
]
# Gold answer and final answer; `{n}` makes each gold another one.
PAIRS: list[Callable[[int], tuple[str, str]]] = [
    lambda n: (f"{n + 40}", f"{n + 40}"),
    lambda n: (rf"\frac{{{n}}}{{{2 * n + 1}}}", rf"\frac{{{n}}}{{{2 * n + 1}}}"),
    lambda n: (rf"\frac{{{n}}}{{4}}", f"{n / 4}"),
    lambda n: (rf"{2 * n}\sqrt{{5}}", rf"\sqrt{{{20 * n * n}}}"),
    lambda n: (f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}"),
    lambda n: (rf"\{{1,2,{n}\}}", rf"\{{{n},2,1\}}"),
    lambda n: (f"({n},2)", f"({n},2)"),
    lambda n: (rf"\begin{{pmatrix}}1&2\\3&{n}\end{{pmatrix}}", rf"\begin{{pmatrix}}1&2\\3&{n}\end{{pmatrix}}"),
    lambda n: (rf"[{n},\infty)", rf"[{n},\infty)"),
    lambda n: (rf"{n + 100}\%", rf"{n + 100}\%"),
    lambda n: (f"{n + 80}", f"{n + 81}"),
    lambda n: (rf"\frac{{{n}\pi}}{{2}}", rf"\frac{{{n}\pi}}{{3}}"),
    lambda n: (f"x={n}", f"{n}"),
    lambda n: (rf"\text{{{NAMES[n % 26]}{NAMES[n // 26]}}}", f"{NAMES[n % 26]}{NAMES[n // 26]}"),
    lambda n: (f"{n}.5", rf"{n}.5\text{{ cm}}"),
    lambda n: (rf"\sin^2 ({n}x)", rf"1-\cos^2 ({n}x)"),
    lambda n: (f"-{n}", f"{n}"),
    lambda n: (f"{n},234,567", f"{n}234567"),
    lambda n: (f"2^{{{n}}}", f"{2**n}"),
    lambda n: (rf"\log {8**n}", rf"{3 * n}\log 2"),
    lambda n: (rf"\binom{{{n + 2}}}{{2}}", f"{(n + 2) * (n + 1) // 2}"),
    lambda n: (f"x<{n}", f"x<{n + 1}"),
]
NAMES = [chr(ord("a") + n) * 3 for n in range(26)]


def sentence(rng: random.Random) -> str:
    text = rng.choice(SENTENCES)
    return text % tuple(rng.randint(2, 99) for _ in range(text.count("%d")))


def short(rng: random.Random, answer: str) -> str:
    steps = " ".join(sentence(rng) for _ in range(rng.randint(3, 10)))
    return f"<think>\n{steps}\n</think>\nThe answer is $\\boxed{{{answer}}}$."


def long(rng: random.Random, answer: str) -> str:
    steps = "\n\n".join(" ".join(sentence(rng) for _ in range(5)) for _ in range(100))
    return f"<think>\n{steps}\n</think>\nTherefore the final answer is \\(\\boxed{{{answer}}}\\)."


def latex_heavy(rng: random.Random, answer: str) -> str:
    line = (
        r"\[ \int_0^{%d} \frac{x^{%d}}{\sqrt{1+x^2}} dx = \left[ \frac{%d}{%d} \right]_{0}^{1} \]  "
        r"$$ \begin{aligned} a &= %d \\ b &= %d \end{aligned} $$"
    )
    steps = "\n".join(line % tuple(rng.randint(1, 50) for _ in range(6)) for _ in range(40))
    return f"<think>\n{steps}\n</think>\n**Final Answer**\n\\[ \\boxed{{{answer}}} \\]"


def garbage(rng: random.Random, answer: str) -> str:
    letters = [*"abcdef $\\{}()[]^_+-=0123456789国家的\n", "<think>"]
    return "".join(rng.choices(letters, k=rng.randint(200, 4000)))


KINDS = {short: 300, long: 100, latex_heavy: 60, garbage: 40}


def realistic_rows() -> dict[str, list[Row]]:
    """500 completions by kind: the shapes of R1's outputs, twenty sorts of answers, no gold twice."""
    rng = random.Random(0)
    numbers = [(pair, n) for n in range(2, 27) for pair in PAIRS]
    rng.shuffle(numbers)
    rows: dict[str, list[Row]] = {}
    for write, count in KINDS.items():
        pairs = [pair(n) for pair, n in (numbers.pop() for _ in range(count))]
        rows[write.__name__] = [(write(rng, answer), f"${gold}$") for gold, answer in pairs]
    golds = [gold for kind in rows.values() for _, gold in kind]
    assert len(set(golds)) == len(golds)
    return rows


def math_rows(folder: Path) -> list[list[Row]]:
    """50 MATH problems x 8 completions as 8 passes, in each of which no gold comes twice."""
    problems = [json.loads(line) for line in (folder / "math_samples_8x50.jsonl").read_text("utf-8").splitlines()]
    return [[(problem["completions"][turn], problem["answer"]) for problem in problems] for turn in range(8)]


def empty_caches() -> None:
    """Forget every gold: those read here, and with the worker processes those read there."""
    grader = shared_grader()
    grader.close()
    # One job for each worker; both start, and read an example of each other kind of answer once.
    grader.grade([r"\binom{4}{2}"] * grader.workers * 8, ["6"] * grader.workers * 8)


def workers_clock() -> dict[int, float]:
    """CPU seconds so far of the nursery and of each worker (Linux: the clock of another process, from its id)."""
    grader = shared_grader()
    process = grader._workers._process
    ids = [slot.worker.process_id for slot in grader._slots.queue if slot.worker]
    return {pid: time.clock_gettime((~pid << 3) | 2) for pid in [process.pid if process else os.getpid(), *ids]}


def ours(rows: list[Row]) -> tuple[float, list[float | None]]:
    empty_caches()
    before, begin = workers_clock(), time.process_time()
    rewards = accuracy_reward(
        [[{"role": "assistant", "content": text}] for text, _ in rows], [gold for _, gold in rows]
    )
    own = time.process_time() - begin
    after = workers_clock()
    assert set(before) == set(after), "a worker was killed, and its CPU time is lost"
    return own + sum(after[pid] - before[pid] for pid in before), rewards


def trl(rows: list[Row], wrapped: bool) -> tuple[float, list[float | None]]:
    completions = [[{"role": "assistant", "content": text}] for text, _ in rows]
    golds = [f"\\boxed{{{gold.strip('$')}}}" if wrapped else gold for _, gold in rows]
    begin = time.process_time()
    rewards = trl_accuracy_reward(completions, golds)
    return time.process_time() - begin, rewards


def trl_plain(rows: list[Row]) -> tuple[float, list[float | None]]:
    return trl(rows, wrapped=False)


def trl_wrapped(rows: list[Row]) -> tuple[float, list[float | None]]:
    return trl(rows, wrapped=True)


def report(name: str, batches: list[list[Row]]) -> None:
    """Print completions per CPU-second of the three, and whether they pay the same rows."""
    count = sum(map(len, batches))
    speed, ones = {}, {}
    for grade in (ours, trl_plain, trl_wrapped):
        results = [grade(rows) for rows in batches]
        speed[grade] = count / sum(seconds for seconds, _ in results)
        rewards = [reward for _, batch in results for reward in batch]
        ones[grade] = {row for row, reward in enumerate(rewards) if reward == 1.0}
    plain, wrapped = (speed[ours] / speed[grade] for grade in (trl_plain, trl_wrapped))
    print(
        f"{name:<12}{count:>5}{speed[ours]:>9.0f}{speed[trl_plain]:>9.0f}{speed[trl_wrapped]:>9.0f}"
        f"{plain:>9.1f}x{wrapped:>8.1f}x   ones {len(ones[ours])}, {len(ones[trl_plain])}, {len(ones[trl_wrapped])};"
        f" only ours {len(ones[ours] - ones[trl_wrapped])}, only TRL wrapped {len(ones[trl_wrapped] - ones[ours])}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    trl_plain([(r"\boxed{\frac{1}{2}}", "$0.5$")] * 3)  # its imports
    print("completions per CPU-second; TRL's golds as they are, and wrapped in \\boxed{}")
    print(f"{'rows':<12}{'n':>5}{'ours':>9}{'TRL':>9}{'wrapped':>9}{'ours/TRL':>10}{'/wrapped':>9}")
    rows = realistic_rows()
    for kind, batch in rows.items():
        report(kind, [batch])
    report("all", [[row for batch in rows.values() for row in batch]])
    if folder := os.environ.get("THINK_TOOLS_DATA"):
        report("MATH", math_rows(Path(folder) / "data"))
    else:
        print("MATH: THINK_TOOLS_DATA names no folder of shared rows")


if __name__ == "__main__":
    main()
