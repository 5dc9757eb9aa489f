"""Read an answer that is a plain number, exactly: separators, fractions, percent, units, full-width digits."""

import re
from fractions import Fraction
from typing import NamedTuple

# Full-width ASCII (U+FF01 to U+FF5E) and the signs people write for minus and space. Not NFKC: that turns 5² into 52.
FOLD = str.maketrans(
    {
        **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
        **dict.fromkeys(map(ord, "−–﹣‐‑"), "-"),
        **dict.fromkeys(map(ord, "\u3000\u00a0\u2009\u202f"), " "),
    }
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3})")
_NO_MEANING = re.compile(r"\\[!,;:>]|\\(?:left|right|displaystyle)(?![A-Za-z])")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf)|operatorname)\s{0,9}\{([^{}]*)\}")
_DEGREE = re.compile(r"\^\s?(?:\\circ|\{\s?\\circ\s?\})")
_FRACTION_COMMAND = re.compile(r"\\[dt]frac(?![A-Za-z])")
_SYMBOLS = {r"\%": "%", r"\$": "$", "~": " ", r"\ ": " ", r"\{": "{", r"\}": "}"}
_SYMBOL = re.compile(r"\\[%$ ]|~")
_MATH_PAIRS = (("\\(", "\\)"), ("\\[", "\\]"))


def unwrap(text: str) -> str:
    r"""
    Take off what surrounds an answer and is no part of it: white space, `**`, backticks, `$`, `\(` `\)`, `\[` `\]`
    and a final full stop.

    Example:

    ```python
    >>> from think_tools.answers.numbers import unwrap

    >>> unwrap(r"**$\frac12$.**")
    '\\frac12'
    ```
    """
    for _ in range(3):  # a box of a box of a box is as deep as people write
        before = text = text.strip(" \t\r\n*`$").rstrip(".。")
        for opening, closing in _MATH_PAIRS:
            if text.startswith(opening) and text.endswith(closing):
                text = text[len(opening) : -len(closing)]
        if text == before:
            break
    return text.strip(" \t\r\n*`$").strip()


def clean(text: str) -> str:
    r"""
    Write an answer without what changes only its looks: width of digits, LaTeX spacing, `\text{…}`, `\dfrac`.

    Example:

    ```python
    >>> from think_tools.answers.numbers import clean

    >>> clean(r"$１２\,\text{ cm}$.")
    '12 cm'
    ```
    """
    text = _THOUSANDS.sub(",", unwrap(text.translate(FOLD)))
    text = _TEXT_COMMAND.sub(r" \1 ", _NO_MEANING.sub("", text))
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = _FRACTION_COMMAND.sub(r"\\frac", _DEGREE.sub("°", text))
    return unwrap(" ".join(text.split()))


class Number(NamedTuple):
    """An exact value; `places` counts the digits after the point where it was written as a decimal, else `None`."""

    value: Fraction
    places: int | None
    significant: int  # digits from the first that is not 0; counts only for decimals


_WHOLE = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+"
_POWER_OF_TEN = r"e(?P<e>[+-]?\d{1,3})|\s?(?:\\times|\\cdot|×|\*|·)\s?10\s?\^\s?\{?(?P<ten>[+-]?\d{1,3})\}?"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s?[$¥€£]?\s?
    (?:
        (?:(?P<mixed>\d+)\s?)? \\frac\s?(?: \{{\s?(?P<top>-?\d+)\s?\}}\s?\{{\s?(?P<under>\d+)\s?\}} | (?P<pair>\d\d) )
      | (?:(?P<whole>\d+)\ )? (?P<over>\d+)\s?/\s?(?P<by>\d+)
      | (?P<decimal>(?:{_WHOLE})?\.\d+|{_WHOLE}) (?:{_POWER_OF_TEN})?
    )
    (?P<rest>(?![\d.,^!/_\\(+*=⁰¹²³⁴-⁹-]).*)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LONGEST = 200  # characters; longer numbers are for the worker, and the patterns here stay cheap
_PERCENT = re.compile(r"\s?(?:%|percent(?:age)?|pct)", re.IGNORECASE)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_HAN_SCALES = {"百": 100, "千": 10**3, "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8, "万亿": 10**12}
_HAN_UNIT = re.compile(
    r"\s?(百万|千万|万亿|[百千万亿])?\s?((?![百千万亿十几余多半点分第又和或])[\u4e00-\u9fff]{0,6}|分钟?)"
)
_SHORT_UNIT = re.compile(
    r"[mcdk]?m|in|ft|yd|mi|[mk]?g|t|lb|oz|[mcd]?l|ms|s|h|hr|d|yr|[mk]ph|k?w|v|sq|cu|°[cf]?|deg|rad|[ap]\.m"
)
# Words that make the rest an expression or a second answer and no unit.
_NO_UNIT = re.compile(
    r"sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|and|not|nor|xor|pow|div|gcd|lcm|max|plus|minus|times|over|are|was|with"
    r"|remainder|base|point|hal(?:f|ves)|thirds?|quarters?|fifths?"
)
_EXPONENT_OF_UNIT = re.compile(r"(?:\^\{?[23]\}?|[²³])")


def read_number(text: str) -> Number | None:
    r"""
    Read a cleaned answer as one exact number, if that is all it is.

    Currency signs and units count for nothing, as in Math-Verify, but scale words do: `3 million` and `3万` are not 3.
    A percent sign is ignored too, as the MATH data set does: `10\%` reads 10, never 0.1.

    Args:
        text (`str`):
            What [`clean`] returns.

    Returns:
        `Number` or `None`: `None` for everything else, such as `2^{10}`, `1, 2`, `x=5` and `5 or 6`.

    Example:

    ```python
    >>> from think_tools.answers.numbers import read_number

    >>> str(read_number("56,088").value), str(read_number("72/19 hours").value), read_number("5 or 6")
    ('56088', '72/19', None)
    ```
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST else None
    scale = _scale(match["rest"]) if match else None
    if not match or scale is None:
        return None
    parts = match.groupdict()
    places, significant = None, 0
    if parts["decimal"]:
        digits = re.sub(r"[ ,]", "", parts["decimal"])
        exponent = int(parts["e"] or parts["ten"] or 0)
        value = Fraction(digits) * Fraction(10) ** exponent
        if "." in digits:
            places = len(digits.partition(".")[2]) - exponent
            significant = len(digits.replace(".", "").lstrip("0"))
    else:
        top, under = parts["top"] or parts["over"], parts["under"] or parts["by"]
        top, under = parts["pair"] or (top, under)
        if not int(under):
            return None
        value = int(parts["mixed"] or parts["whole"] or 0) + Fraction(int(top), int(under))
    return Number((-value if parts["sign"] == "-" else value) * scale, places, significant)


def _scale(rest: str) -> int | None:
    """What the words after the digits multiply by: 1 for units, `None` if they are no unit."""
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    if han := _HAN_UNIT.fullmatch(rest):
        return _HAN_SCALES[han[1]] if han[1] else 1
    attached = not rest.startswith(" ")
    scale = 1
    for position, word in enumerate(_EXPONENT_OF_UNIT.sub("", rest.replace(" per ", " ").replace("/", " ")).split()):
        word = word.rstrip(".").casefold()
        if word in _SCALES:
            scale *= _SCALES[word]
        elif not _SHORT_UNIT.fullmatch(word) and (
            not word.isalpha() or len(word) < 3 or _NO_UNIT.fullmatch(word) or (attached and position == 0)
        ):
            return None  # 3x, 3 xy and 3 sin are no number with a unit
    return scale


def same_number(first: Number, second: Number) -> bool:
    """
    Compare two numbers exactly. A decimal of at least six significant digits also equals the fraction it is cut or
    rounded from: 0.333333 is 1/3, and 0.33 is not.

    Example:

    ```python
    >>> from think_tools.answers.numbers import read_number, same_number

    >>> [same_number(read_number(text), read_number("1/3")) for text in ("2/6", "0.333333", "0.33")]
    [True, True, False]
    ```
    """
    if first.value == second.value:
        return True
    if (first.places is None) == (second.places is None):
        return False
    decimal = first if first.places is not None else second
    assert decimal.places is not None
    return decimal.significant >= 6 and abs(first.value - second.value) < Fraction(10) ** -decimal.places
