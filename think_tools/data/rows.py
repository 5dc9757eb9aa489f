"""The rows that a function is given, and those it drops: marked with a cause, counted and reported."""

import logging
from collections import Counter

from datasets import Dataset, IterableDataset

CAUSE = "cause_of_drop"  # the column that holds the cause, None for a good row

logger = logging.getLogger(__name__)


def open_dataset(dataset: Dataset | IterableDataset | list[dict]) -> tuple[Dataset | IterableDataset, list[str]]:
    """
    The argument `dataset` of a public function as a data set, and its columns.

    Raises:
        `TypeError`: If it is something else, for instance a `DatasetDict`.
    """
    if isinstance(dataset, list):
        dataset = Dataset.from_list(dataset, on_mixed_types="use_json")
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"`dataset` must be a Dataset, an IterableDataset or a list of dicts, got {type(dataset).__name__}. "
            "Take one split of a DatasetDict: dataset['train']."
        )
    return dataset, list(dataset.column_names or next(iter(dataset), {}))


def drop_marked(dataset: Dataset, caller: str) -> Dataset:
    """
    Rows of which the column `CAUSE` is None, without that column. The numbers of dropped rows go to the log.

    Args:
        dataset (`datasets.Dataset`):
            Rows with the column `CAUSE`.
        caller (`str`):
            The function the user called, for the messages.

    Returns:
        `datasets.Dataset`: The good rows in their order.

    Raises:
        `ValueError`: If there were rows and all of them are marked.
    """
    causes = list(dataset[CAUSE])
    counts = Counter(cause for cause in causes if cause)
    total, dropped = len(causes), counts.total()
    if dropped:
        report = f"`{caller}` dropped {dropped:,} of {total:,} rows: {_listing(counts)}."
        if dropped == total:
            raise ValueError(f"{report} Nothing is left to train on.")
        logger.warning(report)
        dataset = dataset.select([i for i, cause in enumerate(causes) if not cause])
    return dataset.remove_columns(CAUSE)


def drop_marked_stream(dataset: IterableDataset, caller: str) -> IterableDataset:
    """The same for a stream: its length is unknown, so the log gets the counts so far at 1, 10, 100 … dropped rows."""
    return dataset.filter(_KeepUnmarked(caller), input_columns=[CAUSE]).remove_columns(CAUSE)


class _KeepUnmarked:
    def __init__(self, caller: str):
        self.caller = caller
        self.total = 0
        self.counts: Counter[str] = Counter()

    def __call__(self, cause: str | None) -> bool:
        self.total += 1
        if cause is None:
            return True
        self.counts[cause] += 1
        dropped = self.counts.total()
        if dropped == 10 ** (len(str(dropped)) - 1):
            message = "`%s` dropped %s of %s rows so far: %s."
            logger.warning(message, self.caller, f"{dropped:,}", f"{self.total:,}", _listing(self.counts))
        return False


def _listing(counts: Counter[str]) -> str:
    common = counts.most_common(5)
    rest = counts.total() - sum(count for _, count in common)
    listed = "; ".join(f"{cause} ({count:,})" for cause, count in common)
    return f"{listed}; other causes ({rest:,})" if rest else listed
