"""Read the completions a trainer hands to a reward, whatever shape they have, into one trace each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from ..formats import FORMATS, THINK, ThinkFormat, detect_format
from ..parsing import Trace, read_completion

if TYPE_CHECKING:  # transformers loads torch, which a reward has no need of
    from transformers import PreTrainedTokenizerBase

# A name for annotations: the class itself would load torch.
Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
# A completion is text or messages; `log_metric(name, value)` and `log_extra(column, values)` come from the trainer.
Completion = str | list[dict]
LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list], None]
# What every reward here is; `None` says that it does not apply to the completion.
Reward = Callable[..., list[float | None]]

# Of several formats with the same opening marker the first one is read.
_GUESSED = {fmt.open: fmt for fmt in reversed(FORMATS.values()) if not fmt.open[0].isalnum()}.values()


class CompletionReader:
    """
    Reads completions into one [`Trace`] each, with everything that can be known about them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer whose chat template wrote the generation prompts.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None`: those that `detect_format(tokenizer)` finds; without a tokenizer, or if it shows none,
            those of [`FORMATS`] with which a completion begins, else `THINK`. Markers made of words ("Here is my
            thought process:") may begin an answer, too, so they are never guessed.
        strict (`bool`, *optional*, defaults to `False`):
            Whether nothing is guessed or overlooked: `THINK` where `fmt=None` finds nothing, text before the opening
            marker is answer, and answers keep the answer markers of a format that has them.

    Example:

    ```python
    >>> from think_tools.rewards.completions import CompletionReader

    >>> written = ["<think>2+2</think>4", "2+2</think>4", "4", "[THINK]2+2[/THINK]4"]
    >>> [trace.answer for trace in CompletionReader().read(written)]
    ['4', '4', '4', '4']
    ```
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        fmt: ThinkFormat | None = None,
        strict: bool = False,
    ) -> None:
        self.tokenizer, self.fmt, self.strict = tokenizer, fmt, strict

    def known_format(self) -> ThinkFormat | None:
        """The given format, else the tokenizer's; `None` if neither tells."""
        return self.fmt or (detect_format(self.tokenizer) if self.tokenizer is not None else None)

    def read(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[str | list[dict]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[Trace]:
        """
        Read a batch.

        Args:
            completions (`Sequence`):
                Texts or lists of messages.
            prompts (`Sequence`, *optional*):
                The prompts. One that is plain text shows whether it left the reasoning open.
            completion_ids (`Sequence[Sequence[int]]`, *optional*):
                The sampled token ids. Used with a tokenizer only: they hold markers that are special tokens, which
                trainers erase from the text, and show by the missing end token that the length limit cut the output.
                Any other special token at the end is an end token, since a model may have several.
            **columns:
                What else a trainer passes; not used.

        Returns:
            `list[Trace]`: One per completion, in order.
        """
        known = self.known_format()
        fmt = known or THINK
        erased, ends = self._erased_ids(fmt), fmt.answer_close
        if self.strict:
            fmt = replace(fmt, answer_open="", answer_close="", stop=(), text_before=False)
        traces = []
        for index, opened in enumerate(self.opened(prompts, len(completions))):
            completion, finished = completions[index], None
            if self.tokenizer is not None and completion_ids is not None:
                ids = completion_ids[index]
                text = str(self.tokenizer.decode([token for token in ids if token not in erased]))
                finished = any(token in erased or token == self.tokenizer.eos_token_id for token in ids[-1:])
                finished |= bool(ends) and text.endswith(ends)
                # Of several messages the ids hold the tools' results, too.
                completion = text if isinstance(completion, str) or len(completion) == 1 else completion
            trace = read_completion(completion, opened=opened, fmt=fmt, finished=finished)
            if not (known or self.strict) and trace.reasoning is None and (other := guess_format(trace.answer)):
                trace = read_completion(completion, opened=opened, fmt=other, finished=finished)
            traces.append(trace)
        return traces

    def opened(self, prompts: Sequence[str | list[dict]] | None, count: int) -> list[bool | None]:
        r"""
        Tell for each of `count` prompts whether it ends inside the reasoning: a plain text shows it, for messages the
        tokenizer's chat template does; `None` where nothing tells.

        Example:

        ```python
        >>> from think_tools.rewards.completions import CompletionReader

        >>> CompletionReader().opened(["2+2? <think>\n", "2+2?", [{"role": "user", "content": "2+2?"}]], 3)
        [True, False, None]
        ```
        """
        fmt = self.known_format() or THINK
        template = self._template_opens(fmt)
        if prompts is None:
            return [template] * count
        return [p.rstrip().endswith(fmt.open) if isinstance(p, str) else template for p in prompts]

    def _template_opens(self, fmt: ThinkFormat) -> bool | None:
        """Whether the chat template's generation prompt ends inside the reasoning; `None` if that cannot be known."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            return None
        turn = [{"role": "user", "content": "?"}]
        prompt = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)).rstrip()
        # What is closed by default, the trainer's `chat_template_kwargs` may have opened: no reward is told.
        return None if prompt.endswith(fmt.close) else prompt.endswith(fmt.open)

    def _erased_ids(self, fmt: ThinkFormat) -> frozenset[int]:
        """Ids of the special tokens outside all markers: what `skip_special_tokens=True` should have erased."""
        markers = (fmt.open, fmt.close, fmt.answer_open, fmt.answer_close, *chain(*fmt.variants))
        added = self.tokenizer.added_tokens_decoder if self.tokenizer is not None else {}
        return frozenset(
            token_id
            for token_id, token in added.items()
            if token.special and not any(token.content in marker for marker in markers)
        )


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


def guess_format(text: str) -> ThinkFormat | None:
    """
    Return the first of [`FORMATS`] with whose opening marker a text begins, or `None`; words are no such marker.

    Example:

    ```python
    >>> from think_tools.rewards.completions import guess_format

    >>> guess_format("[THINK]2+2[/THINK]4").name
    'magistral'
    ```
    """
    return next((fmt for fmt in _GUESSED if text.startswith(fmt.open)), None)
