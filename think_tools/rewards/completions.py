"""Read the completions a trainer hands to a reward, whatever shape they have, into one trace each."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..formats import THINK
from ..parsing import Trace, read_completion

if TYPE_CHECKING:  # transformers loads torch, which a reward has no need of
    from transformers import PreTrainedTokenizerBase

# A completion is text or messages; `log_metric(name, value)` and `log_extra(column, values)` come from the trainer.
Completion = str | list[dict]
LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list], None]


def read_traces(
    completions: Sequence[Completion],
    *,
    prompts: Sequence[str | list[dict]] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Trace]:
    """
    Read each completion into a [`Trace`], with everything that can be known about it.

    Args:
        completions (`Sequence`):
            Texts or lists of messages.
        prompts (`Sequence`, *optional*):
            The prompts. One that is plain text shows whether it left `<think>` open.
        completion_ids (`Sequence[Sequence[int]]`, *optional*):
            The sampled token ids. Used with `tokenizer` only: they hold think markers that are special tokens, which
            trainers erase from the text, and show by the missing end token that the length limit cut the output.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer whose chat template wrote the generation prompts.

    Returns:
        `list[Trace]`: One per completion, in order.

    Example:

    ```python
    >>> from think_tools.rewards.completions import read_traces

    >>> [trace.answer for trace in read_traces(["<think>2+2</think>4", "2+2</think>4", "4"])]
    ['4', '4', '4']
    ```
    """
    template_opens = _template_opens(tokenizer) if tokenizer is not None else None
    erased = _erased_ids(tokenizer) if tokenizer is not None else frozenset()
    traces = []
    for index, completion in enumerate(completions):
        prompt = prompts[index] if prompts is not None else None
        opened = prompt.rstrip().endswith(THINK.open) if isinstance(prompt, str) else template_opens
        finished = None
        if tokenizer is not None and completion_ids is not None:
            ids = completion_ids[index]
            finished = tokenizer.eos_token_id in ids[-1:]
            if isinstance(completion, str) or len(completion) == 1:  # several messages: tool results are in the ids
                completion = str(tokenizer.decode([token for token in ids if token not in erased]))
        traces.append(read_completion(completion, opened=opened, finished=finished))
    return traces


def _template_opens(tokenizer: "PreTrainedTokenizerBase") -> bool | None:
    """Whether the chat template's generation prompt ends inside the reasoning; `None` without a template."""
    if not tokenizer.chat_template:
        return None
    turn = [{"role": "user", "content": "?"}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return str(prompt).rstrip().endswith(THINK.open)


def _erased_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids of the special tokens without the think markers: what `skip_special_tokens=True` should have erased."""
    markers = (THINK.open, THINK.close)
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token_id for token_id, token in added if token.special and token.content not in markers)
