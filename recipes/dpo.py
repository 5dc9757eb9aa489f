# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
DPO on pairs of a model's own answers, the rule that makes the pairs as an argument: right before wrong, short before
long, clean before mixed, well formed before not (https://huggingface.co/papers/2305.18290).

```
python recipes/dpo.py --config recipes/tiny/dpo.yaml --rule short      # on a CPU
python recipes/dpo.py \
    --model_name_or_path Qwen/Qwen3-0.6B --train_file gsm8k_train.jsonl --rule short \
    --use_peft --lora_r 32 --learning_rate 5e-5 --max_length 8192 --output_dir out/qwen3-0.6b-short
```

`train_file` holds questions and answers (whatever `to_think` reads). `--rule short` pairs two right answers, so it
works only on a model whose right answers differ in length: the embedded one always reasons in as many steps, so it is
first taught to write its sums again and again without need (`taught_to_repeat`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from think_tools.backends import Candidate, SamplingParams, TransformersBackend
from think_tools.data import prepare_sft, sample_candidates, to_preference, to_think
from think_tools.preflight import preflight
from think_tools.rewards import accuracy_reward
from think_tools.tiny import load_tiny
from think_tools.tiny.problems import ask, is_test_pair, long_hand

# The embedded model is taught to write the calculation of a sum again, up to so many times.
MAX_REPEATS = 6


@dataclass
class PairArguments:
    """Flags that TRL does not have."""

    rule: str = field(default="correct", metadata={"help": "Rule of `to_preference`: correct, short, clean, format."})
    margin: float | None = field(default=None, metadata={"help": "Least difference of a pair; tokens for `short`."})
    adapter: str | None = field(default=None, metadata={"help": "Adapter to start from (folder or Hub name)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON Lines file; without it, sums."})
    teach_steps: int = field(default=60, metadata={"help": "Steps that teach the embedded model to repeat itself."})
    num_questions: int = field(default=200, metadata={"help": "Most questions to make pairs of."})
    n: int = field(default=4, metadata={"help": "Answers per question to choose from."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of these answers."})
    held_out: int = field(default=100, metadata={"help": "Held-out questions."})
    max_tokens: int = field(default=1024, metadata={"help": "Longest answer, in tokens."})
    generation_batch: int = field(default=100, metadata={"help": "Most answers to generate at once."})


def load_model(
    args: PairArguments, model_args: ModelConfig
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The model, an adapter merged into it, so that the reference of DPO is what it could do before."""
    name = model_args.model_name_or_path
    if name == "tiny":
        model, tokenizer = load_tiny(args.adapter)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.adapter or name)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=model_args.dtype, quantization_config=get_quantization_config(model_args)
        )
        model = PeftModel.from_pretrained(model, args.adapter) if args.adapter else model
    return (model.merge_and_unload() if isinstance(model, PeftModel) else model), tokenizer


def sums(split: str, n: int, seed: int) -> list[dict]:
    """Sums of two-digit numbers with their long-hand reasoning; the splits share no pair of numbers."""
    rng, rows = random.Random(f"{split}/{seed}"), []
    while len(rows) < n:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if is_test_pair(a, b) == (split == "test"):
            message = {"role": "assistant", "reasoning_content": long_hand(a, "+", b), "content": str(a + b)}
            prompt = [{"role": "user", "content": ask(rng, a, "+", b, "en")}]
            row = {
                "prompt": prompt,
                "completion": [message],
                "solution": str(a + b),
                "id": f"{split}-{seed}-{len(rows)}",
            }
            rows.append(row)
    return rows


def load_questions(args: PairArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Questions to make pairs of, and held-out ones."""
    if not args.train_file:
        train = Dataset.from_list(sums("train", args.num_questions, seed=1))
        test = Dataset.from_list(sums("test", args.held_out, seed=1))
    else:
        rows = to_think(load_dataset("json", data_files=args.train_file, split="train"))
        parts = rows.train_test_split(args.held_out, seed=seed)
        train, test = parts["train"].select(range(min(args.num_questions, len(parts["train"])))), parts["test"]
    columns = ["prompt", "solution", "id"]
    return train.select_columns(columns), test.select_columns(columns)


def taught_to_repeat(args: PairArguments, training_args: DPOConfig) -> PreTrainedModel:
    """The embedded model after SFT on right traces that are longer than they need to be, each by any length."""
    model, tokenizer = load_tiny(args.adapter, trainable=True)
    rng = random.Random("repeats")
    rows = sums("train", 16 * args.teach_steps, seed=0)
    for row in rows:
        compute, columns = row["completion"][0]["reasoning_content"].split("\n\n")
        repeated = "\n\n".join([compute, *[columns] * rng.randint(1, 1 + MAX_REPEATS)])
        row["completion"][0]["reasoning_content"] = repeated
    sft_args = SFTConfig(
        training_args.output_dir,
        max_length=None,
        max_steps=args.teach_steps,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        use_cpu=training_args.use_cpu,
        bf16=training_args.bf16,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=training_args.seed,
    )
    trainer = SFTTrainer(
        model,
        args=sft_args,
        processing_class=tokenizer,
        train_dataset=prepare_sft(rows, tokenizer, max_length=None),
    )
    trainer.train()
    trainer.save_model(f"{training_args.output_dir}/taught")
    return trainer.model.merge_and_unload()


def answers(model, tokenizer, rows: Dataset, args: PairArguments, **params) -> Sequence[Sequence[Candidate]]:
    """The model's own answers to the questions."""
    backend = TransformersBackend(model, tokenizer)
    wanted = SamplingParams(max_tokens=args.max_tokens, **params)
    return backend.sample(rows["prompt"], wanted, batch_size=args.generation_batch)


def report(name: str, model, tokenizer, rows: Dataset, args: PairArguments) -> None:
    """One line of the table: greedy answers to the held-out questions."""
    found = [candidate for [candidate] in answers(model, tokenizer, rows, args, temperature=0.0)]
    right = accuracy_reward([[each.trace.message()] for each in found], solution=rows["solution"])
    thinks = sum(bool(each.trace.reasoning) for each in found) / len(found)
    tokens = sum(each.num_reasoning_tokens for each in found) / len(found)
    shares = f"{sum(value or 0 for value in right) / len(found):.3f} | {thinks:.3f}"
    print(f"| {name} | {shares} | {tokens:.0f} |", flush=True)


def main(args: PairArguments, training_args: DPOConfig, model_args: ModelConfig) -> DPOTrainer:
    set_seed(training_args.seed)
    model, tokenizer = load_model(args, model_args)
    questions, held_out = load_questions(args, training_args.seed)
    if model_args.model_name_or_path == "tiny" and args.teach_steps:
        model = taught_to_repeat(args, training_args)

    sampled = answers(model, tokenizer, questions, args, n=args.n, temperature=args.temperature, seed=0)
    pairs = to_preference(
        sample_candidates(questions, lambda prompts: sampled),
        args.rule,
        margin=args.margin,
        length=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )
    print(f"{len(pairs)} pairs by the rule {args.rule!r} from {len(questions)} questions, {args.n} answers each.\n")
    print("| | right | thinks | reasoning tokens |\n|---|---|---|---|")
    report("before", model, tokenizer, held_out, args)

    trainer = DPOTrainer(
        model=model,
        args=training_args,
        processing_class=tokenizer,
        train_dataset=pairs.select_columns(["prompt", "chosen", "rejected", "chat_template_kwargs"]),
        peft_config=get_peft_config(model_args),
    )
    preflight(trainer)
    trainer.train()
    report(f"after {trainer.state.global_step} steps", trainer.model, tokenizer, held_out, args)
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(*TrlParser((PairArguments, DPOConfig, ModelConfig)).parse_args_and_config())
