"""What names an object: the root of a SHA-256 Merkle tree over its 1 MiB chunks, and its size.

Leaves and inner nodes are hashed apart (RFC 6962 §2.1) and the size is bound into the root, so the list
of leaves proves every chunk on its own: whoever checked the leaves against the digest checks each chunk
as it arrives, from whomever it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from swarm.encoding import Digest

CHUNK_BYTES = 1 << 20


def chunks_of(data: bytes | memoryview) -> Iterator[memoryview]:
    """`data` in pieces of `CHUNK_BYTES`, the last may be shorter; an empty object has no chunk."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def leaf(chunk: bytes | memoryview) -> Digest:
    """The leaf of one chunk."""
    hasher = hashlib.sha256(b"\x00")
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
    level = list(leaves) or [hashlib.sha256(b"\x00").digest()]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return hashlib.sha256(b"\x02" + size_bytes.to_bytes(8, "big") + level[0]).digest()


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
