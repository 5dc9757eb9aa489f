"""Parse a completion in any form: text, a message, or messages."""

from collections.abc import Mapping, Sequence

from ..formats import THINK, ThinkFormat, spellings
from .stream import parse, unwrap
from .trace import Part, Trace, check_finished, check_format

# Keys under which servers and data sets put the reasoning of a message (vLLM, SGLang, Ollama, transformers).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, object]


def read_completion(
    completion: str | Message | Sequence[Message],
    *,
    opened: bool | None = None,
    fmt: ThinkFormat = THINK,
    finished: bool | None = None,
    interleaved: bool = False,
) -> Trace:
    """
    Parse a completion in any form in which trainers and servers hand it out.

    The same output gives the same [`Trace`] as inline text and as a message with its reasoning apart. Such a message
    does not say whether its reasoning was closed: with an empty answer it counts as not closed.

    Args:
        completion (`str`, `dict` or `list` of `dict`):
            Text; an assistant message with the reasoning inline or under `reasoning_content`, `thinking` or
            `reasoning`; or messages, of which the last assistant turn is read. Content may be a list of typed parts
            (`text`, `output_text`, `thinking`, `reasoning`). Content `None` is an empty answer.
        opened (`bool`, *optional*):
            Whether the generation prompt ended inside the reasoning. `None`: it did if a closing marker comes before
            any opening one.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers.
        finished (`bool`, *optional*):
            Whether the model stopped by itself (`True`) or was cut by the length limit (`False`); `None` if unknown.
        interleaved (`bool`, *optional*, defaults to `False`):
            Whether to read several blocks of reasoning, inline or as typed parts, see [`ThinkStream`].

    Returns:
        [`Trace`]: Reasoning, answer and status.

    Raises:
        `TypeError`: If an argument, or something in `completion`, has another type.
        `ValueError`: If `completion` holds no assistant message, or the message no content.

    Example:

    ```python
    >>> from think_tools import read_completion

    >>> inline = read_completion("<think>2+2</think>4")
    >>> inline == read_completion([{"role": "assistant", "reasoning_content": "2+2", "content": "4"}])
    True
    ```
    """
    check_format(opened or False, fmt)
    check_finished(finished)
    parts = _read_message({"content": completion} if isinstance(completion, str) else _last_assistant(completion))
    thoughts = [text for part, text in parts if part == "reasoning"]
    reasoning, content = "\n\n".join(thoughts), "".join(text for part, text in parts if part == "answer")
    if reasoning.strip() and interleaved:
        return parse(_inline(parts, fmt), fmt=fmt, finished=finished, interleaved=True)
    if reasoning.strip() and not content.strip():
        return Trace(reasoning.strip(), "", "unclosed" if finished else "truncated", finished)
    if reasoning.strip():
        return Trace(reasoning.strip(), unwrap(content, fmt), "complete", finished)
    if opened is None:
        before, close, _ = content.partition(fmt.close)
        opened = bool(close) and not any(marker in before for marker in spellings(fmt, fmt.open))
    trace = parse(content, opened=opened, fmt=fmt, finished=finished, interleaved=interleaved)
    if thoughts and trace.status == "no_think":
        # An empty block that a server has split off already.
        return Trace("", trace.answer, "complete", finished)
    return trace


def _inline(parts: list[tuple[Part, str]], fmt: ThinkFormat) -> str:
    """The parts as the model wrote them. A thought at the end may have been cut."""
    parts = [(part, text) for part, text in parts if text.strip()]
    text = "".join(f"{fmt.open}{text}{fmt.close}" if part == "reasoning" else text for part, text in parts)
    return text.removesuffix(fmt.close) if parts[-1][0] == "reasoning" else text


def _last_assistant(completion: object) -> Message:
    """The message itself, or the last assistant turn of a list of messages."""
    if isinstance(completion, Mapping):
        if completion.get("role", "assistant") != "assistant":
            raise ValueError(f"`completion` must be an assistant message, got role {completion['role']!r}.")
        return completion
    if not isinstance(completion, list | tuple) or not all(isinstance(turn, Mapping) for turn in completion):
        raise TypeError(
            f"`completion` must be a string, a message or a list of messages, got {_describe(completion)}."
        )
    for turn in reversed(completion):
        if turn.get("role") == "assistant":
            return turn
    roles = [turn.get("role") for turn in completion]
    raise ValueError(f"`completion` must hold an assistant turn, got the roles {roles}: pass the messages it wrote.")


def _describe(completion: object) -> str:
    if isinstance(completion, list | tuple):
        return f"{type(completion).__name__} of {', '.join(sorted({type(item).__name__ for item in completion}))}"
    return type(completion).__name__


def _read_message(message: Message) -> list[tuple[Part, str]]:
    """The parts of an assistant message in order; its reasoning is empty if it has an empty key for it."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise TypeError(f"`completion` must hold its reasoning as a string, got {type(reasoning).__name__}.")
    content = message.get("content")
    if content is None and "content" not in message and reasoning is None and "tool_calls" not in message:
        raise ValueError(f"`completion` must have the key 'content', got the keys {sorted(message)}.")
    if isinstance(content, str) or content is None:
        content = [content or ""]
    if not isinstance(content, list | tuple):
        raise TypeError(
            f"`completion` must have a string, a list of parts or None as content, got {type(content).__name__}."
        )
    parts = [_read_part(part) for part in content]
    if reasoning is None:
        return parts
    return [("reasoning", reasoning), *(part for part in parts if part[0] == "answer")]


def _read_part(part: object) -> tuple[Part, str]:
    """One typed part of a message's content."""
    if isinstance(part, str):
        return "answer", part
    if isinstance(part, Mapping):
        kind = part.get("type")
        if kind in ("text", "output_text") and isinstance(part.get("text"), str):
            return "answer", part["text"]
        if kind in ("thinking", "reasoning"):
            thought = part.get(kind, part.get("text"))
            if isinstance(thought, str):
                return "reasoning", thought
            if isinstance(thought, list | tuple):  # Mistral nests text parts
                return "reasoning", "".join(_read_part(item)[1] for item in thought)
    shown = sorted(part.items()) if isinstance(part, Mapping) else part
    raise ValueError(
        f"`completion` must hold parts of type 'text', 'output_text', 'thinking' or 'reasoning', got {shown!r:.120}."
    )
