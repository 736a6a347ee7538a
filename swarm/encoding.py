"""How values become bytes and back: hashes, hex, and RLP for everything that is signed or sent.

RLP (Ethereum yellow paper, appendix B) has one encoding for each value, so equal values have equal
digests. `unpack` reads a stranger's bytes: it bounds size and depth before it decodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias, Union

import rlp
from eth_hash.auto import keccak as _keccak

Address: TypeAlias = bytes
"""20 bytes: the last 20 of the Keccak-256 of an uncompressed secp256k1 public key."""
Digest: TypeAlias = bytes
"""32 bytes: a Keccak-256 (ledger) or SHA-256 Merkle root (objects)."""

Item: TypeAlias = Union[bytes, int, str, "Sequence[Item]"]
Unpacked: TypeAlias = Union[bytes, "list[Unpacked]"]

ZERO_DIGEST: Digest = bytes(32)
ZERO_ADDRESS: Address = bytes(20)

# A block's proposal nests a certificate's seals in a block in a message: 8 levels. Twice that is
# refused before the decoder recurses.
DEPTH_MAX = 16


def keccak256(data: bytes) -> Digest:
    """The ledger's hash."""
    return bytes(_keccak(data))


def sha256(data: bytes) -> Digest:
    """The hash of objects."""
    return hashlib.sha256(data).digest()


def pack(item: Item) -> bytes:
    """The RLP encoding of nested sequences of bytes, text and whole numbers (big-endian, no leading zero)."""
    return bytes(rlp.encode(_plain(item), infer_serializer=False))


def _plain(item: Item) -> object:
    if isinstance(item, bytes):
        return item
    if isinstance(item, bool):
        return b"\x01" if item else b""
    if isinstance(item, int):
        if item < 0:
            raise ValueError(f"only whole numbers from 0 have an RLP encoding, found {item}")
        return item.to_bytes((item.bit_length() + 7) // 8, "big")
    if isinstance(item, str):
        return item.encode()
    return [_plain(part) for part in item]


def unpack(data: bytes, *, max_bytes: int) -> Unpacked:
    """The nested lists of bytes that `data` encodes.

    Raises:
        ValueError: longer than `max_bytes`, nested deeper than `DEPTH_MAX`, or not canonical RLP.
    """
    if len(data) > max_bytes:
        raise ValueError(f"message of {len(data)} bytes, at most {max_bytes} are read")
    _check_depth(data)
    try:
        decoded: Unpacked = _lists(rlp.decode(data, strict=True))
    except (rlp.exceptions.RLPException, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"not canonical RLP: {error}") from error
    return decoded


def _lists(item: object) -> Unpacked:
    if isinstance(item, (list, tuple)):
        return [_lists(part) for part in item]
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    raise ValueError("RLP holds bytes and lists only")


def _check_depth(data: bytes) -> None:
    """Walk the list headers without recursion: the decoder recurses once a level, a stranger chooses the levels."""
    ends: list[int] = []
    position, size = 0, len(data)
    while position < size:
        while ends and position >= ends[-1]:
            ends.pop()
        prefix = data[position]
        if prefix < 0x80:
            position += 1
        elif prefix < 0xB8:
            position += 1 + prefix - 0x80
        elif prefix < 0xC0:
            width = prefix - 0xB7
            position += 1 + width + int.from_bytes(data[position + 1 : position + 1 + width], "big")
        else:
            width = max(prefix - 0xF7, 0)
            length = int.from_bytes(data[position + 1 : position + 1 + width], "big") if width else prefix - 0xC0
            ends.append(position + 1 + width + length)
            if len(ends) > DEPTH_MAX:
                raise ValueError(f"lists nested deeper than {DEPTH_MAX}")
            position += 1 + width


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
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise ValueError(f"{text!r} is not hexadecimal") from error
    if size is not None and len(data) != size:
        raise ValueError(f"{text!r} has {len(data)} bytes where {size} belong")
    return data


def short(data: bytes) -> str:
    """The first four bytes in hexadecimal: enough for a person to compare."""
    return data[:4].hex()
