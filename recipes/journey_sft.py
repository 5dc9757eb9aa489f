# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
Journey learning: the same model trained on clean traces and on traces that err, notice and go back; which of the two
gets out of a wrong step more often? (O1 Replication Journey, https://huggingface.co/papers/2410.18982)

```
python recipes/journey_sft.py --config recipes/tiny/journey_sft.yaml      # on a CPU
python recipes/journey_sft.py \
    --model_name_or_path Qwen/Qwen3-0.6B --train_file gsm8k_train.jsonl \
    --use_peft --lora_r 32 --learning_rate 2e-4 --max_length 8192 --output_dir out/qwen3-0.6b-journey
```

`train_file` holds questions with right reasoning in steps (whatever `to_think` reads) and answers; errors are planted
in it. With a search tree of your own, give `journey(tree)` to `prepare_sft(loss="parts")` instead. Wrong steps are
read, never learned: only the remark, the way back and the correction are in the loss.
"""

import copy
import random
from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from think_tools import THINK, detect_format, parse, split_steps
from think_tools.data import journey, prepare_sft, to_think
from think_tools.data.journeys import CONNECTORS, plant_errors, slip
from think_tools.preflight import preflight
from think_tools.rewards import accuracy_reward
from think_tools.templates import prompt_state
from think_tools.tiny import arithmetic_problems, load_tiny


@dataclass
class JourneyArguments:
    """Flags that TRL does not have."""

    adapter: str | None = field(default=None, metadata={"help": "Adapter to start from (folder or Hub name)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON Lines file; without it, products."})
    num_rows: int = field(default=2000, metadata={"help": "Most rows to train on."})
    error_rate: float = field(default=0.3, metadata={"help": "Probability that a step is got wrong first."})
    turn: str | None = field(
        default=None,
        metadata={"help": "What turns back, may hold {remark} and {state}; without it, the words of `journey`."},
    )
    held_out: int = field(default=200, metadata={"help": "Held-out questions."})
    max_tokens: int = field(default=1024, metadata={"help": "Longest answer, in tokens."})
    generation_batch: int = field(default=100, metadata={"help": "Most answers to generate at once."})


def load_model(
    args: JourneyArguments, model_args: ModelConfig
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The model both runs start from: the embedded one by its name `tiny`, any other from a folder or the Hub."""
    name = model_args.model_name_or_path
    if name == "tiny":
        return load_tiny(args.adapter, trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(args.adapter or name)
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=model_args.dtype, quantization_config=get_quantization_config(model_args)
    )
    return (PeftModel.from_pretrained(model, args.adapter, is_trainable=True) if args.adapter else model), tokenizer


def load_rows(args: JourneyArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on and held-out rows, all with clean reasoning."""
    if not args.train_file:
        return arithmetic_problems("train", args.num_rows), arithmetic_problems("test", args.held_out)
    rows = to_think(load_dataset("json", data_files=args.train_file, split="train"))
    parts = rows.filter(lambda row: bool(row["completion"][-1]["reasoning_content"])).train_test_split(
        args.held_out, seed=seed
    )
    return parts["train"].select(range(min(args.num_rows, len(parts["train"])))), parts["test"]


def journeys(rows: Dataset, args: JourneyArguments, seed: int) -> Dataset:
    """The rows with steps that are got wrong, noticed, and done again."""
    connectors = {**CONNECTORS["en"], "turn": args.turn} if args.turn else None
    trees = [plant_errors(row, rate=args.error_rate, seed=seed) for row in rows]
    return Dataset.from_list([row for tree in trees for row in journey(tree, connectors=connectors)])


def spoilt_beginnings(rows: Dataset, seed: int) -> list[str]:
    """The reasoning of each row up to a step that is got wrong, a different step and slip from row to row."""
    beginnings = []
    for row in rows:
        rng = random.Random(f"{seed}/{row['id']}")
        steps = split_steps(row["completion"][-1]["reasoning_content"])
        tried = [(i, wrong) for i, step in enumerate(steps) if (wrong := slip(step, rng))]
        if not tried:
            raise ValueError(
                f"no step of row {row['id']!r} has a result that could be wrong (`=` or `->`): leave it out."
            )
        i, (wrong, _) = rng.choice(tried)
        beginnings.append("".join(steps[:i]) + wrong + "\n\n")
    return beginnings


def go_on(model, tokenizer, rows: Dataset, beginnings: list[str], args: JourneyArguments) -> list[str]:
    """What the model writes after each beginning of a reasoning, greedily; the beginning is part of the result."""
    fmt = detect_format(tokenizer) or THINK
    opening = "" if prompt_state(tokenizer, fmt=fmt) == "open" else f"{fmt.open}\n"
    written = []
    model.eval()
    for start in range(0, len(rows), args.generation_batch):
        some = [f"{opening}{text}" for text in beginnings[start : start + args.generation_batch]]
        prompts = tokenizer.apply_chat_template(
            rows[start : start + args.generation_batch]["prompt"], add_generation_prompt=True, tokenize=False
        )
        texts = [prompt + text for prompt, text in zip(prompts, some, strict=True)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(
            model.device
        )
        outputs = model.generate(**inputs, max_new_tokens=args.max_tokens, do_sample=False)
        for text, ids in zip(some, outputs[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            written.append(text.removeprefix(opening) + tokenizer.decode(ids))
    return written


def report(name: str, model, tokenizer, rows: Dataset, args: JourneyArguments, seed: int) -> None:
    """One line of the table: right answers from the start, and after a wrong step."""
    beginnings = spoilt_beginnings(rows, seed)
    cells = []
    for given in ([""] * len(rows), beginnings):
        texts = go_on(model, tokenizer, rows, given, args)
        traces = [parse(text, opened=True, fmt=detect_format(tokenizer) or THINK) for text in texts]
        right = accuracy_reward([[trace.message()] for trace in traces], solution=rows["solution"])
        cells.append(f"{sum(value or 0 for value in right) / len(rows):.3f}")
    # All turns begin so.
    turned = [text[len(begun) :].startswith(("Wait", "等等")) for text, begun in zip(texts, beginnings, strict=True)]
    print(f"| {name} | {cells[0]} | {cells[1]} | {sum(turned) / len(rows):.3f} |", flush=True)


def train(
    rows: Dataset, loss: str, args: JourneyArguments, training_args: SFTConfig, model_args: ModelConfig
) -> SFTTrainer:
    """A fresh copy of the model, trained on the rows."""
    set_seed(training_args.seed)
    model, tokenizer = load_model(args, model_args)
    trainer = SFTTrainer(
        model=model,
        args=copy.deepcopy(training_args),
        processing_class=tokenizer,
        train_dataset=prepare_sft(rows, tokenizer, max_length=training_args.max_length, loss=loss),
        peft_config=None if args.adapter else get_peft_config(model_args),
    )
    preflight(trainer)
    trainer.train()
    return trainer


def main(args: JourneyArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    clean, held_out = load_rows(args, training_args.seed)
    erring = journeys(clean, args, training_args.seed)
    print(f"{len(erring)} rows, {sum(erring['num_wrong'])} wrong steps planted. One of them:")
    print(next(row for row in erring if row["num_wrong"])["completion"][0]["reasoning_content"])
    print("\n| trained on | right | right after a wrong step | notices it at once |\n|---|---|---|---|")
    report("nothing", *load_model(args, model_args), held_out, args, training_args.seed)
    for name, rows, loss in (("clean traces", clean, "completion"), ("journeys", erring, "parts")):
        trainer = train(rows, loss, args, training_args, model_args)
        report(name, trainer.model, trainer.processing_class, held_out, args, training_args.seed)
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((JourneyArguments, SFTConfig, ModelConfig)).parse_args_and_config())
