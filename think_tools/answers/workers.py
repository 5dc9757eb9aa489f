"""Start and end the processes that grade by algebra, seen from the process that wants an answer graded."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

_START_SECONDS = 120.0  # importing sympy takes one second, on a machine that is swapping many


class Worker(NamedTuple):
    """A forked process that grades what comes in on `connection`, and ends when that is closed or forgotten."""

    connection: Connection
    process_id: int


class Workers:
    """
    A nursery (see `nursery.py`) that forks workers. Safe to use from several threads.

    The nursery is started by the first [`~Workers.fork`]. It ends all its workers and itself with [`~Workers.close`],
    when this object is forgotten, when the interpreter ends, and when it is killed: the control socket closes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._control: socket.socket | None = None
        self._process: subprocess.Popen | None = None
        self._shutdown: weakref.finalize | None = None

    def fork(self) -> Worker:
        """
        Get a new worker.

        Raises:
            `RuntimeError`: If the nursery cannot be started, as without `math-verify`.
            `OSError`: If it dies twice.
        """
        with self._lock:
            if self._control:
                with contextlib.suppress(OSError):
                    return _fork(self._control)
                self._end()  # it has been killed
            return _fork(self._start())

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._end()

    def _start(self) -> socket.socket:
        if os.name != "posix":
            raise RuntimeError("Grading by algebra needs Linux or macOS. Use WSL on Windows.")
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_SECONDS)
        # The nursery finds the same packages as this interpreter, wherever this one found them.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.nursery import main; main({theirs.fileno()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl+C is for the parent, which then closes the control socket
            )
        self._control, self._shutdown = ours, weakref.finalize(self, _end_nursery, ours, self._process)
        greeting = ours.recv(4096)
        if greeting != b"R":
            reason = greeting[1:].decode() or f"it ended with status {self._end()}"
            raise RuntimeError(f"The grading process could not start: {reason}. Is `math-verify` installed?")
        return ours

    def _end(self) -> int | None:
        self._control = None
        return self._shutdown() if self._shutdown else None


def _fork(control: socket.socket) -> Worker:
    ours, theirs = Pipe()
    with theirs:
        socket.send_fds(control, [b"F"], [theirs.fileno()])
        process_id = int.from_bytes(control.recv(8))
    if not process_id:
        raise ConnectionError("The grading process has ended.")
    return Worker(ours, process_id)


def _end_nursery(control: socket.socket, process: subprocess.Popen) -> int:
    """
    Close the control socket, on which the nursery ends, wait for it and return its exit status.

    In a forked child this only lets go: the parent's socket stays open, and what is not our child counts as ended.
    """
    control.close()
    try:
        return process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
