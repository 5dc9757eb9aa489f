import asyncio
import time
from contextlib import aclosing
from itertools import pairwise
from types import SimpleNamespace

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from scripted import SPACE, ScriptedStream, in_a_loop, load_app

gr = pytest.importorskip("gradio", reason="the Space needs think-tools[space]")

TEXT = "<think>\nadd the ones, then the tens\n</think>\n\nIt is **42**."
VISITOR, OTHER = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")


@pytest.fixture(scope="module")
def app():
    return load_app()


def ask(app, stream, question="20+22=?", history=(), thinking=True, max_tokens=100, temperature=0.6, after=None):
    """All states of the page after a question; `after` is called with the chat once the first one is there."""

    async def run():
        chat, states = app.Chat(stream), []
        updates = chat.ask(question, list(history), thinking, max_tokens, temperature, VISITOR)
        async with aclosing(updates):
            async for conversation, box in updates:
                if after and not states:
                    asyncio.get_running_loop().create_task(after(chat))
                states.append((conversation, box))
        assert chat.running == {}
        return states

    return asyncio.run(run())


def titles(conversation):
    """What the page shows below the question: titles of panes, and texts."""
    return [(m.get("metadata") or {}).get("title") or m["content"][0]["text"] for m in conversation[1:]]


def test_the_pane_is_open_while_the_model_thinks_and_closed_once_it_answers(app):
    states = ask(app, ScriptedStream(TEXT, seconds=0.03))
    shown = [conversation[-1] for conversation, _ in states]
    assert titles(states[0][0]) == ["Waiting for the model"]
    thinking = [m["metadata"] for m in shown if m.get("metadata", {}).get("title") == "Thinking"]
    assert len(thinking) > 2
    assert {m["status"] for m in thinking} == {"pending"}
    assert [m["log"] for m in thinking] == sorted((m["log"] for m in thinking), key=lambda log: int(log.split()[0]))
    pane, answer = states[-1][0][1:]
    assert pane["metadata"]["title"].startswith("Thought for 0.")
    assert pane["metadata"] | {"title": ""} == {"title": "", "status": "done", "log": "9 tokens"}
    assert pane["content"] == [{"type": "text", "text": "add the ones, then the tens"}]
    assert answer == app.text_message("assistant", "It is **42**.")


def test_what_is_shown_only_grows(app):
    states = ask(app, ScriptedStream(TEXT, seconds=0.02))
    for part in (1, 2):
        texts = [conversation[part]["content"][0]["text"] for conversation, _ in states if len(conversation) > part]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_updates_come_at_most_every_50_ms_and_go_on_while_the_model_is_silent(app):
    began = time.monotonic()
    states = ask(app, ScriptedStream(TEXT, seconds=0.002))
    assert len(states) <= (time.monotonic() - began) / 0.05 + 3
    silent = ask(app, ScriptedStream("a", seconds=1.1))
    assert len([s for s in silent if titles(s[0]) == ["Waiting for the model"]]) >= 2


def test_the_box_is_emptied_and_shows_stop_while_the_model_runs(app):
    (_, first), *between, (_, last) = ask(app, ScriptedStream(TEXT, seconds=0.01))
    assert first | {"__type__": ""} == {"value": "", "submit_btn": False, "stop_btn": True, "__type__": ""}
    assert {len(box) for _, box in between} == {1}  # only the mark of an update
    assert last | {"__type__": ""} == {"submit_btn": True, "stop_btn": False, "__type__": ""}


ENDS = {
    "no thinking": (TEXT, {"thinking": False}, ["It is **42**."]),
    "cut off in the reasoning": (TEXT, {"max_tokens": 4}, ["Thought", "Cut off after 4 tokens, see the settings"]),
    "cut off in the answer": (
        TEXT,
        {"max_tokens": 13},
        ["Thought", "It is", "Cut off after 13 tokens, see the settings"],
    ),
    "reasoning that is never closed": (
        "<think>hm",
        {},
        ["Thought", "The model ended its turn without an answer"],
    ),
    "nothing": ("", {}, ["The model ended its turn without an answer"]),
}


@pytest.mark.parametrize(("text", "settings", "expected"), ENDS.values(), ids=ENDS)
def test_how_a_turn_ends_is_said(app, text, settings, expected):
    shown = titles(ask(app, ScriptedStream(text), **settings)[-1][0])
    assert ["Thought" if title.startswith("Thought for") else title for title in shown] == expected


@pytest.mark.parametrize("seconds", [0.02, 5.0], ids=["while it thinks", "while it is silent"])
def test_stop_ends_the_generation_and_closes_the_pane(app, seconds):
    stream = ScriptedStream("<think>" + "a" * 4000, seconds)

    async def after(chat):
        await asyncio.sleep(0.3)
        await chat.stop(OTHER)  # somebody else's Stop
        assert stream.running == 1
        await chat.stop(VISITOR)

    began = time.monotonic()
    conversation, box = ask(app, stream, after=after)[-1]
    assert time.monotonic() - began < 1
    assert stream.running == 0
    assert titles(conversation)[-1] == "Stopped"
    assert {m["metadata"]["status"] for m in conversation[1:]} == {"done"}
    assert box["submit_btn"]


def test_clear_leaves_nothing_of_a_running_turn(app):
    stream = ScriptedStream("<think>" + "a" * 4000, 0.02)

    async def after(chat):
        await chat.clear(VISITOR)

    assert ask(app, stream, after=after)[-1][0] == []
    assert stream.running == 0


@pytest.mark.parametrize("updates_seen", [1, 4])
def test_a_visitor_who_leaves_ends_the_generation(app, updates_seen):
    stream = ScriptedStream("<think>" + "a" * 4000, 0.02)

    async def leave():
        chat = app.Chat(stream)
        async with aclosing(chat.ask("hi", [], True, 100, 0.6, VISITOR)) as updates:
            for _ in range(updates_seen):
                await anext(updates)
        await asyncio.sleep(0)
        return chat.running, stream.running

    assert asyncio.run(leave()) == ({}, 0)


def test_an_error_of_the_model_is_shown_and_the_page_stays_usable(app, caplog):
    conversation, box = ask(app, ScriptedStream("<think>a", error=RuntimeError("out of memory")))[-1]
    assert titles(conversation)[-1] == "The model failed: out of memory"
    assert box["submit_btn"]
    assert "out of memory" in caplog.text


def test_limits_hold_on_the_server(app):
    stream = ScriptedStream(TEXT)
    ask(app, stream, max_tokens=10**9, temperature=99.0)
    ask(app, stream, max_tokens=-5, temperature=-1.0)
    assert [(params.max_tokens, params.temperature) for params in stream.params] == [(4096, 2.0), (1, 0.0)]
    long = [app.text_message("user", "a" * 300_000)]
    for question, history, message in [
        (" ", [], "Write a question first"),
        ("a" * 30_000, [], "30,000 of at most 20,000 characters"),
        ("a", long, "conversation is too long"),
    ]:
        with pytest.raises(gr.Error, match=message):
            ask(app, stream, question, history)


def user(text):
    return {"role": "user", "content": [{"type": "text", "text": text}], "metadata": None}


def assistant(text, **metadata):
    return {**user(text), "role": "assistant", "metadata": metadata or None}


HISTORIES = {
    "reasoning is left out": (
        [user("q"), assistant("r", title="Thought", status="done"), assistant("a"), user("p")],
        [("user", "q"), ("assistant", "a"), ("user", "p")],
    ),
    "a stopped question is joined with the next": (
        [user("q"), assistant("r", title="Thought"), assistant("", title="Stopped"), user("p")],
        [("user", "q\n\np")],
    ),
    "system turns of a client are left out": (
        [{"role": "system", "content": "Obey."}, {"role": "user", "content": "q"}],
        [("user", "q")],
    ),
    "files have no text": (
        [{"role": "user", "content": [{"type": "file", "file": {"path": "x"}}, {"type": "text", "text": "q"}]}],
        [("user", "q")],
    ),
}


@pytest.mark.parametrize(("history", "expected"), HISTORIES.values(), ids=HISTORIES)
def test_the_model_reads_questions_and_answers_only(app, history, expected):
    assert app.to_prompt(history) == [{"role": role, "content": text} for role, text in expected]


def test_chat_is_the_only_public_endpoint(app):
    info = in_a_loop(lambda: app.build_page(ScriptedStream(TEXT), "a model", ["1+1=?"])).get_api_info()
    assert list(info["named_endpoints"]) == ["/chat"]
    assert info["unnamed_endpoints"] == {}


def test_a_model_and_an_adapter_can_be_served(app, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    backend = app.load_backend(str(tiny_model))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    backend.tokenizer.save_pretrained(tmp_path)
    params = app.SamplingParams(temperature=0, max_tokens=4)
    expected = backend.sample([[{"role": "user", "content": "hi"}]], params)
    for served in (app.load_backend(None, str(tmp_path)), app.load_backend(str(tiny_model), str(tmp_path))):
        assert type(served.model).__name__ == "PeftModelForCausalLM"
        assert served.sample([[{"role": "user", "content": "hi"}]], params) == expected  # a fresh LoRA changes nothing


def test_the_front_matter_is_valid():
    card = SpaceCard.load(SPACE / "README.md")
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    constraints = (SPACE.parent / "constraints.txt").read_text()
    assert f"\ngradio=={card.data.sdk_version}\n" in constraints
    assert tuple(map(int, card.data.python_version.split("."))) >= (3, 11)
    assert len(card.data.to_dict()["short_description"]) <= 60


def test_the_requirements_are_readable():
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    names = {Requirement(line).name for line in lines if not line.startswith("#")}
    assert {"think-tools", "torch"} <= names
    assert "gradio" not in names  # the front matter's `sdk_version` installs it


@pytest.mark.parametrize(
    ("text", "shown"), [("7*6+0 4*6", r"7\*6+0 4\*6"), ("`7*6` 4*6", "`7*6` 4*6"), ("*so* 2", "*so* 2")]
)
def test_the_signs_of_a_multiplication_are_not_taken_for_emphasis(app, text, shown):
    assert app.pane("Thinking", text)["content"][0]["text"] == shown
