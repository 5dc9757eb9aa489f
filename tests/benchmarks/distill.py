"""
What `distill` and its client bear, against the loopback server in a process of its own.

```
python -m tests.benchmarks.distill
```

* speed: requests per second at concurrency 64, each an answer of two sentences;
* waiting: 1,000 requests in flight with answers that take 30 s, and the memory that they need;
* survival: 3,000 rows with 10 % 429s, 2 % broken connections and 1 % malformed bodies, killed twice by `kill -9`, the
  last line torn both times.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from think_tools.backends import Candidate, ClientBackend, SamplingParams

SERVER = Path(__file__).parents[1] / "openai_server.py"
RUN = """
import sys
from think_tools.data import distill
url, out, n = sys.argv[1:]
rows = distill([{"prompt": f"q{i}"} for i in range(int(n))], "m", out=out, base_url=url, backoff=0.05)
print(sum(row["completion"][0]["content"] == f"answer to q{i}" for i, row in enumerate(rows)))
"""


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Address of a server in a process of its own."""
    process = subprocess.Popen([sys.executable, str(SERVER), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident() -> float:
    """Memory of this process in MiB."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096 / 2**20


async def ask(backend: ClientBackend, n: int, sizes: list[float]) -> int:
    """Number of right answers to `n` questions; `sizes` collects the memory every half second."""

    async def watch() -> None:
        while True:
            sizes.append(resident())
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watch())
    requests = ((str(i), [{"role": "user", "content": str(i)}], SamplingParams()) for i in range(n))
    right = 0
    async for key, result in backend.as_completed(requests):
        right += isinstance(result, Candidate) and result.trace.answer == f"answer to {key}"
    watcher.cancel()
    return right


def speed(n: int = 3000, concurrency: int = 64) -> float:
    """Requests per second."""
    with server() as url:
        backend = ClientBackend("m", base_url=url, concurrency=concurrency)
        asyncio.run(ask(backend, concurrency, []))
        started = time.perf_counter()
        assert asyncio.run(ask(backend, n, [])) == n
        return n / (time.perf_counter() - started)


def waiting(n: int = 1000, seconds: float = 30.0) -> tuple[int, float, float, float]:
    """Right answers, seconds, MiB for all requests in flight, and MiB by which this grows while they wait."""
    with server("--delay", str(seconds)) as url:
        sizes: list[float] = []
        started = time.perf_counter()
        right = asyncio.run(ask(ClientBackend("m", base_url=url, concurrency=n), n, sizes))
        took = time.perf_counter() - started
    third = len(sizes) // 3
    return right, took, max(sizes) - sizes[0], sizes[2 * third] - sizes[third]


def survival(n: int = 3000, kills: int = 2) -> tuple[int, int, int]:
    """Rows in the file, different keys among them, and right answers, of `n` rows after so many kills."""
    with tempfile.TemporaryDirectory() as folder, server("--flaky") as url:
        out = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-c", RUN, url, str(out), str(n)]
        for kill in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and lines(out) < n * (kill + 1) // (kills + 1):
                time.sleep(0.05)
            assert process.poll() is None, "the run ended before it was killed"
            process.kill()
            process.wait()
            out.write_bytes(out.read_bytes()[:-9])
        right = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        keys = [json.loads(line)["key"] for line in out.read_text(encoding="utf-8").splitlines()]
        return len(keys), len(set(keys)), int(right)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    print(f"speed: {speed():,.0f} requests/s at concurrency 64 (at least 250)")
    right, took, size, growth = waiting()
    print(f"waiting: {right} of 1,000 answers after {took:.1f} s; {size:.0f} MiB, {growth:+.1f} MiB while they waited")
    num_rows, num_keys, right = survival()
    print(f"survival: {num_rows:,} rows, {num_keys:,} different ones, {right:,} of 3,000 right")


if __name__ == "__main__":
    main()
