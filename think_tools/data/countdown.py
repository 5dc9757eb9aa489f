"""Countdown, the game of reaching a target from a few numbers: problems, and searches written down line by line."""

import math
import random
import zlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal

from datasets import Dataset

QUESTION = "Combine the numbers {numbers} with + - * / to make {target}. Use each of them exactly once."
NO_SOLUTION = "No solution found."


def countdown_problems(
    split: Literal["train", "test"] = "train", n: int = 400, seed: int = 0, *, sizes: Sequence[int] = (3, 4)
) -> Dataset:
    """
    Solvable countdown problems for [`stream_of_search`]; train and test share no target.

    Numbers from 1 to 99 are drawn and combined at random; a result from 10 to 100 is a target. One target in ten is a
    test target, whatever the seed.

    Source: Gandhi et al. 2024, Stream of Search, section 3, https://huggingface.co/papers/2404.03683.

    Args:
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"test"`.
        n (`int`, *optional*, defaults to `400`):
            Number of problems.
        seed (`int`, *optional*, defaults to `0`):
            The same arguments always give the same problems.
        sizes (`Sequence[int]`, *optional*, defaults to `(3, 4)`):
            How many numbers a problem may have; each size comes equally often.

    Returns:
        `datasets.Dataset`: Columns `prompt`, `numbers`, `target`, `operations` (one solution), `solution` (`None`:
        many answers are right), `source` and `id`.

    Raises:
        `ValueError`: If `split` is unknown, or `n` or a size is too small.

    Example:

    ```python
    >>> from think_tools.data.countdown import countdown_problems

    >>> row = countdown_problems(n=1)[0]
    >>> row["numbers"], row["target"], row["operations"]
    ([33, 31, 67], 65, ['67-33=34', '34+31=65'])
    ```
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    if n < 1 or min(sizes, default=0) < 2:
        raise ValueError(f"`n` must be at least 1 and all of `sizes` at least 2, got {n} and {sizes}.")
    rng = random.Random(f"countdown/{split}/{seed}")
    rows: list[dict] = []
    while len(rows) < n:
        numbers = left = [rng.randint(1, 99) for _ in range(rng.choice(sizes))]
        operations = []
        while len(left) > 1:
            operation, left = rng.choice(_moves(left))
            operations.append(operation)
        [target] = left
        if 10 <= target <= 100 and (zlib.crc32(b"%d" % target) % 10 == 0) == (split == "test"):
            question = QUESTION.format(numbers=", ".join(map(str, numbers)), target=target)
            row = {"prompt": [{"role": "user", "content": question}], "numbers": numbers, "target": target}
            row |= {"operations": operations, "solution": None, "source": "think-tools/countdown"}
            rows.append(row | {"id": f"{split}-{seed}-{len(rows)}"})
    return Dataset.from_list(rows)


def search_countdown(numbers: Sequence[int], target: int, rng: random.Random, max_operations: int | None) -> dict:
    """The `text` of a search of a kind that `rng` draws, the `operations` found, and its `rating`."""
    heuristic, beam = rng.choice(sorted(_DISTANCES)), rng.choice((0, rng.randint(1, 5)))
    found: list[str] = []
    lines, explored = [], 0
    for line in _search(numbers, target, heuristic, beam, rng, found):
        explored += line.startswith("Exploring")
        if max_operations is not None and explored > max_operations:
            break
        lines.append(line)
    most = math.prod(4 * math.comb(size, 2) for size in range(2, len(numbers) + 1))
    return {
        "text": "\n".join(lines if found else [*lines, NO_SOLUTION]),
        "operations": found,
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
