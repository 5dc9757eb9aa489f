"""What is shown of a row, and what a whole data set would train and lose."""

import io
import json

import pytest
from datasets import Dataset
from make_tokenizer import make_tokenizer
from rich.console import Console
from typer.testing import CliRunner

from think_tools.cli import app
from think_tools.data import check_dataset, explain, prepare_sft

USER = {"role": "user", "content": "2+2?"}


def row(reasoning="two", answer="4", **more):
    message = {"role": "assistant", "content": answer, "reasoning_content": reasoning, **more}
    return {"prompt": [USER], "completion": [message]}


def states(text):
    """What each line of an explanation begins with, a line of a longer run left out."""
    return [line.split()[0] for line in str(text).split("\n") if line[:1].strip()]


def test_a_row_is_shown_run_by_run(tokenizer):
    assert str(explain(row(), tokenizer)).split("\n") == [
        "tokens  11 trained, 24 masked, 0 cut",
        "masked  <|im_start|>user↵",
        "        2+2?<|im_end|>↵",
        "        <|im_start|>assistant↵",
        "trained <think>↵",
        "        two↵",
        "        </think>↵",
        "        ↵",
        "        4<|im_end|>",
        "masked  ↵",
    ]


def test_a_prepared_row_is_shown_alike(tokenizer):
    [prepared] = prepare_sft([row()], tokenizer, max_length=None)
    assert str(explain(prepared, tokenizer)) == str(explain(row(), tokenizer))


def test_a_masked_part_is_shown_as_masked(tokenizer):
    parts = [{"text": "5. ", "train": False}, {"text": "No, 4.", "train": True}]
    shown = explain(row("5. No, 4.", parts=parts), tokenizer, loss="parts")
    assert "masked  5. \ntrained No, 4.↵" in str(shown)


CUT = {
    "over the limit": ("drop", ["tokens", "masked", "trained", "cut", "lost"], "longer than `max_length=60` tokens"),
    "closed early": (
        "close_think",
        ["tokens", "masked", "trained", "masked", "trained", "masked", "cut"],
        "tokens of the reasoning",
    ),
}


@pytest.mark.parametrize(("too_long", "expected", "said"), CUT.values(), ids=CUT)
def test_what_is_cut_is_shown_and_counted(too_long, expected, said, tokenizer):
    example = row("two and two " * 10)
    shown = explain(example, tokenizer, max_length=60, too_long=too_long)
    assert states(shown) == expected
    assert said in str(shown)
    over = len(prepare_sft([example], tokenizer, max_length=None)[0]["input_ids"]) - 60
    assert int(str(shown).split(" cut")[0].split()[-1]) - over in (0, 1)  # a space is cut with the word behind it


def test_what_is_lost_is_named(tokenizer):
    shown = explain(row(), make_tokenizer("qwen2_5"))
    assert states(shown) == ["tokens", "lost"]
    assert "the chat template drops the reasoning" in str(shown)
    assert "it has no messages" in str(explain({"text": "x"}, tokenizer))
    with pytest.raises(ValueError, match="`loss` must be one of"):
        explain(row(), tokenizer, loss="all")


def test_brackets_are_no_markup_and_colours_tell_the_states(tokenizer):
    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system="standard", width=80).print(
        explain(row("[bold]a[/x]"), tokenizer)
    )
    assert "[bold]a[/x]" in output.getvalue()
    assert "\x1b[32mtrained" in output.getvalue()
    assert "\x1b[2mmasked" in output.getvalue()


def test_long_runs_are_shortened_on_request(tokenizer):
    shown = str(explain(row("a" * 500 + "b" * 500), tokenizer, shorten=40))
    assert "[… 990 characters …]" in shown
    assert len(shown) < 300


def test_a_data_set_is_counted(tokenizer):
    chat = row()
    chat["completion"] += [USER, row(None, "5")["completion"][0]]
    report = check_dataset([row(), chat, row("x" * 500)], tokenizer, max_length=100)
    prepared = prepare_sft([row(), chat], tokenizer, max_length=None)
    labels = [label for labels in prepared["labels"] for label in labels]
    assert report.counts == {
        "rows": 3,
        "examples": 4,
        "with reasoning": 3,
        "too long": 1,
        "rows lost": 1,
        "tokens trained": len(labels) - labels.count(-100),
        "tokens masked": labels.count(-100),
        "longest": 532,
        "limit": 100,
    }
    assert (report.ok, report.first) == (False, 2)
    [finding] = report.findings
    assert finding.severity == "error"
    assert finding.what == (
        "1 of 3 rows, the first is row 2: longer than `max_length=100` tokens, so they would be cut or left out"
    )
    assert finding.remedy == "`max_length=532` keeps all of them; `too_long='close_think'` keeps their beginnings"


def test_every_bad_row_is_counted_and_causes_are_grouped():
    rows = [row(None), row(), row("three"), {"prompt": "2+2?", "completion": "4"}]
    report = check_dataset(rows, make_tokenizer("qwen2_5"))
    assert [finding.what.partition(":")[0] for finding in report.findings] == [
        "2 of 4 rows, the first is row 1",
        "1 of 4 rows, the first is row 3",
    ]
    dropped, text = report.findings
    assert dropped.remedy == '`set_chat_template(tokenizer, "chatml_think")` from think_tools.templates.'
    assert "Convert it first" in text.what
    assert (report.counts["rows lost"], report.first) == (3, 1)


def test_a_stream_and_a_good_data_set(tokenizer):
    rows = Dataset.from_list([row(), row(None)])
    streamed, whole = check_dataset(rows.to_iterable_dataset(), tokenizer), check_dataset(rows, tokenizer)
    assert streamed == whole
    assert whole.ok
    assert whole.findings == ()
    assert whole.counts["limit"] == tokenizer.model_max_length
    assert check_dataset(rows, make_tokenizer("qwen3")).counts["limit"] == 0


def test_what_an_option_leaves_out_is_no_error(tokenizer):
    report = check_dataset([row(), row(None)], tokenizer, loss="think")
    assert report.ok
    assert [finding.severity for finding in report.findings] == ["warning"]


def run(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_command_names_what_is_cut(data_folder):
    # The longest of these Chinese rows has 2,620 tokens of one byte each.
    file = data_folder / "data" / "medical_cot_zh_2.jsonl"
    result = run("tiny", "--dataset", file, "--max-length", 2500)
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "1 of 2 rows, the first is row 0: longer than `max_length=2500` tokens" in said
    assert "-> `max_length=2620` keeps all of them" in said
    assert run("tiny", "--dataset", file).exit_code == 0  # 4,096


def test_the_command_names_what_cannot_be_converted(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "2+2?", "answer": "two\n#### 4"}, {"question": "", "answer": "two\n#### 4"}]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    result = run("tiny", "--dataset", file)
    assert result.exit_code == 1
    assert "1 of 2 rows, the first is row 1: empty question" in " ".join(result.stdout.split())


def test_the_command_converts_rows_and_speaks_json(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "2+2?", "answer": "two\n#### 4"}) + "\n")
    result = run("tiny", "--dataset", file)
    assert result.exit_code == 0
    assert "trained <think>↵" in result.stdout
    result = run("tiny", "--dataset", file, "--json")
    assert json.loads(result.stdout)["counts"]["rows"] == 1


def test_the_command_says_that_there_is_no_such_file(tmp_path):
    assert run("tiny", "--dataset", tmp_path / "none.jsonl").exit_code == 2
