"""The weighted mean and the sum: whole-number coefficients times updates, in any order, then one float step.

Every merge that is a linear combination of the updates ends here, whatever chose its coefficients. A result is
base + (sum of c_i q_i) * scale: the sum is exact, the scale is a rational rounded once to float64, then one
multiplication, one addition and one rounding to the parameter's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from swarm.merge.fixed import FixedPoint, Float64s, Int64s, Raw, Seen, check_finite, load, store


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


class Sum:
    """An exact running sum over one block of coordinates. Rows come in any order; memory stays that of one block."""

    def __init__(self, plan: Linear, fixed: FixedPoint, size: int) -> None:
        """`size` is the most coordinates that a block has."""
        self._fixed = fixed
        self._plan = plan
        # Every row brings the bias times its coefficient. Modulo 2**64 all of it is taken off beforehand.
        bias = -fixed.bias * sum(plan.coefficients)
        self._start = np.int64((bias + 2**63) % 2**64 - 2**63)
        self._scale = float(plan.scale)
        self._totals = np.empty(size, np.int64)
        self._values = np.empty(size)
        self._total = self._totals

    def start(self, size: int) -> None:
        """Begin a block of `size` coordinates."""
        self._total = self._totals[:size]
        self._total.fill(self._start)

    def add(self, row: int, raw: Raw, dtype: str) -> Seen:
        """Add one update's elements.

        Raises:
            NotFinite: an element is NaN or infinite.
        """
        steps, seen = self._fixed.quantize(raw, dtype, self._values[: len(self._total)])
        coefficient = self._plan.coefficients[row]
        if coefficient != 1:
            np.multiply(steps, coefficient, out=steps)
        np.add(self._total, steps, out=self._total)
        return seen

    def finish(self, base: Raw, dtype: str, out: Raw) -> None:
        """base + sum * scale, in the parameter's dtype.

        Raises:
            NotFinite: an element of the base is NaN or infinite.
        """
        add_to_base(self._total, self._scale, base, dtype, out, self._values[: len(self._total)])


def add_to_base(total: Int64s, scale: float, base: Raw, dtype: str, out: Raw, scratch: Float64s) -> None:
    """The one float step: round(base + float64(total) * scale).

    `scratch` holds as many float64; `total` is overwritten.

    Raises:
        NotFinite: an element of the base is NaN or infinite.
    """
    np.copyto(scratch, total)
    np.multiply(scratch, scale, out=scratch)
    moved = load(base, dtype, total.view(np.float64))
    if len(moved) and not (np.isfinite(moved.max()) and np.isfinite(moved.min())):
        check_finite(moved)
    np.add(moved, scratch, out=moved)
    store(moved, dtype, out)
