"""Where each row of a batch stands, token by token: before its reasoning, in it, or in its answer."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..formats import THINK, ThinkFormat, detect_format, spellings

BEFORE, THINKING, ANSWER = range(3)
# Tokens of each row that are compared with those of the step before, to notice rows that are not the same any more.
_MEMORY = 8
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_TABLES: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[ThinkFormat, int], PhaseTable]]" = WeakKeyDictionary()


NO_CONTINUOUS_BATCHING = (
    "Continuous batching drops logits processors or shows them one token only, so it cannot keep a think budget. "
    "Use `model.generate`, without `cache_implementation='paged'`."
)


@property
def refused(processor: object) -> bool:
    """What transformers reads as `supports_continuous_batching`: it would drop the processor with a log line."""
    raise ValueError(NO_CONTINUOUS_BATCHING)


class PhaseTable:
    """
    The rule of [`parse`] as an automaton over tokens: `columns.get(token, other)[state]` is the next state.

    It works on the text of the tokens, so that a marker is found however the model spells it, also in a token that
    holds more than the marker. Text has one character per byte here, or half a character would be lost.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer. Reading its vocabulary takes a second of CPU time for 150,000 tokens.
        fmt ([`ThinkFormat`]):
            The markers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> None:
        self.fmt = fmt
        self.texts = _token_texts(tokenizer)  # token -> text
        self.opens, self.closes = (tuple(map(_bytes, spellings(fmt, m))) for m in (fmt.open, fmt.close))
        marks = dict.fromkeys((self.opens, self.closes))
        prefixes = tuple({m[:i] for marker in marks for m in marker for i in range(1, len(m) + 1)})
        suffixes = tuple({m[i:] for marker in marks for m in marker for i in range(len(m))})
        parts = "\0".join(self.opens + self.closes)
        self.states = [(phase, p) for phase, markers in zip((BEFORE, THINKING), (self.opens, self.closes), strict=True)
                       for p in dict.fromkeys(m[:i] for m in markers for i in range(len(m)))]  # fmt: skip
        self.states.append((ANSWER, ""))
        self.phases = [phase for phase, _ in self.states]
        self._index = {state: i for i, state in enumerate(self.states)}
        self.other = self._column("\0")
        self.columns = {
            token: self._column(text)
            for token, text in self.texts.items()
            if text in parts or text.isspace() or text.endswith(prefixes) or text.startswith(suffixes)
            or any(marker in text for marker in self.opens + self.closes)
        }  # fmt: skip

    def _column(self, text: str) -> tuple[int, ...]:
        return tuple(self.advance(i, text) for i in range(len(self.states)))

    def advance(self, state: int, text: str) -> int:
        """The state after `text`."""
        phase, pending = self.states[state]
        text, anywhere = pending + text, self.fmt.text_before
        if phase == BEFORE:
            text = text if anywhere else text.lstrip()
            found = [text.find(m) + len(m) for m in self.opens if (m in text if anywhere else text.startswith(m))]
            if found:
                phase, text = THINKING, text[min(found) :]
            elif anywhere or any(m.startswith(text) for m in self.opens):
                return self._index[BEFORE, _overlap(text, self.opens)]
        if phase == THINKING and not any(marker in text for marker in self.closes):
            return self._index[THINKING, _overlap(text, self.closes)]
        return self._index[ANSWER, ""]

    def leads_to(self, state: int, phases: Iterable[int]) -> list[int]:
        """Tokens that lead from `state` to another state, of one of the `phases`."""
        found = ((token, column[state]) for token, column in self.columns.items())
        return [token for token, after in found if after != state and self.phases[after] in phases]

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, those that the tokenizer does not have left out."""
        return "".join(self.texts.get(token, "") for token in ids)

    def start(self, ids: Sequence[int], boundaries: set[int]) -> tuple[int, int]:
        """State after a prompt, and how many of its last tokens belong to the reasoning."""
        last = max((i + 1 for i, token in enumerate(ids) if token in boundaries), default=0)
        text = self.text(ids[last:])
        opened, closed = (max(text.rfind(m) + len(m) * (m in text) for m in ms) for ms in (self.opens, self.closes))
        if opened <= 0 and closed <= 0:
            return 0, 0
        state = self.advance(self._index[THINKING, ""], text[opened:]) if opened > closed else len(self.states) - 1
        left, count = len(text) - opened, 0
        while left > 0 and opened > closed:
            count, left = count + 1, left - len(self.text(ids[-1 - count :][:1]))
        return state, count


def phase_table(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None) -> PhaseTable:
    """The table of a tokenizer, kept until tokens are added; `fmt=None` detects the format, or else takes `THINK`."""
    fmt = fmt or detect_format(tokenizer) or THINK
    tables, key = _TABLES.setdefault(tokenizer, {}), (fmt, len(tokenizer))
    if key not in tables:
        tables[key] = PhaseTable(tokenizer, fmt)
    return tables[key]


def end_tokens(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat, more: Sequence[int] = ()) -> list[int]:
    """Tokens that end a turn, without those of the markers: gpt-oss closes its reasoning by `<|end|>`."""
    vocabulary = tokenizer.get_vocab()
    own = cast(Any, tokenizer).eos_token_id
    ends: set[int] = {own, *more, *(vocabulary[stop] for stop in fmt.stop if stop in vocabulary)} - {None}
    return sorted(ends - {*tokenizer.encode(fmt.open + fmt.close, add_special_tokens=False)})


class Rows:
    """
    Follows the rows of a batch with one read of the device per step, whatever the number of rows.

    The rows are read anew when they are not those of the step before with one token more: at the beginning of every
    generation, and when beams were reordered.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer.
        fmt ([`ThinkFormat`] or `None`):
            The markers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None) -> None:
        self.table = phase_table(tokenizer, fmt)
        fmt = self.table.fmt
        inside = [tokenizer.encode(m, add_special_tokens=False) for m in (fmt.answer_open, *fmt.tool_open)]
        markers = tokenizer.encode(fmt.open + fmt.close, add_special_tokens=False)
        # What a user wrote comes before the last control token of the prompt that stands in no assistant turn.
        inner = {*markers, *(ids[0] for ids in inside if len(ids) == 1)}
        self._boundaries = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - inner
        self.length = -1
        self.states: list[int] = []
        self.since: list[int] = []  # length of the row when its reasoning began
        self._tails: list[list[int]] = []

    def update(self, input_ids: torch.Tensor, more: torch.Tensor | None = None) -> list[int] | None:
        """Read the last step. `None` if it begins a generation, otherwise `more` of shape `(batch,)` as a list."""
        if input_ids.dim() != 2:
            raise ValueError(NO_CONTINUOUS_BATCHING)
        length, last = input_ids.shape[1], input_ids[:, -_MEMORY - 1 :]
        read = last.tolist() if more is None else torch.cat([more[:, None], last], 1).tolist()
        extra = [] if more is None else [row.pop(0) for row in read]
        grown = length == self.length + 1 and len(read) == len(self._tails)
        same = grown and all(a[:-1] == b[1 - len(a) :] for a, b in zip(read, self._tails, strict=True))
        self.length, self._tails = length, read
        if not same:
            started = [self.table.start(ids, self._boundaries) for ids in input_ids.tolist()]
            self.states = [state for state, _ in started]
            self.since = [length - count for _, count in started]
            return None
        columns, other, phases = self.table.columns, self.table.other, self.table.phases
        for row, tail in enumerate(read):
            before = self.states[row]
            state = columns.get(tail[-1], other)[before]
            if state != before:
                self.states[row] = state
                if phases[before] == BEFORE:
                    self.since[row] = length
        return extra

    def last(self, row: int) -> int:
        """The token that the row ends in."""
        return self._tails[row][-1]

    def begun(self, row: int, ids: list[int], most: int) -> int:
        """How many tokens of `ids`, not all and `most` at most, the row ends in, as far back as it is remembered."""
        tail = self._tails[row]
        ways = range(min(most, len(ids) - 1), 0, -1)
        return next((n for n in ways if ids[max(0, n - len(tail)) : n] == tail[-n:]), 0)

    def thinking(self) -> list[bool]:
        """Whether each row is in its reasoning."""
        return [self.table.phases[state] == THINKING for state in self.states]


def _bytes(text: str) -> str:
    return text.encode().decode("latin-1")


def _overlap(text: str, markers: Sequence[str]) -> str:
    """The longest end of `text` that begins one of the markers and is not all of it."""
    ends = (text[i:] for i in range(max(0, len(text) - max(map(len, markers))), len(text)))
    return next((end for end in ends if any(m.startswith(end) and m != end for m in markers)), "")


def _token_texts(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Text of every token, one character per byte."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    byte_of = {char: chr(byte) for byte, char in bytes_to_unicode().items()}
    own = {token: id for token, id in vocabulary.items() if id not in added}
    if set().union(*own) <= byte_of.keys():
        texts = {id: "".join(map(byte_of.__getitem__, token)) for token, id in own.items()}
    else:
        # Alone, a token may lose its leading space.
        skip = len(tokenizer.convert_tokens_to_string(["a"]))
        decode = tokenizer.convert_tokens_to_string
        texts = {
            id: chr(int(byte[1], 16)) if (byte := _BYTE.fullmatch(token)) else _bytes(decode(["a", token])[skip:])
            for token, id in own.items()
        }
    return texts | {id: _bytes(str(token)) for id, token in added.items()}
