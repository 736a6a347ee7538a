"""Steps as float64 limbs, so that sums of their products are exact in any order and on any machine.

A limb has 19 bits with its sign, so every product of two and every partial sum over at most 2**16 of them is a whole
number of units not above 2**52: float64 arithmetic is then exact, whatever order or fused operation the machine takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from swarm.merge.fixed import TO_INTEGER, FixedPoint, Raw

LIMB_BITS = 19
BLOCK_MAX = 1 << 16


class Limbs:
    """Cuts updates into limbs, the lowest first."""

    def __init__(self, fixed: FixedPoint) -> None:
        self._fixed = fixed
        self.count = -(-(fixed.limit.bit_length() + 1) // LIMB_BITS)
        # Adding and taking away 1.5 * 2**52 units rounds to whole units.
        self._shifts = [TO_INTEGER * 2.0 ** (LIMB_BITS * level) for level in range(self.count)]
        self.per_unit = [2.0 ** (-LIMB_BITS * level) for level in range(self.count)]
        """A limb times this is a whole number."""

    def cut(self, raw: Raw, dtype: str, out: NDArray[np.float64]) -> None:
        """Write the limbs of one update's elements to `out`, (count, elements).

        Raises:
            NotFinite: an element is NaN or infinite.
        """
        self._fixed.quantize(raw, dtype, out[0])
        self.split(out)

    def split(self, out: NDArray[np.float64]) -> None:
        """Write the limbs of the steps in the first row of `out`, (count, elements), to all of its rows."""
        values = out[0]
        for level in range(self.count - 1, 0, -1):
            limb = out[level]
            np.add(values, self._shifts[level], out=limb)
            np.subtract(limb, self._shifts[level], out=limb)
            np.subtract(values, limb, out=values)
