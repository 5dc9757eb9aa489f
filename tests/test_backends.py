import asyncio
import re
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch
from scripted import saying
from transformers import AutoModelForCausalLM

from think_tools import Trace
from think_tools.backends import Candidate, SamplingParams, TransformersBackend
from think_tools.templates import load_template
from think_tools.tiny import load_tiny

QUESTION = [{"role": "user", "content": "12*13=?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=64)


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def backend(model, tokenizer):
    return TransformersBackend(model, tokenizer)


async def collect(events):
    async with aclosing(events):
        return [event async for event in events]


def stream(backend, messages=QUESTION, params=GREEDY, **kwargs):
    """Deltas and candidate of one streamed answer."""
    *deltas, candidate = asyncio.run(collect(backend.stream(messages, params, **kwargs)))
    return deltas, candidate


# One token per byte, except for the markers and the end of turn.
OUTPUTS = {
    "thinks, then answers": ("<think>ab</think>c", "ab", "c", "complete", 6, 4),
    "does not think": ("156", None, "156", "no_think", 4, 0),
    "empty reasoning": ("<think></think>c", "", "c", "complete", 4, 2),
    "ends its turn in the reasoning": ("<think>ab", "ab", "", "unclosed", 4, 3),
    "Chinese in three tokens a character": ("<think>十二</think>是", "十二", "是", "complete", 12, 8),
    "says nothing": ("", None, "", "no_think", 1, 0),
}


@pytest.mark.parametrize(("text", "reasoning", "answer", "status", "tokens", "think"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_is_parsed_and_counted_the_same_whole_and_streamed(
    backend, text, reasoning, answer, status, tokens, think
):
    prompt, ids = backend._encode(QUESTION, {}), backend.tokenizer.encode(text)
    expected = Candidate(text, Trace(reasoning, answer, status, True), "stop", tokens, think, len(prompt))
    expected = replace(expected, token_ids=(*ids, backend.tokenizer.eos_token_id))
    with saying(backend, text):
        assert backend.sample([QUESTION], GREEDY) == [[expected]]
    with saying(backend, text):
        deltas, candidate = stream(backend)
    assert candidate == expected
    for part, whole in (("reasoning", reasoning or ""), ("answer", answer)):
        assert "".join(delta.text for delta in deltas if delta.part == part) == whole
    assert not any("\ufffd" in delta.text for delta in deltas)


def test_an_output_without_end_of_turn_is_not_finished(backend):
    with saying(backend, "<think>abcdef"):
        [[candidate]] = backend.sample([QUESTION], SamplingParams(temperature=0, max_tokens=4))
    trace, ids = Trace("abc", "", "truncated", False), tuple(backend.tokenizer.encode("<think>abc"))
    assert candidate == Candidate("<think>abc", trace, "length", 4, 4, candidate.num_prompt_tokens, token_ids=ids)


def test_broken_bytes_at_the_end_are_shown_and_not_lost(backend):
    ids = backend.tokenizer.encode("a是")[:3]
    with saying(backend, ids=[ids]):
        deltas, candidate = stream(backend, params=SamplingParams(temperature=0, max_tokens=3))
    assert [delta.text for delta in deltas] == ["a", candidate.text[1:]]
    assert candidate.text == "a\ufffd"


def test_a_template_that_opens_the_reasoning_is_read(backend):
    backend.tokenizer.chat_template = load_template("instruct_cot")
    expected = Trace("ab", "c", "complete", True)
    with saying(backend, "ab</think>c"):
        assert backend.sample([QUESTION], GREEDY)[0][0].trace == expected
    with saying(backend, "ab</think>c"):
        deltas, candidate = stream(backend)
    assert candidate.trace == expected
    assert [(delta.part, delta.text, delta.num_tokens) for delta in deltas] == [
        ("reasoning", "a", 1),
        ("reasoning", "b", 2),
        ("answer", "c", 4),
    ]


def test_thinking_is_switched_off_by_a_template_variable(backend):
    with saying(backend, "c"):
        assert backend.sample([QUESTION], GREEDY, enable_thinking=False)[0][0].trace == Trace(
            None, "c", "no_think", True
        )
    on, off = (backend._encode(QUESTION, {"enable_thinking": value}) for value in (True, False))
    assert backend._decode(off[len(on) :]) == "<think>\n\n</think>\n\n"


def test_markers_that_are_special_tokens_are_kept(model, tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    backend = TransformersBackend(model, tokenizer)
    with saying(backend, "<think>a</think>b"):
        assert backend.sample([QUESTION], GREEDY)[0][0].trace == Trace("a", "b", "complete", True)


@pytest.mark.parametrize("sanitized", [True, False])
def test_control_tokens_that_somebody_types_are_text(model, tokenizer, sanitized):
    backend = TransformersBackend(model, tokenizer, sanitize_control_tokens=sanitized)
    plain = backend._encode([{"role": "user", "content": "a"}], {})
    typed = backend._encode([{"role": "user", "content": "a</think><|im_end|>"}], {})
    ids = tokenizer.convert_tokens_to_ids(["</think>", "<|im_end|>"])
    added = [typed.count(token) - plain.count(token) for token in ids]
    assert added == ([0, 0] if sanitized else [1, 1])
    assert backend._decode(typed).count("a</think><|im_end|>") == 1


def test_a_batch_gives_what_each_prompt_gives_alone(backend):
    prompts = [
        [{"role": "user", "content": text}] for text in ("1+1=?", "What is twelve times thirteen?", "十二", "?")
    ]
    params = SamplingParams(temperature=0, max_tokens=12)
    alone = [backend.sample([prompt], params)[0] for prompt in prompts]
    assert backend.sample(prompts, params, batch_size=4) == alone
    assert backend.sample(prompts, params, batch_size=3) == alone


def test_candidates_belong_to_their_prompts(backend):
    prompts = [[{"role": "user", "content": text}] for text in "ab"]
    with saying(backend, "<think>1</think>a", "2", "<think>3</think>b", "4"):
        first, second = backend.sample(prompts, SamplingParams(n=2, max_tokens=16))
    assert [candidate.text for candidate in first] == ["<think>1</think>a", "2"]
    assert [candidate.text for candidate in second] == ["<think>3</think>b", "4"]


def test_a_seed_repeats_the_draws_and_leaves_torch_as_it_was(backend):
    params = SamplingParams(n=4, max_tokens=8, seed=1)
    before = torch.random.get_rng_state()
    first, again = (backend.sample([QUESTION], params) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == again
    assert len({candidate.text for candidate in first[0]}) > 1
    assert backend.sample([QUESTION], SamplingParams(n=4, max_tokens=8, seed=2)) != first


def test_the_params_replace_the_models_own_settings(model, tokenizer, caplog):
    plain = TransformersBackend(model, tokenizer).sample([QUESTION], SamplingParams(max_tokens=8, seed=1))
    own = model.generation_config
    try:
        model.generation_config = type(own)(**{**own.to_dict(), "do_sample": True, "temperature": 9.0, "top_k": 2})
        backend = TransformersBackend(model, tokenizer)
        assert backend.sample([QUESTION], SamplingParams(max_tokens=8, seed=1)) == plain
        assert len({backend.sample([QUESTION], GREEDY)[0][0].text for _ in range(3)}) == 1
        assert caplog.records == []
    finally:
        model.generation_config = own


def test_closing_the_stream_stops_the_model(backend):
    steps = []

    async def leave_early():
        async with aclosing(backend.stream(QUESTION, SamplingParams(temperature=0, max_tokens=2000))) as events:
            async for _ in events:
                break
        with backend._lock:  # free again: the generation is over
            return len(steps)

    with saying(backend, "a" * 2000, steps=steps):
        assert asyncio.run(leave_early()) < 200


def test_a_task_that_waits_can_be_cancelled(backend):
    async def cancel():
        with backend._lock:  # somebody else is generating
            task = asyncio.create_task(collect(backend.stream(QUESTION, GREEDY)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    steps = []
    with saying(backend, "a", steps=steps):
        asyncio.run(cancel())
        with backend._lock:
            assert steps == []


def test_an_error_of_the_model_reaches_the_caller(backend):
    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = backend.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            stream(backend)
    finally:
        handle.remove()
    with saying(backend, "a"):
        assert stream(backend)[1].text == "a"


def test_two_streams_do_not_mix(backend):
    async def two():
        params = SamplingParams(temperature=0, max_tokens=20)
        return await asyncio.gather(*(collect(backend.stream(QUESTION, params)) for _ in range(2)))

    steps = []
    with saying(backend, "a" * 40, steps=steps):
        asyncio.run(two())
    threads = [steps[0], steps[-1]]
    assert steps == [thread for thread in threads for _ in range(20)]


def test_a_model_in_training_is_put_back(backend):
    backend.model.train()
    try:
        modes = []
        handle = backend.model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
        backend.sample([QUESTION], SamplingParams(max_tokens=2))
        handle.remove()
        assert backend.model.training
        assert set(modes) == {False}
    finally:
        backend.model.eval()


def test_the_context_of_the_model_is_a_limit(backend):
    filler = [{"role": "user", "content": "a" * 4060}]
    [[candidate]] = backend.sample([filler], SamplingParams(max_tokens=100, seed=0))
    assert len(backend._encode(filler, {})) + candidate.num_tokens == 4096
    assert candidate.finish_reason == "length"
    with pytest.raises(ValueError, match=r"`messages` are \d+ tokens long, but the model reads at most 4096"):
        backend.sample([[{"role": "user", "content": "a" * 4096}]], GREEDY)


MISTAKES = {
    "no candidates": ({"n": 0}, "`n` must be at least 1, got 0."),
    "negative temperature": ({"temperature": -1}, "`temperature` must be at least 0, got -1."),
    "temperature that is no number": ({"temperature": float("nan")}, "`temperature` must be at least 0, got nan."),
    "no probability": ({"top_p": 0}, "`top_p` must be above 0 and at most 1, got 0."),
    "negative top_k": ({"top_k": -1}, "`top_k` must be at least 0, got -1."),
    "no tokens": ({"max_tokens": 0}, "`max_tokens` must be at least 1, got 0."),
    "many greedy candidates": (
        {"n": 2, "temperature": 0},
        "`n` must be 1 with `temperature=0`, got 2: all candidates would be the same.",
    ),
}


@pytest.mark.parametrize(("values", "message"), MISTAKES.values(), ids=MISTAKES)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SamplingParams(**values)


def test_streams_of_several_candidates_and_empty_batches_are_refused(backend):
    with pytest.raises(ValueError, match=r"`params.n` must be 1 to stream, got 2"):
        stream(backend, params=SamplingParams(n=2))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        backend.sample([QUESTION], GREEDY, batch_size=0)
    assert backend.sample([], GREEDY) == []


def test_with_thinking_off_the_model_cannot_open_it_again():
    backend = TransformersBackend(*load_tiny("thinker"))
    question, params = [{"role": "user", "content": "12*13=?"}], SamplingParams(temperature=0.0, max_tokens=300)
    [[thinking]], [[direct]] = (backend.sample([question], params, enable_thinking=on) for on in (True, False))
    assert thinking.trace.status == "complete"
    assert "<think>" not in direct.text
    assert direct.trace.answer.isdigit()
