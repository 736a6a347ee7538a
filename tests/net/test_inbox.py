"""What the handlers of a transport may hold of one member."""

from __future__ import annotations

import asyncio

import pytest

from swarm.net import inbox
from swarm.net.inbox import RUNNING_MAX, WAITING_MAX, Backlog, Inbox

A, B = bytes([1]) * 20, bytes([2]) * 20


class Slow:
    """A handler that waits for leave, and notes who has begun and ended."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.begun: list[tuple[bytes, bytes]] = []

    async def __call__(self, sender: bytes, payload: bytes) -> bytes:
        self.begun.append((sender, payload))
        await self.leave.wait()
        return payload


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_messages_past_the_bound_wait_and_begin_in_order() -> None:
    box, slow = Inbox(), Slow()
    box.serve("/slow", slow)
    count = RUNNING_MAX * 3
    for number in range(count):
        box.message(A, "/slow", number.to_bytes(2, "big"))
    box.message(B, "/slow", b"another member")
    await settle()
    assert len(slow.begun) == RUNNING_MAX + 1
    slow.leave.set()
    await settle()
    assert [payload for sender, payload in slow.begun if sender == A] == [n.to_bytes(2, "big") for n in range(count)]
    await box.close()


async def test_what_waits_is_bounded_and_the_oldest_goes() -> None:
    box, slow = Inbox(), Slow()
    box.serve("/slow", slow)
    count = RUNNING_MAX + WAITING_MAX + 5
    for number in range(count):
        box.message(A, "/slow", number.to_bytes(2, "big"))
    slow.leave.set()
    await asyncio.sleep(0.05)
    numbers = [int.from_bytes(payload, "big") for _, payload in slow.begun]
    assert numbers == [*range(RUNNING_MAX), *range(RUNNING_MAX + 5, count)]
    await box.close()


async def test_bytes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "RUNNING_MAX_BYTES", 100)
    box, slow = Inbox(), Slow()
    box.serve("/slow", slow)
    outcomes: list[tuple[bytes | None, str]] = []
    for _ in range(5):
        box.message(A, "/slow", bytes(50))
        box.request(A, "/slow", bytes(50), lambda answer, reason: outcomes.append((answer, reason)))
    await settle()
    assert len(slow.begun) == 4
    assert [answer for answer, _ in outcomes] == [None] * 3
    assert "already" in outcomes[0][1]
    slow.leave.set()
    await settle()
    assert len(slow.begun) == 7
    assert [answer for answer, _ in outcomes] == [None] * 3 + [bytes(50)] * 2
    await box.close()


async def test_close_cancels_what_runs_and_forgets_what_waits() -> None:
    box, slow = Inbox(), Slow()
    box.serve("/slow", slow)
    for _ in range(RUNNING_MAX * 2):
        box.message(A, "/slow", b"")
    await settle()
    await box.close()
    assert len(slow.begun) == RUNNING_MAX


async def test_a_protocol_has_one_handler() -> None:
    box = Inbox()
    box.serve("/slow", Slow())
    with pytest.raises(ValueError, match="already"):
        box.serve("/slow", Slow())


def test_a_backlog_is_bounded_in_bytes() -> None:
    backlog = Backlog(count_max=10, bytes_max=10)
    for letter in b"abc":
        backlog.add("/p", bytes([letter]) * 4)
    assert backlog.dropped == 1
    assert [backlog.take(), backlog.take(), backlog.take()] == [("/p", b"bbbb"), ("/p", b"cccc"), None]
