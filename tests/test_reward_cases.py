"""The peers' own cases of grading (Math-Verify, TRL, NeMo, verl, ms-swift …), and why we differ where we do."""

import json
from collections import Counter

import pytest

from think_tools import same_answer
from think_tools.rewards import accuracy_reward

# Functions that compare two answers, and functions that grade a completion.
PAIRS = {"math_equal", "prime_math", "math.is_equiv"}
COMPLETIONS = {
    *("math_verify", "hf_math_verify", "math_multi_reward", "multilingual_multichoice", "MathRubric.correct_answer"),
    *("accuracy", "accuracy_reward", "reasoning_accuracy_reward", "gsm8k", "math_dapo", "math_reward"),
    "math.extract_boxed_result+string equality",
}

UNMARKED = "no box, tag or sentence says what the answer is; the case takes any formula of the text"
PRECISION = "the case rounds to two places; we compare exactly"
SEVERAL = "boxes with words between them: the last one is the answer"
SEVERAL_GOLDS = "boxes in a row without a comma: the last one is the gold"
MALFORMED = r"the text holds `\\boxed`, a line break and a word"
LETTERS = "the case sets `strict=False`, where letters are interchangeable"
SIGN = r"1 + 1/e is not 1 - 1/e; Math-Verify cannot read `\mathrm{e}`"
WORDS = "a gold of words is compared as words, where TRL cannot read it"
REASONING = "the reasoning is not closed, or the box is in the reasoning: no answer was given"
UNADORNED = "a text that is nothing but a value is the answer"
FIRST_BOX = "a box goes before a tag"
LAST = "the last answer counts, not the first, and not both"
FORMULA = "a formula in a tag needs no dollar signs"
HEDGED = "two values are no answer"
VALUE = "that rule compares text; the value is right"
FAR = "that rule looks at the last 300 characters only"
EMPTY = "a gold that is empty cannot be graded, and `[INVALID]` is a word like others"
BRACES = "a box without braces"
ANCHOR = "that rule wants a box or hashes; the answer is marked well enough"
MISREAD = "TRL reads this bare LaTeX gold wrongly"

# Last 40 characters of the completion and last 30 of the gold -> why our reward is another one.
DIFFERS = {
    ("$\\begin{pmatrix}0.33\\\\0.2 \\end{pmatrix}$", "\\\\ \\frac{1}{5} \\end{pmatrix})$"): PRECISION,
    ("$(0.6,2.6667]$", "$(\\frac{3}{5},\\frac{8}{3}]$"): PRECISION,
    ("Answer $$ \n 9 \n $$", "$9$"): UNMARKED,
    ("d{\\\\left( 3, \\\\frac{\\\\pi}{2} \\\\right)}.$", "$(3, \\frac{\\pi}{2})$"): MALFORMED,
    ("$\\boxed{1,2}$", "$\\boxed{1}\\boxed{2}$"): SEVERAL_GOLDS,
    ("e wins the game is 2/3. <|im_start|>user", "$2/3$"): UNMARKED,
    ("the system is $(7, 6)$. <|im_start|>user", "$(7,6)$"): UNMARKED,
    ("n{pmatrix}1 & 0 \\\\ 0 & 1\\end{pmatrix} $.", "x}1 & 0 \\\\ 0 & 1\\end{pmatrix}$"): UNMARKED,
    ("ay}{cc}1 & 2 \\\\3 & 4\\end{array}\\right] $", "ix}1 & 2 \\\\3 & 4\\end{pmatrix}$"): UNMARKED,
    ("gin{pmatrix}5 & 6 \\\\ 7 & 8\\end{pmatrix}$", "6 & 8 \\\\ 10 & 12\\end{pmatrix}$"): UNMARKED,
    ("Soucis : 2,74 $ a..", "2.74"): UNMARKED,
    ("so the number is 10 which is 1,000.99m²", "1000.99"): UNMARKED,
    ("Therefore $x \\geq 5$ is the solution.", "$x >= 5$"): UNMARKED,
    ("We find that $x \\lt 3$.", "$x < 3$"): UNMARKED,
    ("Thus $x <= 2$ is our answer.", "$x \\leq 2$"): UNMARKED,
    ("Therefore $x \\gt 5$ is the solution.", "$x > 5$"): UNMARKED,
    ("We find that $x \\neq 3$.", "$x != 3$"): UNMARKED,
    (" and \\( y_2 = \\boxed{3(x + 2)^2 - 2} \\) ", "+4 x+3, y_{2}=3 x^{2}+12 x+10$"): SEVERAL,
    ("$f(y)$", "$f(x)$"): LETTERS,
    ("$004$", "**Final Answer**\\n\\\\boxed{004}"): MALFORMED,
    ("$1 + \\frac{1}{\\mathrm{e}}$", "$1 - \\frac{1}{\\mathrm{e}}$"): SIGN,
    ("Answer is forty two.", "Answer is forty two."): WORDS,
    ("Some other content. \\boxed{43}.", "Answer is forty three."): WORDS,
    ("<think>10 - 5 = 5\n<answer>5</answer>", "5"): REASONING,
    ("42", "42"): UNADORNED,
    ("<answer>wrong</answer> \\boxed{42}", "42"): FIRST_BOX,
    ("<answer>42</answer><answer>43</answer>", "42"): LAST,
    ("<answer>43</answer><answer>42</answer>", "42"): LAST,
    ("<answer>x+1</answer>", "x+1"): FORMULA,
    ("<answer>7 or 42</answer>", "42"): HEDGED,
    ("\\boxed{1} then \\boxed{2}", "\\boxed{1}"): LAST,
    ("\\boxed{1} then \\boxed{2}", "\\boxed{2}"): LAST,
    ("answer : 42.", "42"): VALUE,
    ("                                        ", "42"): FAR,
    ("Answer: 1=2=42", "42"): HEDGED,
    ("Answer:", ""): EMPTY,
    ("no answer", "[INVALID]"): EMPTY,
    ("Answer: 042", "42"): VALUE,
    ("Answer: 42.0", "42"): VALUE,
    ("\\boxed 42", "42"): BRACES,
    ("\\boxed{033}", "33"): VALUE,
    ("\\boxed{2.0}", "2"): VALUE,
    ("\\boxed{\\{1,2\\}}", "\\{2,1\\}"): VALUE,
    ("\\boxed{x+1}", "1+x"): VALUE,
    ("<think>\\boxed{42}</think>", "42"): REASONING,
    ("The answer is 42", "42"): ANCHOR,
    ("#### 42.", "42"): VALUE,
    ("#### 42.0", "42"): VALUE,
    ("<think>a</think>The answer is 42", "$42$"): ANCHOR,
    ("<think>a</think><answer>42</answer>", "$42$"): ANCHOR,
    ("<think>a</think>\\boxed{1} \\boxed{42}", "$42$"): LAST,
    ("\\boxed{6 - 5i}", "6 - 5i"): MISREAD,
    ("\\boxed{1,-2}", "1,-2"): MISREAD,
    ("\\boxed{2k + 2}", "2k + 2"): MISREAD,
    ("\\boxed{\\pi}", "\\pi"): MISREAD,
    ("\\boxed{1}", "1,-2"): MISREAD,
    ("\\boxed{50 000}", "$50000$"): VALUE,
}


def expected_reward(row: dict) -> float | None:
    expected = row["expected"]
    if isinstance(expected, dict):
        expected = expected.get("score", expected.get("correctness"))
    return None if expected is None else float(expected > 0)  # verl's wrong is -1


def our_reward(row: dict) -> float | None:
    if row["reward"] in PAIRS:
        equal = same_answer(row["completion"], row["solution"])
        return None if equal is None else float(equal)
    return accuracy_reward([row["completion"]], [row["solution"]])[0]


def reason(row: dict) -> str | None:
    return DIFFERS.get((row["completion"][-40:], str(row["solution"])[-30:]))


@pytest.mark.slow
def test_every_case_is_agreed_or_has_a_reason(data_folder):
    lines = (data_folder / "cases/reward_cases.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["reward"] in PAIRS | COMPLETIONS]
    rewards = [(row, our_reward(row)) for row in rows]
    differing = [row for row, reward in rewards if reward != expected_reward(row)]
    print(f"{len(rows) - len(differing)} of {len(rows)} agree; {Counter(map(reason, differing)).most_common()}")
    assert len(rows) > 270
    assert [(row, reward) for row, reward in rewards if row in differing and not reason(row)] == []
    assert set(map(reason, differing)) == set(DIFFERS.values())
