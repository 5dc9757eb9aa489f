"""What is trained is what the model must write: reasoning, answer, end of turn; anything else is refused."""

import json
import logging
from pathlib import Path

import pytest
import trl
from datasets import Dataset, load_dataset
from make_tokenizer import make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from think_tools.data import journey, prepare_sft, to_think
from think_tools.data.journeys import plant_errors
from think_tools.templates import set_chat_template
from think_tools.tiny import arithmetic_problems

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
    distilled = make_tokenizer("deepseek_r1_distill")
    [prepared] = prepare_sft(to_think([cases["N"]["input"]["row"]]), distilled, max_length=None)
    assert trained(distilled, prepared) == "two\n</think>\n\n4<｜end▁of▁sentence｜>"


REFUSED = {
    "a template that drops the reasoning": ("qwen2_5", row(), "reasoning"),
    "a template that opens every prompt, and an answer without reasoning": (
        "deepseek_r1_distill",
        row(None),
        "no reasoning, but the prompt opens it. `empty_think='drop'` leaves such rows out",
    ),
    "reasoning while thinking is off": (
        "chatml_think",
        row(enable_thinking=False),
        "has reasoning, but its `chat_template_kwargs` say `enable_thinking=False`",
    ),
    "a completion without an answer": (
        "chatml_think",
        row() | {"completion": [{"role": "user", "content": "4"}]},
        "its completion holds no message of the assistant",
    ),
    "a message that the template cannot render": (
        "chatml_think",
        row() | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]},
        "it cannot be rendered: chatml_think reads text only",
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
    with pytest.raises(ValueError, match=f"Row 0 of `dataset` cannot be trained as meant: .*{cause}"):
        prepare_sft([example], tokenizer, max_length=None)


def test_the_refusal_names_the_row_and_the_cure(tokenizer):
    use_template(tokenizer, "qwen2_5")
    with pytest.raises(ValueError, match=r'Row 2 of `dataset`.*What helps: `set_chat_template\(tokenizer, "chatml_th'):
        prepare_sft([row(None), row(None), row()], tokenizer, max_length=None)


def conversation(*turns):
    """A row whose completion goes on with questions: (reasoning, answer) of each turn."""
    messages = row(*turns[0])["completion"]
    for reasoning, answer in turns[1:]:
        messages += [{"role": "user", "content": "And 3+3?"}, *row(reasoning, answer)["completion"]]
    return row() | {"completion": messages}


def erring(*parts):
    """A row whose reasoning has parts, of which those that begin with `!` are not to be learned."""
    example = row("".join(part.lstrip("!") for part in parts).strip())
    parts = [{"text": part.lstrip("!"), "train": not part.startswith("!")} for part in parts]
    example["completion"][0]["parts"] = parts
    return example


CHAT = conversation(("two", "4"), ("three", "6"))
OPENED = THOUGHT.removeprefix("<think>\n")
# Template, row, arguments, what each prepared row trains.
OPTIONS = {
    "the answer only": ("qwen3", row(), {"loss": "answer"}, ["4<|im_end|>"]),
    "the answer only, of an answer without reasoning": ("qwen3", row(None), {"loss": "answer"}, ["4<|im_end|>"]),
    "the reasoning only": ("qwen3", row(), {"loss": "think"}, ["<think>\ntwo\n</think>\n\n"]),
    "the reasoning only, opened by the prompt": (
        "qwen3_5_think",
        row(),
        {"loss": "think"},
        ["two\n</think>\n\n"],
    ),
    "a wrong step read and its correction learned": (
        "chatml_think",
        erring("So 2+2 = 2*2.\n\n", "!2*2 = 5.\n\n", "No, 2*2 = 4."),
        {"loss": "parts"},
        ["<think>\nSo 2+2 = 2*2.\n\nNo, 2*2 = 4.\n</think>\n\n4<|im_end|>"],
    ),
    "a wrong step at the beginning, in Chinese": (
        "qwen3",
        erring("!二加二是五。", "不对，是四。\n"),
        {"loss": "parts"},
        ["<think>\n不对，是四。\n</think>\n\n4<|im_end|>"],
    ),
    "a wrong step trained": (
        "chatml_think",
        erring("!2*2 = 5.\n\n", "No, 2*2 = 4."),
        {},
        ["<think>\n2*2 = 5.\n\nNo, 2*2 = 4.\n</think>\n\n4<|im_end|>"],
    ),
    "parts of a row that has none": ("chatml_think", row(), {"loss": "parts"}, [THOUGHT]),
    "thinking given up": ("qwen3", row(None), {"empty_think": "train"}, ["<think>\n\n</think>\n\n4<|im_end|>"]),
    "thinking given up, though the row says that it is off": (
        "qwen3",
        row(None, enable_thinking=False),
        {"empty_think": "train"},
        ["<think>\n\n</think>\n\n4<|im_end|>"],
    ),
    "thinking given up where the prompt opens it": (
        "qwen3_5_think",
        row(None),
        {"empty_think": "train"},
        ["\n</think>\n\n4<|im_end|>"],
    ),
    "thinking given up where no block is written": (
        "chatml_think",
        row(None),
        {"empty_think": "train"},
        ["4<|im_end|>"],
    ),
    "each of several turns": ("qwen3", CHAT, {}, [THOUGHT, THOUGHT.replace("two", "three").replace("4", "6")]),
    "each of several turns, some without reasoning": (
        "qwen3",
        conversation(("two", "4"), (None, "6")),
        {},
        [THOUGHT, "6<|im_end|>"],
    ),
    "the last of several turns of a completion": (
        "chatml_think",
        CHAT,
        {"turns": "last"},
        ["<think>\nthree\n</think>\n\n6<|im_end|>"],
    ),
    "all turns in one row": (
        "chatml_think",
        CHAT,
        {"turns": "all"},
        [f"{THOUGHT}<think>\nthree\n</think>\n\n6<|im_end|>"],
    ),
    "all turns where there is one": ("qwen3", row(), {"turns": "all"}, [THOUGHT]),
}


@pytest.mark.parametrize(("template", "example", "options", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_options(template, example, options, expected, tokenizer):
    use_template(tokenizer, template)
    prepared = prepare_sft([example], tokenizer, max_length=None, **options)
    assert [trained(tokenizer, each) for each in prepared] == expected


def test_a_turn_is_seen_as_at_inference(tokenizer):
    first, second = prepare_sft([CHAT], tokenizer, max_length=None)["input_ids"]
    assert tokenizer.decode(first).endswith(f"{THOUGHT}\n")
    # The history shows the earlier answer without its reasoning; kept, it is what `turns="all"` is for.
    assert "assistant\n4<|im_end|>" in tokenizer.decode(second)
    [kept] = prepare_sft([CHAT], tokenizer, max_length=None, turns="all")["input_ids"]
    assert f"assistant\n{THOUGHT}" in tokenizer.decode(kept)


def test_thinking_given_up_is_asked_for_with_a_thinking_prompt(tokenizer):
    [prepared] = prepare_sft([row(None)], tokenizer, max_length=None, empty_think="train")
    assert tokenizer.decode(prepared["input_ids"]).endswith("<|im_start|>assistant\n4<|im_end|>\n")
    [prepared] = prepare_sft([row(None)], tokenizer, max_length=None)
    assert tokenizer.decode(prepared["input_ids"]).endswith("assistant\n<think>\n\n</think>\n\n4<|im_end|>\n")


# What the stock templates of these families leave out, and how the row then ends.
MENDED = {
    "GLM-4.5": ("glm4moe", row(), "\n<think>two</think>\n4<|user|>"),
    "GLM-4.5, an answer without reasoning": ("glm4moe", row(None), "\n4<|user|>"),
    "DeepSeek-R1-Distill": ("deepseek_r1_distill", row(), "two\n</think>\n\n4<｜end▁of▁sentence｜>"),
    "DeepSeek-R1-Distill, inline": (
        "deepseek_r1_distill",
        row(None, "<think>\ntwo\n</think>\n\n4"),
        "two\n</think>\n\n4<｜end▁of▁sentence｜>",
    ),
    "DeepSeek-V3": ("deepseekv3", row(), "two\n</think>\n\n4<｜end▁of▁sentence｜>"),
}


@pytest.mark.parametrize(("name", "example", "expected"), MENDED.values(), ids=MENDED)
def test_stock_templates_that_would_lose_something(name, example, expected):
    tokenizer = make_tokenizer(name)
    [prepared] = prepare_sft([example], tokenizer, max_length=None)
    kwargs = {"enable_thinking": example["completion"][0].get("reasoning_content") is not None}
    prompt = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True, tokenize=False, **kwargs)
    assert tokenizer.decode(prepared["input_ids"]) == prompt + expected
    assert trained(tokenizer, prepared) == expected


def test_the_header_that_ends_a_turn_is_named(caplog):
    tokenizer = make_tokenizer("glm4moe")
    with caplog.at_level(logging.WARNING, "think_tools"):
        prepare_sft([row()], tokenizer, max_length=None)
    assert caplog.messages == [
        "The template ends no turn, so rows end in the next header, <|user|>. Generation must stop there, too."
    ]
    tokenizer.eos_token = "<|user|>"
    caplog.clear()
    prepare_sft([row()], tokenizer, max_length=None)
    assert caplog.messages == []


def test_a_header_that_all_turns_share_ends_none(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(ValueError, match="writes no token after an answer"):
        prepare_sft([row(None)], tokenizer, max_length=None)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL_LOOP = row() | {
    "completion": [
        {"role": "assistant", "reasoning_content": "ask", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        *row("so", "4")["completion"],
    ]
}
CALLED = '<think>\nask\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>'
LOOPS = {
    "chatml_think": ("chatml_think", [CALLED, "<think>\nso\n</think>\n\n4<|im_end|>"]),
    "Qwen3": ("qwen3", [CALLED, "<think>\nso\n</think>\n\n4<|im_end|>"]),
    "GLM-4.5, which stops a call by another header": (
        "glm4moe",
        [
            "\n<think>ask</think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n"
            "</tool_call><|observation|>",
            "\n<think>so</think>\n4<|user|>",
        ],
    ),
}


@pytest.mark.parametrize(("name", "expected"), LOOPS.values(), ids=LOOPS)
def test_calls_are_trained(name, expected, tokenizer):
    tokenizer = tokenizer if name == "chatml_think" else make_tokenizer(name)
    prepared = prepare_sft([TOOL_LOOP], tokenizer, max_length=None)
    assert [trained(tokenizer, each) for each in prepared] == expected
    [prepared] = prepare_sft([TOOL_LOOP], tokenizer, max_length=None, turns="all")
    assert trained(tokenizer, prepared) == "".join(expected)


REFUSED_TURNS = {
    "a history that the template strips": (
        "qwen3",
        CHAT,
        {"turns": "all"},
        "writes an earlier turn otherwise once others follow.*`turns='expand'` makes a row of each",
    ),
    "turns that think and turns that do not, in one row": (
        "chatml_think",
        conversation(("two", "4"), (None, "6")),
        {"turns": "all"},
        "some of its turns think and others do not",
    ),
    "parts that are not the reasoning": (
        "chatml_think",
        erring("One step.", "!Another.")
        | {"completion": [{**erring("!x")["completion"][0], "reasoning_content": "y"}]},
        {"loss": "parts"},
        "its `parts`, joined, are not the reasoning",
    ),
}


@pytest.mark.parametrize(("template", "example", "options", "cause"), REFUSED_TURNS.values(), ids=REFUSED_TURNS)
def test_refused_with_an_option(template, example, options, cause, tokenizer):
    use_template(tokenizer, template)
    with pytest.raises(ValueError, match=f"Row 0 of `dataset` cannot be trained as meant: .*{cause}"):
        prepare_sft([example], tokenizer, max_length=None, **options)


@pytest.mark.parametrize("option", [{"empty_think": "drop"}, {"loss": "think"}], ids=["empty_think", "loss"])
def test_rows_without_reasoning_are_left_out_and_counted(option, tokenizer, caplog):
    tokenizer = make_tokenizer("deepseek_r1_distill")  # where they could not be prepared
    with caplog.at_level(logging.WARNING, "think_tools"):
        prepared = prepare_sft([row(), row(None)], tokenizer, max_length=None, **option)
    assert len(prepared) == 1
    [(name, value)] = option.items()
    assert caplog.messages == [f"`prepare_sft` dropped 1 of 2 rows: without reasoning (`{name}={value!r}`) (1)."]


LONG = "二加二。" * 30


@pytest.mark.parametrize("name", ["chatml_think", "qwen3_5_think", "glm4moe", "deepseek_r1_distill"])
def test_reasoning_that_is_too_long_is_closed_early(name, tokenizer, caplog):
    tokenizer = tokenizer if name == "chatml_think" else make_tokenizer(name)
    [limit] = lengths(tokenizer, [row("二加二。" * 4)])
    with caplog.at_level(logging.WARNING, "think_tools"):
        [short, cut] = prepare_sft([row(), row(LONG)], tokenizer, max_length=limit, too_long="close_think")
    assert "`prepare_sft` cut the end of the reasoning of 1 of 2 rows." in caplog.messages
    assert [short] == list(prepare_sft([row()], tokenizer, max_length=None))
    learned, text = trained(tokenizer, cut), tokenizer.decode(cut["input_ids"])
    end = tokenizer.convert_ids_to_tokens([label for label in cut["labels"] if label != -100][-1])
    thought = learned.removesuffix(f"4{end}").strip().removeprefix("<think>").strip()
    # As much as fits: a Chinese character is three tokens here. The marker that closes it is not learned.
    assert LONG.startswith(thought)
    assert limit - 3 < len(cut["input_ids"]) <= limit
    assert len(thought) >= 15
    assert "</think>" in text
    assert "</think>" not in learned


def test_rows_that_do_not_fit_without_reasoning_are_dropped(tokenizer, caplog):
    rows = [row(), row(LONG, "4" * 200), row(None, "4" * 200)]
    with caplog.at_level(logging.WARNING, "think_tools"):
        prepared = prepare_sft(rows, tokenizer, max_length=100, too_long="close_think")
    assert len(prepared) == 1
    assert caplog.messages[-1] == "`prepare_sft` dropped 2 of 3 rows: longer than `max_length=100` tokens (2)."


def test_a_row_cut_to_fit_masks_the_parts_that_are_left(tokenizer):
    example = erring("!Wrong.\n\n", "Right. " * 40)
    [prepared] = prepare_sft([example], tokenizer, max_length=100, too_long="close_think", loss="parts")
    learned = trained(tokenizer, prepared)
    assert learned.startswith("<think>\nRight. Right.")
    assert learned.endswith("4<|im_end|>")
    assert len(prepared["input_ids"]) <= 100


MIXES = {
    "too few with reasoning": (3, 20, 0.75, 3, 1),
    "too many with reasoning": (40, 4, 0.75, 12, 4),
    "as it should be": (6, 2, 0.75, 6, 2),
    "half and half": (5, 9, 0.5, 5, 5),
}


@pytest.mark.parametrize(("thinking", "plain", "share", "kept", "kept_plain"), MIXES.values(), ids=MIXES)
def test_mix(thinking, plain, share, kept, kept_plain, tokenizer, caplog):
    rows = [row(f"two {i}") for i in range(thinking)] + [row(None, str(i)) for i in range(plain)]
    with caplog.at_level(logging.WARNING, "think_tools"):
        prepared = prepare_sft(rows, tokenizer, max_length=None, mix=share)
    texts = [trained(tokenizer, each) for each in prepared]
    assert sum("two" in text for text in texts) == kept
    assert len(texts) == len(set(texts)) == kept + kept_plain
    said = (
        f"`mix={share}` kept {kept} of {thinking} rows with reasoning and {kept_plain} of {plain} without (`seed=0`)."
    )
    assert caplog.messages == ([] if (kept, kept_plain) == (thinking, plain) else [said])


def test_the_seed_chooses_the_rows_of_the_mix(tokenizer):
    rows = [row(f"two {i}") for i in range(20)] + [row(None)]
    chosen = [list(prepare_sft(rows, tokenizer, max_length=None, mix=0.5 + 0.25, seed=s)["labels"]) for s in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_several_processes_prepare_the_same_rows(tokenizer):
    rows = [row("two" * n, enable_thinking=True) for n in range(1, 5)]
    one, two = (prepare_sft(rows, tokenizer, max_length=None, num_proc=n) for n in (None, 2))
    assert list(one) == list(two)


def test_journeys_read_their_errors_and_learn_the_rest(tokenizer):
    problems = arithmetic_problems("train", 20)
    rows = [each for problem in problems for each in journey(plant_errors(problem, rate=1.0))]
    assert any(each["num_wrong"] for each in rows)
    for each, prepared in zip(rows, prepare_sft(rows, tokenizer, max_length=None, loss="parts"), strict=True):
        [message] = each["completion"]
        learned = "".join(part["text"] for part in message["parts"] if part["train"]).strip()
        assert trained(tokenizer, prepared) == f"<think>\n{learned}\n</think>\n\n{message['content']}<|im_end|>"


@pytest.mark.parametrize("trim", [False, True], ids=["whole offsets", "offsets without white space"])
@pytest.mark.parametrize("merges", [0, 10, 20, 30])
def test_a_token_across_a_border_is_masked(merges, trim, tokenizer):
    example = erring("We add.\n\n", "!ZXQ.\n\n", " No. We add。\n")
    text = f"{example['completion'][0]['reasoning_content']}\n</think>\n\n4"
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.decoder = decoders.ByteLevel()
    learner.post_processor = processors.ByteLevel(trim_offsets=trim)
    special = ["<|im_start|>", "<|im_end|>", "<think>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + len(special) + merges
    learner.train_from_iterator(
        [text] * 3, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    merging = PreTrainedTokenizerFast(
        tokenizer_object=learner, eos_token="<|im_end|>", chat_template=tokenizer.chat_template
    )
    learned = {}
    for loss in ("parts", "answer", "think"):
        [prepared] = prepare_sft([example], merging, max_length=None, loss=loss)
        learned[loss] = trained(merging, prepared)
    assert not set(learned["parts"]) & set("ZXQ")
    assert learned["answer"].strip() in ("4<|im_end|>", "<|im_end|>")
    assert "4" not in learned["think"]
    assert learned["think"].startswith("<think>\nWe a")
    if not merges:
        assert learned["parts"] == "<think>\nWe add.\n\n No. We add。\n</think>\n\n4<|im_end|>"


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
    with pytest.raises(ValueError, match=f"Row 1 of .* it has {longest} tokens, more than `max_length={short}`"):
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
        r"Row 0 of `dataset` .*: it has no messages in .* Convert it first: `to_think\(dataset\)`",
    ),
    "columns of another kind": ([{"text": "x"}], {}, "no messages in `prompt` and `completion`"),
    "an unknown way to treat long rows": (
        [row()],
        {"too_long": "cut"},
        "`too_long` must be one of 'drop', 'raise', 'close_think', got 'cut'",
    ),
    "an unknown loss": ([row()], {"loss": "all"}, "`loss` must be one of .*, got 'all'"),
    "an unknown way to treat turns": ([row()], {"turns": "first"}, "`turns` must be one of .*, got 'first'"),
    "an unknown way to treat empty blocks": (
        [row()],
        {"empty_think": None},
        "`empty_think` must be one of .*, got None",
    ),
    "no room at all": (
        [row()],
        {"max_length": 0},
        "`max_length` must be at least 1 token, or None for no limit, got 0",
    ),
    "cutting one of several turns": (
        [row()],
        {"turns": "all", "too_long": "close_think"},
        "`too_long='close_think'` shortens one turn: take it with `turns='expand'` or `'last'`",
    ),
    "a share of everything": ([row()], {"mix": 1.0}, "`mix` must be between 0 and 1, .*, got 1.0 and Dataset"),
    "a share of a stream": (
        Dataset.from_list([row()]).to_iterable_dataset(),
        {"mix": 0.5},
        "`dataset` no stream, got 0.5 and IterableDataset",
    ),
    "a share of one kind": (
        [row(), row()],
        {"mix": 0.5},
        "`mix=0.5` needs rows with and without reasoning, got 2 and 0: add some of the other kind",
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


def stock_trainer(model, tokenizer, rows, folder, **config):
    from trl import SFTConfig, SFTTrainer

    fixed = {
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    args = SFTConfig(output_dir=str(folder), **{"max_length": None, **fixed, **config})
    return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packing_keeps_the_labels(strategy, tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    rows = [row("two" * n) for n in range(1, 8)] + [row(None), erring("!5.", " No, 4.")]
    prepared = prepare_sft(rows, tokenizer, max_length=None, loss="parts")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = stock_trainer(
        model, tokenizer, prepared, tmp_path, packing=True, packing_strategy=strategy, max_length=200
    )
    packed = trainer.train_dataset
    assert len(packed) < len(prepared)
    for column in ("input_ids", "labels"):
        parts = sorted(map(tuple, prepared[column]), key=len)
        whole = [tuple(ids) for ids in packed[column]]
        assert sum(map(len, whole)) == sum(map(len, parts))
        if strategy == "bfd":  # whole rows, in another order
            for ids, lengths in zip(packed[column], packed["seq_lengths"], strict=True):
                for length in lengths:
                    parts.remove(tuple(ids[:length]))
                    ids = ids[length:]
            assert parts == []
        else:
            assert sum(whole, ()) == sum(map(tuple, prepared[column]), ())
    [batch] = list(trainer.get_train_dataloader())[:1]
    labels = {label for labels in prepared["labels"] for label in labels}
    assert set(batch["labels"].flatten().tolist()) <= labels


@pytest.mark.slow
def test_the_stock_trainer_uses_the_labels_as_they_are(tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    long = "two and two " * 200  # longer than the trainer's default limit of 1024 tokens
    prepared = prepare_sft([row(), row(long), row(None)], tokenizer, max_length=None)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = stock_trainer(model, tokenizer, prepared, tmp_path, per_device_train_batch_size=3, max_steps=1)
    [batch] = trainer.get_train_dataloader()
    found = sorted([label for label in labels.tolist() if label != -100] for labels in batch["labels"])
    assert found == sorted([label for label in labels if label != -100] for labels in prepared["labels"])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"].shape[1] > 2400
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert trainer.train().training_loss > 0
