"""Bring reasoning data of other people's columns into one row type, TRL's conversational prompt-completion."""

import re
from collections.abc import Mapping, Sequence

from datasets import Dataset, Features, IterableDataset, Json, List, Value

from ..formats import THINK, ThinkFormat
from ..parsing import Trace
from ..rewards.completions import guess_format
from .messages import read_turn, read_turns, split_conversation
from .rows import CAUSE, drop_marked, drop_marked_stream, open_dataset

Columns = str | Sequence[str]

# What `mapping` may name.
ROLES = ("question", "reasoning", "answer", "worked_answer", "solution", "system", "messages")

# Known sets of columns, as mappings a user could have written. The first one whose columns are all there is taken:
# `input` is the question of one family and the context of another, so one name alone decides nothing.
SCHEMAS: dict[str, dict[str, Columns]] = {
    "prompt-completion": {"messages": ("prompt", "completion")},
    "messages": {"messages": "messages"},
    "medical-o1": {"question": "Question", "reasoning": "Complex_CoT", "answer": "Response"},
    "r1-distill-instruction": {
        "question": ("instruction", "input"),
        "reasoning": "reasoning_content",
        "answer": "content",
    },
    "r1-distill": {"question": "input", "reasoning": "reasoning_content", "answer": "content"},
    "alpaca": {"question": ("instruction", "input"), "answer": "output"},
    "gsm8k": {"question": "question", "worked_answer": "answer"},
}

# A column of such a name that no part of the schema reads would be reasoning lost in silence.
REASONING_COLUMNS = {
    *("reasoning_content", "reasoning", "thinking", "think", "thought", "thoughts", "cot", "complex_cot"),
    *("chain_of_thought", "rationale", "thinking_trajectories", "deepseek_reasoning", "reasoning_trace"),
}


def to_think(
    dataset: Dataset | IterableDataset | list[dict],
    *,
    mapping: Mapping[str, Columns] | None = None,
    source: str | None = None,
    fmt: ThinkFormat | None = None,
) -> Dataset | IterableDataset:
    r"""
    Rows of the package's row type, made from a data set whose columns are known or mapped.

    | columns | reasoning | answer | gold answer |
    |---|---|---|---|
    | `Question, Complex_CoT, Response` | `Complex_CoT` | `Response` | |
    | `input, reasoning_content, content` (and `instruction`) | `reasoning_content` | `content` | |
    | `messages`, or `prompt, completion` | reasoning key, reasoning block or inline tags | last assistant turn | |
    | `question, answer` (GSM8K) | before `####`, without `<<48/2=24>>` | after `####` | after `####` |
    | `instruction, input, output` (alpaca) | inline tags, if any | `output` | |

    The last assistant turn of a conversation is the completion, everything before it the prompt; the prompt's
    assistant turns keep their reasoning under `reasoning_content` (most chat templates leave it out of the history).
    Of the last turn only reasoning and content are taken. GSM8K's calculator annotations are removed, because they
    are calls to a tool that the model will not have.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows to convert. A stream stays a stream. All columns that are not read are kept; a column that is in the
            way of the row type (`prompt`, `completion`, a second `solution`) is kept as `original_prompt` and so on.
        mapping (`dict`, *optional*):
            Which column holds what, for columns that are not in the table: `"question"`, `"reasoning"`, `"answer"`,
            `"solution"`, `"system"`, `"worked_answer"` (reasoning, then `#### gold answer`), or `"messages"`. Several
            columns are joined: texts by a line break, message lists end to end. `None` recognises the columns.
        source (`str`, *optional*):
            What the column `source` says. `None` takes the column `source` if there is one, else the schema's name.
        fmt ([`ThinkFormat`], *optional*):
            Markers around the reasoning inside texts; the rows have none. `None`: those of [`FORMATS`] with which a
            text begins (`[THINK]`, `<|begin_of_thought|>` …, no words), else `<think>`.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns `prompt` (messages), `completion` (one assistant
        message with `reasoning_content` and `content`), `chat_template_kwargs` (`enable_thinking` is whether the row
        has reasoning, unless the row says it itself), `solution`, `source`, `id` and the kept ones. `solution` is
        `None` without a gold answer. A row that cannot be converted (empty question or answer, unclosed reasoning,
        think markers inside a text, tool calls) is dropped; causes and counts are logged as a warning.

    Raises:
        `TypeError`: If `dataset` is no data set, for instance a `DatasetDict`.
        `ValueError`: If the columns are unknown, `mapping` names what does not exist, or no row can be converted.

    Example:

    ```python
    >>> from think_tools.data import to_think

    >>> rows = [{"question": "2+3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}]
    >>> to_think(rows)[0]["completion"]
    [{'role': 'assistant', 'reasoning_content': '2+3 = 5', 'content': '5'}]
    ```
    """
    rows, columns = open_dataset(dataset)
    schema, mapping = _choose_schema(columns, mapping)
    features = _row_features(rows.features, columns, mapping)
    converted = rows.map(
        _convert_row,
        with_indices=True,
        fn_kwargs={"mapping": mapping, "source": source, "schema": schema, "fmt": fmt},
        remove_columns=columns,
        features=features,
    )
    if isinstance(converted, IterableDataset):
        return drop_marked_stream(converted, "to_think")
    return drop_marked(converted, "to_think")


def _choose_schema(columns: list[str], mapping: Mapping[str, Columns] | None) -> tuple[str, Mapping[str, Columns]]:
    if mapping is not None:
        _check_mapping(columns, mapping)
        return "mapping", mapping
    for name, known in SCHEMAS.items():
        read = _columns_of(known)
        if read <= set(columns):
            unread = [column for column in columns if column.lower() in REASONING_COLUMNS and column not in read]
            if unread:
                raise ValueError(
                    f"`dataset` has the columns {columns}. They look like {name}, which would leave the reasoning in "
                    f"{unread} out. Say with `mapping` which column holds what, for example "
                    f'{{"question": …, "reasoning": {unread[0]!r}, "answer": …}}; `mapping={known}` leaves it out.'
                )
            return name, known
    sets = "; ".join(", ".join(sorted(_columns_of(known))) for known in SCHEMAS.values())
    raise ValueError(
        f"`dataset` has the columns {columns}, which fit no known set. Known sets: {sets}. For other columns say with "
        '`mapping` which holds what, for example {"question": "problem", "reasoning": "cot", "answer": "final"}.'
    )


def _check_mapping(columns: list[str], mapping: Mapping[str, Columns]) -> None:
    unknown = [role for role in mapping if role not in ROLES]
    missing = sorted(_columns_of(mapping) - set(columns))
    flat = {"question", "reasoning", "answer", "worked_answer"} & set(mapping)
    complete = (
        not flat if "messages" in mapping else {"question", "answer"} <= flat or {"question", "worked_answer"} <= flat
    )
    if unknown:
        raise ValueError(f"`mapping` may name {list(ROLES)}, got {unknown}.")
    if missing:
        raise ValueError(f"`mapping` names the columns {missing}, but `dataset` has {columns}.")
    if not complete:
        raise ValueError(
            '`mapping` must name either "messages", or "question" and one of "answer" and "worked_answer", '
            f"got {list(mapping)}."
        )


def _columns_of(mapping: Mapping[str, Columns]) -> set[str]:
    return {column for names in mapping.values() for column in _names(names)}


def _names(columns: Columns) -> Sequence[str]:
    return (columns,) if isinstance(columns, str) else columns


def _row_features(features: Features | None, columns: list[str], mapping: Mapping[str, Columns]) -> Features | None:
    """Types of the converted rows. Guessing them would fail when a thousand rows without reasoning come first."""
    if features is None:
        return None
    text = Value("string")
    return Features(
        {
            **{kept: features[name] for name, kept in _kept_columns(columns, mapping).items()},
            # JSON and no struct: messages and template arguments of different sources have different keys, and the
            # results should still concatenate.
            "prompt": List(Json()),
            "completion": List({"role": text, "reasoning_content": text, "content": text}),
            "chat_template_kwargs": Json(),
            "solution": text,
            "source": text,
            "id": text,
            CAUSE: text,
        }
    )


def _kept_columns(columns: Sequence[str], mapping: Mapping[str, Columns]) -> dict[str, str]:
    """Columns that are not read, and the names under which they stay."""
    read = _columns_of(mapping)
    in_the_way = {"prompt", "completion"} | ({"solution"} if {"solution", "worked_answer"} & set(mapping) else set())
    return {name: f"original_{name}" if name in in_the_way else name for name in columns if name not in read}


def _convert_row(
    row: dict, index: int, *, mapping: Mapping[str, Columns], source: str | None, schema: str, fmt: ThinkFormat | None
) -> dict:
    cause = None
    try:
        prompt, trace, solution = _read_row(row, mapping, fmt)
    except (TypeError, ValueError) as error:
        prompt, trace, solution, cause = [], Trace(None, "", "no_think"), None, str(error)
    kept = _kept_columns(list(row), mapping)
    if kept.get("solution") == "solution":
        solution = row["solution"]
    source = source or row.get("source") or schema
    row_id = row.get("id")
    own_kwargs = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    message = {"role": "assistant", "reasoning_content": trace.reasoning or None, "content": trace.answer}
    return {
        **{new: row[name] for name, new in kept.items()},
        "prompt": prompt,
        "completion": [message],
        "chat_template_kwargs": {"enable_thinking": bool(trace.reasoning), **own_kwargs},
        "solution": None if solution is None else str(solution),
        "source": str(source),
        "id": f"{source}-{index}" if row_id is None else str(row_id),
        CAUSE: cause,
    }


def _read_row(
    row: dict, mapping: Mapping[str, Columns], fmt: ThinkFormat | None
) -> tuple[list[dict], Trace, str | None]:
    """Prompt, last assistant turn and gold answer of a row; a `ValueError` tells why there are none."""
    texts = {role: _join(row, columns) for role, columns in mapping.items() if role != "messages"}
    solution = texts.get("solution") or None
    if "messages" in mapping:
        messages = [turn for column in _names(mapping["messages"]) for turn in read_turns(row[column], column)]
        prompt, message = split_conversation(messages, fmt)
    else:
        prompt = [{"role": "user", "content": texts["question"]}]
        reasoning, answer = texts.get("reasoning"), texts.get("answer", "")
        if "worked_answer" in texts:
            reasoning, answer = _split_worked_answer(texts["worked_answer"])
            solution = solution or answer
        message = {"role": "assistant", "content": answer, "reasoning_content": _unwrap(reasoning, fmt)}
    if texts.get("system"):
        prompt = [{"role": "system", "content": texts["system"]}, *prompt]
    if not any(str(turn["content"]).strip() for turn in prompt if turn["role"] != "system"):
        raise ValueError("empty question")
    trace = read_turn(message, fmt)
    if not trace.answer:
        raise ValueError("empty answer")
    return prompt, trace, solution


def _join(row: dict, columns: Columns) -> str:
    values = (row[column] for column in _names(columns))
    texts = [str(value).strip() for value in values if value is not None]
    return "\n".join(text for text in texts if text)


def _split_worked_answer(text: str) -> tuple[str, str]:
    working, marker, answer = text.rpartition("####")
    if not marker:
        raise ValueError("no `#### answer` at the end of the worked answer")
    return re.sub(r"<<[^<>]*>>", "", working).strip(), answer.strip()


def _unwrap(reasoning: str | None, fmt: ThinkFormat | None) -> str | None:
    """Reasoning from a column of its own, without the markers that some data sets leave around it."""
    fmt = fmt or guess_format(reasoning or "") or THINK
    return reasoning and reasoning.removeprefix(fmt.open).removesuffix(fmt.close).strip()
