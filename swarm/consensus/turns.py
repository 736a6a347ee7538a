"""In which order validators may propose: who proposed the last block goes on, and now and then the turn passes."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.encoding import Address


def turns(validators: Sequence[Address], last: Address, *, passes: bool) -> tuple[Address, ...]:
    """The validators from the next proposer on; view v is the turn of number v modulo n.

    Args:
        validators: sorted by address.
        last: who proposed the last block, a validator still or not.
        passes: whether the turn passes to the one after it.
    """
    start = next((i for i, one in enumerate(validators) if (one > last if passes else one >= last)), 0)
    return (*validators[start:], *validators[:start])
