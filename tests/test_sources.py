"""The examples that the sources of the method give, run as they stand."""

import json

import pytest

from think_tools import extract_answer, read_completion, same_answer
from think_tools.rewards import accuracy_reward, format_reward

# -- A tagged answer, a message with its reasoning apart ----------------------------------------------------------

CAPITAL = "<think>France is in Europe, and the seat of its government is Paris.</think>Paris"
COLOURS = {
    "role": "assistant",
    "reasoning_content": "The user asks for the primary colours of paint: red, yellow and blue.",
    "content": "Red, yellow and blue.",
}


def test_the_capital_of_france():
    assert read_completion(CAPITAL).answer == "Paris"
    assert accuracy_reward([CAPITAL, CAPITAL], solution=["Paris", "Lyon"]) == [1.0, 0.0]
    assert format_reward([CAPITAL]) == [1.0]


def test_the_three_primary_colours():
    completions = [[COLOURS], [{**COLOURS, "content": "Red and green."}]]
    assert accuracy_reward(completions, solution=["red, yellow and blue"] * 2) == [1.0, 0.0]
    assert format_reward(completions) == [1.0, 1.0]


# -- Arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    {
        "72/19 hours (or approximately 3.79 hours)": True,
        r"\frac{72}{19}": True,
        "72/18 hours": False,
        "3.79": False,
    }.items(),
)
def test_seventy_two_nineteenths(answer, expected):
    assert extract_answer(answer) == answer
    assert same_answer(answer, "72/19") is expected


@pytest.mark.parametrize(
    "answer", ["56088", "56,088", "５６０８８", "123 × 456 = 56,088", r"\boxed{56{,}088}", "答案是56088。"]
)
def test_123_times_456(answer):
    completion = f"<think>123 × 400 = 49200, 123 × 56 = 6888, 49200 + 6888 = 56088.</think>{answer}"
    assert accuracy_reward([completion] * 2, solution=["56088", "56089"]) == [1.0, 0.0]


# -- The two medical rows -----------------------------------------------------------------------------------------


def test_the_medical_rows(data_folder):
    lines = (data_folder / "data/medical_cot_zh_2.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    completions = [f"<think>\n{row['Complex_CoT']}\n</think>\n\n{row['Response']}" for row in rows]
    traces = [read_completion(completion) for completion in completions]
    assert [trace.reasoning for trace in traces] == [row["Complex_CoT"].strip() for row in rows]
    assert [trace.answer for trace in traces] == [row["Response"].strip() for row in rows]
    assert format_reward(completions) == [1.0, 1.0]
    # Free text is no gold answer for another text, and the reward says so instead of 0.
    assert accuracy_reward(["<think>r</think>肺阴虚"] * 2, solution=[row["Response"] for row in rows]) == [None, None]
