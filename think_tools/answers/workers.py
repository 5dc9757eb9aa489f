"""Start, kill and replace the processes that grade by algebra, seen from the process that wants an answer graded."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import weakref
from typing import NamedTuple

CONTROL = struct.Struct("!cq")  # a command to the nursery, or its reply: one letter and a process id
_START_SECONDS = 120.0  # importing sympy takes one second, on a machine that is swapping many


class Worker(NamedTuple):
    """A forked process that grades what comes in on `connection`."""

    connection: socket.socket
    process_id: int


class Workers:
    """
    A nursery (see `nursery.py`) and the workers it has forked. Safe to use from several threads.

    The nursery is started by the first [`~Workers.fork`]. Everything ends with [`~Workers.close`], when this object is
    forgotten, when the interpreter ends, and when it is killed: the sockets close, which ends the processes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the control socket
        self._control: socket.socket | None = None
        self._sockets: set[socket.socket] = set()  # all that must be closed
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
            try:
                return self._fork(self._control or self._start())
            except OSError:  # the nursery has been killed
                self._end_nursery()
                return self._fork(self._start())

    def kill(self, worker: Worker) -> None:
        """End a worker, whatever it is doing, and have it reaped."""
        worker.connection.close()
        with self._lock:
            self._sockets.discard(worker.connection)
            if self._control:
                with contextlib.suppress(OSError):  # without a nursery it ends by itself, see `GRACE`
                    self._control.sendall(CONTROL.pack(b"K", worker.process_id))
                    self._control.recv(CONTROL.size)

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            if self._shutdown:
                self._shutdown()
            self._control = None

    def _start(self) -> socket.socket:
        if os.name != "posix":
            raise RuntimeError("Grading by algebra needs Linux or macOS. Use WSL on Windows.")
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_SECONDS)
        # The nursery finds the same packages as this interpreter, wherever this one found them.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__package__}.nursery import main; main({theirs.fileno()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl+C is for the parent, which then closes the control socket
        )
        theirs.close()
        self._control = ours
        self._sockets.add(ours)
        self._shutdown = weakref.finalize(self, _end_processes, self._process, self._sockets)
        greeting = ours.recv(4096)
        if greeting != b"R":
            status = self._end_nursery()
            reason = greeting[1:].decode() or f"it ended with status {status}"
            raise RuntimeError(f"The grading process could not start: {reason}. Is `math-verify` installed?")
        return ours

    def _fork(self, control: socket.socket) -> Worker:
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(control, [CONTROL.pack(b"F", 0)], [theirs.fileno()])
            reply = control.recv(CONTROL.size)
            if len(reply) < CONTROL.size:
                raise ConnectionError("The grading process has ended.")
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._sockets.add(ours)
        return Worker(ours, CONTROL.unpack(reply)[1])

    def _end_nursery(self) -> int:
        """Let go of a nursery that does not work; workers it has forked serve on until their sockets close."""
        assert self._control is not None
        assert self._process is not None
        assert self._shutdown is not None
        self._shutdown.detach()
        self._sockets.discard(self._control)
        status = _end_processes(self._process, {self._control})
        self._control = None
        return status

    def forget(self) -> None:
        """Leave the processes to the parent this process was forked from; this object is of no more use."""
        if self._shutdown and self._process:
            self._shutdown.detach()
            for connection in self._sockets:
                connection.close()
            self._process.poll()  # not our child, and so "ended": without it `Popen` would warn when collected


def _end_processes(process: subprocess.Popen, sockets: set[socket.socket]) -> int:
    """Close every socket, on which nursery and workers end, wait for the nursery and return its exit status."""
    for connection in sockets:
        connection.close()
    sockets.clear()
    try:
        return process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
