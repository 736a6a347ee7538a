"""How Ethereum's JSON-RPC writes a ledger's blocks, transactions, receipts and logs, and how it reads parameters.

Source: ethereum/execution-apis. Timestamps are milliseconds; fees, blobs, uncles and withdrawals are what a ledger
without them has.
"""

from __future__ import annotations

from typing import Any

from swarm.encoding import ZERO_DIGEST, Address, Digest, from_hex, keccak256, to_hex
from swarm.identity import checksum
from swarm.ledger.block import EMPTY_LIST_HASH, EMPTY_TRIE_ROOT, Header, Receipt, Transaction, bloom_of
from swarm.ledger.evm import contract_address
from swarm.ledger.history import Block, LogEntry
from swarm.ledger.ledger import Ledger

# --- what is written


def header_json(header: Header) -> dict[str, Any]:
    """A header, as `eth_getHeaderByNumber` and the subscription `newHeads` show it."""
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
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp_ms),
        "baseFeePerGas": "0x0",
        "withdrawalsRoot": to_hex(EMPTY_TRIE_ROOT),
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": to_hex(header.parent_beacon_block_root),
    }


def block_json(ledger: Ledger, block: Block, whole: bool) -> dict[str, Any]:
    """A block; its transactions in full if `whole`, else their hashes."""
    transactions = [
        transaction_json(ledger, raw, block.header, position) if whole else to_hex(keccak256(raw))
        for position, raw in enumerate(block.raws)
    ]
    rest = {"size": hex(block.size_bytes), "withdrawals": [], "uncles": [], "transactions": transactions}
    return header_json(block.header) | rest


def transaction_json(ledger: Ledger, raw: bytes, header: Header | None, position: int | None) -> dict[str, Any]:
    """A transaction as it was signed; one that waits has neither header nor position."""
    transaction = ledger.decode_transaction(raw)
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
        "chainId": hex(ledger.chain_id),
        "v": hex(transaction.y_parity),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
    }
    if transaction.kind == 0:
        answer["v"] = hex(transaction.y_parity + 35 + 2 * ledger.chain_id)
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


def receipt_json(ledger: Ledger, block: Block, position: int) -> dict[str, Any]:
    """What the transaction at `position` of a block did; `revertReason` is the data that it reverted with."""
    transaction = ledger.decode_transaction(block.raws[position])
    receipt = block.receipts[position]
    first = sum(len(before.logs) for before in block.receipts[:position])
    entries = [
        LogEntry(log, block.header, transaction.hash, position, first + index) for index, log in enumerate(receipt.logs)
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
        "logs": [log_json(entry) for entry in entries],
        "logsBloom": to_hex(bloom_of(receipt.logs)),
        "status": hex(receipt.succeeded),
        "type": hex(receipt.kind),
    }
    if receipt.revert:
        answer["revertReason"] = to_hex(receipt.revert)
    return answer


def log_json(entry: LogEntry) -> dict[str, Any]:
    """A log and where it stands."""
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


# --- what is read: ValueError (or TypeError) where it is not what it has to be


def read_address(text: Any) -> Address:
    """20 bytes in hexadecimal."""
    return from_hex(text, size=20)


def read_digest(text: Any) -> Digest:
    """32 bytes in hexadecimal."""
    return from_hex(text, size=32)


def read_topic(topic: Any) -> frozenset[Digest] | None:
    """The topics that fit at one position; None: every one."""
    if topic is None or topic == []:
        return None
    return frozenset(read_digest(one) for one in ([topic] if isinstance(topic, str) else topic))


def read_slot(text: Any) -> int:
    """A storage slot, with or without leading zeros."""
    slot = int(text, 16)
    if not 0 <= slot < 1 << 256:
        raise ValueError(f"{text} is no storage slot")
    return slot


def read_quantity(text: Any) -> int:
    """An unsigned number of at most 256 bits."""
    if not isinstance(text, str) or not text.startswith("0x"):
        raise ValueError(f"{text!r} is no number in hexadecimal")
    value = int(text, 16)
    if not 0 <= value < 1 << 256:
        raise ValueError(f"{text} is no number of 256 bits")
    return value
