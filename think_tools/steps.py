"""Cut a reasoning into steps, for step search, process verifiers and pages that mark steps."""

import re
from bisect import bisect_left
from itertools import pairwise

# What opens and closes code and display maths. A fence stands at the beginning of a line; `\\[2pt]` is a line break.
_DELIMITER = re.compile(r"^[ \t]*+(```|~~~)|(\$\$|(?<!\\)\\[\[\]])", re.MULTILINE)
_CLOSERS = {"```": "```", "~~~": "~~~", "$$": "$$", "\\[": "\\]"}

_STEP_TAG = re.compile(r"</?step>", re.IGNORECASE)
# A step ends where one of these ends: before `<step>`, after `</step>` and its white space, ...
_TAG_CUT = re.compile(r"(?=<step>)|(?<=</step>)\s*", re.IGNORECASE)
# ... before a line such as `Step 3: add`, `## Step 3`, `**Step 3**`, `步骤 3` or `第三步`, ...
_NUMBER = "[0-9０-９一二三四五六七八九十]"
_HEADING_CUT = re.compile(
    rf"^(?=[ \t]*+[#*_-]{{0,6}}+[ \t]*+(?:step[ \t]*+[0-9]|步骤[ \t]*+{_NUMBER}|第[ \t]*+{_NUMBER}{{1,3}}[ \t]*+步))",
    re.IGNORECASE | re.MULTILINE,
)
# ... or after blank lines.
_BLANK_CUT = re.compile(r"\n[ \t\r]*+\n\s*")


def split_steps(text: str) -> list[str]:
    r"""
    Cut a text into steps that together are the text again.

    The first of these that `text` holds decides: `<step>` tags, lines that begin with `Step n` (or `步骤 n`,
    `第 n 步`), blank lines. None of them counts inside a code fence or display maths (`$$…$$`, `\[…\]`). The white
    space after a step, a blank line for example, belongs to it.

    Args:
        text (`str`):
            A reasoning, or any other text.

    Returns:
        `list[str]`: The steps, `"".join(steps) == text`. None is empty, apart from markup and white space; a text of
        nothing else is one step, and the empty text has none.

    Raises:
        `TypeError`: If `text` is not a string.

    Example:

    ```python
    >>> from think_tools import split_steps

    >>> split_steps("12 * 13\n\n= 12 * 10 + 12 * 3\n\n= 156")
    ['12 * 13\n\n', '= 12 * 10 + 12 * 3\n\n', '= 156']
    ```
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a string, got {type(text).__name__}: pass the reasoning.")
    if not text:
        return []
    protected = _protected_spans(text)
    cuts: list[int] = []
    for pattern in (_TAG_CUT, _HEADING_CUT, _BLANK_CUT):
        cuts = [end for end in (match.end() for match in pattern.finditer(text)) if not _inside(end, protected)]
        if cuts:
            break
    return _join_blanks([text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])])


def _protected_spans(text: str) -> list[tuple[int, int]]:
    """`(begin, end)` of each code fence and display formula, in order. An unclosed fence lasts until the end."""
    last = {closer: text.rfind(closer) for closer in ("$$", "\\]")}
    spans = []
    opener, begin = "", 0
    for match in _DELIMITER.finditer(text):
        token = match[1] or match[2]
        if opener:
            if token == _CLOSERS[opener]:
                spans.append((begin, match.end()))
                opener = ""
        # "it costs $$5" opens nothing: a formula must be closed.
        elif token in _CLOSERS and last.get(_CLOSERS[token], len(text)) >= match.end():
            opener, begin = token, match.start()
    if opener in ("```", "~~~"):
        spans.append((begin, len(text)))
    return spans


def _inside(position: int, spans: list[tuple[int, int]]) -> bool:
    before = bisect_left(spans, (position,)) - 1  # the last span that begins before `position`
    return before >= 0 and position < spans[before][1]


def _join_blanks(pieces: list[str]) -> list[str]:
    """Steps of pieces: one without text belongs to the step before it, or to the first."""
    steps: list[list[str]] = [[]]
    begun = False
    for piece in pieces:
        holds_text = bool(_STEP_TAG.sub("", piece).strip())
        if holds_text and begun:
            steps.append([])
        begun = begun or holds_text
        steps[-1].append(piece)
    return ["".join(step) for step in steps]
