"""How long updates are: their squared lengths, exact, in whole steps squared.

What a rule that only bounds lengths needs; it grows with the members, not with their pairs as the Gram matrix does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swarm.merge.fixed import FixedPoint, Int64s, Raw
from swarm.merge.limbs import LIMB_BITS, Limbs

# Three limbs of a block and what is read of it stay in a core's second cache.
BLOCK = 1 << 15


class Squares:
    """Products of the limbs of every update with each other, over some blocks of coordinates; one for each thread."""

    def __init__(self, members: int, fixed: FixedPoint) -> None:
        self._limbs = Limbs(fixed)
        self.size = BLOCK
        self._rows = np.empty((self._limbs.count, BLOCK))
        self.read: Raw = np.empty(8 * BLOCK, np.uint8)
        """Room for a block's bytes."""
        self.total: Int64s = np.zeros((members, self._limbs.count, self._limbs.count), np.int64)

    def add(self, row: int, raw: Raw, dtype: str, size: int) -> None:
        """Take one update's elements, `size` of them. NotFinite: an element is NaN or infinite."""
        rows = self._rows[:, :size]
        self._limbs.cut(raw, dtype, rows)
        for a in range(self._limbs.count):
            for b in range(a + 1):
                product = float(np.einsum("i,i->", rows[a], rows[b]))
                self.total[row, a, b] += int(product * self._limbs.per_unit[a] * self._limbs.per_unit[b])

    def finish(self, size: int) -> None:
        """A block is complete; nothing is left to do."""

    def take(self) -> Int64s:
        """The total since the last `take`; the sum of many is `squares_of`'s argument."""
        found, self.total = self.total, np.zeros_like(self.total)
        return found


def squares_of(totals: Sequence[Int64s], members: int) -> tuple[int, ...]:
    """Every update's squared length in steps, from the totals of all chunks."""
    if not totals:
        return (0,) * members
    limbs, summed = range(totals[0].shape[1]), np.zeros_like(totals[0], dtype=object)
    for total in totals:
        summed = summed + total.astype(object)
    return tuple(
        sum(int(summed[row, a, b]) * (1 if a == b else 2) << LIMB_BITS * (a + b) for a in limbs for b in range(a + 1))
        for row in range(members)
    )
