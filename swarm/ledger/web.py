"""The ledger's JSON-RPC for strangers: an ASGI app that answers HTTP and WebSocket at `/` and bounds what each costs.

Ethereum's methods are `rpc`'s, the envelope `jsonrpc`'s, sockets `web_server`'s. Who may ask: whoever reaches the port,
except web pages of origins that the site does not name.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from swarm.config import RpcConfig
from swarm.encoding import Digest
from swarm.errors import StorageError
from swarm.ledger import jsonrpc
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import Limits, Rpc, RpcError, answered
from swarm.ledger.rpc_news import Arrivals, Filters, Subscriptions

logger = logging.getLogger(__name__)

ANSWER_MAX_BYTES = 32 << 20
"""A whole block with its transactions has at most half of it."""
BODY_S = 20.0
"""How long a request's body may take to arrive."""
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


class Web:
    """Serves one ledger. `notify` and `on_transaction` tell it what happened; it runs on the node's event loop.

    Args:
        clock: seconds that only go up.
        on_transaction, height_seen, peers: see `Rpc`.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: RpcConfig,
        on_transaction: Callable[[bytes], object],
        *,
        clock: Callable[[], float],
        height_seen: Callable[[], int] = lambda: 0,
        peers: Callable[[], int] = lambda: 0,
    ) -> None:
        self.config = config
        self._ledger = ledger
        self._clock = clock
        limits = Limits(config.log_blocks_max, config.logs_max, config.call_gas)
        self._rpc = Rpc(ledger, on_transaction, limits=limits, height_seen=height_seen, peers=peers)
        self._arrivals = Arrivals()
        self._filters = Filters(ledger, self._rpc, self._arrivals)
        self._buckets = Buckets(config.requests_s)
        self._happened = asyncio.Event()
        self.metrics: Callable[[], bytes] | None = None
        """What `/metrics` answers, in Prometheus's text format; None: nothing."""
        routes = [
            Route("/", self._post, methods=["POST"]),
            Route("/metrics", self._measured, methods=["GET"]),
            WebSocketRoute("/", self._websocket),
        ]
        cors = Middleware(
            CORSMiddleware, allow_origins=config.origins, allow_methods=["POST"], allow_headers=["content-type"]
        )
        app = Starlette(
            routes=routes, middleware=[cors] if config.origins else [], exception_handlers={HTTPException: _elsewhere}
        )
        self.app: ASGIApp = Guard(app, config)

    # --- what happened

    def notify(self) -> None:
        """There is a block, or a transaction waits: whoever subscribed is told."""
        happened, self._happened = self._happened, asyncio.Event()
        happened.set()

    def on_waiting(self, digest: Digest) -> None:
        """A transaction came to wait."""
        self._arrivals.add(digest)
        self.notify()

    # --- HTTP

    async def _measured(self, request: Request) -> Response:
        client = _client(request)
        if not (self.config.metrics or _is_loopback(client)):
            return Response("metrics are for this machine: `metrics = true` in [rpc] shows them to others\n", 403)
        if self.metrics is None:
            raise HTTPException(404)
        if refusal := self._refused(client):
            return refusal
        begun_s = self._clock()
        text = self.metrics()
        now_s = self._clock()
        self._buckets.spend(client, max(1.0, (now_s - begun_s) / COST_S), now_s)
        return Response(text, media_type="text/plain; version=0.0.4")

    def _refused(self, client: str) -> Response | None:
        wait_s = self._buckets.wait_s(client, self._clock())
        if not wait_s:
            return None
        retry = {"retry-after": str(int(wait_s) + 1)}
        return _refusal(429, jsonrpc.LIMIT_EXCEEDED, self._too_often(client, wait_s), retry)

    async def _post(self, request: Request) -> Response:
        client = _client(request)
        if refusal := self._refused(client):
            return refusal
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body(request)
        except TimeoutError:
            return _refusal(408, jsonrpc.INVALID_REQUEST, f"the request had not arrived after {BODY_S:.0f} s", _CLOSE)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            most = self.config.body_max_bytes
            return _refusal(
                413, jsonrpc.INVALID_REQUEST, f"a request has at most {most} bytes: send less at a time", _CLOSE
            )
        answer = await self.answer(body, client, None)
        return Response(answer, media_type="application/json") if answer else Response(status_code=204)

    async def _body(self, request: Request) -> bytes | None:
        """The request's body, None as soon as it is known to be too long."""
        told = request.headers.get("content-length", "0")
        if not told.isdigit() or int(told) > self.config.body_max_bytes:
            return None
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.config.body_max_bytes:
                return None
        return bytes(body)

    # --- WebSocket

    async def _websocket(self, websocket: WebSocket) -> None:
        await websocket.accept()
        # Answers and news share the connection: one at a time, and an id before the news it is for.
        turn = asyncio.Lock()
        subscriptions = Subscriptions(self._ledger, self._arrivals, self.config.subscriptions_max)
        tasks = [
            asyncio.create_task(self._converse(websocket, subscriptions, turn)),
            asyncio.create_task(self._tell(websocket, subscriptions, turn)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect):
                raise end

    async def _converse(self, websocket: WebSocket, subscriptions: Subscriptions, turn: asyncio.Lock) -> None:
        client = _client(websocket)
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._allowed(client)
            body = message.get("text") or message.get("bytes") or b""
            async with turn:
                answer = await self.answer(body, client, subscriptions)
                if answer:
                    await websocket.send_text(answer)

    async def _allowed(self, client: str) -> None:
        """Not refused but made to wait: nothing more is read from this connection meanwhile."""
        while True:
            wait_s = self._buckets.wait_s(client, self._clock())
            if not wait_s:
                return
            await asyncio.sleep(wait_s)

    async def _tell(self, websocket: WebSocket, subscriptions: Subscriptions, turn: asyncio.Lock) -> None:
        while True:
            happened = self._happened
            for number, news in subscriptions.news():
                async with turn:
                    await websocket.send_text(jsonrpc.notification(number, news))
            await happened.wait()

    # --- answers

    async def answer(self, body: bytes | str, client: str, subscriptions: Subscriptions | None) -> str:
        """The text of the answer to one body, empty where nothing is asked for."""
        try:
            items = jsonrpc.read(body)
        except RpcError as error:
            self._buckets.spend(client, 1, self._clock())
            return jsonrpc.failure(None, error)
        if not isinstance(items, list):
            return self._answer_one(items, client, subscriptions)
        if not 1 <= len(items) <= self.config.batch_max:
            self._buckets.spend(client, 1, self._clock())
            most = f"a batch has 1 to {self.config.batch_max} requests, this one {len(items)}: send fewer at a time"
            return jsonrpc.failure(None, RpcError(jsonrpc.INVALID_REQUEST, most))
        answers: list[str] = []
        size = 0
        for item in items:
            wait_s = self._buckets.wait_s(client, self._clock())
            if wait_s:
                late = RpcError(jsonrpc.LIMIT_EXCEEDED, self._too_often(client, wait_s))
                answer = jsonrpc.failure(jsonrpc.id_of(item), late)
            elif size > ANSWER_MAX_BYTES:
                answer = jsonrpc.failure(jsonrpc.id_of(item), _too_large())
            else:
                answer = self._answer_one(item, client, subscriptions)
                # A batch must not keep the node from its votes.
                await asyncio.sleep(0)
            size += len(answer)
            if answer:
                answers.append(answer)
        return f"[{','.join(answers)}]" if answers else ""

    def _answer_one(self, item: Any, client: str, subscriptions: Subscriptions | None) -> str:
        begun_s = self._clock()
        try:
            asked = jsonrpc.request(item)
            answer = jsonrpc.result(asked.id, self._call(asked.method, asked.params, client, subscriptions))
            if len(answer) > ANSWER_MAX_BYTES:
                raise _too_large()
            if not asked.answered:
                answer = ""
        except RpcError as error:
            told = (
                isinstance(item, dict)
                and "method" in item
                and "id" not in item
                and error.code != jsonrpc.INVALID_REQUEST
            )
            answer = "" if told else jsonrpc.failure(jsonrpc.id_of(item), error)
        now_s = self._clock()
        self._buckets.spend(client, max(1.0, (now_s - begun_s) / COST_S), now_s)
        return answer

    def _call(self, method: str, params: Any, client: str, subscriptions: Subscriptions | None) -> Any:
        try:
            found = self._stateful(client, subscriptions).get(method)
            if found is not None:
                return answered(method, found, inspect.signature(found), params)
            if method in ("eth_subscribe", "eth_unsubscribe"):
                raise RpcError(-32601, f"{method} needs a WebSocket; over HTTP there is eth_newFilter")
            return self._rpc.handle(method, params)
        except RpcError:
            raise
        except StorageError as error:
            logger.error("height %d: %s asked for %s: %s", self._ledger.head.number, client, method, error)
            raise RpcError(jsonrpc.INTERNAL_ERROR, "this node cannot read its disk; its log says more") from error
        except RecursionError as error:
            raise RpcError(-32602, f"{method}: the parameters nest too deep") from error
        except Exception as error:
            logger.exception("height %d: %s asked for %s", self._ledger.head.number, client, method)
            raise RpcError(jsonrpc.INTERNAL_ERROR, "the node made a mistake; its log says more") from error

    def _stateful(self, client: str, subscriptions: Subscriptions | None) -> dict[str, Callable[..., Any]]:
        """The methods that remember who asked."""
        filters, now_s = self._filters, self._clock()

        def new(kind: str) -> Callable[..., str]:
            return lambda: filters.new(kind, {}, client=client, now_s=now_s)

        methods: dict[str, Callable[..., Any]] = {
            "eth_newFilter": lambda wanted: filters.new("logs", wanted, client=client, now_s=now_s),
            "eth_newBlockFilter": new("heads"),
            "eth_newPendingTransactionFilter": new("pending"),
            "eth_getFilterChanges": lambda number: filters.changes(number, now_s),
            "eth_getFilterLogs": lambda number: filters.logs(number, now_s),
            "eth_uninstallFilter": lambda number: filters.end(number, now_s),
        }
        if subscriptions is not None:
            methods |= {"eth_subscribe": subscriptions.new, "eth_unsubscribe": subscriptions.end}
        return methods

    def _too_often(self, client: str, wait_s: float) -> str:
        return f"{client} asked for more than {self.config.requests_s} requests a second: ask again in {wait_s:.1f} s"


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
                await _refusal(403, jsonrpc.INVALID_REQUEST, fault)(scope, receive, send)
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


_CLOSE = {"connection": "close"}


def _client(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "?"


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


def _is_loopback(client: str) -> bool:
    return _is_address(client) and ip_address(client).is_loopback


def _too_large() -> RpcError:
    return RpcError(
        jsonrpc.ANSWER_TOO_LARGE, f"the answer has more than {ANSWER_MAX_BYTES} bytes: ask for less at a time"
    )


def _refusal(status: int, code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    text = jsonrpc.failure(None, RpcError(code, message))
    return Response(text, status, headers, media_type="application/json")


def _elsewhere(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _refusal(
        status, jsonrpc.INVALID_REQUEST, "this is Ethereum JSON-RPC: POST to /, or open a WebSocket on /", _CLOSE
    )
