"""How long an update may be: a length that was agreed, or one that the round's updates themselves give."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from swarm.config import Policy
from swarm.merge.coefficients import steps_in
from swarm.merge.fixed import FixedPoint


def bound_of(policy: Policy, squares: Sequence[int], fixed: FixedPoint) -> int:
    """The bound in whole steps, rounded down.

    `median` is radius times the lower median of the updates' lengths, members counting alike: while less than half of
    them lie it is no longer than radius times an honest update. If most send no change at all, it is 0.

    Args:
        squares: the updates' squared lengths, in steps.
    """
    if policy.bound == "length":
        return steps_in(policy.radius, fixed)
    median = sorted(squares)[(len(squares) - 1) // 2]
    factor = Fraction(policy.radius)
    return isqrt(median * factor.numerator**2 // factor.denominator**2)
