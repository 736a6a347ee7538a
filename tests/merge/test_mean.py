"""The weighted mean and the sum are exact sums and one rounding, bit for bit what whole numbers and fractions give."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from swarm.merge import BadUpdate, merge, merge_files
from swarm.merge.fixed import FixedPoint
from swarm.merge.mean import Linear, Sum, plain_sum, weighted_mean
from tests.merge.reference import (
    FLOAT_TYPES,
    FORMATS,
    Values,
    decoded,
    encoded,
    files,
    mean_of,
    policy,
    read_vector,
    steps_of,
    sum_of,
    vector_file,
)


def updates_like(source: np.random.Generator, members: int, count: int, dtype: str) -> Values:
    """Members' updates with what is awkward: zeros, denormals, values at, just inside and far beyond ±8."""
    values = source.standard_normal((members, count)) * 10.0 ** source.integers(-9, 2, (members, count))
    awkward = [0.0, -0.0, 8.0, -8.0, math.nextafter(8.0, 9), 2.0**-33, 3 * 2.0**-34, 1e-40, -5e-324, 60000.0, -60000.0]
    places = source.random((members, count)) < 0.1
    values[places] = source.choice(awkward, np.count_nonzero(places))
    return decoded(encoded(values, dtype), dtype)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_is_the_references_to_the_last_bit(tmp_path: Path, dtype: str, seed: int) -> None:
    source = np.random.default_rng(seed)
    members, count = int(source.integers(1, 12)), 700
    rows = updates_like(source, members, count, dtype)
    base = updates_like(source, 1, count, dtype)[0]
    weights = [int(w) for w in 10 ** source.uniform(0, 6, members)]
    paths = files(tmp_path, {f"u{i}": row for i, row in enumerate(rows)}, dtype)
    rule = policy()
    merge_files(vector_file(tmp_path / "base", base, dtype), paths, weights, rule, tmp_path / "out")
    found = read_vector(tmp_path / "out", dtype)
    for at in range(count):
        expected = mean_of(float(base[at]), rows[:, at].tolist(), weights, rule, dtype)
        assert (found[at], math.copysign(1, found[at])) == (expected, math.copysign(1, expected)), (seed, at)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_the_sum_is_the_references_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    source = np.random.default_rng(5)
    rows = np.clip(updates_like(source, 9, 500, dtype), -8, 8)
    base = updates_like(source, 1, 500, dtype)[0]
    paths = files(tmp_path, {f"u{i}": row for i, row in enumerate(rows)}, dtype)
    rule = policy(merge="sum", weights="equal")
    merge_files(vector_file(tmp_path / "base", base, dtype), paths, [3] * 9, rule, tmp_path / "out")
    expected = [sum_of(float(b), rows[:, at].tolist(), rule, dtype) for at, b in enumerate(base)]
    assert read_vector(tmp_path / "out", dtype).tolist() == expected


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("bits", [12, 24, 32])
def test_the_mean_errs_by_at_most_half_a_step_and_the_dtypes_own_rounding(
    tmp_path: Path, dtype: str, bits: int
) -> None:
    source = np.random.default_rng(bits)
    rows = np.clip(updates_like(source, 5, 400, dtype), -8, 8)
    base = np.clip(updates_like(source, 1, 400, dtype)[0], -8, 8)
    weights = [int(w) for w in source.integers(1, 10**6, 5)]
    paths = files(tmp_path, {f"u{i}": row for i, row in enumerate(rows)}, dtype)
    merge_files(vector_file(tmp_path / "base", base, dtype), paths, weights, policy(step_bits=bits), tmp_path / "out")
    found = read_vector(tmp_path / "out", dtype)
    precision, smallest, _ = FORMATS[dtype]
    for at in range(400):
        ideal = Fraction(float(base[at])) + sum(
            Fraction(w, sum(weights)) * Fraction(float(x)) for w, x in zip(weights, rows[:, at], strict=True)
        )
        allowed = Fraction(1, 2 ** (bits + 1)) + abs(ideal) / 2**precision + Fraction(2) ** (smallest - 1)
        # float64's own roundings: of the scale, the product, the sum.
        allowed += 4 * (abs(ideal) + abs(Fraction(float(base[at])))) / 2**53
        assert abs(Fraction(float(found[at])) - ideal) <= allowed * (1 + Fraction(1, 2**20))


def test_a_site_alone_moves_the_checkpoint_by_its_update(tmp_path: Path) -> None:
    base = np.linspace(-2, 2, 1001).astype(np.float32).astype(np.float64)
    trained = (base + np.random.default_rng(0).standard_normal(1001) * 0.01).astype(np.float32)
    update = (trained - base.astype(np.float32)).astype(np.float64)
    path = vector_file(tmp_path / "u", update)
    merge_files(vector_file(tmp_path / "base", base), [path], [77], policy(), tmp_path / "out")
    assert np.abs(read_vector(tmp_path / "out") - trained).max() <= 2.0**-23


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_updates_changes_no_bit(tmp_path: Path, seed: int) -> None:
    source = np.random.default_rng(seed)
    rows = updates_like(source, 10, 3000, "F32")
    pairs = list(zip(files(tmp_path, {f"u{i}": r for i, r in enumerate(rows)}), range(1, 11), strict=True))
    base = vector_file(tmp_path / "base", updates_like(source, 1, 3000, "F32")[0])
    found = set()
    for _ in range(4):
        random.Random(seed).shuffle(pairs)
        found.add(merge_files(base, [p for p, _ in pairs], [w for _, w in pairs], policy(), tmp_path / "out"))
    assert len(found) == 1


def test_float_sums_would_depend_on_the_order() -> None:
    """The planted mistake: the same mean in float32 from first to last and back differs in most coordinates."""
    rows = np.random.default_rng(0).standard_normal((10, 10_000)).astype(np.float32)
    forth = np.add.reduce(list(rows)) / np.float32(10)
    back = np.add.reduce(list(rows[::-1])) / np.float32(10)
    assert np.count_nonzero(forth != back) > 3000


def test_the_largest_sums_fit_and_larger_ones_are_refused() -> None:
    fixed = FixedPoint(32, 8.0)
    weights = [2**27 - 1] * 2
    plan = weighted_mean(weights, fixed)
    summing = Sum(plan, fixed, 4)
    summing.start(4)
    extremes = np.array([8.0, -8.0, 8.0, 0.0])
    for row in range(2):
        summing.add(row, extremes.view(np.uint8), "F64")
    out = np.empty(32, np.uint8)
    summing.change()
    summing.finish(np.zeros(4).view(np.uint8), "F64", out)
    assert out.view("<f8").tolist() == [8.0, -8.0, 8.0, 0.0]
    with pytest.raises(ValueError, match=r"pass 2\*\*63; lower the weights, the range or step_bits"):
        weighted_mean([2**27] * 2, fixed)
    with pytest.raises(ValueError, match=r"pass 2\*\*63"):
        plain_sum(2**13, FixedPoint(32, 2.0**18))


def test_a_sum_that_passed_64_bits_would_wrap() -> None:
    """The planted mistake: without the check two members at +range would merge to -range."""
    fixed = FixedPoint(32, 8.0)
    summing = Sum(Linear((2**27, 2**27), Fraction(1, 2**28 << 32)), fixed, 1)
    summing.start(1)
    for row in range(2):
        summing.add(row, np.array([8.0]).view(np.uint8), "F64")
    out = np.empty(8, np.uint8)
    summing.change()
    summing.finish(np.zeros(1).view(np.uint8), "F64", out)
    assert out.view("<f8")[0] == -8.0


@pytest.mark.parametrize("weight", [0, -1, 2.0, True, "3", None])
def test_a_weight_is_a_positive_whole_number(tmp_path: Path, weight: object) -> None:
    path = vector_file(tmp_path / "x", np.zeros(3))
    with pytest.raises(ValueError, match=r"the weight of update 1 is .*; a positive whole number"):
        merge_files(path, [path, path], [1, weight], policy(), tmp_path / "out")  # type: ignore[list-item]
    assert not (tmp_path / "out").exists()


def test_weights_keep_to_the_policy(tmp_path: Path) -> None:
    path = vector_file(tmp_path / "x", np.zeros(3))
    with pytest.raises(ValueError, match="a weight of 11, but the policy's weight_max is 10"):
        merge_files(path, [path], [11], policy(weight_max=10), tmp_path / "out")
    with pytest.raises(ValueError, match="no update to merge"):
        merge_files(path, [], [], policy(), tmp_path / "out")
    with pytest.raises(ValueError, match="2 updates and 1 weights"):
        merge_files(path, [path, path], [1], policy(), tmp_path / "out")


def test_equal_weights_ignore_the_sample_counts(tmp_path: Path) -> None:
    base = vector_file(tmp_path / "base", np.zeros(2))
    paths = files(tmp_path, {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 3.0])})
    merged = merge(base, paths, [1, 999], policy(weights="equal"), tmp_path / "out")
    assert read_vector(tmp_path / "out").tolist() == [0.5, 1.5]
    assert [report.share for report in merged.reports] == [0.5, 0.5]


def test_a_mean_clips_and_says_how_often_and_a_sum_refuses(tmp_path: Path) -> None:
    base = vector_file(tmp_path / "base", np.zeros(4))
    paths = files(tmp_path, {"a": np.array([9.0, -8.0, 1.0, -100.0]), "b": np.zeros(4)})
    merged = merge(base, paths, [1, 1], policy(), tmp_path / "out")
    assert read_vector(tmp_path / "out").tolist() == [4.0, -4.0, 0.5, -4.0]
    assert [report.clipped for report in merged.reports] == [2, 0]
    assert merged.reports[0].norm == pytest.approx(math.sqrt(64 * 3 + 1))
    with pytest.raises(BadUpdate, match=r"update 0: a value is beyond ±8.0, and a sum clips nothing"):
        merge(base, paths, [1, 1], policy(merge="sum", weights="equal"), tmp_path / "out")


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_zero_has_one_sign(tmp_path: Path, dtype: str) -> None:
    tiny = {"F64": 0.0, "F32": 1e-45, "F16": 6e-8, "BF16": 1e-40}[dtype]
    base = np.array([-0.0, 0.0, -0.0, -tiny, tiny])
    update = np.array([-0.0, -0.0, 0.0, 0.0, -0.0])
    one = vector_file(tmp_path / "base", base, dtype)
    raw = bytearray(one.read_bytes())
    assert any(decoded(encoded(base, dtype), dtype)[3:]) or tiny == 0
    width = len(encoded(base, dtype).tobytes()) // 5
    raw[-5 * width + width - 1] = raw[-3 * width + width - 1] = 0x80
    one.write_bytes(raw)
    assert np.signbit(read_vector(one, dtype)).tolist()[:3] == [True, False, True]
    merge_files(one, [vector_file(tmp_path / "u", update, dtype)], [1], policy(), tmp_path / "out")
    found = read_vector(tmp_path / "out", dtype)
    assert not np.signbit(found[found == 0]).any()


def test_a_half_saturates_instead_of_becoming_infinite(tmp_path: Path) -> None:
    base = vector_file(tmp_path / "base", np.array([65504.0, -65504.0, 65472.0]), "F16")
    update = vector_file(tmp_path / "u", np.array([1024.0, -1024.0, 1.0]), "F16")
    merge_files(base, [update], [1], policy(range=2048.0, weight_max=1000), tmp_path / "out")
    assert read_vector(tmp_path / "out", "F16").tolist() == [65504.0, -65504.0, 65472.0]


def test_doubles_of_any_size_are_kept(tmp_path: Path) -> None:
    large = np.array([1.7976931348623157e308, -1.7976931348623157e308, 1e300, 5e-324])
    base = vector_file(tmp_path / "base", large, "F64")
    update = vector_file(tmp_path / "u", np.array([8.0, -8.0, 1.0, 0.0]), "F64")
    merge_files(base, [update], [1], policy(), tmp_path / "out")
    assert read_vector(tmp_path / "out", "F64").tolist() == large.tolist()


def test_steps_of_the_reference_and_of_numpy_agree_on_halves() -> None:
    rule = policy()
    fixed = FixedPoint(32, 8.0)
    values = [(2 * k + 1) * 2.0**-33 for k in range(-50, 50)]
    assert fixed.of(np.array(values))[0].tolist() == [steps_of(v, rule) for v in values]
