"""What an answer is, when two of them are equal, and that grading neither hangs, crashes nor leaves a process."""

import _thread
import asyncio
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
from adversarial import HANGS

from think_tools import extract_answer, same_answer
from think_tools.answers import Grader, audit_solutions, nursery, shared_grader, workers
from think_tools.answers.algebra import compare_formulas
from think_tools.answers.compare import compare_plainly, read_gold
from think_tools.answers.grader import _forget_in_child

EXTRACTED = {
    "a box": (r"So we get \boxed{42}.", "42"),
    "the last of two boxes": (r"\boxed{43}, no: \boxed{42}", "42"),
    "two boxes that are one answer": (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
    "boxes in a row, where the last corrects the first": (r"\boxed{1} \boxed{2}", "2"),
    "a box in a box beside another": (r"\boxed{\boxed{1}}, \boxed{2}", "1, 2"),
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
    "four hashes twice in a line": ("#### 41 #### 42", "42"),
    "an English word before a formula": ("Answer $$ 9 $$", "9"),
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
    "one percent is not a hundredth": (r"1\%", "0.01", False),
    "decimal comma": ("1000,99", "1000.99", True),
    "gold with a decimal comma": ("1.22", "1,22", True),
    "another decimal comma": ("1,5", "1.6", None),
    "time of day": (r"04:30 \text{ p.m.}", "4:30 PM", True),
    "another time of day": ("4:30 a.m.", "4:30 p.m.", False),
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
    "number in a base": ("52_{8}", "52_8", True),
    "number without its base": ("52", "52_8", False),
    "number in another base": ("52_9", "52_8", False),
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
    "sentence": ("The answer is 5.", "5"),
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
    "tiny factorials": (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
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


@pytest.mark.slow
def test_grading_in_threads(quick):
    answers, golds = [r"\binom{5}{2}", HANGS, r"\binom{5}{2}"], ["10", "1", "11"]
    results = []
    threads = [threading.Thread(target=lambda: results.append(quick.verdicts(answers, golds))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert results == [["right", "stopped", "wrong"]] * 2


@pytest.mark.slow
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
    assert quick.grade([r"\binom{4}{2}"], ["6"]) == [True]  # one has work behind it, whatever ran before
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


@pytest.mark.slow
def test_a_thread_grades_on_after_the_main_thread_has_ended():
    status, process_ids, errors = run_program(
        """
        def work():
            threading.main_thread().join()
            assert grader.grade([r"\\binom{4}{2}", r"\\binom{4}{2}"], ["6", "7"]) == [True, False]
            print(*pids(grader), flush=True)

        threading.Thread(target=work).start()
        """
    )
    assert (status, errors) == (0, "")
    assert len(process_ids) == 6
    assert gone(process_ids)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the state of another process")
def test_the_deadline_holds_where_the_parent_ignores_and_blocks_the_alarm():
    code = f"""
    import signal, time
    from pathlib import Path
    from think_tools.answers import Grader
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    with Grader(workers=1, timeout=1) as grader:
        grader.grade([r"\\binom{{4}}{{2}}"], ["6"])
        worker = grader._slots.queue[0].worker.process_id
        assert grader.verdicts([{HANGS!r}], ["1"]) == ["stopped"]
        for _ in range(500):  # its socket closes a moment before it has ended
            if Path(f"/proc/{{worker}}/stat").read_text().split()[2] == "Z":
                break
            time.sleep(0.01)
        else:
            raise SystemExit("the worker has not ended")
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True, timeout=60)


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


def half_closed_pipe(*jobs: list) -> tuple[Connection, Connection]:
    """A pipe on which the jobs have been sent and no more can be."""
    ours, theirs = Pipe()
    for job in jobs:
        ours.send_bytes(json.dumps(job).encode())
    with socket.fromfd(ours.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.shutdown(socket.SHUT_WR)
    return ours, theirs


def test_the_worker_loop_in_process():
    ours, theirs = half_closed_pipe(["a", "a", 5], ["a", "b", 5], ["a", "?", 5])

    def judge(answer, gold, gold_is_read):
        if gold == "?":
            return b"N"
        gold_is_read()
        return b"1" if answer == gold else b"0"

    with ours, theirs:
        nursery.serve(theirs, judge)
        assert [ours.recv_bytes() for _ in range(5)] == [b"G", b"1", b"G", b"0", b"N"]


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


# Decided in process, without `math_verify`: (answer, gold, equal?). None: left to a worker.
FORMULAS = {
    "expanded": ("x^2+2x+1", "(x+1)^2", True),
    "not the same polynomial": ("x^2+2x", "(x+1)^2", False),
    "quotients": (r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}", True),
    "negative power": ("x^{-2}", r"\frac{1}{x^2}", True),
    "division sign": ("x/2*4", "2x", True),
    "division before a product": ("1/2x", r"\frac{x}{2}", None),
    "division by zero": (r"\frac{x}{1-1}", "x", None),
    "root": (r"\sqrt{980}", r"14\sqrt5", True),
    "root in the denominator": (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}", True),
    "product of roots": (r"\sqrt6\sqrt{10}", r"2\sqrt{15}", True),
    "root of a large prime": (r"\sqrt{1000003}", r"\sqrt{1000003}+1", False),
    "product of roots of large primes": (r"\sqrt{1009}\sqrt{1013}", r"\sqrt{1022117}", True),
    "root of zero": (r"\sqrt0+x", "x", True),
    "root of a negative number": (r"\sqrt{-4}", "2i", True),
    "square of i": ("(2+i)(2-i)", "5", True),
    "root of a sum": (r"\sqrt{1+x}+1", r"1+\sqrt{x+1}", True),
    "roots that may be equal": (r"\sqrt{x^2+2x+1}", "x+1", None),
    "root of a quotient": (r"\sqrt{\frac1x}+1", "x", None),
    "root too large": (r"\sqrt{10000000001}x", "x", None),
    "exponent of a half": (r"x\cdot 8^{\frac12}", r"2\sqrt2x", True),
    "exponent that is a letter": ("2^n", "2^m", None),
    "unbraced exponent": ("2^10", "1024", None),
    "one-digit exponent": ("x^2y", "yx^2", True),
    "fraction of letters": (r"\frac ab", r"\frac{a}{b}", True),
    "fraction of a command": (r"\frac\pi2", r"\frac{\pi}{2}", True),
    "fraction without an argument": (r"\frac{1}", "x", None),
    "fraction of a sign": (r"\frac+2", "x", None),
    "pi and another multiple": (r"\frac{7\pi}{3}", r"\frac{7\pi}{2}", False),
    "decimal of pi": ("3.141593", r"\pi", None),
    "decimal in a formula": ("0.5x", r"\frac{x}{2}", True),
    "tiny powers": ("1/2^{99}", "1/2^{98}", False),
    "power too large": ("2^{100000}", "x", None),
    "too many digits": ("(2^{500})^{50}x", "x", None),
    "too many terms": ("(x+y+z+w)^{300}", "x", None),
    "too large to compare": (r"\frac{(a+b+c)^8}{(d+2)^5(a+1)^6}", r"\frac{(p+q+r)^8}{(s+2)^5(p+1)^6}", None),
    "too deep": ("(" * 20 + "x" + ")" * 20, "x", None),
    "deep tuples": ("(1," * 20 + "1" + ")" * 20, "(1,2)", None),
    "too long": ("x+" * 200 + "x", "x", None),
    "sines": (r"2\sin b\cos a", r"2\cos(a)\sin(b)", True),
    "squared sine": (r"1-\cos^2 7x", r"\sin^{2}(7x)", True),
    "third power of a cosine": (r"\cos^3 x+\sin^2 x\cos x", r"\cos x", True),
    "double angle": (r"2\sin x\cos x", r"\sin 2x", None),
    "sine of a quotient": (r"\sin\frac1x", "x", None),
    "logarithm of a power": (r"3\log 2", r"\log 8", True),
    "logarithm of a fraction": (r"\ln\frac{2021}{4}", r"\ln 2021-2\ln 2", True),
    "logarithm of a large prime": (r"\ln 1009", r"\ln 1009", True),
    "logarithm to a base": (r"\log_2 8", "3", None),
    "logarithm of a letter": (r"\ln x", "x", None),
    "unit of two letters": ("x cm", "x", None),
    "word": ("abc", "x", None),
    "indices": ("x_1+x_{12}", "x_{12}+x_1", True),
    "index of a number": ("52", "52_8", None),
    "function of its own": ("f(x)", "g(x)", None),
    "mixed number in a sum": (r"x+2\frac12", "x", None),
    "relation": ("x<2", "x<3", None),
    "set of a formula that is half read": ("x+1)", "x", None),
    "assignment": ("x=2y+1", "1+2y", True),
    "assignment of a number": ("5", "x=5", True),
    "assignment to another letter": ("y=5", "x=5", None),
    "list": ("-2, 1", "1,-2", True),
    "list in words": ("x=1 or x=2", "2, 1", True),
    "one of a list": ("1", "1,-2", False),
    "plus or minus": (r"3\pm2\sqrt2", r"3-2\sqrt2,3+2\sqrt2", True),
    "half of plus or minus": ("2021", r"\pm 2021", False),
    "set": (r"\{3,2,1\}", r"\{1,2,3\}", True),
    "another set": (r"\{3,2\}", r"\{1,2,3\}", False),
    "set of unknown parts": (r"\{3,\ln x\}", r"\{3,1\}", None),
    "set of one value": (r"\{5\}", "5", None),
    "set for a tuple": (r"\{1,3\}", "(1,3)", False),
    "product of sums": ("(x+1)(x-1)", "x^2-1", True),
    "tuple of sums": ("(a+(b),1)", "(b+a,1)", True),
    "tuple": ("(1, 0.5)", r"\left(1,\frac12\right)", True),
    "tuple in another order": ("(3,1)", "(1,3)", False),
    "tuple of unknown parts": (r"(3,\ln x)", "(3,1)", None),
    "tuple without brackets": ("1,3", "(1,3)", None),
    "list of tuples": ("(2,1),(1,2)", "(1,2),(2,1)", True),
    "interval": (r"[2,+\infty)", r"[2,\infty)", True),
    "interval that is open": ("(1,2]", "[1,2]", False),
    "end of an interval": ("2", r"(-\infty,2)\cup(3,\infty)", None),
    "union": (r"x\in(3,\infty)\cup(-∞,2)", r"(-\infty,2)\cup(3,\infty)", True),
    "matrix": (r"\begin{bmatrix}1&2\\x&\frac12\end{bmatrix}", r"\begin{pmatrix}1&2\\x&0.5\\\end{pmatrix}", True),
    "another matrix": (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", False),
    "separators": ("1,000x", "1000x", None),
    "bracket that closes nothing": ("1),(2", "1", None),
    "two brackets closed by one": ("((x)", "x", None),
    "bracket that is not closed": ("(x+1", "x", None),
    "an upright letter": (r"\mathrm{e}+1", "1+e", True),
}


@pytest.mark.parametrize(("answer", "gold", "expected"), FORMULAS.values(), ids=FORMULAS)
def test_compare_formulas_in_process(answer, gold, expected):
    assert compare_formulas(answer, gold) is expected


@pytest.mark.slow
def test_formulas_in_process_agree_with_algebra_in_a_worker():
    """`math_verify` gives the verdict of the quick rules, but for the exceptions named here."""
    differs = {
        "tiny powers": "it rounds to six places",
        "set for a tuple": "it pays a set for a tuple",
        "fraction of letters": r"it cannot read \frac ab",
        "fraction of a command": r"it cannot read \frac\pi2",
        "product of roots of large primes": (r"\sqrt{1009}\sqrt{1013}", r"\sqrt{1022117}", True),
        "root of zero": r"it cannot read \sqrt0",
        "root of a negative number": "i is a letter to it",
        "square of i": "i is a letter to it",
        "union": "it knows no ∞",
    }
    decided = {name: row for name, row in FORMULAS.items() if row[2] is not None and name not in differs}
    judge = nursery.load_judge()
    signs = {name: judge(answer, gold, lambda: None) for name, (answer, gold, _) in decided.items()}
    assert {name: sign for name, sign in signs.items() if sign != (b"1" if decided[name][2] else b"0")} == {}


def test_grade_async_does_not_hold_up_the_loop(quick):
    assert asyncio.run(quick.grade_async([r"\binom{5}{2}", "6"], ["10", "5"])) == [True, False]


def test_audit_names_the_rows_that_cannot_be_graded():
    golds = ["42", r"\begin{cases}1\\2\end{cases}", "", None, r"\frac{1}{2}", "Rest and drink. " * 20, 7, "C", "x<2"]
    found = audit_solutions([{"gold": gold} for gold in golds], column="gold")
    assert [(item.row, item.reason) for item in found] == [
        (1, "it is no formula that can be read"),
        (2, "it is empty"),
        (3, "it is of type NoneType, not a string or a number"),
        (5, "it is prose without a final answer"),
    ]
    with pytest.raises(ValueError, match="`column` names no column of row 0: got 'solution', the row has"):
        audit_solutions([{"answer": "1"}])


@pytest.fixture
def judge(monkeypatch):
    """The judge of the workers, loaded in this process."""
    monkeypatch.setattr(nursery, "_EXAMPLES", ())
    return nursery.load_judge()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_judge_in_process(judge):
    read = []
    table = [(r"\binom{5}{2}", "10"), ("11", r"\binom{5}{2}"), ("x", r"\begin{cases}1\end{cases}"), ("", "x")]
    table += [("1/2^{99}", "1/2^{98}"), ("x", "y"), (r"\sqrt{4.0}", "2"), (r"\sqrt{2}", r"\sqrt{2}")]
    assert [judge(answer, gold, lambda: read.append(1)) for answer, gold in table] == [
        b"1", b"0", b"N", b"0", b"0", b"0", b"1", b"1",
    ]  # fmt: skip
    assert len(read) == 7


def test_the_nursery_in_process(monkeypatch):
    """It greets, forks on request, reaps what has ended, and ends the rest when its parent is gone."""
    children, ended, reaped = iter([41, 42]), [], []
    monkeypatch.setattr(nursery, "load_judge", lambda: None)
    monkeypatch.setattr(os, "fork", lambda: next(children))
    monkeypatch.setattr(os, "kill", lambda child, number: ended.append(child))
    monkeypatch.setattr(os, "waitpid", lambda child, options: reaped.append((child, options)) or (child, 0))
    ours, theirs = socket.socketpair()
    with ours:
        for _ in range(2):
            socket.send_fds(ours, [b"F"], [ours.fileno()])
        ours.shutdown(socket.SHUT_WR)
        nursery.main(theirs.detach())
        replies = ours.recv(4096)
    assert replies == b"R" + (41).to_bytes(8) + (42).to_bytes(8)
    assert ended == [42]
    assert reaped == [(41, os.WNOHANG), (42, 0)]


def test_a_nursery_without_math_verify_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    ours, theirs = socket.socketpair()
    with ours:
        nursery.main(theirs.detach())
        assert ours.recv(4096).startswith(b"Eimport of math_verify halted")


def test_a_forked_worker_limits_itself_and_serves(monkeypatch):
    limits = []
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "_exit", lambda status: limits.append(status))
    monkeypatch.setattr("resource.setrlimit", lambda what, limit: limits.append(limit))
    ours, theirs = half_closed_pipe(["1", "1", 5])
    control, other = socket.socketpair()
    with ours, theirs, other:
        nursery.fork_worker(control, os.dup(theirs.fileno()), lambda answer, gold, gold_is_read: b"1")
        assert ours.recv_bytes() == b"1"
    assert limits == [(0, 0), (nursery.MEMORY, nursery.MEMORY), 0]


def fake_worker(how: int) -> workers.Worker:
    """A worker that takes jobs and answers nothing (`SHUT_WR`), or takes none (`SHUT_RDWR`)."""
    ours, theirs = socket.socketpair()
    theirs.shutdown(how)
    theirs.detach() if how == socket.SHUT_WR else theirs.close()
    return workers.Worker(Connection(ours.detach()), 0)


def test_a_job_whose_worker_ended_twice_before_it_read_the_gold_has_an_unreadable_gold(monkeypatch):
    with Grader(workers=1) as fresh:
        monkeypatch.setattr(fresh._workers, "fork", lambda: fake_worker(socket.SHUT_WR))
        assert fresh.verdicts(["x<1"], ["x<2"]) == ["gold_unreadable"]


@pytest.mark.slow
def test_an_interrupt_leaves_a_grader_that_grades(quick):
    interrupt = threading.Timer(0.3, _thread.interrupt_main)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        quick.grade([HANGS] * 9, ["1"] * 9)
    interrupt.join()
    assert quick.grade([r"\binom{4}{2}", r"\binom{5}{2}"], ["6", "11"]) == [True, False]


def test_workers_that_take_no_job_are_an_error(monkeypatch):
    with Grader(workers=1) as fresh:
        monkeypatch.setattr(fresh._workers, "fork", lambda: fake_worker(socket.SHUT_RDWR))
        with pytest.raises(RuntimeError, match="ended twice before it took a job"):
            fresh.grade(["x<1"], ["x<2"])


def test_a_nursery_that_ends_while_it_forks_is_an_error():
    control, nursery = socket.socketpair()
    nursery.shutdown(socket.SHUT_WR)
    with control, nursery, pytest.raises(ConnectionError, match="The grading process has ended"):
        workers._fork(control)


def test_grading_by_algebra_needs_forks(monkeypatch):
    fresh = workers.Workers()
    monkeypatch.setattr(workers, "os", SimpleNamespace(name="nt"))
    with pytest.raises(RuntimeError, match=r"needs Linux or macOS\. Use WSL"):
        fresh.fork()


def test_a_nursery_that_does_not_end_is_killed():
    class Stubborn(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout:
                raise subprocess.TimeoutExpired("nursery", timeout)
            return super().wait()

    process = Stubborn([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process.stdin:
        assert workers._end_nursery(socket.socket(), process) == -9


@pytest.mark.slow
def test_a_child_leaves_the_processes_to_its_parent(monkeypatch):
    """What `os.fork` calls in the child, called here."""
    fresh = Grader(workers=1)
    assert fresh.grade([r"\binom{4}{2}"], ["6"]) == [True]
    process = fresh._workers._process
    monkeypatch.setattr("think_tools.answers.grader._GRADERS", {fresh})
    _forget_in_child()
    assert fresh._workers._process is None
    assert process.wait(timeout=10) == 0
