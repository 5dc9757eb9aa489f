"""
What a model's output splits into, and the rules by which it does, here and in `stream` and `completion`.

1. Reasoning starts only if the prompt left it open (`opened=True`) or the output, after white space, begins with the
   opening marker. Otherwise all of the output is answer.
2. The first closing marker ends the reasoning. What follows is the answer, literally, later markers included.
3. Without a closing marker `finished` decides. Cut by the length limit, or unknown: the text is reasoning. Stopped by
   itself: the text is reasoning if the model wrote the opening marker, and answer if the prompt did (the model
   skipped thinking).
4. A format with answer markers loses `answer_open` where the answer, after white space, begins with it, and the first
   `answer_close` after that.
5. Stop tokens at the very end of the output belong to no part.

A format may know more spellings of a marker (`variants`), begin its reasoning after text (`text_before`) or skip it
with a closing marker (`bare_close`). Read interleaved, an opening marker in the answer begins another block of
reasoning, and a tool call ends the reasoning as a closing marker does, but stays, as text of the answer.

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
            `(part, text)` of every block in order, `part` being `"reasoning"` or `"answer"`. Set only where several
            blocks are read, with `interleaved=True`.
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
