"""What a chain's node says that the contracts logged, held against the receipts that the chain's headers commit to.

Left out are the chain's own consensus and state: that a header is the chain's is the word of the node that was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.encoding import Digest, from_hex, keccak256, pack, short, to_hex
from swarm.errors import PeerError, RejectedError
from swarm.ledger.abi import interface
from swarm.ledger.block import Log, Receipt, bloom_of
from swarm.ledger.external import Counted, ExternalNetwork, Places
from swarm.ledger.trie import ordered_root

BLOCKS_AT_ONCE = 5_000
BFT_MIX_HASH = to_hex(b"ctical byzantine fault tolerance")
"""Blocks of Besu's and GoQuorum's BFT: their hash leaves seals out in a way of its own, and is not derived here."""

_HEADER = (
    "parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom", "difficulty",
    "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce",
)  # fmt: skip
# Each fork appended some; a header has all up to its own fork's.
_HEADER_SINCE = (
    "baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot", "requestsHash",
)  # fmt: skip
_NUMBERS = frozenset(
    {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas", "blobGasUsed", "excessBlobGas"}
)


@dataclass(frozen=True)
class Testimony:
    """Everything that the contracts logged up to a block."""

    events: tuple[tuple[str, Mapping[str, Any]], ...]
    """Of `Runs` and `Blind`: name and arguments, in order."""
    blocks: int
    """In which a contract logged anything; each one's receipts were hashed to its header."""
    transactions: int
    head: Counted


async def testimony(
    network: ExternalNetwork, places: Places, head: Counted, progress: Callable[[int, int], None]
) -> Testimony:
    """Read and check what was logged from the contracts' first block to `head`.

    Raises:
        PeerError: logs, receipts and headers do not agree; where.
        RejectedError, UnavailableError: the node does not tell.
    """
    try:
        return await _testimony(network, places, head, progress)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PeerError(f"the chain's node answers what is no log, receipt or header: {error!r}") from error


async def _testimony(
    network: ExternalNetwork, places: Places, head: Counted, progress: Callable[[int, int], None]
) -> Testimony:
    logs = await _logs(network, places, head.number)
    by_block: dict[int, list[Mapping[str, Any]]] = {}
    for log in logs:
        by_block.setdefault(int(log["blockNumber"], 16), []).append(log)
    events: list[tuple[str, Mapping[str, Any]]] = []
    transactions = 0
    for done, number in enumerate(sorted(by_block), 1):
        told = sorted(by_block[number], key=lambda log: int(log["logIndex"], 16))
        await _check_block(network, places, number, told)
        transactions += len({log["transactionHash"] for log in told})
        for log in told:
            contract = {places.runs: "Runs", places.blind: "Blind"}.get(from_hex(log["address"]))
            if contract is None:
                continue
            event = interface(contract).event([from_hex(topic) for topic in log["topics"]], from_hex(log["data"]))
            if event is None:
                raise PeerError(f"block {number}: an event that the contract {contract} does not have")
            events.append(event)
        progress(done, len(by_block))
    return Testimony(tuple(events), len(by_block), transactions, head)


async def _logs(network: ExternalNetwork, places: Places, last: int) -> list[Mapping[str, Any]]:
    addresses = [to_hex(places.consortium), to_hex(places.runs), to_hex(places.blind)]
    found: list[Mapping[str, Any]] = []
    first, step = places.block, BLOCKS_AT_ONCE
    while first <= last:
        end = min(first + step - 1, last)
        wanted = {"fromBlock": hex(first), "toBlock": hex(end), "address": addresses}
        try:
            found += await network.endpoint.request("eth_getLogs", wanted)
        except RejectedError:
            if step == 1:
                raise
            step = max(step // 4, 1)
            continue
        first = end + 1
    return found


async def _check_block(
    network: ExternalNetwork, places: Places, number: int, told: Sequence[Mapping[str, Any]]
) -> None:
    block = await network.endpoint.request("eth_getBlockByNumber", hex(number), False)
    if block is None:
        raise PeerError(f"block {number} has logs and is not there")
    if block["mixHash"] != BFT_MIX_HASH and _header_hash(block) != from_hex(block["hash"]):
        raise PeerError(f"block {number}: its header does not hash to {short(from_hex(block['hash']))}")
    receipts = [_receipt(one) for one in await _receipts(network, block)]
    root = ordered_root([one.encode() for one in receipts])
    named = from_hex(block["receiptsRoot"])
    if root != named:
        raise PeerError(f"block {number}: its receipts hash to {short(root)}, its header says {short(named)}")
    if bloom_of([log for one in receipts for log in one.logs]) != from_hex(block["logsBloom"]):
        raise PeerError(f"block {number}: its bloom filter is not that of its logs")
    ours = {places.consortium, places.runs, places.blind}
    logged = [log for one in receipts for log in one.logs if log.address in ours]
    if logged != [_log(log) for log in told]:
        raise PeerError(f"block {number}: its receipts hold other logs of the contracts than the node tells of")


async def _receipts(network: ExternalNetwork, block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All receipts of a block, in one request where the node knows `eth_getBlockReceipts`."""
    try:
        found: list[Mapping[str, Any]] | None = await network.endpoint.request("eth_getBlockReceipts", block["number"])
    except RejectedError:
        found = None
    if found is None:
        found = [await network.endpoint.request("eth_getTransactionReceipt", one) for one in block["transactions"]]
    if len(found) != len(block["transactions"]) or None in found:
        raise PeerError(f"block {int(block['number'], 16)}: the node does not give all its receipts")
    return sorted(found, key=lambda one: int(one["transactionIndex"], 16))


def _receipt(told: Mapping[str, Any]) -> Receipt:
    return Receipt(
        kind=int(told.get("type", "0x0"), 16),
        succeeded=int(told["status"], 16) == 1,
        gas_used=int(told["gasUsed"], 16),
        gas_used_total=int(told["cumulativeGasUsed"], 16),
        logs=tuple(_log(log) for log in told["logs"]),
    )


def _log(told: Mapping[str, Any]) -> Log:
    return Log(from_hex(told["address"]), tuple(from_hex(topic) for topic in told["topics"]), from_hex(told["data"]))


def _header_hash(block: Mapping[str, Any]) -> Digest:
    names = [*_HEADER, *(name for name in _HEADER_SINCE if block.get(name) is not None)]
    return keccak256(pack([int(block[name], 16) if name in _NUMBERS else from_hex(block[name]) for name in names]))
