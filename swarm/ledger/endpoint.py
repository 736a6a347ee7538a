"""A node's JSON-RPC as this project uses it: calls answered or refused in plain words, transactions sent and awaited.

Everything that web3's providers raise is translated here, once. The provider is asked directly: web3's formatters
and middleware take half a millisecond a request, and a node asks at each block.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from swarm.encoding import Address, Digest, from_hex, to_hex
from swarm.errors import RejectedError, UnavailableError
from swarm.identity import Identity, checksum
from swarm.ledger.abi import reason
from swarm.ledger.signing import Terms, signed

logger = logging.getLogger(__name__)

TRANSACTION_GAS = 20_000_000
"""What a transaction may burn where gas is free; the contracts' calls use less than a hundredth of it."""
EXTERNAL_GAS_MAX = 1 << 24
"""What a transaction may ask for elsewhere (EIP-7825, since Osaka)."""
TIMED_GAS = 1_000_000
"""For a call whose answer depends on the time of its block, where an estimate at the last one's refuses."""
POLL_MIN_S = 0.01
POLL_MAX_S = 1.0
RESEND_S = 3.0
"""How often a transaction that no block took is looked for, and sent again where the node has forgotten it."""
REPRICE_S = 20.0
"""After so long without a block the fee is raised to the market's, and by an eighth at least: nodes ask a tenth."""
_NONCE_TRIES = 4
# Transactions whose fate this node has not seen. An identity has a few; more are forgotten, oldest first.
_UNSETTLED_MAX = 1024
# How nodes say that they have a transaction already: geth, Besu, anvil, and this project's ledger.
_KNOWN = ("already known", "known transaction", "already imported", "is known")


class Provider(Protocol):
    """Answers JSON-RPC requests; web3's providers do."""

    async def make_request(self, method: Any, params: Any, /) -> Any:
        """The response object, with `result` or `error`."""
        ...


class Web3(Protocol):
    """Who has a provider: an `AsyncWeb3`, or the embedded ledger without one, which takes a second to load."""

    @property
    def provider(self) -> Provider:
        """Where requests go."""
        ...


def no_answer() -> tuple[type[BaseException], ...]:
    """What providers raise where a node is away, slow, or no JSON-RPC speaks at its address.

    The errors of libraries that this process has not loaded, nobody raises in it.
    """
    others = [("aiohttp", "ClientError"), ("web3.exceptions", "Web3Exception")]
    loaded = [getattr(sys.modules[module], name) for module, name in others if module in sys.modules]
    return (OSError, TimeoutError, json.JSONDecodeError, UnicodeDecodeError, *loaded)


@dataclass(frozen=True)
class Call:
    """A transaction that nobody has signed yet."""

    to: Address | None
    """None: it creates a contract."""
    data: bytes
    what: str
    """For people: what it does, `submit to round 3 of run 1`."""
    timed: bool = False
    """What becomes of it depends on the time of the block that takes it."""


@dataclass(frozen=True)
class Fee:
    """What a transaction offers for a unit of gas, in wei."""

    most: int
    tip: int | None
    """Of it to the block's proposer (EIP-1559); None: the plain price of networks without a fee market."""

    def raised(self, market: Fee) -> Fee:
        """The market's, and so much more than this one that nodes take it in this one's place."""
        tip = market.tip if self.tip is None or market.tip is None else max(market.tip, self.tip + self.tip // 8 + 1)
        return Fee(max(market.most, self.most + self.most // 8 + 1), tip)


@dataclass(frozen=True)
class _Sent:
    raw: bytes
    hash: Digest


@dataclass
class _Flight:
    """A call on its way: transactions with one nonce, of which a chain takes one at most."""

    nonce: int
    gas: int
    fee: Fee
    priced_s: float
    """When, by the loop's clock."""
    sent: list[_Sent] = field(default_factory=list)


class Endpoint:
    """A node's JSON-RPC, over whatever provider `web3` has.

    Args:
        on_block: returns when the ledger has another block than when it was called. Where it is absent, receipts
            are polled for.
        free: gas costs nothing, as on the embedded ledger. Elsewhere gas is estimated, the network's fee is paid, and
            a link that is lost on the way is waited for.
    """

    def __init__(self, web3: Web3, *, on_block: Callable[[], Awaitable[None]] | None = None, free: bool = True) -> None:
        self._web3 = web3
        self._on_block = on_block
        self._free = free
        self._chain_id: int | None = None
        self._locks: dict[Address, asyncio.Lock] = {}
        self._flights: OrderedDict[tuple[Address, Address | None, bytes], _Flight] = OrderedDict()

    async def request(self, method: str, *params: object) -> Any:
        """The result of a JSON-RPC request.

        Raises:
            RejectedError: the node answered with an error; its reason.
            UnavailableError: no answer came.
        """
        try:
            response = await self._web3.provider.make_request(method, list(params))
        except no_answer() as error:
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

    # --- sending

    async def transact(self, identity: Identity, call: Call, *, timeout_s: float) -> Mapping[str, Any]:
        """The JSON-RPC receipt of a call that `identity` signs, once it is in a block.

        The same call again, while the first is still on its way, waits for the first: a sleeping ledger does not
        fill with copies, and a link that breaks while a call is sent does not make two of it.

        Raises:
            RejectedError: the ledger refused it, and why.
            UnavailableError: it was not in a block in time. It may still come.
        """
        try:
            async with asyncio.timeout(timeout_s):
                flight = await self._take_off(identity, call)
                receipt = await self._landed(identity, call, flight)
        except TimeoutError as error:
            hint = "are enough validators up?" if self._free else "is the network busy, or its fee above the account's?"
            raise UnavailableError(f"{call.what}: not in a block after {timeout_s:g} s; {hint}") from error
        self._flights.pop((identity.address, call.to, call.data), None)
        if int(receipt["status"], 16) != 1:
            raise RejectedError(f"{call.what}: {await self._refusal(identity.address, call, receipt)}")
        return receipt

    async def _take_off(self, identity: Identity, call: Call) -> _Flight:
        """The flight of this call: the one that is under way, or a new one."""
        key = (identity.address, call.to, call.data)
        # One after the other, or two would take the same nonce.
        async with self._locks.setdefault(identity.address, asyncio.Lock()):
            earlier = self._flights.get(key)
            if earlier is not None and await self._still_pending(earlier):
                return earlier
            self._flights.pop(key, None)
            for tries in range(1, _NONCE_TRIES + 1):
                flight = await self._new_flight(identity, call)
                # Noted before it is sent: if the link breaks now, nobody knows whether the node has it.
                self._flights[key] = flight
                if len(self._flights) > _UNSETTLED_MAX:
                    self._flights.popitem(last=False)
                try:
                    await self._send(flight)
                except RejectedError as error:
                    self._flights.pop(key, None)
                    # Another process with the same key took the nonce meanwhile.
                    if "nonce" in str(error).lower() and tries < _NONCE_TRIES:
                        continue
                    raise RejectedError(f"{call.what}: {_in_words(error, identity)}") from error
                except UnavailableError as error:
                    if self._free:
                        raise
                    logger.info("%s: %s; it is sent again", call.what, error)
                return flight
        raise AssertionError("the last try returns or raises")

    async def _new_flight(self, identity: Identity, call: Call) -> _Flight:
        if self._chain_id is None:
            self._chain_id = int(await self.request("eth_chainId"), 16)
        gas, fee = await self._gas(identity, call), await self._fee()
        nonce = int(await self.request("eth_getTransactionCount", to_hex(identity.address), "pending"), 16)
        if not self._free:
            nonce = await self._free_nonce(identity.address, nonce)
        flight = _Flight(nonce, gas, fee, asyncio.get_running_loop().time())
        self._sign(identity, call, flight)
        return flight

    async def _free_nonce(self, sender: Address, nonce: int) -> int:
        """The first nonce from this one on that no flight has: a node may have forgotten what it was sent."""
        flights = {flight.nonce: flight for (whose, _, _), flight in self._flights.items() if whose == sender}
        while nonce in flights:
            try:
                await self._send(flights[nonce])
            except RejectedError:
                return nonce  # two transactions with one nonce do no harm: the chain takes one
            nonce += 1
        return nonce

    def _sign(self, identity: Identity, call: Call, flight: _Flight) -> None:
        assert self._chain_id is not None
        terms = Terms(self._chain_id, flight.nonce, flight.gas, flight.fee.most, flight.fee.tip)
        flight.sent.append(_Sent(*signed(identity, terms, call.to, call.data)))

    async def _send(self, flight: _Flight) -> None:
        """RejectedError where the node does not take it; that it has it already is no error."""
        try:
            await self.request("eth_sendRawTransaction", to_hex(flight.sent[-1].raw))
        except RejectedError as error:
            if not any(words in str(error).lower() for words in _KNOWN):
                raise

    async def _gas(self, identity: Identity, call: Call) -> int:
        """How much gas a call may burn; RejectedError where it would be refused now."""
        if self._free:
            return TRANSACTION_GAS
        message = {"from": to_hex(identity.address), "data": to_hex(call.data)}
        if call.to is not None:
            message["to"] = to_hex(call.to)
        try:
            estimate = int(await self.request("eth_estimateGas", message), 16)
        except RejectedError as error:
            if call.timed:
                return TIMED_GAS
            raise RejectedError(f"{call.what}: {_in_words(error, identity)}") from error
        # Others' calls in the same block may make it the one that closes a round.
        return max(estimate, min(estimate + estimate // 4 + 400_000, EXTERNAL_GAS_MAX))

    async def _fee(self) -> Fee:
        """What the network asks for gas now."""
        if self._free:
            return Fee(0, None)
        price = int(await self.request("eth_gasPrice"), 16)
        try:
            base = int((await self.request("eth_feeHistory", "0x1", "latest", []))["baseFeePerGas"][-1], 16)
            tip = int(await self.request("eth_maxPriorityFeePerGas"), 16)
        except (RejectedError, LookupError, TypeError):
            return Fee(price, None)
        if price == 0 and base == 0:
            return Fee(0, None)
        # The base fee at most doubles in six full blocks.
        return Fee(2 * base + tip, tip)

    # --- on the way

    async def _still_pending(self, flight: _Flight) -> bool:
        if await self._receipt(flight) is not None:
            return False
        try:
            # The node may have forgotten it, if it restarted.
            await self._send(flight)
        except RejectedError as error:
            # Another one with its nonce may still be taken back, where blocks can be.
            return not self._free and "nonce" in str(error).lower()
        return True

    async def _receipt(self, flight: _Flight) -> Mapping[str, Any] | None:
        for sent in reversed(flight.sent):
            found: Mapping[str, Any] | None = await self.request("eth_getTransactionReceipt", to_hex(sent.hash))
            if found is not None:
                return found
        return None

    async def _landed(self, identity: Identity, call: Call, flight: _Flight) -> Mapping[str, Any]:
        """The receipt of the flight's transaction, however often the link breaks or the node forgets it."""
        clock = asyncio.get_running_loop().time
        delay_s, looked_s = POLL_MIN_S, clock()
        while True:
            # Armed before the question, so that a block between the question and the wait is not missed.
            block = asyncio.ensure_future(self._on_block()) if self._on_block is not None else None
            try:
                await asyncio.sleep(0)
                found = await self._receipt(flight)
                if found is not None:
                    return found
                if not self._free and clock() >= looked_s + RESEND_S:
                    looked_s = clock()
                    await self._look_after(identity, call, flight)
            except UnavailableError as error:
                if self._free:
                    raise
                logger.debug("%s: %s", call.what, error)
            else:
                if block is not None:
                    await asyncio.wait({block}, timeout=POLL_MAX_S)
                    continue
            finally:
                if block is not None:
                    block.cancel()
            await asyncio.sleep(delay_s)
            delay_s = min(1.5 * delay_s, POLL_MAX_S)

    async def _look_after(self, identity: Identity, call: Call, flight: _Flight) -> None:
        """Send again what the node forgot, offer more for what no block takes, sign anew what can never be taken."""
        known = [await self.request("eth_getTransactionByHash", to_hex(sent.hash)) for sent in flight.sent]
        if any(one is not None and one.get("blockNumber") is not None for one in known):
            return  # in a block that does not count yet
        async with self._locks.setdefault(identity.address, asyncio.Lock()):
            spent = int(await self.request("eth_getTransactionCount", to_hex(identity.address), "latest"), 16)
            clock = asyncio.get_running_loop().time
            if spent > flight.nonce and await self._receipt(flight) is None:
                logger.info("%s: another transaction has its nonce %d; signed anew", call.what, flight.nonce)
                fresh = await self._new_flight(identity, call)
                flight.nonce, flight.gas, flight.fee, flight.sent = fresh.nonce, fresh.gas, fresh.fee, fresh.sent
                flight.priced_s = clock()
            elif clock() >= flight.priced_s + REPRICE_S and flight.fee.most > 0:
                flight.priced_s = clock()
                market = await self._fee()
                if market.most > flight.fee.most or (market.tip or 0) > (flight.fee.tip or 0):
                    flight.fee = flight.fee.raised(market)
                    self._sign(identity, call, flight)
            try:
                await self._send(flight)
            except RejectedError as error:
                logger.debug("%s: sent again: %s", call.what, error)

    async def _refusal(self, sender: Address, call: Call, receipt: Mapping[str, Any]) -> str:
        told = receipt.get("revertReason")  # Hyperledger Besu keeps it
        if isinstance(told, str) and told.startswith("0x"):
            return reason(from_hex(told))
        if call.to is None:
            return "the contract could not be created: out of gas, or its constructor refused"
        try:
            await self.call(call.to, call.data, block=receipt["blockNumber"], sender=sender)
        except RejectedError as error:
            return str(error)
        return f"the ledger refused it in block {int(receipt['blockNumber'], 16)}, and would take it now: try again"


def _in_words(error: RejectedError, identity: Identity) -> str:
    if "fund" in str(error).lower():
        return f"{checksum(identity.address)} cannot pay the network's fee: send it some of its currency ({error})"
    return str(error)
