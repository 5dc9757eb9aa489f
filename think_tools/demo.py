"""Reinforcement discovers that thinking pays: the curve of R1 on a CPU, behind `think-tools demo`.

Four stages on two-digit products in English and Chinese: the base answers directly, a cold start thinks part of the
time, GRPO with an accuracy and a format reward makes thinking the rule without a single reward for thinking, and a
majority vote adds the rest. What GRPO does here is select what the model can already do: a thinking answer stays as
long as it was.
"""

import copy
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from .answers import same_answer
from .backends import Candidate, SamplingParams, TransformersBackend
from .data import prepare_sft
from .rewards import accuracy_reward, get_format_reward, get_think_monitor
from .search import majority_vote
from .templates import think_lora_config
from .tiny import arithmetic_problems, load_tiny
from .tiny.cold_start import cold_start_rows

Model = PreTrainedModel | PeftModel

GREEDY = SamplingParams(temperature=0.0, max_tokens=256)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=256)
PROMPTS_PER_CALL = 100  # one tick of the progress bar
BATCH_SIZE = 100  # sequences; more of them wait longer for the longest

# Settings that were measured on the embedded model (see recipes/tiny/cold_start.yaml and think_tools/tiny/README.md).
COLD_START: dict[str, Any] = {
    "max_steps": 800,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 50,
    "per_device_train_batch_size": 32,
}
GRPO: dict[str, Any] = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "beta": 0.0,  # no KL term: the run is short and starts from the model it would be held to
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 256,
}
# For both: a bar of our own shows the progress, see `_train`.
ON_CPU: dict[str, Any] = {
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
}


@dataclass(frozen=True)
class _Run:
    """What all stages share."""

    problems: Dataset
    tokenizer: PreTrainedTokenizerBase
    seed: int
    folder: Path
    console: Console


def run_demo(
    output_dir: str | Path,
    *,
    num_problems: int = 400,
    num_steps: int = 30,
    num_samples: int = 8,
    seed: int = 0,
    retrain: bool = False,
    console: Console | None = None,
) -> dict:
    """
    Run the four stages, print their table, and write report, picture and adapter.

    Args:
        output_dir (`str` or `Path`):
            Gets `report.json`, `curve.png` (with the extra `[plots]`) and `adapter/`.
        num_problems (`int`, *optional*, defaults to `400`):
            Held-out problems, two-digit by two-digit products in English and Chinese in turn.
        num_steps (`int`, *optional*, defaults to `30`):
            GRPO steps of 64 completions.
        num_samples (`int`, *optional*, defaults to `8`):
            Samples per problem for the majority vote.
        seed (`int`, *optional*, defaults to `0`):
            The same seed on the same number of threads gives the same report but for the seconds.
        retrain (`bool`, *optional*, defaults to `False`):
            Train the cold start live instead of loading the adapter that ships with the package.
        console (`rich.console.Console`, *optional*):
            Where to print; `None` is standard output.

    Returns:
        `dict`: The report: `stages`, `problems`, `seed`, `versions`. Each stage has `name`, `accuracy`, `think_share`,
            `think_tokens`, `think_tokens_right`, `think_tokens_wrong` (means in tokens per thinking answer, `None`
            where there is none) and `seconds`.

    Raises:
        `ValueError`: If a count is below 1.
    """
    for name, value in (("num_problems", num_problems), ("num_steps", num_steps), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    folder, console = Path(output_dir), console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    stages = []

    started = time.monotonic()
    base, tokenizer = load_tiny()
    run = _Run(arithmetic_problems("test", num_problems, seed), tokenizer, seed, folder, console)
    stages.append(_measure(run, "direct", base, started))

    started = time.monotonic()
    model = _train_cold_start(run, base) if retrain else load_tiny("cold_start", trainable=True)[0]
    stages.append(_measure(run, "cold start", model, started))

    started = time.monotonic()
    curve = _reinforce(run, model, num_steps)
    stages.append(_measure(run, "GRPO", model, started))

    started = time.monotonic()
    name = f"vote of {num_samples}"
    groups = list(_sample(run, model, replace(SAMPLED, n=num_samples), name))
    stages.append(_stage(run, name, groups, groups, started))

    model.save_pretrained(str(folder / "adapter"))
    tokenizer.save_pretrained(folder / "adapter")
    report = {
        "stages": stages,
        "problems": num_problems,
        "seed": seed,
        "versions": {name: version(name) for name in ("think-tools", "torch", "transformers", "trl", "peft")},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(_table(stages, num_problems))
    picture = _draw(curve, folder / "curve.png")
    console.print(
        f"Report: {folder / 'report.json'}",
        f"Picture: {picture or 'needs matplotlib: pip install think-tools[plots]'}",
        sep="\n",
    )
    console.print(f"Chat with it: think-tools chat {folder / 'adapter'}")
    return report


def _measure(run: _Run, name: str, model: Model, started: float) -> dict:
    """Greedy accuracy, and the share and length of reasoning when sampling at temperature 1."""
    greedy = list(_sample(run, model, GREEDY, f"{name}: greedy"))
    return _stage(run, name, greedy, _sample(run, model, SAMPLED, f"{name}: sampled"), started)


def _sample(run: _Run, model: Model, params: SamplingParams, title: str) -> Iterator[list[Candidate]]:
    """A list of `params.n` candidates for each problem."""
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()  # the same function without the adapter's extra matrices
    backend = TransformersBackend(cast(PreTrainedModel, model), run.tokenizer)
    prompts, params = run.problems["prompt"], replace(params, seed=run.seed)
    with Progress(console=run.console, transient=True) as progress:
        for start in progress.track(range(0, len(prompts), PROMPTS_PER_CALL), description=title):
            yield from backend.sample(prompts[start : start + PROMPTS_PER_CALL], params, batch_size=BATCH_SIZE)


def _stage(
    run: _Run, name: str, voters: list[list[Candidate]], samples: Iterable[list[Candidate]], started: float
) -> dict:
    """Accuracy of what the candidates of each problem vote for, and the reasoning of the samples."""
    golds = run.problems["solution"]
    # An answer that is empty (cut-off reasoning) never votes.
    winners = [majority_vote([candidate.trace.answer or None for candidate in group]) for group in voters]
    pairs = [(candidate, gold) for group, gold in zip(samples, golds, strict=True) for candidate in group]
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for candidate, gold in pairs:
        if candidate.trace.reasoning:
            lengths[same_answer(candidate.trace.answer, gold) is True].append(candidate.num_reasoning_tokens)
    thinking = lengths[True] + lengths[False]
    return {
        "name": name,
        "accuracy": round(fmean(same_answer(*pair) is True for pair in zip(winners, golds, strict=True)), 4),
        "think_share": round(len(thinking) / len(pairs), 4),
        "think_tokens": _mean(thinking),
        "think_tokens_right": _mean(lengths[True]),
        "think_tokens_wrong": _mean(lengths[False]),
        "seconds": round(time.monotonic() - started, 1),
    }


def _mean(lengths: list[int]) -> float | None:
    return round(fmean(lengths), 1) if lengths else None


def _train_cold_start(run: _Run, base: Model) -> Model:
    """What `recipes/sft.py --config recipes/tiny/cold_start.yaml` does."""
    run.console.print(f"Training the cold start for {COLD_START['max_steps']} steps: about 15 minutes.")
    rows = cold_start_rows(COLD_START["max_steps"] * COLD_START["per_device_train_batch_size"], run.seed)
    folder = str(run.folder / "cold_start")
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(folder, max_length=None, logging_steps=50, seed=run.seed, **COLD_START, **ON_CPU),
        train_dataset=prepare_sft(rows, run.tokenizer, max_length=512),
        processing_class=run.tokenizer,
        peft_config=think_lora_config(cast(PreTrainedModel, base), run.tokenizer),
    )
    _train(run, trainer, "cold start")
    return cast(PeftModel, trainer.model)


def _reinforce(run: _Run, model: Model, num_steps: int) -> list[dict]:
    """GRPO from the cold start, in place; returns the logs, one entry per step."""
    run.console.print(f"GRPO: {num_steps} steps of {GRPO['per_device_train_batch_size']} completions.")
    rewards: list[Any] = [accuracy_reward, get_format_reward(allow_no_think=True), get_think_monitor(run.tokenizer)]
    num_prompts = num_steps * GRPO["per_device_train_batch_size"] // GRPO["num_generations"]
    prompts = arithmetic_problems("train", num_prompts, run.seed).select_columns(["prompt", "solution"])
    folder = str(run.folder / "grpo")
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(folder, max_steps=num_steps, logging_steps=1, seed=run.seed, **GRPO, **ON_CPU),
        train_dataset=prompts,
        processing_class=run.tokenizer,
        reward_funcs=rewards,
    )
    _train(run, trainer, "GRPO")
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def _train(run: _Run, trainer: Trainer, title: str) -> None:
    """Train with one bar that shows the latest numbers, in place of a printed dict per step."""
    trainer.remove_callback(PrinterCallback)
    with Progress(console=run.console, transient=True) as progress:
        trainer.add_callback(_Bar(progress, title, trainer.args.max_steps))
        trainer.train()


class _Bar(TrainerCallback):
    def __init__(self, progress: Progress, title: str, total: int):
        self.progress, self.title, self.task = progress, title, progress.add_task(title, total=total)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        shown = {"loss": "loss", "right": "rewards/accuracy_reward/mean", "without thinking": "think/no_think"}
        numbers = ", ".join(f"{logs[key]:.2f} {name}" for name, key in shown.items() if key in logs)
        description = f"{self.title}: {numbers}" if numbers else self.title
        self.progress.update(self.task, completed=state.global_step, description=description)


def _table(stages: list[dict], num_problems: int) -> Table:
    table = Table(title=f"{num_problems} held-out problems")
    columns = ("stage", "accuracy", "thinks", "think tokens", "right", "wrong", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for name, accuracy, think_share, *lengths, seconds in map(dict.values, stages):
        shown = ["-" if length is None else f"{length:.1f}" for length in lengths]
        table.add_row(name, f"{accuracy:.1%}", f"{think_share:.1%}", *shown, f"{seconds:.0f}")
    return table


def _draw(curve: list[dict], path: Path) -> Path | None:
    """Accuracy, share that thinks and tokens per thinking answer over the steps; `None` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps = [entry["step"] for entry in curve]
    figure = Figure(figsize=(7, 6), layout="constrained")
    shares, lengths = figure.subplots(2, 1, sharex=True)
    shares.plot(steps, [entry["rewards/accuracy_reward/mean"] for entry in curve], label="accuracy")
    shares.plot(steps, [1 - entry["think/no_think"] for entry in curve], label="share of answers that think")
    shares.set(ylim=(0, 1.02), title="GRPO with rewards for accuracy and format, none for thinking")
    shares.legend(loc="lower right")
    lengths.plot(steps, [entry.get("think/reasoning_tokens", nan) for entry in curve], color="tab:green")
    lengths.margins(y=0.1)
    lengths.set(ylim=(0, None), xlabel="GRPO step", ylabel="tokens per thinking answer")
    figure.savefig(path, dpi=120)
    return path
