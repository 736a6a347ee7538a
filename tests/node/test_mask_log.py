"""The log of masks: read again by the next process, one vector and one set, and no seed is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm.blind import Entry
from swarm.errors import RejectedError, StorageError
from swarm.node.mask_log import KEPT_MAX, MaskLog, SecondUse

BLOB, VECTOR, OTHER = b"b" * 32, b"v" * 32, b"o" * 32
SET, SUBSET = frozenset({b"1" * 20, b"2" * 20, b"3" * 20}), frozenset({b"1" * 20})


def entropy(size: int) -> bytes:
    entropy.calls = getattr(entropy, "calls", 0) + 1  # type: ignore[attr-defined]
    return bytes([entropy.calls % 256]) * size  # type: ignore[attr-defined]


def log(folder: Path) -> MaskLog:
    return MaskLog(folder / "blind", entropy)


def test_the_next_process_knows_what_was_written(tmp_path: Path) -> None:
    first = log(tmp_path)
    seed = first.seed(1, 5)
    first.join(1, 5, seed, BLOB)
    first.mask(1, 5, VECTOR)
    first.reveal(1, 5, SET)
    again = log(tmp_path).read(1, 5)
    assert again is not None
    assert (again.entry, again.seed) == (Entry(5, BLOB, VECTOR, SET), seed)
    assert log(tmp_path).key(1, 0, 5.0) == log(tmp_path).key(1, 3, 9.0)
    assert log(tmp_path).read(1, 6) is None


def test_masks_are_on_one_vector_and_opened_for_one_set(tmp_path: Path) -> None:
    first = log(tmp_path)
    first.join(1, 5, first.seed(1, 5), BLOB)
    first.mask(1, 5, VECTOR)
    first.reveal(1, 5, SET)
    for one in (first, log(tmp_path)):
        one.mask(1, 5, VECTOR)
        one.reveal(1, 5, SET)
        with pytest.raises(SecondUse, match="on another vector already"):
            one.mask(1, 5, OTHER)
        with pytest.raises(SecondUse, match="were opened for others"):
            one.reveal(1, 5, SUBSET)
        with pytest.raises(SecondUse, match="joined a second time"):
            one.join(1, 5, one.seed(1, 5), OTHER)


def test_nothing_is_masked_or_opened_that_was_never_joined(tmp_path: Path) -> None:
    with pytest.raises(SecondUse, match="never joined from here"):
        log(tmp_path).mask(1, 5, VECTOR)
    with pytest.raises(SecondUse, match="never joined from here"):
        log(tmp_path).reveal(1, 5, SET)


def test_only_the_owner_reads_it_and_seeds_of_attempts_that_are_over_are_erased(tmp_path: Path) -> None:
    first = log(tmp_path)
    first.key(1, 0, 0.0)
    for attempt in range(KEPT_MAX + 5):
        first.join(1, attempt, first.seed(1, attempt), BLOB)
    first.join(2, 0, first.seed(2, 0), BLOB)
    first.erase(1, but=KEPT_MAX + 4)
    files = sorted((tmp_path / "blind").iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    kept = {path.stem: json.loads(path.read_text())["seed"] for path in files if not path.stem.startswith("key")}
    assert len(kept) == KEPT_MAX + 1
    assert {stem for stem, seed in kept.items() if seed != "0x"} == {f"1-{KEPT_MAX + 4}", "2-0"}
    erased = log(tmp_path).read(1, KEPT_MAX + 3)
    assert erased is not None
    assert (erased.seed, erased.entry.blob) == (b"", BLOB)
    with pytest.raises(RejectedError, match="is over, its seed is erased"):
        first.mask(1, KEPT_MAX + 3, VECTOR)
    with pytest.raises(RejectedError, match="is over, its seed is erased"):
        first.reveal(1, KEPT_MAX + 3, SET)


def test_a_new_key_after_a_restore_sits_its_round_out(tmp_path: Path) -> None:
    first = log(tmp_path)
    before = first.key(1, 3, 50.0)
    first.rotate(1, 3, 60.0)
    again = log(tmp_path)
    assert again.key(1, 3, 70.0).secret not in (before.secret, b"")
    assert (again.key(1, 4, 70.0).since_s, again.key(1, 4, 70.0).last) == (60.0, b"")
    assert (again.sits_out(1, 3), again.sits_out(1, 4), again.sits_out(2, 3)) == (True, False, False)


def test_a_renewed_key_keeps_the_one_before_it_until_that_is_forgotten(tmp_path: Path) -> None:
    first = log(tmp_path)
    before = first.key(1, 3, 50.0)
    first.renew(1, 103, 90.0)
    key = log(tmp_path).key(1, 103, 95.0)
    assert (key.round, key.since_s, key.last) == (103, 90.0, before.secret)
    assert (key.secret_of(before.public), key.secret_of(key.public)) == (before.secret, key.secret)
    first.forget(1)
    key = log(tmp_path).key(1, 103, 95.0)
    assert (key.last, key.last_public, first.key(1, 103, 95.0)) == (b"", b"", key)
    assert before.secret.hex() not in (tmp_path / "blind" / "key-1.json").read_text()
    with pytest.raises(RejectedError, match="it was replaced"):
        key.secret_of(before.public)


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"secret": "0x00"}', b"\xff" * 9])
def test_a_damaged_key_is_said_and_never_drawn_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blind").mkdir()
    (tmp_path / "blind" / "key-1.json").write_bytes(content)
    with pytest.raises(StorageError):
        log(tmp_path).key(1, 0, 0.0)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"seed": "0x"}', b'{"seed": "zz", "blob": 1}', b"\xff" * 100])
def test_a_damaged_file_is_said_and_never_taken_for_none(tmp_path: Path, content: bytes) -> None:
    log(tmp_path).join(1, 5, b"s" * 32, BLOB)
    (tmp_path / "blind" / "1-5.json").write_bytes(content)
    with pytest.raises(StorageError):
        log(tmp_path).read(1, 5)
