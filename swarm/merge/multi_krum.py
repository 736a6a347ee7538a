"""The mean of the updates that have the closest company."""

from __future__ import annotations

from fractions import Fraction

from swarm.merge.fixed import FixedPoint
from swarm.merge.gram import Gram, distance_squared
from swarm.merge.mean import Linear, checked


def multi_krum(gram: Gram, faults: int, fixed: FixedPoint) -> Linear:
    """The mean of the members - faults updates with the lowest scores; all members count alike.

    A score is the sum of squared distances to the members - faults - 1 nearest other updates. Of equal scores the
    member named first wins.

    Raises:
        ValueError: fewer than 2 * faults + 3 members.
    Source: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017; the score as in Allouah et al., Fixing by
    Mixing, AISTATS 2023, which counts one neighbour more.
    """
    members = len(gram)
    if members < 2 * faults + 3:
        raise ValueError(f"{members} updates, but multi-Krum that bears {faults} needs {2 * faults + 3}")
    chosen = set(sorted(range(members), key=lambda i: (score(gram, i, faults), i))[: members - faults])
    coefficients = tuple(int(i in chosen) for i in range(members))
    return checked(Linear(coefficients, Fraction(1, len(chosen) << fixed.bits)), fixed)


def score(gram: Gram, member: int, faults: int) -> int:
    """The sum of squared distances to the nearest others, in steps squared."""
    others = sorted(distance_squared(gram, member, other) for other in range(len(gram)) if other != member)
    return sum(others[: len(gram) - faults - 1])
