"""Turns that need no reasoning, in English and Chinese: greetings, number words, echo."""

import random

from .problems import PHRASES, Language


def small_talk(rng: random.Random, language: Language) -> tuple[str, str]:
    """A question that needs no reasoning, and its answer."""
    phrases = PHRASES[language]
    kind = rng.choice(("chat", "word", "figure", "echo"))
    if kind == "chat":
        questions, answer = rng.choice(phrases["exchanges"])
        return rng.choice(questions), answer
    number = rng.randint(0, 99)
    word = phrases["number_words"][number]
    if kind == "word":
        given, answer = number, word
    elif kind == "figure":
        given, answer = word, str(number)
    else:
        given = answer = rng.choice(phrases["echo"])
    return phrases["requests"][kind].format(given), answer
