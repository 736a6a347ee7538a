"""Every update becomes the mean of its nearest neighbours; then the trimmed mean of those."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from swarm.merge.fixed import FixedPoint, Int64s
from swarm.merge.gram import Gram, distance_squared
from swarm.merge.rows import PerCoordinate
from swarm.merge.trimmed_mean import sum_of_middle


def nearest_neighbor_mixing(gram: Gram, faults: int, fixed: FixedPoint) -> PerCoordinate:
    """The trimmed mean of updates that were mixed with their nearest neighbours; all members count alike.

    Each update is replaced by the mean of the members - faults updates nearest to it, itself among them, which evens
    out what honest members of uneven data differ in. Of equal distances the member named first is nearer.

    Raises:
        ValueError: not more than 2 * faults members, or the sums could pass 64 bits.
    Source: Allouah et al., Fixing by Mixing, AISTATS 2023.
    """
    members = len(gram)
    if members <= 2 * faults:
        raise ValueError(f"{members} updates, but mixing that bears {faults} needs {2 * faults + 1}")
    near, left = members - faults, members - 2 * faults
    if near * left * fixed.limit >= 2**63:
        raise ValueError(f"{near} times {left} times {fixed.limit} steps pass 2**63; lower the range or step_bits")
    groups = [neighbors(gram, member, near) for member in range(members)]

    def combine(rows: Int64s) -> Int64s:
        return sum_of_middle(mix(rows, groups), faults)

    return PerCoordinate(members, combine, Fraction(1, (near * left) << fixed.bits))


def neighbors(gram: Gram, member: int, near: int) -> tuple[int, ...]:
    """The `near` updates nearest to a member's, itself among them."""
    ranked = sorted(range(len(gram)), key=lambda other: (distance_squared(gram, member, other), other != member, other))
    return tuple(ranked[:near])


def mix(rows: Int64s, groups: Sequence[Sequence[int]]) -> Int64s:
    """The sum of every group's rows. (groups, coordinates) int64.

    A group has all members but a few, so the few are taken off the sum of all.
    """
    everyone = np.sum(rows, axis=0, dtype=np.int64)
    mixed = np.empty((len(groups), rows.shape[1]), np.int64)
    for place, group in enumerate(groups):
        mixed[place] = everyone
        for far in set(range(len(rows))) - set(group):
            np.subtract(mixed[place], rows[far], out=mixed[place])
    return mixed
