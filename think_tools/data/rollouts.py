"""What a model's own samples say: which candidates are right, which traces to keep, where a trace goes wrong."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from ..backends import Candidate, Messages
from ..parsing import Trace, read_completion
from ..rewards import accuracy_reward
from ..steps import split_steps
from .filters import Filter, complete
from .filters.apply import Annotation, note
from .rows import CAUSE, drop_marked, open_dataset

Output = Candidate | str | dict[str, Any] | list[dict[str, Any]]
# From prompts to the candidates of each: `functools.partial(backend.sample, params=SamplingParams(n=8))`.
Sample = Callable[[Sequence[Messages]], Sequence[Sequence[Output]]]
# From prompts and the reasoning so far of each to texts that go on from there: reasoning, closing marker, answer.
Continue = Callable[[Sequence[Messages], Sequence[str]], Sequence[Sequence[Output]]]
# From prompts and the steps of a trace of each to a score in [0, 1] for each step.
VerifySteps = Callable[[Sequence[Messages], Sequence[Sequence[str]]], Sequence[Sequence[float]]]
# From the same to the index of the first wrong step, `None` where all are right.
Judge = Callable[[Sequence[Messages], Sequence[Sequence[str]]], Sequence[int | None]]
# A reward function for TRL: 1.0 is right, less is wrong, None is unknown.
Reward = Callable[..., Sequence[float | None]]

_TEXT = Value("string")
_WRITTEN = {
    "completion": List({"role": _TEXT, "reasoning_content": _TEXT, "content": _TEXT}),
    "chat_template_kwargs": Json(),
    "sample": Value("int64"),
    "status": _TEXT,
    "finished": Value("bool"),
    "correct": Value("bool"),
}


def sample_candidates(
    dataset: Dataset | IterableDataset | list[dict], sample: Sample, *, reward: Reward = accuracy_reward
) -> Dataset:
    """
    One row per candidate answer, graded; what filters and [`to_preference`] choose from.

    A long run against a server is [`distill`]'s, which survives crashes and writes the same rows, ungraded.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows with `prompt` (messages) and, for the grade, `solution`. A stream is read whole.
        sample (`Callable`):
            From all prompts to the candidates of each, as [`Candidate`], text, message or messages; for instance
            `functools.partial(backend.sample, params=SamplingParams(n=8))`, or `lambda prompts: dataset["answers"]`
            for stored ones.
        reward (`Callable`, *optional*, defaults to [`accuracy_reward`]):
            Reward function of TRL's form, called once with all completions and all columns: 1.0 is right.

    Returns:
        `datasets.Dataset`: The columns of `dataset` with a new `completion`, its `chat_template_kwargs`, and `sample`
        (number of the candidate), `status` and `finished` (of the [`Trace`]) and `correct` (`None`: no gold answer, or
        one that cannot be read). Candidates of one question follow each other and share its `id`.

    Raises:
        `ValueError`: If the column `prompt` is missing, or `sample` does not give a list for every prompt.

    Example:

    ```python
    >>> from think_tools.data.rollouts import sample_candidates

    >>> questions = [{"prompt": [{"role": "user", "content": "2+2?"}], "solution": "4"}]
    >>> rows = sample_candidates(questions, lambda prompts: [["4", "<think>2+3</think>5"]])
    >>> [(row["completion"][0]["content"], row["correct"]) for row in rows]
    [('4', True), ('5', False)]
    ```
    """
    opened, columns = open_dataset(dataset)
    if "prompt" not in columns:
        raise ValueError(f"`dataset` must have the column 'prompt', got {columns}. Convert it: `to_think(dataset)`.")
    rows = list(cast(Iterable[dict], opened))
    outputs = sample([row["prompt"] for row in rows])
    if len(outputs) != len(rows):
        raise ValueError(f"`sample` must give a list of candidates per prompt, got {len(outputs)} for {len(rows)}.")
    candidates = []
    for row, many in zip(rows, outputs, strict=True):
        for i, trace in enumerate(map(_read, many)):
            kwargs = (row.get("chat_template_kwargs") or {}) | {"enable_thinking": bool(trace.reasoning)}
            new = {"completion": [trace.message()], "chat_template_kwargs": kwargs, "sample": i}
            candidates.append({**row, **new, "status": trace.status, "finished": trace.finished})
    graded = [row | {"correct": right} for row, right in zip(candidates, grade(candidates, reward), strict=True)]
    return Dataset.from_list(graded, features=Features({**(opened.features or {}), **_WRITTEN}))


def grade(rows: Sequence[dict], reward: Reward = accuracy_reward) -> list[bool | None]:
    """Whether the completion of each row is right; `None` if its `solution` is missing or cannot be read."""
    columns = {name: [row.get(name) for row in rows] for row in rows[:1] for name in row if name != "completion"}
    columns = {"solution": [None] * len(rows)} | columns
    prompts = columns.pop("prompt", None)
    rewards = reward([row["completion"] for row in rows], prompts=prompts, **columns)
    return [None if value is None else value >= 1 for value in rewards]


def rejection_sample(dataset: Dataset | IterableDataset | list[dict], *, reward: Reward = accuracy_reward) -> Dataset:
    """
    The candidates that are complete and right, no two of a question alike.

    [`verified_steps`] among the filters of [`apply_filters`] also asks for every step to be right.

    Source: DeepSeek-R1, section 2.3.3, https://huggingface.co/papers/2501.12948.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            One row per candidate, as [`sample_candidates`] and [`distill`] write them. A column `correct` is believed,
            else `solution` is compared. A stream is read whole.
        reward (`Callable`, *optional*, defaults to [`accuracy_reward`]):
            Grades where there is no column `correct`, see [`sample_candidates`].

    Returns:
        `datasets.Dataset`: The rows that are kept, in their order. The log says how many were dropped, and why.

    Raises:
        `ValueError`: If a column is missing, or no row is kept.

    Example:

    ```python
    >>> from think_tools.data.rollouts import rejection_sample, sample_candidates

    >>> questions = [{"prompt": [{"role": "user", "content": "2+2?"}], "solution": "4"}]
    >>> rows = sample_candidates(questions, lambda prompts: [["4", "5", "<think>2+2</think>4"]])
    >>> len(rejection_sample(rows))
    2
    ```
    """
    candidates = read_candidates(dataset, reward)
    whole, causes, kept = complete(thinking=False), [], set()
    for row in cast(Iterable[dict], candidates):
        doubt = {None: "no gold answer to read", False: "wrong"}.get(row["correct"])
        said = str((row["prompt"], row["completion"]))
        causes.append(whole(row)["reason"] or doubt or ("the same as another candidate" if said in kept else None))
        kept |= set() if causes[-1] else {said}
    return drop_marked(candidates.add_column(CAUSE, causes), "rejection_sample")  # type: ignore[call-arg]


def verified_steps(verify: VerifySteps, threshold: float = 0.5) -> Filter:
    """
    Filter for [`apply_filters`] that keeps the traces of which every step passes a verifier.

    Source: rStar-Math, section 3.2, https://huggingface.co/papers/2501.04519.

    Args:
        verify (`Callable`):
            From prompts (messages) and the steps of each reasoning ([`split_steps`]) to a score for each step in
            `[0, 1]`: a process model, code that runs the step, a judge. Called with up to 1,000 traces.
        threshold (`float`, *optional*, defaults to `0.5`):
            Least score of every step.

    Returns:
        [`Filter`]: Its value is the lowest score of a step, `None` without reasoning, about which it cannot tell.

    Raises:
        `ValueError`: When it runs, if `verify` does not give one score per step.

    Example:

    ```python
    >>> from think_tools.data.rollouts import verified_steps

    >>> rule = verified_steps(lambda prompts, steps: [[float("=5" not in step) for step in some] for some in steps])
    >>> answer = {"role": "assistant", "reasoning_content": "1+1=2\\n\\n2+2=5", "content": "5"}
    >>> rule({"prompt": [{"role": "user", "content": "1+1+2?"}], "completion": [answer]})
    {'value': 0.0, 'keep': False, 'reason': 'a step below 0.5'}
    ```
    """

    def annotate(rows: Sequence[dict]) -> list[Annotation]:
        steps = [split_steps(reasoning_of(row)) for row in rows]
        scores = verify([row["prompt"] for row in rows], steps)
        if [len(some) for some in scores] != [len(some) for some in steps]:
            raise ValueError("`verify` must give a list of scores for each trace, one score per step.")
        lowest = [min(some, default=None) for some in scores]
        reason = f"a step below {threshold}"
        return [
            note(low, None, "no reasoning") if low is None else note(low, low >= threshold, reason) for low in lowest
        ]

    return Filter("verified_steps", annotate, "batch")


def label_steps(
    dataset: Dataset | IterableDataset | list[dict],
    sample: Continue,
    *,
    search: Literal["all", "binary"] = "all",
    judge: Judge | None = None,
    reward: Reward = accuracy_reward,
) -> Dataset:
    r"""
    Label the steps of traces by roll-outs: a step is good if the reasoning up to it can still reach the gold answer.

    Sources: Math-Shepherd, section 3.3 (soft and hard labels), https://huggingface.co/papers/2312.08935; OmegaPRM
    (binary search), https://huggingface.co/papers/2406.06592; The Lessons of Developing Process Reward Models
    (consensus), https://huggingface.co/papers/2501.07301.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows with right and wrong traces: `prompt`, `completion`, `solution`, and `correct` if it is known
            ([`sample_candidates`]). [`split_steps`] cuts the reasoning.
        sample (`Callable`):
            From prompts (messages) and the reasoning so far of each, which ends after a step, to texts that go on from
            there, up to and with the answer. 8 for each is usual; all are asked for in one call.
        search (`str`, *optional*, defaults to `"all"`):
            `"all"` rolls out from every step. `"binary"` looks for the first step from which no roll-out is right, in
            log2 of the steps; a trace with a right answer has none and is not rolled out.
        judge (`Callable`, *optional*):
            From prompts and lists of steps to the index of the first wrong step of each, `None` where all are right. A
            row is dropped unless the roll-outs find the same step.
        reward (`Callable`, *optional*, defaults to [`accuracy_reward`]):
            Grades, see [`sample_candidates`].

    Returns:
        `datasets.Dataset`: TRL's stepwise columns `prompt` (`str`, the texts of the messages), `completions` (steps)
        and `labels` (hard: whether any roll-out was right; with `"binary"` whether it comes before the first wrong
        step), and `values` (soft: the share of right roll-outs, `None` where there were none), `messages`,
        `correct`, `solution`, `source`, `id`. Dropped rows (no reasoning, no readable gold answer, the
        judge disagrees) are counted in the log.

    Raises:
        `ValueError`: If an argument is unknown, `sample` leaves a reasoning without roll-outs, or no row is left.

    Example:

    ```python
    >>> from think_tools.data import label_steps

    >>> message = {"role": "assistant", "reasoning_content": "2*3=6\n\n1+6=8", "content": "8"}
    >>> prompt = [{"role": "user", "content": "1+2*3=?"}]
    >>> def sample(prompts, reasonings):  # a model that never repairs an error
    ...     return [["</think>8"] if "=8" in text else ["1+6=7</think>7", "1+6=9</think>9"] for text in reasonings]
    >>> rows = label_steps([{"prompt": prompt, "completion": [message], "solution": "7"}], sample)
    >>> rows[0]["labels"], rows[0]["values"]
    ([True, False], [0.5, 0.0])
    ```
    """
    if search not in ("all", "binary"):
        raise ValueError(f"`search` must be 'all' or 'binary', got {search!r}.")
    rows = list(cast(Iterable[dict], read_candidates(dataset, reward)))
    steps = [split_steps(reasoning_of(row)) for row in rows]
    causes = ["no gold answer to read" if row["correct"] is None else None for row in rows]
    causes = [cause if some else "no reasoning" for cause, some in zip(causes, steps, strict=True)]
    values: list[list[float | None]] = [[None] * len(some) for some in steps]

    def roll_out(asked: list[tuple[int, int]]) -> None:
        """Fill in the values of steps, given as numbers of row and step."""
        outputs = sample([rows[i]["prompt"] for i, _ in asked], ["".join(steps[i][: j + 1]) for i, j in asked])
        if len(outputs) != len(asked) or not all(outputs):
            numbers = [len(some) for some in outputs]
            raise ValueError(f"`sample` must give texts for each of {len(asked)} reasonings, got {numbers} texts.")
        written = [
            rows[i] | {"completion": [_read(output, opened=True).message()]}
            for (i, _), some in zip(asked, outputs, strict=True)
            for output in some
        ]
        right = iter(grade(written, reward))
        for (i, j), some in zip(asked, outputs, strict=True):
            found = [next(right) for _ in some]
            values[i][j] = found.count(True) / len(found)
            causes[i] = "no gold answer to read" if None in found else causes[i]

    usable = [i for i, cause in enumerate(causes) if cause is None]
    if search == "all" and usable:
        roll_out([(i, j) for i in usable for j in range(len(steps[i]))])
    labels = [[bool(value) for value in some] for some in values]
    if search == "binary":
        high = [len(some) for some in steps]
        low = [end if row["correct"] else 0 for end, row in zip(high, rows, strict=True)]
        while asked := [(i, (low[i] + high[i]) // 2) for i in usable if low[i] < high[i]]:
            roll_out(asked)
            for i, j in asked:
                low[i], high[i] = (j + 1, high[i]) if values[i][j] else (low[i], j)
        labels = [[j < first for j in range(len(some))] for first, some in zip(low, steps, strict=True)]
    if judge:
        verdicts = judge([rows[i]["prompt"] for i in usable], [steps[i] for i in usable])
        for i, first_wrong in zip(usable, verdicts, strict=True):
            if first_wrong != (labels[i].index(False) if False in labels[i] else None):
                causes[i] = "the judge and the roll-outs disagree"
    labelled = [
        {
            "prompt": "\n\n".join(str(turn["content"]) for turn in row["prompt"]),
            "completions": steps[i],
            "labels": labels[i],
            "values": values[i],
            "messages": row["prompt"],
            **{name: row.get(name) for name in ("correct", "solution", "source", "id")},
            CAUSE: causes[i],
        }
        for i, row in enumerate(rows)
    ]
    return drop_marked(Dataset.from_list(labelled), "label_steps")


def read_candidates(dataset: Dataset | IterableDataset | list[dict], reward: Reward) -> Dataset:
    """The rows with a column `correct`: their own, or what the reward says."""
    opened, columns = open_dataset(dataset)
    if not {"prompt", "completion"} <= set(columns):
        raise ValueError(f"`dataset` must have 'prompt' and 'completion', got {columns}. See `sample_candidates`.")
    rows = opened if isinstance(opened, Dataset) else Dataset.from_list(list(opened), features=opened.features)
    if "correct" in columns:
        return rows
    return rows.add_column("correct", grade(list(cast(Iterable[dict], rows)), reward))  # type: ignore[call-arg]


def reasoning_of(row: dict) -> str:
    """The reasoning of a row's completion, `""` where there is none."""
    return read_completion(row["completion"]).reasoning or ""


def _read(output: Output, opened: bool | None = None) -> Trace:
    return output.trace if isinstance(output, Candidate) else read_completion(output, opened=opened)
