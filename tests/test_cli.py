import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from think_tools.cli import app


def run(*arguments: str, typed: str | None = None):
    return CliRunner().invoke(app, arguments, input=typed)


def test_help_names_the_commands():
    output = run("--help").output
    assert "demo" in output
    assert "chat" in output


def test_chat_prints_reasoning_and_answer_apart():
    result = run("chat", "--message", "12*13=?")
    reasoning, _, answer = result.output.strip().rpartition("\n\n")
    assert result.exit_code == 0
    assert reasoning.startswith("Compute 12*13.")
    assert answer == "156"
    assert "<think>" not in result.output


def test_chat_without_thinking_shows_an_answer_only():
    result = run("chat", "--no-thinking", "--message", "12*13=?")
    assert result.output.strip().isdigit()


def test_chat_goes_on_until_an_empty_line():
    result = run("chat", typed="12*13=?\n47*36=?\n\n")
    assert result.exit_code == 0
    assert "156" in result.output
    assert "1692" in result.output


def test_a_cut_off_answer_is_said_to_be_cut_off():
    assert (
        "Cut off after 5 tokens; see --max-tokens." in run("chat", "--max-tokens", "5", "--message", "12*13=?").output
    )


def test_chat_loads_an_adapter_from_a_folder(tmp_path):
    from think_tools.tiny import load_tiny

    model, tokenizer = load_tiny("thinker")
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    assert "156" in run("chat", str(tmp_path / "mine"), "--message", "12*13=?").output


@pytest.mark.slow
def test_the_demo_writes_report_picture_and_adapter(tmp_path):
    options = ["--problems", "8", "--steps", "2", "--samples", "2", "--output-dir", str(tmp_path)]
    result = run("demo", *options)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["direct", "cold start", "GRPO", "vote of 2"]
    assert report["problems"] == 8
    assert report["stages"][0]["think_share"] == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "held-out problems" in result.output


def test_retrain_uses_the_settings_of_the_recipe():
    import yaml

    from think_tools.demo import COLD_START

    recipe = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "tiny" / "cold_start.yaml").read_text())
    assert {key: recipe[key] for key in COLD_START} == COLD_START
