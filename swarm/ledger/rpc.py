"""The ledger as Ethereum JSON-RPC: what web3, ethers and this project's own client ask for, and nothing that changes it
but `eth_sendRawTransaction`.

A decided block is final, so `latest`, `safe`, `finalized` and `pending` name the same block. Timestamps are
milliseconds. Gas is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from web3.providers.async_base import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, Digest, from_hex, keccak256, to_hex
from swarm.errors import RejectedError
from swarm.identity import checksum
from swarm.ledger.abi import reason
from swarm.ledger.block import (
    EMPTY_LIST_HASH,
    EMPTY_TRIE_ROOT,
    Header,
    Receipt,
    Transaction,
    bloom_of,
)
from swarm.ledger.evm import CALL_GAS, TRANSACTION_GAS_MAX, Outcome, contract_address
from swarm.ledger.history import Block, LogEntry
from swarm.ledger.ledger import Ledger

LOG_BLOCKS_MAX = 10_000
LOGS_MAX = 10_000
"""A block's logs are read from disk: more than this keeps a node from its work for a second and more."""
FEE_BLOCKS_MAX = 1024

_INVALID_PARAMS, _NO_METHOD, _REFUSED, _REVERTED = -32602, -32601, -32000, 3
_HEADS = ("latest", "safe", "finalized", "pending")


class RpcError(Exception):
    """A request that JSON-RPC answers with an error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
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
    """

    def __init__(self, ledger: Ledger, on_transaction: Callable[[bytes], object]) -> None:
        self._ledger = ledger
        self._on_transaction = on_transaction
        self._methods: dict[str, Callable[..., Any]] = {
            "eth_chainId": lambda: hex(ledger.chain_id),
            "net_version": lambda: str(ledger.chain_id),
            "web3_clientVersion": lambda: "swarm/embedded",
            "eth_blockNumber": lambda: hex(ledger.head.number),
            "eth_syncing": lambda: False,
            "eth_accounts": list,
            "eth_gasPrice": lambda: "0x0",
            "eth_maxPriorityFeePerGas": lambda: "0x0",
            "eth_feeHistory": self._fee_history,
            "eth_getBalance": lambda address, tag="latest": hex(ledger.balance(_address(address), self._number(tag))),
            "eth_getCode": lambda address, tag="latest": to_hex(ledger.code(_address(address), self._number(tag))),
            "eth_getStorageAt": self._storage,
            "eth_getTransactionCount": self._transaction_count,
            "eth_getProof": self._proof,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate_gas,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getTransactionByHash": self._transaction,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getLogs": self._logs,
            "swarm_getCertificate": lambda tag: to_hex(ledger.certificate(self._number(tag))),
        }

    def handle(self, method: str, params: Sequence[Any]) -> Any:
        """The `result` member of the answer.

        Raises:
            RpcError: there is no such method, the parameters are not its, a call reverts (code 3, with the revert
                data), or a transaction is refused.
            StorageError: this node's disk.
        """
        found = self._methods.get(method)
        if found is None:
            raise RpcError(_NO_METHOD, f"the method {method} does not exist here")
        if not isinstance(params, (list, tuple)):
            raise RpcError(_INVALID_PARAMS, f"{method} takes its parameters as a list")
        try:
            return found(*params)
        except RejectedError as error:
            raise RpcError(_REFUSED, str(error), {"kind": "RejectedError"}) from error
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise RpcError(_INVALID_PARAMS, f"{method}: {error}") from error

    # --- accounts

    def _storage(self, address: str, slot: str, tag: Any = "latest") -> str:
        value = self._ledger.storage(_address(address), _slot(slot), self._number(tag))
        return to_hex(value.to_bytes(32, "big"))

    def _transaction_count(self, address: str, tag: Any = "latest") -> str:
        if tag == "pending":
            return hex(self._ledger.next_nonce(_address(address)))
        return hex(self._ledger.nonce(_address(address), self._number(tag)))

    def _proof(self, address: str, slots: Sequence[str], tag: Any = "latest") -> dict[str, Any]:
        proof = self._ledger.proof(_address(address), [_slot(slot) for slot in slots], self._number(tag))
        return {
            "address": checksum(_address(address)),
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
        if overrides:
            raise ValueError("state overrides are not possible here")
        outcome = self._outcome(fields, tag, CALL_GAS)
        if not outcome.succeeded:
            raise _failure(outcome)
        return to_hex(outcome.output)

    def _estimate_gas(self, fields: Mapping[str, Any], tag: Any = "latest", overrides: Any = None) -> str:
        if overrides:
            raise ValueError("state overrides are not possible here")
        outcome = self._outcome({**fields, "gas": hex(TRANSACTION_GAS_MAX)}, tag, TRANSACTION_GAS_MAX)
        if not outcome.succeeded:
            raise _failure(outcome)
        # A call inside gets at most 63/64 of what is left (EIP-150), and SSTORE wants 2300 left over (EIP-2200).
        gas = min(outcome.gas_used * 65 // 64 + 2301, TRANSACTION_GAS_MAX)
        while not self._outcome({**fields, "gas": hex(gas)}, tag, gas).succeeded:
            gas = min(gas * 5 // 4, TRANSACTION_GAS_MAX)
        return hex(gas)

    def _outcome(self, fields: Mapping[str, Any], tag: Any, gas_max: int) -> Outcome:
        to = fields.get("to")
        data = fields.get("input", fields.get("data")) or "0x"
        return self._ledger.call(
            to=None if to is None else _address(to),
            data=from_hex(data),
            sender=_address(fields["from"]) if fields.get("from") else ZERO_ADDRESS,
            value=_quantity(fields.get("value") or "0x0"),
            gas=min(_quantity(fields.get("gas") or hex(gas_max)), gas_max),
            block=self._number(tag),
        )

    def _send(self, raw: str) -> str:
        data = from_hex(raw)
        self._on_transaction(data)
        return to_hex(keccak256(data))

    def _receipt(self, digest: str) -> dict[str, Any] | None:
        place = self._ledger.transaction(from_hex(digest, size=32))
        return None if place is None else self._receipt_json(*place)

    def _receipt_json(self, block: Block, position: int) -> dict[str, Any]:
        transaction = self._ledger.decode_transaction(block.raws[position])
        receipt = block.receipts[position]
        first = sum(len(before.logs) for before in block.receipts[:position])
        entries = [
            LogEntry(log, block.header, transaction.hash, position, first + index)
            for index, log in enumerate(receipt.logs)
        ]
        answer = {
            "transactionHash": to_hex(transaction.hash),
            "transactionIndex": hex(position),
            "blockHash": to_hex(block.header.hash),
            "blockNumber": hex(block.header.number),
            "from": checksum(transaction.sender),
            "to": None if transaction.to is None else checksum(transaction.to),
            "contractAddress": _created(transaction, receipt),
            "cumulativeGasUsed": hex(receipt.gas_used_total),
            "gasUsed": hex(receipt.gas_used),
            "effectiveGasPrice": hex(min(transaction.max_fee, transaction.max_priority_fee)),
            "logs": [_log_json(entry) for entry in entries],
            "logsBloom": to_hex(bloom_of(receipt.logs)),
            "status": hex(receipt.succeeded),
            "type": hex(receipt.kind),
        }
        if receipt.revert:
            answer["revertReason"] = to_hex(receipt.revert)
        return answer

    def _transaction(self, digest: str) -> dict[str, Any] | None:
        hashed = from_hex(digest, size=32)
        place = self._ledger.transaction(hashed)
        if place is not None:
            return self._transaction_json(place[0].raws[place[1]], place[0].header, place[1])
        waiting = self._ledger.pending_transaction(hashed)
        return None if waiting is None else self._transaction_json(waiting.raw, None, None)

    def _transaction_json(self, raw: bytes, header: Header | None, position: int | None) -> dict[str, Any]:
        transaction = self._ledger.decode_transaction(raw)
        answer: dict[str, Any] = {
            "hash": to_hex(transaction.hash),
            "blockHash": None if header is None else to_hex(header.hash),
            "blockNumber": None if header is None else hex(header.number),
            "transactionIndex": None if position is None else hex(position),
            "from": checksum(transaction.sender),
            "to": None if transaction.to is None else checksum(transaction.to),
            "nonce": hex(transaction.nonce),
            "gas": hex(transaction.gas),
            "gasPrice": hex(min(transaction.max_fee, transaction.max_priority_fee)),
            "value": hex(transaction.value),
            "input": to_hex(transaction.data),
            "type": hex(transaction.kind),
            "chainId": hex(self._ledger.chain_id),
            "v": hex(transaction.y_parity),
            "r": hex(transaction.r),
            "s": hex(transaction.s),
        }
        if transaction.kind == 0:
            answer["v"] = hex(transaction.y_parity + 35 + 2 * self._ledger.chain_id)
        else:
            answer["yParity"] = hex(transaction.y_parity)
            answer["accessList"] = [
                {"address": checksum(address), "storageKeys": [to_hex(slot.to_bytes(32, "big")) for slot in slots]}
                for address, slots in transaction.access_list
            ]
        if transaction.kind == 2:
            answer["maxFeePerGas"] = hex(transaction.max_fee)
            answer["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee)
        return answer

    # --- blocks

    def _block_by_number(self, tag: Any, whole: bool = False) -> dict[str, Any] | None:
        number = self._number(tag)
        if number > self._ledger.head.number:
            return None
        return self._block_json(self._ledger.block(number), whole)

    def _block_by_hash(self, digest: str, whole: bool = False) -> dict[str, Any] | None:
        block = self._ledger.block_by_hash(from_hex(digest, size=32))
        return None if block is None else self._block_json(block, whole)

    def _block_json(self, block: Block, whole: bool) -> dict[str, Any]:
        header = block.header
        return {
            "number": hex(header.number),
            "hash": to_hex(header.hash),
            "parentHash": to_hex(header.parent_hash),
            "nonce": to_hex(bytes(8)),
            "sha3Uncles": to_hex(EMPTY_LIST_HASH),
            "logsBloom": to_hex(header.bloom),
            "transactionsRoot": to_hex(header.transactions_root),
            "stateRoot": to_hex(header.state_root),
            "receiptsRoot": to_hex(header.receipts_root),
            "miner": checksum(header.coinbase),
            "difficulty": "0x0",
            "totalDifficulty": "0x0",
            "extraData": "0x",
            "mixHash": to_hex(ZERO_DIGEST),
            "size": hex(block.size_bytes),
            "gasLimit": hex(header.gas_limit),
            "gasUsed": hex(header.gas_used),
            "timestamp": hex(header.timestamp_ms),
            "baseFeePerGas": "0x0",
            "withdrawalsRoot": to_hex(EMPTY_TRIE_ROOT),
            "withdrawals": [],
            "blobGasUsed": "0x0",
            "excessBlobGas": "0x0",
            "parentBeaconBlockRoot": to_hex(header.parent_beacon_block_root),
            "uncles": [],
            "transactions": [
                self._transaction_json(raw, header, position) if whole else to_hex(keccak256(raw))
                for position, raw in enumerate(block.raws)
            ],
        }

    def _fee_history(self, count: str | int, newest: Any, percentiles: Sequence[float] | None = None) -> dict[str, Any]:
        last = min(self._number(newest), self._ledger.head.number)
        blocks = max(1, min(count if isinstance(count, int) else _quantity(count), FEE_BLOCKS_MAX, last + 1))
        headers = [self._ledger.block(number).header for number in range(last - blocks + 1, last + 1)]
        answer: dict[str, Any] = {
            "oldestBlock": hex(last - blocks + 1),
            "baseFeePerGas": ["0x0"] * (blocks + 1),
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        if percentiles:
            answer["reward"] = [["0x0"] * len(percentiles)] * blocks
        return answer

    def _logs(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        head = self._ledger.head.number
        if wanted.get("blockHash") is not None:
            block = self._ledger.block_by_hash(from_hex(wanted["blockHash"], size=32))
            if block is None:
                raise ValueError("there is no block with this hash")
            first = last = block.header.number
        else:
            first = self._number(wanted.get("fromBlock") or "latest")
            last = min(self._number(wanted.get("toBlock") or "latest"), head)
        if last - first >= LOG_BLOCKS_MAX:
            raise ValueError(f"{last - first + 1} blocks, at most {LOG_BLOCKS_MAX} are searched at a time")
        addresses = wanted.get("address") or []
        found = self._ledger.logs(
            first,
            last,
            frozenset(_address(one) for one in ([addresses] if isinstance(addresses, str) else addresses)),
            [_topic(topic) for topic in wanted.get("topics") or []],
            logs_max=LOGS_MAX,
        )
        return [_log_json(entry) for entry in found]

    def _number(self, tag: Any) -> int:
        """The block number that a tag, a number or an EIP-1898 object names."""
        if isinstance(tag, Mapping):
            if "blockHash" in tag:
                block = self._ledger.block_by_hash(from_hex(tag["blockHash"], size=32))
                if block is None:
                    raise ValueError("there is no block with this hash")
                return block.header.number
            tag = tag["blockNumber"]
        if tag in _HEADS or tag is None:
            return self._ledger.head.number
        return 0 if tag == "earliest" else _quantity(tag)


class LedgerProvider(AsyncBaseProvider):
    """A web3 provider over a ledger in the same process."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__()
        self._rpc = rpc

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The answer; StorageError passes through, it is the node's to handle."""
        # Whoever asks in a loop lets the others work in between.
        await asyncio.sleep(0)
        try:
            return {"jsonrpc": "2.0", "id": 1, "result": self._rpc.handle(method, _as_json(params))}
        except RpcError as error:
            return {"jsonrpc": "2.0", "id": 1, "error": error.as_json()}  # type: ignore[typeddict-item]

    async def is_connected(self, show_traceback: bool = False) -> bool:
        """Always: it is in this process."""
        return True


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


def _log_json(entry: LogEntry) -> dict[str, Any]:
    return {
        "address": checksum(entry.log.address),
        "topics": [to_hex(topic) for topic in entry.log.topics],
        "data": to_hex(entry.log.data),
        "blockNumber": hex(entry.header.number),
        "blockHash": to_hex(entry.header.hash),
        "transactionHash": to_hex(entry.transaction),
        "transactionIndex": hex(entry.position),
        "logIndex": hex(entry.index),
        "removed": False,
    }


def _created(transaction: Transaction, receipt: Receipt) -> str | None:
    if transaction.to is not None or not receipt.succeeded:
        return None
    return checksum(contract_address(transaction.sender, transaction.nonce))


def _topic(topic: Any) -> frozenset[Digest] | None:
    if topic is None or topic == []:
        return None
    return frozenset(from_hex(one, size=32) for one in ([topic] if isinstance(topic, str) else topic))


def _address(text: Any) -> Address:
    return from_hex(text, size=20)


def _slot(text: Any) -> int:
    slot = int(text, 16)
    if not 0 <= slot < 1 << 256:
        raise ValueError(f"{text} is no storage slot")
    return slot


def _quantity(text: Any) -> int:
    if not isinstance(text, str) or not text.startswith("0x"):
        raise ValueError(f"{text!r} is no number in hexadecimal")
    value = int(text, 16)
    if not 0 <= value < 1 << 256:
        raise ValueError(f"{text} is no number of 256 bits")
    return value
