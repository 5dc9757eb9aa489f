"""`ClientBackend` where a turn is to go on, to stop at a text, to be measured, or to think for so long only."""

import asyncio
import re

import pytest
from openai_server import Reply, echo, in_turn, running_server, says, streams
from test_backends_client import PARAMS, QUESTION, ask, backend

from think_tools import Trace
from think_tools.backends import ClientBackend, SamplingParams, ScriptedBackend


def chosen(reply, **fields):
    """The reply with further fields of its choice, such as vLLM's `stop_reason`."""
    body = {**reply.body, "choices": [{**reply.body["choices"][0], **fields}]}
    return Reply(body)


# Servers that render their prompts


def keeps(text):
    return text


def with_empty_block(text):
    """As Qwen3's: what has no closing marker is an answer."""
    return text if "</think>" in text else f"<think>\n\n</think>\n\n{text}"


def without_reasoning(text):
    """As DeepSeek-R1's."""
    return text.rpartition("</think>")[2].lstrip()


def rendering(template, *, opens=False, goes_on=True, reply=echo):
    """A server whose chat template writes an assistant's text by `template`; it counts the tokens of its prompts."""

    def script(body, number):
        text = ""
        for message in body["messages"]:
            said = message["content"]
            text += f"[{message['role']}]{template(said) if message['role'] == 'assistant' else said}[end]"
        if goes_on and body.get("continue_final_message"):
            assert body["add_generation_prompt"] is False
            text = text.removesuffix("[end]")
        else:
            text += "[assistant]" + ("<think>\n" if opens else "")
        size = len(re.findall(r"</?think>|\[\w+\]|\w+|\s+|[^\w\s]", text))
        answer = reply(body, number)
        return Reply({**answer.body, "usage": {"prompt_tokens": size, "completion_tokens": 20}})

    return script


KEEPING = {
    "an open thought": (rendering(keeps), "<think>\n6+6"),
    "a closed thought": (rendering(keeps), "<think>\n6+6\n</think>\n\nIt"),
    "no thought": (rendering(keeps), "It is"),
    "a thought that the template opens": (rendering(keeps, opens=True), "<think>\n6+6"),
    "an open thought where closed ones are dropped": (rendering(without_reasoning, opens=True), "<think>\n6+6"),
    "a closed thought where open ones are spoilt": (rendering(with_empty_block), "<think>\n6+6\n</think>\n\nIt"),
}


@pytest.mark.parametrize(("script", "prefix"), KEEPING.values(), ids=KEEPING)
def test_a_turn_goes_on_from_its_text(script, prefix):
    with running_server(script) as server:
        client = backend(server)
        client.extend([QUESTION], [prefix], PARAMS)
        assert len(server.bodies) == 4  # three to find out, once
        [[first, second]] = client.extend([QUESTION], [prefix], SamplingParams(n=2))
    assert len(server.bodies) == 6
    assert server.bodies[-1]["messages"] == [*QUESTION, {"role": "assistant", "content": prefix}]
    assert first == second


SPOILING = {
    "a new turn is begun": (rendering(keeps, goes_on=False), "<think>\n6+6"),
    "an empty block is put before an open thought": (rendering(with_empty_block), "<think>\n6+6"),
    "the same behind an opening marker": (rendering(with_empty_block, opens=True), "<think>\n6+6"),
    "a closed thought is dropped": (rendering(without_reasoning), "<think>\n6+6\n</think>\n\nIt"),
    "the same where it opens them": (rendering(without_reasoning, opens=True), "<think>\n6+6\n</think>\n\nIt"),
    "tokens are not counted": (lambda body, number: says("4", usage={}), "<think>\n6+6"),
}


@pytest.mark.parametrize(("script", "prefix"), SPOILING.values(), ids=SPOILING)
def test_a_server_that_changes_the_turn_is_refused(script, prefix):
    message = (
        r"The server at `base_url` http://.* does not go on with '<think>\\nHello .*`load_template\('chatml_think"
    )
    with running_server(script) as server, pytest.raises(ValueError, match=message):
        backend(server).extend([QUESTION], [prefix], PARAMS)
    assert len(server.bodies) == 3


def test_a_prompt_that_ends_in_a_turn_is_no_less_checked():
    turn = [*QUESTION, {"role": "assistant", "content": "It is"}]
    with running_server(rendering(keeps, goes_on=False)) as server, pytest.raises(ValueError, match="does not go on"):
        backend(server).sample([turn], PARAMS)


def test_nothing_to_go_on_with_is_a_new_turn():
    with running_server() as server:
        [[candidate]] = backend(server).extend([QUESTION], [[]], PARAMS)
        [[again]] = backend(server).extend([QUESTION], [""], PARAMS)
    assert candidate == again
    assert candidate.trace.answer == "answer to 2+2?"
    assert not any("continue_final_message" in body for body in server.bodies)


def test_the_marker_that_the_prompt_had_written_is_sent():
    with running_server(rendering(keeps, opens=True)) as server:
        backend(server, opened=True).extend([QUESTION] * 2, ["6+6", "<think>6"], PARAMS)
    sent = sorted(body["messages"][-1]["content"] for body in server.bodies[3:])
    assert sent == ["<think>\n6+6", "<think>6"]


CONTINUED = {
    "inline": ("<think>a", says("b</think>c"), "b</think>c", Trace("ab", "c", "complete", True)),
    "split by the server": (
        "<think>a",
        says("c", reasoning="b"),
        "b\n</think>\n\nc",
        Trace("ab", "c", "complete", True),
    ),
    "the answer taken for reasoning": (
        "<think>a</think>b",
        says(None, reasoning_content="c"),
        "c",
        Trace("a", "bc", "complete", True),
    ),
    "cut in the thought": ("<think>a", says("b", finish_reason="length"), "b", Trace("ab", "", "truncated", False)),
    "nothing more to say": ("<think>a</think>b", says(""), "", Trace("a", "b", "complete", True)),
}


@pytest.mark.parametrize(("prefix", "reply", "text", "trace"), CONTINUED.values(), ids=CONTINUED)
def test_a_continuation_is_what_is_new_and_its_trace_the_whole(prefix, reply, text, trace):
    with running_server(rendering(keeps, reply=lambda body, number: reply if number > 2 else says("4"))) as server:
        [[candidate]] = backend(server).extend([QUESTION], [prefix], PARAMS)
    assert (candidate.text, candidate.trace) == (text, trace)
    assert candidate.num_reasoning_tokens == (0 if "</think>" in prefix else 10 if "</think>" in text else 20)


def test_prefixes_that_cannot_be_sent_are_refused():
    client = ClientBackend("m", base_url="http://localhost:1")
    with pytest.raises(ValueError, match=r"`prefixes` must be texts for a server, .* pass `candidate.text`\."):
        client.extend([QUESTION], [[5, 6]], PARAMS)
    with pytest.raises(ValueError, match="`prefixes` must be as many as `prompts`, got 2 and 1"):
        client.extend([QUESTION], ["", ""], PARAMS)


# Stop texts

STOP = SamplingParams(stop=("</step>", "\n\n"))
STOPPED = {
    "cut off by vLLM": (chosen(says("<think>a"), stop_reason="</step>"), "<think>a</step>", "</step>"),
    "cut off by SGLang": (chosen(says("<think>a"), matched_stop="\n\n"), "<think>a\n\n", "\n\n"),
    "left in the text": (chosen(says("<think>a</step>"), stop_reason="</step>"), "<think>a</step>", "</step>"),
    "in a thought split off": (
        chosen(says(None, reasoning_content="a"), stop_reason="\n\n"),
        "<think>\na\n\n",
        "\n\n",
    ),
    "nothing before it": (chosen(says(""), stop_reason="</step>"), "</step>", "</step>"),
    "the turn ended": (chosen(says("<think>a</think>b"), stop_reason=None), "<think>a</think>b", None),
    "the turn ended with a token": (chosen(says("b"), matched_stop=151645), "b", None),
    "the turn ended with a token's name": (chosen(says("b"), stop_reason="<|im_end|>"), "b", None),
    "cut by the length": (says("<think>a", finish_reason="length"), "<think>a", None),
}


@pytest.mark.parametrize(("reply", "text", "reason"), STOPPED.values(), ids=STOPPED)
def test_a_stop_text_is_told_from_the_end_of_the_turn(reply, text, reason):
    candidate, server = ask(in_turn(reply), STOP)
    assert (candidate.text, candidate.stop_reason) == (text, reason)
    length = reply.body["choices"][0]["finish_reason"] == "length"
    assert candidate.trace.finished is (None if reason else not length)
    assert server.bodies[0]["stop"] == ["</step>", "\n\n"]


def test_a_streamed_answer_stops_too():
    async def last(client):
        return [event async for event in client.stream(QUESTION, STOP)][-1]

    reply = streams({"content": "<think>a"})
    reply.chunks[-1]["choices"][0]["stop_reason"] = "</step>"
    with running_server(in_turn(reply)) as server:
        candidate = asyncio.run(last(backend(server)))
    assert (candidate.text, candidate.stop_reason) == ("<think>a</step>", "</step>")


# What a server may not know, and says nothing about


def logprobs(*tokens):
    return {"content": [{"token": token, "logprob": value, "top_logprobs": []} for token, value in tokens]}


MEASURED = {
    "no reasoning": (says("ab"), [("a", -1.0), ("b", -3.0)], -2.0, -2.0),
    "reasoning inline": (
        says("<think>a</think>b"),
        [("<think>", -1.0), ("a", -2.0), ("</think>", -3.0), ("b", -4.0)],
        -2.5,
        -4.0,
    ),
    "a marker of several tokens": (
        says("<think>a</think>b"),
        [("<think>a</", -2.0), ("think>", -2.0), ("b", -5.0)],
        -3.0,
        -5.0,
    ),
    "cut in the reasoning": (says("<think>a", finish_reason="length"), [("<think>", -1.0), ("a", -2.0)], -1.5, None),
}


@pytest.mark.parametrize(("reply", "tokens", "whole", "answer"), MEASURED.values(), ids=MEASURED)
def test_logprobs_are_means_over_all_tokens_and_over_those_of_the_answer(reply, tokens, whole, answer):
    candidate, server = ask(in_turn(chosen(reply, logprobs=logprobs(*tokens))), SamplingParams(logprobs=True))
    assert (candidate.logprob, candidate.answer_logprob) == (whole, answer)
    assert server.bodies[0]["logprobs"] is True


def test_a_budget_is_sent():
    candidate, server = ask(in_turn(says("<think>a</think>b")), SamplingParams(thinking_token_budget=30))
    assert server.bodies[0]["thinking_token_budget"] == 30
    assert candidate.trace == Trace("a", "b", "complete", True)


LONG = {"completion_tokens": 900, "completion_tokens_details": {"reasoning_tokens": 800}}
UNKNOWN = {
    "stop": (STOP, says("a"), "does not say whether the model ended its turn or wrote a text of `stop`"),
    "log-probabilities": (SamplingParams(logprobs=True), says("a"), "sent no log-probabilities: take out `logprobs`"),
    "a think budget": (
        SamplingParams(thinking_token_budget=100),
        says("<think>a</think>b", usage=LONG),
        r"800 tokens of reasoning, so the server knows no `thinking_token_budget` \(100\)",
    ),
}


@pytest.mark.parametrize(("params", "reply", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_the_server_ignores_is_reported_at_once(params, reply, reason):
    with pytest.raises(ConnectionError, match=rf"1 of 1 requests failed, .*{reason}.*attempt 1 of 8"):
        ask(in_turn(reply), params)


def test_waits_are_refused():
    waits, message = SamplingParams(num_wait=1), "`num_wait` must be 0 for a server, which knows no waits, got 1"
    with running_server() as server:
        with pytest.raises(ValueError, match=message):
            backend(server).sample([QUESTION], waits)
        with pytest.raises(ValueError, match=message):
            asyncio.run(anext(backend(server).stream(QUESTION, waits)))
    assert not server.bodies


def test_equal_prompts_have_seeds_of_their_own():
    with running_server() as server:
        backend(server).sample([QUESTION] * 3, SamplingParams(n=2, seed=5))
    assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7, 8, 9, 10]


def test_no_prompt_is_the_servers_to_refuse():
    with running_server(lambda body, number: says(str(body["messages"]))) as server:
        [[candidate]] = backend(server).sample([[]], PARAMS)
    assert candidate.text == "[]"


REFUSED = {
    "supports_logprobs": SamplingParams(logprobs=True),
    "supports_thinking_budget": SamplingParams(thinking_token_budget=5),
}


@pytest.mark.parametrize(("flag", "params"), REFUSED.items(), ids=REFUSED)
def test_what_a_backend_does_not_support_it_refuses(flag, params):
    scripted = ScriptedBackend(lambda messages, prefix, number: "4")
    assert vars(type(scripted)).get(flag, vars(scripted).get(flag)) is False
    with pytest.raises(ValueError, match="which no script has"):
        scripted.sample([QUESTION], params)
