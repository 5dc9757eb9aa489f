"""Filters that compare questions: with one another, and with texts that must not be trained on."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from datasets import Dataset, Features, IterableDataset, Value

from ..rows import CAUSE, drop_marked, drop_marked_stream, open_dataset
from .apply import Annotation, Filter, note, read_question
from .rules import DENSE, UNITS

# At the ends of a word; operators and the minus sign are no punctuation.
_PUNCTUATION = ".,;:!?\"'()[]{}$*_`~|\\。、…“”‘’「」『』《》〈〉【】·—–"
_DENSE = re.compile(f"[{DENSE}]")


def dedup(*, max_rows: int = 1) -> Filter:
    """
    Filter that keeps the first row of each question, or the first few.

    Case, width, white space and punctuation around words make no difference; operators do. The value is the number of
    the row among those of its question, from 1, so that `select(rows, dedup=lambda number: number <= 4)` keeps more.
    The first ones are kept, whether good or bad: filter by quality first.

    Args:
        max_rows (`int`, *optional*, defaults to `1`):
            Most rows of a question.

    Example:

    ```python
    >>> from think_tools.data import apply_filters
    >>> from think_tools.data.filters import dedup

    >>> rows = [{"prompt": text, "completion": "4"} for text in ("What is 2+2?", "what is 2+2", "What is 2-2?")]
    >>> apply_filters(rows, [dedup()])[0]["f_dedup"][1]
    {'value': 2, 'keep': False, 'reason': 'a question that came before'}
    ```
    """

    def annotate(rows: Iterable[dict]) -> Iterator[Annotation]:
        seen = Counter[str]()
        for row in rows:
            question = " ".join(_words(read_question(row)))
            seen[question] += 1
            yield note(seen[question], seen[question] <= max_rows, "a question that came before")

    return Filter("dedup", annotate, "dataset")


def contamination(against: Iterable[str], *, n: int = 13) -> Filter:
    """
    Filter that keeps rows whose question shares no passage with texts that must not be trained on.

    A passage is `n` words in a row, or 13 characters where a script writes no blanks between words (a number or a
    formula among them counts as one); a text too short for one must be the whole question. The value is the first
    passage shared. Case, width and punctuation around words make no difference.

    Of 2,000 GSM8K training questions against 500 test ones 13 words find none, and 8 words six, of which each shares
    a phrase such as "the original price. What was the original price".

    Args:
        against (`Iterable[str]`):
            Such texts, as `load_dataset("HuggingFaceH4/MATH-500", split="test")["problem"]`.
        n (`int`, *optional*, defaults to `13`):
            Words of a passage.

    Raises:
        `TypeError`: If `against` holds anything but texts.

    Example:

    ```python
    >>> from think_tools.data.filters import contamination

    >>> rule = contamination(["小明有12个苹果，给了小红3个，他还剩几个？"])
    >>> rule({"prompt": "请回答：小明有12个苹果, 给了小红3个。他还剩几个？"})["value"]
    '小 明 有 12 个 苹 果 给 了 小 红 3 个'
    ```
    """
    texts = [against] if isinstance(against, str) else list(against)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"`against` must hold texts, got {wrong[0]!r:.80}. Take one column: dataset['problem'].")
    known = {passage for text in texts for passage in _passages(text, n) if passage}

    def annotate(row: dict) -> Annotation:
        shared = next((passage for passage in _passages(read_question(row), n) if passage in known), None)
        return note(shared, shared is None, "a passage of a text in `against`")

    return Filter("contamination", annotate)


def decontaminate(
    dataset: Dataset | IterableDataset | list[dict], against: Iterable[str], *, n: int = 13
) -> Dataset | IterableDataset:
    """
    The rows whose question shares no passage with texts that must not be trained on, such as benchmarks.

    [`contamination`] is the same as a filter, and says which passage it was. Sources: GPT-3, appendix C
    (https://huggingface.co/papers/2005.14165), 13 words; s1 (https://huggingface.co/papers/2501.19393), 8.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows with a column `prompt`.
        against (`Iterable[str]`):
            The texts.
        n (`int`, *optional*, defaults to `13`):
            Words of a passage.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: The rows that are left. How many are not is logged.

    Raises:
        `TypeError`: If `dataset` is no data set, or `against` holds anything but texts.
        `ValueError`: If no row is left.

    Example:

    ```python
    >>> from think_tools.data import decontaminate

    >>> rows = [{"prompt": "What is 2+2?"}, {"prompt": "What is 2+3?"}]
    >>> decontaminate(rows, against=["what is 2+2"])["prompt"][:]
    ['What is 2+3?']
    ```
    """
    rows, _ = open_dataset(dataset)
    types = rows.features and Features({**rows.features, CAUSE: Value("string")})
    rule = contamination(against, n=n)
    marked = rows.map(lambda row: {CAUSE: rule(row)["reason"]}, features=types)
    if isinstance(marked, IterableDataset):
        return drop_marked_stream(marked, "decontaminate")
    return drop_marked(marked, "decontaminate")


def _words(text: str) -> list[str]:
    units = UNITS.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word for unit in units if (word := unit.strip(_PUNCTUATION))]


def _passages(text: str, n: int) -> Sequence[str]:
    """The passages of a text in order, or the whole of it."""
    words = _words(text)
    sizes = ((n, False), (13, True))
    found = [(d, " ".join(words[i : i + size])) for size, d in sizes for i in range(len(words) - size + 1)]
    return [passage for dense, passage in found if bool(_DENSE.search(passage)) is dense] or [" ".join(words)]
