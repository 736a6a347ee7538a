"""Two members that cannot reach each other, and one that joins them without reading what they say."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.pb import circuit_pb2
from multiaddr import Multiaddr

from swarm.config import RelayConfig
from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.identity import checksum
from swarm.net.libp2p import Libp2pTransport, keeper, pipe
from swarm.net.libp2p.connection import Connection
from swarm.net.libp2p.hop import HOP, MESSAGE_MAX, HopKind, Message, Reader, Status, StopKind, decode, encode
from swarm.net.libp2p.security import TLS
from tests.net.kit import ANY_PORT, identity, until
from tests.net.test_interop import in_trio, stock_host

ONE, TWO, RELAY, FOUR = (identity(number) for number in (1, 2, 3, 4))
FAST = RelayConfig(bytes_s=1e9)


def nowhere(number: int) -> str:
    """The endpoint of a member that nobody can dial."""
    return f"/p2p-circuit/p2p/{identity(number).peer_id}"


async def echo(sender: Address, payload: bytes) -> bytes:
    return payload


@asynccontextmanager
async def joined(
    config: RelayConfig | None, *, others: int = 2
) -> AsyncIterator[tuple[Libp2pTransport, list[Libp2pTransport]]]:
    """A member that relays as `config` says, and others that know the way to it alone."""
    r = Libp2pTransport(RELAY, ANY_PORT, relay=config)
    ends = [Libp2pTransport(identity(number), ANY_PORT) for number in (1, 2, 4, 5)[:others]]
    try:
        for transport in (r, *ends):
            transport.serve("/echo", echo)
            await transport.start()
        endpoints = {end.me: nowhere(number) for end, number in zip(ends, (1, 2, 4, 5), strict=False)}
        for transport in (r, *ends):
            transport.set_members({**endpoints, r.me: r.endpoint})
        await until(lambda: r.connected() == set(endpoints))
        yield r, ends
    finally:
        for transport in (*ends, r):
            await transport.close()


async def met(*ends: Libp2pTransport) -> None:
    """Wait until all of them are connected with each other."""
    await until(lambda: all({b.me for b in ends} - {a.me} <= a.connected() for a in ends), 15)


# What goes through


@pytest.mark.parametrize("size", [0, 100_000, 9_000_000])
async def test_two_that_cannot_reach_each_other_speak_over_the_third(size: int) -> None:
    async with joined(FAST) as (r, (a, b)):
        await met(a, b)
        payload = random.Random(size).randbytes(size)
        assert await a.request(b.me, "/echo", payload, timeout_s=20) == payload
        assert await b.request(a.me, "/echo", payload, timeout_s=20) == payload
        assert (a.meter.of(b.me).relay, a.meter.of(r.me).relay) == (checksum(r.me), "")


async def test_the_relay_sees_ciphertext(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    plain = pipe.Pipe.write

    def write(self: pipe.Pipe, data: bytes) -> None:
        seen.append(data)
        plain(self, data)

    monkeypatch.setattr(pipe.Pipe, "write", write)
    secret = b"patient 17, born 1942, " * 100
    async with joined(FAST) as (_, (a, b)):
        await met(a, b)
        assert await a.request(b.me, "/echo", secret, timeout_s=5) == secret
    assert sum(map(len, seen)) > 4 * len(secret)  # each way, at an end and at the relay
    assert not any(secret[:20] in data for data in seen)


async def test_a_relay_that_says_another_member_calls_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that is proven inside counts, and it has to be the one that was announced."""
    async with joined(FAST, others=3) as (_, (a, b, c)):
        await met(a, b, c)
        monkeypatch.setattr(Connection, "peer_id", property(lambda self: FOUR.peer_id))

        def found_out() -> bool:
            for wire in [wire for wire in a._mesh._wires.values() if wire.connection.remote == b.me]:
                wire.cut("so that it is made anew")  # again: a second circuit may have been on its way
            return bool((a.meter.refused + b.meter.refused)["another than the relay announced"])

        await until(found_out)
        assert b.me not in a.connected()


async def test_a_target_that_does_not_read_costs_the_relay_little_however_greedy_the_sender() -> None:
    """What the relay keeps stays below the window and what may wait in a pipe, without the inner connection's help."""
    async with joined(FAST) as (r, (a, b)):
        await met(a, b)
        a.send(b.me, "/echo", b"so that the stream for messages is there")
        await asyncio.sleep(0.2)
        line = next(w for w in b._mesh._wires.values() if w.connection.remote == r.me and w.relay is None)
        assert line._transport is not None
        line._transport.pause_reading()
        inner = next(w for w in a._mesh._wires.values() if w.relay is not None).connection._session
        assert inner is not None
        for stream in inner._streams.values():
            stream.sendable = 1 << 30
        a.send(b.me, "/echo", bytes(15_000_000))
        kept = 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            for wire in r._mesh._wires.values():
                assert wire.connection._session is not None
                kept = max(kept, *(s.queued for s in wire.connection._session._streams.values()), 0)
        assert pipe.AHEAD_BYTES < kept <= pipe.AHEAD_BYTES + pipe.WINDOW_MAX


async def test_a_direct_way_replaces_the_relayed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "DIRECT_AGAIN_S", 0.2)
    async with joined(FAST) as (r, (a, b)):
        await met(a, b)
        b.set_members({a.me: a.endpoint, b.me: nowhere(2), r.me: r.endpoint})
        await until(lambda: a.meter.of(b.me).relay == b.meter.of(a.me).relay == "")
        assert await a.request(b.me, "/echo", b"directly", timeout_s=5) == b"directly"
        await until(lambda: r._mesh._relay is not None and not r._mesh._relay.circuits)


async def test_when_the_relay_goes_another_takes_over() -> None:
    second = Libp2pTransport(identity(7), ANY_PORT, relay=FAST)
    async with joined(FAST) as (r, (a, b)):
        await met(a, b)
        try:
            await second.start()
            members = {a.me: nowhere(1), b.me: nowhere(2), r.me: r.endpoint, second.me: second.endpoint}
            for transport in (r, a, b, second):
                transport.set_members(members)
            await until(lambda: second.connected() == {a.me, b.me, r.me})
            await r.close()
            await until(lambda: a.meter.of(b.me).relay == checksum(second.me), 20)
            assert await a.request(b.me, "/echo", b"over the other", timeout_s=5) == b"over the other"
        finally:
            await second.close()


# What does not


async def test_who_did_not_offer_it_relays_nothing() -> None:
    async with joined(None) as (r, (a, b)):
        await until(lambda: any(w.relays is False for w in a._mesh._wires.values()))
        await asyncio.sleep(0.5)
        assert a.connected() == b.connected() == {r.me}


async def test_no_more_pairs_are_joined_than_the_relay_offers() -> None:
    async with joined(RelayConfig(circuits_max=1), others=3) as (_, ends):
        await until(lambda: any(len(end.connected()) == 2 for end in ends))
        limited = "answers RESOURCE_LIMIT_EXCEEDED"
        await until(lambda: any(limited in t.last_failure for end in ends for t in end.meter.peers.values()))
        await until(lambda: sum(len(end.connected()) - 1 for end in ends) >= 2)  # one pair, seen from both ends
        assert sum(len(end.connected()) - 1 for end in ends) == 2


async def test_the_relay_keeps_to_its_speed() -> None:
    async with joined(RelayConfig(bytes_s=400_000)) as (r, (a, b)):
        await met(a, b)
        began_s = time.monotonic()
        await a.request(b.me, "/echo", bytes(300_000), timeout_s=30)
        took_s = time.monotonic() - began_s
        assert took_s > 2 * 300_000 / 400_000 - 0.2
        assert r._mesh._relay is not None
        assert r._mesh._relay.carried_bytes > 600_000


async def test_a_relayed_connection_ends_in_time_and_is_made_anew() -> None:
    async with joined(RelayConfig(duration_s=1)) as (_, (a, b)):
        await met(a, b)
        await until(lambda: a.meter.of(b.me).lost == 1)
        await met(a, b)
        assert await a.request(b.me, "/echo", b"again", timeout_s=5) == b"again"


async def test_a_removed_member_is_not_relayed_to_any_more() -> None:
    async with joined(FAST) as (r, (a, b)):
        await met(a, b)
        r.set_members({a.me: nowhere(1), r.me: r.endpoint})
        await until(lambda: b.me not in a.connected())
        assert await a.request(r.me, "/echo", b"the relay is still here", timeout_s=5)


# The messages


def theirs(message: Message, *, hop: bool) -> bytes:
    """The same message by the library's protobuf."""
    found: Any = circuit_pb2.HopMessage() if hop else circuit_pb2.StopMessage()
    found.type = message.kind
    if message.peer_id:
        found.peer.id = ID.from_string(message.peer_id).to_bytes()
    if message.expires_s:
        found.reservation.expire = message.expires_s
    if message.duration_s or message.data_max:
        found.limit.duration, found.limit.data = message.duration_s, message.data_max
    if message.status:
        found.status = message.status
    return bytes(found.SerializeToString())


MESSAGES = [
    (Message(HopKind.RESERVE), True),
    (Message(HopKind.STATUS, status=Status.OK, duration_s=3600, data_max=1 << 40, expires_s=1 << 31), True),
    (Message(HopKind.STATUS, status=Status.NO_RESERVATION), True),
    (Message(HopKind.CONNECT, ONE.peer_id), True),
    (Message(StopKind.CONNECT, ONE.peer_id, duration_s=60), False),
    (Message(StopKind.STATUS, status=Status.OK), False),
]


@pytest.mark.parametrize(("message", "hop"), MESSAGES)
def test_a_message_is_read_as_it_was_written_however_it_is_cut(message: Message, hop: bool) -> None:
    data, reader = encode(message, hop=hop) + b"after", Reader(hop=hop)
    found = [reader.receive(data[at : at + 1]) for at in range(len(data) - 5)]
    assert found == [None] * (len(found) - 1) + [message]
    reader = Reader(hop=hop)
    assert reader.receive(data) == message
    assert reader.rest == b"after"


@pytest.mark.parametrize(("message", "hop"), MESSAGES)
def test_a_message_is_the_same_bytes_as_the_librarys_protobuf(message: Message, hop: bool) -> None:
    body = theirs(message, hop=hop)
    assert encode(message, hop=hop)[1:] == body
    assert decode(body, hop=hop) == message


def test_what_others_add_to_a_message_is_passed_over() -> None:
    found: Any = circuit_pb2.HopMessage()
    found.type, found.senderRecord, found.status = 0, b"a signed record", 100
    found.reservation.addrs.append(b"an address")
    found.reservation.voucher = b"a voucher"
    assert decode(found.SerializeToString(), hop=True) == Message(HopKind.RESERVE, status=Status.OK)


@pytest.mark.parametrize("seed", range(300))
def test_mangled_messages_raise_nothing_but_peer_errors(seed: int) -> None:
    chance = random.Random(seed)
    message, hop = chance.choice(MESSAGES)
    data = bytearray(encode(message, hop=hop)[1:])
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        found = decode(bytes(data[: chance.randrange(len(data) + 1)]), hop=hop)
        _ = found.peer
    except PeerError:
        return


def test_a_message_is_refused_by_its_length() -> None:
    with pytest.raises(PeerError, match="at most"):
        Reader(hop=True).receive(b"\x81\x20")  # 4097, and nothing of it has come
    with pytest.raises(PeerError, match="64 bits"):
        Reader(hop=True).receive(b"\xff" * 11)
    assert MESSAGE_MAX == 4096


async def test_a_stock_host_reserves_at_our_relay_and_is_joined_to_our_member() -> None:
    """The library's host, with its own protobuf, over our relay: the first bytes behind it are our member's."""
    r, a = Libp2pTransport(RELAY, ANY_PORT, relay=FAST), Libp2pTransport(ONE, ANY_PORT)
    await r.start()
    await a.start()
    try:
        r.set_members({ONE.address: nowhere(1), TWO.address: nowhere(2)})
        a.set_members({RELAY.address: r.endpoint, TWO.address: nowhere(2)})
        await until(lambda: a.me in r.connected())

        async def ask(stream: Any, message: Message) -> tuple[Any, bytes]:
            body = theirs(message, hop=True)
            await stream.write(bytes([len(body)]) + body)
            data = await stream.read(4096)
            answer: Any = circuit_pb2.HopMessage()
            answer.ParseFromString(data[1 : 1 + data[0]])
            return answer, data[1 + data[0] :]

        async def work() -> None:
            host = stock_host(TLS)
            with trio.fail_after(20):
                async with host.run(listen_addrs=[]):
                    info = info_from_p2p_addr(Multiaddr(r.endpoint))
                    await host.connect(info)
                    reserved, _ = await ask(
                        await host.new_stream(info.peer_id, [TProtocol(HOP)]), Message(HopKind.RESERVE)
                    )
                    assert (reserved.type, reserved.status) == (2, 100)
                    assert reserved.reservation.expire > time.time() + 60
                    stream = await host.new_stream(info.peer_id, [TProtocol(HOP)])
                    joined, rest = await ask(stream, Message(HopKind.CONNECT, ONE.peer_id))
                    assert (joined.type, joined.status, rest) == (2, 100, b"")
                    await stream.write(b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n")
                    assert await stream.read(32) == b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"

        await in_trio(work)
    finally:
        await a.close()
        await r.close()
