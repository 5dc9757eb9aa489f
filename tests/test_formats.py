import re
import time
from pathlib import Path

import pytest
import trl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from think_tools import FORMATS, THINK, ThinkFormat, detect_format, parse

FAMILIES = {
    "qwen3": "<think>r</think>a",
    "deepseek_r1": "<think>\nr\n</think>\n\na",
    "r1_zero": "<think> r </think> <answer> a </answer>",
    "hunyuan_a13b": "<think>\nr\n</think>\n<answer>\na\n</answer>",
    "magistral": "[THINK]r[/THINK]a",
    "seed_oss": "<seed:think>r</seed:think>a",
    "minimax_m3": "<mm:think>r</mm:think>a",
    "kimi_vl": "◁think▷r◁/think▷a",
    "kimi_k3": "<|open|>think<|sep|>r<|close|>think<|sep|><|open|>response<|sep|>a<|close|>response<|sep|>",
    "gemma_4": "<|channel>thought\nr\n<channel|>a",
    "command_a_reasoning": "<|START_THINKING|>r<|END_THINKING|><|START_RESPONSE|>a<|END_RESPONSE|>",
    "gpt_oss": "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
    "solar_open": "<|think|>r<|end|><|begin|>assistant<|content|>a<|end|>",
    "inkling": "<|content_thinking|>r<|end_message|><|message_model|><|content_text|>a<|end_message|>",
    "muse": " to=self<|message|>r<|eom|><|start|>assistant to=user<|message|>a<|eot|>",
    "granite_3_2": "Here is my thought process: r\n\nHere is my response: a",
    "apriel": "Here are my reasoning steps:\nr\n[BEGIN FINAL RESPONSE]\na\n[END FINAL RESPONSE]",
    "openthoughts": "<|begin_of_thought|>r<|end_of_thought|>\n\n<|begin_of_solution|>a<|end_of_solution|>",
    "thinking": "<thinking>r</thinking>a",
    "exaone_deep": "<thought>\nr</thought>\n\na",
    "reasoning": "<reasoning>r</reasoning>a",
    "reason": "<reason>r</reason>a",
}


@pytest.mark.parametrize(("name", "text"), FAMILIES.items(), ids=FAMILIES)
def test_what_a_family_writes_is_split(name, text):
    trace = parse(text, fmt=FORMATS[name])
    assert (trace.reasoning, trace.answer, trace.status) == ("r", "a", "complete")


def test_every_family_is_found_by_its_name():
    assert len(FORMATS) >= 60
    for name, fmt in FORMATS.items():
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert fmt is THINK or fmt.name == name


def test_plain_think_families_share_one_format():
    assert FORMATS["qwen3"] is FORMATS["glm_4_5"] is THINK == FORMATS["think"]


REFUSED = {
    "no opening marker": (("", "</t>"), "`open` must not be empty"),
    "no closing marker": (("<t>", ""), "`close` must not be empty"),
    "white space": (("<t>\n", "</t>"), r"`open` must not begin or end with white space, got '<t>\n': strip it."),
    "white space in the answer": (("<t>", "</t>", " <a>"), "`answer_open` must not begin or end with white space"),
    "equal markers": (("##", "##"), "`open` and `close` must not contain one another, got '##' and '##'."),
    "one begins with the other": (("<t>", "<t>/"), "`open` and `close` must not contain one another"),
    "answer begins as the reasoning": (("<t>", "</t>", "<t>"), "`open` and `answer_open` must not contain"),
    "a variant of one contains the other": (
        ("<t>", "</t>", "<q>", "", (("<t>", "<q>!"),)),
        "`open` and `answer_open` must not contain one another, got '<q>!' and '<q>'.",
    ),
}


@pytest.mark.parametrize(("markers", "message"), REFUSED.values(), ids=REFUSED)
def test_markers_that_cannot_be_told_apart_are_refused(markers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ThinkFormat("mine", *markers)


NO_MARKERS = {
    "one stop token": (
        {"stop": "<eos>"},
        "`stop` must be a tuple of markers, got '<eos>': write a single one as `(marker,)`.",
    ),
    "an empty stop token": ({"stop": ("",)}, "`stop` must be a tuple of markers, got ('',)"),
    "a list": ({"tool_open": ["<call>"]}, "`tool_open` must be a tuple of markers, got ['<call>']"),
    "one variant": ({"variants": ("a", "b")}, "`variants` must be a tuple of pairs `(piece, other)`, got ('a', 'b')."),
}


@pytest.mark.parametrize(("fields", "message"), NO_MARKERS.values(), ids=NO_MARKERS)
def test_what_is_no_tuple_of_markers_is_refused(fields, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        ThinkFormat("mine", "<t>", "</t>", **fields)


def make_tokenizer(template=None, tokens=()) -> PreTrainedTokenizerFast:
    """A tokenizer that knows two words, `tokens` and a chat template."""
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, bos_token="<s>")
    tokenizer.add_tokens(list(tokens))
    return tokenizer


PACKAGED = Path(trl.__file__).parent / "chat_templates"
# Beginning of the name of a template that TRL packages -> what its family writes; all others write plain text.
PACKAGED_FORMATS = {
    "deepseek": THINK,
    "diffusion_gemma": FORMATS["gemma_4"],
    "gemma4": FORMATS["gemma_4"],
    "glm4moe": THINK,
    "gptoss": FORMATS["gpt_oss"],
    "lfm2_2_5": THINK,
    "muse_glimmer": FORMATS["muse"],
    "nemotron_3": THINK,
    "qwen3": THINK,
    "qwen3_instruct": None,
    "qwen3_vl": None,
}


@pytest.mark.parametrize("file", sorted(PACKAGED.glob("*.jinja")), ids=lambda file: file.stem)
def test_the_format_of_every_packaged_template_is_detected(file):
    starts = [start for start in PACKAGED_FORMATS if file.stem.startswith(start)]
    expected = PACKAGED_FORMATS[max(starts, key=len)] if starts else None
    assert detect_format(make_tokenizer(file.read_text(encoding="utf-8"))) is expected


def chat_template(turn: str, prompt: str = "") -> str:
    """A template that renders assistant turns as `turn`, from its parts `reasoning` and `answer`."""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% else %}<|assistant|>\n"
        "{%- set reasoning, answer = m.reasoning_content, m.content %}" + turn + "<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n" + prompt + "{% endif %}"
    )


PAIRS = list(dict.fromkeys(FORMATS.values()))


def markers(fmt: ThinkFormat | None) -> tuple[str, ...] | None:
    return fmt and (fmt.open, fmt.close, fmt.answer_open, fmt.answer_close)


@pytest.mark.parametrize("fmt", PAIRS, ids=lambda fmt: fmt.name)
def test_every_format_is_detected_where_reasoning_is_rendered(fmt):
    written = [f"{{{{ {marker[:3]!r} ~ {marker[3:]!r} }}}}" for marker in markers(fmt)]  # never whole in the source
    opened, closed, answer, end = written
    template = chat_template(
        f"{{% if reasoning %}}{opened}{{{{ reasoning }}}}{closed}{{% endif %}}{answer}{{{{ answer }}}}{end}"
    )
    assert markers(detect_format(make_tokenizer(template))) == markers(fmt)


@pytest.mark.parametrize("fmt", PAIRS, ids=lambda fmt: fmt.name)
def test_every_format_is_detected_where_the_template_only_names_it(fmt):
    template = chat_template("{{ answer }}", "{# " + " ".join(markers(fmt)) + " #}")
    assert markers(detect_format(make_tokenizer(template))) == markers(fmt)


MAGISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.content is string %}"
    "{{ m.content }}</s>{% else %}{% for part in m.content %}{% if part.type == 'thinking' %}"
    "[THINK]{{ part.thinking }}[/THINK]{% else %}{{ part.text }}{% endif %}{% endfor %}</s>{% endif %}{% endfor %}"
)
GRANITE_3_3 = (
    "{% if thinking %}Write your thoughts between <think></think> and your response between <response></response>."
    "{% endif %}{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>"
    "{% endfor %}"
)
GRANITE_3_2 = GRANITE_3_3.replace("between <think></think>", "after 'Here is my thought process:'").replace(
    "between <response></response>", "after 'Here is my response:'"
)
APERTUS = (
    "{%- set inner = '<|inner_prefix|>' %}{%- set outer = '<|inner_suffix|>' %}{% for m in messages %}"
    "<|{{ m.role }}_start|>{% if m.content is mapping %}{{ inner }}{{ m.content.thoughts }}{{ outer }}{% else %}"
    "{{ m.content }}{% endif %}<|{{ m.role }}_end|>{% endfor %}"
)
THINKING = "{% if reasoning %}OPEN{{ reasoning }}CLOSE{% endif %}{{ answer }}"
DETECTED = {
    "Magistral renders typed parts only": (MAGISTRAL, "magistral"),
    "Seed-OSS": (
        chat_template(THINKING.replace("OPEN", "<seed:think>").replace("CLOSE", "</seed:think>")),
        "seed_oss",
    ),
    "Gemma 4": (
        chat_template(THINKING.replace("OPEN", "<|channel>thought\n").replace("CLOSE", "\n<channel|>")),
        "gemma_4",
    ),
    "Gemma 4 that only strips channels": (
        chat_template("{{ answer.split('<channel|>')[-1].split('<|channel>')[0] }}"),
        "gemma_4",
    ),
    "GLM": (chat_template("<think>{{ reasoning or '' }}</think>\n{{ answer }}"), "think"),
    "Granite 3.3 asks for it": (GRANITE_3_3, "ernie_4_5"),
    "Granite 3.2 asks for it in prose": (GRANITE_3_2, "granite_3_2"),
    "Granite 4.2": (
        chat_template("{% if reasoning %}<think>\n{{ reasoning }}\n</think>\n{% endif %}{{ answer }}"),
        "think",
    ),
    "Kimi-K2": (chat_template("<think>{{ reasoning }}</think>{{ answer }}"), "think"),
    "Cohere": (
        chat_template("<|START_THINKING|>{{ reasoning }}<|END_THINKING|><|START_TEXT|>{{ answer }}<|END_TEXT|>"),
        "cohere2_moe",
    ),
    "Hunyuan with answer tags": (
        chat_template("<think>\n{{ reasoning }}\n</think>\n<answer>\n{{ answer }}\n</answer>"),
        "r1_zero",
    ),
    "Apertus hides it in a mapping": (APERTUS, "apertus"),
    "DeepSeek V3.1 closes in the prompt": (chat_template("{{ answer }}", "{{ '</thi' ~ 'nk>' }}"), "think"),
    "DeepSeek R1 drops it": (chat_template("{{ answer.split('</think>')[-1] }}", "<think>\n"), "think"),
    "plain text": (chat_template("{{ answer }}"), None),
    "reasoning without markers": (chat_template("{{ reasoning }}\n\n{{ answer }}"), None),
    "parts printed as Python": ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", None),
    "a broken template": ("{% for", None),
    "a broken template that names its markers": ("{# <think> </think> #}{% for", "think"),
    "a template that refuses every message": ("{{ raise_exception('no') }}{# [THINK] [/THINK] #}", "magistral"),
    "several templates": ({"default": MAGISTRAL, "tool_use": "{{ '' }}"}, "magistral"),
    "several templates without a default": (
        {"rag": chat_template("{{ answer }}", "<seed:think></seed:think>")},
        "seed_oss",
    ),
    "no template": (None, None),
    "an empty template": ("", None),
}


@pytest.mark.parametrize(("template", "name"), DETECTED.values(), ids=DETECTED)
def test_families_that_show_themselves_in_different_ways(template, name):
    fmt = detect_format(make_tokenizer(template))
    assert fmt is (FORMATS[name] if name else None)


UNKNOWN = {
    "tags": ("<muse>{{ reasoning }}</muse>{{ answer }}", ("<muse>", "</muse>", "", "")),
    "tags on lines of their own": (
        "{% if reasoning %}<|in|>\n{{ reasoning }}\n<|out|>\n\n{% endif %}{{ answer }}",
        ("<|in|>", "<|out|>", "", ""),
    ),
    "brackets": (
        "{% if reasoning %}[PLAN]{{ reasoning }}[/PLAN]{% endif %} {{ answer }}",
        ("[PLAN]", "[/PLAN]", "", ""),
    ),
    "answer tags": ("<p>{{ reasoning }}</p>\n<q>{{ answer }}</q>", ("<p>", "</p>", "<q>", "</q>")),
    "the header of the turn is no marker": ("{{ reasoning }}<|sep|>{{ answer }}", None),
    "one tag on both sides is no pair": ("<b>{{ reasoning }}<b>{{ answer }}", None),
}


@pytest.mark.parametrize(("turn", "expected"), UNKNOWN.values(), ids=UNKNOWN)
def test_the_tags_of_an_unknown_family_are_read_from_the_rendering(turn, expected):
    fmt = detect_format(make_tokenizer(chat_template(turn)))
    assert markers(fmt) == expected
    assert fmt is None or fmt.name == "detected"


def test_the_stored_response_template_tells_where_the_chat_template_does_not():
    tokenizer = make_tokenizer(chat_template("{{ answer }}"))
    tokenizer.response_template = {
        "fields": {"thinking": {"open_pattern": r"\A\s*\[THINK\]", "close": ["[/THINK]"], "content": "text"}}
    }
    assert detect_format(tokenizer) is FORMATS["magistral"]


def test_the_vocabulary_tells_where_nothing_else_does():
    assert detect_format(make_tokenizer(tokens=["<seed:think>", "</seed:think>"])) is FORMATS["seed_oss"]
    assert detect_format(make_tokenizer(tokens=["<|channel>", "<channel|>"])) is FORMATS["gemma_4"]
    assert detect_format(make_tokenizer(tokens=["<|end|>", "<|message|>"])) is None


def test_the_answer_is_kept_until_the_tokenizer_changes():
    tokenizer = make_tokenizer((PACKAGED / "gemma4.jinja").read_text(encoding="utf-8"))
    begin = time.process_time()
    assert detect_format(tokenizer) is FORMATS["gemma_4"]
    assert time.process_time() - begin < 1
    tokenizer.apply_chat_template = None  # it is not asked again
    assert detect_format(tokenizer) is FORMATS["gemma_4"]
    del tokenizer.apply_chat_template
    tokenizer.chat_template = MAGISTRAL
    assert detect_format(tokenizer) is FORMATS["magistral"]
    tokenizer.chat_template = None
    assert detect_format(tokenizer) is None
    tokenizer.add_tokens(["<think>", "</think>"])
    assert detect_format(tokenizer) is THINK


def test_a_tokenizer_of_150_000_tokens_is_read_in_time():
    tokenizer = make_tokenizer(chat_template("{{ answer }}"), [f"token {n}" for n in range(1000)])
    words = {f"word{n}": n for n in range(150_000)}
    tokenizer.get_vocab = lambda: words
    begin = time.process_time()
    assert detect_format(tokenizer) is None
    assert time.process_time() - begin < 1
