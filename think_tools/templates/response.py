"""The `response_template` with which transformers, vLLM and SGLang split the output of a think template."""

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat
from .generation import end_of_turn, generation_prompt


def response_template(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat = THINK) -> dict[str, Any]:
    r"""
    Describe how the output of the tokenizer's chat template splits into reasoning and answer.

    [`set_chat_template`] stores it as `tokenizer.response_template`, which `tokenizer.parse_response`, pipelines, TRL,
    vLLM and SGLang read. Reasoning opens only at the very beginning (`\A`), so a `<think>` in the answer stays text;
    it streams from the first token, and cut reasoning stays reasoning. The field is named `thinking`, because vLLM and
    SGLang refuse `reasoning_content`. Tool calls stay text of the answer. Give it no padding: what follows the end of
    turn is dropped after an answer, but counts as answer after a thought that was never closed.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers that the template writes.

    Returns:
        `dict`: The template, made of strings, lists and dicts only.

    Raises:
        `ValueError`: If the chat template begins an answer with no header or ends it with no token.

    Example:

    ```python
    >>> from think_tools.templates import response_template
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> tokenizer.parse_response("<think>2+2</think>4<|im_end|>", response_template(tokenizer), prefix="")
    {'role': 'assistant', 'thinking': '2+2', 'content': '4'}
    ```
    """
    header = re.split(f"{re.escape(fmt.open)}|{re.escape(fmt.close)}", generation_prompt(tokenizer))[0]
    end_id = end_of_turn(tokenizer)
    if not header or end_id is None:
        missing = "begins an answer with no header" if not header else "ends an answer with no token"
        raise ValueError(
            f"`tokenizer` has a chat template that {missing}, so answers cannot be found in a chat: use another "
            'template, such as `set_chat_template(tokenizer, "chatml_think")`.'
        )
    end = str(tokenizer.decode([end_id]))
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": header,
        "fields": {
            # Both servers take the first literal for the marker itself, so this is no pattern.
            "thinking": {"open_pattern": rf"\A\s*{re.escape(fmt.open)}", "close": [fmt.close, end], "content": "text"},
            # Padding after the end of turn would otherwise begin a second answer, which replaces the first.
            "content": {"close_pattern": rf"{re.escape(end)}[\s\S]*", "content": "text"},
        },
    }
