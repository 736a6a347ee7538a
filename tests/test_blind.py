"""What a member owes for its masks, as a pure function: joins, reveals and refusals, and what a restored disk shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.blind import (
    KEY_AGE_MAX_S,
    KEY_ROUNDS_MAX,
    Confirm,
    Entry,
    ForgetKey,
    Freeze,
    GiveShares,
    HaveMasks,
    JoinMasks,
    MaskDuty,
    MaskSeat,
    MaskState,
    MaskTerms,
    MaskUpdate,
    OpenBlob,
    RenewKey,
    RevealMask,
    Rotate,
    SetKey,
    Stage,
    freeze_due_s,
    lost,
    mask_duties,
    next_mask_change_s,
    summed,
)
from swarm.rounds import Fetch, Phase, RoundState, RunState, Submission

A, B, C, D = (bytes([number]) * 20 for number in (1, 2, 3, 4))
ALL = frozenset({A, B, C, D})
TERMS = MaskTerms(submit_s=20.0, merge_s=10.0, submissions_min=3)
ROUND = RoundState(
    run=1, state=RunState.OPEN, round=2, phase=Phase.SUBMIT, view=0, leader=bytes(20), base=b"b" * 32, seed=b"s" * 32,
    opened_s=100.0, deadline_s=0.0, expected=(A, B, C, D),
)  # fmt: skip


def blob(member: bytes) -> bytes:
    return b"blob" + member + bytes(8)


def seats(*joined: bytes) -> tuple[MaskSeat, ...]:
    bare = tuple(MaskSeat(place, member, b"key" + member, 1) for place, member in enumerate((A, B, C, D)))
    edges = frozenset(joined)
    return tuple(
        replace(seat, blob=blob(seat.member), edges=edges - {seat.member}) if seat.member in joined else seat
        for seat in bare
    )


CLOSED = MaskState(
    run=1, round=2, stage=Stage.CLOSED, attempt=7, threshold=0, opened_s=0.0, block=0, fixed_s=0.0, spent=False,
    seats=seats(), mine=b"key" + A,
)  # fmt: skip
JOINING = replace(CLOSED, stage=Stage.JOINING, threshold=3, opened_s=100.0, seats=seats(A, B, C, D), joined=ALL)
TAKEN = replace(JOINING, stage=Stage.FROZEN, confirmed=ALL, frozen=ALL)
HAVE = HaveMasks(key=b"key" + A, entry=Entry(7, blob(A)), attached=True)
HELD = replace(HAVE, blobs=frozenset(blob(m) for m in (A, B, C, D)), right=frozenset({B, C, D}))
VECTOR = b"v" * 32
MASKED = replace(HELD, entry=Entry(7, blob(A), VECTOR), masked=True, plain=True)
MERGE = replace(
    ROUND,
    phase=Phase.MERGE,
    submissions=tuple(Submission(m, VECTOR if m == A else b"%d" % m[0] * 32, 0) for m in (A, B, C, D)),
)


def owed(
    state: RoundState, masks: MaskState, have: HaveMasks, now_s: float = 101.0, *, complete: bool = False
) -> set[MaskDuty]:
    return set(mask_duties(state, masks, A, have, now_s, TERMS, complete=complete))


def test_a_node_sets_its_key_and_joins_when_all_who_are_awaited_have_theirs() -> None:
    assert owed(ROUND, replace(CLOSED, mine=b""), HAVE) == {SetKey(1, b"key" + A)}
    assert owed(ROUND, CLOSED, HAVE) == {JoinMasks(1, 2, 7)}
    three = replace(CLOSED, seats=seats()[:3])
    assert owed(ROUND, three, HAVE) == set()
    assert owed(ROUND, three, HAVE, 121.0) == {JoinMasks(1, 2, 7)}
    assert owed(ROUND, replace(CLOSED, seats=seats()[:2]), HAVE, 121.0) == set()
    assert owed(ROUND, CLOSED, replace(HAVE, attached=False)) == set()


def test_it_looks_at_every_blob_before_it_confirms_those_that_are_right() -> None:
    fetched = owed(ROUND, JOINING, HAVE)
    assert {duty.digest for duty in fetched if isinstance(duty, Fetch)} == {blob(B), blob(C), blob(D)}
    assert OpenBlob(1, 2, 7, B, blob(B)) in owed(ROUND, JOINING, replace(HAVE, blobs=frozenset({blob(B)})))
    assert owed(ROUND, JOINING, HELD) == {Confirm(1, 2, 7, frozenset({B, C, D}))}
    doubtful = replace(HELD, right=frozenset({B, C}), wrong=frozenset({D}))
    assert owed(ROUND, JOINING, doubtful) == {Confirm(1, 2, 7, frozenset({B, C}))}
    late = replace(JOINING, joined=frozenset({A, B, C}), seats=seats(A, B, C))
    assert not any(isinstance(duty, Confirm) for duty in owed(ROUND, late, HELD))
    assert Confirm(1, 2, 7, frozenset({B, C})) in owed(ROUND, late, HELD, 115.0)
    assert Freeze(1, 2, 7) in owed(ROUND, late, HELD, freeze_due_s(late, A, TERMS))


def test_it_masks_once_and_reveals_only_with_every_vector_at_hand_and_for_one_set() -> None:
    assert owed(ROUND, TAKEN, replace(HELD, plain=True)) == {MaskUpdate(1, 2, 7)}
    assert owed(ROUND, TAKEN, MASKED) == set()
    assert owed(MERGE, TAKEN, MASKED) == set()
    assert owed(MERGE, TAKEN, MASKED, complete=True) == {RevealMask(1, 2, 7, ALL)}
    others = replace(MASKED, entry=Entry(7, blob(A), VECTOR, frozenset({A, B, C})))
    assert owed(MERGE, TAKEN, others, complete=True) == set()
    few = replace(MERGE, submissions=MERGE.submissions[:2])
    assert owed(few, TAKEN, MASKED, complete=True) == set()
    spent = replace(TAKEN, spent=True)
    assert owed(MERGE, spent, MASKED, complete=True) == set()


def test_who_reported_a_vector_missing_opens_nothing_in_that_attempt() -> None:
    told = replace(MERGE, missing=frozenset({(A, D)}))
    assert owed(told, TAKEN, MASKED, complete=True) == set()


def test_shares_are_given_late_of_who_is_silent_and_by_who_revealed() -> None:
    fixed = replace(TAKEN, survivors=ALL, fixed_s=110.0, revealed=frozenset({A, B, C}))
    told = replace(MASKED, entry=Entry(7, blob(A), VECTOR, ALL), missing=(frozenset({D}), frozenset()))
    shares = GiveShares(1, 2, 7, frozenset({D}), frozenset())
    assert owed(MERGE, fixed, told, 114.0) == set()
    assert owed(MERGE, fixed, told, 115.0) == {shares}
    assert owed(MERGE, fixed, replace(told, given=frozenset({D})), 115.0) == set()
    assert owed(MERGE, replace(fixed, revealed=frozenset({B, C})), told, 115.0) == set()
    assert next_mask_change_s(MERGE, fixed, A, 111.0, TERMS) == 115.0


@pytest.mark.parametrize(
    ("state", "masks", "entry"),
    [
        (ROUND, JOINING, None),
        (ROUND, JOINING, Entry(7, b"another blob" + bytes(20))),
        (MERGE, TAKEN, Entry(7, blob(A))),
        (MERGE, replace(TAKEN, survivors=ALL, revealed=frozenset({A})), Entry(7, blob(A), VECTOR)),
    ],
)
def test_a_deed_that_the_log_does_not_know_makes_new_keys(
    state: RoundState, masks: MaskState, entry: Entry | None
) -> None:
    have = replace(MASKED, entry=entry)
    assert lost(state, masks, A, have)
    assert owed(state, masks, have, complete=True) == {Rotate(1, 2)}
    fresh = replace(have, sits_out=True, key=b"fresh")
    assert owed(state, masks, fresh, complete=True) == {SetKey(1, b"fresh")}
    assert owed(state, replace(masks, mine=b"fresh"), fresh, complete=True) == set()


def test_what_others_than_the_survivors_submitted_is_not_in_the_sum() -> None:
    three = replace(TAKEN, frozen=frozenset({A, B, C}))
    assert [s.member for s in summed(MERGE, three).submissions] == [A, B, C]
    assert len(summed(replace(MERGE, phase=Phase.SUBMIT), three).submissions) == 4


def test_an_old_key_is_replaced_while_an_attempt_is_frozen_and_erased_when_none_is_under_way_with_it() -> None:
    for old in (replace(HELD, key_rounds=KEY_ROUNDS_MAX), replace(HELD, key_age_s=KEY_AGE_MAX_S)):
        assert RenewKey(1, 2) in owed(ROUND, TAKEN, old)
        assert RenewKey(1, 2) not in owed(ROUND, JOINING, old) | owed(ROUND, CLOSED, old)
    assert RenewKey(1, 2) not in owed(ROUND, TAKEN, replace(HELD, key_rounds=KEY_ROUNDS_MAX - 1))
    renewed = replace(HELD, key=b"renewed", last_key=b"key" + A)
    assert SetKey(1, b"renewed") in owed(ROUND, TAKEN, renewed)
    set_ = replace(TAKEN, mine=b"renewed")
    assert not {SetKey(1, b"renewed"), ForgetKey(1, 2), RenewKey(1, 2)} & owed(ROUND, set_, renewed)
    mine = tuple(replace(seat, key=b"renewed", number=2) if seat.member == A else seat for seat in seats())
    assert ForgetKey(1, 2) in owed(ROUND, replace(CLOSED, mine=b"renewed", seats=mine), renewed)


def test_an_attempt_that_opened_before_the_new_key_was_known_is_joined_with_the_old_one() -> None:
    masks = replace(JOINING, joined=frozenset(), seats=seats(), mine=b"renewed")
    assert JoinMasks(1, 2, 7) in owed(ROUND, masks, HaveMasks(key=b"renewed", last_key=b"key" + A, attached=True))
    assert JoinMasks(1, 2, 7) not in owed(ROUND, masks, HaveMasks(key=b"renewed", attached=True))
