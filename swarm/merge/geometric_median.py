"""The point with the least weighted distance to all updates."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from swarm.merge.coefficients import unit_of
from swarm.merge.fixed import FixedPoint
from swarm.merge.gram import Gram, distances, norm_squared
from swarm.merge.mean import Linear, checked

# Weight over distance as a whole number: distances have at most some 90 bits.
_RATIO_BITS = 160


def geometric_median(gram: Gram, weights: Sequence[int], iterations: int, fixed: FixedPoint) -> Linear:
    """Weiszfeld's iterations towards the point with the least weighted sum of distances, from the weighted mean.

    Holds while less than half of the weight is wrong, however wrong it is.

    Source: Weiszfeld 1937; at a data point, Vardi and Zhang, The multivariate L1-median, PNAS 2000.
    """
    unit, total = unit_of(fixed), sum(weights)
    point = [weight * unit // total for weight in weights]
    for _ in range(iterations):
        point = _step(gram, weights, point, unit)
    return checked(Linear(tuple(point), Fraction(1, unit << fixed.bits)), fixed)


def _step(gram: Gram, weights: Sequence[int], point: list[int], unit: int) -> list[int]:
    far = distances(gram, point, unit)
    # Less than one step away counts as being there.
    there = [d < unit for d in far]
    pulls = [0 if at else (weight << _RATIO_BITS) // d for weight, d, at in zip(weights, far, there, strict=True)]
    total = sum(pulls)
    if total == 0:
        return point
    target = [pull * unit // total for pull in pulls]
    held = sum(weight for weight, at in zip(weights, there, strict=True) if at)
    if not held:
        return target
    # Vardi and Zhang: the update at the point holds it with its weight against the pull of the others, whose length is
    # that of sum(pull_i (x_i - point)).
    strength = isqrt(
        norm_squared(gram, [pull * unit - total * place for pull, place in zip(pulls, point, strict=True)])
    )
    hold = unit if strength == 0 else min(unit, (held << _RATIO_BITS) * unit // strength)
    return [(hold * place + (unit - hold) * aim) // unit for place, aim in zip(point, target, strict=True)]
