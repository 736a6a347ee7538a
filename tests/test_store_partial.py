"""What arrives in a store chunk by chunk: checked, resumed, bounded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from swarm.errors import StorageError, UnavailableError
from swarm.merkle import chunks_of, digest_of
from tests.test_store import MIB, files, leaves_of, make, receive, some, spoil


def test_chunks_in_any_order_make_the_object(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = some(1, 5 * MIB + 1)
    partial = receive(store, data)
    chunks = list(enumerate(chunks_of(data)))
    random.Random(3).shuffle(chunks)
    for index, chunk in chunks:
        assert not store.has(partial.digest)
        assert index in partial.missing()
        partial.write(index, chunk)
    assert partial.finish().read_bytes() == data
    assert partial.finish() == store.path(partial.digest)
    assert files(store.folder / "tmp") == []
    assert store.used_bytes == len(data)


def test_an_empty_object_arrives_with_no_chunk(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert receive(store, b"").finish().read_bytes() == b""


def test_a_wrong_chunk_changes_nothing(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = some(1, 2 * MIB + 9)
    partial = receive(store, data)
    chunks = list(chunks_of(data))
    wrong: list[tuple[int, bytes | memoryview]] = [
        (0, chunks[1]),
        (2, chunks[0]),
        (1, chunks[1][:-1]),
        (3, chunks[0]),
        (-1, chunks[2]),
        (0, b""),
    ]
    for index, chunk in wrong:
        with pytest.raises(ValueError, match="chunk"):
            partial.write(index, chunk)
    assert partial.missing() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"3 chunks .* are missing"):
        partial.finish()


def test_of_several_chunks_those_before_a_wrong_one_are_kept_also_for_a_restart(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = some(1, 4 * MIB + 5)
    partial = receive(store, data)
    spoilt = bytearray(data[MIB:])
    spoilt[2 * MIB] ^= 1
    with pytest.raises(ValueError, match="chunk 3 is not that"):
        partial.write(1, bytes(spoilt))
    assert partial.missing() == [0, 3, 4]
    partial.write(3, memoryview(data)[3 * MIB :])
    with pytest.raises(ValueError, match="chunk 4 is not that"):
        partial.write(4, data[4 * MIB :] + bytes(MIB))
    after = receive(make(tmp_path), data)
    assert [index for index in range(5) if not after.has(index)] == after.missing() == [0]
    after.write(0, data[:MIB])
    assert after.finish().read_bytes() == data


def test_arrival_goes_on_after_a_crash_with_what_is_truly_there(tmp_path: Path) -> None:
    data = some(1, 4 * MIB)
    chunks = list(chunks_of(data))
    before = receive(make(tmp_path), data)
    for index in (0, 2, 3):
        before.write(index, chunks[index])
    # The record says that chunk 3 came, but the disk lost its bytes with the power.
    spoil(before._part, 3 * MIB)
    store = make(tmp_path)
    assert store.used_bytes == len(data)
    after = receive(store, data)
    assert after.missing() == [1, 3]
    for index in after.missing():
        after.write(index, chunks[index])
    assert after.finish().read_bytes() == data


def test_the_same_arrival_is_shared_and_can_pause(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = some(1, 2 * MIB)
    chunks = list(chunks_of(data))
    partial = receive(store, data)
    assert receive(store, data) is partial
    partial.write(0, chunks[0])
    partial.close()
    with pytest.raises(UnavailableError):
        partial.write(1, chunks[1])
    again = receive(store, data)
    assert again.missing() == [1]
    again.write(1, chunks[1])
    again.finish()
    assert receive(store, data).missing() == []
    assert receive(store, data).finish().read_bytes() == data


def test_leaves_of_another_object_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path)
    data, other = some(1, 2 * MIB), some(2, 2 * MIB)
    for size, leaves in [
        (len(data), leaves_of(other)),
        (len(data) - 1, leaves_of(data)),
        (len(data), leaves_of(data)[::-1]),
        (len(data), leaves_of(data)[:1]),
        (-1, []),
        (1 << 70, []),
    ]:
        with pytest.raises(ValueError):
            store.receive(digest_of(data), size, leaves)
    assert files(store.folder) == []


def test_a_stranger_cannot_fill_the_store(tmp_path: Path) -> None:
    store = make(tmp_path, 4 * MIB)
    mine = store.put(some(0, MIB))
    store.pin(mine, "mine")
    with pytest.raises(StorageError, match="no room for 5242880 bytes"):
        receive(store, some(1, 5 * MIB))
    with pytest.raises(StorageError, match=f"no room for {1 << 60} bytes"):
        store.receive(bytes(32), 1 << 60, [])
    receive(store, some(2, 2 * MIB))
    with pytest.raises(StorageError, match="no room"):
        receive(store, some(3, 2 * MIB))
    assert store.has(mine)


def test_an_abandoned_arrival_makes_room(tmp_path: Path) -> None:
    store = make(tmp_path, 3 * MIB)
    receive(store, some(1, 2 * MIB)).close()
    store.put(some(2, 2 * MIB))
    assert store.used_bytes == 2 * MIB
    assert files(store.folder / "tmp") == []


def test_a_removed_arrival_says_so(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = some(1, MIB)
    partial = receive(store, data)
    store.remove(partial.digest)
    with pytest.raises(UnavailableError, match="no longer arrives"):
        partial.write(0, data)
    with pytest.raises(UnavailableError, match="no longer arrives"):
        partial.finish()
