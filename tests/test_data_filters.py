import json
import logging
from dataclasses import replace

import pytest
from datasets import Dataset, IterableDataset
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import in_turn, question, refuses, running_server, says
from transformers import AutoModelForCausalLM, AutoTokenizer

from think_tools.answers import Grader
from think_tools.backends import ClientBackend, SamplingParams, TransformersBackend
from think_tools.data import apply_filters, decontaminate, select
from think_tools.data.filters import (
    Filter,
    code_block,
    complete,
    contamination,
    dedup,
    filter_report,
    filter_section,
    judge_exam,
    judge_quality,
    language,
    legible,
    length,
    pass_rate,
    repetition,
    verified,
)
from think_tools.tiny.load import FOLDER


def row(reasoning="2+2 is 4.", answer="4", question="What is 2+2?", **columns):
    """A row of the package's type."""
    message = {"role": "assistant", "reasoning_content": reasoning, "content": answer}
    return {"prompt": [{"role": "user", "content": question}], "completion": [message], **columns}


def read_jsonl(path):
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


# -- Filters that read one row ----------------------------------------------------------------------------------------

ENGLISH = "First we add two and three, then we look at the sum and see that it is five."
CHINESE = "先把二和三加起来，再看看这个和，发现它等于五，所以答案就是五，没有别的可能了。"
LOOP_EN = "Wait, let me check this result once more before I go on. " * 6
LOOP_ZH = "等等，让我再检查一遍这个结果。" * 6
AS_ASKED = "in the language of the question"
CLEAN = {
    "finished": (complete(), row(finish_reason="stop", finished=True, status="complete")),
    "nothing known about its end": (complete(), row()),
    "direct answer, if these are allowed": (complete(thinking=False), row(None)),
    "an angle bracket is no marker": (complete(), row("if x < 2 and y > 3")),
    "text in the completion, reasoning inline": (complete(), {"prompt": "?", "completion": "<think>2+2</think>4"}),
    "formula": (legible(), row(r"On $[0, 1)$ we have \left\{ x \right. and \(\frac{1}{2}\) or \{1, 2\}.")),
    "formula of two lines": (legible(), row(r"\begin{align} x &= 1 \\[4pt] y &= 2 \\\\ z &= 3 \end{align}")),
    "list with brackets, smiley": (legible(), row("a) two\nb) three\n1) four :) and （好）")),
    "brackets in code": (legible(), row("Print `(((` with\n```python\nprint('{{{')\n```\nDone.")),
    "money": (legible(), row("It costs $5, and $3 more is $8. That is $ 8.")),
    "Chinese brackets": (legible(), row("由此（见上）可知【一】成立。")),
    "English": (language("en"), row(ENGLISH)),
    "Chinese": (language("zh"), row(CHINESE)),
    "formulas and code belong to no language": (language("zh"), row(CHINESE + r"$\text{the sum}$ `print this`")),
    "English, as asked": (language(), row(ENGLISH, question="What is two plus three?")),
    "Chinese, as asked": (language(), row(CHINESE, question="二加三等于多少？")),
    "code in the answer only": (code_block(), row(answer="```python\nprint(4)\n```")),
    "code in line": (code_block(), row("use `print`")),
    "English without repetition": (repetition(), row(ENGLISH)),
    "Chinese without repetition": (repetition(), row(CHINESE)),
    "a short text": (repetition(), row("no no no")),
    "four equal lines": (repetition(), row("so\n" * 4)),
}
DIRTY = {
    "cut, says the server": (complete(), row(finish_reason="length"), "cut"),
    "filtered by the server": (complete(), row(finish_reason="content_filter"), "cut"),
    "cut, says the parser": (complete(), row(finished=False), "cut"),
    "never closed": (complete(), row(status="unclosed"), "reasoning not closed"),
    "no reasoning": (complete(), row(None), "no reasoning"),
    "white space as reasoning": (complete(), row(" \n"), "no reasoning"),
    "no answer": (complete(), row(answer=" "), "no answer"),
    "second block in the answer": (complete(), row(answer="4 <think>or 5?</think>"), "think marker in the text"),
    "another family's marker": (complete(), row("2+2 [/THINK] is 4"), "think marker in the text"),
    "open brackets": (legible(), row("f((( x) and [y"), "unbalanced brackets"),
    "half a box": (legible(), row(answer=r"\boxed{4"), "unbalanced brackets"),
    "open Chinese brackets": (legible(), row("甲（乙（丙（丁"), "unbalanced brackets"),
    "open display formula": (legible(), row(r"Thus \[ x = 2"), "unbalanced LaTeX"),
    "open dollars": (legible(), row("Thus $$ x = 2"), "unbalanced LaTeX"),
    "open environment": (legible(), row(r"\begin{align} x \end {align} \begin{cases}"), "unbalanced LaTeX"),
    "open code": (legible(), row("```python\nprint(4)"), "unbalanced code fences"),
    "end of turn in the text": (legible(), row(answer="4<|im_end|>"), "stray tokens"),
    "broken bytes": (legible(), row("2\ufffd2"), "stray tokens"),
    "Chinese words in English": (language("en"), row(ENGLISH + CHINESE), "less than 90% en"),
    "English words in Chinese": (language("zh"), row(CHINESE + ENGLISH), "less than 90% zh"),
    "English answer to Chinese reasoning": (language("zh"), row(CHINESE, ENGLISH), "less than 90% zh"),
    "not in the language asked": (language(), row(ENGLISH, question="二加三？"), f"less than 90% {AS_ASKED}"),
    "code in the reasoning": (code_block(), row("```python\nprint(4)\n```"), "code in the reasoning"),
    "English loop": (repetition(), row(LOOP_EN), "repeats itself"),
    "Chinese loop": (repetition(), row(LOOP_ZH), "repeats itself"),
    "five equal lines": (repetition(), row("so\n" * 5), "repeats itself"),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "case"), CLEAN.values(), ids=CLEAN)
def test_kept(rule, case):
    found = rule(case)
    assert (found["keep"], found["reason"]) == (True, None), found


@pytest.mark.parametrize(("rule", "case", "reason"), DIRTY.values(), ids=DIRTY)
def test_rejected(rule, case, reason):
    found = rule(case)
    assert (found["keep"], found["reason"]) == (False, reason), found


def test_values_are_measures_for_later_thresholds():
    assert complete()(row(None, "", finish_reason="length"))["value"] == ["cut", "no reasoning", "no answer"]
    assert language("zh")(row(CHINESE, ENGLISH))["value"] == {"reasoning": 1.0, "answer": 0.0}
    assert code_block()(row("```a```"))["value"] == 2
    assert repetition(n=2)(row("a b a b", "c"))["value"] == {"share": 0.25, "lines": 1}


def test_few_words_tell_no_language():
    found = language("zh")(row("2+2=4", "4"))
    assert found == {"value": {"reasoning": None, "answer": None}, "keep": None, "reason": "too few words to tell"}
    assert language()(row(ENGLISH, question="2+3=?"))["keep"] is None


def test_length_counts_tokens(tokenizer):
    value = {"prompt": 12, "reasoning": 6, "answer": 1, "total": 19}  # a token per byte
    assert length(tokenizer, 19)(row("二五")) == {"value": value, "keep": True, "reason": None}
    assert length(tokenizer, 18)(row("二五"))["reason"] == "more than 18 tokens"
    assert length(tokenizer, 9000)(row("x" * 5000))["value"]["reasoning"] == 5000
    assert length(tokenizer, 18)(row(None))["value"]["reasoning"] == 0


def test_real_texts_are_readable(data_folder):
    rows = [row(text["output"]) for text in read_jsonl(data_folder / "data" / "alpaca_zh_1000.jsonl")[:200]]
    rows += [row(text["answer"]) for text in read_jsonl(data_folder / "data" / "gsm8k_test_500.jsonl")[:200]]
    _, report = apply_filters(rows, [legible(), repetition()])
    assert [counts["drop"] for counts in report.values()] == [0, 0]


def test_three_garbled_math_samples_are_found(data_folder):
    samples = read_jsonl(data_folder / "data" / "math_samples_8x50.jsonl")
    rows = [row(text) for sample in samples for text in sample["completions"]]
    annotated, report = apply_filters(rows, [legible(), language("en")])
    assert (report["legible"]["drop"], report["language"]["drop"]) == (3, 3)
    assert select(annotated, legible=lambda defects: not defects).num_rows == 397


# -- Right and wrong --------------------------------------------------------------------------------------------------

VAGUE = "I would rather think about it once more before I give you a number."
GRADED = {
    "equal number": ("The answer is 0.5.", "1/2", True, None),
    "equal formula": (r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}", True, None),
    "Chinese sentence": ("所以答案是42。", "42", True, None),
    "GSM8K's own form": ("42", "#### 42", True, None),
    "another number": ("The answer is 0.4.", "1/2", False, "wrong"),
    "nothing to extract is not wrong": (VAGUE, "1/2", None, "no answer found"),
    "no answer at all": ("", "1/2", None, "no answer found"),
    "no gold answer": ("The answer is 0.5.", None, None, "gold_unreadable"),
    "empty gold answer": ("The answer is 0.5.", "", None, "gold_unreadable"),
}


@pytest.mark.parametrize(("answer", "solution", "keep", "reason"), GRADED.values(), ids=GRADED)
def test_verified(answer, solution, keep, reason):
    found = verified()(row(answer=answer, solution=solution))
    assert (found["keep"], found["reason"]) == (keep, reason)


def test_a_box_in_the_reasoning_verifies_nothing():
    assert verified()(row(r"\boxed{4}", "I do not know", solution="4"))["keep"] is None


def test_the_last_number_counts_only_if_asked_for():
    guess = row(answer="She has 3 apples and 4 pears left.", solution="4")
    assert (verified()(guess)["keep"], verified(last_number=True)(guess)["keep"]) == (None, True)


def test_an_answer_that_takes_too_long_is_undecided(monkeypatch):
    monkeypatch.setattr(Grader, "verdicts", lambda self, answers, golds, timeout: ["stopped"] * len(answers))
    assert verified()(row(solution="4")) == {"value": "4", "keep": None, "reason": "stopped"}


def test_verified_agrees_with_the_labels_of_gsm8k(data_folder):
    golds = read_jsonl(data_folder / "data" / "gsm8k_model_solutions.jsonl")[:150]
    rows, labels = [], []
    for gold in golds:
        for sample in gold["solutions"]:
            rows.append(row(answer=sample["solution"], solution=gold["answer"].rpartition("A: ")[2]))
            labels.append(sample["is_correct"])
    annotated, report = apply_filters(rows, [verified(last_number=True)])
    assert [found["keep"] for found in annotated["f_verified"]] == labels
    assert report["verified"] == {
        "keep": sum(labels),
        "drop": len(labels) - sum(labels),
        "undecided": 0,
        "left": sum(labels),
        "reasons": {"wrong": len(labels) - sum(labels)},
    }


def test_verified_agrees_with_the_labels_of_math(data_folder):
    samples = read_jsonl(data_folder / "data" / "math_samples_8x50.jsonl")
    rows = [row(answer=text, solution=sample["answer"]) for sample in samples for text in sample["completions"]]
    labels = [bool(label) for sample in samples for label in sample["is_correct"]]
    annotated, _ = apply_filters(rows, [verified()])
    decided = [(found["keep"], label) for found, label in zip(annotated["f_verified"], labels, strict=True)]
    assert sum(keep is None for keep, _ in decided) <= 3
    assert all(keep == label for keep, label in decided if keep is not None)


def replies(*texts):
    """A judge that gives these replies to whatever it is asked, and what it was asked."""
    seen, script = [], iter(texts)

    def judge(prompts):
        seen.extend(prompts)
        return [next(script) for _ in prompts]

    return judge, seen


EXAMS = {
    "right": (["Same city.\nexam: 10"], 10.0, True, None),
    "wrong": (["exam: 0"], 0.0, False, "score 0"),
    "reasoning of the judge is not read": (["<think>exam: 0</think>exam: 10"], 10.0, True, None),
    "between": (["exam: 7"], 7.0, None, "score 7"),
    "readable at the second try": (["I cannot say.", "exam: 10"], 10.0, True, None),
    "never readable": (["I cannot say.", ""], None, None, "no verdict"),
}


@pytest.mark.parametrize(("texts", "value", "keep", "reason"), EXAMS.values(), ids=EXAMS)
def test_exam(texts, value, keep, reason):
    judge, seen = replies(*texts)
    found = judge_exam(judge)(row(answer="It is Paris.", question="Capital of France?", solution="Paris"))
    assert found == {"value": value, "keep": keep, "reason": reason}
    assert len(seen) == len(texts)
    assert all(text in seen[0][1]["content"] for text in ("Capital of France?", "It is Paris.", "Paris\n"))


def test_exam_asks_only_what_verification_left_open():
    judge, seen = replies("exam: 10")
    rows = [
        row(answer="4", solution="4"),
        row(answer="5", solution="4"),
        row(answer=VAGUE, solution="4"),
        row(answer=VAGUE, solution=None),
    ]
    annotated, report = apply_filters(rows, [verified(), judge_exam(judge)])
    assert [found["value"] for found in annotated["f_judge_exam"]] == [10.0, 0.0, 10.0, None]
    assert len(seen) == 1
    assert report["judge_exam"] == {
        "keep": 2, "drop": 1, "undecided": 1, "left": 3, "reasons": {"score 0": 1, "no verdict": 1},
    }  # fmt: skip


SCORES = "harmlessness: {}\nhelpfulness: {}\ncorrectness: {}"


def test_quality_is_the_worst_of_three_scores_and_keeps_all():
    judge, _ = replies(SCORES.format(10, 7, 9))
    value = {"harmlessness": 10.0, "helpfulness": 7.0, "correctness": 9.0, "min": 7.0}
    assert judge_quality(judge)(row()) == {"value": value, "keep": True, "reason": None}
    judge, _ = replies(SCORES.format(10, 6, 9))
    assert judge_quality(judge)(row())["reason"] == "a score below 7"
    judge, _ = replies(SCORES.format(10, 0, 9))
    assert judge_quality(judge, min_score=0)(row())["keep"] is True


def test_quality_without_a_readable_reply_is_undecided_after_two_tries():
    judge, seen = replies("harmlessness: 10", "harmlessness: ten")
    assert judge_quality(judge)(row()) == {"value": None, "keep": None, "reason": "no verdict"}
    assert len(seen) == 2


def test_quality_by_criteria_of_ones_own():
    judge, seen = replies("brevity: 3")
    assert judge_quality(judge, {"brevity": "Not a word too many."})(row())["value"] == {"brevity": 3.0, "min": 3.0}
    assert "- brevity: Not a word too many." in seen[0][0]["content"]
    with pytest.raises(ValueError, match=r"`criteria` must be names among .*, got \['wit'\]"):
        judge_quality(judge, "wit")


def test_a_failed_request_loses_no_other_judgement(caplog):
    def script(body, number):
        return (
            refuses(400, "too long") if "broken" in question(body) else says("exam: 10", reasoning_content="exam: 0")
        )

    rows = [row(question=text, solution="4") for text in ("fine", "broken", "also fine")]
    with running_server(script) as server, caplog.at_level(logging.WARNING):
        judge = ClientBackend("m", base_url=server.url, backoff=0.01)
        annotated, _ = apply_filters(rows, [judge_exam(judge, params=SamplingParams(max_tokens=99))])
    assert [found["value"] for found in annotated["f_judge_exam"]] == [10.0, None, 10.0]
    assert "The judge did not reply to 1 of 3 prompts: HTTP 400" in caplog.text
    assert {body["max_tokens"] for body in server.bodies} == {99}


def test_a_server_is_asked_again_for_what_cannot_be_read():
    with running_server(in_turn(says("Hm."), says(SCORES.format(9, 9, 9)))) as server:
        found = judge_quality(ClientBackend("m", base_url=server.url))(row())
    assert (found["value"]["min"], len(server.bodies)) == (9.0, 2)


def test_a_local_model_judges(tiny_model):
    judge = TransformersBackend(
        AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(FOLDER / "base")
    )
    found = judge_exam(judge, params=SamplingParams(max_tokens=2))(row(solution="4"))
    assert found == {"value": None, "keep": None, "reason": "no verdict"}  # it knows nothing


# -- Filters that compare rows ----------------------------------------------------------------------------------------


def test_pass_rate_keeps_what_is_neither_easy_nor_hard():
    answers = {"easy?": "4444", "hard?": "5555", "fit?": "4455", "open?": [VAGUE] * 2}
    rows = [row(answer=a, question=q, solution="4") for q, many in answers.items() for a in many]
    annotated, report = apply_filters(rows, [verified(), pass_rate()])
    found = {r["prompt"][0]["content"]: r["f_pass_rate"] for r in annotated}
    assert [(f["value"], f["keep"], f["reason"]) for f in found.values()] == [
        (1.0, False, "too easy"),
        (0.0, False, "too hard"),
        (0.5, True, None),
        (None, None, "none decided"),
    ]
    assert report["pass_rate"]["undecided"] == 2
    kept = select(annotated, undecided=False, pass_rate=lambda rate: rate > 0, verified=None)
    assert {r["prompt"][0]["content"] for r in kept} == {"easy?", "fit?"}


def test_pass_rate_by_a_judge():
    judge, _ = replies("exam: 10", "exam: 0")
    rows = [row(solution="4"), row(answer="5", solution="4")]
    annotated, _ = apply_filters(rows, [judge_exam(judge), pass_rate(by="judge_exam")])
    assert [found["value"] for found in annotated["f_pass_rate"]] == [0.5, 0.5]


def test_pass_rate_needs_verdicts():
    with pytest.raises(ValueError, match="`by` is 'verified', which has not annotated the rows: put it before"):
        apply_filters([row()], [pass_rate()])


SAME = {
    "case and punctuation": ("What is 2+2?", "what is  2+2", True),
    "width": ("２+2等于多少？", "2+2等于多少", True),
    "Chinese punctuation": ("小明有3个苹果，吃了1个", "小明有3个苹果。吃了1个！", True),
    "operator": ("What is 5-3?", "What is 5+3?", False),
    "sign": ("Is it -3?", "Is it 3?", False),
    "number": ("小明有3个苹果", "小明有4个苹果", False),
    "decimal point": ("Is it 3.5?", "Is it 35?", False),
}


@pytest.mark.parametrize(("first", "second", "same"), SAME.values(), ids=SAME)
def test_dedup(first, second, same):
    annotated, _ = apply_filters([row(question=first), row(question=second)], [dedup()])
    assert [found["keep"] for found in annotated["f_dedup"]] == [True, not same]


def test_dedup_keeps_as_many_rows_of_a_question_as_asked():
    rows = [row(question=q) for q in "aabaa"]
    annotated, _ = apply_filters(rows, [dedup(max_rows=2)])
    assert [found["value"] for found in annotated["f_dedup"]] == [1, 2, 1, 3, 4]
    assert len(select(annotated)) == 3
    assert len(select(annotated, dedup=lambda number: number < 4)) == 4


def test_a_conversation_is_no_duplicate_of_another_with_the_same_last_turn():
    turns = [{"role": "assistant", "content": "2"}, {"role": "user", "content": "Go on."}]
    rows = [{**row(), "prompt": [{"role": "user", "content": text}, *turns]} for text in ("Count.", "Sum up.")]
    rows.append({**rows[0], "prompt": [{"role": "system", "content": "Be brief."}, *rows[0]["prompt"]]})
    annotated, _ = apply_filters(rows, [dedup()])
    assert [found["keep"] for found in annotated["f_dedup"]] == [True, True, False]


HELD_OUT = [
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends.",
    "小明有12个苹果，给了小红3个，又买了5个，他现在一共有几个苹果？",
    "What is 2+2?",
    "三加五等于几？",
    "求函数 f(x)=x^2-4x+3 在区间 [0,3] 上的最小值和最大值。",
    "",
]
CONTAMINATED = {
    "the same question": HELD_OUT[0],
    "a passage, otherwise cased and set": "janet's ducks lay 16 eggs per day — “She eats three for breakfast, every”!",
    "the same question in Chinese": HELD_OUT[1],
    "a passage in Chinese": "应用题：小明有１２个苹果, 给了小红3个。又买了5个。",
    "a passage in Chinese inside English": "Translate: 小明有12个苹果，给了小红3个，又买了5个",
    "a short question, whole": "what is 2+2",
    "a short Chinese question, whole": "三加五等于几",
    "a Chinese question about a formula": "请解答：求函数 f(x)=x^2-4x+3 在区间 [0,3] 上的最小值",
}  # fmt: skip
NOT_CONTAMINATED = {
    "ten words of it": "Janet's ducks lay 16 eggs per day and she sells them all.",
    "twelve characters of it": "小明有12个苹果，给了小红3",
    "other numbers in Chinese": "小明有15个苹果，给了小红7个，又买了9个，他现在一共有几个苹果？",
    "a short question inside a longer one": "What is 2+2? And what is 3+3?",
    "another operator": "What is 2-2?",
    "nothing": "",
}


@pytest.mark.parametrize("text", CONTAMINATED.values(), ids=CONTAMINATED)
def test_contaminated(text):
    found = contamination(HELD_OUT)(row(question=text))
    assert (found["keep"], found["reason"]) == (False, "a passage of a text in `against`")
    assert found["value"]


@pytest.mark.parametrize("text", NOT_CONTAMINATED.values(), ids=NOT_CONTAMINATED)
def test_not_contaminated(text):
    assert contamination(HELD_OUT)(row(question=text)) == {"value": None, "keep": True, "reason": None}


def test_fewer_words_find_more():
    rule = contamination(HELD_OUT, n=7)
    assert rule(row(question=NOT_CONTAMINATED["ten words of it"]))["value"] == "janet's ducks lay 16 eggs per day"


def test_decontaminate_drops_and_says_how_many(caplog):
    rows = [row(question=text) for text in ("What is 2+2?", "What is 2+3?", "三加五等于几？")]
    kept = decontaminate(rows, HELD_OUT)
    assert (kept.column_names, [r["prompt"][0]["content"] for r in kept]) == (
        ["prompt", "completion"],
        ["What is 2+3?"],
    )
    assert "`decontaminate` dropped 2 of 3 rows: a passage of a text in `against` (2)" in caplog.text
    stream = decontaminate(
        Dataset.from_list(rows).to_iterable_dataset(), Dataset.from_list([{"q": "三加五等于几？"}])["q"]
    )
    assert isinstance(stream, IterableDataset)
    assert [r["prompt"][0]["content"] for r in stream] == ["What is 2+2?", "What is 2+3?"]


def test_decontaminate_wants_texts():
    with pytest.raises(TypeError, match=r"`against` must hold texts, got {'problem': '2\+2'}. Take one column"):
        decontaminate([row()], [{"problem": "2+2"}])
    with pytest.raises(ValueError, match="`decontaminate` dropped 1 of 1 rows"):
        decontaminate([row()], "What is 2+2?")


def test_gsm8k_splits_share_no_question(data_folder):
    train = read_jsonl(data_folder / "data" / "gsm8k_train_2000.jsonl")[:500]
    test = [sample["question"] for sample in read_jsonl(data_folder / "data" / "gsm8k_test_500.jsonl")]
    rows = [row(question=sample["question"]) for sample in train]
    assert len(decontaminate([*rows, row(question=test[7])], test)) == len(rows)


# -- Annotate, select, report -----------------------------------------------------------------------------------------


def short(row):
    """A rule of a user's own."""
    size = len(row["completion"][0]["content"])
    return {"value": size, "keep": None if not size else size < 3, "reason": "long" if size else "empty"}


ROWS = [row(), row(answer="five"), row(answer=""), row("```x```")]
ALL = [complete(), legible(), language(), code_block(), repetition(), verified(), dedup(), short]
TEXTS = st.text("ab 2+<>/think`\n(){}[]$\\。好吗？|", max_size=30)
ROW = st.builds(row, st.none() | TEXTS, TEXTS, TEXTS, solution=st.none() | TEXTS, extra=st.lists(st.integers(0, 9)))


@given(st.lists(ROW, min_size=1, max_size=20))
@settings(max_examples=5, deadline=None)
def test_annotating_never_drops_or_changes_a_row(rows):
    before = Dataset.from_list(rows)
    annotated, report = apply_filters(rows, ALL)
    assert annotated.remove_columns([f"f_{name}" for name in report]).to_list() == before.to_list()
    assert all(counts["keep"] + counts["drop"] + counts["undecided"] == len(rows) for counts in report.values())


def test_report_and_funnel():
    annotated, report = apply_filters(ROWS, [complete(), code_block(), short])
    assert annotated.column_names == ["prompt", "completion", "f_complete", "f_code_block", "f_short"]
    assert report == {
        "complete": {"keep": 3, "drop": 1, "undecided": 0, "left": 3, "reasons": {"no answer": 1}},
        "code_block": {"keep": 3, "drop": 1, "undecided": 0, "left": 2, "reasons": {"code in the reasoning": 1}},
        "short": {"keep": 2, "drop": 1, "undecided": 1, "left": 1, "reasons": {"long": 1, "empty": 1}},
    }
    assert len(select(annotated)) == 1


def test_annotations_survive_a_file(tmp_path):
    annotated, report = apply_filters(ROWS, [language(), short])
    annotated.to_json(tmp_path / "rows.jsonl")
    again = Dataset.from_json(str(tmp_path / "rows.jsonl"))
    assert filter_report(again) == report
    assert [len(select(again)), len(select(again, short=lambda size: size > 3))] == [3, 1]


def test_thresholds_change_without_annotating_again():
    annotated, _ = apply_filters(ROWS, [complete(), code_block(), short])
    assert select(annotated, short=None)["f_short"][0]["value"] == 1
    assert len(select(annotated, short=None)) == 2
    assert len(select(annotated, code_block=lambda fences: fences < 3, short=lambda size: size > 0)) == 3
    assert len(select(annotated, complete=None, code_block=None)) == 3
    assert len(select(annotated, complete=None, code_block=None, undecided=False)) == 2
    assert len(select(annotated, complete=None, code_block=None, short=None)) == len(ROWS)


def test_a_new_threshold_is_not_asked_about_a_value_that_could_not_be_had():
    judge, _ = replies("Hm.", "Hm.")
    annotated, _ = apply_filters([row()], [judge_quality(judge)])
    assert len(select(annotated, judge_quality=lambda scores: scores["min"] > 8)) == 1
    with pytest.raises(ValueError, match=r"`select` would drop every row; .*'reasons': {'no verdict': 1}"):
        select(annotated, undecided=False)


def test_annotating_again_replaces_and_a_renamed_rule_runs_twice():
    annotated, _ = apply_filters(ROWS, [repetition(), code_block()])
    again, report = apply_filters(annotated, [repetition(n=1), replace(repetition(), name="loops")])
    assert again.column_names == ["prompt", "completion", "f_code_block", "f_repetition", "f_loops"]
    assert list(report) == ["code_block", "repetition", "loops"]


def test_streams_are_annotated_and_selected_as_they_are_read():
    for stream in (Dataset.from_list(ROWS).to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(ROWS))):
        annotated, report = apply_filters(stream, [complete(), verified(), short])
        assert report == {}
        kept = select(annotated)
        assert [r["completion"][0]["reasoning_content"] for r in kept] == ["2+2 is 4.", "```x```"]
        assert [r["completion"] for r in annotated] == [r["completion"] for r in ROWS]
        assert filter_report(list(annotated)) == apply_filters(ROWS, [complete(), verified(), short])[1]


def test_a_shuffled_part_of_a_data_set_keeps_its_rows_and_their_annotations_together():
    rows = Dataset.from_list([row(answer="x" * n) for n in range(1, 9)]).shuffle(seed=0).select(range(5))
    annotated, _ = apply_filters(rows, [short, dedup()])
    assert [len(r["completion"][0]["content"]) for r in annotated] == [f["value"] for f in annotated["f_short"]]


def test_no_rows_give_no_rows():
    annotated, report = apply_filters(Dataset.from_list(ROWS).select([]), [complete(), dedup()])
    assert (annotated.column_names, len(select(annotated))) == (["prompt", "completion", "f_complete", "f_dedup"], 0)
    assert report["dedup"] == {"keep": 0, "drop": 0, "undecided": 0, "left": 0, "reasons": {}}


@pytest.mark.slow
def test_filters_run_in_several_processes(tokenizer):
    rules = [*ALL[:-2], length(tokenizer, 100), contamination(HELD_OUT), dedup()]
    annotated, report = apply_filters(ROWS * 3, rules, num_proc=2)
    alone, same = apply_filters(ROWS * 3, rules)
    assert (annotated.to_list(), report) == (alone.to_list(), same)


STREAM = Dataset.from_list(ROWS).to_iterable_dataset()
SHORT = apply_filters(ROWS, [short])[0]
ERRORS = {
    "not converted": (
        lambda: apply_filters([{"question": "2+2?"}], []),
        r"`dataset` must have the columns \['prompt', 'completion'\], got \['question'\]. Convert it: `to_think",
    ),
    "one name twice": (
        lambda: apply_filters(ROWS, [dedup(), dedup()]),
        r"`filters` must have different names, got \['f_dedup', 'f_dedup'\]. Rename",
    ),
    "a stream to be compared": (
        lambda: apply_filters(STREAM, [dedup()]),
        "`filters`: 'dedup' compares all rows, which a stream never has: load a Dataset",
    ),
    "nothing to select by": (lambda: select(ROWS), r"has the annotations \[\], not \[\]: call `apply_filters` first"),
    "a rule for no filter": (lambda: select(SHORT, size=None), r"the annotations \['f_short'\], not \['f_size'\]"),
    "unknown language": (lambda: language("fr"), "`target` must be one of .*'zh'.* or None, got 'fr'"),
}


@pytest.mark.parametrize(("call", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def pick(row):
    """A rule that returns a verdict and nothing else."""
    return True


def test_what_is_no_data_set_or_no_annotation_is_refused():
    with pytest.raises(TypeError, match="`dataset` must be a Dataset"):
        apply_filters({"train": ROWS}, [])
    with pytest.raises(TypeError, match=r"'pick' must return a dict of \['value', 'keep', 'reason'\], got True"):
        apply_filters(ROWS, [pick])


def test_a_filter_may_be_built_by_hand():
    seen = []

    def batch(rows):
        seen.append(len(rows))
        return [{"value": None, "keep": True, "reason": None} for _ in rows]

    apply_filters(ROWS, [Filter("mine", batch, "batch")])
    assert seen == [4]


def test_the_report_becomes_a_section_of_the_card():
    _, report = apply_filters(
        ROWS, [complete(), Filter("odd", lambda row: {"value": 1, "keep": False, "reason": "a|b"})]
    )
    card = DatasetCard("---\nlicense: mit\n---\n# Traces\n")
    card.text += filter_section(report)
    again = DatasetCard(str(card))
    assert again.data.to_dict() == {"license": "mit"}
    assert again.text.splitlines()[1:] == [
        "",
        "## Filters",
        "",
        "| filter | keep | drop | undecided | left | reasons |",
        "| --- | --- | --- | --- | --- | --- |",
        "| complete | 3 | 1 | 0 | 3 | no answer (1) |",
        "| odd | 0 | 4 | 0 | 0 | a\\|b (4) |",
    ]
