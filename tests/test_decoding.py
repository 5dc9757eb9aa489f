import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor
from trl import SFTConfig, TrlParser

from think_tools import FORMATS
from think_tools.decoding import generate_in_stages
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


def run(model, tokenizer, thoughts, prompts=PROMPTS, **kwargs):
    """Both stages with written reasoning; the outputs and the logits of the answers, a list per row."""
    keep = Keep()
    outputs = generate_in_stages(
        model,
        tokenizer,
        prompts,
        reasoning_kwargs=GREEDY | {"logits_processor": [Write(tokenizer, thoughts)]},
        answer_kwargs=GREEDY | {"max_new_tokens": 4, "logits_processor": [keep]},
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
    outputs = generate_in_stages(model, tokenizer, PROMPTS, reasoning=THOUGHTS, answer_kwargs=kwargs)
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
        generate_in_stages(model, tokenizer, PROMPTS)


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
