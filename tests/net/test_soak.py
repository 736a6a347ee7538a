"""Trouble for a while, with real sockets; run with the slow tests."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress

import pytest

from swarm.encoding import Address
from swarm.errors import UnavailableError
from swarm.net.libp2p import Libp2pTransport
from tests.net.kit import Swarm, until


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
