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
# What every reward here is; `None` says that it does not apply to the completion.
Reward = Callable[..., list[float | None]]


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
            trainers erase from the text, and show by the missing end token that the length limit cut the output. Any
            other special token at the end is an end token, since a model may have several.
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
    opened = prompts_open(prompts, len(completions), tokenizer)
    erased = _erased_ids(tokenizer) if tokenizer is not None else frozenset()
    traces = []
    for index, completion in enumerate(completions):
        finished = None
        if tokenizer is not None and completion_ids is not None:
            ids = completion_ids[index]
            finished = any(token in erased or token == tokenizer.eos_token_id for token in ids[-1:])
            if isinstance(completion, str) or len(completion) == 1:  # several messages: tool results are in the ids
                completion = str(tokenizer.decode([token for token in ids if token not in erased]))
        traces.append(read_completion(completion, opened=opened[index], finished=finished))
    return traces


def prompts_open(
    prompts: Sequence[str | list[dict]] | None, count: int, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> list[bool | None]:
    r"""
    Tell for each of `count` prompts whether it ends inside the reasoning: a plain text shows it, for messages the
    tokenizer's chat template does; `None` where nothing tells.

    Example:

    ```python
    >>> from think_tools.rewards.completions import prompts_open

    >>> prompts_open(["2+2? <think>\n", "2+2?", [{"role": "user", "content": "2+2?"}]], 3)
    [True, False, None]
    ```
    """
    template = _template_opens(tokenizer) if tokenizer is not None else None
    if prompts is None:
        return [template] * count
    return [p.rstrip().endswith(THINK.open) if isinstance(p, str) else template for p in prompts]


def count_reasoning_tokens(
    traces: Sequence[Trace],
    completion_ids: Sequence[Sequence[int]] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[int]:
    """
    Count the reasoning tokens of each completion, markers not included; 0 for a direct answer.

    With a tokenizer the reasoning is tokenized anew. Without, the number is estimated: the completion's tokens times
    the reasoning's share of its characters.

    Raises:
        `ValueError`: If there is neither a tokenizer nor `completion_ids`.

    Example:

    ```python
    >>> from think_tools import parse
    >>> from think_tools.rewards.completions import count_reasoning_tokens

    >>> count_reasoning_tokens([parse("<think>2+2+2</think>6"), parse("6")], completion_ids=[[1] * 12, [1]])
    [10, 0]
    ```
    """
    if tokenizer is not None:
        return [len(tokenizer.encode(trace.reasoning or "", add_special_tokens=False)) for trace in traces]
    if completion_ids is None:
        raise ValueError(
            "`completion_ids` are missing, so reasoning tokens cannot be counted: pass `tokenizer=tokenizer` when the "
            "reward is made."
        )
    parts = [(len(trace.reasoning or ""), len(trace.answer)) for trace in traces]
    return [
        round(len(ids) * reasoning / max(1, reasoning + answer))
        for ids, (reasoning, answer) in zip(completion_ids, parts, strict=True)
    ]


def group_rows(prompts: Sequence[str | list[dict]]) -> list[list[int]]:
    """
    Row numbers of the completions of each prompt. A group that TRL spreads over several processes is several groups.

    Example:

    ```python
    >>> from think_tools.rewards.completions import group_rows

    >>> group_rows(["a", "a", "b", "b"])
    [[0, 1], [2, 3]]
    ```
    """
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(repr(prompt), []).append(row)
    return list(groups.values())


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
