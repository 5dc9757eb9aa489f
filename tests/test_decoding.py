import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    TextStreamer,
)
from trl import SFTConfig, TrlParser

from think_tools import FORMATS, THINK, parse
from think_tools.decoding import (
    ConfidenceTracker,
    SuppressReflection,
    ThinkingBudget,
    after_think,
    generate_in_stages,
    get_budget_rollout,
)
from think_tools.decoding.phases import ANSWER, THINKING, PhaseTable
from think_tools.losses import ThinkSFTTrainer

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# Of different lengths; the last one opens the reasoning itself.
PROMPTS = [PROMPT.format("2+2?"), PROMPT.format("What is 20 times 30?"), PROMPT.format("3+4?") + "<think>\n"]
THOUGHTS = ["\n2 and 2\n", "\n20 times 3 is 60, so 600\n", "3\n"]
GREEDY = {"do_sample": False}


class Keep(LogitsProcessor):
    """Keeps the logits of every step, (batch, vocabulary)."""

    def __init__(self):
        self.steps = []

    def __call__(self, input_ids, scores):
        self.steps.append(scores)
        return scores


class Write(LogitsProcessor):
    """Makes row `i` write `texts[i]`, then end its turn."""

    def __init__(self, tokenizer, texts):
        self.rows, self.start = [tokenizer.encode(text) for text in texts], None
        self.end = tokenizer.eos_token_id

    def __call__(self, input_ids, scores):
        self.start = input_ids.shape[1] if self.start is None else self.start
        at = input_ids.shape[1] - self.start
        forced = torch.full_like(scores, float("-inf"))
        for row, ids in zip(forced, self.rows, strict=True):
            row[ids[at] if at < len(ids) else self.end] = 0
        return forced


@pytest.fixture
def model_of(tiny_model):
    def load(attention="sdpa"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
        return model.eval(), AutoTokenizer.from_pretrained(tiny_model)

    return load


def run(model, tokenizer, thoughts, prompts=PROMPTS, staged_attention=True, **kwargs):
    """Both stages with written reasoning; the outputs and the logits of the answers, a list per row."""
    keep = Keep()
    outputs = generate_in_stages(
        model,
        tokenizer,
        prompts,
        reasoning_kwargs=GREEDY | {"logits_processor": [Write(tokenizer, thoughts)]},
        answer_kwargs=GREEDY | {"max_new_tokens": 4, "logits_processor": [keep]},
        staged_attention=staged_attention,
        **kwargs,
    )
    return outputs, torch.stack(keep.steps, 1)


def training_logits(model, tokenizer, prompt, output) -> torch.Tensor:
    """Logits of the answer under the mask that `ThinkSFTTrainer` trains with, (answer, vocabulary)."""
    question = tokenizer.encode(prompt if "<think>" in prompt else prompt + "<think>", add_special_tokens=False)
    question = question[: question.index(tokenizer.convert_tokens_to_ids("<think>")) + 1]
    ids = torch.tensor([question + output.completion_ids])
    closed = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("</think>"))
    trainer = ThinkSFTTrainer.__new__(ThinkSFTTrainer)
    trainer.model = model
    mask = trainer._staged(torch.ones_like(ids), torch.tensor([[len(question), closed]]))
    return model(ids, attention_mask=mask).logits[0, closed:-1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_stages_give_the_logits_of_the_training_mask(model_of, attention):
    """Rows of different lengths, padded beside one another; one has its opening marker in the prompt."""
    model, tokenizer = model_of(attention)
    outputs, logits = run(model, tokenizer, [f"{thought}</think>" for thought in THOUGHTS])
    for prompt, output, row in zip(PROMPTS, outputs, logits, strict=True):
        trained = training_logits(model, tokenizer, prompt, output)
        torch.testing.assert_close(row[: len(trained)], trained, rtol=1e-4, atol=1e-5)
        assert output.closed
    assert [output.trace.reasoning for output in outputs] == [thought.strip() for thought in THOUGHTS]


def test_without_staged_attention_they_are_those_of_one_pass(model_of):
    model, tokenizer = model_of()
    outputs, logits = run(model, tokenizer, [f"{thought}</think>" for thought in THOUGHTS], staged_attention=False)
    for prompt, output, row in zip(PROMPTS, outputs, logits, strict=True):
        opened = prompt.removesuffix("\n") if "<think>" in prompt else prompt + "<think>"
        ids = torch.tensor([tokenizer.encode(opened) + output.completion_ids])
        answer = len(output.completion_ids) - output.completion_ids.index(tokenizer.convert_tokens_to_ids("</think>"))
        torch.testing.assert_close(row[: answer - 1], model(ids).logits[0, -answer:-1], rtol=1e-4, atol=1e-5)


def test_the_answer_cannot_tell_which_question_was_asked(model_of):
    """With an empty reasoning nothing of the question is left, save its length, which the positions tell."""
    model, tokenizer = model_of()
    prompts = [PROMPT.format("2+2?"), PROMPT.format("9*8?")]
    for staged in (True, False):
        keep = Keep()
        generate_in_stages(
            model, tokenizer, prompts, reasoning=["", ""], staged_attention=staged,
            answer_kwargs=GREEDY | {"max_new_tokens": 2, "logits_processor": [keep]},
        )  # fmt: skip
        assert torch.allclose(*keep.steps[0], atol=1e-6) == staged


def test_given_reasoning_answers_like_reasoning_of_its_own(model_of):
    model, tokenizer = model_of()
    _, own = run(model, tokenizer, [f"{thought}</think>" for thought in THOUGHTS])
    keep = Keep()
    kwargs = GREEDY | {"max_new_tokens": 4, "logits_processor": [keep]}
    outputs = generate_in_stages(
        model, tokenizer, PROMPTS, reasoning=THOUGHTS, answer_kwargs=kwargs, staged_attention=True
    )
    torch.testing.assert_close(torch.stack(keep.steps, 1), own, rtol=1e-5, atol=1e-5)
    assert [output.closed for output in outputs] == [False] * 3


def test_each_stage_has_its_own_sampling(model_of):
    """One row closes its reasoning, one ends its turn in it, one is cut: all of them answer."""
    model, tokenizer = model_of()
    thoughts = Write(tokenizer, ["a</think>", "b", "c" * 99])
    outputs = generate_in_stages(
        model, tokenizer, PROMPTS,
        reasoning_kwargs=GREEDY | {"max_new_tokens": 8, "logits_processor": [thoughts]},
        answer_kwargs=GREEDY | {"logits_processor": [Write(tokenizer, ["\n\n4", "\n\n600", "\n\n7"])]},
    )  # fmt: skip
    assert [(o.trace.reasoning, o.trace.answer, o.closed, o.trace.finished) for o in outputs] == [
        ("a", "4", True, True),
        ("b", "600", False, True),
        ("c" * 8, "7", False, True),
    ]
    assert tokenizer.decode(outputs[1].completion_ids) == "b\n</think>\n\n600<|im_end|>"


def test_messages_and_a_budget_of_the_reasoning_alone(model_of):
    model, tokenizer = model_of()
    chat = [{"role": "user", "content": "2+2?"}]
    budget = ThinkingBudget(tokenizer, 4, closing_text="!\n")
    kwargs = {
        "reasoning_kwargs": GREEDY | {"logits_processor": [budget]},
        "answer_kwargs": GREEDY | {"max_new_tokens": 3},
    }
    [first] = generate_in_stages(model, tokenizer, [chat], **kwargs)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert generate_in_stages(model, tokenizer, [text], **kwargs) == [first]
    assert first.completion_ids[4:7] == tokenizer.encode("!\n</think>")
    assert first.closed


def test_an_answer_that_is_cut_says_so(model_of):
    model, tokenizer = model_of()
    [output] = generate_in_stages(
        model, tokenizer, PROMPTS[:1], reasoning=["2"],
        answer_kwargs=GREEDY | {"max_new_tokens": 2, "logits_processor": [Write(tokenizer, ["4444"])]},
    )  # fmt: skip
    assert (output.trace.answer, output.trace.finished) == ("44", False)


@pytest.mark.parametrize("name", ["magistral", "seed_oss"])
def test_markers_of_several_tokens(model_of, name):
    """Closing markers of different lengths are put side by side: generated ones, and one with a line break before."""
    model, tokenizer = model_of()
    fmt = FORMATS[name]
    thoughts = [f"a{fmt.close}", "bb", f"ccc{fmt.close}"]
    prompts = [prompt.replace("<think>", fmt.open) for prompt in PROMPTS]
    outputs, together = run(model, tokenizer, thoughts, prompts, fmt=fmt)
    assert [output.trace.reasoning for output in outputs] == ["a", "bb", "ccc"]
    for i in range(3):
        _, alone = run(model, tokenizer, thoughts[i : i + 1], prompts[i : i + 1], fmt=fmt)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)


REFUSED = {
    "no prompt": ([], {}, "`prompts` needs at least one, and `reasoning` as many, got 0 and None"),
    "less reasoning than prompts": (PROMPTS, {"reasoning": ["a"]}, "got 3 and 1"),
    "thinking switched off": (["2+2?<think>\n\n</think>\n\n"], {}, "must not end in </think>: render them without"),
    "several outputs per prompt": (
        PROMPTS,
        {"reasoning_kwargs": {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 2}},
        "6 outputs for 3 prompts: repeat `prompts`, not return sequences",
    ),
}


@pytest.mark.parametrize(("prompts", "kwargs", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_staged_is_refused(model_of, prompts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate_in_stages(*model_of(), prompts, **kwargs)


def test_layers_whose_state_carries_the_question_are_refused(model_of):
    model, tokenizer = model_of()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match=r"cannot hide the question from layers with \['linear_attention'\]"):
        generate_in_stages(model, tokenizer, PROMPTS, staged_attention=True)


def written(tokenizer, processor, prompt, wish, steps=40):
    """What comes out if a model without other wishes writes token `i` of `wish` at step `i`, then ends its turn."""
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    wishes, start = tokenizer.encode(wish, add_special_tokens=False), len(ids)
    while len(ids) - start < steps and ids[-1] != tokenizer.eos_token_id:
        scores, at = torch.zeros(1, len(tokenizer) + 3), len(ids) - start
        scores[0, wishes[at] if at < len(wishes) else tokenizer.eos_token_id] = 50
        ids.append(int(processor(torch.tensor([ids]), scores).argmax()))
    return tokenizer.decode(ids[start:])


END = "<|im_end|>"
BUDGETS = {
    "closed when the budget is spent": (3, {}, "q", "<think>abcdefg", "<think>abc\n</think>fg" + END),
    "a sentence before the marker": (
        3,
        {"closing_text": ".!\n"},
        "q",
        "<think>abcdefghi",
        "<think>abc.!\n</think>hi" + END,
    ),
    "prefilled reasoning counts": (3, {}, "<think>\n", "abcdefg", "ab\n</think>efg" + END),
    "a budget of nothing": (0, {}, "<think>", "abcdefg", "\n</think>cdefg" + END),
    "the prompt closed the reasoning": (0, {}, "<think>\n\n</think>\n\n", "abc", "abc" + END),
    "a turn before has closed its own": (
        2,
        {},
        f"<think>a</think>b{END}\n<|im_start|>",
        "<think>abcd",
        "<think>ab\n</think>" + END,
    ),
    "a user who writes markers": (2, {}, f"Why <think>?{END}\n<|im_start|>assistant\n", "abcdef", "abcdef" + END),
    "closes in time": (9, {}, "<think>", "abc</think>d", "abc</think>d" + END),
    "does not think": (0, {}, "q", "abc", "abc" + END),
    "the answer may speak of markers": (2, {}, "<think>", "a</think>b<think>cdefg", "a</think>b<think>cdefg" + END),
    "cannot end its turn in the reasoning": (5, {}, "<think>", "ab", "ab!!!\n</think>" + END),
    "must think for a while": (
        None,
        {"min_thinking_tokens": 3},
        "<think>",
        "a</think></think></think>b",
        "a!!</think>b" + END,
    ),
    "waits instead of closing": (
        None,
        {"num_wait": 1, "wait_text": "W:"},
        "<think>",
        "a</think>bc</think>d",
        "aW:c</think>d" + END,
    ),
    "waits instead of ending its turn": (
        4,
        {"num_wait": 1, "wait_text": "W:"},
        "<think>",
        "a",
        "aW:!\n</think>" + END,
    ),
    "the budget ends the waits": (
        2,
        {"num_wait": 2, "wait_text": "W:"},
        "<think>",
        "a</think>bcdefg",
        "aW:\n</think>efg" + END,
    ),
}


@pytest.mark.parametrize(("budget", "kwargs", "prompt", "wish", "expected"), BUDGETS.values(), ids=BUDGETS)
def test_a_budget(tokenizer, budget, kwargs, prompt, wish, expected):
    processor = ThinkingBudget(tokenizer, budget, **kwargs)
    for _ in range(2):  # one processor serves many generations
        assert written(tokenizer, processor, prompt, wish) == expected


@pytest.mark.parametrize("fmt", {fmt.name: fmt for fmt in FORMATS.values()}.values(), ids=lambda fmt: fmt.name)
def test_a_budget_in_every_format(tokenizer, fmt):
    """Most markers are many tokens here."""
    text = written(tokenizer, ThinkingBudget(tokenizer, 5, fmt=fmt), fmt.open, "abcdefghijk", steps=90)
    trace = parse(text.removesuffix(END), opened=True, fmt=fmt)
    assert (trace.status, trace.reasoning) == ("complete", "abcde")
    closed = written(tokenizer, ThinkingBudget(tokenizer, 50, fmt=fmt), fmt.open, f"abc{fmt.close}def", steps=90)
    assert closed == f"abc{fmt.close}def{END}"


@pytest.mark.parametrize("name", ["think", "granite_3_2", "gemma_4", "kimi_k3", "magistral"])
@pytest.mark.parametrize("opened", [True, False])
def test_phases_are_those_of_parse_however_the_text_is_cut(tokenizer, name, opened):
    fmt, draw = FORMATS[name], random.Random(0)
    table = PhaseTable(tokenizer, fmt)
    pieces = [fmt.open, fmt.close, fmt.close[:-1], fmt.open[:3], fmt.close[:2], " ", "\n", "a", "b<"]
    for _ in range(300):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 7)))
        state, rest = table.phases.index(THINKING) if opened else 0, text
        while rest:
            cut = draw.randrange(1, len(rest) + 1)
            state, rest = table.advance(state, rest[:cut]), rest[cut:]
        status = parse(text, opened=opened, fmt=fmt).status
        assert (table.phases[state] == THINKING) == (status == "truncated"), text
        assert status != "complete" or table.phases[state] == ANSWER, text


def joined_tokenizer():
    """Pieces of markers, joined with what stands beside them, as vocabularies have them."""
    words = ["</", "think", ">\n", ".</", "k>", ">", "<", "th", "ink>", "</think", "a", "Ċ", "!", "!</think>!"]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({w.replace("\n", "Ċ"): i for i, w in enumerate(words)}, [])),
        eos_token="!",
    )


def test_tokens_that_are_left_out_of_the_table_change_nothing():
    table = PhaseTable(joined_tokenizer(), THINK)
    inside = table.phases.index(THINKING)
    state = inside
    for text in [".</", "think", ">\n"]:
        token = next(token for token, own in table.texts.items() if own == text)
        state = table.columns[token][state]
    assert table.phases[state] == ANSWER
    for token, text in table.texts.items():
        assert table.columns.get(token, table.other) == table._column(text)


def test_tokens_of_a_vocabulary_that_is_not_of_bytes():
    core = Tokenizer(models.BPE({"a": 0, "▁</": 1, "<0xE2>": 2, "◁": 3}, []))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = PhaseTable(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="a"), THINK).texts
    assert texts == {0: "a", 1: " </", 2: "\xe2", 3: "◁".encode().decode("latin-1")}


def test_in_a_batch_with_samples_beams_and_a_streamer(model_of, capsys):
    model, tokenizer = model_of()
    budget = ThinkingBudget(tokenizer, 6)
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    ways = {"samples": {"do_sample": True, "num_return_sequences": 4}, "beams": {"num_beams": 3, "do_sample": False}}
    for kwargs in ways.values():
        torch.manual_seed(0)
        output = model.generate(**inputs, max_new_tokens=12, logits_processor=[budget], **kwargs)
        for row in output[2 * len(output) // 3 :]:  # those of the prompt that is open
            reasoning = tokenizer.decode(row).partition("<think>")[2].partition("</think>")[0]
            assert len(reasoning.encode()) <= 7 + 2 * reasoning.count("\ufffd")
            assert "</think>" in tokenizer.decode(row)
    inputs = tokenizer(PROMPTS[2], return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    model.generate(**inputs, max_new_tokens=9, logits_processor=[budget], streamer=streamer, **GREEDY)
    assert "</think>" in capsys.readouterr().out
    assert budget.forced == [[inputs["input_ids"].shape[1] + 5, inputs["input_ids"].shape[1] + 6]]


def test_ids_that_the_tokenizer_does_not_have_cannot_be_drawn(tokenizer):
    scores = ThinkingBudget(tokenizer)(torch.tensor([[1]]), torch.zeros(1, 300))
    assert scores.isinf().nonzero()[:, 1].tolist() == [*range(len(tokenizer), 300)]


def test_one_read_of_the_device_per_step(tokenizer, monkeypatch):
    """Waits included: whether a model wanted to stop is read together with the tokens of the next step."""
    reads = []
    for name in ("tolist", "item", "cpu", "__bool__", "numpy"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, _own=own: reads.append(1) or _own(*a))
    budget = ThinkingBudget(tokenizer, 20, num_wait=2, min_thinking_tokens=3)
    ids = torch.tensor([tokenizer.encode("<think>")] * 2)
    for step in range(40):
        reads.clear()
        budget(ids, torch.randn(2, len(tokenizer)))
        assert len(reads) <= 1 or step == 0  # the whole prompt is read once more
        ids = torch.cat([ids, torch.full((2, 1), 5)], 1)


def test_rows_in_another_order_go_on_where_they_were(tokenizer):
    """As after a beam search's step, or when a step search takes up a prefix: in a closing sentence, after a wait."""
    budget = ThinkingBudget(tokenizer, 2, closing_text="Stop.\n")
    for begun in ("ab", "abS", "abStop.", "abStop.\n"):
        assert written(tokenizer, budget, f"<think>{begun}", "x" * 7).startswith("abStop.\n</think>"[len(begun) :])
    waited = ThinkingBudget(tokenizer, num_wait=1, wait_text="W:")
    assert written(tokenizer, waited, "<think>aW:", "b</think>c") == "b</think>c" + END


REFUSED_BUDGETS = {
    "negative": ({"thinking_token_budget": -1}, "`thinking_token_budget` must be at least 0, got -1"),
    "more at least than at most": (
        {"thinking_token_budget": 3, "min_thinking_tokens": 4},
        "`min_thinking_tokens` is 4, more than `thinking_token_budget=3` allows",
    ),
    "a closing text that closes": ({"closing_text": "</think>"}, "must close the reasoning with their last token"),
}


@pytest.mark.parametrize(("kwargs", "message"), REFUSED_BUDGETS.values(), ids=REFUSED_BUDGETS)
def test_budgets_that_cannot_be_kept(tokenizer, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ThinkingBudget(tokenizer, **kwargs)


PROCESSORS = {
    "budget": ThinkingBudget,
    "words": lambda tokenizer: SuppressReflection(tokenizer, ["a"]),
    "grammar": lambda tokenizer: after_think(lambda: None, tokenizer),
    "confidence": ConfidenceTracker,
}


@pytest.mark.parametrize("make", PROCESSORS.values(), ids=PROCESSORS)
def test_continuous_batching_is_refused_not_ignored(tokenizer, make):
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

    with pytest.raises(ValueError, match=r"Continuous batching drops logits processors.*Use `model.generate`"):
        ContinuousBatchingLogitsProcessorList(LogitsProcessorList([make(tokenizer)]))


def test_words_of_doubt_are_left_out_of_the_reasoning_alone(tokenizer):
    processor = SuppressReflection(tokenizer, ["x", "Y"])
    assert written(tokenizer, processor, "<think>", "axyXb</think>xy") == "a!!!b</think>xy" + END
    with pytest.raises(ValueError, match=r"`words` \['wait'\] are no single tokens"):
        SuppressReflection(tokenizer, ["x", "wait"])
    with pytest.raises(ValueError, match="are no single tokens"):
        SuppressReflection(tokenizer)


def two_digits(tokenizer):
    """A processor of llguidance, for one row: two digits after white space."""
    llguidance = pytest.importorskip("llguidance")
    from llguidance.hf import from_tokenizer

    core = from_tokenizer(tokenizer)

    def make():
        matcher, begun = llguidance.LLMatcher(core, r"start: /\s*[0-9]{2}/"), []

        def process(input_ids, scores):
            if begun:
                assert matcher.consume_token(int(input_ids[0, -1])), "rejected"
            begun.append(1)
            bits = matcher.compute_bitmask()
            allowed = torch.tensor([bits[t // 8] >> t % 8 & 1 for t in range(len(tokenizer))], dtype=torch.bool)
            return scores[:, : len(tokenizer)].masked_fill(~allowed, float("-inf"))

        return process

    return make


GRAMMARS = {
    "after the reasoning": ("<think>", "abc</think>\n\n42", "abc</think>\n\n42" + END),
    "what it forbids": ("<think>", "a</think>4xyz", "a</think>40" + END),
    "opened by the model": ("", "<think>a</think>42", "<think>a</think>42" + END),
    "no reasoning": ("<think>\n\n</think>\n\n", "42", "42" + END),
    "a model that does not think": ("", "4x", "40" + END),
}


@pytest.mark.parametrize(("prompt", "wish", "expected"), GRAMMARS.values(), ids=GRAMMARS)
def test_a_grammar_of_the_answer(tokenizer, prompt, wish, expected):
    make = two_digits(tokenizer)

    def padded():
        process = make()
        return lambda ids, scores: torch.nn.functional.pad(process(ids, scores), (0, 3), value=float("-inf"))

    processor = after_think(padded, tokenizer)
    for _ in range(2):
        assert written(tokenizer, processor, f"<|im_start|>assistant\n{prompt}", wish) == expected


def test_a_grammar_begins_in_each_row_when_this_row_gets_there(model_of):
    model, tokenizer = model_of()
    texts = ["a</think>12", "bbbbbb</think>3", "c</think>\n456"]
    prompts = [PROMPT.format(q) + "<think>" for q in ("1", "22", "333")]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    budget, grammar = ThinkingBudget(tokenizer), after_think(two_digits(tokenizer), tokenizer)

    class Wish(Write):
        def __call__(self, input_ids, scores):
            return super().__call__(input_ids, scores).clamp(min=-50)

    output = model.generate(
        **inputs, max_new_tokens=14, logits_processor=[Wish(tokenizer, texts), budget, grammar], **GREEDY
    )
    answers = [tokenizer.decode(row).partition("</think>")[2] for row in output]
    assert [answer.partition(END)[0].strip() for answer in answers] == ["12", "30", "45"]


def test_confidence_is_that_of_the_logits(model_of):
    model, tokenizer = model_of()
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    width = inputs["input_ids"].shape[1]
    tracker = ConfidenceTracker(tokenizer, k=5, window=3)
    texts = ["<think>ab</think>cd", "<think>abcdefgh", "x</think>y"]
    output = model.generate(
        **inputs, max_new_tokens=8, logits_processor=[tracker, Write(tokenizer, texts)],
        output_logits=True, return_dict_in_generate=True, **GREEDY,
    )  # fmt: skip
    measured = tracker.finish(output.sequences)
    logits = torch.stack(output.logits, 1).log_softmax(-1)
    lengths, answers = [7, 8, 4], [[4, 5, 6], [], [2, 3]]  # the end of the turn included
    for row, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        new = output.sequences[row, width : width + length]
        logprobs = logits[row, :length].gather(1, new[:, None])[:, 0]
        sure = -logits[row, :length].topk(5).values.mean(1)
        groups = sure.unfold(0, 3, 1).mean(1)
        assert measured[row].logprob == pytest.approx(logprobs.mean().item(), abs=1e-5)
        assert measured[row].answer_logprob == (
            pytest.approx(logprobs[answer].mean().item(), abs=1e-5) if answer else None
        )
        assert measured[row].lowest_group == pytest.approx(groups.min().item(), abs=1e-5)
        assert measured[row].tail == pytest.approx(sure[-3:].mean().item(), abs=1e-5)
        assert measured[row].mean == pytest.approx(sure.mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="are not what this tracker followed"):
        tracker.finish(output.sequences)


@pytest.fixture
def grpo(tokenizer, tiny_model, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def make(rollout, **kwargs):
        seen = []

        def reward(completions, completion_ids, **columns):
            seen.extend(completion_ids)
            return [float(len(ids) % 3) for ids in completion_ids]

        config = GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_steps=1,
            max_completion_length=16, use_cpu=True, bf16=False, activation_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True, chat_template_kwargs={"enable_thinking": True},
        )  # fmt: skip
        row = {"prompt": [{"role": "user", "content": "2+3?"}]}
        trainer = GRPOTrainer(
            model=str(tiny_model), args=config, processing_class=tokenizer, reward_funcs=reward, rollout_func=rollout,
            train_dataset=Dataset.from_list([row] * 4), **kwargs,
        )  # fmt: skip
        return trainer, seen

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*rollout_func.*")
def test_grpo_under_a_budget(grpo, tokenizer, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    rollout = get_budget_rollout(3, closing_text=".\n")
    trainer, seen = grpo(rollout)
    result = rollout([[{"role": "user", "content": "2+3?"}], [{"role": "user", "content": "What is 12+13?"}]], trainer)
    for prompt, ids, mask in zip(result["prompt_ids"], result["completion_ids"], result["env_mask"], strict=True):
        assert len(ids) == len(mask)
        assert tokenizer.decode(prompt).endswith("assistant\n<think>")
        assert ids[3:6] == tokenizer.encode(".\n</think>")
        assert mask[:7] == [1, 1, 1, 0, 0, 0, 1]
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(seen) == 4
    assert [ids[5] for ids in seen] == [tokenizer.convert_tokens_to_ids("</think>")] * 4


@pytest.mark.slow
def test_the_recipe_measures_both_kinds_of_attention(tmp_path, capsys):
    path = Path(__file__).parents[1] / "recipes/staged_attention.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe  # dataclasses look their module up while they are made
    spec.loader.exec_module(recipe)
    flags = ["--config", str(path.parent / "tiny/staged_attention.yaml"), "--output_dir", str(tmp_path)]
    flags += ["--max_steps", "1", "--num_rows", "32", "--num_problems", "2"]
    results = recipe.main(*TrlParser((recipe.StagedArguments, SFTConfig)).parse_args_and_config(flags))
    assert set(results) == {"ordinary", "staged"}
    # The cold start copies the number in which its reasoning ends: one step changes nothing about it.
    assert all(found["of another problem"] == "0.0%, 100.0%" for found in results.values())
    assert "| its own, one digit of the result changed | " in capsys.readouterr().out
