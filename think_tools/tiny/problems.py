"""Arithmetic in English and Chinese: questions, long-hand reasoning and answers, split by operand pairs."""

import json
import random
import zlib
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from datasets import Dataset

Split = Literal["train", "test"]
Language = Literal["en", "zh"]

# By language: questions, the words of long-hand, and small talk.
PHRASES = json.loads((Path(__file__).parent / "phrases.json").read_text(encoding="utf-8"))


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
    """One wording of the question, drawn from `PHRASES`."""
    return rng.choice(PHRASES[language]["questions"][operator]).format(a=a, b=b)


def solve(a: int, operator: str, b: int) -> int:
    """The result, for the operators `*`, `+` and `-`."""
    return {"*": a * b, "+": a + b, "-": a - b}[operator]


def long_hand(a: int, operator: str, b: int, language: Language = "en") -> str:
    """
    The reasoning of a person with a pencil: one step per paragraph, digits from right to left with their carry.

    Products take a second factor below 100; differences take `a >= b`.
    """
    word = PHRASES[language]["long_hand"]
    steps = [f"{word['compute']}{a}{operator}{b}{word['stop']}"]
    if operator != "*" or b < 10:
        steps.append(_columns(a, operator, b))
    else:
        ones, tens = a * (b % 10), a * (b // 10)
        steps += [
            f"{word['ones']}{word['colon']}{a}*{b % 10}: {_columns(a, '*', b % 10)}",
            f"{word['tens']}{word['colon']}{a}*{b // 10}: {_columns(a, '*', b // 10)} -> {tens * 10}",
            f"{word['sum']}{word['colon']}{ones}+{tens * 10}: {_columns(ones, '+', tens * 10)}",
        ]
    return "\n\n".join(steps)


def _draw_pair(rng: random.Random, split: Split) -> tuple[int, int]:
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if is_test_pair(a, b) == (split == "test"):
            return a, b


def _columns(a: int, operator: str, b: int) -> str:
    """Figure by figure from right to left, with carry or borrow, and the result. A product takes one figure as `b`."""
    written, carry, sign = [], 0, "-" if operator == "-" else "+"
    fill = str(b) if operator == "*" else "0"
    for figures in zip_longest(reversed(str(a)), reversed(str(b)), fillvalue=fill):
        x, y = map(int, figures)
        value = {"*": x * y + carry, "+": x + y + carry, "-": x - y - carry}[operator]
        borrowed = value < 0
        if borrowed:
            x, value = x + 10, value + 10
        written.append(f"{x}{operator}{y}{sign}{carry}={value}")
        carry = 1 if borrowed else value // 10
    return f"{' '.join(written)} -> {solve(a, operator, b)}"
