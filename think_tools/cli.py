"""The `think-tools` commands; each one calls one public function."""

import asyncio
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from datasets import Dataset

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


@app.command()
def convert(
    data: Annotated[str, typer.Argument(help="File (JSON lines, JSON, Parquet, CSV), Hub name, or - for JSON lines.")],
    output: Annotated[str, typer.Argument(help="File to write, Parquet or JSON lines by its name; - for JSON lines.")],
    config: Annotated[str | None, typer.Option(help="Configuration of a data set of the Hub.")] = None,
    split: Annotated[str, typer.Option(help="Split to convert.")] = "train",
    turns: Annotated[
        Literal["expand", "last", "all"], typer.Option(help="What is learned of several assistant turns.")
    ] = "expand",
    num_proc: Annotated[int | None, typer.Option(help="Processes.")] = None,
) -> None:
    """Convert a data set with reasoning to rows that train; what cannot be converted is counted."""
    from .data import to_think  # loads torch

    try:
        rows = _read_rows(data, config, split)
        converted = cast("Dataset", to_think(rows, turns=turns, num_proc=num_proc))
    except (OSError, TypeError, ValueError) as error:  # no such data set, columns nobody knows, nothing left
        raise typer.BadParameter(str(error), param_hint="DATA") from error
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    if output.endswith(".parquet"):
        converted.to_parquet(output)
    else:
        with nullcontext(sys.stdout) if output == "-" else open(output, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in converted)
    typer.echo(f"{len(rows):,} rows read, {len(converted):,} written to {output}.", err=True)


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(help="Hub names or folders of models, adapters or checkpoints, or tiny.")
    ] = None,
    problems: Annotated[
        str, typer.Option(help="A file or Hub name with questions and answers, or arithmetic:NUMBER.")
    ] = "arithmetic:200",
    candidates: Annotated[str | None, typer.Option(help="Measure this file of candidates; no model is asked.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder of candidates, report and pictures.")] = None,
    n: Annotated[int, typer.Option(help="Samples per question.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a sample, reasoning included.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability to draw from.")] = 1.0,
    thinking: Annotated[bool | None, typer.Option("--thinking/--no-thinking", help="Tell the template.")] = None,
    system: Annotated[str | None, typer.Option(help="System message, such as how to write the answer.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences that a model in this process writes at once.")] = 16,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server to ask for the models.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The server's key.")] = None,
    score: Annotated[str | None, typer.Option(help="Column of scores; logprob makes the samples keep it.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a data set of the Hub.")] = None,
    split: Annotated[str, typer.Option(help="Split of a data set of the Hub.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of problems, samples and intervals.")] = 0,
) -> None:
    """Measure models by several samples per question: pass@k, votes, tokens, and what GRPO could learn from."""
    from .backends import ClientBackend, SamplingParams, TransformersBackend  # loads torch
    from .search import collect, draw_accuracy, draw_training
    from .search import evaluate as measure
    from .tiny import arithmetic_problems

    if bool(models) == bool(candidates):
        raise typer.BadParameter("Name either models to sample from or stored --candidates.", param_hint="MODELS")
    folder = output_dir or (Path("eval") if models else None)
    reports = {}
    try:
        if candidates:
            reports[Path(candidates).stem] = measure(_read_rows(candidates, config, split), score=score, seed=seed)
        params = SamplingParams(n, temperature, top_p, max_tokens=max_tokens, seed=seed, logprobs=score == "logprob")
        task, _, number = problems.partition(":")
        own = arithmetic_problems("test", int(number or 200), seed) if task == "arithmetic" else None
        for model in models or []:
            rows = own or _read_rows(problems, config, split)
            told = {} if thinking is None else {"enable_thinking": thinking}
            if base_url:
                sample = partial(ClientBackend(model, base_url=base_url, api_key=api_key).sample, **told)
            else:
                sample = partial(TransformersBackend(*_load(model)).sample, batch_size=batch_size, **told)
            out = Path(folder or "", "" if len(models or []) == 1 else re.sub(r"\W+", "-", model), "candidates.jsonl")
            name = model if thinking is None else f"{model}, {'thinking' if thinking else 'not thinking'}"
            rows = collect(sample, rows, params, out=out, name=name, system=system)
            reports[model] = measure(rows, score=score, seed=seed)
    except ConnectionError as error:  # what came before is kept
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    except (OSError, ValueError) as error:  # no such data, columns nobody knows, candidates of other settings
        raise typer.BadParameter(str(error)) from error
    console = Console()
    for name, report in reports.items():
        _print_report(name, report, console)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    found = [re.search(r"checkpoint-(\d+)", name) for name in reports]
    steps = [int(match[1]) if match else 0 for match in found]
    try:
        draw_accuracy(reports, folder / "curve.png")
        if len(steps) == len(set(steps)) > 1:
            draw_training(dict(zip(steps, reports.values(), strict=True)), folder / "training.png")
    except ImportError as error:  # a picture less
        typer.echo(str(error), err=True)
    typer.echo(f"Candidates, report and pictures: {folder}")


def _print_report(name: str, report: dict, console: Console) -> None:
    """A table of the metrics by number of samples, and what else is worth knowing in a sentence each."""
    metrics, tokens = report["metrics"], report["tokens"]
    percent = {key: [100 * number for number in metric.values()] for key, metric in metrics.items()}
    shown = {key: "{:.1f} [{:.0f}, {:.0f}]".format(*numbers) for key, numbers in percent.items()}
    table = Table("k", title=f"{name}: {report['questions']} questions", caption="% right [95 % interval]")
    methods = [key.removesuffix("@1") for key in metrics if key.endswith("@1")]
    for method in methods:
        table.add_column(f"{method}@k", justify="right")
    for k in [key.removeprefix("pass@") for key in metrics if key.startswith("pass@")]:
        table.add_row(k, *(shown[f"{method}@{k}"] for method in methods))
    console.print(table)
    spent = ", ".join(f"{part} {'-' if number is None else f'{number:,.0f}'}" for part, number in tokens.items())
    cut = "-" if report["truncated"] is None else f"{report['truncated']:.1%}"
    typer.echo(
        f"Tokens per question: {spent}. Truncated: {cut}. Without an answer: {report['unparsed']:.1%}.\n"
        f"GRPO learns from questions with right and wrong samples: {shown['mixed']} %; all right "
        f"{shown['all_right']} %, all wrong {shown['all_wrong']} %. pass@k - pass@1: {shown['headroom']} points.\n"
        f"Left out without a gold answer: {report['ungraded']}."
    )


@app.command()
def distill(
    data: Annotated[str, typer.Argument(help="File, Hub name, or - for JSON lines; with a column `prompt`.")],
    model: Annotated[str, typer.Argument(help="Name of the model, as the server knows it.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write, or to go on with.")],
    base_url: Annotated[str | None, typer.Option(help="Server; without it the Hub's providers.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The server's key.")] = None,
    question: Annotated[str | None, typer.Option(help="Column with the question, if it is not `prompt`.")] = None,
    n: Annotated[int, typer.Option(help="Answers per question.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.6,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer, reasoning included.")] = 16384,
    thinking: Annotated[bool | None, typer.Option("--thinking/--no-thinking", help="Tell the template.")] = None,
    prompt: Annotated[Literal["zero-shot", "reflect"] | None, typer.Option(help="How to ask for reasoning.")] = None,
    hint: Annotated[str | None, typer.Option(help="Column with the known answer, to write reasoning for.")] = None,
    shard: Annotated[tuple[int, int], typer.Option(help="i k: this job's part of k.")] = (0, 1),
    concurrency: Annotated[int, typer.Option(help="Most requests in flight.")] = 64,
    requests_per_minute: Annotated[float | None, typer.Option(help="Limit of the server.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Limit of the server.")] = None,
    max_tokens_total: Annotated[int | None, typer.Option(help="Stop after so many tokens.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop at this cost.")] = None,
    price: Annotated[tuple[float, float] | None, typer.Option(help="Of a million tokens in, and out.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a data set of the Hub.")] = None,
    split: Annotated[str, typer.Option(help="Split to take.")] = "train",
) -> None:
    """Let a model behind a server answer questions; a run that was stopped goes on."""
    from .backends import SamplingParams  # loads torch
    from .data import distill, to_think
    from .prompts import reflect_and_verify, zero_shot

    top_p = 0.95 if temperature else 1.0
    asked: dict[str, Any] = {"n": n, "thinking": thinking, "hint": hint, "shard": shard}
    asked["params"] = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
    asked["prompt"] = {"zero-shot": zero_shot, "reflect": reflect_and_verify, None: None}[prompt]
    limits: dict[str, Any] = {"max_tokens_total": max_tokens_total, "max_cost": max_cost, "price": price}
    limits |= {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    server: dict[str, Any] = {"base_url": base_url, "api_key": api_key if base_url else None}
    try:
        rows = _read_rows(data, config, split)
        rows = rows.rename_column(question, "prompt") if question else rows
        rows = rows if "prompt" in rows.column_names else to_think(rows)
        made = distill(rows, model, out=out, concurrency=concurrency, **asked, **limits, **server)
    except ConnectionError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    except (OSError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{len(made):,} rows in {out}.", err=True)


def _read_rows(name: str, config: str | None, split: str) -> "Dataset":
    """The rows of a file, of a data set of the Hub, or of the standard input (`-`)."""
    from datasets import Dataset, load_dataset

    kind = Path(name).suffix.removeprefix(".")
    if name == "-":
        return Dataset.from_list([json.loads(line) for line in sys.stdin if line.strip()], on_mixed_types="use_json")
    if Path(name).is_file():
        return load_dataset("json" if kind == "jsonl" else kind, data_files=name, split="train")
    return load_dataset(name, config, split=split)


@app.command(context_settings={"ignore_unknown_options": True})
def check(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Hub name or folder; with --config, flags of TRL.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of `trl sft`, `dpo`, `grpo` or `rloo`.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Rows to train the model on: file or Hub name.")] = None,
    split: Annotated[str, typer.Option(help="Split of the rows.")] = "train",
    max_length: Annotated[int | None, typer.Option(help="Tokens of a row; without it, the tokenizer's limit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check a model's chat template, rows to train it on, or a config's run; exit code 1 if there is an error."""
    facts = []
    if config:
        from .preflight import inspect_trainer, trainer_from_config  # loads torch and trl

        try:
            findings = inspect_trainer(trainer_from_config(config, arguments or ()))
        except (OSError, ValueError) as error:  # no such file, model or data set; a key or value that TRL refuses
            raise typer.BadParameter(str(error), param_hint="--config") from error
        report = {"findings": [asdict(finding) for finding in findings]}
    elif arguments and len(arguments) == 1 and dataset:
        from .data import check_dataset, explain, to_think

        tokenizer = _load(arguments[0], weights=False)[1]
        try:
            rows = _read_rows(dataset, None, split)
            if not isinstance(rows[0].get("completion"), list):
                rows = cast("Dataset", to_think(rows, unreadable="mark"))
            checked = check_dataset(rows, tokenizer, max_length=max_length)
        except (IndexError, OSError, TypeError, ValueError) as error:  # no rows, unknown columns, no chat template
            raise typer.BadParameter(str(error), param_hint="--dataset") from error
        if not as_json:
            limit = checked.counts["limit"] or None
            Console(highlight=False).print(explain(rows[checked.first], tokenizer, max_length=limit, shorten=400))
        facts = [(label, f"{count:,}") for label, count in checked.counts.items()]
        findings, report = checked.findings, asdict(checked)
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
