"""Compare an answer with a gold answer as far as strings and exact numbers go, without any process."""

import functools
import re

from .extract import marked_answer, stated_answer
from .numbers import Number, clean, read_number, same_number, unwrap

_CHOICE = re.compile(r"(?:(?:option|choice|选项)\s?)?\(?([A-J])(?:\)|\s?[.:、]|$)(?!\w).*", re.IGNORECASE | re.DOTALL)
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[\s'’.,!&-])*")
_WORD = re.compile(r"[A-Za-z]{3}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
# A second form of the same value: "72/19 hours (or approximately 3.79 hours)", "1/3 ≈ 0.33".
_REMARK = re.compile(r"(?P<value>[^()≈]+?)\s?(?:\((?P<inside>[^()]+)\)|(?:≈|\\approx(?![a-z]))(?P<after>.+))")
_HEDGE = re.compile(
    r"^\s*(?:or|i\.e\.|that is|即|或)?,?\s*(?:approximately|approx\.?|about|roughly|around|≈|=|约|大约)?\s*"
)
_SEVERAL = re.compile(r"[,;<>≤≥≈≠!]|\\(?:le|ge|lt|gt|ne|approx|equiv)|\b(?:and|or)\b")
_CLOCK = re.compile(r"(\d{1,2}:\d\d)\s?([ap](?:\.?\s?m)?)\.*", re.IGNORECASE)
_BASED = re.compile(r"(\w+)_(?:\{(\d+)\}|(\d+))")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_LONGEST_GOLD = 200  # characters of text without LaTeX; what is longer is prose, which no rule can grade


def read_gold(solution: object) -> str | None:
    r"""
    Read a gold answer in any of its usual forms: `5`, `$5$`, `\boxed{5}`, a worked solution that ends in `#### 5`,
    holds a box or says "The answer is 5.", a choice letter, a word; integers and floats are written out.

    Returns:
        `str` or `None`: The bare answer; `None` if there is nothing to compare with (empty, another type, prose of
        more than 200 characters).

    Example:

    ```python
    >>> from think_tools.answers.compare import read_gold

    >>> read_gold("Add them.\n#### 5"), read_gold("$5$"), read_gold(""), read_gold(None)
    ('5', '5', None, None)
    ```
    """
    if isinstance(solution, (int, float)) and not isinstance(solution, bool):
        solution = str(solution)
    if not isinstance(solution, str):
        return None
    gold = marked_answer(solution) or stated_answer(solution) or unwrap(solution)
    prose = len(gold) > _LONGEST_GOLD and "\\" not in gold and not re.search(r"\d", gold)
    return None if not clean(gold) or prose else gold


def compare_plainly(answer: str, gold: str) -> bool | None:
    """
    Compare two answers as strings, choice letters, words and exact numbers.

    Returns:
        `bool` or `None`: `None` if only algebra can tell, as for `2^{10}` and `1024`.

    Example:

    ```python
    >>> from think_tools.answers.compare import compare_plainly

    >>> compare_plainly("56,088", "56088"), compare_plainly("paris", "Paris"), compare_plainly("2^{10}", "1024")
    (True, True, None)
    ```
    """
    answer = clean(answer)
    gold, squeezed, gold_number = _read_once(gold)
    if _squeezed(answer) == squeezed:
        return True
    if (time := _CLOCK.fullmatch(answer)) and (gold_time := _CLOCK.fullmatch(gold)):
        return _squeezed_time(time) == _squeezed_time(gold_time)
    if (based := _BASED.fullmatch(gold)) and based[1].isdigit():  # 52 is not 52 in base 8
        given = _BASED.fullmatch(answer)
        return bool(given) and (given[1], given[2] or given[3]) == (based[1], based[2] or based[3])
    if _is_decimal_comma(answer, gold) or _is_decimal_comma(gold, answer):
        return True
    if gold_number:
        number = read_number(answer) or _number_with_remark(answer)
        if number:
            return same_number(number, gold_number)
        if (equal := _end_of_equation(answer, gold_number)) is not None:
            return equal
        return False if _is_words(answer) else None
    if re.fullmatch(r"\(?[A-J]\)?", gold) and (choice := _CHOICE.fullmatch(answer)):
        return choice[1].upper() == gold.strip("()")
    return False if _is_words(gold) else None


def _is_decimal_comma(text: str, other: str) -> bool:
    """Whether `1,5` says the same as `1.5`. Only a number with a point tells: by itself it is two numbers."""
    if not _DECIMAL_COMMA.fullmatch(text) or "." not in other or "," in other:
        return False
    number, with_point = read_number(text.replace(",", ".")), read_number(other)
    return bool(number and with_point and number.value == with_point.value)


@functools.lru_cache(maxsize=4096)
def _read_once(gold: str) -> tuple[str, str, Number | None]:
    gold = clean(gold)
    return gold, _squeezed(gold), read_number(gold)


def _squeezed_time(time: re.Match[str]) -> str:
    """`4:30 PM` is `4:30p.m.`; a cut-off `4:30p` is another text."""
    return time[1].zfill(5) + re.sub(r"[.\s]", "", time[2]).casefold()


def _squeezed(text: str) -> str:
    """Without blanks, and words without case. Mathematics keeps its case: `X` and `x` may be two things."""
    text = "".join(text.split()).strip("\"'“”‘’")
    return text.casefold() if _WORD.search(text) and "\\" not in text else text


def _is_words(text: str) -> bool:
    """Whether the text is a name or phrase, so that algebra has nothing to say about it."""
    return bool(_WORD.search(text) and _WORDS.fullmatch(text))


def _end_of_equation(answer: str, gold: Number) -> bool | None:
    """Whether `x = 5` or `12 * 3 = 36` ends in the gold number and names no other; `None` if it is anything else."""
    *before, last = answer.split("=")
    number = read_number(last.strip())
    if not before or not number or _SEVERAL.search("".join(before)):
        return None
    return all(same_number(other, gold) for other in [number, *map(read_number, map(str.strip, before))] if other)


def _number_with_remark(answer: str) -> Number | None:
    """The value before a remark that repeats it, within 1 %; a remark with another value is a second answer."""
    remark = _REMARK.fullmatch(answer) if len(answer) <= _LONGEST_GOLD else None
    if not remark:
        return None
    value = read_number(remark["value"].strip())
    again = read_number(_HEDGE.sub("", remark["inside"] or remark["after"]).strip())
    return value if value and again and abs(value.value - again.value) * 100 <= abs(value.value) else None
