"""How values become bytes and back: hashes, hex, and RLP for everything that is signed or sent.

RLP (Ethereum yellow paper, appendix B) has one encoding for each value, so equal values have equal digests.
`unpack` reads a stranger's bytes: it bounds size, depth and number of items, and takes time in proportion to them. The
`rlp` package does not: on a megabyte of empty items it copies the rest of the message for each (34 s).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias, Union

import sha3

Address: TypeAlias = bytes
"""20 bytes: the last 20 of the Keccak-256 of an uncompressed secp256k1 public key."""
Digest: TypeAlias = bytes
"""32 bytes: a Keccak-256 (ledger) or BLAKE3 Merkle root (objects)."""

Item: TypeAlias = Union[bytes, int, str, "Sequence[Item]"]
Unpacked: TypeAlias = Union[bytes, "list[Unpacked]"]

ZERO_DIGEST: Digest = bytes(32)
ZERO_ADDRESS: Address = bytes(20)

# A block's proposal nests a certificate's seals in a block in a message: 8 levels. Twice that is
# refused before the decoder recurses.
DEPTH_MAX = 16
# A stranger's message of 16 MiB could hold 16 million empty items. The longest lists of ours are a block's
# transactions and an object's leaves.
ITEMS_MAX = 1 << 18


def keccak256(data: bytes) -> Digest:
    """The ledger's hash."""
    digest: bytes = sha3.keccak_256(data).digest()
    return digest


def sha256(data: bytes) -> Digest:
    """The hash of objects."""
    return hashlib.sha256(data).digest()


def pack(item: Item) -> bytes:
    """The RLP encoding of nested sequences of bytes, text and whole numbers (big-endian, no leading zero).

    Raises:
        ValueError: a negative number, or something else.
    """
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _head(0x80, len(item)) + item
    if isinstance(item, int):
        if item < 0:
            raise ValueError(f"only whole numbers from 0 have an RLP encoding, found {item}")
        return pack(item.to_bytes((item.bit_length() + 7) // 8, "big"))
    if isinstance(item, str):
        return pack(item.encode())
    if isinstance(item, (list, tuple)):
        payload = b"".join([pack(part) for part in item])
        return _head(0xC0, len(payload)) + payload
    raise ValueError(f"bytes, text, whole numbers and lists of them have an RLP encoding, found {type(item).__name__}")


def _head(kind: int, size: int) -> bytes:
    if size < 56:
        return bytes((kind + size,))
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((kind + 55 + len(length),)) + length


def unpack(data: bytes, *, max_bytes: int) -> Unpacked:
    """The nested lists of bytes that `data` encodes.

    Raises:
        ValueError: longer than `max_bytes`, deeper than `DEPTH_MAX`, more items than `ITEMS_MAX`, or not canonical RLP.
    """
    if len(data) > max_bytes:
        raise ValueError(f"message of {len(data)} bytes, at most {max_bytes} are read")
    if not data:
        raise ValueError("not canonical RLP: no bytes")
    found = _unpack(bytes(data), 0, len(data), 0, [ITEMS_MAX])
    if len(found) != 1:
        raise ValueError(f"not canonical RLP: {len(found)} items where one belongs")
    return found[0]


def _unpack(data: bytes, at: int, end: int, depth: int, left: list[int]) -> list[Unpacked]:
    """The items between two bytes of `data`; `left` holds how many more there may be."""
    if depth > DEPTH_MAX:
        raise ValueError(f"lists nested deeper than {DEPTH_MAX}")
    items: list[Unpacked] = []
    while at < end:
        prefix = data[at]
        at += 1
        if prefix < 0x80:
            items.append(data[at - 1 : at])
        else:
            size = prefix & 0x3F
            if size > 55:
                width, size = size - 55, int.from_bytes(data[at : at + size - 55], "big")
                if at + width > end or size < 56 or data[at] == 0:
                    raise ValueError(f"not canonical RLP: a length that could be shorter, at byte {at}")
                at += width
            stop = at + size
            if stop > end:
                raise ValueError(f"not canonical RLP: an item ends at byte {stop}, its list at byte {end}")
            if prefix < 0xC0:
                if size == 1 and data[at] < 0x80:
                    raise ValueError(f"not canonical RLP: a byte that needs no length, at byte {at}")
                items.append(data[at:stop])
            else:
                items.append(_unpack(data, at, stop, depth + 1, left))
            at = stop
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"more than {ITEMS_MAX} items")
    return items


def number(item: Unpacked, *, bits: int = 64) -> int:
    """The whole number that an unpacked item holds; ValueError if it is a list, padded or wider than `bits`."""
    if not isinstance(item, bytes):
        raise ValueError("a list stands where a number belongs")
    if item[:1] == b"\x00":
        raise ValueError("a number with leading zeros")
    if len(item) * 8 > bits:
        raise ValueError(f"a number of {len(item)} bytes, at most {bits // 8} are read")
    return int.from_bytes(item, "big")


def data_of(item: Unpacked, *, size: int | None = None) -> bytes:
    """The bytes that an unpacked item holds; ValueError if it is a list or not `size` bytes long."""
    if not isinstance(item, bytes):
        raise ValueError("a list stands where bytes belong")
    if size is not None and len(item) != size:
        raise ValueError(f"{len(item)} bytes where {size} belong")
    return item


def list_of(item: Unpacked, *, size: int | None = None, size_max: int | None = None) -> list[Unpacked]:
    """The parts of an unpacked list; ValueError if it is no list or has not `size` (at most `size_max`) parts."""
    if isinstance(item, bytes):
        raise ValueError("bytes stand where a list belongs")
    if size is not None and len(item) != size:
        raise ValueError(f"a list of {len(item)} where {size} belong")
    if size_max is not None and len(item) > size_max:
        raise ValueError(f"a list of {len(item)}, at most {size_max} are read")
    return item


def to_hex(data: bytes) -> str:
    """`0x` and lower-case hexadecimal."""
    return "0x" + data.hex()


def from_hex(text: str, *, size: int | None = None) -> bytes:
    """The bytes of `0x…`; ValueError if it is not hexadecimal or not `size` bytes."""
    digits = text.removeprefix("0x")
    try:
        data = bytes.fromhex(digits)
    except ValueError as error:
        raise ValueError(f"{text!r} is not hexadecimal") from error
    if len(digits) != 2 * len(data):
        raise ValueError(f"{text!r} is not hexadecimal: it holds spaces")
    if size is not None and len(data) != size:
        raise ValueError(f"{text!r} has {len(data)} bytes where {size} belong")
    return data


def short(data: bytes) -> str:
    """The first four bytes in hexadecimal: enough for a person to compare."""
    return data[:4].hex()
