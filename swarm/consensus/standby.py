"""Who has been silent for long: what a validator's node says of the others, from what it heard and for how long.

Standby is for long absences only (a week, unless the members agreed otherwise): a set of validators that follows every
night's switched-off machines is worse than one that does not change. Nobody is accused by another's clock: what counts
is the time that this node itself listened, together with a quorum, and did not hear the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from swarm.encoding import Address
from swarm.quorum import faults_max, quorum

GAP_MAX_S = 60.0
"""A node that slept (a suspended machine, a clock that jumped) did not listen meanwhile: so much of a gap counts."""


@dataclass(frozen=True)
class Report:
    """This node owes the ledger its word that a validator is absent."""

    member: Address


@dataclass(frozen=True)
class Resume:
    """This node owes the ledger a sign of life."""


Owed: TypeAlias = Report | Resume


def listened(
    silent_s: Mapping[Address, float],
    *,
    me: Address,
    validators: Collection[Address],
    heard: Collection[Address],
    elapsed_s: float,
) -> dict[Address, float]:
    """For how long each other validator has been silent, after `elapsed_s` more in which `heard` were not.

    Time in which this node heard no quorum counts for nobody: it may be this node that is cut off.
    """
    others = frozenset(validators) - {me}
    awake = len(others & frozenset(heard)) + (me in validators) >= quorum(len(validators))
    more_s = min(max(elapsed_s, 0.0), GAP_MAX_S) if awake else 0.0
    return {one: 0.0 if one in heard else silent_s.get(one, 0.0) + more_s for one in sorted(others)}


def absentees(
    silent_s: Mapping[Address, float], *, validators: Collection[Address], floor: int, absence_s: float
) -> list[Address]:
    """The validators that are silent for longer than `absence_s`, the longest first; none where too few would stand."""
    if len(validators) <= floor:
        return []
    found = [one for one, silence_s in silent_s.items() if one in validators and silence_s > absence_s]
    return sorted(found, key=lambda one: (-silent_s[one], one))


def owed(
    *,
    me: Address,
    validators: Collection[Address],
    on_standby: bool,
    caught_up: bool,
    absent: Collection[Address],
    reporters: Mapping[Address, Collection[Address]],
) -> Owed | None:
    """What this node has to say on the ledger now.

    Args:
        validators: those that stand.
        on_standby: others put this node on standby.
        caught_up: it has every block that it knows of: only then it can vote again.
        absent: `absentees`, in their order.
        reporters: who reports whom, for `absent` and for this node, as far as the reports count.
    """
    if on_standby:
        return Resume() if caught_up else None
    if me not in validators:
        return None
    # Fewer reports may all be slander: answering each would let one liar fill the ledger.
    if caught_up and len(reporters.get(me, ())) > faults_max(len(validators)):
        return Resume()
    return next((Report(one) for one in absent if me not in reporters.get(one, ())), None)
