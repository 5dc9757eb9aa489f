"""Parse a completion in any form: text, a message, or messages."""

from collections.abc import Mapping, Sequence

from ..formats import THINK, ThinkFormat
from .trace import Part, Trace, check_finished, check_format, parse, unclosed, unwrap

# Keys under which servers and data sets put the reasoning of a message (vLLM, SGLang, Ollama, transformers).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, object]


def read_completion(
    completion: str | Message | Sequence[Message],
    *,
    opened: bool | None = None,
    fmt: ThinkFormat = THINK,
    finished: bool | None = None,
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
    if isinstance(completion, str):
        reasoning, content = None, completion
    else:
        reasoning, content = _read_message(_last_assistant(completion))
    if reasoning and reasoning.strip():
        if not content.strip():
            return unclosed(reasoning, fmt, True, finished)
        return Trace(reasoning.strip(), unwrap(content, fmt), "complete", finished)
    if opened is None:
        first_close = content.find(fmt.close)
        opened = first_close >= 0 and fmt.open not in content[:first_close]
    trace = parse(content, opened=opened, fmt=fmt, finished=finished)
    if reasoning is not None and trace.status == "no_think":
        # An empty block that a server has split off already.
        return Trace("", trace.answer, "complete", finished)
    return trace


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


def _read_message(message: Message) -> tuple[str | None, str]:
    """Reasoning (`None` if the message has none apart) and content of an assistant message."""
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
    if reasoning is not None and not isinstance(reasoning, str):
        raise TypeError(f"`completion` must hold its reasoning as a string, got {type(reasoning).__name__}.")
    content = message.get("content")
    if content is None:
        if "content" not in message and reasoning is None and "tool_calls" not in message:
            raise ValueError(f"`completion` must have the key 'content', got the keys {sorted(message)}.")
        return reasoning, ""
    if isinstance(content, str):
        return reasoning, content
    if not isinstance(content, list | tuple):
        raise TypeError(
            f"`completion` must have a string, a list of parts or None as content, got {type(content).__name__}."
        )
    parts = [_read_part(part) for part in content]
    thoughts = [text for part, text in parts if part == "reasoning"]
    if reasoning is None and thoughts:
        reasoning = "\n\n".join(thoughts)
    return reasoning, "".join(text for part, text in parts if part == "answer")


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
