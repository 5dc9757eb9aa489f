import json
import random
import re

import pytest

from think_tools import parse, same_answer
from think_tools.tiny import arithmetic_problems, load_tiny
from think_tools.tiny.cold_start import cold_start_rows
from think_tools.tiny.load import ADAPTERS, FOLDER
from think_tools.tiny.problems import PHRASES, is_test_pair, long_hand
from think_tools.tiny.small_talk import small_talk

CASES = {
    "two digits by two digits": ((47, "*", 36), 1692),
    "a zero in the second factor": ((47, "*", 30), 1410),
    "one digit in the second factor": ((47, "*", 6), 282),
    "three digits in the first factor": ((123, "*", 45), 5535),
    "a sum with a carry into a new place": ((93, "+", 8), 101),
    "a difference with a borrow": ((103, "-", 36), 67),
}


@pytest.mark.parametrize(("problem", "result"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_long_hand_ends_in_the_result_and_every_column_is_right(problem, result, language):
    text = long_hand(*problem, language)
    assert text.endswith(f"-> {result}")
    columns = re.findall(r"(\d+)([*+-])(\d+)([+-])(\d+)=(\d+)", text)
    assert columns
    for x, first, y, second, carry, value in columns:
        product = {"*": int(x) * int(y), "+": int(x) + int(y), "-": int(x) - int(y)}[first]
        assert product + int(second + carry) == int(value)


def operands(row: dict) -> tuple[int, int]:
    a, b = re.findall(r"\d+", row["prompt"][0]["content"])[:2]
    return int(a), int(b)


def test_train_and_test_share_no_pair_in_either_order():
    train, test = arithmetic_problems("train", 2000), arithmetic_problems("test", 400)
    assert all(is_test_pair(*operands(row)) for row in test)
    assert not {frozenset(operands(row)) for row in train} & {frozenset(operands(row)) for row in test}


def test_the_same_arguments_give_the_same_rows_and_another_seed_gives_others():
    assert arithmetic_problems("test", 20, 1)[:] == arithmetic_problems("test", 20, 1)[:]
    assert arithmetic_problems("test", 20, 1)["solution"] != arithmetic_problems("test", 20, 2)["solution"]


@pytest.mark.parametrize("language", ["en", "zh", None])
def test_solutions_are_right_and_questions_are_in_the_language_asked_for(language):
    rows = arithmetic_problems("test", 40, language=language)
    for row in rows:
        a, b = operands(row)
        assert same_answer(row["completion"][0]["content"], str(a * b))
        assert row["solution"] == str(a * b)
        is_chinese = bool(re.search(r"[\u4e00-\u9fff]", row["prompt"][0]["content"]))
        assert is_chinese == (row["language"] == "zh")
    assert set(rows["language"]) == ({language} if language else {"en", "zh"})


def test_without_reasoning_thinking_is_switched_off():
    row = arithmetic_problems("train", 1, reasoning=False)[0]
    assert row["completion"][0]["reasoning_content"] is None
    assert row["chat_template_kwargs"] == {"enable_thinking": False}


BAD = {
    "unknown split": ({"split": "dev"}, "`split` must be 'train' or 'test', got 'dev'."),
    "unknown language": ({"language": "fr"}, "`language` must be 'en', 'zh' or None, got 'fr'."),
    "no rows": ({"n": 0}, "`n` must be at least 1, got 0."),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_of_arithmetic_problems_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        arithmetic_problems(**arguments)


def test_the_cold_start_thinks_in_part_of_the_rows_and_leaves_the_test_split_out():
    rows = cold_start_rows(3000)
    arithmetic = [row for row in rows if row["solution"]]
    thinking = [row for row in arithmetic if row["completion"][0]["reasoning_content"]]
    assert 0.31 < len(thinking) / len(arithmetic) < 0.39
    assert all(row["chat_template_kwargs"]["enable_thinking"] for row in thinking)
    assert not any("乘" in row["prompt"][0]["content"] and is_test_pair(*operands(row)) for row in arithmetic)


def test_a_think_share_outside_its_range_is_named():
    with pytest.raises(ValueError, match=r"`think_share` must be between 0 and 1, got 2\."):
        cold_start_rows(1, think_share=2)


NUMBERS = {
    0: ("zero", "零"),
    10: ("ten", "十"),
    17: ("seventeen", "十七"),
    40: ("forty", "四十"),
    85: ("eighty-five", "八十五"),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_number_words(number):
    assert tuple(PHRASES[language]["number_words"][number] for language in ("en", "zh")) == NUMBERS[number]


def test_small_talk_answers_in_the_language_of_the_question():
    rng = random.Random(0)
    for _ in range(50):
        question, answer = small_talk(rng, "zh")
        assert re.search(r"[\u4e00-\u9fff]", question)
        assert answer


def test_the_weights_stay_within_their_size():
    assert (FOLDER / "base" / "model.safetensors").stat().st_size <= 4_000_000
    for adapter in ADAPTERS:
        assert (FOLDER / adapter / "adapter_model.safetensors").stat().st_size <= 2_000_000


@pytest.mark.parametrize("text", ["12*13=?", "中文 🤔 \x00 é", "a\tb\n\nc  d"])
def test_the_tokenizer_gives_back_any_text(text):
    _, tokenizer = load_tiny()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_unknown_adapter_is_named():
    with pytest.raises(ValueError, match=r"`adapter` must be one of \['cold_start', 'thinker'\], a folder"):
        load_tiny("nobody")


def test_the_thinker_reasons_and_is_right():
    model, tokenizer = load_tiny("thinker")
    prompt = [{"role": "user", "content": "12*13=?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=256, do_sample=False)
    trace = parse(tokenizer.decode(output[0, ids["input_ids"].shape[1] :]).removesuffix("<|im_end|>"))
    assert trace.reasoning == long_hand(12, "*", 13)
    assert trace.answer == "156"


def test_the_base_answers_directly():
    model, tokenizer = load_tiny()
    prompt = [{"role": "user", "content": "12*13=?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=16, do_sample=False)
    assert re.fullmatch(r"\d+<\|im_end\|>", tokenizer.decode(output[0, ids["input_ids"].shape[1] :]))


def test_the_tokenizer_carries_the_current_template():
    from think_tools.templates import load_template

    _, tokenizer = load_tiny()
    assert tokenizer.chat_template == load_template("chatml_think")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_shipped_adapter_names_no_path_and_a_loaded_one_names_its_base(adapter):
    shipped = json.loads((FOLDER / adapter / "adapter_config.json").read_text())
    assert shipped["base_model_name_or_path"] == "think-tools/tiny"
    model, _ = load_tiny(adapter)
    assert model.peft_config["default"].base_model_name_or_path == str(FOLDER / "base")
