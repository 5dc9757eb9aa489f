import re
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
import trl
from datasets import Dataset
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

NAMES = ["chatml_think", "gemma_think", "instruct_cot", "llama3_think", "mistral_think", "plain_think", "r1_zero"]
# What Llama-3, Gemma and Mistral have as tokens.
TURN_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]"]
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
every_template = pytest.mark.parametrize("name", NAMES)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(content: str | None, reasoning: str | None = None, **more) -> dict:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, **more}


@pytest.fixture
def tokenizer(tokenizer):
    """The embedded model's tokenizer with the tokens of every template."""
    tokenizer.add_special_tokens({"additional_special_tokens": TURN_TOKENS})
    return tokenizer


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
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *TURN_TOKENS]
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


def turn(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


# The conversations of `CHATML` in the turns of other families; where tools are missing, they are refused.
LLAMA = [
    turn("user", "2+2?") + turn("assistant", "<think>\ntwo and two\n</think>\n\n4"),
    turn("user", "2+2?") + turn("assistant", "4"),
    turn("user", "2+2?") + turn("assistant", "<think>\n\n</think>\n\n4"),
    turn("user", "2+2?") + turn("assistant", "4"),
    turn("user", "2+2?") + turn("assistant", "<think>\ntwo\n</think>\n\n4"),
    turn("system", "You are Ada.\n\nBe brief.") + turn("user", "Hi"),
    turn("user", "1") + turn("assistant", "a") + turn("user", "2") + turn("assistant", "<think>\ns\n</think>\n\nb"),
    turn("user", "1") + turn("assistant", "<think>\nr\n</think>\n\na") + turn("user", "2"),
    turn("user", "1") + turn("assistant", "a") + turn("user", "2") + turn("assistant", "<think>\n\n</think>\n\nb"),
    turn("user", "1")
    + turn(
        "assistant",
        '<think>\nlook\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    )
    + turn("ipython", "5")
    + turn("assistant", "<think>\ns\n</think>\n\nb"),
    turn(
        "system",
        'These functions can be called:\n<tools>\n{"name": "f"}\n</tools>\nWrite each call as JSON:\n<tool_call>\n'
        '{"name": "...", "arguments": {...}}\n</tool_call>',
    )
    + turn("user", "1"),
]
PLAIN_THINK = [
    "User:\n2+2?\n\nAssistant:\n<think>\ntwo and two\n</think>\n\n4<|im_end|>",
    "User:\n2+2?\n\nAssistant:\n4<|im_end|>",
    "User:\n2+2?\n\nAssistant:\n<think>\n\n</think>\n\n4<|im_end|>",
    "User:\n2+2?\n\nAssistant:\n4<|im_end|>",
    "User:\n2+2?\n\nAssistant:\n<think>\ntwo\n</think>\n\n4<|im_end|>",
    "You are Ada.\n\nBe brief.\n\nUser:\nHi\n\n",
    "User:\n1\n\nAssistant:\na<|im_end|>\n\nUser:\n2\n\nAssistant:\n<think>\ns\n</think>\n\nb<|im_end|>",
    "User:\n1\n\nAssistant:\n<think>\nr\n</think>\n\na<|im_end|>\n\nUser:\n2\n\n",
    "User:\n1\n\nAssistant:\na<|im_end|>\n\nUser:\n2\n\nAssistant:\n<think>\n\n</think>\n\nb<|im_end|>",
    'User:\n1\n\nAssistant:\n<think>\nlook\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n'
    "</tool_call><|im_end|>\n\nTool:\n5\n\nAssistant:\n<think>\ns\n</think>\n\nb<|im_end|>",
    'These functions can be called:\n<tools>\n{"name": "f"}\n</tools>\nWrite each call as JSON:\n<tool_call>\n'
    '{"name": "...", "arguments": {...}}\n</tool_call>\n\nUser:\n1\n\n',
]
GEMMA = [
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n<think>\ntwo and two\n</think>\n\n4<end_of_turn>\n",
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n<think>\n\n</think>\n\n4<end_of_turn>\n",
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n<think>\ntwo\n</think>\n\n4<end_of_turn>\n",
    "<start_of_turn>user\nYou are Ada.\n\nBe brief.\n\nHi<end_of_turn>\n",
    "<start_of_turn>user\n1<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n<start_of_turn>user\n2<end_of_turn>\n"
    "<start_of_turn>model\n<think>\ns\n</think>\n\nb<end_of_turn>\n",
    "<start_of_turn>user\n1<end_of_turn>\n<start_of_turn>model\n<think>\nr\n</think>\n\na<end_of_turn>\n"
    "<start_of_turn>user\n2<end_of_turn>\n",
    "<start_of_turn>user\n1<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n<start_of_turn>user\n2<end_of_turn>\n"
    "<start_of_turn>model\n<think>\n\n</think>\n\nb<end_of_turn>\n",
]
MISTRAL = [
    "[INST]2+2?[/INST]<think>\ntwo and two\n</think>\n\n4<|im_end|>",
    "[INST]2+2?[/INST]4<|im_end|>",
    "[INST]2+2?[/INST]<think>\n\n</think>\n\n4<|im_end|>",
    "[INST]2+2?[/INST]4<|im_end|>",
    "[INST]2+2?[/INST]<think>\ntwo\n</think>\n\n4<|im_end|>",
    "[INST]You are Ada.\n\nBe brief.\n\nHi",
    "[INST]1[/INST]a<|im_end|>[INST]2[/INST]<think>\ns\n</think>\n\nb<|im_end|>",
    "[INST]1[/INST]<think>\nr\n</think>\n\na<|im_end|>[INST]2",
    "[INST]1[/INST]a<|im_end|>[INST]2[/INST]<think>\n\n</think>\n\nb<|im_end|>",
]
FAMILIES = {"llama3_think": LLAMA, "plain_think": PLAIN_THINK, "gemma_think": GEMMA, "mistral_think": MISTRAL}
RENDERED = [(name, case) for name, texts in FAMILIES.items() for case in range(len(texts))]


@pytest.mark.parametrize(("name", "case"), RENDERED, ids=[f"{name}: {list(CHATML)[case]}" for name, case in RENDERED])
def test_the_other_families_render(tokenizer, name, case):
    set_chat_template(tokenizer, name)
    messages, options, _ = list(CHATML.values())[case]
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == FAMILIES[name][case]


PROMPTS = {
    "chatml_think": ("<|im_start|>assistant\n", ""),
    "gemma_think": ("<start_of_turn>model\n", ""),
    "instruct_cot": ("### Response:\n", "<think>\n"),
    "llama3_think": ("<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
    "mistral_think": ("[/INST]", ""),
    "plain_think": ("Assistant:\n", ""),
    "r1_zero": ("Assistant: ", "<think>\n"),
}


@every_template
def test_the_generation_prompt(tokenizer, name):
    set_chat_template(tokenizer, name)
    header, opened = PROMPTS[name]
    assert generation_prompt(tokenizer) == header + opened
    assert prompt_state(tokenizer) == ("open" if opened else "neither")
    assert generation_prompt(tokenizer, enable_thinking=False) == f"{header}<think>\n\n</think>\n\n"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_read_and_write_reasoning_in_the_same_lines(name):
    chatml = load_template("chatml_think")
    for start, end in [
        ("        {%- set fresh", '        {{- "<|im_start|>assistant'),
        ("        {%- if fresh and not thinking", "            {%- for call"),
    ]:
        lines = chatml[chatml.index(start) : chatml.index(end, chatml.index(start))]
        assert lines.count("\n") > 7
        assert lines in load_template(name)


def test_questions_in_a_row_share_a_bracket_of_mistral(tokenizer):
    set_chat_template(tokenizer, "mistral_think", instruction="Be brief.")
    chat = [user("1"), user("2"), assistant("a")]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "[INST]Be brief.\n\n1\n\n2[/INST]a<|im_end|>"


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
    "a token of its own comes first": ("<s>", "<s>"),
    "a token that begins turns comes first where it does not begin them": ("<|im_start|>", "<|im_start|>"),
    "the end of sequence never does": (None, ""),
}
FIRST = {
    "chatml_think": "<|im_start|>user\nq",
    "gemma_think": "<start_of_turn>user\nq",
    "instruct_cot": "### Question:\nq",
    "llama3_think": "<|start_header_id|>user<|end_header_id|>\n\nq",
    "mistral_think": "[INST]q",
    "plain_think": "User:\nq",
    "r1_zero": "User: q",
}


@every_template
@pytest.mark.parametrize(("bos", "first"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_beginning_of_sequence(tokenizer, name, bos, first):
    set_chat_template(tokenizer, name, instruction="")
    tokenizer.bos_token = bos or tokenizer.eos_token
    first = "" if name == "chatml_think" and bos == "<|im_start|>" else first
    assert tokenizer.apply_chat_template([user("q")], tokenize=False).startswith(first + FIRST[name])


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
    assert text.rstrip().endswith(f"<think>\nr\n</think>\n\na{tokenizer.eos_token}")
    # Servers that do not copy the keys as transformers does see the same.
    assert raw.render(messages=chat, eos_token=tokenizer.eos_token) == text


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
    assert f"<think>\n\n</think>\n\n<think>r</think>a{tokenizer.eos_token}" in text


@every_template
def test_content_that_is_no_text_is_an_error(tokenizer, name):
    set_chat_template(tokenizer, name)
    with pytest.raises(
        jinja2.TemplateError, match=f"{name} reads text only, but the content of message 0 is no string"
    ):
        tokenizer.apply_chat_template([user([{"type": "image"}])])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gemma_think", "instruct_cot", "mistral_think", "r1_zero"])
def test_what_a_template_has_no_form_for_is_refused(tokenizer, name):
    set_chat_template(tokenizer, name)
    with pytest.raises(jinja2.TemplateError, match=f"{name} has no form for tools: use chatml_think"):
        tokenizer.apply_chat_template([user("q")], tools=[{"name": "f"}])
    with pytest.raises(jinja2.TemplateError, match=f"{name} has no form for message 1"):
        tokenizer.apply_chat_template([user("q"), {"role": "tool", "content": "5"}])
    with pytest.raises(jinja2.TemplateError, match=f"{name} has no form for message 1"):
        tokenizer.apply_chat_template([user("q"), assistant("", tool_calls=[{"name": "f", "arguments": {}}])])


@pytest.mark.parametrize("name", ["gemma_think", "mistral_think"])
def test_a_system_message_needs_a_question_to_begin(tokenizer, name):
    set_chat_template(tokenizer, name)
    with pytest.raises(jinja2.TemplateError, match=f"{name} writes the system message into the first question, but"):
        tokenizer.apply_chat_template([{"role": "system", "content": "s"}])


@pytest.mark.parametrize("chat", [[assistant("a")], [user("q"), assistant("a"), assistant("b")]], ids=["no", "two"])
def test_mistral_needs_a_question_before_each_answer(tokenizer, chat):
    set_chat_template(tokenizer, "mistral_think")
    with pytest.raises(jinja2.TemplateError, match=f"mistral_think has no form for message {len(chat) - 1}: it knows"):
        tokenizer.apply_chat_template(chat)


@every_template
@pytest.mark.parametrize("reasoning", ["so far", "first step\n\n", "a trailing space "])
def test_reasoning_can_be_continued(tokenizer, name, reasoning):
    set_chat_template(tokenizer, name)
    chat = [user("q"), {"role": "assistant", "reasoning_content": reasoning}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message="reasoning_content")
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert text == prompt + ("<think>\n" if prompt_state(tokenizer) == "neither" else "") + reasoning


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
    assert tokenizer.apply_chat_template([user("q")], tokenize=False).startswith(FIRST[name])


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


ENDS = {"chatml_think": "<|im_end|>", "gemma_think": "<end_of_turn>", "llama3_think": "<|eot_id|>"}


@every_template
def test_the_end_of_turn_becomes_the_end_of_sequence(bpe, caplog, name):
    bpe.eos_token = "<|endoftext|>"
    set_chat_template(bpe, name)
    end = ENDS.get(name, "<|endoftext|>")
    assert bpe.eos_token == end
    assert bpe.convert_ids_to_tokens(end_of_turn(bpe)) == end
    warned = f"`tokenizer.eos_token` was '<|endoftext|>' and is '{end}' now, with which '{name}' ends a turn"
    assert (warned in caplog.text) == (name in ENDS)


def test_a_tokenizer_that_could_not_stop_is_an_error():
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(alphabet, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    endless = PreTrainedTokenizerFast(tokenizer_object=plain)
    with pytest.raises(ValueError, match=r"`tokenizer` has no `eos_token`, with which 'r1_zero' ends a turn: set one"):
        set_chat_template(endless, "r1_zero")
    with pytest.raises(
        ValueError,
        match=r"no single token <\|im_end\|>, with which 'chatml_think' ends a turn.*\"plain_think\", \"r1_z",
    ):
        set_chat_template(endless, "chatml_think")
    assert endless.chat_template is None


def test_special_think_tokens_are_warned_about(tokenizer, caplog):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    set_chat_template(tokenizer, "chatml_think")
    assert "`skip_special_tokens=True`, the default of most servers, erases them" in caplog.text


# What other templates do to a prompt.

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


@every_template
@pytest.mark.parametrize("reasoning", ["two", None])
def test_the_labels_of_our_templates_are_right(tokenizer, name, reasoning):
    set_chat_template(tokenizer, name)
    answer = assistant("4", reasoning)
    assert check_labels(*row(tokenizer, answer, enable_thinking=reasoning is not None), answer, tokenizer) == []


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


# What TRL trains.

AFTER = {"chatml_think": "\n", "gemma_think": "\n"}


@pytest.mark.parametrize("only", ["completion_only_loss", "assistant_only_loss"])
@every_template
def test_trl_trains_reasoning_answer_and_end_of_turn(tokenizer, tiny_model, tmp_path, name, only):
    set_chat_template(tokenizer, name)
    rows = [
        {
            "prompt": [user("2+3?")],
            "completion": [assistant("5", reasoning)],
            "chat_template_kwargs": {"enable_thinking": reasoning is not None},
        }
        for reasoning in ("2 plus 3", None, "三加二")
    ]
    args = trl.SFTConfig(
        str(tmp_path), max_length=None, use_cpu=True, bf16=False, activation_checkpointing=False, **{only: True}
    )
    trainer = trl.SFTTrainer(str(tiny_model), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    texts = [tokenizer.decode([i for i in labels if i != -100]) for labels in trainer.train_dataset["labels"]]
    opener = "" if PROMPTS[name][1] else "<think>\n"
    # Without its masks TRL trains to the end of the row, where some have a line break after the end of turn.
    end = tokenizer.eos_token + (AFTER.get(name, "") if only == "completion_only_loss" else "")
    assert texts == [f"{opener}2 plus 3\n</think>\n\n5{end}", f"5{end}", f"{opener}三加二\n</think>\n\n5{end}"]
