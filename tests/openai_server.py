"""A loopback stand-in for an OpenAI-compatible server that answers, and misbehaves, by a script.

In a process of its own it prints its address and answers every question until it is ended:

```
python tests/openai_server.py --delay 30 --flaky
```
"""

import argparse
import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server does with one request. `body` is JSON, or bytes that are sent as they are."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the first byte
    reset: bool = False  # breaks the connection off: before the first byte, or after the body or chunks there are
    chunks: tuple[Any, ...] | None = None  # the events of a stream, JSON or bytes


# From a request's body and its number, counted from 0, to what happens.
Script = Callable[[Body, int], Reply]

RESET = Reply(reset=True)
MALFORMED = Reply(b'{"choices": [{"mess')
NO_CHOICES = Reply({"id": "1", "choices": []})


def says(
    content: str | None,
    *,
    finish_reason: str | None = "stop",
    usage: Body | None = None,
    delay: float = 0.0,
    **message: Any,
) -> Reply:
    """An answer; `message` holds further keys of it, such as `reasoning_content`."""
    message = {"role": "assistant", "content": content, **message}
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30} if usage is None else usage
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return Reply({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}, delay=delay)


def streams(
    *deltas: Body, finish_reason: str | None = "stop", usage: Body | None = None, reset: bool = False
) -> Reply:
    """A streamed answer: one event per delta, then the finish reason, then the usage."""

    def event(delta: Body, reason: str | None = None) -> Body:
        return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    events = [event({"role": "assistant", "content": ""}), *map(event, deltas)]
    if finish_reason and not reset:
        events.append(event({}, finish_reason))
    if usage:
        events.append({"id": "1", "choices": [], "usage": usage})
    return Reply(chunks=tuple(events), reset=reset)


def refuses(status: int, message: str = "no", *, retry_after: str | None = None) -> Reply:
    """An HTTP error, with a `Retry-After` if one is given."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Reply({"error": {"message": message}}, status=status, headers=headers)


def question(body: Body) -> str:
    """The last message of a request."""
    return body["messages"][-1]["content"]


def echo(body: Body, number: int = 0) -> Reply:
    """Reasoning and answer that repeat the question, so that a row in the wrong place is noticed."""
    return says(f"answer to {question(body)}", reasoning_content=f"thinking about {question(body)}")


def in_turn(*replies: Reply) -> Script:
    """One reply per request, the last one for ever after."""
    return lambda body, number: replies[min(number, len(replies) - 1)]


def flaky(seed: int, *, limited: float = 0.1, resets: float = 0.02, malformed: float = 0.01) -> Script:
    """`echo` with the given shares of 429s, broken connections and malformed bodies."""
    draw = random.Random(seed)

    def script(body: Body, number: int) -> Reply:
        luck = draw.random()
        for share, reply in (
            (limited, refuses(429, retry_after="0")),
            (resets, RESET),
            (malformed, MALFORMED),
        ):
            if luck < share:
                return reply
            luck -= share
        return echo(body)

    return script


class Server:
    """The server: `url`, and of every request its `bodies` and its `headers` (names in lower case), in order."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""  # set when it runs
        self.num_open = self.most_open = 0  # requests being answered

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.url = "http://{}:{}/v1".format(*server.sockets[0].getsockname())
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().splitlines()[1:-1]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.bodies.append(body)
                self.headers.append(headers)
                self.num_open += 1
                self.most_open = max(self.most_open, self.num_open)
                try:
                    await self._reply(self.script(body, len(self.bodies) - 1), writer)
                finally:
                    self.num_open -= 1
        except (
            asyncio.IncompleteReadError,
            asyncio.CancelledError,
            ConnectionError,
        ):  # the client has gone, or the test
            pass
        finally:
            writer.close()

    async def _reply(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        if reply.delay:
            await asyncio.sleep(reply.delay)
        payload = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        streaming = reply.chunks is not None
        headers = {
            "Content-Type": "text/event-stream" if streaming else "application/json",
            **({"Transfer-Encoding": "chunked"} if streaming else {"Content-Length": str(len(payload))}),
            **reply.headers,
        }
        if streaming or not reply.reset or reply.body:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {reply.status} X\r\n{head}\r\n".encode() + (b"" if streaming else payload))
        for chunk in reply.chunks or ():
            event = chunk if isinstance(chunk, bytes) else b"data: " + json.dumps(chunk).encode() + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.001)
        if reply.reset:
            writer.transport.abort()
            raise ConnectionResetError
        if streaming:
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()


@contextmanager
def running_server(script: Script = echo) -> Iterator[Server]:
    """A server on a thread of this process."""
    server, ready, done = Server(script), threading.Event(), []

    async def run() -> None:
        stop = asyncio.Event()
        done.append((asyncio.get_running_loop(), stop))
        async with await server.start():
            ready.set()
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        [(loop, stop)] = done
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _serve_for_ever(script: Script) -> None:
    server = Server(script)
    async with await server.start() as listening:
        print(server.url, flush=True)
        await listening.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--flaky", action="store_true")
    arguments = parser.parse_args()
    plain = flaky(0) if arguments.flaky else echo

    asyncio.run(_serve_for_ever(lambda body, number: replace(plain(body, number), delay=arguments.delay)))
