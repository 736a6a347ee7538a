"""Both ends of a relayed connection: a pipe to the relay in the place of a socket.

The connection inside is the same as over TCP: TLS or noise from end to end between the two members, and the relay
carries what it cannot read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from swarm.encoding import Address, short
from swarm.errors import PeerError
from swarm.net.libp2p.hop import HOP, HopKind, Message, Reader, Status, StopKind, encode
from swarm.net.libp2p.pipe import Pipe
from swarm.net.libp2p.wire import Wire

SETUP_S = 10.0
"""So long a relay may leave a stream without saying who calls."""


class Circuit(asyncio.Transport):
    """The transport under a `Wire`, over a pipe."""

    def __init__(self, pipe: Pipe, wire: Wire, relay: Address) -> None:
        super().__init__()
        self._pipe = pipe
        self._wire = wire
        self._relay = relay
        self._closing = False
        self._told = False
        pipe.holder = self
        wire.relay = relay
        wire.connection_made(self)

    # What the wire does

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send; the wire is asked to pause when too much waits."""
        if not self._closing:
            self._pipe.write(bytes(data))
            if self._pipe.choked:
                self._wire.pause_writing()

    def close(self) -> None:
        """Send what is queued, then end."""
        if not self._closing:
            self._closing = True
            self._pipe.finish()
            self._over_soon(None)

    def abort(self) -> None:
        """End now."""
        self._closing = True
        self._pipe.reset()
        self._over_soon(None)

    def is_closing(self) -> bool:
        """Nothing more is taken."""
        return self._closing

    def pause_reading(self) -> None:
        """What the other side has credit for may still come."""
        self._pipe.hold()

    def resume_reading(self) -> None:
        """More may come."""
        self._pipe.release()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The pipe has its own."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`peername` names the relay; there is no socket."""
        return (f"relay {short(self._relay)}", 0) if name == "peername" else default

    # What the pipe tells

    def started(self) -> None:
        raise AssertionError("the pipe was open before it became a circuit")

    def received(self, data: bytes) -> None:
        if not self._closing:
            self._wire.received(memoryview(data))

    def drained(self) -> None:
        if not self._closing:
            self._wire.resume_writing()

    def ended(self) -> None:
        self._closing = True
        self._pipe.finish()
        self._over_soon(None)

    def lost(self, reason: str) -> None:
        self._closing = True
        self._over_soon(ConnectionError(f"over {short(self._relay)}: {reason}"))

    def _over_soon(self, error: Exception | None) -> None:
        if not self._told:
            self._told = True
            asyncio.get_running_loop().call_soon(self._wire.connection_lost, error)


class Call:
    """The initiator's side: asks a relay for a target until the wire has its circuit, or `wire.reason` says why not."""

    def __init__(self, relay: Wire, target_peer_id: str, wire: Wire) -> None:
        assert relay.connection.remote is not None
        self._relay = relay
        self._peer_id = target_peer_id
        self._wire = wire
        self._reader = Reader(hop=True)
        self._done = False
        self._pipe = relay.connection.open_pipe(HOP, self)

    def started(self) -> None:
        self._pipe.write(encode(Message(HopKind.CONNECT, self._peer_id), hop=True))

    def received(self, data: bytes) -> None:
        try:
            message = self._reader.receive(data)
        except PeerError as error:
            self._fail(str(error))
            return
        if message is None:
            return
        if message.kind != HopKind.STATUS or message.status != Status.OK:
            self._fail(f"it answers {_name(message.status)}")
            return
        remote = self._relay.connection.remote
        assert remote is not None
        self._done = True
        self._relay.relays = True
        circuit = Circuit(self._pipe, self._wire, remote)
        if self._reader.rest:
            circuit.received(self._reader.rest)

    def drained(self) -> None:
        return

    def ended(self) -> None:
        self._fail("it ended the stream without an answer")

    def lost(self, reason: str) -> None:
        if self._pipe.refused:
            self._relay.relays = False
        self._fail(reason)

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        if not self._done:
            self._fail("no answer in time")

    def _fail(self, reason: str) -> None:
        if not self._done:
            self._done = True
            self._pipe.reset()
            self._wire.reason = reason
            self._wire.abort()


class Answer:
    """The target's side: reads from whom the connection comes, then hands the pipe over."""

    def __init__(self, relay: Address, pipe: Pipe, accept: Callable[[Address], Wire | None]) -> None:
        self._relay = relay
        self._pipe = pipe
        self._accept = accept
        self._reader = Reader(hop=False)
        self._timer = asyncio.get_running_loop().call_later(SETUP_S, pipe.reset)

    def started(self) -> None:
        raise AssertionError("the relay opened the pipe")

    def received(self, data: bytes) -> None:
        try:
            message = self._reader.receive(data)
            if message is None:
                return
            if message.kind != StopKind.CONNECT:
                raise PeerError("a relay begins with something else than CONNECT")
            self._timer.cancel()
            wire = self._accept(message.peer)
        except PeerError:
            self._say(Status.MALFORMED_MESSAGE)
            self._pipe.finish()
            return
        if wire is None:
            self._say(Status.PERMISSION_DENIED)
            self._pipe.finish()
            return
        self._say(Status.OK)
        circuit = Circuit(self._pipe, wire, self._relay)
        if self._reader.rest:
            circuit.received(self._reader.rest)

    def drained(self) -> None:
        return

    def ended(self) -> None:
        self._timer.cancel()
        self._pipe.reset()

    def lost(self, reason: str) -> None:
        self._timer.cancel()

    def _say(self, status: Status) -> None:
        self._pipe.write(encode(Message(StopKind.STATUS, status=status), hop=False))


def _name(status: int) -> str:
    return Status(status).name if status in set(Status) else str(status)
