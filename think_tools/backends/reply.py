"""Read what a server has answered: one choice of a chat completion becomes a candidate."""

from bisect import bisect_left
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ..formats import ThinkFormat
from ..parsing import parse, read_completion
from .sampling import Candidate, Messages, SamplingParams

_STOPPED = ("stop", "eos_token", "stop_sequence")  # the last two are text-generation-inference's
_REFUSED = ("content_filter", "tool_calls", "function_call")  # another attempt would end the same


def read_reply(
    message: Mapping[str, Any],
    choice: Mapping[str, Any],
    usage: Mapping[str, Any] | None,
    prompt: Messages,
    params: SamplingParams,
    *,
    opened: bool | None,
    fmt: ThinkFormat,
) -> Candidate:
    """The candidate in a choice; a `ValueError` if another attempt may bring one, a `RuntimeError` if not."""
    reason, usage = choice.get("finish_reason"), usage or {}
    stopped = reason in _STOPPED
    if not stopped and reason != "length":
        raise (RuntimeError if reason in _REFUSED else ValueError)(f"the answer ended with finish_reason {reason!r}")
    thought, content = reasoning_of(message) or "", message.get("content") or ""
    prefix, stop_reason = prefix_of(prompt), _stop_reason(choice, params)
    finished = None if stop_reason else stopped
    if stop_reason and content:
        content = content.removesuffix(stop_reason) + stop_reason  # servers cut it off
    if prefix:
        both = f"{thought.rstrip()}\n{fmt.close}\n\n{content}"
        text = both if thought and content and fmt.close not in prefix else thought + content
        trace = parse(prefix + text, fmt=fmt, finished=finished)
    else:
        turn = {"role": "assistant", "reasoning_content": thought or None, "content": content}
        trace = read_completion(turn, opened=opened, fmt=fmt, finished=finished)
        text = trace.text(fmt) if thought else content
    if stop_reason and not content:
        text = text.removesuffix(stop_reason.rstrip()) + stop_reason
    before = parse(prefix, fmt=fmt)
    thought_size = max(0, len(trace.reasoning or "") - len(before.reasoning or ""))
    size = thought_size + max(0, len(trace.answer) - len(before.answer))
    if not size and not stop_reason and not (prefix and stopped):  # a turn may end where it was to go on
        raise (ValueError if stopped else RuntimeError)(f"the answer is empty, finish_reason {reason!r}")
    num_tokens = usage.get("completion_tokens") or estimate_tokens(text)
    known = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    num_reasoning_tokens = known or round(num_tokens * thought_size / (size or 1))
    _check_budget(num_reasoning_tokens, params)
    tokens = _logprobs(choice, params)
    logprobs = [token["logprob"] for token in tokens]
    begin, spelled = 0, [token["token"] for token in tokens]
    if trace.reasoning is not None and fmt.close not in prefix:
        begin = bisect_left(range(len(spelled) + 1), True, key=lambda n: fmt.close in "".join(spelled[:n]))
    return Candidate(
        text=text,
        trace=trace,
        finish_reason="stop" if stopped else "length",
        num_tokens=num_tokens,
        num_reasoning_tokens=num_reasoning_tokens,
        num_prompt_tokens=usage.get("prompt_tokens") or estimate_tokens("".join(str(m["content"]) for m in prompt)),
        stop_reason=stop_reason,
        logprob=fmean(logprobs) if logprobs else None,
        answer_logprob=fmean(logprobs[begin:]) if logprobs[begin:] else None,
    )


def prefix_of(prompt: Messages) -> str:
    """What the assistant has said already, where its turn is to go on."""
    last = prompt[-1] if prompt else {}
    return str(last.get("content") or "") if last.get("role") == "assistant" else ""


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """The reasoning, under either name that servers use."""
    return message.get("reasoning_content") or message.get("reasoning")


def estimate_tokens(text: str) -> int:
    """A quarter of the UTF-8 bytes."""
    return len(text.encode()) // 4 + 1


def _stop_reason(choice: Mapping[str, Any], params: SamplingParams) -> str | None:
    """The stop text that ended it, in vLLM's field or in SGLang's; theirs hold the end-of-turn token otherwise."""
    if params.stop and choice.get("finish_reason") == "stop" and not {"stop_reason", "matched_stop"} & {*choice}:
        raise RuntimeError(
            "the server does not say whether the model ended its turn or wrote a text of `stop`, so nobody knows what "
            "to go on with: vLLM and SGLang do"
        )
    ended = choice.get("stop_reason") or choice.get("matched_stop")
    return ended if isinstance(ended, str) and ended in params.stop else None


def _check_budget(num_reasoning_tokens: int, params: SamplingParams) -> None:
    budget = params.thinking_token_budget
    if budget is not None and num_reasoning_tokens > 1.5 * budget + 100:  # estimated, and with a closing sentence
        raise RuntimeError(
            f"the answer has {num_reasoning_tokens} tokens of reasoning, so the server knows no "
            f"`thinking_token_budget` ({budget}): vLLM does, where it runs with a reasoning parser"
        )


def _logprobs(choice: Mapping[str, Any], params: SamplingParams) -> list[Mapping[str, Any]]:
    tokens = (choice.get("logprobs") or {}).get("content") or []
    if params.logprobs and not tokens:
        raise RuntimeError("the server has sent no log-probabilities: take out `logprobs`")
    return tokens if params.logprobs else []
