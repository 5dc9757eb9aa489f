"""Read a stored conversation: messages of several forms to plain turns, and those to prompts and completions."""

import json
from typing import Any, Literal

from ..formats import FORMATS, THINK, ThinkFormat
from ..parsing import Trace, read_completion
from ..rewards.completions import guess_format

Turns = Literal["expand", "last", "all"]

BLOCKS = {"text": "content", "reasoning": "reasoning_content", "thinking": "reasoning_content"}
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}  # ShareGPT's


def read_turns(value: Any, role: str = "user", fmt: ThinkFormat | None = None) -> list[dict]:
    """
    Messages with plain text as content, from the value of a column. Assistant turns have their reasoning, if any,
    under `reasoning_content`, and their calls as `tool_calls` of OpenAI's form, with arguments as a dict.

    Read are `role` and `content`, ShareGPT's `from` and `value`, and turns with `user`, `inner_thought` and
    `assistant`. Typed blocks (`text`, `reasoning`, `thinking`, `tool_call`) are joined, and keys that Arrow has filled
    with `None` go. A text is one message of the given role. `fmt=None`: the markers with which a text begins.

    Raises:
        `ValueError`: If the value is something else, or a turn cannot be read; the text is the cause why the row is
            dropped.
    """
    turns = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("no list of messages")
    return [_split_reasoning(_flatten(each), fmt) for turn in turns for each in _say_roles(turn)]


def split_turns(messages: list[dict], start: int, turns: Turns) -> list[tuple[list[dict], list[dict]]]:
    """
    Prompt and completion of each example of a conversation, of which only what comes after the first `start` messages
    and after a question is learned.

    Raises:
        `ValueError`: If there is no question, or the last turn is not the assistant's.
    """
    asking = (i for i, turn in enumerate(messages) if turn["role"] in ("user", "tool") and turn["content"].strip())
    start = max(start, next(asking, len(messages)))
    if start == len(messages):
        raise ValueError("empty question")
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    ends = [i for i, turn in enumerate(messages) if i >= start and turn["role"] == "assistant"]
    if turns == "all":
        return [(messages[: ends[0]], messages[ends[0] :])]
    return [(messages[:i], [messages[i]]) for i in (ends if turns == "expand" else ends[-1:])]


def read_turn(message: dict, fmt: ThinkFormat | None = None) -> Trace:
    """
    Reasoning and answer of an assistant message with plain text. `fmt=None`: the markers with which it begins.

    Raises:
        `ValueError`: If the reasoning is not closed, or a text holds another think marker, which would be trained
            as if the model should open or close its thinking there.
    """
    fmt = fmt or _find_format(message["content"].strip())
    trace = read_completion(message, fmt=fmt)
    # A message whose reasoning is apart from an empty answer reads as truncated, too; its cause is the empty answer.
    if trace.status == "truncated" and message["content"].strip():
        raise ValueError("reasoning without closing marker")
    if any(marker in text for marker in (fmt.open, fmt.close) for text in (trace.reasoning or "", trace.answer)):
        raise ValueError("think markers inside the reasoning or the answer")
    return trace


def _find_format(text: str) -> ThinkFormat:
    """The markers with which a text begins, with the tags around its answer if one of the formats has them."""
    fmt = guess_format(text) or THINK
    answer = text.partition(fmt.close)[2].lstrip()
    tagged = (each for each in FORMATS.values() if (each.open, each.close) == (fmt.open, fmt.close))
    pairs = ((each.answer_open, each.answer_close, each) for each in tagged if each.answer_close)
    return next((each for head, tail, each in pairs if answer.startswith(head) and answer.endswith(tail)), fmt)


def _say_roles(turn: dict) -> list[dict]:
    """A turn with the key `role`; two of them for a question and its answer in one."""
    turn = {key: value for key, value in turn.items() if value is not None}
    if {"user", "assistant"} <= turn.keys():
        answer = {
            "role": "assistant",
            "content": turn["assistant"],
            "reasoning_content": turn.get("inner_thought", ""),
        }
        return [{"role": "user", "content": turn["user"]}, answer]
    said = turn.pop("from", None)
    role, value = turn.pop("role", said), turn.pop("value", "")
    if role is None:
        raise ValueError("a message without role")
    turn = {"role": ROLES.get(role, role), "content": value, **turn}
    return [{**turn, "content": "", "tool_calls": value} if role == "function_call" else turn]


def _flatten(turn: dict) -> dict:
    content = turn["content"]
    calls = _read_calls(turn.pop("tool_calls", []))
    if isinstance(content, list):
        texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        for block in content:
            kind = block.get("type") if isinstance(block, dict) else type(block).__name__
            if kind == "tool_call":
                calls += _read_calls(block.get("value") or block.get("tool_call"))
            elif kind in BLOCKS:
                texts[BLOCKS[kind]].append(block.get(kind) or block.get("text") or block.get("value") or "")
            else:
                raise ValueError(f"a content block of type {kind}")
        turn |= {key: "".join(parts) for key, parts in texts.items() if parts or key == "content"}
    elif not isinstance(content, str):
        raise ValueError(f"a content of type {type(content).__name__}")
    return {**turn, "tool_calls": calls} if calls else turn


def _read_calls(value: Any) -> list[dict]:
    """Tool calls from a list, one of them, or its JSON."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        return [_read_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
        raise ValueError("a tool call that cannot be read") from None


def _read_call(call: dict) -> dict:
    function = call.get("function") or call
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    else:  # a struct of all calls' arguments, which Arrow fills with None
        arguments = {key: value for key, value in arguments.items() if value is not None}
    known = {"id": call["id"]} if call.get("id") else {}
    return {**known, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _split_reasoning(turn: dict, fmt: ThinkFormat | None) -> dict:
    if turn["role"] != "assistant":
        return turn
    trace = read_turn(turn, fmt)
    kept = {key: value for key, value in turn.items() if key not in REASONING_KEYS}
    reasoning = {"reasoning_content": trace.reasoning} if trace.reasoning else {}
    return {**kept, "content": trace.answer, **reasoning}
