"""Show what `prepare_sft` makes of rows: what is trained, masked, cut and lost."""

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from datasets import Dataset, IterableDataset
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..templates import Finding
from .rows import CAUSE, open_dataset
from .turns import label_row, read_settings

STYLES = {"trained": "green", "masked": "dim", "cut": "yellow", "lost": "bold red"}
COUNTS = ("rows", "examples", "with reasoning", "too long", "rows lost", "tokens trained", "tokens masked")
HUGE = 10**9  # tokenizers without a known limit have one of 10^30 tokens


def explain(
    row: dict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    shorten: int | None = None,
    **options: Any,
) -> Text:
    r"""
    Show what [`prepare_sft`] trains of a row, or what a prepared row trains: a line for each run of tokens.

    A run is `trained`, `masked` (read, but without loss) or `cut` (over `max_length`, or reasoning that
    `too_long="close_think"` takes away); a row is `lost` with the cause why it cannot be trained. The first line has
    the numbers of tokens. `↵` is a line break of the row.

    Args:
        row (`dict`):
            A row as [`to_think`] makes it, or one with `input_ids` and `labels`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        max_length (`int`, *optional*):
            Greatest length in tokens. `None` sets no limit.
        shorten (`int`, *optional*):
            Characters of a run to show at most, its beginning and its end. `None` shows all.
        **options:
            Further arguments of [`prepare_sft`]: `too_long`, `loss`, `empty_think`, `turns`, `fmt`.

    Returns:
        [`~rich.text.Text`]: Colours in a notebook and with `rich.print`, plain with `print`. Brackets of the row are
        text, not markup.

    Raises:
        `ValueError`: If an argument is out of range; never for what is wrong with the row.

    Example:

    ```python
    >>> from think_tools.data import explain
    >>> from think_tools.tiny import load_tiny

    >>> row = {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]}
    >>> print(explain(row, load_tiny()[1]))
    tokens  2 trained, 30 masked, 0 cut
    masked  <|im_start|>user↵
            2+2?<|im_end|>↵
            <|im_start|>assistant↵
            <think>↵
            ↵
            </think>↵
            ↵
    trained 4<|im_end|>
    masked  ↵
    ```
    """
    settings = read_settings(tokenizer, max_length=max_length, **options)
    try:
        examples = [row] if "labels" in row else label_row(row, settings)
    except ValueError as error:
        examples = [{"input_ids": [], "labels": [], CAUSE: str(error)}]
    runs, counts = [], Counter()
    for example in examples:
        ids, labels = example["input_ids"], example["labels"]
        limit = max_length or len(ids)
        states = [
            "cut" if at >= limit else "masked" if label == -100 else "trained" for at, label in enumerate(labels)
        ]
        for state, run in groupby(zip(states, ids, strict=True), key=itemgetter(0)):
            runs.append((state, _shown(str(tokenizer.decode([token for _, token in run])), shorten)))
        closed = max(example.get("num_tokens", 0) - len(ids), 0)
        counts.update([*states, *["cut"] * closed])
        runs += [("cut", f"the last {closed} tokens of the reasoning")] if closed else []
        runs += [("lost", example[CAUSE])] if example.get(CAUSE) else []
    numbers = ", ".join(f"{counts[state]:,} {state}" for state in ("trained", "masked", "cut"))
    lines = [(f"{state:<8}{text}", STYLES.get(state, "")) for state, text in [("tokens", numbers), *runs]]
    return Text("\n").join(Text(*line) for line in lines)


def _shown(text: str, limit: int | None) -> str:
    if limit and len(text) > limit:
        text = f"{text[: limit // 2]} [… {len(text) - limit:,} characters …] {text[len(text) - limit // 2 :]}"
    return text.replace("\n", "↵\n" + " " * 8).removesuffix("\n" + " " * 8)


@dataclass(frozen=True)
class DatasetReport:
    """
    What training on a data set would learn and lose.

    Args:
        counts (`dict[str, int]`):
            Numbers of rows, of examples (more than rows where turns are expanded), of examples with reasoning and of
            those that are too long, of rows that are lost in whole or in part, of tokens trained and masked in what is
            kept; tokens of the longest example, and the limit (0 if there is none).
        findings (`tuple[Finding, ...]`):
            What would be lost, each cause once, with what to do.
        first (`int`):
            Number of the first row with a finding, 0 without findings: a row to look at with [`explain`].
    """

    counts: dict[str, int]
    findings: tuple[Finding, ...]
    first: int

    @property
    def ok(self) -> bool:
        """Whether nothing is lost."""
        return all(finding.severity != "error" for finding in self.findings)


def check_dataset(
    dataset: Dataset | IterableDataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    **options: Any,
) -> DatasetReport:
    r"""
    Count what [`prepare_sft`] would train, mask, cut and lose of a data set, without an error for the first bad row.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows as [`to_think`] makes them. A stream is read to its end.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template.
        max_length (`int`, *optional*):
            Greatest length of a row in tokens. `None` takes `tokenizer.model_max_length`, if that is known.
        **options:
            Further arguments of [`prepare_sft`]: `loss`, `empty_think`, `too_long`, `turns`, `fmt`.

    Returns:
        [`DatasetReport`]: Counts, and a finding for each cause why rows would be lost or cut.

    Raises:
        `TypeError`: If `dataset` is no data set.
        `ValueError`: If an argument is out of range, or a column is missing.

    Example:

    ```python
    >>> from think_tools.data import check_dataset, to_think
    >>> from think_tools.tiny import load_tiny

    >>> rows = to_think([{"question": "2+3?", "answer": "2+3 = 5\n#### 5"}])
    >>> report = check_dataset(rows, load_tiny()[1], max_length=30)
    >>> print(report.findings[0].what)
    1 of 1 rows, the first is row 0: longer than `max_length=30` tokens, so they would be cut or left out
    ```
    """
    limit = max_length or (tokenizer.model_max_length if tokenizer.model_max_length < HUGE else None)
    settings = read_settings(tokenizer, max_length=limit, **options)
    counts, longest, causes = Counter(dict.fromkeys(COUNTS, 0)), 0, {}
    for index, row in enumerate(open_dataset(dataset)[0]):
        try:
            examples = label_row(row, settings)
            found = [example[CAUSE] for example in examples if example[CAUSE]]
        except ValueError as error:
            examples, found = [], [str(error)]
        for example in examples:
            longest = max(longest, example["num_tokens"])
            labels = [] if example[CAUSE] else example["labels"]
            masked, cut = labels.count(-100), example["num_tokens"] > (limit or longest)
            numbers = (0, 1, example["thinks"], cut, 0, len(labels) - masked, masked)
            counts.update(dict(zip(COUNTS, numbers, strict=True)))
        counts.update({"rows": 1, "rows lost": bool(found)})
        for cause in found:
            causes.setdefault(cause.partition(":")[0], []).append((index, cause))
    findings = [_finding(hits, counts["rows"], longest) for hits in sorted(causes.values(), key=len, reverse=True)]
    first = min((index for hits in causes.values() for index, _ in hits), default=0)
    return DatasetReport({**counts, "longest": longest, "limit": limit or 0}, tuple(findings), first)


def _finding(hits: list[tuple[int, str]], num_rows: int, longest: int) -> Finding:
    """One cause, from the rows that have it."""
    index, cause = hits[0]
    what, _, remedy = cause.partition(" What helps: ")
    if what.startswith("longer"):
        what += ", so they would be cut or left out"
        remedy = f"`max_length={longest}` keeps all of them; `too_long='close_think'` keeps their beginnings"
    severity = "warning" if what.startswith("without reasoning") else "error"
    what = f"{len(hits):,} of {num_rows:,} rows, the first is row {index}: {what}"
    return Finding(severity, what, remedy or "mend these rows, or leave them out")
