# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools[quant]"]
# ///
"""
GRPO from verifiable answers (DeepSeekMath, section 4.1; DeepSeek-R1, section 2.2), on a base model or on an adapter
that `recipes/sft.py` made.

```
python recipes/grpo.py --config recipes/tiny/grpo.yaml --model_name_or_path tiny --adapter cold_start   # on a CPU
python recipes/grpo.py \
    --model_name_or_path Qwen/Qwen3-0.6B-Base --template r1_zero \
    --dataset_name openai/gsm8k --dataset_config main \
    --use_peft --lora_r 32 --learning_rate 1e-5 --beta 0.001 \
    --num_generations 8 --max_completion_length 2048 --output_dir out/qwen3-0.6b-zero --push_to_hub
```

All flags of TRL's `GRPOConfig` and `ModelConfig` work. The rewards are `accuracy_reward` and `format_reward`; the
monitor only logs.
"""

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import (
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from think_tools.backends import SamplingParams
from think_tools.callbacks import ThinkEvalCallback
from think_tools.data import to_think
from think_tools.preflight import preflight
from think_tools.rewards import accuracy_reward, get_format_reward, get_think_monitor
from think_tools.templates import add_think_tokens, set_chat_template, think_lora_config
from think_tools.tiny import load_tiny


@dataclass
class ThinkScriptArguments(ScriptArguments):
    """Flags that TRL does not have."""

    train_file: str | None = field(default=None, metadata={"help": "JSON Lines file, used instead of dataset_name."})
    template: str | None = field(
        default=None,
        metadata={"help": "Chat template to set; without it, r1_zero if the tokenizer has none of its own."},
    )
    think_tokens: bool = field(
        default=False, metadata={"help": "Make <think> and </think> tokens of the model; else they are plain text."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Adapter to train further (folder or Hub name)."})
    allow_no_think: bool = field(
        default=False, metadata={"help": "Whether a direct answer without any marker is well formed too."}
    )
    held_out: int = field(default=64, metadata={"help": "Number of questions answered during training; 0 for none."})
    held_out_steps: int = field(default=20, metadata={"help": "Steps between two rounds of held-out questions."})


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


def to_questions(rows: Dataset) -> Dataset:
    """Prompts and gold answers, which is all that the trainer reads of a row."""
    rows = rows if {"prompt", "solution"} <= set(rows.column_names) else to_think(rows)
    return rows.select_columns(["prompt", "solution"])


def load_questions(args: ThinkScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out questions: from the test split if there is one, else taken out of the training rows."""
    if args.train_file:
        splits = load_dataset("json", data_files={args.dataset_train_split: args.train_file})
    elif args.dataset_name:
        splits = load_dataset(args.dataset_name, args.dataset_config)
    else:
        raise ValueError("`train_file` and `dataset_name` are both missing: give one of them.")
    train = to_questions(splits[args.dataset_train_split])
    if not args.held_out:
        return train, train.select([])
    if args.dataset_test_split in splits:
        test = to_questions(splits[args.dataset_test_split])
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


def copy_token_rows(model: PreTrainedModel | PeftModel) -> None:
    """
    Give the reference copy of an adapter its trained token rows too.

    With `beta` above 0 TRL copies an adapter that it trains further under the name `ref`, but misses the rows, whose
    names end in `.default`: the reference would not know the think tokens, and the KL term would be wrong from the
    first step (https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py#L501-L506).
    """
    for name, row in list(model.named_parameters()):
        if name.endswith("trainable_tokens_delta.ref"):
            row.data.copy_(model.get_parameter(name.removesuffix("ref") + "default"))


def main(args: ThinkScriptArguments, training_args: GRPOConfig, model_args: ModelConfig) -> GRPOTrainer:
    set_seed(training_args.seed)
    model, tokenizer = load_model(args, model_args)
    if args.template or not tokenizer.chat_template:
        set_chat_template(tokenizer, args.template or "r1_zero")
    questions, held_out = load_questions(args, training_args.seed)

    trainer = GRPOTrainer(
        model=model,
        args=training_args,
        processing_class=tokenizer,
        train_dataset=questions,
        # With the tokenizer they see a <think> that the template wrote, and a completion that was cut.
        reward_funcs=[
            accuracy_reward,
            get_format_reward(allow_no_think=args.allow_no_think, tokenizer=tokenizer),
            get_think_monitor(tokenizer=tokenizer),
        ],
        peft_config=None if args.adapter else lora_config(model, tokenizer, model_args),
    )
    copy_token_rows(trainer.model)
    if args.held_out:
        params = SamplingParams(temperature=0.0, max_tokens=training_args.max_completion_length)
        trainer.add_callback(ThinkEvalCallback(held_out, trainer=trainer, every=args.held_out_steps, params=params))
    preflight(trainer)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    trainer.save_model()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=args.dataset_name)
    return trainer


if __name__ == "__main__":
    main(*TrlParser((ThinkScriptArguments, GRPOConfig, ModelConfig)).parse_args_and_config())
