"""Sample once and keep every candidate in a file, so that selection can be measured again without a model."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets.utils import tqdm

from ..backends import Messages, SamplingParams

# `backend.sample`, or a search such as `functools.partial(beam_search, backend, verifier=verifier)`.
Sample = Callable[[list[Messages], SamplingParams], Sequence[Any]]

_QUESTIONS = ("prompt", "problem", "question", "instruction")
_GOLDS = ("answer", "solution")  # `solution` may be a worked one beside a short `answer`


def collect(
    sample: Sample,
    problems: Iterable[Any],
    params: SamplingParams,
    *,
    out: str | Path | None = None,
    name: str = "",
    system: str | None = None,
    chunk_size: int = 32,
) -> list[dict]:
    """
    Candidates for each problem as rows for [`evaluate`], written to a file that survives any crash.

    A run that was killed goes on where it was when it is called again. A line torn by the crash is cut off.

    Args:
        sample (`Callable`):
            From prompts (messages) and `params` to the candidates of each: `backend.sample`, or a search with its
            backend filled in, whose results also give `selected` and `usage`.
        problems (`Iterable[dict]`):
            Rows with the question in `prompt`, `problem`, `question` or `instruction` (messages or a text) and the
            gold answer in `answer` or `solution`. A question that comes twice is asked twice.
        params ([`SamplingParams`]):
            How to sample. With a `seed`, the chunk of questions from number `i` on gets `seed + i`.
        out (`str` or `Path`, *optional*):
            JSONL file to write to, made if there is none. `None` writes nothing.
        name (`str`, *optional*, defaults to `""`):
            What samples, such as the model's name and the search. A file of another `name` or `params` is refused.
        system (`str`, *optional*):
            System message before each question, for instance how to write the answer.
        chunk_size (`int`, *optional*, defaults to `32`):
            Problems that are sampled, then written, together.

    Returns:
        `list[dict]`: For each problem, in their order, a row with `prompt`, `solution`, `id`, and lists with one value
        per candidate: `completions` (messages), `finish_reason`, `num_tokens`, `num_reasoning_tokens`, `logprob`. A
        search adds `selected` (its answer), `usage` (what it spent on everything) and its `scores`, if it has any.

    Raises:
        `ValueError`: If a column is missing, or `out` holds anything else than candidates of the same settings.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend
    >>> from think_tools.search import collect, evaluate

    >>> backend = ScriptedBackend(lambda messages, prefix, number: "<think>6+6</think>" + "12 13".split()[number % 2])
    >>> rows = collect(backend.sample, [{"question": "6+6=?", "answer": "12"}], SamplingParams(n=3))
    >>> evaluate(rows, ks=[3])["metrics"]["maj@3"]["value"]
    1.0
    ```
    """
    # What is as usual has no part in the key, so that a parameter added later does not change it.
    changed = [item for item in asdict(params).items() if item not in asdict(SamplingParams()).items()]
    settings = _digest([name, changed, system])[:8]
    tasks, seen = [], Counter[str]()
    for i, problem in enumerate(problems):
        task = _task(problem, i, system)
        seen[asked := _digest(task["prompt"])] += 1
        tasks.append({"key": f"{settings}-{asked[:16]}-{seen[asked]}", **task})
    done = _read(Path(out), settings) if out else {}
    for start in tqdm(range(0, len(tasks), chunk_size), unit="chunk", desc=name or "samples"):
        new = [task for task in tasks[start : start + chunk_size] if task["key"] not in done]
        if not new:
            continue
        seeded = params if params.seed is None else replace(params, seed=params.seed + start)
        outputs = sample([task["prompt"] for task in new], seeded)
        rows = [{**task, **_written(output)} for task, output in zip(new, outputs, strict=True)]
        done |= {row["key"]: row for row in rows}
        if out:
            with Path(out).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return [done[task["key"]] for task in tasks]


def _task(problem: dict, i: int, system: str | None) -> dict:
    question = next((problem[name] for name in _QUESTIONS if problem.get(name)), None)
    gold = next((problem[name] for name in _GOLDS if problem.get(name) is not None), None)
    if question is None or gold is None:
        raise ValueError(
            f"`problems[{i}]` must have a question in one of {list(_QUESTIONS)} and a gold answer in one of "
            f"{list(_GOLDS)}, got the columns {sorted(problem)}. Rename yours with `dataset.rename_column`."
        )
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    first = [{"role": "system", "content": system}] if system else []
    return {"prompt": [*first, *messages], "solution": gold, "id": problem.get("id", i)}


def _written(output: Any) -> dict:
    """The candidates of a question, or the result of a search for it, as columns."""
    if isinstance(output, list):
        candidates, found = output, {}
    else:
        candidates, found = output.candidates, {"selected": output.answer, "usage": asdict(output.usage)}
        found |= {"scores": output.scores} if output.scores else {}
    names = ("finish_reason", "num_tokens", "num_reasoning_tokens", "logprob")
    columns = {name: [vars(candidate)[name] for candidate in candidates] for name in names}
    return {"completions": [candidate.trace.message() for candidate in candidates], **columns, **found}


def _read(out: Path, settings: str) -> dict[str, dict]:
    """The rows of a file by their key; a last line that a crash tore is cut off."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
    mine = f'{{"key": "{settings}-'.encode()
    for number, line in enumerate(lines, 1):
        if line[: len(mine)] != mine[: len(line)]:
            raise ValueError(
                f"`out` is {out}, whose line {number} is no candidate of this model with these settings. Name another "
                "file, or remove it."
            )
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(out, out.stat().st_size - len(lines.pop()))
    rows = [json.loads(line) for line in lines]
    return {row["key"]: row for row in rows}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
