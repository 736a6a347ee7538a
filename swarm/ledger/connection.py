"""A link to somebody else's node: JSON-RPC over HTTP or WebSocket that survives what links suffer.

web3's own WebSocket provider waits for an answer in a loop that takes a whole core, does not come back after a lost
connection, and like its HTTP provider reads answers of any length; so aiohttp is used directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
from web3.providers.async_base import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm.config import check_url

logger = logging.getLogger(__name__)

ANSWER_MAX_BYTES = 32 << 20
"""The logs of five thousand blocks are the longest; where they are longer, fewer are asked for."""
ANSWER_S = 20.0
_TOO_LONG = {"code": -32005, "message": f"the answer is longer than {ANSWER_MAX_BYTES} bytes"}


def shown(url: str) -> str:
    """The address without what may be a secret in it: user, password, path and query."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "no address"


class Connection(AsyncBaseProvider):
    """A web3 provider for one address; connects when it is first asked, and again after each loss.

    Args:
        on_head: called when the node tells by itself that there is a new block (WebSocket only).
    """

    def __init__(self, url: str, *, on_head: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        check_url(url, "the ledger's endpoint")
        self._url = url
        self._on_head = on_head
        self._number = 0
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connecting = asyncio.Lock()
        self._listener: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[RPCResponse]] = {}

    def __str__(self) -> str:
        return shown(self._url)

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The node's answer.

        Raises:
            OSError, TimeoutError, aiohttp.ClientError, json.JSONDecodeError: there is none.
        """
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        async with asyncio.timeout(ANSWER_S):
            if urlsplit(self._url).scheme in ("ws", "wss"):
                return await self._over_socket(request)
            return await self._over_http(request)

    async def is_connected(self, show_traceback: bool = False) -> bool:
        """Whether the node answers."""
        try:
            return "result" in await self.make_request(RPCEndpoint("eth_chainId"), [])
        except (OSError, TimeoutError, aiohttp.ClientError, json.JSONDecodeError):
            return False

    async def disconnect(self) -> None:
        """Hang up; whoever waits for an answer gets a ConnectionError."""
        await self._drop()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession()
        return self._session

    # --- HTTP

    async def _over_http(self, request: dict[str, Any]) -> RPCResponse:
        async with self._open().post(self._url, json=request, allow_redirects=False) as response:
            body = bytearray()
            async for part in response.content.iter_any():
                body += part
                if len(body) > ANSWER_MAX_BYTES:
                    return {"jsonrpc": "2.0", "id": request["id"], "error": _TOO_LONG}  # type: ignore[typeddict-item]
            answer = _answer(bytes(body))
            if answer is None:
                raise ConnectionError(f"{self} answers with HTTP status {response.status} and no JSON-RPC")
            return answer

    # --- WebSocket

    async def _over_socket(self, request: dict[str, Any]) -> RPCResponse:
        socket = await self._connected()
        answer: asyncio.Future[RPCResponse] = asyncio.get_running_loop().create_future()
        self._waiting[request["id"]] = answer
        try:
            await socket.send_str(json.dumps(request))
            return await answer
        finally:
            self._waiting.pop(request["id"], None)

    async def _connected(self) -> aiohttp.ClientWebSocketResponse:
        async with self._connecting:
            if self._socket is None or self._socket.closed:
                await self._drop()
                self._socket = await self._open().ws_connect(
                    self._url, max_msg_size=ANSWER_MAX_BYTES, heartbeat=ANSWER_S, autoclose=True
                )
                self._listener = asyncio.get_running_loop().create_task(self._read(self._socket))
                self._number += 1
                subscribe = {"jsonrpc": "2.0", "id": self._number, "method": "eth_subscribe", "params": ["newHeads"]}
                await self._socket.send_str(json.dumps(subscribe))
            return self._socket

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Hand out answers until the link ends; whoever still waits then is told."""
        try:
            async for message in socket:
                if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    continue
                data = message.data.encode() if isinstance(message.data, str) else message.data
                answer = _answer(data)
                if answer is None:
                    logger.debug("%s sent what is no JSON-RPC", self)
                    continue
                number: object = answer.get("id")
                if answer.get("method") == "eth_subscription":
                    self._on_head()
                elif isinstance(number, int) and number in self._waiting and not self._waiting[number].done():
                    self._waiting[number].set_result(answer)
        finally:
            self._lost()

    def _lost(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError(f"the connection to {self} is lost"))

    async def _drop(self) -> None:
        listener, self._listener = self._listener, None
        socket, self._socket = self._socket, None
        if listener is not None:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
        if socket is not None:
            with contextlib.suppress(OSError, aiohttp.ClientError):
                await socket.close()


def _answer(data: bytes) -> RPCResponse | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast(RPCResponse, found) if isinstance(found, dict) else None
