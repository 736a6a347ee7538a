"""The embedded ledger for web3 itself: its readers, formatters and contracts over a ledger in the same process."""

from __future__ import annotations

from typing import Any, cast

from web3.providers.async_base import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm.ledger.rpc import Asked, Rpc


class LedgerProvider(AsyncBaseProvider):
    """A web3 provider. The node itself asks through `Asked`, and starts without web3."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__()
        self._asked = Asked(rpc)

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The answer; StorageError passes through."""
        return cast(RPCResponse, await self._asked.make_request(method, params))

    async def is_connected(self, show_traceback: bool = False) -> bool:
        """Always: it is in this process."""
        return True
