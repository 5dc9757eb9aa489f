import json

import pytest
from make_tokenizer import make_tokenizer
from typer.testing import CliRunner

from think_tools.cli import app


def run(*arguments: str, typed: str | None = None):
    return CliRunner().invoke(app, arguments, input=typed)


def test_help_names_the_commands():
    output = run("--help").stdout
    assert "demo" in output
    assert "chat" in output


def test_chat_prints_reasoning_and_answer_apart():
    result = run("chat", "--message", "12*13=?")
    reasoning, _, answer = result.stdout.strip().rpartition("\n\n")
    assert result.exit_code == 0
    assert reasoning.startswith("Compute 12*13.")
    assert answer == "156"
    assert "<think>" not in result.stdout


def test_chat_without_thinking_shows_an_answer_only():
    result = run("chat", "--no-thinking", "--message", "12*13=?")
    assert result.stdout.strip().isdigit()


def test_chat_goes_on_until_an_empty_line():
    result = run("chat", typed="12*13=?\n47*36=?\n\n")
    assert result.exit_code == 0
    assert "156" in result.stdout
    assert "1692" in result.stdout


def test_a_cut_off_answer_is_said_to_be_cut_off():
    assert (
        "Cut off after 5 tokens; see --max-tokens." in run("chat", "--max-tokens", "5", "--message", "12*13=?").stdout
    )


def test_chat_loads_an_adapter_from_a_folder(tmp_path):
    from think_tools.tiny import load_tiny

    model, tokenizer = load_tiny("thinker")
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    assert "156" in run("chat", str(tmp_path / "mine"), "--message", "12*13=?").stdout


def test_an_unknown_model_is_named_without_a_traceback():
    result = run("chat", "tiny/nobody", "--message", "12*13=?")
    assert result.exit_code == 2
    assert "got 'nobody'" in " ".join(result.stderr.split())


def test_check_prints_what_the_template_does():
    result = run("check", "tiny")
    assert result.exit_code == 0
    assert "<think> … </think>" in result.stdout
    assert "default=neither, on=neither, off=closed" in result.stdout


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> str:
    """Folder of a tokenizer whose template drops the reasoning; there is no model in it."""
    path = str(tmp_path_factory.mktemp("qwen2_5"))
    make_tokenizer("qwen2_5").save_pretrained(path)
    return path


def test_check_of_a_template_with_an_error_names_the_remedy_and_exits_with_1(dropping):
    result = run("check", dropping)
    said = " ".join(result.stdout.split())
    assert result.exit_code == 1
    assert "error the chat template drops the reasoning" in said
    assert '-> `set_chat_template(tokenizer, "chatml_think")`' in said


def test_check_prints_json(dropping):
    result = run("check", dropping, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["findings"][0]["severity"] == "error"
    assert report["end_of_turn"] == "<|im_end|>"


@pytest.mark.parametrize("arguments", [[], ["tiny", "tiny"]], ids=["no model", "two models"])
def test_check_wants_one_model(arguments):
    result = run("check", *arguments)
    assert result.exit_code == 2
    assert "give one model, or --config" in " ".join(result.stderr.split())


def test_check_of_a_config_builds_the_trainer_and_does_not_train(tiny_model, tmp_path, monkeypatch):
    from think_tools.tiny import arithmetic_problems

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    rows = arithmetic_problems("train", n=8).select_columns(["prompt", "solution"])
    rows.to_json(str(tmp_path / "rows/train.jsonl"))
    file = tmp_path / "run.yaml"
    file.write_text("max_completion_length: 256\nnum_generations: 4\nactivation_checkpointing: false\n")
    names = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(tmp_path / "rows")]
    flags = [*names, "--output_dir", str(tmp_path), "--reward_funcs"]
    result = run("check", "--config", str(file), *flags, "think_tools.rewards.accuracy_reward")
    assert (result.exit_code, "8 rows were read" in result.stdout) == (0, True)
    result = run("check", "--json", "--config", str(file), *flags, "think_tools.rewards.format_reward")
    assert result.exit_code == 1
    assert "no reward gives more to a right" in json.loads(result.stdout)["findings"][0]["what"]


def test_a_config_with_a_foreign_key_is_refused_without_a_traceback(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("template: r1_zero\n")
    result = run("check", "--config", str(file))
    assert result.exit_code == 2
    assert "keys that `trl sft` does not know: ['template']" in " ".join(result.stderr.replace("│", "").split())
