"""Bytes to and from files, and what the operating system says about the disk, in words that show a way out."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swarm.encoding import Digest
from swarm.errors import StorageError
from swarm.merkle import CHUNK_BYTES, leaf

log = logging.getLogger(__name__)

_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; free space or move the site's `folder` to another disk",
    errno.EDQUOT: "the disk quota is used up; free space or raise it",
    errno.EROFS: "the disk is mounted read-only; look at the system's log, then mount it writable",
    errno.EACCES: "this user may not write there; give the folder to the user that runs the node",
    errno.EPERM: "this user may not write there; give the folder to the user that runs the node",
    errno.EIO: "the disk reports an error; look at the system's log and replace it",
}


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """The door for what the operating system says about the disk: a StorageError."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        wayout = _WAYS_OUT.get(error.errno or 0, "check that the site's `folder` is on a sound, writable disk")
        raise StorageError(f"{where}: {error.strerror or error}: {wayout}") from error


def write_whole(path: Path, pieces: Iterable[bytes | memoryview], *, sync: bool) -> int:
    """Make the file these bytes, whatever it held; how many they are."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        size = 0
        for piece in pieces:
            write_at(descriptor, piece, size)
            size += len(piece)
        os.ftruncate(descriptor, size)
        if sync:
            os.fsync(descriptor)
        return size
    finally:
        os.close(descriptor)


def linked(path: Path, second: Path) -> bool:
    """Whether `second` is another name of the file now; on another disk, say, there can be none."""
    try:
        os.link(path, second)
    except OSError as error:
        log.debug("%s is copied: %s", path, error)
        return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file or a folder, for reading."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


def chunks_of_file(descriptor: int) -> Iterator[memoryview]:
    """The file in chunks; a file that shrinks meanwhile ends early, which its digest then says."""
    offset = 0
    while chunk := read_at(descriptor, offset, CHUNK_BYTES):
        yield memoryview(chunk)
        offset += len(chunk)


def noting_leaves(chunks: Iterator[memoryview], leaves: list[Digest]) -> Iterator[memoryview]:
    """The same chunks; their leaves are in `leaves` once they were taken."""
    for chunk in chunks:
        leaves.append(leaf(chunk))
        yield chunk


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """`length` bytes; fewer where the file ends."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write_at(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of it there."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
