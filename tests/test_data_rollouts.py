import json
import logging
from functools import partial

import pytest
from datasets import Dataset

from think_tools import parse
from think_tools.backends import Candidate, SamplingParams
from think_tools.data import apply_filters, label_steps, select
from think_tools.data.rollouts import rejection_sample, sample_candidates, verified_steps


def question(text: str = "2+2?", solution: str | None = "4", **more) -> dict:
    return {"prompt": [{"role": "user", "content": text}], "solution": solution, "id": text, **more}


def trace(reasoning: str | None, answer: str, **more) -> dict:
    message = {"role": "assistant", "reasoning_content": reasoning, "content": answer}
    return question(**{"completion": [message], **more})


def candidate(text: str, finished: bool = True) -> Candidate:
    return Candidate(text, parse(text, finished=finished), "stop" if finished else "length", len(text), 0)


OUTPUTS = {
    "a text": ("<think>r</think>4", "r", "4", "complete", True),
    "a message": ({"role": "assistant", "reasoning_content": "r", "content": "5"}, "r", "5", "complete", False),
    "messages": ([{"role": "assistant", "content": "So \\boxed{4}"}], None, "So \\boxed{4}", "no_think", True),
    "a candidate of a backend": (candidate("<think>r</think>4"), "r", "4", "complete", True),
    "a candidate that was cut": (candidate("<think>it is 4", finished=False), "it is 4", "", "truncated", False),
}


@pytest.mark.parametrize(("output", "reasoning", "answer", "status", "correct"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_candidate_may_be(output, reasoning, answer, status, correct):
    [row] = sample_candidates([question()], lambda prompts: [[output]])
    assert row["completion"] == [{"role": "assistant", "reasoning_content": reasoning, "content": answer}]
    assert (row["status"], row["correct"]) == (status, correct)
    assert row["chat_template_kwargs"] == {"enable_thinking": reasoning is not None}


class ScriptedBackend:
    """Answers with the same texts whatever it is asked."""

    def sample(self, prompts: list, params: SamplingParams) -> list[list[Candidate]]:
        return [
            [candidate(f"<think>{prompt[0]['content']} {i}</think>4") for i in range(params.n)] for prompt in prompts
        ]


def test_the_candidates_of_a_question_follow_each_other_and_keep_its_columns():
    rows = sample_candidates(
        Dataset.from_list([question("2+2?", level=1), question("1+2?", "3", level=2)]),
        partial(ScriptedBackend().sample, params=SamplingParams(n=2)),
    )
    assert rows["id"] == ["2+2?", "2+2?", "1+2?", "1+2?"]
    assert rows["sample"] == [0, 1, 0, 1]
    assert rows["level"] == [1, 1, 2, 2]
    assert rows["correct"] == [True, True, False, False]
    assert rows[3]["completion"][0]["reasoning_content"] == "1+2? 1"


def test_without_a_gold_answer_nobody_knows_what_is_right():
    rows = [{key: value for key, value in question().items() if key != "solution"}]
    assert sample_candidates(rows, lambda prompts: [["4"]])["correct"] == [None]


def test_another_reward_may_grade_and_reads_the_columns():
    def no_longer_than(completions, limit, **columns):
        return [float(len(c[0]["content"]) <= most) for c, most in zip(completions, limit, strict=True)]

    rows = sample_candidates([question(limit=2)], lambda prompts: [["ab", "abc"]], reward=no_longer_than)
    assert rows["correct"] == [True, False]


@pytest.mark.parametrize(
    ("rows", "outputs", "message"),
    [
        ([{"question": "2+2?"}], [["4"]], r"`dataset` must have the column 'prompt', got \['question'\]"),
        ([question()], [], r"`sample` must give a list of candidates per prompt, got 0 for 1"),
    ],
)
def test_candidates_cannot_be_sampled(rows, outputs, message):
    with pytest.raises(ValueError, match=message):
        sample_candidates(rows, lambda prompts: outputs)


def test_stored_candidates_are_graded_as_their_source_graded_them(data_folder):
    lines = (data_folder / "data" / "math_samples_8x50.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    stored = [json.loads(line) for line in lines]
    questions = [question(row["problem"], row["answer"]) for row in stored]
    rows = sample_candidates(questions, lambda prompts: [row["completions"] for row in stored])
    known = [correct for row in stored for correct in row["is_correct"]]
    assert len(rows) == 12 * 8
    assert rows["correct"] == known


# --- rejection sampling ---


def test_rejection_sampling_keeps_what_is_whole_right_and_new(caplog):
    rows = [
        trace("a", "4"),
        trace(None, "4"),
        trace("b", "5"),
        trace("a", "4"),
        trace("cut", "4", finish_reason="length"),
        trace("a", "4", id="of another question", prompt=[{"role": "user", "content": "1+3?"}]),
        trace("c", "4", solution=None),
        trace("d", ""),
    ]
    rows = [{"finish_reason": "stop", **row} for row in rows]
    with caplog.at_level(logging.WARNING):
        kept = rejection_sample(rows)
    texts = [row["completion"][0]["reasoning_content"] for row in kept]
    assert texts == ["a", None, "a"]
    assert "dropped 5 of 8 rows" in caplog.text
    for cause in ("wrong (1)", "the same as another candidate (1)", "cut (1)", "no gold answer to read (1)"):
        assert cause in caplog.text


def test_nothing_right_is_an_error():
    with pytest.raises(ValueError, match=r"`rejection_sample` dropped 1 of 1 rows: wrong \(1\)"):
        rejection_sample([trace("a", "5")])


# --- every step verified ---


def test_a_trace_is_kept_if_every_step_passes():
    seen = []

    def verify(prompts, steps):
        seen.append((prompts, steps))
        return [[0.2 if "bad" in step else 0.9 for step in some] for some in steps]

    rule = verified_steps(verify)
    rows = [trace("good\n\ngood", "4"), trace("good\n\nbad\n\ngood", "4"), trace(None, "4")]
    found = rule.annotate(rows)
    assert [(note["value"], note["keep"]) for note in found] == [(0.9, True), (0.2, False), (None, None)]
    assert found[1]["reason"] == "a step below 0.5"
    assert seen == [([row["prompt"] for row in rows], [["good\n\n", "good"], ["good\n\n", "bad\n\n", "good"], []])]
    assert verified_steps(verify, threshold=0.1)(rows[1])["keep"]


def test_process_verified_traces_are_selected():
    rule = verified_steps(lambda prompts, steps: [["bad" not in step for step in some] for some in steps])
    annotated, report = apply_filters([trace("good\n\ngood", "4"), trace("good\n\nbad", "4")], [rule])
    assert [row["completion"][0]["reasoning_content"] for row in select(annotated)] == ["good\n\ngood"]
    assert report["verified_steps"]["reasons"] == {"a step below 0.5": 1}


def test_a_verifier_must_score_every_step():
    with pytest.raises(ValueError, match="`verify` must give a list of scores for each trace, one score per step"):
        verified_steps(lambda prompts, steps: [[1.0]])(trace("a\n\nb", "4"))


# --- labels by roll-outs ---


class ScriptedModel:
    """
    Goes on right until the reasoning holds `bad`; then it is wrong for ever. `luck` says which of 4 roll-outs from a
    good reasoning are right.
    """

    def __init__(self, luck: tuple[bool, ...] = (True, True, False, True)):
        self.luck = luck
        self.asked: list[str] = []

    def __call__(self, prompts: list, reasonings: list[str]) -> list[list[str]]:
        self.asked += reasonings
        return [[self.go_on("bad" not in text and lucky) for lucky in self.luck] for text in reasonings]

    def go_on(self, right: bool) -> str:
        return f"and so on.\n</think>\n\n{4 if right else 5}"


GOOD_THEN_BAD = ["a\n\n", "b\n\n", "bad\n\n", "c\n\n", "d"]


def test_every_step_is_labelled_by_its_roll_outs():
    model = ScriptedModel()
    [row] = label_steps([trace("".join(GOOD_THEN_BAD), "5", source="s")], model)
    assert row == {
        "prompt": "2+2?",
        "completions": GOOD_THEN_BAD,
        "labels": [True, True, False, False, False],
        "values": [0.75, 0.75, 0.0, 0.0, 0.0],
        "messages": [{"role": "user", "content": "2+2?"}],
        "correct": False,
        "solution": "4",
        "source": "s",
        "id": "2+2?",
    }
    assert model.asked == ["".join(GOOD_THEN_BAD[:n]) for n in range(1, 6)]


@pytest.mark.parametrize("first_wrong", range(9))
def test_binary_search_finds_the_first_wrong_step_with_fewer_roll_outs(first_wrong):
    steps = ["a\n\n"] * 8
    if first_wrong < 8:
        steps[first_wrong] = "bad\n\n"
    model = ScriptedModel()
    [row] = label_steps([trace("".join(steps).strip(), "5")], model, search="binary")
    assert row["labels"] == [i < first_wrong for i in range(8)]
    assert len(model.asked) <= 4  # not 8
    assert [value is None for value in row["values"]].count(False) == len(model.asked)


def test_binary_search_runs_all_traces_side_by_side_and_no_right_one():
    calls = []

    def model(prompts, reasonings):
        calls.append(len(reasonings))
        return [["</think>5"] for _ in reasonings]

    rows = [trace("a\n\nb\n\nc\n\nd", "5"), trace("a\n\nb\n\nc", "4"), trace("a\n\nb", "5")]
    labelled = label_steps(rows, model, search="binary")
    assert labelled["labels"] == [[False] * 4, [True] * 3, [False] * 2]
    assert calls == [2, 2, 1]


def test_roll_outs_that_are_cut_off_are_wrong():
    [row] = label_steps([trace("a", "5")], lambda prompts, reasonings: [["so it must be 4"]])
    assert (row["labels"], row["values"]) == ([False], [0.0])


def test_only_rows_on_which_the_judge_agrees_are_kept(caplog):
    rows = [trace("".join(GOOD_THEN_BAD), "5", id="agrees"), trace("bad\n\na", "5", id="disagrees"), trace("a", "4")]
    with caplog.at_level(logging.WARNING):
        labelled = label_steps(rows, ScriptedModel(), judge=lambda prompts, steps: [2, 1, None])
    assert labelled["id"] == ["agrees", "2+2?"]
    assert "dropped 1 of 3 rows: the judge and the roll-outs disagree (1)" in caplog.text


def test_rows_that_cannot_be_labelled_are_counted(caplog):
    model = ScriptedModel()
    rows = [trace("a", "4"), trace(None, "4"), trace("a", "4", solution=None)]
    with caplog.at_level(logging.WARNING):
        labelled = label_steps(rows, model)
    assert len(labelled) == 1
    assert "dropped 2 of 3 rows" in caplog.text
    assert "no reasoning (1)" in caplog.text
    assert "no gold answer to read (1)" in caplog.text
    assert model.asked == ["a"]


def test_a_row_said_to_be_wrong_without_a_gold_answer_is_not_labelled_by_it():
    with pytest.raises(ValueError, match=r"dropped 1 of 1 rows: no gold answer to read \(1\)"):
        label_steps([trace("a", "5", solution=None, correct=False)], ScriptedModel())


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([trace("a", "4")], {"search": "linear"}, "`search` must be 'all' or 'binary', got 'linear'"),
        ([question()], {}, r"`dataset` must have 'prompt' and 'completion', got \['prompt', 'solution', 'id'\]"),
        ([trace("a", "4")], {"sample": lambda prompts, texts: [[]]}, r"for each of 1 reasonings, got \[0\] texts"),
    ],
)
def test_steps_cannot_be_labelled(rows, options, message):
    with pytest.raises(ValueError, match=message):
        label_steps(rows, **{"sample": ScriptedModel(), **options})
