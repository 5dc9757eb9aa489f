import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from think_tools import FORMATS
from think_tools.losses import ThinkSFTTrainer, think_mask

THOUGHT = "<think>\n2 and 2\n</think>"


def ids_of(tokenizer, *parts) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (1, sequence) of texts; those in a tuple are not trained."""
    ids, labels = [], []
    for part in parts:
        piece = tokenizer.encode(part if isinstance(part, str) else part[0], add_special_tokens=False)
        ids += piece
        labels += piece if isinstance(part, str) else [-100] * len(piece)
    return torch.tensor([ids]), torch.tensor([labels])


MASKS = {
    "the model wrote the opening marker": ((("2+2?",), f"{THOUGHT}\n\n4"), THOUGHT),
    "the prompt wrote it, and it is not trained": (
        (("2+2?<think>\n",), "2 and 2\n</think>\n\n4"),
        "2 and 2\n</think>",
    ),
    "no reasoning": ((("2+2?",), "4<|im_end|>"), ""),
    "an empty block in the prompt": ((("2+2?<think>\n\n</think>\n\n",), "4<|im_end|>"), ""),
    "the prompt speaks of both markers": ((("Use <think> and </think>.<|im_end|>",), "4"), ""),
    "the prompt speaks of the opening marker only": ((("Begin with <think>.<|im_end|>2+2?",), "4"), ""),
    "never closed: up to the end of the turn": ((("2+2?",), "<think>2 and<|im_end|>", "4"), "<think>2 and<|im_end|>"),
    "a wrong step in the middle is not trained": (
        (("2+2?",), "<think>a", ("wrong",), "b</think>4"),
        "<think>ab</think>",
    ),
    "only the answer is trained": ((("2+2?<think>2 and 2</think>",), "4"), ""),
    "two turns, both trained": ((f"{THOUGHT}4<|im_end|>", ("3+3?",), f"{THOUGHT}6<|im_end|>"), THOUGHT * 2),
    "a closing marker without an opening one": ((("2+2?",), "</think>4"), ""),
    "Chinese": ((("2+2？",), "<think>二加二</think>四"), "<think>二加二</think>"),
}


@pytest.mark.parametrize(("parts", "expected"), MASKS.values(), ids=MASKS)
def test_the_mask_holds_the_trained_reasoning(tokenizer, parts, expected):
    ids, labels = ids_of(tokenizer, *parts)
    assert tokenizer.decode(ids[think_mask(ids, labels, tokenizer)]) == expected


@pytest.mark.parametrize("name", ["magistral", "seed_oss", "gpt_oss", "granite_3_2", "kimi_vl", "command_a_reasoning"])
def test_markers_of_several_tokens(tokenizer, name):
    fmt = FORMATS[name]
    ids, labels = ids_of(tokenizer, ("2+2?",), f"{fmt.open} 二 and 2 {fmt.close}", "4")
    assert len(tokenizer.encode(fmt.close)) > 1
    assert tokenizer.decode(ids[think_mask(ids, labels, tokenizer, fmt)]) == f"{fmt.open} 二 and 2 {fmt.close}"


def test_a_marker_as_the_model_may_spell_it(tokenizer):
    ids, labels = ids_of(tokenizer, "Here's my thought process: a Here's my response: b")
    marked = tokenizer.decode(ids[think_mask(ids, labels, tokenizer, FORMATS["granite_3_2"])])
    assert marked == "Here's my thought process: a Here's my response:"


def test_a_marker_that_merged_with_its_neighbours():
    r"""Most tokenizers join the ends of a marker that is text with what is beside it: `.</` and `>\n\n`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(".", "<"), (".<", "/"), ("Ċ", "Ċ"), (">", "ĊĊ")]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    merging = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = torch.tensor([merging.encode("2+2?<think>2.</think>\n\n4")])
    assert {".</", ">ĊĊ"} <= set(merging.convert_ids_to_tokens(ids[0]))
    assert merging.decode(ids[think_mask(ids, ids, merging)]) == "<think>2.</think>\n\n"


def test_reasoning_left_open_ends_with_its_packed_sequence(tokenizer):
    first, second = tokenizer.encode("<think>cut"), tokenizer.encode("plain 4")
    ids = torch.tensor([first + second])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    assert think_mask(ids, ids, tokenizer).all(), "without positions it is one sequence"
    assert tokenizer.decode(ids[think_mask(ids, ids, tokenizer, position_ids=positions)]) == "<think>cut"


# Rows of different lengths: with reasoning, without, prefilled, and cut.
ROWS = [
    (("2+2?",), f"{THOUGHT}\n\n4<|im_end|>"),
    (("Hello",), "Hello! Ask me.<|im_end|>"),
    (("3+4?<think>\n",), "three and four\n</think>\n\n7<|im_end|>"),
    (("20+30?",), "<think>\n20 and"),
]


def dataset_of(tokenizer, rows) -> Dataset:
    pairs = [ids_of(tokenizer, *row) for row in rows]
    return Dataset.from_list([{"input_ids": ids[0].tolist(), "labels": labels[0].tolist()} for ids, labels in pairs])


OWN = ("think_weight", "answer_weight", "staged_attention")


@pytest.fixture
def train(tiny_model, tmp_path):
    """Trains a copy of the random model; gives the trainer back."""

    def run(trainer_class=ThinkSFTTrainer, rows=ROWS, attention="sdpa", trained=True, **settings) -> SFTTrainer:
        own = {key: settings.pop(key) for key in OWN if key in settings}
        defaults = {
            "output_dir": str(tmp_path), "max_length": None, "max_steps": 2, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "bf16": False,
            "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
            "logging_steps": 1,
        }  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention),
            args=SFTConfig(**defaults | settings),
            processing_class=tokenizer,
            train_dataset=dataset_of(tokenizer, rows),
            eval_dataset=dataset_of(tokenizer, rows),
            **own,
        )
        if trained:
            trainer.train()
        return trainer

    return run


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def per_token(trainer, rows=ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the trained tokens of all rows under the model as it is, and whether they are reasoning."""
    losses, thinks = [], []
    for row in rows:
        ids, labels = ids_of(trainer.processing_class, *row)
        with torch.no_grad():
            logits = trainer.model(ids).logits[0, :-1]
        trained = labels[0, 1:] != -100
        losses.append(cross_entropy(logits, ids[0, 1:], reduction="none")[trained])
        thinks.append(think_mask(ids, labels, trainer.processing_class)[0, 1:][trained])
    return torch.cat(losses), torch.cat(thinks)


@pytest.mark.parametrize("settings", [{}, {"packing": True, "max_length": 256}], ids=["padded", "packed"])
def test_weights_of_one_are_trl_s_own_loss(train, settings):
    stock, ours = train(SFTTrainer, **settings), train(**settings)
    for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm"):
        assert logged(ours, key) == pytest.approx(logged(stock, key), abs=1e-6)
    for expected, weight in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("think", "answer"), [(1.0, 0.0), (0.0, 1.0), (0.1, 1.0), (3.0, 3.0)])
def test_the_loss_is_the_weighed_mean_over_all_batches_of_a_step(train, think, answer):
    trainer = train(think_weight=think, answer_weight=answer, max_steps=1, learning_rate=0.0)
    nll, thinks = per_token(trainer)
    weights = torch.where(thinks, think, answer)
    expected = float((weights * nll).sum() / weights.sum())
    assert logged(trainer, "loss") == pytest.approx([expected], abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_answer_weight_alone_is_training_on_the_answers_alone(train):
    answers = [
        (("2+2?",), (THOUGHT,), "\n\n4<|im_end|>"),
        ROWS[1],
        (("3+4?<think>\n",), ("three and four\n</think>",), "\n\n7<|im_end|>"),
    ]
    stock, ours = train(SFTTrainer, answers, max_steps=1), train(rows=ROWS[:3], max_steps=1, think_weight=0.0)
    assert logged(ours, "loss") == pytest.approx(logged(stock, "loss"), abs=1e-6)


def test_think_loss_and_answer_loss_are_logged_apart(train):
    trainer = train(max_steps=1, learning_rate=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    nll, thinks = per_token(trainer)
    metrics = trainer.evaluate()
    for part, expected in {"think_loss": nll[thinks].mean(), "answer_loss": nll[~thinks].mean()}.items():
        assert logged(trainer, part) == pytest.approx([float(expected)], abs=1e-5)
        assert metrics[f"eval_{part}"] == pytest.approx(float(expected), abs=1e-5)


def test_a_run_without_reasoning_logs_no_think_loss(train):
    trainer = train(rows=[ROWS[1]] * 4, max_steps=1)
    assert logged(trainer, "answer_loss") == pytest.approx(logged(trainer, "loss"), abs=1e-6)
    assert not logged(trainer, "think_loss")


def test_a_schedule_gets_the_share_of_the_training_that_is_done(train):
    seen = []

    def fade(done: float) -> float:
        seen.append(done)
        return 1 - done

    trainer = train(think_weight=fade, max_steps=4, gradient_accumulation_steps=1)
    assert sorted(set(seen)) == [0.0, 0.25, 0.5, 0.75]
    assert len(logged(trainer, "loss")) == 4


def test_there_is_one_forward_pass_per_batch(train, monkeypatch):
    trainer, calls = train(trained=False, think_weight=0.5), []
    forward = trainer.model.model.forward
    monkeypatch.setattr(
        trainer.model.model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    trainer.train()
    assert len(calls) == 4, "2 steps of 2 batches"


REFUSED = {
    "a negative weight": ({"think_weight": -1.0}, r"at least 0 and not both 0, got \[-1.0, 1.0\]"),
    "no weight at all": ({"think_weight": 0.0, "answer_weight": 0.0}, r"not both 0, got \[0.0, 0.0\]"),
    "dft": ({"loss_type": "dft"}, "compute another loss"),
    "staged attention and packing": (
        {"staged_attention": True, "packing": True, "max_length": 256},
        "one sequence per row: no `packing`, no `padding_free`",
    ),
    "staged attention and padding-free batches": (
        {"staged_attention": True, "padding_free": True},
        "no `padding_free`",
    ),
    "staged attention without a mask": (
        {"staged_attention": True, "attention": "flex_attention"},
        "`attn_implementation` 'sdpa' or 'eager', 'flex_attention' ignores its mask",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_train_something_else_is_refused(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train(trained=False, **settings)


def test_staged_attention_refuses_layers_that_attend_otherwise(train, monkeypatch):
    trainer = train(trained=False)
    monkeypatch.setattr(trainer.model.config, "layer_types", ["full_attention", "linear_attention"], raising=False)
    with pytest.raises(ValueError, match=r"needs full attention, \['linear_attention'\] see past its mask"):
        trainer._refuse(staged=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_answer_sees_the_question_only_through_the_reasoning(train, attention):
    """Each row, padded beside others, against a forward pass of its own with a mask written by hand."""
    trainer = train(trained=False, staged_attention=True, attention=attention)
    seen = {}
    forward = trainer.model.model.forward

    def spy(*args, **kwargs):
        seen.update(kwargs, hidden=forward(*args, **kwargs))
        return seen["hidden"]

    trainer.model.model.forward = spy
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.compute_loss(trainer.model, batch)
    states, tokenizer = seen["hidden"].last_hidden_state, trainer.processing_class
    assert states.isfinite().all()
    for row, parts in enumerate(ROWS):
        ids, _ = ids_of(tokenizer, *parts)
        allowed = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        text = tokenizer.convert_ids_to_tokens(ids[0])
        if "</think>" in text:
            allowed[text.index("</think>") :, : text.index("<think>") + 1] = False
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        alone = forward(input_ids=ids, attention_mask=mask[None, None]).last_hidden_state
        torch.testing.assert_close(states[row, : ids.shape[1]], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_staged_attention_trains_in_mixed_precision_and_counts_tokens(train, attention):
    ours = train(staged_attention=True, attention=attention, max_steps=1, bf16=True)
    assert logged(ours, "num_tokens") == [sum(ids_of(ours.processing_class, *row)[0].numel() for row in ROWS)]
    assert logged(ours, "think_loss")[0] > 0
    assert ours.evaluate()["eval_answer_loss"] > 0


def test_staged_attention_takes_rows_of_ordinary_attention(train):
    """Without reasoning, or with an empty block, the question stays visible."""
    rows = [ROWS[1], (("2+2?<think>\n\n</think>\n\n",), "4<|im_end|>"), (("2+2?",), f"{THOUGHT}4<|im_end|>", "\n")]
    trainer = train(trained=False, staged_attention=True, rows=rows)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    assert batch["hidden"].tolist()[:2] == [[0, 0], [0, 0]]
    assert batch["hidden"][2].all()


def test_staged_attention_refuses_rows_with_two_trained_turns(train):
    turn = f"{THOUGHT}4<|im_end|>\n"
    trainer = train(trained=False, staged_attention=True, rows=[(("2+2?",), turn, ("3+3?",), turn)] * 2)
    with pytest.raises(ValueError, match="needs one trained turn per row, as `prepare_sft` makes them"):
        trainer.data_collator([trainer.train_dataset[0]])
