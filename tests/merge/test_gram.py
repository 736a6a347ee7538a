"""Inner products are exact whole numbers, and every distance follows from them."""

from __future__ import annotations

import random
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.merge import files as merge_files_module
from swarm.merge.coefficients import UNIT_BITS_MIN, steps_in, unit_of
from swarm.merge.fixed import NUMPY_TYPES, FixedPoint, NotFinite, load, store
from swarm.merge.gram import Products, distance_squared, distances, gram_of, norm_squared
from swarm.merge.limbs import BLOCK_MAX
from swarm.merge.schema import FLOATS
from swarm.merge.squares import PIECE, Squares, squares_of, tree
from tests.merge.golden import SCHEMA, WEIGHTS, write_inputs
from tests.merge.reference import Values, decoded, policy, read_file, steps_of


def products_of(rows: Values, fixed: FixedPoint, cut: int) -> tuple[tuple[int, ...], ...]:
    products = Products(len(rows), fixed)
    totals = []
    for start in range(0, rows.shape[1], cut):
        part = np.ascontiguousarray(rows[:, start : start + cut])
        for row, values in enumerate(part):
            products.add(row, values.view(np.uint8), "F64", part.shape[1])
        products.finish(part.shape[1])
        totals.append(products.take())
    return gram_of(totals, len(rows))


@pytest.mark.parametrize(("bits", "width"), [(8, 8.0), (32, 8.0), (40, 2.0**10), (32, 2.0**18), (20, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_products_are_exact_for_one_two_and_three_limbs(bits: int, width: float, seed: int) -> None:
    fixed = FixedPoint(bits, width)
    source = np.random.default_rng(seed)
    rows = source.uniform(-1.2 * width, 1.2 * width, (5, 777))
    rows[1] = width
    rows[2] = -width
    rows[3, ::3] = source.uniform(-(2.0**-bits), 2.0**-bits, 259) * 5
    steps = [[int(q) for q in fixed.of(row)[0]] for row in rows]
    expected = tuple(tuple(sum(x * y for x, y in zip(one, two, strict=True)) for two in steps) for one in steps)
    assert products_of(rows, fixed, 777) == expected
    assert products_of(rows, fixed, 100) == expected


def test_the_largest_block_of_the_largest_steps_stays_exact() -> None:
    """2**16 products of limbs of 2**17: the bound that BLOCK_MAX and LIMB_BITS keep."""
    for limit in (2**17 - 1, 2**35 - 1, 2**51 - 1):
        fixed = FixedPoint(0, float(limit))
        rows = np.array([[float(limit)] * BLOCK_MAX, [-float(limit)] * (BLOCK_MAX - 1) + [1.0]])
        one, two = BLOCK_MAX * limit**2, (BLOCK_MAX - 1) * limit**2
        assert products_of(rows, fixed, BLOCK_MAX) == ((one, limit - two), (limit - two, two + 1))


def test_products_without_limbs_would_be_rounded() -> None:
    """The planted mistake: one float64 product of the steps themselves."""
    steps = np.array([[2.0**35 - 1] * 1000])
    assert int((steps @ steps.T)[0, 0]) != 1000 * (2**35 - 1) ** 2


def test_a_files_products_are_those_of_its_float_coordinates(tmp_path: Path) -> None:
    base, updates = write_inputs(tmp_path)
    rule = policy(merge="geometric_median")
    vectors = []
    for path in updates:
        content = read_file(path)
        vectors.append(
            [
                steps_of(float(x), rule)
                for tensor in SCHEMA.tensors
                if tensor.dtype in FLOATS
                for x in decoded(content[tensor.name], tensor.dtype).reshape(-1)
            ]
        )
    expected = tuple(tuple(sum(x * y for x, y in zip(one, two, strict=True)) for two in vectors) for one in vectors)
    for threads in (1, 2, 3):
        with merge_files_module._Job(base, updates, WEIGHTS, rule, threads) as job:
            assert job.gram() == expected
            assert job.squares() == pytest.approx([expected[i][i] for i in range(len(expected))], rel=2.0**-19)


def length(values: NDArray[Any], dtype: str, fixed: FixedPoint) -> int:
    """The squared length of one piece."""
    squares = Squares(1, fixed)
    squares.add(0, values.copy().view(np.uint8), dtype, len(values))
    squares.finish(len(values))
    return squares_of([squares.take()], 1)[0]


def added(steps: list[int], dtype: type[Any]) -> int:
    """The tree of squares once more, by single operations on numpy's scalars."""
    terms = [dtype(step) * dtype(step) for step in steps]
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        terms = [one + other for one, other in zip(terms, terms[half:], strict=False)] + terms[len(terms) - half : half]
    return int(terms[0])


@pytest.mark.parametrize(("bits", "scale"), [(8, 1.0), (16, 1e-3), (32, 1e-6), (32, 0.01), (32, 2.0), (40, 1e-4)])
@pytest.mark.parametrize("size", [1, 2, 999, 4096])
def test_a_squared_length_is_the_tree_of_float32_sums(bits: int, scale: float, size: int) -> None:
    fixed = FixedPoint(bits, 8.0)
    values = np.random.default_rng(size).normal(0, scale, size).clip(-7, 7).astype("<f4")
    steps = fixed.of(values)[0].tolist()
    exact = sum(step * step for step in steps)
    dtype = np.float32 if exact <= 0.9 * fixed.limit**2 else np.float64
    assert length(values, "F32", fixed) == added(steps, dtype)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.3, 6.0, 60.0])
def test_squared_lengths_are_off_by_a_part_in_2_to_the_19(dtype: str, scale: float) -> None:
    fixed = FixedPoint(32, 8.0)
    values = np.random.default_rng(3).normal(0, scale, PIECE)
    raw = np.empty(PIECE * np.dtype(NUMPY_TYPES[dtype]).itemsize, np.uint8)
    store(values, dtype, raw)
    means = load(raw, dtype, np.empty(PIECE))
    exact = sum(int(step) ** 2 for step in fixed.of(means)[0].tolist())
    assert abs(length(raw, dtype, fixed) - exact) <= exact * 2.0**-19


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, PIECE - 1])
def test_no_length_hides_what_is_not_finite(bad: float, at: int) -> None:
    values = np.zeros(PIECE, "<f4")
    values[at] = bad
    with pytest.raises(NotFinite, match=f"element {at} is"):
        length(values, "F32", FixedPoint(32, 8.0))


@pytest.mark.parametrize("value", [8.0, 8.000001, 1e30, 3e38, -3e38])
def test_what_is_beyond_the_range_is_as_long_as_the_range(value: float) -> None:
    fixed = FixedPoint(32, 8.0)
    assert length(np.array([value, 0.5], "<f4"), "F32", fixed) == fixed.limit**2 + 2**62


def test_another_order_would_give_another_length() -> None:
    """The planted mistake: a sum in the machine's own order."""
    values = np.random.default_rng(0).normal(0, 1e5, PIECE).astype(np.float32) ** 2
    assert len({float(values.sum()), float(np.add.reduce(values[::-1])), float(np.cumsum(values)[-1])}) > 1
    backwards = values[::-1].copy()
    assert tree(values) != float(np.cumsum(backwards)[-1])


@pytest.mark.parametrize("seed", range(5))
def test_distances_follow_from_products(seed: int) -> None:
    source = random.Random(seed)
    vectors = [[source.randrange(-(2**35), 2**35) for _ in range(30)] for _ in range(4)]
    gram = tuple(tuple(sum(x * y for x, y in zip(a, b, strict=True)) for b in vectors) for a in vectors)
    unit = 2**26
    coefficients = [source.randrange(-unit, unit) for _ in vectors]
    point = [sum(c * v[k] for c, v in zip(coefficients, vectors, strict=True)) for k in range(30)]
    expected = [isqrt(sum((unit * x - p) ** 2 for x, p in zip(v, point, strict=True))) for v in vectors]
    assert distances(gram, coefficients, unit) == expected
    assert norm_squared(gram, coefficients) == sum(p * p for p in point)
    assert distance_squared(gram, 0, 3) == sum((x - y) ** 2 for x, y in zip(vectors[0], vectors[3], strict=True))
    assert distances(gram, [0, unit, 0, 0], unit)[1] == 0


def test_coefficients_have_room_or_the_policy_cannot_work() -> None:
    assert unit_of(FixedPoint(32, 8.0)) == 2**26
    assert unit_of(FixedPoint(8, 1.0)) == 2**30
    assert unit_of(FixedPoint(32, 2.0**9)) == 2**UNIT_BITS_MIN
    with pytest.raises(ValueError, match="leaves no room for coefficients"):
        unit_of(FixedPoint(32, 2.0**10))
    assert steps_in(0.5, FixedPoint(32, 8.0)) == 2**31
    with pytest.raises(ValueError, match="less than one step"):
        steps_in(2.0**-33, FixedPoint(32, 8.0))
