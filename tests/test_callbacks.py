import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from think_tools import FORMATS, parse
from think_tools.backends import Candidate, SamplingParams, TransformersBackend
from think_tools.callbacks import ThinkEvalCallback

QUESTIONS = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": "What is 2+3?"}], "solution": "5"},
        {"prompt": [{"role": "user", "content": "What is 2+4?"}], "solution": "6"},
    ]
)


def candidate(text: str, finished: bool = True, num_tokens: int = 10, num_reasoning_tokens: int = 0) -> Candidate:
    trace = parse(text, finished=finished)
    return Candidate(text, trace, "stop" if finished else "length", num_tokens, num_reasoning_tokens)


RIGHT = candidate("<think>2+3</think>5", num_tokens=12, num_reasoning_tokens=8)
DIRECT = candidate("7", num_tokens=2)
CUT = candidate("<think>2+3=5 and", finished=False, num_tokens=20, num_reasoning_tokens=20)
UNCLOSED = candidate("<think>2+3=5", num_tokens=6, num_reasoning_tokens=5)


@pytest.fixture
def make_trainer(tiny_model, tmp_path):
    """A trainer of the random model on eight rows of ids."""

    def make(**args) -> SFTTrainer:
        ids = list(range(40, 60))
        settings = {"max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2} | args
        return SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model),
            args=SFTConfig(
                output_dir=str(tmp_path),
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids[i:] + ids[:i], "labels": ids} for i in range(8)]),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )

    return make


@pytest.fixture
def scripted(monkeypatch):
    """Let every question get the candidates of a list, and record how they were asked for."""
    calls = []

    def script(*groups: list[Candidate]):
        def sample(backend, prompts, params, **kwargs):
            calls.append({"prompts": prompts, "params": params, "fmt": backend.fmt, **kwargs})
            return list(groups)

        monkeypatch.setattr(TransformersBackend, "sample", sample)
        return calls

    return script


ROUNDS = {
    "all think, one is right": (
        ([RIGHT], [RIGHT]),
        {"accuracy": 0.5, "closed": 1, "no_think": 0, "reasoning_tokens": 8, "answer_tokens": 4},
    ),
    "one answers directly and wrongly": (
        ([RIGHT], [DIRECT]),
        {"accuracy": 0.5, "closed": 0.5, "no_think": 0.5, "reasoning_tokens": 8, "answer_tokens": 3},
    ),
    "nobody thinks, so there is no think length": (
        ([DIRECT], [DIRECT]),
        {"accuracy": 0, "no_think": 1, "reasoning_tokens": None, "answer_tokens": 2},
    ),
    "a right number in reasoning that was cut is not right": (
        ([CUT], [CUT]),
        {"accuracy": 0, "truncated": 1, "clipped": 1, "closed": 0, "reasoning_tokens": 20},
    ),
    "reasoning ended by itself without a closing marker": (
        ([UNCLOSED], [DIRECT]),
        {"accuracy": 0, "unclosed": 0.5, "no_think": 0.5, "truncated": 0, "clipped": 0},
    ),
    "several candidates per question": (
        ([RIGHT, RIGHT], [DIRECT, CUT]),
        {"accuracy": 0.5, "closed": 0.5, "clipped": 0.25, "reasoning_tokens": 12, "num_questions": 2},
    ),
}


@pytest.mark.parametrize(("groups", "expected"), ROUNDS.values(), ids=ROUNDS)
def test_the_numbers_of_a_round(make_trainer, scripted, groups, expected):
    scripted(*groups)
    metrics = ThinkEvalCallback(QUESTIONS, trainer=make_trainer(), every=1).evaluate()
    assert {name: metrics.get(name) for name in expected} == expected
    shares = [metrics[status] for status in ("closed", "truncated", "no_think", "unclosed")]
    assert sum(shares) == 1


def test_the_markers_are_those_of_the_tokenizer_unless_given(make_trainer, scripted):
    calls, trainer = scripted([RIGHT], [RIGHT]), make_trainer()
    ThinkEvalCallback(QUESTIONS, trainer=trainer, every=1, fmt=FORMATS["magistral"]).evaluate()
    trainer.processing_class.chat_template = trainer.processing_class.chat_template.replace("think>", "seed:think>")
    ThinkEvalCallback(QUESTIONS, trainer=trainer, every=1).evaluate()
    assert [call["fmt"] for call in calls] == [FORMATS["magistral"], FORMATS["seed_oss"]]


@pytest.mark.parametrize(
    ("solutions", "accuracy"),
    [(["5", None], 1.0), ([None, "5"], 0.0), ([None, None], None)],
    ids=["the second row has no gold answer", "the first row has none", "no row has one"],
)
def test_rows_without_a_gold_answer_are_not_graded(make_trainer, scripted, solutions, accuracy):
    scripted([RIGHT], [DIRECT])
    rows = QUESTIONS.remove_columns("solution").add_column("solution", solutions)
    metrics = ThinkEvalCallback(rows, trainer=make_trainer(), every=1).evaluate()
    assert metrics.get("accuracy") == accuracy
    assert metrics["num_questions"] == 2


def test_rounds_are_logged_at_the_start_every_n_steps_and_at_the_end(make_trainer, scripted):
    calls = scripted([RIGHT], [DIRECT])
    trainer = make_trainer(max_steps=5)
    trainer.add_callback(ThinkEvalCallback(QUESTIONS, trainer=trainer, every=2, chat_template_kwargs={"depth": 1}))
    trainer.train()
    rounds = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in rounds] == [0, 2, 4, 5]
    assert len(calls) == 4
    assert calls[0]["depth"] == 1
    assert calls[0]["params"].seed == trainer.args.seed
    assert calls[0]["prompts"] == list(QUESTIONS["prompt"])
    # The round of a step leaves that step's training log alone, and takes none of its metrics.
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in losses] == [2, 4]
    assert all("mean_token_accuracy" in entry for entry in losses)
    assert not any("mean_token_accuracy" in entry or "eval_mean_token_accuracy" in entry for entry in rounds)


@pytest.mark.slow
def test_training_is_the_same_with_and_without_it(make_trainer):
    losses = []
    for watched in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer(logging_steps=1)
        if watched:
            params = SamplingParams(n=2, max_tokens=4)
            trainer.add_callback(ThinkEvalCallback(QUESTIONS, trainer=trainer, every=1, params=params))
        trainer.train()
        assert trainer.model.training
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


ERRORS = {
    "no steps between rounds": ({"every": 0}, QUESTIONS, "`every` must be at least 1 step, got 0."),
    "no questions": ({"every": 1}, QUESTIONS.select([]), "got 0 rows"),
    "rows of another kind": (
        {"every": 1},
        QUESTIONS.rename_column("solution", "gold"),
        r"`dataset` must have rows with the columns 'prompt' and 'solution', .*Convert it with `to_think` first\.",
    ),
}


@pytest.mark.parametrize(("arguments", "rows", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_named(arguments, rows, message):
    with pytest.raises(ValueError, match=message):
        ThinkEvalCallback(rows, trainer=None, **arguments)
