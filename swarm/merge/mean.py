"""The weighted mean and the sum: whole-number coefficients times updates, in any order, then one float step.

Every merge that is a linear combination of the updates ends here, whatever chose its coefficients. A result is
base + (sum of c_i q_i) * scale: the sum is exact, the scale is a rational rounded once to float64, then one
multiplication, one addition and one rounding to the parameter's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.merge.fixed import FixedPoint, Float64s, Raw, Seen, check_finite, load, store

Number: TypeAlias = NDArray[Any]
"""Whole numbers in float64 or int64."""


@dataclass(frozen=True)
class Linear:
    """A merge by coefficients: each update's steps count `coefficient` times, one unit of the sum is worth `scale`."""

    coefficients: tuple[int, ...]
    scale: Fraction


def weighted_mean(weights: Sequence[int], fixed: FixedPoint) -> Linear:
    """Coefficients of sum(w_i x_i) / sum(w_i).

    Raises:
        ValueError: a weight is not positive, or the sum could pass 64 bits.
    """
    check_weights(weights)
    return checked(Linear(tuple(weights), Fraction(1, sum(weights) << fixed.bits)), fixed)


def plain_sum(members: int, fixed: FixedPoint) -> Linear:
    """Coefficients of sum(x_i)."""
    return checked(Linear((1,) * members, Fraction(1, 1 << fixed.bits)), fixed)


def check_weights(weights: Sequence[int]) -> None:
    """ValueError unless there is a weight and every one is a positive whole number."""
    if not weights:
        raise ValueError("no update to merge")
    for place, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, int) or weight < 1:
            raise ValueError(f"the weight of update {place} is {weight!r}; a positive whole number belongs there")


def checked(plan: Linear, fixed: FixedPoint) -> Linear:
    """The plan; ValueError if its sums could pass 64 bits."""
    if sum(map(abs, plan.coefficients)) * fixed.limit >= 2**63:
        raise ValueError(
            f"coefficients that add up to {sum(map(abs, plan.coefficients))} times {fixed.limit} steps pass 2**63; "
            "lower the weights, the range or step_bits"
        )
    return plan


# Up to it float64 holds every whole number, so that a sum of whole floats is exact too.
WHOLE_MAX = 2**53


class Sum:
    """An exact running sum over one block of coordinates. Rows come in any order; memory stays that of one block.

    In float64 where no partial sum can leave the whole numbers that it holds, which is faster, else in int64.
    """

    def __init__(self, plan: Linear, fixed: FixedPoint, size: int) -> None:
        """`size` is the most coordinates that a block has."""
        self._fixed = fixed
        self._plan = plan
        self._scale = float(plan.scale)
        self._in_floats = sum(map(abs, plan.coefficients)) * fixed.limit <= WHOLE_MAX
        self._totals = np.empty(size, np.int64)
        self._values = np.empty(size)
        self._total = self._totals

    def start(self, size: int) -> None:
        """Begin a block of `size` coordinates."""
        self._total = self._totals[:size]
        if self._in_floats:
            self._total.view(np.float64).fill(0.0)
        else:
            self._total.fill(0)

    def add(self, row: int, raw: Raw, dtype: str) -> Seen:
        """Add one update's elements; what `raw` holds is overwritten.

        Raises:
            NotFinite: an element is NaN or infinite.
        """
        room, coefficient = self._values[: len(self._total)], self._plan.coefficients[row]
        if self._in_floats:
            steps, seen = self._fixed.quantize(raw, dtype, room)
            _add(self._total.view(np.float64), steps, float(coefficient))
        else:
            whole, seen = self._fixed.whole(raw, dtype, room.view(np.int64))
            _add(self._total, whole, coefficient)
        return seen

    def change(self) -> Float64s:
        """By how much the sum moves the parameters: float64(sum) * scale. It stands until the next `start`."""
        change = self._values[: len(self._total)]
        if self._in_floats:
            return np.multiply(self._total.view(np.float64), self._scale, out=change)
        np.copyto(change, self._total)
        return np.multiply(change, self._scale, out=change)

    def finish(self, base: Raw, dtype: str, out: Raw) -> None:
        """base + the last `change`, in the parameter's dtype.

        Raises:
            NotFinite: an element of the base is NaN or infinite.
        """
        add_to_base(self._values[: len(self._total)], base, dtype, out, self._total.view(np.float64))


def _add(total: Number, steps: Number, coefficient: float) -> None:
    if coefficient != 1:
        np.multiply(steps, coefficient, out=steps)
    np.add(total, steps, out=total)


def add_to_base(change: Float64s, base: Raw, dtype: str, out: Raw, scratch: Float64s) -> None:
    """The one float step: round(base + change).

    Args:
        scratch: as many float64; it is overwritten.
    Raises:
        NotFinite: an element of the base is NaN or infinite.
    """
    moved = load_finite(base, dtype, scratch)
    np.add(moved, change, out=moved)
    store(moved, dtype, out)


def load_finite(raw: Raw, dtype: str, out: Float64s) -> Float64s:
    """A checkpoint's elements as float64; NotFinite if one is NaN or infinite."""
    values = load(raw, dtype, out)
    source = raw.view("<f4") if dtype == "F32" else values
    if len(source) and not (np.isfinite(source.max()) and np.isfinite(source.min())):
        check_finite(values)
    return values
