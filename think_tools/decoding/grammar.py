"""A grammar for the answer that leaves the reasoning alone."""

from collections.abc import Callable

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..formats import ThinkFormat
from .phases import ANSWER, THINKING, Rows, end_tokens, refused

# As transformers calls its processors: tokens and scores of the rows in, scores out.
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def after_think(
    make_processor: Callable[[], Processor], tokenizer: PreTrainedTokenizerBase, *, fmt: ThinkFormat | None = None
) -> LogitsProcessor:
    r"""
    Switch a logits processor on at the closing marker, in each row when this row gets there.

    A grammar that held from the first token would forbid the reasoning. Here each row gets a processor of its own,
    which sees its row alone, at every step from the closing marker to the end of the turn. A model that decides itself
    whether it thinks may either open the reasoning or begin the answer by the grammar. Models write white space after
    the closing marker, so a grammar should begin with optional white space.

    Args:
        make_processor (`Callable[[], Callable]`):
            Makes a new processor, for one row: `lambda: xgrammar.contrib.hf.LogitsProcessor(compiled_grammar)`,
            `lambda: outlines_processor_of(schema)`, or a few lines around an `llguidance.LLMatcher`. It is
            called with `input_ids` of shape `(1, sequence)`, prompt included, and `scores` of shape `(1, vocabulary)`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` finds them by [`detect_format`], or else takes `THINK`.

    Returns:
        [`~transformers.LogitsProcessor`]: A processor for any number of rows, which raises `ValueError` with
        continuous batching.

    Example:

    ```python
    >>> from think_tools.decoding import after_think
    >>> from think_tools.tiny import load_tiny

    >>> model, tokenizer = load_tiny("thinker")
    >>> prompt = tokenizer.apply_chat_template(
    ...     [{"role": "user", "content": "12*13=?"}], add_generation_prompt=True, return_tensors="pt"
    ... )
    >>> allowed = tokenizer.encode("\n7") + [tokenizer.eos_token_id]
    >>> only_sevens = lambda: lambda input_ids, scores: scores.index_fill(
    ...     1, torch.tensor([i for i in range(scores.shape[1]) if i not in allowed]), float("-inf")
    ... )
    >>> import torch
    >>> output = model.generate(
    ...     **prompt, logits_processor=[after_think(only_sevens, tokenizer)], max_new_tokens=300, do_sample=False
    ... )
    >>> set(tokenizer.decode(output[0], skip_special_tokens=True).partition("</think>")[2].strip())
    {'7'}
    ```
    """
    return _AfterThink(make_processor, tokenizer, fmt)


class _AfterThink(LogitsProcessor):
    supports_continuous_batching = refused  # type: ignore[assignment]

    def __init__(
        self, make_processor: Callable[[], Processor], tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None
    ) -> None:
        self._make, self._rows = make_processor, Rows(tokenizer, fmt)
        self._ends = {*end_tokens(tokenizer, self._rows.table.fmt)}
        self._processors: dict[int, Processor] = {}
        self._ended: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Scores of shape `(batch, vocabulary)`; the rows that answer are changed in place."""
        rows = self._rows
        if rows.update(input_ids) is None:
            self._processors, self._ended = {}, set()
        for row, state in enumerate(rows.states):
            phase = rows.table.phases[state]
            if phase == THINKING:
                self._processors.pop(row, None)  # begun in case the model did not think
                continue
            if row in self._processors and rows.last(row) in self._ends:
                self._ended.add(row)
            if row in self._ended:
                continue
            opening = [] if phase == ANSWER else rows.table.leads_to(state, set(range(ANSWER)))
            own = scores[row, opening].clone()
            if rows.table.states[state][1]:  # an opening marker of several tokens has begun: it must go on
                scores[row] = float("-inf")
            else:
                processor = self._processors.get(row) or self._processors.setdefault(row, self._make())
                scores[row] = processor(input_ids[row : row + 1], scores[row : row + 1])[0]
            scores[row, opening] = own
        return scores
