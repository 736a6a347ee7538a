"""The member in the middle: joins two members that cannot reach each other, and carries bytes that it cannot read.

A member offers it or not (`relay` in its site's settings), to members only, and to nobody more than its settings say.
Whoever has a direct connection here can be reached through it; a reservation is granted to whoever asks for one and is
not needed.

Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from swarm.config import RelayConfig
from swarm.encoding import Address, short
from swarm.errors import PeerError
from swarm.net.libp2p.connection import Connection
from swarm.net.libp2p.hop import STOP, HopKind, Message, Reader, Status, StopKind, encode
from swarm.net.libp2p.pace import Pace
from swarm.net.libp2p.pipe import Pipe

logger = logging.getLogger(__name__)

SETUP_S = 10.0
"""From the initiator's request to the target's answer."""
MEMBER_MAX = 8
"""Circuits that begin or end at one member: of its 16 pipes enough are left for others."""
RESERVED_S = 3600


class Relay:
    """What one node relays.

    Args:
        way: the connection to a member, if there is a direct one.
        known: whether an address is a member's.
    """

    def __init__(
        self, config: RelayConfig, way: Callable[[Address], Connection | None], known: Callable[[Address], bool]
    ) -> None:
        self.config = config
        self.way = way
        self.known = known
        self.pace = Pace(config.bytes_s)
        self.circuits: set[_Circuit] = set()
        self.carried_bytes = 0
        """Since this process began, both directions together."""

    def take(self, initiator: Connection, pipe: Pipe) -> _Side:
        """A member opened a hop stream; who takes its bytes."""
        return _Circuit(self, initiator, pipe).near

    def close(self) -> None:
        """End every circuit."""
        for circuit in tuple(self.circuits):
            circuit.end("the relay closes")

    def refusal(self, initiator: Address, target: Address) -> Status:
        """Why these two are not joined now; OK if they may be."""
        if initiator == target or not self.known(target):
            return Status.PERMISSION_DENIED
        joined = [circuit for circuit in self.circuits if circuit.target]
        busy = max(sum(end in (one.initiator, one.target) for one in joined) for end in (initiator, target))
        if len(joined) >= self.config.circuits_max or busy >= MEMBER_MAX:
            return Status.RESOURCE_LIMIT_EXCEEDED
        return Status.OK if self.way(target) is not None else Status.NO_RESERVATION


class _Side:
    """One end's pipe: what comes from it goes to the other end's."""

    def __init__(self, circuit: _Circuit, *, hop: bool) -> None:
        self.pipe: Pipe | None = None
        self.other: _Side | None = None
        self.ended_here = False
        self._circuit = circuit
        self._reader = Reader(hop=hop)
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> None:
        self._circuit.call_target()

    def received(self, data: bytes) -> None:
        if self._circuit.joined:
            self._forward(data)
            return
        try:
            message = self._reader.receive(data)
        except PeerError as error:
            self._circuit.refuse(Status.MALFORMED_MESSAGE, str(error))
            return
        if message is not None:
            self._circuit.said(self, message)

    def drained(self) -> None:
        if self.other is not None:
            self.other.go_on()

    def ended(self) -> None:
        self.ended_here = True
        if not self._circuit.joined:
            self._circuit.end("given up before it was joined")
        elif self.other is not None and self.other.pipe is not None:
            self.other.pipe.finish()
            if self.other.ended_here:
                self._circuit.end("over")

    def lost(self, reason: str) -> None:
        if self._circuit.joined:
            self._circuit.end(reason)
        else:
            self._circuit.refuse(Status.CONNECTION_FAILED, reason)

    def flush_rest(self) -> None:
        """Pass on what came right behind the message that joined the two."""
        if self._reader.rest:
            self._forward(self._reader.rest)

    def go_on(self) -> None:
        """Take more of this end's bytes, if the other end has room and the relay's share of a second is not used up."""
        assert self.pipe is not None
        assert self.other is not None
        assert self.other.pipe is not None
        if self._timer is not None or self.other.pipe.choked or self.pipe.over:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._circuit.relay.pace.wait_s(loop.time())
        if wait_s > 0:
            self._timer = loop.call_later(wait_s, self._waited)
        else:
            self.pipe.release()

    def stop(self) -> None:
        """Forget the timer and the pipe."""
        if self._timer is not None:
            self._timer.cancel()
        if self.pipe is not None and not self.pipe.over:
            self.pipe.reset()

    def _waited(self) -> None:
        self._timer = None
        self.go_on()

    def _forward(self, data: bytes) -> None:
        assert self.pipe is not None
        assert self.other is not None
        assert self.other.pipe is not None
        relay, now_s = self._circuit.relay, asyncio.get_running_loop().time()
        self.other.pipe.write(data)
        relay.carried_bytes += len(data)
        relay.pace.spend(len(data), now_s)
        if self.other.pipe.choked or relay.pace.wait_s(now_s) > 0:
            self.pipe.hold()
            self.go_on()


class _Circuit:
    """From an initiator's request to the end of what was relayed for it."""

    def __init__(self, relay: Relay, initiator: Connection, pipe: Pipe) -> None:
        assert initiator.remote is not None
        self.relay = relay
        self.initiator = initiator.remote
        self.target: Address = b""
        self.joined = False
        self.near, self._far = _Side(self, hop=True), _Side(self, hop=False)
        self.near.pipe = pipe
        self.near.other, self._far.other = self._far, self.near
        self._peer_id = initiator.peer_id
        self._duration_s = relay.config.duration_s
        self._timer = asyncio.get_running_loop().call_later(SETUP_S, self._late)
        relay.circuits.add(self)

    def said(self, side: _Side, message: Message) -> None:
        """A whole message came from one end, before the two are joined."""
        if side is self.near and not self.target and message.kind == HopKind.CONNECT:
            self._connect(message)
        elif side is self.near and not self.target and message.kind == HopKind.RESERVE:
            expires_s = int(time.time()) + RESERVED_S
            self._answer(Message(HopKind.STATUS, status=Status.OK, expires_s=expires_s, duration_s=self._duration_s))
            self._leave()
        elif side is self._far and message.kind == StopKind.STATUS and message.status == Status.OK:
            self._join()
        elif side is self._far and message.kind == StopKind.STATUS:
            self.refuse(Status.CONNECTION_FAILED, f"the target answers with status {message.status}")
        else:
            self.refuse(Status.UNEXPECTED_MESSAGE, f"a message of kind {message.kind} has no place here")

    def call_target(self) -> None:
        """The target serves the protocol: tell it who calls."""
        assert self._far.pipe is not None
        self._far.pipe.write(encode(Message(StopKind.CONNECT, self._peer_id, duration_s=self._duration_s), hop=False))

    def refuse(self, status: Status, reason: str) -> None:
        """Tell the initiator that nothing comes of it."""
        logger.debug("no circuit for %s: %s", short(self.initiator), reason)
        self._answer(Message(HopKind.STATUS, status=status))
        self._leave()

    def end(self, reason: str) -> None:
        """Cut both ends."""
        if self in self.relay.circuits and self.joined:
            logger.info("circuit of %s and %s ended: %s", short(self.initiator), short(self.target), reason)
        self._forget()
        for side in (self.near, self._far):
            side.stop()

    def _connect(self, message: Message) -> None:
        try:
            target = message.peer
        except PeerError as error:
            self.refuse(Status.MALFORMED_MESSAGE, str(error))
            return
        status = self.relay.refusal(self.initiator, target)
        way = self.relay.way(target)
        if status is not Status.OK or way is None:
            self.refuse(status, f"{status.name} for {short(target)}")
            return
        self.target = target
        self._far.pipe = way.open_pipe(STOP, self._far)

    def _join(self) -> None:
        self._answer(Message(HopKind.STATUS, status=Status.OK, duration_s=self._duration_s))
        self.joined = True
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._duration_s, self.end, "its time is up")
        logger.info("circuit of %s and %s", short(self.initiator), short(self.target))
        self._far.flush_rest()
        self.near.flush_rest()

    def _answer(self, message: Message) -> None:
        assert self.near.pipe is not None
        self.near.pipe.write(encode(message, hop=True))

    def _leave(self) -> None:
        """The initiator was answered and nothing follows."""
        self._forget()
        assert self.near.pipe is not None
        self.near.pipe.finish()
        self.near.pipe.holder = None
        self._far.stop()

    def _forget(self) -> None:
        self._timer.cancel()
        self.relay.circuits.discard(self)

    def _late(self) -> None:
        self.refuse(Status.CONNECTION_FAILED, f"not joined in {SETUP_S:g} s")
