import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from think_tools import split_steps
from think_tools.data import journey, prepare_sft, stream_of_search
from think_tools.data.countdown import countdown_problems
from think_tools.data.journeys import CONNECTORS, plant_errors, slip, verdict
from think_tools.tiny import arithmetic_problems

PROMPT = [{"role": "user", "content": "What?"}]
BACK = "Wait: this step is wrong. Back to: "


def root(*children: dict, **more) -> dict:
    return {"prompt": PROMPT, "solution": "4", "children": list(children), **more}


def right(text: str, *children: dict, **more) -> dict:
    return {"text": text, "children": list(children), **({} if children else {"correct": True}), **more}


def wrong(text: str, *children: dict, **more) -> dict:
    return {"text": text, "children": list(children), "correct": False, **more}


JOURNEYS = {
    "no wrong branch is a shortcut": (root(right("a", right("b"))), {}, ["a", "b"]),
    "a wrong step is tried, remarked on, and left": (
        root(wrong("x"), right("a")),
        {},
        ["(x)", BACK + "the beginning", "a"],
    ),
    "the return names the state by the first line of its step": (
        root(right("a\nmore", wrong("x"), right("b"))),
        {},
        ["a\nmore", "(x)", BACK + "a", "b"],
    ),
    "a state may have a name": (
        root(right("a", wrong("x"), right("b"), name="S1")),
        {},
        ["a", "(x)", BACK + "S1", "b"],
    ),
    "the verifier's own remark is taken": (
        root(wrong("x", remark="1+1 is 2."), right("a")),
        {},
        ["(x)", "Wait: 1+1 is 2. Back to: the beginning", "a"],
    ),
    "at most k wrong branches, the most promising first": (
        root(wrong("x", value=0.1), wrong("y", value=0.3), wrong("z", value=0.2), right("a")),
        {"k": 2},
        ["(y)", BACK + "the beginning", "(z)", BACK + "the beginning", "a"],
    ),
    "k of 0 is the shortcut": (root(wrong("x"), right("a")), {"k": 0}, ["a"]),
    "a wrong branch is left after one step": (
        root(wrong("x", wrong("y")), right("a")),
        {},
        ["(x)", BACK + "the beginning", "a"],
    ),
    "a wrong branch followed to its end returns step by step": (
        root(wrong("x", wrong("y"), wrong("z")), right("a")),
        {"depth": None},
        ["(x)", "(y)", BACK + "x", BACK + "the beginning", "a"],
    ),
    "a branch is wrong if all its leaves are": (
        root({"text": "x", "children": [wrong("y"), wrong("z")]}, right("a")),
        {},
        ["(x)", BACK + "the beginning", "a"],
    ),
    "a branch of unknown leaves is not walked": (
        root({"text": "x", "children": [wrong("y"), {"text": "z"}]}, right("a")),
        {},
        ["a"],
    ),
    "a right step that only led to wrong ones is not called wrong": (
        root({"text": "x", "correct": True, "children": [wrong("y")]}, right("a")),
        {},
        ["a"],
    ),
    "a step marked wrong is wrong even if its leaf came out right": (
        root(wrong("x", right("y")), right("a")),
        {},
        ["(x)", BACK + "the beginning", "a"],
    ),
    "the best right path comes first": (root(right("a", value=0.1), right("b", value=0.9)), {}, ["b"]),
    "Chinese wordings": (
        root(wrong("x"), right("a")),
        {"connectors": CONNECTORS["zh"]},
        ["(x)", "等等：这一步错了。回到：开头", "a"],
    ),
}


@pytest.mark.parametrize(("tree", "options", "expected"), JOURNEYS.values(), ids=JOURNEYS)
def test_a_tree_is_written_as(tree, options, expected):
    row = journey(tree, **options)[0]
    message = row["completion"][0]
    assert message["reasoning_content"].split("\n\n") == [step.strip("()") for step in expected]
    masked = "".join(part["text"] for part in message["parts"] if not part["train"])
    assert masked.split("\n\n")[:-1] == [step.strip("()") for step in expected if step.startswith("(")]
    assert row["num_wrong"] == sum(step.startswith("(") for step in expected)


def test_a_row_has_the_package_s_type_and_parts_that_are_its_reasoning():
    tree = root(wrong("x"), right("a", answer="four"), source="mcts", id="q7")
    [row] = journey(tree)
    assert row["completion"] == [
        {
            "role": "assistant",
            "reasoning_content": f"x\n\n{BACK}the beginning\n\na",
            "content": "four",
            "parts": [{"text": "x\n\n", "train": False}, {"text": f"{BACK}the beginning\n\na", "train": True}],
        }
    ]
    del row["completion"]
    assert row == {
        "prompt": PROMPT,
        "chat_template_kwargs": {"enable_thinking": True},
        "solution": "4",
        "source": "mcts",
        "id": "q7",
        "num_wrong": 1,
    }


def test_there_is_a_row_per_right_leaf_with_its_own_id():
    rows = journey(root(right("a", right("b"), right("c")), wrong("x"), id="q"))
    assert [row["id"] for row in rows] == ["q", "q-1"]
    assert [row["completion"][0]["reasoning_content"].split("\n\n")[-1] for row in rows] == ["b", "c"]


def test_a_tree_without_a_right_leaf_gives_no_row():
    assert journey(root(wrong("x"), {"text": "y"})) == []


def test_the_language_is_the_prompt_s():
    tree = root(wrong("x"), right("a"), prompt=[{"role": "user", "content": "多少？"}])
    assert "等等" in journey(tree)[0]["completion"][0]["reasoning_content"]


def test_a_long_state_is_named_by_its_beginning():
    tree = root(right("a" * 61, wrong("x"), right("b")))
    assert f"Back to: {'a' * 59}…\n" in journey(tree)[0]["completion"][0]["reasoning_content"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"children": []}, r"`tree` must have the messages of its question as `prompt`, got the keys \['children'\]"),
        ({"prompt": PROMPT, "children": [right("a")]}, "right leaf without `answer`, and its root has no `solution`"),
    ],
)
def test_an_unusable_tree_is_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        journey(tree)


NODES = st.recursive(
    st.builds(
        lambda text, correct: {"text": text, "correct": correct},
        st.sampled_from("abc"),
        st.sampled_from([True, False, None]),
    ),
    lambda nodes: st.builds(
        lambda text, children, value: {"text": text, "children": children, "value": value},
        st.sampled_from("def"),
        st.lists(nodes, min_size=1, max_size=3),
        st.sampled_from([None, 0.1, 0.9]),
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(NODES, max_size=3), st.integers(0, 2), st.sampled_from([1, 2, None]))
def test_every_journey_ends_right_and_trains_no_wrong_step(children, k, depth):
    tree = root(*children)
    rows = journey(tree, k=k, depth=depth)
    assert bool(rows) == (verdict(tree) is True)
    for row in rows:
        message = row["completion"][0]
        assert "".join(part["text"] for part in message["parts"]) == message["reasoning_content"]
        assert message["parts"][-1]["train"]
        returns = message["reasoning_content"].count("Back to: ")
        assert row["num_wrong"] == returns
        assert k or not returns


def test_prepare_sft_masks_the_wrong_steps_and_trains_the_corrections(tokenizer):
    rows = journey(root(wrong("x = 3"), right("y = 4")))
    [row] = prepare_sft(rows, tokenizer, max_length=None, loss="parts")
    trained = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert trained == f"<think>\n{BACK}the beginning\n\ny = 4\n</think>\n\n4<|im_end|>"


# --- errors planted in a clean trace ---


SLIPS = {
    "a result after an equals sign": ("3*2+0=6", {"3*2+0=5", "3*2+0=7", "3*2+0=16"}),
    "a result after an arrow": ("so -> 26", {"so -> 16", "so -> 25", "so -> 27", "so -> 36"}),
    "never below zero": ("1-1=0", {"1-1=1", "1-1=10"}),
    "white space around goes": ("  2+2=4\n\n", {"2+2=3", "2+2=5", "2+2=14"}),
}


@pytest.mark.parametrize(("step", "possible"), SLIPS.values(), ids=SLIPS)
def test_a_slip_changes_one_result(step, possible):
    slips = [slip(step, random.Random(seed)) for seed in range(40)]
    assert {found[0] for found in slips if found} == possible
    assert all(found and found[0].endswith(found[1]) for found in slips)


def test_a_step_without_a_result_cannot_slip():
    assert slip("Compute 12*13.", random.Random(0)) is None


def test_planted_errors_leave_the_right_path_as_it_was():
    row = arithmetic_problems(n=1, seed=3)[0]
    clean = row["completion"][0]["reasoning_content"]
    tree = plant_errors(row, rate=1.0)
    [shortcut] = journey(tree, k=0)
    assert split_steps(shortcut["completion"][0]["reasoning_content"]) == split_steps(clean)
    assert journey(tree)[0]["num_wrong"] == len(split_steps(clean)) - 1  # `Compute 12*13.` has no result
    assert journey(plant_errors(row, rate=0.0))[0]["num_wrong"] == 0


def test_errors_may_be_made_by_a_function():
    row = arithmetic_problems(n=1)[0]
    tree = plant_errors(row, rate=1.0, spoil=lambda step, rng: (step.replace("6", "9"), "6"))
    assert "Wait: 6 is wrong." in journey(tree)[0]["completion"][0]["reasoning_content"]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({}, {"rate": 1.5}, r"`rate` must be between 0 and 1, got 1.5"),
        ({"reasoning_content": None}, {}, "`row` must have reasoning to plant errors in"),
    ],
)
def test_errors_cannot_be_planted(row, options, message):
    answer = {"role": "assistant", "reasoning_content": "1+1=2", "content": "2", **row}
    with pytest.raises(ValueError, match=message):
        plant_errors({"prompt": PROMPT, "completion": [answer]}, **options)


# --- stream of search ---


def check_solution(numbers: list[int], target: int, answer: str) -> None:
    """Operations such as `12*2=24, 24+1=25` that use each number once and end at the target."""
    left = Counter(numbers)
    for operation in answer.split(", "):
        found = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", operation)
        assert found, operation
        a, b, result = int(found[1]), int(found[3]), int(found[4])
        assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[found[2]] == result
        left -= Counter([a]) + Counter([b])
        left += Counter([result])
    assert left == Counter([target])


def test_countdown_problems_of_the_two_splits_share_no_target():
    train, test = countdown_problems("train", n=200), countdown_problems("test", n=50)
    assert not set(train["target"]) & set(test["target"])
    assert all(10 <= target <= 100 for target in train["target"])
    assert set(map(len, train["numbers"])) == {3, 4}
    assert countdown_problems(n=5, seed=1)[:] == countdown_problems(n=5, seed=1)[:]
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test', got 'dev'"):
        countdown_problems("dev")  # pyright: ignore[reportArgumentType]


def test_searches_that_reach_the_target_are_right_and_the_others_are_kept():
    rows = stream_of_search(countdown_problems(n=150))
    assert len(rows) == 150
    assert {search.split("-")[0] for search in rows["search"]} == {"dfs", "bfs"}
    assert set(rows["heuristic"]) == {"sum", "product"}
    solved = [row for row in rows if row["rating"] > 0]
    assert 75 < len(solved) < 150
    for row in rows:
        message = row["completion"][0]
        reached = message["reasoning_content"].endswith(f"{row['target']},{row['target']} equal: Goal Reached")
        assert reached == (message["content"] != "No solution found.")
        assert reached or message["reasoning_content"].endswith("No solution found.")
        assert reached or row["rating"] == 0
        if reached:
            check_solution(row["numbers"], row["target"], message["content"])


def test_a_search_reads_as_in_the_paper():
    text = next(
        row["completion"][0]["reasoning_content"]
        for seed in range(20)
        for row in stream_of_search([{"numbers": [2, 3, 4], "target": 14}], seed=seed)
        if row["search"] == "dfs" and row["heuristic"] == "sum"
    )
    assert text.splitlines()[:4] == [
        "Current State: 14:[2, 3, 4], Operations: []",
        "Exploring Operation: 4*3=12, Resulting Numbers: [2, 12]",
        "Generated Node #0,0: 14:[2, 12] Operation: 4*3=12",
        "Moving to Node #0,0",
    ]
    assert text.splitlines()[-2:] == [
        "Exploring Operation: 12+2=14, Resulting Numbers: [14]",
        "14,14 equal: Goal Reached",
    ]


def test_every_move_is_followed_by_the_state_moved_to():
    went_back = 0
    for row in stream_of_search(countdown_problems(n=60)):
        lines = row["completion"][0]["reasoning_content"].splitlines()
        states = {"0": lines[0]}
        for line, following in pairwise(lines):
            if line.startswith("Moving to Node #"):
                assert following.startswith("Current State")
                name = line.removeprefix("Moving to Node #")
                went_back += name in states
                assert states.setdefault(name, following) == following
    assert went_back > 50


def test_a_search_gives_up_after_max_operations():
    problems = countdown_problems(n=40)
    rows = stream_of_search(problems, max_operations=5)
    explored = [row["completion"][0]["reasoning_content"].count("Exploring Operation") for row in rows]
    assert max(explored) == 5
    assert any(count == 5 and rating == 0 for count, rating in zip(explored, rows["rating"], strict=True))


def test_a_prompt_that_is_there_is_kept():
    [row] = stream_of_search([{"numbers": [4, 6], "target": 10, "prompt": PROMPT}])
    assert row["prompt"] == PROMPT
    [row] = stream_of_search([{"numbers": [4, 6], "target": 10}])
    assert row["prompt"][0]["content"] == "Combine 4, 6 with + - * / to make 10. Use each number exactly once."


def test_the_arithmetic_task_gets_errors_that_are_repaired():
    rows = stream_of_search(arithmetic_problems(n=20), error_rate=0.5)
    assert 10 < sum(rows["num_wrong"]) < 60
    for row, clean in zip(rows, arithmetic_problems(n=20), strict=True):
        message = row["completion"][0]
        assert message["content"] == clean["solution"] == row["solution"]
        assert row["language"] == clean["language"]
        assert row["rating"] == pytest.approx(4 / (4 + row["num_wrong"]))
        assert message["reasoning_content"].count("回到" if row["language"] == "zh" else "Back to") == row["num_wrong"]
    assert rows[:] == stream_of_search(arithmetic_problems(n=20), error_rate=0.5)[:]


def test_rows_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"`dataset` must have the columns 'numbers' and 'target', or 'completion'"):
        stream_of_search([{"question": "2+2?"}])
