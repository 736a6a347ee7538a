"""What a node owes in a blind round that is merged in groups: nothing is opened of which a group could be too small."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.blind import (
    Entry,
    HaveMasks,
    MaskSeat,
    MaskState,
    MaskTerms,
    RevealMask,
    Stage,
    enough,
    mask_duties,
)
from swarm.encoding import Address
from swarm.node.masking import dropped_edges, in_groups
from swarm.rounds import Phase, RoundState, RunState, Submission

MEMBERS = tuple(bytes([number]) * 20 for number in range(9))
TERMS = MaskTerms(submit_s=20.0, merge_s=10.0, submissions_min=3)
ME, BASE = MEMBERS[0], b"b" * 32
ROUND = RoundState(
    run=1, state=RunState.OPEN, round=2, phase=Phase.MERGE, view=0, leader=ME, base=BASE, seed=b"s" * 32,
    opened_s=100.0, deadline_s=0.0, expected=MEMBERS,
    submissions=tuple(Submission(one, one[:1] * 32, 0) for one in MEMBERS),
)  # fmt: skip


def masks(*apart: frozenset[Address]) -> MaskState:
    seats = tuple(
        MaskSeat(
            place, one, b"key" + one, 1, b"blob" + one,
            edges=frozenset(two for two in MEMBERS if two != one and frozenset((one, two)) not in apart),
        )
        for place, one in enumerate(MEMBERS)
    )  # fmt: skip
    everybody = frozenset(MEMBERS)
    return MaskState(
        run=1, round=2, stage=Stage.FROZEN, attempt=7, threshold=7, opened_s=100.0, block=3, fixed_s=0.0, spent=False,
        seats=seats, joined=everybody, confirmed=everybody, frozen=everybody, mine=b"key" + ME,
    )  # fmt: skip


GROUPED = in_groups(BASE, masks(), ())
HAVE = HaveMasks(
    key=b"key" + ME, entry=Entry(7, b"blob" + ME, ME[:1] * 32), attached=True, plain=True, masked=True,
    blobs=frozenset(b"blob" + one for one in MEMBERS), right=frozenset(MEMBERS[1:]),
)  # fmt: skip


def reveals(state: RoundState, seen: MaskState) -> bool:
    owed = mask_duties(state, seen, ME, HAVE, 110.0, TERMS, complete=True)
    return any(isinstance(duty, RevealMask) for duty in owed)


def test_the_frozen_members_are_in_three_groups_of_three() -> None:
    assert sorted(len(group) for group in GROUPED.groups) == [3, 3, 3]
    assert frozenset().union(*GROUPED.groups) == frozenset(MEMBERS)
    assert not in_groups(BASE, replace(masks(), stage=Stage.JOINING, frozen=frozenset()), ()).groups


def test_a_group_of_two_opens_nothing_though_eight_would_be_enough_for_one_sum() -> None:
    gone = next(iter(next(group for group in GROUPED.groups if ME not in group)))
    eight = replace(ROUND, submissions=tuple(s for s in ROUND.submissions if s.member != gone))
    assert reveals(ROUND, GROUPED)
    assert enough(eight, masks(), TERMS)
    assert reveals(eight, masks())
    assert not enough(eight, GROUPED, TERMS)
    assert not reveals(eight, GROUPED)
    # Whoever reveals all the same settles the survivors, and still nobody honest follows.
    fixed = replace(GROUPED, survivors=frozenset(MEMBERS) - {gone}, fixed_s=105.0)
    assert not reveals(eight, fixed)


@pytest.mark.parametrize(("opened", "spent"), [((), False), ((7,), False), ((6,), True), ((3, 7), True)])
def test_a_mask_that_was_opened_in_an_earlier_attempt_spends_the_round(opened: tuple[int, ...], spent: bool) -> None:
    found = in_groups(BASE, masks(), opened)
    assert found.spent is spent
    assert bool(found.groups) is not spent
    assert reveals(ROUND, found) is not spent


def test_members_without_a_common_mask_are_drawn_apart() -> None:
    group = next(group for group in GROUPED.groups if ME in group)
    apart = frozenset((ME, next(iter(group - {ME}))))
    seen = masks(apart)
    assert dropped_edges(seen) == {apart}
    assert all(not apart <= one for one in in_groups(BASE, seen, ()).groups)
