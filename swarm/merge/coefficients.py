"""Rational coefficients as whole numbers, wide enough to matter and narrow enough for 64-bit sums."""

from __future__ import annotations

from fractions import Fraction

from swarm.merge.fixed import FixedPoint

# Coarser than a millionth, a coefficient would show in the merged parameters.
UNIT_BITS_MIN = 20
UNIT_BITS_MAX = 30


def unit_of(fixed: FixedPoint) -> int:
    """The whole number that stands for 1: coefficients that add up to at most 1 keep every sum below 2**62.

    Raises:
        ValueError: the range has so many steps that less than 2**20 is left.
    """
    bits = min(UNIT_BITS_MAX, 62 - fixed.limit.bit_length())
    if bits < UNIT_BITS_MIN:
        raise ValueError(f"a range of {fixed.limit} steps leaves no room for coefficients; lower range or step_bits")
    return 1 << bits


def steps_in(length: float, fixed: FixedPoint) -> int:
    """A length in whole steps, rounded down; ValueError if there is none."""
    steps = int(Fraction(length) * 2**fixed.bits)
    if steps < 1:
        raise ValueError(f"a length of {length} is less than one step")
    return steps
