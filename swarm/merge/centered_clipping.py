"""A centre that every update pulls towards itself, but by a bounded length at most."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from swarm.merge.coefficients import unit_of
from swarm.merge.fixed import FixedPoint
from swarm.merge.gram import Gram, distances
from swarm.merge.mean import Linear, checked


def centered_clipping(gram: Gram, weights: Sequence[int], bound: int, iterations: int, fixed: FixedPoint) -> Linear:
    """v, moved `iterations` times by the weighted mean of (x_i - v) * min(1, bound / |x_i - v|), from v = 0.

    In one iteration an update moves the result by its share of the bound (in steps) at most, wherever it lies.

    Source: Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021. They start from
    the last round's momentum; here an update is a change since the checkpoint, so that the start is no change.
    """  # fmt: skip
    unit, total = unit_of(fixed), sum(weights)
    centre = [0] * len(weights)
    for _ in range(iterations):
        far = distances(gram, centre, unit)
        pulls = [
            weight * (unit if d <= bound * unit else bound * unit * unit // d)
            for weight, d in zip(weights, far, strict=True)
        ]
        kept = total * unit - sum(pulls)
        centre = [
            (place * kept + pull * unit) // (total * unit) for place, pull in zip(centre, pulls, strict=True)
        ]  # fmt: skip
    return checked(Linear(tuple(centre), Fraction(1, unit << fixed.bits)), fixed)
