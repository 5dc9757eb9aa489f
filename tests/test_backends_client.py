import asyncio
import re
import signal
import threading
import time
from contextlib import aclosing

import pytest
from openai_server import (
    MALFORMED,
    NO_CHOICES,
    RESET,
    Reply,
    echo,
    in_turn,
    question,
    refuses,
    running_server,
    says,
    streams,
)

from think_tools import FORMATS, Trace
from think_tools.backends import Candidate, ClientBackend, SamplingParams

QUESTION = [{"role": "user", "content": "2+2?"}]
PARAMS = SamplingParams(max_tokens=100)


def backend(server, **options):
    return ClientBackend("m", base_url=server.url, **{"backoff": 0.01, **options})


def ask(script, params=PARAMS, **options):
    """The one candidate, and the server that gave it."""
    with running_server(script) as server:
        [[candidate]] = backend(server, **options).sample([QUESTION], params)
    return candidate, server


def stream(script, **options):
    """Deltas and candidate of one streamed answer."""

    async def collect():
        async with aclosing(backend(server, **options).stream(QUESTION, PARAMS)) as events:
            return [event async for event in events]

    with running_server(script) as server:
        *deltas, candidate = asyncio.run(collect())
    return deltas, candidate, server


THOUGHT = Trace("2 and 2", "4", "complete", True)
READINGS = {
    "reasoning_content": (says("4", reasoning_content="2 and 2"), THOUGHT),
    "reasoning": (says("4", reasoning="2 and 2"), THOUGHT),
    "reasoning of both names": (says("4", reasoning_content="2 and 2", reasoning="2 and 2"), THOUGHT),
    "inline markers": (says("<think>2 and 2</think>4"), THOUGHT),
    "inline, opened by the prompt": (says("2 and 2</think>4"), THOUGHT),
    "inline beside an empty key": (says("<think>2 and 2</think>4", reasoning_content=""), THOUGHT),
    "no reasoning": (says("4", reasoning_content=None), Trace(None, "4", "no_think", True)),
    "cut in the answer": (
        says("4", reasoning="2 and 2", finish_reason="length"),
        Trace("2 and 2", "4", "complete", False),
    ),
    "cut in the reasoning": (
        says(None, reasoning="2 and", finish_reason="length"),
        Trace("2 and", "", "truncated", False),
    ),
    "cut in inline reasoning": (says("<think>2", finish_reason="length"), Trace("2", "", "truncated", False)),
    "ends in the reasoning": (says("", reasoning="2 and 2"), Trace("2 and 2", "", "unclosed", True)),
    "the stop of text-generation-inference": (
        says("4", finish_reason="eos_token"),
        Trace(None, "4", "no_think", True),
    ),
}


@pytest.mark.parametrize(("reply", "trace"), READINGS.values(), ids=READINGS)
def test_reasoning_is_read_wherever_the_server_puts_it(reply, trace):
    candidate, _ = ask(in_turn(reply))
    assert candidate.trace == trace
    assert candidate.finish_reason == ("stop" if trace.finished else "length")


def test_markers_of_another_family_are_read():
    candidate, _ = ask(in_turn(says("[THINK]a[/THINK]b")), fmt=FORMATS["magistral"])
    assert candidate.trace == Trace("a", "b", "complete", True)


def test_tokens_are_the_servers_or_else_estimated():
    usage = {"prompt_tokens": 7, "completion_tokens": 100, "completion_tokens_details": {"reasoning_tokens": 90}}
    told, _ = ask(in_turn(says("4", reasoning="abcd", usage=usage)))
    shared, _ = ask(in_turn(says("4" * 4, reasoning="ab" * 6, usage={"prompt_tokens": 7, "completion_tokens": 100})))
    guessed, _ = ask(in_turn(says("4" * 39, usage={})))
    assert (told.num_prompt_tokens, told.num_tokens, told.num_reasoning_tokens) == (7, 100, 90)
    assert (shared.num_tokens, shared.num_reasoning_tokens) == (100, 75)
    assert (guessed.num_prompt_tokens, guessed.num_tokens, guessed.num_reasoning_tokens) == (2, 10, 0)


PASSING = {
    **{f"status {status}": refuses(status) for status in (408, 409, 425, 429, 500, 502, 503)},
    "a broken connection": RESET,
    "half a body": Reply(b'{"choices"', headers={"Content-Length": "90"}, reset=True),
    "no JSON": MALFORMED,
    "no UTF-8": Reply(b"\xff\xfe{}"),
    "a list": Reply([]),
    "a number": Reply(1),
    "no choices": NO_CHOICES,
    "choices that are null": Reply({"choices": None}),
    "a choice that is a text": Reply({"choices": ["4"]}),
    "a choice without message": Reply({"choices": [{"finish_reason": "stop"}]}),
    "usage that is a text": says("4", usage="much"),
    "content that is a number": says(4),
    "no finish reason": says("4", finish_reason=None),
    "an abort": says("4", finish_reason="abort"),
    "an empty answer": says(""),
    "white space": says(" \n", reasoning=" "),
    "an empty block": says("<think></think>"),
}


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(reply):
    candidate, server = ask(in_turn(reply, says("4")))
    assert candidate.trace.answer == "4"
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


HOPELESS = {
    **{
        f"status {status}": (refuses(status, "too long"), f"HTTP {status}: .*too long")
        for status in (400, 401, 404, 422)
    },
    "filtered": (says("4", finish_reason="content_filter"), "finish_reason 'content_filter'"),
    "a tool call": (says(None, finish_reason="tool_calls"), "finish_reason 'tool_calls'"),
    "all tokens spent in hidden reasoning": (
        says("", finish_reason="length"),
        "the answer is empty, finish_reason 'len",
    ),
    "a longer pause than the time-out": (refuses(429, retry_after="86400"), "HTTP 429"),
    "a date beyond the time-out": (refuses(503, retry_after="Fri, 31 Dec 2100 23:59:59 GMT"), "HTTP 503"),
}


@pytest.mark.parametrize(("reply", "reason"), HOPELESS.values(), ids=HOPELESS)
def test_what_will_not_pass_is_reported_at_once(reply, reason):
    with (
        running_server(in_turn(reply)) as server,
        pytest.raises(ConnectionError, match=rf"1 of 1 requests failed, the first with: .*{reason}.*attempt 1 of 8"),
    ):
        backend(server).sample([QUESTION], PARAMS)
    assert len(server.bodies) == 1


def test_attempts_end():
    with (
        running_server(in_turn(RESET)) as server,
        pytest.raises(ConnectionError, match=r"ReadError.*\(attempt 3 of 3\)|RemoteProtocolError.*\(attempt 3 of 3\)"),
    ):
        backend(server, max_attempts=3).sample([QUESTION], PARAMS)
    assert len(server.bodies) == 3


def test_a_server_that_is_not_there_is_named():
    with running_server() as server:
        url = server.url
    client = ClientBackend("m", base_url=url, max_attempts=2, backoff=0.01)
    with pytest.raises(ConnectionError, match=r"ConnectError: .*\(attempt 2 of 2\)"):
        client.sample([QUESTION], PARAMS)


def test_a_slow_answer_is_a_failure_after_the_time_out():
    with pytest.raises(ConnectionError, match="InferenceTimeoutError: "):
        ask(in_turn(says("4", delay=5)), timeout=0.1, max_attempts=1)


def test_retry_after_is_waited_for():
    started = time.monotonic()
    _, server = ask(in_turn(refuses(503, retry_after="0.3"), says("4")))
    assert len(server.bodies) == 2
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-1", "1e9", ""])
def test_a_retry_after_that_is_past_or_no_number_is_no_pause(value):
    candidate, _ = ask(in_turn(refuses(503, retry_after=value), says("4")))
    assert candidate.trace.answer == "4"


def test_retry_after_keeps_new_requests_back():
    arrived = {}

    def script(body, number):
        arrived.setdefault(question(body), []).append(time.monotonic())
        return refuses(429, retry_after="0.4") if number == 0 else says("4", delay=0.05)

    prompts = [[{"role": "user", "content": name}] for name in "abc"]
    with running_server(script) as server:
        backend(server, concurrency=2).sample(prompts, PARAMS)
    first, second = sorted("ab", key=lambda name: arrived[name][0])  # they set out together: either may come first
    assert [len(arrived[name]) for name in (first, second, "c")] == [2, 1, 1]
    assert arrived["c"][0] - arrived[first][0] >= 0.35


LIMITS = {
    "requests": ({"requests_per_minute": 1200}, 0.2),
    "tokens": ({"tokens_per_minute": 24000}, 0.3),  # 30 tokens each, of which 100 are expected
}


@pytest.mark.parametrize(("limit", "seconds"), LIMITS.values(), ids=LIMITS)
def test_limits_per_minute_are_kept(limit, seconds):
    with running_server() as server:
        started = time.monotonic()
        backend(server, **limit).sample([QUESTION] * 5, PARAMS)
    assert seconds <= time.monotonic() - started < seconds + 1


def test_a_retry_counts_as_a_request():
    with running_server(in_turn(refuses(500), refuses(500), says("4"))) as server:
        client = backend(server, requests_per_minute=600)
        started = time.monotonic()
        client.sample([QUESTION], PARAMS)
        client.sample([QUESTION], PARAMS)
    assert time.monotonic() - started >= 0.3


def test_no_more_are_in_flight_than_allowed_and_no_fewer():
    with running_server(lambda body, number: says("4", delay=0.05)) as server:
        backend(server, concurrency=7).sample([QUESTION] * 20, PARAMS)
    assert server.most_open == 7


def test_more_are_in_flight_than_the_hubs_client_allows():
    with running_server(lambda body, number: says("4", delay=0.5)) as server:
        backend(server, concurrency=150).sample([QUESTION] * 150, PARAMS)
    assert server.most_open == 150


def test_candidates_are_those_of_their_prompts():
    def script(body, number):
        delay = 0.02 * (number % 3)
        return Reply(**{**vars(echo(body)), "delay": delay})

    prompts = [[{"role": "user", "content": str(i)}] for i in range(12)]
    with running_server(script) as server:
        found = backend(server).sample(prompts, SamplingParams(n=2))
    assert [[candidate.trace.answer for candidate in group] for group in found] == [
        [f"answer to {i}"] * 2 for i in range(12)
    ]


def test_each_sample_is_a_request_with_a_seed_of_its_own():
    params = SamplingParams(n=3, temperature=0.5, top_p=0.9, max_tokens=10, seed=5)
    with running_server() as server:
        backend(server).sample([QUESTION], params)
    sent = [{key: body[key] for key in body if key not in ("messages", "stream")} for body in server.bodies]
    usual = {"model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 10}
    assert sorted(sent, key=lambda body: body["seed"]) == [{**usual, "seed": seed} for seed in (5, 6, 7)]


def test_more_fields_are_sent_only_when_they_are_wanted():
    with running_server() as server:
        client = backend(server, extra_body={"temperature": None, "reasoning_effort": "high"})
        client.sample([QUESTION], SamplingParams(top_k=20), enable_thinking=False)
    [body] = server.bodies
    assert body["top_k"] == 20
    assert body["reasoning_effort"] == "high"
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "temperature" not in body


def test_the_saved_token_of_the_hub_stays_here(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with running_server() as server:
        backend(server).sample([QUESTION], PARAMS)
        backend(server, api_key="mine").sample([QUESTION], PARAMS)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer mine"]
    assert "mine" not in repr(backend(server, api_key="mine"))


def test_requests_are_read_when_there_is_a_place():
    read = []

    def requests():
        for i in range(6):
            read.append(i)
            yield i, QUESTION, PARAMS

    async def two():
        async with aclosing(backend(server, concurrency=2).as_completed(requests())) as results:
            async for key, result in results:
                assert isinstance(result, Candidate)
                return key, list(read)

    with running_server() as server:
        key, seen = asyncio.run(two())
    assert key in (0, 1)
    assert seen == [0, 1]


def test_failures_come_beside_answers():
    async def collect():
        requests = ((name, [{"role": "user", "content": name}], PARAMS) for name in "abc")
        return {key: result async for key, result in backend(server).as_completed(requests)}

    with running_server(lambda body, number: refuses(400) if question(body) == "b" else says("4")) as server:
        found = asyncio.run(collect())
    assert isinstance(found["b"], ConnectionError)
    assert [found[name].trace.answer for name in "ac"] == ["4", "4"]


def test_it_works_where_a_loop_is_running():
    async def cell():
        return backend(server).sample([QUESTION], PARAMS)

    with running_server() as server:
        [[candidate]] = asyncio.run(cell())
    assert candidate.trace.answer == "answer to 2+2?"


def test_an_interrupt_ends_the_requests_where_a_loop_is_running():
    async def cell():
        backend(server).sample([QUESTION], PARAMS)

    main, loop = threading.main_thread().ident, asyncio.new_event_loop()
    with running_server(lambda body, number: says("4", delay=30)) as server:
        started = time.monotonic()
        timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        timer.join()
        loop.close()
    assert time.monotonic() - started < 5


STREAMS = {
    "reasoning_content": [{"reasoning_content": "a"}, {"reasoning_content": "b"}, {"content": "c"}],
    "reasoning": [{"reasoning": "a", "content": None}, {"reasoning": "b"}, {"content": "c"}],
    "inline markers": [{"content": "<thi"}, {"content": "nk>a"}, {"content": "b</think>"}, {"content": "c"}],
}


@pytest.mark.parametrize("deltas", STREAMS.values(), ids=STREAMS)
def test_a_stream_tells_reasoning_and_answer_apart(deltas):
    usage = {"prompt_tokens": 7, "completion_tokens": 40}
    shown, candidate, server = stream(in_turn(streams(*deltas, usage=usage)))
    for part, text in (("reasoning", "ab"), ("answer", "c")):
        assert "".join(delta.text for delta in shown if delta.part == part) == text
    assert [delta.num_tokens for delta in shown] == sorted(delta.num_tokens for delta in shown)
    assert candidate.trace == Trace("ab", "c", "complete", True)
    assert (candidate.num_prompt_tokens, candidate.num_tokens) == (7, 40)
    assert server.bodies[0]["stream"] is True


def test_a_stream_that_the_prompt_has_opened_is_shown_as_reasoning():
    deltas, candidate, _ = stream(in_turn(streams({"content": "a</think>"}, {"content": "b"})), opened=True)
    assert [(delta.part, delta.text) for delta in deltas] == [("reasoning", "a"), ("answer", "b")]
    assert candidate.trace == Trace("a", "b", "complete", True)


def test_a_streams_begin_is_tried_again():
    _, candidate, server = stream(in_turn(refuses(503), RESET, streams({"content": "4"})))
    assert candidate.trace.answer == "4"
    assert len(server.bodies) == 3


BROKEN = {
    "refused": (refuses(400, "too long"), r"HTTP 400: .*too long.*\(attempt 1 of 8\)"),
    "broken connection": (streams({"content": "4"}, reset=True), "The stream broke off: R"),
    "no end": (streams({"content": "4"}, finish_reason=None), "The stream broke off: .*finish_reason None"),
    "nothing said": (streams(), "The stream broke off: .*the answer is empty"),
    "no JSON": (Reply(chunks=(b"data: {\n\n",)), "The stream broke off: JSONDecodeError"),
    "an error in the midst": (
        Reply(chunks=({"error": "out of memory", "error_type": "generation"},)),
        "The stream broke off: .*out of memory",
    ),
}


@pytest.mark.parametrize(("reply", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_stream_that_breaks_off_says_why(reply, reason):
    with pytest.raises(ConnectionError, match=reason):
        stream(in_turn(reply))


def test_closing_a_stream_closes_the_connection():
    async def leave_early():
        async with aclosing(backend(server).stream(QUESTION, PARAMS)) as events:
            async for _ in events:
                break
        for _ in range(100):
            if not server.num_open:
                return
            await asyncio.sleep(0.02)

    with running_server(in_turn(streams(*[{"content": "4" * 1000}] * 5000))) as server:
        asyncio.run(leave_early())
        assert server.num_open == 0


def test_several_candidates_cannot_be_streamed():
    async def two():
        return [event async for event in ClientBackend("m").stream(QUESTION, SamplingParams(n=2))]

    with pytest.raises(ValueError, match=r"`params.n` must be 1 to stream, got 2"):
        asyncio.run(two())


MISTAKES = {
    "no address": (
        {"base_url": "localhost:8000"},
        "`base_url` must begin with http:// or https://, got 'localhost:8000'.",
    ),
    "no concurrency": ({"concurrency": 0}, "`concurrency` must be positive, got 0."),
    "no attempts": ({"max_attempts": 0}, "`max_attempts` must be positive, got 0."),
    "no time": ({"timeout": 0}, "`timeout` must be positive, got 0."),
    "no requests": ({"requests_per_minute": 0}, "`requests_per_minute` must be positive, got 0."),
    "no tokens": ({"tokens_per_minute": float("nan")}, "`tokens_per_minute` must be positive, got nan."),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ClientBackend("m", **options)
