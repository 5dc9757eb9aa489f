"""
Reward programs that pass their tests (DeepSeek-R1, section 2.2.2, https://huggingface.co/papers/2501.12948).

Nothing here runs a program: that is the work of a `runner`, a function of yours from the program and its standard
input to its standard output, or to `None` when it failed or took too long. Four of them:

```python
# A container on your own machine.
def run_in_container(code: str, stdin: str) -> str | None:
    command = ["docker", "run", "--rm", "-i", "--network=none", "--memory=256m", "--pids-limit=64", "--read-only"]
    command += ["python:3.12-slim", "timeout", "10", "python", "-c", code]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30)
    if done.returncode >= 125 and done.returncode < 128:  # docker itself failed, not the program
        raise RuntimeError(done.stderr)
    return done.stdout if done.returncode == 0 else None

# E2B (https://e2b.dev).
def run_in_e2b(code: str, stdin: str) -> str | None:
    with Sandbox.create() as sandbox:
        sandbox.files.write("main.py", code)
        sandbox.files.write("input.txt", stdin)
        try:
            return sandbox.commands.run("python main.py < input.txt", timeout=10).stdout
        except (CommandExitException, TimeoutException):
            return None

# Piston (https://github.com/engineer-man/piston), on a server of your own.
def run_in_piston(code: str, stdin: str) -> str | None:
    body = {"language": "python", "version": "*", "files": [{"content": code}], "stdin": stdin, "run_timeout": 3000}
    run = requests.post("http://localhost:2000/api/v2/execute", json=body, timeout=30).json()["run"]
    return run["stdout"] if run["code"] == 0 else None

# Sandbox Fusion (https://github.com/bytedance/SandboxFusion).
def run_in_fusion(code: str, stdin: str) -> str | None:
    body = {"language": "python", "code": code, "stdin": stdin, "run_timeout": 10}
    reply = requests.post("http://localhost:8080/run_code", json=body, timeout=30).json()
    return reply["run_result"]["stdout"] if reply["status"] == "Success" else None
```
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..formats import ThinkFormat
from .completions import Completion, CompletionReader, LogMetric, Tokenizer

logger = logging.getLogger(__name__)

# Program and standard input -> standard output; `None` when the program failed or took too long.
Runner = Callable[[str, str], str | None]
Test = Mapping[str, str]

_BLOCK = re.compile(r"^```[ \t]*([\w+#-]*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def get_code_reward(
    runner: Runner,
    *,
    all_or_nothing: bool = True,
    language: str = "python",
    max_workers: int = 8,
    tokenizer: "Tokenizer | None" = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[float | None]]:
    """
    Reward function that runs the last code block of the answer on tests, in a sandbox of yours.

    The dataset's column `tests` holds a list for each row, of `{"input": standard input, "output": what to print}`.
    The whole output is compared, line by line, but for white space at the ends of lines and of the output; printing
    the first lines only passes nothing. The text of the model is never run by this package: see the head of this
    module for runners with containers, E2B, Piston and Sandbox Fusion.

    Args:
        runner (`Callable`):
            `runner(code, stdin)` returns what the program printed, or `None` when it failed or took too long. It is
            called from several threads and must set its own limits of time and memory. At module level, or an object,
            if the reward has to be pickled. What it raises is its own failure and not the program's.
        all_or_nothing (`bool`, *optional*, defaults to `True`):
            Whether only a program that passes all its tests gets a reward, 1.0; the first test that fails ends its
            run. `False` gives the share of tests passed, which pays programs that print the most frequent output.
        language (`str`, *optional*, defaults to `"python"`):
            Language named behind the backticks. Blocks that name none count too.
        max_workers (`int`, *optional*, defaults to `8`):
            Completions tested at the same time.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, to read prefilled, cut and special-token output right.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning, see [`get_accuracy_reward`].

    Returns:
        `Callable`: A reward function for [`~trl.GRPOTrainer`], picklable if `runner` is. Each reward is in
        `[0.0, 1.0]`, 0.0 without a code block; `None` for a row without tests (`code/no_tests`) and where the runner
        raised (`code/runner_failed`, with a warning that says what); `log_metric` gets these numbers.

    Raises:
        `TypeError`: If `runner` is not callable.
        `ValueError`: If `max_workers` is below 1; when called, if `tests` is missing or a test lacks a key.

    Example:

    ```python
    >>> from think_tools.rewards import get_code_reward

    >>> def runner(code, stdin):  # stands for a sandbox
    ...     return stdin.upper()
    >>> answer = "<think>r</think>```python\\nprint(input().upper())\\n```"
    >>> get_code_reward(runner)([answer, "no code"], tests=[[{"input": "a", "output": "A"}]] * 2)
    [1.0, 0.0]
    ```
    """
    if not callable(runner):
        raise TypeError(
            f"`runner` must be a function from code and standard input to the output, got {type(runner).__name__}. "
            "There is no default: running a model's program needs a sandbox of your choice."
        )
    if max_workers < 1:
        raise ValueError(f"`max_workers` must be at least 1, got {max_workers}.")
    return _CodeReward(runner, all_or_nothing, language, max_workers, CompletionReader(tokenizer, fmt))


class _CodeReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "code_reward"

    def __init__(
        self, runner: Runner, all_or_nothing: bool, language: str, max_workers: int, reader: CompletionReader
    ) -> None:
        self.runner = runner
        self.all_or_nothing = all_or_nothing
        self.language = language
        self.max_workers = max_workers
        self.reader = reader

    def __call__(
        self,
        completions: list[Completion],
        tests: Sequence[Sequence[Test] | None] | None = None,
        *,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[float | None]:
        tests = _checked(tests, len(completions))
        traces = self.reader.read(completions, **columns)
        programs = [last_code_block(trace.answer, self.language) for trace in traces]
        with ThreadPoolExecutor(self.max_workers) as pool:
            outcomes = list(pool.map(self._score, programs, tests))
        if log_metric:
            log_metric("code/no_tests", float(outcomes.count("no_tests")))
            log_metric("code/runner_failed", float(outcomes.count("runner_failed")))
        return [None if isinstance(outcome, str) else outcome for outcome in outcomes]

    def _score(self, program: str | None, tests: Sequence[Test] | None) -> float | str:
        """The reward, or why there is none."""
        if not tests:
            return "no_tests"
        if program is None:
            return 0.0
        passed = 0
        for test in tests:
            try:
                printed = self.runner(program, test["input"])
            except Exception as error:  # whatever a sandbox raises, it is no fault of the program
                logger.warning("The runner raised %s: %s", type(error).__name__, error)
                return "runner_failed"
            if printed is not None and _lines(printed) == _lines(test["output"]):
                passed += 1
            elif self.all_or_nothing:
                return 0.0
        return passed / len(tests)


def last_code_block(text: str, language: str = "python") -> str | None:
    """
    Return the last closed block of code between lines of three backticks that names `language` or none.

    Example:

    ```python
    >>> from think_tools.rewards.code import last_code_block

    >>> last_code_block("First:\\n```python\\na = 1\\n```\\nOutput:\\n```text\\n1\\n```")
    'a = 1\\n'
    ```
    """
    names = {"", language.casefold(), *({"py", "python3"} if language == "python" else ())}
    blocks = [block[2] for block in _BLOCK.finditer(text) if block[1].casefold() in names]
    return blocks[-1] if blocks else None


def _lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.rstrip().splitlines()]


def _checked(tests: Sequence[Sequence[Test] | None] | None, count: int) -> Sequence[Sequence[Test] | None]:
    if tests is None or len(tests) != count:
        raise ValueError(
            f"`tests` must hold a list of tests per completion, got {'none' if tests is None else len(tests)} for "
            f"{count}: add the dataset column `tests`."
        )
    for test in (test for row in tests for test in row or ()):
        if not isinstance(test, Mapping) or not {"input", "output"} <= set(test):
            raise ValueError(f"`tests` must hold dicts with `input` and `output`, got {test!r:.120}.")
    return tests
