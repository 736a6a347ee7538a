"""Which arithmetic a policy's `merge` names.

`mean` and `sum` need nothing but the weights. The rules that bear false members are in files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swarm.config import Policy
from swarm.merge.fixed import FixedPoint, Raw, Seen
from swarm.merge.integers import Largest
from swarm.merge.mean import Linear, Sum, check_weights, plain_sum, weighted_mean


class Block(Protocol):
    """A merge of one block of coordinates: `start`, one `add` an update, `finish`."""

    def start(self, size: int) -> None: ...

    def add(self, row: int, raw: Raw, dtype: str) -> Seen: ...

    def finish(self, base: Raw, dtype: str, out: Raw) -> None: ...


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
    return (1,) * len(weights) if policy.weights == "equal" else tuple(weights)


def plan_of(policy: Policy, weights: Sequence[int]) -> Linear:
    """How the updates merge.

    Raises:
        ValueError: the weights break the policy.
    """
    counted = counted_weights(weights, policy)
    match policy.merge:
        case "mean":
            return weighted_mean(counted, fixed_point(policy))
        case "sum":
            return plain_sum(len(counted), fixed_point(policy))
    raise ValueError(f"there is no merge called {policy.merge!r}")


def block_of_floats(policy: Policy, plan: Linear, size: int) -> Block:
    """Arithmetic for float tensors, blocks of at most `size` coordinates; one for each thread."""
    return Sum(plan, fixed_point(policy), size)


def block_of_integers(policy: Policy, members: int) -> Block:
    """Arithmetic for whole numbers and truth values; one for each thread."""
    return Largest()
