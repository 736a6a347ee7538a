"""A node's Unix socket as a provider of JSON-RPC: one line asks, one line answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ANSWER_MAX_BYTES = 64 << 20
"""The events of 5,000 busy blocks stay far below; a line without an end must not fill memory."""


class LineProvider:
    """Where `Contracts` takes an `AsyncWeb3`. Requests wait for each other; made by `line_to`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._number = 0

    @property
    def provider(self) -> LineProvider:
        """Itself."""
        return self

    async def make_request(self, method: str, params: Any, /) -> Any:
        """The answer to this request; what else the node tells on the line is passed over.

        Raises:
            ConnectionError: the node closed the line, or its answer is longer than any that a node gives.
        """
        async with self._lock:
            self._number += 1
            request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
            while True:
                answer = json.loads(await self._line())
                if isinstance(answer, dict) and answer.get("id") == self._number:
                    return answer

    async def _line(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the node closed the line") from error
        except asyncio.LimitOverrunError as error:
            raise ConnectionAbortedError(f"an answer of more than {ANSWER_MAX_BYTES} bytes") from error


@asynccontextmanager
async def line_to(path: Path) -> AsyncIterator[LineProvider]:
    """A line to the node that listens there; OSError where none does."""
    reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_MAX_BYTES)
    try:
        yield LineProvider(reader, writer)
    finally:
        writer.close()
