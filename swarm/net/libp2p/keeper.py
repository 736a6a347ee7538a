"""Dials a member until there is a connection: at each of its places, then over members that relay."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping
from typing import Protocol

from swarm.config import Proxy
from swarm.encoding import Address, short
from swarm.errors import PeerError
from swarm.net.libp2p.circuit import Call
from swarm.net.libp2p.dialling import Place, connect
from swarm.net.libp2p.shares import Shares
from swarm.net.libp2p.wire import Wire
from swarm.net.meter import Meter

logger = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""From the first byte to the first message."""
DIAL_FIRST_S, DIAL_MAX_S = 0.1, 5.0
"""Wait after a failed dial; doubles, with half to one and a half of it at random."""
DIRECT_AGAIN_S = 60.0
"""So often a member that is reached over a relay is dialled directly."""
RELAY_AGAIN_S = 5.0
"""So often a member that names no place is looked for at the relays."""
YIELD_S = 0.25
"""The member with the higher address waits this long for the other to dial first."""
RELAY_YIELD_S = 1.0
"""The same where a relayed connection ended: both would dial at once, and a relay joins only so many pairs."""


class Peer:
    """A member and the connections to it."""

    def __init__(self, address: Address, places: tuple[Place, ...], peer_id: str) -> None:
        self.address = address
        self.peer_id = peer_id
        """By its endpoint; a relay is asked for it. Empty if the endpoint has none."""
        self.places = places
        """Where it can be dialled; the first is tried first, and is the last that worked."""
        self.wires: list[Wire] = []
        """Oldest first."""
        self.retiring: set[Wire] = set()
        self.shares = Shares()
        self.changed = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None

    def current(self) -> Wire | None:
        """The connection to use: the newest that is not being replaced."""
        for wire in reversed(self.wires):
            if wire not in self.retiring:
                return wire
        return None

    def direct(self) -> Wire | None:
        """The same, unless it is relayed."""
        wire = self.current()
        return wire if wire is not None and wire.relay is None else None


class MakeWire(Protocol):
    """How a wire for a dial is made."""

    def __call__(self, dialled: Address, *, relayed: bool) -> Wire:
        """A wire without a socket yet."""


class Keeper:
    """Keeps connections to members.

    Args:
        peers: the members, this one left out.
        wire: makes a wire.
        proxy: through which they are dialled, if any.
    """

    def __init__(
        self, me: Address, peers: Mapping[Address, Peer], meter: Meter, wire: MakeWire, proxy: Proxy | None
    ) -> None:
        self._me = me
        self._peers = peers
        self._meter = meter
        self._wire = wire
        self._proxy = proxy
        self._random = random.Random()

    def keep(self, peer: Peer) -> None:
        """Begin, in a task of the peer's own."""
        peer.keeper = asyncio.get_running_loop().create_task(self._keep_connected(peer))

    async def _keep_connected(self, peer: Peer) -> None:
        wait_s = DIAL_FIRST_S
        await self._yield(peer, YIELD_S)
        while True:
            if any(wire.relay is None for wire in peer.wires) or (peer.wires and not peer.places):
                wait_s = DIAL_FIRST_S
                await self._changed(peer, None)
                if not (peer.wires or peer.places):
                    await self._yield(peer, RELAY_YIELD_S)
            elif peer.wires:
                wait_s = DIAL_FIRST_S
                if not await self._changed(peer, DIRECT_AGAIN_S * self._random.uniform(0.5, 1.5)):
                    await self._dial_places(peer)
            elif not peer.places and not self._relays_for(peer):
                await self._changed(peer, RELAY_AGAIN_S)
            elif not await self._dial(peer):
                await self._changed(peer, wait_s * self._random.uniform(0.5, 1.5))
                wait_s = min(wait_s * 2, DIAL_MAX_S)
            else:
                # A connection that is lost again and again at once is not dialled in a tight loop.
                await asyncio.sleep(DIAL_FIRST_S)

    async def _yield(self, peer: Peer, for_s: float) -> None:
        """Let the other dial first, if it is the one with the lower address."""
        if self._me > peer.address:
            await self._changed(peer, for_s)

    async def _changed(self, peer: Peer, timeout_s: float | None) -> bool:
        """Wait until something about the member changed; False if that took too long."""
        peer.changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await peer.changed.wait()
        except TimeoutError:
            return False
        return True

    async def _dial(self, peer: Peer) -> bool:
        """Try every place, then every member that may relay."""
        if await self._dial_places(peer):
            return True
        traffic = self._meter.of(peer.address)
        reason = traffic.last_failure if peer.places else ""
        for relay in self._relays_for(peer):
            if peer.wires:
                return False  # it dialled us meanwhile
            if await self._dial_over(peer, relay):
                return True
            if reason and relay.relays:
                traffic.last_failure = f"{reason}; {traffic.last_failure}"
            elif reason:
                traffic.last_failure = reason
        return False

    async def _dial_places(self, peer: Peer) -> bool:
        """Try every place; the one that works is tried first the next time."""
        for place in peer.places:
            if await self._dial_at(peer, place):
                if place in peer.places:  # they may have changed meanwhile
                    peer.places = (place, *(other for other in peer.places if other != place))
                return True
            if peer.direct() is not None:
                return False  # it dialled us meanwhile
        return False

    async def _dial_at(self, peer: Peer, place: Place) -> bool:
        wire = self._wire(peer.address, relayed=False)

        async def reach() -> None:
            made = await connect(*place, self._proxy)
            await asyncio.get_running_loop().create_connection(lambda: wire, sock=made)

        return await self._settle(peer, wire, reach(), f"{place[0]} port {place[1]}")

    async def _dial_over(self, peer: Peer, relay: Wire) -> bool:
        wire = self._wire(peer.address, relayed=True)
        call: list[Call] = []

        async def reach() -> None:
            call.append(Call(relay, peer.peer_id, wire))

        assert relay.connection.remote is not None
        try:
            return await self._settle(peer, wire, reach(), f"over {short(relay.connection.remote)}")
        finally:
            for one in call:
                one.give_up()

    async def _settle(self, peer: Peer, wire: Wire, reach: Coroutine[None, None, None], where: str) -> bool:
        """Reach the member and shake hands with it; whether that came to an end in time."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await reach
                ready = await wire.ready
        except (OSError, TimeoutError, PeerError) as error:
            wire.reason = str(error) or f"no handshake in {HANDSHAKE_S:g} s"
            ready = False
        finally:
            if not wire.ready.done() or not wire.ready.result():
                wire.abort()
        if not ready:
            traffic = self._meter.of(peer.address)
            traffic.dials_failed += 1
            traffic.last_failure = f"{where}: {wire.reason}"
            logger.debug("dialling %s failed: %s: %s", short(peer.address), where, wire.reason)
        return ready

    def _relays_for(self, peer: Peer) -> list[Wire]:
        """Direct connections with members that may relay to this one; those that have done so first."""
        if not peer.peer_id:
            return []
        ways = [other.direct() for other in self._peers.values() if other is not peer]
        found = [way for way in ways if way is not None and way.connection.open and way.relays is not False]
        self._random.shuffle(found)
        return sorted(found, key=lambda way: way.relays is None)
