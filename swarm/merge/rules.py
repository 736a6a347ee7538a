"""Which arithmetic a policy's `merge` names.

`mean` and `sum` need nothing but the weights. The rules that bear false members each have a file of their own; they
choose coefficients from the updates' lengths or their Gram matrix, or look at all values of a coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from swarm.config import Policy
from swarm.merge.bound import bound_of
from swarm.merge.centered_clipping import centered_clipping
from swarm.merge.coordinate_median import coordinate_median
from swarm.merge.fixed import FixedPoint, Float64s, Raw, Seen
from swarm.merge.geometric_median import geometric_median
from swarm.merge.gram import Gram
from swarm.merge.integers import Largest, LowerMiddle
from swarm.merge.mean import Linear, Sum, check_weights, plain_sum, weighted_mean
from swarm.merge.multi_krum import multi_krum
from swarm.merge.nearest_neighbor_mixing import nearest_neighbor_mixing
from swarm.merge.norm_bounded_mean import norm_bounded_mean
from swarm.merge.rows import PerCoordinate, Rows
from swarm.merge.trimmed_mean import trimmed_mean

# 512 KiB of float64: sum, steps and bytes of a block stay in a core's second cache. With twice as many a merge takes a
# twentieth longer; with few, two threads ask for the interpreter's lock so often that the second gains little.
BLOCK = 1 << 16


class Block(Protocol):
    """A merge of one block of coordinates: `start`, one `add` an update, `finish`."""

    def start(self, size: int) -> None: ...

    def add(self, row: int, raw: Raw, dtype: str) -> Seen: ...

    def finish(self, base: Raw, dtype: str, out: Raw) -> None: ...


class FloatBlock(Block, Protocol):
    """A merge of one block of floats: `change` comes before `finish`, or takes its place."""

    def change(self) -> Float64s: ...


@dataclass(frozen=True)
class Plan:
    """How the updates of one round merge. Every thread makes its own blocks."""

    floats: Linear | PerCoordinate
    fixed: FixedPoint
    bears_faults: bool
    """Whether whole numbers merge to the lower middle, not to the largest."""

    def kept(self, weights: Sequence[int]) -> tuple[float, ...]:
        """How much of each update counts besides its weight; 1 where a rule looks at every coordinate by itself."""
        if not isinstance(self.floats, Linear) or self.floats.scale == Fraction(1, 1 << self.fixed.bits):
            return (1.0,) * len(weights)
        whole = self.floats.scale * (1 << self.fixed.bits) * sum(weights)
        return tuple(
            float(whole * coefficient / weight)
            for coefficient, weight in zip(self.floats.coefficients, weights, strict=True)
        )

    @property
    def block(self) -> int:
        """Coordinates of a block."""
        return BLOCK if isinstance(self.floats, Linear) else min(BLOCK, self.floats.block)

    def block_of_floats(self) -> FloatBlock:
        """Arithmetic for float tensors."""
        if isinstance(self.floats, Linear):
            return Sum(self.floats, self.fixed, self.block)
        return Rows(self.floats, self.fixed, self.block)

    def block_of_integers(self, members: int) -> Block:
        """Arithmetic for whole numbers and truth values."""
        return LowerMiddle(members) if self.bears_faults else Largest()


def fixed_point(policy: Policy) -> FixedPoint:
    """The fixed point that the policy states."""
    return FixedPoint(policy.step_bits, policy.range)


def counted_weights(weights: Sequence[int], policy: Policy) -> tuple[int, ...]:
    """The weights as the policy counts them.

    Raises:
        ValueError: a weight is not a whole number from 1 to the policy's `weight_max`.
    """
    check_weights(weights)
    if max(weights) > policy.weight_max:
        raise ValueError(f"a weight of {max(weights)}, but the policy's weight_max is {policy.weight_max}")
    return (1,) * len(weights) if policy.weights == "equal" else capped(weights, policy.weight_ratio_max)


def capped(weights: Sequence[int], ratio_max: float) -> tuple[int, ...]:
    """The weights, none above `ratio_max` (1 or more) times the lower median of them, rounded down.

    While less than half of the members lie, the median is no greater than an honest member's weight. A cap on each
    member's share of the sum would not hold: two liars who both claim as much as they may make each other small.
    """
    median = sorted(weights)[(len(weights) - 1) // 2]
    cap = int(Fraction(ratio_max) * median)
    return tuple(min(weight, cap) for weight in weights)


class GlobalPass(Protocol):
    """What some rules have to know of the whole updates before any coordinate is merged; made when asked for."""

    def squares(self) -> tuple[int, ...]:
        """The updates' squared lengths, in steps."""
        ...

    def gram(self) -> Gram:
        """All their inner products, in steps squared."""
        ...


def plan_of(policy: Policy, weights: Sequence[int], whole: GlobalPass) -> Plan:
    """How the updates merge.

    Args:
        weights: as `counted_weights` gives them.
        whole: passes over all updates, for the rules that need one.
    Raises:
        ValueError: the rule needs more updates, or a sum could pass 64 bits.
    """
    fixed = fixed_point(policy)
    return Plan(_floats(policy, weights, whole, fixed), fixed, policy.merge not in ("mean", "sum"))


def _floats(policy: Policy, weights: Sequence[int], whole: GlobalPass, fixed: FixedPoint) -> Linear | PerCoordinate:
    members = len(weights)
    match policy.merge:
        case "mean":
            return weighted_mean(weights, fixed)
        case "sum":
            return plain_sum(members, fixed)
        case "norm_bounded_mean":
            squares = whole.squares()
            return norm_bounded_mean(squares, weights, bound_of(policy, squares, fixed), fixed)
        case "centered_clipping":
            gram = whole.gram()
            bound = bound_of(policy, [gram[i][i] for i in range(members)], fixed)
            return centered_clipping(gram, weights, bound, policy.iterations, fixed)
        case "trimmed_mean":
            return trimmed_mean(members, policy.faults, fixed)
        case "coordinate_median":
            return coordinate_median(members, fixed)
        case "geometric_median":
            return geometric_median(whole.gram(), weights, policy.iterations, fixed)
        case "multi_krum":
            return multi_krum(whole.gram(), policy.faults, fixed)
        case "nearest_neighbor_mixing":
            return nearest_neighbor_mixing(whole.gram(), policy.faults, fixed)
    raise ValueError(f"there is no merge called {policy.merge!r}")
