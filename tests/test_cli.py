import json

import pytest
from datasets import Dataset
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


TURNS = (
    '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>2+2=4</think>4"}]}\n'
)
CUT = TURNS.replace("</think>4", "")


def test_convert_writes_rows_that_train_and_counts_the_others(tmp_path):
    (tmp_path / "chats.jsonl").write_text(TURNS + CUT, encoding="utf-8")
    result = run("convert", str(tmp_path / "chats.jsonl"), str(tmp_path / "new" / "rows.jsonl"))
    [row] = map(json.loads, (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert result.exit_code == 0, result.output
    assert row["completion"] == [{"role": "assistant", "reasoning_content": "2+2=4", "content": "4"}]
    assert "2 rows read, 1 written to" in result.stderr


def test_convert_is_a_filter_too():
    result = run("convert", "-", "-", typed=TURNS.replace("2+2?", "二加二？"))
    assert "二加二？" in result.stdout  # and no escapes
    assert json.loads(result.stdout)["chat_template_kwargs"] == {"enable_thinking": True}


def test_convert_writes_parquet(tmp_path):
    assert run("convert", "-", str(tmp_path / "rows.parquet"), typed=TURNS).exit_code == 0
    assert Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))[0]["completion"]


def test_convert_names_columns_nobody_knows_without_a_traceback():
    result = run("convert", "-", "-", typed='{"text": "2+2?"}\n')
    assert result.exit_code == 2
    assert "['text']" in result.stderr


def test_eval_reads_stored_candidates(tmp_path):
    rows = [{"answer": "12", "completions": ["12", "13", "12"]}, {"answer": "7", "completions": ["8", "7", "8"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run("eval", "--candidates", str(tmp_path / "rows.jsonl"))
    assert result.exit_code == 0, result.output
    assert "rows: 2 questions" in result.stdout
    assert "100.0 [100, 100]" in result.stdout  # pass@3
    assert "Tokens per question: thinking -, answer -, pruned -, verifier -." in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.slow
def test_eval_samples_and_its_file_is_evaluated_again_to_the_same_table(tmp_path):
    problems = ("--problems", "arithmetic:2", "--n", "2", "--output-dir", str(tmp_path))
    sampled = run("eval", "tiny/thinker", *problems)
    stored = run("eval", "--candidates", str(tmp_path / "candidates.jsonl"))
    assert sampled.exit_code == stored.exit_code == 0, sampled.output + stored.output
    assert {path.name for path in tmp_path.iterdir()} == {"candidates.jsonl", "curve.png", "report.json"}
    assert "Tokens per question: thinking" in sampled.stdout
    table = [line for line in stored.stdout.splitlines() if "│" in line or "GRPO" in line]
    assert all(line in sampled.stdout for line in table)
    refused = run("eval", "tiny", *problems)
    assert refused.exit_code == 2
    assert "with these settings" in " ".join(refused.stderr.replace("│", " ").split())


def test_eval_needs_models_or_candidates():
    result = run("eval")
    assert result.exit_code == 2
    assert "models to sample from or stored --candidates" in " ".join(result.stderr.replace("│", " ").split())
