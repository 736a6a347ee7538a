"""Speaks to a site's running node over its Unix socket, as `swarm.node.control` serves it."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any

from swarm.config import SiteConfig
from swarm.errors import ConfigError, RejectedError, StorageError, SwarmError, UnavailableError

ANSWER_MAX_BYTES = 64 << 20
"""One answer is one line; the logs of a long run are the longest."""

_KINDS: dict[str, type[SwarmError]] = {
    kind.__name__: kind for kind in (ConfigError, RejectedError, StorageError, UnavailableError)
}


class NodeClient:
    """One connection to a site's node: `async with NodeClient(site) as node: await node.call("swarm_status")`."""

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._number = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> NodeClient:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._site.socket, limit=ANSWER_MAX_BYTES)
        except OSError as error:
            raise UnavailableError(
                f"no node of {self._site.name} runs on this machine; start it with `swarm node {self._site.path}`"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    async def call(self, method: str, *, timeout_s: float = 60.0, **params: Any) -> Any:
        """The node's answer.

        Raises:
            SwarmError: of the node's kind and in its words; UnavailableError where it stopped or is silent.
        """
        assert self._reader is not None, "enter the client first"
        assert self._writer is not None
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        try:
            self._writer.write(json.dumps(request).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                line = await self._reader.readline()
        except TimeoutError as error:
            raise UnavailableError(f"{self._site.name}'s node has not answered within {timeout_s:g} s") from error
        except (OSError, ValueError) as error:
            raise UnavailableError(f"{self._site.name}'s node hung up: {error}") from error
        if not line.endswith(b"\n"):
            raise UnavailableError(f"{self._site.name}'s node stopped before it answered")
        answer = json.loads(line)
        if "error" in answer:
            data = answer["error"].get("data")
            kind = _KINDS.get(data.get("kind", "")) if isinstance(data, dict) else None
            raise (kind or UnavailableError)(answer["error"]["message"])
        return answer["result"]


async def runs(site: SiteConfig) -> bool:
    """Whether a node of this site answers on its socket."""
    try:
        async with NodeClient(site) as node:
            await node.call("swarm_status", timeout_s=10.0)
    except UnavailableError:
        return False
    return True
