"""py-libp2p as it comes at the other end: what we mended is still the same protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.host.ping import PingService
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import Transport as StockNoise
from libp2p.security.tls.transport import TLSTransport as StockTls
from multiaddr import Multiaddr

from swarm.net.libp2p import Libp2pTransport, security
from swarm.net.libp2p.connection import PING
from swarm.net.libp2p.security import NOISE, PROTOCOLS, TLS
from tests.net.kit import ANY_PORT, identity, until

OURS, THEIRS = identity(1), identity(2)


def stock_host(protocol: str) -> Any:
    """A host of the library with only this security protocol, as member 2."""
    keys = create_new_key_pair(THEIRS.secret)
    secure = StockTls(keys) if protocol == TLS else StockNoise(keys, create_noise_key().private_key)
    return new_host(key_pair=keys, sec_opt={protocol: secure})


@pytest.fixture
async def ours() -> AsyncIterator[Libp2pTransport]:
    transport = Libp2pTransport(OURS, ANY_PORT)
    await transport.start()
    yield transport
    await transport.close()


async def in_trio(work: Callable[[], Awaitable[object]]) -> object:
    return await asyncio.to_thread(trio.run, work)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_stock_host_dials_us_and_pings(ours: Libp2pTransport, protocol: str) -> None:
    ours.set_members({THEIRS.address: ""})

    async def work() -> list[int]:
        host = stock_host(protocol)
        with trio.fail_after(15):
            async with host.run(listen_addrs=[]):
                info = info_from_p2p_addr(Multiaddr(ours.endpoint))
                await host.connect(info)
                rtts: list[int] = await PingService(host).ping(info.peer_id, 3)
                return rtts

    rtts = await in_trio(work)
    assert isinstance(rtts, list)
    assert len(rtts) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_we_dial_a_stock_host_and_speak_over_its_streams(
    ours: Libp2pTransport, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we send arrives byte for byte: a frame's head, and 300 kB that need the stock window to move."""
    assert (TLS, NOISE) == security.PROTOCOLS
    payload = bytes(range(250)) * 1200
    ready = threading.Event()
    place: list[str] = []
    got = bytearray()

    async def work() -> None:
        host = stock_host(protocol)
        over = trio.Event()

        async def take(stream: Any) -> None:
            while len(got) < len(payload) + 12:
                got.extend(await stream.read(65_536))
            over.set()

        host.set_stream_handler("/swarm/frames/1.0.0", take)
        with trio.fail_after(15):
            async with host.run(listen_addrs=[Multiaddr(ANY_PORT)]):
                place.append(str(host.get_addrs()[0]))
                ready.set()
                await over.wait()

    stock = asyncio.create_task(in_trio(work))
    await until(ready.is_set)
    endpoint = place[0] if "/p2p/" in place[0] else f"{place[0]}/p2p/{THEIRS.peer_id}"
    ours.set_members({THEIRS.address: endpoint})
    await until(lambda: bool(ours.connected()))
    ours.send(THEIRS.address, "/hello", payload)
    await stock
    assert bytes(got) == b"\x00\x06" + len(payload).to_bytes(4, "big") + b"/hello" + payload


async def test_a_stock_host_that_is_no_member_gets_nothing(ours: Libp2pTransport) -> None:
    async def work() -> None:
        host = stock_host(TLS)
        with trio.fail_after(15):
            async with host.run(listen_addrs=[]):
                info = info_from_p2p_addr(Multiaddr(ours.endpoint))
                await host.connect(info)
                await PingService(host).ping(info.peer_id, 1)

    with pytest.raises(Exception):  # noqa: B017 - the library has no one kind for this
        await in_trio(work)
    assert ours.connected() == frozenset()
    assert PING == "/ipfs/ping/1.0.0"
