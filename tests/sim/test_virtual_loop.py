"""The virtual clock: time costs nothing, order is the same each time, and what cannot go on says so."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from sim.loop import StuckError, VirtualLoop, run


def test_a_day_of_waiting_takes_no_time() -> None:
    async def wait() -> float:
        await asyncio.sleep(86_400.0 * 3)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run(wait()) == pytest.approx(86_400.0 * 3)
    assert time.perf_counter() - began < 1.0


def test_timers_fire_in_the_order_of_their_times() -> None:
    async def order() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        heard: list[tuple[str, float]] = []

        def hear(name: str) -> None:
            heard.append((name, round(loop.time(), 6)))

        for name, delay_s in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
            loop.call_later(delay_s, hear, name)
        await asyncio.sleep(5)
        return heard

    assert run(order()) == [("a", 1.0), ("b", 2.0), ("c", 3.0)]


def test_work_for_a_thread_is_done_at_once_and_in_this_thread() -> None:
    async def work() -> tuple[float, int]:
        thread = await asyncio.to_thread(threading.get_ident)
        return asyncio.get_running_loop().time(), thread

    assert run(work()) == (0.0, threading.get_ident())


def test_an_error_in_a_threads_work_reaches_who_waits_for_it() -> None:
    def fail() -> None:
        raise OSError("disk full")

    async def work() -> None:
        await asyncio.to_thread(fail)

    with pytest.raises(OSError, match="disk full"):
        run(work())


def test_a_time_out_counts_virtual_seconds() -> None:
    async def late() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600.0):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(late()) == pytest.approx(600.0)


def test_a_wait_that_nothing_will_end_is_an_error_and_not_a_hang() -> None:
    async def deaf() -> None:
        await asyncio.Event().wait()

    loop = VirtualLoop()
    task = loop.create_task(deaf())
    with pytest.raises(StuckError, match="waits for something"):
        loop.run_until_complete(task)
    loop.settle()
    assert task.cancelled()
    loop.close()


def test_tasks_that_wake_each_other_for_ever_are_an_error_and_not_a_hang() -> None:
    async def spin() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        again()
        await asyncio.sleep(1.0)

    with pytest.raises(StuckError, match="for ever"):
        run(spin())


def test_timers_that_go_round_for_ever_are_an_error_and_not_a_hang() -> None:
    loop = VirtualLoop(limit_s=100.0)

    def again() -> None:
        loop.call_later(1.0, again)

    again()
    task = loop.create_task(asyncio.Event().wait())
    with pytest.raises(StuckError, match="not over after 100 s"):
        loop.run_until_complete(task)
    loop.settle()
    loop.close()
