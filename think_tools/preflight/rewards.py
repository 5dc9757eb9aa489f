"""What GRPO and RLOO ask, cut and pay: their prompts, traces, gold answers and rewards."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response

from ..answers import audit_solutions
from ..answers.compare import read_gold
from ..parsing import Trace, read_completion
from ..templates import Finding, prompt_state
from .run import Run, too_long

SECONDS = 60.0  # for an asynchronous reward, which TRL would await for ever
GOLDS = ("solution", "answer", "ground_truth", "target", "gold")  # columns; all but the first if a reward asks for it
# Ways to write the same answer, of which a reward has to read one; and completions that differ in other things.
FORMS = ("\\boxed{{{}}}", "<answer>{}</answer>", "The answer is ${}$.", "{}")
READER = "pass one that reads the answer, such as `accuracy_reward` of think_tools.rewards"
STEP = "Add the numbers one by one and check the sum. "
OTHERS = (
    Trace(STEP * 20, "1", "complete"),
    Trace("先把这些数字一个一个地加起来，然后检查结果。", "1", "complete"),
    Trace(None, "1", "no_think"),
    Trace(STEP, "1", "truncated", finished=False),
)


def check_rollouts(run: Run) -> Iterator[Finding]:
    """What GRPO and RLOO ask, cut and pay."""
    kwargs = run.trainer.chat_template_kwargs
    chats = [row for row in run.rows if isinstance(row.get("prompt"), list)]
    for row in chats:
        given = {**kwargs, **(row.get("chat_template_kwargs") or {})}
        if given != kwargs and run.asked(row["prompt"], given) != run.asked(row["prompt"], kwargs):
            what = "`chat_template_kwargs` of the rows would change their prompts, but this trainer ignores them"
            yield Finding("error", what, "set `chat_template_kwargs` of the config, which holds for all rows")
            break
    if chats and prompt_state(run.tokenizer, fmt=run.fmt, **kwargs) == "closed":
        what = f"the prompts have closed the thinking with {run.fmt.close} before the model writes anything"
        yield Finding("warning", what, '`chat_template_kwargs={"enable_thinking": True}` in the config')
    traces = [read_completion(row["completion"], fmt=run.fmt) for row in run.rows if row.get("completion")]
    lengths = [len(run.tokenizer.encode(trace.text(run.fmt), add_special_tokens=False)) + 1 for trace in traces]
    yield from too_long(lengths, run.trainer.args.max_completion_length, "max_completion_length")
    hidden = isinstance(run.trainer, GRPOTrainer) and (run.trainer.environment_factories or run.trainer.rollout_func)
    if hidden or any(isinstance(reward, nn.Module) for reward in run.trainer.reward_funcs):
        what = "the rewards were not tried: they hang on environments, on a `rollout_func` or on a reward model"
        yield Finding("note", what, "try them on a right and a wrong answer")
        return
    yield from _check_rewards(run)


def _check_rewards(run: Run) -> Iterator[Finding]:
    """Call each reward with right, wrong and malformed completions, in the shape of this trainer."""
    rewards = list(zip(run.trainer.reward_func_names, run.trainer.reward_funcs, strict=True))
    asked_for = {"solution", *(name for _, reward in rewards for name in inspect.signature(reward).parameters)}
    given = {name for row in run.rows for name, value in row.items() if isinstance(value, str | int | float)}
    column = next((name for name in GOLDS if name in asked_for & given), "")
    unread = {found.row: found.reason for found in audit_solutions(run.rows, column)} if column else {}
    rows = [*[row for row in range(len(run.rows)) if row not in unread][:2], *list(unread)[:2]]
    golds = {row: run.rows[row].get(column) for row in rows}
    answers = [(row, form.format(x)) for row in rows for form in FORMS for x in _right_and_wrong(golds[row])]
    probes = [(row, Trace(STEP, answer, "complete")) for row, answer in answers]
    probes += [(rows[0], trace) for trace in OTHERS]
    shaped = [_shape(run, run.rows[row]["prompt"], trace) for row, trace in probes]
    told, moving, raised = set(), False, False
    for name, reward in rewards:
        try:
            scores = _scores(run, reward, probes, shaped)
        except Exception as error:  # whatever a reward raises here, it would raise in the first step
            yield Finding("error", f"`{name}` raises {type(error).__name__}: {error}", "mend it, or take it out")
            raised = True
            continue
        pairs = zip(answers[::2], scores[::2], scores[1::2], strict=False)
        told |= {row for (row, _), right, wrong in pairs if right is not None and wrong is not None and right > wrong}
        values = {score for score in scores if score is not None}
        moving = moving or len(values) > 1
        if len(values) == 1:
            yield _constant(run, reward, name, values.pop(), probes, shaped)
    lost = [row for row in rows if row not in told]
    gold = f"{golds[lost[-1]]!r:.200}" if lost else ""
    if raised:
        return
    if lost and lost[-1] in unread:
        what = f"{len(unread)} of {len(run.rows)} gold answers cannot be graded, such as {gold}: {unread[lost[-1]]}"
        severity = "warning" if all(run.rows[row][column] is None for row in unread) else "error"
        yield Finding(
            severity, what, "mend or drop them: `audit_solutions(dataset)` of think_tools.answers lists them"
        )
    elif column and lost:
        what = f"no reward gives more to a right than to a wrong answer where the gold answer is {gold}"
        yield Finding("error", what, READER)
    elif not moving:
        yield Finding("error", "no reward tells any two completions apart, so nothing would be learned", READER)


def _right_and_wrong(gold: Any) -> tuple[str, str]:
    """The gold answer bare, and a number without any digit of it: some rewards only search for the gold answer."""
    right = read_gold(gold) or str(gold)
    return right, 6 * next((digit for digit in "7301" if digit not in right), "7")


def _shape(run: Run, prompt: str | list[dict], trace: Trace) -> tuple[str | list[dict], list[int]]:
    """A completion as this trainer hands it to rewards, and its ids."""
    kwargs = run.trainer.chat_template_kwargs
    state = "open" if isinstance(prompt, str) and prompt.rstrip().endswith(run.fmt.open) else "neither"
    if not isinstance(prompt, str):
        state = prompt_state(run.tokenizer, fmt=run.fmt, **kwargs)
    text = (replace(trace, reasoning=None) if state == "closed" else trace).text(run.fmt)
    text = text.removeprefix(run.fmt.open).lstrip() if state == "open" else text
    ids = run.tokenizer.encode(text, add_special_tokens=False) + [run.end] * (trace.finished is not False)
    if not isinstance(prompt, str) and isinstance(run.trainer, GRPOTrainer) and run.tokenizer.response_template:
        return [parse_response(run.tokenizer, ids, prefix=run.asked(prompt, kwargs))], ids
    content = str(run.tokenizer.decode(ids, skip_special_tokens=True))
    return content if isinstance(prompt, str) else [{"role": "assistant", "content": content}], ids


def _scores(run: Run, reward: Callable, probes: list[tuple[int, Trace]], shaped: list[tuple]) -> list[float | None]:
    """What a reward gives, called as TRL calls it."""
    rows = [run.rows[row] for row, _ in probes]
    scores = reward(
        prompts=[row["prompt"] for row in rows],
        completions=[completion for completion, _ in shaped],
        completion_ids=[ids for _, ids in shaped],
        **{name: [row[name] for row in rows] for name in rows[0].keys() - {"prompt", "completion", "completion_ids"}},
        trainer_state=run.trainer.state,
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
    )
    if inspect.iscoroutine(scores):
        scores = asyncio.run_coroutine_threadsafe(scores, run.trainer.async_loop).result(SECONDS)
    if len(scores) != len(probes):
        raise ValueError(f"it gave {len(scores)} rewards for {len(probes)} completions")
    return [None if score is None or math.isnan(score) else float(score) for score in scores]


def _constant(
    run: Run, reward: Callable, name: str, value: float, probes: list[tuple[int, Trace]], shaped: list[tuple]
) -> Finding:
    """Tell a reward that cannot read this trainer's completions from one that has nothing to say about any."""
    # As most rewards think of completions: one message with `<think>` in its content.
    plain = [
        ([{"role": "assistant", "content": trace.text()}], ids)
        for (_, trace), (_, ids) in zip(probes, shaped, strict=True)
    ]
    try:
        given = set(_scores(run, reward, probes, plain)) - {None}
    except Exception:  # it reads no messages, so their shape is not what is wrong
        given = set()
    what = f"`{name}` gives {value} to right, wrong, long, cut and direct completions alike"
    if len(given) < 2:
        return Finding("warning", what, "look at what it reads: a reward that never changes teaches nothing")
    what += f", since it cannot read what this trainer hands over: {shaped[0][0]!r:.300}"
    return Finding("error", what, "pass `tokenizer=tokenizer` to a reward of think_tools.rewards, which then reads it")
