"""An asyncio loop whose time is virtual: an hour of waiting takes no time, and every run is the same.

What asyncio programs see is unchanged: tasks, timers, time-outs. There are no sockets, no threads and no other
processes in it. What happens in this world is `sim.world`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

STEPS_MAX = 200_000
"""Turns of the loop at one instant of virtual time: more is two tasks that wake each other for ever."""


class StuckError(Exception):
    """Nothing will ever happen again, or something happens for ever without time passing."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer as soon as nothing is left to do now; executors run their work at once.

    Args:
        limit_s: virtual seconds after which it gives up: something waits in a circle of timers.
    """

    def __init__(self, *, limit_s: float = math.inf) -> None:
        self._now_s = 0.0
        self._limit_s = limit_s
        self._steps = 0
        super().__init__(_Jump(self._jump))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Do the work here and now: a thread's end would come at another moment each time."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except StopIteration as error:
            done.set_exception(RuntimeError(f"StopIteration cannot leave an executor: {error}"))
        except Exception as error:
            done.set_exception(error)
        return done

    def settle(self) -> None:
        """Cancel what still runs and let it end."""
        left = asyncio.all_tasks(self)
        self._steps, self._limit_s = 0, math.inf
        for task in left:
            task.cancel()
        if left:
            with contextlib.suppress(StuckError):
                self.run_until_complete(asyncio.wait(left, timeout=60.0))

    def _jump(self, wait_s: float | None) -> None:
        if wait_s is None:
            raise StuckError("no task is ready and no timer runs: everything waits for something that will not come")
        if wait_s > 0:
            self._now_s += wait_s
            self._steps = 0
            if self._now_s > self._limit_s:
                raise StuckError(f"not over after {self._limit_s:g} s")
            return
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise StuckError(f"{STEPS_MAX} turns of the loop at {self._now_s:.3f} s: tasks wake each other for ever")


class _Jump(selectors.SelectSelector):
    """A selector that never sleeps: instead of waiting it tells how long it should have."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._jump(timeout)
        return []


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine under a fresh virtual clock; whatever it left running is cancelled."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.settle()
        loop.close()
