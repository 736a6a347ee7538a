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
from numpy.typing import NDArray

from swarm.merge.fixed import FixedPoint, Float64s, Int64s, NotFinite, Raw, Seen, check_finite, load, store
from swarm.merge.schema import ELEMENT_BYTES


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


# So many updates' steps are multiplied at once, one block of each. With `rules.BLOCK` coordinates they stay in a core's
# second cache, and the product is small enough for BLAS to make it in this thread.
GROUP = 4


def in_two(plan: Linear, fixed: FixedPoint) -> NDArray[np.float64] | None:
    """The coefficients as sums of two, by which float64 sums of steps are exact in any order.

    Returns:
        (2, members) whole numbers: multiples of a power of two, and what is left; None where no such split is exact.
    """
    room = WHOLE_MAX // fixed.limit
    total = sum(map(abs, plan.coefficients))
    bits = max(0, (room // len(plan.coefficients)).bit_length() - 1) if total > room else 0
    lower = [coefficient & ((1 << bits) - 1) for coefficient in plan.coefficients]
    upper = [coefficient - low for coefficient, low in zip(plan.coefficients, lower, strict=True)]
    if sum(lower) > room or sum(map(abs, upper)) >> bits > room:
        return None
    return np.array([upper, lower], np.float64)


class Sum:
    """An exact running sum over one block of coordinates. Rows come in any order; memory stays that of a few rows.

    In float64 where no partial sum can leave the whole numbers that it holds, which is faster, else in int64.
    """

    def __init__(self, plan: Linear, fixed: FixedPoint, size: int) -> None:
        """`size` is the most coordinates that a block has."""
        self._fixed = fixed
        self._plan = plan
        self._scale = float(plan.scale)
        self._pairs = in_two(plan, fixed)
        self._values = np.empty(size)
        self._totals = np.empty((2, size))
        self._held: list[int] = []
        members = min(GROUP, len(plan.coefficients)) if self._pairs is not None else 1
        self._rooms = np.empty((members, 8 * size), np.uint8)
        self._rows = np.empty((members, size))
        self._products = np.empty((2, size))
        self._seen: list[Seen] = []
        self._dtype = ""
        self._size = size
        self._begun = False

    def start(self, size: int) -> None:
        """Begin a block of `size` coordinates."""
        self._size, self._begun = size, False
        self._held.clear()
        self._seen = []

    def room(self) -> Raw:
        """Where the elements belong that the next `add` takes."""
        room: Raw = self._rooms[len(self._held)]
        return room

    def add(self, row: int, dtype: str) -> None:
        """Add one update's elements, which are in `room`.

        Raises:
            NotFinite: an element of this or another update is NaN or infinite; `row` says of which.
        """
        self._held.append(row)
        self._dtype = dtype
        if len(self._held) == len(self._rooms):
            self._take()

    def seen(self) -> list[Seen]:
        """What was seen of the updates, in the order in which they were added. Raises as `add` does."""
        self._take()
        return self._seen

    def change(self) -> Float64s:
        """By how much the sum moves the parameters: float64(sum) * scale. It stands until the next `start`."""
        change = self._values[: self._size]
        if self._pairs is None:
            np.copyto(change, self._whole)
        else:
            # Both are exact, so this rounds the sum once.
            np.add(self._totals[0, : self._size], self._totals[1, : self._size], out=change)
        return np.multiply(change, self._scale, out=change)

    def finish(self, base: Raw, dtype: str, out: Raw) -> None:
        """base + the last `change`, in the parameter's dtype.

        Raises:
            NotFinite: an element of the base is NaN or infinite.
        """
        add_to_base(self._values[: self._size], base, dtype, out, self._totals[0, : self._size])

    def _take(self) -> None:
        """Add up what is held."""
        held, self._held = self._held, []
        if not held:
            return
        raws = self._rooms[: len(held), : self._size * ELEMENT_BYTES[self._dtype]]
        try:
            if self._pairs is None:
                self._seen.append(self._add_whole(held[0], raws[0]))
                return
            rows = self._rows[: len(held), : self._size]
            self._seen += self._fixed.quantize_rows(raws, self._dtype, rows)
        except NotFinite as error:
            error.row = held[error.row or 0]
            raise
        totals, products = self._totals[:, : self._size], self._products[:, : self._size]
        if self._begun:
            np.matmul(self._pairs[:, held], rows, out=products)
            np.add(totals, products, out=totals)
        else:
            np.matmul(self._pairs[:, held], rows, out=totals)
        self._begun = True

    @property
    def _whole(self) -> Int64s:
        return self._totals[0, : self._size].view(np.int64)

    def _add_whole(self, row: int, raw: Raw) -> Seen:
        total = self._whole
        if not self._begun:
            total.fill(0)
            self._begun = True
        steps, seen = self._fixed.whole(raw, self._dtype, self._values[: self._size].view(np.int64))
        np.multiply(steps, self._plan.coefficients[row], out=steps)
        np.add(total, steps, out=total)
        return seen


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
