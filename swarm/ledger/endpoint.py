"""A node's JSON-RPC as this project uses it: calls answered or refused in plain words, transactions sent and awaited.

Everything that web3's providers raise is translated here, once. The provider is asked directly: web3's formatters
and middleware take half a millisecond a request, and a node asks at each block.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from eth_account import Account
from web3 import AsyncWeb3
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from swarm.encoding import Address, Digest, from_hex, to_hex
from swarm.errors import RejectedError, UnavailableError
from swarm.identity import Identity, checksum
from swarm.ledger.abi import reason

TRANSACTION_GAS = 20_000_000
"""What a transaction may burn. Gas is free; the contracts' calls use less than a hundredth of it."""
POLL_MIN_S = 0.01
POLL_MAX_S = 1.0
_NONCE_TRIES = 4
# What web3's providers raise where a node is away, slow, or no JSON-RPC speaks at its address.
_NO_ANSWER = (OSError, TimeoutError, aiohttp.ClientError, Web3Exception, json.JSONDecodeError, UnicodeDecodeError)
# Transactions whose fate this node has not seen. An identity has a few; more are forgotten, oldest first.
_UNSETTLED_MAX = 1024


@dataclass(frozen=True)
class Call:
    """A transaction that nobody has signed yet."""

    to: Address
    data: bytes
    what: str
    """For people: what it does, `submit to round 3 of run 1`."""


@dataclass(frozen=True)
class _Sent:
    raw: bytes
    hash: Digest


class Endpoint:
    """A node's JSON-RPC, over whatever provider `web3` has.

    Args:
        on_block: returns when the ledger has another block than when it was called. Where it is absent, receipts
            are polled for.
    """

    def __init__(self, web3: AsyncWeb3[Any], *, on_block: Callable[[], Awaitable[None]] | None = None) -> None:
        self._web3 = web3
        self._on_block = on_block
        self._chain_id: int | None = None
        self._locks: dict[Address, asyncio.Lock] = {}
        self._unsettled: OrderedDict[tuple[Address, Address, bytes], _Sent] = OrderedDict()

    async def request(self, method: str, *params: object) -> Any:
        """The result of a JSON-RPC request.

        Raises:
            RejectedError: the node answered with an error; its reason.
            UnavailableError: no answer came.
        """
        try:
            response = await self._web3.provider.make_request(RPCEndpoint(method), list(params))
        except _NO_ANSWER as error:
            raise UnavailableError(f"the ledger does not answer {method}: {type(error).__name__} {error}") from error
        refusal: object = response.get("error")
        if refusal is None:
            return response.get("result")
        if not isinstance(refusal, Mapping):
            raise RejectedError(str(refusal))
        data = refusal.get("data")
        if isinstance(data, str) and data.startswith("0x"):
            raise RejectedError(reason(from_hex(data)))
        raise RejectedError(str(refusal.get("message", refusal)))

    async def call(self, to: Address, data: bytes, *, block: str = "latest", sender: Address | None = None) -> bytes:
        """What a contract answers; RejectedError where it refuses."""
        message = {"to": to_hex(to), "data": to_hex(data)}
        if sender is not None:
            message["from"] = to_hex(sender)
        return from_hex(await self.request("eth_call", message, block))

    async def transact(self, identity: Identity, call: Call, *, timeout_s: float) -> Mapping[str, Any]:
        """The JSON-RPC receipt of a call that `identity` signs, once it is in a block.

        The same call again, while the first is still on its way, waits for the first: a sleeping ledger does not
        fill with copies.

        Raises:
            RejectedError: the ledger refused it, and why.
            UnavailableError: it was not in a block in time. It may still come.
        """
        try:
            async with asyncio.timeout(timeout_s):
                sent = await self._send(identity, call)
                receipt = await self._receipt(sent.hash)
        except TimeoutError as error:
            raise UnavailableError(
                f"{call.what}: not in a block after {timeout_s:g} s; are enough validators up?"
            ) from error
        self._unsettled.pop((identity.address, call.to, call.data), None)
        if int(receipt["status"], 16) != 1:
            raise RejectedError(f"{call.what}: {await self._refusal(identity.address, call, receipt)}")
        return receipt

    async def _send(self, identity: Identity, call: Call) -> _Sent:
        key = (identity.address, call.to, call.data)
        # One after the other, or two would take the same nonce.
        async with self._locks.setdefault(identity.address, asyncio.Lock()):
            earlier = self._unsettled.pop(key, None)
            if earlier is not None and await self._still_pending(earlier):
                self._unsettled[key] = earlier
                return earlier
            if self._chain_id is None:
                self._chain_id = int(await self.request("eth_chainId"), 16)
            for tries in range(1, _NONCE_TRIES + 1):
                nonce = int(await self.request("eth_getTransactionCount", to_hex(identity.address), "pending"), 16)
                sent = _sign(identity, call, nonce, self._chain_id)
                try:
                    await self.request("eth_sendRawTransaction", to_hex(sent.raw))
                except RejectedError as error:
                    # Another process with the same key took the nonce meanwhile.
                    if "nonce" in str(error) and tries < _NONCE_TRIES:
                        continue
                    raise RejectedError(f"{call.what}: {error}") from error
                break
            self._unsettled[key] = sent
            if len(self._unsettled) > _UNSETTLED_MAX:
                self._unsettled.popitem(last=False)
            return sent

    async def _still_pending(self, sent: _Sent) -> bool:
        if await self.request("eth_getTransactionReceipt", to_hex(sent.hash)) is not None:
            return False
        try:
            # The node may have forgotten it, if it restarted.
            await self.request("eth_sendRawTransaction", to_hex(sent.raw))
        except RejectedError as error:
            return "known" in str(error)
        return True

    async def _receipt(self, transaction: Digest) -> Mapping[str, Any]:
        delay_s = POLL_MIN_S
        while True:
            # Armed before the question, so that a block between the question and the wait is not missed.
            block = asyncio.ensure_future(self._on_block()) if self._on_block is not None else None
            try:
                await asyncio.sleep(0)
                found: Mapping[str, Any] | None = await self.request("eth_getTransactionReceipt", to_hex(transaction))
                if found is not None:
                    return found
                if block is None:
                    await asyncio.sleep(delay_s)
                    delay_s = min(1.5 * delay_s, POLL_MAX_S)
                else:
                    await asyncio.wait({block}, timeout=POLL_MAX_S)
            finally:
                if block is not None:
                    block.cancel()

    async def _refusal(self, sender: Address, call: Call, receipt: Mapping[str, Any]) -> str:
        told = receipt.get("revertReason")  # Hyperledger Besu keeps it
        if isinstance(told, str) and told.startswith("0x"):
            return reason(from_hex(told))
        try:
            await self.call(call.to, call.data, block=receipt["blockNumber"], sender=sender)
        except RejectedError as error:
            return str(error)
        return f"the ledger refused it in block {int(receipt['blockNumber'], 16)}, and would take it now: try again"


def _sign(identity: Identity, call: Call, nonce: int, chain_id: int) -> _Sent:
    signed = Account.sign_transaction(
        {
            "chainId": chain_id,
            "nonce": nonce,
            "gas": TRANSACTION_GAS,
            "gasPrice": 0,
            "to": checksum(call.to),
            "value": 0,
            "data": to_hex(call.data),
        },
        identity.secret,
    )
    return _Sent(bytes(signed.raw_transaction), bytes(signed.hash))
