"""Who is in whose group where a blind round is merged in groups: sums of few, and the median of their means.

2f + 1 groups of three or more bear f poisoned ones, wherever the poisoners are: the median of a coordinate then lies
between means of groups without any. What it costs is that the sum of each group shows, not only that of all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from swarm.encoding import Address, Digest, sha256
from swarm.merge.blind.keys import SEATS_MIN

GROUPS_MIN = 3
"""Of two groups neither can be told to be the poisoned one."""
DRAW = b"swarm/blind/groups/v1"


def groups_of(
    base: Digest, seats: Mapping[Address, int], dropped: Collection[frozenset[Address]] = ()
) -> tuple[frozenset[Address], ...]:
    """The groups, the largest odd number with three members or more in each; none where that gives fewer than three.

    Nobody chooses them: the checkpoint follows from sums that nobody knew, and a seat stays its member's whatever key
    it has. As long as the same members go on from the same checkpoint, the groups are the same: sums of other groups
    would differ by single updates where training does the same thing twice.

    Two without a mask in common are in no group together, or less than the group's sum might open. Who drops edges
    moves between groups by that; with many it can spoil the draw, and then there are none.

    Args:
        base: the checkpoint that the round starts from.
        seats: the seats of those who are frozen into the attempt.
        dropped: pairs without a mask in common.
    """
    count = len(seats) // SEATS_MIN
    count -= 1 - count % 2
    if count < GROUPS_MIN:
        return ()
    apart = set(dropped)
    groups: list[set[Address]] = [set() for _ in range(count)]
    for member in sorted(seats, key=lambda one: sha256(DRAW + base + seats[one].to_bytes(2, "big"))):
        fitting = [group for group in groups if not any(frozenset((member, other)) in apart for other in group)]
        if not fitting:
            return ()
        min(fitting, key=len).add(member)
    return tuple(map(frozenset, groups)) if min(map(len, groups)) >= SEATS_MIN else ()


def borne(groups: int) -> int:
    """How many poisoned groups so many bear: f of 2f + 1."""
    return (groups - 1) // 2
