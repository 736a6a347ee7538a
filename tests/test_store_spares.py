"""A store writes over the files of what it evicted, and nobody who reads one of those ever sees it."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from unittest import mock

import pytest

from swarm.encoding import Digest
from swarm.errors import StorageError
from swarm.merkle import CHUNK_BYTES, chunks_of, digest_of, leaf
from swarm.store import Partial, Store, spares

MIB = CHUNK_BYTES


def make(folder: Path, max_bytes: int = 3 * MIB) -> Store:
    return Store(folder / "store", max_bytes, durable=False)


def some(seed: int, size: int = 2 * MIB) -> bytes:
    return random.Random(seed).randbytes(size)


def receive(store: Store, data: bytes) -> Partial:
    return store.receive(digest_of(data), len(data), [leaf(chunk) for chunk in chunks_of(data)])


def put(store: Store, data: bytes) -> Digest:
    return store.put(data)


def received(store: Store, data: bytes) -> Digest:
    partial = receive(store, data)
    for index, chunk in enumerate(chunks_of(data)):
        partial.write(index, chunk)
    partial.finish()
    return partial.digest


def drafted(store: Store, data: bytes) -> Digest:
    with store.draft(len(data)) as path:
        write_over(path, data)
        return store.put_file(path, move=True)


def write_over(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    assert os.pwrite(descriptor, data, 0) == len(data)
    os.ftruncate(descriptor, len(data))
    os.close(descriptor)


@contextmanager
def inode_of(path: Path) -> Iterator[int]:
    """The file's number, which no other file gets meanwhile; a handle of this kind does not count as a reader."""
    handle = os.open(path, os.O_PATH)
    try:
        yield os.fstat(handle).st_ino
    finally:
        os.close(handle)


def on_disk(folder: Path) -> int:
    """Bytes of everything but leaves, marks and pins."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".leaves", ".have", ".json")]
    return sum(path.stat().st_size for path in files)


# What it is for.


@pytest.mark.parametrize("come", [put, received, drafted])
@pytest.mark.parametrize("size", [2 * MIB, 2 * MIB - 4097, MIB + 5])
def test_what_comes_is_written_over_what_was_evicted(
    tmp_path: Path, come: Callable[[Store, bytes], Digest], size: int
) -> None:
    store = make(tmp_path)
    data = some(2, size)
    with inode_of(store.path(store.put(some(1)))) as before:
        place = store.path(come(store, data))
        assert place.stat().st_ino == before
    assert place.stat().st_mode & 0o777 == 0o600
    assert place.read_bytes() == data
    assert store.used_bytes == on_disk(store.folder) == size


def test_an_arrival_that_was_given_up_is_written_over_too(tmp_path: Path) -> None:
    store = make(tmp_path)
    before = receive(store, some(1))
    before.write(0, some(1)[:MIB])
    before.close()
    with inode_of(before.path) as inode:
        place = store.path(received(store, some(2)))
        assert place.stat().st_ino == inode
    assert place.read_bytes() == some(2)


def test_what_a_shared_file_evicts_is_left_for_its_successor(tmp_path: Path) -> None:
    """Training's next update is written over it, and shared in its turn."""
    store, after = make(tmp_path), tmp_path / "updates" / "next"
    after.parent.mkdir()
    path = after.with_name("update")
    for seed in range(4):
        write_over(path, some(seed))
        digest = store.put_file(path, share=True, successor=after)
        assert store.path(digest).read_bytes() == some(seed)
        assert store.used_bytes == on_disk(store.folder) == 2 * MIB
        path.unlink()
        assert after.exists() is (seed > 0)
        if after.exists():
            with inode_of(after) as inode:
                after.replace(path)
                assert path.stat().st_ino == inode
                assert path.read_bytes() == some(seed - 1)


def test_a_successor_that_cannot_be_left_is_no_error(tmp_path: Path) -> None:
    store, path = make(tmp_path), tmp_path / "update"
    store.put(some(1))
    path.write_bytes(some(2))
    store.put_file(path, share=True, successor=tmp_path / "no" / "such" / "folder")
    assert on_disk(store.folder) == 2 * MIB


def test_a_removed_object_leaves_no_spare(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.remove(store.put(some(1)))
    assert on_disk(store.folder) == 0


def test_a_much_smaller_object_does_not_keep_a_large_file(tmp_path: Path) -> None:
    store = make(tmp_path, 8 * MIB)
    with inode_of(store.path(store.put(some(1, 8 * MIB)))) as before:
        assert store.path(store.put(some(2, MIB))).stat().st_ino != before
    assert on_disk(store.folder) == MIB


# Nobody sees it.

READER = """
import hashlib, mmap, os, sys
how, path = sys.argv[1:]
file = os.open(path, os.O_RDONLY)
view = mmap.mmap(file, 0, prot=mmap.PROT_READ)
if how == "mapped":
    os.close(file)
elif how == "open":
    view.close()
print("ready", flush=True)
sys.stdin.readline()
print(hashlib.sha256(view if how == "mapped" else os.pread(file, 1 << 30, 0)).hexdigest(), flush=True)
"""


@contextmanager
def reader(how: str, path: Path) -> Iterator[Callable[[], str]]:
    """Another process that has the file; called, it says the hash of what it reads now."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, how, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield lambda: process.communicate("\n", timeout=60)[0].strip()


def seen_after_eviction(folder: Path, how: str) -> str:
    """What another process reads of an object after others took its place."""
    store = make(folder)
    with reader(how, store.path(store.put(some(1)))) as look:
        for seed in (2, 3, 4):
            for come in (put, received, drafted):
                assert store.path(come(store, some(seed))).read_bytes() == some(seed)
        assert store.used_bytes == on_disk(store.folder)
        return look()


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_process_that_still_reads_an_evicted_object_sees_it_whole(tmp_path: Path, how: str) -> None:
    assert seen_after_eviction(tmp_path, how) == sha256(some(1)).hexdigest()


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_planted_store_that_asks_for_no_lease_changes_what_others_read(tmp_path: Path, how: str) -> None:
    with mock.patch.object(spares, "_is_ours_alone", return_value=True):
        assert seen_after_eviction(tmp_path, how) == sha256(some(4)).hexdigest()


def test_a_file_that_has_another_name_stays_as_it_is(tmp_path: Path) -> None:
    """Training's own file, say, or a backup made of links."""
    store, path = make(tmp_path), tmp_path / "update"
    path.write_bytes(some(1))
    path.chmod(0o644)
    store.put_file(path, share=True)
    store.put(some(2))
    assert path.read_bytes() == some(1)
    again = store.put_file(path, share=True)
    path.unlink()
    with inode_of(store.path(again)) as inode:
        taken = store.path(store.put(some(3))).stat()
        assert taken.st_ino == inode, "its other name is gone"
        assert taken.st_mode & 0o777 == 0o600, "and who might read what training wrote may not read others' updates"


@pytest.mark.parametrize("refused", [OSError(11, "somebody has it open"), OSError(22, "no leases here")])
def test_where_no_lease_is_given_files_are_new(tmp_path: Path, refused: OSError) -> None:
    store = make(tmp_path)
    kept = os.open(store.path(store.put(some(1))), os.O_RDONLY)
    with mock.patch.object(fcntl, "fcntl", side_effect=refused):
        assert store.path(received(store, some(2))).read_bytes() == some(2)
    assert os.pread(kept, 3 * MIB, 0) == some(1)
    os.close(kept)
    assert on_disk(store.folder) == 2 * MIB


OPENED_MEANWHILE = """
import fcntl, pathlib, subprocess, sys, time
from swarm.store import spares
real, path = fcntl.fcntl, pathlib.Path(sys.argv[1])
openers = []
def leased(descriptor, command, value):
    real(descriptor, command, value)
    if value == fcntl.F_WRLCK:
        openers.append(subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL))
        time.sleep(0.3)
fcntl.fcntl = leased
print(spares._is_ours_alone(path), openers[0].wait(10))
"""


def test_who_opens_a_file_while_it_is_looked_at_does_not_end_the_process(tmp_path: Path) -> None:
    """The kernel's signal to the holder of a lease would, if it were the usual one."""
    path = tmp_path / "1.spare"
    path.write_bytes(b"bytes")
    found = subprocess.run(
        [sys.executable, "-c", OPENED_MEANWHILE, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.stdout, found.returncode) == ("True 0\n", 0), found.stderr


# What is in it is nothing.


def test_no_byte_of_a_file_that_is_written_over_counts_as_arrived(tmp_path: Path) -> None:
    data = some(1)
    store = make(tmp_path)
    store.put(data)
    # The same bytes even, in the very places, but nobody has said so.
    store.remove(store.put(b"x"))
    spare = store.folder / "tmp" / "9.spare"
    write_over(spare, data)
    store._spares._sizes[spare] = len(data)
    store.remove(digest_of(data))
    partial = receive(store, data)
    assert partial.path.read_bytes() == data
    assert partial.missing() == [0, 1]
    with pytest.raises(ValueError, match="2 chunks"):
        partial.finish()


def test_after_a_crash_marked_bytes_of_another_object_are_fetched_again(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(some(1))
    partial = receive(store, some(2))
    partial.write(0, some(2)[:MIB])
    # As if the marks had reached the disk and the bytes had not: what was there before is there still.
    (partial.path.with_suffix(".have")).write_bytes(b"\x01\x01")
    assert receive(make(tmp_path), some(2)).missing() == [1]


def test_a_restart_takes_no_spare_for_anything_else(tmp_path: Path) -> None:
    store = make(tmp_path, 8 * MIB)
    for age, size in enumerate((MIB, 4 * MIB, 3 * MIB)):
        store._ages[store.put(some(age, size))] = age
    receive(store, some(9, 3 * MIB))
    assert list((store.folder / "tmp").glob("*.spare"))
    again = make(tmp_path, 8 * MIB)
    assert not list((store.folder / "tmp").glob("*.spare"))
    assert again.used_bytes == on_disk(store.folder)
    assert all(again.verify(digest) for digest in again.digests())


# The bound.


def test_objects_drafts_and_spares_stay_within_the_bound_together(tmp_path: Path) -> None:
    for seed in range(20):
        rng, store = random.Random(seed), make(tmp_path / str(seed), 8 * MIB)
        for turn in range(20):
            data = some(100 * seed + turn, rng.choice((1000, MIB, MIB + 1, 2 * MIB, 3 * MIB)))
            rng.choice((put, received, drafted, receive))(store, data)
            if rng.random() < 0.3:
                store.pin_only(rng.sample(sorted(store.digests()), min(1, len(store.digests()))), "run")
            assert on_disk(store.folder) <= store.max_bytes, f"seed {seed}"
            assert len(list((store.folder / "tmp").glob("*.spare"))) <= spares.COUNT_MAX
            for partial in list(store._open.values()):
                partial.close()


def test_a_draft_has_its_room_before_it_is_written(tmp_path: Path) -> None:
    store = make(tmp_path, 4 * MIB)
    store.pin(store.put(some(1)), "run")
    with store.draft(2 * MIB) as path:
        assert store.free_bytes == 0
        with pytest.raises(StorageError, match="no room"):
            store.put(some(2))
        write_over(path, some(3))
        store.put_file(path, move=True)
        assert store.used_bytes == 4 * MIB
    assert store.used_bytes == on_disk(store.folder) == 4 * MIB
    with pytest.raises(StorageError, match="no room"), store.draft(3 * MIB):
        pass


@pytest.mark.parametrize("size", [5, MIB, 2 * MIB + 9])
def test_a_draft_that_became_longer_or_shorter_counts_as_what_it_is(tmp_path: Path, size: int) -> None:
    store = make(tmp_path, 4 * MIB)
    with store.draft(2 * MIB) as path:
        write_over(path, some(1, size))
        store.put_file(path, move=True)
    assert store.used_bytes == on_disk(store.folder) == size


def test_a_draft_that_is_not_put_is_gone(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(some(1))
    with store.draft(2 * MIB) as path:
        write_over(path, b"half of a merge")
    assert store.used_bytes == on_disk(store.folder) == 0
