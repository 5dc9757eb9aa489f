import gc
import re

import pytest
import torch
from scripted import saying
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from think_tools import Trace
from think_tools.backends import SamplingParams, TransformersBackend
from think_tools.backends.batching import keeps_cache
from think_tools.tiny import load_tiny
from think_tools.tiny.load import FOLDER

PROMPTS = [[{"role": "user", "content": "x" * length}] for length in (1, 17, 5, 40, 2, 9, 23, 3, 30, 11, 7, 19)]
QUESTION = PROMPTS[:1]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


def sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def llama(tokenizer):
    return LlamaForCausalLM(LlamaConfig(**sizes(tokenizer)))


def gemma(tokenizer):
    """Two of three layers see 8 tokens."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**sizes(tokenizer), head_dim=8, sliding_window=8, layer_types=layers)
    return Gemma3ForCausalLM(config)


def mamba(tokenizer):
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id", "pad_token_id", "bos_token_id")
    return MambaForCausalLM(MambaConfig(**{name: sizes(tokenizer)[name] for name in names}, state_size=4))


def without_cache(tokenizer):
    model = llama(tokenizer)
    model.generation_config.use_cache = False
    return model


CUTTABLE = {"full attention": llama, "sliding windows": gemma}
MODELS = {**CUTTABLE, "no cache": without_cache, "a recurrent state": mamba}


@pytest.fixture
def make_backend():
    """Backends of a model whose outputs are of many lengths: a ninth of the vocabulary ends a turn."""

    def make(model=llama, *, sure=4, **options):
        tokenizer = AutoTokenizer.from_pretrained(FOLDER / "base")
        torch.manual_seed(0)
        built = model(tokenizer)
        for parameter in built.parameters():
            if parameter.ndim == 2:
                parameter.data *= sure  # a random model that is sure of its tokens, so that rounding changes none
        built.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(200, 256, 2)]
        return TransformersBackend(built, tokenizer, **options)

    return make


class Reading:
    """Counts the tokens that a model reads, padding included, and its passes."""

    def __init__(self, backend):
        self.tokens = self.passes = 0
        backend.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module, args):
        self.tokens += args[0].numel()
        self.passes += 1


def steps(backend, prompts=PROMPTS, num_steps=4, **params):
    """Token ids of each turn after some steps; those that have ended rest."""
    turns = [()] * len(prompts)
    for seed in range(num_steps):
        going = [i for i, ids in enumerate(turns) if not ids or ids[-1] not in backend._end_ids]
        settings = SamplingParams(max_tokens=6, seed=seed, **params)
        found = backend.extend([prompts[i] for i in going], [turns[i] for i in going], settings)
        for i, [candidate] in zip(going, found, strict=True):
            turns[i] += candidate.token_ids
    return turns


# Batches


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_rows_that_leave_and_enter_a_batch_say_what_they_say_alone(make_backend, model):
    backend = make_backend(model)
    backend._end_ids = [backend.tokenizer.eos_token_id]
    whole = [candidate.token_ids for [candidate] in backend.sample(PROMPTS, GREEDY)]
    backend._end_ids = [whole[i][6 + i] for i in (0, 4, 8)]  # tokens that it does say, so that lengths differ
    alone = [backend.sample([prompt], GREEDY)[0] for prompt in PROMPTS]
    assert len({candidate.num_tokens for [candidate] in alone}) > 2
    assert backend.sample(PROMPTS, GREEDY, batch_size=8) == alone


@pytest.mark.slow
def test_a_batch_is_filled_up_when_rows_have_ended(make_backend):
    passes = []
    for model in (llama, without_cache):
        backend = make_backend(model, sure=1)
        reading = Reading(backend)
        backend.sample(PROMPTS * 4, SamplingParams(seed=0, max_tokens=60), batch_size=12)
        passes.append(reading.passes)
    assert passes[0] < 0.8 * passes[1]


def test_samples_of_a_prompt_share_its_reading(make_backend):
    backend = make_backend()
    backend.model.generation_config.suppress_tokens = backend._end_ids
    reading, prompt = Reading(backend), [{"role": "user", "content": "x" * 100}]
    [group] = backend.sample([prompt], SamplingParams(n=20, max_tokens=4), batch_size=8)
    length = group[0].num_prompt_tokens
    assert reading.tokens == length + 20 * 4


@pytest.mark.parametrize("model", CUTTABLE.values(), ids=CUTTABLE)
def test_logprobs_are_those_of_a_forward_pass(make_backend, model):
    backend = make_backend(model)
    params = SamplingParams(n=3, max_tokens=20, temperature=0.7, top_k=50, seed=0, logprobs=True)
    for prompt, group in zip(PROMPTS, backend.sample(PROMPTS, params, batch_size=8), strict=True):
        begin = backend._encode(prompt, {})
        for candidate in group:
            ids = torch.tensor([[*begin, *candidate.token_ids]])
            with torch.no_grad():
                logprobs = backend.model(ids).logits[0, len(begin) - 1 : -1].log_softmax(-1)
            own = logprobs.gather(1, ids[0, len(begin) :, None]).mean().item()
            assert candidate.logprob == pytest.approx(own, abs=1e-4)


ANSWERED = {
    "thinks, then answers": ("<think>ab</think>cd", 3),
    "does not think": ("abc", 4),
    "never closes its reasoning": ("<think>ab", 0),
}


@pytest.mark.parametrize(("text", "num_answer"), ANSWERED.values(), ids=ANSWERED)
def test_the_logprob_of_the_answer_leaves_the_reasoning_out(make_backend, text, num_answer):
    backend, seen = make_backend(), []

    def keep(module, args, output):
        seen.append(output.logits[0, -1].log_softmax(-1).max().item())

    backend._end_ids = [backend.tokenizer.eos_token_id]
    with saying(backend, text):
        backend.model.register_forward_hook(keep)
        [[candidate]] = backend.sample(QUESTION, SamplingParams(temperature=0, logprobs=True))
    assert candidate.logprob == pytest.approx(sum(seen) / len(seen), abs=1e-6)
    answer = seen[len(seen) - num_answer :]
    assert candidate.answer_logprob == (pytest.approx(sum(answer) / len(answer), abs=1e-6) if answer else None)


def test_nothing_is_computed_that_was_not_asked_for(make_backend):
    [[candidate]] = make_backend().sample(QUESTION, GREEDY)
    assert (candidate.logprob, candidate.answer_logprob) == (None, None)


def test_a_setting_that_counts_steps_counts_those_of_each_row(make_backend):
    backend = make_backend()
    backend.model.generation_config.min_new_tokens = 10
    found = backend.sample(PROMPTS * 2, SamplingParams(max_tokens=30, seed=0), batch_size=8)
    lengths = [candidate.num_tokens for [candidate] in found]
    assert min(lengths) > 10
    assert len(set(lengths)) > 3


# Stop texts

STOPS = {
    "a byte": ("ab\ncd", ("\n",), "ab\n", "\n"),
    "several tokens": ("a</step>b", ("</step>",), "a</step>", "</step>"),
    "the first that comes": ("a.b,c", (",", "."), "a.", "."),
    "a character of three tokens": ("一。二", ("。",), "一。", "。"),
    "none of them": ("abc", ("x",), "abc", None),
    "one that begins only": ("a</stop", ("</step>",), "a</stop", None),
}


@pytest.mark.parametrize(("said", "stop", "text", "reason"), STOPS.values(), ids=STOPS)
def test_a_stop_text_ends_an_output_and_stays_in_it(make_backend, said, stop, text, reason):
    backend = make_backend()
    backend._end_ids = [backend.tokenizer.eos_token_id]
    with saying(backend, said):
        [[candidate]] = backend.sample(QUESTION, SamplingParams(temperature=0, stop=stop))
    assert (candidate.text, candidate.stop_reason, candidate.finish_reason) == (text, reason, "stop")
    assert candidate.trace.finished is (None if reason else True)
    assert backend._decode(list(candidate.token_ids)).removesuffix("<|im_end|>") == text


def test_a_stop_text_must_be_new(make_backend):
    backend = make_backend()
    backend._end_ids = [backend.tokenizer.eos_token_id]
    with saying(backend, "\nb\n\nc"):
        [[candidate]] = backend.extend(QUESTION, ["a\n"], SamplingParams(temperature=0, stop=("\n\n",)))
    assert candidate.text == "\nb\n\n"


# Extend


def test_a_turn_in_steps_is_the_turn_in_one(make_backend):
    backend = make_backend()
    whole = [candidate.token_ids for [candidate] in backend.sample(PROMPTS, GREEDY)]
    assert steps(backend, temperature=0) == whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_kept_caches_change_no_token(make_backend, model, temperature):
    kept, bare = make_backend(model), make_backend(model, keep_bytes=0)
    assert steps(kept, temperature=temperature) == steps(bare, temperature=temperature)
    assert bool(kept._kept._pieces) == keeps_cache(kept.model)
    assert not bare._kept._pieces


def test_a_search_reads_each_token_once(make_backend):
    backend = make_backend()
    backend.model.generation_config.suppress_tokens = backend._end_ids
    reading, prompt = Reading(backend), [{"role": "user", "content": "x" * 200}]
    beams = [()]
    for seed in range(4):
        params = SamplingParams(n=16 // len(beams), max_tokens=6, seed=seed)
        groups = backend.extend([prompt] * len(beams), beams, params)
        beams = [ids + new.token_ids for ids, group in zip(beams, groups, strict=True) for new in group][::4]
    length = len(backend._encode(prompt, {}))
    assert reading.tokens == length + 4 * 16 * 6


def test_a_prefix_that_was_not_generated_is_read_to_where_it_is_known(make_backend):
    """As roll-outs from the steps of a stored solution: each begins with the ones before."""
    backend, bare = make_backend(), make_backend(keep_bytes=0)
    params = SamplingParams(n=3, max_tokens=4, seed=0)
    reading = Reading(backend)
    for prefix in ("one two", "one two three", "one two three four"):
        assert backend.extend(QUESTION, [prefix], params) == bare.extend(QUESTION, [prefix], params)
    known = len(backend._encode(QUESTION[0], {})) + len("one two three four")
    assert reading.tokens <= known + 3 * 3 * 4 + 3


def test_what_is_kept_stays_within_its_limit(make_backend):
    backend, limit = make_backend(keep_bytes=40_000), 40_000
    assert steps(backend) == steps(make_backend(keep_bytes=0))
    held = [part.nbytes for _, piece in backend._kept._pieces.values() for pair in piece for part in pair]
    assert 0 < sum(held) == backend._kept._num_bytes <= limit


def test_kept_caches_hold_no_batch(make_backend):
    backend = make_backend()
    backend.extend(QUESTION, ["a"], SamplingParams(n=16, max_tokens=4))
    gc.collect()
    for _, piece in backend._kept._pieces.values():
        assert all(part.untyped_storage().nbytes() == part.nbytes for pair in piece for part in pair)


def test_a_trained_model_finds_no_old_caches(make_backend):
    kept, bare = make_backend(), make_backend(keep_bytes=0)
    for backend in (kept, bare):
        steps(backend)
        optimizer = torch.optim.SGD(backend.model.parameters(), lr=1.0)
        backend.model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
        optimizer.step()
    prefix = steps(make_backend())[0][:3]
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=True)
    assert kept.extend(QUESTION, [prefix], params) == bare.extend(QUESTION, [prefix], params)


def test_another_adapter_finds_no_old_caches():
    backend, bare = (TransformersBackend(*load_tiny("thinker"), keep_bytes=size) for size in (2**30, 0))
    prompt, params = [{"role": "user", "content": "12*13=?"}], SamplingParams(temperature=0, max_tokens=12)
    [[first]] = backend.extend([prompt], [""], params)
    with backend.model.disable_adapter(), bare.model.disable_adapter():
        without = backend.extend([prompt], [first.token_ids], params)
        assert without == bare.extend([prompt], [first.token_ids], params)
    assert without != backend.extend([prompt], [first.token_ids], params)


def test_a_candidate_tells_what_is_new_and_the_trace_of_the_whole(make_backend):
    backend = make_backend()
    backend._end_ids = [backend.tokenizer.eos_token_id]
    with saying(backend, "b</think>c"):
        [[candidate]] = backend.extend(QUESTION, ["<think>a"], GREEDY)
    assert candidate.text == "b</think>c"
    assert candidate.trace == Trace("ab", "c", "complete", True)
    assert (candidate.num_tokens, candidate.num_reasoning_tokens) == (4, 2)
    assert candidate.num_prompt_tokens == len(backend._encode(QUESTION[0], {})) + 2
    with saying(backend, "d"):
        [[candidate]] = backend.extend(QUESTION, ["<think>ab</think>c"], GREEDY)
    assert (candidate.text, candidate.num_reasoning_tokens) == ("d", 0)
    assert candidate.trace == Trace("ab", "cd", "complete", True)


def test_text_and_its_tokens_are_the_same_prefix(make_backend):
    backend = make_backend()
    ids = backend.tokenizer.encode("<think>ab", add_special_tokens=False)
    assert backend.extend(QUESTION, [ids], GREEDY) == backend.extend(QUESTION, ["<think>ab"], GREEDY)


def test_prefixes_that_cannot_go_on_are_refused(make_backend):
    backend = make_backend()
    ended = "`prefixes` has a turn that has ended, with token 200: nothing can follow."
    with pytest.raises(ValueError, match=f"^{re.escape(ended)}$"):
        backend.extend(QUESTION, [[5, 200]], GREEDY)
    with pytest.raises(ValueError, match=r"A prompt with its prefix is \d+ tokens long, .* reads at most 512\."):
        backend.extend(QUESTION, ["x" * 500], GREEDY)
    with pytest.raises(ValueError, match="`prefixes` must be as many as `prompts`, got 2 and 1"):
        backend.extend(QUESTION, ["", ""], GREEDY)


# Budgets


@pytest.fixture(scope="module")
def thinker():
    return TransformersBackend(*load_tiny("thinker"))


@pytest.mark.slow
def test_a_budget_closes_the_reasoning_of_every_row(thinker):
    prompts = [[{"role": "user", "content": f"{a}*13=?"}] for a in (12, 45, 67, 31, 28)]
    params = SamplingParams(temperature=0, max_tokens=40, thinking_token_budget=10)
    alone = [thinker.sample([prompt], params)[0] for prompt in prompts]
    assert thinker.sample(prompts, params, batch_size=4) == alone
    assert [(c.trace.status, c.num_reasoning_tokens) for [c] in alone] == [("complete", 13)] * 5


@pytest.mark.slow
def test_a_budget_counts_the_reasoning_of_the_prefix(thinker):
    prompt, params = [{"role": "user", "content": "12*13=?"}], SamplingParams(temperature=0, thinking_token_budget=10)
    [[first]] = thinker.extend([prompt], [""], SamplingParams(temperature=0, max_tokens=6))
    [[rest]] = thinker.extend([prompt], [first.token_ids], params)
    [[whole]] = thinker.sample([prompt], params)
    assert first.text + rest.text == whole.text


@pytest.mark.slow
def test_waits_prolong_the_reasoning(thinker):
    prompt = [{"role": "user", "content": "12*13=?"}]
    [[plain]], [[waited]] = (thinker.sample([prompt], SamplingParams(temperature=0, num_wait=n)) for n in (0, 1))
    assert "Wait," not in plain.text
    assert waited.trace.reasoning.count("Wait,") == 1
    assert waited.num_reasoning_tokens > plain.num_reasoning_tokens
