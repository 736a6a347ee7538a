"""Merges that look at all members' values of a coordinate at once: medians and trimmed means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from swarm.merge.fixed import FixedPoint, Float64s, Int64s, Raw, Seen
from swarm.merge.mean import add_to_base

# The steps of all members for one block: what a core's second cache and the one behind it hold.
ROWS_BYTES = 4 << 20


@dataclass(frozen=True)
class PerCoordinate:
    """A merge by coordinate: `combine` makes one whole number of the members' steps, worth `scale`.

    `combine` takes (members, coordinates) and may overwrite it.
    """

    members: int
    combine: Callable[[Int64s], Int64s]
    scale: Fraction

    @property
    def block(self) -> int:
        """Coordinates of a block that keep its rows within bounds."""
        return max(1024, ROWS_BYTES // (8 * self.members))


class Rows:
    """All members' steps of one block of coordinates."""

    def __init__(self, plan: PerCoordinate, fixed: FixedPoint, size: int) -> None:
        """`size` is the most coordinates that a block has."""
        self._plan = plan
        self._fixed = fixed
        self._scale = float(plan.scale)
        self._rows = np.empty((plan.members, size), np.int64)
        self._values = np.empty(size)
        self._scratch = np.empty(size)
        self._size = size

    def start(self, size: int) -> None:
        """Begin a block of `size` coordinates."""
        self._size = size

    def add(self, row: int, raw: Raw, dtype: str) -> Seen:
        """Take one update's elements. NotFinite: an element is NaN or infinite."""
        return self._fixed.whole(raw, dtype, self._rows[row, : self._size])[1]

    def change(self) -> Float64s:
        """By how much the merge moves the parameters. It stands until the next `start`."""
        change = self._values[: self._size]
        np.copyto(change, self._plan.combine(self._rows[:, : self._size]))
        return np.multiply(change, self._scale, out=change)

    def finish(self, base: Raw, dtype: str, out: Raw) -> None:
        """base + the last `change`, in the parameter's dtype. NotFinite: the base is not finite."""
        add_to_base(self._values[: self._size], base, dtype, out, self._scratch[: self._size])
