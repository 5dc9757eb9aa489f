"""What an answer is, when two of them are equal, and that grading neither hangs, crashes nor leaves a process."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from think_tools import extract_answer, same_answer
from think_tools.answers import Grader, nursery, shared_grader, workers
from think_tools.answers.compare import compare_plainly, read_gold

# https://github.com/huggingface/Math-Verify/issues/65: outlives every alarm, in the main thread too.
HANGS = r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}"

EXTRACTED = {
    "a box": (r"So we get \boxed{42}.", "42"),
    "the last of two boxes": (r"\boxed{43}, no: \boxed{42}", "42"),
    "a box with braces": (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    "a box in a box": (r"\boxed{\boxed{5}}", "5"),
    "a box with escaped braces": (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    "a box before an unbalanced one": (r"\boxed{2} or \boxed{3", "2"),
    "only an unbalanced box": (r"\boxed{3", None),
    "an empty box after a full one": (r"\boxed{2} \boxed{}", "2"),
    "a box in dollars": (r"$\boxed{42}$", "42"),
    "answer tags": ("<answer>42</answer>", "42"),
    "the last of two answer tags": ("<answer>41</answer> <answer>42</answer>", "42"),
    "answer tags with a box": (r"<answer>It is \boxed{42}</answer>", "42"),
    "answer tags that are not closed": ("<answer>it is 42", None),
    "four hashes": ("Add them.\n#### 1,000", "1,000"),
    "four hashes that are a heading": ("#### Sum\nWe add 2 and 2.", None),
    "an English sentence": ("We add. The answer is 42.", "42"),
    "an English sentence with a reason": ("The answer is $3.5$, because 7/2 is it.", "3.5"),
    "an English sentence with a negation": ("The answer is not 42.", "not 42"),
    "final answer in bold": ("**Final Answer:** 42", "42"),
    "final answer on the next line": ("**Final Answer**:\n\n$x=5$", "x=5"),
    "final answer in a sentence of its own": ("Final Answer: The largest $n$ is 34.", "34"),
    "final answer as in the MATH prompt": ("Final Answer: The final answer is $7.78$. I hope it is correct.", "7.78"),
    "the last of two sentences": ("First, the answer is 41. No, the answer is 42.", "42"),
    "a Chinese sentence": ("所以答案是42。", "42"),
    "a Chinese sentence with a reason": ("最终答案为：**42**，因为6*7=42", "42"),
    "a Chinese reply": ("先算。\n答：42页。", "42页"),
    "a bare number": ("42", "42"),
    "a bare formula": (r"$\frac12$", r"\frac12"),
    "a bare display formula": ("\\[\n42\n\\]", "42"),
    "a bare name": ("Paris", "Paris"),
    "a bare value with unit and remark": (
        "72/19 hours (or approximately 3.79 hours)",
        "72/19 hours (or approximately 3.79 hours)",
    ),
    "a sentence without an anchor": ("I think it is 42", None),
    "a question": ("Maybe 42?", None),
    "two sentences": ("Add 40. Then add 2.", None),
    "a line that is too long": ("7 " * 60, None),
    "nothing": ("", None),
    "white space": (" \n ", None),
    "a lone surrogate and NUL": ("\\boxed{\udc80\0}", "\udc80\0"),
}


@pytest.mark.parametrize(("text", "expected"), EXTRACTED.values(), ids=EXTRACTED)
def test_extract(text, expected):
    assert extract_answer(text) == expected


def test_the_last_number_counts_only_when_asked_for():
    text = "She sells 9 eggs at $2, which makes $1,018.50 a day"
    assert extract_answer(text) is None
    assert extract_answer(text, last_number=True) == "1,018.50"
    assert extract_answer("none at all, I would say", last_number=True) is None


def test_extract_names_a_wrong_type():
    with pytest.raises(TypeError, match="`text` must be a string, got NoneType"):
        extract_answer(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["\\boxed{", "the answer is ", "$ ", "<answer>", "#### ", "{", "}", "答案是", " \n"])
def test_extract_takes_linear_time(unit):
    """A megabyte of each marker is read in well under a second, where quadratic cost would take hours."""
    start = time.process_time()
    extract_answer(unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 2


# Without any process: (answer, gold, equal?). None: only algebra can tell.
PLAIN = {
    "thousands separators": ("56,088", "56088", True),
    "LaTeX thousands separators": (r"56{,}088", "56088", True),
    "full-width digits": ("５６０８８", "56088", True),
    "minus sign": ("−5", "-5", True),
    "trailing zeros": ("5.00", "5", True),
    "another number": ("5.001", "5", False),
    "fraction and decimal": (r"\dfrac{1}{2}", "0.5", True),
    "short LaTeX fraction": (r"\frac12", "1/2", True),
    "mixed number": (r"918\frac{1}{2}", "918.5", True),
    "mixed number is not its fraction": ("2 2/3", "2/3", False),
    "long decimal of a fraction": ("0.333333", "1/3", True),
    "short decimal of a fraction": ("0.3333", "1/3", False),
    "tiny decimals": ("0.0000001", "0.0000002", False),
    "power of ten": (r"1.5 \times 10^{3}", "1500", True),
    "division by zero": ("1/0", "1", None),
    "percent as it is written": (r"10\%", "10", True),
    "percent is not a hundredth": ("0.1", r"10\%", False),
    "unit": (r"12\text{ inches}", "12", True),
    "unit with exponent": (r"15\mbox{ cm}^2", "15", True),
    "degrees": (r"90^\circ", "90", True),
    "currency": ("$18", "18 dollars", True),
    "Chinese unit": ("42元", "42", True),
    "Chinese ten thousands": ("3万", "30000", True),
    "millions": ("3 million", "3", False),
    "a factor is no unit": ("3x", "3", None),
    "superscript": ("5²", "52", None),
    "unit and remark": ("72/19 hours (or approximately 3.79 hours)", "72/19", True),
    "remark with another value": ("5 (or 6)", "5", None),
    "two numbers": ("5 or 6", "5", None),
    "end of an equation": ("123 × 456 = 56,088", "56088", True),
    "assignment": ("x = 5", "5", True),
    "equation of different numbers": ("7 = 5", "5", False),
    "two equations": ("x = 3, y = 5", "5", None),
    "case of a name": ("paris.", "Paris", True),
    "another name": ("Lyon", "Paris", False),
    "a name for a number": ("several", "5", False),
    "text command": (r"\text{Evelyn}", "Evelyn", True),
    "Chinese name": ("北京", "上海", False),
    "choice letter": ("(B)", "B", True),
    "choice letter with its text": ("B. 42", "B", True),
    "lower case choice letter": ("b", "(B)", True),
    "another choice letter": ("C", "B", False),
    "an article is no choice letter": ("A dog", "A", None),
    "blanks in a formula": ("x + 1", "x+1", True),
    "power": ("2^{10}", "1024", None),
}


@pytest.mark.parametrize(("answer", "gold", "expected"), PLAIN.values(), ids=PLAIN)
def test_compare_without_a_process(answer, gold, expected):
    assert compare_plainly(answer, gold) is expected


GOLDS = {
    "bare": ("5", "5"),
    "dollars": ("$5$", "5"),
    "box": (r"\boxed{5}", "5"),
    "worked solution with a box": (r"Add. $2+3=\boxed{5}$ apples.", "5"),
    "GSM8K": ("2+3 = <<2+3=5>>5\n#### 5", "5"),
    "integer": (5, "5"),
    "float": (0.5, "0.5"),
    "letter": ("B", "B"),
    "empty": ("", None),
    "only dollars": ("$$", None),
    "None": (None, None),
    "boolean": (True, None),
    "list": (["5"], None),
    "prose": ("The patient should rest and drink water. " * 9, None),
}


@pytest.mark.parametrize(("solution", "expected"), GOLDS.values(), ids=GOLDS)
def test_read_gold(solution, expected):
    assert read_gold(solution) == expected


# By algebra, in a worker. Bare LaTeX golds are what stock rewards misread: facts of 62 golds in MATH-500's style.
ALGEBRA = {
    "power": ("2^{10}", "1024", True),
    "root": (r"\sqrt{20}", r"2\sqrt{5}", True),
    "short root": (r"11\sqrt2", r"11\sqrt{2}", True),
    "polynomial": ("x^2+2x+1", "(x+1)^2", True),
    "its constant term": ("1", "(x+1)^2", False),
    "one of two values": ("1", "1,-2", False),
    "two values in another order": ("-2, 1", "1,-2", True),
    "two values where one is right": ("5 or 6", "5", False),
    "a part of a sum": ("2", "2k + 2", False),
    "an end of an interval": ("2", r"(-\infty,2)\cup(3,\infty)", False),
    "pi": (r"\pi", r"\pi", True),
    "decimal of pi": ("3.141593", r"\pi", True),
    "Euler's number upright": (r"1-\frac{1}{\mathrm{e}}", r"1 - e^{-1}", True),
    "another sign": (r"1+\frac{1}{e}", r"1-\frac{1}{e}", False),
    "matrix": (r"\begin{bmatrix}1&2\end{bmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", True),
    "tiny numbers": ("1/2^{99}", "1/2^{98}", False),
    "a tiny number is not zero": ("10^{-9}", "0.0", False),
    "Chinese conjunction": ("x=1或x=2", "x=1,x=2", True),
    "gold that is no mathematics": ("42", r"\begin{cases}1\\2\end{cases}", None),
}


@pytest.mark.parametrize(("answer", "gold", "expected"), ALGEBRA.values(), ids=ALGEBRA)
def test_compare_by_algebra(answer, gold, expected):
    assert same_answer(answer, gold) is expected


def test_plain_answers_start_no_process():
    with Grader() as fresh:
        assert fresh.grade(["56,088", "paris", "6", None, " "], ["56088", "Paris", "5", "5", "5"]) == [
            True,
            True,
            False,
            False,
            False,
        ]
        assert fresh._workers._process is None


@pytest.fixture(scope="module")
def quick():
    """Two workers that are killed after one second."""
    with Grader(workers=2, timeout=1) as quick:
        quick.grade([r"\binom{4}{2}"], ["6"])
        yield quick


MIXED = ([r"\binom{5}{2}", HANGS, r"\binom{5}{2}", "10^{10^{10}}", r"\binom{4}{2}"], ["10", "1", "11", "42", "6"])
MIXED_VERDICTS = ["right", "stopped", "wrong", "stopped", "right"]


def test_an_answer_that_hangs_is_stopped_and_the_others_are_graded(quick):
    start = time.monotonic()
    assert quick.verdicts(*MIXED) == MIXED_VERDICTS
    assert time.monotonic() - start < 6
    assert quick.grade([HANGS], ["1"]) == [False]


def test_a_gold_answer_that_hangs_cannot_be_read(quick):
    assert quick.verdicts(["x"], [r"\begin{pmatrix}" + "(" * 5000 + r"\end{pmatrix}"]) == ["gold_unreadable"]


def test_grading_in_threads(quick):
    answers, golds = [r"\binom{5}{2}", HANGS, r"\binom{5}{2}"], ["10", "1", "11"]
    results = []
    threads = [threading.Thread(target=lambda: results.append(quick.verdicts(answers, golds))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert results == [["right", "stopped", "wrong"]] * 2


def test_grading_beside_an_event_loop(quick):
    async def grade_and_tick():
        ticks = 0
        task = asyncio.create_task(asyncio.to_thread(quick.verdicts, *MIXED))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        return task.result(), ticks

    verdicts, ticks = asyncio.run(grade_and_tick())
    assert verdicts == MIXED_VERDICTS
    assert ticks > 10


def test_a_worker_that_somebody_killed_is_replaced(quick):
    idle = [slot.worker for slot in quick._slots.queue if slot.worker]
    for worker in idle:
        os.kill(worker.process_id, 9)
    assert idle
    assert quick.grade([r"\binom{4}{2}", r"\binom{5}{2}", r"\binom{6}{2}"], ["6", "10", "16"]) == [True, True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the limits of another process")
def test_a_worker_has_a_memory_limit_and_the_parent_has_none(quick):
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    assert quick.grade([r"\binom{4}{2}"], ["6"]) == [True]
    worker = next(slot.worker for slot in quick._slots.queue if slot.worker)
    assert resource.prlimit(worker.process_id, resource.RLIMIT_AS) == (nursery.MEMORY, nursery.MEMORY)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_odd_characters_reach_the_worker_whole(quick):
    assert quick.verdicts(["x<2+\udc80\0\n😀", "x<2\n+y"], ["x<3", "x<2+y"]) == ["wrong", "right"]


@pytest.mark.slow
def test_a_nursery_that_somebody_killed_is_replaced():
    with Grader(workers=1, timeout=2) as grader:
        assert grader.grade([r"\binom{4}{2}"], ["6"]) == [True]
        grader._workers._process.kill()
        assert grader.verdicts([HANGS, r"\binom{4}{2}"], ["1", "6"]) == ["stopped", "right"]


@pytest.mark.slow
def test_close_ends_all_processes_and_grading_again_starts_new_ones():
    grader = Grader(workers=2, timeout=5)
    for _ in range(2):
        assert grader.grade([r"\binom{4}{2}", r"\binom{5}{2}"], ["6", "10"]) == [True, True]
        workers = [slot.worker.process_id for slot in grader._slots.queue if slot.worker]
        grader.close()
        assert grader._workers._process.returncode == 0
        assert [pid for pid in workers if is_alive(pid)] == []


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def gone(process_ids: list[int], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, process_ids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, process_ids))


PROGRAM = """
import os, sys, threading
from think_tools.answers import Grader, shared_grader

def pids(grader):
    return [grader._workers._process.pid, *(slot.worker.process_id for slot in grader._slots.queue if slot.worker)]

grader = shared_grader()
forgotten = Grader(workers=1)
assert grader.grade([r"\\binom{4}{2}"], ["6"]) == forgotten.grade([r"\\binom{4}{2}"], ["6"]) == [True]
print(*pids(grader), *pids(forgotten), flush=True)
del forgotten
"""


def run_program(*lines: str) -> tuple[int, list[int], str]:
    code = PROGRAM + textwrap.dedent("\n".join(lines))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, [int(word) for word in done.stdout.split()], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", ["", "sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"]
)
def test_no_process_outlives_the_interpreter_and_nothing_warns(end):
    _, process_ids, errors = run_program(end)
    assert len(process_ids) == 4
    assert gone(process_ids)
    assert "Warning" not in errors


@pytest.mark.slow
def test_a_forked_child_grades_with_processes_of_its_own():
    status, process_ids, errors = run_program(
        """
        child = os.fork()
        assert grader.grade([r"\\binom{4}{2}", r"\\binom{4}{2}"], ["6", "7"]) == [True, False]
        print(*pids(grader), flush=True)
        if child:
            assert os.waitpid(child, 0)[1] == 0
        """
    )
    assert (status, errors) == (0, "")
    nurseries = {process_ids[0], process_ids[2]}  # of the shared and of the forgotten grader
    assert len(set(process_ids) - nurseries) >= 4
    assert gone(process_ids)


def grade_in_a_daemon(queue) -> None:
    queue.put(same_answer(r"\binom{4}{2}", "6"))


@pytest.mark.slow
def test_grading_in_a_spawned_daemon_process():
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=grade_in_a_daemon, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=60) is True
    process.join(timeout=10)
    assert process.exitcode == 0
    process.close()
    queue.close()
    queue.join_thread()


def test_the_worker_loop_in_process():
    ours, theirs = socket.socketpair()
    ours.sendall(b"".join(json.dumps(job).encode() + b"\n" for job in (["a", "a", 5], ["a", "b", 5], ["a", "?", 5])))
    ours.shutdown(socket.SHUT_WR)

    def judge(answer, gold, gold_is_read):
        if gold == "?":
            return b"N"
        gold_is_read()
        return b"1" if answer == gold else b"0"

    with ours, theirs:
        nursery.serve(theirs, judge)
        assert ours.recv(16) == b"G1G0N"


def test_nothing_of_the_text_is_run_as_python(tmp_path, quick):
    target = tmp_path / "written"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    answers = [code, f"\\boxed{{{code}}}", f"1+{code}", f"\\text{{{code}}}", f"x_{{{code}}}"]
    quick.grade(answers, ["x+1"] * len(answers))
    quick.grade(["x+2"] * len(answers), answers)
    assert not target.exists()


ERRORS = {
    "workers": (lambda: Grader(workers=0), "`workers` must be at least 1 or None, got 0."),
    "timeout": (lambda: Grader(timeout=0), "`timeout` must be a positive number of seconds, got 0."),
    "timeout of a call": (lambda: same_answer("2^2", "4", timeout=-1), "`timeout` must be a positive"),
    "lengths": (
        lambda: shared_grader().grade(["1"], []),
        "`answers` and `golds` must have the same length, got 1 and 0",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_nursery_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(workers, "__package__", "no_such_package")
    with Grader() as fresh, pytest.raises(RuntimeError, match="could not start: it ended with status 1"):
        fresh.grade([r"\binom{4}{2}"], ["6"])


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_agrees_with_the_labels_of_real_completions(data_folder):
    """50 MATH problems x 8 completions with rule-based labels, and 2,400 GSM8K solutions of four models."""
    rows = read_rows(data_folder / "data/math_samples_8x50.jsonl")
    labelled = [
        (extract_answer(completion), row["answer"], right)
        for row in rows
        for completion, right in zip(row["completions"], row["is_correct"], strict=True)
    ]
    answers, golds, labels = zip(*labelled, strict=True)
    assert shared_grader().grade(answers, golds) == [bool(label) for label in labels]

    rows = read_rows(data_folder / "data/gsm8k_model_solutions.jsonl")
    solutions = [(row, solution) for row in rows for solution in row["solutions"]]
    answers = [extract_answer(solution["solution"], last_number=True) for _, solution in solutions]
    golds = [extract_answer(row["answer"], last_number=True) for row, _ in solutions]
    assert shared_grader().grade(answers, golds) == [solution["is_correct"] for _, solution in solutions]
