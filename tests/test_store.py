"""The store keeps whole, sound objects within its bound, whatever the disk, a crash or a stranger does."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from swarm.encoding import Digest
from swarm.errors import StorageError, UnavailableError
from swarm.merkle import CHUNK_BYTES, chunks_of, digest_of, leaf
from swarm.store import DAMAGED_KEPT, Partial, Store

MIB = CHUNK_BYTES


def make(folder: Path, max_bytes: int = 64 * MIB) -> Store:
    return Store(folder / "store", max_bytes, durable=False)


def some(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def leaves_of(data: bytes) -> list[Digest]:
    return [leaf(chunk) for chunk in chunks_of(data)]


def receive(store: Store, data: bytes) -> Partial:
    return store.receive(digest_of(data), len(data), leaves_of(data))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def spoil(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17])
def test_what_was_put_comes_back_after_a_restart(tmp_path: Path, size: int) -> None:
    data = some(size, size)
    digest = make(tmp_path).put(data)
    store = make(tmp_path)
    assert digest == digest_of(data)
    assert store.path(digest).read_bytes() == data
    assert store.size(digest) == size
    assert list(store.leaves(digest)) == leaves_of(data)
    assert store.used_bytes == size


def test_every_range_reads_as_the_bytes_do(tmp_path: Path) -> None:
    data = some(1, 3 * MIB + 100)
    digest = make(tmp_path).put(data)
    source = random.Random(2)
    for _ in range(50):
        store = make(tmp_path)
        start = source.randrange(len(data))
        length = source.randrange(min(2 * MIB, len(data) - start) + 1)
        assert store.read(digest, start, length) == data[start : start + length]
    for start, length in [(-1, 1), (0, len(data) + 1), (len(data), 1), (5, -1)]:
        with pytest.raises(ValueError, match="of an object of"):
            store.read(digest, start, length)


@pytest.mark.parametrize("move", [False, True])
def test_a_file_becomes_the_object_that_its_bytes_are(tmp_path: Path, move: bool) -> None:
    data = some(3, 2 * MIB + 5)
    source = tmp_path / "update"
    source.write_bytes(data)
    store = make(tmp_path)
    digest = store.put_file(source, move=move)
    assert digest == digest_of(data)
    assert store.read(digest, 0, len(data)) == data
    assert source.exists() is not move
    assert files(store.folder / "tmp") == []


def test_a_scratch_file_is_moved_in_and_a_forgotten_one_is_swept(tmp_path: Path) -> None:
    store = make(tmp_path)
    kept, forgotten = store.scratch(), store.scratch()
    kept.write_bytes(b"merged")
    forgotten.write_bytes(b"half of a merge")
    digest = store.put_file(kept, move=True)
    assert make(tmp_path).read(digest, 0, 6) == b"merged"
    assert files(store.folder / "tmp") == []


def test_an_absent_object_is_unavailable(tmp_path: Path) -> None:
    store = make(tmp_path)
    for ask in (store.size, store.leaves, store.path, store.verify):
        with pytest.raises(UnavailableError, match="is not in"):
            ask(bytes(32))
    with pytest.raises(UnavailableError, match="is not in"):
        store.read(bytes(32), 0, 1)
    assert not store.has(bytes(32))


# Damage.


def test_a_damaged_chunk_is_met_at_its_first_read_and_never_served(tmp_path: Path) -> None:
    data = some(4, 3 * MIB)
    digest = make(tmp_path).put(data)
    store = make(tmp_path)
    spoil(store._place(digest), 2 * MIB + 7)
    assert store.read(digest, 0, MIB) == data[:MIB], "a sound chunk is served, whatever the others are"
    with pytest.raises(UnavailableError, match="set aside"):
        store.read(digest, 2 * MIB, 10)
    assert not store.has(digest)
    assert files(store.folder) == ["damaged/" + digest.hex()]


def test_a_damaged_object_can_be_put_again(tmp_path: Path) -> None:
    data = some(5, MIB + 3)
    digest = make(tmp_path).put(data)
    store = make(tmp_path)
    spoil(store._place(digest), 0)
    assert store.put(data) == digest, "putting meets the damage and writes the bytes anew"
    assert store.read(digest, 0, len(data)) == data


@pytest.mark.parametrize("length", [0, MIB, 2 * MIB - 1, 2 * MIB + 1])
def test_a_file_of_another_length_is_damaged(tmp_path: Path, length: int) -> None:
    digest = make(tmp_path).put(some(6, 2 * MIB))
    place = make(tmp_path)._place(digest)
    os.truncate(place, length)
    store = make(tmp_path)
    with pytest.raises(UnavailableError):
        store.path(digest)
    assert not store.has(digest)
    assert store.used_bytes == 0


def test_damage_done_while_the_process_runs_is_met(tmp_path: Path) -> None:
    store = make(tmp_path)
    digest = store.put(some(7, MIB))
    store.path(digest)
    spoil(store._place(digest), 99)
    os.utime(store._place(digest), ns=(1, 1))
    with pytest.raises(UnavailableError):
        store.read(digest, 0, 1)


@pytest.mark.parametrize("how", ["lost", "torn", "another's"])
def test_lost_leaves_are_made_again_from_the_bytes(tmp_path: Path, how: str) -> None:
    data = some(8, 2 * MIB)
    store = make(tmp_path)
    digest, other = store.put(data), store.put(b"other")
    place = store._place(digest)
    beside = place.with_name(place.name + ".leaves")
    if how == "lost":
        beside.unlink()
    elif how == "torn":
        os.truncate(beside, 30)
    else:
        other_place = store._place(other)
        beside.write_bytes(other_place.with_name(other_place.name + ".leaves").read_bytes())
    again = make(tmp_path)
    assert list(again.leaves(digest)) == leaves_of(data)
    assert again.path(digest).read_bytes() == data
    assert len(beside.read_bytes()) == 8 + 32 * 2


def test_only_the_last_damaged_files_are_kept(tmp_path: Path) -> None:
    store = make(tmp_path)
    for seed in range(DAMAGED_KEPT + 3):
        digest = store.put(some(seed, 100))
        spoil(store._place(digest), 50)
        os.utime(store._place(digest), ns=(1, 1))
        assert not store.verify(digest)
    assert len(files(store.folder / "damaged")) == DAMAGED_KEPT


# The bound.


def put_aged(store: Store, data: bytes, age: int) -> Digest:
    digest = store.put(data)
    store._ages[digest] = age
    return digest


def test_the_oldest_unpinned_object_goes_first(tmp_path: Path) -> None:
    store = make(tmp_path, 4 * MIB)
    first, second, third = (put_aged(store, some(seed, MIB), age=seed) for seed in (1, 2, 3))
    store.pin(first, "run 1: base")
    newest = store.put(some(9, 2 * MIB))
    assert store.digests() == {first, third, newest}
    assert not store._place(second).exists()
    assert store.used_bytes == 4 * MIB


def test_an_object_put_again_counts_as_new(tmp_path: Path) -> None:
    store = make(tmp_path, 2 * MIB)
    first, second = put_aged(store, some(1, MIB), 1), put_aged(store, some(2, MIB), 2)
    store.put(some(1, MIB))
    store.put(some(3, MIB))
    assert store.has(first)
    assert not store.has(second)


def test_what_is_pinned_is_never_evicted_and_the_error_says_the_way_out(tmp_path: Path) -> None:
    store = make(tmp_path, 2 * MIB)
    digest = store.put(some(1, MIB))
    store.pin(digest, "run 1")
    assert store.free_bytes == MIB
    with pytest.raises(StorageError, match=r"no room for 1048577 bytes.*store_max_bytes"):
        store.put(some(2, MIB + 1))
    assert store.has(digest)
    store.unpin("run 1")
    store.put(some(2, MIB + 1))
    assert not store.has(digest)


def test_pins_survive_a_restart_and_may_come_before_the_object(tmp_path: Path) -> None:
    data = some(1, MIB)
    first = make(tmp_path)
    first.pin(digest_of(data), "round 3")
    first.pin(bytes(32), "round 4")
    first.pin_only([digest_of(data)], "round 5")
    store = make(tmp_path, 2 * MIB)
    assert store.pinned() == {
        "round 3": {digest_of(data)},
        "round 4": {bytes(32)},
        "round 5": {digest_of(data)},
    }
    store.put(data)
    store.unpin("round 3")
    with pytest.raises(StorageError):
        store.put(some(2, 2 * MIB))
    store.pin_only([], "round 5")
    store.put(some(2, 2 * MIB))
    assert make(tmp_path).pinned() == {"round 4": {bytes(32)}}


@pytest.mark.parametrize("left", [b"", b"\0" * 40, b"{", b"[]", b'{"x": 3}', b'{"x": ["zz"]}', b"\xff"])
def test_a_record_of_pins_that_a_power_cut_spoiled_counts_as_empty(
    tmp_path: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    digest = make(tmp_path).put(b"data")
    make(tmp_path).pin(digest, "x")
    (tmp_path / "store" / "pins.json").write_bytes(left)
    store = make(tmp_path)
    assert store.pinned() == {}
    assert "pins.json is damaged" in caplog.text
    store.pin(digest, "x")
    assert make(tmp_path).pinned() == {"x": {digest}}


# A file that becomes the object.


def test_a_shared_file_is_the_object_and_nothing_is_copied(tmp_path: Path) -> None:
    store, data = make(tmp_path), some(1, 3 * MIB + 5)
    path = tmp_path / "update"
    path.write_bytes(data)
    digest = store.put_file(path, share=True)
    assert digest == digest_of(data)
    assert store.path(digest).stat().st_ino == path.stat().st_ino
    path.unlink()
    assert store.read(digest, 0, len(data)) == data
    assert not list((tmp_path / "store" / "tmp").iterdir())


def test_a_shared_file_that_is_written_to_after_all_is_noticed(tmp_path: Path) -> None:
    store, data = make(tmp_path), some(1, 3 * MIB + 5)
    path = tmp_path / "update"
    path.write_bytes(data)
    digest = store.put_file(path, share=True)
    with path.open("r+b") as file:
        file.seek(MIB + 3)
        file.write(b"other")
    with pytest.raises(UnavailableError):
        store.path(digest)
    assert not store.has(digest)


def test_where_no_second_name_can_be_made_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    store, data = make(tmp_path), some(1, 2 * MIB)
    path = tmp_path / "update"
    path.write_bytes(data)
    digest = store.put_file(path, share=True)
    assert store.path(digest).stat().st_ino != path.stat().st_ino
    assert store.read(digest, 0, len(data)) == data


def test_a_shared_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    store, path = make(tmp_path, MIB), tmp_path / "update"
    path.write_bytes(some(1, 2 * MIB))
    with pytest.raises(StorageError, match="no room"):
        store.put_file(path, share=True)
    assert path.exists()
    assert not list((tmp_path / "store" / "tmp").iterdir())


def test_a_file_whose_leaves_are_known_is_not_read(tmp_path: Path) -> None:
    store, data = make(tmp_path), some(1, 3 * MIB + 5)
    path = store.scratch()
    path.write_bytes(data)
    os.chmod(path, 0o400)
    digest = store.put_file(path, move=True, leaves=leaves_of(data))
    assert digest == digest_of(data)
    assert not path.exists()
    # Leaves of other bytes would name them wrongly: the next process that reads them notices.
    wrong = store.scratch()
    wrong.write_bytes(some(2, MIB))
    named = store.put_file(wrong, move=True, leaves=leaves_of(some(3, MIB)))
    with pytest.raises(UnavailableError):
        make(tmp_path).path(named)


def test_what_was_not_synced_is_fetched_again_after_a_power_cut(tmp_path: Path) -> None:
    store, data = make(tmp_path), some(1, 2 * MIB + 7)
    partial = receive(store, data)
    for index, chunk in enumerate(chunks_of(data)):
        partial.write(index, chunk)
    place = partial.finish(sync=False)
    assert store.has(digest_of(data))
    # What a journal may leave of a file that was renamed and never written.
    for left in (b"", bytes(len(data)), data[:MIB]):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(left)
        after = make(tmp_path)
        with pytest.raises(UnavailableError):
            after.path(digest_of(data))
        assert not after.has(digest_of(data))
        assert receive(after, data).missing()


# Crashes and the disk.


def test_a_crash_between_leaves_and_bytes_leaves_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path)
    real = os.replace
    done: list[object] = []

    def crash(source: Path, target: Path) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.put(b"data")
    monkeypatch.undo()
    again = make(tmp_path)
    assert again.digests() == frozenset()
    assert files(again.folder) == []
    again.put(b"data")


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full; free space"), (errno.EROFS, "read-only"), (errno.EIO, "replace it")],
)
def test_what_the_disk_says_becomes_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    store = make(tmp_path)
    partial = receive(store, some(1, MIB))

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(StorageError, match=rf"{tmp_path}.*{words}"):
        store.put(b"data")
    with pytest.raises(StorageError, match=words):
        partial.write(0, some(1, MIB))
    with pytest.raises(StorageError, match=words):
        store.pin(bytes(32), "why")
    monkeypatch.undo()
    assert store.used_bytes == MIB
    store.put(b"data")
    partial.write(0, some(1, MIB))
    partial.finish()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file in the way")
    with pytest.raises(StorageError, match=str(tmp_path / "store")):
        make(tmp_path)


def test_a_missing_source_file_is_named(tmp_path: Path) -> None:
    for move in (False, True):
        with pytest.raises(StorageError, match="nothing-here"):
            make(tmp_path).put_file(tmp_path / "nothing-here", move=move)


def test_threads_that_put_the_same_object_agree(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = some(1, 2 * MIB + 1)
    partial = receive(store, data)
    found: list[Digest] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            if number % 2:
                found.append(store.put(data))
            else:
                for index, chunk in enumerate(chunks_of(data)):
                    partial.write(index, chunk)
                partial.finish()
                found.append(partial.digest)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(found) == {digest_of(data)}
    assert store.read(digest_of(data), 0, len(data)) == data
    assert store.used_bytes == len(data)
    assert files(store.folder / "tmp") == []


def test_durable_puts_reach_the_disk_before_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store", MIB)
    order: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        order.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name[-7:])
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        order.append("name " + Path(target).name[-7:])
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    name = store.put(b"data").hex()
    assert order == ["sync scratch", "name .leaves", f"name {name[-7:]}", f"sync {name[:2]}", "sync objects"]
