"""The Space's app, and models that say a given text: a stand-in for `TransformersBackend.stream`, and a real one."""

import asyncio
import importlib.util
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from think_tools.backends import Candidate, Delta, SamplingParams
from think_tools.parsing import ThinkStream, parse

T = TypeVar("T")
SPACE = Path(__file__).parents[1] / "space"


def load_app() -> ModuleType:
    """`space/app.py`, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_a_loop(make: Callable[[], T]) -> T:
    """
    The result of `make`, called in a running event loop. Outside of one Gradio makes a loop for each of its locks and
    never closes it, which is a ResourceWarning (https://github.com/gradio-app/gradio/pull/11734).
    """

    async def run() -> T:
        return make()

    with ThreadPoolExecutor(1) as thread:  # the main thread's loop may be Playwright's
        return thread.submit(asyncio.run, run()).result()


@contextmanager
def saying(backend, *texts, ids=None, steps=None):
    """Make the model say one text per sequence, then end its turn; `steps` collects the thread of each pass."""
    end = backend.tokenizer.eos_token_id
    rows = ids or [[*backend.tokenizer.encode(text), end] for text in texts]
    steps = [] if steps is None else steps

    def force(module, args, output):
        if len(output.logits) < len(rows):
            return  # the prompt of several rows, read once
        for i, row in enumerate(rows):
            output.logits[i, -1] = -100.0
            output.logits[i, -1, row[min(len(steps), len(row) - 1)]] = 100.0
        steps.append(threading.get_ident())

    handle = backend.model.register_forward_hook(force)
    try:
        yield
    finally:
        handle.remove()


class ScriptedStream:
    """
    Says `text` in pieces of four characters, each counted as a token.

    Args:
        text (`str`): The output, markers included; without its reasoning where thinking is off.
        seconds (`float`): Seconds before each piece.
        error (`Exception`, *optional*): Raised after the text.
        hold (`str`, *optional*): Once it has said this, it says nothing more until `go` is set.
    """

    def __init__(
        self, text: str, seconds: float = 0.0, error: Exception | None = None, hold: str | None = None
    ) -> None:
        self.text, self.seconds, self.error, self.hold = text, seconds, error, hold
        self.go = threading.Event()
        self.prompts: list[list[dict]] = []
        self.params: list[SamplingParams] = []
        self.running = 0  # generations that neither ended nor were closed

    async def __call__(
        self, messages: list[dict], params: SamplingParams, *, enable_thinking: bool = True, thinking: bool = True
    ) -> AsyncGenerator[Delta | Candidate, None]:
        self.prompts.append(messages)
        self.params.append(params)
        assert thinking == enable_thinking
        text = self.text if enable_thinking else self.text.partition("</think>")[2]
        pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
        said, split = pieces[: params.max_tokens], ThinkStream()
        self.running += 1
        try:
            for n, piece in enumerate(said, start=1):
                await asyncio.sleep(self.seconds)
                while self.hold and self.hold in "".join(said[: n - 1]) and not self.go.is_set():
                    await asyncio.sleep(0.02)
                for part, shown in split.feed(piece):
                    yield Delta(part, shown, n)
            if self.error:
                raise self.error
            yield self._candidate("".join(said), finished=len(said) == len(pieces))
        finally:
            self.running -= 1

    def _candidate(self, text: str, *, finished: bool) -> Candidate:
        trace = parse(text, finished=finished)
        tokens: dict[str, Any] = {"num_tokens": -(-len(text) // 4), "num_reasoning_tokens": 0}
        if trace.reasoning is not None:
            tokens["num_reasoning_tokens"] = -(-len(text.partition("</think>")[0]) // 4)
        return Candidate(text, trace, "stop" if finished else "length", **tokens)
