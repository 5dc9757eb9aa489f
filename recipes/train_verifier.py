# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
Train a verifier: a process model from step labels (Math-Shepherd, https://huggingface.co/papers/2312.08935), or an
outcome model from right and wrong outputs (https://huggingface.co/papers/2110.14168) or from pairs.

```
python recipes/label_steps.py --config recipes/tiny/label_steps.yaml                  # the rows of the next two
python recipes/train_verifier.py --config recipes/tiny/process_verifier.yaml   # on a CPU
python recipes/train_verifier.py --config recipes/tiny/outcome_verifier.yaml
python recipes/train_verifier.py --model_name_or_path Qwen/Qwen3-0.6B --train_file steps.jsonl --output_dir out/prm
```

The columns decide: `prompt`, `completions` and `labels` (the stepwise rows of TRL, which trained them until version
1.13) train a process model; `prompt`, `completion` and `correct` an outcome model by cross-entropy; `prompt`, `chosen`
and `rejected` one by TRL's `RewardTrainer`. All flags of TRL's `RewardConfig` and `ModelConfig` work.
"""

import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from peft import get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from trl import ModelConfig, RewardConfig, RewardTrainer, TrlParser, get_peft_config

from think_tools import read_completion
from think_tools.search.verifiers import encode_output, encode_steps
from think_tools.tiny import load_tiny

KINDS = {
    "process": ("prompt", "completions", "labels"),
    "outcome": ("prompt", "completion", "correct"),
    "pairs": ("prompt", "chosen", "rejected"),
}


@dataclass
class VerifierArguments:
    """Flags that TRL does not have."""

    train_file: str = field(metadata={"help": "JSON Lines file with the columns of one kind, see the top."})
    adapter: str | None = field(default=None, metadata={"help": "Adapter of the embedded model to begin with."})
    held_out: int = field(default=100, metadata={"help": "Questions to measure on, with all of their rows."})


def kind_of(rows: Dataset) -> str:
    """What the columns train."""
    for kind, columns in KINDS.items():
        if {*columns} <= {*rows.column_names}:
            return kind
    raise ValueError(f"`train_file` must have the columns of one of {KINDS}, got {rows.column_names}.")


def load_model(kind: str, args: VerifierArguments, model_args: ModelConfig) -> tuple[Any, PreTrainedTokenizerBase]:
    """A classifier on the layers of a language model, and its tokenizer."""
    name = model_args.model_name_or_path
    with tempfile.TemporaryDirectory() as folder:
        if name == "tiny":
            model, tokenizer = load_tiny(args.adapter)
            name = folder
            (model.merge_and_unload() if args.adapter else model).save_pretrained(folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name)
        if kind == "process":
            model = AutoModelForTokenClassification.from_pretrained(name, num_labels=2, dtype=model_args.dtype)
        else:
            # One label, so that both losses give the same kind of model; by its name transformers would take MSE.
            model = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, problem_type="multi_label_classification", dtype=model_args.dtype
            )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if peft_config := get_peft_config(model_args):
        peft_config.task_type = "TOKEN_CLS" if kind == "process" else "SEQ_CLS"
        model = get_peft_model(model, peft_config)
    return model, tokenizer


def encode(rows: Dataset, kind: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Dataset:
    """Token ids and labels, written as the verifiers read them. What is longer than `max_length` is left out."""

    def text(completion: Any) -> str:
        return read_completion(completion).text()

    def one(row: dict[str, Any]) -> dict[str, Any]:
        if kind == "process":
            ids, ends = encode_steps(tokenizer, row["prompt"], row["completions"])
            labels = dict(zip(ends, map(int, row["labels"]), strict=True))
            return {"input_ids": ids, "labels": [labels.get(i, -100) for i in range(len(ids))]}
        if kind == "outcome":
            ids = encode_output(tokenizer, row["prompt"], text(row["completion"]))
            return {"input_ids": ids, "labels": [float(row["correct"])]}
        return {f"{name}_ids": encode_output(tokenizer, row["prompt"], text(row[name])) for name in KINDS[kind][1:]}

    known = rows.filter(lambda row: row["correct"] is not None) if kind == "outcome" else rows
    # `map` would keep the type of the column `labels`, and a -100 that becomes a boolean is a good step.
    encoded = Dataset.from_list([one(row) for row in known])
    names = [name for name in encoded.column_names if name.endswith("ids")]
    kept = encoded.filter(lambda row: max(len(row[name]) for name in names) <= (max_length or float("inf")))
    print(f"{len(rows)} rows, {len(rows) - len(known)} without label, {len(known) - len(kept)} over `max_length`")
    return kept


def metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, the share of good labels to compare it with, and the area under the ROC curve."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    margins = logits[..., 1] - logits[..., 0] if logits.ndim == 3 else logits
    scores, truth = margins[labels != -100], labels[labels != -100] > 0.5
    good, bad = scores[truth], np.sort(scores[~truth])
    # For each good one the share of bad ones below it; ties count half.
    below = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / 2
    auc = float(below.mean() / len(bad)) if len(good) and len(bad) else float("nan")
    return {"accuracy": float(((scores > 0) == truth).mean()), "good": float(truth.mean()), "auc": auc}


def main(args: VerifierArguments, training_args: RewardConfig, model_args: ModelConfig) -> Trainer:
    set_seed(training_args.seed)
    rows = load_dataset("json", data_files=args.train_file, split="train")
    kind = kind_of(rows)
    model, tokenizer = load_model(kind, args, model_args)
    questions = list(dict.fromkeys(str(prompt) for prompt in rows["prompt"]))
    held_out = set(np.random.default_rng(training_args.seed).permutation(questions)[: args.held_out].tolist())
    parts = [
        rows.filter(lambda row: str(row["prompt"]) not in held_out),
        rows.filter(lambda row: str(row["prompt"]) in held_out),
    ]
    train, test = (encode(part, kind, tokenizer, training_args.max_length) for part in parts)
    sets = {"train_dataset": train, "eval_dataset": test if len(test) else None, "processing_class": tokenizer}
    if kind == "pairs":
        trainer = RewardTrainer(model=model, args=training_args, **sets)
    else:
        collator = DataCollatorForTokenClassification if kind == "process" else DataCollatorWithPadding
        trainer = Trainer(
            model=model, args=training_args, data_collator=collator(tokenizer), compute_metrics=metrics, **sets
        )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if len(test):
        print({name: round(value, 4) for name, value in trainer.evaluate().items()})
    trainer.save_model()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main(*TrlParser((VerifierArguments, RewardConfig, ModelConfig)).parse_args_and_config())
