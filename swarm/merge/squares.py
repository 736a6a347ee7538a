"""How long updates are: their squared lengths in whole steps squared, the same on every machine.

What a rule that only bounds lengths needs; it grows with the members, not with their pairs as the Gram matrix does.

A squared length is a sum over chunks and, in a chunk, over the pieces of float elements of one kind that `layout.py`
finds. A piece's sum is a tree of float32 additions in the order that `tree` writes down, each one IEEE 754 operation,
so that it is the same everywhere; it is a whole number, and off by less than a part in 2**19. Where it says that an
element may be beyond the range, or where elements are no float32, the tree is one of float64 after clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swarm.merge.fixed import FixedPoint, Float64s, Raw

# Elements of a piece: part of what a squared length is. A block's bytes and squares stay in a core's second cache.
PIECE = 1 << 17


class Squares:
    """The squared length of every update, over some pieces; one for each thread."""

    def __init__(self, members: int, fixed: FixedPoint) -> None:
        self._fixed = fixed
        self._unit = np.float32(2.0**fixed.bits)
        # A sum up to which no element can be beyond the range, however the sum was rounded.
        self._calm = 0.9 * float(fixed.limit) ** 2
        self.size = PIECE
        self._steps = np.empty(PIECE, np.float32)
        self._careful: Float64s = np.empty(PIECE)
        self.read: Raw = np.empty(8 * PIECE, np.uint8)
        """Room for a piece's bytes."""
        self.total = [0] * members

    def add(self, row: int, raw: Raw, dtype: str, size: int) -> None:
        """Take one update's elements, `size` of them. NotFinite: an element is NaN or infinite."""
        square = self._of_float32(raw, size) if dtype == "F32" else None
        self.total[row] += int(square if square is not None else self._of_any(raw, dtype, size))

    def finish(self, size: int) -> None:
        """A piece is complete; nothing is left to do."""

    def take(self) -> tuple[int, ...]:
        """The total since the last `take`; the sum of many is `squares_of`'s answer."""
        found, self.total = tuple(self.total), [0] * len(self.total)
        return found

    def _of_float32(self, raw: Raw, size: int) -> float | None:
        """None if an element may be beyond the range, or is not finite."""
        steps = self._steps[:size]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(raw.view("<f4"), self._unit, out=steps)
            np.rint(steps, out=steps)
            square = tree(np.multiply(steps, steps, out=steps))
        # No comparison with NaN holds.
        return square if square <= self._calm else None

    def _of_any(self, raw: Raw, dtype: str, size: int) -> float:
        steps, _ = self._fixed.quantize(raw, dtype, self._careful[:size])
        return tree(np.multiply(steps, steps, out=steps))


def tree(values: NDArray[Any]) -> float:
    """The sum of float32 or float64: the second half is added to the first until one is left; overwrites `values`.

    An odd one in the middle waits for the next turn. Off by a part in 2**24 (2**53) for each of the log2(n) turns
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, §4.2).
    """
    count = len(values)
    while count > 1:
        half = (count + 1) // 2
        first = values[: count - half]
        np.add(first, values[half:count], out=first)
        count = half
    return float(values[0]) if count else 0.0


def squares_of(totals: Sequence[tuple[int, ...]], members: int) -> tuple[int, ...]:
    """Every update's squared length in steps, from the totals of all chunks."""
    return tuple(sum(total[row] for total in totals) for row in range(members))
