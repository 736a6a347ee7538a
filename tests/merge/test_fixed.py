"""Floats become steps and come back by one rounding, the same that exact fractions give."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest

from swarm.merge.fixed import LIMIT_MAX, NUMPY_TYPES, FixedPoint, NotFinite, check_bool, load, store
from tests.merge.reference import FLOAT_TYPES, FORMATS, decoded, nearest, rounded


def awkward_floats(seed: int, count: int) -> list[float]:
    """Floats of every size, neighbours of ties, and any bit pattern that is finite."""
    source = random.Random(seed)
    found = [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.0, -1.0, 8.0, -8.0, 65504.0, 65520.0, 65519.99]
    while len(found) < count:
        kind = source.randrange(4)
        if kind == 0:
            value = struct.unpack("<d", source.randbytes(8))[0]
        elif kind == 1:
            tie = (2 * source.randrange(-(2**20), 2**20) + 1) * 2.0 ** source.randrange(-60, 20)
            value = source.choice((tie, math.nextafter(tie, math.inf), math.nextafter(tie, -math.inf)))
        elif kind == 2:
            value = source.gauss(0, 1) * 10.0 ** source.randrange(-12, 4)
        else:
            value = struct.unpack("<f", source.randbytes(4))[0]
        if math.isfinite(value):
            found.append(value)
    return found


@pytest.mark.parametrize("bits", [0, 8, 31, 32, 40, 50])
@pytest.mark.parametrize("seed", range(3))
def test_steps_are_the_nearest_whole_number_ties_to_even(bits: int, seed: int) -> None:
    fixed = FixedPoint(bits, min(8.0, LIMIT_MAX / 2**bits) if bits > 45 else 8.0)
    values = np.array(awkward_floats(seed, 3000))
    steps, seen = fixed.of(values)
    expected = [max(-fixed.limit, min(fixed.limit, nearest(Fraction(v) * 2**bits))) for v in values.tolist()]
    assert steps.tolist() == expected
    assert seen.clipped == sum(abs(Fraction(v)) > Fraction(fixed.limit, 2**bits) for v in values.tolist())


def test_the_largest_range_still_rounds_exactly() -> None:
    fixed = FixedPoint(32, LIMIT_MAX / 2**32)
    assert fixed.limit == LIMIT_MAX
    edge = LIMIT_MAX / 2**32
    values = np.array([edge, -edge, edge - 2.0**-33, -edge + 2.0**-33, 1e300, -1e300])
    assert fixed.of(values)[0].tolist() == [
        LIMIT_MAX,
        -LIMIT_MAX,
        LIMIT_MAX - 1,
        1 - LIMIT_MAX,
        LIMIT_MAX,
        -LIMIT_MAX,
    ]


@pytest.mark.parametrize(("bits", "width"), [(32, 2.0**19), (32, 0.0), (32, 2.0**-33), (60, 1.0), (-1, 1.0)])
def test_a_range_without_a_fixed_point_is_refused(bits: int, width: float) -> None:
    with pytest.raises(ValueError, match=r"has not between 1 and 2\*\*51 steps"):
        FixedPoint(bits, width)


def test_a_step_more_than_the_bound_would_round_wrongly() -> None:
    """The planted mistake: without LIMIT_MAX the constant leaves its binade and one bit is two steps."""
    shift = 1.5 * 2.0**20
    beyond = float(Fraction(2**51 + 1, 2**32))
    bias = int(np.float64(shift).view(np.int64))
    assert int((np.array([beyond]) + shift).view(np.int64)[0]) - bias != 2**51 + 1


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_every_dtype_is_read_exactly(dtype: str) -> None:
    width = np.dtype(NUMPY_TYPES[dtype]).itemsize
    raw = np.frombuffer(random.Random(1).randbytes(4000 * width), np.uint8)
    if width == 2:
        raw = np.arange(2**16, dtype="<u2").view(np.uint8)
    found = load(raw, dtype, np.empty(len(raw) // width))
    for at, value in enumerate(found.tolist()):
        pattern = raw[at * width : (at + 1) * width].tobytes()
        match dtype:
            case "F64":
                expected = struct.unpack("<d", pattern)[0]
            case "F32":
                expected = struct.unpack("<f", pattern)[0]
            case "F16":
                expected = struct.unpack("<e", pattern)[0]
            case _:
                expected = struct.unpack("<f", b"\0\0" + pattern)[0]
        assert value == expected or (math.isnan(value) and math.isnan(expected))


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_every_dtype_is_written_by_one_rounding(dtype: str, seed: int) -> None:
    values = np.array(awkward_floats(seed, 4000))
    raw = np.empty(len(values) * np.dtype(NUMPY_TYPES[dtype]).itemsize, np.uint8)
    store(values.copy(), dtype, raw)
    found = decoded(raw.view(NUMPY_TYPES[dtype]), dtype)
    for value, back in zip(values.tolist(), found.tolist(), strict=True):
        assert Fraction(back) == rounded(Fraction(value), dtype), value
        assert back != 0 or math.copysign(1, back) == 1, f"{value} became -0"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_ties_and_their_neighbours_round_once(dtype: str) -> None:
    """A rounding through float32 first would turn a neighbour of a tie into the tie itself."""
    precision, smallest, largest = FORMATS[dtype]
    source = random.Random(7)
    values = []
    for _ in range(2000):
        exponent = source.randrange(smallest - 1, smallest + 60)
        tie = float((2 * source.randrange(2 ** (precision - 1), 2**precision) + 1) * Fraction(2) ** exponent)
        if Fraction(tie) > largest:
            continue
        values += [tie, -tie, math.nextafter(tie, math.inf), math.nextafter(tie, 0), -math.nextafter(tie, math.inf)]
    raw = np.empty(len(values) * np.dtype(NUMPY_TYPES[dtype]).itemsize, np.uint8)
    store(np.array(values), dtype, raw)
    found = decoded(raw.view(NUMPY_TYPES[dtype]), dtype).tolist()
    assert [Fraction(v) for v in found] == [rounded(Fraction(v), dtype) for v in values]


def test_bfloat16_through_float32_rounds_twice() -> None:
    """The planted mistake that `store` avoids: just above a tie, float32 says tie, and the tie goes to even."""
    value = 1.0 + 2.0**-8 + 2.0**-40
    assert float(rounded(Fraction(value), "BF16")) == 1.0 + 2.0**-7
    bits = int(np.float32(value).view(np.uint32))
    twice = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    assert float(np.uint32(twice).view(np.float32)) == 1.0
    raw = np.empty(2, np.uint8)
    store(np.array([value]), "BF16", raw)
    assert decoded(raw.view("<u2"), "BF16")[0] == 1.0 + 2.0**-7


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 999])
def test_what_is_not_finite_is_found_where_it_is(dtype: str, bad: float, at: int) -> None:
    values = np.zeros(1000)
    raw = np.empty(1000 * np.dtype(NUMPY_TYPES[dtype]).itemsize, np.uint8)
    store(values, dtype, raw)
    pattern = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f"}[dtype]
    data = struct.pack(pattern, bad)[2 if dtype == "BF16" else 0 :]
    raw[at * len(data) : (at + 1) * len(data)] = np.frombuffer(data, np.uint8)
    with pytest.raises(NotFinite, match=f"element {at} is") as caught:
        FixedPoint(32, 8.0).quantize(raw, dtype, np.empty(1000))
    assert caught.value.index == at


def test_a_truth_value_is_0_or_1() -> None:
    check_bool(np.array([0, 1, 1], np.uint8))
    check_bool(np.array([], np.uint8))
    with pytest.raises(NotFinite, match="element 2 is 7, no truth value"):
        check_bool(np.array([0, 1, 7, 255], np.uint8))
