# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
The same rows five ways, and what each does to the thinking of a model that thinks: prompting alone, distilled
reasoning, given reasoning, answers only with thinking given up on purpose, answers only with thinking kept. Beside
them, what TRL makes of the answers by itself.

```
python recipes/sft_mix.py --config recipes/tiny/sft_mix.yaml      # on a CPU
python recipes/sft_mix.py \
    --model_name_or_path Qwen/Qwen3-0.6B --train_file labels.jsonl --others_file gsm8k_test.jsonl \
    --use_peft --lora_r 32 --learning_rate 2e-4 --max_length 8192 --output_dir out/qwen3-0.6b-mix
```

`train_file` holds a task with reasoning and answers (whatever `to_think` reads), `others_file` questions of another
kind, on which the model thought before: do they still make it think? The embedded model has both built in: products
are what it thinks about, and the task is a classification, "How many thousands?".
"""

import copy
import random
from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from think_tools.backends import SamplingParams, TransformersBackend
from think_tools.data import apply_filters, prepare_sft, sample_candidates, select, to_think
from think_tools.data.filters import complete, verified
from think_tools.preflight import preflight
from think_tools.prompts import zero_shot
from think_tools.rewards import accuracy_reward
from think_tools.tiny import arithmetic_problems, load_tiny

ASKED = {"en": " How many thousands?", "zh": "有几千？"}


@dataclass
class MixArguments:
    """Flags that TRL does not have."""

    adapter: str | None = field(default=None, metadata={"help": "Adapter to start from (folder or Hub name)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON Lines file; without it, the built-in task."})
    others_file: str | None = field(default=None, metadata={"help": "Other questions; without it, products."})
    num_rows: int = field(default=600, metadata={"help": "Most rows of the task to train on."})
    num_replayed: int = field(
        default=150, metadata={"help": "Questions of either kind the last way lets it think about."}
    )
    held_out: int = field(default=100, metadata={"help": "Held-out questions of the task, and of the others."})
    max_tokens: int = field(default=1024, metadata={"help": "Longest answer to a question, in tokens."})
    generation_batch: int = field(default=100, metadata={"help": "Most answers to generate at once."})


def load_model(
    args: MixArguments, model_args: ModelConfig
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The model that every way starts from: the embedded one by its name `tiny`, or one from a folder or the Hub."""
    name = model_args.model_name_or_path
    if name == "tiny":
        return load_tiny(args.adapter, trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(args.adapter or name)
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=model_args.dtype, quantization_config=get_quantization_config(model_args)
    )
    return (PeftModel.from_pretrained(model, args.adapter, is_trainable=True) if args.adapter else model), tokenizer


def thousands(split: str, n: int) -> list[dict]:
    """The built-in task: products, and the class that each belongs to. The products themselves are not asked for."""
    rows = []
    for row in arithmetic_problems(split, n):
        label = str(int(row["solution"]) // 1000)
        reasoning = f"{row['completion'][0]['reasoning_content']}\n\n{row['solution']} -> {label}"
        rows.append(
            {
                "prompt": [{"role": "user", "content": row["prompt"][0]["content"] + ASKED[row["language"]]}],
                "completion": [{"role": "assistant", "reasoning_content": reasoning, "content": label}],
                "solution": label,
                "id": row["id"],
            }
        )
    return rows


def load_rows(args: MixArguments, seed: int) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
    """Rows of the task to train on and to ask, then other questions to replay and to ask."""
    if bool(args.train_file) != bool(args.others_file):
        raise ValueError("`train_file` and `others_file` must be given together, or neither for the built-in task.")
    if not args.train_file:
        others = arithmetic_problems("train", args.num_replayed, seed=1), arithmetic_problems("test", args.held_out)
        return (
            thousands("train", args.num_rows),
            thousands("test", args.held_out),
            *(rows.to_list() for rows in others),
        )
    parts = []
    for file, most in ((args.train_file, args.num_rows), (args.others_file, args.num_replayed)):
        rows = to_think(load_dataset("json", data_files=file, split="train")).to_list()
        random.Random(seed).shuffle(rows)
        parts += [rows[args.held_out :][:most], rows[: args.held_out]]
    return parts[0], parts[1], parts[2], parts[3]


def measure(backend: TransformersBackend, rows: list[dict], args: MixArguments, prompt=None, **kwargs) -> str:
    """Share of the questions that are thought about, and share of right answers, greedily."""
    prompts = [prompt(row["prompt"]) if prompt else row["prompt"] for row in rows]
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    answered = backend.sample(prompts, params, batch_size=args.generation_batch, **kwargs)
    completions = [[candidate.trace.message()] for [candidate] in answered]
    right = accuracy_reward(completions, solution=[row["solution"] for row in rows])
    thinks = sum(bool(candidate.trace.reasoning) for [candidate] in answered)
    return f"{thinks / len(rows):.2f} | {sum(value or 0 for value in right) / len(rows):.2f}"


def report(way: str, model: PreTrainedModel | PeftModel, tokenizer, args: MixArguments, asked: tuple, prompt=None):
    """One line of the table."""
    backend = TransformersBackend(model, tokenizer)
    task, others = asked
    cells = [measure(backend, task, args, prompt), measure(backend, task, args, prompt, enable_thinking=False)[7:]]
    print(f"| {way} | {' | '.join([*cells, measure(backend, others, args)])} |", flush=True)


def train(rows: Dataset, args: MixArguments, training_args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    """A fresh copy of the model, trained by the stock trainer on prepared rows, or on rows that it prepares itself."""
    set_seed(training_args.seed)
    model, tokenizer = load_model(args, model_args)
    trainer = SFTTrainer(
        model=model,
        args=copy.deepcopy(training_args),
        processing_class=tokenizer,
        train_dataset=rows,
        peft_config=None if args.adapter else get_peft_config(model_args),
    )
    preflight(trainer)
    trainer.train()
    return trainer


def own_answers(model: PreTrainedModel | PeftModel, tokenizer, rows: list[dict], args: MixArguments) -> Dataset:
    """What a model writes to the questions, a candidate each, drawn at temperature 1 with a fixed seed."""
    backend = TransformersBackend(model, tokenizer)
    params = SamplingParams(temperature=1.0, max_tokens=args.max_tokens, seed=0)
    questions = [{name: row[name] for name in ("prompt", "solution", "id")} for row in rows]
    candidates = sample_candidates(
        questions, lambda prompts: backend.sample(prompts, params, batch_size=args.generation_batch)
    )
    return apply_filters(candidates, [complete(), verified()])[0]


def right_traces(model: PreTrainedModel | PeftModel, tokenizer, rows: list[dict], args: MixArguments) -> list[dict]:
    """Whole answers of a model, reasoning and all, where they are right."""
    return list(select(own_answers(model, tokenizer, rows, args), undecided=False))


def own_reasoning(model: PreTrainedModel | PeftModel, tokenizer, rows: list[dict], args: MixArguments) -> list[dict]:
    """What a model thinks about the questions, and then the given answer, whatever it would have said."""
    thought = select(own_answers(model, tokenizer, rows, args), verified=None)
    return [
        {**row, "completion": [{**row["completion"][-1], "content": row["solution"]}]} for row in thought.to_list()
    ]


def main(args: MixArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    given, *asked, replayed, others = load_rows(args, training_args.seed)
    asked = asked[0], others
    start, tokenizer = load_model(args, model_args)
    plain = [{**row, "completion": [{"role": "assistant", "content": row["solution"]}]} for row in given]
    plain = [{name: row[name] for name in ("prompt", "completion")} for row in plain]

    def fit(way: str, rows: list[dict], **options) -> SFTTrainer:
        rows = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
        prepared = prepare_sft(rows, tokenizer, max_length=training_args.max_length, **options)
        trainer = train(prepared, args, training_args, model_args)
        report(way, trainer.model, tokenizer, args, asked)
        return trainer

    print("| way | thinks | right | right, asked not to think | others: thinks | others: right |")
    print("|---|---|---|---|---|---|")
    report("before", start, tokenizer, args, asked)
    report("prompting alone", start, tokenizer, args, asked, zero_shot)
    teacher = fit("given reasoning", given)
    distilled = right_traces(teacher.model, tokenizer, given, args)
    fit(f"distilled reasoning ({len(distilled)} right traces of the model above)", distilled)
    fit("answers only, thinking given up on purpose", plain, empty_think="train")
    stock = train(Dataset.from_list(plain), args, training_args, model_args)
    report("answers only, stock TRL", stock.model, tokenizer, args, asked)
    fit("answers only, thinking kept", plain)
    own = own_reasoning(start, tokenizer, given[: args.num_replayed], args)
    own += right_traces(start, tokenizer, replayed, args)
    fit(f"answers only, thinking kept, and {len(own)} traces of its own", plain + own)


if __name__ == "__main__":
    main(*TrlParser((MixArguments, SFTConfig, ModelConfig)).parse_args_and_config())
