"""Turns that need no reasoning, in English and Chinese: greetings, number words, echo."""

import random

from .problems import Language

EXCHANGES = {
    "en": (
        (("Hello", "Hello!", "Hi", "Hi there!", "Good morning!"), "Hello! Ask me about numbers."),
        (("Who are you?", "What are you?"), "I am a tiny model that does arithmetic."),
        (("What can you do?", "Help"), "I add, subtract and multiply. Try 12*13."),
        (("Thanks", "Thank you!", "Thanks a lot!"), "You are welcome."),
        (("Bye", "Goodbye!", "See you!"), "Goodbye!"),
    ),
    "zh": (
        (("你好", "你好！", "您好", "早上好！", "嗨"), "你好！请问我算术题。"),
        (("你是谁？", "你是什么？"), "我是一个会算术的小模型。"),
        (("你会什么？", "帮助"), "我会加、减、乘。试试12*13。"),
        (("谢谢", "谢谢你！", "多谢！"), "不客气。"),
        (("再见", "再见！", "拜拜"), "再见！"),
    ),
}
UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
FIGURES = "零一二三四五六七八九"
ECHO = {
    "en": ("apple", "river", "green", "winter", "seven", "paper", "music", "stone", "cloud", "table"),
    "zh": ("苹果", "河流", "绿色", "冬天", "音乐", "石头", "云", "桌子", "月亮", "书"),
}


def number_word(number: int, language: Language) -> str:
    """Word of a number from 0 to 99."""
    tens, units = divmod(number, 10)
    if language == "zh":
        if number < 10:
            return FIGURES[number]
        return (FIGURES[tens] if tens > 1 else "") + "十" + (FIGURES[units] if units else "")
    if number < 20:
        return UNITS[number]
    return TENS[tens - 2] + (f"-{UNITS[units]}" if units else "")


def small_talk(rng: random.Random, language: Language) -> tuple[str, str]:
    """A question that needs no reasoning, and its answer."""
    kind = rng.choice(("chat", "word", "figure", "echo"))
    if kind == "chat":
        questions, answer = rng.choice(EXCHANGES[language])
        return rng.choice(questions), answer
    number = rng.randint(0, 99)
    if kind == "word":
        ask = {"en": "Write {} in words.", "zh": "用汉字写出{}。"}[language]
        return ask.format(number), number_word(number, language)
    if kind == "figure":
        ask = {"en": "Write {} in figures.", "zh": "用数字写出{}。"}[language]
        return ask.format(number_word(number, language)), str(number)
    word = rng.choice(ECHO[language])
    return {"en": "Say {}.", "zh": "请说{}。"}[language].format(word), word
