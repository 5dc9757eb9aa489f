"""Find the gold answers of a dataset that cannot be graded, before a training run skips them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .compare import read_gold
from .grader import shared_grader


class UngradableSolution(NamedTuple):
    """A row of the dataset, counted from 0, its gold answer, and why no answer can be compared with it."""

    row: int
    solution: object
    reason: str


def audit_solutions(dataset: Iterable[Mapping[str, Any]], column: str = "solution") -> list[UngradableSolution]:
    r"""
    List the gold answers that [`same_answer`] answers with `None`, with their row numbers.

    A reward gives such rows no signal, or counts them as 0 beside another reward. Golds outside plain numbers, words
    and school algebra are read once in a worker process, as in training: about 10 ms for each distinct one.

    Args:
        dataset (`Iterable[Mapping]`):
            Rows: a [`~datasets.Dataset`], or a list of dictionaries.
        column (`str`, *optional*, defaults to `"solution"`):
            The column of gold answers.

    Returns:
        `list[UngradableSolution]`: Empty if all is well.

    Raises:
        `ValueError`: If a row lacks the column.

    Example:

    ```python
    >>> from think_tools.answers import audit_solutions

    >>> audit_solutions([{"solution": "42"}, {"solution": ""}])
    [UngradableSolution(row=1, solution='', reason='it is empty')]
    ```
    """
    solutions: list[object] = []
    for row, example in enumerate(dataset):
        if column not in example:
            raise ValueError(
                f"`column` names no column of row {row}: got {column!r}, the row has {sorted(example)}. Pass the name "
                "of the column of gold answers."
            )
        solutions.append(example[column])
    strings = list(dict.fromkeys(solution for solution in solutions if isinstance(solution, str)))
    # Any answer will do: what counts is whether the gold answer can be read.
    verdicts = dict(zip(strings, shared_grader().verdicts(["0"] * len(strings), strings), strict=True))
    return [
        UngradableSolution(row, solution, _reason(solution))
        for row, solution in enumerate(solutions)
        if (verdicts[solution] == "gold_unreadable" if isinstance(solution, str) else read_gold(solution) is None)
    ]


def _reason(solution: object) -> str:
    if not isinstance(solution, str):
        return f"it is of type {type(solution).__name__}, not a string or a number"
    if read_gold(solution):
        return "it is no formula that can be read"
    return "it is prose without a final answer" if solution.strip(" $") else "it is empty"
