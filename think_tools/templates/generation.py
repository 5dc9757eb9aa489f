"""What a chat template writes around an answer: the prompt before it, open or closed, and the token after it."""

from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat

PromptState = Literal["open", "closed", "neither"]

QUESTION = {"role": "user", "content": "?"}
ANSWER = "An answer."


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
    chat = _render(tokenizer, [QUESTION], add_generation_prompt=False, **chat_template_kwargs)
    prompt = _render(tokenizer, [QUESTION], add_generation_prompt=True, **chat_template_kwargs)
    same = next((i for i, (a, b) in enumerate(zip(chat, prompt, strict=False)) if a != b), len(chat))
    return prompt[same:]


def prompt_state(
    tokenizer: PreTrainedTokenizerBase, *, fmt: ThinkFormat = THINK, **chat_template_kwargs: Any
) -> PromptState:
    """
    Tell how the generation prompt leaves the reasoning, which a parser must know and cannot see in the output.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers that the template writes.
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
    opened, closed = prompt.rfind(fmt.open), prompt.rfind(fmt.close)
    if opened == closed:  # both -1
        return "neither"
    return "open" if opened > closed else "closed"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """
    Find the token that the chat template writes after an answer, which a model must learn in order to stop.

    It is not always `tokenizer.eos_token_id`: Gemma's turns end in `<end_of_turn>`, its documents in `<eos>`.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer with a chat template.

    Returns:
        `int` or `None`: The token id, or `None` if the template writes nothing after the last answer.

    Example:

    ```python
    >>> from think_tools.templates import end_of_turn
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    '<|im_end|>'
    ```
    """
    chat = _render(tokenizer, [QUESTION, {"role": "assistant", "content": ANSWER}])
    end = chat.rpartition(ANSWER)[2].strip()
    return tokenizer.encode(end, add_special_tokens=False)[0] if end else None


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> str:
    return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, **options))
