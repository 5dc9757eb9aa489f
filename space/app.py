"""
A chat page for models that think: the reasoning appears live in a pane of its own, then the answer.

```
python space/app.py                                             # the embedded model, which knows arithmetic
MODEL_ID=Qwen/Qwen3-0.6B python space/app.py                    # any model; its think markers are found by themselves
ADAPTER_ID=user/my-adapter python space/app.py                  # an adapter and its tokenizer; it names its base
```
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import gradio as gr
import torch
from peft import PeftConfig, PeftModel
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers import AutoModelForCausalLM, AutoTokenizer

from think_tools.backends import Candidate, Delta, SamplingParams, TransformersBackend
from think_tools.tiny import load_tiny

logger = logging.getLogger(__name__)

# `TransformersBackend.stream`, or anything that yields the same events for (messages, params, **THINKING_SWITCHES).
Stream = Callable[..., AsyncGenerator[Delta | Candidate, None]]
Updates = AsyncGenerator[tuple[Any, Any], None]  # values of the chatbot and of the text box

# Variables with which chat templates switch thinking on and off; DeepSeek, Granite and Kimi read the second.
THINKING_SWITCHES = ("enable_thinking", "thinking")

# The browser's limits do not bind a client of the API, so the server keeps its own.
MAX_TOKENS = 4096
MAX_QUESTION_CHARACTERS = 20_000
MAX_HISTORY_CHARACTERS = 200_000
EVERY_SECONDS = 0.05  # a browser renders about 170 updates a second, then lags behind the model
HEARTBEAT_SECONDS = 0.5  # the clock of the pane goes on while the model is silent

# The backend lets one generation run at a time; those who wait for it see that they wait, and can stop.
QUEUED: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 16, "show_progress": "hidden"}

# Gradio's sanitiser leaves images and forms in what the model writes: a picture's address could carry a conversation
# away. The page itself loads nothing from elsewhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; form-action 'self'; connect-src 'self'; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:"
)
# Gradio lets an open pane grow without bound, and its title scrolls away. Reversed columns keep the tail in view.
CSS = """
.thought-group:has(.loading-spinner) .content {
    max-height: 9em; overflow-y: auto; display: flex; flex-direction: column-reverse;
}
.thought-group .duration { font-variant-numeric: tabular-nums; }
"""
# Gradio follows the conversation only while it grows by less than 100 pixels at a time.
SCROLL_DOWN = """() => setTimeout(() => {
    const chat = document.querySelector("#chat .bubble-wrap");
    chat.scrollTo(0, chat.scrollHeight);
}, 400)"""
LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


class Turn:
    """What the model has written of its turn so far, and the chat messages that show it."""

    def __init__(self, events: AsyncGenerator[Delta | Candidate, None]) -> None:
        self.texts = {"reasoning": "", "answer": ""}
        self.num_reasoning_tokens = 0
        self.note = ""  # said below the turn once it is over
        self.cleared = False
        self._started = time.monotonic()
        self._thought_seconds: float | None = None
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._listen(events))
        self._task.add_done_callback(lambda _: self._news.set())

    async def updates(self) -> AsyncGenerator[list[dict], None]:
        """The messages of the turn, again and again until the model is done or stopped; raises what it raised."""
        while not self._task.done():
            yield self.messages(done=False)
            await asyncio.sleep(EVERY_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), HEARTBEAT_SECONDS)
            self._news.clear()
        if not self._task.cancelled():
            self._task.result()

    def stop(self) -> None:
        """End the generation. The turn itself then says the last word: two writers of one page would race."""
        if self._task.cancel():
            self.note = "Stopped"

    async def _listen(self, events: AsyncGenerator[Delta | Candidate, None]) -> None:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    self._add(event)
                else:
                    self._finish(event)
                self._news.set()

    def _add(self, delta: Delta) -> None:
        if not any(self.texts.values()):
            self._started = time.monotonic()  # waiting is not thinking
        self.texts[delta.part] += delta.text
        if delta.part == "reasoning":
            self.num_reasoning_tokens = delta.num_tokens
        elif self._thought_seconds is None:
            self._thought_seconds = time.monotonic() - self._started

    def _finish(self, candidate: Candidate) -> None:
        self.texts = {"reasoning": candidate.trace.reasoning or "", "answer": candidate.trace.answer}
        self.num_reasoning_tokens = candidate.num_reasoning_tokens
        if candidate.finish_reason == "length":
            self.note = f"Cut off after {candidate.num_tokens} tokens, see the settings"
        elif not candidate.trace.answer:
            self.note = "The model ended its turn without an answer"

    def messages(self, *, done: bool) -> list[dict]:
        """The turn for [`~gradio.Chatbot`]: a pane with the reasoning, the answer, the note."""
        reasoning, answer = self.texts["reasoning"].strip(), self.texts["answer"].strip()
        shown, seconds = [], self._thought_seconds or time.monotonic() - self._started
        if reasoning and (done or answer):
            shown.append(pane(f"Thought for {seconds:.1f} s", reasoning, tokens=self.num_reasoning_tokens))
        elif reasoning:
            shown.append(pane("Thinking", reasoning, seconds=seconds, tokens=self.num_reasoning_tokens))
        elif not answer and not done:
            shown.append(pane("Waiting for the model", seconds=seconds))
        if answer:
            shown.append(text_message("assistant", answer))
        if done and self.note:
            shown.append(pane(self.note))
        return shown


def text_message(role: str, text: str) -> dict:
    """A chat message. Typed content: Gradio strips and re-indents plain strings at every update."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def pane(title: str, text: str = "", *, seconds: float | None = None, tokens: int = 0) -> dict:
    """A message that Gradio shows as a thought and `to_prompt` leaves out: open, with a clock, given `seconds`."""
    if "`" not in text:  # Markdown would take the signs of 7*6 and 4*6 for emphasis, though not in code
        text = re.sub(r"(?<=\d)\*(?=\d)", r"\\*", text)
    metadata: dict[str, Any] = {"title": title, "status": "done"}
    if seconds is not None:
        metadata |= {"status": "pending", "duration": round(seconds, 1)}
    if tokens:
        metadata["log"] = f"{tokens} tokens"
    return {**text_message("assistant", text), "metadata": metadata}


def text_of(message: dict) -> str:
    """Text of a chat message as Gradio hands it over; other parts have no place in this page."""
    parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def to_prompt(history: list[dict]) -> list[dict]:
    """
    Messages for the model. The history comes from the browser: system turns and panes in it are left out. A question
    that was stopped before its answer is joined with the next one, since templates want the roles to alternate.
    """
    prompt: list[dict] = []
    for message in history:
        if message["role"] not in ("user", "assistant") or (message.get("metadata") or {}).get("title"):
            continue
        if prompt and prompt[-1]["role"] == message["role"]:
            prompt[-1]["content"] += "\n\n" + text_of(message)
        else:
            prompt.append({"role": message["role"], "content": text_of(message)})
    return prompt


def check_input(question: str, history: list[dict]) -> str:
    """The question to ask, or a [`~gradio.Error`] that says why it cannot be asked."""
    if not isinstance(question, str) or not question.strip():
        problem = "Write a question first."
    elif len(question) > MAX_QUESTION_CHARACTERS:
        problem = f"The question has {len(question):,} of at most {MAX_QUESTION_CHARACTERS:,} characters. Shorten it."
    elif sum(len(text_of(turn)) for turn in history) > MAX_HISTORY_CHARACTERS:
        problem = "The conversation is too long. Clear it and start a new one."
    else:
        return question
    raise gr.Error(problem, print_exception=False)


READY = gr.update(submit_btn=True, stop_btn=False)


class Chat:
    """The procedures behind the page, over any source of events."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.running: dict[Turn, str | None] = {}  # with the session of its visitor

    async def ask(
        self,
        question: str,
        history: list[dict],
        thinking: bool,
        max_tokens: float,
        temperature: float,
        request: gr.Request,
    ) -> Updates:
        """A question comes in, the growing conversation goes out."""
        history = [*history, text_message("user", check_input(question, history))]
        params = SamplingParams(
            max_tokens=min(max(int(max_tokens), 1), MAX_TOKENS), temperature=min(max(float(temperature), 0.0), 2.0)
        )
        switches = dict.fromkeys(THINKING_SWITCHES, bool(thinking))
        turn = Turn(self.stream(to_prompt(history), params, **switches))
        self.running[turn] = request.session_hash
        try:
            yield [*history, *turn.messages(done=False)], gr.update(value="", submit_btn=False, stop_btn=True)
            async with aclosing(turn.updates()) as updates:
                async for messages in updates:
                    yield [*history, *messages], gr.skip()
        except Exception as error:  # whatever the model raised, the visitor is told and the page stays usable
            logger.exception("The model failed.")
            turn.note = f"The model failed: {error}"
        finally:
            turn.stop()  # the visitor may have left
            del self.running[turn]
        yield [] if turn.cleared else [*history, *turn.messages(done=True)], READY

    async def retry(
        self,
        data: gr.RetryData,
        history: list[dict],
        thinking: bool,
        max_tokens: float,
        temperature: float,
        request: gr.Request,
    ) -> Updates:
        """Ask for another answer to a question; what came after it is dropped."""
        index: int = data.index  # type: ignore[assignment]  # of the user message
        question, history = text_of(history[index]), history[:index]
        async with aclosing(self.ask(question, history, thinking, max_tokens, temperature, request)) as updates:
            async for update in updates:
                yield update

    async def example(
        self, data: gr.SelectData, thinking: bool, max_tokens: float, temperature: float, request: gr.Request
    ) -> Updates:
        """Ask one of the examples."""
        async with aclosing(self.ask(data.value["text"], [], thinking, max_tokens, temperature, request)) as updates:
            async for update in updates:
                yield update

    async def stop(self, request: gr.Request) -> None:
        """End what is running for this visitor; its turn shows the end."""
        for turn, session in self.running.items():
            if session == request.session_hash:
                turn.stop()

    async def clear(self, request: gr.Request) -> None:
        """The same, and nothing of it stays on the page."""
        for turn, session in self.running.items():
            if session == request.session_hash:
                turn.cleared = True
                turn.stop()


def build_page(stream: Stream, name: str, examples: list[str]) -> gr.Blocks:
    """
    The page over any source of events, such as `TransformersBackend.stream`.

    Only `/chat` is an endpoint: `(question, history, thinking, max_tokens, temperature)` in, the conversation out.
    """
    chat = Chat(stream)
    with gr.Blocks(title="think-tools", analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"### {name}\nThe model thinks before it answers; what it thinks appears in its own pane.")
        chatbot = gr.Chatbot(
            show_label=False,
            elem_id="chat",
            scale=1,
            min_height=260,
            allow_tags=False,
            latex_delimiters=LATEX,
            buttons=["copy"],
            placeholder="Ask something, or try one of these.",
            examples=[{"text": text} for text in examples],
        )
        question = gr.Textbox(
            show_label=False,
            placeholder="Ask a question",
            submit_btn=True,
            autofocus=True,
            max_lines=8,
            max_length=MAX_QUESTION_CHARACTERS,
        )
        thinking = gr.Checkbox(True, label="Think before answering")
        with gr.Accordion("Settings", open=False):
            max_tokens = gr.Slider(16, MAX_TOKENS, 1024, step=16, label="Most tokens of reasoning and answer together")
            temperature = gr.Slider(0, 2, 0.6, step=0.1, label="Temperature (0 always takes the likeliest token)")
        settings, outputs = [thinking, max_tokens, temperature], [chatbot, question]
        question.submit(chat.ask, [question, chatbot, *settings], outputs, api_name="chat", **QUEUED)
        chatbot.retry(chat.retry, [chatbot, *settings], outputs, api_visibility="private", **QUEUED)
        chatbot.example_select(chat.example, settings, outputs, api_visibility="private", **QUEUED)
        question.submit(None, js=SCROLL_DOWN)
        question.stop(chat.stop, queue=False, api_visibility="private")
        chatbot.clear(chat.clear, queue=False, api_visibility="private")
    return page.queue(max_size=64)


class ContentSecurityPolicy:
    """Middleware that tells the browser to load nothing from, and send nothing to, anywhere else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                message["headers"] = [*message["headers"], policy, (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def launch(page: gr.Blocks, **kwargs: Any) -> str:
    """Serve the page and return its address; further arguments go to Gradio's `launch`."""
    middleware = [Middleware(ContentSecurityPolicy)]
    _, address, _ = page.launch(
        css=CSS,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api", "settings"],
        app_kwargs={"middleware": middleware},
        **kwargs,
    )
    return address


def load_backend(model_id: str | None = None, adapter_id: str | None = None) -> TransformersBackend:
    """The model to serve: the embedded one, a model of the Hub, or an adapter on the base model that it names."""
    if not (model_id or adapter_id):
        return TransformersBackend(*load_tiny("thinker"))
    tokenizer = AutoTokenizer.from_pretrained(adapter_id or model_id)
    base_id = model_id or PeftConfig.from_pretrained(adapter_id).base_model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(base_id, dtype="auto")
    if adapter_id:
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
        model = PeftModel.from_pretrained(model, adapter_id)
    return TransformersBackend(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)


def main() -> None:
    """Serve what `MODEL_ID` and `ADAPTER_ID` name; without them the embedded model."""
    model_id, adapter_id = os.environ.get("MODEL_ID"), os.environ.get("ADAPTER_ID")
    arithmetic = "The embedded model of think-tools (arithmetic only)"
    name = adapter_id or model_id or arithmetic
    examples = ["What is 23 times 47?", "38乘以64等于多少？"]
    launch(build_page(load_backend(model_id, adapter_id).stream, name, examples))


if __name__ == "__main__":
    main()
