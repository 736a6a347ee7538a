"""How long updates are: their squared lengths, exact, in whole steps squared.

What a rule that only bounds lengths needs; it grows with the members, not with their pairs as the Gram matrix does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swarm.merge.fixed import FixedPoint, Int64s, Raw
from swarm.merge.limbs import LIMB_BITS, Limbs

# A block's steps and what is read of it stay in a core's second cache.
BLOCK = 1 << 15
WORD = 2**64


class Squares:
    """The squared length of every update, over some blocks of coordinates; one for each thread."""

    def __init__(self, members: int, fixed: FixedPoint) -> None:
        self._fixed = fixed
        self._limbs = Limbs(fixed)
        self.size = BLOCK
        self._steps: Int64s = np.empty(BLOCK, np.int64)
        self._rows = np.empty((self._limbs.count, BLOCK))
        self.read: Raw = np.empty(8 * BLOCK, np.uint8)
        """Room for a block's bytes."""
        self.total = [0] * members

    def add(self, row: int, raw: Raw, dtype: str, size: int) -> None:
        """Take one update's elements, `size` of them. NotFinite: an element is NaN or infinite."""
        steps, seen = self._fixed.whole(raw, dtype, self._steps[:size])
        about = seen.squares * 4.0**self._fixed.bits
        self.total[row] += self._nearest(steps, about) if is_near(about, size) else self._by_limbs(steps)

    def finish(self, size: int) -> None:
        """A block is complete; nothing is left to do."""

    def take(self) -> tuple[int, ...]:
        """The total since the last `take`; the sum of many is `squares_of`'s answer."""
        found, self.total = tuple(self.total), [0] * len(self.total)
        return found

    def _nearest(self, steps: Int64s, about: float) -> int:
        """Of the whole numbers that have the sum's last 64 bits, the one that is nearest to `about`."""
        words = steps.view(np.uint64)
        last = int(np.einsum("i,i->", words, words))
        return last + WORD * round((int(about) - last) / WORD)

    def _by_limbs(self, steps: Int64s) -> int:
        rows, limbs = self._rows[:, : len(steps)], self._limbs
        np.copyto(rows[0], steps)
        limbs.split(rows)
        found = 0
        for a in range(limbs.count):
            for b in range(a + 1):
                product = float(np.einsum("i,i->", rows[a], rows[b])) * limbs.per_unit[a] * limbs.per_unit[b]
                found += int(product) * (1 if a == b else 2) << LIMB_BITS * (a + b)
        return found


def is_near(about: float, size: int) -> bool:
    """Whether a sum of squared steps that float32 arithmetic found is within a quarter of 2**64 of the exact one.

    Each of `size` additions and products is off by 2**-24 of the sum at most, and rounding to steps moves it by less
    than one addition does (Higham, Accuracy and Stability of Numerical Algorithms, 2002, §3.1).
    """
    return about * size * 2.0**-23 <= WORD / 8


def squares_of(totals: Sequence[tuple[int, ...]], members: int) -> tuple[int, ...]:
    """Every update's squared length in steps, from the totals of all chunks."""
    return tuple(sum(total[row] for total in totals) for row in range(members))
