"""Turn rows into the token ids and labels that a stock `SFTTrainer` trains on, and refuse what would train wrong."""

import logging
import random
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..formats import ThinkFormat
from .rows import CAUSE, drop_marked, drop_marked_stream, open_dataset
from .turns import EmptyThink, Loss, Settings, TooLong, Turns, label_row, read_settings

logger = logging.getLogger(__name__)

IDS, COUNT = List(Value("int32")), Value("int32")
MEASURED = ["num_tokens", "thinks"]
COLUMNS = {"input_ids": IDS, "labels": IDS, "num_tokens": COUNT, "thinks": Value("bool"), CAUSE: Value("string")}


def prepare_sft(
    dataset: Dataset | IterableDataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    too_long: TooLong = "drop",
    loss: Loss = "completion",
    empty_think: EmptyThink = "mask",
    turns: Turns = "expand",
    mix: float | None = None,
    seed: int = 0,
    num_proc: int | None = None,
    fmt: ThinkFormat | None = None,
) -> Dataset | IterableDataset:
    r"""
    Token ids and labels for a stock [`~trl.SFTTrainer`]: the loss is on what the model must write, nothing is lost.

    Trained are reasoning, answer and end of turn, that is everything after the generation prompt up to the last token
    that is no white space. Rows without reasoning train the answer behind an empty think block that is not trained
    (`enable_thinking=False` in the prompt), so that the model keeps its thinking. Every row is checked; a row whose
    template loses the reasoning or the end of turn is an error and no warning, since the run that follows would look
    healthy. Two kinds of templates are mended: where a template drops the reasoning of the last turn, but its prompt
    opens it (DeepSeek-R1 and its distilled models), the row is written as the model must go on from that prompt; where
    the next turn's header is all that ends a turn (GLM-4.5), the row ends in that header.

    Pass `SFTConfig(max_length=None)` to the trainer, or with `packing=True` the length of a pack: its default of 1024
    tokens cuts prepared rows too.

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
            `max_length` that keeps all; `"raise"` is an error; `"close_think"` cuts the end of the reasoning until the
            row fits, trains the rest of it and the answer, but not the closing marker, which the model should not
            learn to write there (rows that are too long without reasoning are left out).
        loss (`str`, *optional*, defaults to `"completion"`):
            `"completion"` trains all that the model writes; `"answer"` only what follows the closing marker;
            `"think"` only the reasoning and its markers, and leaves rows without reasoning out; `"parts"` all but the
            `parts` of the message, a list of `{"text", "train"}` whose texts add up to the reasoning, that say
            `train=False`: a wrong step is read, its correction is learned.
        empty_think (`str`, *optional*, defaults to `"mask"`):
            What becomes of turns without reasoning: `"mask"` trains the answer only; `"train"` prompts them as if they
            should think, and trains the empty block that the template writes there, if any: the model learns to stop
            thinking by itself; `"drop"` leaves them out.
        turns (`str`, *optional*, defaults to `"expand"`):
            What becomes of a completion with several assistant turns: `"expand"` makes a row of each, after the
            history that the template shows at inference; `"last"` trains the last; `"all"` trains all in one row, in
            which earlier turns keep their reasoning, which the model will not see at inference. The `prompt` is never
            trained.
        mix (`float`, *optional*):
            Share of rows with reasoning in the result, between 0 and 1. Rows of the kind there is too much of are left
            out at random, and logged. `None` keeps all. 0.75 is what users of hybrid models report to work.
        seed (`int`, *optional*, defaults to 0):
            Seed of that choice.
        num_proc (`int`, *optional*):
            Processes that prepare rows; a stream takes no part in it. `None` is this one.
        fmt ([`ThinkFormat`], *optional*):
            The markers that the chat template writes. `None` finds them by `detect_format`, and is `THINK` if it shows
            none.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns `input_ids` and `labels`, lists of equal length.
        A label is the token's id, or `-100` where no loss is computed.

    Raises:
        `TypeError`: If `dataset` is no data set.
        `ValueError`: If an argument or a column is missing or out of range; if a row (its number and the causes are
        named) would train something else than it should; if no row is left.

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
    settings = read_settings(
        tokenizer, max_length=max_length, too_long=too_long, loss=loss, empty_think=empty_think, turns=turns, fmt=fmt
    )
    rows, columns = open_dataset(dataset)
    if mix is not None and (not 0 < mix < 1 or isinstance(rows, IterableDataset)):
        raise ValueError(
            f"`mix` must be between 0 and 1, and `dataset` no stream, got {mix} and {type(rows).__name__}."
        )
    processes: dict[str, Any] = {"num_proc": num_proc} if isinstance(rows, Dataset) else {}
    prepared = rows.map(
        _prepare_batch,
        batched=True,
        batch_size=100,  # rows of 32,000 tokens are large
        with_indices=True,
        fn_kwargs={"settings": settings},
        remove_columns=columns,
        features=Features(COLUMNS),
        **processes,
    )
    if isinstance(prepared, IterableDataset):
        if too_long == "close_think":
            logger.warning("Rows of a stream whose reasoning is cut (`too_long='close_think'`) are not counted.")
        return drop_marked_stream(prepared, "prepare_sft").remove_columns(MEASURED)
    _report_lengths(prepared, max_length)
    prepared = drop_marked(prepared, "prepare_sft")
    prepared = prepared if mix is None else _mix(prepared, mix, seed)
    return prepared.remove_columns(MEASURED)


def _prepare_batch(batch: dict[str, list], indices: list[int], *, settings: Settings) -> dict[str, list]:
    examples = []
    for index, *values in zip(indices, *batch.values(), strict=True):
        try:
            examples += label_row(dict(zip(batch, values, strict=True)), settings)
        except ValueError as error:
            raise ValueError(f"Row {index} of `dataset` cannot be trained as meant: {error}") from error
    return {name: [example[name] for example in examples] for name in COLUMNS}


def _report_lengths(prepared: Dataset, max_length: int | None) -> None:
    lengths = zip(prepared[CAUSE], prepared["num_tokens"], strict=True)
    over = [cause for cause, length in lengths if max_length is not None and length > max_length]
    if over:
        longest = max(prepared["num_tokens"])
        logger.warning("The longest row has %d tokens: `max_length=%d` would keep every row.", longest, longest)
    if None in over:
        logger.warning("`prepare_sft` cut the end of the reasoning of %d of %d rows.", over.count(None), len(prepared))


def _mix(prepared: Dataset, share: float, seed: int) -> Dataset:
    """The most rows of which `share` have reasoning, in their order."""
    thinking, plain = ([i for i, thinks in enumerate(prepared["thinks"]) if thinks is kind] for kind in (True, False))
    if not thinking or not plain:
        raise ValueError(
            f"`mix={share}` needs rows with and without reasoning, got {len(thinking)} and {len(plain)}: add some of "
            "the other kind, or leave `mix` away."
        )
    kept = min(len(thinking), round(len(plain) * share / (1 - share)))
    kept_plain = min(len(plain), round(len(thinking) * (1 - share) / share))
    if (kept, kept_plain) != (len(thinking), len(plain)):
        message = "`mix=%s` kept %d of %d rows with reasoning and %d of %d without (`seed=%d`)."
        logger.warning(message, share, kept, len(thinking), kept_plain, len(plain), seed)
    rng = random.Random(seed)
    return prepared.select(sorted([*rng.sample(thinking, kept), *rng.sample(plain, kept_plain)]))
