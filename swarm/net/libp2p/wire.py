"""One socket under one `Connection`: reads, writes, and notices when the other side falls silent. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from swarm.encoding import Address, short
from swarm.errors import PeerError
from swarm.net.libp2p.connection import Connection
from swarm.net.libp2p.pace import Pace
from swarm.net.libp2p.shares import Shares
from swarm.net.libp2p.windows import LONG_S
from swarm.net.meter import Traffic

logger = logging.getLogger(__name__)

READ_BYTES = 256 << 10
WRITE_BYTES = 128 << 10
UNSENT_MAX_BYTES = 256 << 10
"""What may wait in the kernel unsent: a vote behind it on a slow line waits for this much and no more."""
BBR = b"bbr"
SILENCES_MAX = 3
"""Intervals without a byte until the connection is given up; a ping goes out after each."""


def endure_loss(wire: socket.socket) -> bool:
    """Let the socket send at the line's speed even where packets are lost, if the system permits it; whether it does.

    A lost packet makes the usual congestion controls send half as fast or little more: over 100 ms with 1 % loss they
    carry 0.15 MB/s, however fast the line. BBR goes by what arrives instead; on short lines it costs CPU (0.2 s/GB) and
    helps nothing.

    Source: Mathis et al. 1997; Cardwell et al. 2016.
    """
    try:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, BBR)
    except (OSError, AttributeError):  # not in this system, or not for everybody
        return False
    return True


def keep_nothing_back(wire: socket.socket) -> None:
    """Let what is written leave at once, and little wait in the kernel.

    A small write otherwise waits until the one before it is acknowledged (Nagle's rule), and the other side takes its
    time with that: 40 ms on Linux. asyncio sees to it only for sockets that name TCP as their protocol.
    """
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_MAX_BYTES)


class Wire(asyncio.BufferedProtocol):
    """The socket of one connection.

    Args:
        buffer: what is read into; shared, because what is read is used up before the next read.
        ping_s: how often a ping is sent; after `SILENCES_MAX` such intervals of silence the connection is cut.
        pace: what this node may send, over all its connections.
        closed: called once when the socket is gone.
        refusal: why a connection that this address opens is sent away at once, or nothing.
    """

    def __init__(
        self,
        connection: Connection,
        buffer: memoryview,
        ping_s: float,
        pace: Pace,
        closed: Callable[[Wire], None],
        refusal: Callable[[str], str] = lambda host: "",
    ) -> None:
        self.connection = connection
        self.host = ""
        self.since_s = 0.0
        """When it was made, by the loop's clock."""
        self.reason = "closed by the other side"
        self.relay: Address | None = None
        """The member that relays this connection, if one does."""
        self.announced: Address | None = None
        """Who calls, by the word of the relay."""
        self.relays: bool | None = None
        """Whether the member at the other end relays for others; None until it was asked."""
        self.refused = False
        """It was counted as one that is sent away."""
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[bool] = loop.create_future()
        """True once messages can travel, False if it never came to that."""
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the socket is closed."""
        self._buffer = buffer
        self._ping_s = ping_s
        self._pace = pace
        self._traffic: Traffic | None = None
        self._pinged_s: float | None = None
        self._pongs = 0
        self._long = False
        """The line is long, and its socket was told to endure loss."""
        self._closed = closed
        self._refusal = refusal
        self._shares: Shares | None = None
        self._short = 0
        self._resting: asyncio.TimerHandle | None = None
        """When is read again from a member that said more than its share."""
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._flushing = False
        self._heard = True
        self._silences = 0
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._held: asyncio.TimerHandle | None = None
        """When what the pace held back may go."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._ended:  # given up while asyncio was making the socket
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._transport = transport
        self.since_s = loop.time()
        peer = transport.get_extra_info("peername")
        self.host = str(peer[0]) if peer else ""
        if self.connection.dialled is None and (reason := self._refusal(self.host)):
            self.refused = True
            self.cut(reason)
            return
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        wire: socket.socket | None = transport.get_extra_info("socket")
        if wire is not None:
            keep_nothing_back(wire)
        self._timer = loop.call_later(self._ping_s, self._interval)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received(self._buffer[:nbytes])

    def received(self, data: memoryview) -> None:
        """Bytes have arrived; nothing of the view is kept."""
        self._heard = True
        if self._traffic is not None:
            self._traffic.received_bytes += len(data)
        try:
            self.connection.receive(data)
        except PeerError as error:
            self.cut(str(error))
        else:
            self._note_pong()
            self.flush()
            self._rest()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self._transport is not None:
            self.reason = str(exc)
        self._over()

    # What its owner calls

    def flush(self) -> None:
        """Send what the connection holds, as far as the socket takes it."""
        transport = self._transport
        if transport is None:
            return
        now_s = asyncio.get_running_loop().time()
        try:
            while not (self._paused or transport.is_closing()):
                wait_s = self._pace.wait_s(now_s)
                data = self.connection.outgoing(self._pace.piece_bytes(WRITE_BYTES), bulk=wait_s <= 0)
                if not data:
                    if wait_s > 0 and self.connection.bulk_waits:
                        self._flush_in(wait_s)
                    return
                self._pace.spend(len(data), now_s)
                if self._traffic is not None:
                    self._traffic.sent_bytes += len(data)
                transport.write(data)
        except PeerError as error:
            self.cut(str(error))

    def count(self, traffic: Traffic, shares: Shares) -> None:
        """Count here from now on, measure the round trip, and hold the other side to its shares."""
        self._traffic, self._shares = traffic, shares
        traffic.connections += 1
        self._ping()

    def flush_soon(self) -> None:
        """`flush` before the loop waits again: what is said in one go leaves in one piece."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def cut(self, reason: str) -> None:
        """Drop the connection now, with what is still to be sent; its owner has heard so when this returns."""
        if self._ended:
            return
        self.reason = reason
        if self._transport is None:
            self.abort()
        else:
            remote = self.connection.remote
            logger.debug("connection with %s cut: %s", short(remote) if remote else self.host, reason)
            self._transport.abort()
            self._end_connection()

    def abort(self) -> None:
        """Drop the socket if there still is one, without a word."""
        if self._transport is None:
            self._over()
        elif not self.gone.done():
            self._transport.abort()

    def close(self) -> None:
        """Say goodbye and close; what was handed to the socket before still goes out."""
        if self._transport is None:
            self.abort()
        elif not self._transport.is_closing():
            self.reason = "closed"
            try:
                self._transport.write(self.connection.farewell())
            except PeerError:
                self._transport.abort()
            self._transport.close()
            self._end_connection()

    # Inside

    def _rest(self) -> None:
        """Read nothing from a member that said more than its share, until that is paid."""
        shares, transport = self._shares, self._transport
        if shares is None or transport is None or self._resting is not None or transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        short = self.connection.short_frames
        shares.frames(short - self._short, loop.time())
        self._short = short
        wait_s = shares.wait_s(loop.time())
        if wait_s > 0:
            transport.pause_reading()
            self._resting = loop.call_later(wait_s, self._rested)
            if self._traffic is not None:
                self._traffic.pauses += 1

    def _rested(self) -> None:
        self._resting = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _flush_in(self, wait_s: float) -> None:
        if self._held is None:
            self._held = asyncio.get_running_loop().call_later(wait_s, self._flush_held)

    def _flush_held(self) -> None:
        self._held = None
        self.flush()

    def _ping(self) -> None:
        if self._pinged_s is None and self.connection.open:
            self._pinged_s, self._pongs = asyncio.get_running_loop().time(), self.connection.pongs
        self.connection.ping()
        self.flush_soon()

    def _note_pong(self) -> None:
        if self._pinged_s is not None and self.connection.pongs > self._pongs:
            round_trip_s = asyncio.get_running_loop().time() - self._pinged_s
            self.connection.note_round_trip(round_trip_s)
            if self._traffic is not None:
                self._traffic.round_trip_s = round_trip_s
            wire = None if self._transport is None else self._transport.get_extra_info("socket")
            if wire is not None and round_trip_s > LONG_S and not self._long:
                self._long = endure_loss(wire)
            self._pinged_s = None

    def _flush_now(self) -> None:
        self._flushing = False
        self.flush()

    def _interval(self) -> None:
        """A late timer (a busy or suspended process) counts as one interval, however late it is."""
        self._silences = 0 if self._heard else self._silences + 1
        self._heard = False
        if self._silences >= SILENCES_MAX:
            self.cut(f"silent for {self._silences * self._ping_s:g} s")
            return
        self._timer = asyncio.get_running_loop().call_later(self._ping_s, self._interval)
        self._ping()

    def _end_connection(self) -> None:
        if self._ended:
            return
        self._ended = True
        for timer in (self._timer, self._held, self._resting):
            if timer is not None:
                timer.cancel()
        if not self.ready.done():
            self.ready.set_result(False)
        self.connection.lost()
        self._closed(self)

    def _over(self) -> None:
        self._end_connection()
        if not self.gone.done():
            self.gone.set_result(None)
