import re
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
import trl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from think_tools import parse
from think_tools.templates import (
    check_labels,
    end_of_turn,
    generation_prompt,
    load_template,
    prompt_state,
    response_template,
    set_chat_template,
)

NAMES = ["chatml_think", "instruct_cot", "r1_zero"]
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
every_template = pytest.mark.parametrize("name", NAMES)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(content: str | None, reasoning: str | None = None, **more) -> dict:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, **more}


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """A tokenizer without think tokens whose words merge with the punctuation and line breaks beside them."""
    words = ">\n >\n\n ><think> </think>\n\n assistant: Assistant: User: think answer\n" * 20
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # Qwen's, shortened
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([words], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def test_an_unknown_template_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=re.escape(f"`name` must be one of {NAMES}, got 'r1-zero'.")):
        load_template("r1-zero")


# What the templates write.

CHATML = {
    "thinks": (
        [user("2+2?"), assistant("4", "two and two")],
        {},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\ntwo and two\n</think>\n\n4<|im_end|>\n",
    ),
    "answers directly though it may think: no empty block": (
        [user("2+2?"), assistant("4")],
        {"enable_thinking": True},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
    ),
    "answers directly because thinking is off: an empty block": (
        [user("2+2?"), assistant("4")],
        {"enable_thinking": False},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n4<|im_end|>\n",
    ),
    "a missing switch, as data sets store it, leaves thinking on": (
        [user("2+2?"), assistant("4")],
        {"enable_thinking": None},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
    ),
    "white space at the seams does not depend on the data": (
        [user("2+2?"), assistant("\n\n4", "\n two\n")],
        {},
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\ntwo\n</think>\n\n4<|im_end|>\n",
    ),
    "instruction and system message become one": (
        [{"role": "system", "content": "Be brief."}, user("Hi")],
        {"instruction": "You are Ada."},
        "<|im_start|>system\nYou are Ada.\n\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    ),
    "reasoning before the last question is dropped": (
        [user("1"), assistant("a", "r"), user("2"), assistant("b", "s")],
        {},
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n<think>\ns\n</think>\n\nb<|im_end|>\n",
    ),
    "unless it is to be preserved": (
        [user("1"), assistant("a", "r"), user("2")],
        {"preserve_thinking": True},
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n<think>\nr\n</think>\n\na<|im_end|>\n"
        "<|im_start|>user\n2<|im_end|>\n",
    ),
    "earlier turns show no empty block when thinking is off": (
        [user("1"), assistant("a", "r"), user("2"), assistant("b")],
        {"enable_thinking": False},
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nb<|im_end|>\n",
    ),
    "reasoning inside a tool loop is kept": (
        [
            user("1"),
            assistant("", "look", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]),
            {"role": "tool", "content": "5"},
            assistant("b", "s"),
        ],
        {},
        '<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n<think>\nlook\n</think>\n\n<tool_call>\n{"name": "f", '
        '"arguments": {"x": 1}}\n</tool_call><|im_end|>\n<|im_start|>tool\n5<|im_end|>\n'
        "<|im_start|>assistant\n<think>\ns\n</think>\n\nb<|im_end|>\n",
    ),
    "tools are described to the model": (
        [user("1")],
        {"tools": [{"name": "f"}]},
        '<|im_start|>system\nThese functions can be called:\n<tools>\n{"name": "f"}\n</tools>\n'
        'Write each call as JSON:\n<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n1<|im_end|>\n",
    ),
}


@pytest.mark.parametrize(("messages", "options", "expected"), CHATML.values(), ids=CHATML)
def test_chatml_think_renders(tokenizer, messages, options, expected):
    set_chat_template(tokenizer, "chatml_think")
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == expected


PLAIN = {
    "r1_zero asks, opens the thought, and ends in the end of sequence": (
        "r1_zero",
        "Solve it.\n\nBe brief.\n\nUser: 1\nAssistant: a<|im_end|>\nUser: 2\nAssistant: <think>\ns\n</think>\n\n"
        "b<|im_end|>",
    ),
    "instruct_cot puts headings over the parts": (
        "instruct_cot",
        "### Instruction:\nSolve it.\n\nBe brief.\n\n### Question:\n1\n\n### Response:\na<|im_end|>\n\n"
        "### Question:\n2\n\n### Response:\n<think>\ns\n</think>\n\nb<|im_end|>",
    ),
}


@pytest.mark.parametrize(("name", "expected"), PLAIN.values(), ids=PLAIN)
def test_plain_text_renders(tokenizer, name, expected):
    set_chat_template(tokenizer, name)
    system = {"role": "system", "content": "Be brief."}
    messages = [system, user("1"), assistant("a", "r"), user("2"), assistant("b", "s")]
    assert tokenizer.apply_chat_template(messages, tokenize=False, instruction="Solve it.") == expected


def test_a_published_prompt_with_its_own_headings_gets_no_second_one(tokenizer):
    set_chat_template(tokenizer, "instruct_cot", instruction="Do the task.\n\n### Instruction:\nYou are a physician.")
    assert tokenizer.apply_chat_template([user("q")], tokenize=False, add_generation_prompt=True) == (
        "Do the task.\n\n### Instruction:\nYou are a physician.\n\n### Question:\nq\n\n### Response:\n<think>\n"
    )


BEGINNINGS = {
    "a token of its own comes first": ("<s>", "<s><|im_start|>user", "<s>User: q"),
    "a token that begins turns comes first in plain text only": (
        "<|im_start|>",
        "<|im_start|>user",
        "<|im_start|>User: q",
    ),
    "the end of sequence never does": ("<|im_end|>", "<|im_start|>user", "User: q"),
}


@pytest.mark.parametrize(("bos", "chatml", "plain"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_beginning_of_sequence(tokenizer, bos, chatml, plain):
    tokenizer.bos_token = bos
    for name, beginning in [("chatml_think", chatml), ("r1_zero", plain)]:
        set_chat_template(tokenizer, name, instruction="")
        assert tokenizer.apply_chat_template([user("q")], tokenize=False).startswith(beginning)


@every_template
@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "r", "content": "a"},
        {"thinking": "r", "content": "a"},
        {"reasoning": "r", "content": "a"},
        {"content": "<think>r</think>a"},
        {"content": "\n<think>\nr\n</think>\n\na"},
        {"content": "r\n</think>\n\na"},
    ],
    ids=lambda message: repr(message),
)
def test_every_way_to_write_reasoning_down_renders_alike(tokenizer, name, message):
    set_chat_template(tokenizer, name)
    raw = jinja2.Environment(extensions=[_Generation]).from_string(tokenizer.chat_template)
    chat = [user("q"), {"role": "assistant", **message}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text.rstrip().endswith("<think>\nr\n</think>\n\na<|im_end|>")
    # Servers that do not copy the keys as transformers does see the same.
    assert raw.render(messages=chat, eos_token="<|im_end|>") == text


class _Generation(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


@every_template
@pytest.mark.parametrize("content", ["say <think>x</think> aloud", "<think>never closed"])
def test_markers_that_are_no_reasoning_stay_text(tokenizer, name, content):
    set_chat_template(tokenizer, name)
    assert content in tokenizer.apply_chat_template([user("q"), assistant(content)], tokenize=False)


@every_template
def test_reasoning_with_thinking_off_is_an_error(tokenizer, name):
    set_chat_template(tokenizer, name)
    with pytest.raises(jinja2.TemplateError, match=r"has reasoning, but enable_thinking is false: remove one"):
        tokenizer.apply_chat_template([user("q"), assistant("a", "r")], enable_thinking=False)


@every_template
def test_what_a_model_writes_with_thinking_off_stays_as_it_is(tokenizer, name):
    set_chat_template(tokenizer, name)
    text = tokenizer.apply_chat_template(
        [user("q"), assistant("<think>r</think>a")], tokenize=False, enable_thinking=False
    )
    assert "<think>\n\n</think>\n\n<think>r</think>a<|im_end|>" in text


@every_template
def test_content_that_is_no_text_is_an_error(tokenizer, name):
    set_chat_template(tokenizer, name)
    with pytest.raises(
        jinja2.TemplateError, match=f"{name} reads text only, but the content of message 0 is no string"
    ):
        tokenizer.apply_chat_template([user([{"type": "image"}])])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["instruct_cot", "r1_zero"])
def test_plain_text_refuses_what_it_has_no_form_for(tokenizer, name):
    set_chat_template(tokenizer, name)
    with pytest.raises(jinja2.TemplateError, match=f"{name} has no form for tools: use chatml_think"):
        tokenizer.apply_chat_template([user("q")], tools=[{"name": "f"}])
    with pytest.raises(jinja2.TemplateError, match=f"{name} has no form for message 1"):
        tokenizer.apply_chat_template([user("q"), {"role": "tool", "content": "5"}])


@every_template
@pytest.mark.parametrize("reasoning", ["so far", "first step\n\n", "a trailing space "])
def test_reasoning_can_be_continued(tokenizer, name, reasoning):
    set_chat_template(tokenizer, name)
    chat = [user("q"), {"role": "assistant", "reasoning_content": reasoning}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message="reasoning_content")
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert text == prompt + ("<think>\n" if name == "chatml_think" else "") + reasoning


# The prompt that inference sees, the part that training trains.

TURNS = [user("1"), assistant("a", "r"), user("2"), assistant("b"), user("3"), assistant(">\nc", "\n\ns > 2\n")]


@every_template
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("merging", [False, True], ids=["bytes", "tokens that merge"])
def test_the_prompt_begins_the_training_text_and_the_rest_is_what_the_model_writes(
    tokenizer, bpe, name, thinking, turns, merging
):
    tokenizer = bpe if merging else tokenizer
    set_chat_template(tokenizer, name, instruction="Solve it.")
    prompt, answer = TURNS[: 2 * turns - 1], TURNS[2 * turns - 1]
    if not thinking:
        answer = {**answer, "reasoning_content": None}
    options = {"enable_thinking": thinking}
    prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)["input_ids"]
    row = tokenizer.apply_chat_template([*prompt, answer], return_assistant_tokens_mask=True, **options)
    ids, mask = row["input_ids"], row["assistant_masks"]
    assert ids[: len(prompt_ids)] == prompt_ids

    trained = tokenizer.decode([token for token, generated in zip(ids, mask, strict=True) if generated][-60:])
    end = tokenizer.decode(ids[len(prompt_ids) :]).rstrip("\n")
    assert trained.endswith(end)
    assert mask[len(prompt_ids) - 1] == 0
    assert end.endswith(tokenizer.eos_token)
    trace = parse(end.removesuffix(tokenizer.eos_token), opened=prompt_state(tokenizer, **options) == "open")
    assert (trace.reasoning or None, trace.answer) == (
        (answer["reasoning_content"] or "").strip() or None,
        answer["content"].strip(),
    )


def test_only_spans_of_the_assistant_are_marked(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    row = tokenizer.apply_chat_template(TURNS, return_assistant_tokens_mask=True, enable_thinking=True)
    edges = [0, *(i for i, (a, b) in enumerate(pairwise(row["assistant_masks"]), 1) if a != b), len(row["input_ids"])]
    spans = [tokenizer.decode(row["input_ids"][a:b]) for a, b in pairwise(edges)]
    assert spans[1::2] == ["a<|im_end|>", "b<|im_end|>", "<think>\ns > 2\n</think>\n\n>\nc<|im_end|>"]


# Storing a template.

ODD = 'He said "think", {{ x }} {% endif %} %} \\boxed{1} \\n\n\t思考 🤔 {# no comment #}'


@every_template
def test_template_instruction_and_parser_survive_saving(tokenizer, tmp_path, name):
    set_chat_template(tokenizer, name, instruction=ODD)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = loaded.apply_chat_template([user("q")], tokenize=False)
    assert ODD in text
    assert text == tokenizer.apply_chat_template([user("q")], tokenize=False)
    assert loaded.response_template == tokenizer.response_template == response_template(tokenizer)
    assert "Be brief." in loaded.apply_chat_template([user("q")], tokenize=False, instruction="Be brief.")


@every_template
def test_an_empty_instruction_leaves_it_out(tokenizer, name):
    set_chat_template(tokenizer, name, instruction="")
    first = {"chatml_think": "<|im_start|>user", "instruct_cot": "### Question", "r1_zero": "User: "}[name]
    assert tokenizer.apply_chat_template([user("q")], tokenize=False).startswith(first)


def test_servers_see_the_variables(tokenizer):
    for name in NAMES:
        variables = jinja2.meta.find_undeclared_variables(
            jinja2.Environment(extensions=[_Generation]).parse(load_template(name))
        )
        assert {"instruction", "enable_thinking", "preserve_thinking"} <= variables


@every_template
def test_an_instruction_must_name_the_markers_of_the_template(tokenizer, name):
    with pytest.raises(
        ValueError, match=r"`instruction` names </thinking>, <thinking>, but the template writes <think>"
    ):
        set_chat_template(tokenizer, name, instruction="Think inside <thinking> and </thinking>.")
    assert tokenizer.chat_template is None or "<thinking>" not in tokenizer.chat_template
    set_chat_template(tokenizer, name, instruction="Think inside <think> and </think>, answer in <answer></answer>.")


def test_the_end_of_turn_becomes_the_end_of_sequence(bpe, caplog):
    bpe.eos_token = "<|endoftext|>"
    set_chat_template(bpe, "chatml_think")
    assert bpe.eos_token == "<|im_end|>"
    assert "`tokenizer.eos_token` was '<|endoftext|>' and is '<|im_end|>' now" in caplog.text
    bpe.eos_token = "<|endoftext|>"
    caplog.clear()
    set_chat_template(bpe, "r1_zero")
    assert bpe.eos_token == "<|endoftext|>"
    assert not caplog.text
    assert bpe.response_template["fields"]["content"]["close_pattern"].startswith(re.escape("<|endoftext|>"))


def test_a_tokenizer_that_could_not_stop_is_an_error():
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(alphabet, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    endless = PreTrainedTokenizerFast(tokenizer_object=plain)
    with pytest.raises(ValueError, match=r"`tokenizer` has no `eos_token`, with which 'r1_zero' ends a turn: set one"):
        set_chat_template(endless, "r1_zero")
    with pytest.raises(
        ValueError, match=r"no single token <\|im_end\|>, with which 'chatml_think' ends a turn.*r1_zero"
    ):
        set_chat_template(endless, "chatml_think")
    assert endless.chat_template is None


def test_special_think_tokens_are_warned_about(tokenizer, caplog):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    set_chat_template(tokenizer, "chatml_think")
    assert "`skip_special_tokens=True`, the default of most servers, erases them" in caplog.text


# Parsing what comes back.

OUTPUTS = {
    "thinks, then answers": "<think>2+2</think>4",
    "white space around": "\n<think>\n2+2\n</think>\n\n4\n",
    "does not think": "4",
    "empty reasoning": "<think>\n\n</think>\n\n4",
    "cut off in the reasoning": "<think>2+",
    "cut off in the closing marker": "<think>2+2</thi",
    "no answer": "<think>2+2</think>",
    "second closing marker": "<think>a</think>b</think>c",
    "opening marker after text": "Say <think>a</think>",
    "second block": "<think>a</think>b<think>c</think>d",
    "less-than sign": "<think>1 < 2</think>yes <b>",
    "only a closing marker": "a</think>b",
    "nothing": "",
}
PROMPTS = {"chatml_think": {}, "r1_zero": {}, "thinking off": {"enable_thinking": False}}


def _read(parser, text: str, size: int) -> tuple[dict, list[dict]]:
    events = [event for i in range(0, len(text), size) for event in parser.feed(text[i : i + size])]
    message, rest = parser.finalize()
    return message, [*events, *rest]


@pytest.mark.parametrize("ending", ["", "<|im_end|>", "<|im_end|>\n<|endoftext|>"], ids=["cut", "ended", "padded"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_transformers_reads_an_output_as_we_do(tokenizer, output, prompt, ending):
    set_chat_template(tokenizer, "chatml_think" if prompt == "thinking off" else prompt)
    prefix = tokenizer.apply_chat_template(
        [user("What does <think> mean?")], tokenize=False, add_generation_prompt=True, **PROMPTS[prompt]
    )
    state = prompt_state(tokenizer, **PROMPTS[prompt])
    if state == "open":
        output = output.lstrip().removeprefix("<think>")  # the prompt wrote it; transformers would keep a second one
    trace = parse(output, opened=state == "open")
    if state == "closed":
        trace = type(trace)(None, output.strip(), "no_think")  # the block of the prompt was the reasoning
    if trace.status == "truncated" and ending:
        ending = "<|im_end|>"  # what follows an unfinished thought, padding too, counts as answer
    expected = {"role": "assistant", "thinking": trace.reasoning, "content": trace.answer}
    expected = {key: value for key, value in expected.items() if value}
    for size in (1, 2, 3, 1000):
        message, _ = _read(tokenizer.get_response_parser(prefix=prefix), output + ending, size)
        assert message == expected, size


@every_template
def test_the_reasoning_streams_from_its_first_character(tokenizer, name):
    set_chat_template(tokenizer, name)
    parser = tokenizer.get_response_parser(prefix=generation_prompt(tokenizer))
    fed = [
        parser.feed(piece)
        for piece in (["<think>"] if name == "chatml_think" else []) + ["a", "b", "</thi", "nk>", "c"]
    ]
    texts = [
        [(event["field"], event["text"]) for event in events if event["type"] == "region_chunk"] for events in fed
    ]
    assert texts[-5:] == [[("thinking", "a")], [("thinking", "b")], [], [], [("content", "c")]]


@every_template
def test_servers_accept_the_response_template(tokenizer, name):
    # What vLLM 0.33 and SGLang 0.5.23 ask for in `validate_response_template_for_serving`, and that both take the
    # first closing literal for the marker that ends the reasoning.
    set_chat_template(tokenizer, name)
    template = tokenizer.response_template
    assert set(template["fields"]) <= {"thinking", "content", "tool_calls"}
    assert set(template["defaults"]) <= {"role"}
    for field in template["fields"].values():
        assert field["content"] == "text"
        assert not {"transform", "join"} & set(field)
    assert template["fields"]["thinking"]["close"][0] == "</think>"


def test_a_template_without_header_or_end_cannot_be_parsed(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match="`tokenizer` has a chat template that begins an answer with no header"):
        response_template(tokenizer)
    tokenizer.chat_template += "{% if add_generation_prompt %}\nA:{% endif %}"
    with pytest.raises(ValueError, match="`tokenizer` has a chat template that ends an answer with no token"):
        response_template(tokenizer)


STATES = {
    "qwen3": ("neither", "closed", "<|im_end|>"),
    "qwen3_5_think": ("open", "closed", "<|im_end|>"),
    "qwen3_5_nothink": ("closed", "closed", "<|im_end|>"),
    "glm4moe": ("neither", "closed", None),
    "deepseek_r1_distill": ("open", "open", None),
    "nemotron_3_nano": ("open", "closed", "<|im_end|>"),
    "qwen2_5": ("neither", "neither", "<|im_end|>"),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_other_templates_is_read_from_their_prompt(tokenizer, name):
    tokenizer.chat_template = (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    default, off, end = STATES[name]
    assert prompt_state(tokenizer) == default
    assert prompt_state(tokenizer, enable_thinking=False) == off
    if end:
        assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(end)


# Whether a row trains what it should.


def row(tokenizer, answer: dict, **options) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels as a trainer makes them, and prompt ids."""
    options = {"enable_thinking": True, **options}
    prompt_ids = tokenizer.apply_chat_template([user("q")], add_generation_prompt=True, **options)["input_ids"]
    ids = tokenizer.apply_chat_template([user("q"), answer], **options)["input_ids"]
    start = len(prompt_ids)
    return ids, [-100] * start + ids[start:], prompt_ids


DROPPED = "the chat template drops the reasoning: it is nowhere in the row"
EMPTY = "an empty think block is trained: pass `enable_thinking=False` for answers without reasoning"
ENDLESS = "the end of turn <|im_end|> is not trained, so the model never learns to stop"
LABELS = {
    "reasoning and answer": ("chatml_think", assistant("4", "two"), {}, []),
    "inline reasoning": ("chatml_think", assistant("<think>two</think>4"), {}, []),
    "a direct answer that was a choice": ("chatml_think", assistant("4"), {}, []),
    "a direct answer with thinking off": ("chatml_think", assistant("4"), {"enable_thinking": False}, []),
    "a prompt that opens thinking": ("r1_zero", assistant("4", "two"), {}, []),
    "Qwen3's own template": ("qwen3", assistant("4", "two"), {}, []),
    "a prompt that opens thinking, without reasoning": ("r1_zero", assistant("4"), {}, [EMPTY]),
    "Qwen3's own template, without reasoning": ("qwen3", assistant("4"), {}, [EMPTY]),
    "a template that drops it": (
        "qwen2_5",
        assistant("4", "two"),
        {},
        [DROPPED],
    ),
    "reasoning that never ends": (
        "chatml_think",
        assistant("<think>two"),
        {},
        ["</think> is not trained, so the model never learns to end its thinking"],
    ),
    "a template that does not end its turns": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ '[assistant]' if add_generation_prompt }}",
        assistant("4"),
        {},
        ["the chat template writes no token after an answer, so the model never learns to stop"],
    ),
    "reasoning that ends too early": (
        "chatml_think",
        assistant("4", "write </think> now"),
        {},
        ["the reasoning itself holds </think>, which ends it there"],
    ),
}


@pytest.mark.parametrize(("template", "answer", "options", "causes"), LABELS.values(), ids=LABELS)
def test_labels_are_checked(tokenizer, template, answer, options, causes):
    if template in NAMES:
        set_chat_template(tokenizer, template)
    elif "{" in template:
        tokenizer.chat_template = template
    else:
        tokenizer.chat_template = (TRL_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    assert check_labels(*row(tokenizer, answer, **options), answer, tokenizer) == causes


def test_a_cut_row_is_named(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    answer = assistant("It is 4", "two and two is four, as everybody knows")
    ids, labels, prompt_ids = row(tokenizer, answer)
    short = len(prompt_ids) + 20
    assert check_labels(ids[:short], labels[:short], prompt_ids, answer, tokenizer) == [
        "the reasoning is cut: the row ends before it does, so raise the length limit",
        "the answer is cut: the row ends before it does, so raise the length limit",
        ENDLESS,
    ]


def test_masked_parts_are_named(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    answer = assistant("4", "two and two")
    ids, labels, prompt_ids = row(tokenizer, answer)
    close, end = (
        ids.index(tokenizer.convert_tokens_to_ids("</think>")),
        ids.index(tokenizer.eos_token_id, len(prompt_ids)),
    )
    masked = [-100] * close + labels[close:]
    assert check_labels(ids, masked, prompt_ids, answer, tokenizer) == [
        "the reasoning is in the row, but not trained, or not all of it"
    ]
    assert check_labels(ids, labels[:end] + [-100] * (len(ids) - end), prompt_ids, answer, tokenizer) == [ENDLESS]


def test_a_prompt_that_is_no_prefix_is_named(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    answer = assistant("4")
    ids, labels, _ = row(tokenizer, answer)
    closed = row(tokenizer, answer, enable_thinking=False)[2]
    causes = check_labels(ids, labels, closed, answer, tokenizer)
    at = len(closed) - 6
    assert causes == [
        f"the row does not begin with the prompt: from token {at} the model will see '<think>\\n\\n</think>\\n\\n', "
        "but learns '4<|im_end|>\\n'"
    ]


def test_wrong_labels_are_named(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    answer = assistant("4")
    ids, labels, prompt_ids = row(tokenizer, answer)
    assert check_labels(ids, labels[1:], prompt_ids, answer, tokenizer) == [
        f"`labels` must be as long as `input_ids`, {len(ids)} tokens, got {len(ids) - 1}"
    ]
    assert check_labels(ids, [*labels[1:], -100], prompt_ids, answer, tokenizer) == [
        "a label is neither the token of its position nor -100"
    ]


def test_text_that_the_tokenizer_normalises_is_not_lost(bpe):
    bpe.backend_tokenizer.normalizer = normalizers.NFKC()
    set_chat_template(bpe, "chatml_think")
    answer = assistant("４", "ｔｗｏ")
    assert check_labels(*row(bpe, answer), answer, bpe) == []
    bpe.backend_tokenizer.normalizer = None


def test_an_answer_after_a_closed_thought_may_not_have_reasoning(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.reasoning_content }}</think>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think></think>{% endif %}"
    )
    answer = assistant("4", "two")
    assert check_labels(*row(tokenizer, answer), answer, tokenizer) == [
        "it has reasoning, but its prompt has closed the thinking already (`enable_thinking=False`)"
    ]
