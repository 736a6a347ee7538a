"""Keeps one connection to every member: listens, dials, and lets nobody else in. Runs on one asyncio loop.

The library's own swarm is not used: it holds a slot per inbound connection for the life of the process, tries one
address a peer, waits 250 ms after it has succeeded, remembers a failure for a minute, and dials on its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from swarm.config import Proxy, RelayConfig
from swarm.encoding import Address, short
from swarm.errors import ConfigError, PeerError
from swarm.identity import checksum
from swarm.net.inbox import Done
from swarm.net.libp2p.asks import Answered, Ask
from swarm.net.libp2p.circuit import Answer
from swarm.net.libp2p.connection import Connection
from swarm.net.libp2p.dialling import Place, cannot_listen, peer_id_in, places_of
from swarm.net.libp2p.hop import HOP, STOP
from swarm.net.libp2p.keeper import HANDSHAKE_S, Keeper, Peer
from swarm.net.libp2p.pace import Pace
from swarm.net.libp2p.pipe import Holder, Pipe
from swarm.net.libp2p.relay import Relay
from swarm.net.libp2p.security import Credentials
from swarm.net.libp2p.shares import Doors
from swarm.net.libp2p.windows import Windows
from swarm.net.libp2p.wire import READ_BYTES, Wire
from swarm.net.meter import Meter

logger = logging.getLogger(__name__)

HANDSHAKES_MAX = 64
"""Strangers let in to prove who they are, at once; then the oldest of the busiest address goes."""
CONNECTIONS_MAX = 2
"""To one member: the one in use and the one that replaces it."""
FRESH_S = 5.0
"""Two connections younger than this mean that both dialled at once; otherwise the newer one replaces the older."""
RETIRE_S, LOOK_S = 10.0, 0.25
"""What is under way on a connection that is replaced has this long to end; how often is looked whether it has."""


class Upcalls(Protocol):
    """What the mesh reports; called on its loop."""

    def message(self, sender: Address, protocol: str, payload: bytes) -> None:
        """A message that wants no answer."""

    def request(self, sender: Address, protocol: str, payload: bytes, done: Done) -> None:
        """A message that wants one."""


class Mesh:
    """The connections of one node.

    Args:
        listen: host and port; port 0 takes a free one.
        ping_s: interval at which a member is asked for a sign of life (see `Wire`).
        pace: how fast this node may send.
        relay: that members are joined who cannot reach each other, and how much of that; None: not here.
        proxy: through which others are dialled, if any.
    """

    def __init__(
        self,
        me: Address,
        credentials: Credentials,
        listen: Place,
        upcalls: Upcalls,
        *,
        ping_s: float,
        pace: Pace,
        relay: RelayConfig | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.meter = Meter()
        self._me = me
        self._credentials = credentials
        self._listen = listen
        self._upcalls = upcalls
        self._ping_s = ping_s
        self._pace = pace
        self._relay = None if relay is None else Relay(relay, self._way, lambda member: member in self._peers)
        self._peers: dict[Address, Peer] = {}
        self._wires: dict[Connection, Wire] = {}
        self._handshakes: dict[Wire, asyncio.TimerHandle] = {}
        self._retirements: set[asyncio.TimerHandle] = set()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._server: asyncio.Server | None = None
        self._doors = Doors()
        self._windows = Windows()
        self._keeper = Keeper(me, self._peers, self.meter, self._wire, proxy)

    async def start(self) -> int:
        """Listen and dial; the port that is listened on. ConfigError: it cannot be."""
        host, port = self._listen
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accepted, host, port, backlog=256)
        except OSError as error:
            raise ConfigError(cannot_listen(host, port, error)) from error
        for peer in self._peers.values():
            self._keeper.keep(peer)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Close every connection and wait until the sockets are closed."""
        keepers = [peer.keeper for peer in self._peers.values() if peer.keeper is not None]
        for keeper in keepers:
            keeper.cancel()
        if keepers:
            await asyncio.wait(keepers)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        if self._relay is not None:
            self._relay.close()
        # Those over a relay say goodbye while the way to it is open.
        wires = sorted(self._wires.values(), key=lambda wire: wire.relay is None)
        for wire in wires:
            wire.close()
        if wires:
            await asyncio.wait([wire.gone for wire in wires], timeout=1.0)
            for wire in wires:
                wire.abort()
            await asyncio.wait([wire.gone for wire in wires])
        for retirement in self._retirements:
            retirement.cancel()
        self._retirements.clear()

    def set_members(self, members: Mapping[Address, str]) -> None:
        """The members and their endpoints; who is no longer one is cut."""
        for address in [address for address in self._peers if address not in members]:
            peer = self._peers.pop(address)
            self.meter.peers.pop(address, None)
            if peer.keeper is not None:
                peer.keeper.cancel()
            for wire in list(peer.wires):
                wire.cut("no member any more")
        for address, endpoint in members.items():
            if address == self._me:
                continue
            places = _places(address, endpoint)
            known = self._peers.get(address)
            if known is None:
                known = self._peers[address] = Peer(address, places, peer_id_in(endpoint))
                self.meter.of(address)
                if self._server is not None:
                    self._keeper.keep(known)
            elif set(known.places) != set(places) or known.peer_id != peer_id_in(endpoint):
                known.places, known.peer_id = places, peer_id_in(endpoint)
                known.changed.set()

    def connected(self) -> frozenset[Address]:
        """The members that messages reach now."""
        return frozenset(peer.address for peer in self._peers.values() if peer.current() is not None)

    def send(self, member: Address, protocol: str, payload: bytes) -> None:
        """A message that needs no answer; lost if there is no connection."""
        peer = self._peers.get(member)
        wire = peer.current() if peer is not None else None
        if wire is not None:
            before = wire.connection.dropped
            wire.connection.send(protocol, payload)
            self.meter.of(member).dropped += wire.connection.dropped - before
            wire.flush_soon()

    def broadcast(self, protocol: str, payload: bytes) -> None:
        """`send` to every member."""
        for member in self._peers:
            self.send(member, protocol, payload)

    def ask(
        self, member: Address, protocol: str, payload: bytes, done: Answered, into: memoryview | None = None
    ) -> tuple[Wire, Ask] | None:
        """Send a request; `done` hears the outcome once. What `withdraw` takes, if it is under way.

        Args:
            into: where the answer goes if it has room; until `done` was called or the request is withdrawn.
        """
        peer = self._peers.get(member)
        wire = peer.current() if peer is not None else None
        if wire is None:
            done(None, "not connected")
            return None
        traffic = self.meter.of(member)
        traffic.requests += 1

        def counted(answer: bytes | memoryview | None, reason: str) -> None:
            traffic.requests_failed += answer is None
            done(answer, reason)

        ask = wire.connection.ask(protocol, payload, counted, into)
        wire.flush_soon()
        return wire, ask

    def withdraw(self, asked: tuple[Wire, Ask]) -> None:
        """Nobody waits for this answer any more."""
        wire, ask = asked
        wire.connection.withdraw(ask)
        wire.flush_soon()

    # What connections report

    def admit(self, connection: Connection, remote: Address) -> None:
        wire = self._wires[connection]
        if remote not in self._peers:
            self._refuse(wire, "no member")
            raise PeerError(f"{short(remote)} is no member", member=remote)
        if wire.announced not in (None, remote):
            self._refuse(wire, "another than the relay announced")
            raise PeerError(f"a relay announced another member than {short(remote)}", member=remote)

    def opened(self, connection: Connection) -> None:
        wire = self._wires[connection]
        self._settled(wire)
        assert connection.remote is not None
        peer = self._peers.get(connection.remote)
        if peer is None:  # removed while its handshake went on
            asyncio.get_running_loop().call_soon(wire.cut, "no member any more")
            return
        others = [other for other in peer.wires if other not in peer.retiring]
        peer.wires.append(wire)
        wire.count(self.meter.of(peer.address), peer.shares)
        self._note_relay(peer)
        peer.changed.set()
        self._look_over(wire)
        if not wire.ready.done():
            wire.ready.set_result(True)
        if others:
            self._choose(peer, others, wire)
        else:
            over = "" if wire.relay is None else f" over {short(wire.relay)}"
            logger.info("connected with %s%s", short(peer.address), over)

    def message(self, connection: Connection, protocol: str, payload: bytes) -> None:
        assert connection.remote is not None
        self._spend(connection.remote, protocol)
        self._upcalls.message(connection.remote, protocol, payload)

    def request(self, connection: Connection, protocol: str, payload: bytes, done: Done) -> None:
        wire = self._wires[connection]
        assert connection.remote is not None

        def answered(answer: bytes | None, reason: str) -> None:
            done(answer, reason)
            wire.flush_soon()

        self._spend(connection.remote, protocol)
        self._upcalls.request(connection.remote, protocol, payload, answered)

    def _spend(self, member: Address, protocol: str) -> None:
        peer = self._peers.get(member)
        if peer is not None:
            peer.shares.message(protocol, asyncio.get_running_loop().time())

    def leaving(self, connection: Connection) -> None:
        peer = self._peers.get(connection.remote or b"")
        if peer is not None:
            self._retire(peer, self._wires[connection], told=True)

    def piped(self, connection: Connection, protocol: str, pipe: Pipe) -> Holder | None:
        wire = self._wires[connection]
        if wire.relay is not None or connection.remote is None:
            return None  # nothing is relayed twice
        if protocol == HOP:
            return None if self._relay is None else self._relay.take(connection, pipe)
        return Answer(connection.remote, pipe, self._announced)

    def stirred(self, connection: Connection) -> None:
        wire = self._wires.get(connection)
        if wire is not None:
            wire.flush_soon()

    # Connections

    def _announced(self, initiator: Address) -> Wire | None:
        """A relay says who calls: a wire for it, if it is a member. What it says is held against the key proven."""
        if initiator not in self._peers:
            self.meter.refuse("no member, over a relay")
            return None
        wire = self._accepted(relayed=True)
        wire.announced = initiator
        return wire

    def _accepted(self, *, relayed: bool = False) -> Wire:
        if len(self._handshakes) >= HANDSHAKES_MAX:
            crowd = Counter(wire.host for wire in self._handshakes)
            busiest = crowd.most_common(1)[0][0]
            oldest = next(wire for wire in self._handshakes if wire.host == busiest)
            self._refuse(oldest, "too many handshakes at once")
            oldest.cut("too many handshakes at once")
        wire = self._wire(None, relayed=relayed)
        self._handshakes[wire] = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._too_slow, wire)
        return wire

    def _too_slow(self, wire: Wire) -> None:
        self._refuse(wire, "handshake too slow")
        wire.cut(f"no handshake in {HANDSHAKE_S:g} s")

    def _refuse(self, wire: Wire, kind: str) -> None:
        """Count a connection that somebody else opened and that is sent away; once."""
        if wire.connection.dialled is None and not wire.refused:
            wire.refused = True
            self.meter.refuse(kind)

    def _wire(self, dialled: Address | None, *, relayed: bool = False) -> Wire:
        pipes = (STOP,) if self._relay is None else (STOP, HOP)
        connection = Connection(self._credentials, self, dialled=dialled, pipes=pipes, windows=self._windows)
        # What is relayed leaves over the connection with the relay, and waits there for its turn.
        pace = Pace(None) if relayed else self._pace
        wire = self._wires[connection] = Wire(connection, self._buffer, self._ping_s, pace, self._closed, self._refusal)
        return wire

    def _refusal(self, host: str) -> str:
        """Why nobody from this address may connect now; nothing where it may. Relayed connections have no address."""
        if not host or self._doors.knock(host, asyncio.get_running_loop().time()):
            return ""
        self.meter.refuse("too often from one address")
        return "too many connections from this address"

    def _way(self, member: Address) -> Connection | None:
        """The direct connection with a member, if there is one."""
        peer = self._peers.get(member)
        wire = peer.direct() if peer is not None else None
        return wire.connection if wire is not None else None

    def _look_over(self, wire: Wire) -> None:
        """Members that can be reached over relays only are looked for at a new one at once."""
        for peer in self._peers.values():
            if wire.relay is None and not peer.places and not peer.wires:
                peer.changed.set()

    def _note_relay(self, peer: Peer) -> None:
        wire = peer.current()
        over = wire.relay if wire is not None else None
        self.meter.of(peer.address).relay = checksum(over) if over is not None else ""

    def _settled(self, wire: Wire) -> None:
        timer = self._handshakes.pop(wire, None)
        if timer is not None:
            timer.cancel()

    def _closed(self, wire: Wire) -> None:
        self._settled(wire)
        self._wires.pop(wire.connection, None)
        if wire.connection.remote is None and wire.host:
            self._refuse(wire, "broken off or wrong before a key was proven")
        peer = self._peers.get(wire.connection.remote or b"")
        if peer is not None and wire in peer.wires:
            peer.wires.remove(wire)
            peer.retiring.discard(wire)
            peer.changed.set()
            self._note_relay(peer)
            if not peer.wires:
                self.meter.of(peer.address).lost += 1
                logger.info("connection with %s lost: %s", short(peer.address), wire.reason)

    def _choose(self, peer: Peer, others: list[Wire], newest: Wire) -> None:
        """One of several connections stays. The member with the lower address decides, so that both keep the same."""
        while len(peer.wires) > CONNECTIONS_MAX:
            peer.wires[0].cut("replaced")
        if self._me > peer.address:
            return
        for other in others:
            if (other.relay is None) != (newest.relay is None):
                self._retire(peer, other if newest.relay is None else newest, told=False)
                continue
            both_dialled = (other.connection.dialled is None) != (newest.connection.dialled is None)
            fresh = newest.since_s - other.since_s < FRESH_S
            mine_is_older = other.connection.dialled is not None
            self._retire(peer, newest if both_dialled and fresh and mine_is_older else other, told=False)

    def _retire(self, peer: Peer, wire: Wire, *, told: bool) -> None:
        """Use it for nothing new; close it when nothing is under way."""
        if wire in peer.retiring or wire not in peer.wires:
            return
        peer.retiring.add(wire)
        self._note_relay(peer)
        if not told:
            wire.connection.leave()
            wire.flush_soon()
            self._close_when_idle(wire, asyncio.get_running_loop().time() + RETIRE_S)

    def _close_when_idle(self, wire: Wire, latest_s: float) -> None:
        loop = asyncio.get_running_loop()

        def look() -> None:
            self._retirements.discard(timer)
            if wire.connection.busy and loop.time() < latest_s:
                self._close_when_idle(wire, latest_s)
            else:
                wire.close()

        timer = loop.call_later(LOOK_S, look)
        self._retirements.add(timer)


def _places(address: Address, endpoint: str) -> tuple[Place, ...]:
    try:
        return places_of(address, endpoint)
    except ValueError as error:
        logger.warning("%s cannot be dialled at %r: %s", short(address), endpoint, error)
        return ()
