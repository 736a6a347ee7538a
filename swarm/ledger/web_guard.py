"""Who may ask over HTTP and WebSocket, and how often: whoever reaches the port, except web pages of strange origins."""

from __future__ import annotations

import logging
from collections import OrderedDict
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from swarm.config import RpcConfig
from swarm.ledger import jsonrpc
from swarm.ledger.rpc import RpcError

logger = logging.getLogger(__name__)

COST_S = 0.002
"""What an answer may take before it counts as more than one request: the view of a round takes as much."""
CLIENTS_KEPT = 1024


class Buckets:
    """Token buckets, one a client: it gets `rate` requests a second and may save up two seconds' worth.

    Source: the token bucket of ITU-T I.371, with debts: what an answer took is known when it is given.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, now_s: float) -> float:
        """How long until a client may ask again; 0 if it may now."""
        return max(0.0, (1 - self._tokens(client, now_s)) / self._rate)

    def spend(self, client: str, requests: float, now_s: float) -> None:
        """Take note of what a client used."""
        self._left[client] = (self._tokens(client, now_s) - requests, now_s)
        self._left.move_to_end(client)
        if len(self._left) > CLIENTS_KEPT:
            self._left.popitem(last=False)

    def _tokens(self, client: str, now_s: float) -> float:
        full = 2 * self._rate
        left, then_s = self._left.get(client, (full, now_s))
        return min(full, left + (now_s - then_s) * self._rate)

    def spend_time(self, client: str, took_s: float, now_s: float) -> None:
        """Take note of an answer that took so long."""
        self.spend(client, max(1.0, took_s / COST_S), now_s)

    def too_often(self, client: str, wait_s: float) -> RpcError:
        """What a client is told that has to wait."""
        told = f"{client} asked for more than {self._rate:g} requests a second: ask again in {wait_s:.1f} s"
        return RpcError(jsonrpc.LIMIT_EXCEEDED, told)

    def refused(self, client: str, now_s: float) -> Response | None:
        """The answer to a client that has to wait, over HTTP; None if it may ask."""
        wait_s = self.wait_s(client, now_s)
        if not wait_s:
            return None
        late = self.too_often(client, wait_s)
        return refusal(429, late.code, late.message, {"retry-after": str(int(wait_s) + 1)})


class Guard:
    """Refuses what a web page of a stranger makes a browser send: other origins, and names that are not this node's.

    Source: DNS rebinding, Jackson et al. 2007: a page's own name is made to point here. An IP address cannot be.
    """

    def __init__(self, app: ASGIApp, config: RpcConfig) -> None:
        self._app = app
        self._hosts = {"localhost", *(name.lower() for name in config.hosts)}
        self._origins = set(config.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            return
        fault = self._fault(HTTPConnection(scope))
        try:
            if fault is None:
                await self._app(scope, receive, send)
            elif scope["type"] == "websocket":
                await WebSocket(scope, receive, send).close(1008, fault)
            else:
                await refusal(403, jsonrpc.INVALID_REQUEST, fault)(scope, receive, send)
        except Exception:
            logger.exception("a request could not be answered")
            raise

    def _fault(self, connection: HTTPConnection) -> str | None:
        host = _name_of(connection.headers.get("host", ""))
        if host not in self._hosts and not _is_address(host):
            return f"this node is not called {host[:64]!r}: use its IP address, or name it among `hosts` in [rpc]"
        origin = connection.headers.get("origin")
        if origin is not None and origin not in self._origins and "*" not in self._origins:
            return f"pages of {origin[:64]!r} may not ask this node: name them among `origins` in [rpc]"
        return None


def client_of(connection: HTTPConnection) -> str:
    """The IP address that asks."""
    return connection.client.host if connection.client else "?"


def is_loopback(client: str) -> bool:
    """Whether it is this machine that asks."""
    return _is_address(client) and ip_address(client).is_loopback


def refusal(status: int, code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An HTTP status, and the reason as JSON-RPC tells it."""
    text = jsonrpc.failure(None, RpcError(code, message))
    return Response(text, status, headers, media_type="application/json")


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
