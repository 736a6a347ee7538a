"""Objects by digest on this machine's disk: bounded, checked when first read, whole or not there at all.

    objects/ab/cdef…          the bytes            objects/ab/cdef….leaves   their size and Merkle leaves
    tmp/abcdef….part .have    what is on its way   damaged/                  what no longer matches its name
    pins.json                 what must not be evicted, and why

What an object means is the caller's business. A store belongs to one process; its threads may share it.
"""

from __future__ import annotations

import errno
import json
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

log = logging.getLogger(__name__)

# Enough to look at what a disk did; more would fill it with what nobody reads.
DAMAGED_KEPT = 4

_Stamp = tuple[int, int, int]


def object_place(folder: Path, digest: Digest) -> Path:
    """Where the store in `folder` keeps an object, whether it has it or not."""
    name = digest.hex()
    return folder / "objects" / name[:2] / name[2:]


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
        self._leaves: dict[Digest, tuple[Digest, ...]] = {}
        self._checked: dict[Digest, tuple[_Stamp, bytearray]] = {}
        self._unsynced: set[Digest] = set()
        """What this process kept without waiting for the disk."""
        self._scratches = 0
        self._pins: dict[str, set[Digest]] = {}
        with _disk(folder):
            for name in ("objects", "tmp", "damaged"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._scan_objects()
            self._scan_tmp()
            self._read_pins()

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
        size = self.size(digest)
        with self._lock:
            known = self._leaves.get(digest)
        if known is not None:
            return known
        try:
            found_size, found = _read_leaves(_leaves_path(self._place(digest)))
            if found_size != size or root(found, size) != digest:
                raise ValueError("the leaves are not this object's")
        except (OSError, ValueError):
            found = self._hash_again(digest, size)
        with self._lock:
            if digest in self._sizes:
                self._leaves[digest] = found
        return found

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
        try:
            descriptor = os.open(place, os.O_RDONLY)
        except FileNotFoundError as error:
            raise UnavailableError(f"object {short(digest)} was evicted from {self.folder}") from error
        try:
            with _disk(place):
                return _read_at(descriptor, offset, length)
        finally:
            os.close(descriptor)

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
    ) -> Digest:
        """Keep a copy of a file and name it; with `move` or `share` the file itself becomes the object.

        Args:
            move: the file's own name is gone afterwards.
            share: it stays, and both names are one file: for a file that nobody writes to any more.
            leaves: of the file, for whoever hashed every byte while writing it; `move` or `share` then reads nothing.
            sync: have it on the disk before this returns; False for who calls `sync` before anybody is promised it.
        Raises:
            StorageError: it cannot be read, does not fit, or the disk would not take it.
        """
        with _disk(path):
            if move and path.stat().st_dev == self.folder.stat().st_dev:
                return self._adopt(path, leaves, sync=sync)
            if share and (second := self._second_name(path)) is not None:
                try:
                    return self._adopt(second, leaves, sync=sync)
                finally:
                    second.unlink(missing_ok=True)
            with open(path, "rb", buffering=0) as file:
                found: list[Digest] = []
                chunks = _noting_leaves(_chunks_of_file(file.fileno()), found)
                digest = self._put(chunks, os.fstat(file.fileno()).st_size, found)
            if move:
                path.unlink()
            return digest

    def scratch(self) -> Path:
        """A free path on the store's own disk, for a file that `put_file(..., move=True)` then takes without a copy."""
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
        with _disk(place):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._sync_folder(place.parent)
            self._sync_folder(place.parent.parent)
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
            self._make_room(size - self._waiting.get(digest, 0), keep=digest)
            self._waiting[digest] = size
            self._ages[digest] = time.time_ns()
            try:
                partial = Partial(self, digest, size, tuple(leaves))
            except BaseException:
                self._waiting.pop(digest)
                raise
            self._open[digest] = partial
            return partial

    # Pinning.

    def pin(self, digest: Digest, why: str) -> None:
        """Keep the object from eviction until `unpin(why)`. It may be absent still. Survives a restart."""
        with self._lock:
            held = self._pins.setdefault(why, set())
            if digest not in held:
                held.add(digest)
                self._write_pins()
            self._touch(digest)

    def pin_only(self, digests: Iterable[Digest], why: str) -> None:
        """Make exactly these the objects that `why` keeps."""
        wanted = set(digests)
        with self._lock:
            if self._pins.get(why, set()) == wanted:
                return
            for digest in wanted - self._pins.get(why, set()):
                self._touch(digest)
            self._pins[why] = wanted
            if not wanted:
                del self._pins[why]
            self._write_pins()

    def unpin(self, why: str) -> None:
        """Let go of everything that was pinned under `why`."""
        with self._lock:
            if self._pins.pop(why, None) is not None:
                self._write_pins()

    def pinned(self) -> dict[str, frozenset[Digest]]:
        """What is kept, by why."""
        with self._lock:
            return {why: frozenset(held) for why, held in self._pins.items()}

    # Below: how.

    def _place(self, digest: Digest) -> Path:
        return object_place(self.folder, digest)

    def _scan_objects(self) -> None:
        for place in (self.folder / "objects").glob("??/*"):
            digest = _digest_of_name(place.parent.name + place.name.removesuffix(".leaves"))
            if digest is None:
                continue
            if place.suffix == ".leaves":
                if not place.with_suffix("").exists():
                    place.unlink()
                continue
            self._sizes[digest] = place.stat().st_size
            aged = _leaves_path(place)
            self._ages[digest] = (aged if aged.exists() else place).stat().st_mtime_ns

    def _scan_tmp(self) -> None:
        """Keep what can be resumed; the rest is what a crash left in the middle of a write."""
        folder = self.folder / "tmp"
        for path in folder.iterdir():
            digest = _digest_of_name(path.stem)
            if digest is None or digest in self._sizes or not (folder / f"{path.stem}.part").exists():
                path.unlink()
            elif path.suffix == ".part":
                self._waiting[digest] = path.stat().st_size
                self._ages[digest] = path.stat().st_mtime_ns

    def _read_pins(self) -> None:
        path = self.folder / "pins.json"
        try:
            document = json.loads(path.read_text())
            self._pins = {why: {bytes.fromhex(name) for name in names} for why, names in document.items()}
        except FileNotFoundError:
            self._pins = {}
        except (ValueError, AttributeError, TypeError) as error:
            raise StorageError(
                f"{path} is damaged ({error}); remove it: objects of past rounds may then be evicted earlier"
            ) from error

    def _write_pins(self) -> None:
        document = {why: sorted(digest.hex() for digest in held) for why, held in sorted(self._pins.items())}
        path, fresh = self.folder / "pins.json", self.folder / "pins.json.new"
        with _disk(path):
            self._write_whole(fresh, [json.dumps(document, indent=1).encode()])
            os.replace(fresh, path)
            self._sync_folder(self.folder)

    def _write_whole(self, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        with open(path, "wb", buffering=0) as file:
            for piece in pieces:
                _write_all(file.fileno(), piece)
            if self._durable:
                os.fsync(file.fileno())

    def _sync_folder(self, folder: Path) -> None:
        if not self._durable:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _put(self, chunks: Iterator[memoryview], size: int, leaves: list[Digest]) -> Digest:
        """Write `chunks`; their leaves are there by then."""
        self._reserve(size)
        fresh = self.scratch()
        try:
            with _disk(fresh):
                self._write_whole(fresh, chunks)
                if fresh.stat().st_size != size:
                    raise ValueError(f"the file had {size} bytes, then changed while it was read")
                return self._keep(fresh, size, leaves)
        finally:
            with self._lock:
                self._reserved -= size
            with suppress(OSError):
                fresh.unlink(missing_ok=True)

    def _second_name(self, path: Path) -> Path | None:
        """Another name of the file, on the store's own disk; None where there can be none."""
        second = self.scratch()
        try:
            os.link(path, second)
        except OSError as error:
            log.debug("%s is copied: %s", path, error)
            return None
        return second

    def _adopt(self, path: Path, leaves: Sequence[Digest] | None, *, sync: bool) -> Digest:
        with _disk(path):
            size = path.stat().st_size
            self._reserve(size)
            try:
                with open(path, "rb", buffering=0) as file:
                    if leaves is None:
                        leaves = [leaf(chunk) for chunk in _chunks_of_file(file.fileno())]
                    if sync and self._durable:
                        os.fsync(file.fileno())
                digest = self._keep(path, size, leaves, sync=sync)
                path.unlink(missing_ok=True)
                return digest
            finally:
                with self._lock:
                    self._reserved -= size

    def _reserve(self, size: int) -> None:
        with self._lock:
            self._make_room(size)
            self._reserved += size

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
            os.replace(beside, _leaves_path(place))
            os.replace(fresh, place)
            self._sizes[digest] = size
            self._leaves[digest] = tuple(leaves)
            self._checked[digest] = (_stamp(place), bytearray(b"\x01" * len(leaves)))
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
        with open(beside, "wb") as file:
            file.write(size.to_bytes(8, "big") + b"".join(leaves))
        return beside

    def _touch(self, digest: Digest) -> None:
        if digest in self._sizes:
            beside = _leaves_path(self._place(digest))
            with suppress(OSError):
                os.utime(beside)
                self._ages[digest] = beside.stat().st_mtime_ns

    # Room.

    def _evictable(self, keep: Digest | None = None) -> list[tuple[int, Digest, int]]:
        kept = {digest for held in self._pins.values() for digest in held} | set(self._open) | {keep}
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
            self._drop(digest)
            short_of -= freed

    def _full(self, size: int) -> StorageError:
        return StorageError(
            f"{self.folder} has no room for {size} bytes: {self.used_bytes} of {self.max_bytes} are in use and what is "
            "pinned stays; raise `store_max_bytes` in the site's settings, or free the disk"
        )

    def _drop(self, digest: Digest) -> None:
        place = self._place(digest)
        with _disk(place):
            if self._sizes.pop(digest, None) is not None:
                place.unlink(missing_ok=True)
                _leaves_path(place).unlink(missing_ok=True)
            partial = self._open.pop(digest, None)
            if partial is not None:
                partial._shut()
            if self._waiting.pop(digest, None) is not None:
                for suffix in (".part", ".have"):
                    (self.folder / "tmp" / (digest.hex() + suffix)).unlink(missing_ok=True)
        for known in (self._leaves, self._checked, self._ages):
            known.pop(digest, None)
        self._unsynced.discard(digest)

    # Damage.

    def _check(self, digest: Digest, chunks: range) -> bool:
        """Whether these chunks are sound, reading those that this process has not read; damage is set aside."""
        place, size = self._place(digest), self.size(digest)
        try:
            stamp = _stamp(place)
            with self._lock:
                known = self._checked.get(digest)
                if known is None or known[0] != stamp:
                    known = (stamp, bytearray(chunk_count(size)))
                    self._checked[digest] = known
            flags = known[1]
            leaves = self.leaves(digest)
            wanted = [index for index in chunks if not flags[index]]
            if not wanted and stamp[0] == size:
                return True
            descriptor = os.open(place, os.O_RDONLY)
            try:
                sound = os.fstat(descriptor).st_size == size
                for index in wanted if sound else ():
                    length = min(CHUNK_BYTES, size - index * CHUNK_BYTES)
                    if leaf(_read_at(descriptor, index * CHUNK_BYTES, length)) != leaves[index]:
                        sound = False
                        break
                    flags[index] = 1
            finally:
                os.close(descriptor)
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
        try:
            with open(place, "rb", buffering=0) as file:
                found = tuple(leaf(chunk) for chunk in _chunks_of_file(file.fileno()))
            sound = root(found, size) == digest
        except (OSError, ValueError):
            sound = False
        if not sound:
            self._set_aside(digest)
            raise UnavailableError(f"object {short(digest)} was damaged on disk and is set aside; fetch it again")
        with _disk(place):
            os.replace(self._write_leaves(size, found), _leaves_path(place))
        return found

    def _set_aside(self, digest: Digest) -> None:
        place, folder = self._place(digest), self.folder / "damaged"
        log.warning("object %s does not match its digest: moved to %s", short(digest), folder)
        with self._lock:
            with _disk(place), suppress(FileNotFoundError):
                os.replace(place, folder / digest.hex())
            self._drop(digest)
            kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in kept[DAMAGED_KEPT:]:
                with suppress(OSError):
                    path.unlink()


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
        self._part = store.folder / "tmp" / f"{digest.hex()}.part"
        self._record = store.folder / "tmp" / f"{digest.hex()}.have"
        # Taken after the store's lock where both are needed.
        self._lock = threading.Lock()
        self._finished = whole
        self._file = self._marks = -1
        self._have = bytearray(b"\x01" * len(leaves)) if whole else self._resume()

    def _resume(self) -> bytearray:
        """Which chunks are there. The record may be ahead of the bytes after a crash, so they are hashed again."""
        have = bytearray(len(self.leaves))
        with _disk(self._part):
            try:
                self._file = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600)
                self._marks = os.open(self._record, os.O_RDWR | os.O_CREAT, 0o600)
                os.ftruncate(self._file, self.size)
                for index, mark in enumerate(_read_at(self._marks, 0, len(have))):
                    if mark == 1 and leaf(_read_at(self._file, *self._range(index))) == self.leaves[index]:
                        have[index] = 1
                os.ftruncate(self._marks, 0)
                _write_all(self._marks, have, offset=0)
            except OSError:
                self._close_files()
                raise
        return have

    def _range(self, index: int) -> tuple[int, int]:
        start = index * CHUNK_BYTES
        return start, min(CHUNK_BYTES, self.size - start)

    @property
    def path(self) -> Path:
        """The file, of the object's size; chunks that have not come are holes in it."""
        return self._store._place(self.digest) if self._finished else self._part

    def missing(self) -> list[int]:
        """The chunks that have not come, ascending."""
        return [index for index, here in enumerate(self._have) if not here]

    def write(self, index: int, chunk: bytes | memoryview) -> None:
        """Keep one chunk; one that came before changes nothing.

        Raises:
            ValueError: no such chunk, or the bytes are not this chunk's.
            StorageError: the disk would not take it.
            UnavailableError: the object was removed or closed meanwhile.
        """
        if not 0 <= index < len(self.leaves):
            raise ValueError(f"chunk {index} of an object of {len(self.leaves)}")
        if len(chunk) != self._range(index)[1] or leaf(chunk) != self.leaves[index]:
            raise ValueError(f"chunk {index} is not that of object {short(self.digest)}")
        with self._lock, _disk(self._part):
            if self._have[index]:
                return
            self._still_open()
            _write_all(self._file, chunk, offset=index * CHUNK_BYTES)
            _write_all(self._marks, b"\x01", offset=index)
            self._have[index] = 1

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
        with _disk(self._part):
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


_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; free space or move the site's `folder` to another disk",
    errno.EDQUOT: "the disk quota is used up; free space or raise it",
    errno.EROFS: "the disk is mounted read-only; look at the system's log, then mount it writable",
    errno.EACCES: "this user may not write there; give the folder to the user that runs the node",
    errno.EPERM: "this user may not write there; give the folder to the user that runs the node",
    errno.EIO: "the disk reports an error; look at the system's log and replace it",
}


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """The door for what the operating system says about the disk."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        wayout = _WAYS_OUT.get(error.errno or 0, "check that the site's `folder` is on a sound, writable disk")
        raise StorageError(f"{where}: {error.strerror or error}: {wayout}") from error


def _leaves_path(place: Path) -> Path:
    return place.with_name(place.name + ".leaves")


def _digest_of_name(name: str) -> Digest | None:
    if len(name) != 64 or name != name.lower():
        return None
    try:
        return bytes.fromhex(name)
    except ValueError:
        return None


def _stamp(place: Path) -> _Stamp:
    found = place.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _read_leaves(path: Path) -> tuple[int, tuple[Digest, ...]]:
    data = path.read_bytes()
    if len(data) % 32 != 8:
        raise ValueError(f"{path} holds no list of leaves")
    return int.from_bytes(data[:8], "big"), tuple(data[at : at + 32] for at in range(8, len(data), 32))


def _chunks_of_file(descriptor: int) -> Iterator[memoryview]:
    """The file in chunks; a file that shrinks meanwhile ends early, which its digest then says."""
    offset = 0
    while chunk := os.pread(descriptor, CHUNK_BYTES, offset):
        while len(chunk) < CHUNK_BYTES and (
            more := os.pread(descriptor, CHUNK_BYTES - len(chunk), offset + len(chunk))
        ):
            chunk += more
        yield memoryview(chunk)
        offset += len(chunk)


def _noting_leaves(chunks: Iterator[memoryview], leaves: list[Digest]) -> Iterator[memoryview]:
    for chunk in chunks:
        leaves.append(leaf(chunk))
        yield chunk


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _write_all(descriptor: int, data: bytes | bytearray | memoryview, *, offset: int | None = None) -> None:
    view = memoryview(data)
    while view:
        if offset is None:
            view = view[os.write(descriptor, view) :]
        else:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
