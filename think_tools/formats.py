"""The markers that model families write around their reasoning, and which of them a tokenizer's model writes."""

import re
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:  # the text layer loads no transformers
    from transformers import PreTrainedTokenizerBase


# Tokens that end a turn. `</s>` ends Mistral's, but is HTML for all others.
STOP_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|eot|>", "<|return|>", "<|call|>",
    "<|user|>", "<|observation|>", "<|eos|>", "<|assistant_end|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
    "<end_of_turn>", "<turn|>", "<eos>", "<seed:eos>",
)  # fmt: skip

# What begins the tool calls of a turn.
TOOL_MARKERS = (
    "<tool_call>", "<tool_calls>", "<|tool_call>", "<|tool_call_start|>", "<|tool_calls_section_begin|>",
    "<|tools_prefix|>", "<|START_ACTION|>", "<｜tool▁calls▁begin｜>", "<｜DSML｜tool_calls>", "<minimax:tool_call>",
    "<seed:tool_call>", "<ifm|tool_calls>", "<|plamo:begin_tool_requests:plamo|>", "<TOOLCALL>",
)  # fmt: skip


@dataclass(frozen=True)
class ThinkFormat:
    """
    The markers around a model's reasoning and, for some families, around its answer, and the family's own rules.

    White space beside a marker belongs to nobody: markers are given without it, and parsing strips it.

    Args:
        name (`str`):
            Name of the format, its key in [`FORMATS`].
        open (`str`):
            Marker that begins the reasoning, such as `<think>`.
        close (`str`):
            Marker that ends the reasoning, such as `</think>`.
        answer_open (`str`, *optional*, defaults to `""`):
            Marker that begins the answer, such as `<answer>`. `""` means that the answer begins at once.
        answer_close (`str`, *optional*, defaults to `""`):
            Marker that ends the answer, such as `</answer>`. `""` means that the answer ends with the output.
        variants (`tuple[tuple[str, str], ...]`, *optional*, defaults to `()`):
            `(piece, other)`: what the model may write instead of a piece of `open`, `close` and `answer_open`, `""` to
            leave it out. Gemma 4 writes `<|channel>` as well as `<|channel>thought`.
        stop (`tuple[str, ...]`, *optional*):
            Tokens that end a turn, cut off where the output ends in them and text anywhere else. Those of the known
            families by default.
        tool_open (`tuple[str, ...]`, *optional*):
            Markers of tool calls, which end the reasoning when blocks are read interleaved. Those of the known
            families by default.
        text_before (`bool`, *optional*, defaults to `False`):
            Whether the reasoning may begin after text, as Mistral's and Gemma's does. That text belongs to the answer.
        bare_close (`bool`, *optional*, defaults to `False`):
            Whether the model skips thinking by a `close` at the very beginning, as MiniMax-M3 does.

    Raises:
        `ValueError`: If `open` or `close` is empty, if a marker begins or ends with white space, or if `open` and
            another marker contain one another, so that a text could not be read in one way only.
        `TypeError`: If `variants`, `stop` or `tool_open` is no tuple, or holds something else than markers.

    Example:

    ```python
    >>> from think_tools import ThinkFormat, parse

    >>> parse("<plan>2+2</plan>4", fmt=ThinkFormat("plan", "<plan>", "</plan>")).reasoning
    '2+2'
    ```
    """

    name: str
    open: str
    close: str
    answer_open: str = ""
    answer_close: str = ""
    variants: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = field(default=STOP_TOKENS, repr=False)
    tool_open: tuple[str, ...] = field(default=TOOL_MARKERS, repr=False)
    text_before: bool = False
    bare_close: bool = False

    def __post_init__(self) -> None:
        for name, given in {"stop": self.stop, "tool_open": self.tool_open}.items():
            if not isinstance(given, tuple) or not all(isinstance(marker, str) and marker.strip() for marker in given):
                raise TypeError(
                    f"`{name}` must be a tuple of markers, got {given!r}: write a single one as `(marker,)`."
                )
        if not isinstance(self.variants, tuple) or not all(isinstance(pair, tuple) for pair in self.variants):
            raise TypeError(f"`variants` must be a tuple of pairs `(piece, other)`, got {self.variants!r}.")
        others = {"close": self.close, "answer_open": self.answer_open, "answer_close": self.answer_close}
        for name, marker in {"open": self.open, **others}.items():
            if marker != marker.strip():
                raise ValueError(f"`{name}` must not begin or end with white space, got {marker!r}: strip it.")
            if not marker and name in ("open", "close"):
                raise ValueError(f"`{name}` must not be empty: pass the marker that the model writes.")
        for name, marker in others.items():
            for opener in spellings(self, self.open) if marker else ():
                if marker in opener or opener in marker:
                    raise ValueError(
                        f"`open` and `{name}` must not contain one another, got {opener!r} and {marker!r}."
                    )


def spellings(fmt: ThinkFormat, marker: str) -> tuple[str, ...]:
    """A marker of the format and what the model may write instead of it (`variants`)."""
    written = [marker, *(marker.replace(piece, other).strip() for piece, other in fmt.variants)]
    return tuple(dict.fromkeys(filter(None, written)))


THINK = ThinkFormat("think", "<think>", "</think>")

# Families that write plain `<think>`. Their chat templates differ (who writes the opening marker, what ends a turn):
# the tokenizer's own template tells that, not the format.
_THINK_FAMILIES = (
    "deepseek_r1", "deepseek_r1_distill", "deepseek_v3_1", "deepseek_v3_2", "deepseek_v4", "exaone_4", "gigachat_3_5",
    "glm_4_5", "glm_4_6", "glm_4_7", "granite_4", "intern_s1", "kimi_k2", "laguna", "lfm2_5", "ling_3", "mimo",
    "minicpm_5", "minimax_m1", "minimax_m2", "nemotron_3", "nemotron_nano_v2", "olmo_3", "phi_4_reasoning", "qwen3",
    "qwen3_thinking", "qwen3_5", "qwen3_6", "qwen3_8", "qwq", "reka", "smollm3", "spark_2_5", "step_3", "step_3_5",
    "step_5",
)  # fmt: skip

# fmt: off
_MAGISTRAL = ThinkFormat(
    "magistral", "[THINK]", "[/THINK]", stop=("</s>",), tool_open=("[TOOL_CALLS]",), text_before=True
)
_OTHERS = (
    ThinkFormat("thinking", "<thinking>", "</thinking>"),
    ThinkFormat("thought", "<thought>", "</thought>"),
    ThinkFormat("reasoning", "<reasoning>", "</reasoning>"),
    ThinkFormat("reason", "<reason>", "</reason>"),
    # DeepSeek-R1 section 2.2.1 (https://huggingface.co/papers/2501.12948): reasoning and answer both in tags.
    ThinkFormat("r1_zero", "<think>", "</think>", "<answer>", "</answer>"),
    ThinkFormat("hunyuan_a13b", "<think>", "</think>", "<answer>", "</answer>"),
    ThinkFormat("ernie_4_5", "<think>", "</think>", "<response>", "</response>"),
    ThinkFormat("granite_3_3", "<think>", "</think>", "<response>", "</response>"),
    ThinkFormat("exaone_deep", "<thought>", "</thought>"),
    ThinkFormat(
        "openthoughts", "<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>",
    ),
    _MAGISTRAL,
    replace(_MAGISTRAL, name="ministral_reasoning"),
    ThinkFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ThinkFormat("hy3", "<think:opensource>", "</think:opensource>"),
    ThinkFormat("minimax_m3", "<mm:think>", "</mm:think>", stop=(*STOP_TOKENS, "[e~["), bare_close=True),
    ThinkFormat("k2_horizon", "<ifm|think>", "</ifm|think>"),
    ThinkFormat("longcat", "<longcat_think>", "</longcat_think>"),
    ThinkFormat("kimi_vl", "◁think▷", "◁/think▷"),
    ThinkFormat(
        "kimi_k3", "<|open|>think<|sep|>", "<|close|>think<|sep|>",
        "<|open|>response<|sep|>", "<|close|>response<|sep|>", stop=("<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
    ThinkFormat("plamo_3", "<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ThinkFormat(
        "gemma_4", "<|channel>thought", "<channel|>", variants=(("<|channel>thought", "<|channel>"),), text_before=True
    ),
    ThinkFormat("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    ThinkFormat(
        "command_a_reasoning", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
    ),
    ThinkFormat("cohere2_moe", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    # Channels, of which a pair describes the usual turn: one analysis message, then one final message. Decode with
    # `skip_special_tokens=False`, and read tool calls (commentary channel) with `tokenizer.parse_response`.
    ThinkFormat(
        "gpt_oss", "<|channel|>analysis<|message|>", "<|end|>",
        "<|start|>assistant<|channel|>final<|message|>", "<|return|>",
        variants=(("<|start|>assistant", ""), ("final", "final <|constrain|>json")),
    ),
    ThinkFormat(
        "solar_open", "<|think|>", "<|end|>", "<|begin|>assistant<|content|>", "<|end|>",
        variants=(("<|begin|>assistant", ""),),
    ),
    ThinkFormat(
        "inkling", "<|content_thinking|>", "<|end_message|>", "<|message_model|><|content_text|>", "<|end_message|>",
        variants=(("<|message_model|>", ""),), stop=("<|end_message|>", "<|content_model_end_sampling|>"),
    ),
    ThinkFormat(
        "muse", "to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>", "<|eot|>",
        variants=(("<|start|>assistant", ""),),
    ),
    # Prose instead of markers.
    ThinkFormat(
        "granite_3_2", "Here is my thought process:", "Here is my response:", variants=(("Here is", "Here's"),)
    ),
    ThinkFormat(
        "apriel", "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", answer_close="[END FINAL RESPONSE]"
    ),
)
# fmt: on

# Name of a model family or a pair of tags -> its format. `FORMATS["qwen3"] is THINK`; pass any other pair as
# `ThinkFormat(...)`.
FORMATS: dict[str, ThinkFormat] = {
    THINK.name: THINK,
    **dict.fromkeys(_THINK_FAMILIES, THINK),
    **{fmt.name: fmt for fmt in _OTHERS},
}


_REASONING, _ANSWER = "probed reasoning", "probed answer"
# An assistant turn with reasoning under every key that templates read, and as typed parts (Mistral).
_TURNS = (
    {"content": _ANSWER, **dict.fromkeys(("reasoning_content", "thinking", "reasoning"), _REASONING)},
    {"content": [{"type": "thinking", "thinking": _REASONING}, {"type": "text", "text": _ANSWER}]},
)
_TAG = r"([<\[◁][^\s<>\[\]◁▷]+[>\]▷])"
# The header of a turn is no marker of its reasoning.
_TAGGED_TURN = re.compile(
    rf"(?!\S*(?:assistant|model|INST)){_TAG}\s*{_REASONING}\s*{_TAG}\s*{_TAG}?\s*{_ANSWER}\s*{_TAG}?"
)
# What was detected from which state of a tokenizer: rewards ask once per batch.
_DETECTED: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, ThinkFormat | None]]" = WeakKeyDictionary()


def detect_format(tokenizer: "PreTrainedTokenizerBase") -> ThinkFormat | None:
    """
    Find the markers that a tokenizer's model writes around its reasoning.

    What tells, the first that says something: an assistant turn with reasoning, rendered by the chat template;
    `response_template`; the generation prompt and the source of the chat template, which name the markers even if the
    template drops the reasoning; the vocabulary. A template that cannot be rendered is read as source only, and one of
    several (a dict) is rendered as `apply_chat_template` would choose it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer, with a chat template or without. The answer is kept until its templates or its vocabulary
            change, so a repeated call costs microseconds.

    Returns:
        [`ThinkFormat`] or `None`: The first of [`FORMATS`] with the markers found; a format named `"detected"` for a
        pair of tags that is in no family; `None` if nothing shows reasoning, as in a plain chat model.

    Example:

    ```python
    >>> from think_tools import detect_format
    >>> from think_tools.tiny import load_tiny

    >>> detect_format(load_tiny()[1]).open
    '<think>'
    ```
    """
    source = str(tokenizer.chat_template or "")
    # Older transformers have no `response_template`. Its patterns are read without their escapes.
    spec = str(getattr(tokenizer, "response_template", None) or "").replace("\\", "")
    state = (source, spec, len(tokenizer))
    known = _DETECTED.get(tokenizer)
    if known is None or known[0] != state:
        known = (state, _detect(tokenizer, source, spec))
        _DETECTED[tokenizer] = known
    return known[1]


def _detect(tokenizer: "PreTrainedTokenizerBase", source: str, spec: str) -> ThinkFormat | None:
    question, thinking = {"role": "user", "content": "probed question"}, {"enable_thinking": True, "thinking": True}
    plain = _render(tokenizer, [question, {"role": "assistant", "content": _ANSWER}])
    for turn in _TURNS if source else ():
        fmt = _markers(_render(tokenizer, [question, {"role": "assistant", **turn}], **thinking), plain)
        if fmt:
            return fmt
    prompt = _render(tokenizer, [question], add_generation_prompt=True, **thinking)
    return _named(spec) or _named(prompt + source) or _named(tokenizer.get_vocab())


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict], **options: object) -> str:
    """The chat as text, `""` if the template cannot write it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))  # type: ignore[arg-type]
    except Exception:  # templates raise what they like at a message they do not know: Jinja's errors, TypeError, ...
        return ""


def _markers(turn: str, plain: str) -> ThinkFormat | None:
    """The format of a rendered turn with reasoning; `plain` is the same turn without."""
    before, _, rest = turn.rpartition(_REASONING)
    between, answered, after = rest.partition(_ANSWER)
    if not before or not answered:
        return None
    before, between, after = before.rstrip(), between.strip(), after.lstrip()
    fits = [
        fmt for fmt in dict.fromkeys(FORMATS.values()) if before.endswith(fmt.open) and between.startswith(fmt.close)
    ]
    if fits:
        return _fullest(fits, between + after)
    tags = _TAGGED_TURN.search(turn)
    # A tag that comes before every answer is the header of the turn.
    if tags is None or tags[1] in tags.groups()[1:] or plain.partition(_ANSWER)[0].rstrip().endswith(tags[1]):
        return None
    return ThinkFormat("detected", tags[1], tags[2], tags[3] or "", (tags[3] and tags[4]) or "")


def _named(text: Container[str]) -> ThinkFormat | None:
    """The format whose markers a text or a vocabulary holds. `</think>` alone tells, a general `<|end|>` does not."""
    fits = [fmt for fmt in dict.fromkeys(FORMATS.values()) if fmt.close in text]
    telling = [fmt for fmt in fits if "think" in fmt.close.lower() or any(o in text for o in spellings(fmt, fmt.open))]
    return _fullest(telling, text)


def _fullest(formats: list[ThinkFormat], text: Container[str]) -> ThinkFormat | None:
    """The format with most answer markers in `text`, a missing one counting against it; the first of equal ones."""

    def score(fmt: ThinkFormat) -> int:
        return sum(1 if marker in text else -1 for marker in (fmt.answer_open, fmt.answer_close) if marker)

    return max(formats, key=score, default=None)
