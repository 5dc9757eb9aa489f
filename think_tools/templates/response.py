"""The `response_template` with which transformers, vLLM and SGLang split a model's output, for any chat template."""

import os
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing.response_templates import load_response_template

from ..formats import THINK, ThinkFormat, detect_format, spellings
from .generation import ANSWER, QUESTION, end_of_turn, generation_prompt, render_chat

# How templates switch thinking. What is the same in every state is the header of an answer.
STATES: tuple[dict[str, Any], ...] = ({}, *({"enable_thinking": on, "thinking": on} for on in (True, False)))
SERVED = ("content", "thinking", "tool_calls")


def set_response_template(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None = None) -> None:
    r"""
    Store on a tokenizer how its model's output splits into reasoning and answer.

    `save_pretrained` and `push_to_hub` write it down, and `tokenizer.parse_response`, pipelines, TRL's GRPO,
    `vllm serve --reasoning-parser hf` and SGLang (`--reasoning-parser response_template`, or by itself where it knows
    no other) read it. TRL adds its own only to a tokenizer without one: to train with `tools=`, call
    `trl.chat_template_utils.add_response_schema(tokenizer)` before, whose field for tool calls is kept.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template; its `response_template` is set or replaced.
        fmt ([`ThinkFormat`], *optional*):
            The markers that the model writes. `None` detects them, and takes `<think>` if nothing shows any.

    Raises:
        `ValueError`: As [`response_template`].

    Example:

    ```python
    >>> from think_tools.templates import set_response_template
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> set_response_template(tokenizer)
    >>> prompt = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    >>> tokenizer.parse_response("<think>2 and 2", prefix=prompt)  # cut by the length limit
    {'role': 'assistant', 'thinking': '2 and 2'}
    ```
    """
    tokenizer.response_template = response_template(tokenizer, fmt)


def response_template(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None = None) -> dict[str, Any]:
    r"""
    Describe how the output of the tokenizer's chat template splits into reasoning and answer.

    Reads as [`parse`] does: reasoning opens only at the very beginning (`\A`), so a `<think>` in the answer stays text
    and no second block overwrites the first; it streams from its first token; cut reasoning stays reasoning. Every way
    to cut an output gives the same. What follows the end of turn, such as padding, is dropped. Three things that
    [`parse`] reads otherwise stay text: an opening marker that the model repeats after a prompt that wrote it (in the
    reasoning), text before the reasoning together with it, and an answer's closing marker before more text (in the
    answer).

    The field is named `thinking`, because vLLM and SGLang refuse `reasoning_content`; its closing markers are
    literals, the first of which both servers take for the end of reasoning (with a pattern, vLLM would read the whole
    output again at each token). The opening marker is a pattern, which vLLM cannot take for its thinking budget: pass
    `--reasoning-config '{"reasoning_start_str": "<think>"}'` there. Tool calls stay text of the answer, unless the
    tokenizer has a `response_template` with a field for them, which is kept: then transformers keeps, of text on both
    sides of a call, the last piece only.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        fmt ([`ThinkFormat`], *optional*):
            The markers that the model writes. `None` detects them, and takes `<think>` if nothing shows any.

    Returns:
        `dict`: The template, made of strings, lists and dicts only.

    Raises:
        `ValueError`: If `tokenizer` has no chat template, or one that begins an answer with no header or ends it with
            no token, while there is no end of sequence either.

    Example:

    ```python
    >>> from think_tools.templates import response_template
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> tokenizer.parse_response("<think>2+2</think>4<|im_end|>", response_template(tokenizer), prefix="")
    {'role': 'assistant', 'thinking': '2+2', 'content': '4'}
    ```
    """
    fmt = fmt or detect_format(tokenizer) or THINK
    header, bare = _header(tokenizer, fmt) if tokenizer.chat_template else ("", False)
    stops = _stops(tokenizer, fmt) if header else []
    if not (stops or (header and fmt.answer_close)):
        part = "ends an answer with no token" if header else "begins an answer with no header"
        raise ValueError(
            f"`tokenizer` has {f'a chat template that {part}' if tokenizer.chat_template else 'no chat template'}, so "
            'answers cannot be found in a chat: `set_chat_template(tokenizer, "chatml_think")` gives it one of ours.'
        )
    opening, closing = _any_of(spellings(fmt, fmt.open)), _any_of(spellings(fmt, fmt.close))
    if bare or fmt.bare_close:
        opening = f"(?:{opening}|(?={closing}))"
    thought = rf"\A\s*(?:{opening}(?:(?!{closing})[\s\S])*{closing}\s*)?"
    close, ends = [*spellings(fmt, fmt.close), *stops], _answer_ends(fmt, header, thought, _any_of(stops))
    old = (tokenizer.response_template or {}).get("fields", {})
    fields = {
        "thinking": {"open_pattern": rf"\A\s*{opening}", "close": close, "content": "text"},
        "content": {"close_pattern": "|".join(ends), "content": "text"},
        **{name: field for name, field in old.items() if name == "tool_calls"},
    }
    return {"defaults": {"role": "assistant"}, "start_anchor": header, "fields": fields}


def _answer_ends(fmt: ThinkFormat, header: str, thought: str, stop: str) -> list[str]:
    """Patterns of what is no text of the answer: its markers, and all from the end of turn on."""
    # Whatever followed would begin a second answer, which replaces the first. At `\G` the answer begins: there is none
    # if the stop has ended the reasoning.
    ends, answer_close = [rf"{stop}[\s\S]*", rf"\G(?<={stop})[\s\S]+"], _any_of([fmt.answer_close])
    if fmt.answer_open:  # to close an answer that has not begun yet only leaves the marker out
        # A header that begins the marker also begins any other message after the reasoning, such as a tool call.
        headers = [header] if fmt.answer_open.startswith(header) else []
        begin = _any_of([*spellings(fmt, fmt.answer_open), *headers])
        ends.append(rf"{begin}(?<={thought}{begin})")
        answer_close += rf"(?<={thought}{begin}[\s\S]*)"
    if fmt.answer_close:
        ends.append(rf"{answer_close}\s*(?:\Z|{stop}[\s\S]*)")
    return ends


def _any_of(literals: Sequence[str]) -> str:
    """
    A pattern of literals, of none of them without any. One that begins another must not match while the other may
    still come, or streamed text would be read otherwise than the whole.
    """
    patterns = [
        re.escape(one)
        + "".join(f"(?!{re.escape(two[len(one)])})" for two in literals if two.startswith(one) and one != two)
        for one in literals
    ]
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns or ['(?!)'])})"


def _header(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> tuple[str, bool]:
    """What begins every answer, `""` if nothing does; and whether a prompt closes a thought that it never opened."""
    marker = f"({re.escape(fmt.open)}|{re.escape(fmt.close)})"
    prompts = [re.split(marker, generation_prompt(tokenizer, **state), maxsplit=1) for state in STATES]
    header = os.path.commonprefix([prompt[0] for prompt in prompts])  # noqa: RUF071 (of characters)
    if not header:  # Mistral's answers follow the end of the question
        turn = re.split(marker, _around(tokenizer)[0])[0].strip()
        header = turn if turn in render_chat(tokenizer, [QUESTION], add_generation_prompt=True) else ""
    return header, any(prompt[1:2] == [fmt.close] for prompt in prompts)


def _stops(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> list[str]:
    """The tokens that end a turn: those after an answer, or else the one that begins the next question, and `eos`."""
    added = sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    last, inner = (
        next((token for token in added if after.startswith(token)), None)
        for after in (_around(tokenizer, *more)[1].lstrip() for more in ([], [QUESTION]))
    )
    end = end_of_turn(tokenizer)
    # Text that is no token is none of them: no model stops there, and it could be part of an answer.
    stops = (last or inner, None if end is None else tokenizer.convert_ids_to_tokens(end), tokenizer.eos_token)
    return [str(stop) for stop in dict.fromkeys(stops) if stop and stop != fmt.close]


def _around(tokenizer: PreTrainedTokenizerBase, *more: dict[str, Any]) -> tuple[str, str]:
    """What the chat template writes between a question and its answer, and after the answer."""
    before, _, after = render_chat(tokenizer, [QUESTION, ANSWER, *more]).partition(ANSWER["content"])
    return before.rpartition(QUESTION["content"])[2], after


def serving_errors(template: dict[str, Any]) -> list[str]:
    """
    List why a server would refuse a `response_template`.

    The rules are those of transformers 5.23 (`chat_parsing`), vLLM 0.33.0 (`vllm/parser/response_template.py`) and
    SGLang 0.5.23 (`sglang/srt/parser/response_template.py`), which also tries the variants with which it streams.

    Args:
        template (`dict`):
            A response template, such as `tokenizer.response_template`.

    Returns:
        `list[str]`: The causes, each a sentence that begins with who refuses it, without full stop; empty if all
        accept it.

    Example:

    ```python
    >>> from think_tools.templates import serving_errors

    >>> text = {"open": "<think>", "close": "</think>"}
    >>> for error in serving_errors({"start_anchor": "assistant:", "fields": {"reasoning_content": text}}):
    ...     print(error)
    vLLM and SGLang refuse the field 'reasoning_content': they know 'content', 'thinking', 'tool_calls'
    vLLM refuses `--reasoning-parser hf`, and SGLang finds no parser: no field 'thinking'
    ```
    """
    try:
        fields = load_response_template(template).fields
    except (TypeError, ValueError) as error:
        return [f"transformers, vLLM and SGLang refuse it: {error}"]
    errors = []
    if unknown := sorted(set(template.get("defaults", {})) - {"role"}):
        errors.append(f"vLLM and SGLang refuse the defaults {unknown}: they know 'role' only")
    for name, field in fields.items():
        if name not in SERVED:
            errors.append(f"vLLM and SGLang refuse the field {name!r}: they know {', '.join(map(repr, SERVED))}")
        elif name != "tool_calls" and (
            field.content != "text" or field.transform is not None or field.join is not None
        ):
            errors.append(f"vLLM and SGLang refuse the field {name!r}: it must be text, no `transform`, no `join`")
        if field.open_re is None and (name == "tool_calls" or (name == "thinking" and "content" in fields)):
            errors.append(f"SGLang refuses the field {name!r}: it needs `open` or `open_pattern`")
    if "thinking" not in fields:
        errors.append("vLLM refuses `--reasoning-parser hf`, and SGLang finds no parser: no field 'thinking'")
    return errors
