"""The `think-tools` commands; each one calls one public function."""

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

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


def _load(name: str) -> tuple:
    """Model and tokenizer of a Hub name, a folder, an adapter of either, or `tiny[/adapter]`."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.peft_utils import find_adapter_config_file

    from .tiny import load_tiny

    try:
        if name.split("/")[0] == "tiny" and not Path(name).exists():
            return load_tiny(name.partition("/")[2] or None)
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
