"""What names an object: the root of a BLAKE3 Merkle tree over its 1 MiB chunks, and its size.

Leaves and inner nodes are hashed apart (RFC 6962 §2.1) and the size is bound into the root, so the list
of leaves proves every chunk on its own: whoever checked the leaves against the digest checks each chunk
as it arrives, from whomever it comes.

Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn, BLAKE3: one function, fast everywhere, 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from swarm.encoding import Digest

CHUNK_BYTES = 1 << 20


def chunks_of(data: bytes | memoryview) -> Iterator[memoryview]:
    """`data` in pieces of `CHUNK_BYTES`, the last may be shorter; an empty object has no chunk."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def leaf(chunk: bytes | memoryview) -> Digest:
    """The leaf of one chunk."""
    hasher = blake3(b"\x00")
    hasher.update(chunk)
    return hasher.digest()


def chunk_count(size_bytes: int) -> int:
    """How many chunks an object of this size has."""
    return -(-size_bytes // CHUNK_BYTES)


def root(leaves: Sequence[Digest], size_bytes: int) -> Digest:
    """The object's digest from its leaves.

    Raises:
        ValueError: the number of leaves does not fit the size.
    """
    if len(leaves) != chunk_count(size_bytes):
        raise ValueError(f"{len(leaves)} leaves for {size_bytes} bytes, {chunk_count(size_bytes)} belong")
    level = list(leaves) or [blake3(b"\x00").digest()]
    while len(level) > 1:
        level = _upper(level)
    return _top(level[0], size_bytes)


@dataclass(frozen=True)
class Proof:
    """That a leaf is the one at this place of an object: whoever has the object's digest can check it."""

    size: int
    """Of the object, in bytes."""
    index: int
    siblings: tuple[Digest, ...]
    """The other half of each pair on the way up; a node without one goes up as it is."""

    def digest(self, leaf_: Digest) -> Digest:
        """The digest of the object that has this leaf at this place.

        Raises:
            ValueError: the object has no such place, or the number of siblings does not fit it.
        """
        count, at = chunk_count(self.size), self.index
        if not 0 <= at < count:
            raise ValueError(f"no chunk {at} in {self.size} bytes")
        node, left = leaf_, list(self.siblings)
        while count > 1:
            if at ^ 1 < count:
                if not left:
                    raise ValueError("the proof is too short")
                other = left.pop(0)
                node = _pair(other, node) if at & 1 else _pair(node, other)
            count, at = (count + 1) // 2, at // 2
        if left:
            raise ValueError("the proof is too long")
        return _top(node, self.size)


def prove(leaves: Sequence[Digest], size_bytes: int, index: int) -> Proof:
    """The proof of one leaf; ValueError if there is none at this place."""
    if not 0 <= index < len(leaves) == chunk_count(size_bytes):
        raise ValueError(f"no leaf {index} of {len(leaves)} for {size_bytes} bytes")
    level, at, siblings = list(leaves), index, list[Digest]()
    while len(level) > 1:
        if at ^ 1 < len(level):
            siblings.append(level[at ^ 1])
        level, at = _upper(level), at // 2
    return Proof(size_bytes, index, tuple(siblings))


def _pair(left: Digest, right: Digest) -> Digest:
    return blake3(b"\x01" + left + right).digest()


def _upper(level: list[Digest]) -> list[Digest]:
    pairs = [_pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + level[len(pairs) * 2 :]


def _top(node: Digest, size_bytes: int) -> Digest:
    return blake3(b"\x02" + size_bytes.to_bytes(8, "big") + node).digest()


def digest_of(data: bytes | memoryview) -> Digest:
    """The digest of an object in memory."""
    return root([leaf(chunk) for chunk in chunks_of(data)], len(data))


def digest_of_chunks(chunks: Iterable[bytes | memoryview]) -> tuple[Digest, int]:
    """Digest and size of an object given chunk by chunk, each of `CHUNK_BYTES` but the last."""
    leaves: list[Digest] = []
    size = 0
    for chunk in chunks:
        if size % CHUNK_BYTES:
            raise ValueError("only the last chunk may be short")
        leaves.append(leaf(chunk))
        size += len(chunk)
    return root(leaves, size), size
