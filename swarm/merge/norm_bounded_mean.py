"""The weighted mean of updates none of which is longer than a bound."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from swarm.merge.coefficients import steps_in, unit_of
from swarm.merge.fixed import FixedPoint
from swarm.merge.gram import Gram
from swarm.merge.mean import Linear, checked, weighted_mean


def norm_bounded_mean(gram: Gram, weights: Sequence[int], radius: float, fixed: FixedPoint) -> Linear:
    """The weighted mean after every update longer than `radius` was shortened to it.

    An update however large moves the checkpoint by its share of the radius at most. Where none is longer it is the
    weighted mean itself.

    Args:
        radius: Euclidean length over all float coordinates.
    Source: Sun et al., Can You Really Backdoor Federated Learning?, 2019.
    """
    bound, unit, total = steps_in(radius, fixed), unit_of(fixed), sum(weights)
    if all(gram[i][i] <= bound * bound for i in range(len(weights))):
        return weighted_mean(weights, fixed)
    coefficients = tuple(
        weight * shortened(gram[i][i], bound, unit) // total for i, weight in enumerate(weights)
    )  # fmt: skip
    return checked(Linear(coefficients, Fraction(1, unit << fixed.bits)), fixed)


def shortened(square: int, bound: int, unit: int) -> int:
    """min(1, bound / sqrt(square)) in whole 1/unit, rounded down."""
    return unit if square <= bound * bound else isqrt(bound * bound * unit * unit // square)
