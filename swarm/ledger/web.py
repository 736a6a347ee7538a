"""The ledger's JSON-RPC for strangers: an ASGI app that answers HTTP and WebSocket at `/` and bounds what each costs.

Ethereum's methods are `rpc`'s, the envelope `jsonrpc`'s, sockets `web_server`'s; who may ask, and how often, is
`web_guard`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from swarm.config import RpcConfig
from swarm.encoding import Digest, from_hex
from swarm.errors import StorageError
from swarm.ledger import jsonrpc
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import Limits, Rpc, RpcError, answered
from swarm.ledger.rpc_news import Arrivals, Filters, Subscriptions
from swarm.ledger.web_guard import Buckets, Guard, client_of, refusal
from swarm.ledger.web_metrics import MetricsPage

logger = logging.getLogger(__name__)

ANSWER_MAX_BYTES = 32 << 20
"""A whole block with its transactions has at most half of it."""
BODY_S = 20.0
"""How long a request's body may take to arrive."""
SENT_S = 2.0
"""How long the answer to a transaction over HTTP waits for its block."""


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
        self.metrics = MetricsPage(config, self._buckets, clock)
        routes = [
            Route("/", self._post, methods=["POST"]),
            Route("/metrics", self.metrics.answer, methods=["GET"]),
            WebSocketRoute("/", self._websocket),
        ]
        cors = Middleware(
            CORSMiddleware, allow_origins=config.origins, allow_methods=["POST"], allow_headers=["content-type"]
        )
        app = Starlette(
            routes=routes, middleware=[cors] if config.origins else [], exception_handlers={HTTPException: _elsewhere}
        )
        self.app: ASGIApp = Guard(app, config)

    @property
    def shows(self) -> str:
        """What whoever reaches it reads."""
        return "the whole ledger"

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

    async def _post(self, request: Request) -> Response:
        client = client_of(request)
        if refused := self._buckets.refused(client, self._clock()):
            return refused
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body(request)
        except TimeoutError:
            return refusal(408, jsonrpc.INVALID_REQUEST, f"the request had not arrived after {BODY_S:.0f} s", _CLOSE)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            most = self.config.body_max_bytes
            return refusal(
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
        client = client_of(websocket)
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
            answer = self._answer_one(items, client, subscriptions)
            if subscriptions is None:
                await self._decided([answer] if _sends(items) else [])
            return answer
        if not 1 <= len(items) <= self.config.batch_max:
            self._buckets.spend(client, 1, self._clock())
            most = f"a batch has 1 to {self.config.batch_max} requests, this one {len(items)}: send fewer at a time"
            return jsonrpc.failure(None, RpcError(jsonrpc.INVALID_REQUEST, most))
        answers, sent = list[str](), list[str]()
        size = 0
        for item in items:
            wait_s = self._buckets.wait_s(client, self._clock())
            if wait_s:
                late = self._buckets.too_often(client, wait_s)
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
                sent += [answer] if _sends(item) else []
        if subscriptions is None:
            await self._decided(sent)
        return f"[{','.join(answers)}]" if answers else ""

    async def _decided(self, answers: Sequence[str]) -> None:
        """Wait a little for the blocks of transactions that were taken.

        Without transactions there are no blocks. A client that looks for a receipt, finds none and then looks again
        with every new block (ethers) would wait for ever, had its own block come in between.
        """
        told = [json.loads(answer).get("result") for answer in answers if answer]
        taken = [from_hex(digest) for digest in told if digest]
        try:
            async with asyncio.timeout(SENT_S):
                while not all(self._ledger.transaction(digest) for digest in taken):
                    await self._happened.wait()
        except (TimeoutError, StorageError):
            logger.debug("height %d: transactions sent by HTTP still wait", self._ledger.head.number)

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
        self._buckets.spend_time(client, now_s - begun_s, now_s)
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


_CLOSE = {"connection": "close"}


def _sends(item: Any) -> bool:
    return isinstance(item, dict) and item.get("method") == "eth_sendRawTransaction"


def _too_large() -> RpcError:
    return RpcError(
        jsonrpc.ANSWER_TOO_LARGE, f"the answer has more than {ANSWER_MAX_BYTES} bytes: ask for less at a time"
    )


def _elsewhere(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return refusal(
        status, jsonrpc.INVALID_REQUEST, "this is Ethereum JSON-RPC: POST to /, or open a WebSocket on /", _CLOSE
    )
