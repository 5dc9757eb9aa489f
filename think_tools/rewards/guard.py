"""Keep one broken reward from stopping a training step, and `None` from weighing as 0."""

import asyncio
import functools
import inspect
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .completions import LogExtra, LogMetric, group_rows

logger = logging.getLogger(__name__)

# Not `Exception` alone: the alarm of Math-Verify raises a BaseException. These have to get through.
_PASS_ON = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


def guard(
    reward: Callable, *, timeout: float | None = None, on_error: float | None = None, fill_none: bool = False
) -> Callable:
    """
    Reward function that gives what `reward` gives, and never stops a training step.

    If the call raises, or returns another number of rewards, each completion is tried alone, so that only the broken
    ones lose their reward. A value that is neither a finite number nor `None` counts as broken too. The number of
    broken rows is logged as `guard/<name>`, summed in the attribute `caught`, and a warning tells the first error. The
    guard keeps the name of the reward, is asynchronous if the reward is, and picklable if it is.

    `fill_none` serves rewards that do not always apply. TRL adds the rewards of a completion up and takes `None` for
    0 where another reward gives a number, so that in a group with 1.0 and `None` the second is punished for a reward
    that did not apply to it. Filled with the mean of its group, it is neither punished nor paid.

    Args:
        reward (`Callable`):
            Any reward function, synchronous or not.
        timeout (`float`, *optional*):
            Seconds of wall time for a whole batch; rows without a reward by then get `on_error`. A synchronous reward
            then runs in a thread, which nothing can kill: it goes on in the background, and rewards with time limits
            by signals, such as [`trl.rewards.accuracy_reward`], have none there. `None` is no limit.
        on_error (`float`, *optional*):
            Reward of a broken row. `None` does not apply.
        fill_none (`bool`, *optional*, defaults to `False`):
            Whether `None` becomes the mean of the other rewards for the same prompt. It stays `None` where the whole
            group has none. Needs `prompts`, which TRL passes; over several processes the group is that of the process.

    Returns:
        `Callable`: The guarded reward function.

    Raises:
        `TypeError`: If `reward` is not callable.
        `ValueError`: If `timeout` is not positive.

    Example:

    ```python
    >>> from think_tools.rewards import guard

    >>> def halves(completions, **kwargs):
    ...     return [int(completion) / 2 for completion in completions]
    >>> guarded = guard(halves, on_error=0.0)
    >>> guarded(["4", "four"]), guarded.caught, guarded.__name__
    ([2.0, 0.0], 1, 'halves')
    ```
    """
    if not callable(reward):
        raise TypeError(f"`reward` must be a function, got {type(reward).__name__}.")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"`timeout` must be a positive number of seconds or None, got {timeout}.")
    inner = reward
    while isinstance(inner, functools.partial):
        inner = inner.func
    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
    name = getattr(inner, "__name__", type(inner).__name__)
    return (_AsyncGuard if is_async else _Guard)(reward, name, timeout, on_error, fill_none)


class _Batch:
    """The rewards of one call as they come in. What the reward logs is held back until it has succeeded."""

    def __init__(self, completions: Sequence, columns: dict[str, Any], on_error: float | None) -> None:
        self.completions = completions
        self.columns = {name: value for name, value in columns.items() if name not in ("log_metric", "log_extra")}
        self.log_metric: LogMetric | None = columns.get("log_metric")
        self.log_extra: LogExtra | None = columns.get("log_extra")
        self.rewards: list[float | None] = [on_error] * len(completions)
        self.broken = set(range(len(completions)))
        self.error: object = None
        self.held: list[tuple[Callable, str, Any]] = []
        self.late = False

    def call(self) -> dict[str, Any]:
        """The arguments of a call with all completions."""
        logs = {"log_metric": self.log_metric, "log_extra": self.log_extra}
        holds = {name: self._hold(log) for name, log in logs.items() if log}
        return {"completions": self.completions, **self.columns, **holds}

    def _hold(self, log: Callable) -> Callable:
        return lambda name, value: self.held.append((log, name, value))

    def row(self, index: int) -> dict[str, Any]:
        """The arguments of a call with one completion; nothing is logged, for it would not be of the whole batch."""
        count = len(self.completions)
        columns = {
            name: [value[index]] if isinstance(value, list) and len(value) == count else value
            for name, value in self.columns.items()
        }
        return {"completions": [self.completions[index]], **columns}

    def take(self, rewards: object, indices: Sequence[int]) -> None:
        """Enter the rewards of some rows, if there is one for each."""
        if not isinstance(rewards, Sequence) or len(rewards) != len(indices):
            raise ValueError(f"it returned {rewards!r:.80} for {len(indices)} completions")
        for index, reward in zip(indices, rewards, strict=True):
            try:
                value = None if reward is None else float(reward)
            except (TypeError, ValueError):
                value = math.nan
            if value is None or math.isfinite(value):
                self.rewards[index] = value
                self.broken.discard(index)
            else:
                self.failed(f"it gave {reward!r:.80}")

    def failed(self, error: object) -> None:
        self.error = self.error or error


class _Guard:
    def __init__(
        self, reward: Callable, name: str, timeout: float | None, on_error: float | None, fill_none: bool
    ) -> None:
        self.__name__ = name
        self.reward, self.timeout, self.on_error, self.fill_none = reward, timeout, on_error, fill_none
        self.caught = 0

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        batch = _Batch(completions, columns, self.on_error)
        if self.timeout is None:
            self._run(batch)
        else:
            thread = threading.Thread(target=self._run, args=(batch,), daemon=True)
            thread.start()
            thread.join(self.timeout)
            batch.late = thread.is_alive()
        return _finish(self, batch)

    def _run(self, batch: _Batch) -> None:
        rows = range(len(batch.completions))
        if not self._try(batch, batch.call, rows) and len(rows) > 1:
            for index in rows:
                self._try(batch, functools.partial(batch.row, index), [index])

    def _try(self, batch: _Batch, arguments: Callable[[], dict], indices: Sequence[int]) -> bool:
        try:
            batch.take(self.reward(**arguments()), indices)
        except _PASS_ON:
            raise
        except BaseException as error:
            batch.failed(f"{type(error).__name__}: {error}")
            batch.held.clear()
            return False
        return True


class _AsyncGuard:
    def __init__(
        self, reward: Callable, name: str, timeout: float | None, on_error: float | None, fill_none: bool
    ) -> None:
        self.__name__ = name
        self.reward, self.timeout, self.on_error, self.fill_none = reward, timeout, on_error, fill_none
        self.caught = 0

    async def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        batch = _Batch(completions, columns, self.on_error)
        try:
            await asyncio.wait_for(self._run(batch), self.timeout)
        except TimeoutError:
            batch.late = True
        return _finish(self, batch)

    async def _run(self, batch: _Batch) -> None:
        rows = range(len(batch.completions))
        if not await self._try(batch, batch.call, rows) and len(rows) > 1:
            tries = (self._try(batch, functools.partial(batch.row, index), [index]) for index in rows)
            await asyncio.gather(*tries)

    async def _try(self, batch: _Batch, arguments: Callable[[], dict], indices: Sequence[int]) -> bool:
        try:
            batch.take(await self.reward(**arguments()), indices)
        except _PASS_ON:
            raise
        except BaseException as error:
            batch.failed(f"{type(error).__name__}: {error}")
            batch.held.clear()
            return False
        return True


def _finish(guarded: _Guard | _AsyncGuard, batch: _Batch) -> list[float | None]:
    """Report what was caught and return the rewards; a thread that is late may go on writing to the batch."""
    rewards, caught = list(batch.rewards), len(batch.broken)
    guarded.caught += caught
    if batch.late:
        batch.failed(f"it took more than {guarded.timeout} s")
    for log, name, value in () if batch.late else batch.held:
        log(name, value)
    if batch.log_metric:
        batch.log_metric(f"guard/{guarded.__name__}", float(caught))
    if caught:
        logger.warning(
            "`%s` gave no reward to %d of %d completions: %s", guarded.__name__, caught, len(rewards), batch.error
        )
    return _filled(rewards, batch.columns.get("prompts")) if guarded.fill_none else rewards


def _filled(rewards: list[float | None], prompts: list | None) -> list[float | None]:
    if prompts is None:
        raise ValueError("`prompts` is missing, so `fill_none` cannot tell which completions belong together.")
    filled = list(rewards)
    for rows in group_rows(prompts):
        given = [reward for row in rows if (reward := rewards[row]) is not None]
        for row in rows:
            if rewards[row] is None and given:
                filled[row] = sum(given) / len(given)
    return filled
