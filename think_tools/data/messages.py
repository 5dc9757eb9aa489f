"""Read a stored conversation: messages of several forms to a prompt and the turn that is to be learned."""

from typing import Any

from ..formats import THINK, ThinkFormat
from ..parsing import Trace, read_completion
from ..rewards.completions import guess_format

BLOCKS = {"text": "content", "reasoning": "reasoning_content", "thinking": "reasoning_content"}
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


def read_turns(value: Any, column: str) -> list[dict]:
    """
    Messages with plain text as content, from the value of a column.

    Typed blocks (`text`, `reasoning`, `thinking`) are joined, and keys that Arrow has filled with `None` go. A text is
    one message: the assistant's in the column `completion`, else the user's.

    Raises:
        `ValueError`: If the value is something else or holds tool calls; the text is the cause why the row is dropped.
    """
    if isinstance(value, str):
        return [{"role": "assistant" if column == "completion" else "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(turn, dict) and turn.get("role") for turn in value):
        raise ValueError(f"`{column}` is not a list of messages with roles")
    return [_flatten(turn) for turn in value]


def split_conversation(messages: list[dict], fmt: ThinkFormat | None = None) -> tuple[list[dict], dict]:
    """
    The prompt, its assistant turns with their reasoning under `reasoning_content`, and the last assistant turn.

    Raises:
        `ValueError`: If the last turn is not the assistant's, or an earlier one cannot be read.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    return [_split_reasoning(turn, fmt) for turn in messages[:-1]], messages[-1]


def read_turn(message: dict, fmt: ThinkFormat | None = None) -> Trace:
    """
    Reasoning and answer of an assistant message with plain text. `fmt=None`: the markers with which it begins.

    Raises:
        `ValueError`: If the reasoning is not closed, or a text holds another think marker, which would be trained
            as if the model should open or close its thinking there.
    """
    fmt = fmt or guess_format(str(message["content"]).lstrip()) or THINK
    trace = read_completion(message, fmt=fmt)
    # A message whose reasoning is apart from an empty answer reads as truncated, too; its cause is the empty answer.
    if trace.status == "truncated" and message["content"].strip():
        raise ValueError("reasoning without closing marker")
    if any(marker in text for marker in (fmt.open, fmt.close) for text in (trace.reasoning or "", trace.answer)):
        raise ValueError("think markers inside the reasoning or the answer")
    return trace


def _flatten(turn: dict) -> dict:
    turn = {key: value for key, value in turn.items() if value is not None}
    if turn.get("tool_calls"):
        raise ValueError("tool calls")
    content = turn.get("content", "")
    if not isinstance(content, list):
        return {**turn, "content": content}
    texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        if kind not in BLOCKS:
            raise ValueError(f"a content block of type {kind}")
        texts[BLOCKS[kind]].append(block.get(kind) or block.get("text") or block.get("value") or "")
    return {**turn, **{key: "".join(parts) for key, parts in texts.items() if parts or key == "content"}}


def _split_reasoning(turn: dict, fmt: ThinkFormat | None) -> dict:
    if turn["role"] != "assistant":
        return turn
    trace = read_turn(turn, fmt)
    kept = {key: value for key, value in turn.items() if key not in REASONING_KEYS}
    reasoning = {"reasoning_content": trace.reasoning} if trace.reasoning else {}
    return {**kept, "content": trace.answer, **reasoning}
