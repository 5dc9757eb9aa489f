import json

import pytest
from datasets import Dataset
from make_tokenizer import make_tokenizer
from openai_server import refuses, running_server
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


@pytest.mark.slow
def test_chat_goes_on_until_an_empty_line():
    result = run("chat", typed="12*13=?\n47*36=?\n\n")
    assert result.exit_code == 0
    assert "156" in result.stdout
    assert "1692" in result.stdout


def test_a_cut_off_answer_is_said_to_be_cut_off():
    assert (
        "Cut off after 5 tokens; see --max-tokens." in run("chat", "--max-tokens", "5", "--message", "12*13=?").stdout
    )


@pytest.mark.slow
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


def distill_into(out, server, *options):
    return run(
        "distill", str(out.parent / "questions.jsonl"), "m", "--out", str(out), "--base-url", server.url, *options
    )


def test_distill_writes_rows_and_goes_on(tmp_path):
    out = tmp_path / "rows.jsonl"
    (tmp_path / "questions.jsonl").write_text('{"question": "2+2?"}\n{"question": "2+3?"}\n', encoding="utf-8")
    with running_server() as server:
        first = distill_into(out, server, "--question", "question", "--max-tokens-total", "30")
        second = distill_into(out, server, "--question", "question")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert "2 rows in" in second.stderr
    assert sorted(body["messages"][0]["content"] for body in server.bodies) == ["2+2?", "2+3?"]


def test_distill_passes_its_options_on(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"prompt": "2+2?"}\n', encoding="utf-8")
    with running_server() as server:
        options = ["--prompt", "reflect", "--thinking", "--n", "2", "--temperature", "0.3", "--api-key", "mine"]
        result = distill_into(tmp_path / "rows.jsonl", server, *options, "--shard", "0", "2")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "rows-00000-of-00002.jsonl").read_bytes().count(b"\n") == 2
    assert [(body["temperature"], body["chat_template_kwargs"]) for body in server.bodies] == [
        (0.3, {"enable_thinking": True})
    ] * 2
    assert "check the result another way" in server.bodies[0]["messages"][-1]["content"]
    assert server.headers[0]["authorization"] == "Bearer mine"


def test_distill_takes_rows_of_known_columns(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "2+2?", "answer": "2+2\\n#### 4"}\n', encoding="utf-8")
    with running_server() as server:
        result = distill_into(tmp_path / "rows.jsonl", server)
    assert result.exit_code == 0, result.output
    assert '"solution": "4"' in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_distill_says_why_it_gave_up(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"prompt": "2+2?"}\n', encoding="utf-8")
    with running_server(lambda body, number: refuses(401, "bad key")) as server:
        result = distill_into(tmp_path / "rows.jsonl", server)
    assert result.exit_code == 1
    assert "HTTP 401" in result.stderr
    assert "bad key" in result.stderr


def test_distill_names_mistakes_without_a_traceback(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"text": "2+2?"}\n', encoding="utf-8")
    with running_server() as server:
        result = distill_into(tmp_path / "rows.jsonl", server, "--question", "nobody")
    assert result.exit_code == 2
    assert "nobody" in " ".join(result.stderr.split())


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


@pytest.mark.slow
def test_eval_of_several_checkpoints_behind_a_server_draws_the_training(tmp_path):
    rows = [{"question": f"{n}+{n}?", "answer": str(2 * n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with running_server() as server:
        options = ["--base-url", server.url, "--api-key", "mine", "--problems", str(tmp_path / "rows.jsonl")]
        result = run("eval", "checkpoint-10", "checkpoint-20", *options, "--n", "2", "--output-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "checkpoint-20: 3 questions" in result.stdout
    assert [body["model"] for body in server.bodies] == ["checkpoint-10"] * 6 + ["checkpoint-20"] * 6
    assert "chat_template_kwargs" not in server.bodies[0]
    assert server.headers[0]["authorization"] == "Bearer mine"
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    pictures = {"report.json", "curve.png", "training.png"}
    assert made == {*pictures, "rows.jsonl", *(f"checkpoint-{n}/candidates.jsonl" for n in (10, 20))}


def test_eval_says_why_a_server_gave_nothing(tmp_path):
    with running_server(lambda body, number: refuses(401, "bad key")) as server:
        options = ["--base-url", server.url, "--problems", "arithmetic:1", "--output-dir", str(tmp_path)]
        result = run("eval", "m", *options)
    assert result.exit_code == 1
    assert "bad key" in result.stderr


def test_eval_needs_models_or_candidates():
    result = run("eval")
    assert result.exit_code == 2
    assert "models to sample from or stored --candidates" in " ".join(result.stderr.replace("│", " ").split())


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
