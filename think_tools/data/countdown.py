"""Countdown, the game of reaching a target from a few numbers: problems, and searches written down line by line."""

import math
import random
import zlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal

from datasets import Dataset

_FAILED = "No solution found."


def countdown_problems(split: Literal["train", "test"] = "train", n: int = 400, seed: int = 0) -> Dataset:
    """
    Solvable countdown problems for [`stream_of_search`]; train and test share no target.

    Three or four numbers from 1 to 99 are drawn and combined at random; a result from 10 to 100 is a target. One
    target in ten is a test target, whatever the seed.

    Source: Gandhi et al. 2024, Stream of Search, "Problem Setup", https://huggingface.co/papers/2404.03683.

    Args:
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"test"`.
        n (`int`, *optional*, defaults to `400`):
            Number of problems.
        seed (`int`, *optional*, defaults to `0`):
            The same arguments always give the same problems.

    Returns:
        `datasets.Dataset`: Columns `numbers`, `target`, `source` and `id`.

    Raises:
        `ValueError`: If `split` is unknown.

    Example:

    ```python
    >>> from think_tools.data.countdown import countdown_problems

    >>> row = countdown_problems(n=1)[0]
    >>> row["numbers"], row["target"]
    ([33, 31, 67], 65)
    ```
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    rng = random.Random(f"countdown/{split}/{seed}")
    rows: list[dict] = []
    while len(rows) < n:
        numbers = left = [rng.randint(1, 99) for _ in range(rng.randint(3, 4))]
        while len(left) > 1:
            _, left = rng.choice(_moves(left))
        held_out = zlib.crc32(b"%d" % left[0]) % 10 == 0
        if 10 <= left[0] <= 100 and held_out == (split == "test"):
            row_id = f"{split}-{seed}-{len(rows)}"
            rows.append({"numbers": numbers, "target": left[0], "source": "think-tools/countdown", "id": row_id})
    return Dataset.from_list(rows)


def search_countdown(row: dict, rng: random.Random, max_operations: int | None) -> dict:
    """The row with the text of a search as reasoning and what it found as answer; `rng` draws the kind of search."""
    numbers, target = row["numbers"], row["target"]
    heuristic, beam = rng.choice(sorted(_DISTANCES)), rng.choice((0, rng.randint(1, 5)))
    found: list[str] = []
    lines, explored = [], 0
    for line in _search(numbers, target, heuristic, beam, rng, found):
        explored += line.startswith("Exploring")
        if max_operations is not None and explored > max_operations:
            break
        lines.append(line)
    reasoning = "\n".join(lines if found else [*lines, _FAILED])
    most = math.prod(4 * math.comb(size, 2) for size in range(2, len(numbers) + 1))
    question = f"Combine {', '.join(map(str, numbers))} with + - * / to make {target}. Use each number exactly once."
    message = {"role": "assistant", "reasoning_content": reasoning, "content": ", ".join(found) or _FAILED}
    return {
        "prompt": [{"role": "user", "content": question}],
        **row,
        "completion": [message],
        "chat_template_kwargs": {"enable_thinking": True},
        "solution": None,  # many answers are right
        "search": f"bfs-{beam}" if beam else "dfs",
        "heuristic": heuristic,
        "rating": max(0.0, 1 - explored / most) if found else 0.0,
    }


def _search(
    numbers: Sequence[int], target: int, heuristic: str, beam: int, rng: random.Random, found: list[str]
) -> Iterator[str]:
    """Lines of a search, breadth first with a beam or, where that is 0, depth first; `found` gets the solution."""
    frontier: list[tuple[float, str, list[int], list[str]]] = []

    def visit(name: str, numbers: Sequence[int], operations: list[str]) -> Iterator[str]:
        state = f"Current State: {target}:{list(numbers)}, Operations: {operations}"
        yield state
        moves = sorted((_DISTANCES[heuristic](left, target), operation, left) for operation, left in _moves(numbers))
        moves = moves[:beam] if beam else [move for move in moves if move[0] <= target]
        if beam:
            rng.shuffle(moves)
        for i, (distance, operation, left) in enumerate(moves):
            child, path = f"{name},{i}", [*operations, operation]
            yield f"Exploring Operation: {operation}, Resulting Numbers: {left}"
            if left == [target]:
                found.extend(path)
                yield f"{target},{target} equal: Goal Reached"
            elif len(left) == 1:
                yield f"{left[0]},{target} unequal: No Solution"
            else:
                yield f"Generated Node #{child}: {target}:{left} Operation: {operation}"
                if beam:
                    frontier.append((distance, child, left, path))
                else:
                    yield f"Moving to Node #{child}"
                    yield from visit(child, left, path)
            if found:
                return
            if not beam and i + 1 < len(moves):  # said again: the sign of backtracking
                yield f"Moving to Node #{name}"
                yield state

    yield from visit("0", numbers, [])
    while frontier and not found:
        frontier.sort()
        level = frontier[:beam]
        del frontier[:beam]
        for _, name, left, path in level:
            if not found:
                yield f"Moving to Node #{name}"
                yield from visit(name, left, path)


def _moves(numbers: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Every operation on two of the numbers, and the numbers after it: whole numbers, none below zero."""
    moves = []
    for i, j in combinations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        low, high = sorted((numbers[i], numbers[j]))
        results = {f"{high}+{low}": high + low, f"{high}*{low}": high * low, f"{high}-{low}": high - low}
        if low and not high % low:
            results[f"{high}/{low}"] = high // low
        moves += [(f"{operation}={value}", [*rest, value]) for operation, value in results.items()]
    return moves


def _to_target(numbers: Sequence[int], target: int) -> float:
    return sum(abs(number - target) for number in numbers) / len(numbers)


def _to_factors(numbers: Sequence[int], target: int) -> float:
    factors = [factor for factor in range(2, target + 1) if not target % factor]
    return sum(min(abs(number - factor) for factor in factors) for number in numbers)


# The two heuristics of the paper: the mean distance to the target, and the distances to its nearest factors.
_DISTANCES = {"sum": _to_target, "product": _to_factors}
