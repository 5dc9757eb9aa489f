"""What stock TRL trains of a row beside what `prepare_sft` trains of it, for the rows that people meet."""

import pytest
from datasets import Dataset
from make_tokenizer import make_tokenizer

from think_tools.data import prepare_sft, to_think
from think_tools.templates import set_chat_template

USER = {"role": "user", "content": "2+2?"}
PLAIN = {"role": "assistant", "content": "4"}
THOUGHTFUL = {**PLAIN, "reasoning_content": "two"}
INLINE = {**PLAIN, "content": "<think>\ntwo\n</think>\n\n4"}
CHAT = [USER, THOUGHTFUL, {"role": "user", "content": "3+3?"}, {**PLAIN, "reasoning_content": "three", "content": "6"}]
FULL, SECOND = "<think>\ntwo\n</think>\n\n4<|im_end|>", "<think>\nthree\n</think>\n\n6<|im_end|>"
R1_END = "<｜end▁of▁sentence｜>"
R1_FULL = f"two\n</think>\n\n4{R1_END}"  # the prompt ends in `<think>\n`
PROMPT_STYLE = "Question:\n2+2?\n\nResponse:\n<think>\ntwo\n</think>\n\n4"

# What stock TRL is given, its settings, what it trains (the line break after the end of turn left out), and what ours
# trains of the same row, an example each. `None`: the same.
TABLE = {
    "A no reasoning: an empty block is trained": (
        "qwen3", {"prompt": [USER], "completion": [PLAIN]}, {},
        "<think>\n\n</think>\n\n4<|im_end|>", ["4<|im_end|>"],
    ),
    "B no reasoning, thinking off": (
        "qwen3",
        {"prompt": [USER], "completion": [PLAIN], "chat_template_kwargs": {"enable_thinking": False}}, {},
        "4<|im_end|>", None,
    ),
    "C inline markers": ("qwen3", {"prompt": [USER], "completion": [INLINE]}, {}, FULL, None),
    "D reasoning_content": ("qwen3", {"prompt": [USER], "completion": [THOUGHTFUL]}, {}, FULL, None),
    "E thinking": ("qwen3", {"prompt": [USER], "completion": [{**PLAIN, "thinking": "two"}]}, {}, FULL, None),
    "F messages, assistant_only_loss, no reasoning: an empty block is trained": (
        "qwen3", {"messages": [USER, PLAIN]}, {"assistant_only_loss": True},
        "<think>\n\n</think>\n\n4<|im_end|>", ["4<|im_end|>"],
    ),
    "G messages of two turns: the user is trained, the first reasoning is gone": (
        "qwen3", {"messages": CHAT}, {},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n3+3?<|im_end|>\n"
        f"<|im_start|>assistant\n{SECOND}",
        [FULL, SECOND],
    ),
    "H messages of two turns, assistant_only_loss: the second sees the first's reasoning": (
        "qwen3", {"messages": CHAT}, {"assistant_only_loss": True}, f"{FULL}\n{SECOND}", [FULL, SECOND],
    ),
    "I text in prompt style: the instruction is trained": (
        "instruct_cot", {"text": PROMPT_STYLE}, {}, f"{PROMPT_STYLE}<|im_end|>", ["two\n</think>\n\n4<|im_end|>"],
    ),
    "J prompt and completion as text: no chat template": (
        "qwen3", {"prompt": "2+2?<|im_end|>", "completion": FULL}, {}, FULL, [FULL],
    ),
    "K the length limit cuts the answer": (
        "qwen3", {"prompt": [USER], "completion": [{**THOUGHTFUL, "reasoning_content": "two and two"}]},
        {"max_length": 36}, "<think>\ntwo and two", [],
    ),
    "N R1-distill: the reasoning is dropped": (
        "deepseek_r1_distill", {"prompt": [USER], "completion": [INLINE]}, {}, f"\n\n4{R1_END}", [R1_FULL],
    ),
    "N R1-distill, reasoning_content: the reasoning is dropped": (
        "deepseek_r1_distill", {"prompt": [USER], "completion": [THOUGHTFUL]}, {}, f"4{R1_END}", [R1_FULL],
    ),
    "O R1-distill, messages: everything but the reasoning is trained": (
        "deepseek_r1_distill", {"messages": [USER, INLINE]}, {},
        f"<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>\n\n4{R1_END}", [R1_FULL],
    ),
    "P R1-distill, assistant_only_loss: the header is trained": (
        "deepseek_r1_distill", {"messages": [USER, INLINE]}, {"assistant_only_loss": True},
        f"<｜Assistant｜><think>\n{R1_FULL}", [R1_FULL],
    ),
    "Q the prompt opens the reasoning": (
        "qwen3_5_think", {"prompt": [USER], "completion": [THOUGHTFUL]}, {}, FULL.removeprefix("<think>\n"), None,
    ),
}  # fmt: skip


def stock_labels(tokenizer, row, folder, **config):
    """What stock TRL makes of a row: the trainer, and the text that is trained."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    fixed = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none"}
    args = SFTConfig(output_dir=str(folder), **{"max_length": None, **fixed, **config})
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    return trainer, trained(tokenizer, trainer.train_dataset[0])


def trained(tokenizer, prepared):
    return tokenizer.decode([label for label in prepared["labels"] if label != -100]).removesuffix("\n")


def tokenizer_of(template):
    if template != "instruct_cot":
        return make_tokenizer(template)
    tokenizer = make_tokenizer("qwen3")
    set_chat_template(tokenizer, "instruct_cot")
    return tokenizer


def our_rows(row):
    """The row as a user of ours has it; text of a prompt style comes from a question, reasoning and an answer."""
    if "text" in row:
        row = {"messages": [USER, THOUGHTFUL]}
    if isinstance(row.get("prompt"), str):
        row = {"messages": [USER, INLINE]}
    return to_think([row], turns="all")


@pytest.mark.parametrize(("template", "row", "config", "stock", "ours"), TABLE.values(), ids=TABLE)
def test_the_label_table(template, row, config, stock, ours, tmp_path):
    tokenizer = tokenizer_of(template)
    _, text = stock_labels(tokenizer, row, tmp_path, **config)
    assert text == stock
    rows = our_rows(row)
    if ours == []:  # nothing is cut: the row is left out, or refused
        with pytest.raises(ValueError, match=r"longer than `max_length=36` tokens .* Nothing is left to train on"):
            prepare_sft(rows, tokenizer, max_length=config["max_length"])
        return
    prepared = prepare_sft(rows, tokenizer, max_length=None)
    assert [trained(tokenizer, each) for each in prepared] == (ours or [stock])


def test_h_is_seen_as_at_inference():
    tokenizer = make_tokenizer("qwen3")
    [_, second] = prepare_sft(to_think([{"messages": CHAT}], turns="all"), tokenizer, max_length=None)
    prompt = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, tokenize=False)
    assert "two" not in prompt
    assert tokenizer.decode(second["input_ids"]) == f"{prompt}{SECOND}\n"


def test_r_the_end_of_turn_is_trained_when_it_pads_too(tmp_path):
    tokenizer = make_tokenizer("qwen3")
    tokenizer.pad_token = tokenizer.eos_token
    row = {"prompt": [USER], "completion": [THOUGHTFUL]}
    trainer, _ = stock_labels(tokenizer, row, tmp_path)
    long = {**row, "completion": [{**THOUGHTFUL, "reasoning_content": "two and two"}]}
    for rows in ([trainer.train_dataset[0]] * 2, list(prepare_sft([row, long], tokenizer, max_length=None))):
        labels = trainer.data_collator(rows)["labels"]
        assert ((labels == tokenizer.eos_token_id).sum(dim=1) == 1).all()
