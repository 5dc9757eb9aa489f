"""Parse an output, whole or while it arrives."""

import re
from functools import lru_cache
from typing import NamedTuple

from ..formats import THINK, ThinkFormat, spellings
from .trace import Part, Status, Trace, check_finished, check_format, check_text


class _State(NamedTuple):
    part: Part
    # Its group is the next marker or, at the end of the text, the beginning of one. None: no marker is looked for.
    pattern: re.Pattern[str] | None
    goals: dict[str, str]  # marker -> state that follows it
    hint: str | None  # a text without this string holds no piece of a marker; None: nothing to look for
    otherwise: str | None = None  # only white space may come before a marker; any other text leads to this state
    stopped: bool = False  # after a stop token, which is text again if more text comes


@lru_cache(maxsize=64)
def _states(fmt: ThinkFormat, opened: bool, interleaved: bool) -> dict[str, _State]:
    """The rules as a table."""
    opens = dict.fromkeys(spellings(fmt, fmt.open), "reasoning")
    again = opens if interleaved else {}
    body = "answer_head" if fmt.answer_open else "answer_body"
    closes = dict.fromkeys(spellings(fmt, fmt.close), body)
    heads = dict.fromkeys(spellings(fmt, fmt.answer_open), "answer_body")
    tools = dict.fromkeys(fmt.tool_open, body) if interleaved else {}
    unopened = "reasoning" if opened else "text_before" if fmt.text_before else body
    states = {
        "start": _state("reasoning" if opened else "answer", opens | (closes if fmt.bare_close else {}), unopened),
        "answer_head": _state("answer", heads | again, "answer"),
    }
    ends = {fmt.answer_close: "answer"} if fmt.answer_close else {}
    searched = {"text_before": opens, "reasoning": tools | closes, "answer_body": ends | again, "answer": again}
    for name, goals in searched.items():
        part: Part = "reasoning" if name == "reasoning" else "answer"
        stops = dict.fromkeys(fmt.stop, f"{name}_stopped")
        states[name] = _state(part, stops | goals)
        states[f"{name}_stopped"] = _state(part, stops, name, stopped=True)
    return states


def _state(part: Part, goals: dict[str, str], otherwise: str | None = None, *, stopped: bool = False) -> _State:
    if not goals and not otherwise:
        return _State(part, None, goals, None)
    markers = _either(frozenset(goals))
    if otherwise:
        # Possessive white space: a long run of it is not tried again from every position.
        pattern = re.compile(rf"\s*+({markers}|\Z)" if goals else r"\s*+(\Z)")
        return _State(part, pattern, goals, "", otherwise, stopped)
    firsts = {marker[0] for marker in goals}
    return _State(part, re.compile(f"({markers})"), goals, firsts.pop() if len(firsts) == 1 else "")


def _either(markers: frozenset[str]) -> str:
    r"""A pattern for the longest of `markers` or, at the end of the text, a piece of one: `<(?:a|/(?:b|\Z)|\Z)`."""
    tails: dict[str, set[str]] = {}
    for marker in sorted(filter(None, markers)):
        tails.setdefault(marker[0], set()).add(marker[1:])
    branches = []
    for first, rest in tails.items():
        tail = _either(frozenset(rest))
        end = "" if "" in rest else r"\Z"
        branches.append(re.escape(first) + (f"(?:{tail}|{end})" if tail else ""))
    return "|".join(branches)


class ThinkStream:
    r"""
    Parse an output while it arrives, at a constant cost per delta.

    [`~ThinkStream.feed`] says for each new text to which part it belongs, [`~ThinkStream.finish`] gives the same
    [`Trace`] as [`parse`] on the whole text. No piece of a marker is ever shown: text that may begin one is held back
    until more text decides. So are stop tokens and white space after them.

    Args:
        opened (`bool`, *optional*, defaults to `False`):
            Whether the generation prompt ended inside the reasoning.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers.
        interleaved (`bool`, *optional*, defaults to `False`):
            Whether an opening marker anywhere in the answer opens another block of reasoning, as models do that
            think between tool calls; a tool call ends the reasoning and is text of the answer. `Trace.blocks` then
            holds the blocks in order, `Trace.reasoning` joins those of the reasoning by a blank line and
            `Trace.answer` those of the answer as they are. Text that only speaks of a marker or a call is cut there
            too, so this is not the default.

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
        if self._held or not self._state.stopped:
            texts[-1] = (last_part, last + "".join(self._blank) + self._held)
        status: Status = "no_think" if all(part == "answer" for part, _ in texts) else "complete"
        if last_part == "reasoning":
            status = "unclosed" if finished else "truncated"
            if finished and not self._wrote:
                texts = [("answer", unwrap(texts[-1][1], self._fmt))]
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
                # Something else than white space and a marker: the next state reads it all again, but stop tokens.
                if state.stopped:
                    self._show("".join(self._blank), shown)
                else:
                    text, position = "".join(self._blank) + text[position:], 0
                self._blank.clear()
                self._enter(state.otherwise)
                continue
            start = match.start(1) if match else len(text)
            goal = self._goal(match[1], match.end() == len(text)) if match else None
            if not state.otherwise:
                self._show(text[position:start], shown)
            elif goal and not state.stopped:
                self._blank.clear()
            else:
                self._blank.append(text[position:start])
            if not match or not goal:
                self._held = text[start:]
                break
            self._wrote = self._wrote or goal == "reasoning"
            self._enter(goal)
            position = match.end()
            if self._state.stopped:
                self._blank.append(match[1])
            elif match[1] in self._fmt.tool_open:
                position = start  # it stays, as text of the answer
        self._hint = "" if self._held else self._state.hint
        return tuple(shown)

    def _goal(self, marker: str, last: bool) -> str | None:
        """The state after a marker; `None` for a piece of one, as the `last` text so far may be of a longer one."""
        goals = self._state.goals
        if last and any(other.startswith(marker) and other != marker for other in goals):
            return None
        return goals.get(marker)

    def _show(self, text: str, shown: list[tuple[Part, str]]) -> None:
        if text:
            self._pieces.append(text)
            shown.append((self._part, text))


def parse(
    text: str,
    *,
    opened: bool = False,
    fmt: ThinkFormat = THINK,
    finished: bool | None = None,
    interleaved: bool = False,
) -> Trace:
    """
    Parse one whole output.

    Args:
        text (`str`):
            What the model wrote, without the prompt, decoded with `skip_special_tokens=False` if the markers are
            special tokens.
        opened (`bool`, *optional*, defaults to `False`):
            Whether the generation prompt ended inside the reasoning, as templates that write `<think>` do. A
            repeated opening marker is accepted.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers.
        finished (`bool`, *optional*):
            Whether the model stopped by itself (`True`) or was cut by the length limit (`False`); `None` if unknown.
        interleaved (`bool`, *optional*, defaults to `False`):
            Whether to read several blocks of reasoning, see [`ThinkStream`].

    Returns:
        [`Trace`]: Reasoning, answer and status.

    Raises:
        `TypeError`: If an argument has another type.

    Example:

    ```python
    >>> from think_tools import parse

    >>> parse("2+2</think>4", opened=True)
    Trace(reasoning='2+2', answer='4', status='complete', finished=None, blocks=(), rule=None)
    >>> parse("<think>2+", finished=False).status
    'truncated'
    >>> parse("<think>a</think>b<think>c</think>d", interleaved=True).blocks
    (('reasoning', 'a'), ('answer', 'b'), ('reasoning', 'c'), ('answer', 'd'))
    ```
    """
    stream = ThinkStream(opened=opened, fmt=fmt, interleaved=interleaved)
    stream.feed(text)
    return stream.finish(finished)


def unwrap(answer: str, fmt: ThinkFormat) -> str:
    """The stripped answer without the markers around it and without stop tokens (rules 4 and 5)."""
    stream = ThinkStream(fmt=fmt)
    stream._enter("answer_head" if fmt.answer_open else "answer_body")
    stream.feed(answer)
    return stream.finish().answer
