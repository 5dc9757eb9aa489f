import re

import pytest

from think_tools import FORMATS, THINK, ThinkFormat, parse

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
}


@pytest.mark.parametrize(("markers", "message"), REFUSED.values(), ids=REFUSED)
def test_markers_that_cannot_be_told_apart_are_refused(markers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ThinkFormat("mine", *markers)
