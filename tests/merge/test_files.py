"""A merge on disk: chunk by chunk, by any number of threads, or again by somebody else, the same bytes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swarm.errors import StorageError
from swarm.merge import (
    BadUpdate,
    Schema,
    Tensor,
    check_update,
    first_difference,
    merge,
    merge_chunks,
    merge_files,
    rules,
    write_file,
)
from swarm.merkle import CHUNK_BYTES, chunks_of, digest_of, leaf
from tests.merge.golden import WEIGHTS, write_inputs
from tests.merge.reference import files, policy, read_file, vector_file

MIXED = Schema.of(
    [
        Tensor("weight", "F32", (400_000,)),
        Tensor("narrow", "BF16", (300_001,)),
        Tensor("exact", "F64", (70_000,)),
        Tensor("counts", "I64", (50_000,)),
        Tensor("levels", "I32", (3, 7)),
        Tensor("mask", "BOOL", (100_003,)),
        Tensor("none", "F32", (0,)),
    ]
)


def write_mixed(path: Path, seed: int) -> Path:
    source = np.random.default_rng(seed)
    write_file(
        path,
        MIXED,
        {
            "weight": source.standard_normal(400_000, np.float32),
            "narrow": (source.standard_normal(300_001, np.float32).view(np.uint32) >> 16).astype(np.uint16),
            "exact": source.standard_normal(70_000),
            "counts": source.integers(-(2**63), 2**63 - 1, 50_000),
            "levels": source.integers(-100, 100, (3, 7), np.int32),
            "mask": source.integers(0, 2, 100_003, np.uint8),
            "none": b"",
        },
    )
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("mixed")
    return write_mixed(folder / "base", 0), [write_mixed(folder / f"u{i}", i) for i in range(1, 5)]


def test_the_digest_is_that_of_the_file_and_of_its_leaves(tmp_path: Path, mixed: tuple[Path, list[Path]]) -> None:
    base, updates = mixed
    out = tmp_path / "out"
    merged = merge(base, updates, [1, 2, 3, 4], policy(), out)
    data = out.read_bytes()
    assert merged.size == len(data) == MIXED.size_bytes
    assert merged.digest == digest_of(data)
    assert list(merged.leaves) == [leaf(chunk) for chunk in chunks_of(data)]
    assert Schema.of_file(out) == MIXED
    assert merge(base, updates, [1, 2, 3, 4], policy(), None).digest == merged.digest


@pytest.mark.parametrize("block", [97, 1000, 1 << 14, 1 << 20])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_the_split_into_blocks_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, threads: int
) -> None:
    base, updates = write_inputs(tmp_path)
    expected = merge(base, updates, WEIGHTS, policy(), None, threads=1)
    monkeypatch.setattr(rules, "BLOCK", block)
    found = merge(base, updates, WEIGHTS, policy(), None, threads=threads)
    assert found.digest == expected.digest
    assert [r.clipped for r in found.reports] == [r.clipped for r in expected.reports]
    assert [r.norm for r in found.reports] == pytest.approx([r.norm for r in expected.reports], rel=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_reports_do_not_depend_on_threads(mixed: tuple[Path, list[Path]], threads: int) -> None:
    base, updates = mixed
    expected = merge(base, updates, [1, 2, 3, 4], policy(), None, threads=1)
    assert merge(base, updates, [1, 2, 3, 4], policy(), None, threads=threads) == expected


def test_whole_numbers_merge_to_the_largest(tmp_path: Path, mixed: tuple[Path, list[Path]]) -> None:
    base, updates = mixed
    merge_files(base, updates, [1, 2, 3, 4], policy(), tmp_path / "out")
    merged, rows = read_file(tmp_path / "out"), [read_file(path) for path in updates]
    for name in ("counts", "levels", "mask"):
        assert np.array_equal(merged[name], np.max([row[name] for row in rows], axis=0))


def test_assigned_chunks_have_the_leaves_of_the_whole(mixed: tuple[Path, list[Path]]) -> None:
    base, updates = mixed
    whole = merge(base, updates, [1, 2, 3, 4], policy(), None)
    wanted = [3, 0, len(whole.leaves) - 1]
    found = merge_chunks(base, updates, [1, 2, 3, 4], policy(), wanted)
    assert found == {index: whole.leaves[index] for index in wanted}
    for outside in (-1, len(whole.leaves)):
        with pytest.raises(ValueError, match=f"no chunk {outside}"):
            merge_chunks(base, updates, [1, 2, 3, 4], policy(), [outside])


def test_a_wrong_chunk_is_found_by_whoever_merges_it_again(tmp_path: Path, mixed: tuple[Path, list[Path]]) -> None:
    base, updates = mixed
    out = tmp_path / "out"
    merge_files(base, updates, [1, 2, 3, 4], policy(), out)
    data = bytearray(out.read_bytes())
    data[2 * CHUNK_BYTES + 5] ^= 1
    published = [leaf(chunk) for chunk in chunks_of(bytes(data))]
    found = merge_chunks(base, updates, [1, 2, 3, 4], policy(), range(len(published)))
    assert [index for index, digest in found.items() if digest != published[index]] == [2]


def put_element(path: Path, tensor: str, index: int, pattern: bytes) -> None:
    schema = Schema.of_file(path)
    start = next(start for t, start, _ in schema.placed if t.name == tensor) + len(schema.header)
    with open(path, "r+b") as file:
        file.seek(start + index * len(pattern))
        file.write(pattern)


@pytest.mark.parametrize(
    ("tensor", "index", "pattern", "words"),
    [
        ("weight", 399_999, struct.pack("<f", float("nan")), r"element 399999 of weight F32\[400000\] is nan"),
        ("weight", 0, struct.pack("<f", float("-inf")), r"element 0 of weight F32\[400000\] is -inf"),
        ("narrow", 300_000, b"\x80\x7f", r"element 300000 of narrow BF16\[300001\] is inf"),
        ("exact", 1234, struct.pack("<d", float("inf")), r"element 1234 of exact F64\[70000\] is inf"),
        ("mask", 100_002, b"\x02", r"element 100002 of mask BOOL\[100003\] is 2, no truth value"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_value_that_is_not_finite_is_named(
    tmp_path: Path, tensor: str, index: int, pattern: bytes, words: str, threads: int
) -> None:
    base, good, bad = (write_mixed(tmp_path / name, seed) for seed, name in enumerate(("base", "good", "bad")))
    put_element(bad, tensor, index, pattern)
    out = tmp_path / "out"
    with pytest.raises(BadUpdate, match=f"update 1: {words}") as caught:
        merge_files(base, [good, bad], [1, 1], policy(), out, threads=threads)
    assert caught.value.index == 1
    assert not out.exists(), "half a checkpoint is no checkpoint"
    with pytest.raises(BadUpdate, match=words):
        check_update(base, bad, policy())
    if tensor != "mask":
        with pytest.raises(ValueError, match=f"the checkpoint: {words}"):
            merge_files(bad, [good], [1], policy(), out, threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_of_several_faults_the_first_is_named(tmp_path: Path, threads: int) -> None:
    base, *bad = (write_mixed(tmp_path / f"{seed}", seed) for seed in range(4))
    put_element(bad[0], "narrow", 299_999, b"\x80\x7f")
    put_element(bad[1], "weight", 300_000, struct.pack("<f", float("nan")))
    put_element(bad[2], "weight", 10, struct.pack("<f", float("nan")))
    for _ in range(5):
        with pytest.raises(BadUpdate, match="update 2: element 10 of weight"):
            merge_files(base, bad, [1, 1, 1], policy(), tmp_path / "out", threads=threads)


def test_an_update_with_other_tensors_is_named(tmp_path: Path) -> None:
    base, good = files(tmp_path, {"base": np.zeros(3), "good": np.zeros(3)})
    bad = vector_file(tmp_path / "bad", np.zeros(4))
    with pytest.raises(
        BadUpdate, match=r"update 1: not the checkpoint's tensors: x is F32\[4\] where F32\[3\] belongs"
    ):
        merge_files(base, [good, bad], [1, 1], policy(), tmp_path / "out")
    bad.write_bytes(b"no model at all")
    with pytest.raises(BadUpdate, match="update 1: bad is not a canonical safetensors file"):
        merge_files(base, [good, bad], [1, 1], policy(), tmp_path / "out")
    with pytest.raises(ValueError, match=r"^bad is not a canonical"):
        merge_files(bad, [good], [1], policy(), tmp_path / "out")


def test_a_check_sees_what_a_merge_would(tmp_path: Path) -> None:
    base, update = files(tmp_path, {"base": np.zeros(4), "u": np.array([3.0, -4.0, 0.0, 9.0])})
    report = check_update(base, update, policy(range=8.0))
    assert (report.clipped, report.share) == (1, 1.0)
    assert report.norm == pytest.approx((9 + 16 + 64) ** 0.5)
    with pytest.raises(BadUpdate, match="a sum clips nothing"):
        check_update(base, update, policy(merge="sum", weights="equal"))


def test_an_input_is_never_written(tmp_path: Path) -> None:
    base, update = files(tmp_path, {"base": np.zeros(4), "u": np.ones(4)})
    (tmp_path / "link").symlink_to(base)
    for out in (base, update, tmp_path / "link"):
        before = out.read_bytes()
        with pytest.raises(ValueError, match="is an input of the merge"):
            merge_files(base, [update], [1], policy(), out)
        assert out.read_bytes() == before


def test_the_disk_is_named_when_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, update = files(tmp_path, {"base": np.zeros(4), "u": np.ones(4)})
    with pytest.raises(StorageError, match="nowhere"):
        merge_files(base, [update], [1], policy(), tmp_path / "nowhere" / "out")
    with pytest.raises(StorageError, match="gone"):
        merge_files(base, [tmp_path / "gone"], [1], policy(), tmp_path / "out")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left on device"):
        merge_files(base, [update], [1], policy(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, update = files(tmp_path, {"base": np.zeros(400), "u": np.ones(400)})
    real = os.ftruncate

    def shrink(descriptor: int, size: int) -> None:
        real(descriptor, size)
        os.truncate(update, 500)

    monkeypatch.setattr(os, "ftruncate", shrink)
    with pytest.raises(StorageError, match="u ends at byte 500; it was changed while it was read"):
        merge_files(base, [update], [1], policy(), tmp_path / "out")


def test_no_file_stays_open(mixed: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, updates = mixed
    before = len(os.listdir("/proc/self/fd"))
    merge_files(base, updates, [1, 2, 3, 4], policy(), tmp_path / "out")
    with pytest.raises(ValueError):
        merge_files(base, [*updates, tmp_path / "out"], [1, 2, 3, 4, 0], policy(), tmp_path / "out2")
    (tmp_path / "bad").write_bytes(b"")
    with pytest.raises(BadUpdate):
        merge_files(base, [*updates, tmp_path / "bad"], [1, 2, 3, 4, 5], policy(), tmp_path / "out2")
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_first_difference_is_evidence(tmp_path: Path) -> None:
    honest = write_mixed(tmp_path / "honest", 1)
    forged = tmp_path / "forged"
    forged.write_bytes(honest.read_bytes())
    assert first_difference(honest, forged) is None
    values = read_file(honest)["narrow"]
    put_element(forged, "narrow", 299_999, struct.pack("<H", int(values[299_999]) ^ 0x8000))
    put_element(forged, "mask", 5, b"\x01")
    found = first_difference(honest, forged)
    assert found is not None
    assert (found.tensor, found.index, found.chunk) == ("narrow", 299_999, 3)
    assert found.found.lstrip("-").split()[0] == found.expected.lstrip("-").split()[0]
    assert f"narrow[299999] is {found.found} where {found.expected} belongs (chunk 3)" == str(found)


def test_the_first_difference_shows_values_of_every_kind(tmp_path: Path) -> None:
    cases = [
        ("weight", struct.pack("<f", 1.5), "1.5 (0x3fc00000)"),
        ("exact", struct.pack("<d", -0.1), "-0.1 (0xbfb999999999999a)"),
        ("counts", struct.pack("<q", -2), "-2 (0xfffffffffffffffe)"),
        ("mask", b"\x07", "7 (0x07)"),
        ("narrow", b"\xc0\x7f", "nan (0x7fc0)"),
    ]
    for tensor, pattern, shown in cases:
        honest = write_mixed(tmp_path / "honest", 1)
        forged = write_mixed(tmp_path / "forged", 1)
        put_element(forged, tensor, 3, pattern)
        found = first_difference(honest, forged)
        assert found is not None
        assert (found.tensor, found.index, found.found) == (tensor, 3, shown)


def test_files_of_other_tensors_have_no_difference(tmp_path: Path) -> None:
    one, two = vector_file(tmp_path / "a", np.zeros(3)), vector_file(tmp_path / "b", np.zeros(4))
    with pytest.raises(ValueError, match="b holds other tensors than a"):
        first_difference(one, two)


def test_memory_is_bounded_whatever_the_number_of_members(tmp_path: Path) -> None:
    """24 updates of 8 MB are 192 MB; the process grows by a few blocks."""
    base, update = files(tmp_path, {"base": np.zeros(2_000_000), "u": np.full(2_000_000, 0.5)})
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom swarm.merge import merge_files\n"
        "from tests.merge.reference import policy\nbase, update, out = map(Path, sys.argv[1:])\n"
        "merge_files(update, [base], [1], policy(), out)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "merge_files(base, [update] * 24, [1] * 24, policy(), out)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, base, update, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) < 16 * 1024, "KiB"
