"""An object on its way into a store, chunk by chunk."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.encoding import Digest, short
from swarm.errors import UnavailableError
from swarm.merkle import CHUNK_BYTES, chunks_of, leaf
from swarm.store.disk import disk, read_at, write_at
from swarm.store.places import marks_place, part_place

if TYPE_CHECKING:
    from swarm.store.objects import Store


class Partial:
    """An object on its way: each chunk is checked as it comes, and what came survives a restart.

    Made by `Store.receive`. Threads may write different chunks at once.
    """

    def __init__(
        self, store: Store, digest: Digest, size: int, leaves: tuple[Digest, ...], *, whole: bool = False
    ) -> None:
        self.digest = digest
        self.size = size
        self.leaves = leaves
        self._store = store
        self._part = part_place(store.folder, digest)
        self._record = marks_place(store.folder, digest)
        # Taken after the store's lock where both are needed.
        self._lock = threading.Lock()
        self._finished = whole
        self._file = self._marks = -1
        self._have = bytearray(b"\x01" * len(leaves)) if whole else self._resume()

    def _resume(self) -> bytearray:
        """Which chunks are there. The record may be ahead of the bytes after a crash, so they are hashed again."""
        have = bytearray(len(self.leaves))
        with disk(self._part):
            try:
                if not self._part.exists():
                    self._store._spares.take(self.size, self._part)
                self._file = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600)
                self._marks = os.open(self._record, os.O_RDWR | os.O_CREAT, 0o600)
                os.ftruncate(self._file, self.size)
                for index, mark in enumerate(read_at(self._marks, 0, len(have))):
                    if mark == 1 and leaf(read_at(self._file, *self._range(index))) == self.leaves[index]:
                        have[index] = 1
                os.ftruncate(self._marks, 0)
                write_at(self._marks, have, 0)
            except OSError:
                self._close_files()
                raise
        return have

    def _range(self, index: int) -> tuple[int, int]:
        start = index * CHUNK_BYTES
        return start, min(CHUNK_BYTES, self.size - start)

    @property
    def path(self) -> Path:
        """The file, of the object's size; where chunks have not come any bytes may be."""
        return self._store._place(self.digest) if self._finished else self._part

    def missing(self) -> list[int]:
        """The chunks that have not come, ascending."""
        return [index for index, here in enumerate(self._have) if not here]

    def has(self, index: int) -> bool:
        """Whether this chunk came."""
        return self._have[index] == 1

    def write(self, first: int, data: bytes | memoryview) -> None:
        """Keep one chunk, or several that follow each other; one that came before changes nothing.

        Raises:
            ValueError: no such chunk, or the bytes are not this chunk's; those before it are kept.
            StorageError: the disk would not take it.
            UnavailableError: the object was removed or closed meanwhile.
        """
        if not data:
            raise ValueError(f"no bytes of chunk {first} of object {short(self.digest)}")
        index = first
        try:
            for chunk in chunks_of(data):
                self._write_chunk(index, chunk)
                index += 1
        finally:
            self._mark(first, index)

    def _write_chunk(self, index: int, chunk: memoryview) -> None:
        if not 0 <= index < len(self.leaves):
            raise ValueError(f"chunk {index} of an object of {len(self.leaves)}")
        # Checked while it is in the processor's cache, from where it is written then.
        if len(chunk) != self._range(index)[1] or leaf(chunk) != self.leaves[index]:
            raise ValueError(f"chunk {index} is not that of object {short(self.digest)}")
        with self._lock, disk(self._part):
            if not self._have[index]:
                self._still_open()
                write_at(self._file, chunk, index * CHUNK_BYTES)
                self._have[index] = 1

    def _mark(self, first: int, stop: int) -> None:
        """For a restart; who made the object whole meanwhile needs no marks."""
        with self._lock, disk(self._part):
            if self._marks >= 0 and first < stop:
                write_at(self._marks, b"\x01" * (stop - first), first)

    def finish(self, *, sync: bool = True) -> Path:
        """Make the object whole: named, in the store. Doing it twice is harmless.

        Args:
            sync: have it on the disk before this returns. Without, only a power cut within the next half minute or so
                loses it: the next start finds it damaged or absent.
        Raises:
            ValueError: chunks are missing.
            UnavailableError: the object was removed or closed meanwhile.
            StorageError: the disk would not take it.
        """
        place = self._name(sync=sync)
        if sync:
            self._store.sync(self.digest)
        return place

    def _name(self, *, sync: bool) -> Path:
        store = self._store
        with disk(self._part):
            with self._lock:
                if self._finished:
                    return store._place(self.digest)
                self._still_open()
                if not all(self._have):
                    raise ValueError(f"{len(self.missing())} chunks of object {short(self.digest)} are missing")
                if sync and store._durable:
                    os.fsync(self._file)
            with store._lock, self._lock:
                if self._finished:
                    return store._place(self.digest)
                self._still_open()
                store._keep(self._part, self.size, self.leaves, sync=sync)
                store._open.pop(self.digest, None)
                store._waiting.pop(self.digest, None)
                self._close_files()
                self._finished = True
                self._record.unlink(missing_ok=True)
                self._part.unlink(missing_ok=True)
                return store._place(self.digest)

    def close(self) -> None:
        """Stop for now; `Store.receive` goes on from here, also after a restart."""
        with self._store._lock:
            if self._store._open.get(self.digest) is self:
                del self._store._open[self.digest]
            self._shut()

    def _still_open(self) -> None:
        if self._file < 0:
            raise UnavailableError(f"object {short(self.digest)} no longer arrives here")

    def _shut(self) -> None:
        with self._lock:
            self._close_files()

    def _close_files(self) -> None:
        for descriptor in (self._file, self._marks):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._marks = -1
