"""What a chat template does with reasoning, measured by rendering small chats and comparing the texts."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat, detect_format
from ..parsing import Trace
from .generation import ANSWER, QUESTION, PromptState, added_text, end_of_turn, render_chat, state_of
from .response import serving_errors

Options = dict[str, Any]  # variables of the template; "system" is the text of a system message
Inline = Literal["parsed", "literal", "doubled", "dropped", "refused"]
MarkerTokens = Literal["single", "special", "text"]

SAID, THOUGHT = ANSWER["content"], "First I think."
KEYS = ("reasoning_content", "thinking", "reasoning")
THOUGHTFUL = {**ANSWER, "reasoning_content": THOUGHT}
PART = {**ANSWER, "content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": SAID}]}
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

# How published templates turn thinking on and off, and what they call the amount.
SWITCHES = (
    ("enable_thinking", True, False), ("thinking", True, False), ("thinking_mode", "enabled", "disabled"),
    ("thinking_mode", "thinking", "chat"), ("thinking_budget", 512, 0), ("reasoning_effort", "high", "none"),
    ("reasoning_effort", "high", "no_think"), ("system", "/think", "/no_think"),
)  # fmt: skip
EFFORTS = ("reasoning_effort", "reasoning_strength", "thinking_effort", "thinking_budget")


@dataclass(frozen=True)
class Finding:
    """
    Something about a chat template that a user should know.

    Args:
        severity (`str`):
            `"error"`: training or serving goes wrong in silence. `"warning"`: it does with some rows or settings.
            `"note"`: good to know.
        what (`str`):
            What was found.
        remedy (`str`):
            What to do, the line of code between backticks.
    """

    severity: Literal["error", "warning", "note"]
    what: str
    remedy: str


@dataclass(frozen=True)
class TemplateReport:
    """
    What a chat template does with reasoning. `str(report)` is a table, `dataclasses.asdict(report)` goes into JSON.

    Args:
        name (`str`):
            Name or path of the tokenizer.
        format ([`ThinkFormat`], *optional*):
            The markers found, see [`detect_format`]. `None` is plain text.
        switch (`dict[str, dict]`):
            Variables of the template that turn thinking `"on"` and `"off"` (`"system"` is the text of a system
            message); `{}` if there is no switch. What follows is measured with thinking on, unless it says otherwise.
        efforts (`tuple[str, ...]`):
            Variables that ask for more or less thinking.
        prompts (`dict[str, str]`):
            How the generation prompt leaves the reasoning (see [`prompt_state`]): by `"default"`, and with thinking
            `"on"` and `"off"` if there is a switch.
        last_turn (`tuple[str, ...]`):
            Where the reasoning of the last turn may stand so that it is rendered: keys of the message, `"inline"`
            (`<think>` in the content), `"thinking part"` (content as a list).
        history (`tuple[str, ...]`):
            The same of an earlier turn.
        inline (`dict[str, str]`):
            Opening marker -> what becomes of a marked thought in the content of the last turn: it is `"parsed"` as
            reasoning, `"literal"` text, `"doubled"` (literal, after an empty block), `"dropped"`, or `"refused"`.
        empty_block (`str`):
            The empty block, or bare closing marker, that stands before an answer without reasoning by default. `""`
            if none does.
        prompt_mismatches (`dict[str, str]`):
            Where the prompt and the text that is trained part, if the tokens of the one do not begin those of the
            other. Keys as in `prompts`; the answer has reasoning but for `"off"`.
        end_of_turn (`str`, *optional*):
            The token after an answer, see [`end_of_turn`].
        end_is_marked (`bool`, *optional*):
            Whether `{% generation %}` holds it, as `assistant_only_loss=True` needs. `None` if nothing is marked.
        marker_tokens (`str`, *optional*):
            The markers are `"single"` tokens, hold a `"special"` one (which decoding can skip), or are pieces of
            `"text"`.
        response_template (`str`):
            What transformers, vLLM and SGLang make of it: `"accepted"`, `"none"` if there is none, or what is wrong.
        findings (`tuple[Finding, ...]`):
            What to do, errors first.
    """

    name: str
    format: ThinkFormat | None = None
    switch: dict[str, Options] = field(default_factory=dict)
    efforts: tuple[str, ...] = ()
    prompts: dict[str, PromptState] = field(default_factory=dict)
    last_turn: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    inline: dict[str, Inline] = field(default_factory=dict)
    empty_block: str = ""
    prompt_mismatches: dict[str, str] = field(default_factory=dict)
    end_of_turn: str | None = None
    end_is_marked: bool | None = None
    marker_tokens: MarkerTokens | None = None
    response_template: str = "none"
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)

    def rows(self) -> list[tuple[str, str]]:
        """The facts as labels and texts, for a table."""
        names = [each.name for each in fields(self) if each.name not in ("name", "format", "findings")]
        facts = [(name.replace("_", " "), written(vars(self)[name])) for name in names]
        return [("format", written(self.format or "plain text")), *facts]

    def __str__(self) -> str:
        facts = [f"  {label:<17} {text}" for label, text in self.rows()]
        found = [f"{each.severity}: {each.what}\n  -> {each.remedy}" for each in self.findings]
        return "\n".join([self.name, *facts, *(found or ["Nothing to do."])])


def written(value: Any) -> str:
    """A field of the report as a reader wants to see it."""
    if isinstance(value, ThinkFormat):
        return f"{value.open} … {value.close}"
    if isinstance(value, dict):
        value = [
            f"{key} {written(each)}" if isinstance(each, dict) else f"{key}={each}" for key, each in value.items()
        ]
    if isinstance(value, list | tuple):
        value = ", ".join(value)
    return {True: "yes", False: "no", None: "none", "": "none"}.get(value) or value.replace("\n", "\\n")


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], options: Options, **more: Any) -> str:
    """The chat as text; `""` if the template cannot write it."""
    system = [{"role": "system", "content": options["system"]}] if "system" in options else []
    variables = {name: value for name, value in options.items() if name != "system"}
    return attempt(render_chat, tokenizer, [*system, *messages], **variables, **more) or ""


def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call that renders a template gives; `None` if it fails."""
    try:
        return call(*args, **kwargs)
    except Exception:  # templates raise what they like at what they do not know: Jinja's errors, TypeError, ...
        return None


def prompt_tail(tokenizer: PreTrainedTokenizerBase, options: Options) -> str:
    """What the generation prompt adds to a question; `""` if nothing, or if the template cannot write it."""
    return added_text(*(render(tokenizer, [QUESTION], options, add_generation_prompt=each) for each in (False, True)))


def marked_turn(fmt: ThinkFormat) -> dict[str, str]:
    """An answer with the reasoning between markers in its content."""
    return {**ANSWER, "content": Trace(THOUGHT, SAID, "complete").text(fmt)}


def mismatch(tokenizer: PreTrainedTokenizerBase, turn: dict[str, str], options: Options) -> str:
    """Where the tokens of the prompt do not begin those of the text that is trained; `""` if they do."""
    prompt = render(tokenizer, [QUESTION], options, add_generation_prompt=True)
    text = render(tokenizer, [QUESTION, turn], options)
    seen, learnt = (tokenizer.encode(each, add_special_tokens=False) for each in (prompt, text))
    if prompt and learnt[: len(seen)] == seen:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(seen, learnt, strict=False)) if a != b), 0)
    return f"the prompt goes on {tokenizer.decode(seen[at:])!r}, but what is trained {tokenizer.decode(learnt[at:])!r}"


def probe(tokenizer: PreTrainedTokenizerBase) -> TemplateReport:
    """Measure everything but the findings. The template must render one question and one answer."""
    fmt, end, switch = detect_format(tokenizer), end_of_turn(tokenizer), _switch(tokenizer)
    marks, modes, on = fmt or THINK, {"default": {}, **switch}, switch.get("on", {})
    answers = {mode: ANSWER if mode == "off" else THOUGHTFUL for mode in modes}
    parted = {mode: mismatch(tokenizer, answers[mode], options) for mode, options in modes.items()}
    errors = "; ".join(_response_errors(tokenizer, on)) if tokenizer.response_template else "none"
    return TemplateReport(
        name=tokenizer.name_or_path or "tokenizer",
        format=fmt,
        switch=switch,
        efforts=tuple(name for name in EFFORTS if differ(tokenizer, {name: "low"}, {name: "medium"})),
        prompts={mode: state_of(prompt_tail(tokenizer, options), marks) for mode, options in modes.items()},
        last_turn=_places(tokenizer, on, []),
        history=_places(tokenizer, on, [QUESTION]),
        inline={each.open: _inline(tokenizer, each, on) for each in (THINK, marks)},
        empty_block=_empty_block(tokenizer, marks, {}),
        prompt_mismatches={mode: text for mode, text in parted.items() if text},
        end_of_turn=None if end is None else str(tokenizer.convert_ids_to_tokens(end)),
        end_is_marked=_end_is_marked(tokenizer, end),
        marker_tokens=_marker_tokens(tokenizer, marks),
        response_template=errors or "accepted",
    )


def _switch(tokenizer: PreTrainedTokenizerBase) -> dict[str, Options]:
    for name, on, off in SWITCHES:
        # A template that prints any word for the effort would seem to know the word for none.
        named = not isinstance(off, str) or re.search(rf"['\"]{off}['\"]", str(tokenizer.chat_template))
        if named and differ(tokenizer, {name: on}, {name: off}):
            return {"on": {name: on}, "off": {name: off}}
    return {}


def differ(tokenizer: PreTrainedTokenizerBase, *options: Options) -> bool:
    """Whether the prompts differ, and not only by the text of the system message itself."""
    texts = (render(tokenizer, [QUESTION], each, add_generation_prompt=True) for each in options)
    prompts = {text.replace(each.get("system", "\0"), "") for text, each in zip(texts, options, strict=True)}
    return "" not in prompts and len(prompts) > 1


def _places(tokenizer: PreTrainedTokenizerBase, options: Options, later: list[dict[str, str]]) -> tuple[str, ...]:
    turns = {key: {**ANSWER, key: THOUGHT} for key in KEYS} | {"inline": marked_turn(THINK), "thinking part": PART}
    texts = {place: render(tokenizer, [QUESTION, turn, *later], options) for place, turn in turns.items()}
    # A list that is printed as it stands is not read.
    return tuple(place for place, text in texts.items() if THOUGHT in text and "'thinking'" not in text)


def _inline(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat, options: Options) -> Inline:
    turn = marked_turn(fmt)
    plain, keyed, text = (render(tokenizer, [QUESTION, each], options) for each in (ANSWER, THOUGHTFUL, turn))
    if THOUGHT not in text:
        return "dropped" if text else "refused"
    if text == keyed or text != plain.replace(SAID, turn["content"]):
        return "parsed"
    return "doubled" if _empty_block(tokenizer, fmt, options) else "literal"


def _empty_block(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat, options: Options) -> str:
    opening = rf"(?:{re.escape(fmt.open)}\s*)"
    if fmt.close not in render(tokenizer, [QUESTION], options):
        opening += "?"  # a bare closing marker; but what also ends the turns of users, as in gpt-oss, is none
    header = render(tokenizer, [QUESTION, ANSWER], options).partition(SAID)[0]
    found = re.search(rf"({opening}{re.escape(fmt.close)})\s*(?:{re.escape(fmt.answer_open)})?\s*$", header)
    return found[1] if found else ""


def _end_is_marked(tokenizer: PreTrainedTokenizerBase, end: int | None) -> bool | None:
    if not GENERATION.search(tokenizer.get_chat_template()):
        return None
    row: Any = tokenizer.apply_chat_template([QUESTION, ANSWER], return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(row["input_ids"], row["assistant_masks"], strict=True) if mark]
    return end in marked if marked else None


def _marker_tokens(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> MarkerTokens:
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ids = [tokenizer.encode(marker, add_special_tokens=False) for marker in (fmt.open, fmt.close)]
    if any(token in special and token != tokenizer.unk_token_id for tokens in ids for token in tokens):
        return "special"
    return "single" if all(len(tokens) == 1 and tokens != [tokenizer.unk_token_id] for tokens in ids) else "text"


def _response_errors(tokenizer: PreTrainedTokenizerBase, options: Options) -> Iterator[str]:
    yield from (errors := serving_errors(tokenizer.response_template))
    prompt = render(tokenizer, [QUESTION], options, add_generation_prompt=True)
    text = render(tokenizer, [QUESTION, THOUGHTFUL], options).removeprefix(prompt)
    if errors or THOUGHT not in text:
        return
    cut = text.partition(THOUGHT)[0] + THOUGHT
    for part, name, answer in ((text, "an answer", SAID), (cut, "a cut thought", "")):
        message: Any = tokenizer.parse_response(part, prefix=prompt)
        reasoning = next((message[key] for key in KEYS if message.get(key)), "")
        if (reasoning.strip(), (message.get("content") or "").strip()) != (THOUGHT, answer):
            yield f"it reads {name} as {message}"
