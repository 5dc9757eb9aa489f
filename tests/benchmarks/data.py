"""
What preparing rows costs, beside stock `SFTTrainer`'s own preparation of the same rows; then the client's numbers.

```
THINK_TOOLS_DATA=<folder of the shared rows> python -m tests.benchmarks.data
```

Rows per CPU-second in one process, the fastest of five runs of each, taken in turns, nothing cached. Both render,
tokenise and label; ours checks every row as well. `short` are 2,000 GSM8K rows (arithmetic rows of the embedded task
without the folder), `long` 200 rows that hold the reasoning of forty each, `plain` the short ones without any.
"""

import logging
import os
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_caching, disable_progress_bars, load_dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import qwen3_chat_template

from tests.benchmarks import distill
from think_tools.data import prepare_sft, to_think
from think_tools.tiny import arithmetic_problems, load_tiny

RUNS = 5


def short_rows() -> Dataset:
    """Questions with reasoning and answer."""
    folder = os.environ.get("THINK_TOOLS_DATA")
    if not folder:
        return arithmetic_problems("train", 2000)
    file = str(Path(folder) / "data" / "gsm8k_train_2000.jsonl")
    return to_think(load_dataset("json", data_files=file, split="train"))  # type: ignore[return-value]


def with_reasoning(rows: Dataset, thoughts: list[str | None]) -> Dataset:
    """The first rows with other reasoning."""
    messages = [dict(message, reasoning_content=None) for [message] in rows["completion"][: len(thoughts)]]
    made = [
        {"prompt": prompt, "completion": [{**message, "reasoning_content": thought}]}
        | {"chat_template_kwargs": {"enable_thinking": bool(thought)}}
        for prompt, message, thought in zip(rows["prompt"], messages, thoughts, strict=False)
    ]
    return Dataset.from_list(made)


def stock_trainer(tokenizer: PreTrainedTokenizerBase, rows: Dataset, folder: str) -> SFTTrainer:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    fixed = {
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "activation_checkpointing": False,
    }
    args = SFTConfig(output_dir=folder, **fixed)
    return SFTTrainer(model, args, train_dataset=rows.select(range(2)), processing_class=tokenizer)


def report(name: str, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> float:
    """Print rows per second of both, and return their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = stock_trainer(tokenizer, rows, folder)
        ways = {
            "ours": lambda: prepare_sft(rows, tokenizer, max_length=None),
            # What its constructor calls, without the model's part of it.
            "stock": lambda: trainer._prepare_dataset(rows, tokenizer, trainer.args, False, None, "train"),
        }
        seconds, lengths = dict.fromkeys(ways, float("inf")), {}
        for _ in range(RUNS):
            for way, prepare in ways.items():
                begin = time.process_time()
                prepared = prepare()
                seconds[way] = min(seconds[way], time.process_time() - begin)
                lengths[way] = sum(map(len, prepared["input_ids"]))
    assert lengths["ours"] == lengths["stock"], lengths
    ours, stock = (len(rows) / seconds[way] for way in ("ours", "stock"))
    tokens = lengths["ours"] / len(rows)
    print(f"{name:<24}{len(rows):>6}{tokens:>9.0f}{ours:>9.0f}{stock:>9.0f}{ours / stock:>9.2f}", flush=True)
    return ours / stock


def prepare() -> None:
    """Print the table."""
    _, tokenizer = load_tiny()
    short = short_rows()
    thoughts = [message["reasoning_content"] for [message] in short["completion"]]
    kinds = {
        "short": short,
        "long": with_reasoning(short, ["\n".join(thoughts[at : at + 40]) for at in range(0, 1000, 5)]),
        "plain": with_reasoning(short, [None] * len(short)),
    }
    print(f"{'rows':<24}{'n':>6}{'tokens':>9}{'ours':>9}{'stock':>9}{'ratio':>9}")
    for name, template in {"chatml_think": tokenizer.chat_template, "Qwen3": qwen3_chat_template}.items():
        tokenizer.chat_template = template
        for kind, rows in kinds.items():
            report(f"{kind}, {name}", tokenizer, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    disable_progress_bars()
    disable_caching()
    prepare()
    distill.main()
