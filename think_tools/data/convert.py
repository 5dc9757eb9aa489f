"""Bring reasoning data of other people's columns into one row type, TRL's conversational prompt-completion."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Literal, get_args

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from ..formats import THINK, ThinkFormat
from ..rewards.completions import guess_format
from .messages import Turns, read_turns, split_turns
from .rows import CAUSE, drop_marked, drop_marked_stream, open_dataset

# The column or columns of a role, or a function of the row.
Columns = str | Sequence[str] | Callable[[dict], Any]
Mapped = Mapping[str, Columns] | Callable[[dict], Mapping[str, Any]]

# A message of a completion always says whether it has reasoning.
NO_REASONING = {"role": "assistant", "reasoning_content": None, "content": ""}
# What `mapping` may name.
ROLES = ("question", "reasoning", "answer", "worked_answer", "solution", "system", "messages")


def _verified_generation(row: dict) -> str:
    """OpenR1-Math: the first generation that is complete, and right for Math-Verify or for the judge."""
    verdicts = zip_longest(row["correctness_math_verify"] or [], row.get("correctness_llama") or [])
    for text, complete, right in zip(row["generations"], row["is_reasoning_complete"], verdicts, strict=False):
        if complete and any(right):
            return text
    raise ValueError("no generation is verified and complete")


def _graded(row: dict, column: str) -> str:
    """s1K-1.1: DeepSeek's trace, unless Gemini's alone is graded right."""
    deepseek, gemini = (str(row.get(f"{teacher}_grade")).lower() == "yes" for teacher in ("deepseek", "gemini"))
    return row[f"{'gemini' if gemini and not deepseek else 'deepseek'}_{column}"]


# Known sets of columns, as mappings a user could have written; the first one that fits is taken. The columns in
# TELLING must be there, too.
SCHEMAS: dict[str, Mapping[str, Columns]] = {
    "prompt-completion": {"messages": ("prompt", "completion")},
    "openr1-math": {"question": "problem", "answer": _verified_generation, "solution": "answer"},
    "messages": {"messages": "messages"},
    "sharegpt": {"messages": "conversations"},
    "s1k-1.1": {
        "question": "question",
        "reasoning": partial(_graded, column="thinking_trajectory"),
        "answer": partial(_graded, column="attempt"),
    },
}
TELLING = {
    "openr1-math": {"generations", "is_reasoning_complete", "correctness_math_verify"},
    "s1k-1.1": {"deepseek_thinking_trajectory", "deepseek_attempt", "deepseek_grade"},
}

# What columns of other data sets are called, in lower case: of several the first. `input` is the question of one
# family and the context of another, so it comes after the names that only a question has.
NAMES = {
    "question": ("question", "problem", "instruction", "query", "prompt", "input", "user"),
    "reasoning": (
        *("reasoning_content", "reasoning", "thinking", "thinking_trajectories", "deepseek_reasoning", "complex_cot"),
        *("chain_of_thought", "cot", "think", "thought", "thoughts", "rationale", "reasoning_trace", "analysis"),
    ),
    "answer": (
        *("response", "output", "content", "attempt", "deepseek_solution", "llm_response", "generated_solution"),
        *("final", "final_answer", "completion", "answer"),
    ),
    "solution": (
        *("solution", "ground_truth", "ground_truth_solution", "gold_standard_solution", "expected_answer"),
        *("reference_answer", "gold_answer", "answer"),
    ),
    "system": ("system", "system_prompt"),
}


def to_think(
    dataset: Dataset | IterableDataset | list[dict],
    *,
    mapping: Mapped | None = None,
    source: str | None = None,
    turns: Turns = "expand",
    unreadable: Literal["drop", "mark"] = "drop",
    num_proc: int | None = None,
    fmt: ThinkFormat | None = None,
) -> Dataset | IterableDataset:
    r"""
    Rows of the package's row type, made from a data set whose columns are known or mapped.

    | columns | reasoning | answer | gold answer |
    |---|---|---|---|
    | `messages`, `conversations` (ShareGPT), `prompt, completion` | reasoning key, block or inline tags | the rest | |
    | a question and an answer, perhaps a reasoning | its column, or inline tags | its column | |
    | the same, answers with `####` (GSM8K) | before it, without `<<48/2=24>>` | after it | after it |
    | `question, deepseek_attempt` … (s1K-1.1) | DeepSeek's, or Gemini's if it alone is right | as well | `solution` |
    | `problem, generations` … (OpenR1-Math) | of the first complete and verified generation | as well | `answer` |

    Question (a text, or messages), reasoning and answer are found by the usual names, so medical-o1, R1 distillations,
    OpenThoughts, s1K, SYNTHETIC-1, Llama-Nemotron, OpenMathReasoning and alpaca need no mapping. So are a column of
    the system message (`system`, `system_prompt`) and one of the gold answer (`solution`, `ground_truth`,
    `expected_answer` …, and `answer` if another column is the answer).

    Assistant turns keep everything but the form of their reasoning, so tool calls and `parts` stay; calls get
    OpenAI's form. GSM8K's calculator annotations are removed: they are calls to a tool that the model will not have.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows to convert. A stream stays a stream. All columns that are not read are kept; a column that is in the
            way of the row type (`prompt`, `completion`, a second `solution`) is kept as `original_prompt` and so on.
        mapping (`dict` or callable, *optional*):
            Which column holds what, for columns that are not in the table: `"question"`, `"reasoning"`, `"answer"`,
            `"solution"`, `"system"`, `"worked_answer"` (reasoning, then `#### gold answer`), or `"messages"`. Several
            columns are joined: texts by a line break, message lists end to end. Instead of a column name, a function
            of the row that returns the value; instead of the whole, a function of the row that returns such a `dict`
            of values. A `ValueError` of such a function is the cause why the row is dropped. `None` recognises the
            columns.
        source (`str`, *optional*):
            What the column `source` says. `None` takes the column `source` if there is one, else the schema's name.
        turns (`str`, *optional*, defaults to `"expand"`):
            What is learned of a conversation with several assistant turns: `"expand"` makes one row per turn, with all
            before as prompt, `"last"` takes the last turn only, and `"all"` makes one row whose completion begins with
            the first of them. What comes before the first question, or stood in the column `prompt`, is never learned.
        unreadable (`str`, *optional*, defaults to `"drop"`):
            What happens to a row that cannot be converted (empty question or answer, unclosed reasoning, think markers
            inside a text, a picture): `"drop"` leaves it out and logs causes and counts as a warning; `"mark"` keeps
            it with an empty prompt, for a report of your own: the column `cause_of_drop` is its cause, and `None`
            for good rows.
        num_proc (`int`, *optional*):
            Processes that convert a `Dataset`. `None` is this one.
        fmt ([`ThinkFormat`], *optional*):
            Markers around the reasoning inside texts; the rows have none. `None`: those of [`FORMATS`] with which a
            text begins (`[THINK]`, `<|begin_of_thought|>` …, no words), else `<think>`; an answer in the tags that
            go with them (`<answer>`) is taken out of these.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns `prompt` (messages), `completion` (one assistant
        message with `reasoning_content` and `content`; more with `turns="all"`), `chat_template_kwargs`
        (`enable_thinking` is whether the completion has reasoning, unless the row has one example and says it itself),
        `solution`, `source`, `id` and the kept ones. `solution` is `None` without a gold answer, and in all but the
        last of several rows made of one.

    Raises:
        `TypeError`: If `dataset` is no data set, for instance a `DatasetDict`.
        `ValueError`: If an argument is out of range, the columns are unknown, `mapping` names what does not exist, or
        no row can be converted.

    Example:

    ```python
    >>> from think_tools.data import to_think

    >>> rows = [{"question": "2+3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}]
    >>> to_think(rows)[0]["completion"]
    [{'role': 'assistant', 'reasoning_content': '2+3 = 5', 'content': '5'}]
    >>> rows = to_think([{"q": "2+3?", "a": ["6", "5"]}], mapping={"question": "q", "answer": lambda row: row["a"][1]})
    >>> rows[0]["completion"][0]["content"]
    '5'
    ```
    """
    for name, value, allowed in [("turns", turns, get_args(Turns)), ("unreadable", unreadable, ("drop", "mark"))]:
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    rows, columns = open_dataset(dataset)
    if mapping is None:
        schema, mapping = _recognise(rows, columns, fmt)
    else:
        schema, mapping = "mapping", _check_mapping(columns, mapping)
    if num_proc and isinstance(rows, IterableDataset):
        raise ValueError("`num_proc` is for a Dataset. A stream is converted by the workers of its DataLoader.")
    options: dict[str, Any] = {"num_proc": num_proc} if num_proc else {}
    converted = rows.map(
        _convert_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"mapping": mapping, "source": source, "schema": schema, "turns": turns, "fmt": fmt},
        remove_columns=columns,
        features=_row_features(rows.features, columns, mapping),
        **options,
    )
    if unreadable == "mark":
        return converted
    if isinstance(converted, IterableDataset):
        return drop_marked_stream(converted, "to_think")
    return drop_marked(converted, "to_think")


def _recognise(
    rows: Dataset | IterableDataset, columns: list[str], fmt: ThinkFormat | None
) -> tuple[str, Mapping[str, Columns]]:
    """Name and mapping of the first known set of columns that fits, else of columns with usual names."""
    overlooked = ""
    for name, known in SCHEMAS.items():
        if not _columns_of(known) | TELLING.get(name, set()) <= set(columns):
            continue
        found = _find_roles(rows, columns, {**known}, ("system", "solution"))
        unread = [each for each in columns if each.lower() in NAMES["reasoning"] and each not in _columns_of(found)]
        if not unread or _finds_reasoning(next(iter(rows), {}), found, unread, fmt):
            return name, found
        overlooked = f"look like {name}, which would leave the reasoning in {unread} out; `mapping={known}` does so"
    found = _find_roles(rows, columns, {}, tuple(NAMES))
    if {"question", "answer"} <= set(found):
        if "reasoning" not in found and "####" in str(next(iter(rows), {}).get(found["answer"])):
            return "gsm8k", {("worked_answer" if role == "answer" else role): name for role, name in found.items()}
        return "-".join(role for role in found if role not in ("system", "solution")), found
    sets = "; ".join(", ".join(sorted(_columns_of(known))) for known in SCHEMAS.values())
    names = "; ".join(f"{role}: {', '.join(NAMES[role])}" for role in ("question", "answer"))
    raise ValueError(
        f"`dataset` has the columns {columns}, which {overlooked or 'fit no known set'}. Known sets: {sets}; or a "
        f"question and an answer of usual names ({names}). For other columns say with `mapping` which holds what, for "
        'example {"question": "problem", "reasoning": "cot", "answer": "final"}.'
    )


def _find_roles(
    rows: Dataset | IterableDataset, columns: list[str], mapping: dict[str, Columns], roles: Sequence[str]
) -> dict[str, Columns]:
    """The mapping with a free column for each of the roles for which there is one of a usual name."""
    spelled = {column.lower(): column for column in columns}
    for role in roles:
        free = [spelled[name] for name in NAMES[role] if spelled.get(name, "") in {*columns} - _columns_of(mapping)]
        if role in ("system", "solution"):  # lists and dicts of such a name are something else
            free = [name for name in free if rows.features is None or isinstance(rows.features[name], Value)]
        if free and role not in mapping:
            mapping[role] = free[0]
    if mapping.get("question") == spelled.get("instruction", "") and "input" in spelled:
        mapping["question"] = (spelled["instruction"], spelled["input"])
    return mapping


def _finds_reasoning(first: dict, mapping: Mapped, unread: list[str], fmt: ThinkFormat | None) -> bool:
    """Whether the first row has its reasoning elsewhere than in the `unread` columns, or these only switch it."""
    if all(first.get(column) in ("on", "off") for column in unread):  # Nemotron's `reasoning`
        return True
    try:
        return any(turn.get("reasoning_content") for turn in _read_row(first, mapping, fmt)[0])
    except (TypeError, ValueError):
        return False


def _check_mapping(columns: list[str], mapping: Mapped) -> Mapped:
    if callable(mapping):
        return mapping
    _check_roles(mapping)
    read = _columns_of(mapping)
    if missing := sorted(read - set(columns)):
        raise ValueError(f"`mapping` names the columns {missing}, but `dataset` has {columns}.")
    return {"solution": "solution", **mapping} if "solution" in set(columns) - read else mapping


def _check_roles(mapping: Mapping[str, Any]) -> None:
    unknown = [role for role in mapping if role not in ROLES]
    flat = {"question", "reasoning", "answer", "worked_answer"} & set(mapping)
    complete = (
        not flat if "messages" in mapping else {"question", "answer"} <= flat or {"question", "worked_answer"} <= flat
    )
    if unknown:
        raise ValueError(f"`mapping` may name {list(ROLES)}, got {unknown}.")
    if not complete:
        raise ValueError(
            '`mapping` must name either "messages", or "question" and one of "answer" and "worked_answer", '
            f"got {list(mapping)}."
        )


def _columns_of(mapping: Mapped) -> set[str]:
    return set() if callable(mapping) else {name for columns in mapping.values() for name in _names(columns)}


def _names(columns: Columns) -> Sequence[str]:
    return () if callable(columns) else (columns,) if isinstance(columns, str) else columns


def _row_features(features: Features | None, columns: list[str], mapping: Mapped) -> Features | None:
    """Types of the converted rows. Guessing them would fail when a thousand rows without reasoning come first."""
    if features is None:
        return None
    return Features(
        {
            **{kept: features[name] for name, kept in _kept_columns(columns, mapping).items()},
            # JSON and no struct: messages and template arguments of different sources have different keys, and the
            # results should still concatenate.
            **dict.fromkeys(("prompt", "completion"), List(Json())),
            "chat_template_kwargs": Json(),
            **dict.fromkeys(("solution", "source", "id", CAUSE), Value("string")),
        }
    )


def _kept_columns(columns: Sequence[str], mapping: Mapped) -> dict[str, str]:
    """Columns that are not read, and the names under which they stay."""
    in_the_way, read = {"prompt", "completion", "solution"}, _columns_of(mapping)
    return {name: f"original_{name}" if name in in_the_way else name for name in columns if name not in read}


def _convert_batch(batch: Mapping[str, list], indices: list[int], **options: Any) -> dict[str, list]:
    rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    converted = [new for row, index in zip(rows, indices, strict=True) for new in _convert_row(row, index, **options)]
    return {name: [row[name] for row in converted] for name in converted[0]}


def _convert_row(
    row: dict, index: int, *, mapping: Mapped, source: str | None, schema: str, turns: Turns, fmt: ThinkFormat | None
) -> Iterator[dict]:
    cause = solution = None
    try:
        messages, start, solution = _read_row(row, mapping, fmt)
        examples = split_turns(messages, start, turns)
    except (TypeError, ValueError) as error:
        examples, cause = [([], [NO_REASONING])], str(error)
    source = str(source or row.get("source") or schema)
    row_id = f"{source}-{index}" if row.get("id") is None else str(row["id"])
    own = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    for number, (prompt, completion) in enumerate(examples, 1):
        written = [turn for turn in completion if turn["role"] == "assistant"]
        empty = not all(turn["content"].strip() or turn.get("tool_calls") for turn in written)
        thinks = {"enable_thinking": any(turn.get("reasoning_content") for turn in written)}
        yield {
            **{kept: row[name] for name, kept in _kept_columns(list(row), mapping).items()},
            "prompt": prompt,
            "completion": [NO_REASONING | turn if turn["role"] == "assistant" else turn for turn in completion],
            # What a conversation says of itself need not be true of each of its turns.
            "chat_template_kwargs": {**thinks, **own} if len(examples) == 1 else {**own, **thinks},
            "solution": solution if number == len(examples) else None,
            "source": source,
            "id": row_id if len(examples) == 1 else f"{row_id}-{number}",
            CAUSE: cause or ("empty answer" if empty else None),
        }


def _read_row(row: dict, mapping: Mapped, fmt: ThinkFormat | None) -> tuple[list[dict], int, str | None]:
    """Messages of a row, how many of them are a given prompt, and its gold answer; a `ValueError` tells a cause."""
    roles = _read_roles(row, mapping)
    texts = {role: _text(role, values) for role, values in roles.items() if role not in ("messages", "question")}
    solution = texts.get("solution")
    if "messages" in roles:
        *given, said = roles["messages"]
    else:
        reasoning, said = texts.get("reasoning", ""), texts.get("answer", "")
        if "worked_answer" in texts:
            reasoning, said = _split_worked_answer(texts["worked_answer"])
            solution = solution or said
        said = [{"role": "assistant", "content": said, "reasoning_content": _unwrap(reasoning, fmt)}]
        [question] = given = roles["question"][:1]
        if not isinstance(question, list):  # Nemotron's is a conversation
            given = [_text("question", roles["question"])]
    prompt = [turn for value in given for turn in read_turns(value, fmt=fmt)]
    answer = read_turns(said, "assistant" if given else "user", fmt)
    if texts.get("system") and not any(turn["role"] == "system" for turn in [*prompt, *answer]):
        prompt = [{"role": "system", "content": texts["system"]}, *prompt]
    return [*prompt, *answer], len(prompt), solution or None


def _read_roles(row: dict, mapping: Mapped) -> dict[str, list]:
    """What a row has for each role: the values of its columns, or what a function returns."""
    if callable(mapping):
        _check_roles(roles := mapping(row))
        return {role: [value] for role, value in roles.items()}
    return {
        role: [columns(row)] if callable(columns) else [row[name] for name in _names(columns)]
        for role, columns in mapping.items()
    }


def _text(role: str, values: list) -> str:
    texts = []
    for value in values:
        value = value[0] if isinstance(value, list) and len(value) == 1 else value  # s1K's list of one trace
        if isinstance(value, list | dict):
            raise ValueError(f"the {role} is no text, but a {type(value).__name__}")
        texts.append("" if value is None else str(value).strip())
    return "\n".join(filter(None, texts))


def _split_worked_answer(text: str) -> tuple[str, str]:
    working, marker, answer = text.rpartition("####")
    if not marker:
        raise ValueError("no `#### answer` at the end of the worked answer")
    return re.sub(r"<<[^<>]*>>", "", working).strip(), answer.strip()


def _unwrap(reasoning: str, fmt: ThinkFormat | None) -> str:
    """Reasoning from a column of its own, without the markers that some data sets leave around it."""
    fmt = fmt or guess_format(reasoning) or THINK
    return reasoning.removeprefix(fmt.open).removesuffix(fmt.close).strip()
