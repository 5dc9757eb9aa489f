r"""
Compare formulas of school algebra exactly, in process and in bounded time.

A formula becomes a quotient of polynomials with rational coefficients. Their unknowns are letters, $\pi$, $e$, roots
of square-free integers, logarithms of primes, sines and cosines. What does not fit (long text, high powers, words,
inequalities, integrals) is left to the worker processes.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from .numbers import FOLD, Number, clean, read_number, same_number

_LONGEST = 300  # characters
_DEEPEST = 12  # brackets in brackets
_MOST_WORK = 3000  # products of two terms, about 10 ms
_LARGEST_POWER = 512
_MOST_BITS = 2048

Term = tuple[tuple[str, int], ...]  # unknowns and their exponents, sorted: x²y is (("x", 2), ("y", 1))
Polynomial = dict[Term, Fraction]
_ONE: Polynomial = {(): Fraction(1)}


class _Ratio(NamedTuple):
    top: Polynomial
    under: Polynomial = _ONE


class _Form(NamedTuple):
    """One value, or several in brackets."""

    kind: str  # "value", "list", "set", "union", a pair of brackets, or "matrix" and its width
    parts: tuple["_Form", ...] = ()
    number: Number | None = None
    ratio: _Ratio | None = None
    sure: bool = True  # whether a difference of the polynomials means a difference of the values
    left: str | None = None  # what stood before `=`


_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\S)")
_GREEK = set(
    r"\alpha \beta \gamma \delta \epsilon \varepsilon \theta \lambda \mu \rho \sigma \tau \phi \varphi \omega".split()
)
_FUNCTIONS = {"\\sin", "\\cos", "\\ln", "\\log"}
_TIMES = {"*", "\\cdot", "\\times", "×", "·"}
_SUBSCRIPT = re.compile(r"_(?:\{(\w{1,4})\}|(\w))")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}")
_UPRIGHT = re.compile(r"\\math(?:rm|it|bf)\s?\{(\w)\}")
_MEMBER = re.compile(r"[A-Za-z]\s?\\in(?![A-Za-z])")
_LEFT_SIDE = re.compile(r"([A-Za-z]|\\[a-z]+)\s?=(?!=)")
_INFINITY = re.compile(r"([+-]?)\s?(?:\\infty|∞)")
_GROUPED = re.compile(r"\d,\s?\d{3}(?!\d)")
_SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b|\\(?:text|mathrm|quad)(?![A-Za-z])|[和或、]")
_BRACKET = re.compile(r"\\?[{}]|[()\[\]]")
_OPENING = ("\\{", "(", "[", "{")


def compare_formulas(answer: str, gold: str) -> bool | None:
    r"""
    Compare two formulas, tuples, sets, lists, intervals or matrices.

    Source: the normal form of a polynomial is unique, so equality of expanded cross products decides.

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

    >>> pairs = [(r"\\sqrt{20}", r"2\\sqrt5"), ("(x+1)^2", "x^2+2x"), ("x<1", "x<2")]
    >>> [compare_formulas(answer, gold) for answer, gold in pairs]
    [True, False, None]
    ```
    """
    if len(answer) > _LONGEST or len(gold) > _LONGEST:
        return None
    expected = _read_once(gold)
    given = _read(answer) if expected else None
    return _same(given, expected) if given and expected else None


@lru_cache(maxsize=4096)
def _read_once(gold: str) -> _Form | None:
    return _read(gold)


def _read(text: str) -> _Form | None:
    text = _UPRIGHT.sub(r"\1", text.translate(FOLD)).replace("\\tfrac", "\\frac").replace("\\lbrace", "\\{")
    try:
        return _form(clean(text), 0)
    except (ValueError, ZeroDivisionError):
        return None


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
    assert given.ratio is not None
    assert gold.ratio is not None
    reader = _Reader("")
    if reader.times(given.ratio.top, gold.ratio.under) == reader.times(gold.ratio.top, given.ratio.under):
        return True
    return False if given.sure and gold.sure else None


def _form(text: str, depth: int) -> _Form:
    text = text.strip()
    if depth > _DEEPEST or _GROUPED.search(text) and not read_number(text):
        raise ValueError("too deep, or digits that may be one number or two")
    if member := _MEMBER.match(text):
        text = text[member.end() :].strip()
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
        return _Form(f"matrix {[len(row) for row in rows]}", tuple(_form(c, depth + 1) for row in rows for c in row))
    number = read_number(text)
    if number:
        return _Form("value", number=number, ratio=_Ratio(_constant(number.value)), sure=number.places in (None, 0))
    for kind, separators in (("union", re.compile(r"\\cup(?![A-Za-z])")), ("list", _SEPARATOR)):
        parts = list(_split(text, separators))
        if len(parts) > 1:
            return _Form(kind, tuple(_form(part, depth + 1) for part in parts if part.strip()))
    opening = next((mark for mark in ("\\{", "(", "[") if text.startswith(mark)), "")
    closing = next((mark for mark in ("\\}", ")", "]") if text.endswith(mark)), "")
    if opening and closing and _closes_last(text):
        parts = list(_split(text[len(opening) : -len(closing)], _SEPARATOR))
        is_set = opening == "\\{" and closing == "\\}"
        if is_set or len(parts) > 1:
            return _Form("set" if is_set else opening + closing, tuple(_form(part, depth + 1) for part in parts))
    return _value(text, depth)


def _value(text: str, depth: int) -> _Form:
    left = None
    if match := _LEFT_SIDE.match(text):
        left, text = match[1], text[match.end() :]
        number = read_number(text.strip())
        if number:
            return _form(text, depth)._replace(left=left)
    if text.count("\\pm") == 1:
        return _Form("list", tuple(_value(text.replace("\\pm", sign), depth + 1) for sign in "+-"))
    if infinite := _INFINITY.fullmatch(text.strip()):
        return _Form("value", ratio=_Ratio({(("\\infty", 1),): Fraction(-1 if infinite[1] == "-" else 1)}), left=left)
    reader = _Reader(text)
    ratio = reader.sum()
    if reader.token:
        raise ValueError(f"unexpected {reader.token!r}")
    return _Form("value", ratio=ratio, sure=reader.sure, left=left)


def _split(text: str, separators: re.Pattern[str]) -> Iterator[str]:
    """Parts of the text between separators that stand in no brackets. `(` may be closed by `]`."""
    depth, start, position = 0, 0, 0
    while position < len(text):
        bracket = _BRACKET.match(text, position)
        depth += (1 if bracket[0] in _OPENING else -1) if bracket else 0
        if depth < 0:
            raise ValueError("brackets that close nothing")
        if not depth and (separator := separators.match(text, position)):
            yield text[start : separator.start()]
            start = position = separator.end()
        else:
            position = bracket.end() if bracket else position + 1
    yield text[start:]


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last, as in (1,2) and not as in (x+1)(x+2)."""
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in _OPENING else -1
        if not depth:
            return bracket.end() == len(text)
    return False


def _constant(value: Fraction | int) -> Polynomial:
    return {(): Fraction(value)} if value else {}


class _Reader:
    """Reads one formula by recursive descent and calculates on the way; raises `ValueError` where it cannot."""

    def __init__(self, text: str):
        self.text = text
        self.position = self.depth = self.work = 0
        self.sure = True
        self.token = ""
        self.advance()

    def advance(self) -> str:
        """Go to the next token and return the one before."""
        token, match = self.token, _TOKEN.match(self.text, self.position)
        self.token = match[1] if match else ""
        self.position = match.end() if match else len(self.text)
        return token

    def accept(self, *tokens: str) -> bool:
        return self.token in tokens and bool(self.advance())

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise ValueError(f"{token} is missing")

    def sum(self) -> _Ratio:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("too deep")
        total = self.product()
        while self.token in ("+", "-"):
            sign = -1 if self.advance() == "-" else 1
            total = self.add(total, self.product(), sign)
        self.depth -= 1
        return total

    def product(self) -> _Ratio:
        sign = 1
        while self.token in ("+", "-"):
            sign *= -1 if self.advance() == "-" else 1
        value, divided = self.power(), False
        while True:
            if self.accept("/"):
                value, divided = self.divide(value, self.power()), True
            elif self.accept(*_TIMES):
                value, divided = self.multiply(value, self.power()), False
            elif self.starts_factor():
                if divided:
                    raise ValueError("1/2x may be either")
                value = self.multiply(value, self.power())
            else:
                return self.multiply(value, _Ratio(_constant(sign)))

    def starts_factor(self) -> bool:
        token = self.token
        known = token in _GREEK or token in _FUNCTIONS or token in ("\\frac", "\\sqrt", "\\pi", "(", "{")
        return known or (len(token) == 1 and token.isalpha() and token.isascii())

    def power(self) -> _Ratio:
        base = self.factor()
        if not self.accept("^"):
            return base
        return self.raised(base, self.argument())

    def raised(self, base: _Ratio, exponent: _Ratio) -> _Ratio:
        value = _rational(exponent)
        if value is None or abs(value) > _LARGEST_POWER or value.denominator > 2:
            raise ValueError("a power that is no small number")
        if value.denominator == 2:
            base, value = self.root(base), value * 2
        result = _Ratio(_ONE)
        for _ in range(abs(int(value))):
            result = self.multiply(result, base)
        return result if value >= 0 else self.divide(_Ratio(_ONE), result)

    def argument(self) -> _Ratio:
        """What belongs to `^`, `\\frac` or `\\sqrt`: a group, else one sign."""
        if self.token == "{" or self.token.startswith("\\"):
            return self.factor()
        if self.token and self.token[0].isdigit():
            start = self.position - len(self.token)
            if self.text[start - 1] == "^" and len(self.token) > 1:
                raise ValueError("x^10 may be either")
            self.position = start + 1
            digit = self.text[start]
            self.advance()
            return _Ratio(_constant(int(digit)))
        if len(self.token) == 1 and self.token.isalpha():
            return self.factor()
        raise ValueError("an argument is missing")

    def factor(self) -> _Ratio:
        token = self.advance()
        if token[:1].isdigit() or token[:1] == "." and token != ".":
            return self.numeral(token)
        if token in ("(", "{"):
            value = self.sum()
            self.expect(")" if token == "(" else "}")
            return value
        if token == "\\frac":
            return self.divide(self.argument(), self.argument())
        if token == "\\sqrt":
            return self.root(self.argument())
        if token in _FUNCTIONS:
            return self.function(token)
        if token == "\\pi" or token in _GREEK or (len(token) == 1 and token.isalpha() and token.isascii()):
            return self.letter(token)
        raise ValueError(f"unexpected {token!r}")

    def numeral(self, token: str) -> _Ratio:
        if self.token == "_" or self.token[:1].isdigit() or self.token == "\\frac":
            raise ValueError("another base, two numbers, or a mixed number")
        self.sure = self.sure and "." not in token  # 3.141593 may stand for \pi
        return _Ratio(_constant(Fraction(token)))

    def letter(self, token: str) -> _Ratio:
        name = token
        if self.token == "_" and (subscript := _SUBSCRIPT.match(self.text, self.position - 1)):
            name = f"{token}_{subscript[1] or subscript[2]}"
            self.position = subscript.end()
            self.advance()
        elif self.token == "(" and token in "fghFGHPQ":
            raise ValueError("a function of its own")
        elif len(self.token) == 1 and self.token.isalpha() and token not in ("\\pi", "e", "i"):
            self.sure = False  # xy is a product, and cm a unit
            if self.text[self.position : self.position + 1].isalpha():
                raise ValueError("a word")
        return _Ratio({((name, 1),): Fraction(1)})

    def function(self, token: str) -> _Ratio:
        """A logarithm of a positive integer, or a sine or cosine of a polynomial. They have laws unknown here."""
        self.sure = False
        exponent = self.argument() if token in ("\\sin", "\\cos") and self.accept("^") else _Ratio(_ONE)
        if self.token == "_":
            raise ValueError("a base")
        if self.token in ("(", "{"):
            argument = self.factor()
        else:
            argument = self.power()
            while self.token and self.token not in _FUNCTIONS and self.starts_factor():
                argument = self.multiply(argument, self.power())
        if token in ("\\ln", "\\log"):
            return _Ratio(_logarithm(token, _rational(argument)))
        if argument.under != _ONE:
            raise ValueError("a sine of a quotient")
        return self.raised(_Ratio({((f"{token} {sorted(argument.top.items())}", 1),): Fraction(1)}), exponent)

    def root(self, value: _Ratio) -> _Ratio:
        number = _rational(value)
        if number is None:
            self.sure = False
            if value.under != _ONE:
                raise ValueError("a root of a quotient")
            return _Ratio({((f"\\sqrt {sorted(value.top.items())}", 1),): Fraction(1)})
        outside, inside = _square_free(abs(number.numerator) * number.denominator)
        result = {(("√", inside),) if inside > 1 else (): Fraction(outside, number.denominator)} if number else {}
        return self.multiply(_Ratio(result), _Ratio({(("i", 1),) if number < 0 else (): Fraction(1)}))

    def add(self, first: _Ratio, second: _Ratio, sign: int) -> _Ratio:
        left, right = self.times(first.top, second.under), self.times(second.top, first.under)
        total = dict(left)
        for term, factor in right.items():
            total[term] = total.get(term, Fraction(0)) + sign * factor
        return _Ratio(_without_zeros(total), self.times(first.under, second.under))

    def multiply(self, first: _Ratio, second: _Ratio) -> _Ratio:
        return _simple(_Ratio(self.times(first.top, second.top), self.times(first.under, second.under)))

    def divide(self, first: _Ratio, second: _Ratio) -> _Ratio:
        if not second.top:
            raise ZeroDivisionError
        return _simple(_Ratio(self.times(first.top, second.under), self.times(first.under, second.top)))

    def times(self, first: Polynomial, second: Polynomial) -> Polynomial:
        if first == _ONE or second == _ONE:
            return second if first == _ONE else first
        self.work += len(first) * len(second)
        if self.work > _MOST_WORK:
            raise ValueError("too much work")
        result: Polynomial = {}
        for one, factor in first.items():
            for other, second_factor in second.items():
                product = factor * second_factor
                if max(product.numerator.bit_length(), product.denominator.bit_length()) > _MOST_BITS:
                    raise ValueError("too many digits")
                for term, more in self.join(one, other):
                    result[term] = result.get(term, Fraction(0)) + product * more
        return _without_zeros(result)

    def join(self, first: Term, second: Term) -> list[tuple[Term, int]]:
        """The product of two terms; several terms where a squared cosine becomes 1 - sin²."""
        if not first or not second:
            return [(first or second, 1)]
        powers, factor = dict(first), 1
        for name, exponent in second:
            if name == "√" and name in powers:  # the "exponent" of √ is the number under it
                common = math.gcd(powers[name], exponent)
                factor, powers[name] = factor * common, powers[name] * exponent // common**2
            else:
                powers[name] = powers.get(name, 0) + exponent
        if powers.get("i", 0) > 1:
            factor, powers["i"] = factor * (-1) ** (powers["i"] // 2), powers["i"] % 2
        term = tuple(sorted((n, e) for n, e in powers.items() if e != (1 if n == "√" else 0)))
        squared = next((name for name, exponent in term if name.startswith("\\cos") and exponent > 1), None)
        if not squared:
            return [(term, factor)]
        rest = tuple((n, e - 2 if n == squared else e) for n, e in term if n != squared or e > 2)
        sine = ((squared.replace("\\cos", "\\sin", 1), 2),)
        return [(t, f * factor) for t, f in [(rest, 1), *((t, -f) for t, f in self.join(rest, sine))]]


def _without_zeros(polynomial: Polynomial) -> Polynomial:
    return {term: factor for term, factor in polynomial.items() if factor}


def _simple(ratio: _Ratio) -> _Ratio:
    """With 1 as the denominator where it is a number."""
    under = ratio.under.get(()) if len(ratio.under) == 1 else None
    return _Ratio({term: factor / under for term, factor in ratio.top.items()}) if under else ratio


def _rational(ratio: _Ratio) -> Fraction | None:
    """The value if it is a rational number."""
    if ratio.under != _ONE or len(ratio.top) > 1 or (ratio.top and () not in ratio.top):
        return None
    return ratio.top.get((), Fraction(0))


def _square_free(number: int) -> tuple[int, int]:
    """`a, b` with a²b = number and no square in b."""
    if number > 10**9:  # up to here what is left after dividing by all up to 1000 is a prime, its square or two primes
        raise ValueError("too large to look for squares")
    outside, inside, divisor = 1, 1, 2
    while divisor <= 1000 and divisor * divisor <= number:
        while number % (divisor * divisor) == 0:
            number, outside = number // divisor**2, outside * divisor
        if number % divisor == 0:
            number, inside = number // divisor, inside * divisor
        divisor += 1
    root = math.isqrt(number)
    return (outside * root, inside) if root * root == number else (outside, inside * number)


def _logarithm(name: str, number: Fraction | None) -> Polynomial:
    """Sum of the logarithms of the prime factors."""
    if number is None or number <= 0:
        raise ValueError("no logarithm of a positive number")
    result: Polynomial = {}
    for rest, sign in ((number.numerator, 1), (number.denominator, -1)):
        divisor = 2
        while rest > 1:
            if divisor > 1000:
                divisor = rest  # not known to be prime, so a difference proves nothing
            while rest % divisor == 0:
                rest //= divisor
                term = ((f"{name} {divisor}", 1),)
                result[term] = result.get(term, Fraction(0)) + sign
            divisor += 1
    return result
