"""The store: which objects are here, what goes when room is needed, and how a file becomes an object."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from swarm.encoding import Digest, short
from swarm.errors import StorageError, UnavailableError
from swarm.merkle import CHUNK_BYTES, chunk_count, chunks_of, leaf, root
from swarm.store.disk import chunks_of_file, disk, linked, noting_leaves, opened, read_at, sync_path, write_whole
from swarm.store.partial import Partial
from swarm.store.pins import Pins
from swarm.store.places import (
    arriving_in,
    encode_leaves,
    leaves_place,
    marks_place,
    object_place,
    objects_in,
    part_place,
)
from swarm.store.soundness import Checked, leaves_beside, leaves_of_bytes, set_aside
from swarm.store.spares import Spares

log = logging.getLogger(__name__)


class Store:
    """Objects in `folder`, together at most `max_bytes`.

    Where room is needed, the unpinned object that was put or pinned longest ago goes first. `durable=False` leaves
    out the disk syncs, for simulations.

    Raises:
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, max_bytes: int, *, durable: bool = True) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._durable = durable
        self._lock = threading.RLock()
        self._sizes: dict[Digest, int] = {}
        self._ages: dict[Digest, int] = {}
        self._waiting: dict[Digest, int] = {}
        self._open: dict[Digest, Partial] = {}
        self._reserved = 0
        self._drafts: dict[Path, int] = {}
        """What of it is reserved for files that are being written."""
        self._leaves: dict[Digest, tuple[Digest, ...]] = {}
        self._checked = Checked()
        self._unsynced: set[Digest] = set()
        """What this process kept without waiting for the disk."""
        self._scratches = 0
        self._spares = Spares(folder / "tmp")
        with disk(folder):
            for name in ("objects", "tmp", "damaged"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._scan_objects()
            self._scan_tmp()
            self._pins = Pins(folder / "pins.json", self._write_pins)

    # What is there.

    @property
    def used_bytes(self) -> int:
        """Bytes of objects, of what is on its way and of what is being written."""
        with self._lock:
            return sum(self._sizes.values()) + sum(self._waiting.values()) + self._reserved

    @property
    def free_bytes(self) -> int:
        """The largest object that would be taken now: free bytes and what may be evicted."""
        with self._lock:
            return self.max_bytes - self.used_bytes + sum(size for _, _, size in self._evictable())

    def digests(self) -> frozenset[Digest]:
        """The objects that are here, whole."""
        with self._lock:
            return frozenset(self._sizes)

    def has(self, digest: Digest) -> bool:
        """Whether the object is here, whole. Damage that no read has met yet is not seen."""
        with self._lock:
            return digest in self._sizes

    def size(self, digest: Digest) -> int:
        """Bytes of an object; UnavailableError if it is not here."""
        with self._lock:
            if digest not in self._sizes:
                raise UnavailableError(f"object {short(digest)} is not in {self.folder}")
            return self._sizes[digest]

    def leaves(self, digest: Digest) -> tuple[Digest, ...]:
        """The Merkle leaves of an object, checked against its digest; UnavailableError if it is not here."""
        known = self.known_leaves(digest)
        if known is not None:
            return known
        size = self.size(digest)
        found = leaves_beside(self._place(digest), digest, size)
        if found is None:
            found = self._hash_again(digest, size)
        with self._lock:
            if digest in self._sizes:
                self._leaves[digest] = found
        return found

    def known_leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        """The same if this process has them in memory: the disk is not asked."""
        with self._lock:
            return self._leaves.get(digest)

    def path(self, digest: Digest) -> Path:
        """The file of an object, for reading only; every byte was checked. It stays while the object is pinned.

        Raises:
            UnavailableError: not here, or set aside because it was damaged.
        """
        if not self.verify(digest):
            raise UnavailableError(f"object {short(digest)} was damaged on disk and is set aside; fetch it again")
        return self._place(digest)

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; every chunk is checked the first time that this process touches it.

        Raises:
            UnavailableError: not here, or set aside because it was damaged.
            ValueError: the range is not inside the object.
        """
        size = self.size(digest)
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"bytes {offset} to {offset + length} of an object of {size} bytes")
        if length == 0:
            return b""
        place = self._place(digest)
        first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
        if not self._check(digest, range(first, last + 1)):
            raise UnavailableError(f"object {short(digest)} was damaged on disk and is set aside; fetch it again")
        with disk(place), suppress(FileNotFoundError), opened(place) as descriptor:
            return read_at(descriptor, offset, length)
        raise UnavailableError(f"object {short(digest)} was evicted from {self.folder}")

    def verify(self, digest: Digest) -> bool:
        """Whether the bytes on disk are the object's; if not they are set aside and the object is absent.

        Chunks that this process checked before are read again only if the file changed since.

        Raises:
            UnavailableError: not here.
        """
        return self._check(digest, range(chunk_count(self.size(digest))))

    # Putting.

    def put(self, data: bytes | memoryview) -> Digest:
        """Keep `data` and name it.

        Raises:
            StorageError: it does not fit, or the disk would not take it.
        """
        view = memoryview(data).cast("B")
        leaves = [leaf(chunk) for chunk in chunks_of(view)]
        digest = root(leaves, len(view))
        if self._sound(digest):
            self.sync(digest)
            return digest
        return self._put(chunks_of(view), len(view), leaves)

    def put_file(
        self,
        path: Path,
        *,
        move: bool = False,
        share: bool = False,
        leaves: Sequence[Digest] | None = None,
        sync: bool = True,
        successor: Path | None = None,
    ) -> Digest:
        """Keep a copy of a file and name it; with `move` or `share` the file itself becomes the object.

        Args:
            move: the file's own name is gone afterwards.
            share: it stays, and both names are one file: for a file that nobody writes to any more.
            leaves: of the file, for whoever hashed every byte while writing it; `move` or `share` then reads nothing.
            sync: have it on the disk before this returns; False for who calls `sync` before anybody is promised it.
            successor: where the file of an evicted object may be left, for the next that is shared to be written over
                it; its bytes are not the store's any more.
        Raises:
            StorageError: it cannot be read, does not fit, or the disk would not take it.
        """
        with disk(path):
            if move and path.stat().st_dev == self.folder.stat().st_dev:
                return self._adopt(path, leaves, sync=sync)
            second = self.scratch()
            if share and linked(path, second):
                try:
                    return self._adopt(second, leaves, sync=sync, successor=successor)
                finally:
                    second.unlink(missing_ok=True)
            with opened(path) as descriptor:
                found: list[Digest] = []
                chunks = noting_leaves(chunks_of_file(descriptor), found)
                digest = self._put(chunks, os.fstat(descriptor).st_size, found)
            if move:
                path.unlink()
            return digest

    @contextmanager
    def draft(self, size: int) -> Iterator[Path]:
        """A path on the store's own disk to write an object of about `size` bytes to, for `put_file(..., move=True)`.

        A file may be there, with any bytes in it: write all of yours and set its length. There is room for it from now
        on. What was not put is removed at the end.

        Raises:
            StorageError: it would not fit beside what is pinned.
        """
        path = self.scratch()
        with disk(path), self._lock:
            self._make_room(size)
            self._reserved += size
            self._drafts[path] = size
            self._spares.take(size, path)
            self._trim()
        try:
            yield path
        finally:
            with self._lock:
                self._reserved -= self._drafts.pop(path, 0)
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def scratch(self) -> Path:
        """A free path on the store's own disk, for a small file or another name of one."""
        with self._lock:
            self._scratches += 1
            return self.folder / "tmp" / f"{os.getpid()}-{self._scratches}.scratch"

    def sync(self, digest: Digest) -> None:
        """Have an object on the disk that was kept without waiting for it; StorageError if the disk refuses."""
        with self._lock:
            waits = self._durable and digest in self._unsynced
        if not waits:
            return
        place = self._place(digest)
        with disk(place):
            for path in (place, place.parent, place.parent.parent):
                sync_path(path)
        with self._lock:
            self._unsynced.discard(digest)

    def remove(self, digest: Digest) -> None:
        """Forget an object and what is on its way of it. A caller's own pin does not stop it."""
        with self._lock:
            self._drop(digest)

    # Arriving in pieces.

    def receive(self, digest: Digest, size: int, leaves: Sequence[Digest]) -> Partial:
        """The place where an object arrives chunk by chunk; what came before a restart is there already.

        Asked again for the same object, it is the same `Partial`; an object that is here misses nothing.

        Raises:
            ValueError: the leaves and the size are not the digest's.
            StorageError: it would not fit beside what is pinned, or the disk would not take it.
        """
        if size < 0 or size >= 1 << 63:
            raise ValueError(f"an object of {size} bytes")
        if size > self.max_bytes:
            raise self._full(size)
        if root(leaves, size) != digest:
            raise ValueError(f"the leaves and the size {size} are not those of object {short(digest)}")
        with self._lock:
            known = self._open.get(digest)
            if known is not None:
                return known
            if digest in self._sizes:
                return Partial(self, digest, size, tuple(leaves), whole=True)
            with disk(self.folder):
                self._make_room(size - self._waiting.get(digest, 0), keep=digest)
                self._waiting[digest] = size
                self._ages[digest] = time.time_ns()
                try:
                    partial = Partial(self, digest, size, tuple(leaves))
                except BaseException:
                    self._waiting.pop(digest)
                    raise
                finally:
                    self._trim()
            self._open[digest] = partial
            return partial

    # Pinning.

    def pin(self, digest: Digest, why: str) -> None:
        """Keep the object from eviction until `unpin(why)`. It may be absent still.

        Survives the end of this process. A power cut may take the last pins: whoever pins does it again at its start.
        """
        with self._lock:
            self._pins.add(digest, why)
            self._touch(digest)

    def pin_only(self, digests: Iterable[Digest], why: str) -> None:
        """Make exactly these the objects that `why` keeps."""
        with self._lock:
            for digest in self._pins.only(set(digests), why):
                self._touch(digest)

    def unpin(self, why: str) -> None:
        """Let go of everything that was pinned under `why`."""
        with self._lock:
            self._pins.only(set(), why)

    def pinned(self) -> dict[str, frozenset[Digest]]:
        """What is kept, by why."""
        with self._lock:
            return {why: frozenset(held) for why, held in self._pins.held().items()}

    # Below: how.

    def _place(self, digest: Digest) -> Path:
        return object_place(self.folder, digest)

    def _scan_objects(self) -> None:
        for digest, place in objects_in(self.folder):
            self._sizes[digest] = place.stat().st_size
            aged = leaves_place(place)
            self._ages[digest] = (aged if aged.exists() else place).stat().st_mtime_ns

    def _scan_tmp(self) -> None:
        for digest, part in arriving_in(self.folder, here=self._sizes):
            self._waiting[digest] = part.stat().st_size
            self._ages[digest] = part.stat().st_mtime_ns

    def _write_pins(self, document: bytes) -> None:
        path, fresh = self.folder / "pins.json", self.folder / "pins.json.new"
        with disk(path):
            write_whole(fresh, [document], sync=False)
            os.replace(fresh, path)

    def _sync_folder(self, folder: Path) -> None:
        if self._durable:
            sync_path(folder)

    def _put(self, chunks: Iterator[memoryview], size: int, leaves: list[Digest]) -> Digest:
        """Write `chunks`; their leaves are there by then."""
        with self.draft(size) as fresh, disk(fresh):
            if write_whole(fresh, chunks, sync=self._durable) != size:
                raise ValueError(f"the file had {size} bytes, then changed while it was read")
            return self._keep(fresh, size, leaves)

    def _adopt(
        self, path: Path, leaves: Sequence[Digest] | None, *, sync: bool, successor: Path | None = None
    ) -> Digest:
        with disk(path):
            size = path.stat().st_size
            with self._room_of(path, size, successor):
                with opened(path) as descriptor:
                    if leaves is None:
                        leaves = [leaf(chunk) for chunk in chunks_of_file(descriptor)]
                    if sync and self._durable:
                        os.fsync(descriptor)
                digest = self._keep(path, size, leaves, sync=sync)
                path.unlink(missing_ok=True)
                return digest

    @contextmanager
    def _room_of(self, path: Path, size: int, successor: Path | None) -> Iterator[None]:
        """Room for a file while it becomes an object; a draft has its own already."""
        with self._lock:
            self._make_room(size - self._drafts.get(path, 0))
            self._reserved += size - self._drafts.pop(path, 0)
            if successor is not None:
                self._spares.take(size, successor)
            self._trim()
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size

    def _keep(self, fresh: Path, size: int, leaves: Sequence[Digest], *, sync: bool = True) -> Digest:
        """Give a whole file its name; `sync` if its bytes are synced. What is there already stays if it is sound."""
        digest = root(leaves, size)
        if self._sound(digest):
            if sync:
                self.sync(digest)
            return digest
        place = self._place(digest)
        beside = self._write_leaves(size, leaves)
        with self._lock:
            made = not place.parent.exists()
            place.parent.mkdir(exist_ok=True)
            # The leaves first: bytes never stand without them, leaves alone are swept at the next start.
            os.replace(beside, leaves_place(place))
            os.replace(fresh, place)
            self._sizes[digest] = size
            self._leaves[digest] = tuple(leaves)
            self._checked.trust(digest, place, len(leaves))
            self._touch(digest)
            if not sync:
                self._unsynced.add(digest)
        if sync:
            self._sync_folder(place.parent)
            if made:
                self._sync_folder(place.parent.parent)
        return digest

    def _sound(self, digest: Digest) -> bool:
        """Whether the object is here and as it should be; then it counts as put just now."""
        try:
            sound = self.verify(digest)
        except UnavailableError:
            return False
        with self._lock:
            self._touch(digest)
        return sound

    def _write_leaves(self, size: int, leaves: Sequence[Digest]) -> Path:
        """A scratch file of size and leaves. Not synced: lost or torn leaves are made again from the bytes."""
        beside = self.scratch()
        write_whole(beside, [encode_leaves(size, leaves)], sync=False)
        return beside

    def _touch(self, digest: Digest) -> None:
        if digest in self._sizes:
            beside = leaves_place(self._place(digest))
            with suppress(OSError):
                os.utime(beside)
                self._ages[digest] = beside.stat().st_mtime_ns

    # Room.

    def _evictable(self, keep: Digest | None = None) -> list[tuple[int, Digest, int]]:
        kept = self._pins.digests() | set(self._open) | {keep}
        here = list(self._sizes.items()) + list(self._waiting.items())
        return sorted((self._ages.get(digest, 0), digest, size) for digest, size in here if digest not in kept)

    def _make_room(self, size: int, keep: Digest | None = None) -> None:
        short_of = self.used_bytes + size - self.max_bytes
        if short_of <= 0:
            return
        candidates = self._evictable(keep)
        if sum(candidate[2] for candidate in candidates) < short_of:
            raise self._full(size)
        for _, digest, freed in candidates:
            if short_of <= 0:
                break
            log.info("object %s evicted to make room", short(digest))
            self._drop(digest, leave_spares=True)
            short_of -= freed

    def _trim(self) -> None:
        """Once room was made and taken: objects and spares are within the bound together."""
        self._spares.trim(self.max_bytes - self.used_bytes)

    def _let_go(self, path: Path, spare_bytes: int) -> None:
        if spare_bytes:
            self._spares.keep(path, spare_bytes)
        else:
            path.unlink(missing_ok=True)

    def _full(self, size: int) -> StorageError:
        return StorageError(
            f"{self.folder} has no room for {size} bytes: {self.used_bytes} of {self.max_bytes} are in use and what is "
            "pinned stays; raise `store_max_bytes` in the site's settings, or free the disk"
        )

    def _drop(self, digest: Digest, *, leave_spares: bool = False) -> None:
        place, part = self._place(digest), part_place(self.folder, digest)
        with disk(place):
            size = self._sizes.pop(digest, None)
            if size is not None:
                self._let_go(place, size if leave_spares else 0)
                leaves_place(place).unlink(missing_ok=True)
            partial = self._open.pop(digest, None)
            if partial is not None:
                partial._shut()
            size = self._waiting.pop(digest, None)
            if size is not None:
                marks_place(self.folder, digest).unlink(missing_ok=True)
                self._let_go(part, size if leave_spares else 0)
        self._leaves.pop(digest, None)
        self._ages.pop(digest, None)
        self._checked.forget(digest)
        self._unsynced.discard(digest)

    # Damage.

    def _check(self, digest: Digest, chunks: range) -> bool:
        """Whether these chunks are sound, reading those that this process has not read; damage is set aside."""
        place, size = self._place(digest), self.size(digest)
        try:
            sound = self._checked.sound(digest, place, size, self.leaves(digest), chunks)
        except UnavailableError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise StorageError(f"{place}: {error.strerror}; raise the limit of open files") from error
            log.warning("object %s cannot be read: %s", short(digest), error)
            sound = False
        if not sound:
            self._set_aside(digest)
        return sound

    def _hash_again(self, digest: Digest, size: int) -> tuple[Digest, ...]:
        """The leaves from the bytes, where the file of leaves is lost or damaged."""
        place = self._place(digest)
        found = leaves_of_bytes(place, digest, size)
        if found is None:
            self._set_aside(digest)
            raise UnavailableError(f"object {short(digest)} was damaged on disk and is set aside; fetch it again")
        with disk(place):
            os.replace(self._write_leaves(size, found), leaves_place(place))
        return found

    def _set_aside(self, digest: Digest) -> None:
        place, folder = self._place(digest), self.folder / "damaged"
        log.warning("object %s does not match its digest: moved to %s", short(digest), folder)
        with self._lock:
            with disk(place):
                set_aside(place, folder, digest.hex())
            self._drop(digest)
