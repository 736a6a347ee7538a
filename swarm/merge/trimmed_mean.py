"""The mean of what is left of a coordinate when its largest and its smallest values are set aside."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from swarm.merge.fixed import FixedPoint, Int64s
from swarm.merge.integers import sorted_rows
from swarm.merge.rows import PerCoordinate


def trimmed_mean(members: int, faults: int, fixed: FixedPoint) -> PerCoordinate:
    """For each coordinate the mean without its `faults` largest and `faults` smallest values; all members count alike.

    Whatever `faults` members send, the result lies between the smallest and the largest value of the others.

    Raises:
        ValueError: not more than 2 * faults members.
    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018.
    """
    if members <= 2 * faults:
        raise ValueError(f"{members} updates, but a trimmed mean that bears {faults} needs {2 * faults + 1}")
    left = members - 2 * faults

    def combine(rows: Int64s) -> Int64s:
        return sum_of_middle(rows, faults)

    return PerCoordinate(members, combine, Fraction(1, left << fixed.bits))


def sum_of_middle(rows: Int64s, faults: int) -> Int64s:
    """The sum of every column's values without its `faults` largest and smallest. (coordinates,) int64."""
    middle = sorted_rows(rows)[faults : len(rows) - faults]
    total = middle[0].copy()
    for row in middle[1:]:
        np.add(total, row, out=total)
    return total
