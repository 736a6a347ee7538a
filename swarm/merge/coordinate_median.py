"""The middle value of every coordinate."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from swarm.merge.fixed import FixedPoint, Int64s
from swarm.merge.integers import sorted_rows
from swarm.merge.rows import PerCoordinate


def coordinate_median(members: int, fixed: FixedPoint) -> PerCoordinate:
    """For each coordinate the median, of an even number the mean of the two middle ones; all members count alike.

    Holds while less than half of the members are wrong, however wrong they are.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
    """

    def combine(rows: Int64s) -> Int64s:
        order = sorted_rows(rows)
        return np.add(order[(members - 1) // 2], order[members // 2])

    return PerCoordinate(members, combine, Fraction(1, 2 << fixed.bits))
