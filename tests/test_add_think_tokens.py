import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from make_tokenizer import byte_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from think_tools import FORMATS, ThinkFormat
from think_tools.rewards import get_format_reward
from think_tools.templates import add_think_tokens, set_chat_template, think_lora_config

tied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
bits = pytest.mark.parametrize("bits", [32, 4], ids=["fp32", "4-bit"])
IDS = (259, 260)


@pytest.fixture
def plain():
    """A byte tokenizer of 259 tokens that knows ChatML's, and no think tokens."""
    tokenizer = byte_tokenizer("<|im_start|><|im_end|>", eos="<|im_end|>")
    set_chat_template(tokenizer, "chatml_think")
    assert len(tokenizer) == IDS[0]
    return tokenizer


def random_model(tokenizer, tied: bool, rows: int | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def load(folder: Path, bits: int, **options) -> torch.nn.Module:
    """A saved model as it is or in 4 bits."""
    if bits == 4:
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        options = {"quantization_config": BitsAndBytesConfig(**four, **options)}
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def rows_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Input and output embeddings as the forward pass sees them, (vocabulary, hidden)."""
    layers = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


# Adding the tokens.


def test_tokens_that_exist_are_left_alone(tokenizer, caplog):
    model = random_model(tokenizer, True, rows=300)
    before, vocabulary = rows_of(model), tokenizer.get_vocab()
    assert add_think_tokens(model, tokenizer) == add_think_tokens(model, tokenizer, init="text") == IDS
    assert tokenizer.get_vocab() == vocabulary
    assert torch.equal(rows_of(model)["embed_tokens"], before["embed_tokens"])
    assert not caplog.text


def test_an_adapter_is_no_hindrance_where_the_tokens_exist(tokenizer):
    model = random_model(tokenizer, True)
    assert add_think_tokens(get_peft_model(model, think_lora_config(model, tokenizer)), tokenizer) == IDS


SIZES = {
    "a full vocabulary grows to a multiple of 64": (259, 320),
    "a padded vocabulary does not shrink": (512, 512),
    "the last padding is used up first": (261, 261),
    "one row of padding is not enough": (260, 320),
}


@tied
@pytest.mark.parametrize(("rows", "expected"), SIZES.values(), ids=SIZES)
def test_the_embeddings_grow_only_where_they_must(plain, tied, rows, expected):
    model = random_model(plain, tied, rows)
    before = rows_of(model)
    assert add_think_tokens(model, plain) == IDS
    assert model.config.vocab_size == expected
    for name, weight in rows_of(model).items():
        assert weight.shape == (expected, 64)
        assert torch.equal(weight[:259], before[name][:259])
        mean = before[name][:259].mean(0)
        changed = range(259, expected if expected > rows else 261)
        assert all(torch.equal(weight[i], mean) for i in changed)
        assert torch.equal(weight[changed.stop :], before[name][changed.stop :])
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (weights[0] is weights[1]) == tied


def test_a_row_can_begin_as_the_mean_of_its_text(plain):
    model = random_model(plain, True)
    spelled = {marker: plain(marker)["input_ids"] for marker in ("<think>", "</think>")}
    add_think_tokens(model, plain, init="text")
    weight = rows_of(model)["lm_head"]
    for id_, ids in zip(IDS, spelled.values(), strict=True):
        torch.testing.assert_close(weight[id_], weight[ids].mean(0))
    assert torch.equal(weight[261], weight[:259].mean(0))


def test_a_bias_of_the_output_layer_grows_too(plain):
    model = random_model(plain, False)
    model.lm_head = torch.nn.Linear(64, 259)
    torch.nn.init.normal_(model.lm_head.bias)
    add_think_tokens(model, plain)
    assert model.lm_head.bias[259:].tolist() == pytest.approx([model.lm_head.bias[:259].mean().item()] * 61)


def test_the_markers_become_single_tokens_that_decoding_keeps(plain, caplog):
    add_think_tokens(random_model(plain, True), plain)
    ids = plain("<think>a</think>b<|im_end|>")["input_ids"]
    assert (ids[0], ids[2]) == IDS
    assert plain.decode(ids, skip_special_tokens=True) == "<think>a</think>b"
    assert caplog.messages == [
        "<think> and </think> are the tokens 259 and 260 of `tokenizer` now. `model` has 320 embedding rows instead "
        "of 259: before you load an adapter of it, call `add_think_tokens` on its base again."
    ]


def test_one_marker_can_be_missing(plain):
    plain.add_tokens(["<think>"])
    model = random_model(plain, True, rows=264)
    before = rows_of(model)["lm_head"]
    assert add_think_tokens(model, plain) == IDS
    after = rows_of(model)["lm_head"]
    assert (after != before).any(1).nonzero().flatten().tolist() == [260]


@tied
@pytest.mark.parametrize("init", ["mean", "text"])
@pytest.mark.parametrize("rows", [259, 260])
def test_a_base_loaded_anew_grows_in_the_same_way(plain, tied, init, rows):
    model, base = random_model(plain, tied, rows), random_model(plain, tied, rows)
    add_think_tokens(model, plain, init=init)
    add_think_tokens(base, plain, init=init)  # the tokenizer has the tokens now
    for name, weight in rows_of(model).items():
        # The row that padded the vocabulary is an adapter's to bring.
        kept = [i for i in range(320) if i >= rows or i < 259]
        assert torch.equal(rows_of(base)[name][kept], weight[kept])


def adapted(tokenizer):
    model = random_model(tokenizer, True)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


SHARDED = r"`model` has a embed_tokens that is quantised or sharded.*add the tokens on one device and save"
REFUSED = {
    "an unknown start": (random_model, {"init": "zeros"}, r'`init` must be "mean" or "text", got \'zeros\'\.'),
    "prose": (
        random_model,
        {"fmt": FORMATS["granite_3_2"]},
        r"`fmt` has the marker 'Here is my thought process:', which is prose: leave it as text",
    ),
    "a marker made of tokens": (
        random_model,
        {"fmt": ThinkFormat("channels", "<|im_start|>thought", "<|thought_end|>")},
        r"the marker '<\|im_start\|>thought', which is written with the token <\|im_start\|>: leave it as text",
    ),
    "an adapted model": (adapted, {}, "`model` has an adapter already, under which rows cannot be added"),
    "a model on the meta device": (lambda tokenizer, _: random_model(tokenizer, True).to("meta"), {}, SHARDED),
}


@pytest.mark.parametrize(("make", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(plain, make, options, message):
    model = make(plain, True) if make is not adapted else make(plain)
    with pytest.raises(ValueError, match=message):
        add_think_tokens(model, plain, **options)
    assert len(plain) == model.config.vocab_size == 259


def test_an_output_layer_in_4_bits_is_refused(plain, tmp_path):
    random_model(plain, False).save_pretrained(tmp_path)
    model = load(tmp_path, 4, llm_int8_skip_modules=[])
    with pytest.raises(
        ValueError, match=r"`model` has a lm_head that is quantised.*llm_int8_skip_modules=\[\"lm_head"
    ):
        add_think_tokens(model, plain)
    assert len(plain) == 259


# The LoRA configuration.


@tied
def test_the_rows_of_both_markers_are_named(tokenizer, tied):
    config = think_lora_config(random_model(tokenizer, tied), tokenizer)
    layers = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    assert config.trainable_token_indices == {layer: list(IDS) for layer in layers}
    assert (config.r, config.lora_alpha, config.target_modules) == (32, 64, "all-linear")


def test_arguments_of_the_config_pass_through(tokenizer):
    config = think_lora_config(
        random_model(tokenizer, True), tokenizer, r=4, lora_dropout=0.1, target_modules=["q_proj"], use_rslora=True
    )
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (4, 8, 0.1, {"q_proj"})
    assert think_lora_config(random_model(tokenizer, True), tokenizer, r=4, lora_alpha=1).lora_alpha == 1


def test_the_markers_are_detected(plain):
    plain.chat_template = plain.chat_template.replace("think>", "seed:think>")
    model = random_model(plain, True)
    ids = add_think_tokens(model, plain, FORMATS["seed_oss"])
    assert think_lora_config(model, plain).trainable_token_indices == {"embed_tokens": list(ids)}


def test_markers_that_are_text_are_an_error(tokenizer):
    with pytest.raises(
        ValueError, match=r"no single token <seed:think> \(it is 12 tokens of text\).*`add_think_tokens\(model, tok"
    ):
        think_lora_config(random_model(tokenizer, True), tokenizer, fmt=FORMATS["seed_oss"])


def test_a_model_without_the_rows_is_an_error(tokenizer):
    with pytest.raises(
        ValueError, match=r"`model` has 259 embedding rows, but the ids .* are \[259, 260\]: call `add"
    ):
        think_lora_config(random_model(tokenizer, True, rows=259), tokenizer)


def test_a_bias_of_the_output_layer_is_an_error(tokenizer):
    """peft leaves it out (https://github.com/huggingface/peft/issues/3649); once it does not, delete the error."""
    model = random_model(tokenizer, False)
    model.lm_head = torch.nn.Linear(64, len(tokenizer))
    with pytest.raises(ValueError, match="`model` has an output layer with a bias, which peft leaves out once rows"):
        think_lora_config(model, tokenizer)
    ids = torch.arange(261)[None]
    with torch.no_grad():
        expected = model(ids).logits - model.lm_head.bias
        indices = {"embed_tokens": list(IDS), "lm_head": list(IDS)}
        lora = LoraConfig(target_modules="all-linear", trainable_token_indices=indices, task_type="CAUSAL_LM")
        wrapped = get_peft_model(model, lora)
        torch.testing.assert_close(wrapped(ids).logits, expected)
    assert wrapped.get_output_embeddings().bias is model.lm_head.token_adapter.base_layer.bias


@tied
def test_peft_still_hides_the_bias_that_trl_reads(tokenizer, tied, monkeypatch):
    """Fails once peft has mended it: then delete the work-around in `templates/tokens.py`."""
    model = get_peft_model(random_model(tokenizer, tied), think_lora_config(random_model(tokenizer, tied), tokenizer))
    assert isinstance(model.get_output_embeddings(), TrainableTokensWrapper)
    assert model.get_output_embeddings().bias is None
    assert model.get_input_embeddings().bias is None
    monkeypatch.delattr(TrainableTokensWrapper, "bias")
    with pytest.raises(AttributeError, match="bias"):
        _ = model.get_output_embeddings().bias


def test_peft_still_saves_both_matrices_of_a_grown_model(plain, tmp_path):
    """Fails once peft leaves them out: then delete `_save_small` in `templates/tokens.py`."""
    random_model(plain, True).save_pretrained(tmp_path / "base")
    sizes = {}
    for grow in ("ours", "theirs"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        if grow == "ours":
            add_think_tokens(model, plain)
        else:
            model.resize_token_embeddings(261, pad_to_multiple_of=64, mean_resizing=False)
        with (
            nullcontext() if grow == "ours" else pytest.warns(UserWarning, match="Setting `save_embedding_layers` to")
        ):
            get_peft_model(model, think_lora_config(model, plain, r=1)).save_pretrained(tmp_path / grow)
        sizes[grow] = sum(
            weight.numel() for weight in load_file(tmp_path / grow / "adapter_model.safetensors").values()
        )
    assert sizes["theirs"] >= sizes["ours"] + 2 * 320 * 64


# Training.


def row(reasoning: str | None) -> dict:
    return {
        "prompt": [{"role": "user", "content": "2+3?"}],
        "completion": [{"role": "assistant", "reasoning_content": reasoning, "content": "5"}],
        "chat_template_kwargs": {"enable_thinking": reasoning is not None},
    }


ROWS = [row("2 plus 3"), row(None), row("三加二"), row(None)]
QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
}


def chance_of_closing(model: torch.nn.Module, tokenizer) -> float:
    """Least probability of `</think>` where a training row has it."""
    chances = []
    for example in ROWS[::2]:
        ids = tokenizer.apply_chat_template(
            example["prompt"] + example["completion"], return_tensors="pt", enable_thinking=True
        )["input_ids"]
        at = ids[0].tolist().index(IDS[1])
        with torch.no_grad():
            chances.append(model(ids).logits[0, at - 1].softmax(-1)[IDS[1]].item())
    return min(chances)


def new_model(folder: Path, tokenizer, tied: bool, bits: int, copies: int = 1) -> list[torch.nn.Module]:
    """A model from a folder, as users load it, and copies of it, all with new think tokens."""
    random_model(tokenizer, tied).save_pretrained(folder)
    models = [load(folder, bits) for _ in range(copies)]
    for model in models:
        add_think_tokens(model, tokenizer)
    return models


@pytest.mark.slow
@tied
@bits
def test_sft_teaches_new_tokens_and_saves_a_small_exact_adapter(plain, tmp_path, tied, bits):
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    # In 4 bits a forward pass in eval mode packs the weights for the CPU, which spoils the gradients after it.
    model, copy = new_model(base, plain, tied, bits, copies=2)
    before = chance_of_closing(copy.eval(), plain)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), per_device_train_batch_size=4, max_steps=100, learning_rate=1e-2, max_length=None, **QUIET
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=plain,
        peft_config=think_lora_config(model, plain, r=16),
    )
    rows = rows_of(trainer.model)
    trainer.train()
    for name, weight in rows_of(trainer.model).items():
        assert (weight != rows[name]).any(dim=1).nonzero().flatten().tolist() == list(IDS), name
    trainer.save_model(str(adapter))
    after = chance_of_closing(trainer.model.eval(), plain)

    weights = load_file(adapter / "adapter_model.safetensors")
    assert [tuple(weight.shape) for name, weight in weights.items() if "lora_" not in name] == [(2, 64)] * (2 - tied)
    size = sum(file.stat().st_size for file in adapter.glob("adapter_*"))
    ratio = size / sum(weight.nbytes for weight in weights.values())
    print(f"{'tied' if tied else 'untied'}, {bits} bits: {before:.2%} -> {after:.1%}, {ratio:.2f} times the weights")
    assert before < 0.01
    assert after > 0.5
    assert ratio < 1.2

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    assert tokenizer.response_template == plain.response_template
    loaded = load(base, bits)
    assert add_think_tokens(loaded, tokenizer) == IDS
    loaded = PeftModel.from_pretrained(loaded, adapter).eval()
    ids = torch.arange(len(tokenizer))[None]
    with torch.no_grad():
        logits = trainer.model(ids).logits
        # TRL trains the adapter of a 4-bit model in bfloat16, and peft loads it in float32.
        torch.testing.assert_close(loaded(ids).logits, logits, atol=1e-5 if bits == 32 else 0.3, rtol=0)
        if bits == 32:
            whole = loaded.merge_and_unload()
            torch.testing.assert_close(whole(ids).logits, logits, atol=1e-4, rtol=0)
            whole.save_pretrained(merged)
            torch.testing.assert_close(load(merged, bits)(ids).logits, logits, atol=1e-4, rtol=0)


WRITTEN = [f"<think>\n2 plus 3\n</think>\n\n{answer}<|im_end|>" for answer in ("5", "4")]


class Scripted(GRPOTrainer):
    """A policy that writes a right and a wrong answer in turn."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        written = [self._tokenizer.encode(text, add_special_tokens=False) for text in WRITTEN]
        return [written[i % 2] for i in range(len(prompt_ids))], None


def five(completions: list, **columns) -> list[float]:
    return [float("5" in completion[0]["content"]) for completion in completions]


@pytest.mark.slow
@tied
@bits
def test_grpo_trains_new_tokens(plain, tmp_path, tied, bits):
    (model,) = new_model(tmp_path / "base", plain, tied, bits)
    trainer = Scripted(
        model=model,
        reward_funcs=[five, get_format_reward(tokenizer=plain)],
        args=GRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            max_steps=20,
            max_completion_length=64,
            learning_rate=1e-3,
            logging_steps=1,
            **QUIET,
        ),
        train_dataset=Dataset.from_list([{"prompt": ROWS[0]["prompt"]}] * 4),
        processing_class=plain,
        peft_config=think_lora_config(model, plain, r=4),
    )
    rows = rows_of(trainer.model)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 20
    assert all(math.isfinite(entry["loss"]) and 0 < entry["grad_norm"] < math.inf for entry in steps)
    assert {(e["rewards/five/mean"], e["rewards/format_reward/mean"]) for e in steps} == {(0.5, 1.0)}
    for name, weight in rows_of(trainer.model).items():
        assert weight.isfinite().all()
        assert (weight != rows[name]).any(dim=1).nonzero().flatten().tolist() == list(IDS), name
