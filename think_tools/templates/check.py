"""Tell what a tokenizer's chat template does with reasoning, what of it spoils training or serving, and what helps."""

from collections.abc import Iterator
from dataclasses import replace

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..formats import THINK
from . import probe
from .generation import ANSWER, QUESTION, end_of_turn
from .load import load_template
from .probe import THOUGHT, THOUGHTFUL, Finding, TemplateReport, attempt, mismatch, written

# What ends a turn -> our template that ends its turns alike. Any tokenizer with an `eos_token` can take the other.
OURS = {"<|im_end|>": "chatml_think", "<|eot_id|>": "llama3_think", "<end_of_turn>": "gemma_think"}
PLAIN = "plain_think"
SEVERITIES = ("error", "warning", "note")

SET = '`set_chat_template(tokenizer, "{}")` from think_tools.templates'
PREPARE = "`prepare_sft(rows, tokenizer, max_length=4096)` from think_tools.data"
CONVERT = "`rows = to_think(dataset)` from think_tools.data"
TRAINING = "`tokenizer.chat_template = get_training_chat_template(tokenizer)` from trl.chat_template_utils"
INLINE = (
    '`rows = rows.map(lambda row: {"completion": [{"role": "assistant", "content": '
    'read_completion(row["completion"]).text(FORMAT)}]})` from think_tools'
)
THINKS = 'read_completion(row["completion"]).reasoning'
SWITCH = f'`rows = rows.map(lambda row: {{{{"chat_template_kwargs": {{}} if {THINKS} else {{}}}}}})` from think_tools'
FILTER = f"`rows = rows.filter(lambda row: {THINKS})` from think_tools"
RESPONSE = "`set_response_template(tokenizer)` from think_tools.templates"


def check_template(tokenizer_or_name: PreTrainedTokenizerBase | str) -> TemplateReport:
    """
    Report what a tokenizer's chat template does with reasoning, and what to do where it spoils training or serving.

    Small chats are rendered with and without reasoning, with every known switch, as last turn and in the history, and
    the texts are compared. It needs no model, changes nothing, and goes on when the template refuses a chat.

    Args:
        tokenizer_or_name ([`~transformers.PreTrainedTokenizerBase`] or `str`):
            A tokenizer, or the folder or Hub name of one.

    Returns:
        [`TemplateReport`]: The facts and, errors first, the findings, each with the line of code that helps.

    Raises:
        `OSError`: If there is no tokenizer of that name.

    Example:

    ```python
    >>> from think_tools.templates import check_template
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> check_template(tokenizer).ok
    True
    >>> tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    >>> check_template(tokenizer).findings[0].remedy
    '`set_chat_template(tokenizer, "chatml_think")` from think_tools.templates'
    ```
    """
    tokenizer = tokenizer_or_name
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if ANSWER["content"] in probe.render(tokenizer, [QUESTION, ANSWER], {}):
        report = probe.probe(tokenizer)
        found = [*_errors(tokenizer, report), *_training(report), *_serving(tokenizer, report)]
        return replace(report, findings=tuple(sorted(found, key=lambda each: SEVERITIES.index(each.severity))))
    what = "there is no chat template" if not tokenizer.chat_template else "the chat template does not render a chat"
    known = [name for end, name in OURS.items() if len(tokenizer.encode(end, add_special_tokens=False)) == 1]
    finding = Finding("error", what, SET.format((known or [PLAIN])[0]))
    return TemplateReport(tokenizer.name_or_path or "tokenizer", findings=(finding,))


def _errors(tokenizer: PreTrainedTokenizerBase, report: TemplateReport) -> Iterator[Finding]:
    """What spoils training whatever the rows are; one change of the template has to cure it all."""
    modes = report.switch or ("default",)
    errors = [f"{text} (thinking: {mode})" for mode, text in report.prompt_mismatches.items() if mode in modes]
    if "reasoning_content" not in report.last_turn:
        errors = ["the chat template drops the reasoning of the very turn that is trained"]
    if report.end_of_turn is None:
        errors.append("no token follows the last answer, so the model never learns to stop")
    if errors:
        cure = _cure(tokenizer, report)
        yield from (Finding("error", what, cure) for what in errors)


def _training(report: TemplateReport) -> Iterator[Finding]:
    """What spoils training on some rows or with some settings."""
    on, off = (report.switch.get(mode, {}) for mode in ("on", "off"))
    default = report.prompts["default"]
    if report.end_is_marked is False:
        what = f"{{% generation %}} leaves out {report.end_of_turn}, so `assistant_only_loss=True` never trains it"
        yield Finding("warning", what, f"{PREPARE} needs no such markers")
    if report.empty_block and default != "closed":
        what = f"answers without reasoning train {report.empty_block!r}, so that the model unlearns to think"
        yield Finding("warning", what, f"{PREPARE} leaves it out of the labels")
    if default == "open" and not on:
        what = "every prompt opens the reasoning, so answers without it cannot be trained"
        yield Finding("warning", what, FILTER)
    if "default" in report.prompt_mismatches and "on" not in report.prompt_mismatches and on:
        what = f"without {written(on)}, rows with reasoning do not begin as the prompt does"
        yield Finding("warning", what, f"{PREPARE} sets it in each row")
    if on and not {"enable_thinking", "thinking", "system"} & set(on):
        what = f"rows with reasoning need {written(on)}, others {written(off)}"
        yield Finding("warning", what, SWITCH.format(on, off))
    fine = {("parsed", marker) for marker in report.inline} | {("literal", (report.format or THINK).open)}
    if "reasoning_content" in report.last_turn and {(fate, marker) for marker, fate in report.inline.items()} - fine:
        what = f"reasoning between markers in the content is not always read as such ({written(report.inline)})"
        yield Finding("warning", what, f"{CONVERT} moves it to the key reasoning_content")
    if "reasoning_content" in set(report.last_turn) - set(report.history):
        what = "earlier turns lose their reasoning, so a row that trains several turns trains what no prompt shows"
        yield Finding("note", what, f"{CONVERT} trains the last turn: make a row of each turn before it")


def _serving(tokenizer: PreTrainedTokenizerBase, report: TemplateReport) -> Iterator[Finding]:
    """What callers, parsers and servers must know."""
    fmt, end = report.format or THINK, report.end_of_turn
    on = report.switch.get("on", {})
    if report.prompts["default"] == "open":
        what = "the prompt opens the reasoning, so outputs lack the opening marker"
        yield Finding("note", what, "`parse(text, opened=True)`, `get_format_reward(tokenizer=tokenizer)`")
    if on and not probe.differ(tokenizer, {}, report.switch["off"]):
        line = f"`tokenizer.apply_chat_template(messages, add_generation_prompt=True, **{on})`"
        yield Finding("note", f"thinking is off unless {written(on)}", line)
    if end and end != tokenizer.eos_token:
        what = f"turns end in {end}, but generation stops at {tokenizer.eos_token} if no setting names another"
        yield Finding("warning", what, f'`SFTConfig(eos_token="{end}")` for training')
    if report.marker_tokens == "special":
        what = f"{fmt.open} or {fmt.close} holds special tokens, which `skip_special_tokens=True` erases"
        yield Finding("warning", what, "`tokenizer.decode(ids, skip_special_tokens=False)`, and the same in servers")
    if report.marker_tokens == "text":
        what = f"{fmt.open} and {fmt.close} are several tokens of text each, which works, but not with single ids"
        yield Finding("note", what, "`add_think_tokens(model, tokenizer)` from think_tools.templates")
    if report.response_template == "none" and report.format:
        yield Finding("note", "there is no `response_template`, by which servers split the output", RESPONSE)
    if report.response_template not in ("none", "accepted"):
        yield Finding("warning", f"the `response_template` is wrong: {report.response_template}", RESPONSE)


def _cure(tokenizer: PreTrainedTokenizerBase, report: TemplateReport) -> str:
    """The first change with which rows render as they should; TRL takes its templates by itself only for masks."""
    fmt = report.format or THINK
    if report.prompts["default"] == "open" and report.end_of_turn is not None:
        return f"{PREPARE} writes it behind the prompt, which opens it"  # and so does a model
    inline = INLINE.replace("FORMAT", "" if fmt == THINK else "detect_format(tokenizer)")
    ours = OURS.get(report.end_of_turn or "") if fmt == THINK else None
    from trl.chat_template_utils import get_training_chat_template  # half a second, which only errors need

    # It raises at a template that it does not know, or that refuses its chats with tools.
    training = attempt(get_training_chat_template, tokenizer)
    changes = [
        (training, THOUGHTFUL, TRAINING),
        (ours and load_template(ours), THOUGHTFUL, SET.format(ours)),
        (tokenizer.get_chat_template(), probe.marked_turn(fmt), inline),
        (training, probe.marked_turn(fmt), f"{TRAINING}, and {inline}"),
        (load_template(PLAIN), THOUGHTFUL, SET.format(PLAIN)),
    ]
    for template, turn, line in changes:
        on, off = ({**report.switch.get(mode, {}), "chat_template": template} for mode in ("on", "off"))
        if (
            template
            # Rows hold text, which the templates of vision models do not read.
            and THOUGHT in (attempt(tokenizer.apply_chat_template, [QUESTION, turn], tokenize=False, **on) or "")
            and not mismatch(tokenizer, turn, on)
            and not (report.switch and mismatch(tokenizer, ANSWER, off))
            and end_of_turn(tokenizer, chat_template=template) is not None
        ):
            return line
    return f"give the tokenizer an `eos_token`, then {SET.format(PLAIN)}"
