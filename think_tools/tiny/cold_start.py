"""Rows of the cold start: the same kind of question is sometimes thought about and sometimes answered at once."""

import random

from datasets import Dataset

from .problems import Language, ask, is_test_pair, long_hand, solve
from .small_talk import small_talk


def cold_start_rows(n: int = 40_000, seed: int = 0, *, think_share: float = 0.35) -> Dataset:
    """
    Rows for SFT of the embedded base, so that it thinks part of the time and reinforcement has something to choose.

    Nine rows in ten are arithmetic, one is small talk, which is never thought about. Of the arithmetic, `think_share`
    has reasoning; of the rest, a few rows switch thinking off (`enable_thinking` is `False`) and the others answer
    directly although they may think. No product of the test split is among them.

    Args:
        n (`int`, *optional*, defaults to `40000`):
            Number of rows.
        seed (`int`, *optional*, defaults to `0`):
            The same arguments always give the same rows.
        think_share (`float`, *optional*, defaults to `0.35`):
            Share of the arithmetic rows with reasoning, between 0.0 and 1.0. Below one half, greedy decoding of the
            trained model mostly answers directly.

    Returns:
        `datasets.Dataset`: Rows of the package's row type.

    Raises:
        `ValueError`: If `think_share` is outside [0, 1].
    """
    if not 0 <= think_share <= 1:
        raise ValueError(f"`think_share` must be between 0 and 1, got {think_share}.")
    rng = random.Random(f"cold start/{seed}")
    return Dataset.from_list([_row(rng, f"cold-start-{seed}-{i}", think_share) for i in range(n)])


def _row(rng: random.Random, row_id: str, think_share: float) -> dict:
    language: Language = rng.choice(("en", "zh"))
    reasoning, enable_thinking, solution = None, True, None
    if rng.random() < 0.1:
        question, answer = small_talk(rng, language)
        enable_thinking = rng.random() < 0.5
    else:
        a, operator, b = _draw(rng)
        question, answer = ask(rng, a, operator, b, language), str(solve(a, operator, b))
        solution = answer
        if rng.random() < think_share:
            reasoning = long_hand(a, operator, b, language)
        else:
            enable_thinking = rng.random() > 0.1
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "reasoning_content": reasoning, "content": answer}],
        "chat_template_kwargs": {"enable_thinking": enable_thinking},
        "solution": solution,
        "source": "think-tools/cold-start",
        "id": row_id,
    }


def _draw(rng: random.Random) -> tuple[int, str, int]:
    """Operands and operator; six times in seven a product of two-digit numbers of the train split."""
    while True:
        operator = rng.choices("*+-", (6, 0.6, 0.4))[0]
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
        if not (operator == "*" and is_test_pair(a, b)):
            return a, operator, b
