"""What only the memory network can do: fate, partitions and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from swarm.encoding import Address
from swarm.errors import UnavailableError
from swarm.net.memory import MemoryNetwork, MemoryTransport, steady
from swarm.net.transport import Transport

A, B, C = (bytes([n]) * 20 for n in (1, 2, 3))


async def three(network: MemoryNetwork) -> dict[Address, MemoryTransport]:
    transports = {address: network.transport(address) for address in (A, B, C)}
    members: Mapping[Address, str] = dict.fromkeys(transports, "")
    for transport in transports.values():
        transport.serve("/echo", echo)
        transport.set_members(members)
        await transport.start()
    return transports


async def echo(sender: Address, payload: bytes) -> bytes:
    return payload


@pytest.fixture
async def network() -> AsyncIterator[MemoryNetwork]:
    made = MemoryNetwork(steady(0.0))
    yield made
    for address in (A, B, C):
        made.crash(address)


async def test_the_memory_transport_is_a_transport(network: MemoryNetwork) -> None:
    transport: Transport = network.transport(A)
    assert transport.me == A


async def test_fate_delays_and_loses(network: MemoryNetwork) -> None:
    nodes = await three(network)
    seen: list[tuple[Address, Address, str, int]] = []

    def fate(source: Address, target: Address, protocol: str, size: int) -> float | None:
        seen.append((source, target, protocol, size))
        return None if target == C else 0.01

    network.fate = fate
    assert await nodes[A].request(B, "/echo", b"abc", timeout_s=1) == b"abc"
    assert seen == [(A, B, "/echo", 3), (B, A, "/echo", 3)]
    with pytest.raises(UnavailableError, match="no answer"):
        await nodes[A].request(C, "/echo", b"abc", timeout_s=0.05)


async def test_a_partition_lets_only_its_sides_speak_and_is_noticed_later() -> None:
    network = MemoryNetwork(steady(0.0), notice_s=0.05)
    nodes = await three(network)
    network.partition({A, B})
    assert await nodes[A].request(B, "/echo", b"x", timeout_s=1) == b"x"
    assert nodes[A].connected() == {B, C}
    with pytest.raises(UnavailableError, match="no answer"):
        await nodes[A].request(C, "/echo", b"x", timeout_s=0.1)
    assert nodes[A].connected() == {B}
    with pytest.raises(UnavailableError, match="not connected"):
        await nodes[A].request(C, "/echo", b"x", timeout_s=0.1)
    network.heal()
    assert await nodes[A].request(C, "/echo", b"x", timeout_s=1) == b"x"
    for node in nodes.values():
        await node.close()


async def test_a_crash_fails_requests_both_ways_and_cancels_handlers(network: MemoryNetwork) -> None:
    nodes = await three(network)
    cancelled = asyncio.Event()

    async def stuck(sender: Address, payload: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    for node in nodes.values():
        node.serve("/stuck", stuck)
    to_b = asyncio.create_task(nodes[A].request(B, "/stuck", b"", timeout_s=60))
    from_b = asyncio.create_task(nodes[B].request(C, "/stuck", b"", timeout_s=60))
    await asyncio.sleep(0.02)
    network.crash(B)
    for asked in (to_b, from_b):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(asked, 1)
    await asyncio.wait_for(cancelled.wait(), 1)
    assert nodes[A].connected() == {C}
    again = network.transport(B)
    again.serve("/echo", echo)
    again.set_members({A: "", B: "", C: ""})
    await again.start()
    assert await nodes[A].request(B, "/echo", b"back", timeout_s=1) == b"back"


async def test_messages_arrive_in_order_whatever_their_delays(network: MemoryNetwork) -> None:
    nodes = await three(network)
    heard: list[bytes] = []

    async def hear(sender: Address, payload: bytes) -> bytes:
        heard.append(payload)
        return b""

    nodes[B].serve("/hear", hear)
    delays = iter([0.03, 0.0, 0.02, 0.01])
    network.fate = lambda source, target, protocol, size: next(delays)
    for number in range(4):
        nodes[A].send(B, "/hear", bytes([number]))
    await asyncio.sleep(0.08)
    assert heard == [bytes([number]) for number in range(4)]
