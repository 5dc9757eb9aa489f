import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace

import pytest

from think_tools.backends import SamplingParams, ScriptedBackend
from think_tools.search import collect, draw_accuracy, draw_training, evaluate
from think_tools.search.evaluate import _intervals


def values(rows, **arguments):
    return {name: metric["value"] for name, metric in evaluate(rows, **arguments)["metrics"].items()}


@pytest.fixture
def math_rows(data_folder):
    text = (data_folder / "data" / "math_samples_8x50.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def first_most_frequent(row):
    return row["extracted"].index(Counter(row["extracted"]).most_common(1)[0][0])


def test_stored_math_samples_give_what_a_hand_computes(math_rows):
    marks = [row["is_correct"] for row in math_rows]
    best = [row["rm_score"].index(max(row["rm_score"])) for row in math_rows]
    found = evaluate(math_rows)
    metrics = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert metrics["pass@1"] == pytest.approx(fmean(fmean(some) for some in marks))
    assert metrics["pass@8"] == pytest.approx(fmean(any(some) for some in marks))
    assert metrics["maj@8"] == pytest.approx(fmean(row["is_correct"][first_most_frequent(row)] for row in math_rows))
    assert metrics["bon@8"] == pytest.approx(fmean(some[i] for some, i in zip(marks, best, strict=True)))
    assert metrics["mixed"] == pytest.approx(fmean(0 < sum(some) < 8 for some in marks))
    assert metrics["headroom"] == pytest.approx(metrics["pass@8"] - metrics["pass@1"])
    assert found["tokens"] == dict.fromkeys(("thinking", "answer", "pruned", "verifier"))
    assert found["truncated"] is None


def test_our_own_grades_of_the_math_samples_are_theirs(math_rows):
    bare = [{name: value for name, value in row.items() if name != "is_correct"} for row in math_rows]
    assert values(bare) == values(math_rows)


ROW = {"solution": "12", "completions": ["12", "13", "13", "<think>6+6</think>12"]}
CASES = {
    "equal answers vote together, however they are written": (
        {"solution": "1/2", "completions": ["2", "0.5", r"\boxed{\frac12}"]},
        {"maj@3": 1.0, "pass@3": 1.0, "pass@1": 2 / 3},
    ),
    "the first answer wins a tie": (ROW, {"maj@4": 1.0}),
    "all pairs are averaged: a tie goes to the first": (ROW, {"maj@2": 0.5, "pass@2": 5 / 6}),
    "a verifier outweighs the majority": (
        {"solution": "7", "completions": ["8", "8", "7"], "scores": [0.2, 0.2, 0.9]},
        {"maj@3": 0.0, "weighted@3": 1.0, "bon@3": 1.0},
    ),
    "logits vote by their softmax, so a bad one harms no answer": (
        {"solution": "7", "completions": ["7", "7", "8"], "rm_score": [-1.0, -1.0, -1.5]},
        {"weighted@3": 1.0, "bon@3": 1.0},
    ),
    "a sample without an answer is not chosen, whatever its score": (
        {"solution": "7", "completions": ["I do not know, sorry.", "7"], "scores": [0.9, 0.1]},
        {"bon@2": 1.0, "weighted@2": 1.0, "maj@2": 1.0},
    ),
    "reasoning that was cut off answers nothing": (
        {"solution": "7", "completions": ["<think>7", "8"], "finish_reason": ["length", "stop"]},
        {"pass@2": 0.0, "all_wrong": 1.0},
    ),
    "its own grades go before ours": ({**ROW, "is_correct": [False, True, True, False]}, {"maj@4": 0.0, "mixed": 1.0}),
    "the short gold answer goes before a worked one": (
        {"solution": "It is 12 because 6+6=12, as one sees.", "answer": "12", "completions": ["12"]},
        {"pass@1": 1.0, "all_right": 1.0},
    ),
    "a search's own answer counts beside its candidates": ({**ROW, "selected": "13"}, {"selected": 0.0, "maj@4": 1.0}),
    "a search without an answer is wrong": ({**ROW, "selected": None}, {"selected": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), CASES.values(), ids=CASES)
def test_metrics_of_one_question(row, expected):
    found = values([row], ks=sorted({int(name.split("@")[1]) for name in expected if "@" in name}) or None)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_column_of_scores_is_named():
    row = {**ROW, "logprob": [-3.0, -0.1, -2.0, -3.0]}
    assert values([row], ks=[4], score="logprob")["bon@4"] == 0.0
    assert "bon@4" not in values([row], ks=[4])


def test_numbers_of_samples_are_powers_of_two_up_to_the_smallest_question():
    short = {"solution": "1", "completions": ["1"] * 3}
    assert [name for name in values([ROW, short]) if name.startswith("pass")] == ["pass@1", "pass@2", "pass@3"]


def test_questions_without_a_gold_answer_are_left_out_and_counted(caplog):
    found = evaluate([ROW, {**ROW, "solution": ""}])
    assert (found["questions"], found["ungraded"]) == (1, 1)
    assert "left out 1 of 2" in caplog.text.replace("leaves out", "left out")


def test_tokens_count_what_a_search_threw_away():
    spent = {"usage": {"completion_tokens": 100, "verifier_tokens": 30}}
    row = {**ROW, "num_tokens": [10] * 4, "num_reasoning_tokens": [7] * 4}
    assert evaluate([{**row, **spent}])["tokens"] == {"thinking": 28, "answer": 12, "pruned": 60, "verifier": 30}
    assert evaluate([row])["tokens"] == {"thinking": 28, "answer": 12, "pruned": 0, "verifier": None}


def test_shares_of_truncated_and_unparsed_samples():
    completions = ["<think>7", "perhaps it is this or that", "12", "12"]
    found = evaluate([{**ROW, "completions": completions, "finish_reason": ["length", "stop", "stop", "length"]}])
    assert (found["truncated"], found["unparsed"]) == (0.5, 0.5)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = random.Random(0)
    hits = 0
    for trial in range(100):
        table = [{"pass@1": float(rng.random() < 0.6)} for _ in range(100)]
        bounds = _intervals(table, 300, trial)["pass@1"]
        hits += bounds["low"] <= 0.6 <= bounds["high"]
    assert 0.9 <= hits / 100 <= 0.99


WRONG = {
    "nothing": ([], {}, "`rows` is empty"),
    "no completions": ([{"solution": "1"}], {}, r"`rows\[0\]` must have \['completions'\]"),
    "a value too few": ([{**ROW, "scores": [1.0]}], {}, r"one value per completion"),
    "scores that only some have": ([{**ROW, "scores": [1.0] * 4}, ROW], {}, r"`rows\[1\]` must have .*'scores'"),
    "scores that are missing": ([{**ROW, "scores": [1.0] * 4}, {**ROW, "scores": None}], {}, r"`rows\[1\]` must have"),
    "answers of a search that only some have": ([{**ROW, "selected": "12"}, ROW], {}, r"`rows\[1\]` .*'selected'"),
    "more samples than there are": ([ROW], {"ks": [8]}, r"`ks` must be from 1 to .* 4, got \[8\]"),
    "no gold answer at all": ([{"completions": ["1"]}], {}, "column `is_correct`"),
    "a score that is none": ([{**ROW, "scores": [1.0, None, 1.0, 1.0]}], {}, "finite numbers"),
    "an answer from nowhere": ([{**ROW, "selected": "99"}], {}, "'99', which none of its completions"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_evaluated_is_said(rows, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(rows, **arguments)


@pytest.mark.slow
def test_a_thousand_problems_of_64_candidates_take_half_a_minute_at_most(capsys):
    rng = random.Random(0)
    forms = (
        r"\boxed{{{}}}",
        r"So $x = \boxed{{\frac{{{}}}{{1}}}}$.",
        "The answer is {}.",
        r"\boxed{{\sqrt{{{}}} + 1}}",
    )
    rows = []
    for _ in range(1000):
        gold = rng.randint(1, 10_000)
        texts = [rng.choice(forms).format(gold + min(3, int(rng.expovariate(1)))) for _ in range(64)]
        rows.append({"solution": str(gold), "completions": texts, "scores": [rng.random() for _ in texts]})
    started = time.process_time(), time.monotonic()
    found = values(rows)
    cpu, wall = time.process_time() - started[0], time.monotonic() - started[1]
    with capsys.disabled():
        print(f"\n1,000 x 64 candidates: {cpu:.1f} s CPU in this process, {wall:.1f} s wall")
    assert found["pass@1"] < found["maj@64"]
    assert cpu < 30


PROBLEMS = [{"question": f"{i}+{i}=?", "answer": str(2 * i)} for i in range(5)]


def adds(messages, prefix, number):
    return f"<think>add</think>{2 * int(messages[-1]['content'].split('+')[0]) + number % 2}"


def test_collected_candidates_are_read_back_as_they_were(tmp_path):
    out = tmp_path / "new" / "candidates.jsonl"
    rows = collect(ScriptedBackend(adds).sample, PROBLEMS, SamplingParams(n=4), out=out)
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == rows
    assert rows[0]["completions"][0] == {"role": "assistant", "reasoning_content": "add", "content": "0"}
    assert values(rows)["pass@1"] == 0.5
    assert evaluate(rows)["tokens"]["thinking"] == 4 * len("<think>add</think>")


def test_the_results_of_a_search_keep_its_answer_scores_and_costs():
    @dataclass(frozen=True)
    class Usage:
        completion_tokens: int = 500
        verifier_tokens: int = 70

    def search(prompts, params):
        samples = ScriptedBackend(adds).sample(prompts, params)
        return [SimpleNamespace(answer="1", candidates=some, scores=[0.1, 0.9], usage=Usage()) for some in samples]

    found = evaluate(collect(search, PROBLEMS[:1], SamplingParams(n=2)))
    assert {name: found["metrics"][name]["value"] for name in ("selected", "bon@2", "maj@2")} == {
        "selected": 0.0, "bon@2": 0.0, "maj@2": 1.0
    }  # fmt: skip
    assert found["tokens"]["pruned"] == 500 - 2 * len("<think>add</think>0.")
    assert found["tokens"]["verifier"] == 70


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    out = tmp_path / "candidates.jsonl"
    first = ScriptedBackend(adds)
    whole = collect(first.sample, PROBLEMS, SamplingParams(n=2), out=out, chunk_size=2)
    text = out.read_bytes()
    for size in (0, 5, text.index(b"\n") + 1, len(text) - 1, len(text)):
        out.write_bytes(text[:size])
        backend = ScriptedBackend(adds)
        assert collect(backend.sample, PROBLEMS, SamplingParams(n=2), out=out, chunk_size=2) == whole
        assert len(backend.calls) == 2 * (len(PROBLEMS) - text[:size].count(b"\n"))
        assert out.read_bytes() == text


def test_more_problems_are_added_to_the_file(tmp_path):
    out = tmp_path / "candidates.jsonl"
    collect(ScriptedBackend(adds).sample, PROBLEMS[:2], SamplingParams(), out=out)
    backend = ScriptedBackend(adds)
    assert len(collect(backend.sample, PROBLEMS, SamplingParams(), out=out)) == 5
    assert len(backend.calls) == 3


def test_a_question_that_comes_twice_is_asked_twice():
    backend = ScriptedBackend(adds)
    rows = collect(backend.sample, [PROBLEMS[1]] * 2, SamplingParams())
    assert [row["completions"][0]["content"] for row in rows] == ["2", "3"]


@pytest.mark.parametrize("other", [b'{"question": "1+1=?"}\n', b"notes", b'{"key": "0123'])
def test_a_file_of_something_else_is_never_touched(tmp_path, other):
    out = tmp_path / "rows.jsonl"
    out.write_bytes(other)
    with pytest.raises(ValueError, match="line 1 is no candidate of this model with these settings"):
        collect(ScriptedBackend(adds).sample, PROBLEMS, SamplingParams(), out=out)
    assert out.read_bytes() == other


def test_candidates_of_other_settings_are_refused(tmp_path):
    out = tmp_path / "candidates.jsonl"
    collect(ScriptedBackend(adds).sample, PROBLEMS, SamplingParams(), out=out, name="a model")
    with pytest.raises(ValueError, match="Name another file, or remove it"):
        collect(ScriptedBackend(adds).sample, PROBLEMS, SamplingParams(temperature=0.5), out=out, name="a model")
    with pytest.raises(ValueError, match="Name another file, or remove it"):
        collect(ScriptedBackend(adds).sample, PROBLEMS, SamplingParams(), out=out, name="another")


def test_chunks_have_seeds_of_their_own():
    seeds = []

    def sample(prompts, params):
        seeds.append(params.seed)
        return ScriptedBackend(adds).sample(prompts, params)

    collect(sample, PROBLEMS, SamplingParams(seed=7), chunk_size=2, system="Be brief.")
    assert seeds == [7, 9, 11]


def test_columns_nobody_knows_are_named():
    with pytest.raises(ValueError, match=r"`problems\[0\]` must have a question .* got the columns \['text'\]"):
        collect(ScriptedBackend(adds).sample, [{"text": "1+1=?"}], SamplingParams())


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "samples"])
def test_pictures(tmp_path, tokens):
    rows = collect(ScriptedBackend(adds).sample, PROBLEMS, SamplingParams(n=4))
    if not tokens:
        rows = [{"solution": row["solution"], "completions": row["completions"]} for row in rows]
    report = evaluate([{**row, "selected": row["completions"][0]["content"]} for row in rows])
    draw_accuracy({"one": report, "two": report}, tmp_path / "curve.png")
    draw_training({0: report, 10: report}, tmp_path / "training.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert (tmp_path / "training.png").stat().st_size > 10_000
