r"""
Read formulas as quotients of polynomials with rational coefficients, which are equal or not beyond doubt.

The unknowns are letters, $\pi$, $e$, square roots of primes and of -1, logarithms of primes, sines and cosines.
"""

import functools
import math
import re
import string
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

_DEEPEST = 12  # brackets in brackets
_MOST_WORK = 3000  # products of two terms, about 10 ms
_LARGEST_POWER = 512
_MOST_BITS = 2048
_LARGEST_ROOT = 10**9  # under a root; of numbers up to here all prime factors are found
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\S)")
_GREEK = "alpha beta gamma delta theta lambda mu rho sigma phi omega pi"
_LETTERS = {*string.ascii_letters, *(f"\\{name}" for name in _GREEK.split())}
_FUNCTIONS = {"\\sin", "\\cos", "\\ln", "\\log"}
_FACTORS = {*_LETTERS, *_FUNCTIONS, "\\frac", "\\sqrt", "(", "{"}  # what begins a factor without a sign before it
_TIMES = {"*", "\\cdot", "\\times", "×", "·"}
_SUBSCRIPT = re.compile(r"_(?:\{(\w{1,4})\}|(\w))")

Term = tuple[tuple[str, int], ...]  # unknowns and their exponents, sorted: x²y is (("x", 2), ("y", 1))
Polynomial = dict[Term, Fraction]
_ONE: Polynomial = {(): Fraction(1)}


class Ratio(NamedTuple):
    """A quotient of two polynomials; the denominator is 1 where it is a number."""

    top: Polynomial
    under: Polynomial = _ONE


def read_ratio(text: str) -> tuple[Ratio, bool]:
    r"""
    Read a formula.

    Args:
        text (`str`):
            LaTeX without spacing commands, as [`~think_tools.answers.numbers.clean`] returns it.

    Returns:
        `tuple[Ratio, bool]`: The formula, and whether one that differs from it surely has another value. It does not
        where decimals, units, sines or logarithms stand.

    Raises:
        `ValueError`: If the text is not such a formula, or costs more than about 10 ms.
        `ZeroDivisionError`: If it divides by zero.

    Example:

    ```python
    >>> from think_tools.answers.polynomials import read_ratio

    >>> read_ratio(r"\sqrt{20}")[0] == read_ratio(r"2\sqrt5")[0], read_ratio("0.5x")[1]
    (True, False)
    ```
    """
    reader = _Reader(text)
    ratio = reader.sum()
    if reader.token:
        raise ValueError(f"unexpected {reader.token!r}")
    return ratio, reader.sure


def same_ratio(first: Ratio, second: Ratio) -> bool:
    """
    Tell whether two quotients are equal, by their cross products.

    Raises:
        `ValueError`: If they are too large to multiply.

    Example:

    ```python
    >>> from think_tools.answers.polynomials import read_ratio, same_ratio

    >>> same_ratio(read_ratio("(x+1)/y")[0], read_ratio("(1+x)(y+1)/(yy+y)")[0])
    True
    ```
    """
    reader = _Reader("")
    return reader.times(first.top, second.under) == reader.times(second.top, first.under)


def constant(value: Fraction | int) -> Polynomial:
    """
    Return a number as a polynomial.

    Example:

    ```python
    >>> from think_tools.answers.polynomials import constant

    >>> constant(2), constant(0)
    ({(): Fraction(2, 1)}, {})
    ```
    """
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

    def sum(self) -> Ratio:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("too deep")
        total = self.product()
        while self.token in ("+", "-"):
            sign = -1 if self.advance() == "-" else 1
            total = self.add(total, self.product(), sign)
        self.depth -= 1
        return total

    def product(self) -> Ratio:
        sign = 1
        while self.token in ("+", "-"):
            sign *= -1 if self.advance() == "-" else 1
        value, divided = self.power(), False
        while True:
            if self.accept("/"):
                value, divided = self.divide(value, self.power()), True
            elif self.accept(*_TIMES):
                value, divided = self.multiply(value, self.power()), False
            elif self.token in _FACTORS:
                if divided:
                    raise ValueError("1/2x may be either")
                value = self.multiply(value, self.power())
            else:
                return self.multiply(value, Ratio(constant(sign)))

    def power(self) -> Ratio:
        base = self.factor()
        return self.raised(base, self.argument()) if self.accept("^") else base

    def raised(self, base: Ratio, exponent: Ratio) -> Ratio:
        value = _rational(exponent)
        if value is None or abs(value) > _LARGEST_POWER or value.denominator > 2:
            raise ValueError("a power that is no small number")
        if value.denominator == 2:
            base, value = self.root(base), value * 2
        result = functools.reduce(self.multiply, [base] * abs(int(value)), Ratio(_ONE))
        return result if value >= 0 else self.divide(Ratio(_ONE), result)

    def argument(self) -> Ratio:
        """What belongs to `^`, `\\frac` or `\\sqrt`: a group, else one sign."""
        if self.token[:1].isdigit():
            before = self.text[self.position - len(self.token) - 1]
            if before == "^" and len(self.token) > 1:
                raise ValueError("x^10 may be either")
            self.position -= len(self.token) - 1
            self.token = self.token[0]
            return Ratio(constant(int(self.advance())))
        if self.token == "(" or self.token not in _FACTORS:
            raise ValueError("an argument is missing")
        return self.factor()

    def factor(self) -> Ratio:
        token = self.advance()
        if token[-1:].isdigit():
            return self.numeral(token)
        if token in ("(", "{"):
            value = self.sum()
            if not self.accept(")" if token == "(" else "}"):
                raise ValueError("a bracket is not closed")
            return value
        if token == "\\frac":
            return self.divide(self.argument(), self.argument())
        if token == "\\sqrt":
            return self.root(self.argument())
        if token in _FUNCTIONS:
            return self.function(token)
        if token in _LETTERS:
            return self.letter(token)
        raise ValueError(f"unexpected {token!r}")

    def numeral(self, token: str) -> Ratio:
        if self.token == "_" or self.token[:1].isdigit() or self.token == "\\frac":
            raise ValueError("another base, two numbers, or a mixed number")
        self.sure = self.sure and "." not in token  # 3.141593 may stand for \pi
        return Ratio(constant(Fraction(token)))

    def letter(self, token: str) -> Ratio:
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
        return _unknown("√-1" if name == "i" else name)

    def function(self, token: str) -> Ratio:
        """A logarithm of a positive integer, or a sine or cosine of a polynomial. They have laws unknown here."""
        self.sure = False
        exponent = self.argument() if token in ("\\sin", "\\cos") and self.accept("^") else Ratio(_ONE)
        if self.token == "_":
            raise ValueError("a base")
        if self.token in ("(", "{"):
            argument = self.factor()
        else:
            argument = self.power()
            while self.token in _FACTORS - _FUNCTIONS:
                argument = self.multiply(argument, self.power())
        if token in ("\\ln", "\\log"):
            return Ratio(_logarithm(token, _rational(argument)))
        if argument.under != _ONE:
            raise ValueError("a sine of a quotient")
        return self.raised(_unknown(f"{token} {sorted(argument.top.items())}"), exponent)

    def root(self, value: Ratio) -> Ratio:
        number = _rational(value)
        if number is None:
            self.sure = False
            if value.under != _ONE:
                raise ValueError("a root of a quotient")
            return _unknown(f"\\sqrt {sorted(value.top.items())}")
        if not number:
            return Ratio({})
        product = number.numerator * number.denominator
        if abs(product) > _LARGEST_ROOT:
            raise ValueError("too large to look for squares")
        primes = _prime_factors(abs(product)) + Counter({-1: product < 0})
        outside = math.prod(prime ** (times // 2) for prime, times in primes.items())
        inside = sorted((f"√{prime}", 1) for prime, times in primes.items() if times % 2)
        return Ratio({tuple(inside): Fraction(outside, number.denominator)})

    def add(self, first: Ratio, second: Ratio, sign: int) -> Ratio:
        left, right = self.times(first.top, second.under), self.times(second.top, first.under)
        terms = [*left.items(), *((term, sign * factor) for term, factor in right.items())]
        return Ratio(_collected(terms), self.times(first.under, second.under))

    def multiply(self, first: Ratio, second: Ratio) -> Ratio:
        return _simple(Ratio(self.times(first.top, second.top), self.times(first.under, second.under)))

    def divide(self, first: Ratio, second: Ratio) -> Ratio:
        if not second.top:
            raise ZeroDivisionError
        return _simple(Ratio(self.times(first.top, second.under), self.times(first.under, second.top)))

    def times(self, first: Polynomial, second: Polynomial) -> Polynomial:
        if first == _ONE or second == _ONE:
            return second if first == _ONE else first
        self.work += len(first) * len(second)
        if self.work > _MOST_WORK:
            raise ValueError("too much work")
        terms = []
        for one, factor in first.items():
            for other, second_factor in second.items():
                product = factor * second_factor
                if max(product.numerator.bit_length(), product.denominator.bit_length()) > _MOST_BITS:
                    raise ValueError("too many digits")
                terms += [(term, product * more) for term, more in self.join(one, other)]
        return _collected(terms)

    def join(self, first: Term, second: Term) -> list[tuple[Term, int]]:
        """The product of two terms; several terms where a squared cosine becomes 1 - sin²."""
        if not first or not second:
            return [(first or second, 1)]
        powers, factor = dict(first), 1
        for name, exponent in second:
            powers[name] = powers.get(name, 0) + exponent
        for name, exponent in powers.items():
            if name[0] == "√" and exponent > 1:
                factor, powers[name] = factor * int(name[1:]) ** (exponent // 2), exponent % 2
        term = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
        squared = next((name for name, exponent in term if name.startswith("\\cos") and exponent > 1), None)
        if not squared:
            return [(term, factor)]
        rest = tuple((n, e - 2 if n == squared else e) for n, e in term if n != squared or e > 2)
        sine = ((squared.replace("\\cos", "\\sin", 1), 2),)
        return [(t, f * factor) for t, f in [(rest, 1), *((t, -f) for t, f in self.join(rest, sine))]]


def _unknown(name: str) -> Ratio:
    return Ratio({((name, 1),): Fraction(1)})


def _collected(terms: list[tuple[Term, Fraction]]) -> Polynomial:
    """The sum of the terms."""
    total: Polynomial = {}
    for term, factor in terms:
        total[term] = total.get(term, 0) + factor
    return {term: factor for term, factor in total.items() if factor}


def _simple(ratio: Ratio) -> Ratio:
    """With 1 as the denominator where it is a number."""
    under = ratio.under.get(()) if len(ratio.under) == 1 else None
    return Ratio({term: factor / under for term, factor in ratio.top.items()}) if under else ratio


def _rational(ratio: Ratio) -> Fraction | None:
    """The value if it is a rational number."""
    if ratio.under != _ONE or len(ratio.top) > 1 or (ratio.top and () not in ratio.top):
        return None
    return ratio.top.get((), Fraction(0))


def _prime_factors(number: int) -> Counter[int]:
    """Prime factors with their exponents. A last factor above 10⁹ is only not known to be a product."""
    found: Counter[int] = Counter()
    divisor = 2
    while divisor * divisor <= min(number, _LARGEST_ROOT):
        while number % divisor == 0:
            number, found[divisor] = number // divisor, found[divisor] + 1
        divisor += 1 + divisor % 2
    return found + Counter({number: number > 1})


def _logarithm(name: str, number: Fraction | None) -> Polynomial:
    """Sum of the logarithms of the prime factors."""
    if number is None or number <= 0:
        raise ValueError("no logarithm of a positive number")
    primes = _prime_factors(number.numerator)
    primes.subtract(_prime_factors(number.denominator))
    return {((f"{name} {prime}", 1),): Fraction(times) for prime, times in primes.items() if times}
