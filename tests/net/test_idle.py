"""Days without a message, in virtual time: connections stay, and the first message goes through at once.

Real transports as a node makes them, keep-alives as in production; what lies between is `tests.net.ether`.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from swarm.config import RelayConfig
from swarm.encoding import Address
from swarm.errors import UnavailableError
from swarm.net.libp2p import Libp2pTransport
from swarm.net.libp2p.dialling import CONNECT_S
from swarm.net.libp2p.keeper import DIAL_MAX_S
from swarm.net.libp2p.transport import PING_S
from swarm.net.libp2p.wire import SILENCES_MAX
from tests.net.ether import Ether, play
from tests.net.kit import ANY_PORT, identity, until

HOUR_S = 3600.0
NOTICED_S = (SILENCES_MAX + 1) * PING_S
"""Within this a connection that carries nothing any more is given up."""
BACK_S = 1.0
"""And so long after it there is another."""


async def echo(sender: Address, payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def pair(*, ping_s: float = PING_S) -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
    """Two members, of whom the second can only dial out, connected."""
    a, b = (Libp2pTransport(identity(number), ANY_PORT, ping_s=ping_s) for number in (1, 2))
    try:
        for transport in (a, b):
            transport.serve("/echo", echo)
            await transport.start()
        a.set_members({b.me: f"/p2p-circuit/p2p/{identity(2).peer_id}"})
        b.set_members({a.me: a.endpoint})
        await asyncio.sleep(1)
        assert a.connected() == {b.me}
        assert b.connected() == {a.me}
        yield a, b
    finally:
        await a.close()
        await b.close()


async def spoken(here: Libp2pTransport, there: Libp2pTransport) -> float:
    """Seconds that a request and its answer take now."""
    began_s = asyncio.get_running_loop().time()
    assert await here.request(there.me, "/echo", b"good morning", timeout_s=30) == b"good morning"
    return asyncio.get_running_loop().time() - began_s


def held() -> tuple[int, int, int]:
    """Tasks, objects that the collector knows, and blocks of memory."""
    gc.collect()
    return len(asyncio.all_tasks()), len(gc.get_objects()), sys.getallocatedblocks()


@pytest.mark.parametrize("forgets_s", [math.inf, 60.0])
def test_after_a_day_without_a_message_the_first_one_each_way_goes_through_at_once(forgets_s: float) -> None:
    """Also where a box between the two forgets a connection that carries nothing for a minute."""
    ether = Ether(forgets_s=forgets_s)

    async def main() -> None:
        async with pair() as (a, b):
            await asyncio.sleep(HOUR_S)
            before = held()
            await asyncio.sleep(23 * HOUR_S)
            after = held()
            for here, there in ((a, b), (b, a)):
                assert await spoken(here, there) < 2 * ether.delay_s + 0.001
                traffic = here.meter.of(there.me)
                assert (traffic.connections, traffic.lost) == (1, 0)
        tasks, objects, blocks = (now - then for now, then in zip(after, before, strict=True))
        print(f"{tasks} tasks, {objects} objects, {blocks} blocks more after 23 hours")
        assert tasks <= 0
        assert objects < 100
        assert blocks < 1000

    play(ether, main())


def test_a_keep_alive_rarer_than_the_box_remembers_would_lose_the_connection_unseen() -> None:
    """That the interval has to be below what boxes remember, and that these tests would see it if it were not."""
    ether = Ether(forgets_s=60.0)

    async def main() -> None:
        async with pair(ping_s=61.0) as (a, b):
            await asyncio.sleep(HOUR_S)
            assert b.meter.of(a.me).lost > 5

    play(ether, main())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 30))])
def test_a_connection_that_is_dropped_without_a_word_is_given_up_in_time_and_made_anew(seed: int) -> None:
    """At any moment; what is asked meanwhile fails then, and the first message afterwards goes through."""
    ether, chance = Ether(forgets_s=60.0), random.Random(seed)

    async def dropped(a: Libp2pTransport, b: Libp2pTransport) -> None:
        """Once: both ends give it up within the time that is promised, and are connected again."""
        (line,) = ether.lines
        line.forgotten = True
        began_s, before = ether.time(), a.meter.of(b.me).connections
        asking, asked = chance.choice([(a, b), (b, a)])
        with pytest.raises(UnavailableError, match="lost"):
            await asking.request(asked.me, "/echo", b"into the void", timeout_s=10 * NOTICED_S)
        assert ether.time() - began_s <= NOTICED_S
        await asyncio.sleep(max(began_s + NOTICED_S + BACK_S - ether.time(), 0))
        assert a.connected() == {b.me}
        assert b.connected() == {a.me}
        assert a.meter.of(b.me).connections == before + 1
        assert len(ether.lines) == 1
        for here, there in ((a, b), (b, a)):
            assert await spoken(here, there) < 2 * ether.delay_s + 0.001

    async def main() -> None:
        async with pair() as (a, b):
            before = held()
            for _ in range(24):
                await asyncio.sleep(chance.uniform(0, 2 * HOUR_S - 2 * NOTICED_S))
                await dropped(a, b)
            tasks, objects, _ = (now - then for now, then in zip(held(), before, strict=True))
            assert tasks <= 0
            assert objects < 100, f"{objects} objects are left of 24 connections"
            assert b.meter.of(a.me).dials_failed == 0

    play(ether, main())


def test_an_hour_without_a_network_costs_a_dial_every_few_seconds_and_ends_in_seconds() -> None:
    ether = Ether()

    async def main() -> None:
        async with pair() as (a, b):
            await asyncio.sleep(HOUR_S)
            ether.cut = True
            await asyncio.sleep(NOTICED_S)
            assert not a.connected() | b.connected()
            before = held(), ether.dials
            await asyncio.sleep(HOUR_S)
            assert 300 < ether.dials - before[1] < 700
            tasks, objects, _ = (now - then for now, then in zip(held(), before[0], strict=True))
            assert tasks <= 1  # a dial may be under way
            assert objects < 200
            ether.cut = False
            await until(lambda: bool(a.connected() and b.connected()), 1.5 * DIAL_MAX_S + CONNECT_S + BACK_S)
            assert await spoken(a, b) < 2 * ether.delay_s + 0.001

    play(ether, main())


@pytest.mark.parametrize("hours", [5, pytest.param(24, marks=pytest.mark.slow)])
def test_hours_over_a_relay_that_ends_each_connection_after_one(hours: int) -> None:
    """Two that can only dial out, a third between them; the first message goes through, and nothing piles up."""
    ether = Ether(forgets_s=60.0)

    async def main() -> None:
        relay = Libp2pTransport(identity(3), ANY_PORT, relay=RelayConfig())
        ends = a, b = [Libp2pTransport(identity(number), ANY_PORT) for number in (1, 2)]
        for transport in (relay, a, b):
            transport.serve("/echo", echo)
            await transport.start()
        members = {end.me: f"/p2p-circuit/p2p/{identity(number).peer_id}" for number, end in enumerate(ends, 1)}
        for transport in (relay, a, b):
            transport.set_members({**members, relay.me: relay.endpoint})
        try:
            await asyncio.sleep(HOUR_S)
            before = held()
            await asyncio.sleep((hours - 1) * HOUR_S)
            after = held()
            assert a.connected() == {b.me, relay.me}
            for here, there in ((a, b), (b, a)):
                assert await spoken(here, there) < 4 * ether.delay_s + 0.001
                assert hours - 1 <= here.meter.of(there.me).connections <= hours + 1, "one an hour"
                assert here.meter.of(relay.me).connections == 1
        finally:
            for transport in (a, b, relay):
                await transport.close()
        tasks, objects, blocks = (now - then for now, then in zip(after, before, strict=True))
        print(f"{tasks} tasks, {objects} objects, {blocks} blocks more after {hours - 1} hours")
        assert tasks <= 0
        assert objects < 200
        assert blocks < 2000

    play(ether, main())
