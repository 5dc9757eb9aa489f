"""The process that grades by algebra: it imports `math_verify` once and forks workers that may be killed at any time.

[`Grader`] starts it as a fresh interpreter, so that forking is safe (no threads, no CUDA, no locks of the parent), the
memory limit counts nothing of the training process, and nothing sympy prints is seen. Two kinds of socket:

* control: any byte and a socket → fork a worker that serves the socket, reply with its process id in 8 bytes.
* worker: a JSON message `[answer, gold, seconds]` → `G` once the gold answer is read, then `1` or `0`; or only `N` if
  the gold answer cannot be read. A worker that takes longer is ended by the system, which closes its socket.

The worker never prints or returns a sympy value, and text is only ever read by the LaTeX grammar: Math-Verify's
`ExprExtractionConfig` is not used, because it ends in Python's `eval`.
"""

import contextlib
import functools
import json
import os
import re
import resource
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection

from .numbers import FOLD

MEMORY = 2 * 1024**3  # bytes of address space per worker, the interpreter's own 200 MB included

# Gold answer and answer -> the sign of the verdict. `read` is called once the gold answer is read.
Judge = Callable[[str, str, Callable[[], None]], bytes]


def serve(connection: Connection, judge: Judge) -> None:
    """
    Grade jobs from a connection until it closes. Runs in a worker.

    At the deadline of a job the alarm ends the process, whatever it is doing: its default action runs in the kernel.
    """
    with contextlib.suppress(EOFError):
        while True:
            answer, gold, seconds = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, seconds)
            connection.send_bytes(judge(answer, gold, functools.partial(connection.send_bytes, b"G")))
            signal.setitimer(signal.ITIMER_REAL, 0)


def load_judge() -> Judge:
    """Import `math_verify` and return the function that compares by algebra."""
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Expr, Float, Rational

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    @functools.lru_cache(maxsize=256)
    def read(text: str) -> list:
        # Bare LaTeX would be searched for some number; in a box it is read as a whole.
        return parse("\\boxed{" + text + "}", config, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore

    def exact(values: list) -> Expr | None:
        if not isinstance(values[0], Expr) or values[0].free_symbols:
            return None
        value = values[0].doit()
        if isinstance(value, Float) and value.is_finite:
            return Rational(value)
        return value if isinstance(value, Rational) and value.is_finite else None

    def judge(answer: str, gold: str, gold_is_read: Callable[[], None]) -> bytes:
        expected = read(algebra_text(gold))
        if not expected:
            return b"N"
        gold_is_read()
        given = read(algebra_text(answer))
        if not given or not verify(expected, given, timeout_seconds=None):
            return b"0"
        first, second = exact(expected), exact(given)
        # Math-Verify rounds to six places, where 1/2^99 is 1/2^98: both must agree in their leading digits too.
        close = first is None or second is None or abs(first - second) * 10**5 <= abs(first)
        return b"1" if close else b"0"

    # What sympy and the grammar build on first use is built here once, and not in every worker.
    for answer, gold in _EXAMPLES:
        judge(answer, gold, lambda: None)
    return judge


_EXAMPLES = (
    (r"\frac{1}{2}+\sqrt{2}", "x+1"),
    (r"\sin^{2}(2x)+\log_{2} 3", r"e^{x}\cdot\ln 2"),
    (r"\{1,2\}\cup(3,\infty]", r"[1,2)\cap(3,\infty)"),
    (r"\begin{pmatrix}1&x\\2&3\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"1<x\le 2", "y=2x+1"),
    (r"\binom{5}{2}+3!", r"\sum_{k=1}^{3} k"),
    ("4:30 p.m.", r"x=2 \text{ or } x=3"),
    (r"|x|\pm 90^\circ", r"\int_0^1 x\,dx"),
)


_UPRIGHT_LETTER = re.compile(r"\\(?:mathrm|text|mathbf|mathit)\{([A-Za-z])\}")  # the grammar knows e, not \mathrm{e}
_HAN_AND = re.compile(r"[和或与及、]")
_HAN = re.compile(r"[\u3400-\u9fff]+")


def algebra_text(text: str) -> str:
    """Prepare an answer for the LaTeX grammar, to which full-width signs and Chinese words mean nothing."""
    text = _UPRIGHT_LETTER.sub(r"{\1}", text.translate(FOLD))
    return _HAN.sub(" ", _HAN_AND.sub(",", text))


def main(control_id: int) -> None:
    """Serve the control socket until its other end closes, then end every worker."""
    children: set[int] = set()
    with socket.socket(fileno=control_id) as control:
        try:
            judge = load_judge()
        except ImportError as error:
            control.sendall(b"E" + str(error).encode())
            return
        control.sendall(b"R")
        while True:
            request, sockets, _, _ = socket.recv_fds(control, 1, 1)
            if not request:
                break
            children = {child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)}  # reaps the others
            child = fork_worker(control, sockets[0], judge)
            children.add(child)
            control.sendall(child.to_bytes(8))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def fork_worker(control: socket.socket, worker_id: int, judge: Judge) -> int:
    """Fork one worker that serves the socket `worker_id` and return its process id."""
    child = os.fork()
    if child:
        os.close(worker_id)
        return child
    try:
        control.close()
        # Fail where this process would otherwise swallow the machine, and write no core file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # Whatever the parent has set; ignored and blocked signals are inherited.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        with Connection(worker_id) as connection:
            serve(connection, judge)
    finally:
        os._exit(0)  # whatever happened, the parent sees the closed socket, and no handler of the nursery runs twice
