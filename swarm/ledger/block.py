"""What a block is, as bytes: header, transactions, receipts, and the payload that consensus agrees on.

Ordinary Ethereum encodings (yellow paper §4; EIP-2718, 2930, 1559, 1559 receipts, 4895, 4844, 4788), so that any
Ethereum tool reads them. Execution is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from swarm.encoding import Address, Digest, Unpacked, data_of, keccak256, list_of, number, pack, short, unpack
from swarm.identity import recover
from swarm.ledger.trie import ordered_root

TRANSACTION_MAX_BYTES = 64 << 10
"""The largest call of the contracts carries 512 bytes of metrics; the bound leaves room for others."""
BLOCK_MAX_BYTES = 7 << 20
"""With the certificate beside it, a payload stays below the 8 MiB that a consensus message carries."""
_CERTIFICATE_MAX_BYTES = 1 << 16
# 20 fields, of which the bloom filter takes 256 bytes.
_HEADER_MAX_BYTES = 1024
# A signature alone has 65; it bounds what a block of nonsense can cost.
_TRANSACTION_MIN_BYTES = 65

EMPTY_LIST_HASH: Digest = keccak256(b"\xc0")
EMPTY_TRIE_ROOT: Digest = keccak256(b"\x80")
EMPTY_CODE_HASH: Digest = keccak256(b"")

# EIP-2: the upper half of s is the same signature again, written another way.
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_CREATES = b""


@dataclass(frozen=True, slots=True)
class Header:
    """A Cancun header. Fees, blobs, withdrawals and proof of work are constants here, as they are in `encode`."""

    parent_hash: Digest
    coinbase: Address
    state_root: Digest
    transactions_root: Digest
    receipts_root: Digest
    bloom: bytes
    """256 bytes."""
    number: int
    gas_limit: int
    gas_used: int
    timestamp_ms: int
    parent_beacon_block_root: Digest
    """The Keccak-256 of the parent's certificate."""
    hash: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", keccak256(pack(self.fields())))

    def fields(self) -> list[bytes]:
        """The 20 fields in Ethereum's order."""
        return [
            self.parent_hash, EMPTY_LIST_HASH, self.coinbase, self.state_root, self.transactions_root,
            self.receipts_root, self.bloom, b"", _big(self.number), _big(self.gas_limit), _big(self.gas_used),
            _big(self.timestamp_ms), b"", bytes(32), bytes(8), b"", EMPTY_TRIE_ROOT, b"", b"",
            self.parent_beacon_block_root,
        ]  # fmt: skip

    @classmethod
    def read(cls, fields: Unpacked) -> Header:
        """The header with these 20 fields; ValueError where a constant field differs or a size is wrong."""
        parts = [data_of(part) for part in list_of(fields, size=20)]
        for index, size in ((0, 32), (2, 20), (3, 32), (4, 32), (5, 32), (6, 256), (19, 32)):
            data_of(parts[index], size=size)
        header = cls(
            parent_hash=parts[0], coinbase=parts[2], state_root=parts[3], transactions_root=parts[4],
            receipts_root=parts[5], bloom=parts[6], number=number(parts[8]), gas_limit=number(parts[9]),
            gas_used=number(parts[10]), timestamp_ms=number(parts[11]), parent_beacon_block_root=parts[19],
        )  # fmt: skip
        if header.fields() != parts:
            raise ValueError("a header field that is constant here (fees, blobs, proof of work, extra data) differs")
        return header


def check_follows(header: Header, parent: Header) -> None:
    """Nothing, if a block may stand on `parent` by its number, parent's hash and time; ValueError says what is off."""
    if header.number != parent.number + 1 or header.parent_hash != parent.hash:
        raise ValueError(
            f"block {header.number} with parent {short(header.parent_hash)} does not follow block {parent.number} "
            f"({short(parent.hash)})"
        )
    if header.timestamp_ms <= parent.timestamp_ms:
        raise ValueError(f"block {header.number} has time {header.timestamp_ms}, its parent {parent.timestamp_ms}")


@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed transaction and who sent it."""

    raw: bytes
    hash: Digest
    sender: Address
    kind: int
    """0 legacy, 1 with an access list (EIP-2930), 2 with a fee market's fields (EIP-1559)."""
    nonce: int
    gas: int
    max_fee: int
    max_priority_fee: int
    to: Address | None
    """None creates a contract."""
    value: int
    data: bytes
    access_list: tuple[tuple[Address, tuple[int, ...]], ...]
    y_parity: int
    r: int
    s: int

    @classmethod
    def read(cls, raw: bytes, chain_id: int) -> Transaction:
        """The transaction that `raw` encodes, its signature recovered.

        Raises:
            ValueError: not a transaction of a kind that is taken here, or signed for another chain.
        """
        kind = raw[0] if raw and raw[0] < 0x80 else 0
        if kind == 0:
            parts = list_of(unpack(raw, max_bytes=TRANSACTION_MAX_BYTES), size=9)
            nonce, price, gas, to, value, data, v, r, s = parts
            head, y_parity = parts[:6], number(v) - 35 - 2 * chain_id
            if y_parity not in (0, 1):
                raise ValueError(f"not signed for chain {chain_id} (EIP-155)")
            signed = pack([data_of(part) for part in head] + [chain_id, 0, 0])
            fees, accesses = (price, price), []
        elif kind in (1, 2):
            parts = list_of(unpack(raw[1:], max_bytes=TRANSACTION_MAX_BYTES), size=11 if kind == 1 else 12)
            chain, nonce, *fee, gas, to, value, data, access, parity, r, s = parts
            if number(chain) != chain_id:
                raise ValueError(f"signed for chain {number(chain)}, this is chain {chain_id}")
            y_parity = number(parity)
            if y_parity not in (0, 1):
                raise ValueError("y_parity is 0 or 1")
            signed = bytes([kind]) + pack(parts[:-3])
            fees, accesses = (fee[-1], fee[0]), list_of(access)
        else:
            raise ValueError(f"transactions of type {kind} are not taken; 0, 1 and 2 are")
        r_int, s_int = number(r, bits=256), number(s, bits=256)
        if not 0 < s_int <= _HALF_ORDER:
            raise ValueError("the signature's s is zero or above half the order (EIP-2)")
        signature = r_int.to_bytes(32, "big") + s_int.to_bytes(32, "big") + bytes([y_parity])
        target = data_of(to)
        if len(target) not in (0, 20):
            raise ValueError(f"`to` has {len(target)} bytes, 20 or none belong")
        max_fee, priority = number(fees[0], bits=256), number(fees[1], bits=256)
        if priority > max_fee:
            raise ValueError("the priority fee is above the whole fee")
        return cls(
            raw=raw, hash=keccak256(raw), sender=recover(keccak256(signed), signature), kind=kind,
            nonce=number(nonce), gas=number(gas), max_fee=max_fee, max_priority_fee=priority, to=target or None,
            value=number(value, bits=256), data=data_of(data), access_list=tuple(_access(a) for a in accesses),
            y_parity=y_parity, r=r_int, s=s_int,
        )  # fmt: skip


def _access(item: Unpacked) -> tuple[Address, tuple[int, ...]]:
    address, slots = list_of(item, size=2)
    return data_of(address, size=20), tuple(int.from_bytes(data_of(slot, size=32), "big") for slot in list_of(slots))


@dataclass(frozen=True, slots=True)
class Log:
    """An event as the EVM records it."""

    address: Address
    topics: tuple[Digest, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one transaction did."""

    kind: int
    succeeded: bool
    gas_used: int
    gas_used_total: int
    """By this transaction and those before it in its block."""
    logs: tuple[Log, ...]
    revert: bytes = b""
    """Why it failed: the revert data, for people; no part of the block."""

    def encode(self) -> bytes:
        """The consensus encoding, whose trie's root stands in the header."""
        body = pack(
            [
                b"\x01" if self.succeeded else b"",
                _big(self.gas_used_total),
                bloom_of(self.logs),
                [[log.address, list(log.topics), log.data] for log in self.logs],
            ]
        )
        return bytes([self.kind]) + body if self.kind else body


def encode_receipts(receipts: Sequence[Receipt]) -> bytes:
    """All receipts of a block, for this node's own database."""
    return pack(
        [
            [
                r.kind,
                int(r.succeeded),
                r.gas_used,
                r.gas_used_total,
                [[log.address, list(log.topics), log.data] for log in r.logs],
                r.revert,
            ]
            for r in receipts
        ]
    )


def decode_receipts(data: bytes) -> tuple[Receipt, ...]:
    """What `encode_receipts` wrote; ValueError if it is damaged."""
    receipts = []
    for item in list_of(unpack(data, max_bytes=1 << 30)):
        kind, succeeded, used, total, logs, revert = list_of(item, size=6)
        receipts.append(
            Receipt(
                kind=number(kind),
                succeeded=bool(number(succeeded)),
                gas_used=number(used),
                gas_used_total=number(total),
                logs=tuple(_log(log) for log in list_of(logs)),
                revert=data_of(revert),
            )
        )
    return tuple(receipts)


def _log(item: Unpacked) -> Log:
    address, topics, data = list_of(item, size=3)
    return Log(data_of(address, size=20), tuple(data_of(t, size=32) for t in list_of(topics)), data_of(data))


def bloom_of(logs: Sequence[Log]) -> bytes:
    """The 2048-bit filter of the addresses and topics of `logs` (yellow paper §4.3.1)."""
    bits = 0
    for entry in {part for log in logs for part in (log.address, *log.topics)}:
        digest = keccak256(entry)
        for start in (0, 2, 4):
            bits |= 1 << (int.from_bytes(digest[start : start + 2], "big") & 2047)
    return bits.to_bytes(256, "big")


def encode_block(header: Header, transactions: Sequence[bytes]) -> bytes:
    """The RLP of a block whose transactions have these raw bytes."""
    # A legacy transaction is a list already, each other one is a string in the list.
    items = b"".join(raw if raw[0] >= 0xC0 else pack(raw) for raw in transactions)
    body = pack(header.fields()) + _list_head(len(items)) + items + b"\xc0\xc0"
    return _list_head(len(body)) + body


# A payload is hashed, judged and appended: the same few blocks come again within a moment.
@lru_cache(maxsize=8)
def decode_block(data: bytes) -> tuple[Header, tuple[bytes, ...]]:
    """The header and the raw transactions, which may be anything still.

    Raises:
        ValueError: not the encoding of a block of this ledger.
    """
    if len(data) > BLOCK_MAX_BYTES:
        raise ValueError(f"a block of {len(data)} bytes, at most {BLOCK_MAX_BYTES} are read")
    [(_, inside, end)] = _split(data, 0, len(data), count_max=1)
    if data[:1] < b"\xc0":
        raise ValueError("a block is a list")
    parts = _split(data, inside, end, count_max=4)
    if len(parts) != 4 or data[parts[1][0]] < 0xC0:
        raise ValueError("a block has a header, transactions, uncles and withdrawals")
    (start, _, after), (_, first, last), *rest = parts
    if any(data[start:end] != b"\xc0" for start, _, end in rest):
        raise ValueError("a block of this ledger has neither uncles nor withdrawals")
    spans = _split(data, first, last, count_max=64 + (last - first) // _TRANSACTION_MIN_BYTES)
    raws = []
    for begin, inside, end in spans:
        raw = data[begin:end] if data[begin] >= 0xC0 else data[inside:end]
        if not raw or 0x80 <= raw[0] < 0xC0 or (raw[0] >= 0xC0) != (data[begin] >= 0xC0):
            raise ValueError("something that is no transaction stands among the transactions")
        raws.append(raw)
    return Header.read(unpack(data[start:after], max_bytes=_HEADER_MAX_BYTES)), tuple(raws)


def _split(data: bytes, start: int, end: int, *, count_max: int) -> list[tuple[int, int, int]]:
    """(where it starts, where its content starts, where it ends) of the RLP items that fill a stretch of bytes.

    Only this level is looked at: a stranger's megabyte of tiny items costs nothing.

    Raises:
        ValueError: not canonical, not filled exactly, or more than `count_max` items.
    """
    spans: list[tuple[int, int, int]] = []
    while start < end:
        if len(spans) == count_max:
            raise ValueError(f"more than {count_max} items")
        prefix = data[start]
        offset = 0x80 if prefix < 0xC0 else 0xC0
        inside, size = start + 1, prefix - offset
        if prefix < 0x80:
            inside, size = start, 1
        elif size > 55:
            inside += size - 55
            size = int.from_bytes(data[start + 1 : inside], "big")
            if size < 56 or not data[start + 1]:
                raise ValueError("a length that is not canonical")
        if inside + size > end:
            raise ValueError("an item is longer than what holds it")
        if offset == 0x80 and size == 1 and inside > start and data[inside] < 0x80:
            raise ValueError("a single byte that is not canonical")
        spans.append((start, inside, inside + size))
        start = inside + size
    return spans


def _list_head(size: int) -> bytes:
    if size < 56:
        return bytes([0xC0 + size])
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0xF7 + len(length)]) + length


def encode_payload(block: bytes, parent_certificate: bytes) -> bytes:
    """What consensus agrees on: a block, and the certificate of its parent that its header commits to."""
    return pack([block, parent_certificate])


def decode_payload(payload: bytes) -> tuple[bytes, bytes]:
    """The block and the parent's certificate; ValueError if it is no payload."""
    if not 0 < len(payload) <= BLOCK_MAX_BYTES + _CERTIFICATE_MAX_BYTES or payload[0] < 0xC0:
        raise ValueError(f"{len(payload)} bytes that are no payload")
    [(_, inside, end)] = _split(payload, 0, len(payload), count_max=1)
    parts = _split(payload, inside, end, count_max=2)
    if len(parts) != 2 or any(payload[start] >= 0xC0 for start, _, _ in parts):
        raise ValueError("a payload is a block and a certificate")
    return payload[parts[0][1] : parts[0][2]], payload[parts[1][1] : parts[1][2]]


@lru_cache(maxsize=8)
def payload_digest(payload: bytes) -> Digest:
    """The hash of the block inside, which commits to the whole payload.

    Raises:
        ValueError: not a payload, or its transactions or certificate are not those that the header commits to.
            Otherwise a proposer could show the same digest to some with a body that they must refuse.
    """
    block, certificate = decode_payload(payload)
    header, raws = decode_block(block)
    if ordered_root(raws) != header.transactions_root:
        raise ValueError("the payload carries other transactions than its header commits to")
    if keccak256(certificate) != header.parent_beacon_block_root:
        raise ValueError("the payload carries another certificate than its header commits to")
    return header.hash


def _big(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
