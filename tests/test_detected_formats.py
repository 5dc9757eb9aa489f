"""A model of any family works without configuration: rewards, sampling, labels and the Space find its markers."""

import asyncio
import functools
import pickle
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch
from make_tokenizer import TEMPLATES, byte_tokenizer
from scripted import load_app, saying
from tokenizers import Tokenizer, models, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from think_tools import FORMATS, Trace, detect_format
from think_tools.backends import SamplingParams, TransformersBackend
from think_tools.data import prepare_sft
from think_tools.rewards import (
    accuracy_reward,
    consistency_reward,
    format_reward,
    get_accuracy_reward,
    get_code_reward,
    get_consistency_reward,
    get_format_reward,
    get_group_length_reward,
    get_judge_reward,
    get_language_consistency_reward,
    get_tag_count_reward,
    get_think_length_reward,
    get_think_monitor,
    tag_count_reward,
    think_monitor,
)
from think_tools.rewards.completions import CompletionReader
from think_tools.templates import end_of_turn

APP = functools.cache(load_app)
CHAT = [{"role": "user", "content": "2+3?"}]


def turns(user, assistant, end, before="", prompt=None):
    """A chat template of the usual shape; `assistant` renders the content of a turn of the model."""
    return (
        before + "{% for m in messages %}{% if m.role == 'user' %}" + user + "{{ m.content }}" + end + "{% else %}"
        "" + (prompt or "") + assistant + end + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + (prompt or "") + "{% endif %}"
    )  # fmt: skip


def packaged(name):
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


SEED = (
    turns(
        "<seed:bos>user\n",
        "{% if m.reasoning_content %}<seed:think>{{ m.reasoning_content }}</seed:think>{% endif %}{{ m.content }}",
        "<seed:eos>",
        prompt="<seed:bos>assistant\n",
    )
    + "{% if add_generation_prompt and enable_thinking is false %}<seed:think></seed:think>{% endif %}"
)
MAGISTRAL = turns(
    "[INST]",
    "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}",
    "</s>",
)
COHERE = turns(
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    "<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>",
    "<|END_OF_TURN_TOKEN|>",
    prompt="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)
GRANITE = turns(
    "<|start_of_role|>user<|end_of_role|>",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think><response>{{ m.content }}</response>"
    "{% else %}{{ m.content }}{% endif %}",
    "<|end_of_text|>",
    before="{% if thinking %}Write your thoughts between <think></think> and your response between "
    "<response></response>.{% endif %}",
    prompt="<|start_of_role|>assistant<|end_of_role|>",
)
DEEPSEEK = turns(
    "<｜User｜>",
    "{{ m.reasoning_content + '</think>' if m.reasoning_content }}{{ m.content }}",
    "<｜end▁of▁sentence｜>",
    prompt="<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}",
)

CLOSED = "{% for m in messages %}{{ m.role }}{% endfor %}{% if add_generation_prompt %}<think></think>{% endif %}"

# Family -> template, markers that are special tokens, end token, name of the format, and how the model writes
# reasoning and answer. Those of TRL are the families' own templates, the others have their shape.
FAMILIES = {
    "Seed-OSS": (
        SEED, ["<seed:bos>", "<seed:think>", "</seed:think>"], "<seed:eos>", "seed_oss",
        "<seed:think>{}</seed:think>{}",
    ),
    "Seed-OSS, markers of several tokens": (SEED, [], "<seed:eos>", "seed_oss", "<seed:think>{}</seed:think>{}"),
    "Magistral": (MAGISTRAL, ["[INST]", "[THINK]", "[/THINK]"], "</s>", "magistral", "[THINK]{}[/THINK]{}"),
    "Cohere": (
        COHERE, [], "<|END_OF_TURN_TOKEN|>", "command_a_reasoning",
        "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    ),
    "Granite-3.3": (GRANITE, [], "<|end_of_text|>", "granite_3_3", "<think>{}</think><response>{}</response>"),
    "DeepSeek-V3.1": (DEEPSEEK, [], "<｜end▁of▁sentence｜>", "think", "{}</think>{}"),
    "GLM-4.5": (packaged("glm4moe"), ["<think>", "</think>"], "<|user|>", "think", "\n<think>{}</think>\n{}"),
    "Gemma-4": (packaged("gemma4_v5"), [], "<turn|>", "gemma_4", "<|channel>thought\n{}\n<channel|>{}"),
    "gpt-oss": (
        packaged("gptoss"), [], "<|return|>", "gpt_oss",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}",
    ),
}  # fmt: skip


def make(family):
    """The family's tokenizer, and the function that writes its turn."""
    template, special, end, _, written = FAMILIES[family]
    tokenizer = byte_tokenizer(template, eos=end)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer, written.format


def sampled(tokenizer, *texts):
    """What TRL hands to a reward: texts without their special tokens, and the ids with them."""
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    contents = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return {
        "completions": [[{"role": "assistant", "content": content}] for content in contents],
        "completion_ids": ids,
        "prompts": [CHAT] * len(texts),
    }


families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_the_format_is_found(family):
    found, expected = detect_format(make(family)[0]), FORMATS[FAMILIES[family][3]]
    assert replace(found, name=expected.name) == expected  # some formats have two names


async def judge(messages):
    material = messages[1]["content"]
    thought, answer = (
        material.split(f"===== {part} =====")[1].split("=====")[0].strip() for part in ("REASONING", "ANSWER")
    )
    return f"[THINK]correctness: 0[/THINK]correctness: {10 if (thought, answer) == ('so 2+3 is 5', '5') else 1}"


@families
def test_every_reward_reads_the_family(family):
    tokenizer, write = make(family)
    end = tokenizer.eos_token
    right, wrong = write("so 2+3 is 5", "5") + end, write("so it is 5", "4") + end
    in_the_thought = write("so it is \\boxed{5}", "") + end
    cut = "".join(in_the_thought.partition("}")[:2])
    batch = sampled(tokenizer, right, wrong, in_the_thought, cut)
    code = get_code_reward(lambda program, stdin: "", tokenizer=tokenizer)
    metrics = {}
    get_think_monitor(tokenizer)(**batch, solution=["5"] * 4, log_metric=metrics.__setitem__)
    scores = {
        "accuracy": get_accuracy_reward(tokenizer=tokenizer)(**batch, solution=["5"] * 4),
        "format": get_format_reward(tokenizer=tokenizer)(**batch),
        "tags": get_tag_count_reward(tokenizer=tokenizer)(**batch),
        "consistency": get_consistency_reward(tokenizer=tokenizer)(**batch),
        "length": get_think_length_reward(target=11, tokenizer=tokenizer)(**batch),
        "group length": get_group_length_reward(tokenizer=tokenizer)(**batch, solution=["5"] * 4)[0] is not None,
        "language": get_language_consistency_reward("en", min_words=2, tokenizer=tokenizer)(**batch),
        "judge": asyncio.run(get_judge_reward(judge, "correctness", tokenizer=tokenizer)(**batch))[:2],
        "code": code(
            **sampled(tokenizer, write("```\nx\n```", "no code") + end), tests=[[{"input": "", "output": ""}]]
        ),
    }
    # Nothing tells a cut thought from an answer where the prompt may or may not have opened it.
    known = family != "DeepSeek-V3.1"
    assert scores["accuracy"] == [1.0, 0.0, 0.0, 0.0 if known else 1.0]
    assert scores["format"] == [1.0, 1.0, 0.0, 0.0]
    assert scores["tags"] == [1.0, 1.0, 0.75, 0.5 if known else 0.0]
    assert scores["consistency"] == [1.0, 0.0, None, None]
    assert scores["length"][:2] == [1.0, pytest.approx(10 / 11)]
    assert scores["group length"]
    assert scores["language"] == [1.0, 1.0, 1.0, 1.0 if known else None]
    assert (scores["judge"], scores["code"]) == ([1.0, 0.1], [0.0])
    assert (metrics["think/closed"], metrics["think/truncated"]) == (0.75, 0.25 if known else 0.0)
    assert metrics["think/multi_block"] == 0.0


WRITTEN = {
    "no marker": ("5", 1.0, 0.0),
    "<think>": ("<think>so it is 5</think>5", 1.0, 1.0),
    "<think> that the prompt opened": ("so it is 5</think>5", 1.0, 1.0),
    "Mistral's": ("[THINK]so it is 5[/THINK]5", 1.0, 0.0),
    "Seed's, after white space": ("\n<seed:think>so it is 5</seed:think>5", 1.0, 0.0),
    "Gemma's": ("<|channel>thought\nso it is 5<channel|>5", 1.0, 0.0),
    "reasoning tags that a prompt asked for": (
        "<reasoning>\nso it is 5\n</reasoning>\n<answer>\n5\n</answer>", 1.0, 0.0,
    ),
    "the thought holds the right answer": ("<reasoning>so it is \\boxed{5}</reasoning>I do not know", 0.0, 0.0),
    "a thought that was cut": ("[THINK]so it is \\boxed{5}, but", 0.0, 0.0),
    "words are no marker": ("Here is my thought process: The answer is 5.", 1.0, 0.0),
    "a marker in the answer": ("The answer is 5. [THINK]", 1.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize(("text", "accuracy", "well_formed"), WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("as_message", [False, True])
def test_rewards_without_a_tokenizer_read_any_marker_and_pay_only_think(text, accuracy, well_formed, as_message):
    completions = [[{"role": "assistant", "content": text}] if as_message else text]
    assert accuracy_reward(completions, solution=["5"]) == [accuracy]
    assert format_reward(completions) == [well_formed]
    assert (tag_count_reward(completions) == [1.0]) == bool(well_formed)


def test_the_other_plain_names_read_any_marker():
    metrics = {}
    completions = ["<seed:think>so it is 5</seed:think>5", "<thought>so it is 5</thought>4"]
    think_monitor(completions, log_metric=metrics.__setitem__)
    assert (metrics["think/closed"], metrics["think/language_en"]) == (1.0, 1.0)
    assert consistency_reward(completions) == [1.0, 0.0]


STRICT = {
    "as the format is": ("<|START_THINKING|>r<|END_THINKING|><|START_RESPONSE|>a<|END_RESPONSE|>", 1.0, 1.0),
    "without answer markers": ("<|START_THINKING|>r<|END_THINKING|>a", 1.0, 0.0),
    "half of the answer markers": ("<|START_THINKING|>r<|END_THINKING|><|START_RESPONSE|>a", 0.0, 0.0),
    "answer markers twice": (
        "<|START_THINKING|>r<|END_THINKING|><|START_RESPONSE|>a<|END_RESPONSE|><|START_RESPONSE|>b<|END_RESPONSE|>",
        0.0, 0.0,
    ),
    "text after the answer": ("<|START_THINKING|>r<|END_THINKING|><|START_RESPONSE|>a<|END_RESPONSE|>b", 0.0, 0.0),
    "another family's": ("<think>r</think>a", 0.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize(("text", "lenient", "tagged"), STRICT.values(), ids=STRICT)
def test_the_answer_markers_of_a_format_are_whole_or_left_out(text, lenient, tagged):
    cohere = FORMATS["command_a_reasoning"]
    assert get_format_reward(fmt=cohere)([text]) == [lenient]
    assert get_format_reward(fmt=cohere, answer_tags=True)([text]) == [tagged]
    assert (get_tag_count_reward(fmt=cohere, answer_tags=True)([text]) == [1.0]) == bool(tagged)


def test_text_before_the_reasoning_is_read_but_not_paid():
    text = "Well. [THINK]so it is 5[/THINK]5"
    assert CompletionReader(fmt=FORMATS["magistral"]).read([text])[0].reasoning == "so it is 5"
    assert get_format_reward(fmt=FORMATS["magistral"])([text]) == [0.0]


def test_a_given_format_comes_before_the_tokenizers():
    tokenizer, _ = make("Seed-OSS")
    reward = pickle.loads(pickle.dumps(get_format_reward(tokenizer=tokenizer, fmt=FORMATS["magistral"])))
    batch = sampled(tokenizer, "[THINK]r[/THINK]a<seed:eos>", "<seed:think>r</seed:think>a<seed:eos>")
    assert reward(**batch) == [1.0, 0.0]
    assert CompletionReader(tokenizer).known_format() == FORMATS["seed_oss"]


def test_a_prompt_of_plain_text_opens_the_tokenizers_marker():
    tokenizer, _ = make("Seed-OSS")
    prompts = ["2+3? <seed:think>\n", "2+3? <think>", "2+3?"]
    assert CompletionReader(tokenizer).opened(prompts, 3) == [True, False, False]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a random model with more rows than any tokenizer here has tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(vocab_size=320, **sizes, bos_token_id=None, eos_token_id=None)).save_pretrained(path)
    return path


@families
def test_the_space_loads_and_streams_the_family(family, folder):
    pytest.importorskip("gradio", reason="the Space needs think-tools[space]")
    tokenizer, write = make(family)
    tokenizer.save_pretrained(folder)
    backend = APP().load_backend(str(folder))
    params = SamplingParams(temperature=0, max_tokens=200)
    switches = {"enable_thinking": True, "thinking": True}

    async def stream():
        async with aclosing(backend.stream(CHAT, params, **switches)) as events:
            return [event async for event in events]

    text = write("so 2+3 is 5", "5")
    with saying(backend, text):
        [[sampled_candidate]] = backend.sample([CHAT], params, **switches)
    with saying(backend, text):
        *deltas, candidate = asyncio.run(stream())
    assert candidate == sampled_candidate
    assert candidate.trace == Trace("so 2+3 is 5", "5", "complete", True)
    shown = {part: "".join(delta.text for delta in deltas if delta.part == part) for part in ("reasoning", "answer")}
    assert {part: text.strip() for part, text in shown.items()} == {"reasoning": "so 2+3 is 5", "answer": "5"}
    with saying(backend, text):
        cut = backend.sample(
            [CHAT], SamplingParams(temperature=0, max_tokens=len(tokenizer.encode(text.partition("+")[0]))), **switches
        )[0][0]
    assert (cut.trace.status, cut.finish_reason) == ("truncated", "length")


@pytest.mark.parametrize("family", ["Seed-OSS", "Seed-OSS, markers of several tokens"])
def test_a_closed_prompt_keeps_the_model_from_thinking(family, folder):
    tokenizer, write = make(family)
    backend = TransformersBackend(LlamaForCausalLM.from_pretrained(folder), tokenizer)
    backend.model.generation_config.bad_words_ids = [tokenizer.encode("X")]
    params = SamplingParams(temperature=0, max_tokens=60)
    for thinking in (True, False):
        with saying(backend, write("X", "5")):
            [[candidate]] = backend.sample([CHAT], params, enable_thinking=thinking)
        assert ("<seed:think>" in candidate.text, "X" in candidate.text) == (thinking, False)


def test_a_token_that_ends_reasoning_and_turn_does_not_stop_the_model(folder):
    template = turns(
        "<|begin|>user<|content|>",
        "<|think|>{{ m.reasoning_content }}<|end|><|begin|>assistant<|content|>{{ m.content }}",
        "<|end|>",
        prompt="<|begin|>assistant",
    )
    tokenizer = byte_tokenizer(template)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>")
    backend = TransformersBackend(LlamaForCausalLM.from_pretrained(folder), tokenizer)
    with saying(backend, "<|think|>ab<|end|><|begin|>assistant<|content|>c<|end|>"):
        [[candidate]] = backend.sample([CHAT], SamplingParams(temperature=0, max_tokens=60))
    assert candidate.trace == Trace("ab", "c", "complete", True)


def test_a_marker_that_joins_with_the_line_break_cannot_open_either(folder):
    text = Tokenizer(models.BPE(unk_token="?"))
    text.train_from_iterator(
        ["<think>", "<think>\n"] * 9, trainers.BpeTrainer(vocab_size=64, special_tokens=["?", "E"])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=text, eos_token="E", chat_template=CLOSED)
    assert tokenizer.tokenize("<think>\n") == ["<think>\n"]
    backend = TransformersBackend(LlamaForCausalLM.from_pretrained(folder), tokenizer)
    with saying(backend, "<think>\n"):
        [[candidate]] = backend.sample([CHAT], SamplingParams(temperature=0, max_tokens=8))
    assert "<think>" not in candidate.text


@families
def test_prepare_sft_trains_what_the_family_writes(family):
    tokenizer, write = make(family)
    row = {
        "prompt": CHAT,
        "completion": [{"role": "assistant", "reasoning_content": "so 2+3 is 5", "content": "5"}],
    }
    prepared = prepare_sft([row], tokenizer, max_length=None)[0]
    trained = tokenizer.decode([label for label in prepared["labels"] if label != -100])
    assert trained == write("so 2+3 is 5", "5") + tokenizer.eos_token
