"""Floats as whole numbers of steps, and back: where a float's rounding happens, and nowhere else.

A coordinate x of an update becomes q = x / 2**-bits rounded to the nearest whole number, ties to even, after x was
clipped to ±limit steps. Sums of q are exact, so they do not depend on their order or on the machine.

Multiplying by a power of two is exact, and rounding a float64 to a whole number is one IEEE 754 operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64s: TypeAlias = NDArray[np.float64]
Int64s: TypeAlias = NDArray[np.int64]
Raw: TypeAlias = NDArray[np.uint8]
"""Elements as they lie in a file, little-endian."""

NUMPY_TYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|u1",
}
"""BF16 as its bits, BOOL as its bytes."""

# A dot product of so many stays in this thread: BLAS shares longer ones among threads of its own.
DOT = 1 << 13

# Beyond it a whole number plus `TO_INTEGER` leaves the binade in which one bit is worth 1.
LIMIT_MAX = 2**51 - 1

# Added to a whole float64, it leaves the number in the last bits; read as an integer they are the number plus `BIAS`: a
# cast that runs at vector speed on every machine. (Knuth, TAOCP 2, 4.2.2, on adding a constant.)
TO_INTEGER = 1.5 * 2.0**52
BIAS = int(np.float64(TO_INTEGER).view(np.int64))

_LARGEST = {
    "F16": 65504.0,
    "BF16": float(np.uint32(0x7F7F0000).view(np.float32)),
    "F32": float(np.finfo(np.float32).max),
    "F64": float(np.finfo(np.float64).max),
}


class NotFinite(ValueError):
    """A value is NaN or infinite, or a BOOL is neither 0 nor 1."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"element {index} is {what}")
        self.index = index
        self.what = what


@dataclass(frozen=True)
class Seen:
    """What was seen of some elements of an update."""

    clipped: int = 0
    """How many were beyond the range."""
    squares: float = 0.0
    """The sum of their squares after clipping; only its first digits are the same on every machine."""

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.clipped + other.clipped, self.squares + other.squares)


@dataclass(frozen=True)
class FixedPoint:
    """Steps of 2**-bits, clipped to ±range.

    Raises:
        ValueError: more than 2**51 steps in the range, or none.
    """

    bits: int
    range: float

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 52 or not 1 <= self.limit <= LIMIT_MAX:
            raise ValueError(f"±{self.range} in steps of 2**-{self.bits} has not between 1 and 2**51 steps")

    @cached_property
    def limit(self) -> int:
        """The largest whole number of steps within the range."""
        return int(Fraction(self.range) * 2**self.bits)

    @cached_property
    def edge(self) -> float:
        """`limit` steps as a float, exact."""
        return float(Fraction(self.limit, 2**self.bits))

    @cached_property
    def _calm(self) -> float:
        """A sum of squares up to which no element can be beyond the range, however the sum was rounded."""
        return 0.9 * self.edge * self.edge

    def quantize(self, raw: Raw, dtype: str, out: Float64s) -> tuple[Float64s, Seen]:
        """Fixed point of a tensor's elements, whole numbers in float64, and what was seen of them.

        Args:
            raw: the elements as they lie in a file; what it holds is overwritten.
            out: room for as many float64, which is the answer.
        Raises:
            NotFinite: an element is NaN or infinite.
        """
        calm = self._calm_steps(raw, dtype)
        if calm is not None:
            np.copyto(out, calm[0])
            return out, calm[1]
        clipped = 0
        values = load(raw, dtype, out)
        # Minimum and maximum pass a NaN on.
        if len(values) and not (values.max() <= self.edge and values.min() >= -self.edge):
            check_finite(values)
            clipped = int(np.count_nonzero(values > self.edge) + np.count_nonzero(values < -self.edge))
            np.clip(values, -self.edge, self.edge, out=values)
        squares = float(np.einsum("i,i->", values, values))
        np.multiply(values, 2.0**self.bits, out=values)
        return np.rint(values, out=values), Seen(clipped, squares)

    def whole(self, raw: Raw, dtype: str, out: Int64s) -> tuple[Int64s, Seen]:
        """As `quantize`, in int64."""
        calm = self._calm_steps(raw, dtype)
        if calm is not None:
            np.copyto(out, calm[0], casting="unsafe")
            return out, calm[1]
        steps, seen = self.quantize(raw, dtype, out.view(np.float64))
        return np.subtract(biased(steps), BIAS, out=out), seen

    def look(self, raw: Raw, dtype: str, scratch: Float64s) -> Seen:
        """Only what is seen of a tensor's elements; arguments and errors as in `quantize`."""
        squares = self._calm_squares(raw, dtype)
        return Seen(0, squares) if squares is not None else self.quantize(raw, dtype, scratch)[1]

    def _calm_squares(self, raw: Raw, dtype: str) -> float | None:
        """The sum of the squares of float32 elements; None if one of them may be beyond the range or not finite."""
        if dtype != "F32":
            return None
        squares = _about_squares(raw.view("<f4"))
        # No comparison with NaN holds.
        return squares if squares <= self._calm else None

    def _calm_steps(self, raw: Raw, dtype: str) -> tuple[NDArray[np.float32], Seen] | None:
        """The steps of calm float32 elements where those lay: a power of two and a rounding leave them float32."""
        squares = self._calm_squares(raw, dtype)
        if squares is None:
            return None
        source = raw.view("<f4")
        np.multiply(source, np.float32(2.0**self.bits), out=source)
        return np.rint(source, out=source), Seen(0, squares)

    def of(self, values: NDArray[Any]) -> tuple[Int64s, Seen]:
        """Fixed point of float64 values as integers, and what was seen of them. For tests and small vectors."""
        raw = np.array(values, dtype="<f8").view(np.uint8)
        steps, seen = self.quantize(raw, "F64", np.empty(raw.size // 8))
        return steps.astype(np.int64), seen


def _about_squares(values: NDArray[np.float32]) -> float:
    """The sum of the squares to some three digits, in the machine's own order; NaN or infinite if one of them is."""
    whole = len(values) // DOT * DOT
    rows, rest = values[:whole].reshape(-1, DOT), values[whole:]
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.vecdot(rows, rows).sum() + np.vecdot(rest, rest))


def biased(steps: Float64s) -> Int64s:
    """Whole float64 numbers of at most `LIMIT_MAX` as integers, each with `BIAS` added; a view of what they were in."""
    return np.add(steps, TO_INTEGER, out=steps).view(np.int64)


def load(raw: Raw, dtype: str, out: Float64s) -> Float64s:
    """A float tensor's elements as float64, exactly."""
    # A signalling NaN makes the cast complain; who checks for finite values says where it is.
    with np.errstate(invalid="ignore"):
        if dtype == "BF16":
            np.copyto(out, np.left_shift(raw.view("<u2"), 16, dtype=np.uint32).view(np.float32))
        else:
            np.copyto(out, raw.view(NUMPY_TYPES[dtype]))
    return out


def store(values: Float64s, dtype: str, out: Raw) -> None:
    """Round float64 once to the dtype: to nearest, ties to even; beyond its largest finite value that value; no -0.

    Overwrites `values`.
    """
    largest = _LARGEST[dtype]
    if dtype in ("F16", "BF16"):
        if len(values) and not (values.max() <= largest and values.min() >= -largest):
            np.clip(values, -largest, largest, out=values)
        bits = out.view("<u2")
        if dtype == "BF16":
            _to_bfloat16(values, bits)
        else:
            np.copyto(out.view("<f2"), values, casting="same_kind")
        bits[bits == 0x8000] = 0
        return
    target = out.view(NUMPY_TYPES[dtype])
    with np.errstate(over="ignore"):
        np.copyto(target, values, casting="same_kind")
    if len(target) and not (target.max() <= largest and target.min() >= -largest):
        np.clip(target, -largest, largest, out=target)
    # -0 + 0 is +0, and nothing else changes.
    np.add(target, 0.0, out=target)


def _to_bfloat16(values: Float64s, out: NDArray[np.uint16]) -> None:
    """Round to nearest even in one step; through float32, whose own rounding is undone where it made a tie."""
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    ties = np.flatnonzero((bits & 0xFFFF) == 0x8000)
    if len(ties):
        exact, rounded = np.abs(values[ties]), np.abs(single[ties].astype(np.float64))
        bits[ties] += (exact > rounded).astype(np.uint32)
        bits[ties] -= (exact < rounded).astype(np.uint32)
    odd = (bits >> 16) & 1
    bits += odd
    bits += 0x7FFF
    bits >>= 16
    np.copyto(out, bits, casting="same_kind")


def check_finite(values: Float64s) -> None:
    """Raises NotFinite at the first NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise NotFinite(int(bad[0]), str(values[bad[0]]))


def check_bool(raw: Raw) -> None:
    """Raises NotFinite at the first BOOL that is neither 0 nor 1."""
    if len(raw) and raw.max() > 1:
        index = int(np.flatnonzero(raw > 1)[0])
        raise NotFinite(index, f"{raw[index]}, no truth value")
