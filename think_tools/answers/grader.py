"""Grade answers in worker processes that are killed at their deadline."""

import contextlib
import functools
import json
import os
import queue
import selectors
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .algebra import compare_formulas
from .compare import compare_plainly, read_gold
from .workers import Worker, Workers

# "stopped": the answer took too long or too much memory. "gold_unreadable": nothing to compare the answer with.
Verdict = Literal["right", "wrong", "stopped", "gold_unreadable"]
_VERDICTS: dict[bytes, Verdict] = {b"1": "right", b"0": "wrong", b"N": "gold_unreadable"}
_GRADERS: weakref.WeakSet["Grader"] = weakref.WeakSet()
_ENDED = b"."  # stands for a closed socket among the bytes of a worker


@dataclass
class _Job:
    index: int
    answer: str
    gold: str
    tries: int = 0


@dataclass(eq=False)
class _Slot:
    """Room for one worker; `worker` is `None` while there is none."""

    worker: Worker | None = None
    job: _Job | None = None
    received: bytes = b""
    deadline: float = 0.0


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
        verdicts: list[Verdict] = ["wrong"] * len(answers)
        jobs: deque[_Job] = deque()
        for index, (answer, solution) in enumerate(zip(answers, golds, strict=True)):
            gold = _read_gold_once(solution) if isinstance(solution, str) else read_gold(solution)
            if gold is None:
                verdicts[index] = "gold_unreadable"
            elif answer is not None and answer.strip():
                equal = compare_plainly(answer, gold)
                if equal is None:
                    equal = compare_formulas(answer, gold)
                if equal is None:
                    jobs.append(_Job(index, answer, gold))
                elif equal:
                    verdicts[index] = "right"
        self._run(jobs, verdicts, self.timeout if timeout is None else _positive(timeout))
        return verdicts

    def _run(self, jobs: deque[_Job], verdicts: list[Verdict], timeout: float) -> None:
        """Have workers grade the jobs; every slot that is taken is given back, whatever happens."""
        busy: set[_Slot] = set()
        try:
            while jobs or busy:
                while jobs and (slot := self._take(wait=not busy)):
                    busy.add(slot)
                    self._send(slot, jobs.popleft(), timeout)
                for slot in _with_news(busy):
                    outcome = self._outcome(slot)
                    if outcome == "waiting" or slot.job is None:
                        continue
                    if outcome == "again":
                        jobs.append(slot.job)
                    else:
                        verdicts[slot.job.index] = outcome
                    busy.remove(slot)
                    self._slots.put(slot)
        finally:
            for slot in busy:  # only after an exception such as KeyboardInterrupt
                self._kill(slot)
                self._slots.put(slot)

    def _take(self, *, wait: bool) -> _Slot | None:
        with contextlib.suppress(queue.Empty):
            return self._slots.get(block=wait)
        return None

    def _send(self, slot: _Slot, job: _Job, timeout: float) -> None:
        slot.job, slot.received = job, b""
        line = json.dumps([job.answer, job.gold, timeout]).encode() + b"\n"
        for _ in range(2):  # an idle worker may have been ended, by `close` or by the system
            slot.worker = slot.worker or self._workers.fork()
            slot.deadline = time.monotonic() + timeout
            try:
                slot.worker.connection.sendall(line)
                return
            except OSError:
                self._kill(slot)
        raise RuntimeError("A grading worker ended twice before it took a job. Is the machine out of memory?")

    def _outcome(self, slot: _Slot) -> Verdict | Literal["waiting", "again"]:
        """What is known of a slot's job now; ends the worker if it has had its time or has ended itself."""
        last = slot.received[-1:]
        if last in _VERDICTS:
            return _VERDICTS[last]
        expired = slot.deadline <= time.monotonic()
        if last != _ENDED and not expired:
            return "waiting"
        self._kill(slot)
        if b"G" in slot.received:
            return "stopped"
        if last == _ENDED and slot.job and not slot.job.tries:
            slot.job.tries += 1  # ended by somebody else, perhaps before it saw the job
            return "again"
        return "gold_unreadable"

    def _kill(self, slot: _Slot) -> None:
        if slot.worker:
            self._workers.kill(slot.worker)
            slot.worker = None


def _with_news(busy: set[_Slot]) -> list[_Slot]:
    """Wait for the next bytes or the next deadline, read the bytes, and return the slots concerned."""
    with selectors.DefaultSelector() as selector:
        for slot in busy:
            if slot.worker:
                selector.register(slot.worker.connection, selectors.EVENT_READ, slot)
        nearest = min(slot.deadline for slot in busy)
        readable = [key.data for key, _ in selector.select(max(0.0, nearest - time.monotonic()))]
    for slot in readable:
        data = b""
        with contextlib.suppress(OSError):
            data = slot.worker.connection.recv(16)
        slot.received += data or _ENDED
    now = time.monotonic()
    return [slot for slot in busy if slot in readable or slot.deadline <= now]


def _positive(timeout: float) -> float:
    if timeout <= 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout}.")
    return timeout


@functools.lru_cache(maxsize=4096)
def _read_gold_once(solution: str) -> str | None:
    return read_gold(solution)


def _forget_in_child() -> None:
    """After a fork: leave the parent's processes to the parent and begin anew."""
    for grader in list(_GRADERS):
        grader._workers.forget()
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
