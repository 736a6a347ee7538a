"""The weighted mean of updates none of which is longer than a bound."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from swarm.merge.coefficients import unit_of
from swarm.merge.fixed import FixedPoint
from swarm.merge.mean import Linear, checked, weighted_mean


def norm_bounded_mean(squares: Sequence[int], weights: Sequence[int], bound: int, fixed: FixedPoint) -> Linear:
    """The weighted mean after every update longer than `bound` was shortened to it.

    An update however large moves the checkpoint by its share of the bound at most. Where none is longer it is the
    weighted mean itself.

    Args:
        squares: the updates' squared lengths over all float coordinates, in steps.
        bound: in steps.
    Source: Sun et al., Can You Really Backdoor Federated Learning?, 2019.
    """
    if all(square <= bound * bound for square in squares):
        return weighted_mean(weights, fixed)
    unit, total = unit_of(fixed), sum(weights)
    coefficients = tuple(
        weight * shortened(square, bound, unit) // total for square, weight in zip(squares, weights, strict=True)
    )
    return checked(Linear(coefficients, Fraction(1, unit << fixed.bits)), fixed)


def shortened(square: int, bound: int, unit: int) -> int:
    """min(1, bound / sqrt(square)) in whole 1/unit, rounded down."""
    return unit if square <= bound * bound else isqrt(bound * bound * unit * unit // square)
