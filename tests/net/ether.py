"""TCP in virtual time: the real connections over it, so that a day of silence takes seconds.

What is under test sees asyncio as ever: servers, sockets, transports. What lies between two ends is a box that keeps a
table of connections, as NATs and firewalls do, and forgets what is silent for too long without telling anybody.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from sim.loop import VirtualLoop

T = TypeVar("T")

AHEAD_BYTES = 256 << 10
"""What a sender may have under way before it is asked to stop."""


class Ether(VirtualLoop):
    """A virtual clock with sockets of its own.

    Args:
        forgets_s: how long a connection may carry nothing until the box forgets it.
        delay_s: from one end to the other.
    """

    def __init__(self, *, forgets_s: float = math.inf, delay_s: float = 0.02) -> None:
        super().__init__()
        self.forgets_s = forgets_s
        self.delay_s = delay_s
        self.cut = False
        """Nothing passes, and nobody is told."""
        self.lines: list[Line] = []
        """Connections that an end still holds."""
        self.dials = 0
        self._servers: dict[int, Callable[[], asyncio.BufferedProtocol]] = {}
        self._dialled: dict[socket.socket, int] = {}

    # What asyncio offers otherwise

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        """A server under a number of its own, if `port` is 0."""
        taken = port or 50_000 + len(self._servers)
        self._servers[taken] = factory

        async def closed() -> None:
            return

        named = SimpleNamespace(getsockname=lambda: (host, taken))
        return SimpleNamespace(sockets=[named], close=lambda: self._servers.pop(taken, None), wait_closed=closed)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Three packets; ConnectionRefusedError where nobody listens, and nothing at all where the way is cut."""
        self.dials += 1
        if self.cut:
            await self.create_future()
        await asyncio.sleep(2 * self.delay_s)
        if address[1] not in self._servers:
            raise ConnectionRefusedError(f"nobody listens at port {address[1]}")
        self._dialled[sock] = address[1]

    async def create_connection(self, factory: Any, *_: Any, sock: Any = None, **__: Any) -> Any:  # type: ignore[override]
        """Both ends of what `sock_connect` reached."""
        made = self._servers[self._dialled.pop(sock)]
        sock.close()
        line = Line(self)
        self.lines.append(line)
        for end, protocol in zip(line.ends, (factory(), made()), strict=True):
            end.begin(protocol)
        return line.ends[0], line.ends[0].protocol


class Line:
    """One connection and its place in the box's table."""

    def __init__(self, ether: Ether) -> None:
        self.ether = ether
        self.forgotten = False
        """Whatever is sent is lost, though both ends take it for connected."""
        self._carried_s = ether.time()
        self.ends = (End(self), End(self))
        self.ends[0].other, self.ends[1].other = self.ends[1], self.ends[0]

    def passes(self) -> bool:
        """Whether a packet gets through now. One that does not is sent again by TCP, and comes no further."""
        now_s = self.ether.time()
        if self.ether.cut or now_s - self._carried_s > self.ether.forgets_s:
            self.forgotten = True
        if not self.forgotten:
            self._carried_s = now_s
        return not self.forgotten

    def over(self) -> None:
        """An end is gone."""
        if all(end.gone for end in self.ends) and self in self.ether.lines:
            self.ether.lines.remove(self)


class End(asyncio.Transport):
    """One end's socket."""

    other: End
    protocol: asyncio.BufferedProtocol

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.gone = False
        self._line = line
        self._closing = False
        self._flying = 0
        self._choked = False
        self._reading = True
        self._arrived: deque[bytes | BaseException | None] = deque()
        self._coming: deque[bytes | BaseException | None] = deque()
        """On the way here: bytes, the end of them, or the end of everything."""

    def begin(self, protocol: asyncio.BufferedProtocol) -> None:
        """Tell the protocol."""
        self.protocol = protocol
        protocol.connection_made(self)

    # What a protocol does

    def write(self, data: Any) -> None:
        """Send; the protocol is asked to pause when too much is under way."""
        if self._closing or not data:
            return
        self._flying += len(data)
        self._send(bytes(data))
        if self._flying > AHEAD_BYTES and not self._choked:
            self._choked = True
            self.protocol.pause_writing()

    def close(self) -> None:
        """Send what is queued, then hang up."""
        if not self._closing:
            self._closing = True
            self._send(None)
            self._line.ether.call_soon(self._lost, None)

    def abort(self) -> None:
        """Hang up."""
        if not self.gone:
            if not self._closing:
                self._send(ConnectionResetError("reset by the other side"))
            self._closing = True
            self._line.ether.call_soon(self._lost, None)

    def is_closing(self) -> bool:
        """Nothing more is taken."""
        return self._closing

    def pause_reading(self) -> None:
        """Let it wait."""
        self._reading = False

    def resume_reading(self) -> None:
        """Take it again."""
        self._reading = True
        self._deliver()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is one."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """An address; there is no socket."""
        return ("192.0.2.1", 0) if name == "peername" else default

    # On the way

    def _send(self, what: bytes | BaseException | None) -> None:
        if self._line.passes():
            self.other._coming.append(what)
            self._line.ether.call_later(self._line.ether.delay_s, self.other._arrives)

    def _arrives(self) -> None:
        self._arrived.append(self._coming.popleft())
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived and self._reading and not self.gone:
            what = self._arrived.popleft()
            if not isinstance(what, bytes):
                self._closing = True
                self._lost(what)
                return
            self.other._acknowledged(len(what))
            for start in range(0, len(what), 65536):
                part = what[start : start + 65536]
                buffer = cast(memoryview, self.protocol.get_buffer(len(part)))
                buffer[: len(part)] = part
                self.protocol.buffer_updated(len(part))

    def _acknowledged(self, size: int) -> None:
        self._flying -= size
        if self._choked and self._flying < AHEAD_BYTES // 2 and not self._closing:
            self._choked = False
            self.protocol.resume_writing()

    def _lost(self, error: BaseException | None) -> None:
        if not self.gone:
            self.gone = True
            self.protocol.connection_lost(cast(Any, error))
            self._line.over()


def play(ether: Ether, main: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine in this world; whatever it left running is cancelled."""
    try:
        return ether.run_until_complete(main)
    finally:
        ether.settle()
        ether.close()
