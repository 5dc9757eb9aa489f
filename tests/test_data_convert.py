"""Every known set of columns becomes the same row, and nothing is lost on the way without a word."""

import json
import logging

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, concatenate_datasets, load_dataset

from think_tools import FORMATS
from think_tools.data import to_think
from think_tools.tiny import arithmetic_problems


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **reasoning):
    return {"role": "assistant", "content": text, **reasoning}


SYSTEM = {"role": "system", "content": "S"}
S1K = {
    "question": "Q",
    "solution": "G",
    "deepseek_thinking_trajectory": "R",
    "deepseek_attempt": "A",
    "gemini_thinking_trajectory": "R2",
    "gemini_attempt": "A2",
    "gemini_grade": "Yes",
}

# row, and (prompt, reasoning, answer, solution) of each row made of it
CASES = {
    "medical-o1": ({"Question": "Q", "Complex_CoT": "R", "Response": "A"}, ([user("Q")], "R", "A", None)),
    "the distilled R1 data": ({"input": "Q", "reasoning_content": "R", "content": "A"}, ([user("Q")], "R", "A", None)),
    "the distilled R1 data with an instruction": (
        {"instruction": "I", "input": "Q", "reasoning_content": "R", "content": "A"},
        ([user("I\nQ")], "R", "A", None),
    ),
    "a reasoning column that still has its markers": (
        {"input": "Q", "reasoning_content": "<think>\nR\n</think>", "content": "A"},
        ([user("Q")], "R", "A", None),
    ),
    "an empty reasoning column": (
        {"input": "Q", "reasoning_content": "", "content": "A"},
        ([user("Q")], None, "A", None),
    ),
    "GSM8K": (
        {"question": "Q", "answer": "48/2 = <<48/2=24>>24\nSo $<<1+1=2>>2.\n#### 1,024"},
        ([user("Q")], "48/2 = 24\nSo $2.", "1,024", "1,024"),
    ),
    "alpaca": ({"instruction": "Q", "input": "", "output": "A"}, ([user("Q")], None, "A", None)),
    "alpaca with an input": ({"instruction": "Q", "input": "I", "output": "A"}, ([user("Q\nI")], None, "A", None)),
    "alpaca with inline tags": (
        {"instruction": "Q", "input": "", "output": "<think>\nR\n</think>\n\nA"},
        ([user("Q")], "R", "A", None),
    ),
    "messages with a reasoning key": (
        {"messages": [user("Q"), assistant("A", thinking="R")]},
        ([user("Q")], "R", "A", None),
    ),
    "messages with inline tags": (
        {"messages": [{"role": "system", "content": "S"}, user("Q"), assistant("<think>R</think>A")]},
        ([{"role": "system", "content": "S"}, user("Q")], "R", "A", None),
    ),
    "messages whose opening marker was in the prompt": (
        {"messages": [user("Q"), assistant("R\n</think>\n\nA")]},
        ([user("Q")], "R", "A", None),
    ),
    "messages without reasoning": ({"messages": [user("Q"), assistant("A")]}, ([user("Q")], None, "A", None)),
    "messages with an empty think block": (
        {"messages": [user("Q"), assistant("<think>\n\n</think>\n\nA")]},
        ([user("Q")], None, "A", None),
    ),
    "messages with OpenThoughts' markers": (
        {
            "messages": [
                user("Q"),
                assistant(
                    "<|begin_of_thought|>\n\nR\n\n<|end_of_thought|>\n\n<|begin_of_solution|>A<|end_of_solution|>"
                ),
            ]
        },
        ([user("Q")], "R", "A", None),
    ),
    "several turns with Mistral's markers": (
        {"messages": [user("Q1"), assistant("[THINK]R1[/THINK]A1"), user("Q2"), assistant("\n[THINK]R2[/THINK]A2")]},
        ([user("Q1")], "R1", "A1", None),
        ([user("Q1"), assistant("A1", reasoning_content="R1"), user("Q2")], "R2", "A2", None),
    ),
    "a reasoning column with another family's markers": (
        {"input": "Q", "reasoning_content": "<seed:think>R</seed:think>", "content": "A"},
        ([user("Q")], "R", "A", None),
    ),
    "several turns": (
        {"messages": [user("Q1"), assistant("<think>R1</think>A1"), user("Q2"), assistant("<think>R2</think>A2")]},
        ([user("Q1")], "R1", "A1", None),
        ([user("Q1"), assistant("A1", reasoning_content="R1"), user("Q2")], "R2", "A2", None),
    ),
    "typed blocks": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                {"role": "assistant", "content": [{"type": "reasoning", "text": "R"}, {"type": "text", "text": "A"}]},
            ]
        },
        ([user("Q")], "R", "A", None),
    ),
    "a system column": (
        {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        ([SYSTEM, user("Q")], None, "A", None),
    ),
    "a system column beside a system message": (
        {"system": "S", "messages": [{"role": "system", "content": "S!"}, user("Q"), assistant("A")]},
        ([{"role": "system", "content": "S!"}, user("Q")], None, "A", None),
    ),
    "ShareGPT with answer tags (AM-Thinking)": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "assistant", "value": "<think>R</think>\n<answer>A</answer>"},
            ]
        },
        ([user("Q")], "R", "A", None),
    ),
    "a question and its answer in one turn (Ultra-Innerthought)": (
        {"conversations": [{"user": "Q", "inner_thought": "R", "assistant": "A"}]},
        ([user("Q")], "R", "A", None),
    ),
    "OpenThoughts' metadata": (
        {"problem": "Q", "deepseek_reasoning": "R", "deepseek_solution": "A", "ground_truth_solution": "G"},
        ([user("Q")], "R", "A", "G"),
    ),
    "s1K, with a list of one trace and another chain of thought": (
        {"question": "Q", "solution": "G", "cot": None, "thinking_trajectories": ["R"], "attempt": "A"},
        ([user("Q")], "R", "A", "G"),
    ),
    "s1K-1.1 where both are right": ({**S1K, "deepseek_grade": "Yes"}, ([user("Q")], "R", "A", "G")),
    "s1K-1.1 where DeepSeek is wrong": ({**S1K, "deepseek_grade": "No"}, ([user("Q")], "R2", "A2", "G")),
    "s1K-1.1 where both are wrong": (
        {**S1K, "deepseek_grade": "No", "gemini_grade": "No"},
        ([user("Q")], "R", "A", "G"),
    ),
    "OpenR1-Math, whose second generation is cut and whose third is right": (
        {
            "problem": "Q",
            "answer": "G",
            "generations": ["<think>R0</think>A0", "<think>R1", "<think>R2</think>A2"],
            "is_reasoning_complete": [True, False, True],
            "correctness_math_verify": [False, True, True],
            "correctness_llama": None,
            "messages": [user("Q"), assistant("<think>R0</think>A0")],
        },
        ([user("Q")], "R2", "A2", "G"),
    ),
    "OpenR1-Math, found right by the judge": (
        {
            "problem": "Q",
            "answer": "G",
            "generations": ["<think>R</think>A"],
            "is_reasoning_complete": [True],
            "correctness_math_verify": [False],
            "correctness_llama": [True],
        },
        ([user("Q")], "R", "A", "G"),
    ),
    "Llama-Nemotron, whose input is a conversation": (
        {"input": [user("Q1"), assistant("A1"), user("Q2")], "output": "<think>R</think>A", "system_prompt": "S"},
        ([SYSTEM, user("Q1"), assistant("A1"), user("Q2")], "R", "A", None),
    ),
    "Nemotron with its reasoning switched on": (
        {"messages": [user("Q"), assistant("<think>R</think>A", tool_calls=[])], "reasoning": "on"},
        ([user("Q")], "R", "A", None),
    ),
    "Nemotron with its reasoning switched off": (
        {"messages": [user("Q"), assistant("A")], "reasoning": "off"},
        ([user("Q")], None, "A", None),
    ),
    "Nemotron whose first prompt is null": (
        {"messages": [{"role": "system", "content": None}, user("Q"), assistant("A", reasoning_content="R")]},
        ([{"role": "system", "content": ""}, user("Q")], "R", "A", None),
    ),
    "SYNTHETIC-1": (
        {"prompt": "Q", "gold_standard_solution": "G", "llm_response": "<think>R</think>A"},
        ([user("Q")], "R", "A", "G"),
    ),
    "OpenMathReasoning": (
        {"problem": "Q", "generated_solution": "<think>R</think>A", "expected_answer": 7},
        ([user("Q")], "R", "A", "7"),
    ),
    "columns with usual names": (
        {"Instruction": "Q", "Input": "I", "Thinking": "R", "Response": "A", "answer": "G"},
        ([user("Q\nI")], "R", "A", "G"),
    ),
    "messages and a gold answer": (
        {"messages": [user("Q"), assistant("A")], "ground_truth": "G"},
        ([user("Q")], None, "A", "G"),
    ),
    "a question and a short answer": ({"question": "Q", "answer": "A"}, ([user("Q")], None, "A", None)),
    "block lists with the key `value` (LLaMA-Factory)": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "Q"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "R"}, {"type": "text", "value": "A"}],
                },
            ]
        },
        ([user("Q")], "R", "A", None),
    ),
    "a row that is one already": (
        {"prompt": [user("Q")], "completion": [assistant("A", reasoning_content="R")], "solution": "G"},
        ([user("Q")], "R", "A", "G"),
    ),
    "prompt and completion as texts": (
        {"prompt": "Q", "completion": "<think>R</think>A"},
        ([user("Q")], "R", "A", None),
    ),
}
cases = pytest.mark.parametrize(("row", "expected"), [(row, made) for row, *made in CASES.values()], ids=CASES)


def parts(row):
    [message] = row["completion"]
    return row["prompt"], message["reasoning_content"], message["content"], row["solution"]


@cases
def test_known_columns(row, expected):
    rows = to_think([row])
    assert [parts(converted) for converted in rows] == expected
    for converted in rows:
        assert converted["chat_template_kwargs"] == {"enable_thinking": bool(parts(converted)[1])}
        assert {"prompt", "completion", "chat_template_kwargs", "solution", "source", "id"} <= set(converted)


@cases
def test_converting_twice_changes_nothing(row, expected):
    once = to_think([row])
    assert to_think(once)[:] == once[:]


@cases
def test_a_stream_gives_the_same_rows(row, expected):
    rows = Dataset.from_list([row])
    assert list(to_think(rows.to_iterable_dataset())) == list(to_think(rows))


def test_markers_made_of_words_have_to_be_given():
    text = "Here is my thought process: R Here is my response: A"
    rows = [{"messages": [user("Q"), assistant(text)]}]
    assert parts(to_think(rows)[0])[1:3] == (None, text)
    assert parts(to_think(rows, fmt=FORMATS["granite_3_2"])[0])[1:3] == ("R", "A")


def test_a_given_format_comes_before_the_markers_in_the_text(caplog):
    rows = [
        {"messages": [user("Q"), assistant(text)]} for text in ("[THINK]R[/THINK]A", "<think>R</think>A", "[THINK]R")
    ]
    with caplog.at_level(logging.WARNING):
        assert [parts(row)[1:3] for row in to_think(rows)] == [("R", "A"), ("R", "A")]
    assert "`to_think` dropped 1 of 3 rows: reasoning without closing marker (1)." in caplog.text
    assert parts(to_think(rows[:1], fmt=FORMATS["think"])[0])[1:3] == (None, "[THINK]R[/THINK]A")


def test_a_stream_without_known_columns():
    stream = IterableDataset.from_generator(lambda: iter([{"question": "Q", "answer": "R\n#### 4"}] * 2))
    assert [parts(row) for row in to_think(stream)] == [([user("Q")], "R", "4", "4")] * 2


def test_other_columns_are_kept():
    rows = [{"input": "Q", "reasoning_content": "R", "content": "A", "score": 9, "repo_name": "x"}]
    row = to_think(rows)[0]
    assert (row["score"], row["repo_name"]) == (9, "x")
    assert (row["source"], row["id"]) == ("question-reasoning-answer", "question-reasoning-answer-0")


def test_columns_in_the_way_are_kept_under_another_name():
    row = to_think([{"messages": [user("Q"), assistant("A")], "prompt": "Q!", "source": "web", "id": 7}])[0]
    assert (row["original_prompt"], row["source"], row["id"]) == ("Q!", "web", "7")


def test_a_second_solution_is_kept_under_another_name():
    row = {"problem": "Q", "cot": "R", "answer": "A", "solution": "long", "gold": "G"}
    mapping = {"question": "problem", "reasoning": "cot", "answer": "answer"}
    made = to_think([row], mapping={**mapping, "solution": "gold"})[0]
    assert (made["solution"], made["original_solution"]) == ("G", "long")
    made = to_think([row], mapping={**mapping, "answer": "solution"})[0]
    assert (parts(made), made["answer"]) == (([user("Q")], "R", "long", None), "A")


def test_template_arguments_of_the_row_win():
    rows = [
        {"messages": [user("Q"), assistant("A")], "chat_template_kwargs": {"enable_thinking": True}},
        {"messages": [user("Q"), assistant("A")], "chat_template_kwargs": {"python_tools": ["f"]}},
        {"messages": [user("Q"), assistant("A")], "chat_template_kwargs": None},
    ]
    given = [row["chat_template_kwargs"] for row in to_think(rows)]
    assert given == [
        {"enable_thinking": True},
        {"enable_thinking": False, "python_tools": ["f"]},
        {"enable_thinking": False},
    ]


def test_rows_of_different_sources_concatenate_and_survive_a_file(tmp_path):
    sources = ["GSM8K", "alpaca", "several turns", "a row that is one already"]
    parts_of = [to_think([CASES[name][0]]) for name in sources] + [arithmetic_problems(n=1)]
    rows = concatenate_datasets([to_think(part) for part in parts_of])
    assert [parts(row) for row in rows][:-1] == [made for name in sources for made in CASES[name][1:]]
    rows.to_json(str(tmp_path / "rows.jsonl"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    for kind, file in [("json", "rows.jsonl"), ("parquet", "rows.parquet")]:
        read = load_dataset(kind, data_files=str(tmp_path / file), split="train", cache_dir=str(tmp_path))
        assert [parts(row) for row in to_think(read)] == [parts(row) for row in rows]


JSON = '{"name": "f", "arguments": {"x": 1}}'
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLS = {
    "blocks of JSON": [
        {"role": "assistant", "content": [{"type": "reasoning", "value": "R"}, {"type": "tool_call", "value": JSON}]},
        {"role": "tool", "content": [{"type": "text", "value": "7"}]},
    ],
    "OpenAI's form with arguments as text": [
        assistant(None, reasoning="R", tool_calls=[{"function": {"name": "f", "arguments": '{"x": 1}'}}]),
        {"role": "tool", "content": "7"},
    ],
    "arguments that Arrow has filled": [
        assistant("<think>R</think>", tool_calls=[{"name": "f", "arguments": {"x": 1, "y": None}}]),
        {"role": "tool", "content": "7"},
    ],
    "ShareGPT's roles": [{"from": "function_call", "value": JSON}, {"from": "observation", "value": "7"}],
}


@pytest.mark.parametrize("turns", CALLS.values(), ids=CALLS)
def test_tool_turns_are_kept_and_calls_are_learned(turns):
    call, last = to_think([{"messages": [user("Q"), *turns, assistant("A")], "tools": "[]"}])
    [message] = call["completion"]
    assert (message["content"], message["tool_calls"]) == ("", [CALL])
    assert message["reasoning_content"] == (None if "from" in turns[0] else "R")
    assert last["prompt"][-1] == {"role": "tool", "content": "7"}
    assert last["prompt"][1]["tool_calls"] == [CALL]
    assert parts(last)[1:3] == (None, "A")
    assert last["tools"] == "[]"


def test_the_id_of_a_call_is_kept():
    turns = [assistant("", tool_calls=[{**CALL, "id": "c1"}]), {"role": "tool", "content": "7", "tool_call_id": "c1"}]
    _, last = to_think([{"messages": [user("Q"), *turns, assistant("A")]}])
    assert last["prompt"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "c1"}]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]


CHAT = [assistant("Hi"), user("Q1"), assistant("A1"), user("Q2"), assistant("<think>R</think>A2")]
READ = [*CHAT[:-1], assistant("A2", reasoning_content="R")]


def learned(message):
    return {"role": "assistant", "reasoning_content": None, **message}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ("last", [(READ[:4], [READ[4]], "G", True)]),
        ("expand", [(READ[:2], [learned(READ[2])], None, False), (READ[:4], [READ[4]], "G", True)]),
        ("all", [(READ[:2], [learned(READ[2]), READ[3], READ[4]], "G", True)]),
    ],
)
def test_several_turns_are_learned_as_wished(turns, expected):
    rows = to_think([{"messages": CHAT, "solution": "G", "id": "x"}], turns=turns)
    made = [
        (row["prompt"], row["completion"], row["solution"], row["chat_template_kwargs"]["enable_thinking"])
        for row in rows
    ]
    assert made == expected
    assert rows["id"][:] == (["x-1", "x-2"] if turns == "expand" else ["x"])
    again = to_think(to_think([{"messages": CHAT, "solution": "G", "id": "x"}], turns="all"), turns=turns)
    assert again[:] == rows[:]


def test_what_stood_in_the_prompt_is_never_learned():
    row = {"prompt": CHAT[1:4], "completion": CHAT[4:]}
    for turns in ("expand", "last", "all"):
        assert [parts(made) for made in to_think([row], turns=turns)] == [(CHAT[1:4], "R", "A2", None)]


def test_a_conversation_says_nothing_of_its_single_turns():
    row = {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": True, "python_tools": []}}
    assert [made["chat_template_kwargs"] for made in to_think([row])] == [
        {"enable_thinking": False, "python_tools": []},
        {"enable_thinking": True, "python_tools": []},
    ]


def test_parts_with_train_flags_are_kept():
    given = [{"text": "R", "train": False}, {"text": "S", "train": True}]
    message = assistant("A", reasoning_content="RS", parts=given)
    [row] = to_think([{"prompt": [user("Q")], "completion": [message]}])
    assert row["completion"] == [message]


def test_messages_of_several_forms_in_one_list():
    rows = [
        {"messages": [user("Q"), assistant([{"type": "text", "text": "A"}])]},
        {"messages": [user("Q"), assistant("A")]},
    ]
    assert [parts(row) for row in to_think(rows)] == [([user("Q")], None, "A", None)] * 2


def test_several_processes_give_the_same_rows():
    rows = Dataset.from_list(
        [{"messages": [user(f"Q{i}"), assistant("A"), user("?"), assistant("B")]} for i in range(5)]
    )
    assert to_think(rows, num_proc=2)[:] == to_think(rows)[:]
    assert to_think(rows)["id"][-1] == "messages-4-2"


def test_reasoning_may_come_after_a_thousand_rows_without():
    rows = [{"instruction": "Q", "input": "", "output": "A"}] * 1001
    rows.append({"instruction": "Q", "input": "", "output": "<think>R</think>A"})
    assert to_think(rows)[-1]["completion"][0]["reasoning_content"] == "R"


@pytest.mark.parametrize(
    ("row", "mapping", "expected"),
    [
        (
            {"problem": "Q", "cot": "R", "final": "A", "gold": 4, "persona": "S"},
            {"question": "problem", "reasoning": "cot", "answer": "final", "solution": "gold", "system": "persona"},
            ([{"role": "system", "content": "S"}, user("Q")], "R", "A", "4"),
        ),
        (
            {"question": "Q", "answer": "A"},
            {"question": "question", "answer": "answer"},
            ([user("Q")], None, "A", None),
        ),
        ({"chat": [user("Q"), assistant("A")]}, {"messages": "chat"}, ([user("Q")], None, "A", None)),
        (
            {"q": "Q", "w": "R #### 5", "context": None},
            {"question": ["context", "q"], "worked_answer": "w"},
            ([user("Q")], "R", "5", "5"),
        ),
        (
            {"q": "Q", "traces": ["R1", "R2"], "a": "A", "best": 1},
            {"question": "q", "reasoning": lambda row: row["traces"][row["best"]], "answer": "a"},
            ([user("Q")], "R2", "A", None),
        ),
        (
            {"q": "Q", "trace": {"thought": "R", "said": "A"}, "solution": "long"},
            lambda row: {"question": row["q"], "reasoning": row["trace"]["thought"], "answer": row["trace"]["said"]},
            ([user("Q")], "R", "A", None),
        ),
        (
            {"q": "Q", "a": "<think>R</think>A"},
            lambda row: {"messages": [user(row["q"]), assistant(row["a"])], "system": "S", "solution": 5},
            ([SYSTEM, user("Q")], "R", "A", "5"),
        ),
    ],
)
def test_mapped_columns(row, mapping, expected):
    assert parts(to_think([row], mapping=mapping)[0]) == expected


DROPPED = {
    "empty answer": assistant("", reasoning_content="R"),
    "reasoning without closing marker": assistant("<think>R"),
    "think markers inside the reasoning or the answer": assistant("Well <think>R</think>A"),
    "a tool call that cannot be read": assistant("A", tool_calls=[{"arguments": {}}]),
    "a message without role": {"content": "A"},
    "a content block of type image": assistant([{"type": "image"}]),
    "the last turn is not the assistant's": user("and?"),
    "a content of type int": assistant(4),
}


@pytest.mark.parametrize(("cause", "turn"), DROPPED.items(), ids=DROPPED)
def test_rows_that_cannot_be_converted_are_counted(cause, turn, caplog):
    good = {"messages": [user("Q"), assistant("A")]}
    stream = IterableDataset.from_generator(lambda: iter([good, {"messages": [user("Q"), turn]}, good]))
    with caplog.at_level(logging.WARNING, "think_tools"):
        assert len(list(to_think(stream))) == 2
    assert caplog.messages == [f"`to_think` dropped 1 of 2 rows so far: {cause} (1)."]


GSM8K = [{"question": q, "answer": a} for q, a in [("Q", "R\n#### 4"), ("", "R\n#### 4"), ("Q", "4"), ("Q", "5")]]


def test_dropped_rows_are_reported_with_their_causes(caplog):
    rows = GSM8K
    with caplog.at_level(logging.WARNING, "think_tools"):
        assert [row["id"] for row in to_think(rows)] == ["gsm8k-0"]
    assert caplog.messages == [
        "`to_think` dropped 3 of 4 rows: no `#### answer` at the end of the worked answer (2); empty question (1)."
    ]


def test_dropped_rows_can_be_marked_instead():
    unworked = "no `#### answer` at the end of the worked answer"
    for rows in (
        to_think(GSM8K, unreadable="mark"),
        to_think(Dataset.from_list(GSM8K).to_iterable_dataset(), unreadable="mark"),
    ):
        assert [(row["id"], row["cause_of_drop"]) for row in rows] == [
            ("gsm8k-0", None),
            ("gsm8k-1", "empty question"),
            ("gsm8k-2", unworked),
            ("gsm8k-3", unworked),
        ]


def test_the_cause_of_a_mapping_function_is_reported(caplog):
    def read(row):
        if row["score"] < 7:
            raise ValueError("a score below 7")
        return {"question": row["q"], "answer": row["a"]}

    with caplog.at_level(logging.WARNING, "think_tools"):
        assert len(to_think([{"q": "Q", "a": "A", "score": score} for score in (5, 8)], mapping=read)) == 1
    assert caplog.messages == ["`to_think` dropped 1 of 2 rows: a score below 7 (1)."]


def test_a_generation_that_nothing_verifies_is_not_taken(caplog):
    row = CASES["OpenR1-Math, found right by the judge"][0]
    with caplog.at_level(logging.WARNING, "think_tools"):
        assert len(to_think([row, {**row, "correctness_llama": [False]}])) == 1
    assert caplog.messages == ["`to_think` dropped 1 of 2 rows: no generation is verified and complete (1)."]


ERRORS = {
    "columns nobody knows": (
        [{"q": "Q", "cot": "R", "a": "A"}],
        None,
        r"`dataset` has the columns \['q', 'cot', 'a'\], which fit no known set. Known sets: completion, prompt; .*"
        r"answer: response, output, .*`mapping`",
    ),
    "reasoning in a column that would not be read": (
        [{"messages": [user("Q"), assistant("A")], "thinking": "R"}],
        None,
        r"look like messages, which would leave the reasoning in \['thinking'\] out; `mapping=\{'messages': "
        r"'messages'\}` does so",
    ),
    "a list where a text should be": (
        [{"question": "Q", "cot": ["R1", "R2"], "answer": "A"}],
        None,
        r"dropped 1 of 1 rows: the reasoning is no text, but a list \(1\)",
    ),
    "a function that returns something unknown": (
        [{"q": "Q"}],
        lambda row: {"query": row["q"]},
        r"`mapping` may name .*, got \['query'\]",
    ),
    "a mapping of something unknown": ([{"q": "Q"}], {"query": "q"}, r"`mapping` may name .*, got \['query'\]"),
    "a mapping to a missing column": (
        [{"q": "Q"}],
        {"question": "q", "answer": "a"},
        r"`mapping` names the columns \['a'\], but `dataset` has \['q'\]",
    ),
    "a mapping without an answer": (
        [{"q": "Q"}],
        {"question": "q"},
        '`mapping` must name either "messages", or "question"',
    ),
    "a mapping of a conversation and a question": (
        [{"q": "Q", "m": []}],
        {"question": "q", "messages": "m"},
        '`mapping` must name either "messages", or "question"',
    ),
    "only rows that cannot be converted": (
        [{"question": "Q", "answer": ""}],
        None,
        r"dropped 1 of 1 rows: empty answer.*Nothing is left",
    ),
    "no rows": ([], None, r"`dataset` has the columns \[\]"),
}


@pytest.mark.parametrize(("rows", "mapping", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_seen_and_what_to_do(rows, mapping, message):
    with pytest.raises(ValueError, match=message):
        to_think(rows, mapping=mapping)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"turns": "first"}, "`turns` must be one of 'expand', 'last', 'all', got 'first'."),
        ({"unreadable": "keep"}, "`unreadable` must be one of 'drop', 'mark', got 'keep'."),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        to_think(GSM8K, **arguments)


def test_a_stream_needs_no_processes_of_ours():
    with pytest.raises(ValueError, match=r"`num_proc` is for a Dataset\. A stream is converted by the workers"):
        to_think(Dataset.from_list(GSM8K).to_iterable_dataset(), num_proc=2)


def test_a_dataset_dict_is_no_data_set():
    with pytest.raises(TypeError, match=r"got DatasetDict. Take one split"):
        to_think(DatasetDict())


def test_schema_cases_of_other_projects(data_folder):
    # The system turn of a conversation stays in our prompt; the cases leave it out.
    keep_the_system_turn = {"HuggingFaceH4/Multilingual-Thinking", "open-thoughts/OpenThoughts-114k"}
    lines = (data_folder / "cases" / "data_cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["kind"] == "schema_detect"]
    assert len(cases) >= 8
    for case in cases:
        expected = case["expected"]
        prompt, *rest = parts(to_think([case["input"]["row"]])[0])
        assert [prompt[case["name"] in keep_the_system_turn :], *rest] == [
            expected["prompt"],
            expected["reasoning_content"],
            expected["content"],
            expected.get("answer"),
        ], case["name"]


@pytest.mark.parametrize(
    ("file", "rows", "thinking"),
    [
        ("gsm8k_train_2000", 2000, 2000),
        ("alpaca_zh_1000", 1000, 0),
        ("medical_cot_zh_2", 2, 2),
        ("reason_tool_use_50", 109, 109),  # of 48 conversations; two others have a think marker in an answer
    ],
)
def test_real_rows(file, rows, thinking, data_folder, tmp_path):
    path = str(data_folder / "data" / f"{file}.jsonl")
    converted = to_think(load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path)))
    assert len(converted) == rows
    assert sum(row["enable_thinking"] for row in converted["chat_template_kwargs"]) == thinking
    assert all(turn["content"].strip() or turn["tool_calls"] for [turn] in converted["completion"])
    assert not any("<<" in turn["reasoning_content"] for [turn] in converted["completion"] if file.startswith("gsm8k"))
