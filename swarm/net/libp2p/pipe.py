"""A stream of a connection that is given over to one protocol as it is: bytes in order, both ways. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from swarm.errors import PeerError
from swarm.net.libp2p.negotiation import Negotiation
from swarm.net.libp2p.yamux import Session, Stream

AHEAD_BYTES = 256 << 10
"""What may wait in a pipe to be sent before its writer is asked to stop; it goes on at half of it."""
WINDOW_MAX = 1 << 20
"""What a pipe may have under way: 80 Mbit/s over 100 ms. With `AHEAD_BYTES` it is all that one direction keeps."""


class Holder(Protocol):
    """Who a pipe's bytes are for. None of these may raise."""

    def started(self) -> None:
        """The other side serves the protocol that this side opened the pipe for."""

    def received(self, data: bytes) -> None:
        """The next bytes."""

    def drained(self) -> None:
        """There is room again after `choked`."""

    def ended(self) -> None:
        """The other side sends no more; what this side sends still arrives."""

    def lost(self, reason: str) -> None:
        """The pipe is gone, both ways; nothing is told after that."""


class Pipe:
    """One such stream.

    Args:
        stir: called when there is something new to send.
        protocol: what to agree on first, where this side opened the stream; else empty.
    """

    def __init__(self, session: Session, stream: Stream, stir: Callable[[], None], *, protocol: str = "") -> None:
        self.holder: Holder | None = None
        self.refused = False
        """The other side does not serve the protocol."""
        self._session = session
        self._stream = stream
        self._stir = stir
        self._choked = False
        self._over = False
        self._negotiation = Negotiation(offers=(protocol,)) if protocol else None
        stream.window_max = WINDOW_MAX
        stream.owner = self
        if self._negotiation is not None:
            session.write(stream, self._negotiation.start())

    @property
    def over(self) -> bool:
        """Nothing goes through it any more."""
        return self._over or self._stream.gone

    @property
    def choked(self) -> bool:
        """More waits to be sent than should; `Holder.drained` tells when that is over."""
        return self._choked

    # What its holder does

    def write(self, data: bytes) -> None:
        """Send; never refused, but ask `choked` before there is more."""
        self._session.write(self._stream, data)
        self._choked = self._choked or self._stream.queued > AHEAD_BYTES
        self._stir()

    def hold(self) -> None:
        """Let the other side send what it has credit for, and no more, until `release`."""
        self._session.hold(self._stream)

    def release(self) -> None:
        """Take more again."""
        self._tell(self._session.release)

    def finish(self) -> None:
        """Send no more, after what is queued."""
        self._tell(self._session.finish)

    def reset(self) -> None:
        """Give it up at once, both ways; the holder hears nothing of it."""
        self._over = True
        self._tell(self._session.reset)

    def _tell(self, what: Callable[[Stream], None]) -> None:
        try:
            what(self._stream)
        except PeerError:
            # The other side does not read; its own connection is cut for it, not the one that we are called from.
            self._over = True
        self._stir()

    # What its connection tells

    def take(self, data: memoryview) -> None:
        """Bytes have arrived."""
        if self.over or self.holder is None:
            return
        if self._negotiation is not None:
            try:
                self._negotiation.receive(data)
            except PeerError as error:
                self.refused = True
                self.reset()
                self.holder.lost(str(error))
                return
            if self._negotiation.chosen is None:
                return
            data = memoryview(self._negotiation.rest)
            self._negotiation = None
            self.holder.started()
        if len(data):
            self.holder.received(bytes(data))  # a view would keep all that arrived with it in memory

    def sent_some(self) -> None:
        """The connection has sent something, perhaps of this pipe."""
        if self._choked and self._stream.queued <= AHEAD_BYTES // 2 and not self.over:
            self._choked = False
            if self.holder is not None:
                self.holder.drained()

    def end(self) -> None:
        """The other side sends no more."""
        if not self._over and self.holder is not None:
            if self._negotiation is not None:
                self.lose("the stream ended before a protocol was agreed on")
            else:
                self.holder.ended()

    def lose(self, reason: str) -> None:
        """The stream was reset, or its connection is lost."""
        if not self._over:
            self.reset()
            if self.holder is not None:
                self.holder.lost(reason)
