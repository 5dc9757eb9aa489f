"""The one check that a tokenised row trains what was meant, shared by `prepare_sft` and `preflight`."""

from collections.abc import Mapping, Sequence
from operator import ne
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat, detect_format
from ..parsing import Trace, read_completion
from .generation import end_of_turn

IGNORED = -100
PROMPT_TAIL = 64  # tokens: room for an empty think block that is written in bytes


def check_labels(
    input_ids: Sequence[int],
    labels: Sequence[int],
    prompt_ids: Sequence[int],
    message: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkFormat | None = None,
    end_id: int | None = None,
) -> list[str]:
    """
    List what is wrong with the labels of one row.

    The trained part must hold the reasoning, the answer and the token that ends the turn; the row must begin with the
    prompt that the model will see; and nobody should train an empty think block, which teaches a model to stop
    thinking. Trainers find none of this an error: the loss falls all the same.

    Args:
        input_ids (`list[int]` of length `sequence`):
            Token ids of the whole row.
        labels (`list[int]` of length `sequence`):
            The token id where it is trained, `-100` elsewhere.
        prompt_ids (`list[int]`):
            Token ids of the prompt, rendered with `add_generation_prompt=True` and the row's template variables.
        message (`dict`):
            The assistant message that the row should train, with `reasoning_content` or inline markers.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer, with its chat template, that made the ids.
        fmt ([`ThinkFormat`], *optional*):
            The markers that the template writes. `None` finds them by `detect_format`, or takes `THINK`.
        end_id (`int`, *optional*):
            The token that ends the turn. `None` calls [`end_of_turn`], which renders two chats: for many rows pass its
            result.

    Returns:
        `list[str]`: The causes, each a sentence without subject and full stop; empty if the row is right.

    Example:

    ```python
    >>> from think_tools.templates import check_labels
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> prompt = [{"role": "user", "content": "2+2?"}]
    >>> answer = {"role": "assistant", "content": "4"}
    >>> ids = tokenizer.apply_chat_template([*prompt, answer])["input_ids"]
    >>> prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    >>> check_labels(ids, ids, prompt_ids, {**answer, "reasoning_content": "2 and 2 is 4"}, tokenizer)
    ['the chat template drops the reasoning: it is nowhere in the row']
    ```
    """
    if len(input_ids) != len(labels):
        return [f"`labels` must be as long as `input_ids`, {len(input_ids)} tokens, got {len(labels)}"]
    if sum(map(ne, input_ids, labels)) != labels.count(IGNORED):
        return ["a label is neither the token of its position nor -100"]
    start = len(prompt_ids)
    if list(input_ids[:start]) != list(prompt_ids):
        return [_not_a_prefix(input_ids, prompt_ids, tokenizer)]
    row, trained = input_ids[start:], [label for label in labels[start:] if label != IGNORED]
    fmt = fmt or detect_format(tokenizer) or THINK
    trace, end = read_completion(message, fmt=fmt), end_of_turn(tokenizer) if end_id is None else end_id
    cut = end is not None and end not in row
    texts = [_text(tokenizer, ids) for ids in (trained, row)]
    thoughts, answers = zip(*(_places(text, trace, fmt) for text in texts), strict=True)
    before = _text(tokenizer, prompt_ids[-PROMPT_TAIL:]).rstrip()
    lost = _lost("reasoning", trace.reasoning or "", thoughts, cut, tokenizer)
    return [
        *(lost or _broken_block(trace.reasoning, texts[0].lstrip(), before, fmt)),
        *_lost("answer", trace.answer, answers, cut, tokenizer),
        *(cause for name in _called(message) for cause in _lost(f"call of {name}", name, texts, cut, tokenizer)),
        *_endless(end, trained, tokenizer),
    ]


def _called(message: Mapping[str, Any]) -> list[str]:
    """Names of the functions that a message calls, in OpenAI's form or flat."""
    return [(call.get("function") or call)["name"] for call in message.get("tool_calls") or ()]


def _not_a_prefix(input_ids: Sequence[int], prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    pairs = zip(input_ids, prompt_ids, strict=False)
    at = next((i for i, (row, prompt) in enumerate(pairs) if row != prompt), len(input_ids))
    seen, written = (_text(tokenizer, ids[at : at + 8]) for ids in (prompt_ids, input_ids))
    return (
        f"the row does not begin with the prompt: from token {at} the model will see {seen!r}, but learns {written!r}"
    )


def _places(text: str, trace: Trace, fmt: ThinkFormat) -> tuple[str, str]:
    """The stretches of a text in which reasoning and answer should stand: a short one may also occur elsewhere."""
    thought, closed, answer = text.partition(fmt.close)
    if closed and trace.reasoning and fmt.close not in trace.reasoning:
        return thought.replace(fmt.open, "", 1), answer
    at = text.rfind(trace.answer)
    return (text, text) if at < 0 or closed else (text[:at], text[at:])


def _lost(part: str, text: str, places: Sequence[str], cut: bool, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whether `text` is missing where it should stand, given what is trained and the row, and where it was lost."""
    trained, row = (_holds(place, text, tokenizer) for place in places)
    if trained:
        return []
    if row:
        return [f"the {part} is in the row, but not trained, or not all of it"]
    if cut:
        return [f"the {part} is cut: the row ends before it does, so raise the length limit"]
    return [f"the chat template drops the {part}: it is nowhere in the row"]


def _holds(whole: str, text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    if text in whole:
        return True
    # Normalisers, unknown characters and joined spaces change text on its way through the tokenizer.
    again = _text(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    return "".join(again.split()) in "".join(whole.split())


def _broken_block(reasoning: str | None, trained: str, before: str, fmt: ThinkFormat) -> list[str]:
    """What is wrong between the markers, given the decoded prompt and the decoded trained part."""
    causes = []
    if reasoning and fmt.close in reasoning:
        causes.append(f"the reasoning itself holds {fmt.close}, which ends it there")
    if reasoning and before.endswith(fmt.close):
        causes.append("it has reasoning, but its prompt has closed the thinking already (`enable_thinking=False`)")
    after = trained.removeprefix(fmt.open).lstrip()
    if after.startswith(fmt.close) and not reasoning and (before.endswith(fmt.open) or trained.startswith(fmt.open)):
        causes.append("an empty think block is trained: pass `enable_thinking=False` for answers without reasoning")
    if reasoning and fmt.close not in trained:
        causes.append(f"{fmt.close} is not trained, so the model never learns to end its thinking")
    return causes


def _endless(end: int | None, trained: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if end is None:
        return ["the chat template writes no token after an answer, so the model never learns to stop"]
    if end in trained:
        return []
    return [f"the end of turn {_text(tokenizer, [end])} is not trained, so the model never learns to stop"]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    # An array, because of a list the type of each number is looked at first, which takes longer than the decoding.
    return str(tokenizer.decode(np.asarray(ids, dtype=np.int64), clean_up_tokenization_spaces=False))
