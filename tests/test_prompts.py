import pytest

from think_tools.prompts import (
    cites_hint,
    few_shot,
    rationalise,
    reflect_and_verify,
    revise,
    step_tags,
    supervised,
    zero_shot,
)

ENGLISH = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
CHINESE = [{"role": "user", "content": "二加三等于几？"}]
EXAMPLES = [
    {
        "prompt": [{"role": "user", "content": f"{n}+{n}?"}],
        "completion": [{"role": "assistant", "reasoning_content": f"{n} and {n}", "content": str(2 * n)}],
    }
    for n in (1, 2)
]
STYLES = {
    "zero-shot": zero_shot,
    "checked": reflect_and_verify,
    "few-shot": lambda messages: few_shot(messages, EXAMPLES),
    "supervised": supervised,
    "in steps": step_tags,
    "once more": lambda messages: revise(messages, ["6", "4"]),
    "from the answer": lambda messages: rationalise(messages, "5"),
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_instructions_stand_in_the_last_turn_and_leave_the_messages_as_they_were(style):
    before = [dict(turn) for turn in ENGLISH]
    new = style(ENGLISH)
    assert before == ENGLISH
    assert new[:-1] == ENGLISH[:-1]
    assert new[-1]["role"] == "user"
    assert "2+3?" in new[-1]["content"]
    assert new[-1]["content"].endswith("After </think> write the answer alone.")


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_chinese_question_is_instructed_in_chinese(style):
    [turn] = style(CHINESE)
    assert turn["content"].endswith("先在 <think> 与 </think> 之间一步一步地推理，</think> 之后只写答案。")
    assert "step by step" not in turn["content"]
    assert "Worked examples" not in turn["content"]
    assert "swer" not in turn["content"]


def test_examples_show_reasoning_and_answer_before_the_question():
    content = few_shot(ENGLISH, EXAMPLES)[-1]["content"]
    places = [content.index(text) for text in ("1+1?", "<think>\n1 and 1\n</think>\n2", "2+2?", "2+3?")]
    assert places == sorted(places)


def test_a_known_answer_with_braces_is_shown_as_it_is():
    assert r"\boxed{5} {x}" in rationalise(ENGLISH, r"\boxed{5} {x}")[-1]["content"]


def test_supervised_reasoning_plans_explores_and_verifies_as_often_as_asked():
    content = supervised(ENGLISH)[-1]["content"]
    places = [content.index(text) for text in ("2+3?", "Plan:", "Explore:", "Verify:", "3 times", "<think>")]
    assert places == sorted(places)
    assert "5 times" in supervised(ENGLISH, num_checks=5)[-1]["content"]
    chinese = supervised(CHINESE, num_checks=2)[-1]["content"]
    assert all(text in chinese for text in ("计划：", "探索：", "检验：", "2 次"))


@pytest.mark.parametrize("messages", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_steps_are_asked_for_in_tags(messages):
    content = step_tags(messages)[-1]["content"]
    assert "<step>" in content
    assert "</step>" in content


def test_a_revision_shows_the_attempts_in_order_and_braces_as_they_are():
    content = revise(ENGLISH, [r"\boxed{6}", " 4\n", ""])[-1]["content"]
    assert "1. \\boxed{6}\n2. 4\n3. …\n" in content
    assert content.startswith("2+3?")
    assert "1. 六\n" in revise(CHINESE, ["六"])[-1]["content"]


MISTAKES = {
    "no examples": (lambda: few_shot(ENGLISH, []), "`examples` must hold at least one row, got none"),
    "an example without reasoning": (
        lambda: few_shot(ENGLISH, [{**EXAMPLES[0], "completion": [{"role": "assistant", "content": "2"}]}]),
        r"`examples\[0\]` has no reasoning: pick rows whose `reasoning_content` is filled",
    ),
    "no attempts": (lambda: revise(ENGLISH, []), "`attempts` must hold at least one answer, got none"),
    "no checks": (lambda: supervised(ENGLISH, num_checks=0), "`num_checks` must be at least 1, got 0"),
    "no messages": (lambda: zero_shot([]), r"`messages` must end in a user's text, got \[\]"),
    "an answer at the end": (
        lambda: zero_shot([*ENGLISH, {"role": "assistant", "content": "5"}]),
        "`messages` must end in a user's text, got .*assistant",
    ),
    "pictures": (
        lambda: zero_shot([{"role": "user", "content": [{"type": "image"}]}]),
        "`messages` must end in a user's",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_prompts_without_question_or_reasoning_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


CITES = [
    "So it is 5, as the given answer says.",
    "This matches the provided answer.",
    "The reference answer is 5, so I work towards it.",
    "We were told the answer is 5.",
    "The hint says 5.",
    "According to the hint, it is 5.",
    "The answer is given as 5.",
    "the expected final answer",
    "I know that the correct answer was provided.",
    "Since the solution is already known, check it.",
    "由参考答案可知是五。",
    "题目给出的答案是五，所以……",
    "根据提示，结果是五。",
    "提示中说是五。",
    "答案已经给出，是五。",
]
CLEAN = [
    "2 and 3 make 5, so the answer is 5.",
    "The correct answer is B, because A is too big.",
    "Given that x = 2, the answer follows.",
    "Let me check this answer: 5 - 3 = 2.",
    "The known values give an answer of 5.",
    "This hints at a pattern.",
    "The solution set is {5}.",
    "所以答案是五。",
    "根据题目，给定 x=2，求出答案。",
    "这提示我们换一个思路。",
]


@pytest.mark.parametrize("text", CITES)
def test_a_trace_that_knew_the_answer_is_found(text):
    assert cites_hint(text)


@pytest.mark.parametrize("text", CLEAN)
def test_ordinary_reasoning_is_left_alone(text):
    assert not cites_hint(text)


def test_no_instruction_of_ours_is_clean_when_it_is_repeated():
    assert cites_hint(rationalise(ENGLISH, "5")[-1]["content"])
    assert cites_hint(rationalise(CHINESE, "五")[-1]["content"])
