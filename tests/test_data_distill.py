import asyncio
import json
import logging
import re
from functools import partial

import pytest
from benchmarks.distill import survival
from datasets import Dataset, IterableDataset, disable_progress_bars, enable_progress_bars
from openai_server import echo, flaky, question, refuses, running_server, says

from think_tools.backends import SamplingParams
from think_tools.data import distill, to_think
from think_tools.prompts import few_shot, reflect_and_verify, zero_shot

ROWS = [{"prompt": f"q{i}", "solution": str(i), "level": i} for i in range(5)]


@pytest.fixture(autouse=True)
def no_bar():
    disable_progress_bars()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "rows.jsonl"


def run(script, dataset, out, *, model="m", **options):
    """The rows, and the requests that they took."""
    with running_server(script) as server:
        rows = distill(dataset, model, out=out, base_url=server.url, **{"backoff": 0.01, **options})
    return rows, server.bodies


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_of_the_packages_type_and_keep_the_columns(out):
    rows, _ = run(echo, ROWS, out, n=2)
    assert [(row["id"], row["sample"], row["level"]) for row in rows] == [
        (f"m-{i}", sample, i) for i in range(5) for sample in (0, 1)
    ]
    first = rows[0]
    assert first["prompt"] == [{"role": "user", "content": "q0"}]
    assert first["completion"] == [
        {"role": "assistant", "reasoning_content": "thinking about q0", "content": "answer to q0"}
    ]
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assert (first["solution"], first["source"], first["model"]) == ("0", "m", "m")
    assert (first["status"], first["finish_reason"], first["rationalised"]) == ("complete", "stop", False)
    assert (first["num_prompt_tokens"], first["num_tokens"]) == (10, 20)
    assert sorted(lines(out), key=lambda row: row["key"]) == sorted(rows, key=lambda row: row["key"])


def test_columns_have_the_types_of_converted_rows(out):
    rows, _ = run(lambda body, number: says("4"), ROWS, out)
    converted = to_think([{"question": "2+3?", "answer": "2+3\n#### 5"}])
    names = ["prompt", "completion", "chat_template_kwargs", "solution", "source", "id"]
    assert {name: rows.features[name] for name in names} == {name: converted.features[name] for name in names}


def test_rows_that_were_converted_keep_source_id_and_template_arguments(out):
    row = {
        **{"prompt": [{"role": "user", "content": "q"}], "source": "gsm8k", "id": "gsm8k-7", "solution": None},
        **{"chat_template_kwargs": {"tools": "none", "enable_thinking": False}},
        "completion": [{"role": "assistant", "reasoning_content": None, "content": "old"}],
    }
    [made], _ = run(echo, [row], out)
    assert (made["source"], made["id"]) == ("gsm8k", "gsm8k-7")
    assert made["chat_template_kwargs"] == {"tools": "none", "enable_thinking": True}
    assert made["completion"][0]["content"] == "answer to q"


def test_cut_answers_are_kept_and_told_apart(out):
    [row], _ = run(lambda body, number: says("<think>so", finish_reason="length"), ROWS[:1], out)
    assert (row["status"], row["finish_reason"]) == ("truncated", "length")


def test_nothing_is_asked_twice(out):
    first, bodies = run(echo, ROWS, out)
    again, asked_again = run(echo, ROWS, out)
    assert (len(bodies), len(asked_again)) == (5, 0)
    assert again.to_list() == first.to_list()


CHANGES = {
    "another model": ({"model": "other"}, 5),
    "other parameters": ({"params": SamplingParams(temperature=0.1)}, 5),
    "thinking": ({"thinking": True}, 5),
    "a prompt": ({"prompt": zero_shot}, 5),
    "a hint": ({"hint": "solution"}, 5),
    "another field": ({"extra_body": {"min_p": 0.1}}, 5),
    "one more sample": ({"n": 2}, 5),
    "another concurrency": ({"concurrency": 2}, 0),
}


@pytest.mark.parametrize(("change", "num_new"), CHANGES.values(), ids=CHANGES)
def test_what_changes_the_answer_is_asked_anew(out, change, num_new):
    run(echo, ROWS, out)
    rows, bodies = run(lambda body, number: says("4", reasoning="a"), ROWS, out, **change)
    assert len(bodies) == num_new
    assert len(rows) == 5 * change.get("n", 1)
    assert len(lines(out)) == 5 + num_new


@pytest.mark.parametrize(
    "left", [1, 40, -2, -1], ids=["a byte", "a piece", "all but a bracket", "all but the line end"]
)
def test_a_torn_last_line_is_mended(out, left):
    whole, _ = run(echo, ROWS, out, concurrency=1)
    *before, last = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(before) + last[:left])
    rows, bodies = run(echo, ROWS, out)
    assert len(bodies) == (0 if left == -1 else 1)
    assert rows.to_list() == whole.to_list()
    assert len(lines(out)) == 5


@pytest.mark.parametrize("text", ['{"question": "2+2?"}\n', '{"question": "2+2?"}', "[1]", "notes", "no JSON\n"])
def test_a_file_of_something_else_is_left_alone(out, text):
    out.write_text(text)
    with pytest.raises(ValueError, match=r"`out` is .*rows.jsonl, whose line 1 is no row of `distill`: name another"):
        run(echo, ROWS, out)
    assert out.read_text() == text


def test_a_question_that_comes_twice_is_asked_twice(out):
    rows, bodies = run(echo, [{"prompt": "q", "level": level} for level in (1, 2)], out)
    assert len(bodies) == 2
    assert [row["level"] for row in rows] == [1, 2]
    assert len(set(rows["key"])) == 2


def test_no_row_is_lost_on_a_bad_server(out):
    rows, bodies = run(flaky(1), [{"prompt": f"q{i}"} for i in range(120)], out)
    assert [row["completion"][0]["content"] for row in rows] == [f"answer to q{i}" for i in range(120)]
    assert len(bodies) > 120


@pytest.mark.slow
def test_no_row_is_lost_or_repeated_by_kill_9():
    assert survival(n=600, kills=2) == (600, 600, 600)


def test_failures_are_written_down_with_the_reason_and_asked_again(out, caplog):
    def refuse_two(body, number):
        return refuses(400, "too long") if question(body) in ("q1", "q3") else echo(body)

    rows, _ = run(refuse_two, ROWS, out)
    failed = lines(out.with_suffix(".failed.jsonl"))
    assert [row["level"] for row in rows] == [0, 2, 4]
    assert sorted(row["id"] for row in failed) == ["m-1", "m-3"]
    assert "HTTP 400" in failed[0]["error"]
    assert "2 requests failed, the next run asks for them again: HTTP 400: " in caplog.text
    rows, bodies = run(echo, ROWS, out)
    assert sorted(map(question, bodies)) == ["q1", "q3"]
    assert rows["level"] == [0, 1, 2, 3, 4]
    assert lines(out.with_suffix(".failed.jsonl")) == []


@pytest.mark.parametrize("num_rows", [3, 200])
def test_a_run_that_cannot_succeed_gives_up(out, num_rows):
    arrived = []

    def refuse(body, number):
        arrived.append(number)
        return refuses(401, "bad key")

    with pytest.raises(ConnectionError, match=r"`distill` gave up. \d+ requests failed.* HTTP 401: .*bad key"):
        run(refuse, [{"prompt": f"q{i}"} for i in range(num_rows)], out, concurrency=4)
    assert min(num_rows, 50) <= len(arrived) <= min(num_rows, 53)  # three may be in flight
    assert out.read_bytes() == b""


# Ten rows of 30 tokens each, of which 10 are the prompt's.
LIMITS = {
    "tokens": ({"max_tokens_total": 120}, "`max_tokens_total`=120", {"max_tokens_total": 10_000}),
    "cost": ({"max_cost": 9.9e-5, "price": (0.5, 1)}, "`max_cost`=9.9e-05", {"max_cost": 1, "price": (0.5, 1)}),
}


@pytest.mark.parametrize(("limit", "said", "higher"), LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_limit_stops_and_a_higher_one_goes_on(out, caplog, limit, said, higher, concurrency):
    questions = [{"prompt": f"q{i}"} for i in range(10)]
    rows, bodies = run(echo, questions, out, concurrency=concurrency, **limit)
    assert len(rows) == len(bodies) == 4
    assert f"`distill` stopped at {said}; raise it to go on." in caplog.text
    _, bodies = run(echo, questions, out, **limit)
    assert bodies == []
    rows, bodies = run(echo, questions, out, **higher)
    assert (len(rows), len(bodies)) == (10, 6)


def test_a_limit_of_nothing_asks_nothing(out):
    rows, bodies = run(echo, ROWS, out, max_cost=0, price=(1, 1))
    assert (len(rows), len(bodies)) == (0, 0)


def test_shards_part_the_rows_among_files(out):
    made = [run(echo, ROWS, out, shard=(i, 2), n=2)[0] for i in range(2)]
    names = sorted(path.name for path in out.parent.glob("rows-*-of-*.jsonl") if "failed" not in path.name)
    assert names == ["rows-00000-of-00002.jsonl", "rows-00001-of-00002.jsonl"]
    assert [sorted(set(rows["level"])) for rows in made] == [[0, 2, 4], [1, 3]]
    out.write_bytes(b"".join((out.parent / name).read_bytes() for name in names))
    rows, bodies = run(echo, ROWS, out, n=2)
    assert (len(rows), len(bodies)) == (10, 0)


def test_a_hint_makes_marked_reasoning_and_drops_what_cites_it(out):
    def script(body, number):
        assert "the right answer is:\n" in question(body)
        cites = "\n3\n" in question(body)
        return says("<think>" + ("The given answer is 3." if cites else "One by one.") + "</think>so", reasoning="Hm.")

    rows, _ = run(script, ROWS, out, hint="solution")
    assert rows["level"] == [0, 1, 2, 4]
    assert {row["completion"][0]["reasoning_content"] for row in rows} == {"One by one."}
    assert set(rows["rationalised"]) == {True}
    assert rows[0]["prompt"] == [{"role": "user", "content": "q0"}]
    assert [row["error"] for row in lines(out.with_suffix(".failed.jsonl"))] == ["the reasoning cites the hint"]


def test_a_hint_without_reasoning_is_a_failure(out, caplog):
    run(lambda body, number: says("4"), ROWS, out, hint="solution")
    assert "no reasoning was written for the hint (5)" in caplog.text


EXAMPLE = {
    "prompt": [{"role": "user", "content": "1+1?"}],
    "completion": [{"role": "assistant", "reasoning_content": "1 and 1", "content": "2"}],
}


@pytest.mark.parametrize("prompt", [zero_shot, reflect_and_verify, partial(few_shot, examples=[EXAMPLE])])
def test_a_prompt_is_sent_and_not_kept(out, prompt):
    rows, bodies = run(lambda body, number: says("<think>a</think>b"), ROWS[:1], out, prompt=prompt)
    assert "between <think> and </think>" in question(bodies[0])
    assert rows[0]["prompt"] == [{"role": "user", "content": "q0"}]
    assert rows[0]["completion"] == [{"role": "assistant", "reasoning_content": "a", "content": "b"}]


def test_with_thinking_off_rows_are_the_models_own_answers(out, caplog):
    def script(body, number):
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        return echo(body) if question(body) == "q2" else says("<think>\n\n</think>\n\n4")

    rows, _ = run(script, ROWS, out, thinking=False)
    assert rows["level"] == [0, 1, 3, 4]
    assert rows[0]["completion"] == [{"role": "assistant", "reasoning_content": None, "content": "4"}]
    assert rows[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "the model thought although `thinking=False` (1)" in caplog.text


FORMS = {
    "Dataset": Dataset.from_list(ROWS),
    "IterableDataset": Dataset.from_list(ROWS).to_iterable_dataset(),
    "a stream of unknown columns": IterableDataset.from_generator(lambda: iter(ROWS)),
}


@pytest.mark.parametrize("dataset", FORMS.values(), ids=FORMS)
def test_any_data_set_will_do(out, dataset):
    rows, _ = run(echo, dataset, out)
    assert rows["level"] == [0, 1, 2, 3, 4]


def test_it_works_in_a_notebook(out):
    async def cell():
        return distill(ROWS, "m", out=out, base_url=server.url)

    with running_server() as server:
        assert len(asyncio.run(cell())) == 5


def test_the_bar_tells_speed_cost_and_failures(out, capsys):
    enable_progress_bars()
    try:
        run(lambda body, number: refuses(400) if number == 0 else echo(body), ROWS, out, price=(1000, 1000))
    finally:
        disable_progress_bars()
    assert re.search(r"5/5 .*tokens/s=[\d,]+, cost=0\.12, failed=1", capsys.readouterr().err)


def test_no_rows_are_no_error(out, caplog):
    with caplog.at_level(logging.WARNING):
        rows, _ = run(echo, Dataset.from_dict({"prompt": []}), out)
    assert len(rows) == 0
    assert caplog.text == ""


MISTAKES = {
    "no question": (
        {"dataset": [{"question": "q"}]},
        "`dataset` must have the columns ['prompt'], got ['question']. Convert it with `to_think`, or rename the "
        'column with the question: dataset.rename_column("question", "prompt").',
    ),
    "no such hint": ({"hint": "gold"}, "`dataset` must have the columns ['gold'], got "),
    "an empty hint": (
        {"dataset": [{"prompt": "q", "solution": ""}], "hint": "solution"},
        "`dataset[0]` has no 'solution' to hint at: filter such rows out first.",
    ),
    "two ways to ask": (
        {"hint": "solution", "prompt": zero_shot},
        "`hint` and `prompt` both say what to ask, give one of them.",
    ),
    "a cost without price": (
        {"max_cost": 1},
        "`max_cost` needs `price`, the cost of a million tokens of prompts and of answers.",
    ),
    "a shard too many": ({"shard": (2, 2)}, "`shard` must be (i, k) with 0 <= i < k, got (2, 2)."),
    "greedy samples": ({"n": 2, "params": SamplingParams(temperature=0)}, "`n` must be 1 with `temperature=0`, got 2"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_before_anything_is_asked(out, arguments, message):
    with running_server() as server, pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        distill(**{"dataset": ROWS, "model": "m", "out": out, "base_url": server.url, **arguments})
    assert server.bodies == []
