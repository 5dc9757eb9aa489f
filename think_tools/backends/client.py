"""Sample from a model behind an OpenAI-compatible server: the package's one loop that retries and keeps limits."""

import asyncio
import functools
import itertools
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import KW_ONLY, dataclass, field, replace
from email.utils import mktime_tz, parsedate_tz
from typing import Any, TypeVar

import httpx2
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError

from ..formats import THINK, ThinkFormat
from ..parsing import Part, ThinkStream
from .reply import prefix_of, read_reply, reasoning_of
from .sampling import Candidate, Delta, Messages, SamplingParams

logger = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K")

_PASSING = {408, 409, 425, 429}  # statuses worth another attempt, beside every 5xx
_LONGEST_BACKOFF = 60.0  # seconds
_tls = functools.cache(httpx2.create_ssl_context)  # takes longer than a request
# What a transport raises, what reading a body of the wrong shape raises, and RuntimeError, our verdict "hopeless".
_FAILURES = (httpx2.HTTPError, OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError)


@dataclass
class ClientBackend:
    """
    Samples from a model behind any OpenAI-compatible server, or behind the providers of the Hub.

    Every request is repeated after broken connections, time-outs, malformed or empty bodies and the statuses 408, 409,
    425, 429 and 5xx, with growing random pauses; a `Retry-After` also keeps new requests back. Any other 4xx, a
    filtered answer and a tool call are reported at once. `huggingface_hub`'s client, which sends the requests, has no
    such loop, allows 100 connections and gives the saved Hub token to any server; this one sends `api_key` or none.

    Reasoning is read alike from `reasoning_content`, `reasoning` and inline markers. Where a server sends no usage,
    tokens are estimated as a quarter of the UTF-8 bytes; where it does not say which tokens were reasoning, they are
    shared out by characters.

    Args:
        model (`str`):
            Name of the model, as the server knows it. For the Hub's providers a Hub name, with `:provider` after it
            to choose one.
        base_url (`str`, *optional*):
            Address of the server, such as `"http://localhost:8000/v1"`. `None` asks the Hub's providers.
        api_key (`str`, *optional*):
            The server's key. `None`: no key for a server, the saved Hub token for the Hub's providers.
        concurrency (`int`, *optional*, defaults to `64`):
            Most requests in flight per call.
        requests_per_minute (`float`, *optional*):
            Most requests that are sent in a minute, retries included. They are spread evenly. `None` is no limit.
        tokens_per_minute (`float`, *optional*):
            Most tokens of prompts and answers in a minute; an answer counts as `max_tokens` until it has come. `None`
            is no limit.
        timeout (`float`, *optional*, defaults to `1800.0`):
            Seconds to wait for an answer. A `Retry-After` beyond it is reported instead of waited for.
        max_attempts (`int`, *optional*, defaults to `8`):
            Times to send a request before it is reported as failed.
        backoff (`float`, *optional*, defaults to `1.0`):
            Longest pause in seconds before the first retry; it doubles up to a minute.
        extra_body (`dict`, *optional*):
            Further fields of every request, such as `{"reasoning_effort": "high"}`. `None` as a value takes a field
            out, for servers that refuse one, such as `temperature`.
        opened (`bool`, *optional*):
            Whether the server's template ends the prompt inside the reasoning and the server does not split it off.
            `None` finds out from the whole answer; a stream needs `True` to show the reasoning as such.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            Inline markers of the reasoning.

    Raises:
        `ValueError`: If `base_url` is no address or a number is out of its range.

    Example:

    ```python
    from think_tools.backends import ClientBackend, SamplingParams

    backend = ClientBackend("Qwen/Qwen3-32B", base_url="http://localhost:8000/v1")
    [[candidate]] = backend.sample([[{"role": "user", "content": "12*13=?"}]], SamplingParams(temperature=0.6))
    print(candidate.trace.reasoning, candidate.trace.answer)
    ```
    """

    model: str
    _: KW_ONLY
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 1800.0
    max_attempts: int = 8
    backoff: float = 1.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    opened: bool | None = None
    fmt: ThinkFormat = THINK

    # What can be asked for: whether the server at hand gives it is seen from its answer.
    supports_extend = True
    supports_logprobs = True
    supports_thinking_budget = True

    def __post_init__(self) -> None:
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"`base_url` must begin with http:// or https://, got {self.base_url!r}.")
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "max_attempts"):
            if (number := vars(self)[name]) is not None and not number > 0:
                raise ValueError(f"`{name}` must be positive, got {number}.")
        self._free_at = {"requests": 0.0, "tokens": 0.0}  # when the limit of each allows more
        self._kept: set[tuple[bool, bool]] = set()  # turns that the server is known to go on with, see `_check_kept`

    def sample(
        self, prompts: Sequence[Messages], params: SamplingParams, **chat_template_kwargs: Any
    ) -> list[list[Candidate]]:
        """
        Answer every prompt `params.n` times, each by a request of its own: some servers refuse more.

        Works where a loop is running already too, as in a notebook.

        Args:
            prompts (`list[list[dict]]`):
                One list of messages per prompt. One that ends in an assistant turn is gone on with, as by `extend`.
            params ([`SamplingParams`]):
                How to sample. Sample `j` of prompt `i` gets `seed + i * n + j`. `top_k=0` is not sent: the server's
                own default holds. With `stop`, the server must say which text has ended an answer; a think budget is
                vLLM's, with a reasoning parser.
            chat_template_kwargs (*optional*):
                Variables of the server's chat template, such as `enable_thinking=False`.

        Returns:
            `list[list[Candidate]]`: `params.n` candidates for each prompt, in the order of `prompts`.

        Raises:
            `ValueError`: For `num_wait`, which no server knows, or if the server cannot go on with a turn.
            `ConnectionError`: If a request failed for good. `as_completed` hands out the others all the same.
        """
        keys = list(itertools.product(range(len(prompts)), range(params.n)))
        requests = [((i, j), prompts[i], nth_sample(params, i * params.n + j)) for i, j in keys]

        async def collect() -> dict[tuple[int, int], Candidate | ConnectionError]:
            await self._check_kept(prompts, chat_template_kwargs)
            return {key: result async for key, result in self.as_completed(requests, **chat_template_kwargs)}

        found = run_sync(collect())
        candidates = [result for key in keys if isinstance(result := found[key], Candidate)]
        if failed := [result for result in found.values() if isinstance(result, ConnectionError)]:
            raise ConnectionError(f"{len(failed)} of {len(keys)} requests failed, the first with: {failed[0]}")
        return [candidates[i : i + params.n] for i in range(0, len(candidates), params.n)]

    def extend(
        self,
        prompts: Sequence[Messages],
        prefixes: Sequence[Sequence[int] | str],
        params: SamplingParams,
        **chat_template_kwargs: Any,
    ) -> list[list[Candidate]]:
        """
        Go on with every assistant turn from its text, `params.n` times, on vLLM and SGLang.

        The server's template renders the text as the beginning of the turn (`continue_final_message`). Some drop
        reasoning that is closed, or put an empty block before one that is open (Qwen3's); such a template, and a
        server that begins a new turn instead, is found out by three short requests before the first call.

        Args:
            prompts (`list[list[dict]]`):
                The messages before each turn.
            prefixes (`list[str]`):
                The text of each turn so far, markers included; `""` to begin.
            params ([`SamplingParams`]):
                How to sample.
            chat_template_kwargs (*optional*):
                Variables of the server's chat template, such as `enable_thinking=False`.

        Returns:
            `list[list[Candidate]]`: `params.n` continuations of each turn, as [`TransformersBackend.extend`] gives
            them, without token ids.

        Raises:
            `ValueError`: If a prefix is token ids, if there are not as many as prompts, or if the server changes what
                it is to go on with.
            `ConnectionError`: If a request failed for good.
        """
        if len(prompts) != len(prefixes):
            raise ValueError(f"`prefixes` must be as many as `prompts`, got {len(prefixes)} and {len(prompts)}.")
        turns: list[Messages] = []
        for messages, prefix in zip(prompts, prefixes, strict=True):
            if not isinstance(prefix, str) and prefix:
                raise ValueError("`prefixes` must be texts for a server, got token ids: pass `candidate.text`.")
            if prefix and self.opened and self.fmt.open not in prefix:
                prefix = f"{self.fmt.open}\n{prefix}"  # without its generation prompt, nobody else writes it
            turns.append([*messages, {"role": "assistant", "content": prefix}] if prefix else messages)
        return self.sample(turns, params, **chat_template_kwargs)

    async def _check_kept(self, prompts: Sequence[Messages], chat_template_kwargs: Mapping[str, Any]) -> None:
        """Refuse a server that makes of a turn's beginning another number of tokens than of the same in a question."""
        turns = {(self.fmt.open in begun, self.fmt.close in begun) for begun in map(prefix_of, prompts) if begun}
        for opened, closed in turns - self._kept:
            start, end = f"{self.fmt.open}\n" * opened, f"\n{self.fmt.close}\n\nHello" * closed
            text = f"{start}Hello{' Hello' * 8}{end}"
            sizes = []
            async with self._session() as client:
                for question, begun in (("Hi\n", ""), (f"Hi\n{text}", ""), ("Hi\n", text)):
                    turn = [{"role": "user", "content": question}, {"role": "assistant", "content": begun}]
                    messages = turn if begun else turn[:1]
                    arguments = self._arguments(messages, SamplingParams(max_tokens=1), chat_template_kwargs)
                    self._take("requests", 1)
                    output = await self._retry(lambda m=messages, a=arguments: client.chat_completion(m, **a))
                    sizes.append((output.usage or {}).get("prompt_tokens") or 0)
            size, added = (some - sizes[0] for some in sizes[1:])
            # Some fewer where the template writes the opening marker itself, or trims the question.
            if not size - 4 <= added <= size or not size:
                raise ValueError(
                    f"The server at `base_url` {self.base_url} does not go on with {text!r}: of its {size} tokens it "
                    f"makes {added}. Give vLLM or SGLang a chat template that leaves an assistant's text as it is, "
                    "such as `load_template('chatml_think')`, or use `TransformersBackend`."
                )
            self._kept.add((opened, closed))

    async def as_completed(
        self, requests: Iterable[tuple[K, Messages, SamplingParams]], **chat_template_kwargs: Any
    ) -> AsyncGenerator[tuple[K, Candidate | ConnectionError], None]:
        """
        Send requests as places are free, and hand out each result when it comes.

        Closing the generator breaks off what is in flight.

        Args:
            requests (`Iterable`):
                `(key, messages, params)` of each, `params.n` being 1. It is read one by one, only when a place is
                free and all results so far were taken: a generator can stop at a budget, and may be endless.
            chat_template_kwargs (*optional*):
                Variables of the server's chat template, such as `enable_thinking=False`.

        Yields:
            `tuple`: The key of a request and its [`Candidate`], or the error with which it failed for good, in the
            order in which they finish.

        Example:

        ```python
        requests = ((i, messages, params) for i, messages in enumerate(prompts))
        async for i, result in backend.as_completed(requests):
            print(i, result)
        ```
        """
        source, running, more = iter(requests), set(), True
        async with AsyncExitStack() as sessions:
            # One connection each: a pool of many looks at all of them for every request.
            idle: list[AsyncInferenceClient] = []

            async def ask(key: K, messages: Messages, params: SamplingParams) -> tuple[K, Candidate | ConnectionError]:
                client = idle.pop() if idle else await sessions.enter_async_context(self._session())
                used = 0
                try:
                    result = await self._retry(lambda: self._answer(client, messages, params, chat_template_kwargs))
                    used = result.num_prompt_tokens + result.num_tokens
                except ConnectionError as error:
                    result = error
                self._take("tokens", used - params.max_tokens)
                idle.append(client)
                return key, result

            try:
                while running or more:
                    wait = None
                    while more and len(running) < self.concurrency and not (wait := self._wait()):
                        request = next(source, None)
                        if more := request is not None:
                            _refuse_waits(request[2])
                            self._take("requests", 1)
                            self._take("tokens", request[2].max_tokens)  # until it is known how many there are
                            running.add(asyncio.create_task(ask(*request)))
                    if running:
                        done, running = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            yield task.result()
                    else:
                        await asyncio.sleep(wait or 0)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def stream(
        self, messages: Messages, params: SamplingParams, **chat_template_kwargs: Any
    ) -> AsyncGenerator[Delta | Candidate, None]:
        """
        Answer one prompt live, as [`TransformersBackend.stream`] does; the `num_tokens` of a delta counts the pieces
        that the server has sent. A request that fails before its first piece is repeated, a broken stream is not.

        Closing the generator closes the connection, at which servers end the generation.

        Args:
            messages (`list[dict]`):
                The prompt.
            params ([`SamplingParams`]):
                How to sample; `n` must be 1.
            chat_template_kwargs (*optional*):
                Variables of the server's chat template, such as `enable_thinking=False`.

        Yields:
            [`Delta`] for each piece of text, then one [`Candidate`].

        Raises:
            `ValueError`: If `params.n` is not 1.
            `ConnectionError`: If the server does not answer, or breaks off.
        """
        if params.n != 1:
            raise ValueError(f"`params.n` must be 1 to stream, got {params.n}.")
        _refuse_waits(params)
        while wait := self._wait():
            await asyncio.sleep(wait)
        self._take("requests", 1)
        arguments = self._arguments(messages, params, chat_template_kwargs)
        arguments["stream_options"] = {"include_usage": True}
        split, thoughts, texts = ThinkStream(opened=bool(self.opened), fmt=self.fmt), list[str](), list[str]()
        usage, last, logprobs, num_pieces = None, {}, [], 0
        async with self._session() as client:
            chunks = await self._retry(lambda: client.chat_completion(messages, stream=True, **arguments))
            try:
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    for choice in chunk.choices:
                        last = choice if choice.finish_reason else last
                        logprobs += (choice.logprobs or {}).get("content") or []
                        thought, text = reasoning_of(choice.delta) or "", choice.delta.content or ""
                        thoughts.append(thought)
                        texts.append(text)
                        num_pieces += bool(thought or text)
                        pieces: list[tuple[Part, str]] = [("reasoning", thought)] if thought else []
                        pieces.extend([("answer", text)] if any(thoughts) and text else split.feed(text))
                        for part, piece in pieces:
                            yield Delta(part, piece, num_pieces)
                message = {"reasoning_content": "".join(thoughts), "content": "".join(texts)}
                choice = {**last, "logprobs": {"content": logprobs}}
                candidate = read_reply(message, choice, usage, messages, params, opened=self.opened, fmt=self.fmt)
            except _FAILURES as failure:
                raise ConnectionError(f"The stream broke off: {_diagnose(failure)[0]}") from failure
        self._take("tokens", candidate.num_prompt_tokens + candidate.num_tokens)
        yield candidate

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[AsyncInferenceClient, None]:
        # Without a key the client would send the saved Hub token, wherever `base_url` leads.
        key = self.api_key or ("none" if self.base_url else None)
        hooks = {"response": [_read_error_body]}
        async with (
            httpx2.AsyncClient(verify=_tls(), follow_redirects=True, event_hooks=hooks) as connections,
            AsyncInferenceClient(base_url=self.base_url, api_key=key, timeout=self.timeout) as client,
        ):
            # With HF_HUB_OFFLINE=1 its own connections lead nowhere, not even to this machine:
            # https://github.com/huggingface/huggingface_hub/blob/v2.4.0/src/huggingface_hub/utils/_http.py
            client._async_client = connections
            yield client

    def _arguments(
        self, messages: Messages, params: SamplingParams, chat_template_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        extra_body: dict[str, Any] = {
            "chat_template_kwargs": chat_template_kwargs or None,
            "top_k": params.top_k or None,
            "thinking_token_budget": params.thinking_token_budget,
        }
        if prefix_of(messages):
            extra_body |= {"add_generation_prompt": False, "continue_final_message": True}
        names = ("temperature", "top_p", "max_tokens", "seed")
        sampling = {name: vars(params)[name] for name in names}
        sampling |= {"stop": list(params.stop) or None, "logprobs": params.logprobs or None}
        return {"model": self.model, "extra_body": {**extra_body, **self.extra_body}, **sampling}

    async def _answer(
        self, client: AsyncInferenceClient, messages: Messages, params: SamplingParams, kwargs: Mapping[str, Any]
    ) -> Candidate:
        output = await client.chat_completion(messages, **self._arguments(messages, params, kwargs))
        choice = output.choices[0]  # as a mapping it lacks the fields of its message that the client does not know
        return read_reply(choice.message, choice, output.usage, messages, params, opened=self.opened, fmt=self.fmt)

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives in the end; a `ConnectionError` if it fails for good."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await call()
            except _FAILURES as failure:
                error, passing, retry_after = _diagnose(failure)
            if not passing or attempt == self.max_attempts or retry_after > self.timeout:
                raise ConnectionError(f"{error} (attempt {attempt} of {self.max_attempts})")
            logger.info("Attempt %d of %d: %s", attempt, self.max_attempts, error)
            self._take("requests", 1, after=retry_after)
            longest = min(_LONGEST_BACKOFF, self.backoff * 2 ** (attempt - 1))
            await asyncio.sleep(retry_after + random.uniform(longest / 2, longest))

    def _wait(self) -> float:
        """Seconds until the limits allow a request."""
        return max(0.0, max(self._free_at.values()) - time.monotonic())

    def _take(self, what: str, amount: float, *, after: float = 0.0) -> None:
        """Count requests or tokens against their limit, and let no request start for some seconds."""
        per_minute = vars(self)[f"{what}_per_minute"] or math.inf
        self._free_at[what] = max(self._free_at[what], time.monotonic() + after) + 60 * amount / per_minute


def nth_sample(params: SamplingParams, number: int) -> SamplingParams:
    """`params` of one request for sample `number` of a prompt, with a seed of its own."""
    return replace(params, n=1, seed=None if params.seed is None else params.seed + number)


def run_sync(main: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine; on a thread of its own where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    loop = asyncio.new_event_loop()
    task = loop.create_task(main)
    with closing(loop), ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(loop.run_until_complete, task).result()
        finally:  # an interrupt ends the requests too
            loop.call_soon_threadsafe(task.cancel)


async def _read_error_body(response: httpx2.Response) -> None:
    if response.is_error:  # says what is wrong; of a stream nobody else would read it
        await response.aread()


def _diagnose(failure: Exception) -> tuple[str, bool, float]:
    """What went wrong, whether it may pass, and the seconds that the server asks for."""
    if not isinstance(failure, HfHubHTTPError):
        return f"{type(failure).__name__}: {failure}", not isinstance(failure, RuntimeError), 0.0
    status, headers = failure.response.status_code, failure.response.headers
    error = f"HTTP {status}: {' '.join(failure.response.text.split())[:300]}"
    return error, status >= 500 or status in _PASSING, _seconds(headers.get("retry-after", ""))


def _seconds(retry_after: str) -> float:
    """Seconds in a `Retry-After`, which is a number or a date."""
    if date := parsedate_tz(retry_after):
        return max(0.0, mktime_tz(date) - time.time())
    return float(retry_after) if retry_after.replace(".", "", 1).isdigit() else 0.0


def _refuse_waits(params: SamplingParams) -> None:
    if params.num_wait:
        raise ValueError(f"`num_wait` must be 0 for a server, which knows no waits, got {params.num_wait}.")
