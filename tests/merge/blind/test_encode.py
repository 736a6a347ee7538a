"""Into the ring and back: bounds, extremes, exponents, and sums that no honest members can have made."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.merge import Schema, Tensor, write_file
from swarm.merge import merge as visible_merge
from swarm.merge.blind import BlindMerged, Encoding, Masked, Unfit, encode, exponents_of
from swarm.merge.blind.masks import BLOCK, VECTOR_MAX, Mask, apply
from swarm.merge.blind.merging import next_exponent, sum_masked
from swarm.merge.blind.vector import Vector, room_of
from swarm.merge.server import Server, server_of
from swarm.merkle import CHUNK_BYTES, digest_of
from tests.merge.blind import reference
from tests.merge.reference import decoded, encoded, policy, read_file, read_vector

ROWS = NDArray[np.float64]


def file(path: Path, values: ROWS, dtype: str = "F32") -> Path:
    """One tensor `x`; what is not finite stays so."""
    kind = {"F32": np.float32, "F64": np.float64}[dtype]
    write_file(path, Schema.of([Tensor("x", dtype, values.shape)]), {"x": values.astype(kind)})
    return path


def summed(
    folder: Path, base: ROWS, rows: list[ROWS], weights: list[int], *, server: Server | None = None,
    before: Path | None = None, **changes: object,
) -> tuple[BlindMerged, Path]:  # fmt: skip
    """The sum of these updates, by members who encode and hide nothing."""
    start = before or file(folder / "base", base)
    settings: dict[str, object] = {"members": len(rows), "exponents": exponents_of(start)} | changes
    encoding = Encoding(**settings)  # type: ignore[arg-type]
    vectors = []
    for number, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        path = folder / f"vector {number}"
        encode(file(folder / "update", row), weight, encoding, (), path)
        vectors.append(Masked(bytes([number]) * 20, path))
    out = folder / f"out {len(list(folder.glob('out *')))}"
    return sum_masked(start, vectors, (), encoding, out, server=server), out


@pytest.mark.parametrize("members", [1, 3, 4, 7, 10, 50, 127, 128])
@pytest.mark.parametrize("value", [1.0, -1.0, 3.4e38, -3.4e38])
def test_no_sum_of_extremes_leaves_the_ring(tmp_path: Path, members: int, value: float) -> None:
    assert members * room_of(members) < 2**31
    rows = [np.array([value, 0.0, -value])] * members
    found, out = summed(tmp_path, np.zeros(3), rows, [10**9] * members, weight_max=5)
    assert not found.refused
    assert found.weight == members * room_of(members)
    sign = math.copysign(1.0, value)
    assert read_vector(out).tolist() == [sign, 0.0, -sign]


def test_what_is_clipped_is_counted(tmp_path: Path) -> None:
    values = np.zeros(300_000)
    values[::1000] = 1.5
    values[1::1000] = -1.0
    found = encode(file(tmp_path / "u", values), 1, Encoding(3, (0,)), (), tmp_path / "out")
    assert found.clipped == 300


@pytest.mark.parametrize(
    ("weight", "weight_max"), [(1, 2**40 - 1), (1, 100), (7, 100), (100, 100), (10**12, 100), (3, 0)]
)
def test_a_weight_is_a_whole_number_within_the_room(weight: int, weight_max: int) -> None:
    for members in (3, 20, 128):
        found = Encoding(members, (), weight_max).weight(weight)
        assert found == reference.counted(weight, members, weight_max)
        assert 1 <= found <= room_of(members)


@pytest.mark.parametrize("seed", range(8))
def test_the_mean_is_off_by_no_more_than_the_bound(tmp_path: Path, seed: int) -> None:
    source = np.random.default_rng(seed)
    members = int(source.integers(3, 20))
    rows = [source.uniform(-1, 1, 500).astype(np.float32).astype(np.float64) for _ in range(members)]
    weights = [int(w) for w in source.integers(1, 300, members)]
    found, out = summed(tmp_path, np.zeros(500), rows, weights, weight_max=300)
    del found
    encoding = Encoding(members, (0,), 300)
    counts = [encoding.weight(weight) for weight in weights]
    bound = Fraction(members, 2 * sum(counts))
    merged = read_vector(out)
    for place in range(0, 500, 25):
        exact = sum((Fraction(row[place]) * u for row, u in zip(rows, counts, strict=True)), Fraction(0)) / sum(counts)
        # Half a unit of float32 more, in which the checkpoint is kept.
        assert abs(Fraction(float(merged[place])) - exact) <= bound + Fraction(2) ** -25


def test_the_blind_mean_is_near_the_visible_merge(tmp_path: Path) -> None:
    source = np.random.default_rng(3)
    base = source.standard_normal(4000)
    rows = [source.standard_normal(4000) * 0.05 for _ in range(5)]
    found, out = summed(tmp_path, base, rows, [40, 50, 60, 70, 80], weight_max=80)
    assert not found.refused
    paths = [file(tmp_path / f"u{number}", row) for number, row in enumerate(rows)]
    visible_merge(tmp_path / "base", paths, [40, 50, 60, 70, 80], policy(), tmp_path / "visible")
    # A float32 near 1 has steps of 1.2e-7; both merges round once.
    np.testing.assert_allclose(read_vector(out), read_vector(tmp_path / "visible"), rtol=0, atol=2.4e-7)


def test_longer_updates_are_scaled_down_to_the_agreed_length(tmp_path: Path) -> None:
    row = np.full(100, 0.5)
    encoding = Encoding(3, (0,), 0, 1.0)
    found = encode(file(tmp_path / "u", row), 1, encoding, (), tmp_path / "out")
    assert found.norm == 5.0
    steps = read_file(tmp_path / "out")["x"].astype(np.int64)
    assert steps.tolist() == [round(0.1 * (1 - 2**-40) * room_of(3))] * 100
    merged, _ = summed(tmp_path, np.zeros(100), [row] * 3, [1] * 3, norm_max=1.0)
    assert not merged.refused
    assert merged.norm == pytest.approx(1.0, rel=1e-8)


def liars(
    folder: Path, steps: list[list[int]], counts: list[int], norm_max: float = math.inf
) -> tuple[BlindMerged, Path]:
    """The merge of these very vectors."""
    base = file(folder / "base", np.arange(4.0))
    vector = Vector(Schema.of_file(base))
    paths = []
    for number, (row, weight) in enumerate(zip(steps, counts, strict=True)):
        paths.append(Masked(bytes([number]) * 20, folder / f"v{number}"))
        write_file(
            paths[-1].path,
            vector.schema,
            {"x": np.array(row, np.int32), "swarm.blind.weight": np.array([weight], np.int32)},
        )
    return sum_masked(base, paths, (), Encoding(len(steps), (0,), 0, norm_max), folder / "out"), base


@pytest.mark.parametrize(
    ("steps", "counts", "words"),
    [
        ([[0] * 4] * 3, [0, 0, 0], "the weights add up to 0, honest ones to 3 to"),
        ([[0] * 4] * 3, [5, 5, -2000], "the weights add up to -1990"),
        ([[0] * 4] * 3, [2**31 - 1, 2**31 - 1, 5], "the weights add up to 3, honest ones|a coordinate"),
        ([[0] * 4] * 3, [2**31 - 1, 5, 5], "the weights add up to -2147483639"),
        ([[9, 0, 0, 0], [0] * 4, [0] * 4], [3, 3, 2], "a coordinate of x adds up to 9, honest ones to 8 at most"),
        ([[-(2**31), 0, 0, 0], [0] * 4, [0] * 4], [3, 3, 2], "a coordinate of x adds up to 2147483648"),
    ],
)
def test_a_sum_that_honest_members_cannot_have_made_leaves_the_base(
    tmp_path: Path, steps: list[list[int]], counts: list[int], words: str
) -> None:
    found, base = liars(tmp_path, steps, counts)
    if words.startswith("the weights add up to 3"):
        # It wrapped around into the honest range: nobody can tell, and the sum is zero.
        assert not found.refused
        return
    assert words in found.refused
    assert (tmp_path / "out").read_bytes() == base.read_bytes()
    assert found.digest == digest_of(base.read_bytes())


def test_a_mean_longer_than_the_agreed_length_leaves_the_base(tmp_path: Path) -> None:
    room = room_of(3)
    inside, _ = liars(tmp_path, [[room, 0, 0, 0]] * 3, [room] * 3, norm_max=1.0)
    assert not inside.refused
    beyond, base = liars(tmp_path, [[room, 20, 20, 0]] * 3, [room] * 3, norm_max=0.99)
    assert beyond.refused == "the merged update is 1 long, a mean of honest ones at most 0.99"
    assert (tmp_path / "out").read_bytes() == base.read_bytes()


def test_the_length_of_the_sum_is_exact(tmp_path: Path) -> None:
    room = room_of(1)
    steps = [[room, -room, 123_456_789, -1]]
    found, _ = liars(tmp_path, steps, [room], norm_max=10.0)
    exact = Fraction(sum(step * step for step in steps[0]), room**2)
    assert found.norm == math.isqrt(int(exact * 4**40)) / 2**40


@pytest.mark.parametrize("now", [0, 1, 5, 8])
def test_the_next_exponent_has_room_for_sixteen_times_the_greatest_change(now: int) -> None:
    for greatest in (
        Fraction(1),
        Fraction(1, 16),
        Fraction(1, 16) + Fraction(1, 2**31),
        Fraction(1, 10**9),
        Fraction(1, 3),
    ):
        exact = math.ceil(math.log2(float(16 * greatest * Fraction(2) ** now)) - 1e-12)
        if greatest == Fraction(1, 16) + Fraction(1, 2**31):
            exact = now + 1
        assert next_exponent(now, greatest) == max(0, min(8, max(exact, now - 1)))
    assert next_exponent(now, Fraction(0)) == now


def test_exponents_follow_the_changes_and_travel_in_the_checkpoint(tmp_path: Path) -> None:
    merged, before = summed(tmp_path, np.zeros(3), [np.full(3, 0.5)] * 3, [1] * 3)
    assert exponents_of(before) == (3,)
    found = []
    for _ in range(5):
        merged, before = summed(tmp_path, np.zeros(3), [np.full(3, 0.01)] * 3, [1] * 3, before=before)
        assert not merged.refused
        found.append(exponents_of(before))
    assert found == [(2,), (1,), (0,), (0,), (0,)]
    merged, before = summed(tmp_path, np.zeros(3), [np.full(3, 5.0)] * 3, [1] * 3, before=before)
    assert exponents_of(before) == (4,)


def test_the_greatest_change_of_a_tensor_counts_wherever_it_is(tmp_path: Path) -> None:
    size = CHUNK_BYTES // 2
    for place in (0, 1000, 70_000, 300_000, size - 1):
        row = np.zeros(size)
        row[place] = 1.0
        _, out = summed(tmp_path, np.zeros(size), [row] * 3, [1] * 3)
        assert exponents_of(out) == (4,)


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam"])
def test_an_optimizer_acts_on_the_blind_mean(tmp_path: Path, rule: str) -> None:
    source = np.random.default_rng(4)
    size = CHUNK_BYTES // 4 + 1000
    rows = [source.standard_normal(size) * 0.01 for _ in range(3)]
    settings = policy(server=rule, weights="equal")
    optimizer = server_of(settings)
    before, visible = None, file(tmp_path / "visible base", np.ones(size))
    for turn in range(2):
        merged, before = summed(tmp_path, np.ones(size), rows, [1] * 3, server=optimizer, before=before)
        assert not merged.refused
        paths = [file(tmp_path / f"u{number}", row) for number, row in enumerate(rows)]
        visible_merge(visible, paths, [1] * 3, settings, tmp_path / f"visible {turn}")
        visible = tmp_path / f"visible {turn}"
    found, wanted = read_file(before or visible), read_file(visible)
    assert set(found) == {*wanted, "swarm.blind.exponents"}
    for name, values in wanted.items():
        np.testing.assert_allclose(decoded(found[name], "F32"), decoded(values, "F32"), rtol=1e-4, atol=1e-6)


def test_whole_numbers_stay_the_base_s(tmp_path: Path) -> None:
    schema = Schema.of([Tensor("n", "I64", (2,)), Tensor("on", "BOOL", (1,)), Tensor("x", "F32", (3,))])

    def written(name: str, number: int, change: float) -> Path:
        whole, on = np.full(2, number, np.int64), np.array([number % 2], np.uint8)
        write_file(tmp_path / name, schema, {"n": whole, "on": on, "x": np.full(3, change, np.float32)})
        return tmp_path / name

    base, encoding = written("base", 5, 1.0), Encoding(3, (0,))
    vectors = []
    for number in range(3):
        encode(written("update", 100 + number, 0.5), 1, encoding, (), tmp_path / f"v{number}")
        vectors.append(Masked(bytes([number]) * 20, tmp_path / f"v{number}"))
        assert set(read_file(tmp_path / f"v{number}")) == {"x", "swarm.blind.weight"}
    sum_masked(base, vectors, (), encoding, tmp_path / "out")
    found = read_file(tmp_path / "out")
    assert (found["n"].tolist(), found["on"].tolist(), found["x"].tolist()) == ([5, 5], [1], [1.5] * 3)


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 12345])
def test_a_mask_is_the_same_from_any_place(first: int) -> None:
    masks = [Mask(bytes([number]) * 32, bool(number % 2)) for number in range(3)]
    whole, part = np.zeros(3 * BLOCK, np.uint32), np.zeros(2 * BLOCK, np.uint32)
    apply(masks, 0, whole)
    apply(masks, first, part)
    assert np.array_equal(part, whole[first : first + len(part)])
    apply([mask.opposite for mask in masks], first, part)
    assert not part.any()


def test_a_mask_ends_before_its_counter_begins_again() -> None:
    mask, tail = [Mask(bytes(32), True)], np.zeros(16, np.uint32)
    apply(mask, VECTOR_MAX - 16, tail)
    assert tail.any()
    with pytest.raises(ValueError, match="a mask has 68719476736"):
        apply(mask, VECTOR_MAX - 15, tail)


def schema_whose_exponents_stand_across_two_chunks() -> Schema:
    """Tensors of several dtypes, the first as long as it has to be."""

    def of(first: int) -> tuple[Schema, int]:
        sizes = [("F32", first), ("F16", 70_000), ("F64", 150_000), ("U8", 1_048_570), *[("F32", 3)] * 100]
        model = Schema.of([Tensor(f"t{place:03}", dtype, (size,)) for place, (dtype, size) in enumerate(sizes)])
        exponents = Vector(model).exponents_tensor
        merged = Schema.of([*model.tensors, exponents])
        return model, len(merged.header) + next(s for t, s, _ in merged.placed if t == exponents)

    model, start = of(300_000)
    model, start = of(300_000 + (-48 - start) % CHUNK_BYTES // 4)
    assert start // CHUNK_BYTES < (start + 102) // CHUNK_BYTES
    return model


def test_threads_and_digests_without_a_file_make_no_difference(tmp_path: Path) -> None:
    source = np.random.default_rng(8)
    schema = schema_whose_exponents_stand_across_two_chunks()

    def written(name: str, scale: float) -> Path:
        values = {}
        for tensor in schema.tensors:
            drawn = source.standard_normal(tensor.shape) * scale
            values[tensor.name] = (
                np.abs(drawn).astype(np.uint8) if tensor.dtype == "U8" else encoded(drawn, tensor.dtype)
            )
        write_file(tmp_path / name, schema, values)
        return tmp_path / name

    base = written("base", 1.0)
    encoding = Encoding(3, exponents_of(base), 0, 1e4)
    masks = [Mask(bytes([number]) * 32, True) for number in range(3)]
    vectors = []
    for number in range(3):
        update, path = written("update", 0.2), tmp_path / f"v{number}"
        ones = [encode(update, 1, encoding, masks[number : number + 1], path, threads=threads) for threads in (1, 2, 5)]
        assert ones[0] == ones[1] == ones[2]
        assert ones[0].digest == digest_of(path.read_bytes())
        vectors.append(Masked(bytes([number]) * 20, path))
    off = [mask.opposite for mask in masks]
    found = [sum_masked(base, vectors, off, encoding, None, threads=threads) for threads in (1, 2, 5)]
    written_out = sum_masked(base, vectors[::-1], off[::-1], encoding, tmp_path / "out", threads=3)
    assert found[0] == found[1] == found[2] == written_out
    data = (tmp_path / "out").read_bytes()
    assert (found[0].digest, found[0].size) == (digest_of(data), len(data))
    assert {*exponents_of(tmp_path / "out")} == {0, 1, 2, 3, 4}
    second = sum_masked(tmp_path / "out", vectors, off, Encoding(3, exponents_of(tmp_path / "out"), 0, 1e4), None)
    assert second.digest != found[0].digest


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_the_largest_finite_values_are_clipped(tmp_path: Path, dtype: str) -> None:
    largest = 1.7e308 if dtype == "F64" else 3.4e38
    update = file(tmp_path / "u", np.array([largest, -largest, 0.0]), dtype)
    found = encode(update, 1, Encoding(3, (0,)), (), tmp_path / "out")
    assert found.clipped == 2
    assert read_file(tmp_path / "out")["x"].tolist() == [room_of(3), -room_of(3), 0]
    if dtype == "F64":
        with pytest.raises(Unfit, match="longer than float64 can say"):
            encode(update, 1, Encoding(3, (0,), 0, 1.0), (), tmp_path / "other")
        assert not (tmp_path / "other").exists()
