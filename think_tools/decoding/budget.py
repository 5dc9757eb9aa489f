"""How long a model thinks: budgets that close its reasoning, waits that prolong it, words that it may not think."""

from collections.abc import Container, Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..formats import ThinkFormat
from .phases import ANSWER, THINKING, Rows, end_tokens, refused

_INF = float("inf")
# NoWait (https://huggingface.co/papers/2506.08343), without the words that are seldom one token.
_REFLECTION = (
    "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check", "oh", "maybe", "verify",
    "other", "again", "now", "ah", "any",
)  # fmt: skip


class ThinkingBudget(LogitsProcessor):
    r"""
    Keeps the reasoning of every row within a number of tokens, and whole: the model cannot end its turn in it.

    Works with streaming, batches, `num_return_sequences` and beams, and for prompts that leave the reasoning open,
    have closed it or leave it to the model. One processor can serve many generations, one at a time. It writes into
    the scores, so `output_logits` shows its bans.

    The scores of tokens that the tokenizer does not have are `-inf`: models pad their vocabulary, and a padding id
    that was sampled cannot be read back. With `num_wait`, a model tries to end its reasoning when the closing marker,
    or the end of its turn, is its likeliest token; until then it cannot be drawn. Source of the waits: s1 (https://huggingface.co/papers/2501.19393).

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        thinking_token_budget (`int`, *optional*):
            Tokens of reasoning after which it is closed, those of a prefilled prompt included. `None` never closes it.
        min_thinking_tokens (`int`, *optional*, defaults to `0`):
            Tokens of reasoning before which it cannot be closed. A model that opens no reasoning need not think.
        closing_text (`str`, *optional*, defaults to `"\n"`):
            What is written, beyond the budget, before a closing marker that is forced: a sentence such as `"\n\nTime
            is up, so I answer now.\n"` keeps the answer from coming as a surprise.
        num_wait (`int`, *optional*, defaults to `0`):
            How often `wait_text` replaces the end of the reasoning, what stands in a prefilled prompt included.
        wait_text (`str`, *optional*, defaults to `"\nWait,"`):
            What makes the model go on.
        eos_token_ids (`list[int]`, *optional*):
            Tokens that end a turn, beside the tokenizer's own and those that the format names.
        fmt ([`ThinkFormat`], *optional*):
            The markers, of one token or several. `None` finds them by [`detect_format`], or else takes `THINK`.

    Attributes:
        forced (`list[list[int]]`): For each row of the last generation, the positions in the sequence, prompt and
            padding included, of the tokens that were not the model's own choice; not for beam search.

    Raises:
        `ValueError`: If a number is negative or the minimum exceeds the budget; if the closing text and marker cannot
            be written; with continuous batching, where transformers asks for it.

    Example:

    ```python
    >>> from think_tools.decoding import ThinkingBudget
    >>> from think_tools.tiny import load_tiny

    >>> model, tokenizer = load_tiny("thinker")
    >>> prompt = tokenizer.apply_chat_template(
    ...     [{"role": "user", "content": "12*13=?"}], add_generation_prompt=True, return_tensors="pt"
    ... )
    >>> budget = ThinkingBudget(tokenizer, 10)
    >>> output = model.generate(**prompt, logits_processor=[budget], max_new_tokens=13, do_sample=False)
    >>> tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]).endswith("\n</think>")
    True
    ```
    """

    supports_continuous_batching = refused  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        thinking_token_budget: int | None = None,
        *,
        min_thinking_tokens: int = 0,
        closing_text: str = "\n",
        num_wait: int = 0,
        wait_text: str = "\nWait,",
        eos_token_ids: Sequence[int] = (),
        fmt: ThinkFormat | None = None,
    ) -> None:
        limit = _INF if thinking_token_budget is None else thinking_token_budget
        numbers = {"thinking_token_budget": limit, "min_thinking_tokens": min_thinking_tokens, "num_wait": num_wait}
        for name, number in numbers.items():
            if number < 0:
                raise ValueError(f"`{name}` must be at least 0, got {number}.")
        if min_thinking_tokens > limit:
            raise ValueError(
                f"`min_thinking_tokens` is {min_thinking_tokens}, more than `thinking_token_budget={limit}` allows."
            )
        self._rows, self._limit, self._min, self._num_wait = Rows(tokenizer, fmt), limit, min_thinking_tokens, num_wait
        table = self._rows.table
        self._closing = tokenizer.encode(closing_text + table.fmt.close, add_special_tokens=False)
        self._wait_text = wait_text.encode().decode("latin-1")
        self._wait = tokenizer.encode(wait_text, add_special_tokens=False) if num_wait else []
        inside = table.phases.index(THINKING)
        written = [table.advance(inside, table.text(self._closing[:n])) for n in (-1, None)]
        if [table.phases[state] for state in written] != [THINKING, ANSWER]:
            raise ValueError(
                f"`closing_text` {closing_text!r} and {table.fmt.close} must close the reasoning with their last "
                f"token, but are {tokenizer.decode(self._closing)!r} to the tokenizer: add the markers "
                "with `add_think_tokens`."
            )
        # What a row forbids depends on its mode: 0 outside of the reasoning, 1 within, from 2 on, by its state, if it
        # cannot close yet, and again by its state if it has waits left as well.
        ends = end_tokens(tokenizer, table.fmt, eos_token_ids)
        phases = table.phases if num_wait or min_thinking_tokens else []
        # Before the reasoning, thousands of tokens begin an answer; their bans would be added in every mode.
        shut = [
            {*ends, *table.leads_to(i, {ANSWER})} if phase == THINKING else set() for i, phase in enumerate(phases)
        ]
        self._waiting = 2 + len(shut)
        self._bans = _Bans([set(), set(ends), *shut, *shut], table.texts)
        self._attempted: torch.Tensor | None = None
        self.forced: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Ban and force tokens.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, sequence)`):
                The tokens so far.
            scores (`torch.Tensor` of shape `(batch, vocabulary)`):
                Logits, or log-probabilities of a beam search.

        Returns:
            `torch.Tensor` of shape `(batch, vocabulary)`: The same tensor.
        """
        rows, batch = self._rows, len(scores)
        known = self._attempted if len(self.forced) == batch else None
        attempted = rows.update(input_ids, known)
        if attempted is None:
            self.forced = [[] for _ in range(batch)]
            self._queues: list[list[int]] = [[] for _ in range(batch)]
            self._waits = [0] * batch
            if self._num_wait:  # rows that have waited already: reordered beams, prefixes that are taken up
                spans = zip(input_ids.tolist(), rows.since, strict=True)
                self._waits = [rows.table.text(ids[since:]).count(self._wait_text) for ids, since in spans]
        for row in (row for row, attempt in enumerate(attempted or ()) if attempt):
            self._waits[row] += 1
            self._queues[row] = self._wait[1:]
            self.forced[row].append(rows.length - 1)
        modes, forced = [0] * batch, {}
        phases, length = rows.table.phases, rows.length
        for row, state in enumerate(rows.states):
            if phases[state] == THINKING:
                spent = length - rows.since[row]
                if spent >= self._limit and not self._queues[row]:
                    self._queues[row] = self._closing[rows.begun(row, self._closing, int(spent - self._limit)) :]
                if self._queues[row]:
                    forced[row] = self._queues[row].pop(0)
                    self.forced[row].append(length)
                waits = self._waits[row] < self._num_wait and row not in forced
                modes[row] = self._waiting + state if waits else 2 + state if spent < self._min else 1
        if max(modes) >= self._waiting:
            self._attempted = self._bans.hit(scores, modes, self._waiting)
        elif self._attempted is not None:
            self._attempted = None
        self._bans.apply(scores, modes)
        if self._attempted is not None:
            own = scores[:, self._wait[0]].clone()
            scores.masked_fill_(self._attempted[:, None], -_INF)
            scores[:, self._wait[0]] = torch.where(self._attempted & own.isinf(), 0.0, own)
        if forced:
            at = torch.tensor([[*forced], [*forced.values()]], device=scores.device).unbind()
            own = scores[at]
            scores[at[0]] = -_INF
            scores[at] = torch.where(own.isinf(), 0.0, own)
        return scores


class SuppressReflection(LogitsProcessor):
    """
    Keeps words of doubt out of the reasoning, which makes it shorter (NoWait, https://huggingface.co/papers/2506.08343).

    The answer may hold them. A word is left out in every spelling that is one token: `wait`, ` Wait`, `WAIT,`. It
    writes into the scores, like [`ThinkingBudget`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        words (`list[str]`, *optional*):
            The words, in any case. `None` takes those of the paper that are tokens.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` finds them by [`detect_format`], or else takes `THINK`.

    Attributes:
        token_ids (`list[int]`): The tokens left out.

    Raises:
        `ValueError`: If a word of `words`, or each of the paper's, is no single token; with continuous batching.

    Example:

    ```python
    >>> from think_tools.decoding import SuppressReflection
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> tokenizer.decode(SuppressReflection(tokenizer, ["a"]).token_ids)
    'Aa'
    ```
    """

    supports_continuous_batching = refused  # type: ignore[assignment]

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str] | None = None, *, fmt: ThinkFormat | None = None
    ) -> None:
        self._rows = Rows(tokenizer, fmt)
        wanted = {word.lower() for word in (_REFLECTION if words is None else words)}
        bare = {
            token: text.strip(" \t\r\n.,:;!?").encode("latin-1").decode(errors="replace").lower()
            for token, text in self._rows.table.texts.items()
        }
        missing = wanted - {*bare.values()}
        if missing and (words is not None or missing == wanted):
            raise ValueError(
                f"`words` {sorted(missing)} are no single tokens of this tokenizer, so they cannot be suppressed: "
                "leave them out."
            )
        self.token_ids = sorted(token for token, word in bare.items() if word in wanted)
        self._bans = _Bans([set(), set(self.token_ids)])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Ban the words where the reasoning is open; arguments and result as those of [`ThinkingBudget`].
        """
        self._rows.update(input_ids)
        self._bans.apply(scores, [int(inside) for inside in self._rows.thinking()])
        return scores


class _Bans:
    """
    Tokens that rows may not write, by the mode of the row. Only a change of modes costs more than one addition.

    With `known`, tokens that it does not hold are banned in every mode.
    """

    def __init__(self, modes: list[set[int]], known: Container[int] | None = None) -> None:
        self._sets, self._known = modes, known
        self._of: tuple[int, torch.device] | None = None

    def _prepare(self, scores: torch.Tensor, modes: list[int]) -> None:
        if self._of != (scores.shape[1], scores.device):
            self._of, self._modes = (scores.shape[1], scores.device), []
            every = [] if self._known is None else [t for t in range(scores.shape[1]) if t not in self._known]
            some = sorted({token for tokens in self._sets for token in tokens if token < scores.shape[1]} - {*every})
            table = [[-_INF if t in tokens else 0.0 for t in some] for tokens in self._sets]
            self._num_some = len(some)
            self._ids = torch.tensor(some + every, device=scores.device)
            self._table = torch.tensor([row + [-_INF] * len(every) for row in table], device=scores.device)
        if modes != self._modes:
            self._modes, self._penalty = modes, self._table[modes].to(scores.dtype)

    def apply(self, scores: torch.Tensor, modes: list[int]) -> None:
        """Ban, in place, what each row's mode bans. `modes` must not be changed afterwards."""
        self._prepare(scores, modes)
        if len(self._ids):
            scores.index_add_(1, self._ids, self._penalty)

    def hit(self, scores: torch.Tensor, modes: list[int], lowest: int) -> torch.Tensor:
        """Whether the likeliest token of each row with a mode from `lowest` on is banned, of shape `(batch,)`."""
        self._prepare(scores, modes)
        ids, penalty = self._ids[: self._num_some], self._penalty[:, : self._num_some]
        banned = scores[:, ids].masked_fill(penalty == 0, -_INF).amax(1)
        return (banned >= scores.amax(1)) & torch.tensor([mode >= lowest for mode in modes], device=scores.device)
