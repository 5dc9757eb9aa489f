"""Read stored outputs whose reasoning is badly separated."""

import re
from typing import NamedTuple

from ..formats import FORMATS, THINK, ThinkFormat
from .stream import unwrap
from .trace import Part, Trace, check_text

# `<think>` and its like as people and pipelines spell them: escaped, full-width, upper case, with attributes.
_TAG = re.compile(
    r"(?:\\?<|＜|&lt;) ?(\\?/|／)? ?(think|thinking|thought|reasoning|reason)"
    r"(?:\s[^<>\n]{0,60}=[^<>\n]{0,60})? ?(?:\\?>|＞|&gt;)",
    re.IGNORECASE,
)
# Formats whose markers are not such tags.
_LITERAL = tuple(dict.fromkeys(fmt for fmt in FORMATS.values() if not _TAG.fullmatch(fmt.open)))


class _Marker(NamedTuple):
    start: int
    end: int
    opens: bool
    odd: bool  # not spelled as the format spells it


def repair(text: str) -> Trace:
    r"""
    Read a stored output whose reasoning is badly separated, and name what was wrong.

    This guesses, so it is for stored data only, never for rewards: a model would be paid for the marker that it did
    not write. [`parse`] is the strict reading. No text is lost: all of it is reasoning or answer, except markers and
    white space around them.

    Args:
        text (`str`):
            The output.

    Returns:
        [`Trace`]: Reasoning and answer, each joined by a blank line if it came in several pieces. `rule` is `None` if
        the text was well formed, and otherwise what fired, joined by `+`:

        - `marker_spelling`: escaped (`\<think\>`, `&lt;think&gt;`), full-width, upper-case markers, or attributes.
        - `other_markers`: another family's markers than `<think>`.
        - `quoted_marker`: a marker in quotes or backticks was taken for text.
        - `text_before`: text before the opening marker, taken for answer.
        - `missing_open`, `missing_close`: one marker only. Without a closing one an `<answer>` tag ends the
          reasoning, else `status` is `"truncated"`.
        - `repeated_open`, `repeated_close`: the reasoning lasts until the last closing marker.
        - `several_blocks`: more than one block of reasoning.

    Raises:
        `TypeError`: If `text` is not a string.

    Example:

    ```python
    >>> from think_tools import repair

    >>> repair(r"\<think\>2+2\</think\>4")
    Trace(reasoning='2+2', answer='4', status='complete', finished=None, blocks=(), rule='marker_spelling')
    ```
    """
    check_text(text)
    fmt, markers, rules = _find_markers(text)
    texts: dict[Part, list[str]] = {"reasoning": [], "answer": []}
    part, position = "answer", 0
    for marker in markers:
        piece = text[position : marker.start]
        rules += _rules_of(marker, part, piece, bool(texts["reasoning"]))
        texts[part if marker.opens else "reasoning"].append(piece)
        part, position = "reasoning" if marker.opens else "answer", marker.end
    rest, status = text[position:], "complete" if markers else "no_think"
    if part == "reasoning":
        rules.append("missing_close")
        thought, answer_tag, rest = rest.partition(fmt.answer_open or "<answer>")
        texts["reasoning"].append(thought)
        rest, status = answer_tag + rest, "complete" if answer_tag else "truncated"
    texts["answer"].append(rest)
    reasoning, answer = ("\n\n".join(filter(None, map(str.strip, texts[part]))) for part in ("reasoning", "answer"))
    rule = "+".join(dict.fromkeys(rules)) or None
    return Trace(reasoning if markers else None, unwrap(answer, fmt), status, rule=rule)


def _rules_of(marker: _Marker, part: Part, before: str, thought: bool) -> list[str]:
    """What is wrong with a marker that comes in `part` after the text `before`; `thought`: after some reasoning."""
    rules = ["marker_spelling"] if marker.odd else []
    if marker.opens and part == "reasoning":
        rules.append("repeated_open")
    elif marker.opens and thought:
        rules.append("several_blocks")
    elif marker.opens and before.strip():
        rules.append("text_before")
    elif not marker.opens and part == "answer":
        rules.append("repeated_close" if thought else "missing_open")
    return rules


def _find_markers(text: str) -> tuple[ThinkFormat, list[_Marker], list[str]]:
    """The family whose markers `text` holds, where they are, and the rules that this needed."""
    fmt = _family(text)
    if _TAG.fullmatch(fmt.open):
        found = (tag for tag in _TAG.finditer(text) if tag[2].lower() == fmt.name)
        markers = [_Marker(*tag.span(), not tag[1], tag[0] != (fmt.close if tag[1] else fmt.open)) for tag in found]
    else:
        found = re.finditer(f"({re.escape(fmt.open)})|{re.escape(fmt.close)}", text)
        markers = [_Marker(*marker.span(), bool(marker[1]), False) for marker in found]
    plain = [marker for marker in markers if not _quoted(text, marker)]
    rules = ["quoted_marker"] if len(plain) < len(markers) else []
    if plain and fmt is not THINK:
        rules.append("other_markers")
    return fmt, plain, rules


def _family(text: str) -> ThinkFormat:
    head = text.lstrip()
    leading = next((fmt for fmt in _LITERAL if head.startswith(fmt.open)), None)
    if leading:
        return leading
    tag = _TAG.search(text)
    if tag:
        return FORMATS[tag[2].lower()]
    return next((fmt for fmt in _LITERAL if any(marker in text for marker in _telling(fmt))), THINK)


def _telling(fmt: ThinkFormat) -> list[str]:
    """Markers that mean reasoning wherever they stand: `<|end|>` or a line of prose does not."""
    return [marker for marker in (fmt.open, fmt.close) if re.match(r"(?i)\W.*(think|thought)", marker)]


def _quoted(text: str, marker: _Marker) -> bool:
    before, after = text[marker.start - 1 : marker.start], text[marker.end : marker.end + 1]
    return before == after and before in ("`", '"', "'")
