"""Assistant turns as token ids and labels: how a row is rendered, what of it is trained, and what is refused."""

import json
import logging
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal, NamedTuple, cast, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat
from ..parsing import Trace, read_completion
from ..templates import check_labels, check_template, end_of_turn, generation_prompt
from ..templates.generation import ANSWER, QUESTION, render_chat
from .rows import CAUSE

logger = logging.getLogger(__name__)

TooLong = Literal["drop", "raise", "close_think"]
Loss = Literal["completion", "answer", "think", "parts"]
EmptyThink = Literal["mask", "train", "drop"]
Turns = Literal["expand", "last", "all"]
Span = tuple[int, int]  # characters

# Variables with which chat templates switch thinking on and off; DeepSeek, Granite and Kimi read the second.
THINKING_SWITCHES = ("enable_thinking", "thinking")
# Variables with which they keep the reasoning of earlier turns: ours and Qwen's, GLM's, Nemotron's.
KEEP_HISTORY = {"preserve_thinking": True, "clear_thinking": False, "truncate_history_thinking": False}


@dataclass(frozen=True)
class Settings:
    """The arguments of [`prepare_sft`] that concern single rows, and what [`read_settings`] measures once for all."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    too_long: TooLong = "drop"
    loss: Loss = "completion"
    empty_think: EmptyThink = "mask"
    turns: Turns = "expand"
    fmt: ThinkFormat | None = None
    markers: ThinkFormat = THINK
    end_id: int | None = None  # with which the model stops
    adds_end: bool = False  # the template does not write it: it is the header of the next turn, as in GLM-4.5
    drops_reasoning: bool = False  # the template does not even write the reasoning of the last turn
    remedy: str = ""  # what cures the template, if something is wrong with it


def read_settings(tokenizer: PreTrainedTokenizerBase, **options: Any) -> Settings:
    """
    Check the arguments of [`prepare_sft`] that concern single rows, and measure the chat template.

    Raises:
        `ValueError`: If one is out of range, or if the tokenizer has no chat template.
    """
    settings = Settings(tokenizer, **options)
    for name, kind in {"too_long": TooLong, "loss": Loss, "empty_think": EmptyThink, "turns": Turns}.items():
        if (value := vars(settings)[name]) not in get_args(kind):
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}.")
    if settings.max_length is not None and settings.max_length < 1:
        raise ValueError(f"`max_length` must be at least 1 token, or None for no limit, got {settings.max_length}.")
    if settings.turns == "all" and settings.too_long == "close_think":
        raise ValueError("`too_long='close_think'` shortens one turn: take it with `turns='expand'` or `'last'`.")
    if not tokenizer.chat_template:
        raise ValueError(
            "`tokenizer` has no chat template. Set one first, for example "
            '`set_chat_template(tokenizer, "chatml_think")` from think_tools.templates.'
        )
    report, end_id = check_template(tokenizer), end_of_turn(tokenizer)
    header = _next_header(tokenizer, [QUESTION, ANSWER], QUESTION) if end_id is None else None
    if header not in (None, tokenizer.eos_token_id):
        logger.warning(
            "The template ends no turn, so rows end in the next header, %s. Generation must stop there, too.",
            tokenizer.convert_ids_to_tokens(header),
        )
    return replace(
        settings,
        markers=settings.fmt or report.format or THINK,
        end_id=header if end_id is None else end_id,
        adds_end=header is not None,
        drops_reasoning="reasoning_content" not in report.last_turn,
        remedy=next((f" What helps: {each.remedy}." for each in report.findings if each.severity == "error"), ""),
    )


def _next_header(tokenizer: PreTrainedTokenizerBase, chat: list[dict], follow: dict, **kwargs: Any) -> int | None:
    """
    The token that begins the turn `follow` and no answer. Where nothing else ends an answer, a model stops by writing
    it: GLM-4.5 stops at `<|user|>` and, after a call, at `<|observation|>`.
    """
    text, longer = (render_chat(tokenizer, each, **kwargs) for each in (chat, [*chat, follow]))
    header, own = (_encode(tokenizer, each)[:1] for each in (longer[len(text) :], generation_prompt(tokenizer)))
    found = longer.startswith(text) and header != own and header and header[0] in tokenizer.added_tokens_decoder
    return header[0] if found else None


def label_row(row: dict, settings: Settings) -> list[dict]:
    """
    The examples that a row gives, each a dict: `input_ids`, `labels`, `num_tokens` (before anything was cut),
    `thinks`, and `CAUSE` (why it cannot stay, or None).

    Raises:
        `ValueError`: If the row would train something else than it should; the text is the cause.
    """
    if row.get(CAUSE):  # marked by `to_think(unreadable="mark")`
        raise ValueError(row[CAUSE])
    if not all(isinstance(row.get(name), list) for name in ("prompt", "completion")):
        raise ValueError("it has no messages in `prompt` and `completion`. Convert it first: `to_think(dataset)`.")
    chat = [*row["prompt"], *row["completion"]]
    turns = [at for at in range(len(row["prompt"]), len(chat)) if chat[at]["role"] == "assistant"]
    if not turns:
        raise ValueError("its completion holds no message of the assistant.")
    turns = turns[-1:] if settings.turns == "last" else turns
    together = settings.turns == "all" and len(turns) > 1
    examples = []
    try:
        traces = {at: read_completion(chat[at], fmt=settings.markers) for at in turns}
        if together and len({bool(trace.reasoning) for trace in traces.values()}) > 1:
            raise ValueError("some of its turns think and others do not: `turns='all'` has one prompt for both.")
        for at, trace in traces.items():
            kwargs = _template_kwargs(row, bool(trace.reasoning), len(turns), settings)
            kwargs = KEEP_HISTORY | kwargs if together else kwargs
            examples.append(_label_turn(chat[:at], chat[at], trace, kwargs, settings))
    except (TemplateError, TypeError) as error:  # templates add and slice what they take for something else
        raise ValueError(f"it cannot be rendered: {error}") from error
    return [_merge(examples)] if together else examples


def _template_kwargs(row: dict, thinks: bool, num_turns: int, settings: Settings) -> dict[str, Any]:
    """What is passed to the chat template; thinking is on with reasoning, unless the row says so itself."""
    given = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    gives_up = settings.empty_think == "train" and not thinks
    if gives_up or num_turns > 1:  # what a row says is said of one turn
        given = {key: value for key, value in given.items() if key not in THINKING_SWITCHES}
    if thinks and given.get("enable_thinking") is False:
        raise ValueError("it has reasoning, but its `chat_template_kwargs` say `enable_thinking=False`.")
    tools = row.get("tools") or None
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **dict.fromkeys(THINKING_SWITCHES, given.get("enable_thinking", thinks or gives_up)),
        **given,
    }


def _label_turn(before: list[dict], message: dict, trace: Trace, kwargs: dict[str, Any], settings: Settings) -> dict:
    tokenizer, fmt, plain = settings.tokenizer, settings.markers, not trace.reasoning
    example = {"input_ids": [], "labels": [], "num_tokens": 0, "thinks": not plain, CAUSE: None}
    for option, value in {"empty_think": "drop", "loss": "think"}.items():
        if plain and vars(settings)[option] == value:
            return {**example, CAUSE: f"without reasoning (`{option}={value!r}`)"}
    prompt = _render(tokenizer, before, add_generation_prompt=True, **kwargs)
    if plain and settings.empty_think == "mask" and prompt.rstrip().endswith(fmt.open):
        raise ValueError("it has no reasoning, but the prompt opens it. `empty_think='drop'` leaves such rows out.")
    text, end_id = _render_turn(prompt, [*before, message], trace, kwargs, settings)
    ids, prompt_ids, places = _encode(tokenizer, text), _encode(tokenizer, prompt), _places(text, prompt, trace, fmt)
    if message.get("tool_calls") and ids[-1] in tokenizer.added_tokens_decoder:
        end_id = ids[-1]  # gpt-oss ends a call in another token than an answer
    # Not trained unless it is wished: a model that learns to write an empty block stops thinking.
    block = [(len(prompt), places.answer)] if plain else []
    labels = _label(tokenizer, text, ids, len(prompt_ids), block)
    causes = check_labels(ids, labels, prompt_ids, message, tokenizer, fmt, end_id)
    if causes:
        blamed = causes[0].startswith(("the chat template", "the row does not begin"))
        raise ValueError(f"{'; '.join(causes)}.{settings.remedy if blamed else ''}")
    example["num_tokens"], limit = len(ids), settings.max_length or len(ids)
    masked = block if settings.empty_think == "mask" else []
    if len(ids) > limit and settings.too_long == "close_think" and not plain:
        text, places = _close_early(tokenizer, text, places, limit)
        ids, masked = _encode(tokenizer, text), [(places.close, places.answer)]
    if len(ids) > limit and settings.too_long == "raise":
        remedy = "raise `max_length`, shorten the row, or leave such rows out with `too_long='drop'`"
        raise ValueError(f"it has {len(ids)} tokens, more than `max_length={limit}`: {remedy}.")
    if len(ids) > limit:
        example[CAUSE] = f"longer than `max_length={limit}` tokens"
    masked = [*masked, *_left_out(text, len(prompt), places, message, trace, settings.loss)]
    if masked != block:
        labels = _label(tokenizer, text, ids, len(prompt_ids), masked)
    return {**example, "input_ids": ids, "labels": labels}


def _render_turn(
    prompt: str, chat: list[dict], trace: Trace, kwargs: dict[str, Any], settings: Settings
) -> tuple[str, int | None]:
    """The row up to the token with which the model stops, and that token."""
    tokenizer, fmt, end_id = settings.tokenizer, settings.markers, settings.end_id
    if chat[-1].get("tool_calls") and settings.adds_end:
        end_id = _next_header(tokenizer, chat, {"role": "tool", "content": "A result."}, **kwargs)
    end = "" if end_id is None else str(tokenizer.convert_ids_to_tokens(end_id))
    if settings.drops_reasoning and trace.answer and prompt.rstrip().endswith(fmt.open):
        # DeepSeek-R1's template drops the reasoning that its prompt asks for. As the prompt ends inside of it, what
        # the model must write is known all the same.
        written = replace(trace, reasoning=trace.reasoning or "", status="complete").text(fmt)
        return prompt + written.removeprefix(fmt.open).lstrip() + end, end_id
    return _render(tokenizer, chat, **kwargs) + (end if settings.adds_end else ""), end_id


class _Places(NamedTuple):
    thought: int  # character with which the reasoning begins
    close: int  # the first behind it
    answer: int  # character with which the answer begins


def _places(text: str, prompt: str, trace: Trace, fmt: ThinkFormat) -> _Places:
    start = len(prompt)
    if not trace.reasoning:
        # The opening marker is missing where the prompt has written it, and where a family closes only.
        block = rf"\s*(?:{re.escape(fmt.open)}\s*)?{re.escape(fmt.close)}\s*"
        found = re.compile(block).match(text, start)
        return _Places(start, start, found.end() if found else start)
    closed = max(text.find(fmt.close, start), start)
    opened = text.find(fmt.open, start, closed)
    behind_open, behind_close = start if opened < 0 else opened + len(fmt.open), closed + len(fmt.close)
    thought, answer = (len(text) - len(text[at:].lstrip()) for at in (behind_open, behind_close))
    return _Places(thought, len(text[:closed].rstrip()), answer)


def _close_early(
    tokenizer: PreTrainedTokenizerBase, text: str, places: _Places, max_length: int
) -> tuple[str, _Places]:
    """Cut the end of the reasoning until the row fits; if no reasoning would be left, nothing is cut."""
    offsets = _offsets(tokenizer, text)
    last, over = _token_at(offsets, places.close), len(offsets) - max_length
    while last > over > 0 and offsets[last - over][0] > places.thought:
        last -= over
        cut = len(text[: offsets[last][0]].rstrip())
        shorter = text[:cut] + text[places.close :]
        over = len(_encode(tokenizer, shorter)) - max_length
        if over <= 0:
            return shorter, _Places(places.thought, cut, cut + places.answer - places.close)
    return text, places


def _left_out(text: str, start: int, places: _Places, message: dict, trace: Trace, loss: Loss) -> list[Span]:
    """What `loss` takes from the reasoning and the answer."""
    if loss == "answer":
        return [(start, places.answer)]
    if loss == "think":
        return [(places.answer, len(text))]
    parts = [(part["text"], part.get("train") is not False) for part in message.get("parts") or ()]
    if loss == "completion" or not parts:
        return []
    whole = "".join(part for part, _ in parts)
    if whole.strip() != trace.reasoning or not whole.strip().startswith(text[places.thought : places.close]):
        raise ValueError("its `parts`, joined, are not the reasoning that the chat template writes.")
    spans, at = [], places.thought - len(whole) + len(whole.lstrip())
    for part, train in parts:
        begin, at = at, at + len(part)
        spans += [] if train else [(max(begin, places.thought), min(at, places.close))]
    return spans


def _label(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], start: int, masked: list[Span]) -> list[int]:
    """Labels of what follows the prompt, without each token that holds a character of `masked`."""
    start, end = min(start, len(ids)), len(ids)
    # The line break that ChatML writes after the end of turn belongs to the next turn.
    while end > start and not str(tokenizer.decode(ids[end - 1 : end])).strip():
        end -= 1
    labels = [-100] * start + ids[start:end] + [-100] * (len(ids) - end)
    spans = [(begin, end) for begin, end in masked if begin < end]
    offsets = _offsets(tokenizer, text) if spans else []
    for begin, end in spans:
        first, last = _token_at(offsets, begin), _token_at(offsets, end)
        # A word and the space before it may be one token: of such a one only the space would be masked.
        if last < len(offsets) and text[offsets[last][0] : end].strip():
            last += 1
        labels[first:last] = [-100] * (last - first)
    return labels


def _token_at(offsets: list[Span], character: int) -> int:
    """How many tokens end at a character or before; tokenizers may leave white space out of the offsets."""
    return bisect_right(offsets, character, key=itemgetter(1))


def _merge(examples: list[dict]) -> dict:
    """One example of all turns: the last is the whole conversation, the others tell what else of it is trained."""
    *earlier, whole = examples
    labels, cause = whole["labels"], next((each[CAUSE] for each in examples if each[CAUSE]), None)
    for each in [] if cause else earlier:
        end = max(at for at, label in enumerate(each["labels"], 1) if label != -100)
        if each["input_ids"][:end] != whole["input_ids"][:end]:
            raise ValueError(
                "the chat template writes an earlier turn otherwise once others follow, so that one text cannot train "
                "all turns: `turns='expand'` makes a row of each."
            )
        labels = [*map(max, each["labels"][:end], labels[:end]), *labels[end:]]
    return {**whole, "labels": labels, "thinks": any(each["thinks"] for each in examples), CAUSE: cause}


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **kwargs: Any) -> str:
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Special tokens are in the template; that a row is longer than the model can read is said elsewhere.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Span]:
    return cast(list[Span], tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
