"""How whole numbers and truth values merge: counters and masks are chosen, not averaged.

An update holds the site's value of such a tensor, not a change. The largest of them is the rule of `mean` and `sum`
(batches counted, for example); a rule that bears false members takes the lower middle, since one of them could name
any largest value.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.merge.fixed import NUMPY_TYPES, Raw, Seen, check_bool

Whole: TypeAlias = NDArray[Any]
"""Whole numbers of any width, in the file's own dtype."""


class Largest:
    """The elementwise maximum of one block, rows in any order."""

    def __init__(self) -> None:
        self._best: Whole | None = None

    def start(self, size: int) -> None:
        """Begin a block."""
        self._best = None

    def add(self, row: int, raw: Raw, dtype: str) -> Seen:
        """Take one update's elements. NotFinite: a BOOL is neither 0 nor 1."""
        values = _read(raw, dtype)
        if self._best is None:
            self._best = values.copy()
        else:
            np.maximum(self._best, values, out=self._best)
        return Seen()

    def finish(self, base: Raw, dtype: str, out: Raw) -> None:
        """Write the largest values."""
        assert self._best is not None, "a merge has an update"
        out[:] = self._best.view(np.uint8)


class LowerMiddle:
    """The elementwise lower median of one block: value number (members - 1) // 2 in ascending order."""

    def __init__(self, members: int) -> None:
        self._rows: list[Whole | None] = [None] * members

    def start(self, size: int) -> None:
        """Begin a block."""
        self._rows = [None] * len(self._rows)

    def add(self, row: int, raw: Raw, dtype: str) -> Seen:
        """Take one update's elements. NotFinite: a BOOL is neither 0 nor 1."""
        self._rows[row] = _read(raw, dtype).copy()
        return Seen()

    def finish(self, base: Raw, dtype: str, out: Raw) -> None:
        """Write the middle values."""
        rows = sorted_rows(np.stack([row for row in self._rows if row is not None]))
        out[:] = rows[(len(rows) - 1) // 2].view(np.uint8)


def _read(raw: Raw, dtype: str) -> Whole:
    if dtype == "BOOL":
        check_bool(raw)
    return raw.view(NUMPY_TYPES[dtype])


def sorted_rows(rows: Whole) -> list[Whole]:
    """(members, coordinates) sorted by column, as a list of rows; what `rows` held is overwritten.

    A sorting network over whole rows: the same comparisons for all columns, so that each runs at vector speed.

    Source: Batcher's odd-even merge sort, 1968; Knuth, TAOCP 3, 5.2.2, algorithm M.
    """
    spare, order = np.empty_like(rows[0]), list(rows)
    for first, second in comparisons(len(order)):
        low, high = order[first], order[second]
        np.minimum(low, high, out=spare)
        np.maximum(low, high, out=high)
        order[first], spare = spare, low
    return order


def comparisons(count: int) -> list[tuple[int, int]]:
    """The pairs, in order, whose exchange sorts any `count` values."""
    found: list[tuple[int, int]] = []
    top = 1 << max(count - 1, 0).bit_length() >> 1
    step = top
    while step > 0:
        width, remainder, distance = top, 0, step
        while True:
            found += [(i, i + distance) for i in range(count - distance) if i & step == remainder]
            if width == step:
                break
            distance, width, remainder = width - step, width >> 1, step
        step >>= 1
    return found
