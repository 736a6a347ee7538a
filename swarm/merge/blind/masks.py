"""Masks: streams of ChaCha20 as vectors over Z/2^32, at any place, added or subtracted in blocks.

Addition wraps around and is exact on every machine.

Source: RFC 8439 (ChaCha20); nonce 0, because a key makes one stream and masks one vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Ring: TypeAlias = NDArray[np.uint32]
"""Elements of Z/2^32."""

STREAM_BLOCK = 64
"""Bytes of ChaCha20 for one value of its counter."""
VECTOR_MAX = (1 << 32) * STREAM_BLOCK // 4
"""Coordinates for which the 32-bit counter lasts: 64 thousand million."""
# Stream, sum and zeros of a block stay in a core's second cache.
BLOCK = 1 << 15
_ZEROS = bytes(4 * BLOCK)


@dataclass(frozen=True)
class Mask:
    """One stream on a vector."""

    key: bytes
    """32 bytes; they never print."""
    added: bool
    """Or subtracted."""

    def __repr__(self) -> str:
        return f"Mask({'+' if self.added else '-'})"

    @property
    def opposite(self) -> Mask:
        """What takes it off again."""
        return Mask(self.key, not self.added)


def apply(masks: Sequence[Mask], first: int, vector: Ring) -> None:
    """Add or subtract the masks' elements from number `first` on to a part of a vector, in place.

    Raises:
        ValueError: the vector ends beyond `VECTOR_MAX`.
    """
    if not 0 <= first <= first + len(vector) <= VECTOR_MAX:
        raise ValueError(f"coordinates {first} to {first + len(vector)}; a mask has {VECTOR_MAX}")
    room = np.empty(min(BLOCK, len(vector)), np.uint32)
    for mask in masks:
        _apply(mask, first, vector, room)


def _apply(mask: Mask, first: int, vector: Ring, room: Ring) -> None:
    counter, skipped = divmod(first * 4, STREAM_BLOCK)
    nonce = counter.to_bytes(4, "little") + bytes(12)
    stream = Cipher(ChaCha20(mask.key, nonce), None).encryptor()
    stream.update(bytes(skipped))
    combined = np.add if mask.added else np.subtract
    for start in range(0, len(vector), BLOCK):
        part = vector[start : start + BLOCK]
        elements = room[: len(part)]
        stream.update_into(_ZEROS[: 4 * len(part)] if len(part) < BLOCK else _ZEROS, elements.view(np.uint8).data)
        combined(part, elements.view("<u4"), out=part)
