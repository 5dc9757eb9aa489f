"""Prompts that make a model reason in the open, in English and Chinese: zero-shot, few-shot, led, in steps, again.

Each takes the messages of a prompt and gives new ones whose last turn holds the instructions, in Chinese if the
question has a Chinese character. They stand in the user's turn, because many reasoning models are trained without a
system message, and templates drop the reasoning of earlier turns.

Sources: https://huggingface.co/papers/2205.11916 (zero-shot), https://huggingface.co/papers/2201.11903 (few-shot),
https://huggingface.co/papers/2203.14465 (reasoning written towards a known answer).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Messages = list[dict[str, Any]]

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_FORM = {
    "en": "First reason step by step between <think> and </think>. After </think> write the answer alone.",
    "zh": "先在 <think> 与 </think> 之间一步一步地推理，</think> 之后只写答案。",
}
_REFLECT = {
    "en": "Before you close the reasoning, check the result another way: put it back into the question, estimate it, "
    "or find it by a second route. If the check fails, say what was wrong and go on from the step before it.",
    "zh": "结束推理之前，换一种办法检验结果：代回原题、估算，或另解一遍。若检验不符，指出错处，从出错前的一步重新推。",
}
_SUPERVISE = {
    "en": "Inside the reasoning go through these stages.\nPlan: say what is given and asked, name the ways that "
    "could lead there, and choose one.\nExplore: carry it out step by step; where it leads nowhere, go back and take "
    "another.\nVerify: check the result {num_checks} times, each time another way: put it back into the question, "
    "estimate it, find it by a second route. If a check fails, say what was wrong and explore again from there.",
    "zh": "推理分以下阶段。\n计划：说明已知什么、求什么，列出可行的思路，选定其一。\n探索：按思路一步一步地做；"
    "走不通就退回来，换另一条思路。\n检验：用不同的办法检验结果 {num_checks} 次，例如代回原题、估算、另解一遍。"
    "若检验不符，指出错处，从那里重新探索。",
}
_STEPS = {
    "en": "Write every step of the reasoning between <step> and </step>: one idea or one calculation each.",
    "zh": "推理的每一步都写在 <step> 与 </step> 之间，每步只写一个想法或一次计算。",
}
_REVISE = {
    "en": "Earlier answers to this question, the latest last:\n\n{attempts}\n\nThey may be wrong. Look for the first "
    "error in the latest, solve the question again, and answer with the corrected result; if you find none, keep it.",
    "zh": "以下是先前对本题的回答，最新的在最后：\n\n{attempts}\n\n它们可能有错。找出最新回答中的第一处错误，"
    "重新解题，写出改正后的结果；若没有错误，就保留它。",
}
_EXAMPLES = {"en": ("Worked examples:", "Now the question:"), "zh": ("例题：", "现在的问题：")}
_RATIONALISE = {
    "en": "For your eyes only, the right answer is:\n{solution}\n\nWrite the reasoning of somebody who does not know "
    "it and finds it from the question alone: every step follows from the question or from earlier steps, and none "
    "from the result. Nowhere say or hint that an answer was at hand.",
    "zh": "仅供你参看，正确答案是：\n{solution}\n\n请写出一个不知道答案的人只凭题目求解的推理过程："
    "每一步都出自题目或前面的步骤，不得由结果倒推，也不得提及或暗示事先有答案。",
}
# What betrays that the answer was at hand.
_CITES = re.compile(
    r"\b(?:given|provided|supplied|stated|reference|expected|target|known|gold) (?:final |right |correct )?answer\b"
    r"|\b(?:answer|solution) (?:is|was|has been|we were|i was) (?:already )?(?:given|provided|supplied|told|known)\b"
    r"|\b(?:told|informed) (?:that )?the (?:right |correct |final )?answer\b|\bfor (?:my|your) eyes only\b"
    r"|\b(?:the|a|this|your) hints? (?:says?|states?|tells?|gives?|is|was)\b|\b(?:according to|from|as in) the hint\b"
    r"|(?:参考|标准|给定的?|给出的|提供的|已知的?|预期的?)(?:正确)?答案|答案(?:已经?|是)(?:给出|给定|告知|提供)"
    r"|(?:根据|按照|由|从)提示|提示(?:说|给出|告诉|中)|仅供(?:我|你)参看",
    re.IGNORECASE,
)


def zero_shot(messages: Messages) -> Messages:
    """
    Ask for reasoning between the markers, then the answer.

    Args:
        messages (`list[dict]`):
            The prompt; its last turn is the question.

    Returns:
        `list[dict]`: New messages.

    Raises:
        `ValueError`: If the last turn is no text of a user.

    Example:

    ```python
    >>> from think_tools.prompts import zero_shot

    >>> print(zero_shot([{"role": "user", "content": "2+3?"}])[-1]["content"])
    2+3?
    <BLANKLINE>
    First reason step by step between <think> and </think>. After </think> write the answer alone.
    ```
    """
    return _instruct(messages)


def reflect_and_verify(messages: Messages) -> Messages:
    """
    Ask for reasoning that checks its result before it ends, and returns to the wrong step if the check fails.

    Arguments, result and errors as [`zero_shot`]. Source of the idea: DeepSeek-R1, section 2.3.1
    (https://huggingface.co/papers/2501.12948), which collected its first long traces so.

    Example:

    ```python
    >>> from think_tools.prompts import reflect_and_verify

    >>> "检验结果" in reflect_and_verify([{"role": "user", "content": "二加三？"}])[-1]["content"]
    True
    ```
    """
    return _instruct(messages, _REFLECT)


def supervised(messages: Messages, *, num_checks: int = 3) -> Messages:
    """
    Tell the model how to reason (supervised CoT): plan, explore, verify several times.

    Source of the idea: Zhang et al. 2024, https://huggingface.co/papers/2410.14198: what a chain of thought should
    write down is better said than left to "think step by step".

    Args:
        messages (`list[dict]`):
            The prompt; its last turn is the question.
        num_checks (`int`, *optional*, defaults to `3`):
            Times to verify the result.

    Returns:
        `list[dict]`: New messages.

    Raises:
        `ValueError`: If `num_checks` is below 1, or the last turn is no text of a user.

    Example:

    ```python
    >>> from think_tools.prompts import supervised

    >>> "check the result 3 times" in supervised([{"role": "user", "content": "2+3?"}])[-1]["content"]
    True
    ```
    """
    if num_checks < 1:
        raise ValueError(f"`num_checks` must be at least 1, got {num_checks}: without checks use `zero_shot`.")
    return _instruct(messages, _SUPERVISE, num_checks=str(num_checks))


def step_tags(messages: Messages) -> Messages:
    """
    Ask for reasoning in `<step>` tags, for a step search with `SamplingParams(stop=("</step>",))`.

    Arguments, result and errors as [`zero_shot`].

    Example:

    ```python
    >>> from think_tools.prompts import step_tags

    >>> "<step>" in step_tags([{"role": "user", "content": "2+3?"}])[-1]["content"]
    True
    ```
    """
    return _instruct(messages, _STEPS)


def revise(messages: Messages, attempts: Sequence[str]) -> Messages:
    """
    Show earlier answers and ask for a better one.

    Args:
        messages (`list[dict]`):
            The prompt; its last turn is the question.
        attempts (`Sequence[str]`):
            Earlier answers, the latest last. An empty one, whose reasoning was cut off, is shown as `…`.

    Returns:
        `list[dict]`: New messages.

    Raises:
        `ValueError`: If there are no attempts, or the last turn is no text of a user.

    Example:

    ```python
    >>> from think_tools.prompts import revise

    >>> print(revise([{"role": "user", "content": "2+3?"}], ["6", "4"])[-1]["content"].split("They")[0].strip())
    2+3?
    <BLANKLINE>
    Earlier answers to this question, the latest last:
    <BLANKLINE>
    1. 6
    2. 4
    ```
    """
    if not attempts:
        raise ValueError("`attempts` must hold at least one answer, got none: to ask for the first use `zero_shot`.")
    shown = "\n".join(f"{i}. {attempt.strip() or '…'}" for i, attempt in enumerate(attempts, start=1))
    return _instruct(messages, _REVISE, attempts=shown)


def few_shot(messages: Messages, examples: Sequence[Mapping[str, Any]]) -> Messages:
    r"""
    Put worked examples before the question, in its turn: as turns of their own templates would drop their reasoning.

    Args:
        messages (`list[dict]`):
            The prompt; its last turn is the question.
        examples (`Sequence[dict]`):
            Rows of the package's type, with `prompt` and a `completion` whose last turn has its reasoning.

    Returns:
        `list[dict]`: New messages.

    Raises:
        `ValueError`: If there is no example, one has no reasoning, or the last turn is no text of a user.

    Example:

    ```python
    >>> from think_tools.prompts import few_shot

    >>> answer = {"role": "assistant", "reasoning_content": "2+2 = 4", "content": "4"}
    >>> row = {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [answer]}
    >>> print(few_shot(examples=[row], messages=[{"role": "user", "content": "2+3?"}])[-1]["content"])
    Worked examples:
    <BLANKLINE>
    2+2?
    <think>
    2+2 = 4
    </think>
    4
    <BLANKLINE>
    Now the question:
    <BLANKLINE>
    2+3?
    <BLANKLINE>
    First reason step by step between <think> and </think>. After </think> write the answer alone.
    ```
    """
    if not examples:
        raise ValueError("`examples` must hold at least one row, got none: without examples use `zero_shot`.")
    shown = []
    for i, row in enumerate(examples):
        question, answer = row["prompt"][-1]["content"], row["completion"][-1]
        if not answer.get("reasoning_content"):
            raise ValueError(f"`examples[{i}]` has no reasoning: pick rows whose `reasoning_content` is filled.")
        shown.append(f"{question}\n<think>\n{answer['reasoning_content']}\n</think>\n{answer['content']}")
    return _instruct(messages, examples=shown)


def rationalise(messages: Messages, solution: str) -> Messages:
    """
    Show the known answer and ask for the reasoning that would have found it without (STaR's rationalisation).

    Args:
        messages (`list[dict]`):
            The prompt; its last turn is the question.
        solution (`str`):
            The known answer.

    Returns:
        `list[dict]`: New messages. [`cites_hint`] tells whether an output gives the secret away.

    Raises:
        `ValueError`: If the last turn is no text of a user.

    Example:

    ```python
    >>> from think_tools.prompts import rationalise

    >>> "the right answer is:\\n5" in rationalise([{"role": "user", "content": "2+3?"}], "5")[-1]["content"]
    True
    ```
    """
    return _instruct(messages, _RATIONALISE, solution=solution)


def cites_hint(text: str) -> bool:
    """
    Whether a trace says that the answer was known beforehand, in English or Chinese.

    A list of phrases, so it misses what is said otherwise, and a question that itself speaks of "the given answer"
    makes it find one too many.

    Args:
        text (`str`):
            Reasoning, or reasoning and answer.

    Example:

    ```python
    >>> from think_tools.prompts import cites_hint

    >>> cites_hint("2+3 is 5, which matches the given answer."), cites_hint("2+3 is 5, so the answer is 5.")
    (True, False)
    ```
    """
    return bool(_CITES.search(text))


def _instruct(
    messages: Messages, asked: Mapping[str, str] | None = None, examples: Sequence[str] = (), **fields: str
) -> Messages:
    """The messages with instructions in the last turn, in the language of its question."""
    question = messages[-1].get("content") if messages and messages[-1].get("role") == "user" else None
    if not isinstance(question, str):
        raise ValueError(f"`messages` must end in a user's text, got {messages[-1:]!r:.120}.")
    language = "zh" if _CHINESE.search(question) else "en"
    head, now = _EXAMPLES[language]
    shown = [head, *examples, now] if examples else []
    instructions = [asked[language].format(**fields)] if asked else []
    content = "\n\n".join([*shown, question, *instructions, _FORM[language]])
    return [*messages[:-1], {**messages[-1], "content": content}]
