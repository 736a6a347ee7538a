"""Small swarms of transports for the tests, in memory or over real sockets on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarm.encoding import Address
from swarm.identity import Identity
from swarm.net.libp2p import Libp2pTransport
from swarm.net.memory import MemoryNetwork, MemoryTransport, steady

ANY_PORT = "/ip4/127.0.0.1/tcp/0"


def identity(number: int) -> Identity:
    """The same key for the same number."""
    return Identity(bytes([number]) * 32)


class Swarm:
    """Transports 1 to n that know each other; `kind` is "memory" or "libp2p"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork(steady(0.0))
        self.endpoints: dict[Address, str] = {}
        self.transports: list[MemoryTransport | Libp2pTransport] = []

    def make(self, number: int, listen: str = ANY_PORT, *, ping_s: float = 15.0) -> MemoryTransport | Libp2pTransport:
        """A transport that has not started."""
        who = identity(number)
        transport: MemoryTransport | Libp2pTransport
        if self.kind == "memory":
            transport = self.network.transport(who.address)
        else:
            transport = Libp2pTransport(who, listen, ping_s=ping_s)
        self.transports.append(transport)
        return transport

    async def start(self, transport: MemoryTransport | Libp2pTransport) -> None:
        """Start it and tell all of all."""
        await transport.start()
        endpoint = transport.endpoint if isinstance(transport, Libp2pTransport) else ""
        self.endpoints[transport.me] = endpoint
        for known in self.transports:
            known.set_members(self.endpoints)

    async def close(self) -> None:
        """Close all."""
        for transport in self.transports:
            await transport.close()


async def until(holds: Callable[[], bool], timeout_s: float = 8.0) -> None:
    """Wait until it holds; the test fails if that takes too long."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - what is waited for is state that tells nobody
            await asyncio.sleep(0.005)
