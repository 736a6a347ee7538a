"""What a member owes: a table of situations, and what holds in every state however strange."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.encoding import ZERO_ADDRESS, Address, Digest, sha256
from swarm.quorum import faults_max, quorum
from swarm.rounds import (
    ADVANCE_STAGGER_S,
    EVERY_PART,
    Advance,
    Attest,
    Duty,
    Fetch,
    Have,
    Merge,
    Phase,
    Publish,
    Refuse,
    ReportMissing,
    RoundState,
    RunState,
    Shares,
    Submission,
    Submit,
    Update,
    Verify,
    advance_due_s,
    assigned_parts,
    chunks_of_parts,
    duties,
    leader_of,
    next_change_s,
    owed_parts,
    submissions_needed,
    uncovered_parts,
)

RUN, ROUND, VIEW = 7, 3, 1
NOW_S, DEADLINE_S, MERGE_S, SUBMISSIONS_MIN = 1000.0, 1010.0, 8.0, 2


def digest(text: str) -> Digest:
    return sha256(text.encode())


def address(index: int) -> Address:
    return bytes([index]) * 20


A, B, C, D = (address(i) for i in range(1, 5))
BASE, MERGED, WRONG = digest("base"), digest("merged"), digest("wrong")
UPDATE = Update(ROUND, digest("my update"), 10)


def submission(member: Address, *, struck: bool = False) -> Submission:
    return Submission(member, digest(f"update of {member[0]}"), 10, struck)


ALL = tuple(submission(member) for member in (A, B, C, D))
EVERYTHING = frozenset({BASE, *(s.digest for s in ALL)})


def state(
    phase: Phase,
    submissions: tuple[Submission, ...] = ALL,
    *,
    leader: Address = B,
    published: Digest | None = None,
    attested: Iterable[Address] = (),
    refused: Iterable[Address] = (),
    missing: Iterable[tuple[Address, Address]] = (),
    expected: tuple[Address, ...] = (A, B, C, D),
    deadline_s: float = DEADLINE_S,
    of_run: RunState = RunState.OPEN,
) -> RoundState:
    return RoundState(
        run=RUN,
        state=of_run,
        round=ROUND,
        phase=phase,
        view=VIEW,
        leader=ZERO_ADDRESS if phase is Phase.SUBMIT else leader,
        base=BASE,
        seed=digest("seed"),
        opened_s=990.0,
        deadline_s=deadline_s,
        expected=expected,
        submissions=submissions,
        published=published,
        attested=frozenset(attested),
        refused=frozenset(refused),
        missing=frozenset(missing),
    )


@dataclass(frozen=True)
class Situation:
    """A member's view of a round, and what it owes in it."""

    claim: str
    state: RoundState
    have: Have
    owed: frozenset[Duty]
    me: Address = A
    now_s: float = NOW_S


def fetch(what: Digest, *sources: Address) -> Fetch:
    return Fetch(what, sources)


MERGE = Merge(RUN, ROUND, BASE, ALL)
SUBMIT = Submit(RUN, ROUND, UPDATE, (B, C, D), 2)
ATTEST = Attest(RUN, ROUND, VIEW, MERGED)
REFUSE = Refuse(RUN, ROUND, VIEW, B, WRONG, MERGED)
HALF_S = DEADLINE_S - MERGE_S / 2
SINCE_S = HALF_S - MERGE_S / 2
WITHOUT_C = EVERYTHING - {ALL[2].digest}
STRUCK_C = (ALL[0], ALL[1], submission(C, struck=True), ALL[3])

SITUATIONS = [
    Situation(
        "an update that no merge takes is reported at once, and nothing is merged with it",
        state(Phase.MERGE),
        Have(EVERYTHING, unusable=frozenset({ALL[2].digest})),
        frozenset({ReportMissing(RUN, ROUND, C)}),
    ),
    Situation(
        "an update without an epsilon within the policy is reported at once, and nothing is merged with it",
        state(Phase.MERGE),
        Have(EVERYTHING, over_budget=frozenset({C})),
        frozenset({ReportMissing(RUN, ROUND, C)}),
    ),
    Situation(
        "it is not attested either, whatever the leader publishes",
        state(Phase.ATTEST, published=MERGED, attested={B}),
        Have(EVERYTHING, over_budget=frozenset({C})),
        frozenset(),
    ),
    Situation(
        "a member does not report its own update",
        state(Phase.MERGE),
        Have(EVERYTHING, unusable=frozenset({ALL[0].digest})),
        frozenset(),
    ),
    Situation(
        "an update that no merge takes is reported once",
        state(Phase.MERGE, missing=[(A, C)]),
        Have(EVERYTHING, unusable=frozenset({ALL[2].digest})),
        frozenset(),
    ),
    Situation(
        "a fresh site has to get the checkpoint first",
        state(Phase.SUBMIT, (), deadline_s=0),
        Have(),
        frozenset({fetch(BASE, B, C, D)}),
    ),
    Situation("training takes its time", state(Phase.SUBMIT, (), deadline_s=0), Have(EVERYTHING), frozenset()),
    Situation(
        "an update is submitted with custody at one more than may be faulty",
        state(Phase.SUBMIT, (), deadline_s=0),
        Have(EVERYTHING, UPDATE),
        frozenset({SUBMIT}),
    ),
    Situation(
        "who submitted is asked for custody before those who are only expected",
        state(Phase.SUBMIT, (submission(D),)),
        Have(EVERYTHING, UPDATE),
        frozenset({replace(SUBMIT, custodians=(D, B, C))}),
    ),
    Situation(
        "an update of an earlier round is not submitted",
        state(Phase.SUBMIT, (), deadline_s=0),
        Have(EVERYTHING, replace(UPDATE, round=ROUND - 1)),
        frozenset(),
    ),
    Situation(
        "nobody submits twice",
        state(Phase.SUBMIT, (submission(A), submission(B))),
        Have(EVERYTHING, UPDATE),
        frozenset(),
    ),
    Situation(
        "alone in a run there is nobody to give custody to",
        state(Phase.SUBMIT, (), expected=(A,), deadline_s=0),
        Have(EVERYTHING, UPDATE),
        frozenset({replace(SUBMIT, custodians=(), custodians_min=0)}),
    ),
    Situation(
        "updates are fetched as they are submitted, from their owner first",
        state(Phase.SUBMIT, (submission(A), submission(C))),
        Have(frozenset({BASE, ALL[0].digest})),
        frozenset({fetch(ALL[2].digest, C, B, D)}),
    ),
    Situation("with everything here, everybody merges", state(Phase.MERGE), Have(EVERYTHING), frozenset({MERGE})),
    Situation(
        "a follower that submitted nothing merges too",
        state(Phase.MERGE, ALL[1:]),
        Have(EVERYTHING),
        frozenset({replace(MERGE, submissions=ALL[1:])}),
    ),
    Situation(
        "the struck are left out of the merge",
        state(Phase.MERGE, STRUCK_C),
        Have(WITHOUT_C),
        frozenset({replace(MERGE, submissions=tuple(s for s in STRUCK_C if not s.struck))}),
    ),
    Situation(
        "without an update there is no merge, and no report while there is time",
        state(Phase.MERGE),
        Have(WITHOUT_C),
        frozenset({fetch(ALL[2].digest, C, B, D)}),
    ),
    Situation(
        "at half of the time an absent update is reported",
        state(Phase.MERGE),
        Have(WITHOUT_C, waits_since_s={ALL[2].digest: SINCE_S}),
        frozenset({fetch(ALL[2].digest, C, B, D), ReportMissing(RUN, ROUND, C)}),
        now_s=HALF_S,
    ),
    Situation(
        "who has only begun to wait reports nobody, however late the ledger's clock says it is",
        state(Phase.MERGE),
        Have(WITHOUT_C, waits_since_s={ALL[2].digest: HALF_S - 0.1}),
        frozenset({fetch(ALL[2].digest, C, B, D)}),
        now_s=HALF_S,
    ),
    Situation(
        "an update is reported once",
        state(Phase.MERGE, missing=[(A, C), (B, D)]),
        Have(WITHOUT_C, waits_since_s={ALL[2].digest: SINCE_S}),
        frozenset({fetch(ALL[2].digest, C, B, D)}),
        now_s=HALF_S,
    ),
    Situation(
        "who submitted nothing reports nobody",
        state(Phase.MERGE, ALL[1:]),
        Have(WITHOUT_C, waits_since_s={ALL[2].digest: SINCE_S}),
        frozenset({fetch(ALL[2].digest, C, B, D)}),
        now_s=HALF_S,
    ),
    Situation(
        "nobody is reported for a checkpoint that this node lacks",
        state(Phase.MERGE),
        Have(EVERYTHING - {BASE}),
        frozenset({fetch(BASE, B, C, D)}),
        now_s=HALF_S,
    ),
    Situation("who is not the leader waits", state(Phase.MERGE), Have(EVERYTHING, None, MERGED), frozenset()),
    Situation(
        "the leader publishes what it merged",
        state(Phase.MERGE, leader=A),
        Have(EVERYTHING, None, MERGED),
        frozenset({Publish(RUN, ROUND, VIEW, MERGED)}),
    ),
    Situation(
        "a leader that has not merged does not publish",
        state(Phase.MERGE, leader=A),
        Have(EVERYTHING),
        frozenset({MERGE}),
    ),
    Situation(
        "the same digest is attested",
        state(Phase.ATTEST, published=MERGED, attested=[B]),
        Have(EVERYTHING, None, MERGED),
        frozenset({ATTEST}),
    ),
    Situation(
        "another digest is refused",
        state(Phase.ATTEST, published=WRONG, attested=[B]),
        Have(EVERYTHING, None, MERGED),
        frozenset({REFUSE}),
    ),
    Situation(
        "nobody attests what it has not merged",
        state(Phase.ATTEST, published=MERGED, attested=[B]),
        Have(EVERYTHING),
        frozenset({MERGE}),
    ),
    Situation(
        "nobody attests twice",
        state(Phase.ATTEST, published=MERGED, attested=[A, B]),
        Have(EVERYTHING, None, MERGED),
        frozenset(),
    ),
    Situation(
        "who refused does not refuse again",
        state(Phase.ATTEST, published=WRONG, attested=[B], refused=[A]),
        Have(EVERYTHING, None, MERGED),
        frozenset(),
    ),
    Situation(
        "who submitted nothing has no say",
        state(Phase.ATTEST, ALL[1:], published=WRONG, attested=[B]),
        Have(EVERYTHING, None, MERGED),
        frozenset(),
    ),
    Situation(
        "who was struck has no say",
        state(Phase.ATTEST, STRUCK_C, published=WRONG, attested=[B]),
        Have(EVERYTHING, None, MERGED),
        frozenset(),
        me=C,
    ),
    Situation(
        "after the deadline somebody asks the contract to go on",
        state(Phase.MERGE),
        Have(EVERYTHING, None, MERGED),
        frozenset({Advance(RUN, ROUND, VIEW, Phase.MERGE)}),
        me=C,
        now_s=DEADLINE_S + 4 * ADVANCE_STAGGER_S,
    ),
    Situation(
        "after the deadline a round with enough submissions goes on without the others",
        state(Phase.SUBMIT, (ALL[0], ALL[1])),
        Have(EVERYTHING),
        frozenset({Advance(RUN, ROUND, VIEW, Phase.SUBMIT)}),
        now_s=DEADLINE_S + 4 * ADVANCE_STAGGER_S,
    ),
    Situation(
        "a round with too few submissions waits, whatever its deadline says",
        state(Phase.SUBMIT, (ALL[0],)),
        Have(EVERYTHING),
        frozenset(),
        now_s=DEADLINE_S + 100,
    ),
    Situation(
        "a finished run asks for nothing",
        state(Phase.SUBMIT, of_run=RunState.FINISHED),
        Have(),
        frozenset(),
        now_s=DEADLINE_S + 100,
    ),
    Situation(
        "a stopped run asks for nothing",
        state(Phase.MERGE, of_run=RunState.STOPPED),
        Have(),
        frozenset(),
        now_s=DEADLINE_S + 100,
    ),
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.claim)
def test_the_table(situation: Situation) -> None:
    found = duties(
        situation.state, situation.me, situation.have, situation.now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN
    )
    assert found == situation.owed


# --- what holds in every state

MEMBERS = tuple(address(i) for i in range(1, 9))
DIGESTS = st.sampled_from([BASE, MERGED, WRONG])
times = st.floats(985.0, 1030.0)
members = st.sampled_from(MEMBERS)
UPDATES = st.sampled_from([submission(member).digest for member in MEMBERS])
PART_SETS = st.sampled_from([0, 1, 2**256 - 2, EVERY_PART, 0b1011, EVERY_PART ^ 0b1000])
SHARES = st.none() | st.builds(Shares, st.sampled_from([0, 1, 3, 400]), st.just(10.0))


@st.composite
def states(draw: st.DrawFn) -> RoundState:
    who = draw(st.lists(members, unique=True, max_size=8))
    submissions = tuple(submission(member, struck=draw(st.booleans())) for member in who)
    some = st.frozensets(members)
    attested = draw(some)
    return RoundState(
        run=RUN,
        state=draw(st.sampled_from(RunState)),
        round=ROUND,
        phase=draw(st.sampled_from(Phase)),
        view=draw(st.integers(0, 20)),
        leader=draw(st.sampled_from([ZERO_ADDRESS, *MEMBERS])),
        base=BASE,
        seed=draw(st.binary(min_size=32, max_size=32)),
        opened_s=990.0,
        deadline_s=draw(st.sampled_from([0.0, DEADLINE_S])),
        expected=tuple(draw(st.lists(members, unique=True, max_size=8))),
        submissions=submissions,
        published=draw(st.none() | DIGESTS),
        attested=attested,
        refused=draw(some),
        missing=draw(st.frozensets(st.tuples(members, members), max_size=6)),
        verifiers=draw(st.integers(0, 4)),
        verified=tuple((member, draw(PART_SETS)) for member in sorted(attested) if draw(st.booleans())),
    )


@st.composite
def haves(draw: st.DrawFn) -> Have:
    objects = draw(st.frozensets(st.sampled_from([BASE, *(submission(m).digest for m in MEMBERS)])))
    update = draw(st.none() | st.builds(Update, st.integers(ROUND - 1, ROUND + 1), DIGESTS, st.integers(1, 100)))
    return Have(
        objects,
        update,
        draw(st.none() | DIGESTS),
        waits_since_s=draw(st.dictionaries(UPDATES, times)),
        inspected=draw(st.frozensets(UPDATES)),
        verified=draw(PART_SETS),
        wrong=draw(st.none() | st.tuples(DIGESTS, DIGESTS)),
        heard=draw(st.frozensets(members)),
    )


thorough = settings(max_examples=250, deadline=None, derandomize=True)


def owed_of_kind(kind: type[Duty], owed: frozenset[Duty]) -> list[Duty]:
    return [duty for duty in owed if isinstance(duty, kind)]


@thorough
@given(states(), members, haves(), times, SHARES)
def test_a_verdict_rests_on_an_own_merge_and_says_what_it_found(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    for duty in duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares):
        if isinstance(duty, Attest):
            assert have.merged is not None
            assert have.merged == state.published == duty.checkpoint
        if isinstance(duty, Refuse):
            assert have.merged is not None
            assert duty.found == have.merged != state.published == duty.published
        if isinstance(duty, Attest | Refuse):
            assert state.phase is Phase.ATTEST
            assert me not in state.attested | state.refused
            assert me in {s.member for s in state.merged}


@thorough
@given(states(), members, haves(), times, SHARES)
def test_only_the_leader_publishes_and_only_what_it_merged(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    for duty in owed_of_kind(
        Publish, duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    ):
        assert isinstance(duty, Publish)
        assert me == state.leader
        assert duty.checkpoint == have.merged
        assert state.phase is Phase.MERGE


@thorough
@given(states(), members, haves(), times, SHARES)
def test_a_merge_is_owed_only_with_every_byte_here_and_takes_all_that_are_not_struck(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    for duty in owed_of_kind(
        Merge, duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    ):
        assert isinstance(duty, Merge)
        assert {duty.base, *(s.digest for s in duty.submissions)} <= have.objects
        assert duty.submissions == tuple(s for s in state.submissions if not s.struck)


@thorough
@given(states(), members, haves(), times, SHARES)
def test_what_is_here_is_not_fetched_and_nobody_asks_itself(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    owed = duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    fetched = [duty.digest for duty in owed if isinstance(duty, Fetch)]
    assert not set(fetched) & have.objects
    assert len(fetched) == len(set(fetched))
    for duty in owed:
        if isinstance(duty, Fetch):
            assert me not in duty.sources
            assert len(duty.sources) == len(set(duty.sources))


@thorough
@given(states(), members, haves(), times, SHARES)
def test_custody_is_asked_of_others_and_never_of_more_than_there_are(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    for duty in owed_of_kind(
        Submit, duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    ):
        assert isinstance(duty, Submit)
        assert me not in duty.custodians
        assert len(set(duty.custodians)) == len(duty.custodians)
        assert duty.custodians_min <= len(duty.custodians)
        swarm = len(duty.custodians) + 1
        assert duty.custodians_min == min(faults_max(swarm) + 1, swarm - 1)
        assert duty.update.round == state.round


@thorough
@given(states(), members, haves(), times, SHARES)
def test_nobody_owes_anything_in_a_run_that_is_not_open(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    if state.state is not RunState.OPEN:
        assert (
            duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
            == frozenset()
        )
        assert (
            next_change_s(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
            is None
        )


@thorough
@given(states(), members, haves(), times, SHARES)
def test_only_absent_updates_of_others_are_reported_and_not_before_half_of_the_time(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    for duty in owed_of_kind(
        ReportMissing, duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    ):
        assert isinstance(duty, ReportMissing)
        assert duty.member != me
        assert submission(duty.member) in state.submissions
        assert submission(duty.member).digest not in have.objects
        assert (me, duty.member) not in state.missing
        assert now_s >= have.waits_since_s[submission(duty.member).digest] + MERGE_S / 2


@thorough
@given(states())
def test_exactly_one_member_is_the_first_to_advance(state: RoundState) -> None:
    state = replace(state, state=RunState.OPEN, deadline_s=DEADLINE_S)
    concerned = sorted(set(state.expected) | {s.member for s in state.submissions})
    due = sorted(advance_due_s(state, member) for member in MEMBERS)
    if concerned:
        assert due[0] >= DEADLINE_S
        assert due.count(due[0]) == 1
        assert due[0] == min(advance_due_s(state, member) for member in concerned)
    if len(concerned) > 1 and state.leader in concerned:
        assert advance_due_s(state, state.leader) > due[0]


@thorough
@given(states(), members, haves(), times, times, SHARES)
def test_next_change_names_every_moment_at_which_duties_change_by_themselves(
    state: RoundState, me: Address, have: Have, one_s: float, other_s: float, shares: Shares | None
) -> None:
    before_s, after_s = sorted((one_s, other_s))
    if duties(state, me, have, before_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares) != duties(
        state, me, have, after_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares
    ):
        change_s = next_change_s(
            state, me, have, before_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares
        )
        assert change_s is not None
        assert before_s < change_s <= after_s


@thorough
@given(states(), members, haves(), times, SHARES)
def test_the_same_situation_owes_the_same(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    first = duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    assert first == duties(
        replace(state), me, replace(have), now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares
    )


@thorough
@given(st.binary(min_size=32, max_size=32), st.integers(0, 50), st.lists(st.booleans(), min_size=1, max_size=8))
def test_views_in_a_row_ask_every_eligible_member_to_lead(seed: Digest, view: int, struck: list[bool]) -> None:
    submissions = tuple(
        submission(member, struck=out) for member, out in zip(MEMBERS[: len(struck)], struck, strict=True)
    )
    unstruck = [s.member for s in submissions if not s.struck]
    if unstruck:
        leads = frozenset(MEMBERS[::2])
        eligible = [m for m in unstruck if m in leads] or unstruck
        found = {leader_of(seed, view + step, submissions, leads) for step in range(len(eligible))}
        assert found == set(eligible)


@thorough
@given(states(), members, haves(), times, SHARES)
def test_a_member_attests_what_it_verified_and_nothing_that_is_proven_wrong(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares | None
) -> None:
    owed = duties(state, me, have, now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN, shares=shares)
    for duty in owed_of_kind(Attest, owed):
        assert isinstance(duty, Attest)
        assert have.merged == state.published or (shares is not None and not duty.parts & ~have.verified)
        assert have.merged is not None or have.wrong is None
    for duty in owed_of_kind(Verify, owed):
        assert isinstance(duty, Verify)
        assert shares is not None
        assert not duty.parts & have.verified
        assert me != state.leader


# --- parts


@pytest.mark.parametrize("chunks", [0, 1, 2, 7, 65, 255, 256, 257, 1000, 8192])
def test_parts_divide_the_chunks(chunks: int) -> None:
    assert chunks_of_parts(EVERY_PART, chunks) == list(range(chunks))
    sizes = [len(chunks_of_parts(1 << part, chunks)) for part in range(256)]
    assert sum(sizes) == chunks
    assert max(sizes) <= -(-chunks // 256)


@pytest.mark.parametrize("members", [2, 4, 8, 10, 17, 20, 50, 128])
@pytest.mark.parametrize("chunks", [1, 3, 64, 65, 300])
def test_every_part_has_its_verifiers_and_all_have_alike(members: int, chunks: int) -> None:
    verifiers = [address(i + 1) for i in range(members - 1)]
    each = min(faults_max(members) + 1, members - 1)
    for seed in range(20):
        shares = assigned_parts(digest(str(seed)), digest("published"), verifiers, each=each, chunks=chunks)
        filled = min(chunks, 256)
        for part in range(256):
            count = sum(mask >> part & 1 for mask in shares.values())
            assert count == (each if part < filled else len(verifiers))
        loads = [(mask & ((1 << filled) - 1)).bit_count() for mask in shares.values()]
        assert max(loads) - min(loads) <= 1, f"seed {seed}"


def test_nobody_knows_its_parts_before_the_leader_published() -> None:
    verifiers = [address(i + 1) for i in range(9)]
    drawn = {
        assigned_parts(digest("seed"), digest(str(n)), verifiers, each=4, chunks=300)[verifiers[0]] for n in range(40)
    }
    assert len(drawn) >= 6


def test_late_in_the_time_for_attestations_everybody_takes_what_is_left() -> None:
    shares = Shares(chunks=300, attest_s=10.0)
    who = tuple(submission(member) for member in MEMBERS)
    leader, me, other, *_ = MEMBERS
    shown = replace(
        state(Phase.ATTEST, who, leader=leader, published=MERGED, attested=[leader, other]),
        verifiers=3,
        verified=((other, 0b1111),),
    )
    mine = owed_parts(shown, me, shown.deadline_s - 6.0, shares)
    assert 0 < (mine & EVERY_PART).bit_count() < 200
    assert owed_parts(shown, me, shown.deadline_s - 5.0, shares) == EVERY_PART
    assert uncovered_parts(shown) == EVERY_PART
    twice = replace(shown, verified=tuple((member, 0b111) for member in MEMBERS[1:4]), attested=frozenset(MEMBERS[:4]))
    assert uncovered_parts(twice) == EVERY_PART ^ 0b111
    assert owed_parts(shown, leader, shown.deadline_s - 5.0, shares) == 0


# --- a planted mistake: each property above must be able to fail


def attest_blindly(
    state: RoundState, me: Address, have: Have, now_s: float, *, merge_s: float, submissions_min: int
) -> frozenset[Duty]:
    """What a member owes if it trusts the leader."""
    owed = duties(state, me, have, now_s, merge_s=merge_s, submissions_min=submissions_min)
    submitters = {s.member for s in state.merged}
    if state.published is not None and me in submitters - state.attested and state.phase is Phase.ATTEST:
        owed |= {Attest(state.run, state.round, state.view, state.published)}
    return owed


def test_blind_attestation_is_caught_by_the_table() -> None:
    caught = [
        s.claim
        for s in SITUATIONS
        if attest_blindly(s.state, s.me, s.have, s.now_s, merge_s=MERGE_S, submissions_min=SUBMISSIONS_MIN) != s.owed
    ]
    assert "nobody attests what it has not merged" in caught
    assert "another digest is refused" in caught


@pytest.mark.parametrize(("members", "faults"), [(1, 0), (2, 0), (3, 0), (4, 1), (6, 1), (7, 2), (10, 3)])
def test_fewer_than_a_third_may_be_faulty(members: int, faults: int) -> None:
    assert faults_max(members) == faults


@pytest.mark.parametrize(("members", "needed"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 4), (9, 4), (10, 5), (13, 7)])
def test_a_round_has_more_attestors_than_liars(members: int, needed: int) -> None:
    assert submissions_needed(members) == needed
    assert quorum(needed) > faults_max(members)
    assert needed == 1 or quorum(needed - 1) <= faults_max(members), "one fewer would not do"
