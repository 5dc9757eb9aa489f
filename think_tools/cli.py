"""The `think-tools` commands; each one calls one public function."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from .backends import Candidate, Delta

app = typer.Typer(help="Tools for models that think before they answer.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Without this, an app of one command would have no command names."""


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder of the report, the picture and the adapter.")] = Path(
        "demo"
    ),
    problems: Annotated[int, typer.Option(help="Held-out problems.")] = 400,
    steps: Annotated[int, typer.Option(help="GRPO steps.")] = 40,
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

    if name.split("/")[0] == "tiny" and not Path(name).exists():
        return load_tiny(name.partition("/")[2] or None)
    loader = AutoPeftModelForCausalLM if find_adapter_config_file(name) else AutoModelForCausalLM
    return loader.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def _ask(console: Console) -> str:
    """The next question; an empty one, or the end of the input, ends the chat."""
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


async def _answer(events: "AsyncGenerator[Delta | Candidate, None]", console: Console) -> "Candidate":
    """Print an answer while it comes: the reasoning dimmed, a blank line, the answer."""
    from .backends import Candidate

    shown = None
    async for event in events:
        if isinstance(event, Candidate):
            console.print()
            if event.finish_reason == "length":
                console.print(f"[yellow]Cut off after {event.num_tokens} tokens; see --max-tokens.[/yellow]")
            return event
        piece = event.text if event.part == shown else event.text.lstrip()
        if not piece:
            continue
        if shown == "reasoning" and event.part == "answer":
            console.print("\n")
        shown = event.part
        console.print(piece, end="", markup=False, style="dim italic" if shown == "reasoning" else None)
    raise AssertionError("a stream ends in a candidate")
