"""A ledger of one process that decides a block as soon as a transaction waits, and serves JSON-RPC in three ways."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from web3 import AsyncHTTPProvider, AsyncWeb3

from swarm.config import RpcConfig
from swarm.encoding import keccak256
from swarm.ledger.client import Contracts
from swarm.ledger.ledger import Ledger
from swarm.ledger.line import line_to
from swarm.ledger.provider import LedgerProvider
from swarm.ledger.rpc import Rpc, RpcError
from swarm.ledger.web import Web
from swarm.ledger.web_server import Server
from tests.ledger.world import decide, now_ms, open_ledger

OPEN_RPC = RpcConfig("127.0.0.1", 0, requests_s=1_000_000)
"""A port of its own, and no client is too fast."""


class Served:
    """The ledger, its JSON-RPC, and who decides its blocks."""

    def __init__(self, folder: Path, members: int = 4) -> None:
        self.ledger: Ledger = open_ledger(folder, members)
        self.rpc = Rpc(self.ledger, self.take)
        self.asleep = False
        """True: no block is decided."""
        self.ahead_ms = 0
        """How far its clock is ahead of the last block's."""
        self.sent: list[bytes] = []
        self.asked: list[str] = []
        self._block = asyncio.Event()

    def take(self, raw: bytes) -> None:
        self.sent.append(raw)
        self.ledger.add_transaction(raw)
        asyncio.get_running_loop().call_soon(self.decide)

    def decide(self) -> None:
        """One block of all that waits."""
        if self.asleep:
            return
        payload = self.ledger.build(now_ms(self.ledger) + self.ahead_ms, self.ledger.proposers()[0])
        self.ahead_ms = 0
        if payload is not None:
            decide(self.ledger, payload)
            self.announce()

    def announce(self) -> None:
        """There is another block."""
        block, self._block = self._block, asyncio.Event()
        block.set()

    async def next_block(self) -> None:
        await self._block.wait()

    def wake(self) -> None:
        self.asleep = False
        self.decide()

    def contracts(self, *, hooked: bool = True) -> Contracts:
        """A client in this process."""
        return Contracts(AsyncWeb3(LedgerProvider(self.rpc)), on_block=self.next_block if hooked else None)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request["method"])
        envelope = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            return {**envelope, "result": self.rpc.handle(request["method"], request["params"])}
        except RpcError as error:
            return {**envelope, "error": error.as_json()}

    @asynccontextmanager
    async def listening(self, config: RpcConfig = OPEN_RPC) -> AsyncIterator[str]:
        """The URL at which a node's own server answers for this ledger."""
        web = Web(self.ledger, config, self.take, clock=time.monotonic)
        self.ledger.on_waiting = web.on_waiting
        server = Server(web, self.next_block)
        await server.start()
        try:
            yield server.url
        finally:
            await server.close()

    @asynccontextmanager
    async def over_http(self) -> AsyncIterator[Contracts]:
        """A client over HTTP."""
        async with self.listening() as url:
            provider = AsyncHTTPProvider(url)
            try:
                yield Contracts(AsyncWeb3(provider))
            finally:
                await provider.disconnect()

    @asynccontextmanager
    async def over_socket(self, path: Path) -> AsyncIterator[Contracts]:
        """A client over a Unix socket, one JSON object a line."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(json.dumps(self.answer(json.loads(line))).encode() + b"\n")
                await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(serve, path)
        try:
            async with line_to(path) as line:
                yield Contracts(line)
        finally:
            server.close()

    def close(self) -> None:
        self.ledger.close()


def transaction_hash(raw: bytes) -> bytes:
    """The hash that a receipt names."""
    return keccak256(raw)
