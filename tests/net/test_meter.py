"""What a transport counts, the cap on what it sends, and members with several addresses."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from swarm.encoding import Address
from swarm.net.libp2p import Libp2pTransport
from swarm.net.libp2p.dialling import places_of
from swarm.net.libp2p.pace import Pace
from swarm.net.meter import REASONS_MAX, Meter, Traffic
from tests.net.kit import ANY_PORT, identity, until


async def pair(*, upload_bytes_s: float | None = None) -> tuple[Libp2pTransport, Libp2pTransport]:
    """Two that are connected; the second echoes, and may be capped."""
    a, b = Libp2pTransport(identity(1), ANY_PORT), Libp2pTransport(identity(2), ANY_PORT, upload_bytes_s=upload_bytes_s)

    async def echo(_: Address, payload: bytes) -> bytes:
        return payload

    b.serve("/echo", echo)
    for transport in (a, b):
        await transport.start()
    for transport in (a, b):
        transport.set_members({a.me: a.endpoint, b.me: b.endpoint})
    await until(lambda: bool(a.connected() and b.connected()))
    return a, b


async def test_bytes_requests_and_round_trips_are_counted_per_member() -> None:
    a, b = await pair()
    try:
        for _ in range(3):
            await a.request(b.me, "/echo", bytes(100_000), timeout_s=5)
        with pytest.raises(Exception, match="not served"):
            await a.request(b.me, "/nothing", b"", timeout_s=5)
        here, there = a.meter.of(b.me), b.meter.of(a.me)
        await until(lambda: here.round_trip_s is not None)
        assert here.round_trip_s is not None
        assert 0 < here.round_trip_s < 5
        assert (here.requests, here.requests_failed, here.connections) == (4, 1, 1)
        for sent, received in ((here.sent_bytes, there.received_bytes), (there.sent_bytes, here.received_bytes)):
            assert sent >= 300_000
            assert abs(sent - received) < 2000  # the handshake's end belongs to one side's count
        assert a.meter.refused == {}
    finally:
        await a.close()
        await b.close()


async def test_strangers_are_counted_by_what_was_wrong_with_them() -> None:
    a, b = await pair()
    stranger = Libp2pTransport(identity(3), ANY_PORT)
    try:
        await stranger.start()
        stranger.set_members({a.me: a.endpoint})
        await until(lambda: a.meter.refused["no member"] > 0)
        place = places_of(a.me, a.endpoint)[0]
        with socket.create_connection(place) as noise:
            noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: a.meter.refused["broken off or wrong before a key was proven"] > 0)
        assert set(a.meter.peers) == {b.me}
    finally:
        for transport in (a, b, stranger):
            await transport.close()


async def test_dials_that_fail_are_counted_with_the_reason() -> None:
    a = Libp2pTransport(identity(1), ANY_PORT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    try:
        await a.start()
        other = identity(2)
        a.set_members({other.address: f"/ip4/127.0.0.1/tcp/{port}/p2p/{other.peer_id}"})
        await until(lambda: a.meter.of(other.address).dials_failed > 1)
        assert f"127.0.0.1 port {port}" in a.meter.of(other.address).last_failure
    finally:
        await a.close()


def test_kinds_of_refusals_are_bounded() -> None:
    meter = Meter()
    for number in range(1000):
        meter.refuse(f"kind {number}")
    assert len(meter.refused) == REASONS_MAX + 1
    assert meter.refused.total() == 1000


def test_rates_are_those_of_the_last_seconds() -> None:
    traffic = Traffic()
    for second in range(100):
        traffic.sample(second)
        traffic.sent_bytes += 1000 if second >= 80 else 50_000
    assert traffic.rates(100.0)[0] == pytest.approx(1000, rel=0.2)
    assert len(traffic._samples) < 20


@pytest.mark.parametrize("seed", range(20))
def test_no_second_passes_more_than_the_cap_and_a_burst(seed: int) -> None:
    chance = random.Random(seed)
    cap = chance.choice([10_000.0, 1e6, 2e7])
    pace, now_s, sent = Pace(cap), 0.0, 0
    while now_s < 20.0:
        wait_s = pace.wait_s(now_s)
        if wait_s > 0:
            now_s += wait_s + chance.random() * 0.01
            continue
        size = chance.randint(1, pace.piece_bytes(128 << 10))
        pace.spend(size, now_s)
        sent += size
        now_s += chance.random() * 1e-4
    assert 0.75 * cap * 20 < sent < cap * 20 + 2 * cap * 0.1 + 2048


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Pace(0)


async def test_a_capped_site_answers_at_its_cap_and_its_votes_do_not_wait() -> None:
    a, b = await pair(upload_bytes_s=1_000_000)
    heard: list[float] = []
    loop = asyncio.get_running_loop()
    try:
        began_s = loop.time()
        bulk = [asyncio.ensure_future(a.request(b.me, "/echo", bytes(500_000), timeout_s=30)) for _ in range(4)]
        await asyncio.sleep(0.5)

        # The answer of a small request would wait behind the bulk; a message does not.
        async def vote(_: Address, payload: bytes) -> bytes:
            heard.append(loop.time())
            return b""

        a._inbox.serve("/vote", vote)
        sent_s = loop.time()
        b.send(a.me, "/vote", b"aye")
        await until(lambda: bool(heard))
        assert heard[0] - sent_s < 0.5
        assert not any(task.done() for task in bulk)
        await asyncio.gather(*bulk)
        assert 1.5 < loop.time() - began_s < 6
    finally:
        await a.close()
        await b.close()


def test_an_endpoint_may_name_several_places() -> None:
    who = identity(2)
    endpoint = f"/ip4/10.0.0.1/tcp/4101,/dns4/node.hospital.org/tcp/443/p2p/{who.peer_id}"
    assert places_of(who.address, endpoint) == (("10.0.0.1", 4101), ("node.hospital.org", 443))
    with pytest.raises(ValueError, match="another member's"):
        places_of(identity(3).address, endpoint)
    with pytest.raises(ValueError, match="multiaddr"):
        places_of(who.address, "/ip4/10.0.0.1/tcp/4101,," + endpoint)


async def test_the_place_that_answers_is_dialled_first_the_next_time() -> None:
    a, b = Libp2pTransport(identity(1), ANY_PORT), Libp2pTransport(identity(2), ANY_PORT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = taken.getsockname()[1]
    try:
        await a.start()
        await b.start()
        b.set_members({a.me: "/ip4/127.0.0.1/tcp/1"})
        a.set_members({b.me: f"/ip4/127.0.0.1/tcp/{dead},{b.endpoint}"})
        await until(lambda: b.me in a.connected())
        (peer,) = a._mesh._peers.values()
        assert peer.places[0] == places_of(b.me, b.endpoint)[0]
        assert peer.places[1] == ("127.0.0.1", dead)
    finally:
        await a.close()
        await b.close()
