r"""
Compare formulas of school algebra exactly, in process and in bounded time.

Sets, tuples, intervals and matrices are compared part by part, and their parts as quotients of polynomials. What does
not fit (long text, high powers, words, inequalities, integrals) is left to the worker processes.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from .numbers import FOLD, Number, clean, read_number, same_number
from .polynomials import Ratio, constant, read_ratio, same_ratio

_LONGEST = 300  # characters
_DEEPEST = 12  # brackets in brackets


class _Form(NamedTuple):
    """One value, or several in brackets."""

    kind: str  # "value", "list", "set", "union", a pair of brackets, or "matrix" and its width
    parts: tuple["_Form", ...] = ()
    number: Number | None = None
    ratio: Ratio = Ratio({})
    sure: bool = True  # whether a difference of the polynomials means a difference of the values
    left: str | None = None  # what stood before `=`


_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}")
_UPRIGHT = re.compile(r"\\math(?:rm|it|bf)\s?\{(\w)\}")
_MEMBER = re.compile(r"[A-Za-z]\s?\\in(?![A-Za-z])")
_LEFT_SIDE = re.compile(r"([A-Za-z]|\\[a-z]+)\s?=(?!=)")
_INFINITY = re.compile(r"([+-]?)\s?(?:\\infty|∞)")
_GROUPED = re.compile(r"\d,\s?\d{3}(?!\d)")
_SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b|\\(?:text|mathrm|quad)(?![A-Za-z])|[和或、]")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_BRACKETED = re.compile(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", re.DOTALL)
_BRACKET = re.compile(r"\\?[{}]|[()\[\]]")
_OPENING = ("\\{", "(", "[", "{")


def compare_formulas(answer: str, gold: str) -> bool | None:
    r"""
    Compare two formulas, tuples, sets, lists, intervals or matrices.

    Args:
        answer (`str`):
            Final answer.
        gold (`str`):
            Gold answer, as [`~think_tools.answers.compare.read_gold`] returns it.

    Returns:
        `bool` or `None`: `None` if these rules cannot tell.

    Example:

    ```python
    >>> from think_tools.answers.algebra import compare_formulas

    >>> pairs = [(r"\sqrt{20}", r"2\sqrt5"), ("(x+1)^2", "x^2+2x"), ("x<1", "x<2")]
    >>> [compare_formulas(answer, gold) for answer, gold in pairs]
    [True, False, None]
    ```
    """
    if len(answer) > _LONGEST or len(gold) > _LONGEST:
        return None
    expected = _read_once(gold)
    given = _read(answer) if expected else None
    try:
        return _same(given, expected) if given and expected else None
    except ValueError:  # too large to multiply
        return None


def _read(text: str) -> _Form | None:
    text = _UPRIGHT.sub(r"\1", text.translate(FOLD)).replace("\\tfrac", "\\frac").replace("\\lbrace", "\\{")
    try:
        return _form(clean(text), 0)
    except (ValueError, ZeroDivisionError):
        return None


_read_once = lru_cache(maxsize=4096)(_read)


def _same(given: _Form, gold: _Form) -> bool | None:
    if given.kind == gold.kind == "value":
        return _same_value(given, gold)
    kinds = {given.kind, gold.kind}
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _same_members(given.parts, gold.parts)
    if given.kind == gold.kind and len(given.parts) == len(gold.parts):
        verdicts = [_same(*pair) for pair in zip(given.parts, gold.parts, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    # A set of one value, or "3, 1" for (3, 1), may pass: the workers know.
    several = all(form.kind == "value" or len(form.parts) > 1 for form in (given, gold))
    return False if several and kinds != {"list", "()"} and "union" not in kinds else None


def _same_members(given: tuple[_Form, ...], gold: tuple[_Form, ...]) -> bool | None:
    """Whether the parts agree in any order."""
    table = [[_same(one, other) for other in gold] for one in given]
    lines = table + [list(column) for column in zip(*table, strict=True)]  # each part needs a partner on both sides
    if all(True in line for line in lines):
        return True
    return False if any(all(verdict is False for verdict in line) for line in lines) else None


def _same_value(given: _Form, gold: _Form) -> bool | None:
    if given.left and gold.left and given.left != gold.left:
        return None  # y=5 for x=5
    if given.number and gold.number:
        return same_number(given.number, gold.number)
    if same_ratio(given.ratio, gold.ratio):
        return True
    return False if given.sure and gold.sure else None


def _form(text: str, depth: int) -> _Form:
    text = text.strip()
    if depth > _DEEPEST or (_GROUPED.search(text) and not read_number(text)):
        raise ValueError("too deep, or digits that may be one number or two")
    if member := _MEMBER.match(text):
        text = text[member.end() :].strip()
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
        return _Form(f"matrix {[len(row) for row in rows]}", tuple(_form(c, depth + 1) for row in rows for c in row))
    number = read_number(text)
    if number:
        return _Form("value", number=number, ratio=Ratio(constant(number.value)), sure=number.places in (None, 0))
    for kind, separators in (("union", _UNION), ("list", _SEPARATOR)):
        parts = _split(text, separators)
        if len(parts) > 1:
            return _Form(kind, tuple(_form(part, depth + 1) for part in parts if part.strip()))
    if bracketed := _BRACKETED.fullmatch(text):
        kind, parts = bracketed[1] + bracketed[3], _split(bracketed[2], _SEPARATOR)
        if len(parts) > 1 or (parts and kind == "\\{\\}"):
            return _Form("set" if kind == "\\{\\}" else kind, tuple(_form(part, depth + 1) for part in parts))
    return _value(text, depth)


def _value(text: str, depth: int) -> _Form:
    left = None
    if match := _LEFT_SIDE.match(text):
        left, text = match[1], text[match.end() :]
        if read_number(text.strip()):
            return _form(text, depth)._replace(left=left)
    if text.count("\\pm") == 1:
        return _Form("list", tuple(_value(text.replace("\\pm", sign), depth + 1) for sign in "+-"))
    if infinite := _INFINITY.fullmatch(text.strip()):
        return _Form("value", ratio=Ratio({(("\\infty", 1),): Fraction(-1 if infinite[1] == "-" else 1)}), left=left)
    ratio, sure = read_ratio(text)
    return _Form("value", ratio=ratio, sure=sure, left=left)


def _split(text: str, separators: re.Pattern[str]) -> list[str]:
    """
    Parts of the text between separators that stand in no brackets; none at all where a bracket closes nothing, as in
    `x+1)(x+2`. `(` may be closed by `]`.
    """
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        bracket = _BRACKET.match(text, position)
        depth += (1 if bracket[0] in _OPENING else -1) if bracket else 0
        if depth < 0:
            return []
        if not depth and (separator := separators.match(text, position)):
            parts.append(text[start : separator.start()])
            start = position = separator.end()
        else:
            position = bracket.end() if bracket else position + 1
    return [*parts, text[start:]]
