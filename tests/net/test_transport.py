"""What every transport does, in memory and over sockets alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from swarm.encoding import Address
from swarm.errors import PeerError, StorageError, UnavailableError
from swarm.net.transport import MESSAGE_MAX_BYTES, Handler, Transport
from tests.net.kit import Swarm, until


@pytest.fixture(params=["memory", "libp2p"])
async def swarm(request: pytest.FixtureRequest) -> AsyncIterator[Swarm]:
    made = Swarm(request.param)
    yield made
    await made.close()


async def echo(sender: Address, payload: bytes) -> bytes:
    return payload


async def joined(swarm: Swarm, count: int, **handlers: Handler) -> list[Transport]:
    """`count` transports that all serve the handlers (`name` as `/name`) and are connected with each other."""
    transports: list[Transport] = []
    for number in range(1, count + 1):
        transport = swarm.make(number)
        transport.serve("/echo", echo)
        for name, handler in handlers.items():
            transport.serve(f"/{name}", handler)
        transports.append(transport)
        await swarm.start(transport)
    await until(lambda: all(len(transport.connected()) == count - 1 for transport in transports))
    return transports


def collector() -> tuple[Handler, list[tuple[Address, bytes]]]:
    heard: list[tuple[Address, bytes]] = []

    async def hear(sender: Address, payload: bytes) -> bytes:
        heard.append((sender, payload))
        return b""

    return hear, heard


async def test_a_request_is_answered_and_its_sender_is_known(swarm: Swarm) -> None:
    async def who(sender: Address, payload: bytes) -> bytes:
        return sender + payload

    a, b = await joined(swarm, 2, who=who)
    assert await a.request(b.me, "/who", b"?", timeout_s=5) == a.me + b"?"
    assert await b.request(a.me, "/who", b"", timeout_s=5) == b.me


@pytest.mark.parametrize("size", [0, 1, 65_535, 300_000, MESSAGE_MAX_BYTES])
async def test_messages_of_every_size_arrive_whole(swarm: Swarm, size: int) -> None:
    a, b = await joined(swarm, 2)
    payload = bytes(range(251)) * (size // 251 + 1)
    assert await a.request(b.me, "/echo", payload[:size], timeout_s=20) == payload[:size]


async def test_a_message_past_the_bound_is_the_callers_slip(swarm: Swarm) -> None:
    a, b = await joined(swarm, 2)
    with pytest.raises(ValueError, match="at most"):
        await a.request(b.me, "/echo", bytes(MESSAGE_MAX_BYTES + 1), timeout_s=5)
    with pytest.raises(ValueError, match="at most"):
        a.send(b.me, "/echo", bytes(MESSAGE_MAX_BYTES + 1))
    with pytest.raises(ValueError, match="at most"):
        a.broadcast("/echo", bytes(MESSAGE_MAX_BYTES + 1))


async def test_many_requests_at_once_are_all_answered(swarm: Swarm) -> None:
    async def slow(sender: Address, payload: bytes) -> bytes:
        await asyncio.sleep(0.001)
        return payload

    a, b = await joined(swarm, 2, slow=slow)
    asked = [a.request(b.me, "/slow", str(number).encode(), timeout_s=10) for number in range(50)]
    assert await asyncio.gather(*asked) == [str(number).encode() for number in range(50)]


async def test_messages_arrive_in_the_order_they_were_sent(swarm: Swarm) -> None:
    hear, heard = collector()
    a, b = await joined(swarm, 2, hear=hear)
    for number in range(500):
        a.send(b.me, "/hear", number.to_bytes(2, "big"))
    await until(lambda: len(heard) == 500)
    assert heard == [(a.me, number.to_bytes(2, "big")) for number in range(500)]


async def test_a_broadcast_reaches_every_member_but_the_sender(swarm: Swarm) -> None:
    hear, heard = collector()
    a, *_ = await joined(swarm, 4, hear=hear)
    a.broadcast("/hear", b"all")
    await until(lambda: len(heard) == 3)
    assert heard == [(a.me, b"all")] * 3


async def test_a_full_queue_loses_the_oldest_and_keeps_the_order(swarm: Swarm) -> None:
    hear, heard = collector()
    a, b = await joined(swarm, 2, hear=hear)
    for number in range(3000):
        a.send(b.me, "/hear", number.to_bytes(2, "big"))
    await until(lambda: bool(heard) and heard[-1][1] == (2999).to_bytes(2, "big"))
    numbers = [int.from_bytes(payload, "big") for _, payload in heard]
    assert 1000 <= len(numbers) < 3000
    assert numbers == sorted(set(numbers))


async def test_a_handler_of_a_message_that_takes_long_does_not_stop_the_next_ones(swarm: Swarm) -> None:
    hear, heard = collector()
    stuck = asyncio.Event()

    async def wait(sender: Address, payload: bytes) -> bytes:
        await stuck.wait()
        return b""

    a, b = await joined(swarm, 2, hear=hear, wait=wait)
    a.send(b.me, "/wait", b"")
    a.send(b.me, "/hear", b"after")
    await until(lambda: len(heard) == 1)
    assert await a.request(b.me, "/echo", b"too", timeout_s=5) == b"too"


async def test_no_answer_in_time_is_unavailable(swarm: Swarm) -> None:
    async def never(sender: Address, payload: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    a, b = await joined(swarm, 2, never=never)
    with pytest.raises(UnavailableError, match="no answer"):
        await a.request(b.me, "/never", b"", timeout_s=0.05)
    assert await a.request(b.me, "/echo", b"still", timeout_s=5) == b"still"


async def test_what_is_not_served_is_declined(swarm: Swarm) -> None:
    a, b = await joined(swarm, 2)
    with pytest.raises(UnavailableError, match="not served"):
        await a.request(b.me, "/nothing", b"", timeout_s=5)
    a.send(b.me, "/nothing", b"")
    assert await a.request(b.me, "/echo", b"still", timeout_s=5) == b"still"


@pytest.mark.parametrize(
    "error", [PeerError("bad words"), ValueError("bad words"), UnavailableError("bad words"), StorageError("bad words")]
)
async def test_a_refusal_reaches_the_asker_with_its_reason(swarm: Swarm, error: Exception) -> None:
    async def refuse(sender: Address, payload: bytes) -> bytes:
        raise error

    a, b = await joined(swarm, 2, refuse=refuse)
    with pytest.raises(UnavailableError, match="bad words"):
        await a.request(b.me, "/refuse", b"", timeout_s=5)
    a.send(b.me, "/refuse", b"")
    assert await a.request(b.me, "/echo", b"still", timeout_s=5) == b"still"


async def test_our_own_mistake_in_a_handler_reaches_the_loop_and_not_the_asker(swarm: Swarm) -> None:
    async def broken(sender: Address, payload: bytes) -> bytes:
        raise AssertionError("secret detail")

    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context.get("exception")))
    a, b = await joined(swarm, 2, broken=broken)
    with pytest.raises(UnavailableError) as caught:
        await a.request(b.me, "/broken", b"", timeout_s=5)
    assert "secret" not in str(caught.value)
    assert [str(error) for error in seen] == ["secret detail"]
    assert await a.request(b.me, "/echo", b"still", timeout_s=5) == b"still"


async def test_a_cancelled_request_leaves_the_connection_sound(swarm: Swarm) -> None:
    async def slow(sender: Address, payload: bytes) -> bytes:
        await asyncio.sleep(0.02)
        return payload

    a, b = await joined(swarm, 2, slow=slow)
    for pause_s in (0.0, 0.0, 0.0001, 0.001, 0.004, 0.01):
        big = bytes(1 << 20)
        cancelled = [asyncio.create_task(a.request(b.me, "/slow", big, timeout_s=9)) for _ in range(9)]
        await asyncio.sleep(pause_s)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        assert all(task.cancelled() for task in cancelled)
        assert await a.request(b.me, "/echo", b"alive", timeout_s=9) == b"alive"
    assert a.connected() == {b.me}


async def test_who_is_no_member_is_not_spoken_with(swarm: Swarm) -> None:
    a, b = await joined(swarm, 2)
    outsider = swarm.make(9)
    outsider.serve("/echo", echo)
    await outsider.start()
    outsider.set_members(swarm.endpoints)
    with pytest.raises(UnavailableError):
        await outsider.request(a.me, "/echo", b"", timeout_s=0.3)
    with pytest.raises(UnavailableError, match="not connected"):
        await a.request(outsider.me, "/echo", b"", timeout_s=0.3)
    assert outsider.connected() == frozenset()
    assert a.connected() == {b.me}
    a.send(outsider.me, "/echo", b"")


async def test_a_removed_member_is_cut_at_once(swarm: Swarm) -> None:
    hear, heard = collector()
    started = asyncio.Event()

    async def stuck(sender: Address, payload: bytes) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    a, b, c = await joined(swarm, 3, hear=hear, stuck=stuck)
    asked = asyncio.create_task(b.request(a.me, "/stuck", b"", timeout_s=60))
    await started.wait()
    a.set_members({member: endpoint for member, endpoint in swarm.endpoints.items() if member != b.me})
    assert a.connected() == {c.me}
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(asked, 2)
    await until(lambda: b.connected() == {c.me})
    b.send(a.me, "/hear", b"still there?")
    with pytest.raises(UnavailableError):
        await b.request(a.me, "/echo", b"", timeout_s=0.3)
    assert heard == []
    a.set_members(swarm.endpoints)
    await until(lambda: a.connected() == {b.me, c.me} and b.connected() == {a.me, c.me})
    assert await b.request(a.me, "/echo", b"again", timeout_s=5) == b"again"


async def test_a_member_that_went_away_is_noticed_and_reached_again_when_it_is_back(swarm: Swarm) -> None:
    hear, heard = collector()
    started = asyncio.Event()

    async def stuck(sender: Address, payload: bytes) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    a, b = await joined(swarm, 2, hear=hear, stuck=stuck)
    for turn in range(2):
        started.clear()
        asked = asyncio.create_task(a.request(b.me, "/stuck", b"", timeout_s=60))
        await started.wait()
        await b.close()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(asked, 2)
        await until(lambda: a.connected() == frozenset())
        a.send(b.me, "/hear", b"into the void")
        with pytest.raises(UnavailableError, match="not connected"):
            await a.request(b.me, "/echo", b"", timeout_s=1)
        swarm.transports.remove(b)  # type: ignore[arg-type]
        b = swarm.make(2)
        for name, handler in (("/echo", echo), ("/hear", hear), ("/stuck", stuck)):
            b.serve(name, handler)
        await swarm.start(b)
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        await until(lambda: bool(a.connected()))
        assert loop.time() - since_s < 1.0
        assert await a.request(b.me, "/echo", str(turn).encode(), timeout_s=5) == str(turn).encode()
    assert heard == []


async def test_close_ends_handlers_and_requests_and_leaves_nothing(swarm: Swarm) -> None:
    before = asyncio.all_tasks()
    threads = threading.active_count()
    ended = asyncio.Event()

    async def stuck(sender: Address, payload: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    a, b, _ = await joined(swarm, 3, stuck=stuck)
    asked = asyncio.create_task(a.request(b.me, "/stuck", b"", timeout_s=60))
    mine = asyncio.create_task(b.request(a.me, "/stuck", b"", timeout_s=60))
    await asyncio.sleep(0.05)
    await b.close()
    assert ended.is_set()
    for task in (asked, mine):
        with pytest.raises(UnavailableError):
            await task
    for transport in swarm.transports:
        await transport.close()
        await transport.close()
    with pytest.raises(UnavailableError):
        await a.request(b.me, "/echo", b"", timeout_s=1)
    a.send(b.me, "/echo", b"")
    assert asyncio.all_tasks() == before
    assert threading.active_count() == threads
