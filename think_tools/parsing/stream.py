"""Parse an output while it arrives."""

import re
from functools import lru_cache
from typing import NamedTuple

from ..formats import THINK, ThinkFormat
from .trace import Part, Status, Trace, check_finished, check_format, check_text, unclosed


class _State(NamedTuple):
    part: Part
    # Its group is the next marker or, at the end of the text, the beginning of one. None: no marker is looked for.
    pattern: re.Pattern[str] | None
    goals: dict[str, str]  # marker -> state that follows it
    hint: str | None  # a text without this string holds no piece of a marker; None: nothing to look for
    otherwise: str | None = None  # only white space may come before a marker; any other text leads to this state


@lru_cache(maxsize=64)
def _states(fmt: ThinkFormat, opened: bool, interleaved: bool) -> dict[str, _State]:
    """Rules 1, 2 and 4 as a table."""
    again = {fmt.open: "reasoning"} if interleaved else {}
    ends = {fmt.answer_close: "answer"} if fmt.answer_close else {}
    body = "answer_head" if fmt.answer_open else "answer_body"
    return {
        "start": _state("reasoning" if opened else "answer", {fmt.open: "reasoning"}, "reasoning" if opened else body),
        "reasoning": _state("reasoning", {fmt.close: body}),
        "answer_head": _state("answer", {fmt.answer_open: "answer_body"} | again, "answer"),
        "answer_body": _state("answer", ends | again),
        "answer": _state("answer", again),
    }


def _state(part: Part, goals: dict[str, str], otherwise: str | None = None) -> _State:
    if not goals:
        return _State(part, None, goals, None)
    pieces = (marker[:size] for marker in goals for size in range(len(marker) - 1, 0, -1))
    found = f"({'|'.join(map(re.escape, goals))}|(?:{'|'.join(map(re.escape, pieces))})"
    if otherwise:
        # Possessive white space: a long run of it is not tried again from every position.
        return _State(part, re.compile(rf"\s*+{found}?\Z)"), goals, "", otherwise)
    firsts = {marker[0] for marker in goals}
    return _State(part, re.compile(rf"{found}\Z)"), goals, firsts.pop() if len(firsts) == 1 else "")


class ThinkStream:
    r"""
    Parse an output while it arrives, at a constant cost per delta.

    [`~ThinkStream.feed`] says for each new text to which part it belongs, [`~ThinkStream.finish`] gives the same
    [`Trace`] as [`parse`] on the whole text. No piece of a marker is ever shown: text that may begin one is held back
    until more text decides.

    Args:
        opened (`bool`, *optional*, defaults to `False`):
            Whether the generation prompt ended inside the reasoning.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers.
        interleaved (`bool`, *optional*, defaults to `False`):
            Whether an opening marker anywhere in the answer opens another block of reasoning, as models do that
            think between tool calls. `Trace.blocks` then holds the blocks in order, `Trace.reasoning` joins those of
            the reasoning by a blank line and `Trace.answer` those of the answer as they are. An answer that only
            speaks of the marker is cut apart too, so this is not the default.

    Raises:
        `TypeError`: If `opened` is not a boolean or `fmt` no [`ThinkFormat`].

    Example:

    ```python
    >>> from think_tools import ThinkStream

    >>> stream = ThinkStream()
    >>> [shown for delta in ["<thi", "nk>2+2", "</th", "ink>", "4"] for shown in stream.feed(delta)]
    [('reasoning', '2+2'), ('answer', '4')]
    >>> stream.finish(finished=True).status
    'complete'
    ```
    """

    def __init__(self, *, opened: bool = False, fmt: ThinkFormat = THINK, interleaved: bool = False):
        check_format(opened, fmt)
        self._fmt = fmt
        self._interleaved = interleaved
        self._states = _states(fmt, opened, bool(interleaved))
        self._segments: list[tuple[Part, list[str]]] = []
        self._blank: list[str] = []  # white space before a possible marker
        self._held = ""  # a possible piece of a marker
        self._wrote = False  # whether the model itself wrote an opening marker
        self._enter("start")

    def feed(self, text: str) -> tuple[tuple[Part, str], ...]:
        """
        Take the next piece of the output.

        Args:
            text (`str`):
                New text, any number of characters.

        Returns:
            `tuple[tuple[str, str], ...]`: `(part, text)` for each text that is now certain, `part` being
            `"reasoning"` or `"answer"`; often one, sometimes none. White space is passed on as it came, except
            around markers.

        Raises:
            `TypeError`: If `text` is not a string.
        """
        hint = self._hint
        if type(text) is str and text and (hint is None or hint not in text):
            self._pieces.append(text)
            return ((self._part, text),)
        check_text(text)
        return self._scan(self._held + text)

    def finish(self, finished: bool | None = None) -> Trace:
        """
        The trace of all that came so far. It changes nothing, so it may be asked for at any time.

        Text that was held back as a possible marker belongs to the trace, though `feed` never showed it. With
        `finished=True` text shown as reasoning may turn out to be the answer (rule 3): show the trace in the end.

        Args:
            finished (`bool`, *optional*):
                Whether the model stopped by itself (`True`) or was cut by the length limit (`False`); `None` if
                unknown.

        Raises:
            `TypeError`: If `finished` is neither a boolean nor `None`.
        """
        check_finished(finished)
        texts: list[tuple[Part, str]] = [(part, "".join(pieces)) for part, pieces in self._segments]
        last_part, last = texts[-1]
        texts[-1] = (last_part, last + "".join(self._blank) + self._held)
        status: Status = "no_think" if all(part == "answer" for part, _ in texts) else "complete"
        if last_part == "reasoning":
            tail = unclosed(texts[-1][1], self._fmt, self._wrote, finished)
            status = tail.status
            if tail.reasoning is None:
                texts = [("answer", tail.answer)]
        thoughts = [text.strip() for part, text in texts if part == "reasoning"]
        blocks: list[tuple[Part, str]] = [(part, text.strip()) for part, text in texts if text.strip()]
        return Trace(
            reasoning="\n\n".join(filter(None, thoughts)) if thoughts else None,
            answer="".join(text for part, text in texts if part == "answer").strip(),
            status=status,
            finished=finished,
            blocks=tuple(blocks) if self._interleaved else (),
        )

    def _enter(self, name: str) -> None:
        self._state = self._states[name]
        self._part: Part = self._state.part
        self._hint: str | None = self._state.hint
        if not self._segments or self._segments[-1][0] != self._part:
            self._segments.append((self._part, []))
        self._pieces = self._segments[-1][1]

    def _scan(self, text: str) -> tuple[tuple[Part, str], ...]:
        """Walk through `text` from marker to marker, and hold back what may begin one."""
        shown: list[tuple[Part, str]] = []
        position, self._held = 0, ""
        while True:
            state, match = self._state, None
            if state.pattern:
                match = (state.pattern.match if state.otherwise else state.pattern.search)(text, position)
            if not match and state.otherwise:
                # Something else than white space and a marker: the next state reads it all again.
                text, position = "".join(self._blank) + text[position:], 0
                self._blank.clear()
                self._enter(state.otherwise)
                continue
            start = match.start(1) if match else len(text)
            goal = state.goals.get(match[1]) if match else None  # None: the match only begins a marker
            if not state.otherwise:
                self._show(text[position:start], shown)
            elif goal:
                self._blank.clear()
            else:
                self._blank.append(text[position:start])
            if not match or not goal:
                self._held = text[start:]
                break
            self._wrote = self._wrote or goal == "reasoning"
            self._enter(goal)
            position = match.end()
        self._hint = "" if self._held else self._state.hint
        return tuple(shown)

    def _show(self, text: str, shown: list[tuple[Part, str]]) -> None:
        if text:
            self._pieces.append(text)
            shown.append((self._part, text))
