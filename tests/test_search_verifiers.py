import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from think_tools.backends import SamplingParams, ScriptedBackend, TransformersBackend
from think_tools.rewards import accuracy_reward, get_judge_reward
from think_tools.search import (
    ConfidenceVerifier,
    GenerativeVerifier,
    JudgeVerifier,
    OutcomeVerifier,
    ProcessVerifier,
    RewardVerifier,
    verify,
)
from think_tools.search.verifiers import (
    ask_for_verdict,
    ask_math_shepherd,
    ask_rlhflow,
    encode_output,
    encode_steps,
    steps_of,
)
from think_tools.tiny import load_tiny

PROBLEM = [{"role": "user", "content": "1+1+1=?"}]
OUTPUTS = ["<think>\n1+1=2\n\n2+1=3\n</think>\n\n3", "4", "<think>\n1+1=3\n\n3+1=4\n\n4-1=3\n</think>\n\n3"]


@pytest.fixture(scope="module")
def backend(tiny_model):
    """A random model: what it says means nothing, how it is read does."""
    return TransformersBackend(
        AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    )


def classifier(tiny_model, kind, num_labels):
    torch.manual_seed(0)
    model = kind.from_pretrained(tiny_model, num_labels=num_labels)
    torch.nn.init.normal_(model.score.weight)  # so that scores differ
    return model, AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [("last", [0.5, 0.8]), ("min", [0.25, 0.8]), ("prod", [0.125, 0.8]), ("mean", [0.375, 0.8])],
)
def test_the_scores_of_the_steps_become_one(reduce, expected):
    scores, spent = verify(lambda messages, texts: [[0.25, 0.5], [0.8]], PROBLEM, ["a", "b"], reduce=reduce)
    assert (scores, spent) == (expected, 0)


def test_scores_of_whole_outputs_are_left_as_they_are():
    assert verify(
        lambda messages, texts: [True, torch.tensor([0.5]).numpy()[0]], PROBLEM, ["a", "b"], reduce="min"
    ) == (
        [1.0, 0.5],
        0,
    )


def test_without_texts_no_verifier_is_asked():
    assert verify(lambda messages, texts: 1 / 0, PROBLEM, []) == ([], 0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([0.5], "`verifier` must give a score, or one per step, for each of 2 texts, got \\[0.5\\]"),
        ([[0.5], []], "`verifier` must give a score, or one per step, for each of 2 texts"),
        ([0.5, math.nan], "`verifier` must give finite scores, got \\[0.5, nan\\]"),
    ],
    ids=["one score too few", "a text without any step", "a score that is no number"],
)
def test_scores_that_cannot_be_used_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        verify(lambda messages, texts: found, PROBLEM, ["a", "b"])


def test_an_unknown_reduction_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="`reduce` must be one of \\['last', 'mean', 'min', 'prod'\\], got 'max'"):
        verify(lambda messages, texts: [0.5], PROBLEM, ["a"], reduce="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("<think>\na\n\nb\n</think>\n\n7", ["a\n\n", "b", "7"]),
        ("<think>\na\n\nb\n\n", ["a\n\n", "b"]),
        ("a\n\nb", ["a\n\n", "b"]),
        ("a\n\nb</think>7", ["a\n\n", "b", "7"]),
        ("7", ["7"]),
        ("", [""]),
    ],
    ids=["whole", "cut after a step", "without thinking", "opened by the prompt", "one answer", "nothing at all"],
)
def test_the_steps_of_an_output(text, steps):
    assert steps_of(text) == steps


def test_a_step_reads_alike_in_a_whole_output_and_at_its_end(tokenizer):
    whole, ends = encode_steps(tokenizer, "q", steps_of("<think>\na\n\nb\n\nc\n</think>\n\n7"))
    part, part_ends = encode_steps(tokenizer, "q", steps_of("<think>\na\n\nb\n\n"))
    assert whole[: len(part)] == part
    assert part_ends == ends[:2]


def test_outputs_are_written_behind_the_generation_prompt(tokenizer):
    ids = encode_output(tokenizer, PROBLEM, OUTPUTS[0])
    assert tokenizer.decode(ids) == (
        f"<|im_start|>user\n1+1+1=?<|im_end|>\n<|im_start|>assistant\n{OUTPUTS[0]}<|im_end|>"
    )


def test_a_reward_sees_messages_prompts_and_columns():
    verifier = RewardVerifier(accuracy_reward, columns=lambda messages: {"solution": "3"})
    assert verify(verifier, PROBLEM, OUTPUTS) == ([1.0, 0.0, 1.0], 0)


def test_an_asynchronous_reward_is_awaited():
    async def client(messages):
        return "relevance: 4"

    assert RewardVerifier(get_judge_reward(client))(PROBLEM, ["3"]) == [0.4]


def test_a_reward_without_a_number_is_refused():
    with pytest.raises(ValueError, match="`reward` must give a number for every output, got \\[None\\]"):
        RewardVerifier(lambda completions, **columns: [None])(PROBLEM, ["3"])


@pytest.mark.parametrize("num_labels", [1, 2])
def test_an_outcome_model_scores_alike_alone_and_in_a_batch(tiny_model, num_labels):
    model, tokenizer = classifier(tiny_model, AutoModelForSequenceClassification, num_labels)
    verifier = OutcomeVerifier(model, tokenizer)
    scores, spent = verify(verifier, PROBLEM, OUTPUTS)
    assert spent == sum(len(encode_output(tokenizer, PROBLEM, text)) for text in OUTPUTS)
    alone = OutcomeVerifier(model, tokenizer, batch_size=1)
    assert alone(PROBLEM, OUTPUTS) == pytest.approx(scores, rel=1e-5)
    logits = model(input_ids=torch.tensor([encode_output(tokenizer, PROBLEM, OUTPUTS[0])])).logits[0].detach()
    expected = logits.sigmoid()[0] if num_labels == 1 else logits.softmax(-1)[1]
    assert scores[0] == pytest.approx(float(expected), rel=1e-5)
    assert len(set(scores)) == 3


def test_large_logits_are_told_apart(tiny_model):
    model, tokenizer = classifier(tiny_model, AutoModelForSequenceClassification, 1)
    model.score.weight.data *= 25 / abs(model(torch.tensor([encode_output(tokenizer, PROBLEM, "3")])).logits.item())
    scores = OutcomeVerifier(model, tokenizer)(PROBLEM, OUTPUTS)
    assert len(set(scores)) == 3
    assert all(0 < score < 1 for score in scores)


def test_a_process_model_scores_each_step_at_its_separator(tiny_model):
    model, tokenizer = classifier(tiny_model, AutoModelForTokenClassification, 2)
    verifier = ProcessVerifier(model, tokenizer, batch_size=2)
    scores = verifier(PROBLEM, OUTPUTS)
    assert [len(steps) for steps in scores] == [3, 1, 4]
    encoded = [encode_steps(tokenizer, "1+1+1=?", steps_of(text)) for text in OUTPUTS]
    assert verifier.num_tokens == sum(len(ids) for ids, _ in encoded)
    for (ids, ends), steps in zip(encoded, scores, strict=True):
        assert all(tokenizer.decode(ids[end]) == "\n" for end in ends)
        logits = model(input_ids=torch.tensor([ids])).logits[0, ends].detach()
        assert steps == pytest.approx(logits.softmax(-1)[:, 1].tolist(), rel=1e-5)


def test_the_score_of_a_step_does_not_hang_on_what_follows(tiny_model):
    verifier = ProcessVerifier(*classifier(tiny_model, AutoModelForTokenClassification, 2))
    [whole, part] = verifier(PROBLEM, [OUTPUTS[2], "<think>\n1+1=3\n\n3+1=4\n\n"])
    assert whole[:2] == pytest.approx(part, rel=1e-5)


@pytest.mark.parametrize(
    ("verifier", "kind", "num_labels", "message"),
    [
        (OutcomeVerifier, AutoModelForSequenceClassification, 3, "`model` must have one label or two, got 3"),
        (ProcessVerifier, AutoModelForTokenClassification, 1, "`model` must have two labels, got 1"),
    ],
)
def test_a_model_with_other_labels_is_refused(tiny_model, verifier, kind, num_labels, message):
    model, tokenizer = classifier(tiny_model, kind, num_labels)
    with pytest.raises(ValueError, match=message):
        verifier(model, tokenizer)


def test_an_output_longer_than_the_context_is_refused_and_not_cut(tiny_model):
    verifier = ProcessVerifier(*classifier(tiny_model, AutoModelForTokenClassification, 2))
    with pytest.raises(ValueError, match="are up to 5008 tokens long with their prompt, but the verifier reads 4096"):
        verifier(PROBLEM, ["a" * 5000])


def test_a_verifier_leaves_the_model_in_its_mode(tiny_model):
    model, tokenizer = classifier(tiny_model, AutoModelForTokenClassification, 2)
    for training in (True, False):
        model.train(training)
        ProcessVerifier(model, tokenizer)(PROBLEM, ["3"])
        assert model.training is training


@pytest.mark.parametrize(
    ("ask", "yes", "no"),
    [(ask_for_verdict, "Y", "N"), (ask_math_shepherd, "+", "-"), (ask_rlhflow, "+", "-")],
)
def test_a_verdict_is_the_share_of_yes_among_the_two(backend, ask, yes, no):
    verifier = GenerativeVerifier(backend, ask, yes=yes, no=no, batch_size=2)
    scores = verifier(PROBLEM, OUTPUTS)
    assert [len(steps) for steps in scores] == [3, 1, 4]
    steps = steps_of(OUTPUTS[2])
    asked, tokenizer = ask(PROBLEM, steps), backend.tokenizer
    text = (
        asked
        if isinstance(asked, str)
        else tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )
    logits = backend.model(torch.tensor([tokenizer.encode(text)])).logits[0, -1].detach()
    expected = logits[tokenizer.encode(yes) + tokenizer.encode(no)].softmax(-1)[0]
    assert scores[2][-1] == pytest.approx(float(expected), rel=1e-4)
    assert verifier.num_tokens > 0


def test_the_prompts_of_the_three_kinds():
    steps = ["1+1=2\n\n", "2+1=3"]
    assert ask_math_shepherd(PROBLEM, steps) == "1+1+1=? 1+1=2 ки 2+1=3 ки"
    assert [(turn["role"], turn["content"]) for turn in ask_rlhflow(PROBLEM, steps)] == [
        ("user", "1+1+1=? 1+1=2"),
        ("assistant", "+"),
        ("user", "2+1=3"),
    ]
    [asked] = ask_for_verdict(PROBLEM, steps)
    assert "1+1=2\n\n2+1=3\n\nIs this solution correct so far?" in asked["content"]


def test_a_whole_output_can_be_asked_for_at_once(backend):
    verifier = GenerativeVerifier(backend, yes="Y", no="N", by_step=False)
    assert [len(scores) for scores in verifier(PROBLEM, OUTPUTS)] == [1, 1, 1]


def test_a_verdict_comes_after_the_thought_that_was_sampled(backend, monkeypatch):
    thoughts = ScriptedBackend(lambda messages, prefix, number: "<think>\nhm\n</think>\n\nNo" if number else "Yes")
    monkeypatch.setattr(backend, "sample", thoughts.sample)
    seen = []
    monkeypatch.setattr(
        "think_tools.search.verifiers.prompted.forward",
        lambda model, rows, batch_size, last_only: seen.extend(rows) or iter([(torch.zeros(2, 1, 261), [0, 0])]),
    )
    verifier = GenerativeVerifier(backend, yes="Y", no="N", thinking=SamplingParams())
    assert verifier(PROBLEM, ["3", "3"]) == [[0.5], [0.5]]
    texts = [backend.tokenizer.decode(ids) for ids in seen]
    assert texts[0].endswith("assistant\n")
    assert texts[1].endswith("assistant\n<think>\nhm\n</think>\n\n")
    assert verifier.num_tokens > sum(map(len, seen))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`yes` and `no` must be one token each, got 'Yes' and 'No'"),
        ({"yes": "Y", "no": "N", "thinking": SamplingParams(n=2)}, "`thinking.n` must be 1, got 2"),
    ],
)
def test_verdicts_that_cannot_be_read_are_refused(backend, arguments, message):
    with pytest.raises(ValueError, match=message):
        GenerativeVerifier(backend, **arguments)


def test_a_text_has_no_place_for_a_thought(backend):
    verifier = GenerativeVerifier(backend, ask_math_shepherd, yes="+", no="-", thinking=SamplingParams())
    with pytest.raises(ValueError, match="`thinking` needs an `ask` that gives messages"):
        verifier(PROBLEM, ["3"])


def test_confidence_is_the_mean_probability_that_sampling_reports():
    backend = TransformersBackend(*load_tiny("thinker"))
    params = SamplingParams(n=2, max_tokens=384, logprobs=True, seed=0)
    [candidates] = backend.sample([[{"role": "user", "content": "12*13=?"}]], params)
    verifier = ConfidenceVerifier(backend)
    scores = verifier([{"role": "user", "content": "12*13=?"}], [candidate.text for candidate in candidates])
    assert [math.log(score) for score in scores] == pytest.approx([c.logprob for c in candidates], abs=1e-4)
    assert verifier.num_tokens == sum(c.num_tokens + c.num_prompt_tokens for c in candidates)


def test_a_judge_is_asked_again_for_what_cannot_be_read(caplog):
    replies = {"3": "correctness: 10", "4": "I cannot tell."}
    judge = ScriptedBackend(
        lambda messages, prefix, number: (
            "correctness: 7" if number else replies[messages[1]["content"].partition("= ANSWER =====\n")[2][0]]
        )
    )
    scores, spent = verify(JudgeVerifier(judge), PROBLEM, ["3", "4"])
    assert scores == [1.0, 0.7]
    assert len(judge.calls) == 3
    assert spent > 0
    assert not caplog.records


def test_a_judge_who_never_answers_gives_nothing_and_the_log_says_so(caplog):
    judge = ScriptedBackend(lambda messages, prefix, number: "I cannot tell.")
    assert JudgeVerifier(judge)(PROBLEM, ["3", "4"]) == [0.0, 0.0]
    assert "The judge gave no score for 2 of 2 outputs: 0.0." in caplog.text
