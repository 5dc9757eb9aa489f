"""Texts made to hang, crash or swell the grader, and random ones: each gets a verdict, in bounded time and memory."""

import asyncio
import math
import os
import resource
import threading
import time

import pytest
from adversarial import COMPLETIONS, GOLDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from think_tools import extract_answer
from think_tools.answers import Grader
from think_tools.answers.algebra import compare_formulas
from think_tools.answers.compare import compare_plainly, read_gold
from think_tools.answers.grader import Verdict

TIMEOUT, WORKERS = 1.0, 2
# Ordinary rows between the hostile ones; each needs a worker.
ORDINARY = [(rf"\boxed{{\binom{{{n}}}{{2}}}}", str(n * (n - 1) // 2 + n % 2), n % 2 == 0) for n in range(4, 24)]


def in_main_thread(grader: Grader, answers: list, golds: list) -> list[Verdict]:
    return grader.verdicts(answers, golds)


def in_a_thread(grader: Grader, answers: list, golds: list) -> list[Verdict]:
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.extend(grader.verdicts(answers, golds)))
    thread.start()
    thread.join()
    return verdicts


def in_asyncio(grader: Grader, answers: list, golds: list) -> list[Verdict]:
    return asyncio.run(asyncio.to_thread(grader.verdicts, answers, golds))


@pytest.mark.slow
@pytest.mark.parametrize("run", [in_main_thread, in_a_thread, in_asyncio])
def test_a_batch_of_hostile_answers(run):
    assert len(COMPLETIONS) == 59
    rows = [(text, GOLDS.get(name, "$42$")) for name, text in COMPLETIONS.items()]
    expected = {"plain": "right", "a million blanks": "right"}
    rows += [(text, gold) for text, gold, _ in ORDINARY]
    with Grader(workers=WORKERS, timeout=TIMEOUT) as grader:
        grader.grade([r"\binom{4}{2}"], ["6"])
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        verdicts = run(grader, [extract_answer(text) for text, _ in rows], [gold for _, gold in rows])
        seconds = time.monotonic() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
        nursery = grader._workers._process
        workers = [slot.worker.process_id for slot in grader._slots.queue if slot.worker]
    stopped = len(verdicts) - verdicts.count("right") - verdicts.count("wrong")
    print(f"{run.__name__}: {stopped} stopped, {seconds:.1f} s, {grown / 1024:.1f} MiB more in the parent")
    assert [verdict == "right" for verdict in verdicts[59:]] == [right for *_, right in ORDINARY]
    for name, verdict in zip(COMPLETIONS, verdicts, strict=False):
        assert (verdict == "right") == (name in expected), name
    assert seconds < math.ceil(stopped / WORKERS) * TIMEOUT + 5
    assert grown < 50 * 1024
    assert nursery.returncode == 0
    for process_id in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


PIECES = [
    *(r"\boxed{", "}", "{", "$", r"\(", r"\)", "<answer>", "</answer>", "#### ", "The answer is ", "答案是", "or"),
    *(r"\frac", r"\sqrt", r"\pi", r"\cup", r"\pm", r"\infty", r"\sin", r"\log", r"\begin{pmatrix}", r"\end{pmatrix}"),
    *("1", "0", "x", "^", "_", "(", ")", "[", "]", ",", "=", "/", "-", "%", r"\%", "万", "５", " ", "\n", "1e9", "i"),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=16).map("".join)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(TEXTS, TEXTS)
def test_no_text_breaks_extracting_and_comparing(text, solution):
    """All that runs in this process. A text equals itself, and a comparison that is decided is no crash."""
    answer, gold = extract_answer(text, last_number=True), read_gold(solution)
    assert answer is None or answer.strip()
    if answer is not None:
        assert compare_plainly(answer, answer) is True
        assert compare_formulas(answer, answer) is not False
        if gold is not None:
            assert compare_plainly(answer, gold) in (True, False, None)
            assert compare_formulas(answer, gold) in (True, False, None)


@pytest.mark.slow
def test_no_text_breaks_a_worker():
    """10,000 random pairs through extraction and workers: a verdict for each, and the workers serve on."""
    texts = []
    collect = settings(max_examples=10_000, deadline=None, derandomize=True, database=None)(given(TEXTS, TEXTS)(
        lambda text, solution: texts.append((text, solution))
    ))  # fmt: skip
    collect()
    with Grader(workers=WORKERS, timeout=TIMEOUT) as grader:
        answers = [extract_answer(text, last_number=True) or text for text, _ in texts]
        verdicts = grader.verdicts(answers, [solution for _, solution in texts])
        assert len(verdicts) == len(texts)
        assert grader.grade([r"\binom{4}{2}"], ["6"]) == [True]
