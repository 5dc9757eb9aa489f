"""Make reasoning data from questions: answers of a model behind a server, in a file that survives any crash."""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json, List, Value
from datasets.utils import tqdm

from ..backends import Candidate, ClientBackend, Messages, SamplingParams
from ..backends.client import nth_sample, run_sync
from ..parsing import parse
from ..prompts import cites_hint, rationalise
from .rows import open_dataset

logger = logging.getLogger(__name__)

Prompt = Callable[[Messages], Messages]

_HOPELESS = 50  # failures in a row after which the server is taken to be gone
_PARAMS = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=16384)
# The columns that a run writes; all others are the question's.
_WRITTEN = {
    "prompt": List(Json()),
    "completion": List(Json()),
    "chat_template_kwargs": Json(),
    **dict.fromkeys(("solution", "source", "id", "model", "status", "finish_reason", "key"), Value("string")),
    **dict.fromkeys(("sample", "num_prompt_tokens", "num_tokens"), Value("int64")),
    "rationalised": Value("bool"),
}


def distill(
    dataset: Dataset | IterableDataset | list[dict],
    model: str,
    *,
    out: str | Path,
    n: int = 1,
    params: SamplingParams = _PARAMS,
    thinking: bool | None = None,
    prompt: Prompt | None = None,
    hint: str | None = None,
    shard: tuple[int, int] = (0, 1),
    max_tokens_total: int | None = None,
    max_cost: float | None = None,
    price: tuple[float, float] | None = None,
    **client_options: Any,
) -> Dataset:
    """
    Ask a model every question `n` times, and return the answers as rows of the package's type.

    Every answer is written to `out` when it comes. A run that was killed, or stopped at a limit, goes on where it was
    when it is called again: a row is asked for once per model, parameters, prompt and sample, and never twice. A line
    torn by the crash is cut off. Failed requests are not in `out` but, with the reason, in the file of the same name
    that ends in `.failed.jsonl`, and the next run asks for them again. Works in a notebook too.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Rows with a column `prompt`, messages or a text; a completion there may be is replaced. All other columns
            are kept. A question that comes twice is asked twice.
        model (`str`):
            Name of the model, as [`ClientBackend`] takes it.
        out (`str` or `Path`):
            JSONL file to write to, made if there is none. One run at a time may write to a file.
        n (`int`, *optional*, defaults to `1`):
            Answers per question, each a row of its own with the same `id`, numbered by `sample`.
        params ([`SamplingParams`], *optional*):
            How to sample, `n` aside. 16,384 tokens at temperature 0.6 and `top_p` 0.95 unless you say otherwise.
        thinking (`bool`, *optional*):
            What the server's template is told as `enable_thinking`; `None` tells it nothing. With `False` an answer
            with reasoning is a failure, so that all rows are non-reasoning ones.
        prompt (`Callable`, *optional*):
            From the messages of a question to those that are sent, such as [`~think_tools.prompts.zero_shot`] or
            `functools.partial(few_shot, examples=rows)`. Rows keep the question as it was. Reasoning that the model
            writes into its answer, as these prompts ask, is taken before what it thought on its own.
        hint (`str`, *optional*):
            Column with the known answer, such as `"solution"`, which the model is shown to write the reasoning for
            it ([`~think_tools.prompts.rationalise`]). A trace that cites it is a failure; rows are marked
            `rationalised`. Their answers are the model's own: verify them.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            `(i, k)` asks every `k`-th question, from the `i`-th on, for `k` jobs beside one another. Each writes to a
            file of its own, `rows-00002-of-00008.jsonl` for `out="rows.jsonl"`, and these files concatenate.
        max_tokens_total (`int`, *optional*):
            Tokens of prompts and answers after which no more requests are sent, those in `out` included. Requests
            in flight are counted by the mean so far and finished, so the total ends near the limit.
        max_cost (`float`, *optional*):
            The same for the cost in the currency of `price`.
        price (`tuple[float, float]`, *optional*):
            Cost of a million tokens of prompts and of answers. `None` shows no cost.
        client_options (*optional*):
            Arguments of [`ClientBackend`]: `base_url`, `api_key`, `concurrency`, `requests_per_minute` …

    Returns:
        `datasets.Dataset`: The answers to `dataset` that `out` holds, in the order of `dataset`: `prompt`,
        `completion`, `chat_template_kwargs`, `solution`, `source` (the row's, or the model), `id`, and `sample`,
        `model`, `status` (of the [`Trace`]), `finish_reason`, `num_prompt_tokens`, `num_tokens`, `rationalised`,
        `key`. Cut and unclosed answers are among them: filter by `status` and `finish_reason`.

    Raises:
        `ValueError`: If a column is missing, arguments contradict each other, or `out` holds anything else.
        `ConnectionError`: If 50 requests in a row failed, or all of them. What came before is in `out`.

    Example:

    ```python
    from datasets import load_dataset
    from think_tools.data import distill

    questions = load_dataset("openai/gsm8k", "main", split="train").rename_column("question", "prompt")
    rows = distill(questions, "Qwen/Qwen3-32B", base_url="http://localhost:8000/v1", n=4, out="gsm8k.jsonl")
    ```
    """
    rows, columns = open_dataset(dataset)
    if missing := [name for name in ("prompt", hint) if name and name not in columns]:
        raise ValueError(
            f"`dataset` must have the columns {missing}, got {columns}. Convert it with `to_think`, or rename the "
            'column with the question: dataset.rename_column("question", "prompt").'
        )
    if hint and prompt:
        raise ValueError("`hint` and `prompt` both say what to ask, give one of them.")
    if max_cost is not None and price is None:
        raise ValueError("`max_cost` needs `price`, the cost of a million tokens of prompts and of answers.")
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"`shard` must be (i, k) with 0 <= i < k, got {shard}.")
    out = Path(out)
    if shard[1] > 1:
        out = out.with_name(f"{out.stem}-{shard[0]:05}-of-{shard[1]:05}{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    settings = {"model": model, "extra_body": client_options.get("extra_body"), **kwargs}
    requests = partial(_requests, rows, replace(params, n=n), settings, prompt, hint, shard)
    backend = ClientBackend(model, **client_options)
    limits = {"max_tokens_total": max_tokens_total, "max_cost": max_cost}
    run = _Run(out, {name: math.inf if limit is None else limit for name, limit in limits.items()}, price)
    size = len(range(shard[0], len(rows), shard[1])) * n if isinstance(rows, Dataset) else None
    with tqdm(total=size, unit="row", desc=model) as bar:
        run_sync(run.ask(backend, requests(), kwargs, bar, prompted=bool(prompt or hint)))
    run.report()
    answers = {row["key"]: row for row in _read(out)}
    made = [answers[row["key"]] for row, _, _ in requests() if row["key"] in answers]
    others = [{name: value for name, value in row.items() if name not in _WRITTEN} for row in made]
    features = Features({**Dataset.from_list(others).features, **_WRITTEN})
    return Dataset.from_dict({name: [row.get(name) for row in made] for name in features}, features=features)


def _requests(
    rows: Iterable, params: SamplingParams, settings: dict, prompt: Prompt | None, hint: str | None, shard: tuple
) -> Iterator[tuple[dict, Messages, SamplingParams]]:
    """The rows to be answered in this shard, each with what to send for it, in the order of the data set."""
    seen: Counter[str] = Counter()
    for index, row in enumerate(rows):
        if hint and not row[hint]:
            raise ValueError(f"`dataset[{index}]` has no {hint!r} to hint at: filter such rows out first.")
        question = row["prompt"]
        question = [{"role": "user", "content": question}] if isinstance(question, str) else question
        messages = prompt(question) if prompt else rationalise(question, str(row[hint])) if hint else question
        asked = _digest(messages)
        seen[asked] += 1
        if index % shard[1] != shard[0]:
            continue
        source = row.get("source") or settings["model"]
        own = {"prompt": question, "solution": row.get("solution"), "source": source, "model": settings["model"]}
        own |= {"id": row.get("id") or f"{source}-{index}", "rationalised": bool(hint)}
        for sample in range(params.n):
            one = nth_sample(params, sample)
            # What is as usual has no part in the key, so that a parameter added later does not change it.
            changed = [item for item in asdict(one).items() if item not in asdict(SamplingParams()).items()]
            key = _digest([settings, changed, messages, seen[asked], sample])
            yield {**row, **own, "sample": sample, "key": key}, messages, one


def _answered(row: dict, candidate: Candidate, thinking: bool | None, *, prompted: bool) -> dict:
    """The row with its answer; a `ValueError` if it is not what was asked for."""
    trace = candidate.trace
    written = parse(trace.answer, finished=trace.finished)
    if prompted and written.reasoning:
        trace = written
    if thinking is False and trace.reasoning:
        raise ValueError("the model thought although `thinking=False`")
    if row["rationalised"] and not trace.reasoning:
        raise ValueError("no reasoning was written for the hint")
    if row["rationalised"] and cites_hint(f"{trace.reasoning}\n{trace.answer}"):
        raise ValueError("the reasoning cites the hint")
    row["completion"] = [{**trace.message(), "reasoning_content": trace.reasoning or None}]
    row["chat_template_kwargs"] = {**(row.get("chat_template_kwargs") or {}), "enable_thinking": bool(trace.reasoning)}
    row["status"], row["finish_reason"] = trace.status, candidate.finish_reason
    row["num_prompt_tokens"], row["num_tokens"] = candidate.num_prompt_tokens, candidate.num_tokens
    return row


class _Run:
    """What a run has got, spent and missed."""

    def __init__(self, out: Path, limits: dict[str, float], price: tuple[float, float] | None) -> None:
        self.out, self.lost, self.limits, self.price = out, out.with_suffix(".failed.jsonl"), limits, price or (0, 0)
        self.keys, self.failures, self.reached = set[str](), Counter[str](), ""
        self.tokens = [0, 0]  # of prompts, of answers
        self.num_answers = self.num_flying = self.failed_in_a_row = 0
        for row in _read(out):
            self.keys.add(row["key"])
            self._pay(row["num_prompt_tokens"], row["num_tokens"])

    async def ask(
        self, backend: ClientBackend, requests: Iterable[tuple], kwargs: dict, bar: tqdm, *, prompted: bool
    ) -> None:
        """Write the answers that are not in the file yet."""
        before = self.tokens[1]
        with self.out.open("ab", buffering=0) as good, self.lost.open("wb", buffering=0) as bad:
            async with aclosing(backend.as_completed(self._new(requests, bar), **kwargs)) as results:
                async for row, result in results:
                    self.num_flying -= 1
                    try:
                        if isinstance(result, ConnectionError):
                            self.failed_in_a_row += 1
                            raise result
                        self.failed_in_a_row = 0
                        self._pay(result.num_prompt_tokens, result.num_tokens)
                        good.write(_line(_answered(row, result, kwargs.get("enable_thinking"), prompted=prompted)))
                    except (ConnectionError, ValueError) as error:
                        self.failures[str(error)] += 1
                        bad.write(_line({"error": str(error), **row}))
                    speed = (self.tokens[1] - before) / max(1e-3, bar.format_dict["elapsed"])
                    shown = {"tokens/s": f"{speed:,.0f}", "cost": f"{self._spent()['max_cost']:.2f}"}
                    bar.set_postfix({**shown, "failed": self.failures.total()}, refresh=False)
                    bar.update()

    def _new(self, requests: Iterable[tuple], bar: tqdm) -> Iterator[tuple]:
        """The requests that are not answered yet, until a limit is reached."""
        for request in requests:
            if request[0]["key"] in self.keys:
                bar.update()
                continue
            expected = 1 + self.num_flying / max(1, self.num_answers)
            over = [name for name, spent in self._spent().items() if spent * expected >= self.limits[name]]
            if over or self.failed_in_a_row >= _HOPELESS:
                self.reached = "".join(over[:1])
                return
            self.num_flying += 1
            yield request

    def report(self) -> None:
        """Say what is missing."""
        reasons = "; ".join(f"{error} ({count:,})" for error, count in self.failures.most_common(3))
        failed = f"{self.failures.total():,} requests failed, the next run asks for them again: {reasons}."
        if self.failed_in_a_row >= _HOPELESS or (self.failed_in_a_row and not self.num_answers):
            raise ConnectionError(f"`distill` gave up. {failed}")
        if self.failures:
            logger.warning("`distill`: %s They are in %s.", failed, self.lost)
        if self.reached:
            logger.warning("`distill` stopped at `%s`=%s; raise it to go on.", self.reached, self.limits[self.reached])

    def _pay(self, *tokens: int) -> None:
        self.num_answers += 1
        self.tokens = [sum(pair) for pair in zip(self.tokens, tokens, strict=True)]

    def _spent(self) -> dict[str, float]:
        cost = sum(tokens * price for tokens, price in zip(self.tokens, self.price, strict=True)) / 1e6
        return {"max_tokens_total": sum(self.tokens), "max_cost": cost}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"


def _read(out: Path) -> Iterator[dict]:
    """The rows in a file, which is made if there is none. A last line that a crash tore is cut off."""
    end = 0
    with out.open("a+b") as file:
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = {}
                if line.startswith(b"{") and not line.endswith(b"\n"):
                    file.truncate(end)
                    return
            if not isinstance(row, dict) or not {"key", "num_tokens"} <= row.keys():
                raise ValueError(f"`out` is {out}, whose line {number} is no row of `distill`: name another.")
            end += len(line)
            if not line.endswith(b"\n"):
                file.write(b"\n")
            yield row
