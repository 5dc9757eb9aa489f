"""Arithmetic in English and Chinese: questions, long-hand reasoning and answers, split by operand pairs."""

import random
import zlib
from typing import Literal

from datasets import Dataset

Split = Literal["train", "test"]
Language = Literal["en", "zh"]

QUESTIONS = {
    ("en", "*"): ("{a}*{b}=?", "What is {a}*{b}?", "What is {a} times {b}?",
                  "Compute {a} × {b}.", "Multiply {a} by {b}."),
    ("zh", "*"): ("{a}乘以{b}等于多少？", "计算{a}×{b}。", "{a}*{b}是多少？", "请算出{a}乘{b}的积。"),
    ("en", "+"): ("{a}+{b}=?", "What is {a}+{b}?", "What is {a} plus {b}?", "Add {a} and {b}."),
    ("zh", "+"): ("{a}加{b}等于多少？", "计算{a}+{b}。", "{a}+{b}是多少？"),
    ("en", "-"): ("{a}-{b}=?", "What is {a}-{b}?", "What is {a} minus {b}?", "Subtract {b} from {a}."),
    ("zh", "-"): ("{a}减{b}等于多少？", "计算{a}-{b}。", "{a}-{b}是多少？"),
}  # fmt: skip
WORDS = {
    "en": {"compute": "Compute ", "stop": ".", "ones": "Ones", "tens": "Tens", "sum": "Sum", "colon": ": "},
    "zh": {"compute": "计算", "stop": "。", "ones": "个位", "tens": "十位", "sum": "相加", "colon": "："},
}


def arithmetic_problems(
    split: Split = "train", n: int = 400, seed: int = 0, *, language: Language | None = None, reasoning: bool = True
) -> Dataset:
    r"""
    Two-digit by two-digit products as rows of the package's row type, with the long-hand reasoning of each.

    Train and test share no pair of operands: one tenth of the unordered pairs belongs to the test split, whatever the
    seed. Questions of the two languages alternate.

    Args:
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"test"`.
        n (`int`, *optional*, defaults to `400`):
            Number of rows. A pair may come twice, in another wording or language.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice and the wording: the same arguments always give the same rows.
        language (`str`, *optional*):
            `"en"`, `"zh"`, or `None` for both in turn. The reasoning is in the language of the question.
        reasoning (`bool`, *optional*, defaults to `True`):
            Whether completions hold the reasoning; without it they answer directly and `enable_thinking` is `False`.

    Returns:
        `datasets.Dataset`: Columns `prompt`, `completion`, `chat_template_kwargs`, `solution`, `source`, `id` and
        `language`.

    Raises:
        `ValueError`: If `split` or `language` is unknown, or `n` is below 1.

    Example:

    ```python
    >>> from think_tools.tiny import arithmetic_problems

    >>> row = arithmetic_problems("test", n=1)[0]
    >>> row["prompt"][0]["content"], row["solution"]
    ('20*12=?', '240')
    ```
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    if language not in (None, "en", "zh"):
        raise ValueError(f"`language` must be 'en', 'zh' or None, got {language!r}.")
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    rng = random.Random(f"{split}/{seed}")
    rows = []
    for i in range(n):
        a, b = _draw_pair(rng, split)
        chosen = language or ("en", "zh")[i % 2]
        question = ask(rng, a, "*", b, chosen)
        thought = long_hand(a, "*", b, chosen) if reasoning else None
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "reasoning_content": thought, "content": str(a * b)}],
                "chat_template_kwargs": {"enable_thinking": reasoning},
                "solution": str(a * b),
                "source": "think-tools/arithmetic",
                "id": f"{split}-{seed}-{i}",
                "language": chosen,
            }
        )
    return Dataset.from_list(rows)


def is_test_pair(a: int, b: int) -> bool:
    """Whether the unordered pair of two-digit operands belongs to the test split, one pair in ten."""
    return min(a, b) > 9 and max(a, b) < 100 and zlib.crc32(f"{min(a, b)},{max(a, b)}".encode()) % 10 == 0


def ask(rng: random.Random, a: int, operator: str, b: int, language: Language) -> str:
    """One wording of the question, drawn from `QUESTIONS`."""
    return rng.choice(QUESTIONS[language, operator]).format(a=a, b=b)


def long_hand(a: int, operator: str, b: int, language: Language = "en") -> str:
    """
    The reasoning of a person with a pencil: one step per paragraph, digits from right to left with their carry.

    Products take a second factor below 100; differences take `a >= b`.
    """
    word = WORDS[language]
    steps = [f"{word['compute']}{a}{operator}{b}{word['stop']}"]
    if operator == "*":
        steps += _multiply(a, b, word)
    else:
        columns, result = _add(a, b) if operator == "+" else _subtract(a, b)
        steps.append(f"{columns} -> {result}")
    return "\n\n".join(steps)


def _draw_pair(rng: random.Random, split: Split) -> tuple[int, int]:
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if is_test_pair(a, b) == (split == "test"):
            return a, b


def _multiply(a: int, b: int, word: dict[str, str]) -> list[str]:
    columns, ones = _multiply_by_digit(a, b % 10)
    if b < 10:
        return [f"{columns} -> {ones}"]
    steps = [f"{word['ones']}{word['colon']}{a}*{b % 10}: {columns} -> {ones}"]
    columns, tens = _multiply_by_digit(a, b // 10)
    steps.append(f"{word['tens']}{word['colon']}{a}*{b // 10}: {columns} -> {tens} -> {tens * 10}")
    columns, result = _add(ones, tens * 10)
    steps.append(f"{word['sum']}{word['colon']}{ones}+{tens * 10}: {columns} -> {result}")
    return steps


def _multiply_by_digit(a: int, digit: int) -> tuple[str, int]:
    carry, columns = 0, []
    for figure in reversed(str(a)):
        product = int(figure) * digit + carry
        columns.append(f"{figure}*{digit}+{carry}={product}")
        carry = product // 10
    return " ".join(columns), a * digit


def _add(a: int, b: int) -> tuple[str, int]:
    carry, columns = 0, []
    for x, y in _figures(a, b):
        columns.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return " ".join(columns), a + b


def _subtract(a: int, b: int) -> tuple[str, int]:
    borrow, columns = 0, []
    for x, y in _figures(a, b):
        figure = x - y - borrow
        columns.append(f"{x}-{y}-{borrow}={figure}" if figure >= 0 else f"{x + 10}-{y}-{borrow}={figure + 10}")
        borrow = int(figure < 0)
    return " ".join(columns), a - b


def _figures(a: int, b: int) -> list[tuple[int, int]]:
    """Digits of both numbers in columns, ones first, the shorter number filled up with zeros."""
    width = max(len(str(a)), len(str(b)))
    return list(zip(map(int, f"{a:0{width}}"[::-1]), map(int, f"{b:0{width}}"[::-1]), strict=True))
