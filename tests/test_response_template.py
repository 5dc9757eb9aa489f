import re
from dataclasses import replace

import pytest
from make_tokenizer import byte_tokenizer, make_tokenizer, template_names
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_parsing import ResponseParser
from trl import chat_template_utils as trl_templates

from think_tools import FORMATS, THINK, ThinkFormat, Trace, detect_format, parse
from think_tools.templates import (
    generation_prompt,
    prompt_state,
    response_template,
    serving_errors,
    set_chat_template,
    set_response_template,
)
from think_tools.templates.generation import QUESTION, render_chat
from think_tools.tiny.load import FOLDER

CHAT = [{"role": "user", "content": f"What does <think> mean? {QUESTION['content']}"}]
OURS = ["chatml_think", "instruct_cot", "r1_zero"]
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
STATES = [{}, {"enable_thinking": True}, {"enable_thinking": False}]


def readings(template: dict, prefix: str, text: str) -> list[dict]:
    """The different messages that transformers reads from `text`: whole, cut in two at every place, and in pieces."""
    cuts = [[text], *([text[:i], text[i:]] for i in range(1, len(text)))]
    cuts += [[text[i : i + size] for i in range(0, len(text), size)] for size in (1, 2, 3)]
    found = []
    for pieces in cuts:
        parser = ResponseParser(template, prefix=prefix)
        for piece in pieces:
            parser.feed(piece)
        message, _ = parser.finalize()
        if message not in found:
            found.append(message)
    return found


def message(trace: Trace) -> dict:
    parts = {"role": "assistant", "thinking": trace.reasoning, "content": trace.answer}
    return {key: value for key, value in parts.items() if value}


def check_reads_as_parse(tokenizer: PreTrainedTokenizerBase, ending: str, **options) -> None:
    fmt = detect_format(tokenizer) or THINK
    state = prompt_state(tokenizer, fmt=fmt, **options)
    template = response_template(tokenizer)
    prefix = render_chat(tokenizer, CHAT, add_generation_prompt=True, **options)
    for name, output in OUTPUTS.items():
        if state == "open":  # the prompt wrote it; transformers would keep a second one
            output = output.lstrip().removeprefix("<think>")
        output = output.replace("<think>", fmt.open).replace("</think>", fmt.close + fmt.answer_open)
        # Text before the reasoning would be lost: transformers keeps one piece of the answer.
        trace = parse(output, opened=state == "open", fmt=replace(fmt, text_before=False))
        if state == "closed":
            trace = Trace(None, output.strip(), "no_think")  # the block of the prompt was the reasoning
        assert readings(template, prefix, output + ending) == [message(trace)], name


@pytest.mark.parametrize("ending", ["", "<|im_end|>\n<|endoftext|>"], ids=["cut", "padded"])
@pytest.mark.parametrize("options", STATES, ids=str)
@pytest.mark.parametrize("name", ["chatml_think", "mistral_think", "r1_zero"])
def test_transformers_reads_outputs_as_we_do(tokenizer, name, options, ending):
    set_chat_template(tokenizer, name)
    check_reads_as_parse(tokenizer, ending, **options)


@pytest.mark.parametrize("name", template_names())
def test_any_packaged_template_gets_one_that_reads_as_we_do(name):
    tokenizer = make_tokenizer(name)
    assert serving_errors(response_template(tokenizer)) == []
    check_reads_as_parse(tokenizer, f"{tokenizer.eos_token}\n<|pad|>", enable_thinking=False)
    check_reads_as_parse(tokenizer, "", enable_thinking=True)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_PROMPT = "<|im_start|>assistant\n"
ANSWERED = [
    "<think>\nr\n</think>\n\n<answer>\na\n</answer>",
    "<think>r</think><answer>a</answer>",
    "<answer>a</answer>",
]
PLAIN = ["<think>r", "a", "<think>r</think>x</think><answer>a", "<think>r</think><answer>a"]


@pytest.mark.parametrize("fmt", dict.fromkeys(FORMATS.values()), ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("ending", ["", "<|im_end|>\n<|pad|>"], ids=["cut", "padded"])
def test_any_format_is_read_as_we_do(fmt, ending):
    template = response_template(byte_tokenizer(CHATML, eos="<|im_end|>"), fmt)
    assert serving_errors(template) == []
    markers = {"<think>": fmt.open, "</think>": fmt.close, "<answer>": fmt.answer_open, "</answer>": fmt.answer_close}
    for output in [*ANSWERED, *PLAIN]:
        written = re.sub("|".join(markers), lambda match: markers[match[0]], output)
        expected = message(parse(written, fmt=fmt))
        assert readings(template, CHATML_PROMPT, written + ending) == [expected], written


DIFFERENCES = {
    "an opening marker that the model repeats stays in the reasoning": (
        "think",
        CHATML_PROMPT + "<think>\n",
        "<think>r</think>a",
        {"thinking": "<think>r", "content": "a"},
    ),
    "reasoning after text stays in the answer, of which transformers would keep one piece": (
        "gemma_4",
        CHATML_PROMPT,
        "a<|channel>thought\nr<channel|>b",
        {"content": "a<|channel>thought\nr<channel|>b"},
    ),
    "text after the marker that closes the answer keeps it": (
        "r1_zero",
        CHATML_PROMPT,
        "<think>r</think><answer>a</answer> b",
        {"thinking": "r", "content": "a</answer> b"},
    ),
    "a short spelling of the opening marker with the next letter of the long one stays text": (
        "gemma_4",
        CHATML_PROMPT,
        "<|channel>two<channel|>b",
        {"content": "<|channel>two<channel|>b"},
    ),
}


@pytest.mark.parametrize(("name", "prompt", "output", "expected"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_what_is_read_otherwise_is_not_lost(name, prompt, output, expected):
    template = response_template(byte_tokenizer(CHATML, eos="<|im_end|>"), FORMATS[name])
    assert readings(template, prompt, output) == [{"role": "assistant", **expected}]
    assert message(parse(output, opened=prompt.endswith("<think>\n"), fmt=FORMATS[name])) != {
        "role": "assistant",
        **expected,
    }


GPT_OSS = {
    "a tool call after the reasoning": (
        "<|channel|>analysis<|message|>r<|end|><|start|>assistant"
        " to=functions.f<|channel|>commentary json<|message|>{}",
        {"thinking": "r", "content": "to=functions.f<|channel|>commentary json<|message|>{}"},
    ),
    "an answer at once": ("<|channel|>final<|message|>a<|return|>", {"content": "a"}),
    "an answer whose message has no header": (
        "<|channel|>analysis<|message|>r<|end|><|channel|>final<|message|>a<|return|>",
        {"thinking": "r", "content": "a"},
    ),
    "a marker in the answer": (
        "<|channel|>final<|message|>a <|channel|>final<|message|>b",
        {"content": "a <|channel|>final<|message|>b"},
    ),
    "another message before the answer": (
        "<|channel|>commentary<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>a",
        {"content": "<|channel|>commentary<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>a"},
    ),
}


@pytest.mark.parametrize(("output", "expected"), GPT_OSS.values(), ids=GPT_OSS)
def test_channels_are_read(output, expected):
    template = response_template(make_tokenizer("gptoss"))
    assert readings(template, "<|start|>assistant", output) == [{"role": "assistant", **expected}]


BARE = (
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜></think>"
    "{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
NEXT_TURN = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}{{ '\n<think></think>' }}{% endif %}"
    "{% endif %}"
    "{# <|user|> #}"
)
SAME_END = CHATML.replace("<|im_end|>", "<|end|>").replace("<|im_start|>assistant\n", "<|begin|>assistant")
TEMPLATES = {
    "a prompt that skips thinking with a bare closing marker": (BARE, THINK, {}, "a", {"content": "a"}),
    "the same prompt with thinking on": (
        BARE,
        THINK,
        {"thinking": True},
        "r</think>a",
        {"thinking": "r", "content": "a"},
    ),
    "answers that follow the end of the question": (
        MISTRAL,
        FORMATS["magistral"],
        {},
        "[THINK]r[/THINK]a</s>",
        {"thinking": "r", "content": "a"},
    ),
    "turns that end where the next begins": (NEXT_TURN, THINK, {}, "<think>r<|user|>\nq", {"thinking": "r"}),
    "a line break that only one prompt has": (NEXT_TURN, THINK, {"enable_thinking": False}, "a", {"content": "a"}),
    "one token that ends reasoning and turn": (
        SAME_END,
        FORMATS["solar_open"],
        {},
        "<|think|>r<|end|><|begin|>assistant<|content|>a<|end|>",
        {"thinking": "r", "content": "a"},
    ),
}


@pytest.mark.parametrize(("chat_template", "fmt", "options", "output", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_other_templates_get_one(chat_template, fmt, options, output, expected):
    tokenizer = byte_tokenizer(chat_template, eos="<|end|>" if chat_template == SAME_END else "<｜end▁of▁sentence｜>")
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True, **options)
    assert readings(response_template(tokenizer, fmt), prompt, output) == [{"role": "assistant", **expected}]


def test_several_tokens_end_a_turn():
    template = response_template(make_tokenizer("cohere2"), FORMATS["command_a_reasoning"])
    assert template["fields"]["thinking"]["close"] == [
        "<|END_THINKING|>",
        "<|END_RESPONSE|>",
        "<|END_OF_TURN_TOKEN|>",
    ]


def test_text_that_is_no_token_ends_no_turn():
    tokenizer = byte_tokenizer(CHATML.replace("<|im_end|>", "\n###"), eos="<|im_end|>")
    message = {"role": "assistant", "content": "a\n### b"}
    assert readings(response_template(tokenizer), CHATML_PROMPT, "a\n### b<|im_end|>") == [message]


def test_the_format_is_detected_or_given(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    plan = ThinkFormat("plan", "<plan>", "</plan>")
    assert response_template(tokenizer)["fields"]["thinking"]["close"][0] == "</think>"
    assert response_template(tokenizer, plan)["fields"]["thinking"]["close"][0] == "</plan>"
    set_response_template(tokenizer, plan)
    assert tokenizer.parse_response("<plan>r</plan>a", prefix=CHATML_PROMPT)["thinking"] == "r"


def test_it_is_stored_and_reads_tokens_after_a_prompt_of_tokens(tmp_path):
    tokenizer = make_tokenizer("qwen3_5_think")
    set_response_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.response_template == tokenizer.response_template
    for options, output, expected in [
        ({}, "r\n</think>\n\na<|im_end|>", {"thinking": "r", "content": "a"}),
        ({"enable_thinking": False}, "a<|im_end|>", {"content": "a"}),
    ]:
        prompt = loaded.apply_chat_template(CHAT, add_generation_prompt=True, **options)["input_ids"]
        ids = loaded.encode(output, add_special_tokens=False)
        assert loaded.parse_response(ids, prefix=prompt) == {"role": "assistant", **expected}


def test_the_tiny_model_ships_ours():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "base")
    assert tokenizer.response_template == response_template(tokenizer)


@pytest.mark.parametrize("name", OURS)
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


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLS = {
    "qwen3": '<think>r</think><tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>',
    "gptoss": "<|channel|>analysis<|message|>r<|end|><|start|>assistant to=functions.f<|channel|>commentary json"
    '<|message|>{"x": 1}<|call|>',
}


@pytest.mark.parametrize("name", CALLS)
def test_tool_calls_are_text_unless_the_tokenizer_has_a_field_for_them(name):
    tokenizer = make_tokenizer(name)
    template = response_template(tokenizer)
    (plain,) = readings(template, template["start_anchor"], CALLS[name])
    assert plain["thinking"] == "r"
    assert '"x": 1}' in plain["content"]
    trl_templates.add_response_schema(tokenizer)
    template = response_template(tokenizer)
    assert serving_errors(template) == []
    parsed = {"role": "assistant", "thinking": "r", "tool_calls": [CALL]}
    assert readings(template, template["start_anchor"], CALLS[name]) == [parsed]


def test_a_template_without_header_or_end_cannot_be_parsed(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match="`tokenizer` has a chat template that begins an answer with no header"):
        response_template(tokenizer)
    tokenizer.chat_template += "{% if add_generation_prompt %}\nA:{% endif %}"
    assert response_template(tokenizer)["start_anchor"] == "A:"
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"that ends an answer with no token, so .* `set_chat_template\(tokenizer, "):
        response_template(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="`tokenizer` has no chat template, so answers cannot be found in a chat"):
        set_response_template(tokenizer)


# What servers refuse. Both servers' own checks were run on 20,000 random templates and said the same.

TEXT = {"open": "<think>", "close": "</think>"}
REFUSED = {
    "nothing": ({"fields": {"thinking": TEXT, "content": {}}}, []),
    "reasoning under the name that TRL uses": (
        {"fields": {"reasoning_content": TEXT, "content": {}}},
        [
            "vLLM and SGLang refuse the field 'reasoning_content': they know 'content', 'thinking', 'tool_calls'",
            "vLLM refuses `--reasoning-parser hf`, and SGLang finds no parser: no field 'thinking'",
        ],
    ),
    "other defaults than the role": (
        {"fields": {"thinking": TEXT}, "defaults": {"role": "assistant", "content": ""}},
        ["vLLM and SGLang refuse the defaults ['content']: they know 'role' only"],
    ),
    "blocks that are joined": (
        {"fields": {"thinking": {**TEXT, "repeats": True, "join": "\n"}, "content": {"content": "json"}}},
        [
            "vLLM and SGLang refuse the field 'thinking': it must be text, no `transform`, no `join`",
            "vLLM and SGLang refuse the field 'content': it must be text, no `transform`, no `join`",
        ],
    ),
    "tool calls without a marker": (
        {"fields": {"thinking": TEXT, "tool_calls": {"close": "x"}}},
        ["SGLang refuses the field 'tool_calls': it needs `open` or `open_pattern`"],
    ),
    "reasoning without a marker before an answer with one": (
        {"fields": {"thinking": {"close": "</think>"}, "content": {"open": "</think>"}}},
        ["SGLang refuses the field 'thinking': it needs `open` or `open_pattern`"],
    ),
    "what transformers refuses": (
        {"fields": {"thinking": {"open_pattern": "("}}},
        ["transformers, vLLM and SGLang refuse it: Field 'thinking': invalid open_pattern regex: "],
    ),
    "no fields": (
        {"fields": {}},
        ["transformers, vLLM and SGLang refuse it: response_template.fields must be a non-"],
    ),
}


@pytest.mark.parametrize(("template", "errors"), REFUSED.values(), ids=REFUSED)
def test_servers_refuse(template, errors):
    found = serving_errors({"start_anchor": "A:", **template})
    assert len(found) == len(errors)
    assert all(one.startswith(error) for one, error in zip(found, errors, strict=True)), found


STORED = ["gptoss", "llama3", "lfm2_2_5"]


def test_servers_refuse_most_of_the_templates_that_trl_stores():
    # The reason why ours names its field otherwise. Llama 3 has no reasoning, so nobody asks for a reasoning parser.
    stored = {name: one for name, one in vars(trl_templates).items() if isinstance(one, dict) and "fields" in one}
    accepted = [name for name, one in stored.items() if "refuse the field" not in "".join(serving_errors(one))]
    assert sorted(accepted) == [f"{name}_template" for name in sorted(STORED)]
    assert len(stored) > len(accepted)


# What our pattern works around in transformers: each of these fails once it is no longer needed.


def test_transformers_still_keeps_one_piece_of_a_field_only():
    fields = {"thinking": {"open": "<think>", "close": "</think>"}, "content": {}}
    template = {"start_anchor": "A:", "fields": fields}
    assert readings(template, "A:", "a<think>r</think>b") == [{"thinking": "r", "content": "b"}]


def test_transformers_still_cuts_a_literal_short_if_a_longer_one_comes_in_pieces():
    # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/utils/chat_parsing/response_parser.py
    fields = {"thinking": {"open": ["<a>", "<a>bc"], "close": "</a>"}, "content": {}}
    assert readings({"start_anchor": "A:", "fields": fields}, "A:", "<a>bcr</a>") == [
        {"thinking": "r"},
        {"thinking": "bcr"},
    ]
