"""The `think-tools` commands; each one calls one public function."""

import asyncio
import json
import logging
import os
import warnings
from collections.abc import AsyncGenerator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .backends import Candidate, Delta

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def quiet() -> None:
    """Tools for models that think before they answer."""
    # Notes of the libraries at start-up that no reader of a chat or a table can act on. Errors still show.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # https://github.com/huggingface/peft/blob/v0.21.2/src/peft/peft_model.py#L184
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder of the report, the picture and the adapter.")] = Path(
        "demo"
    ),
    problems: Annotated[int, typer.Option(help="Held-out problems.")] = 400,
    steps: Annotated[int, typer.Option(help="GRPO steps.")] = 30,
    samples: Annotated[int, typer.Option(help="Samples per problem for the vote.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of problems, training and sampling.")] = 0,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the cold start too (minutes).")] = False,
) -> None:
    """Watch reinforcement discover that thinking pays, on this machine's CPU."""
    from .demo import run_demo  # loads torch and trl, which `--help` need not wait for

    run_demo(output_dir, num_problems=problems, num_steps=steps, num_samples=samples, seed=seed, retrain=retrain)


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="Hub name or folder of a model or adapter; without it, the embedded model.")
    ] = "tiny/thinker",
    message: Annotated[str | None, typer.Option(help="Ask this one question and stop.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer, reasoning included.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Let the model think.")] = True,
) -> None:
    """Chat in the terminal, with the reasoning dimmed and apart."""
    from .backends import SamplingParams, TransformersBackend  # loads torch

    backend = TransformersBackend(*_load(model))
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    console = Console(highlight=False)
    history = []
    while question := message or _ask(console):
        history.append({"role": "user", "content": question})
        candidate = asyncio.run(_answer(backend.stream(history, params, enable_thinking=thinking), console))
        if message:
            return
        history.append(candidate.trace.message())


@app.command(context_settings={"ignore_unknown_options": True})
def check(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Hub name or folder; with --config, flags of TRL.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of `trl sft`, `dpo`, `grpo` or `rloo`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check a model's chat template, or the run that a config describes; exit code 1 if there is an error."""
    facts = []
    if config:
        from .preflight import inspect_trainer, trainer_from_config  # loads torch and trl

        try:
            findings = inspect_trainer(trainer_from_config(config, arguments or ()))
        except (OSError, ValueError) as error:  # no such file, model or data set; a key or value that TRL refuses
            raise typer.BadParameter(str(error), param_hint="--config") from error
        report = {"findings": [asdict(finding) for finding in findings]}
    elif arguments and len(arguments) == 1:
        from .templates import check_template

        checked = check_template(_load(arguments[0], weights=False)[1])
        facts, findings, report = checked.rows(), checked.findings, asdict(checked)
    else:
        raise typer.BadParameter("give one model, or --config.", param_hint="MODEL")
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print_table(facts)
        _print_table([(finding.severity, f"{finding.what}\n-> {finding.remedy}") for finding in findings])
    raise typer.Exit(any(finding.severity == "error" for finding in findings))


def _print_table(rows: list[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False)
    for label, text in rows:
        table.add_row(Text(label, style={"error": "bold red", "warning": "yellow"}.get(label, "dim")), Text(text))
    Console(highlight=False).print(table)


def _load(name: str, *, weights: bool = True) -> tuple:
    """Model (none without `weights`) and tokenizer of a Hub name, a folder, an adapter, or `tiny[/adapter]`."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.peft_utils import find_adapter_config_file

    from .tiny import load_tiny

    try:
        if name.split("/")[0] == "tiny" and not Path(name).exists():
            return load_tiny(name.partition("/")[2] or None)
        if not weights:
            return None, AutoTokenizer.from_pretrained(name)
        loader = AutoPeftModelForCausalLM if find_adapter_config_file(name) else AutoModelForCausalLM
        return loader.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:  # no such model, no such adapter
        raise typer.BadParameter(str(error), param_hint="MODEL") from error


def _ask(console: Console) -> str:
    """The next question; an empty one, or the end of the input, ends the chat."""
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


async def _answer(events: "AsyncGenerator[Delta | Candidate, None]", console: Console) -> "Candidate":
    """Print an answer while it comes: the reasoning dimmed, a blank line, the answer."""
    from .backends import Candidate

    part, held = None, ""  # white space is held back until more text of the same part comes
    async for event in events:
        if isinstance(event, Candidate):
            console.print()
            if event.finish_reason == "length":
                console.print(f"[yellow]Cut off after {event.num_tokens} tokens; see --max-tokens.[/yellow]")
            return event
        text = held + event.text if event.part == part else event.text.lstrip()
        if not text:
            continue
        if part and event.part != part:
            console.print("\n")
        part, held = event.part, text[len(text.rstrip()) :]
        console.print(text.rstrip(), end="", markup=False, style="dim italic" if part == "reasoning" else None)
    raise AssertionError("a stream ends in a candidate")
