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


# row -> (prompt, reasoning, answer, solution)
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
        ([user("Q1"), assistant("A1", reasoning_content="R1"), user("Q2")], "R2", "A2", None),
    ),
    "a reasoning column with another family's markers": (
        {"input": "Q", "reasoning_content": "<seed:think>R</seed:think>", "content": "A"},
        ([user("Q")], "R", "A", None),
    ),
    "several turns": (
        {"messages": [user("Q1"), assistant("<think>R1</think>A1"), user("Q2"), assistant("<think>R2</think>A2")]},
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
    "a row that is one already": (
        {"prompt": [user("Q")], "completion": [assistant("A", reasoning_content="R")], "solution": "G"},
        ([user("Q")], "R", "A", "G"),
    ),
    "prompt and completion as texts": (
        {"prompt": "Q", "completion": "<think>R</think>A"},
        ([user("Q")], "R", "A", None),
    ),
}
cases = pytest.mark.parametrize(("row", "expected"), CASES.values(), ids=CASES)


def parts(row):
    [message] = row["completion"]
    return row["prompt"], message["reasoning_content"], message["content"], row["solution"]


@cases
def test_known_columns(row, expected):
    [converted] = to_think([row])
    assert parts(converted) == expected
    assert converted["chat_template_kwargs"] == {"enable_thinking": expected[1] is not None}
    assert set(converted) == {"prompt", "completion", "chat_template_kwargs", "solution", "source", "id"}


@cases
def test_converting_twice_changes_nothing(row, expected):
    once = to_think([row])
    assert to_think(once)[:] == once[:]


@cases
def test_a_stream_gives_the_same_rows(row, expected):
    rows = Dataset.from_list([row])
    assert next(iter(to_think(rows.to_iterable_dataset()))) == to_think(rows)[0]


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
    assert (row["source"], row["id"]) == ("r1-distill", "r1-distill-0")


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
    assert [parts(row) for row in rows][:4] == [CASES[name][1] for name in sources]
    rows.to_json(str(tmp_path / "rows.jsonl"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    for kind, file in [("json", "rows.jsonl"), ("parquet", "rows.parquet")]:
        read = load_dataset(kind, data_files=str(tmp_path / file), split="train", cache_dir=str(tmp_path))
        assert [parts(row) for row in to_think(read)] == [parts(row) for row in rows]


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
    ],
)
def test_mapped_columns(row, mapping, expected):
    assert parts(to_think([row], mapping=mapping)[0]) == expected


DROPPED = {
    "empty answer": assistant("", reasoning_content="R"),
    "reasoning without closing marker": assistant("<think>R"),
    "think markers inside the reasoning or the answer": assistant("Well <think>R</think>A"),
    "tool calls": assistant("A", tool_calls=[{"name": "f"}]),
    "`messages` is not a list of messages with roles": {"content": "A"},
    "a content block of type image": assistant([{"type": "image"}]),
    "the last turn is not the assistant's": user("and?"),
    "`completion` must have a string, a list of parts or None as content, got int.": assistant(4),
}


@pytest.mark.parametrize(("cause", "turn"), DROPPED.items(), ids=DROPPED)
def test_rows_that_cannot_be_converted_are_counted(cause, turn, caplog):
    good = {"messages": [user("Q"), assistant("A")]}
    stream = IterableDataset.from_generator(lambda: iter([good, {"messages": [user("Q"), turn]}, good]))
    with caplog.at_level(logging.WARNING, "think_tools"):
        assert len(list(to_think(stream))) == 2
    assert caplog.messages == [f"`to_think` dropped 1 of 2 rows so far: {cause} (1)."]


def test_dropped_rows_are_reported_with_their_causes(caplog):
    rows = [{"question": q, "answer": a} for q, a in [("Q", "R\n#### 4"), ("", "R\n#### 4"), ("Q", "4"), ("Q", "5")]]
    with caplog.at_level(logging.WARNING, "think_tools"):
        assert [row["id"] for row in to_think(rows)] == ["gsm8k-0"]
    assert caplog.messages == [
        "`to_think` dropped 3 of 4 rows: no `#### answer` at the end of the worked answer (2); empty question (1)."
    ]


ERRORS = {
    "columns nobody knows": (
        [{"problem": "Q", "cot": "R", "final": "A"}],
        None,
        r"`dataset` has the columns \['problem', 'cot', 'final'\], which fit no known set. Known sets: .*Complex_CoT",
    ),
    "reasoning in a column that would not be read": (
        [{"instruction": "Q", "input": "", "output": "A", "thinking": "R"}],
        None,
        r"look like alpaca, which would leave the reasoning in \['thinking'\] out.*`mapping`",
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
        [{"question": "Q", "answer": "4"}],
        None,
        r"dropped 1 of 1 rows: no `#### answer`.*Nothing is left",
    ),
    "no rows": ([], None, r"`dataset` has the columns \[\]"),
}


@pytest.mark.parametrize(("rows", "mapping", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_seen_and_what_to_do(rows, mapping, message):
    with pytest.raises(ValueError, match=message):
        to_think(rows, mapping=mapping)


def test_a_dataset_dict_is_no_data_set():
    with pytest.raises(TypeError, match=r"got DatasetDict. Take one split"):
        to_think(DatasetDict())


def test_schema_cases_of_other_projects(data_folder):
    # The system turn of a conversation stays in our prompt; the case leaves it out.
    keeps_the_system_turn = {"HuggingFaceH4/Multilingual-Thinking"}
    later = {"open-thoughts/OpenThoughts-114k", "simplescaling/s1K", "simplescaling/s1K-1.1"}  # no schema yet
    lines = (data_folder / "cases" / "data_cases.jsonl").read_text().splitlines()
    cases = [case for case in map(json.loads, lines) if case["kind"] == "schema_detect"]
    assert len(cases) >= 8
    for case in cases:
        row, expected = case["input"]["row"], case["expected"]
        if case["name"] in later:
            with pytest.raises(ValueError, match="fit no known set"):
                to_think([row])
            continue
        prompt, *rest = parts(to_think([row])[0])
        if case["name"] in keeps_the_system_turn:
            prompt = prompt[1:]
        assert [prompt, *rest] == [
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
        ("reason_tool_use_50", 18, 18),  # 31 others call tools, one has a think marker in its answer
    ],
)
def test_real_rows(file, rows, thinking, data_folder, tmp_path):
    path = str(data_folder / "data" / f"{file}.jsonl")
    converted = to_think(load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path)))
    assert len(converted) == rows
    assert sum(row["enable_thinking"] for row in converted["chat_template_kwargs"]) == thinking
    assert all(turn["content"].strip() for [turn] in converted["completion"])
    assert not any("<<" in turn["reasoning_content"] for [turn] in converted["completion"] if file.startswith("gsm8k"))
