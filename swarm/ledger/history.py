"""Decided blocks, read back: by number and hash, their receipts, and logs that somebody looks for.

What the disk gives is checked before anybody sees it; the last blocks read stay at hand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from swarm.encoding import Address, Digest, keccak256, short
from swarm.ledger.block import Header, Log, Receipt, bloom_of, decode_block, decode_payload, decode_receipts
from swarm.ledger.database import BlockRow, Database

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Block:
    """A decided block, read from disk."""

    header: Header
    raws: tuple[bytes, ...]
    receipts: tuple[Receipt, ...]
    size_bytes: int


@dataclass(frozen=True)
class LogEntry:
    """A log and where it stands."""

    log: Log
    header: Header
    transaction: Digest
    position: int
    """Of the transaction in its block."""
    index: int
    """Of the log in its block."""


class History:
    """The decided blocks of one database."""

    def __init__(self, database: Database, last: int) -> None:
        self._database = database
        self._last = last
        self._blocks: Recent[int, Block] = Recent(256)

    def remember(self, block: Block) -> None:
        """Keep a block at hand that was just written."""
        self._last = block.header.number
        self._blocks.put(block.header.number, block)

    def block(self, number: int) -> Block:
        """A decided block; ValueError if there is none with this number."""
        block = self._blocks.get(number)
        if block is None:
            block = self.decoded(self._row(number))
            self._blocks.put(number, block)
        return block

    def block_by_hash(self, digest: Digest) -> Block | None:
        """A decided block by hash."""
        row = self._database.block_by_hash(digest)
        return None if row is None else self.block(row.number)

    def certificate(self, number: int) -> bytes:
        """The encoded certificate that stands beside a block, empty for genesis; ValueError if there is no block."""
        return self._row(number).certificate

    def blocks_from(self, number: int, max_bytes: int, *, blocks_max: int | None = None) -> list[tuple[bytes, bytes]]:
        """(payload, certificate) of the blocks from `number` on, in order: at least one, if there is one, and no more
        than `max_bytes` together otherwise."""
        found: list[tuple[bytes, bytes]] = []
        size_bytes = 0
        first = max(number, 1)
        last = self._last if blocks_max is None else min(self._last, first + blocks_max - 1)
        for row in self._database.blocks(first, last):
            size_bytes += len(row.payload) + len(row.certificate)
            if found and size_bytes > max_bytes:
                break
            found.append((row.payload, row.certificate))
        return found

    def transaction(self, digest: Digest) -> tuple[Block, int] | None:
        """The block that holds a transaction, and its position there."""
        place = self._database.transaction(digest)
        if place is None:
            return None
        number, position = place
        if not 0 <= number <= self._last or not 0 <= position < len(self.block(number).raws):
            raise self._database.damaged(f"transaction {short(digest)} is said to be in block {number}")
        return self.block(number), position

    def logs(
        self,
        first: int,
        last: int,
        addresses: frozenset[Address],
        topics: Sequence[frozenset[Digest] | None],
        *,
        logs_max: int,
    ) -> list[LogEntry]:
        """The logs in these blocks (both ends included) of any of the addresses, if any are given, whose topics are,
        position by position, one of those asked for; None takes all.

        Raises:
            ValueError: more than `logs_max` fit.
        """
        found: list[LogEntry] = []
        wanted = [_bits_any(addresses)] if addresses else []
        wanted += [_bits_any(options) for options in topics if options is not None]
        for number, bloom in self._database.blooms(max(first, 0), min(last, self._last)):
            bits = int.from_bytes(bloom, "big")
            if not bits or not all(any(bits & one == one for one in options) for options in wanted):
                continue
            for entry in _entries(self.block(number)):
                if addresses and entry.log.address not in addresses:
                    continue
                if len(entry.log.topics) < len(topics):
                    continue
                if any(o is not None and t not in o for o, t in zip(topics, entry.log.topics, strict=False)):
                    continue
                if len(found) == logs_max:
                    raise ValueError(f"more than {logs_max} logs fit; ask for fewer blocks at a time")
                found.append(entry)
        return found

    def _row(self, number: int) -> BlockRow:
        if not 0 <= number <= self._last:
            raise ValueError(f"there is no block {number}, the last one is {self._last}")
        row = self._database.block(number)
        if row is None:
            raise self._database.damaged(f"block {number} is missing")
        return row

    def decoded(self, row: BlockRow) -> Block:
        """The block in a row; StorageError if it is not what was written."""
        try:
            data, _ = decode_payload(row.payload)
            header, raws = decode_block(data)
            receipts = decode_receipts(row.receipts)
        except ValueError as error:
            raise self._database.damaged(f"block {row.number}: {error}") from error
        if header.hash != row.hash or header.number != row.number or len(raws) != len(receipts):
            raise self._database.damaged(f"block {row.number} has hash {short(header.hash)}, not {short(row.hash)}")
        return Block(header, raws, receipts, len(data))


class Recent(Generic[K, V]):
    """The values that were used last, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._values[key] = value
        if len(self._values) > self._size:
            self._values.popitem(last=False)


def _bits_any(values: frozenset[bytes]) -> list[int]:
    """Each value's bits in a bloom filter."""
    return [int.from_bytes(bloom_of([Log(value, (), b"")]), "big") for value in values]


def _entries(block: Block) -> list[LogEntry]:
    entries: list[LogEntry] = []
    for position, (raw, receipt) in enumerate(zip(block.raws, block.receipts, strict=True)):
        digest = keccak256(raw)
        for log in receipt.logs:
            entries.append(LogEntry(log, block.header, digest, position, len(entries)))
    return entries
