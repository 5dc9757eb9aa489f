"""The chat templates of this folder: read one, or put it on a tokenizer together with the way to parse its output."""

import json
import logging
import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..formats import FORMATS, THINK
from .response import response_template

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
# The line of each template that gives the variable `instruction` its default.
INSTRUCTION = re.compile(r'(?<=\{%- set instruction = instruction if instruction is string else )".*"(?= -%\}$)', re.M)
# The token that ends what the model writes, in the templates that do not take the tokenizer's `eos_token`.
END = re.compile(r'\{\{- "(.+)" -\}\}\s*\{%- endgeneration')
THINK_MARKERS = (THINK.open, THINK.close)


def load_template(name: str) -> str:
    """
    Read a chat template of this package, without a tokenizer: what [`set_chat_template`] stores.

    Args:
        name (`str`):
            `"chatml_think"` (chat models and everything new); `"llama3_think"`, `"gemma_think"`, `"mistral_think"` and
            `"plain_think"` (the same behaviour in the turns of these families, or in plain text, for base models
            without a template); `"r1_zero"` (User/Assistant text) or `"instruct_cot"` (Instruction/Question/Response
            text), which open the reasoning in the prompt. `templates/README.md` tells where they come from.

    Returns:
        `str`: The Jinja template.

    Raises:
        `ValueError`: If there is no template of that name.

    Example:

    ```python
    >>> from think_tools.templates import load_template

    >>> "{%- generation -%}" in load_template("chatml_think")
    True
    ```
    """
    names = sorted(path.stem for path in FOLDER.glob("*.jinja"))
    if name not in names:
        raise ValueError(f"`name` must be one of {names}, got {name!r}.")
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name: str, *, instruction: str | None = None) -> None:
    """
    Give a tokenizer one of our chat templates and the `response_template` that parses its output.

    Both are saved by `save_pretrained` and `push_to_hub`, so whoever loads the tokenizer renders and parses alike.
    `"chatml_think"` ends turns in `<|im_end|>`, `"llama3_think"` in `<|eot_id|>`, `"gemma_think"` in `<end_of_turn>`:
    if the tokenizer has another end of sequence, it becomes `tokenizer.eos_token`, with a warning, for generation
    would not stop otherwise. The others end in the tokenizer's own `eos_token`. `<think>` and `</think>` need not be
    tokens: they then are ordinary text, of a few tokens each, and everything works but what needs them as single ids,
    such as [`think_lora_config`]; [`add_think_tokens`] makes them tokens.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer, changed in place. Its vocabulary is never changed.
        name (`str`):
            Name of the template, see [`load_template`].
        instruction (`str`, *optional*):
            Text that tells the model what to do: a persona, or the wording of a paper. It replaces the template's own
            (those named `…_think` have none and make it the system message; a system message of the chat follows it).
            `""` leaves it out. `None` keeps the template's. A single render takes another with
            `apply_chat_template(..., instruction=...)`, which is not checked.

    Raises:
        `ValueError`: If there is no template `name`, if `instruction` names markers that the template does not write,
            or if the tokenizer has no token that could end a turn.

    Example:

    ```python
    >>> from think_tools.templates import set_chat_template
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> set_chat_template(tokenizer, "r1_zero", instruction="Think like a chemist, then answer.")
    >>> print(tokenizer.apply_chat_template([{"role": "user", "content": "Why is rust red?"}],
    ...                                     add_generation_prompt=True, tokenize=False))
    Think like a chemist, then answer.
    <BLANKLINE>
    User: Why is rust red?
    Assistant: <think>
    <BLANKLINE>
    ```
    """
    template = load_template(name)
    if instruction is not None:
        _check_markers(instruction)
        literal = json.dumps(instruction, ensure_ascii=False)  # a Jinja string literal reads JSON's escapes
        template = INSTRUCTION.sub(lambda _: literal, template)
    end = END.search(template)
    _end_turns(tokenizer, name, end[1] if end else tokenizer.eos_token)  # type: ignore[arg-type]
    tokenizer.chat_template = template
    tokenizer.response_template = None  # a field for tool calls belongs to the template that is replaced
    tokenizer.response_template = response_template(tokenizer)
    if set(THINK_MARKERS) & set(tokenizer.all_special_tokens):
        logger.warning(
            "The think markers are special tokens of this tokenizer: `skip_special_tokens=True`, the default of "
            "most servers, erases them from the text before anything can parse it."
        )


def _check_markers(instruction: str) -> None:
    """Models obey the instruction, parsers the template: the two must name the same markers."""
    others = {marker for fmt in FORMATS.values() for marker in (fmt.open, fmt.close)} - set(THINK_MARKERS)
    # Markers made of words, such as "Here is my response:", may be ordinary prose.
    named = sorted(marker for marker in others if not marker[0].isalnum() and marker in instruction)
    if named:
        raise ValueError(
            f"`instruction` names {', '.join(named)}, but the template writes {THINK.open} and {THINK.close}: name "
            "those instead, or the answer cannot be told from the reasoning."
        )


def _end_turns(tokenizer: PreTrainedTokenizerBase, name: str, end: str | None) -> None:
    """Make sure that generation stops where the template ends a turn."""
    if end is None:
        raise ValueError(f"`tokenizer` has no `eos_token`, with which {name!r} ends a turn: set one first.")
    if len(tokenizer.encode(end, add_special_tokens=False)) != 1:
        raise ValueError(
            f"`tokenizer` has no single token {end}, with which {name!r} ends a turn, so generation would not stop. "
            'Use "plain_think", "r1_zero" or "instruct_cot", which end in the tokenizer\'s own `eos_token`, or add '
            f'the token (`tokenizer.add_special_tokens({{"eos_token": "{end}"}})`) and a row for it to the model.'
        )
    if tokenizer.eos_token != end:
        logger.warning(
            f"`tokenizer.eos_token` was {tokenizer.eos_token!r} and is {end!r} now, with which {name!r} ends a turn. "
            "Trainers take it over into the model; elsewhere set "
            "`model.generation_config.eos_token_id = tokenizer.eos_token_id`, or generation does not stop."
        )
        tokenizer.eos_token = end
