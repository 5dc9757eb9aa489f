"""What a chat template writes around an answer: the prompt before it, open or closed, and the token after it."""

import re
from itertools import takewhile
from typing import Any, Literal, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat, detect_format

PromptState = Literal["open", "closed", "neither"]

QUESTION = {"role": "user", "content": "A question."}
ANSWER = {"role": "assistant", "content": "An answer."}


def generation_prompt(tokenizer: PreTrainedTokenizerBase, **chat_template_kwargs: Any) -> str:
    r"""
    Render the text that the chat template puts between the last message and what the model writes.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        **chat_template_kwargs:
            Variables of the template, such as `enable_thinking=False`.

    Returns:
        `str`: The text that `add_generation_prompt=True` adds to a chat of one question; `""` if it adds nothing.

    Example:

    ```python
    >>> from think_tools.templates import generation_prompt
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> generation_prompt(tokenizer, enable_thinking=False)
    '<|im_start|>assistant\n<think>\n\n</think>\n\n'
    ```
    """
    chat, prompt = (
        render_chat(tokenizer, [QUESTION], add_generation_prompt=each, **chat_template_kwargs)
        for each in (False, True)
    )
    return added_text(chat, prompt)


def added_text(chat: str, prompt: str) -> str:
    """
    Tell what a generation prompt adds to a chat.

    Args:
        chat (`str`):
            The chat, rendered without generation prompt.
        prompt (`str`):
            The same with it.

    Returns:
        `str`: The end of `prompt`. It begins with a whole token where the template ends every other chat in another
        one, as Phi-3 does.

    Example:

    ```python
    >>> from think_tools.templates.generation import added_text

    >>> added_text("<|user|>2+2?<|end|><|endoftext|>", "<|user|>2+2?<|end|><|assistant|>")
    '<|assistant|>'
    ```
    """
    if prompt.startswith(chat):
        return prompt[len(chat) :]
    same = next((i for i, (a, b) in enumerate(zip(chat, prompt, strict=False)) if a != b), len(prompt))
    return prompt[len(re.sub(r"<[^<>]*$", "", prompt[:same])) :]


def prompt_state(
    tokenizer: PreTrainedTokenizerBase, *, fmt: ThinkFormat | None = None, **chat_template_kwargs: Any
) -> PromptState:
    """
    Tell how the generation prompt leaves the reasoning, which a parser must know and cannot see in the output.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        fmt ([`ThinkFormat`], *optional*):
            The markers that the template writes. `None` takes those of [`detect_format`], or else `THINK`.
        **chat_template_kwargs:
            Variables of the template, such as `enable_thinking=False`.

    Returns:
        `str`: `"open"` if the prompt ends inside the reasoning (pass `opened=True` to [`parse`]), `"closed"` if it has
        closed it already, so that the model answers at once, and `"neither"` if the model itself decides.

    Example:

    ```python
    >>> from think_tools.templates import prompt_state
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> prompt_state(tokenizer), prompt_state(tokenizer, enable_thinking=False)
    ('neither', 'closed')
    ```
    """
    prompt = generation_prompt(tokenizer, **chat_template_kwargs)
    return state_of(prompt, fmt or detect_format(tokenizer) or THINK)


def state_of(prompt: str, fmt: ThinkFormat) -> PromptState:
    """
    Tell how a generation prompt leaves the reasoning.

    Args:
        prompt (`str`):
            What the template adds for the answer, see [`generation_prompt`]; not the messages before it.
        fmt ([`ThinkFormat`]):
            The markers.

    Returns:
        `str`: As [`prompt_state`].

    Example:

    ```python
    >>> from think_tools import THINK
    >>> from think_tools.templates.generation import state_of

    >>> state_of("Assistant: <think>", THINK)
    'open'
    ```
    """
    opened, closed = prompt.rfind(fmt.open), prompt.rfind(fmt.close)
    if opened == closed:  # both -1
        return "neither"
    return "open" if opened > closed else "closed"


def end_of_turn(tokenizer: PreTrainedTokenizerBase, **chat_template_kwargs: Any) -> int | None:
    """
    Find the token that the chat template writes after an answer, which a model must learn in order to stop.

    It is not always `tokenizer.eos_token_id`: Gemma's turns end in `<end_of_turn>`, its documents in `<eos>`. Where
    several tokens follow, as Cohere's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`, it is the last that also stands between
    two turns; what a template adds to the end of a whole chat only (Phi-3) is none.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        **chat_template_kwargs:
            Variables of the template.

    Returns:
        `int` or `None`: The token id, an added token or the `eos_token`; `None` if the template writes none after the
        last answer. Text of several ordinary tokens is no end: generation could not stop at it.

    Example:

    ```python
    >>> from think_tools.templates import end_of_turn
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    '<|im_end|>'
    ```
    """
    tails = (
        render_chat(tokenizer, chat, **chat_template_kwargs).partition(ANSWER["content"])[2]
        for chat in ([QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION, ANSWER])
    )
    last, inner = (tokenizer.encode(tail, add_special_tokens=False) for tail in tails)
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, inner, strict=False))]
    ends = tokenizer.added_tokens_decoder
    # gpt-oss ends a chat in <|return|> and any other turn in <|end|>: then it is what ends the chat.
    found = (token for tokens in (shared, last) for token in reversed(tokens))
    return next((token for token in found if token in ends or token == tokenizer.eos_token_id), None)


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> str:
    r"""
    Render a chat that holds `QUESTION`, also with the templates of vision models, which read lists of parts only.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        messages (`list[dict]`):
            The messages. If the template loses the question, every content is written as a list of one part.
        **options:
            Arguments of `apply_chat_template` and variables of the template.

    Returns:
        `str`: The text.

    Raises:
        `jinja2.TemplateError`: If the template renders neither form.

    Example:

    ```python
    >>> from think_tools.templates.generation import QUESTION, render_chat
    >>> from think_tools.tiny import load_tiny

    >>> render_chat(load_tiny()[1], [QUESTION])
    '<|im_start|>user\nA question.<|im_end|>\n'
    ```
    """
    try:
        text = cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **options))
        if QUESTION["content"] in text:
            return text
    except (TemplateError, TypeError):  # templates index, add and slice what they take for a list
        pass
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return cast(str, tokenizer.apply_chat_template(parts, tokenize=False, **options))
