"""The rewards tell the truth whatever shape a completion has. In a trainer: `test_rewards_in_trl.py`."""

import asyncio
import functools
import importlib
import pickle
import time

import pytest

from think_tools import parse, rewards
from think_tools.rewards import (
    LENGTH_PRESETS,
    accuracy_reward,
    consistency_reward,
    format_reward,
    get_accuracy_reward,
    get_code_reward,
    get_consistency_reward,
    get_format_reward,
    get_group_length_reward,
    get_judge_reward,
    get_language_consistency_reward,
    get_tag_count_reward,
    get_think_length_reward,
    get_think_monitor,
    guard,
    tag_count_reward,
    think_monitor,
)
from think_tools.rewards.completions import count_reasoning_tokens
from think_tools.rewards.language import count_words

PREFILLING = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def message(content, **fields):
    return [{"role": "assistant", "content": content, **fields}]


# One right output in every shape in which a trainer hands it out.
SHAPES = {
    "text": "<think>\n2+3\n</think>\n\n5",
    "text after a line break": "\n<think>2+3</think>5",
    "text after a prefilled opening marker": "2+3\n</think>\n\n5",
    "message": message("<think>2+3</think>5"),
    "message after a prefilled opening marker": message("2+3</think>5"),
    "message with its reasoning apart": message("5", reasoning_content="2+3"),
    "message with its reasoning apart, as vLLM names it": message("5", reasoning="2+3"),
    "message with its thinking apart": message("\n\n5", thinking="2+3"),
    "last turn of a tool run": [
        {"role": "assistant", "reasoning_content": "ask", "content": "", "tool_calls": []},
        {"role": "tool", "content": "5"},
        *message("5", reasoning_content="2+3"),
    ],
}


@pytest.mark.parametrize("completion", SHAPES.values(), ids=SHAPES)
def test_the_same_score_for_every_shape(completion):
    metrics = {}
    assert accuracy_reward([completion, completion], solution=["5", "6"]) == [1.0, 0.0]
    assert format_reward([completion]) == [1.0]
    assert think_monitor([completion], log_metric=metrics.__setitem__) == [None]
    assert tag_count_reward([completion]) == [1.0]
    assert {name: value for name, value in metrics.items() if value} == {
        "think/closed": 1.0,
        "think/reasoning_chars": 3.0,
        "think/answer_chars": 1.0,
    }


# (completion, gold, reward)
ACCURACY = {
    "right": (r"<think>r</think>\boxed{5}", "5", 1.0),
    "wrong": (r"<think>r</think>\boxed{6}", "5", 0.0),
    "right only in the reasoning": (r"<think>\boxed{5}</think>I do not know.", "5", 0.0),
    "reasoning cut off after the answer": (r"<think>So \boxed{5}. But wait", "5", 0.0),
    "parsed reasoning cut off after the answer": (message("", reasoning_content=r"So \boxed{5}. But"), "5", 0.0),
    "content None": (message(None, reasoning_content="r"), "5", 0.0),
    "no thinking": ("The answer is 5.", "5", 1.0),
    "no answer": ("<think>r</think>", "5", 0.0),
    "empty text": ("", "5", 0.0),
    "gold of GSM8K": ("<think>r</think>5", "2+3=5\n#### 5", 1.0),
    "gold in dollars": ("<think>r</think>5", "$5$", 1.0),
    "gold in a box": ("<think>r</think>5", r"\boxed{5}", 1.0),
    "gold is a choice letter": ("<think>r</think>The answer is (B).", "B", 1.0),
    "gold is a word": ("<think>r</think>Paris", "Paris", 1.0),
    "gold is bare LaTeX": (r"<think>r</think>\boxed{\pi}", r"\pi", 1.0),
    "gold is a number": ("<think>r</think>5", 5, 1.0),
    "gold is empty": ("<think>r</think>5", "", None),
    "gold is None": ("<think>r</think>5", None, None),
    "Chinese": ("<think>二加三</think>答案是５。", "5", 1.0),
}


@pytest.mark.parametrize(("completion", "gold", "expected"), ACCURACY.values(), ids=ACCURACY)
def test_accuracy(completion, gold, expected):
    assert accuracy_reward([completion], solution=[gold]) == [expected]


def test_accuracy_counts_what_it_could_not_grade():
    metrics, columns = {}, {}
    hangs = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}"
    scores = get_accuracy_reward(timeout=0.5)(
        ["<think>r</think>So it is.", hangs, "5", "5"],
        solution=["5", "1", "", "5"],
        log_metric=metrics.__setitem__,
        log_extra=columns.__setitem__,
        trainer_state=None,
    )
    assert scores[0] == 0.0
    assert scores[2:] == [None, 1.0]
    assert metrics["accuracy/no_answer"] == 1.0
    assert metrics["accuracy/stopped"] + metrics["accuracy/gold_unreadable"] == 2.0
    assert columns["answer"][2:] == ["5", "5"]


def test_the_last_number_counts_only_when_asked_for():
    completions = ["<think>r</think>That makes 9 eggs, so she gets $18 a day"]
    assert accuracy_reward(completions, solution=["18"]) == [0.0]
    assert get_accuracy_reward(last_number=True)(completions, solution=["18"]) == [1.0]


# Settings of `get_format_reward` under which a completion is well formed.
STRICT, EMPTY, NO_THINK, TAGS = {}, {"allow_empty": True}, {"allow_no_think": True}, {"answer_tags": True}
FORMAT = {
    "thinks, then answers": ("<think>r</think>a", [STRICT, EMPTY, NO_THINK]),
    "line breaks": ("\n<think>\nr\n</think>\n\na\n", [STRICT, EMPTY, NO_THINK]),
    "closing marker only": ("r</think>a", [STRICT, EMPTY, NO_THINK]),
    "empty reasoning": ("<think>\n\n</think>\n\na", [EMPTY]),
    "empty answer": ("<think>r</think>", []),
    "no marker": ("a", [NO_THINK]),
    "nothing": ("", []),
    "cut off in the reasoning": ("<think>r", []),
    "opening marker twice": ("<think>r<think>s</think>a", []),
    "closing marker twice": ("<think>r</think>a</think>", []),
    "two blocks": ("<think>r</think>a<think>s</think>b", []),
    "text before the reasoning": ("Well. <think>r</think>a", []),
    "markers in the wrong order": ("</think>r<think>a", []),
    "another spelling": ("<THINK>r</THINK>a", [NO_THINK]),
    "answer in tags": ("<think>r</think>\n<answer>a</answer>\n", [STRICT, EMPTY, NO_THINK, TAGS]),
    "text after the answer tags": ("<think>r</think><answer>a</answer>b", [STRICT, EMPTY, NO_THINK]),
    "empty answer tags": ("<think>r</think><answer> </answer>", [STRICT, EMPTY, NO_THINK]),
    "answer tags twice": ("<think>r</think><answer>a</answer><answer>b</answer>", [STRICT, EMPTY, NO_THINK]),
    "answer tags in the reasoning": ("<think><answer>r</think><answer>a</answer>", [STRICT, EMPTY, NO_THINK]),
    "answer tags that overlap": ("<think>r</think><answer></answer>", [STRICT, EMPTY, NO_THINK]),
    "parsed message": (message("a", reasoning_content="r"), [STRICT, EMPTY, NO_THINK]),
    "parsed message with a marker left": (message("a</think>b", reasoning_content="r"), []),
    "parsed message cut off": (message("", reasoning_content="r"), []),
}


@pytest.mark.parametrize(("completion", "settings"), FORMAT.values(), ids=FORMAT)
def test_format(completion, settings):
    well_formed = [
        setting for setting in (STRICT, EMPTY, NO_THINK, TAGS) if get_format_reward(**setting)([completion]) == [1.0]
    ]
    assert well_formed == settings
    assert format_reward([completion]) == [float(STRICT in settings)]


def sampled(tokenizer, *texts):
    """Completion ids and texts as TRL hands them out: special tokens are in the ids and not in the texts."""
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return {
        "completions": [message(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)],
        "completion_ids": ids,
        "prompts": [[{"role": "user", "content": "2+3?"}]] * len(texts),
    }


def scores(tokenizer, batch):
    metrics = {}
    get_think_monitor(tokenizer)(**batch, log_metric=metrics.__setitem__)
    return {
        "accuracy": get_accuracy_reward(tokenizer=tokenizer)(**batch, solution=["5"] * len(batch["completions"])),
        "format": get_format_reward(tokenizer=tokenizer)(**batch),
        "direct": get_format_reward(allow_no_think=True, tokenizer=tokenizer)(**batch),
    } | metrics


def test_with_a_tokenizer_cut_outputs_are_seen(tokenizer):
    end = "<|im_end|>"
    batch = sampled(
        tokenizer, f"<think>2+3</think>5{end}", "<think>2+3</think>5", f"5{end}", "<think>\\boxed{5}", f"<think>5{end}"
    )
    found = scores(tokenizer, batch)
    assert found["accuracy"] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert found["format"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert found["direct"] == [1.0, 0.0, 1.0, 0.0, 0.0]
    shares = ("think/closed", "think/truncated", "think/unclosed", "think/no_think")
    assert [found[share] for share in shares] == [0.4, 0.2, 0.2, 0.2]
    assert found["think/reasoning_tokens"] == (3 + 3 + 9 + 1) / 4
    assert found["think/answer_tokens"] == 1.0


def test_with_a_tokenizer_a_prefilling_template_is_seen(tokenizer):
    tokenizer.chat_template = PREFILLING
    end = "<|im_end|>"
    batch = sampled(tokenizer, f"2+3\n</think>\n\n5{end}", "2+3 is \\boxed{5}, but", f"5{end}")
    found = scores(tokenizer, batch)
    # The second is cut inside the reasoning; the third skipped thinking, in a block that it left open.
    assert found["accuracy"] == [1.0, 0.0, 1.0]
    assert found["format"] == found["direct"] == [1.0, 0.0, 0.0]
    # What no zero-argument name can know.
    assert accuracy_reward(**batch, solution=["5"] * 3) == [1.0, 1.0, 1.0]
    assert get_format_reward(allow_no_think=True)(**batch) == [1.0, 1.0, 1.0]


def test_with_a_tokenizer_special_think_tokens_are_seen(tokenizer):
    from tokenizers import AddedToken

    markers = [AddedToken(marker, special=True, normalized=False) for marker in ("<think>", "</think>")]
    tokenizer.add_tokens(markers, special_tokens=True)
    batch = sampled(tokenizer, "<think>\\boxed{6}</think>5<|im_end|>", "<think>2+3</think>6<|im_end|>")
    assert batch["completions"][0] == message("\\boxed{6}5")
    assert scores(tokenizer, batch) | {"accuracy": [1.0, 0.0], "format": [1.0, 1.0]} == scores(tokenizer, batch)
    assert format_reward(**batch) == [0.0, 0.0]


@pytest.mark.parametrize(("prompt", "expected"), {"2+3? <think>\n": 0.0, "2+3?": 1.0}.items())
def test_a_plain_text_prompt_shows_whether_it_opened_the_reasoning(prompt, expected):
    assert accuracy_reward(["so \\boxed{5} but"], solution=["5"], prompts=[prompt]) == [expected]
    assert format_reward(["2+3</think>5"], prompts=[prompt]) == [1.0 - expected]


def test_without_a_chat_template_the_tokenizer_still_shows_the_end(tokenizer):
    tokenizer.chat_template = None
    batch = sampled(tokenizer, "<think>2+3</think>5<|im_end|>", "<think>2+3</think>5")
    assert get_format_reward(tokenizer=tokenizer)(**batch) == [1.0, 0.0]


def test_the_monitor_logs_no_length_of_what_is_not_there():
    metrics = {}
    think_monitor(["", ""], log_metric=metrics.__setitem__)
    shares = ["think/closed", "think/multi_block", "think/no_think", "think/truncated", "think/unclosed"]
    assert sorted(metrics) == shares
    assert think_monitor([], log_metric=metrics.__setitem__) == []
    assert think_monitor(["a"]) == [None]


NAMES = ("accuracy_reward", "consistency_reward", "format_reward", "tag_count_reward", "think_monitor")


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_name_is_a_dotted_path_for_the_command_line(name):
    """`trl grpo --reward_funcs think_tools.rewards.accuracy_reward` imports a name by these two lines."""
    module_path, func_name = f"think_tools.rewards.{name}".rsplit(".", 1)
    reward = getattr(importlib.import_module(module_path), func_name)
    assert reward.__name__ == name
    assert len(reward(completions=["<think>r</think>5"], solution=["5"], prompts=["?"], completion_ids=[[1]])) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_reward_can_be_pickled(name, tokenizer):
    for reward in (getattr(rewards, name), getattr(rewards, f"get_{name}")(tokenizer=tokenizer)):
        again = pickle.loads(pickle.dumps(reward))
        assert again.__name__ == name
        assert again(["<think>r</think>5"], solution=["5"]) == reward(["<think>r</think>5"], solution=["5"])


SOLUTION_ERRORS = {
    "no column": ({"answer": ["5"]}, r"`solution` is missing: .* got the columns \['answer'\]. Rename yours"),
    "a string": ({"solution": "5"}, "`solution` must hold one gold answer per completion, got 1 for 1: pass a list."),
    "another length": ({"solution": ["5", "6"]}, "`solution` must hold one gold answer per completion, got 2 for 1"),
}


@pytest.mark.parametrize(("columns", "error"), SOLUTION_ERRORS.values(), ids=SOLUTION_ERRORS)
def test_an_error_names_the_column(columns, error):
    with pytest.raises(ValueError, match=error):
        accuracy_reward(["5"], **columns)


# -- Kinds of gold answers ----------------------------------------------------------------------------------------

# (kind, answer, gold, reward)
KINDS = {
    "math: a number": ("math", "The answer is 5.", "5", 1.0),
    "math: a letter is a variable": ("math", "(B) 5", "B", 0.0),
    "math: the variable itself": ("math", "$B$", "B", 1.0),
    "math: a word": ("math", r"\boxed{\text{east}}", "east", 1.0),
    "choice: the letter": ("choice", "B", "B", 1.0),
    "choice: another letter": ("choice", "The answer is C.", "B", 0.0),
    "choice: in a box": ("choice", r"\boxed{\text{B}}", "(B)", 1.0),
    "choice: with its text": ("choice", "Final answer: B. Paris", "B. Paris", 1.0),
    "choice: chosen in a sentence": ("choice", "After all that I would choose **(B)** here.", "B", 1.0),
    "choice: the last one chosen": ("choice", "Option A looks good, but I pick B because of x.", "B", 1.0),
    "choice: Chinese": ("choice", "因此，综合以上各点，应当选B，理由见上。", "B", 1.0),
    "choice: on the last line": ("choice", "It is the capital, is it not?\nB) Paris is the capital", "B", 1.0),
    "choice: an article is no letter": ("choice", "A cat sat. I like it.", "A", 0.0),
    "choice: the gold is none": ("choice", "B", "Paris", None),
    "exact: the same text": ("exact", "<answer>The  Seine</answer>", "the seine", 1.0),
    "exact: the whole answer": ("exact", "I do not know.", "i do not know", 1.0),
    "exact: full-width": ("exact", "４２", 42, 1.0),
    "exact: equal value, another text": ("exact", "5.0", "5", 0.0),
    "exact: no answer": ("exact", "", "5", 0.0),
    "exact: the gold is empty": ("exact", "5", " ", None),
    "exact: the gold is no text": ("exact", "5", ["5"], None),
}


@pytest.mark.parametrize(("kind", "answer", "gold", "expected"), KINDS.values(), ids=KINDS)
def test_kinds(kind, answer, gold, expected):
    assert get_accuracy_reward(kind)([f"<think>r</think>{answer}"], solution=[gold]) == [expected]


# -- Tag count ----------------------------------------------------------------------------------------------------

# (completion, reward, reward with answer tags times 6)
TAG_COUNTS = {
    "everything": ("<think>r</think>a", 1.0, 4),
    "answer tags": ("<think>r</think><answer>a</answer>", 1.0, 6),
    "empty answer tags": ("<think>r</think><answer></answer>", 0.75, 5),
    "answer tag twice": ("<think>r</think><answer>a<answer></answer>", 1.0, 5),
    "no answer": ("<think>r</think>", 0.75, 3),
    "empty reasoning": ("<think></think>a", 0.75, 3),
    "nothing but markers": ("<think></think>", 0.5, 2),
    "cut off": ("<think>r", 0.5, 2),
    "opening marker ten times": ("<think>" * 10, 0.0, 0),
    "closing marker ten times": ("<think>r" + "</think>" * 10, 0.5, 2),
    "block ten times": ("<think>r</think>a" * 10, 0.5, 2),
    "wrong order": ("</think>r<think>", 0.5, 2),
    "direct answer": ("a", 0.0, 0),
    "nothing": ("", 0.0, 0),
}


@pytest.mark.parametrize(("completion", "expected", "sixths"), TAG_COUNTS.values(), ids=TAG_COUNTS)
def test_tag_count(completion, expected, sixths):
    assert tag_count_reward([completion]) == [expected]
    assert get_tag_count_reward(answer_tags=True)([completion]) == [sixths / 6]


# -- Language -----------------------------------------------------------------------------------------------------

# Text -> language of most words, `None` for no countable word.
LANGUAGES = {
    "然后我们重新检查一下。": "zh",
    "我們先假設這個命題成立": "zh",
    "今日は天気がいいから散歩しましょう": "ja",
    "따라서 정답은 이십입니다": "ko",
    "Следовательно, ответ равен семи": "ru",
    "إذن الجواب هو سبعة": "ar",
    "इसलिए उत्तर सात है": "hi",
    "ดังนั้นคำตอบคือเจ็ด": "th",
    "Άρα η απάντηση είναι επτά": "el",
    "לכן התשובה היא שבע": "he",
    "So the answer, don't you think, is seven": "en",
    "设 $x = \\text{number of apples}$ 为苹果数": "zh",
    "```python\nfor item in range(10): print(item)\n```": None,
    "`x_new = old`": None,
    "x^2 - 5x + 6 = (x-2)(x-3)": None,
    "\\[ \\int_0^1 \\sin x \\, dx \\]": None,
    "\\(a+bc\\) $$\\frac{ab}{cd}$$ <step> https://example.org/some/page": None,
}


@pytest.mark.parametrize(("text", "expected"), LANGUAGES.items())
def test_words_are_counted_by_script(text, expected):
    counts = count_words(text)
    assert max(counts, key=lambda language: counts[language], default=None) == expected


def test_kanji_are_chinese_in_a_sentence_without_kana():
    assert dict(count_words("東京に行く。北京大学")) == {"ja": 2.5, "zh": 2.5}


def share_of_short_words(text):
    words = text.split()
    return sum(len(word) < 4 for word in words) / len(words) * 2


def test_language_consistency():
    mixed = "<think>所以我们需要 find the minimum of the function，然后代入</think>3"
    completions = [mixed, "<think>2+3=5</think>5", "<think>好的</think>5", "5", "<think>先算二乘三，再加四等于十，"]
    chinese = get_language_consistency_reward("zh", min_words=3)(completions)
    assert chinese == [pytest.approx(0.51, abs=0.001), None, None, None, 1.0]
    english = get_language_consistency_reward("en", min_words=3)(completions)
    assert english == [pytest.approx(1 - chinese[0]), None, None, None, 0.0]
    metrics = {}
    own = get_language_consistency_reward(share_of_short_words, min_words=2)
    scored = own(["<think>so we add two</think>4", "<think>4</think>4"], log_metric=metrics.__setitem__)
    assert (scored, metrics) == ([1.0, None], {"language/none": 1.0})
    assert get_language_consistency_reward(lambda text: None, min_words=1)(["<think>two</think>2"]) == [None]


@pytest.mark.parametrize("text", ["$", "\\[ x ", "\\(", "```\n", "<a", "`", "$$ a ", "\\x{"])
def test_language_in_linear_time(text):
    start = time.process_time()
    count_words(text * 10_000)
    assert time.process_time() - start < 2


# -- Length -------------------------------------------------------------------------------------------------------


def of_length(*lengths):
    """Completions of so many reasoning tokens, as estimated: one id per character and no answer."""
    return {
        "completions": [f"<think>{'r' * length}" for length in lengths],
        "completion_ids": [[1] * length for length in lengths],
    }


LENGTHS = (0, 50, 100, 150, 200, 1000)
L1_EXACT, L1_MAX, LONG_COT = (LENGTH_PRESETS[name] for name in ("l1_exact", "l1_max", "long_cot"))
# Settings -> rewards at LENGTHS for right answers, and for wrong ones.
LENGTH_CURVES = {
    "target, linear": ({"target": 100}, [0, 0.5, 1, 0.5, 0, 0], None),
    "target, linear, gentle": ({"target": 100, "alpha": 0.001}, [0.9, 0.95, 1, 0.95, 0.9, 0.1], None),
    "target, cosine": ({"target": 100, "mode": "cosine"}, [0, 0.5, 1, 0.5, 0, 0], None),
    "target, exact": ({"target": 100, "mode": "exact"}, [0, 0.5, 1, 0.5, 0, -1], [-1, -0.5, 0, -0.5, -1, -1]),
    "L1-Exact": ({"target": 100, **L1_EXACT}, [0.97, 0.985, 1, 0.985, 0.97, 0.73],
                 [-0.03, -0.015, 0, -0.015, -0.03, -0.27]),
    "budget, linear": ({"budget": 100}, [1, 0.75, 0.5, 0.25, 0, 0], [0] * 6),
    "L1-Max": ({"budget": 100, **L1_MAX}, [0.53, 0.515, 0.5, 0.485, 0.47, 0.23], [0] * 6),
    "budget, cosine": ({"budget": 100, "mode": "cosine"}, [1, 0.75, 0.5, 0.5, 0.5, 0.5], [-1, -0.75, *[-0.5] * 4]),
    "long CoT": ({"budget": 100, **LONG_COT}, [2, 1.5, *[-10] * 4], [-10, -5, *[-10] * 4]),
}  # fmt: skip


def all_right(completions, **columns):
    assert "log_metric" not in columns
    return [1.0] * len(completions)


def all_wrong(completions, **columns):
    return [0.0] * len(completions)


def none_known(completions, **columns):
    return [None] * len(completions)


@pytest.mark.parametrize(("settings", "right", "wrong"), LENGTH_CURVES.values(), ids=LENGTH_CURVES)
def test_think_length_is_clamped_at_both_ends(settings, right, wrong):
    for accuracy, expected in ((all_right, right), (all_wrong, wrong or right)):
        reward = get_think_length_reward(**settings, accuracy=accuracy)
        assert reward(**of_length(*LENGTHS), log_metric=print) == pytest.approx(expected)
    unknown = get_think_length_reward(**settings, accuracy=none_known)(**of_length(100))
    assert unknown == ([1.0] if wrong is None else [None])


def test_only_reasoning_tokens_count(tokenizer):
    texts = ["<think>2+3</think>The answer is 5.<|im_end|>", "5<|im_end|>"]
    batch = sampled(tokenizer, *texts)
    reward = get_think_length_reward(target=3, tokenizer=tokenizer)
    assert reward(**batch) == [1.0, 0.0]
    within = get_think_length_reward(budget=6, tokenizer=tokenizer)
    assert within(**batch, solution=["5", "6"]) == [0.75, 0.0]
    traces = [parse(text.removesuffix("<|im_end|>")) for text in texts]
    assert count_reasoning_tokens(traces, batch["completion_ids"]) == [3, 0]  # 22 tokens, 3 of 19 characters


def test_group_length_compares_within_a_prompt():
    batch = {
        "completions": ["5", "5", "4", "5", "5", "5", "4", "4"],
        "completion_ids": [[1] * n for n in (10, 20, 30, 15, 500, 500, 5, 500)],
        "prompts": ["2+3?"] * 4 + ["7-2?"] * 2 + ["1+3?"] * 2,
        "solution": ["5", "5", "5", "5", "5", "5", "5", ""],
    }
    rewards = get_group_length_reward()(**batch)
    # A short wrong answer (the seventh) is not paid; answers of the same length get 0; the last has no gold answer.
    assert rewards == [0.5, 0.0, -0.5, 0.25, 0.0, 0.0, 0.0, None]


# -- Consistency --------------------------------------------------------------------------------------------------

CONSISTENCY = {
    "the same number": ("So 6*7 = 42", "42", 1.0),
    "another number": ("So 6*7 = 42", "43", 0.0),
    "the same by algebra": (r"Hence \boxed{\frac{1}{2}}", r"\boxed{0.5}", 1.0),
    "a sentence": ("Therefore the answer is Paris.", "Lyon", 0.0),
    "Chinese": ("所以答案是42。", "42", 1.0),
    "a number in passing": ("That makes 42 apples in all, I believe. 42 - 7 = 35 is a check.", "42", 1.0),
    "no number that fits": ("That makes 40 apples and then 2 more, I believe.", "43", 0.0),
    "only words in the reasoning": ("That is all there is to say.", "43", None),
    "a name in passing": ("It must be Paris then, as I said.", "Paris", 1.0),
    "part of another word": ("It must be Parisian then, as I said.", "Paris", None),
    "a letter may be an article": ("A look at it says so, I believe", "A", None),
    "a short sentence is no bare value": ("a + b = 40\nSo he made a profit of 90-50 = $40", "40", 1.0),
    "a name in Chinese": ("所以首都应当就是巴黎了，没错", "巴黎", 1.0),
    "a name that is not there": ("It must be Paris then, as I said.", "Lyon", None),
    "an earlier thought": ("The answer is 41.\n\nWait.\nNo.\nOne more.\nThe answer is 42.", "42", 1.0),
    "no answer": ("The answer is 42.", "I am not sure, maybe you can help?", None),
    "no reasoning": ("", "42", None),
}


@pytest.mark.parametrize(("reasoning", "answer", "expected"), CONSISTENCY.values(), ids=CONSISTENCY)
def test_consistency(reasoning, answer, expected):
    metrics = {}
    assert consistency_reward([f"<think>{reasoning}</think>{answer}"], log_metric=metrics.__setitem__) == [expected]
    assert metrics == {"consistency/none": float(expected is None)}


# -- Judge --------------------------------------------------------------------------------------------------------

JUDGED = {
    "completions": ["<think>r</think>a", "<think>cut"],
    "prompts": [[{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}], "How?"],
}


def judged(client, criteria="relevance", batch=JUDGED, **settings):
    """Rewards and metrics of a batch."""
    metrics = {}
    reward = get_judge_reward(client, criteria, **settings)
    return asyncio.run(reward(**batch, log_metric=metrics.__setitem__)), metrics


# Reply of the judge -> reward, for the criteria relevance and helpfulness.
REPLIES = {
    "relevance: 8\nhelpfulness: 4": 0.6,
    "Fine.\n\n**Relevance:** 8\n- helpfulness = 4.0/10": 0.6,
    "relevance: 1\nNo: relevance: 2\nrelevance: 10\nhelpfulness: 10": 1.0,
    "<think>relevance: 9\nhelpfulness: 9</think>relevance: 0\nhelpfulness: 0": 0.0,
    "relevance: 8": None,
    "relevance: 8\nhelpfulness: 11": None,
    "I cannot grade this.": None,
    "": None,
}


@pytest.mark.parametrize(("reply", "expected"), REPLIES.items())
def test_judge_reads_the_last_lines_of_the_reply(reply, expected):
    async def client(messages):
        assert "Why?" in messages[1]["content"]
        return reply

    rewards, metrics = judged(client, ["relevance", "helpfulness"])
    assert rewards == [expected, 0.0]  # without an answer there is nothing to ask
    assert metrics == {"judge/late": 0.0, "judge/failed": 0.0, "judge/unreadable": float(expected is None)}


def test_judge_takes_messages_own_criteria_and_a_reference():
    seen = []

    async def client(messages):
        seen.append(messages)
        return {"role": "assistant", "content": "brevity: 5"}

    own = {"brevity": "Not a word too many."}
    batch = {"completions": ["<think>r</think>a{b}"], "solution": ["42"]}
    assert judged(client, own, batch)[0] == [0.5]
    instructions, material = (message["content"] for message in seen[0])
    assert "- brevity: Not a word too many." in instructions
    assert all(f"=====\n{part}\n=====" in material for part in ("(not given)", "r", "a{b}", "42"))
    assert judged(client, own, batch | {"prompts": [[{"role": "system", "content": "s"}]]})[0] == [0.5]


def test_judge_that_is_late_or_fails_gives_none_and_says_so(caplog):
    async def late(messages):
        await asyncio.sleep(30)

    async def failing(messages):
        raise ConnectionError("401 Unauthorized")

    rewards, metrics = judged(late, timeout=0.05)
    assert (rewards, metrics["judge/late"]) == ([None, 0.0], 1.0)
    rewards, metrics = judged(failing)
    assert (rewards, metrics["judge/failed"]) == ([None, 0.0], 1.0)
    assert "The judge's client raised ConnectionError: 401 Unauthorized" in caplog.text


# -- Code ---------------------------------------------------------------------------------------------------------

ECHO_TESTS = [{"input": "a\n", "output": "A\n1"}, {"input": "b\n", "output": "B\n1\n"}]


def toy_runner(code, stdin):
    """Stands for a sandbox: knows three programs."""
    if code == "raise":
        raise ConnectionError("sandbox down")
    program = {"upper": "{}\n1  \n", "first line": "{}", "a only": "A\n1"}.get(code.strip())
    return program.format(stdin.strip().upper()) if program else None


# Answer -> reward, reward in shares
PROGRAMS = {
    "passes": ("```python\nupper\n```", 1.0, 1.0),
    "passes one test": ("```py\na only\n```", 0.0, 0.5),
    "prints the first line only": ("```python\nfirst line\n```", 0.0, 0.0),
    "crashes": ("```python\ncrash\n```", 0.0, 0.0),
    "the last block counts": ("```python\ncrash\n```\nBetter:\n```\nupper\n```\n", 1.0, 1.0),
    "output after the program": ("```python\nupper\n```\n```text\nA\n```", 1.0, 1.0),
    "no code": ("print it in upper case", 0.0, 0.0),
    "block never closed": ("```python\nupper", 0.0, 0.0),
}


@pytest.mark.parametrize(("answer", "expected", "share"), PROGRAMS.values(), ids=PROGRAMS)
def test_code(answer, expected, share):
    batch = {"completions": [f"<think>```python\nupper\n```</think>{answer}"], "tests": [ECHO_TESTS]}
    assert get_code_reward(toy_runner)(**batch) == [expected]
    assert get_code_reward(toy_runner, all_or_nothing=False)(**batch) == [share]


def test_code_without_tests_or_sandbox_gives_none_and_says_so(caplog):
    metrics = {}
    completions = ["<think>r</think>```python\nupper\n```"] * 2 + ["<think>r</think>```\nraise\n```"]

    def down(code, stdin):
        return toy_runner(code.strip(), stdin)

    tests = [[], None, ECHO_TESTS]
    rewards = get_code_reward(down)(completions, tests=tests, log_metric=metrics.__setitem__)
    assert (rewards, metrics) == ([None] * 3, {"code/no_tests": 2.0, "code/runner_failed": 1.0})
    assert "The runner raised ConnectionError: sandbox down" in caplog.text


# -- Monitor ------------------------------------------------------------------------------------------------------


def test_the_monitor_tells_right_and_wrong_languages_and_habits_apart():
    metrics = {}
    completions = [
        "<think>First, add. Wait, check 2+3. Alternatively (count.</think>5",
        "<think>首先相加。等等，验算一下</think>6",
        "a) two\nb) three</think>5<think>more",
    ]
    think_monitor(
        completions, log_metric=metrics.__setitem__, solution=["5"] * 3, prompts=["2+3?", "2+3?", "2+3?<think>"]
    )
    length = [len(completion.partition("</think>")[0].removeprefix("<think>")) for completion in completions]
    assert metrics["think/reasoning_chars_right"] == length[0]
    assert metrics["think/reasoning_chars_wrong"] == (length[1] + length[2]) / 2
    per_thousand = 1000 / sum(length)
    assert metrics["think/checking_per_1k_chars"] == pytest.approx(3 * per_thousand)
    assert metrics["think/exploring_per_1k_chars"] == pytest.approx(per_thousand)
    assert metrics["think/planning_per_1k_chars"] == pytest.approx(2 * per_thousand)
    for name in ("multi_block", "prefilled", "unbalanced"):
        assert metrics[f"think/{name}"] == pytest.approx(1 / 3), name
    assert metrics["think/language_zh"] == pytest.approx(1 - metrics["think/language_en"])
    metrics.clear()
    get_think_monitor(accuracy=all_wrong)(completions, log_metric=metrics.__setitem__)
    assert "think/reasoning_chars_wrong" in metrics
    assert "think/reasoning_chars_right" not in metrics


# -- Guard --------------------------------------------------------------------------------------------------------


class Alarm(BaseException):
    """As the timeout of Math-Verify, which `except Exception` does not catch."""


def fragile(completions, *, log_metric=None, log_extra=None, prompts=None, bonus=None, **columns):
    """1.0 for each; a few texts break it."""
    if log_metric:
        log_metric("fragile/rows", float(len(completions)))
        log_extra("text", completions)
    if "slow" in completions:
        time.sleep(0.4)
    if "raise" in completions:
        raise Alarm("alarm")
    if "short" in completions:
        return []
    values = {"nan": float("nan"), "word": "much", "none": None}
    return [values.get(text, (bonus or [1.0] * len(completions))[i]) for i, text in enumerate(completions)]


async def fragile_async(completions, **columns):
    if "slow" in completions:
        await asyncio.sleep(30)
    return fragile(completions, **columns)


def called(reward, completions, **columns):
    """Calls a reward as TRL does, asynchronous or not; also returns what it logged."""
    logs = []
    columns |= {"log_metric": lambda *log: logs.append(log), "log_extra": lambda *log: logs.append(log)}
    rewards = reward(completions=completions, **columns)
    if asyncio.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    return rewards, dict(logs)


# Completions -> rewards with on_error=-1, number of rows caught, words of the warning
BROKEN = {
    "nothing": (["a", "b"], [2.0, 3.0], 0, ""),
    "None is no error": (["a", "none"], [2.0, None], 0, ""),
    "one row raises": (["a", "raise", "c"], [2.0, -1.0, 4.0], 1, "Alarm: alarm"),
    "a wrong number of rewards": (["a", "short"], [2.0, -1.0], 1, "returned [] for 2 completions"),
    "not a number": (["nan", "b", "word"], [-1.0, 3.0, -1.0], 2, "it gave nan"),
    "the only row raises": (["raise"], [-1.0], 1, "Alarm"),
    "too late": (["slow", "b"], [-1.0, -1.0], 2, "it took more than 0.1 s"),
}


@pytest.mark.parametrize("reward", [fragile, fragile_async])
@pytest.mark.parametrize(("completions", "expected", "caught", "warning"), BROKEN.values(), ids=BROKEN)
def test_guard(completions, expected, caught, warning, reward, caplog):
    guarded = guard(reward, timeout=0.1, on_error=-1.0)
    bonus = [float(n) for n in range(2, 2 + len(completions))]
    rewards, logged = called(guarded, completions, bonus=bonus, trainer_state=None)
    assert (rewards, guarded.caught, guarded.__name__) == (expected, caught, reward.__name__)
    # What a failed or late call has logged is dropped: it would not fit the batch.
    whole = caught == 0 or warning == "it gave nan"
    logs = {"fragile/rows": float(len(completions)), "text": completions} if whole else {}
    assert logged == logs | {f"guard/{reward.__name__}": float(caught)}
    assert warning in caplog.text
    assert bool(caplog.text) == bool(caught)


@pytest.mark.parametrize("reward", [fragile, fragile_async])
def test_guard_fills_none_with_the_mean_of_the_group(reward):
    guarded = guard(reward, fill_none=True)
    completions, prompts = ["a", "none", "c", "none", "none"], ["p", "p", "p", "q", "q"]
    assert called(guarded, completions, prompts=prompts, bonus=[1.0, 0.0, 0.5, 0.0, 0.0])[0] == [
        1.0, 0.75, 0.5, None, None,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="`prompts` is missing, so `fill_none` cannot tell which completions belong"):
        called(guarded, completions)


def test_guard_stops_for_a_person():
    def interrupted(completions, **columns):
        raise KeyboardInterrupt

    async def interrupted_async(completions, **columns):
        raise asyncio.CancelledError

    with pytest.raises(KeyboardInterrupt):
        guard(interrupted)(["a"])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(guard(interrupted_async)(["a"]))


def test_guard_keeps_names_and_kinds():
    partial = functools.partial(fragile_async, bonus=None)
    assert guard(partial).__name__ == "fragile_async"
    assert called(guard(partial), ["a"])[0] == [1.0]
    assert guard(get_accuracy_reward()).__name__ == "accuracy_reward"
    assert pickle.loads(pickle.dumps(guard(fragile, timeout=1.0)))(["a"]) == [1.0]


# -- Errors, pickles ----------------------------------------------------------------------------------------------

MADE = {
    "code_reward": lambda tokenizer: get_code_reward(toy_runner, tokenizer=tokenizer),
    "group_length_reward": lambda tokenizer: get_group_length_reward(tokenizer=tokenizer),
    "judge_reward": lambda tokenizer: get_judge_reward(fragile_async, tokenizer=tokenizer),
    "language_consistency_reward": lambda tokenizer: get_language_consistency_reward("en", tokenizer=tokenizer),
    "think_length_reward": lambda tokenizer: get_think_length_reward(budget=9, tokenizer=tokenizer),
}


@pytest.mark.parametrize("name", MADE)
def test_every_reward_that_needs_settings_can_be_pickled(name, tokenizer):
    assert pickle.loads(pickle.dumps(MADE[name](tokenizer))).__name__ == name


ERRORS = {
    "accuracy kind": (lambda: get_accuracy_reward("maths"), r"`kind` must be one of \['auto', .*, got 'maths'"),
    "accuracy timeout": (lambda: get_accuracy_reward(timeout=0), "`timeout` must be a positive number .*, got 0"),
    "consistency timeout": (lambda: get_consistency_reward(timeout=-1), "`timeout` must be a positive .*, got -1"),
    "unknown language": (lambda: get_language_consistency_reward("fr"), "`language` must be one of .*, got 'fr'"),
    "no words": (lambda: get_language_consistency_reward("zh", min_words=0), "`min_words` must be at least 1, got 0"),
    "no length": (lambda: get_think_length_reward(), "`target` or `budget` must be a positive .*, got None and None"),
    "two lengths": (lambda: get_think_length_reward(target=1, budget=1), "and the other None, got 1 and 1"),
    "length of 0": (lambda: get_think_length_reward(budget=0), "got None and 0"),
    "unknown mode": (lambda: get_think_length_reward(target=1, mode="log"), "got 'log' with `target`"),
    "exact budget": (lambda: get_think_length_reward(budget=1, mode="exact"), "got 'exact' with `budget`"),
    "negative slope": (lambda: get_think_length_reward(budget=1, alpha=-1), "`alpha` must be positive, got -1"),
    "no ids": (lambda: get_think_length_reward(target=1)(["a"]), "`completion_ids` are missing, .* pass `tokenizer="),
    "no gold": (
        lambda: get_think_length_reward(budget=1)(["a"], completion_ids=[[1]]), "`solution` is missing: gold answers",
    ),
    "no prompts": (lambda: get_group_length_reward()(["a"], completion_ids=[[1]]), "`prompts` is missing: the length"),
    "no ids in a group": (lambda: get_group_length_reward()(["a"], prompts=["p"]), "`completion_ids` is missing: the"),
    "judge timeout": (lambda: get_judge_reward(fragile_async, timeout=0), "`timeout` must be a positive .*, got 0"),
    "unknown criterion": (
        lambda: get_judge_reward(fragile_async, "wit"), r"`criteria` must be names among .*, got \['wit'\]. Describe",
    ),
    "no criterion": (lambda: get_judge_reward(fragile_async, []), "`criteria` must name at least one criterion"),
    "no worker": (lambda: get_code_reward(toy_runner, max_workers=0), "`max_workers` must be at least 1, got 0"),
    "no tests": (lambda: get_code_reward(toy_runner)(["a"]), "`tests` must hold a list of tests .*, got none"),
    "too few tests": (lambda: get_code_reward(toy_runner)(["a"], tests=[]), "got 0 for 1: add the dataset column"),
    "a test without output": (
        lambda: get_code_reward(toy_runner)(["a"], tests=[[{"input": ""}]]), "`tests` must hold dicts with `input`",
    ),
    "guard timeout": (lambda: guard(fragile, timeout=0), "`timeout` must be a positive number .* or None"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_the_argument(make, error):
    with pytest.raises(ValueError, match=error):
        make()


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"`runner` must be a function .* got str"):
        get_code_reward("python")
    with pytest.raises(TypeError, match="`reward` must be a function, got str"):
        guard("accuracy_reward")
