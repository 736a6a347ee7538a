"""What a member owes in a round, as a pure function of what the ledger says and what this node has.

A node keeps nothing about a round that it could not read again: it asks `duties`, starts what is not running,
and asks again after every block, every arrival and every deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from swarm.encoding import Address, Digest, sha256
from swarm.quorum import faults_max, quorum


class RunState(IntEnum):
    """Where a run is; the numbers are the contract's."""

    PROPOSED = 0
    OPEN = 1
    FINISHED = 2
    STOPPED = 3


class Phase(IntEnum):
    """Where an open run's current round is; the numbers are the contract's."""

    SUBMIT = 0
    MERGE = 1
    ATTEST = 2


PARTS = 256
"""A checkpoint has so many parts, each some chunks in a row: what members verify is a set of parts, bit by bit."""
EVERY_PART = 2**PARTS - 1


@dataclass(frozen=True)
class Submission:
    """The ledger's record of one update."""

    member: Address
    digest: Digest
    weight: int
    struck: bool = False
    """Left out of the merge: too many members reported that its bytes never came."""


@dataclass(frozen=True)
class RoundState:
    """The current round of a run, as the contract shows it. Times are Unix seconds by the ledger's clock."""

    run: int
    state: RunState
    round: int
    phase: Phase
    view: int
    leader: Address
    """Whose turn it is to merge; zero while the round takes submissions."""
    base: Digest
    """The checkpoint that this round starts from."""
    seed: Digest
    opened_s: float
    deadline_s: float
    """When anybody may call `advance`; 0 where no deadline runs."""
    expected: tuple[Address, ...]
    """Members that the round waits for."""
    submissions: tuple[Submission, ...] = ()
    """In the order in which the members joined the run."""
    published: Digest | None = None
    attested: frozenset[Address] = frozenset()
    refused: frozenset[Address] = frozenset()
    missing: frozenset[tuple[Address, Address]] = frozenset()
    """(reporter, member) of every report that a submission's bytes never came."""
    verifiers: int = 0
    """How many members besides the leader have to verify each part before the round closes."""
    verified: tuple[tuple[Address, int], ...] = ()
    """The parts, bit by bit, that those who attested some parts only verified. Who else attested verified all."""

    @property
    def merged(self) -> tuple[Submission, ...]:
        """The submissions that the merge takes."""
        return tuple(s for s in self.submissions if not s.struck)


@dataclass(frozen=True)
class Update:
    """An update that this node's training produced and that is in the store."""

    round: int
    digest: Digest
    weight: int
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Have:
    """What this node has that a round may need."""

    objects: frozenset[Digest] = frozenset()
    """Objects in the store, of those that the state names."""
    update: Update | None = None
    """What training produced for the current round."""
    merged: Digest | None = None
    """This node's own merge of the round's base and unstruck submissions."""
    unusable: frozenset[Digest] = frozenset()
    """Submitted objects that are here and that no merge under the policy takes (wrong tensors, not finite): every
    honest member finds the same, and reports them like bytes that never came."""
    over_budget: frozenset[Address] = frozenset()
    """Members whose submission declares no epsilon within a private run's policy: no honest member merges it."""
    inspected: frozenset[Digest] = frozenset()
    """Submitted objects that were looked at because others reported them."""
    verified: int = 0
    """The parts of what the leader published that this node merged again and found the same."""
    wrong: tuple[Digest, Digest] | None = None
    """(found, evidence) where what the leader published is proven to be wrong."""
    heard: frozenset[Address] = frozenset()
    """Whose refusals of this view were looked at."""
    waits_since_s: Mapping[Digest, float] = field(default_factory=dict, hash=False)
    """Since when, by its own clock, this node has waited for the bytes of a submission that it needs: neither another
    clock nor a restart makes it accuse somebody whom it has hardly asked."""


@dataclass(frozen=True)
class Fetch:
    """Pull an object; the sources are asked in this order."""

    digest: Digest
    sources: tuple[Address, ...]


@dataclass(frozen=True)
class Submit:
    """Give other members custody of the update, then put its digest on the ledger."""

    run: int
    round: int
    update: Update
    custodians: tuple[Address, ...]
    """Who may hold a copy."""
    custodians_min: int
    """How many have to before the ledger hears of it: one more than may be faulty."""


@dataclass(frozen=True)
class Merge:
    """Merge the base and these submissions, and keep the result."""

    run: int
    round: int
    base: Digest
    submissions: tuple[Submission, ...]


@dataclass(frozen=True)
class Publish:
    """Say on the ledger what the merge gave: the leader's."""

    run: int
    round: int
    view: int
    checkpoint: Digest


@dataclass(frozen=True)
class Inspect:
    """See whether a merge takes this submission, which others reported and which is here."""

    run: int
    round: int
    base: Digest
    submission: Submission


@dataclass(frozen=True)
class Verify:
    """Merge these parts again, compare them with what the leader published, and have the whole checkpoint."""

    run: int
    round: int
    view: int
    leader: Address
    base: Digest
    submissions: tuple[Submission, ...]
    published: Digest
    parts: int
    sources: tuple[Address, ...]
    """Who may have the inputs."""


@dataclass(frozen=True)
class Hear:
    """Look at the evidence of those who refused."""

    run: int
    round: int
    view: int
    accusers: tuple[Address, ...]


@dataclass(frozen=True)
class Attest:
    """Say on the ledger that this node merged these parts too and found the published digest."""

    run: int
    round: int
    view: int
    checkpoint: Digest
    parts: int = EVERY_PART


@dataclass(frozen=True)
class Refuse:
    """Say on the ledger that this node merged too and found something else."""

    run: int
    round: int
    view: int
    leader: Address
    published: Digest
    found: Digest
    evidence: Digest | None = None
    """An object that is in the store already."""


@dataclass(frozen=True)
class ReportMissing:
    """Say on the ledger that a submission's bytes never came, or are nothing that can be merged."""

    run: int
    round: int
    member: Address


@dataclass(frozen=True)
class Advance:
    """A deadline passed: ask the contract to go on."""

    run: int
    round: int
    view: int
    phase: Phase


Duty: TypeAlias = Fetch | Submit | Merge | Inspect | Verify | Hear | Publish | Attest | Refuse | ReportMissing | Advance


def same_work(duty: object) -> tuple[object, ...]:
    """What makes two duties the same work although more sources or custodians are known by now."""
    match duty:
        case Fetch(digest=digest):
            return Fetch, digest
        case Submit(run=run, round=round_):
            return Submit, run, round_
        case Verify(run=run, round=round_, view=view):
            return Verify, run, round_, view
    return type(duty), duty


@dataclass(frozen=True)
class Shares:
    """That members merge again the parts they were assigned, and not everything."""

    chunks: int
    """Of the checkpoint."""
    attest_s: float
    """The policy's time for attestations. After half of it everybody takes what is left."""


ADVANCE_STAGGER_S = 0.4
"""One member calls `advance`; the next one only if this much later the deadline still stands."""


def submissions_needed(members: int) -> int:
    """The least `submissions_min` with which no round can close on the word of liars alone.

    A round closes when two thirds of its submitters attest. Where fewer submit than the consortium has members, that
    quorum may be as small as the number of liars which the consortium tolerates; it has to be greater.
    """
    liars = faults_max(members)
    return next(count for count in range(1, members + 1) if quorum(count) > liars)


def chunks_of_parts(parts: int, chunks: int) -> list[int]:
    """The chunks, ascending, that a set of parts means; with fewer chunks than parts, most parts are empty."""
    filled = min(PARTS, chunks)
    return [
        chunk
        for part in range(filled)
        if parts >> part & 1
        for chunk in range(part * chunks // filled, (part + 1) * chunks // filled)
    ]


def assigned_parts(
    seed: Digest, published: Digest, verifiers: Sequence[Address], *, each: int, chunks: int
) -> dict[Address, int]:
    """Which parts each member merges again; nobody knows before the leader has published.

    Every part goes to `each` members in a row, the next part to the next ones, so all have the same number but for one.

    Args:
        seed: the round's.
        verifiers: whose submissions are merged, without the leader, in the order in which they joined.
        chunks: of the checkpoint; parts that have none are everybody's.
    """
    filled = min(PARTS, chunks)
    shares = dict.fromkeys(verifiers, EVERY_PART >> filled << filled)
    start = int.from_bytes(sha256(seed + published), "big")
    for part in range(filled):
        for turn in range(min(each, len(verifiers))):
            shares[verifiers[(start + part * each + turn) % len(verifiers)]] |= 1 << part
    return shares


def uncovered_parts(state: RoundState) -> int:
    """The parts that too few members besides the leader have verified so far."""
    some = dict(state.verified)
    whole = len(state.attested - {state.leader} - some.keys())
    return sum(
        1 << part
        for part in range(PARTS)
        if whole + sum(parts >> part & 1 for parts in some.values()) < state.verifiers
    )


def owed_parts(state: RoundState, me: Address, now_s: float, shares: Shares) -> int:
    """The parts of what was published that `me` has to verify by now."""
    assert state.published is not None
    verifiers = [s.member for s in state.merged if s.member != state.leader]
    if me not in verifiers:
        return 0
    mine = assigned_parts(state.seed, state.published, verifiers, each=state.verifiers, chunks=shares.chunks)[me]
    late = now_s >= state.deadline_s - shares.attest_s / 2
    return mine | uncovered_parts(state) if late else mine


def needed_whole(state: RoundState, me: Address, shares: Shares | None) -> tuple[Submission, ...]:
    """The submissions of which `me` needs all bytes: all, or, where parts are assigned, the leader all and the others
    those that somebody reported."""
    if shares is None or (state.phase is not Phase.SUBMIT and state.leader == me):
        return state.merged
    reported = {member for _, member in state.missing}
    return tuple(s for s in state.merged if s.member in reported and s.member != me)


def duties(
    state: RoundState,
    me: Address,
    have: Have,
    now_s: float,
    *,
    merge_s: float,
    submissions_min: int,
    shares: Shares | None = None,
) -> frozenset[Duty]:
    """What `me` owes now.

    Args:
        state: the run's current round by the ledger.
        have: what this node has of it.
        now_s: Unix seconds by this node's clock.
        merge_s: the policy's time for a leader; bytes that are absent for half of it are reported missing.
        submissions_min: the policy's; with fewer a round waits, whatever its deadline says.
        shares: None where everybody merges everything again.
    """
    if state.state is not RunState.OPEN:
        return frozenset()
    owed: set[Duty] = set()
    holders = tuple(s.member for s in state.submissions if s.member != me)
    others = holders + tuple(m for m in state.expected if m != me and m not in holders)
    if state.base not in have.objects:
        owed.add(Fetch(state.base, others))
    needed = needed_whole(state, me, shares)
    absent = [s for s in needed if s.digest not in have.objects]
    for submission in absent:
        owner = tuple(m for m in (submission.member,) if m != me)
        owed.add(Fetch(submission.digest, owner + tuple(m for m in others if m not in owner)))
    submitters = {s.member for s in state.merged}

    if state.phase is Phase.SUBMIT:
        update = have.update
        if update is not None and update.round == state.round and me not in {s.member for s in state.submissions}:
            count = min(len(others), faults_max(len(others) + 1) + 1)
            custodians = others if shares is None else _custodians(others, me)
            owed.add(Submit(state.run, state.round, update, custodians, count))
    elif have.merged is None:
        over_budget = [s for s in state.merged if s.member in have.over_budget]
        unusable = [s for s in state.merged if s.digest in have.unusable or s in over_budget]
        if shares is not None and state.base in have.objects:
            owed.update(
                Inspect(state.run, state.round, state.base, s)
                for s in needed
                if s.digest in have.objects and s.digest not in have.inspected | have.unusable
            )
        if needed == state.merged and not absent and not unusable and state.base in have.objects:
            owed.add(Merge(state.run, state.round, state.base, state.merged))
        elif shares is not None and state.phase is Phase.ATTEST:
            owed |= set() if over_budget else _owed_verdict(state, me, have, now_s, shares, others)
        elif state.phase is Phase.MERGE and me in submitters:
            late = [s for s in absent if now_s >= have.waits_since_s.get(s.digest, now_s) + merge_s / 2]
            reported = {member for reporter, member in state.missing if reporter == me}
            owed.update(
                ReportMissing(state.run, state.round, s.member)
                for s in (*unusable, *late)
                if s.member != me and s.member not in reported
            )
    elif state.phase is Phase.MERGE:
        if state.leader == me:
            owed.add(Publish(state.run, state.round, state.view, have.merged))
    elif state.published is not None and me in submitters and me not in state.attested | state.refused:
        owed.add(_verdict(state, state.published, have.merged))

    if _can_advance(state, submissions_min) and now_s >= advance_due_s(state, me):
        owed.add(Advance(state.run, state.round, state.view, state.phase))
    return frozenset(owed)


def _custodians(others: tuple[Address, ...], me: Address) -> tuple[Address, ...]:
    """The others in an order of its own for each member, so that not all give their copies to the same ones."""
    order = sorted(others)
    after = [member for member in order if member > me]
    return (*after, *order[: len(order) - len(after)])


def _owed_verdict(
    state: RoundState, me: Address, have: Have, now_s: float, shares: Shares, others: tuple[Address, ...]
) -> set[Duty]:
    """What a member owes that merges parts only, after the leader published."""
    published = state.published
    if published is None or me in state.refused or me == state.leader or me not in {s.member for s in state.merged}:
        return set()
    if have.wrong is not None:
        return {Refuse(state.run, state.round, state.view, state.leader, published, *have.wrong)}
    owed: set[Duty] = set()
    unheard = tuple(sorted(state.refused - have.heard))
    if unheard:
        owed.add(Hear(state.run, state.round, state.view, unheard))
    parts = owed_parts(state, me, now_s, shares)
    said = dict(state.verified).get(me, EVERY_PART if me in state.attested else 0)
    usable = not any(s.digest in have.unusable for s in state.merged)
    left = parts & ~(have.verified | said)
    if left and usable and state.base in have.objects:
        sources = (state.leader, *(member for member in others if member != state.leader))
        owed.add(
            Verify(
                state.run, state.round, state.view, state.leader, state.base, state.merged, published, left, sources
            )
        )  # fmt: skip
    elif parts & have.verified & ~said:
        owed.add(Attest(state.run, state.round, state.view, published, parts & have.verified))
    return owed


def _can_advance(state: RoundState, submissions_min: int) -> bool:
    """Whether the contract would go on after the deadline: it never merges fewer submissions than the policy says."""
    return state.deadline_s > 0 and (state.phase is not Phase.SUBMIT or len(state.submissions) >= submissions_min)


def _verdict(state: RoundState, published: Digest, found: Digest) -> Attest | Refuse:
    if published == found:
        return Attest(state.run, state.round, state.view, published)
    return Refuse(state.run, state.round, state.view, state.leader, published, found)


def advance_due_s(state: RoundState, me: Address) -> float:
    """When `me` calls `advance`: members take turns, so that one transaction does it and any one may be off."""
    order = sorted(set(state.expected) | {s.member for s in state.submissions})
    if me not in order:
        return state.deadline_s + ADVANCE_STAGGER_S * len(order)
    turn = (order.index(me) - state.round - state.view) % len(order)
    if len(order) > 1 and me == state.leader:
        turn = len(order)  # whose time ran out is asked last
    return state.deadline_s + ADVANCE_STAGGER_S * turn


def next_change_s(
    state: RoundState,
    me: Address,
    have: Have,
    now_s: float,
    *,
    merge_s: float,
    submissions_min: int,
    shares: Shares | None = None,
) -> float | None:
    """When to ask `duties` again although nothing arrived; None where only an arrival can change them."""
    if state.state is not RunState.OPEN:
        return None
    times = [since_s + merge_s / 2 for since_s in have.waits_since_s.values()]
    if _can_advance(state, submissions_min):
        times.append(advance_due_s(state, me))
    if shares is not None and state.phase is Phase.ATTEST:
        times.append(state.deadline_s - shares.attest_s / 2)
    return min((time for time in times if time > now_s), default=None)


def leader_of(seed: Digest, view: int, submissions: tuple[Submission, ...], leads: frozenset[Address]) -> Address:
    """The leader of a view, as the contract elects it: an auditor and a simulator derive it again.

    Args:
        seed: the round's seed.
        submissions: in the order in which the members joined.
        leads: members that did not opt out and are not suspended.
    """
    unstruck = [s.member for s in submissions if not s.struck]
    eligible = [member for member in unstruck if member in leads] or unstruck
    return eligible[(int.from_bytes(seed, "big") + view) % len(eligible)]
