import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from think_tools import FORMATS
from think_tools.templates import set_chat_template, think_lora_config

tied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def random_model(tokenizer, tied: bool, rows: int | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def rows_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Input and output embeddings as the forward pass sees them, (vocabulary, hidden)."""
    layers = {"embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


@tied
def test_the_rows_of_both_markers_are_named(tokenizer, tied):
    config = think_lora_config(random_model(tokenizer, tied), tokenizer)
    layers = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    assert config.trainable_token_indices == {layer: [259, 260] for layer in layers}
    assert (config.r, config.lora_alpha, config.target_modules) == (32, 64, "all-linear")


def test_arguments_of_the_config_pass_through(tokenizer):
    config = think_lora_config(
        random_model(tokenizer, True), tokenizer, r=4, lora_dropout=0.1, target_modules=["q_proj"], use_rslora=True
    )
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (4, 8, 0.1, {"q_proj"})
    assert think_lora_config(random_model(tokenizer, True), tokenizer, r=4, lora_alpha=1).lora_alpha == 1


def test_markers_that_are_text_are_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"no single token <seed:think> \(it is 12 tokens of text\).*add_tokens"):
        think_lora_config(random_model(tokenizer, True), tokenizer, fmt=FORMATS["seed_oss"])


def test_a_model_without_the_rows_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"`model` has 259 embedding rows, but the ids .* are \[259, 260\]: call"):
        think_lora_config(random_model(tokenizer, True, rows=259), tokenizer)


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


def test_a_bias_that_is_there_is_found(tokenizer):
    model = random_model(tokenizer, False)
    model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=True)
    adapted = get_peft_model(model, think_lora_config(model, tokenizer))
    assert adapted.get_output_embeddings().bias is model.lm_head.token_adapter.base_layer.bias


def trained(tokenizer, tied: bool, folder, config: LoraConfig | None, **options):
    """An SFT trainer on four rows; not yet run."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": "2+3?"}],
            "completion": [{"role": "assistant", "reasoning_content": reasoning, "content": "5"}],
            "chat_template_kwargs": {"enable_thinking": reasoning is not None},
        }
        for reasoning in ("2 plus 3", None, "三加二", None)
    ]
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=1,
        learning_rate=1e-2,
        max_length=None,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        **options,
    )
    return SFTTrainer(
        model=random_model(tokenizer, tied),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config,
    )


@pytest.mark.slow
@tied
def test_one_step_trains_two_rows_and_saves_them(tokenizer, tmp_path, tied):
    set_chat_template(tokenizer, "chatml_think")
    base = random_model(tokenizer, tied)
    trainer = trained(tokenizer, tied, tmp_path, think_lora_config(base, tokenizer, r=4))
    before = rows_of(trainer.model)
    trainer.train()
    for name, weight in rows_of(trainer.model).items():
        changed = (weight != before[name]).any(dim=1).nonzero().flatten().tolist()
        assert changed == [259, 260], name

    trainer.save_model()
    ids = torch.arange(len(tokenizer))[None]
    loaded = PeftModel.from_pretrained(random_model(tokenizer, tied), tmp_path).eval()
    with torch.no_grad():
        logits = trainer.model.eval()(ids).logits
        assert torch.equal(loaded(ids).logits, logits)
        torch.testing.assert_close(loaded.merge_and_unload()(ids).logits, logits, atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).response_template == tokenizer.response_template


TRAINED = {
    "chatml_think": (
        "<think>\n2 plus 3\n</think>\n\n5<|im_end|>",
        "5<|im_end|>",
        "<think>\n三加二\n</think>\n\n5<|im_end|>",
        "5<|im_end|>",
    ),
    "r1_zero": ("2 plus 3\n</think>\n\n5<|im_end|>", "5<|im_end|>", "三加二\n</think>\n\n5<|im_end|>", "5<|im_end|>"),
}


@pytest.mark.parametrize("only", ["completion_only_loss", "assistant_only_loss"])
@pytest.mark.parametrize("name", TRAINED)
def test_trl_trains_reasoning_answer_and_end_of_turn(tokenizer, tmp_path, name, only):
    set_chat_template(tokenizer, name)
    trainer = trained(tokenizer, True, tmp_path, None, **{only: True})
    rows = trainer.train_dataset["labels"]
    texts = tuple(tokenizer.decode([label for label in row if label != -100]) for row in rows)
    # Without its masks TRL trains to the end of the row, where ChatML has a line break after the end of turn.
    after = "\n" if (name, only) == ("chatml_think", "completion_only_loss") else ""
    assert texts == tuple(text + after for text in TRAINED[name])
