"""The ledger as Ethereum JSON-RPC: what web3, ethers, viem, cast and this project's own client ask for, and nothing
that changes it but `eth_sendRawTransaction`.

A decided block is final, so `latest`, `safe`, `finalized` and `pending` name the same block. Timestamps are
milliseconds. Gas is free. How answers are written is in `rpc_json`, what is new since the last question in `rpc_news`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.encoding import ZERO_ADDRESS, Address, Digest, from_hex, keccak256, to_hex
from swarm.errors import RejectedError
from swarm.identity import checksum
from swarm.ledger.abi import reason
from swarm.ledger.block import TRANSACTION_MAX_BYTES
from swarm.ledger.evm import CALL_GAS, TRANSACTION_GAS_MAX, Outcome
from swarm.ledger.history import Block
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc_json import (
    block_json,
    header_json,
    log_json,
    read_address,
    read_digest,
    read_quantity,
    read_slot,
    read_topic,
    receipt_json,
    transaction_json,
)

FEE_BLOCKS_MAX = 1024
PROOF_SLOTS_MAX = 256
LOG_VALUES_MAX = 256
"""Addresses and topics of one search: each is looked for in each block's filter."""
MESSAGE_MAX = 500
"""An error repeats what was wrong, but not a megabyte of it."""

_INVALID_PARAMS, _NO_METHOD, _REFUSED, _REVERTED = -32602, -32601, -32000, 3
_HEADS = ("latest", "safe", "finalized", "pending")
_PRECOMPILES = frozenset(number.to_bytes(20, "big") for number in range(1, 0x12))
_SIGNING = frozenset(
    {"eth_sendTransaction", "eth_sign", "eth_signTransaction", "eth_signTypedData_v4", "personal_sign"}
)


@dataclass(frozen=True)
class Limits:
    """How much one request may cost this node."""

    log_blocks_max: int = 10_000
    logs_max: int = 10_000
    """A block's logs are read from disk: more than this keeps a node from its work for a second and more."""
    call_gas: int = CALL_GAS


class RpcError(Exception):
    """A request that JSON-RPC answers with an error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message if len(message) <= MESSAGE_MAX else f"{message[:MESSAGE_MAX]}…"
        self.data = data

    def as_json(self) -> dict[str, Any]:
        """The `error` member of the answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return error


class Rpc:
    """Answers requests about one ledger.

    Args:
        on_transaction: takes a raw signed transaction into the pool and passes it on; RejectedError refuses it.
        height_seen: the greatest height that this node heard of; above the ledger's while it catches up.
        peers: how many other members are connected.
    """

    def __init__(
        self,
        ledger: Ledger,
        on_transaction: Callable[[bytes], object],
        *,
        limits: Limits | None = None,
        height_seen: Callable[[], int] = lambda: 0,
        peers: Callable[[], int] = lambda: 0,
    ) -> None:
        self.limits = limits or Limits()
        self._ledger = ledger
        self._on_transaction = on_transaction
        self._height_seen = height_seen
        methods: dict[str, Callable[..., Any]] = {
            "web3_clientVersion": lambda: "swarm/embedded",
            "web3_sha3": lambda data: to_hex(keccak256(from_hex(data))),
            "net_version": lambda: str(ledger.chain_id),
            "net_listening": lambda: True,
            "net_peerCount": lambda: hex(peers()),
            "rpc_modules": lambda: dict.fromkeys(sorted({name.split("_")[0] for name in self._methods}), "1.0"),
            "eth_chainId": lambda: hex(ledger.chain_id),
            "eth_blockNumber": lambda: hex(ledger.head.number),
            "eth_syncing": self._syncing,
            "eth_accounts": list,
            "eth_gasPrice": lambda: "0x0",
            "eth_maxPriorityFeePerGas": lambda: "0x0",
            "eth_blobBaseFee": lambda: "0x1",  # EIP-4844's least, though no transaction here carries blobs
            "eth_feeHistory": self._fee_history,
            "eth_getBalance": lambda address, tag="latest": hex(
                ledger.balance(read_address(address), self.number(tag))
            ),
            "eth_getCode": lambda address, tag="latest": to_hex(ledger.code(read_address(address), self.number(tag))),
            "eth_getStorageAt": self._storage,
            "eth_getTransactionCount": self._transaction_count,
            "eth_getProof": self._proof,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate_gas,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getTransactionByHash": self._transaction,
            "eth_getRawTransactionByHash": self._raw_transaction,
            "eth_getTransactionByBlockNumberAndIndex": lambda tag, index: self._at(self._tagged(tag), index),
            "eth_getTransactionByBlockHashAndIndex": lambda digest, index: self._at(self._hashed(digest), index),
            "eth_getBlockByNumber": lambda tag, whole=False: self._block(self._tagged(tag), whole),
            "eth_getBlockByHash": lambda digest, whole=False: self._block(self._hashed(digest), whole),
            "eth_getHeaderByNumber": lambda tag: self._header(self._tagged(tag)),
            "eth_getHeaderByHash": lambda digest: self._header(self._hashed(digest)),
            "eth_getBlockReceipts": lambda tag: self._receipts(self._tagged(tag)),
            "eth_getBlockTransactionCountByNumber": lambda tag: self._count(self._tagged(tag)),
            "eth_getBlockTransactionCountByHash": lambda digest: self._count(self._hashed(digest)),
            "eth_getUncleCountByBlockNumber": lambda tag: self._uncles(self._tagged(tag)),
            "eth_getUncleCountByBlockHash": lambda digest: self._uncles(self._hashed(digest)),
            "eth_getUncleByBlockNumberAndIndex": lambda tag, index: None,
            "eth_getUncleByBlockHashAndIndex": lambda digest, index: None,
            "eth_getLogs": self._logs,
            "swarm_getCertificate": lambda tag: to_hex(ledger.certificate(self.number(tag))),
        }
        self._methods = methods
        self._signatures = {name: _signature(method) for name, method in methods.items()}

    def handle(self, method: str, params: Sequence[Any]) -> Any:
        """The `result` member of the answer.

        Raises:
            RpcError: there is no such method, the parameters are not its, a call reverts (code 3, with the revert
                data), or a transaction is refused.
            StorageError: this node's disk.
        """
        found = self._methods.get(method)
        if found is None:
            raise no_method(method)
        return answered(method, found, self._signatures[method], params)

    # --- accounts

    def _storage(self, address: str, slot: str, tag: Any = "latest") -> str:
        value = self._ledger.storage(read_address(address), read_slot(slot), self.number(tag))
        return to_hex(value.to_bytes(32, "big"))

    def _transaction_count(self, address: str, tag: Any = "latest") -> str:
        if tag == "pending":
            return hex(self._ledger.next_nonce(read_address(address)))
        return hex(self._ledger.nonce(read_address(address), self.number(tag)))

    def _proof(self, address: str, slots: Sequence[str], tag: Any = "latest") -> dict[str, Any]:
        if len(slots) > PROOF_SLOTS_MAX:
            raise ValueError(f"{len(slots)} slots, at most {PROOF_SLOTS_MAX} are proven at a time")
        proof = self._ledger.proof(read_address(address), [read_slot(slot) for slot in slots], self.number(tag))
        return {
            "address": checksum(read_address(address)),
            "accountProof": [to_hex(node) for node in proof.account_nodes],
            "balance": hex(proof.account.balance),
            "codeHash": to_hex(proof.account.code_hash),
            "nonce": hex(proof.account.nonce),
            "storageHash": to_hex(proof.account.storage_root),
            "storageProof": [
                {"key": hex(slot), "value": hex(value), "proof": [to_hex(node) for node in nodes]}
                for slot, value, nodes in proof.slots
            ],
        }

    # --- calls and transactions

    def _call(self, fields: Mapping[str, Any], tag: Any = "latest", overrides: Any = None) -> str:
        outcome = self._outcome(fields, tag, overrides, self.limits.call_gas)
        if not outcome.succeeded:
            raise _failure(outcome)
        return to_hex(outcome.output)

    def _estimate_gas(self, fields: Mapping[str, Any], tag: Any = "latest", overrides: Any = None) -> str:
        most = min(TRANSACTION_GAS_MAX, self.limits.call_gas)
        outcome = self._outcome({**fields, "gas": hex(most)}, tag, overrides, most)
        if not outcome.succeeded:
            raise _failure(outcome)
        # A call inside gets at most 63/64 of what is left (EIP-150), and SSTORE wants 2300 left over (EIP-2200).
        gas = min(outcome.gas_used * 65 // 64 + 2301, most)
        while not self._outcome({**fields, "gas": hex(gas)}, tag, overrides, gas).succeeded:
            gas = min(gas * 5 // 4, most)
        return hex(gas)

    def _outcome(self, fields: Mapping[str, Any], tag: Any, overrides: Any, gas_max: int) -> Outcome:
        if overrides:
            raise ValueError("state overrides are not possible here")
        to = read_address(fields["to"]) if fields.get("to") else None
        if to is None or to in _PRECOMPILES:
            # A stranger's init code, or a minute of pairings in Python: the node has a ledger to keep.
            raise ValueError("a call here names a contract in `to`; it neither creates one nor asks a precompile")
        data = from_hex(fields.get("input", fields.get("data")) or "0x")
        if len(data) > TRANSACTION_MAX_BYTES:
            raise ValueError(f"{len(data)} bytes of call data, at most {TRANSACTION_MAX_BYTES} are taken")
        return self._ledger.call(
            to=to,
            data=data,
            sender=read_address(fields["from"]) if fields.get("from") else ZERO_ADDRESS,
            value=read_quantity(fields.get("value") or "0x0"),
            gas=min(read_quantity(fields.get("gas") or hex(gas_max)), gas_max),
            block=self.number(tag),
        )

    def _send(self, raw: str) -> str:
        data = from_hex(raw)
        self._on_transaction(data)
        return to_hex(keccak256(data))

    def _receipt(self, digest: str) -> dict[str, Any] | None:
        place = self._ledger.transaction(read_digest(digest))
        return None if place is None else receipt_json(self._ledger, *place)

    def _transaction(self, digest: str) -> dict[str, Any] | None:
        hashed = read_digest(digest)
        place = self._ledger.transaction(hashed)
        if place is not None:
            return transaction_json(self._ledger, place[0].raws[place[1]], place[0].header, place[1])
        waiting = self._ledger.pending_transaction(hashed)
        return None if waiting is None else transaction_json(self._ledger, waiting.raw, None, None)

    def _raw_transaction(self, digest: str) -> str | None:
        hashed = read_digest(digest)
        place = self._ledger.transaction(hashed)
        if place is not None:
            return to_hex(place[0].raws[place[1]])
        waiting = self._ledger.pending_transaction(hashed)
        return None if waiting is None else to_hex(waiting.raw)

    # --- blocks

    def _tagged(self, tag: Any) -> Block | None:
        number = self.number(tag)
        return self._ledger.block(number) if number <= self._ledger.head.number else None

    def _hashed(self, digest: str) -> Block | None:
        return self._ledger.block_by_hash(read_digest(digest))

    def _block(self, block: Block | None, whole: bool) -> dict[str, Any] | None:
        return None if block is None else block_json(self._ledger, block, whole)

    def _header(self, block: Block | None) -> dict[str, Any] | None:
        return None if block is None else header_json(block.header)

    def _receipts(self, block: Block | None) -> list[dict[str, Any]] | None:
        if block is None:
            return None
        return [receipt_json(self._ledger, block, position) for position in range(len(block.raws))]

    def _count(self, block: Block | None) -> str | None:
        return None if block is None else hex(len(block.raws))

    def _uncles(self, block: Block | None) -> str | None:
        return None if block is None else "0x0"

    def _at(self, block: Block | None, index: str) -> dict[str, Any] | None:
        position = read_quantity(index)
        if block is None or position >= len(block.raws):
            return None
        return transaction_json(self._ledger, block.raws[position], block.header, position)

    def _syncing(self) -> dict[str, str] | bool:
        head, seen = self._ledger.head.number, self._height_seen()
        if seen <= head:
            return False
        return {"startingBlock": hex(head), "currentBlock": hex(head), "highestBlock": hex(seen)}

    def _fee_history(self, count: str | int, newest: Any, percentiles: Sequence[float] | None = None) -> dict[str, Any]:
        last = min(self.number(newest), self._ledger.head.number)
        blocks = max(1, min(count if isinstance(count, int) else read_quantity(count), FEE_BLOCKS_MAX, last + 1))
        headers = [self._ledger.block(number).header for number in range(last - blocks + 1, last + 1)]
        answer: dict[str, Any] = {
            "oldestBlock": hex(last - blocks + 1),
            "baseFeePerGas": ["0x0"] * (blocks + 1),
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
            "baseFeePerBlobGas": ["0x1"] * (blocks + 1),
            "blobGasUsedRatio": [0.0] * blocks,
        }
        if percentiles:
            if len(percentiles) > 100:
                raise ValueError(f"{len(percentiles)} percentiles, at most 100 are told")
            answer["reward"] = [["0x0"] * len(percentiles)] * blocks
        return answer

    def _logs(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        criteria = Criteria.read(wanted)
        if wanted.get("blockHash") is not None:
            block = self._ledger.block_by_hash(read_digest(wanted["blockHash"]))
            if block is None:
                raise ValueError("there is no block with this hash")
            return self.logs(criteria, block.header.number, block.header.number)
        first = self.number(wanted.get("fromBlock") or "latest")
        last = min(self.number(wanted.get("toBlock") or "latest"), self._ledger.head.number)
        return self.logs(criteria, first, last)

    def logs(self, criteria: Criteria, first: int, last: int) -> list[dict[str, Any]]:
        """The logs in these blocks that fit; ValueError: too many blocks, or too many logs, and how to ask for less."""
        most = self.limits.log_blocks_max
        if last - first >= most:
            raise ValueError(
                f"{last - first + 1} blocks, at most {most} are searched at a time: ask for {first} to "
                f"{first + most - 1} ({hex(first)} to {hex(first + most - 1)}), then for the next ones"
            )
        found = self._ledger.logs(first, last, criteria.addresses, criteria.topics, logs_max=self.limits.logs_max)
        return [log_json(entry) for entry in found]

    def number(self, tag: Any) -> int:
        """The block number that a tag, a number or an EIP-1898 object names."""
        if isinstance(tag, Mapping):
            if "blockHash" in tag:
                block = self._ledger.block_by_hash(read_digest(tag["blockHash"]))
                if block is None:
                    raise ValueError("there is no block with this hash")
                return block.header.number
            tag = tag["blockNumber"]
        if tag is None or (isinstance(tag, str) and tag in _HEADS):
            return self._ledger.head.number
        return 0 if tag == "earliest" else read_quantity(tag)


@dataclass(frozen=True)
class Criteria:
    """Which logs somebody wants: of any of the addresses (none given: of all), with these topics by position."""

    addresses: frozenset[Address]
    topics: tuple[frozenset[Digest] | None, ...]

    @classmethod
    def read(cls, wanted: Mapping[str, Any]) -> Criteria:
        """From the parameters of `eth_getLogs`, `eth_newFilter` and `eth_subscribe`; ValueError if it asks too much."""
        addresses, topics = wanted.get("address") or [], wanted.get("topics") or []
        addresses = [addresses] if isinstance(addresses, str) else addresses
        if len(topics) > 4:
            raise ValueError(f"{len(topics)} topics; a log has at most 4")
        asked = len(addresses) + sum(len(topic) for topic in topics if isinstance(topic, list))
        if asked > LOG_VALUES_MAX:
            raise ValueError(f"{asked} addresses and topics, at most {LOG_VALUES_MAX} are looked for at a time")
        return cls(frozenset(map(read_address, addresses)), tuple(map(read_topic, topics)))


def answered(method: str, call: Callable[..., Any], signature: inspect.Signature, params: Any) -> Any:
    """What a method returns; RpcError, with the code that says whose fault it is, where it refuses."""
    if not isinstance(params, (list, tuple)):
        raise RpcError(_INVALID_PARAMS, f"{method} takes its parameters as a list")
    try:
        signature.bind(*params)
        return call(*params)
    except RejectedError as error:
        raise RpcError(_REFUSED, str(error), {"kind": "RejectedError"}) from error
    except KeyError as error:
        raise RpcError(_INVALID_PARAMS, f"{method}: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise RpcError(_INVALID_PARAMS, f"{method}: {error}") from error


def no_method(method: str) -> RpcError:
    """The answer to a method that is not here."""
    hint = ": this node signs nothing; send what you signed by eth_sendRawTransaction" if method in _SIGNING else ""
    return RpcError(_NO_METHOD, f"the method {method} does not exist here{hint}")


def _signature(method: Callable[..., Any]) -> inspect.Signature:
    return inspect.Signature() if method is list else inspect.signature(method)


class Asked:
    """A ledger in the same process where `Contracts` takes an `AsyncWeb3`: it is its own provider."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    @property
    def provider(self) -> Asked:
        """Itself."""
        return self

    async def make_request(self, method: str, params: Any, /) -> dict[str, Any]:
        """The answer; StorageError passes through, it is the node's to handle."""
        # Whoever asks in a loop lets the others work in between.
        await asyncio.sleep(0)
        try:
            return {"jsonrpc": "2.0", "id": 1, "result": self._rpc.handle(method, _as_json(params))}
        except RpcError as error:
            return {"jsonrpc": "2.0", "id": 1, "error": error.as_json()}


def _as_json(value: Any) -> Any:
    """What a provider that sends text would send: web3 leaves some bytes as they are."""
    if isinstance(value, bytes):
        return to_hex(value)
    if isinstance(value, Mapping):
        return {key: _as_json(part) for key, part in value.items()}
    return [_as_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def _failure(outcome: Outcome) -> RpcError:
    if outcome.reverted:
        told = f": {reason(outcome.output)}" if outcome.output else ""
        return RpcError(_REVERTED, f"execution reverted{told}", to_hex(outcome.output))
    return RpcError(_REFUSED, outcome.error)
