"""An app of `web` or `web_metrics` on a socket: uvicorn in the node's event loop, and what a stranger may cost it.

A connection costs a bounded amount of memory and, idle or stuck, a bounded time: a request's head has `HEAD_S` to
arrive, an idle connection `IDLE_S` to ask again, and bytes on their way out `STALL_S` to be taken.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Protocol

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.lifespan.off import LifespanOff
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from swarm.config import RpcConfig
from swarm.errors import ConfigError
from swarm.ledger.web_metrics import MetricsPage

logger = logging.getLogger(__name__)

HEAD_S = 10.0
IDLE_S = 75
STALL_S = 30.0
HEAD_MAX_BYTES = 16 << 10
FRAMES_MAX = 1024
"""Frames of one message: an empty one costs its sender less than it costs us."""
STOP_S = 1
_FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Served(Protocol):
    """What listens: `Web`, or `MetricsAlone`."""

    config: RpcConfig
    app: ASGIApp
    metrics: MetricsPage

    def notify(self) -> None:
        """There is another block."""

    @property
    def shows(self) -> str:
        """What whoever reaches the address reads; empty for nothing."""


class Server:
    """An app, listening.

    Args:
        next_block: returns when the ledger has another block than now.
    """

    def __init__(self, web: Served, next_block: Callable[[], Awaitable[None]]) -> None:
        self.web = web
        self._next_block = next_block
        self._socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # A stranger's garbage is no news for an operator; what goes wrong here, `web` logs itself.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                web.app,
                http=_Http,
                ws=_WebSocket,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                limit_concurrency=web.config.connections_max + 1,
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=STOP_S,
                h11_max_incomplete_event_size=HEAD_MAX_BYTES,
                ws_max_size=web.config.body_max_bytes,
                ws_per_message_deflate=False,
            )
        )

    @property
    def url(self) -> str:
        """Where it listens, `http://127.0.0.1:8545`; the same with ws:// for WebSocket."""
        assert self._socket is not None, "start() comes first"
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Listen and answer; ConfigError: the address is taken or not this machine's."""
        self._socket = _bound(self.web.config.host, self.web.config.port)
        config = self._uvicorn.config
        config.load()
        self._uvicorn.lifespan = LifespanOff(config)
        await self._uvicorn.startup(sockets=[self._socket])
        self._tasks = [asyncio.create_task(self._uvicorn.main_loop()), asyncio.create_task(self._follow())]
        if self.web.shows and not ip_address(self.web.config.host).is_loopback:
            logger.warning("%s: whoever reaches this address reads %s", self.url, self.web.shows)

    async def close(self) -> None:
        """Hang up on everybody and stop listening."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        assert self._socket is not None
        await self._uvicorn.shutdown(sockets=[self._socket])

    async def _follow(self) -> None:
        while True:
            await self._next_block()
            self.web.notify()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small writes at once only where TCP is named: an answer's body waited 40 ms behind its head.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        why = {
            errno.EADDRINUSE: "is in use: stop what has it, or name another port",
            errno.EADDRNOTAVAIL: "is not this machine's: name one that is",
            errno.EACCES: "is not ours to take: name a port above 1023",
        }.get(error.errno or 0, f"cannot be listened on ({error.strerror}): name another")
        raise ConfigError(
            f"the JSON-RPC address {host}:{port} {why}, `listen` in [rpc] of the site's settings"
        ) from error
    listening.setblocking(False)
    return listening


class _Http(H11Protocol):
    """HTTP, with an end to slow and stuck connections."""

    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Answer, or say at once that too many are connected."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            transport.write(_FULL)
            transport.close()
            return
        self._wait_for_head(HEAD_S)

    def on_response_complete(self) -> None:
        """The next request has its own time."""
        self._wait_for_head(IDLE_S)
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """From here on the connection is the other protocol's."""
        self._end_timers()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._end_timers()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Bytes wait for the other side to take them."""
        self._stall = self.loop.call_later(STALL_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """They were taken."""
        if self._stall is not None:
            self._stall.cancel()
        super().resume_writing()

    def _wait_for_head(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._hang_up)

    def _hang_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _end_timers(self) -> None:
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()


class _WebSocket(WebSocketsSansIOProtocol):
    """WebSocket, with an end to stuck connections; silent ones end by its pings."""

    _stall: asyncio.TimerHandle | None = None

    def handle_cont(self, event: Frame) -> None:
        """One more part of a message."""
        if len(self.frames) >= FRAMES_MAX:
            self.transport.abort()
            return
        super().handle_cont(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Bytes wait for the other side to take them: no more is read from it, so that its pings add nothing."""
        self._stall = self.loop.call_later(STALL_S, self.transport.abort)
        self.transport.pause_reading()
        super().pause_writing()

    def resume_writing(self) -> None:
        """They were taken."""
        if self._stall is not None:
            self._stall.cancel()
        if not self.read_paused:
            self.transport.resume_reading()
        super().resume_writing()
