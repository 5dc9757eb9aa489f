"""Grade answers in worker processes that the system ends at their deadline."""

import contextlib
import functools
import json
import os
import queue
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from .algebra import compare_formulas
from .compare import compare_plainly, read_gold
from .workers import Worker, Workers

# "stopped": the answer took too long or too much memory. "gold_unreadable": nothing to compare the answer with.
Verdict = Literal["right", "wrong", "stopped", "gold_unreadable"]
_VERDICTS: dict[bytes, Verdict] = {b"1": "right", b"0": "wrong", b"N": "gold_unreadable"}
_read_gold_once = functools.lru_cache(maxsize=4096)(read_gold)
_GRADERS: weakref.WeakSet["Grader"] = weakref.WeakSet()
_GRACE = 1.0  # seconds after its deadline in which a worker must have ended, see `nursery.serve`


@dataclass
class _Slot:
    """Room for one worker; `worker` is `None` while there is none."""

    worker: Worker | None = None


class Grader:
    """
    Decide whether answers equal gold answers, with a deadline that holds for every single one.

    Math-Verify stops itself by an alarm, which does not exist in threads and which some answers outlive: one
    completion of 82 characters stops a training run for ever
    (https://github.com/huggingface/Math-Verify/issues/65). Here algebra runs in worker processes that are killed and
    replaced. Equal strings, words, choice letters and plain numbers are compared exactly and start no process; the
    first answer that needs algebra starts the workers (about one second).

    Works in any thread, in processes made by fork or spawn, and in daemon processes. Needs Linux or macOS. All
    processes end with [`~Grader.close`], with the interpreter, or when the interpreter is killed.

    Args:
        workers (`int`, *optional*):
            Most answers graded at the same time, each in one process. `None` means one per CPU, at most four.
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds of wall time for one answer.

    Raises:
        `ValueError`: If `workers` is less than 1 or `timeout` is not positive.

    Example:

    ```python
    >>> from think_tools.answers import Grader

    >>> with Grader(workers=1) as grader:
    ...     grader.grade([r"\\frac{2}{4}", "0.6", None], ["1/2", "1/2", "1/2"])
    [True, False, False]
    ```
    """

    def __init__(self, workers: int | None = None, timeout: float = 5.0):
        if workers is not None and workers < 1:
            raise ValueError(f"`workers` must be at least 1 or None, got {workers}.")
        self.workers = workers or min(4, os.cpu_count() or 1)
        self.timeout = _positive(timeout)
        self._reset()
        _GRADERS.add(self)

    def _reset(self) -> None:
        self._workers = Workers()
        self._slots: queue.LifoQueue[_Slot] = queue.LifoQueue()  # last in, first out: few jobs need few workers
        for _ in range(self.workers):
            self._slots.put(_Slot())

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes. Grading again starts new ones."""
        self._workers.close()

    def grade(
        self, answers: Sequence[str | None], golds: Sequence[object], *, timeout: float | None = None
    ) -> list[bool | None]:
        """
        Tell for each answer whether it is right.

        Args:
            answers (`Sequence[str | None]`):
                Final answers, as [`extract_answer`] returns them.
            golds (`Sequence`):
                Gold answers of the same length: `5`, `$5$`, `#### 5`, a box, a letter, a word.
            timeout (`float`, *optional*):
                Seconds for one answer, `None` for the grader's own.

        Returns:
            `list[bool | None]`: `None` where the gold answer cannot be read. An answer of `None` and one that had to
            be stopped are wrong; [`~Grader.verdicts`] tells them apart.

        Raises:
            `ValueError`: If the two lists differ in length.
            `RuntimeError`: If no worker can be started.
        """
        verdicts = self.verdicts(answers, golds, timeout=timeout)
        return [None if verdict == "gold_unreadable" else verdict == "right" for verdict in verdicts]

    async def grade_async(
        self, answers: Sequence[str | None], golds: Sequence[object], *, timeout: float | None = None
    ) -> list[bool | None]:
        """
        Like [`~Grader.grade`], without holding up the event loop.

        A task that is cancelled returns at once; the thread behind it ends with the deadlines of its answers.

        Example:

        ```python
        >>> import asyncio
        >>> from think_tools.answers import Grader

        >>> asyncio.run(Grader().grade_async(["56,088"], ["56088"]))
        [True]
        ```
        """
        import asyncio  # costs 30 of the 100 ms that `import think_tools` may take

        return await asyncio.to_thread(self.grade, answers, golds, timeout=timeout)

    def verdicts(
        self, answers: Sequence[str | None], golds: Sequence[object], *, timeout: float | None = None
    ) -> list[Verdict]:
        """
        Like [`~Grader.grade`], with the reason: `"right"`, `"wrong"`, `"stopped"` or `"gold_unreadable"`.

        Example:

        ```python
        >>> from think_tools.answers import Grader

        >>> Grader().verdicts(["56,088", "5", "5"], ["56088", "6", ""])
        ['right', 'wrong', 'gold_unreadable']
        ```
        """
        if len(answers) != len(golds):
            raise ValueError(f"`answers` and `golds` must have the same length, got {len(answers)} and {len(golds)}.")
        timeout = self.timeout if timeout is None else _positive(timeout)
        verdicts: list[Verdict] = ["wrong"] * len(answers)
        jobs: dict[int, tuple[str, str, float]] = {}
        for index, (answer, solution) in enumerate(zip(answers, golds, strict=True)):
            gold = _read_gold_once(solution) if isinstance(solution, str) else read_gold(solution)
            if gold is None:
                verdicts[index] = "gold_unreadable"
            elif answer is not None and answer.strip():
                equal = compare_plainly(answer, gold)
                if equal is None:
                    equal = compare_formulas(answer, gold)
                if equal is None:
                    jobs[index] = answer, gold, timeout
                elif equal:
                    verdicts[index] = "right"
        if jobs:
            with ThreadPoolExecutor(self.workers) as pool:  # a thread waits for a worker
                # A pool takes nothing once the main thread has ended, as in a script whose last line starts a thread.
                run = pool.map if threading.main_thread().is_alive() else map
                outcomes = run(self._judge, jobs.values())
                for index in jobs:
                    verdicts[index] = next(outcomes)
        return verdicts

    def _judge(self, job: tuple[str, str, float]) -> Verdict:
        """Have a worker compare; a second one if the first was ended by somebody, perhaps before it saw the job."""
        message, timeout = json.dumps(job).encode(), job[2]
        slot, taken = self._slots.get(), False
        try:
            for _ in range(2):
                worker, slot.worker = slot.worker or self._workers.fork(), None
                started, gold_is_read = time.monotonic(), False
                with contextlib.suppress(OSError, EOFError):
                    worker.connection.send_bytes(message)
                    taken = True
                    while worker.connection.poll(timeout + _GRACE):
                        sign = worker.connection.recv_bytes()
                        if sign in _VERDICTS:
                            slot.worker = worker
                            return _VERDICTS[sign]
                        gold_is_read = True
                if gold_is_read:
                    return "stopped"
                if time.monotonic() - started >= timeout:
                    break
        finally:
            self._slots.put(slot)
        if not taken:
            raise RuntimeError("A grading worker ended twice before it took a job. Is the machine out of memory?")
        return "gold_unreadable"


def _positive(timeout: float) -> float:
    if timeout <= 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout}.")
    return timeout


def _forget_in_child() -> None:
    """After a fork: leave the parent's processes to the parent and begin anew."""
    for grader in list(_GRADERS):
        grader._reset()


if os.name == "posix":
    os.register_at_fork(after_in_child=_forget_in_child)


@functools.cache
def shared_grader() -> Grader:
    """The grader of this process that [`same_answer`] and the rewards use; nothing is started before it is needed."""
    return Grader()


def same_answer(answer: str | None, gold: object, *, timeout: float = 5.0) -> bool | None:
    r"""
    Tell whether an answer equals the gold answer: as text, as exact number, else by algebra in a worker process.

    Args:
        answer (`str` or `None`):
            Final answer, as [`extract_answer`] returns it. `None` is wrong.
        gold (`str`):
            Gold answer: `5`, `$5$`, `#### 5`, `\boxed{5}`, a choice letter, a word. Numbers are taken too.
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds of wall time. An answer that takes longer is wrong.

    Returns:
        `bool` or `None`: `None` if the gold answer cannot be read.

    Example:

    ```python
    >>> from think_tools import same_answer

    >>> same_answer("72/19 hours (or approximately 3.79 hours)", "72/19"), same_answer("paris", "Paris")
    (True, True)
    ```
    """
    return shared_grader().grade([answer], [gold], timeout=timeout)[0]
