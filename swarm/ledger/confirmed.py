"""A chain that may take its last blocks back, seen so that it never does: what is not deep enough is not there yet.

Everything above (the typed client, duties, the command line) asks for the `latest` block and gets the last one that
counts. Only what a transaction needs to be sent (its nonce, gas and fee) is asked of the chain's real end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from web3.providers.async_base import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

# Where a method's block stands among its parameters.
_BLOCK_AT = {
    "eth_call": 1,
    "eth_getBalance": 1,
    "eth_getCode": 1,
    "eth_getTransactionCount": 1,
    "eth_getStorageAt": 2,
    "eth_getProof": 2,
    "eth_getBlockByNumber": 0,
    "eth_getBlockReceipts": 0,
    "eth_getBlockTransactionCountByNumber": 0,
}
_LAST = ("latest", "safe", "finalized", None)


class Confirmed(AsyncBaseProvider):
    """A web3 provider over another one; `height` is the last block that counts, moved by whoever follows the chain."""

    def __init__(self, source: AsyncBaseProvider, height: int = 0) -> None:
        super().__init__()
        self._source = source
        self.height = height

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The answer as of the last block that counts."""
        if method == "eth_blockNumber":
            return {"jsonrpc": "2.0", "id": 1, "result": hex(self.height)}
        response = await self._source.make_request(method, self._params(method, list(params)))
        found: Any = response.get("result")
        if method == "eth_getTransactionReceipt" and isinstance(found, Mapping):
            number = found.get("blockNumber")
            if number is None or int(number, 16) > self.height:
                return {"jsonrpc": "2.0", "id": 1, "result": None}
        return response

    async def is_connected(self, show_traceback: bool = False) -> bool:
        """Whether the chain's node answers."""
        return await self._source.is_connected(show_traceback)

    def _params(self, method: str, params: list[Any]) -> list[Any]:
        if method == "eth_getLogs" and params and isinstance(params[0], Mapping) and "blockHash" not in params[0]:
            wanted = dict(params[0])
            for end in ("fromBlock", "toBlock"):
                if wanted.get(end) in _LAST:
                    wanted[end] = hex(self.height)
            wanted["toBlock"] = hex(min(int(wanted["toBlock"], 16), self.height))
            return [wanted, *params[1:]]
        place = _BLOCK_AT.get(method)
        if place is None or len(params) < place:
            return params
        params += [None] * (place + 1 - len(params))
        if params[place] is None or params[place] in _LAST:
            params[place] = hex(self.height)
        return params
