# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools[quant]"]
# ///
"""
SFT on rows with a chain of thought, so that a model learns to think before it answers (DeepSeek-R1, section 2.3.1).

```
python recipes/sft.py --config recipes/tiny/sft.yaml --train_file gsm8k_train.jsonl --output_dir out/a   # on a CPU
python recipes/sft.py --config recipes/medical.yaml --push_to_hub                                      # QLoRA, 16 GB
python recipes/sft.py \
    --model_name_or_path Qwen/Qwen3-0.6B-Base --template chatml_think \
    --dataset_name open-r1/Mixture-of-Thoughts --dataset_config math \
    --use_peft --lora_r 32 --learning_rate 2e-4 --max_length 8192 --output_dir out/qwen3-0.6b-sft
```

All flags of TRL's `SFTConfig` and `ModelConfig` work, `--use_peft`, `--load_in_4bit` and `--push_to_hub` among them.
"""

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import (
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from think_tools.backends import SamplingParams
from think_tools.callbacks import ThinkEvalCallback
from think_tools.data import prepare_sft, to_think
from think_tools.preflight import preflight
from think_tools.templates import add_think_tokens, set_chat_template, think_lora_config
from think_tools.tiny import load_tiny


@dataclass
class ThinkScriptArguments(ScriptArguments):
    """Flags that TRL does not have."""

    train_file: str | None = field(default=None, metadata={"help": "JSON Lines file, used instead of dataset_name."})
    template: str | None = field(
        default=None,
        metadata={"help": "Chat template to set; without it, chatml_think if the tokenizer has none of its own."},
    )
    think_tokens: bool = field(
        default=False, metadata={"help": "Make <think> and </think> tokens of the model; else they are plain text."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Adapter to train further (folder or Hub name)."})
    too_long: str = field(default="drop", metadata={"help": "Rows over max_length: 'drop' (reported) or 'raise'."})
    held_out: int = field(default=32, metadata={"help": "Number of questions answered during training; 0 for none."})
    held_out_steps: int = field(default=50, metadata={"help": "Steps between two rounds of held-out questions."})
    held_out_tokens: int = field(default=1024, metadata={"help": "Longest answer to a held-out question, in tokens."})


def load_model(
    args: ThinkScriptArguments, model_args: ModelConfig
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The embedded model by its name `tiny`, any other from a folder or the Hub, with its tokenizer."""
    name = model_args.model_name_or_path
    if name == "tiny":
        return load_tiny(args.adapter, trainable=True)
    # An adapter brings the template it was trained with.
    tokenizer = AutoTokenizer.from_pretrained(args.adapter or name)
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )
    # The base of an adapter with think tokens has to grow again before the adapter fits.
    if args.think_tokens or (args.adapter and {"<think>", "</think>"} <= tokenizer.get_vocab().keys()):
        add_think_tokens(model, tokenizer)
    return (PeftModel.from_pretrained(model, args.adapter, is_trainable=True) if args.adapter else model), tokenizer


def load_rows(args: ThinkScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training rows and held-out rows: from the test split if there is one, else taken out of the training rows."""
    if args.train_file:
        splits = load_dataset("json", data_files={args.dataset_train_split: args.train_file})
    elif args.dataset_name:
        splits = load_dataset(args.dataset_name, args.dataset_config)
    else:
        raise ValueError("`train_file` and `dataset_name` are both missing: give one of them.")
    train = to_think(splits[args.dataset_train_split])
    if not args.held_out:
        return train, train.select([])
    if args.dataset_test_split in splits:
        test = to_think(splits[args.dataset_test_split])
        return train, test.shuffle(seed).select(range(min(args.held_out, len(test))))
    parts = train.train_test_split(args.held_out, seed=seed)
    return parts["train"], parts["test"]


def lora_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_args: ModelConfig
) -> LoraConfig | None:
    """TRL's LoRA flags, on all linear layers unless they say otherwise, and the rows of the think tokens."""
    model_args.lora_target_modules = model_args.lora_target_modules or "all-linear"
    config = get_peft_config(model_args)
    # Markers that are no tokens are ordinary text, and have no rows.
    if config and {"<think>", "</think>"} <= tokenizer.get_vocab().keys():
        config.trainable_token_indices = think_lora_config(model, tokenizer).trainable_token_indices
    return config


def main(args: ThinkScriptArguments, training_args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    set_seed(training_args.seed)
    model, tokenizer = load_model(args, model_args)
    if args.template or not tokenizer.chat_template:
        set_chat_template(tokenizer, args.template or "chatml_think")
    rows, held_out = load_rows(args, training_args.seed)
    prepared = prepare_sft(rows, tokenizer, max_length=training_args.max_length, too_long=args.too_long)

    trainer = SFTTrainer(
        model=model,
        args=training_args,
        processing_class=tokenizer,
        train_dataset=prepared,  # the labels are ready: the trainer neither renders nor cuts anything
        peft_config=None if args.adapter else lora_config(model, tokenizer, model_args),
    )
    trained = [label for label in prepared[0]["labels"] if label != -100]
    trainer.accelerator.print(f"{len(prepared)} rows. The first one trains:\n{tokenizer.decode(trained)}")
    if args.held_out:
        params = SamplingParams(temperature=0.0, max_tokens=args.held_out_tokens)
        trainer.add_callback(ThinkEvalCallback(held_out, trainer=trainer, every=args.held_out_steps, params=params))
    preflight(trainer)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    trainer.save_model()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=args.dataset_name)
    return trainer


if __name__ == "__main__":
    main(*TrlParser((ThinkScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config())
