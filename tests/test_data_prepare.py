"""What is trained is what the model must write: reasoning, answer, end of turn; anything else is refused."""

import json
import logging
from pathlib import Path

import pytest
import trl
from datasets import Dataset, load_dataset

from think_tools.data import prepare_sft, to_think
from think_tools.templates import set_chat_template

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.fixture
def tokenizer(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    return tokenizer


def row(reasoning="two", answer="4", *, prompt=({"role": "user", "content": "2+2?"},), **kwargs):
    message = {"role": "assistant", "reasoning_content": reasoning, "content": answer}
    return {"prompt": list(prompt), "completion": [message], "chat_template_kwargs": kwargs}


def use_template(tokenizer, name):
    if name != "chatml_think":
        tokenizer.chat_template = (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def trained(tokenizer, prepared):
    return tokenizer.decode([label for label in prepared["labels"] if label != -100])


HISTORY = (
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "one"},
    {"role": "user", "content": "2+2?"},
)
THOUGHT = "<think>\ntwo\n</think>\n\n4<|im_end|>"
TRAINED = {
    "reasoning and answer": ("chatml_think", row(), THOUGHT),
    "an answer without reasoning": ("chatml_think", row(None), "4<|im_end|>"),
    "a direct answer while thinking is on": ("chatml_think", row(None, enable_thinking=True), "4<|im_end|>"),
    "the last of several turns": ("chatml_think", row(prompt=HISTORY), THOUGHT),
    "Chinese": ("chatml_think", row("二加二", "四"), "<think>\n二加二\n</think>\n\n四<|im_end|>"),
    "Qwen3": ("qwen3", row(), THOUGHT),
    "Qwen3, an answer without reasoning": ("qwen3", row(None), "4<|im_end|>"),
    "Qwen3, a direct answer while thinking is on": ("qwen3", row(None, enable_thinking=True), "4<|im_end|>"),
    "Qwen3, the last of several turns": ("qwen3", row(prompt=HISTORY), THOUGHT),
    "Qwen3.5, whose prompt opens the reasoning": ("qwen3_5_think", row(), THOUGHT.removeprefix("<think>\n")),
    "Qwen3.5 that does not think unless told": ("qwen3_5_nothink", row(), THOUGHT.removeprefix("<think>\n")),
    "inline markers": ("qwen3", row(None, "<think>\ntwo\n</think>\n\n4"), THOUGHT),
    "Qwen3.5, an answer without reasoning": ("qwen3_5_think", row(None), "4<|im_end|>"),
}


@pytest.mark.parametrize(("template", "example", "expected"), TRAINED.values(), ids=TRAINED)
def test_trained_text(template, example, expected, tokenizer):
    use_template(tokenizer, template)
    [prepared] = prepare_sft([example], tokenizer, max_length=None)
    assert trained(tokenizer, prepared) == expected
    # Nothing else is trained, nothing is cut: the ids are the whole render.
    text = tokenizer.decode(prepared["input_ids"])
    assert text.endswith(f"{expected}\n")
    assert len(prepared["labels"]) == len(prepared["input_ids"])
    assert text.count("2+2?") == 1


def test_labels_agree_with_measured_ones_where_those_are_right(data_folder, tokenizer):
    # Cases F and N record what TRL does wrong: it trains the empty block, and it loses the reasoning.
    lines = (data_folder / "cases" / "data_cases.jsonl").read_text().splitlines()
    cases = {case["name"]: case for case in map(json.loads, lines) if case["kind"] == "trl_sft_labels"}
    for name in "BCD":
        use_template(tokenizer, cases[name]["input"]["template"])
        [prepared] = prepare_sft(to_think([cases[name]["input"]["row"]]), tokenizer, max_length=None)
        assert trained(tokenizer, prepared) == cases[name]["expected"]["trained"].removesuffix("\n")
        assert tokenizer.decode(prepared["input_ids"]) == cases[name]["expected"]["full"]
    use_template(tokenizer, "qwen3")
    [prepared] = prepare_sft(to_think([cases["F"]["input"]["row"]]), tokenizer, max_length=None)
    assert trained(tokenizer, prepared) == "4<|im_end|>"
    use_template(tokenizer, "deepseek_r1_distill")
    with pytest.raises(ValueError, match="Row 0 of `dataset` cannot be trained as meant"):
        prepare_sft(to_think([cases["N"]["input"]["row"]]), tokenizer, max_length=None)


REFUSED = {
    "a template that drops the reasoning": ("qwen2_5", row(), "reasoning"),
    "a template that drops it and opens the prompt": ("deepseek_r1_distill", row(), "prompt"),
    "reasoning while thinking is off": (
        "chatml_think",
        row(enable_thinking=False),
        "has reasoning, but its `chat_template_kwargs` say `enable_thinking=False`",
    ),
    "a template that writes no end of turn": (
        "{% for m in messages %}{{ m.role }}: "
        "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content }}{{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        row(),
        "never learns to stop",
    ),
}


@pytest.mark.parametrize(("template", "example", "cause"), REFUSED.values(), ids=REFUSED)
def test_refused(template, example, cause, tokenizer):
    if "{" in template:
        tokenizer.chat_template = template
    else:
        use_template(tokenizer, template)
    message = f"Row 0 of `dataset` cannot be trained as meant: .*{cause}.*set_chat_template"
    with pytest.raises(ValueError, match=message):
        prepare_sft([example], tokenizer, max_length=None)


def test_the_refusal_names_the_row(tokenizer):
    use_template(tokenizer, "qwen2_5")
    with pytest.raises(ValueError, match="Row 2 of `dataset`"):
        prepare_sft([row(None), row(None), row()], tokenizer, max_length=None)


def lengths(tokenizer, rows):
    return [len(ids) for ids in prepare_sft(rows, tokenizer, max_length=None)["input_ids"]]


def test_long_rows_are_dropped_and_counted(tokenizer, caplog):
    rows = [row(), row("two" * 50), row("two" * 20)]
    [short, longest, _] = lengths(tokenizer, rows)
    with caplog.at_level(logging.WARNING, "think_tools"):
        prepared = prepare_sft(rows, tokenizer, max_length=short)
    assert len(prepared) == 1
    assert caplog.messages == [
        f"The longest row has {longest} tokens: `max_length={longest}` would keep every row.",
        f"`prepare_sft` dropped 2 of 3 rows: longer than `max_length={short}` tokens (2).",
    ]


def test_long_rows_are_refused(tokenizer):
    rows = [row(), row("two" * 50)]
    [short, longest] = lengths(tokenizer, rows)
    with pytest.raises(ValueError, match=f"Row 1 of `dataset` has {longest} tokens, more than `max_length={short}`"):
        prepare_sft(rows, tokenizer, max_length=short, too_long="raise")
    with pytest.raises(ValueError, match=r"dropped 2 of 2 rows: .* Nothing is left to train on"):
        prepare_sft(rows, tokenizer, max_length=5)


def test_a_stream_gives_the_same_rows(tokenizer, caplog):
    rows = Dataset.from_list([row(), row("two" * 50), row(None)])
    limit = lengths(tokenizer, rows)[0]
    with caplog.at_level(logging.WARNING, "think_tools"):
        streamed = list(prepare_sft(rows.to_iterable_dataset(), tokenizer, max_length=limit))
    assert caplog.messages == [
        f"`prepare_sft` dropped 1 of 2 rows so far: longer than `max_length={limit}` tokens (1)."
    ]
    assert streamed == list(prepare_sft(rows, tokenizer, max_length=limit))


def test_tools_reach_the_template(tokenizer):
    use_template(tokenizer, "qwen3")
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    [prepared] = prepare_sft([{**row(), "tools": json.dumps(tools)}], tokenizer, max_length=None)
    assert "look_up" in tokenizer.decode(prepared["input_ids"])
    assert trained(tokenizer, prepared) == THOUGHT


ERRORS = {
    "text where messages belong": (
        [{"prompt": "2+2?", "completion": "4"}],
        {},
        r"Row 0 of `dataset` holds text, not messages. Convert it first: `to_think\(dataset\)`",
    ),
    "columns of another kind": (
        [{"text": "x"}],
        {},
        r"must have the columns 'prompt' and 'completion', got \['text'\]",
    ),
    "an unknown way to treat long rows": (
        [row()],
        {"too_long": "cut"},
        "`too_long` must be 'drop' or 'raise', got 'cut'",
    ),
    "no room at all": (
        [row()],
        {"max_length": 0},
        "`max_length` must be at least 1 token, or None for no limit, got 0",
    ),
}


@pytest.mark.parametrize(("rows", "arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(rows, arguments, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        prepare_sft(rows, tokenizer, **{"max_length": None, **arguments})


def test_a_tokenizer_without_template(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"`tokenizer` has no chat template. .*set_chat_template"):
        prepare_sft([row()], tokenizer, max_length=None)


def test_real_rows(data_folder, tokenizer, tmp_path, caplog):
    files = {name: str(data_folder / "data" / f"{name}.jsonl") for name in ("gsm8k_train_2000", "medical_cot_zh_2")}
    for name, path in files.items():
        rows = to_think(load_dataset("json", data_files=path, split="train[:40]", cache_dir=str(tmp_path)))
        prepared = prepare_sft(rows, tokenizer, max_length=None)
        for given, made in zip(rows, prepared, strict=True):
            [message] = given["completion"]
            expected = f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}<|im_end|>"
            assert trained(tokenizer, made) == expected, name


@pytest.mark.slow
def test_the_stock_trainer_uses_the_labels_as_they_are(tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    long = "two and two " * 200  # longer than the trainer's default limit of 1024 tokens
    prepared = prepare_sft([row(), row(long), row(None)], tokenizer, max_length=None)
    args = SFTConfig(
        output_dir=str(tmp_path),
        max_length=None,
        per_device_train_batch_size=3,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = SFTTrainer(model, args, train_dataset=prepared, processing_class=tokenizer)
    [batch] = trainer.get_train_dataloader()
    found = sorted([label for label in labels.tolist() if label != -100] for labels in batch["labels"])
    assert found == sorted([label for label in labels if label != -100] for labels in prepared["labels"])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"].shape[1] > 2400
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert trainer.train().training_loss > 0
