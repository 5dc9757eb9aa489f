import json
import math

import numpy as np
import pytest
from datasets import Dataset
from test_recipes import RECIPES, SMALL, load_recipe
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    EvalPrediction,
)
from trl import ModelConfig, RewardConfig, TrlParser

from think_tools.search import OutcomeVerifier, ProcessVerifier


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Rows read from files are kept in the test's folder, not in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def label():
    return load_recipe("label_steps.py")


@pytest.fixture(scope="module")
def train():
    return load_recipe("train_verifier.py")


def parse(recipe, name, *others, flags=()):
    return TrlParser((vars(recipe)[name], *others)).parse_args_and_config(list(map(str, flags)))


def message(content, reasoning=None):
    return [{"role": "assistant", "reasoning_content": reasoning, "content": content}]


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_a_config_of_a_verifier_is_read_and_says_what_is_left_out(train, kind, tmp_path):
    path = RECIPES / f"tiny/{kind}_verifier.yaml"
    flags = ["--config", path, "--output_dir", tmp_path]
    args, training_args, _ = parse(train, "VerifierArguments", RewardConfig, ModelConfig, flags=flags)
    assert "max_length:" in path.read_text(encoding="utf-8").split()
    assert training_args.max_length == 512
    # The rows of the process model are in the repository, those of the outcome model are ten times as long.
    files = {"process": "recipes/tiny/steps.jsonl", "outcome": "out/tiny-labels/candidates.jsonl"}
    assert args.train_file == files[kind]


def test_the_table_samples_as_hot_as_its_verifiers_were_trained(label):
    table = load_recipe("search_table.py")
    [labelled] = parse(label, "LabelArguments", flags=["--config", RECIPES / "tiny/label_steps.yaml"])
    [searched] = parse(table, "TableArguments", flags=["--config", RECIPES / "tiny/search.yaml"])
    assert (labelled.temperature, labelled.adapter) == (searched.temperature, searched.adapter)
    assert searched.num_problems == 400


def candidates(*rows):
    columns = ("correct", "status", "content", "reasoning")
    every = [dict(zip(columns, row, strict=True)) for row in rows]
    prompt = [{"role": "user", "content": "1+1=?"}]
    return Dataset.from_list(
        [{**row, "prompt": prompt, "completion": message(row["content"], row["reasoning"])} for row in every]
    )


def test_half_of_the_chosen_traces_are_wrong_ones(label):
    right, wrong = (True, "complete", "2", "1+1"), (False, "complete", "3", "1+1")
    rows = candidates(*[right] * 6, *[wrong] * 2, (False, "no_think", "4", None), (None, "complete", "5", "1+1"))
    assert label.choose_traces(rows, 4, seed=0)["correct"][:].count(False) == 2
    assert len(label.choose_traces(rows, 100, seed=0)) == 8


def test_a_direct_answer_is_a_trace_of_one_step(label):
    rows = candidates((True, "no_think", "2", None), (False, "complete", "3", "1+1"), (False, "no_think", "", None))
    assert list(label.direct_rows(rows, 9, seed=0)) == [{"prompt": "1+1=?", "completions": ["2"], "labels": [True]}]


def test_the_answer_is_a_step_too_with_its_own_label(label):
    traces = candidates((False, "complete", "3", "1+1=2"), (True, "complete", "2", "1+1=2"))
    row = {"prompt": "1+1=?", "completions": ["1+1=2"], "labels": [True], "values": [1.0], "id": "0", "correct": False}
    [written] = label.with_answers(Dataset.from_list([row]), traces)
    assert written == {"prompt": "1+1=?", "completions": ["1+1=2", "3"], "labels": [True, False]}


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ([[2.0], [1.0], [-1.0], [-2.0]], [[1.0], [1.0], [0.0], [0.0]], (1.0, 0.5, 1.0)),
        ([[2.0], [2.0], [-1.0], [2.0]], [[1.0], [0.0], [0.0], [0.0]], (0.5, 0.25, 2 / 3)),
        ([[[0, 1], [0, 9], [1, 0]]], [[1, -100, 0]], (1.0, 0.5, 1.0)),
        ([[1.0]], [[1.0]], (1.0, 1.0, math.nan)),
    ],
    ids=["all apart", "ties count half", "two labels per token, some without one", "one class alone"],
)
def test_the_metrics(train, logits, labels, expected):
    found = train.metrics(EvalPrediction(np.array(logits), np.array(labels)))
    assert (found["accuracy"], found["good"], found["auc"]) == pytest.approx(expected, nan_ok=True)


def test_rows_of_no_kind_are_refused_with_the_kinds(train):
    with pytest.raises(ValueError, match=r"`train_file` must have the columns of one of .*, got \['text'\]"):
        train.kind_of(Dataset.from_list([{"text": "a"}]))


def test_only_the_ends_of_steps_have_labels(train, tokenizer, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}), encoding="utf-8")
    [row] = train.encode(Dataset.from_json(str(file)), "process", tokenizer, 16)
    assert tokenizer.decode(row["input_ids"]) == "qa\nb\n"
    assert row["labels"] == [-100, -100, 1, -100, 0]


def test_rows_that_are_too_long_or_have_no_label_are_counted(train, tokenizer, capsys):
    rows = candidates((True, "no_think", "2", None), (True, "no_think", "2" * 99, None), (None, "no_think", "2", None))
    [row] = train.encode(rows, "outcome", tokenizer, 64)
    assert row["labels"] == [1.0]
    assert "3 rows, 1 without label, 1 over `max_length`" in capsys.readouterr().out


KINDS = {
    "process": (
        lambda n, good: {
            "prompt": f"{n}+1=?",
            "completions": ["Add.\n\n", f"It is {'+' if good else '-'}.", "2"],
            "labels": [True, good, good],
        }
    ),
    "outcome": lambda n, good: {
        "prompt": [{"role": "user", "content": f"{n}+1=?"}],
        "completion": message("+" if good else "-", "Add."),
        "correct": good,
    },
    "pairs": lambda n, good: {
        "prompt": [{"role": "user", "content": f"{n}+1=?"}],
        "chosen": message("+", "Add."),
        "rejected": message("-", "Add."),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_verifier_learns_to_tell_and_reads_as_it_was_trained(train, kind, tiny_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [KINDS[kind](n, good) for n in range(24) for good in (True, False)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--model_name_or_path", tiny_model, "--train_file", file, "--output_dir", tmp_path / "out", *SMALL]
    flags += ["--max_length", 256, "--held_out", 4, "--learning_rate", 5e-3, "--num_train_epochs", 8]
    flags += ["--dtype", "float32", "--save_strategy", "no"]
    trainer = train.main(*parse(train, "VerifierArguments", RewardConfig, ModelConfig, flags=flags))
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert measured["eval_accuracy"] == 1.0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    if kind == "process":
        verifier = ProcessVerifier(AutoModelForTokenClassification.from_pretrained(tmp_path / "out"), tokenizer)
        texts = [f"<think>\nAdd.\n\nIt is {sign}.\n</think>\n\n2" for sign in "+-"]
        good, bad = (steps[-1] for steps in verifier([{"role": "user", "content": "1+1=?"}], texts))
    else:
        verifier = OutcomeVerifier(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), tokenizer)
        texts = [f"<think>\nAdd.\n</think>\n\n{sign}" for sign in "+-"]
        good, bad = verifier([{"role": "user", "content": "1+1=?"}], texts)
    assert good > 0.5
    assert good > bad + 0.2


@pytest.mark.slow
def test_labels_are_written_as_training_reads_them(label, train, tmp_path):
    flags = ["--config", RECIPES / "tiny/label_steps.yaml", "--train_file", RECIPES / "tiny/problems/train.jsonl"]
    flags += ["--num_problems", 4, "--num_samples", 4, "--num_rollouts", 1, "--output_dir", tmp_path]
    [args] = parse(label, "LabelArguments", flags=flags)
    label.main(args)
    for file, kind in (("steps", "process"), ("candidates", "outcome")):
        rows = Dataset.from_json(str(tmp_path / f"{file}.jsonl"))
        assert train.kind_of(rows) == kind
        assert len(rows) > 4


@pytest.mark.slow
def test_the_table_is_written_line_by_line_and_goes_on(tiny_model, tmp_path, monkeypatch):
    table = load_recipe("search_table.py")
    for kind, labels in ((AutoModelForTokenClassification, 2), (AutoModelForSequenceClassification, 1)):
        kind.from_pretrained(tiny_model, num_labels=labels).save_pretrained(tmp_path / str(labels))
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / str(labels))
    flags = ["--outcome_verifier", tmp_path / "1", "--process_verifier", tmp_path / "2", "--output_dir", tmp_path]
    [args] = parse(table, "TableArguments", flags=[*flags, "--num_problems", 2, "--num_simulations", 1])
    lines = table.main(args)
    assert len(lines) == 20
    assert all(0 <= line.accuracy <= 1 and line.tokens > 0 for line in lines)
    file = tmp_path / "table.jsonl"
    kept = file.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(kept) == len(lines)
    file.write_text("".join(kept[:-1]), encoding="utf-8")
    again = table.main(args)
    assert again[:-1] == lines[:-1]
    assert (again[-1].accuracy, again[-1].tokens) == (lines[-1].accuracy, lines[-1].tokens)
    args.seed = 1
    with pytest.raises(ValueError, match=r"`output_dir` holds .*table\.jsonl of other settings"):
        table.main(args)
