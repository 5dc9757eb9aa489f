"""What `check_template` measures, what it advises, and that the advice helps."""

import dataclasses
import json
import os
import re
import time

import pytest
from datasets import Dataset
from make_tokenizer import byte_tokenizer, make_tokenizer, template_names
from tokenizers import AddedToken, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from think_tools import FORMATS, parse
from think_tools.data import prepare_sft
from think_tools.templates import (
    check_template,
    end_of_turn,
    generation_prompt,
    load_template,
    prompt_state,
    set_chat_template,
)
from think_tools.templates.check import OURS, PLAIN
from think_tools.templates.probe import prompt_tail

QUESTION = [{"role": "user", "content": "2+2?"}]
THINKING = {"role": "assistant", "reasoning_content": "two and two", "content": "4"}
PLAIN_ANSWER = {"role": "assistant", "reasoning_content": None, "content": "4"}


def rows_of(*answers: dict) -> Dataset:
    return Dataset.from_list([{"prompt": QUESTION, "completion": [answer]} for answer in answers])


def trained(rows, tokenizer) -> list[str]:
    """What the labels of each row say."""
    prepared = prepare_sft(rows, tokenizer, max_length=None)
    return [tokenizer.decode([label for label in row["labels"] if label != -100]) for row in prepared]


def follow(remedy: str, tokenizer, rows=None, **names):
    """Run the code of a remedy with the imports it names, as a user would; the rows and the value of an expression."""
    scope = {"tokenizer": tokenizer, "rows": rows, **names}
    for module in re.findall(r"` from ([\w.]+)", remedy):
        exec(f"from {module} import *", scope)
    value = None
    for code in re.findall(r"`([^`]+)`", remedy):
        if " = " in code.partition("(")[0]:
            exec(code, scope)
        else:
            value = eval(code, scope)
    return scope["rows"], value


def findings(tokenizer, severity: str) -> list[str]:
    return [each.what for each in check_template(tokenizer).findings if each.severity == severity]


# The matrix of all templates that TRL packages: what becomes of inline `<think>`, whether `reasoning_content` is read,
# what stands before a plain answer, how the prompt leaves the reasoning, what `enable_thinking=False` adds to the
# prompt, and what the history keeps.
IGNORED = ("literal", False, "", "neither", "", "inline kept")
DEEPSEEK = ("dropped", False, "", "open", "", "stripped")
NEMOTRON = ("parsed", True, "<think></think>", "open", "</think>", "stripped")
QWEN3_5 = ("parsed", True, "<think>\n\n</think>", "open", "\n</think>\n\n", "stripped")
LFM2_5 = ("literal", True, "", "neither", "", "stripped")
# Reasoning is stripped from the history, as everywhere; `<think>` in the content is no reasoning to these templates.
OWN_MARKERS = ("literal", True, "", "neither", "", "inline kept")
MATRIX = {
    **dict.fromkeys(("qwen2_5", "qwen3_instruct_2507", "qwen3_vl", "lfm2", "phi3", "gemma3", "cohere2"), IGNORED),
    "gemma4": IGNORED,  # it renders reasoning in turns with tool calls only
    "qwen3": ("parsed", True, "<think>\n\n</think>", "neither", "<think>\n\n</think>\n\n", "stripped"),
    **dict.fromkeys(("qwen3_5_think", "qwen3_6"), QWEN3_5),
    "qwen3_5_nothink": ("parsed", True, "<think>\n\n</think>", "closed", "", "stripped"),
    "qwen3_8": ("doubled", True, "<think>\n\n</think>", "open", "\n</think>\n\n", "kept"),
    **dict.fromkeys(("deepseek_r1_distill", "deepseekv3"), DEEPSEEK),
    "gptoss": OWN_MARKERS,
    "glm4moe": ("parsed", True, "<think></think>", "neither", "\n<think></think>", "stripped"),
    **{f"nemotron_3_{size}": NEMOTRON for size in ("nano", "super", "ultra", "5_lightning")},
    "lfm2_2_5": LFM2_5,
    "muse_glimmer": ("literal", True, "", "neither", "", "kept"),
    # Templates that the page does not name.
    "llama3": IGNORED,
    **dict.fromkeys(("llama3_1", "llama3_2", "cohere", "gemma", "lfm2_v2", "phi3_5", "qwen2_5_vl"), IGNORED),
    **dict.fromkeys(("gemma4_v2", "gemma4_v3", "gemma4_v4", "idefics3", "llava_next", "smolvlm"), IGNORED),
    **dict.fromkeys(("gemma4_v5", "diffusion_gemma"), OWN_MARKERS),
    **dict.fromkeys(("lfm2_2_5_v2", "lfm2_2_5_vl"), LFM2_5),
}


def test_the_matrix_names_every_packaged_template():
    assert sorted(MATRIX) == template_names()


@pytest.mark.parametrize("name", MATRIX)
def test_the_matrix_of_packaged_templates(name):
    tokenizer = make_tokenizer(name)
    report = check_template(tokenizer)
    default, off = (prompt_tail(tokenizer, report.switch.get(mode, {})) for mode in ("default", "off"))
    history = "kept" if "reasoning_content" in report.history else "stripped"
    assert (
        report.inline["<think>"],
        "reasoning_content" in report.last_turn,
        report.empty_block,
        report.prompts["default"],
        off[len(os.path.commonprefix([default, off])) :],  # noqa: RUF071
        "inline kept" if (history, "inline" in report.history) == ("stripped", True) else history,
    ) == MATRIX[name]


SYSTEM_TOO = {"glm4moe": "2+2?/nothink", "qwen3_8": "Reasoning effort is set to xhigh"}


@pytest.mark.parametrize("name", SYSTEM_TOO)
def test_two_switches_also_change_the_text_before_the_prompt(name):
    tokenizer = make_tokenizer(name)
    texts = [
        tokenizer.apply_chat_template(QUESTION, tokenize=False, **options)
        for options in check_template(tokenizer).switch.values()
    ]
    assert [SYSTEM_TOO[name] in text for text in texts].count(True) == 1


# `prepare_sft` writes the reasoning behind the open prompt of the first two, and ends the third's rows in the next
# header.
PREPARED = ("deepseek_r1_distill", "deepseekv3", "glm4moe")


@pytest.mark.parametrize("name", PREPARED)
def test_prepare_sft_alone_helps_where_stock_trainers_need_another_template(name):
    tokenizer = make_tokenizer(name)
    errors = [each for each in check_template(tokenizer).findings if each.severity == "error"]
    assert [("`prepare_sft(" in each.remedy) for each in errors] == [name != "glm4moe"]
    (text,) = trained(rows_of(THINKING), tokenizer)
    assert re.search(r"two and two\s*</think>\s*4", text), text


@pytest.mark.parametrize("name", sorted({*template_names()} - {*PREPARED}))
def test_an_error_is_what_prepare_sft_refuses_and_its_remedy_is_what_helps(name):
    tokenizer, rows = make_tokenizer(name), rows_of(THINKING)
    errors = [each for each in check_template(tokenizer).findings if each.severity == "error"]
    if not errors:
        assert "two and two" in trained(rows, tokenizer)[0]
        return
    with pytest.raises(Exception, match=r"cannot be trained as meant|has no attribute 'text'"):
        trained(rows, tokenizer)
    rows, _ = follow(errors[0].remedy, tokenizer, rows)
    (text,) = trained(rows, tokenizer)
    assert re.search(r"two and two\s*</think>\s*4", text), text
    if "rows.map" not in errors[0].remedy:  # which moves the reasoning to where the same template keeps it
        assert check_template(tokenizer).ok


def test_the_templates_that_the_package_ships_are_clean(tokenizer):
    for name in ("chatml_think", "plain_think", "r1_zero", "instruct_cot"):
        set_chat_template(tokenizer, name)
        report = check_template(tokenizer)
        warnings = [each.what for each in report.findings if each.severity != "note"]
        # A prompt that opens the reasoning has to be answered by closing it.
        assert all("answers without reasoning train" in what for what in warnings), (name, warnings)
        assert (report.prompts["default"] == "open") == bool(warnings)
        assert report.response_template == "accepted"
        assert report.end_is_marked


def test_the_templates_that_are_advised_exist():
    for end, name in OURS.items():
        assert end in load_template(name)
    assert load_template(PLAIN)


# Made-up templates, each with one thing that is wrong.

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
END = "{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
GOOD = TURN + THOUGHT + END + PROMPT


def with_tokens(template: str, *, special: bool = False, **tokens):
    tokenizer = byte_tokenizer(template, **{"eos": "<|im_end|>", **tokens})
    markers = [AddedToken(each, special=special, normalized=False) for each in ("<think>", "</think>")]
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.add_tokens(markers, special_tokens=special)
    return tokenizer


def test_a_good_template_has_no_error_and_no_warning():
    report = check_template(with_tokens(GOOD))
    assert [each.severity for each in report.findings] == ["note"]
    assert report.findings[0].what == "there is no `response_template`, by which servers split the output"


def test_reasoning_that_is_dropped_is_an_error_with_the_line_that_helps():
    (error,) = [each for each in check_template(with_tokens(TURN + END + PROMPT)).findings if each.severity == "error"]
    assert error.what == "the chat template drops the reasoning of the very turn that is trained"
    assert error.remedy == '`set_chat_template(tokenizer, "chatml_think")` from think_tools.templates'


def test_a_prompt_that_training_never_shows_is_an_error():
    tokenizer = with_tokens(GOOD.replace("assistant\n{% endif %}", "assistant\nSure. {% endif %}"))
    report = check_template(tokenizer)
    assert [each.what for each in report.findings if each.severity == "error"] == [
        "the prompt goes on 'Sure. ', but what is trained '<think>\\nFirst I think.\\n</think>\\n\\nAn answer."
        "<|im_end|>\\n' (thinking: default)"
    ]
    follow(report.findings[0].remedy, tokenizer)
    assert check_template(tokenizer).ok


def test_a_token_that_merges_over_the_seam_is_an_error(tokenizer):
    tokenizer.add_tokens([AddedToken("\n<think>", normalized=False)])
    tokenizer.chat_template = GOOD
    assert "the prompt goes on '\\n', but what is trained '\\n<think>" in findings(tokenizer, "error")[0]


def test_turns_without_an_end_are_an_error():
    tokenizer = with_tokens(GOOD.replace("<|im_end|>\n{% endfor", "\n{% endfor"))
    report = check_template(tokenizer)
    assert report.findings[0].what == "no token follows the last answer, so the model never learns to stop"
    follow(report.findings[0].remedy, tokenizer)
    assert check_template(tokenizer).ok


def test_markers_without_the_end_of_turn_are_a_warning_and_prepare_sft_trains_it():
    marked = GOOD.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    tokenizer = with_tokens(marked)
    report = check_template(tokenizer)
    assert report.end_is_marked is False
    assert report.findings[0].what == (
        "{% generation %} leaves out <|im_end|>, so `assistant_only_loss=True` never trains it"
    )
    _, prepared = follow(report.findings[0].remedy, tokenizer, rows_of(THINKING))
    assert tokenizer.eos_token_id in prepared[0]["labels"]
    whole = marked.replace("{% endgeneration %}<|im_end|>", "<|im_end|>{% endgeneration %}")
    assert check_template(with_tokens(whole)).end_is_marked


def test_an_empty_block_is_a_warning_and_prepare_sft_leaves_it_out():
    tokenizer = make_tokenizer("qwen3")
    (warning,) = [each for each in check_template(tokenizer).findings if each.severity == "warning"]
    assert warning.what == (
        "answers without reasoning train '<think>\\n\\n</think>', so that the model unlearns to think"
    )
    follow(warning.remedy, tokenizer, rows_of(PLAIN_ANSWER))
    assert trained(rows_of(PLAIN_ANSWER), tokenizer) == ["4<|im_end|>"]


def test_answers_without_reasoning_after_a_prompt_that_always_opens_it():
    tokenizer = with_tokens(GOOD.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    warning = check_template(tokenizer).findings[0]
    assert warning.what == "every prompt opens the reasoning, so answers without it cannot be trained"
    rows = rows_of(THINKING, PLAIN_ANSWER)
    with pytest.raises(ValueError, match="Row 1 of `dataset` cannot be trained as meant"):
        trained(rows, tokenizer)
    rows, _ = follow(warning.remedy, tokenizer, rows)
    assert trained(rows, tokenizer) == ["two and two\n</think>\n\n4<|im_end|>"]


def test_thinking_that_is_off_by_default_is_found_and_turned_on():
    tokenizer = make_tokenizer("qwen3_5_nothink")
    report = check_template(tokenizer)
    assert report.switch == {"on": {"enable_thinking": True}, "off": {"enable_thinking": False}}
    notes = {each.what: each.remedy for each in report.findings}
    assert "without enable_thinking=True, rows with reasoning do not begin as the prompt does" in notes
    _, encoded = follow(notes["thinking is off unless enable_thinking=True"], tokenizer, messages=QUESTION)
    assert tokenizer.decode(encoded["input_ids"]).endswith("<think>\n")
    assert trained(rows_of(THINKING), tokenizer) == ["two and two\n</think>\n\n4<|im_end|>"]


SWITCHES = {
    "deepseek's": ("thinking", "thinking is defined and not thinking", {"thinking": True}, {"thinking": False}),
    "a budget of tokens": (
        "thinking_budget",
        "thinking_budget is defined and thinking_budget == 0",
        {"thinking_budget": 512},
        {"thinking_budget": 0},
    ),
    "an effort that may be none": (
        "reasoning_effort",
        "reasoning_effort == 'none'",
        {"reasoning_effort": "high"},
        {"reasoning_effort": "none"},
    ),
    "a word in the system message": (
        "system",
        "messages[0].role == 'system' and '/no_think' in messages[0].content",
        {"system": "/think"},
        {"system": "/no_think"},
    ),
}
CLOSED = "{%% if %s %%}<think>\n\n</think>\n\n{%% endif %%}"


@pytest.mark.parametrize(("name", "condition", "on", "off"), SWITCHES.values(), ids=SWITCHES)
def test_switches_of_other_names_are_found(name, condition, on, off):
    block = CLOSED % condition
    shown = THOUGHT + "{% if m.role == 'assistant' and not m.reasoning_content %}" + block + "{% endif %}"
    tokenizer = with_tokens(TURN + shown + END + PROMPT.replace("assistant\n", "assistant\n" + block))
    report = check_template(tokenizer)
    assert report.switch == {"on": on, "off": off}
    assert report.prompts == {"default": "neither", "on": "neither", "off": "closed"}
    assert report.prompt_mismatches == {}
    advice = [each.remedy for each in report.findings if each.what.startswith("rows with reasoning need")]
    assert bool(advice) == (name in ("thinking_budget", "reasoning_effort"))
    if advice:
        rows, _ = follow(advice[0], tokenizer, rows_of(THINKING, PLAIN_ANSWER))
        assert [row["chat_template_kwargs"] for row in rows] == [on, off]
        assert trained(rows, tokenizer) == ["<think>\ntwo and two\n</think>\n\n4<|im_end|>", "4<|im_end|>"]


def test_an_effort_is_no_switch():
    report = check_template(make_tokenizer("gptoss"))
    assert (report.switch, report.efforts) == ({}, ("reasoning_effort",))


def test_inline_reasoning_that_is_not_read_is_a_warning_and_to_think_moves_it():
    tokenizer = make_tokenizer("qwen3_8")
    warning = next(each for each in check_template(tokenizer).findings if "between markers" in each.what)
    assert warning.what == ("reasoning between markers in the content is not always read as such (<think>=doubled)")
    answer = {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"}
    rows, _ = follow(warning.remedy, tokenizer, dataset=[{"messages": [*QUESTION, answer]}])
    assert trained(rows, tokenizer) == ["two and two\n</think>\n\n4<|im_end|>"]


def test_reasoning_that_the_history_loses_is_a_note():
    assert any("earlier turns lose their reasoning" in what for what in findings(make_tokenizer("qwen3"), "note"))
    assert not any("earlier turns" in what for what in findings(make_tokenizer("qwen3_8"), "note"))


def test_an_open_prompt_is_a_note_for_parsers():
    note = next(each for each in check_template(make_tokenizer("qwen3_6")).findings if "outputs lack" in each.what)
    assert eval(re.findall("`([^`]+)`", note.remedy)[0], {"parse": parse, "text": "r</think>a"}).reasoning == "r"


def test_an_end_of_turn_that_generation_does_not_know_is_a_warning():
    tokenizer = with_tokens(GOOD.replace("<|im_end|>", "<|endofturn|>"))
    warning = next(each for each in check_template(tokenizer).findings if each.what.startswith("turns end in"))
    assert warning.what == (
        "turns end in <|endofturn|>, but generation stops at <|im_end|> if no setting names another"
    )
    assert warning.remedy == '`SFTConfig(eos_token="<|endofturn|>")` for training'
    tokenizer.eos_token = "<|endofturn|>"  # as the trainer then does
    assert findings(tokenizer, "warning") == []


def test_markers_that_are_special_tokens_are_a_warning():
    tokenizer = with_tokens(GOOD, special=True)
    report = check_template(tokenizer)
    assert report.marker_tokens == "special"
    assert report.findings[0].what == (
        "<think> or </think> holds special tokens, which `skip_special_tokens=True` erases"
    )
    ids = tokenizer.encode("<think>r</think>a")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ra"
    assert follow(report.findings[0].remedy, tokenizer, ids=ids)[1] == "<think>r</think>a"


def test_markers_that_are_text_are_a_note_and_add_think_tokens_makes_them_tokens():
    tokenizer = make_tokenizer("llama3")
    set_chat_template(tokenizer, "llama3_think")
    note = next(each for each in check_template(tokenizer).findings if "several tokens" in each.what)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    follow(note.remedy, tokenizer, model=LlamaForCausalLM(config))
    report = check_template(tokenizer)
    assert report.marker_tokens == "single"
    assert not any("several tokens" in each.what for each in report.findings)


WRONG = {
    "a field that servers refuse": (
        {
            "fields": {
                "reasoning_content": {"open": "<think>", "close": "</think>"},
                "content": {"close": "<|im_end|>"},
            }
        },
        "refuse the field 'reasoning_content'",
    ),
    "what transformers itself refuses": ({"fields": {"content": {"close_pattern": "("}}}, "refuse it"),
    "reasoning that stays in the content": (
        {"fields": {"thinking": {"open": "[T]", "close": "[/T]"}, "content": {"close": "<|im_end|>"}}},
        "it reads an answer as {}",
    ),
    "cut reasoning that becomes the answer": (
        {
            "fields": {
                "thinking": {"open_pattern": "<think>(?=[\\s\\S]*</think>)", "close": "</think>"},
                "content": {"close": "<|im_end|>"},
            }
        },
        "it reads a cut thought as {'content': '<think>",
    ),
}


@pytest.mark.parametrize(("spec", "what"), WRONG.values(), ids=WRONG)
def test_a_wrong_response_template_is_a_warning_and_ours_is_accepted(spec, what):
    tokenizer = with_tokens(GOOD)
    tokenizer.response_template = {"start_anchor": "<|im_start|>assistant\n", **spec}
    (warning,) = [each for each in check_template(tokenizer).findings if each.severity == "warning"]
    assert what in warning.what
    follow(warning.remedy, tokenizer)
    report = check_template(tokenizer)
    assert (report.response_template, report.findings) == ("accepted", ())


# Tokenizers that have little to check.


def test_a_tokenizer_without_template_gets_one_advised():
    for tokens, name in {"<|im_end|>": "chatml_think", "<|eot_id|>": "llama3_think", "<|end|>": "plain_think"}.items():
        tokenizer = byte_tokenizer("", eos=tokens)
        tokenizer.chat_template = None
        report = check_template(tokenizer)
        assert not report.ok
        assert report.findings[0].what == "there is no chat template"
        follow(report.findings[0].remedy, tokenizer)
        assert tokenizer.chat_template == load_template(name)
        assert check_template(tokenizer).ok


def test_a_template_that_cannot_be_rendered_is_an_error():
    for template in (
        "{{ raise_exception('no') }}",
        "{{ messages[5].content.x }}",
        "{{ 1 + '' }}",
        "{% if %}",
        "fixed",
    ):
        report = check_template(byte_tokenizer(template))
        assert [each.what for each in report.findings] == ["the chat template does not render a chat"], template


def test_a_template_that_refuses_chats_stops_nothing():
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}"
        "{% endif %}{% endfor %}"
    )
    assert check_template(with_tokens(strict + GOOD)).ok


def test_a_name_or_folder_is_loaded(tmp_path):
    make_tokenizer("qwen3").save_pretrained(tmp_path)
    report = check_template(str(tmp_path))
    assert (report.name, report.ok) == (str(tmp_path), True)


def test_magistral_reads_its_reasoning_from_a_part_of_the_content():
    parts = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.content is string %}"
        "{{ m.content }}</s>{% else %}{% for part in m.content %}{% if part.type == 'thinking' %}[THINK]"
        "{{ part.thinking }}[/THINK]{% else %}{{ part.text }}{% endif %}{% endfor %}</s>{% endif %}{% endfor %}"
    )
    tokenizer = byte_tokenizer(parts, eos="</s>")
    report = check_template(tokenizer)
    assert report.format == FORMATS["magistral"]
    assert report.last_turn == ("inline", "thinking part")
    assert report.inline == {"<think>": "literal", "[THINK]": "literal"}
    rows, _ = follow(report.findings[0].remedy, tokenizer, rows_of(THINKING))
    assert trained(rows, tokenizer) == ["[THINK]\ntwo and two\n[/THINK]\n\n4</s>"]


# The report itself.


def test_the_report_is_a_table_and_goes_into_json():
    report = check_template(make_tokenizer("qwen3"))
    lines = str(report).splitlines()
    assert "  format            <think> … </think>" in lines
    assert "  switch            on enable_thinking=True, off enable_thinking=False" in lines
    assert "  prompts           default=neither, on=neither, off=closed" in lines
    assert "  empty block       <think>\\n\\n</think>" in lines
    assert any(line.startswith("  -> `prepare_sft(rows, tokenizer, max_length=4096)`") for line in lines)
    again = json.loads(json.dumps(dataclasses.asdict(report)))
    assert again["switch"]["off"] == {"enable_thinking": False}
    assert again["format"]["open"] == "<think>"
    assert {each["severity"] for each in again["findings"]} == {"warning", "note"}


def test_errors_come_first():
    severities = [each.severity for each in check_template(make_tokenizer("glm4moe")).findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_nothing_is_changed():
    tokenizer = make_tokenizer("deepseek_r1_distill")
    before = (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer), tokenizer.response_template)
    check_template(tokenizer)
    assert (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer), tokenizer.response_template) == before


def test_a_large_vocabulary_takes_less_than_a_second():
    tokenizer = make_tokenizer("qwen2_5")
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"word{i}" for i in range(151_000))]
    tokenizer.backend_tokenizer.model = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[])
    assert len(tokenizer) > 151_000
    started = time.process_time()
    check_template(tokenizer)
    assert time.process_time() - started < 1


# What stands before and after an answer.

ENDS = {
    "several tokens after an answer": ("cohere2", "<|END_OF_TURN_TOKEN|>"),
    "a last turn that ends in a token of its own": ("gptoss", "<|return|>"),
    "nothing after the last answer": ("glm4moe", None),
    "content that is a list of parts": ("smolvlm", "<end_of_utterance>"),
}


@pytest.mark.parametrize(("name", "end"), ENDS.values(), ids=ENDS)
def test_the_end_of_turn(name, end):
    tokenizer = make_tokenizer(name)
    token = end_of_turn(tokenizer)
    assert (token if token is None else tokenizer.convert_ids_to_tokens(token)) == end


def test_what_ends_only_the_whole_chat_is_neither_the_end_of_a_turn_nor_part_of_the_prompt():
    tokenizer = byte_tokenizer(make_tokenizer("phi3").chat_template)
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False).endswith("<|end|>\n<|endoftext|>")
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "<|end|>"
    assert generation_prompt(tokenizer) == "<|assistant|>\n"


def test_text_of_ordinary_tokens_is_no_end():
    assert end_of_turn(with_tokens(GOOD.replace("<|im_end|>", "###"))) is None


def test_the_state_of_a_prompt_is_read_in_the_format_of_the_template():
    tokenizer = with_tokens(GOOD.replace("think>", "seed:think>").replace("assistant\n", "assistant\n<seed:think>"))
    assert prompt_state(tokenizer) == "open"
