"""Silent failures of public threads, rebuilt with stock TRL: each builds without an error, and each is caught."""

import logging
import re

import pytest
import torch
from datasets import Dataset
from make_tokenizer import make_tokenizer
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.rewards import accuracy_reward as trl_accuracy_reward
from trl.rewards import reasoning_accuracy_reward, think_format_reward

from think_tools.data import prepare_sft
from think_tools.preflight import inspect_trainer, preflight, trainer_from_config
from think_tools.rewards import accuracy_reward, format_reward, think_monitor
from think_tools.templates import add_think_tokens, set_chat_template, think_lora_config
from think_tools.tiny import arithmetic_problems
from think_tools.tiny.load import FOLDER

QUESTION = [{"role": "user", "content": "2+3?"}]
THOUGHT = [{"role": "assistant", "reasoning_content": "2 and 3 make 5", "content": "5"}]
DIRECT = [{"role": "assistant", "content": "5"}]
THINKING = {"prompt": QUESTION, "completion": THOUGHT}
ASKED = {"prompt": QUESTION, "solution": "5"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Mapped rows are kept in the test's folder, not in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def build(tiny_model, tmp_path):
    """Build a trainer of `kind` on the random model, with a template that TRL packages or one of ours."""

    def build(kind, rows, template="chatml_think", *, tokenizer=None, model=None, config=None, **kwargs):
        trainer, settings = {
            "SFT": (SFTTrainer, SFTConfig), "DPO": (DPOTrainer, DPOConfig),
            "GRPO": (GRPOTrainer, GRPOConfig), "RLOO": (RLOOTrainer, RLOOConfig),
        }[kind]  # fmt: skip
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(tiny_model)
            if template == "chatml_think":
                set_chat_template(tokenizer, template)
            else:
                tokenizer.chat_template = make_tokenizer(template).chat_template
                tokenizer.response_template = None
        common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
        args = settings(**common, activation_checkpointing=False, **(config or {}))
        dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
        model = str(tiny_model) if model is None else model
        return trainer(model, args=args, train_dataset=dataset, processing_class=tokenizer, **kwargs)

    return build


def special_markers(tiny_model):
    from tokenizers import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = make_tokenizer("qwen3").chat_template
    tokenizer.response_template = None
    markers = [AddedToken(marker, special=True, normalized=False) for marker in ("<think>", "</think>")]
    tokenizer.add_tokens(markers, special_tokens=True)
    return tokenizer


def random_model(tokenizer, rows, **settings):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip


def constant(completions, **columns):
    return [0.5] * len(completions)


def r1_distill(build, tiny_model):
    tokenizer = make_tokenizer("deepseek_r1_distill")
    return build("SFT", [THINKING], tokenizer=tokenizer, model=random_model(tokenizer, 512))


def other_end(build, tiny_model):
    """A base model: its text ends in another token than the turns of the template that it was given."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    return build("SFT", [THINKING], tokenizer=tokenizer, model=random_model(tokenizer, 512))


def new_tokens(build, tiny_model):
    tokenizer = make_tokenizer("qwen2_5")
    set_chat_template(tokenizer, "chatml_think")
    model = random_model(tokenizer, len(tokenizer))
    tokenizer.add_tokens(["<think>", "</think>"])
    model.resize_token_embeddings(len(tokenizer))
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    return build("SFT", [THINKING], tokenizer=tokenizer, model=model, peft_config=lora)


LONG = {**THINKING, "completion": [{**THOUGHT[0], "reasoning_content": "again " * 200}]}
TURNS = [
    *QUESTION,
    *THOUGHT,
    {"role": "user", "content": "And 1 more?"},
    {**THOUGHT[0], "reasoning_content": "5 and 1"},
]
PREFERENCE = {"prompt": QUESTION, "chosen": THOUGHT, "rejected": [{**THOUGHT[0], "reasoning_content": "5, surely"}]}

# Thread -> (how to build the trainer, severity, text of the finding).
SILENT = {
    "trl#6966 format reward is 0 because the template prefills <think>": (
        lambda build, _: build("GRPO", [ASKED], "qwen3_5_think", reward_funcs=[think_format_reward, accuracy_reward]),
        "error", "`think_format_reward` gives 0.0 to right, wrong, long, cut and direct completions alike, since it",
    ),
    "trl#2897 special think tokens are stripped before the reward": (
        lambda build, tiny: build("GRPO", [ASKED], tokenizer=special_markers(tiny),
                                  reward_funcs=[reasoning_accuracy_reward, accuracy_reward]),
        "error", "`reasoning_accuracy_reward` gives 0.0 to",
    ),
    "open-r1#388 the template drops the reasoning in SFT": (
        r1_distill, "error", "the chat template drops the reasoning",
    ),
    "LlamaFactory#7905 empty think blocks in the loss": (
        lambda build, _: build("SFT", [{"prompt": QUESTION, "completion": DIRECT}], "qwen3"),
        "error", "in 1 of 1 rows an empty think block is trained",
    ),
    "unsloth#2904 traces are cut at 1,024 tokens": (
        lambda build, _: build("SFT", [LONG]), "error", "`max_length=1024` cuts 1 of 1 traces",
    ),
    "open-r1#628 the gold answer cannot be read": (
        lambda build, _: build("GRPO", [{**ASKED, "solution": "B"}], "qwen3", reward_funcs=trl_accuracy_reward),
        "error", "no reward gives more to a right than to a wrong answer where the gold answer is 'B'",
    ),
    "trl#1623 the model never stops": (
        other_end, "error", "a turn ends in <|im_end|>, but generation stops only at <|endoftext|>",
    ),
    "ms-swift#5793 earlier turns lose their reasoning": (
        lambda build, _: build("SFT", [{"messages": TURNS}], "qwen3"),
        "error", "the chat template drops the reasoning of an earlier turn",
    ),
    "unsloth#1343 new tokens are not trained by LoRA": (
        new_tokens, "error", "the rows of <think> and </think> are new, and not trained in every layer",
    ),
    "trl#3592 enable_thinking of a row is ignored": (
        lambda build, _: build("GRPO", [{**ASKED, "chat_template_kwargs": {"enable_thinking": False}}], "qwen3",
                               reward_funcs=accuracy_reward),
        "error", "`chat_template_kwargs` of the rows would change their prompts",
    ),
    "trl#2919 reasoning is dropped on both sides of a pair": (
        lambda build, _: build("DPO", [PREFERENCE], "qwen2_5"), "error", "both answers of the pair are the same",
    ),
    "open-r1#255 no reward ever rises": (
        lambda build, _: build("GRPO", [ASKED], "qwen3", reward_funcs=constant),
        "error", "no reward gives more to a right than to a wrong answer",
    ),
    "open-r1#710 the loss is on the whole conversation": (
        lambda build, _: build("SFT", [{"messages": TURNS[:2]}]), "warning", "the prompt is trained as well",
    ),
    "minimind#829 one side of the pair thinks": (
        lambda build, _: build("DPO", [{**PREFERENCE, "rejected": DIRECT}]),
        "warning", "one answer of the pair thinks",
    ),
    "trl#3468 plain text gets no chat template": (
        lambda build, _: build("SFT", [{"prompt": "2+3?", "completion": "<think>\n2 and 3\n</think>\n\n5"}]),
        "warning", "no prompt of the chat template is in them",
    ),
    "unsloth#2796 the switch of a row contradicts its reasoning": (
        lambda build, _: build("SFT", [{**THINKING, "chat_template_kwargs": {"enable_thinking": False}}], "qwen3"),
        "error", "the row does not begin with the prompt",
    ),
    "LlamaFactory#7556 no row has reasoning": (
        lambda build, _: build("SFT", [{"prompt": QUESTION, "completion": DIRECT}]),
        "warning", "none of 1 rows trains reasoning",
    ),
}  # fmt: skip


@pytest.mark.parametrize("thread", SILENT)
def test_a_silent_failure_is_built_by_trl_and_caught_here(thread, build, tiny_model):
    make, severity, text = SILENT[thread]
    trainer = make(build, tiny_model)  # stock TRL finds no error
    findings = inspect_trainer(trainer)
    assert [f.severity for f in findings if text in f.what] == [severity], findings
    assert all(f.remedy for f in findings)
    if severity == "error":
        with pytest.raises(ValueError, match=re.escape(text)):
            preflight(trainer)
    else:
        assert preflight(trainer) == findings


async def slow_accuracy(completions, solution, **columns):
    return accuracy_reward(completions, solution)


def healthy_rows(tokenizer, **settings):
    return prepare_sft(arithmetic_problems("train", n=20), tokenizer, max_length=1024)


TWO = arithmetic_problems("train", n=20).select_columns(["prompt", "completion", "solution"])
PAIRS = TWO.map(lambda row: {"chosen": row["completion"], "rejected": [{**row["completion"][0], "content": "7"}]})
TEXTS = [{"prompt": "Question: 2+3? Answer: <think>\n", "solution": "5"}]
# Name -> how to build a trainer that does what is meant.
HEALTHY = {
    "SFT": lambda build: build("SFT", TWO.remove_columns("solution")),
    "SFT on prepared rows": lambda build: build("SFT", healthy_rows(AutoTokenizer.from_pretrained(FOLDER / "base"))),
    "SFT on prepared rows, packed": lambda build: build(
        "SFT", healthy_rows(AutoTokenizer.from_pretrained(FOLDER / "base")), config={"packing": True}
    ),
    "SFT on a stream": lambda build: build(
        "SFT", TWO.remove_columns("solution").to_iterable_dataset(), config={"max_steps": 1}
    ),
    "SFT on messages, the answers alone": lambda build: build(
        "SFT", [{"messages": TURNS[:2]}], config={"assistant_only_loss": True}
    ),
    "SFT on Qwen3's template, the answers alone": lambda build: build(
        "SFT", [{"messages": TURNS[:2]}], "qwen3", config={"assistant_only_loss": True}
    ),
    "DPO": lambda build: build("DPO", PAIRS.remove_columns(["completion", "solution"])),
    "GRPO": lambda build: build("GRPO", TWO, reward_funcs=[accuracy_reward, format_reward, think_monitor]),
    "GRPO with a prefilling template": lambda build: build(
        "GRPO", TWO, "qwen3_5_think", reward_funcs=[accuracy_reward, format_reward, think_monitor]
    ),
    "GRPO with an asynchronous reward": lambda build: build("GRPO", [ASKED], reward_funcs=slow_accuracy),
    "GRPO on plain text": lambda build: build("GRPO", TEXTS, reward_funcs=[accuracy_reward, format_reward]),
    "GRPO with TRL's rewards": lambda build: build(
        "GRPO", [ASKED], "qwen3", reward_funcs=[trl_accuracy_reward, think_format_reward]
    ),
    "RLOO": lambda build: build("RLOO", TWO, reward_funcs=[accuracy_reward, format_reward], config={"beta": 0.0}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_trainer_passes_with_notes_only(name, build, caplog):
    with caplog.at_level(logging.INFO, logger="think_tools.preflight.trainer"):
        findings = preflight(HEALTHY[name](build))
    assert {finding.severity for finding in findings} == {"note"}, findings
    assert "left at TRL's defaults" in caplog.text


def test_kl_and_clipping_at_silent_defaults_are_a_note(build):
    *_, note = inspect_trainer(build("GRPO", [ASKED], reward_funcs=accuracy_reward))
    assert note.severity == "note"
    for said in ("`beta=0.0`", "`epsilon=0.2`", "`max_completion_length=512`", "`mask_truncated_completions=False`"):
        assert said in note.what
    config = {"beta": 0.01, "epsilon": 0.1, "max_completion_length": 4096, "mask_truncated_completions": True}
    *_, note = inspect_trainer(build("GRPO", [ASKED], reward_funcs=accuracy_reward, config=config))
    assert note.what == "1 rows were read; left at TRL's defaults: none that matters here"


# Severity and text of what a few variants of the same trainers give.
@pytest.mark.parametrize(
    "share, severity", [(1, "warning"), (4, "error")], ids=["95 % are whole", "more than 5 % are cut"]
)
def test_a_length_limit_is_judged_by_the_95th_percentile_of_the_traces(share, severity, build):
    rows = [THINKING] * (40 - share) + [LONG] * share
    [finding] = [f for f in inspect_trainer(build("SFT", rows)) if "cuts" in f.what]
    assert finding.severity == severity
    assert f"`max_length=1024` cuts {share} of 40 traces" in finding.what
    assert "`max_length=1232` keeps all" in finding.remedy


def test_completions_of_the_rows_tell_whether_max_completion_length_is_enough(build):
    rows = [{**ASKED, "completion": LONG["completion"]}]
    [finding] = [f for f in inspect_trainer(build("GRPO", rows, reward_funcs=accuracy_reward)) if "cuts" in f.what]
    assert (finding.severity, "`max_completion_length=512` cuts 1 of 1 traces" in finding.what) == ("error", True)


def broken(completions, **columns):
    raise RuntimeError("out of disk")


def short(completions, **columns):
    return [1.0]


def contains(completions, answer, **columns):
    """Reads another column of gold answers, and only searches for them."""
    return [float(gold in text[0]["content"]) for text, gold in zip(completions, answer, strict=True)]


REWARDS = {
    "one that raises": (broken, {}, "error", "`broken` raises RuntimeError: out of disk"),
    "one with too few values": (short, {}, "error", "`short` raises ValueError: it gave 1 rewards for"),
    "one that is always the same": (constant, {}, "warning", "`constant` gives 0.5 to right, wrong, long, cut and"),
    "a gold answer that is prose": (
        accuracy_reward, {"solution": "It depends. " * 30}, "error", "1 of 1 gold answers cannot be graded, such as",
    ),
    "an empty gold answer": (accuracy_reward, {"solution": ""}, "error", "cannot be graded, such as '': it is empty"),
    "no column of gold answers": (accuracy_reward, {"solution": None}, "error", "`solution` is missing"),
    "a prompt that has closed the thinking": (accuracy_reward, {}, "warning", "the prompts have closed the thinking"),
}  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_what_is_wrong_with_rewards_and_golds(name, build):
    reward, columns, severity, text = REWARDS[name]
    row = {key: value for key, value in {**ASKED, **columns}.items() if value is not None}
    config = {"chat_template_kwargs": {"enable_thinking": False}} if "closed" in name else None
    rewards = [accuracy_reward, reward] if severity == "warning" else [reward]
    findings = inspect_trainer(build("GRPO", [row], reward_funcs=rewards, config=config))
    assert [f.severity for f in findings if text in f.what] == [severity], findings


def test_rows_without_a_gold_answer_are_a_warning(build):
    rows = [ASKED, {**ASKED, "solution": None}]
    findings = inspect_trainer(build("GRPO", rows, reward_funcs=accuracy_reward))
    [finding] = [f for f in findings if "cannot be graded" in f.what]
    assert finding.severity == "warning"
    assert "1 of 2 gold answers cannot be graded, such as None: it is of type NoneType" in finding.what


def test_a_gold_column_of_another_name_is_found_by_the_reward_that_asks_for_it(build):
    row = {"prompt": QUESTION, "answer": "5"}
    assert {f.severity for f in inspect_trainer(build("GRPO", [row], reward_funcs=contains))} == {"note"}


def test_a_model_without_rows_for_all_tokens_is_an_error(build, tiny_model, tokenizer):
    tokenizer.add_tokens(["<one>", "<two>"])
    [finding] = [f for f in inspect_trainer(build("SFT", [THINKING], tokenizer=tokenizer)) if "model rows" in f.what]
    assert (finding.severity, "`add_think_tokens`" in finding.remedy) == ("error", True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained rows", "plain LoRA"])
def test_new_rows_of_markers_must_be_trained_in_every_layer(tied, trained, build):
    tokenizer = make_tokenizer("qwen2_5")
    set_chat_template(tokenizer, "chatml_think")
    model = random_model(tokenizer, len(tokenizer), tie_word_embeddings=tied)
    add_think_tokens(model, tokenizer)
    plain = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    lora = think_lora_config(model, tokenizer, r=4) if trained else plain
    findings = inspect_trainer(build("SFT", [THINKING], tokenizer=tokenizer, model=model, peft_config=lora))
    assert any("are new, and not trained" in finding.what for finding in findings) != trained


def test_the_remedy_of_a_dropped_reasoning_is_that_of_the_template_report(build):
    [finding] = [f for f in inspect_trainer(build("SFT", [THINKING], "qwen2_5")) if "drops the reasoning" in f.what]
    assert '`set_chat_template(tokenizer, "chatml_think")`' in finding.remedy


def test_every_finding_is_raised_at_once(build):
    rows = [{"prompt": QUESTION, "completion": DIRECT}, LONG, {"prompt": QUESTION, "completion": DIRECT}]
    with pytest.raises(ValueError, match="`trainer` would run, but not learn what is meant:") as error:
        preflight(build("SFT", rows, "qwen3"))
    assert "an empty think block" in str(error.value)
    assert "`max_length=1024` cuts 1 of 3" in str(error.value)
    assert "- note: 3 rows were read" in str(error.value)


def test_a_reward_that_raises_does_not_hide_the_others(build):
    rewards = [broken, constant, think_format_reward]
    findings = inspect_trainer(build("GRPO", [ASKED], "qwen3_5_think", reward_funcs=rewards))
    assert [f.what.partition(" ")[0] for f in findings[:3]] == ["`broken`", "`think_format_reward`", "`constant`"]


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_packing_that_begins_in_the_middle_of_a_thought_is_a_warning(strategy, build):
    config = {"packing": True, "packing_strategy": strategy, "max_length": 64}
    finding = inspect_trainer(build("SFT", [LONG] * 4, config=config))[0]
    assert (finding.severity, f"`packing_strategy='{strategy}'`" in finding.what) == ("warning", True)


@pytest.mark.parametrize("thinking", [True, False], ids=["with reasoning", "with thinking off"])
def test_prepared_rows_of_a_prefilling_template_are_read_without_messages(thinking, build, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = make_tokenizer("qwen3_5_think").chat_template
    rows = prepare_sft(arithmetic_problems("train", n=2, reasoning=thinking), tokenizer, max_length=1024)
    findings = inspect_trainer(build("SFT", rows, "qwen3_5_think"))
    assert [f.what for f in findings if f.severity != "note"] == (
        [] if thinking else ["none of 2 rows trains reasoning, so a model that thinks would stop"]
    )


def test_empty_blocks_in_text_that_was_rendered_before_are_found(build):
    text = "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n5<|im_end|>"
    findings = inspect_trainer(build("SFT", [{"text": text}], "qwen3"))
    assert [f.what.partition(" an ")[2] for f in findings if f.severity == "error"] == [
        "empty think block is trained: pass `enable_thinking=False` for answers without reasoning"
    ]


def test_the_number_of_rows_and_their_seed_are_kept(build):
    trainer = build("SFT", [THINKING] * 10 + [{"prompt": QUESTION, "completion": DIRECT}] * 10, "qwen3")
    what = {inspect_trainer(trainer, num_rows=8, seed=seed)[0].what for seed in (0, 0, 1)}
    assert len(what) == 2
    assert all("of 8 rows" in each for each in what)


def test_unfit_arguments_are_named(build):
    trainer = build("SFT", [THINKING])
    with pytest.raises(TypeError, match=r"`trainer` must be a built SFTTrainer, .* got dict"):
        preflight({})
    with pytest.raises(ValueError, match="`num_rows` must be at least 1, got 0"):
        preflight(trainer, num_rows=0)


CONFIGS = {
    "sft": ("max_length: 4096", "SFTTrainer"),
    "dpo": ("beta: 0.2", "DPOTrainer"),
    "grpo": ("num_generations: 4\nreward_funcs: [think_tools.rewards.accuracy_reward]", "GRPOTrainer"),
    "rloo": ("normalize_advantages: true\nreward_funcs: [accuracy_reward]\nbeta: 0", "RLOOTrainer"),
}


@pytest.fixture
def config_file(tiny_model, tmp_path):
    def write(text, rows):
        (tmp_path / "rows").mkdir()
        Dataset.from_list(rows).to_json(str(tmp_path / "rows/train.jsonl"))
        file = tmp_path / "run.yaml"
        lines = [f"model_name_or_path: {tiny_model}", f"dataset_name: {tmp_path / 'rows'}", f"output_dir: {tmp_path}"]
        file.write_text("\n".join([*lines, "activation_checkpointing: false", "push_to_hub: true", text]))
        return file

    return write


@pytest.mark.parametrize("method", CONFIGS)
def test_the_keys_of_a_config_tell_the_trainer(method, config_file):
    text, name = CONFIGS[method]
    row = PREFERENCE if method == "dpo" else THINKING if method == "sft" else ASKED
    trainer = trainer_from_config(config_file(text, [row]))
    assert type(trainer).__name__ == name
    assert (trainer.args.push_to_hub, trainer.state.global_step) == (False, 0)
    assert all(finding.severity == "note" for finding in inspect_trainer(trainer))


def test_a_key_that_trl_does_not_know_is_named(config_file):
    with pytest.raises(ValueError, match=r"keys that `trl grpo` does not know: \['template'\]. Check a script"):
        trainer_from_config(config_file("num_generations: 4\ntemplate: r1_zero", [ASKED]))
