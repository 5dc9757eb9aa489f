"""Reinforcement discovers that thinking pays: the curve of R1 on a CPU, behind `think-tools demo`.

Four stages on two-digit products in English and Chinese: the base answers directly, a cold start thinks part of the
time, GRPO with an accuracy and a format reward makes thinking the rule without a single reward for thinking, and a
majority vote adds the rest. What GRPO does here is select what the model can already do: a thinking answer stays as
long as it was.
"""

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
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
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 256,
}


@dataclass(frozen=True)
class Stage:
    """What was measured of one stage. Lengths are means in tokens per thinking answer, `None` where there is none."""

    name: str
    accuracy: float
    think_share: float
    think_tokens: float | None
    think_tokens_right: float | None
    think_tokens_wrong: float | None
    seconds: float


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
        `dict`: The report: `stages` (a [`Stage`] each, as a dict), `problems`, `seed`, `versions`.

    Raises:
        `ValueError`: If a count is below 1.
    """
    for name, value in (("num_problems", num_problems), ("num_steps", num_steps), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    folder, console = Path(output_dir), console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    problems = arithmetic_problems("test", num_problems, seed)
    stages = []

    started = time.monotonic()
    base, tokenizer = load_tiny()
    stages.append(_measure("direct", base, tokenizer, problems, seed, started, console))

    started = time.monotonic()
    model = (
        _train_cold_start(base, tokenizer, seed, folder, console)
        if retrain
        else load_tiny("cold_start", trainable=True)[0]
    )
    stages.append(_measure("cold start", model, tokenizer, problems, seed, started, console))

    started = time.monotonic()
    curve = _reinforce(model, tokenizer, num_steps, seed, folder, console)
    stages.append(_measure("GRPO", model, tokenizer, problems, seed, started, console))

    started = time.monotonic()
    stages.append(_vote(model, tokenizer, problems, num_samples, seed, started, console))

    model.save_pretrained(str(folder / "adapter"))
    tokenizer.save_pretrained(folder / "adapter")
    report = {
        "stages": [asdict(stage) for stage in stages],
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


def _measure(
    name: str,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    problems: Dataset,
    seed: int,
    started: float,
    console: Console,
) -> Stage:
    """Greedy accuracy, and the share and length of reasoning when sampling at temperature 1."""
    greedy = [group[0] for group in _sample(model, tokenizer, problems, GREEDY, f"{name}: greedy", console)]
    params = replace(SAMPLED, seed=seed)
    sampled = [group[0] for group in _sample(model, tokenizer, problems, params, f"{name}: sampled", console)]
    accuracy = fmean(_right(candidate, gold) for candidate, gold in zip(greedy, problems["solution"], strict=True))
    return _stage(name, accuracy, sampled, problems["solution"], time.monotonic() - started)


def _vote(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    problems: Dataset,
    num_samples: int,
    seed: int,
    started: float,
    console: Console,
) -> Stage:
    name = f"vote of {num_samples}"
    params = replace(SAMPLED, n=num_samples, seed=seed)
    groups = list(_sample(model, tokenizer, problems, params, name, console))
    # An answer that is empty (cut-off reasoning) never votes.
    winners = [majority_vote([candidate.trace.answer or None for candidate in group]) for group in groups]
    golds = problems["solution"]
    accuracy = fmean(
        winner is not None and same_answer(winner, gold) is True for winner, gold in zip(winners, golds, strict=True)
    )
    samples = [candidate for group in groups for candidate in group]
    return _stage(
        name, accuracy, samples, [gold for gold in golds for _ in range(num_samples)], time.monotonic() - started
    )


def _sample(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    problems: Dataset,
    params: SamplingParams,
    title: str,
    console: Console,
) -> Iterator[list[Candidate]]:
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()  # the same function without the adapter's extra matrices
    backend = TransformersBackend(cast(PreTrainedModel, model), tokenizer)
    prompts = problems["prompt"]
    with Progress(console=console, transient=True) as progress:
        for start in progress.track(range(0, len(prompts), PROMPTS_PER_CALL), description=title):
            yield from backend.sample(prompts[start : start + PROMPTS_PER_CALL], params, batch_size=BATCH_SIZE)


def _right(candidate: Candidate, gold: str) -> bool:
    return same_answer(candidate.trace.answer, gold) is True


def _stage(name: str, accuracy: float, sampled: list[Candidate], golds: list[str], seconds: float) -> Stage:
    pairs = list(zip(sampled, golds, strict=True))
    thinking = [
        (candidate.num_reasoning_tokens, _right(candidate, gold))
        for candidate, gold in pairs
        if candidate.trace.reasoning
    ]
    lengths = {right: [n for n, was_right in thinking if was_right is right] for right in (True, False)}
    return Stage(
        name=name,
        accuracy=round(accuracy, 4),
        think_share=round(len(thinking) / len(sampled), 4),
        think_tokens=_mean([n for n, _ in thinking]),
        think_tokens_right=_mean(lengths[True]),
        think_tokens_wrong=_mean(lengths[False]),
        seconds=round(seconds, 1),
    )


def _mean(lengths: list[int]) -> float | None:
    return round(fmean(lengths), 1) if lengths else None


def _train_cold_start(
    base: Model, tokenizer: PreTrainedTokenizerBase, seed: int, folder: Path, console: Console
) -> Model:
    """What `recipes/sft.py --config recipes/tiny/cold_start.yaml` does."""
    console.print(f"Training the cold start for {COLD_START['max_steps']} steps: about 15 minutes.")
    args = SFTConfig(
        output_dir=str(folder / "cold_start"),
        max_length=None,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # a bar of our own, see `_train`
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        seed=seed,
        **COLD_START,
    )
    rows = cold_start_rows(COLD_START["max_steps"] * COLD_START["per_device_train_batch_size"], seed)
    trainer = SFTTrainer(
        model=base,
        args=args,
        train_dataset=prepare_sft(rows, tokenizer, max_length=512),
        processing_class=tokenizer,
        peft_config=think_lora_config(cast(PreTrainedModel, base), tokenizer),
    )
    _train(trainer, "cold start", console)
    return cast(PeftModel, trainer.model)


def _reinforce(
    model: Model, tokenizer: PreTrainedTokenizerBase, num_steps: int, seed: int, folder: Path, console: Console
) -> list[dict]:
    """GRPO from the cold start, in place; returns the logs, one entry per step."""
    console.print(f"GRPO: {num_steps} steps of {GRPO['per_device_train_batch_size']} completions.")
    args = GRPOConfig(
        output_dir=str(folder / "grpo"),
        max_steps=num_steps,
        beta=0.0,  # no KL term: the run is short and starts from the model it would be held to
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # a bar of our own, see `_train`
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        seed=seed,
        **GRPO,
    )
    prompts = num_steps * GRPO["per_device_train_batch_size"] // GRPO["num_generations"]
    rewards: list[Any] = [accuracy_reward, get_format_reward(allow_no_think=True), get_think_monitor(tokenizer)]
    trainer = GRPOTrainer(
        model=model,
        args=args,
        train_dataset=arithmetic_problems("train", prompts, seed).select_columns(["prompt", "solution"]),
        processing_class=tokenizer,
        reward_funcs=rewards,
    )
    _train(trainer, "GRPO", console)
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def _train(trainer: Trainer, title: str, console: Console) -> None:
    """Train with one bar that shows the latest numbers, in place of a printed dict per step."""
    trainer.remove_callback(PrinterCallback)
    with Progress(console=console, transient=True) as progress:
        trainer.add_callback(_Bar(progress, progress.add_task(title, total=trainer.args.max_steps), title))
        trainer.train()


class _Bar(TrainerCallback):
    def __init__(self, progress: Progress, task: TaskID, title: str):
        self.progress, self.task, self.title = progress, task, title

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        shown = {"loss": "loss", "right": "rewards/accuracy_reward/mean", "without thinking": "think/no_think"}
        numbers = [f"{logs[key]:.2f} {name}" for name, key in shown.items() if key in logs]
        description = f"{self.title}: {', '.join(numbers)}" if numbers else self.title
        self.progress.update(self.task, completed=state.global_step, description=description)


def _table(stages: list[Stage], num_problems: int) -> Table:
    table = Table(title=f"{num_problems} held-out problems")
    columns = ("stage", "accuracy", "thinks", "think tokens", "right", "wrong", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for stage in stages:
        lengths = (stage.think_tokens, stage.think_tokens_right, stage.think_tokens_wrong)
        shown = ["-" if length is None else f"{length:.1f}" for length in lengths]
        table.add_row(stage.name, f"{stage.accuracy:.1%}", f"{stage.think_share:.1%}", *shown, f"{stage.seconds:.0f}")
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
