r"""What a model's output splits into, and the one rule by which it does, here and in `stream` and `completion`.

1. Reasoning starts only if the prompt left it open (`opened=True`) or the output, after white space, begins with the
   opening marker. Otherwise all of the output is answer.
2. The first closing marker ends the reasoning. What follows is the answer, literally, later markers included.
3. Without a closing marker `finished` decides. Cut by the length limit, or unknown: the text is reasoning. Stopped by
   itself: the text is reasoning if the model wrote the opening marker, and answer if the prompt did (the model
   skipped thinking).
4. A format with answer markers loses `answer_open` where the answer, after white space, begins with it, and the first
   `answer_close` after that.

`repair` is the one exception: it guesses, and is for stored data only.
"""

from dataclasses import dataclass
from typing import Literal

from ..formats import THINK, ThinkFormat

Part = Literal["reasoning", "answer"]
Status = Literal["complete", "truncated", "no_think", "unclosed"]


@dataclass(frozen=True)
class Trace:
    """
    One parsed output. Reasoning and answer are stripped of outer white space.

    Args:
        reasoning (`str`, *optional*):
            The reasoning. `None` when there was none at all, `""` for an empty block.
        answer (`str`):
            The answer, `""` when there was none.
        status (`str`):
            `"complete"`: the reasoning was closed (the answer may still be cut, see `finished`). `"truncated"`: the
            output ends inside the reasoning. `"no_think"`: no reasoning. `"unclosed"`: the model stopped by itself
            without closing; the text is the reasoning if the model opened it, else the answer.
        finished (`bool`, *optional*):
            What the server said: `True` the model stopped by itself, `False` cut by the length limit, `None` unknown.
        blocks (`tuple[tuple[str, str], ...]`, *optional*, defaults to `()`):
            `(part, text)` of every block in order, `part` being `"reasoning"` or `"answer"`. Set by
            [`ThinkStream`] with `interleaved=True`.
        rule (`str`, *optional*):
            What [`repair`] did, several rules joined by `+`. `None` where nothing had to be repaired.
    """

    reasoning: str | None
    answer: str
    status: Status
    finished: bool | None = None
    blocks: tuple[tuple[Part, str], ...] = ()
    rule: str | None = None

    def message(self) -> dict[str, str | None]:
        """
        The assistant message, as `apply_chat_template` and the rows of a data set hold it.

        A message cannot say whether its reasoning was closed: check `status` before training on it.

        Example:

        ```python
        >>> from think_tools import parse

        >>> parse("<think>2+2</think>4").message()
        {'role': 'assistant', 'reasoning_content': '2+2', 'content': '4'}
        ```
        """
        return {"role": "assistant", "reasoning_content": self.reasoning, "content": self.answer}

    def text(self, fmt: ThinkFormat = THINK) -> str:
        r"""
        The output in canonical form, markers on lines of their own. Reasoning that was never closed stays open.

        Args:
            fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
                Markers to write. Interleaved blocks come out as one block of reasoning before one answer.

        Example:

        ```python
        >>> from think_tools import repair

        >>> repair("2+2</think>4").text()
        '<think>\n2+2\n</think>\n\n4'
        ```
        """
        if self.reasoning is None:
            return self.answer
        if self.status != "complete":
            return f"{fmt.open}\n{self.reasoning}"
        return f"{fmt.open}\n{self.reasoning}\n{fmt.close}\n\n{fmt.answer_open}{self.answer}{fmt.answer_close}"


def parse(text: str, *, opened: bool = False, fmt: ThinkFormat = THINK, finished: bool | None = None) -> Trace:
    """
    Parse one whole output.

    Args:
        text (`str`):
            What the model wrote, without the prompt, decoded with `skip_special_tokens=False` if the markers are
            special tokens.
        opened (`bool`, *optional*, defaults to `False`):
            Whether the generation prompt ended inside the reasoning, as templates that write `<think>` do. A
            repeated opening marker is accepted.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers.
        finished (`bool`, *optional*):
            Whether the model stopped by itself (`True`) or was cut by the length limit (`False`); `None` if unknown.

    Returns:
        [`Trace`]: Reasoning, answer and status.

    Raises:
        `TypeError`: If an argument has another type.

    Example:

    ```python
    >>> from think_tools import parse

    >>> parse("2+2</think>4", opened=True)
    Trace(reasoning='2+2', answer='4', status='complete', finished=None, blocks=(), rule=None)
    >>> parse("<think>2+", finished=False).status
    'truncated'
    ```
    """
    check_text(text)
    check_format(opened, fmt)
    check_finished(finished)
    start = len(text) - len(text.lstrip())
    wrote = text.startswith(fmt.open, start)
    if wrote:
        start += len(fmt.open)
    elif not opened:
        return Trace(None, unwrap(text, fmt), "no_think", finished)
    end = text.find(fmt.close, start)
    if end < 0:
        return unclosed(text[start:], fmt, wrote, finished)
    return Trace(text[start:end].strip(), unwrap(text[end + len(fmt.close) :], fmt), "complete", finished)


def unclosed(text: str, fmt: ThinkFormat, wrote: bool, finished: bool | None) -> Trace:
    """The trace of `text` without a closing marker; `wrote` tells whether the model itself wrote the opening one."""
    if finished and not wrote:
        return Trace(None, unwrap(text, fmt), "unclosed", finished)
    return Trace(text.strip(), "", "unclosed" if finished else "truncated", finished)


def unwrap(answer: str, fmt: ThinkFormat) -> str:
    """The stripped answer without the markers around it (rule 4)."""
    answer = answer.strip()
    if fmt.answer_open:
        if not answer.startswith(fmt.answer_open):
            return answer
        answer = answer.removeprefix(fmt.answer_open)
    if fmt.answer_close:
        answer = answer.replace(fmt.answer_close, "", 1)
    return answer.strip()


def check_text(text: object) -> None:
    """Refuse anything but a string as `text`."""
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a string, got {type(text).__name__}: pass the decoded output.")


def check_finished(finished: object) -> None:
    """Refuse a finish reason, or any other true value, as `finished`."""
    if finished is not None and not isinstance(finished, bool):
        raise TypeError(
            f"`finished` must be True, False or None, got {finished!r}: pass `finish_reason == 'stop'`, or None if "
            "the server did not say."
        )


def check_format(opened: object, fmt: object) -> None:
    """Refuse the name of a prompt's state as `opened` and the name of a format as `fmt`."""
    if not isinstance(opened, bool):
        raise TypeError(f"`opened` must be True or False, got {opened!r}: pass `prompt_state(tokenizer) == 'open'`.")
    if not isinstance(fmt, ThinkFormat):
        raise TypeError(f"`fmt` must be a ThinkFormat, got {fmt!r}: pass `FORMATS[name]` or `ThinkFormat(...)`.")
