"""What the rows of SFT and DPO train: the reasoning and its end, the answer, and the end of the turn."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from trl import SFTTrainer

from ..parsing import read_completion
from ..templates import Finding, check_labels, check_template, generation_prompt
from .run import Run, too_long

# How a cause found in a row begins -> what to do. Causes that begin alike are counted together.
DROPPED, OTHER_PROMPT = "the chat template drops the reasoning", "the row does not begin with the prompt"
REMEDIES = {
    "an empty think block": '`chat_template_kwargs={"enable_thinking": False}` in such rows, or `prepare_sft`',
    "the prompt is trained": "use the columns `prompt` and `completion`, or `assistant_only_loss=True`",
    "one answer": "let both answers of a pair think, or neither",
}
RELABEL = "`prepare_sft(to_think(dataset), tokenizer, max_length=…)` from think_tools.data makes rows that are checked"
MAY_BE_MEANT = ("the prompt is trained", "one answer", "no prompt", "the template that TRL trains on")


def check_rows(run: Run) -> list[Finding]:
    """What the rows of SFT and DPO train, each cause once."""
    if not {"input_ids", "prompt_ids"} & run.rows[0].keys():
        return [Finding("note", "the rows are tokenised in each step, so they were not read", RELABEL)]
    if vars(run.trainer.args).get("packing") and run.trainer.args.packing_strategy != "bfd":
        what = f"`packing_strategy={run.trainer.args.packing_strategy!r}` begins sequences in the middle of a thought"
        return [Finding("warning", what, "`packing_strategy='bfd'` keeps rows whole, so that they can be checked")]
    found: dict[str, list[str]] = {}
    lengths, thinking, limit = [], False, run.trainer.args.max_length
    for row in run.rows:
        causes, trained = [], []
        for ids, labels, chat, kwargs in _answers(run, row):
            # Without messages nobody knows any more how long a row was before it was cut.
            cut = not chat and len(ids) == limit and run.end not in ids[-2:]
            lengths.append(len(run.ids(chat, **kwargs)) if chat else len(ids) + cut)
            trained.append(run.text(labels))
            causes += _causes(run, ids, labels, chat, kwargs) if lengths[-1] <= (limit or lengths[-1]) else []
        thinks = [run.fmt.close in text for text in trained]
        thinking = thinking or any(thinks)
        if "chosen_ids" in row and thinks[0] != thinks[1]:
            causes.append("one answer of the pair thinks, the other does not, so that it teaches the format")
        if "chosen_ids" in row and trained[0] == trained[1]:
            causes.append("both answers of the pair are the same, as they are trained")
        for kind, cause in {cause.partition(":")[0]: cause for cause in causes}.items():
            found.setdefault(kind, []).append(cause)
    findings = too_long(lengths, limit, "max_length")
    for kind, causes in found.items():
        remedy = next((remedy for start, remedy in REMEDIES.items() if kind.startswith(start)), RELABEL)
        if kind.startswith(DROPPED):  # the report on the template knows which line helps
            errors = [finding for finding in check_template(run.tokenizer).findings if finding.severity == "error"]
            remedy = errors[0].remedy if errors else remedy
        severity = "warning" if kind.startswith(MAY_BE_MEANT) else "error"
        findings.append(Finding(severity, f"in {len(causes)} of {len(run.rows)} rows {causes[0]}", remedy))
    if not thinking and not findings:
        what = f"none of {len(run.rows)} rows trains reasoning, so a model that thinks would stop"
        findings.append(Finding("warning", what, "mix in rows with `reasoning_content`, such as its own traces"))
    return findings


def _answers(run: Run, row: dict[str, Any]) -> Iterator[tuple[list[int], list[int], list[dict], dict[str, Any]]]:
    """The ids, labels, messages (none if they are gone, or text) and template variables of what a row trains."""
    tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    kwargs = {"tools": tools or None, **(row.get("chat_template_kwargs") or {})}
    text = isinstance(row.get("prompt"), str)
    for side in ("chosen", "rejected") if "prompt_ids" in row else ():
        ids, labels = row["prompt_ids"] + row[f"{side}_ids"], [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
        yield ids, labels, [] if text else row["prompt"] + row[side], kwargs
    if "input_ids" in row:
        chat = [] if text else row.get("messages") or row.get("prompt", []) + row.get("completion", [])
        parts = itertools.accumulate(row.get("seq_lengths", [len(row["input_ids"])]), initial=0)
        for start, end in itertools.pairwise(parts):
            yield row["input_ids"][start:end], row["labels"][start:end], chat, kwargs


def _causes(run: Run, ids: list[int], labels: list[int], chat: list[dict], kwargs: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one answer, as `check_labels` puts it."""
    if not run.tokenizer.chat_template:
        return  # text without turns, which TRL ends by itself
    first = next((index for index, label in enumerate(labels) if label >= 0), len(labels))
    turns = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    if turns:
        message, prompt_ids = chat[turns[-1]], run.ids(chat[: turns[-1]], add_generation_prompt=True, **kwargs)
    else:  # the ids speak for themselves
        # A `<think>` that it ends in is a token of another kind where the block is empty.
        text = generation_prompt(run.tokenizer).partition(run.fmt.open)[0]
        header = run.tokenizer.encode(text, add_special_tokens=False)
        starts = [end for end in range(len(header), len(ids)) if header and ids[end - len(header) : end] == header]
        if header and not starts:
            yield "no prompt of the chat template is in them, so the model will be asked in another form"
        prompt_ids = ids[: max([first, *starts])]
        message = {"role": "assistant", "content": run.text(labels[len(prompt_ids) :])}
    causes = check_labels(ids, labels, prompt_ids, message, run.tokenizer, run.fmt, run.end)
    if causes and causes[0].startswith(OTHER_PROMPT):  # see what else is wrong
        causes += check_labels(ids, labels, ids[:first], message, run.tokenizer, run.fmt, run.end)
        if len(causes) == 1 and isinstance(run.trainer, SFTTrainer) and run.trainer.chat_template:
            causes = [f"the template that TRL trains on (`assistant_only_loss=True`) differs: {causes[0]}"]
    yield from causes
    if first == 0:
        yield "the prompt is trained as well as the answer"
    trained = "".join(run.text(labels).split())
    for trace in (read_completion(chat[turn], fmt=run.fmt) for turn in turns[:-1]):
        if "".join((trace.reasoning or "").split()) not in trained and "".join(trace.answer.split()) in trained:
            yield f"{DROPPED} of an earlier turn, whose answer is trained all the same"
