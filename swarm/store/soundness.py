"""Which bytes on disk are what their names say, as far as this process has read them, and what is done with others."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from swarm.encoding import Digest
from swarm.merkle import CHUNK_BYTES, chunk_count, leaf, root
from swarm.store.disk import chunks_of_file, opened, read_at
from swarm.store.places import leaves_place, read_leaves

# Enough to look at what a disk did; more would fill it with what nobody reads.
DAMAGED_KEPT = 4

_Stamp = tuple[int, int, int]


class Checked:
    """The chunks that this process found sound; a file that changed since counts as unread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: dict[Digest, tuple[_Stamp, bytearray]] = {}

    def trust(self, digest: Digest, place: Path, count: int) -> None:
        """Every byte of the file was hashed when it was written; OSError if it is not there."""
        stamp = _stamp(place)
        with self._lock:
            self._chunks[digest] = stamp, bytearray(b"\x01" * count)

    def forget(self, digest: Digest) -> None:
        """The object went."""
        with self._lock:
            self._chunks.pop(digest, None)

    def sound(self, digest: Digest, place: Path, size: int, leaves: Sequence[Digest], chunks: range) -> bool:
        """Whether these chunks are the object's, reading those that are unread; OSError if they cannot be read."""
        stamp = _stamp(place)
        with self._lock:
            known = self._chunks.get(digest)
            if known is None or known[0] != stamp:
                known = self._chunks[digest] = stamp, bytearray(chunk_count(size))
        flags = known[1]
        wanted = [index for index in chunks if not flags[index]]
        if not wanted and stamp[0] == size:
            return True
        with opened(place) as descriptor:
            if os.fstat(descriptor).st_size != size:
                return False
            for index in wanted:
                length = min(CHUNK_BYTES, size - index * CHUNK_BYTES)
                if leaf(read_at(descriptor, index * CHUNK_BYTES, length)) != leaves[index]:
                    return False
                flags[index] = 1
        return True


def leaves_beside(place: Path, digest: Digest, size: int) -> tuple[Digest, ...] | None:
    """The leaves that are written beside an object; None if they are not its own or cannot be read."""
    try:
        found_size, found = read_leaves(leaves_place(place))
        return found if found_size == size and root(found, size) == digest else None
    except (OSError, ValueError):
        return None


def leaves_of_bytes(place: Path, digest: Digest, size: int) -> tuple[Digest, ...] | None:
    """The leaves of an object's file; None if it is not the object or cannot be read."""
    try:
        with opened(place) as descriptor:
            found = tuple(leaf(chunk) for chunk in chunks_of_file(descriptor))
        return found if root(found, size) == digest else None
    except (OSError, ValueError):
        return None


def set_aside(place: Path, folder: Path, name: str) -> None:
    """Move a file that is not what its name says to `folder`, which keeps the last few; OSError if the disk refuses."""
    with suppress(FileNotFoundError):
        os.replace(place, folder / name)
    kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in kept[DAMAGED_KEPT:]:
        with suppress(OSError):
            path.unlink()


def _stamp(place: Path) -> _Stamp:
    found = place.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
