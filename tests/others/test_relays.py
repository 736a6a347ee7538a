"""go-libp2p and js-libp2p over our relay: they dial our member, ours dials them, and they reserve a place."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from swarm.config import RelayConfig
from swarm.identity import checksum
from swarm.net.libp2p import Libp2pTransport, frames
from tests.net.kit import ANY_PORT, identity, until
from tests.others import go_libp2p
from tests.others.js import JsPeer
from tests.others.p2pd import Daemon
from tests.others.test_peers import ECHO, OURS, PATIENCE_S, SECURITY, THEIRS, answering, asked, echo, pieces

RELAY = identity(3)
RESERVED = "adding new relay"
"""What go says when a relay gave it a place."""
QUICK = pytest.mark.parametrize("security", ["tls", pytest.param("noise", marks=pytest.mark.slow)])


@dataclass(frozen=True)
class Between:
    """Our member, and the one that relays; theirs is a member that only the relay can reach."""

    ours: Libp2pTransport
    relay: Libp2pTransport

    @property
    def way(self) -> str:
        """Our member's multiaddr over the relay."""
        return f"{self.relay.endpoint}/p2p-circuit/p2p/{OURS.peer_id}"

    async def meet(self) -> None:
        """Wait until our member has reached theirs over the relay."""
        await until(lambda: THEIRS.address in self.ours.connected(), PATIENCE_S)
        assert self.ours.meter.of(THEIRS.address).relay == checksum(RELAY.address)


def behind(peer_id: str) -> str:
    return f"/p2p-circuit/p2p/{peer_id}"


@pytest.fixture
async def between() -> AsyncIterator[Between]:
    relay = Libp2pTransport(RELAY, ANY_PORT, relay=RelayConfig(bytes_s=1e9))
    ours = Libp2pTransport(OURS, ANY_PORT)
    ours.serve(ECHO, echo)
    try:
        await relay.start()
        await ours.start()
        relay.set_members({OURS.address: behind(OURS.peer_id), THEIRS.address: behind(THEIRS.peer_id)})
        ours.set_members({RELAY.address: relay.endpoint, THEIRS.address: behind(THEIRS.peer_id)})
        await until(lambda: RELAY.address in ours.connected())
        yield Between(ours, relay)
    finally:
        await ours.close()
        await relay.close()


@QUICK
async def test_go_reaches_our_member_over_our_relay(between: Between, security: str) -> None:
    async with Daemon(go_libp2p(), THEIRS, security=security, circuits=True) as go, asyncio.timeout(PATIENCE_S):
        await go.connect(between.way)
        await between.meet()
        reader, writer = await go.open(OURS.peer_id, frames.PROTOCOL)
        (payload,) = pieces(1)
        assert await asked(reader, writer, payload, frames.Reader()) == hashlib.sha256(payload).digest() + payload
        writer.close()


@QUICK
async def test_our_member_reaches_go_over_our_relay(between: Between, security: str) -> None:
    async with Daemon(go_libp2p(), THEIRS, security=security, circuits=True) as go, asyncio.timeout(PATIENCE_S):
        await go.take(frames.PROTOCOL, answering)
        await go.connect(between.relay.endpoint)
        await between.meet()
        (payload,) = pieces(1)
        answer = await between.ours.request(THEIRS.address, ECHO, payload, timeout_s=PATIENCE_S)
        assert answer == hashlib.sha256(payload).digest() + payload


async def test_go_reserves_a_place_at_our_relay_and_is_reached_there(between: Between) -> None:
    """As one that nobody can dial. It asks for no voucher."""
    async with Daemon(go_libp2p(), THEIRS, reserves_at=between.relay.endpoint) as go, asyncio.timeout(PATIENCE_S):
        await until(lambda: RESERVED in go.log(), PATIENCE_S)
        await between.meet()


@pytest.mark.slow
async def test_our_member_reaches_go_over_a_relay_of_gos(between: Between) -> None:
    """Theirs has a place there; ours needs none to dial."""
    relay = identity(4)
    async with (
        Daemon(go_libp2p(), relay, relays=True) as middle,
        Daemon(go_libp2p(), THEIRS, reserves_at=middle.endpoint) as go,
        asyncio.timeout(PATIENCE_S),
    ):
        await go.take(frames.PROTOCOL, answering)
        await until(lambda: RESERVED in go.log(), PATIENCE_S)
        between.ours.set_members({relay.address: middle.endpoint, THEIRS.address: behind(THEIRS.peer_id)})
        await until(lambda: THEIRS.address in between.ours.connected(), PATIENCE_S)
        answer = await between.ours.request(THEIRS.address, ECHO, b"over go", timeout_s=PATIENCE_S)
        assert answer == hashlib.sha256(b"over go").digest() + b"over go"
        assert between.ours.meter.of(THEIRS.address).relay == checksum(relay.address)


@pytest.mark.slow
@SECURITY
async def test_js_reaches_our_member_over_our_relay(between: Between, security: str) -> None:
    async with JsPeer(THEIRS, security) as js:
        answer = await js.ask("request", to=between.way, name=ECHO, size=1_000_000)
        await between.meet()
    payload = (b"swarm of hospitals " * 52_632)[:1_000_000]
    assert bytes.fromhex(answer["answered"]) == hashlib.sha256(payload).digest() + payload


@QUICK
async def test_js_reserves_a_place_at_our_relay_and_is_reached_there(between: Between, security: str) -> None:
    """Nor does it ask for a voucher."""
    async with JsPeer(THEIRS, security, reserves_at=between.relay.endpoint) as js:
        assert f"{between.relay.endpoint}/p2p-circuit/p2p/{THEIRS.peer_id}" in (await js.ask("reached"))["at"]
        await between.meet()
        payload = hashlib.shake_128(b"js").digest(1_000_000)
        answer = await between.ours.request(THEIRS.address, ECHO, payload, timeout_s=PATIENCE_S)
        assert answer == hashlib.sha256(payload).digest() + payload


async def test_who_is_no_member_is_not_relayed_to_ours(between: Between) -> None:
    """Go's own words for our relay's refusal: it is sent away before it can ask."""
    async with Daemon(go_libp2p(), identity(9), circuits=True) as go, asyncio.timeout(PATIENCE_S):
        with pytest.raises(ConnectionError):
            await go.connect(between.way)
        await until(lambda: between.relay.meter.refused["no member"] > 0, PATIENCE_S)
        assert between.ours.connected() == {RELAY.address}
