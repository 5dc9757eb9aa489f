import logging

import pytest

from think_tools.data import to_preference
from think_tools.data.rollouts import sample_candidates

EN = "First we add the two numbers and then we check the sum once more."
MIXED = "First we add the two numbers 然后我们再检查一遍这个结果是否正确 and so on it goes."


def row(reasoning: str | None, answer: str, question: str = "What is 2+2?", **more) -> dict:
    message = {"role": "assistant", "reasoning_content": reasoning, "content": answer}
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "completion": [message], "solution": "4", "id": question, **more}


def sides(pairs) -> list[tuple[str, str]]:
    """Reasoning and answer of both sides of each pair."""
    return [
        tuple(f"{side[0]['reasoning_content']}|{side[0]['content']}" for side in (pair["chosen"], pair["rejected"]))
        for pair in pairs
    ]


PAIRS = {
    "correct: a right and a wrong one": ("correct", [row("a", "5"), row("b", "4")], {}, [("b|4", "a|5")]),
    "correct: of equal length before others": (
        "correct",
        [row("a" * 90, "5"), row("bb", "5"), row("c", "4")],
        {},
        [("c|4", "bb|5")],
    ),
    "correct: more pairs, nobody twice": (
        "correct",
        [row("a", "4"), row("b", "4"), row("c", "5"), row("d", "6"), row("e", "7")],
        {"max_pairs": 3},
        [("a|4", "c|5"), ("b|4", "d|6")],
    ),
    "correct: both without reasoning": ("correct", [row(None, "5"), row(None, "4")], {}, [("None|4", "None|5")]),
    "correct: the column is believed": (
        "correct",
        [row("a", "5", correct=True), row("b", "4", correct=False)],
        {},
        [("a|5", "b|4")],
    ),
    "correct: cut candidates are on no side": (
        "correct",
        [row("a", "4"), row("cut", "5", finished=False), row("b", "5")],
        {},
        [("a|4", "b|5")],
    ),
    "short: the shortest and the longest right one": (
        "short",
        [row("aaa", "4"), row("a", "4"), row("aaaaa", "4"), row("", "5")],
        {},
        [("a|4", "aaaaa|4")],
    ),
    "short: length by a function": (
        "short",
        [row("aaaa", "4"), row("b b b", "4")],
        {"length": lambda text: len(text.split())},
        [("aaaa|4", "b b b|4")],
    ),
    "clean: the question's language and a mixture": (
        "clean",
        [row(MIXED, "4"), row(EN, "4"), row("2+2=4", "4")],
        {},
        [(f"{EN}|4", f"{MIXED}|4")],
    ),
    "format: with reasoning and without": ("format", [row(None, "4"), row("a", "4")], {}, [("a|4", "None|4")]),
    "format: markers in the answer": (
        "format",
        [row("a", "4"), row("b", "4</think>4")],
        {},
        [("a|4", "b|4</think>4")],
    ),
    "format: no answer": ("format", [row("a", ""), row("b", "5")], {}, [("b|5", "a|")]),
    "judge: a column": (
        "judge",
        [row("a", "4", s=2), row("b", "4", s=9.0), row("c", "4", s=None)],
        {"score": "s"},
        [("b|4", "a|4")],
    ),
    "judge: the annotation of a filter": (
        "judge",
        [row("a", "4", f_j={"value": 9, "keep": True}), row("b", "4", f_j={"value": 5, "keep": False})],
        {"score": "f_j"},
        [("a|4", "b|4")],
    ),
    "judge: a function": (
        "judge",
        [row("aaaa", "4"), row("b", "4")],
        {"score": lambda row: len(row["completion"][0]["reasoning_content"])},
        [("aaaa|4", "b|4")],
    ),
    "margin: smaller than the default": (
        "judge",
        [row("a", "4", s=6), row("b", "4", s=7)],
        {"score": "s", "margin": 0.5},
        [("b|4", "a|4")],
    ),
}


@pytest.mark.parametrize(("rule", "rows", "options", "expected"), PAIRS.values(), ids=PAIRS)
def test_pairs(rule, rows, options, expected):
    assert sides(to_preference(rows, rule, **options)) == expected


def test_a_pair_is_what_dpo_reads():
    low = {"source": "s", "chat_template_kwargs": {"effort": "low"}}
    rows = [row("a", "5", **low), row("bb", "4", **low)]
    [pair] = to_preference(rows)
    assert pair == {
        "prompt": [{"role": "user", "content": "What is 2+2?"}],
        "chosen": [{"role": "assistant", "reasoning_content": "bb", "content": "4"}],
        "rejected": [{"role": "assistant", "reasoning_content": "a", "content": "5"}],
        "chat_template_kwargs": {"effort": "low", "enable_thinking": True},
        "solution": "4",
        "source": "s",
        "id": "What is 2+2?",
        "rule": "correct",
        "margin": 1.0,
    }


@pytest.mark.parametrize(("reasoning", "thinking"), [("a", True), (None, False)])
def test_both_sides_are_in_one_mode(reasoning, thinking):
    [pair] = to_preference([row(reasoning, "5"), row(reasoning, "4")])
    assert pair["chat_template_kwargs"] == {"enable_thinking": thinking}


REASONS = {
    "every candidate is right": ("correct", [row("a", "4"), row("b", "4")], {}, "every candidate is good"),
    "every candidate is wrong": ("correct", [row("a", "5"), row("b", "6")], {}, "every candidate is bad"),
    "only the modes differ": (
        "correct",
        [row("a", "4"), row(None, "5")],
        {},
        "the better and the worse are of different modes",
    ),
    "one candidate": ("correct", [row("a", "4")], {}, "fewer than two candidates to compare"),
    "no gold answer": (
        "correct",
        [row("a", "4", solution=None), row("b", "5", solution=None)],
        {},
        "fewer than two candidates to compare",
    ),
    "equally short": ("short", [row("aa", "4"), row("bb", "4")], {}, "no difference of 1"),
    "the judge's margin": (
        "judge",
        [row("a", "4", s=6), row("b", "4", s=8.5)],
        {"score": "s"},
        "no difference of 3",
    ),
    "too few words for a language": ("clean", [row("a b", "4"), row("乙", "4")], {}, "fewer than two candidates"),
}


@pytest.mark.parametrize(("rule", "rows", "options", "reason"), REASONS.values(), ids=REASONS)
def test_no_pair_because(rule, rows, options, reason):
    with pytest.raises(ValueError, match=rf"`to_preference` found no pair for 1 of 1 questions: {reason}"):
        to_preference(rows, rule, **options)


def test_questions_without_a_pair_are_counted(caplog):
    rows = [
        row("a", "4", "q1?"),
        row("a", "5", "q1?"),
        row("a", "4", "q2?"),
        row("b", "4", "q2?"),
        row("a", "5", "q3?"),
    ]
    with caplog.at_level(logging.WARNING):
        pairs = to_preference(rows)
    assert pairs["id"] == ["q1?"]
    assert "no pair for 2 of 3 questions: every candidate is good (1); fewer than two candidates" in caplog.text


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([row("a", "4")], {"rule": "best"}, r"`rule` must be one of \['correct', 'short', .*'step'\], got 'best'"),
        ([row("a", "4")], {"rule": "judge"}, "`score` must be given for `rule='judge'`"),
        ([row("a", "4")], {"score": "s"}, "`score` must be given for `rule='judge'` and for no other"),
        ([{"prompt": "2+2?"}], {}, r"`dataset` must have 'prompt' and 'completion', got \['prompt'\]"),
    ],
)
def test_arguments_are_checked(rows, options, message):
    with pytest.raises(ValueError, match=message):
        to_preference(rows, **options)


def test_sampled_candidates_become_pairs():
    questions = [{"prompt": [{"role": "user", "content": "2+2?"}], "solution": "4", "id": "q"}]
    rows = sample_candidates(questions, lambda prompts: [["<think>a</think>4", "<think>b</think>5", "4"]])
    assert sides(to_preference(rows)) == [("a|4", "b|5")]


# --- steps ---


def leaf(text: str, answer: str | None, correct: bool | None) -> dict:
    return {"text": text, "answer": answer, "correct": correct}


TREE = {
    "prompt": [{"role": "user", "content": "1+2*3=?"}],
    "solution": "7",
    "id": "t",
    "children": [
        {
            "text": "2*3=6",
            "value": 0.8,
            "children": [leaf("1+6=8", "8", False), leaf("1+6=7", None, True), leaf("1+6=?", None, None)],
        },
        {"text": "1+2=3", "value": 0.2, "children": [leaf("3*3=9", "9", False)]},
    ],
}


def test_steps_are_compared_after_the_same_steps():
    pairs = to_preference([TREE], "step", max_pairs=5)
    assert sides(pairs) == [
        ("2*3=6\n\n1+6=7|7", "1+2=3\n\n3*3=9|9"),
        ("2*3=6\n\n1+6=7|7", "2*3=6\n\n1+6=8|8"),
    ]
    assert pairs["prompt"] == [TREE["prompt"]] * 2
    assert pairs["id"] == ["t", "t"]
    assert pairs["chat_template_kwargs"] == [{"enable_thinking": True}] * 2


def test_a_wrong_branch_without_an_answer_is_no_side():
    tree = {**TREE, "children": [leaf("1+2=3", None, False), leaf("2*3=6, 1+6=7", None, True)]}
    with pytest.raises(ValueError, match="found no pair for 1 of 1 questions: fewer than two candidates to compare"):
        to_preference([tree], "step")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL 1.16 sets arguments that transformers 5.23 deprecates
def test_dpo_trains_the_reasoning_of_both_sides(tiny_model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    rows = [row("a", "5"), row("b", "4"), row(None, "5", "And 2+2?"), row(None, "4", "And 2+2?")]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        args=DPOConfig(str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to=[], max_steps=1),
        train_dataset=to_preference(rows),
        processing_class=tokenizer,
    )
    texts = [
        [tokenizer.decode(example[name]) for name in ("chosen_ids", "rejected_ids")]
        for example in trainer.train_dataset
    ]
    assert texts[0] == [f"<think>\n{r}\n</think>\n\n{a}<|im_end|>\n" for r, a in (("b", "4"), ("a", "5"))]
    assert texts[1] == ["4<|im_end|>\n", "5<|im_end|>\n"]
    trainer.train()
    assert trainer.state.global_step == 1
