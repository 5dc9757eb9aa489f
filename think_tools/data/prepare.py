"""Turn rows into the token ids and labels that a stock `SFTTrainer` trains on, and refuse what would train wrong."""

import json
import logging
import re
from typing import Any, Literal, cast

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat, detect_format
from ..parsing import read_completion
from ..templates import check_labels, end_of_turn
from .rows import CAUSE, drop_marked, drop_marked_stream, open_dataset

logger = logging.getLogger(__name__)

# Variables with which chat templates switch thinking on and off; DeepSeek, Granite and Kimi read the second.
THINKING_SWITCHES = ("enable_thinking", "thinking")


def prepare_sft(
    dataset: Dataset | IterableDataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    too_long: Literal["drop", "raise"] = "drop",
    fmt: ThinkFormat | None = None,
) -> Dataset | IterableDataset:
    r"""
    Token ids and labels for a stock [`~trl.SFTTrainer`]: the loss is on what the model must write, and nothing is cut.

    Trained are reasoning, answer and end of turn, that is everything after the generation prompt up to the last token
    that is no white space. An empty think block is never trained. Every row is checked; a row whose template loses the
    reasoning or the end of turn is an error and no warning, since the run that follows would look healthy.

    Pass `SFTConfig(max_length=None)` to the trainer: its default of 1024 tokens cuts prepared rows too.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows as [`to_think`] makes them: `prompt`, `completion` and, optionally, `chat_template_kwargs` (passed to
            the chat template; `enable_thinking` is whether the row has reasoning, unless it is given) and `tools` (a
            list, or its JSON). Of a stream, rows are checked when they are read.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with a chat template, for instance set by `set_chat_template(tokenizer, "chatml_think")`.
        max_length (`int`, *optional*):
            Greatest length of a row in tokens, prompt included. `None` sets no limit.
        too_long (`str`, *optional*, defaults to `"drop"`):
            What happens to a longer row: `"drop"` leaves it out and logs how many there were, the longest, and the
            `max_length` that keeps all; `"raise"` is an error.
        fmt ([`ThinkFormat`], *optional*):
            The markers that the chat template writes. `None` finds them by `detect_format`, and is `THINK` if it shows
            none.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns `input_ids` and `labels`, lists of equal length.
        A label is the token's id, or `-100` where no loss is computed.

    Raises:
        `TypeError`: If `dataset` is no data set.
        `ValueError`: If an argument or a column is missing or out of range; if a row (its number and the causes are
        named) would train something else than its reasoning, answer and end of turn; if all rows are too long.

    Example:

    ```python
    >>> from think_tools.data import prepare_sft, to_think
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> rows = to_think([{"question": "2+3?", "answer": "2+3 = 5\n#### 5"}])
    >>> row = prepare_sft(rows, tokenizer, max_length=512)[0]
    >>> tokenizer.decode([label for label in row["labels"] if label != -100])
    '<think>\n2+3 = 5\n</think>\n\n5<|im_end|>'
    ```
    """
    _check_arguments(tokenizer, max_length, too_long)
    rows, columns = open_dataset(dataset)
    if not {"prompt", "completion"} <= set(columns):
        raise ValueError(
            f"`dataset` must have the columns 'prompt' and 'completion', got {columns}. "
            "Convert it first: `to_think(dataset)`."
        )
    ids = List(Value("int32"))
    prepared = rows.map(
        _prepare_row,
        with_indices=True,
        fn_kwargs={
            "tokenizer": tokenizer,
            "max_length": max_length,
            "too_long": too_long,
            "fmt": fmt or detect_format(tokenizer) or THINK,
            "end_id": end_of_turn(tokenizer),
        },
        remove_columns=columns,
        features=Features({"input_ids": ids, "labels": ids, "num_tokens": Value("int32"), CAUSE: Value("string")}),
    )
    if isinstance(prepared, IterableDataset):
        return drop_marked_stream(prepared, "prepare_sft").remove_columns("num_tokens")
    longest = max(prepared["num_tokens"], default=0)
    if max_length is not None and longest > max_length:
        logger.warning("The longest row has %d tokens: `max_length=%d` would keep every row.", longest, longest)
    return drop_marked(prepared, "prepare_sft").remove_columns("num_tokens")


def _check_arguments(tokenizer: PreTrainedTokenizerBase, max_length: int | None, too_long: str) -> None:
    if too_long not in ("drop", "raise"):
        raise ValueError(f"`too_long` must be 'drop' or 'raise', got {too_long!r}.")
    if max_length is not None and max_length < 1:
        raise ValueError(f"`max_length` must be at least 1 token, or None for no limit, got {max_length}.")
    if not tokenizer.chat_template:
        raise ValueError(
            "`tokenizer` has no chat template. Set one first, for example "
            '`set_chat_template(tokenizer, "chatml_think")` from think_tools.templates.'
        )


def _prepare_row(
    row: dict,
    index: int,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    too_long: str,
    fmt: ThinkFormat,
    end_id: int | None,
) -> dict:
    if isinstance(row["prompt"], str) or isinstance(row["completion"], str):
        raise ValueError(f"Row {index} of `dataset` holds text, not messages. Convert it first: `to_think(dataset)`.")
    message = row["completion"][-1]
    kwargs = _template_kwargs(row, bool(read_completion(message, fmt=fmt).reasoning), index)
    prompt = _render(tokenizer, row["prompt"], add_generation_prompt=True, **kwargs)
    text = _render(tokenizer, [*row["prompt"], *row["completion"]], **kwargs)
    input_ids, prompt_ids = _encode(tokenizer, text), _encode(tokenizer, prompt)
    # What a template puts before an answer without reasoning. It is never trained: a model that learns to write it
    # stops thinking.
    block = re.compile(rf"\s*{re.escape(fmt.open)}\s*{re.escape(fmt.close)}\s*").match(text, len(prompt))
    start = len(_encode(tokenizer, text[: block.end()])) if block else len(prompt_ids)
    labels = _label(tokenizer, input_ids, start)
    causes = check_labels(input_ids, labels, prompt_ids, message, tokenizer, fmt, end_id)
    if causes:
        raise ValueError(_refusal(index, causes))
    cause = None
    if max_length is not None and len(input_ids) > max_length:
        cause = f"longer than `max_length={max_length}` tokens"
        if too_long == "raise":
            raise ValueError(
                f"Row {index} of `dataset` has {len(input_ids)} tokens, more than `max_length={max_length}`. Raise "
                "`max_length`, shorten the row, or leave such rows out with `too_long='drop'`."
            )
    return {"input_ids": input_ids, "labels": labels, "num_tokens": len(input_ids), CAUSE: cause}


def _template_kwargs(row: dict, has_reasoning: bool, index: int) -> dict[str, Any]:
    """What the row passes to the chat template; if it does not say so itself, thinking is on with reasoning."""
    given = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    if has_reasoning and given.get("enable_thinking") is False:
        raise ValueError(
            _refusal(index, ["it has reasoning, but its `chat_template_kwargs` say `enable_thinking=False`"])
        )
    tools = row.get("tools") or None
    thinking = given.get("enable_thinking", has_reasoning)
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **dict.fromkeys(THINKING_SWITCHES, thinking),
        **given,
    }


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **kwargs: Any) -> str:
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written them


def _label(tokenizer: PreTrainedTokenizerBase, input_ids: list[int], start: int) -> list[int]:
    end = len(input_ids)
    # The line break that ChatML writes after the end of turn belongs to the next turn.
    while end > start and not str(tokenizer.decode(input_ids[end - 1 : end])).strip():
        end -= 1
    return [-100] * start + input_ids[start:end] + [-100] * (len(input_ids) - end)


def _refusal(index: int, causes: list[str]) -> str:
    return (
        f"Row {index} of `dataset` cannot be trained as meant: {'; '.join(causes)}. If the chat template is to blame, "
        'try `set_chat_template(tokenizer, "chatml_think")` from think_tools.templates.'
    )
