"""Trouble for a while, with real sockets; run with the slow tests."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from swarm.config import RelayConfig
from swarm.encoding import Address
from swarm.errors import UnavailableError
from swarm.net.libp2p import Libp2pTransport, keeper, shares
from swarm.net.libp2p.wire import Wire
from tests.net.kit import ANY_PORT, Swarm, identity, until


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_members_that_come_and_go_end_with_one_line_to_each_other(seed: int) -> None:
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    broken: list[object] = []
    loop.set_exception_handler(lambda loop, context: broken.append(context))
    before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    swarm = Swarm("libp2p")
    alive: dict[int, Libp2pTransport] = {}
    answered = 0

    async def echo(sender: Address, payload: bytes) -> bytes:
        await asyncio.sleep(chance.choice([0, 0, 0.01]))
        return payload

    async def bring(number: int) -> None:
        transport = swarm.make(number, ping_s=0.3)
        assert isinstance(transport, Libp2pTransport)
        transport.serve("/echo", echo)
        alive[number] = transport
        await swarm.start(transport)

    async def talk() -> None:
        nonlocal answered
        while True:
            here, there = (chance.choice(list(alive.values())) for _ in range(2))
            payload = bytes(chance.choice([10, 1000, 500_000]))
            here.broadcast("/echo", payload[:1000])
            with suppress(UnavailableError):
                answered += await here.request(there.me, "/echo", payload, timeout_s=1) == payload
            await asyncio.sleep(0)

    for number in range(1, 7):
        await bring(number)
    talkers = [asyncio.create_task(talk()) for _ in range(6)]
    until_s = loop.time() + 8
    while loop.time() < until_s:
        await asyncio.sleep(chance.random() * 0.3)
        number = chance.randrange(1, 7)
        if chance.random() < 0.5:
            gone = alive[number]
            swarm.transports.remove(gone)
            await gone.close()
            await bring(number)
        else:  # a line breaks without a word
            lines = [wire for peer in alive[number]._mesh._peers.values() for wire in peer.wires]
            for wire in chance.sample(lines, min(2, len(lines))):
                wire.abort()
    await until(lambda: all(len(transport.connected()) == 5 for transport in alive.values()))
    for talker in talkers:
        talker.cancel()
    await asyncio.gather(*talkers, return_exceptions=True)
    peers = [peer for transport in alive.values() for peer in transport._mesh._peers.values()]
    await until(lambda: all(len(peer.wires) == 1 for peer in peers), 15)
    assert answered > 100
    await swarm.close()
    await until(lambda: (len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())) <= before)
    assert broken == []


TURNS, WARM = 2_000, 200
ENDS: list[Callable[[Wire], None]] = [Wire.abort, Wire.close, lambda wire: wire.cut("a test ends it")]


def kept() -> dict[str, int]:
    """What this process has: descriptors, tasks, objects that the collector knows, memory in kilobytes."""
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    return {"descriptors": descriptors, "tasks": tasks, "objects": len(gc.get_objects()), "kilobytes": memory}


@pytest.mark.slow
@pytest.mark.parametrize("relayed", [False, True])
async def test_two_thousand_connections_of_members_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, relayed: bool
) -> None:
    """Ended by either side, in every way, one in ten because a side hears that the other is no member any more."""
    monkeypatch.setattr(keeper, "DIAL_FIRST_S", 0.002)
    monkeypatch.setattr(shares, "CONNECTIONS_S", 100_000.0)
    chance, before = random.Random(1), kept()
    a, b, c = (Libp2pTransport(identity(number), ANY_PORT, relay=RelayConfig(bytes_s=1e9)) for number in (1, 2, 3))
    for transport in (a, b, c):
        await transport.start()
    endpoints = {transport.me: transport.endpoint for transport in (a, b, c)}
    if relayed:
        endpoints |= {end.me: f"/p2p-circuit/p2p/{identity(number).peer_id}" for number, end in ((1, a), (2, b))}
    for transport in (a, b, c):
        transport.set_members(endpoints)

    def together() -> bool:
        ways = (here._mesh._peers[there.me].current() for here, there in ((a, b), (b, a)))
        return all(way is not None and way.connection.open for way in ways)

    warm: dict[str, int] = {}
    last: Wire | None = None
    for turn in range(TURNS):
        await until(together, 20)
        if turn == WARM:
            warm = kept()
        here, there = chance.choice([(a, b), (b, a)])
        (*_, wire) = here._mesh._peers[there.me].wires
        assert wire is not last
        last = wire
        if chance.random() < 0.1:
            here.set_members({member: place for member, place in endpoints.items() if member != there.me})
            await asyncio.sleep(0.002)
            here.set_members(endpoints)
            continue
        chance.choice(ENDS)(wire)
        await wire.gone
    await until(together, 20)
    await until(lambda: all(len(t._mesh._wires) == 2 for t in (a, b, c)), 30)
    grown = {name: count - warm[name] for name, count in kept().items()}
    for transport in (a, b, c):
        await transport.close()
    await until(lambda: all(kept()[name] <= before[name] for name in ("descriptors", "tasks")), 10)
    print(f"after {TURNS} connections more than after {WARM}: {grown}")
    assert grown["descriptors"] <= 0
    assert grown["tasks"] <= 0
    assert grown["objects"] < 300
    assert grown["kilobytes"] < 4_000
