"""How long updates are and how far apart: all their inner products at once, exact, in whole steps squared.

Whatever a rule wants to know of distances between linear combinations of updates follows from the Gram matrix, so one
pass over the files is enough, and it is a sum over chunks in any order.

Float64 matrix products of whole-number limbs are exact, so the machine's BLAS may do them: see `limbs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TypeAlias

import numpy as np

from swarm.merge.fixed import FixedPoint, Int64s, Raw
from swarm.merge.limbs import BLOCK_MAX, LIMB_BITS, Limbs

# The limbs of a block's rows together: what a core's second cache and the one behind it hold.
LIMBS_BYTES = 8 << 20

Gram: TypeAlias = tuple[tuple[int, ...], ...]
"""(members, members) whole numbers: inner products in steps squared."""


class Products:
    """The Gram matrix of some blocks of coordinates; one for each thread."""

    def __init__(self, members: int, fixed: FixedPoint) -> None:
        self._members = members
        self._limbs = Limbs(fixed)
        self.size = min(BLOCK_MAX, max(1024, LIMBS_BYTES // (8 * members * self._limbs.count)))
        self._rows = np.empty((self._limbs.count, members, self.size))
        self._per_unit = np.repeat(self._limbs.per_unit, members)
        self.read: Raw = np.empty(8 * self.size, np.uint8)
        """Room for a block's bytes."""
        self.total: Int64s = np.zeros((self._limbs.count * members,) * 2, np.int64)

    def add(self, row: int, raw: Raw, dtype: str, size: int) -> None:
        """Take one update's elements, `size` of them. NotFinite: an element is NaN or infinite."""
        self._limbs.cut(raw, dtype, self._rows[:, row, :size])

    def finish(self, size: int) -> None:
        """Add the block's products to the total."""
        rows = self._rows[:, :, :size].reshape(len(self._per_unit), size)
        products = rows @ rows.T
        products *= self._per_unit
        products *= self._per_unit[:, np.newaxis]
        self.total += products.astype(np.int64)

    def take(self) -> Int64s:
        """The total since the last `take`; the sum of many is `gram_of`'s argument."""
        found, self.total = self.total, np.zeros_like(self.total)
        return found


def gram_of(totals: Sequence[Int64s], members: int) -> Gram:
    """The Gram matrix from the totals of all chunks."""
    summed = np.zeros_like(totals[0], dtype=object) if totals else np.zeros((members, members), dtype=object)
    for total in totals:
        summed = summed + total.astype(object)
    limbs = len(summed) // members
    return tuple(
        tuple(
            sum(
                int(summed[a * members + i, b * members + j]) << LIMB_BITS * (a + b)
                for a in range(limbs)
                for b in range(limbs)
            )
            for j in range(members)
        )
        for i in range(members)
    )


def distance_squared(gram: Gram, one: int, other: int) -> int:
    """How far two updates are apart, squared."""
    return gram[one][one] - 2 * gram[one][other] + gram[other][other]


def distances(gram: Gram, coefficients: Sequence[int], unit: int) -> list[int]:
    """How far every update is from sum(c_j x_j) / unit: whole numbers of 1/unit steps, rounded down.

    Squared: unit² G_ii - 2 unit sum_j(c_j G_ij) + sum_jk(c_j c_k G_jk), all exact before the root.
    """
    products = [sum(c * g for c, g in zip(coefficients, row, strict=True)) for row in gram]
    square = sum(c * p for c, p in zip(coefficients, products, strict=True))
    return [isqrt(unit * unit * gram[i][i] - 2 * unit * products[i] + square) for i in range(len(gram))]


def norm_squared(gram: Gram, coefficients: Sequence[int]) -> int:
    """The squared length of sum(c_j x_j), exact."""
    return sum(
        c * d * g
        for c, row in zip(coefficients, gram, strict=True)
        for d, g in zip(coefficients, row, strict=True)
    )  # fmt: skip
