"""Where a light follower's blocks come from: a node's file, or somebody's JSON-RPC. Nothing of it is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp

from swarm.consensus import Certificate
from swarm.encoding import from_hex
from swarm.errors import PeerError, UnavailableError
from swarm.ledger.archive import Archive
from swarm.ledger.block import Header, Log, Receipt, decode_block, decode_payload, decode_receipts
from swarm.ledger.connection import Connection
from swarm.ledger.light import Sealed, tells_of_members, tells_of_recovery

RETRY_S = 1.0
"""A node that serves strangers lets each ask so many times a second; then one waits."""
TRIES = 10
_LIMIT_EXCEEDED = -32005


def blocks_in(folder: Path) -> Iterator[Sealed]:
    """The blocks after genesis in a site's folder.

    Raises:
        StorageError: there is no ledger, or SQLite cannot read it.
        PeerError: a block that cannot be read.
    """
    with closing(Archive(folder / "ledger")) as archive:
        for row in archive.blocks():
            if row.number == 0:
                continue
            try:
                header, raws = decode_block(decode_payload(row.payload)[0])
                receipts = decode_receipts(row.receipts) if tells_of_members(header) else ()
            except (ValueError, TypeError) as error:
                raise PeerError(f"block {row.number} cannot be read: {error}") from error
            yield Sealed(header, Certificate.decode(row.certificate), receipts, raws)


async def blocks_at(url: str, chain_id: int) -> AsyncIterator[Sealed]:
    """The blocks after genesis that the node at an address has now.

    Raises:
        UnavailableError: it does not answer, or is a node of another chain.
        PeerError: an answer that is no block.
    """
    connection = Connection(url)
    try:
        found = _number(await _call(connection, "eth_chainId"))
        if found != chain_id:
            raise UnavailableError(f"{connection} is a node of chain {found}, swarm.toml says {chain_id}")
        for number in range(1, _number(await _call(connection, "eth_blockNumber")) + 1):
            yield await _block(connection, number)
    finally:
        await connection.disconnect()


async def _block(connection: Connection, number: int) -> Sealed:
    tag = hex(number)
    try:
        block = await _call(connection, "eth_getBlockByNumber", tag, False)
        header = _header(block)
        certificate = Certificate.decode(from_hex(await _call(connection, "swarm_getCertificate", tag)))
        receipts, raws = [], []
        if tells_of_members(header):
            receipts = [_receipt(item) for item in await _call(connection, "eth_getBlockReceipts", tag)]
        if tells_of_recovery(header):
            for digest in block["transactions"]:
                raws.append(from_hex(await _call(connection, "eth_getRawTransactionByHash", digest)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PeerError(f"block {number} cannot be read: {error!r}") from error
    return Sealed(header, certificate, tuple(receipts), tuple(raws))


async def _call(connection: Connection, method: str, *params: Any) -> Any:
    for _ in range(TRIES):
        try:
            answer: Any = await connection.make_request(method, list(params))  # type: ignore[arg-type]
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise UnavailableError(f"{connection} does not answer: {error or type(error).__name__}") from error
        refusal = answer.get("error")
        if refusal is None:
            return answer.get("result")
        if not isinstance(refusal, dict) or refusal.get("code") != _LIMIT_EXCEEDED:
            raise UnavailableError(f"{connection} does not answer {method}: {refusal}")
        await asyncio.sleep(RETRY_S)
    raise UnavailableError(f"{connection} limits how often one may ask, and has not answered {method} {TRIES} times")


def _number(text: Any) -> int:
    try:
        value = int(text, 16)
    except (TypeError, ValueError) as error:
        raise PeerError(f"{str(text)[:80]!r} is no number") from error
    if not 0 <= value < 1 << 64:
        raise PeerError(f"{str(text)[:80]!r} is no number of at most 64 bits")
    return value


def _header(block: Any) -> Header:
    """The header in an answer. The fields that are constant here are not read: the hash is made with what they are."""
    return Header(
        parent_hash=from_hex(block["parentHash"], size=32),
        coinbase=from_hex(block["miner"], size=20),
        state_root=from_hex(block["stateRoot"], size=32),
        transactions_root=from_hex(block["transactionsRoot"], size=32),
        receipts_root=from_hex(block["receiptsRoot"], size=32),
        bloom=from_hex(block["logsBloom"], size=256),
        number=_number(block["number"]),
        gas_limit=_number(block["gasLimit"]),
        gas_used=_number(block["gasUsed"]),
        timestamp_ms=_number(block["timestamp"]),
        parent_beacon_block_root=from_hex(block["parentBeaconBlockRoot"], size=32),
    )


def _receipt(item: Any) -> Receipt:
    return Receipt(
        kind=_number(item["type"]),
        succeeded=_number(item["status"]) == 1,
        gas_used=_number(item["gasUsed"]),
        gas_used_total=_number(item["cumulativeGasUsed"]),
        logs=tuple(
            Log(
                from_hex(log["address"], size=20),
                tuple(from_hex(topic, size=32) for topic in log["topics"]),
                from_hex(log["data"]),
            )
            for log in item["logs"]
        ),
    )
