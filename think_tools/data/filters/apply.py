"""Annotate rows with what filters find, drop some of them later, and report: no threshold is paid for twice."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Json, Value, concatenate_datasets

from ..rows import open_dataset

# `value` is what was measured, `keep` the verdict (`None`: undecided), `reason` why it is not True.
Annotation = dict[str, Any]
_ANNOTATION = {"value": Json(), "keep": Value("bool"), "reason": Value("string")}


@dataclass(frozen=True)
class Filter:
    """
    A named rule that annotates rows; every function of [`think_tools.data.filters`] returns one.

    Your own rule needs no `Filter`: a function from a row to `{"value": …, "keep": …, "reason": …}` is taken as well,
    under its own name.

    Args:
        name (`str`):
            The annotation goes to the column `f_<name>`. `dataclasses.replace(rule, name=…)` lets one rule run twice.
        annotate (`Callable`):
            From a row to its annotation, or from rows to their annotations, see `scope`.
        scope (`str`, *optional*, defaults to `"row"`):
            What `annotate` is given: one `"row"`, a `"batch"` (a list of up to 1,000 rows), or all rows of the
            `"dataset"`, of which it sees `prompt` and the annotations alone; no stream can give these.

    Example:

    ```python
    >>> from think_tools.data.filters import code_block

    >>> answer = {"role": "assistant", "reasoning_content": "```python", "content": "4"}
    >>> code_block()({"prompt": [{"role": "user", "content": "2+2?"}], "completion": [answer]})
    {'value': 1, 'keep': False, 'reason': 'code in the reasoning'}
    ```
    """

    name: str
    annotate: Callable[[Any], Any]
    scope: Literal["row", "batch", "dataset"] = "row"

    def __call__(self, row: dict) -> Annotation:
        """The annotation of one row."""
        return self.annotate(row) if self.scope == "row" else next(iter(self.annotate([row])))


def note(value: Any, keep: bool | None, reason: str | None) -> Annotation:
    """
    An annotation; the reason is left out of a row that is kept.

    Example:

    ```python
    >>> from think_tools.data.filters.apply import note

    >>> note(12, True, "too long")
    {'value': 12, 'keep': True, 'reason': None}
    ```
    """
    return {"value": value, "keep": keep, "reason": None if keep else reason}


def read_question(row: dict) -> str:
    """
    The prompt of a row as text: all turns but the system's.

    Example:

    ```python
    >>> from think_tools.data.filters.apply import read_question

    >>> read_question({"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]})
    '2+2?'
    ```
    """
    if isinstance(row["prompt"], str):
        return row["prompt"]
    return "\n".join(str(turn["content"]) for turn in row["prompt"] if turn["role"] != "system")


Rule = Filter | Callable[[dict], Annotation]


def apply_filters(
    dataset: Dataset | IterableDataset | list[dict], filters: Sequence[Rule], *, num_proc: int | None = None
) -> tuple[Dataset | IterableDataset, dict[str, dict]]:
    """
    Annotate every row with what each filter finds. No row is dropped or changed: [`select`] does that.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows of the package's type. Of a stream rows are annotated when they are read; the filters that compare
            rows with one another ([`dedup`], [`pass_rate`]) cannot take one.
        filters (`Sequence`):
            [`Filter`]s, or functions from a row to an annotation. They run in this order, and a later one sees the
            annotations of the earlier: put cheap ones first, judges last.
        num_proc (`int`, *optional*):
            Processes. The limits of a judge's backend hold in each of them.

    Returns:
        `tuple`: The rows with one column `f_<name>` per filter, `{"value", "keep", "reason"}`, in which `value` is any
        JSON and `keep` is `None` where the filter cannot tell; and what [`filter_report`] says, `{}` of a stream. A
        column of that name from an earlier call is replaced.

    Raises:
        `TypeError`: If `dataset` is no data set, or a filter returns no annotation.
        `ValueError`: If a column is missing, two filters have one name, or a stream meets a filter that compares rows.

    Example:

    ```python
    >>> from think_tools.data import apply_filters
    >>> from think_tools.data.filters import complete, language

    >>> thought = "Two and two make four, and that is all there is."
    >>> answer = {"role": "assistant", "reasoning_content": thought, "content": "4"}
    >>> rows = [{"prompt": [{"role": "user", "content": "2+2?"}], "completion": [answer]}]
    >>> annotated, report = apply_filters(rows, [complete(), language("zh")])
    >>> annotated[0]["f_language"]["reason"], report["language"]["drop"]
    ('less than 90% zh', 1)
    ```
    """
    rows, columns = open_dataset(dataset)
    rules = [rule if isinstance(rule, Filter) else Filter(rule.__name__, rule) for rule in filters]
    names = [f"f_{rule.name}" for rule in rules]
    if missing := [name for name in ("prompt", "completion") if name not in columns]:
        raise ValueError(f"`dataset` must have the columns {missing}, got {columns}. Convert it: `to_think(dataset)`.")
    if len(set(names)) < len(names):
        raise ValueError(f"`filters` must have different names, got {names}. Rename: `replace(rule, name=…)`.")
    rows = rows.remove_columns([name for name in names if name in columns])
    if isinstance(rows, Dataset) and not len(rows):  # to which nothing below would add a column
        types = Features({**rows.features, **dict.fromkeys(names, _ANNOTATION)})
        rows, names, rules = Dataset.from_dict({name: [] for name in types}, types), [], []
    for name, rule in zip(names, rules, strict=True):
        annotate, types = partial(_annotate, rule=rule, name=name), Features({name: _ANNOTATION})
        if isinstance(rows, Dataset):
            whole = rule.scope == "dataset"
            read = rows.select_columns(["prompt", *_annotations(rows.column_names)]) if whole else rows
            how: dict[str, Any] = {"batch_size": None} if whole else {"num_proc": num_proc}
            how |= {"batched": True, "remove_columns": read.column_names, "features": types, "desc": rule.name}
            # Side by side, so that the rows themselves are not written anew.
            rows = concatenate_datasets([rows, read.map(annotate, **how)], axis=1)
        elif rule.scope == "dataset":
            raise ValueError(f"`filters`: {rule.name!r} compares all rows, which a stream never has: load a Dataset.")
        else:
            rows = rows.map(annotate, batched=True, features=rows.features and Features({**rows.features, **types}))
    return rows, filter_report(rows) if isinstance(rows, Dataset) else {}


def _annotate(batch: dict[str, list], rule: Filter, name: str) -> dict[str, list[Annotation]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    notes = list(map(rule, rows) if rule.scope == "row" else rule.annotate(rows))
    for found in notes:
        if not isinstance(found, dict) or found.keys() != _ANNOTATION.keys():
            raise TypeError(f"`filters`: {rule.name!r} must return a dict of {list(_ANNOTATION)}, got {found!r:.80}.")
    return {name: notes}


def select(
    dataset: Dataset | IterableDataset | list[dict], *, undecided: bool = True, **rules: Callable[[Any], bool] | None
) -> Dataset | IterableDataset:
    """
    Keep the rows that no filter rejects, by the verdicts in the annotations or by new thresholds on their values.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows that [`apply_filters`] has annotated.
        undecided (`bool`, *optional*, defaults to `True`):
            Whether a row about which a filter could not tell stays.
        rules (*optional*):
            By the name of a filter, from its value to whether the row stays, instead of the verdict it gave; it is not
            asked about `None`, a value that could not be had. `None` as a rule leaves the filter out.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: The rows that stay, annotations included.

    Raises:
        `ValueError`: If there is no such annotation, or no row of a data set stays.

    Example:

    ```python
    >>> from think_tools.data import apply_filters, select
    >>> from think_tools.data.filters import code_block

    >>> answer = {"role": "assistant", "reasoning_content": "```python", "content": "4"}
    >>> rows = [{"prompt": [{"role": "user", "content": "2+2?"}], "completion": [answer]}]
    >>> annotated, _ = apply_filters(rows, [code_block()])
    >>> len(select(annotated, code_block=lambda fences: fences < 2))
    1
    ```
    """
    rows, columns = open_dataset(dataset)
    names, given = _annotations(columns), {f"f_{name}": rule for name, rule in rules.items()}
    if not names or not given.keys() <= set(names):
        raise ValueError(f"`dataset` has the annotations {names}, not {list(given)}: call `apply_filters` first.")
    used = {name: given.get(name) for name in names if given.get(name, True)}

    def stays(*notes: Annotation) -> bool:
        for rule, found in zip(used.values(), notes, strict=True):
            # A new threshold says nothing about a value that could not be had.
            keep = rule(found["value"]) if rule and found["value"] is not None else None if rule else found["keep"]
            if not (undecided if keep is None else keep):
                return False
        return True

    kept = rows.filter(stays, input_columns=list(used)) if used else rows
    if isinstance(kept, Dataset) and isinstance(rows, Dataset) and len(rows) and not len(kept):
        raise ValueError(
            f"`select` would drop every row; what the filters said: {filter_report(rows)}. Loosen a rule."
        )
    return kept


def _annotations(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if name.startswith("f_")]


def filter_report(dataset: Dataset | list[dict]) -> dict[str, dict]:
    """
    Count what the filters found, for each in the order in which they ran.

    Args:
        dataset (`datasets.Dataset` or `list[dict]`):
            Rows that [`apply_filters`] has annotated, perhaps long ago.

    Returns:
        `dict`: By the filter's name the numbers of rows that it would `keep`, would `drop` and left `undecided`, the
        `left` ones that neither it nor an earlier filter rejects, and the `reasons` with their numbers.

    Example:

    ```python
    >>> from think_tools.data.filters import filter_report

    >>> filter_report([{"f_length": {"value": 9000, "keep": False, "reason": "too long"}}])
    {'length': {'keep': 0, 'drop': 1, 'undecided': 0, 'left': 0, 'reasons': {'too long': 1}}}
    ```
    """
    rows = Dataset.from_list(dataset) if isinstance(dataset, list) else dataset
    left, report = [True] * len(rows), {}
    for name in _annotations(rows.column_names):
        notes = list(rows[name])
        left = [still and found["keep"] is not False for still, found in zip(left, notes, strict=True)]
        verdicts = Counter(found["keep"] for found in notes)
        reasons = Counter(found["reason"] for found in notes if found["reason"] and not found["keep"])
        counts = {"keep": verdicts[True], "drop": verdicts[False], "undecided": verdicts[None], "left": sum(left)}
        report[name[2:]] = {**counts, "reasons": dict(reasons.most_common())}
    return report


def filter_section(report: dict[str, dict]) -> str:
    r"""
    The report of the filters as a section of a data-set card.

    Args:
        report (`dict`):
            What [`apply_filters`] or [`filter_report`] returned.

    Returns:
        `str`: A heading and a table in Markdown.

    Example:

    ```python
    >>> from huggingface_hub import DatasetCard
    >>> from think_tools.data.filters import filter_section

    >>> counts = {"keep": 7, "drop": 2, "undecided": 1, "left": 8, "reasons": {"wrong answer": 2}}
    >>> card = DatasetCard("---\nlicense: mit\n---\n# Traces\n")
    >>> card.text += filter_section({"verified": counts})
    >>> card.text.splitlines()[-1]
    '| verified | 7 | 2 | 1 | 8 | wrong answer (2) |'
    ```
    """
    lines = [("filter", "keep", "drop", "undecided", "left", "reasons"), ["---"] * 6]
    for name, counts in report.items():
        reasons = ", ".join(f"{why} ({count:,})" for why, count in counts["reasons"].items()).replace("|", "\\|")
        lines.append([name, *(f"{counts[head]:,}" for head in lines[0][1:5]), reasons])
    return "\n## Filters\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
