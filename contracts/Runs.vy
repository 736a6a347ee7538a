# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# @title What is trained: runs, each member's consent, and the rounds of a run
# @license Apache-2.0
# @notice A round takes submissions, elects a leader among the submitters, and closes when a quorum of them has
#         attested the leader's checkpoint. The ledger holds digests and votes; bytes live in the members' stores.
#         States, callers and events are described in Runs.md. Every call checks who, then when, then what.
#
# Every node executes every call, so the round's state is packed: a word costs a node about 0.2 ms to touch.
# A member's seat in a run is a number below 128, given at its first join; sets of members are bitmaps over seats.

interface Consortium:
    def isMember(who: address) -> bool: view
    def memberOf(operator: address) -> address: view
    def operatorOf(who: address) -> address: view
    def quorum() -> uint256: view

struct RunRecord:
    proposer: address
    name: String[64]
    policy: bytes32
    genesis: bytes32
    rounds: uint256
    submissions_min: uint256
    submit_ticks: uint256
    merge_ticks: uint256
    attest_ticks: uint256
    weight_max: uint256
    state: uint256
    round: uint256
    checkpoint: bytes32

struct Submission:
    member: address
    digest: bytes32
    weight: uint256
    struck: bool

struct Report:
    reporter: address
    member: address

struct Verification:
    member: address
    parts: uint256

struct RoundRecord:
    state: uint256
    round: uint256
    phase: uint256
    view: uint256
    leader: address
    base: bytes32
    seed: bytes32
    opened: uint256
    deadline: uint256
    expected: DynArray[address, MEMBERS_MAX]
    submissions: DynArray[Submission, MEMBERS_MAX]
    published: bytes32
    attested: DynArray[address, MEMBERS_MAX]
    refused: DynArray[address, MEMBERS_MAX]
    missing: DynArray[Report, REPORTS_SHOWN]
    verifiers: uint256
    verified: DynArray[Verification, MEMBERS_MAX]

struct ClosedRecord:
    checkpoint: bytes32
    leader: address
    view: uint256
    submissions: uint256
    attestations: uint256
    closed: uint256

event RunProposed:
    run: indexed(uint256)
    member: indexed(address)
    name: String[64]
    policy: bytes32
    genesis: bytes32

event RunApproved:
    run: indexed(uint256)
    member: indexed(address)
    operator: address

event RunOpened:
    run: indexed(uint256)
    checkpoint: bytes32
    seed: bytes32

event Joined:
    run: indexed(uint256)
    member: indexed(address)
    seat: uint256
    leads: bool

event Withdrawn:
    run: indexed(uint256)
    member: indexed(address)

event Submitted:
    run: indexed(uint256)
    round: indexed(uint256)
    member: indexed(address)
    digest: bytes32
    weight: uint256
    metrics: Bytes[METRICS_MAX]

event MergeStarted:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    leader: address
    deadline: uint256

event MissingReported:
    run: indexed(uint256)
    round: indexed(uint256)
    reporter: address
    member: address

event Struck:
    run: indexed(uint256)
    round: indexed(uint256)
    member: address

event Published:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    leader: address
    checkpoint: bytes32

event Attested:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    member: address
    checkpoint: bytes32

event Verified:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    member: address
    parts: uint256

event Refused:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    leader: address
    member: address
    published: bytes32
    found: bytes32
    evidence: bytes32

event AccusationFailed:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    accuser: address

event LeaderReplaced:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    leader: address
    replaced: address
    reason: uint256

event RoundRestarted:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256

event RoundClosed:
    run: indexed(uint256)
    round: indexed(uint256)
    view: uint256
    leader: address
    checkpoint: bytes32
    attestations: uint256

event RunFinished:
    run: indexed(uint256)
    checkpoint: bytes32

event StopVoted:
    run: indexed(uint256)
    member: indexed(address)

event RunStopped:
    run: indexed(uint256)

MEMBERS_MAX: constant(uint256) = 128
METRICS_MAX: constant(uint256) = 512
# What the view of a round lists; the contract takes more.
REPORTS_SHOWN: constant(uint256) = 256

PROPOSED: constant(uint256) = 0
OPEN: constant(uint256) = 1
FINISHED: constant(uint256) = 2
STOPPED: constant(uint256) = 3

SUBMIT: constant(uint256) = 0
MERGE: constant(uint256) = 1
ATTEST: constant(uint256) = 2

SILENT: constant(uint256) = 1
UNATTESTED: constant(uint256) = 2
REFUSED: constant(uint256) = 3
INPUTS_CHANGED: constant(uint256) = 4

# A round restarts after this many turns of all its leaders: then members that are gone no longer count.
TURNS: constant(uint256) = 2

LOW: constant(uint256) = 2**128 - 1
# A checkpoint has 256 parts, one bit each; who attests without naming parts verified them all.
EVERY_PART: constant(uint256) = max_value(uint256)
# Bits of the number of members that verified a part: up to 127.
COUNTER_BITS: constant(uint256) = 7
WORD32: constant(uint256) = 2**32 - 1
WORD64: constant(uint256) = 2**64 - 1

# A run's terms, in one word (rounds 32, submissions_min 8, three durations of 48, weight_max 64 bits). Where weight_max
# is 0 the run is blind: weights are masked with the updates, and a submission tells 0.
struct Terms:
    rounds: uint256
    submissions_min: uint256
    submit_ticks: uint256
    merge_ticks: uint256
    attest_ticks: uint256
    weight_max: uint256

# Where a run is, in one word (4, 4, 8, 8, 8, 32, 32, 32, 64, 64 bits).
struct Head:
    state: uint256
    phase: uint256
    leader: uint256  # seat
    seats: uint256  # seats given so far
    awaited: uint256  # members that approved before the run opened, are expected, and have not joined yet
    round: uint256
    view: uint256
    first_view: uint256  # of this try at the round
    opened: uint256
    deadline: uint256

struct Run:
    head: uint256
    waiting: uint256  # expected << 128 | submitted
    votes: uint256  # struck << 128 | attested
    doubts: uint256  # refused << 128 | reported
    leaders: uint256  # suspended << 128 | leads
    terms: uint256
    seed: bytes32
    published: bytes32
    proposer: address
    policy: bytes32
    name: String[64]
    marks: uint256  # discredited << 128 | attested some parts only
    covered: uint256[COUNTER_BITS]  # by part: how many of the latter verified it; word i holds bit i of the numbers

struct Seat:
    occupant: uint256  # weight of its last submission << 160 | member
    digest: bytes32  # of its last submission
    reports: uint256  # seats that reported its bytes missing; holds where `reported` has its bit
    parts: uint256  # what it verified; holds where `marks` has its bit

struct Consent:
    approved: bool
    awaited: bool
    seat: uint256  # + 1; 0 before the first join

CONSORTIUM: immutable(Consortium)
TICKS_PER_SECOND: immutable(uint256)

count: public(uint256)
runs: HashMap[uint256, Run]
seats: HashMap[uint256, Seat[MEMBERS_MAX]]
# (seat + 1) << 1 | joined, by the node's key
seat_of: HashMap[uint256, HashMap[address, uint256]]
# by operator: consent is a person's, and outlives a node's key
consents: HashMap[uint256, HashMap[address, Consent]]
approvers: HashMap[uint256, DynArray[address, MEMBERS_MAX]]
stops: HashMap[uint256, HashMap[address, bool]]
# round -> the checkpoint it starts from; the one after the last round is the run's result
bases: HashMap[uint256, HashMap[uint256, bytes32]]
# round -> leader | view << 160 | submissions << 192 | attestations << 200 | closed << 208
closings: HashMap[uint256, HashMap[uint256, uint256]]


@deploy
def __init__(consortium: address, ticks_per_second: uint256):
    assert consortium != empty(address), "the consortium's address is zero"
    assert ticks_per_second == 1 or ticks_per_second == 1000, "timestamps count seconds or milliseconds"
    CONSORTIUM = Consortium(consortium)
    TICKS_PER_SECOND = ticks_per_second


# ------------------------------------------------------------------ reading


@external
@view
def ticksPerSecond() -> uint256:
    """
    @notice How many ticks of this ledger's timestamps, in which all times here are told, make a second
    """
    return TICKS_PER_SECOND


@external
@view
def run(id: uint256) -> RunRecord:
    kept: Run = self.runs[id]
    terms: Terms = self._terms(id)
    head: Head = self._head(id)
    return RunRecord(
        proposer=kept.proposer, name=kept.name, policy=kept.policy, genesis=self.bases[id][0],
        rounds=terms.rounds, submissions_min=terms.submissions_min, submit_ticks=terms.submit_ticks,
        merge_ticks=terms.merge_ticks, attest_ticks=terms.attest_ticks, weight_max=terms.weight_max,
        state=head.state, round=head.round, checkpoint=self.bases[id][head.round],
    )


@external
@view
def approvals(id: uint256) -> DynArray[address, MEMBERS_MAX]:
    """
    @notice The members whose operators consent
    """
    found: DynArray[address, MEMBERS_MAX] = []
    for operator: address in self.approvers[id]:
        member: address = staticcall CONSORTIUM.memberOf(operator)
        if member != empty(address):
            found.append(member)
    return found


@external
@view
def participants(id: uint256) -> DynArray[address, MEMBERS_MAX]:
    """
    @notice The members that joined and did not withdraw, by seat
    """
    found: DynArray[address, MEMBERS_MAX] = []
    for seat: uint256 in range(self._head(id).seats, bound=MEMBERS_MAX):
        member: address = self._member(id, seat)
        if self.seat_of[id][member] & 1 == 1:
            found.append(member)
    return found


@external
@view
def suspended(id: uint256, member: address) -> bool:
    """
    @notice Whether so many refused a checkpoint of this member that it no longer leads in this run
    """
    place: uint256 = self.seat_of[id][member]
    return place != 0 and (self.runs[id].leaders >> 128 >> ((place >> 1) - 1)) & 1 == 1


@external
@view
def round_state(id: uint256) -> RoundRecord:
    """
    @notice All that a member has to know about the current round, in one call
    """
    head: Head = self._head(id)
    shown: RoundRecord = empty(RoundRecord)
    shown.state = head.state
    shown.round = head.round
    shown.phase = head.phase
    shown.view = head.view
    shown.base = self.bases[id][head.round]
    shown.seed = self.runs[id].seed
    shown.opened = head.opened
    if head.phase != SUBMIT:
        shown.leader = self._member(id, head.leader)
    if head.phase == ATTEST:
        shown.published = self.runs[id].published
    waiting: uint256 = self.runs[id].waiting
    votes: uint256 = self.runs[id].votes
    doubts: uint256 = self.runs[id].doubts
    marks: uint256 = self.runs[id].marks
    if head.phase != SUBMIT:
        shown.verifiers = self._verifiers(id, self._size(waiting & LOW & ~(votes >> 128)))
    members: address[MEMBERS_MAX] = empty(address[MEMBERS_MAX])
    for seat: uint256 in range(head.seats, bound=MEMBERS_MAX):
        bit: uint256 = 1 << seat
        occupant: uint256 = self.seats[id][seat].occupant
        member: address = convert(occupant & (2**160 - 1), address)
        members[seat] = member
        if (waiting >> 128) & bit != 0:
            shown.expected.append(member)
        if waiting & bit != 0:
            shown.submissions.append(
                Submission(
                    member=member, digest=self.seats[id][seat].digest, weight=occupant >> 160,
                    struck=(votes >> 128) & bit != 0,
                )
            )
        if votes & bit != 0:
            shown.attested.append(member)
            if marks & bit != 0:
                shown.verified.append(Verification(member=member, parts=self.seats[id][seat].parts))
        if (doubts >> 128) & bit != 0:
            shown.refused.append(member)
    # No deadline runs while it could do nothing.
    if head.phase != SUBMIT or self._size(waiting & LOW) >= self._terms(id).submissions_min:
        shown.deadline = head.deadline
    if head.awaited != 0:
        for operator: address in self.approvers[id]:
            if self.consents[id][operator].awaited:
                member: address = staticcall CONSORTIUM.memberOf(operator)
                if member != empty(address):
                    shown.expected.append(member)
    if doubts & LOW != 0:
        for seat: uint256 in range(head.seats, bound=MEMBERS_MAX):
            if (doubts >> seat) & 1 == 1:
                for reporter: uint256 in range(head.seats, bound=MEMBERS_MAX):
                    if (self.seats[id][seat].reports >> reporter) & 1 == 1 and len(shown.missing) < REPORTS_SHOWN:
                        shown.missing.append(Report(reporter=members[reporter], member=members[seat]))
    return shown


@external
@view
def words(id: uint256) -> (uint256, uint256, uint256, uint256):
    """
    @notice The packed head, waiting, votes and terms, for the contract of blind rounds
    """
    return self.runs[id].head, self.runs[id].waiting, self.runs[id].votes, self.runs[id].terms


@external
@view
def seatOf(id: uint256, member: address) -> uint256:
    """
    @notice (seat + 1) << 1 | joined; 0 for a member that has no seat
    """
    return self.seat_of[id][member]


@external
@view
def closedRound(id: uint256, round: uint256) -> ClosedRecord:
    """
    @notice How a round ended; all zero while it has not
    """
    word: uint256 = self.closings[id][round]
    if word == 0:
        return empty(ClosedRecord)
    return ClosedRecord(
        checkpoint=self.bases[id][round + 1],
        leader=convert(word & (2**160 - 1), address),
        view=(word >> 160) & WORD32,
        submissions=(word >> 192) & 255,
        attestations=(word >> 200) & 255,
        closed=word >> 208,
    )


# ------------------------------------------------------------------ what operators agree on


@external
def propose(
    name: String[64], policy: bytes32, genesis: bytes32, rounds: uint256, submissions_min: uint256,
    submit_ms: uint256, merge_ms: uint256, attest_ms: uint256, weight_max: uint256,
) -> uint256:
    member: address = self._voter()
    assert name != "", "a run has a name"
    assert policy != empty(bytes32), "the policy's digest is zero"
    assert genesis != empty(bytes32), "the first checkpoint's digest is zero"
    assert rounds >= 1 and rounds < 2**32, "a run has at least one round and less than 2**32"
    assert submissions_min >= 1 and submissions_min <= MEMBERS_MAX, "submissions_min is from 1 to 128"
    assert weight_max < 2**64, "weight_max is less than 2**64"
    self.count += 1
    id: uint256 = self.count
    self.runs[id].proposer = member
    self.runs[id].name = name
    self.runs[id].policy = policy
    self.runs[id].terms = (
        rounds | submissions_min << 32 | self._ticks(submit_ms) << 40 | self._ticks(merge_ms) << 88
        | self._ticks(attest_ms) << 136 | weight_max << 184
    )
    self.bases[id][0] = genesis
    log RunProposed(run=id, member=member, name=name, policy=policy, genesis=genesis)
    self._consent(id, member)
    return id


@external
def approve(id: uint256):
    """
    @notice A member's consent to a run. A quorum opens it; later approvals let latecomers join
    """
    member: address = self._voter()
    self._check_live(id)
    assert not self.consents[id][msg.sender].approved, "this member has already approved"
    self._consent(id, member)


@external
def withdraw(id: uint256):
    """
    @notice A member leaves the run and takes its consent back; what it submitted to the open round stays
    """
    operator: address = staticcall CONSORTIUM.operatorOf(msg.sender)
    member: address = msg.sender
    if operator == empty(address):
        operator = msg.sender
        member = staticcall CONSORTIUM.memberOf(msg.sender)
    assert member != empty(address), "only a member or its operator may do this"
    self._check_live(id)
    consent: Consent = self.consents[id][operator]
    assert consent.approved, "this member has not approved the run"
    head: Head = self._head(id)
    if consent.awaited and head.awaited != 0:
        head.awaited -= 1
    if consent.seat != 0:
        seat: uint256 = consent.seat - 1
        # Its node may have a new key that did not join yet: the seat knows which one sits on it.
        self.seat_of[id][self._member(id, seat)] = consent.seat << 1
        self.runs[id].waiting &= ~(1 << (128 + seat))
        self.runs[id].leaders &= ~(1 << seat)
    self.consents[id][operator] = Consent(approved=False, awaited=False, seat=consent.seat)
    self.stops[id][operator] = False
    place: uint256 = 0
    for one: address in self.approvers[id]:
        if one == operator:
            break
        place += 1
    last: address = self.approvers[id].pop()
    if last != operator:
        self.approvers[id][place] = last
    log Withdrawn(run=id, member=member)
    head = self._merge_if_all_submitted(id, head)
    self._keep(id, head)


@external
def stop(id: uint256):
    """
    @notice A quorum of the consortium, or all who still consent where those are fewer, ends a run
    """
    member: address = self._voter()
    assert self.consents[id][msg.sender].approved, "only an operator that approved the run may stop it"
    self._check_live(id)
    assert not self.stops[id][msg.sender], "this member has already voted to stop"
    self.stops[id][msg.sender] = True
    log StopVoted(run=id, member=member)
    votes: uint256 = 0
    present: uint256 = 0
    for operator: address in self.approvers[id]:
        if staticcall CONSORTIUM.memberOf(operator) != empty(address):
            present += 1
            if self.stops[id][operator]:
                votes += 1
    if votes >= min(present, staticcall CONSORTIUM.quorum()):
        head: Head = self._head(id)
        head.state = STOPPED
        head.phase = SUBMIT
        head.deadline = 0
        self._keep(id, head)
        log RunStopped(run=id)


@internal
@view
def _voter() -> address:
    member: address = staticcall CONSORTIUM.memberOf(msg.sender)
    assert member != empty(address), "only the operator of a member may do this"
    return member


@internal
@view
def _check_live(id: uint256):
    assert id != 0 and id <= self.count, "there is no such run"
    assert self.runs[id].head & 15 <= OPEN, "the run is over"


@internal
@view
def _ticks(ms: uint256) -> uint256:
    assert ms >= 1 and ms < 2**48, "a duration is at least 1 ms and less than 2**48 ms"
    return (ms * TICKS_PER_SECOND + 999) // 1000


@internal
def _consent(id: uint256, member: address):
    assert len(self.approvers[id]) < MEMBERS_MAX, "the run has as many approvals as it can hold"
    head: Head = self._head(id)
    self.approvers[id].append(msg.sender)
    self.consents[id][msg.sender].approved = True
    # Whoever consents before the first update is waited for, also after a quorum has opened the run.
    early: bool = (
        head.state == OPEN and head.round == 0 and head.view == 0 and head.phase == SUBMIT and head.deadline == 0
    )
    self.consents[id][msg.sender].awaited = head.state == PROPOSED or early
    log RunApproved(run=id, member=member, operator=msg.sender)
    if early:
        head.awaited += 1
        self._keep(id, head)
    if head.state == PROPOSED:
        present: uint256 = 0
        for operator: address in self.approvers[id]:
            if staticcall CONSORTIUM.memberOf(operator) != empty(address):
                present += 1
        if present >= staticcall CONSORTIUM.quorum():
            genesis: bytes32 = self.bases[id][0]
            seed: bytes32 = keccak256(abi_encode(genesis, id))
            self.runs[id].seed = seed
            head.state = OPEN
            head.opened = block.timestamp
            head.awaited = len(self.approvers[id])
            self._keep(id, head)
            log RunOpened(run=id, checkpoint=genesis, seed=seed)


# ------------------------------------------------------------------ what members do in a round


@external
def join(id: uint256, leads: bool):
    """
    @notice A member's node is ready (again): rounds wait for it. `leads` False: it never merges
    """
    operator: address = staticcall CONSORTIUM.operatorOf(msg.sender)
    assert operator != empty(address), "only a member may do this"
    consent: Consent = self.consents[id][operator]
    assert consent.approved, "the member's operator has not approved the run"
    head: Head = self._head(id)
    assert head.state == OPEN, "the run is not open"
    if consent.awaited:
        consent.awaited = False
        if head.awaited != 0:
            head.awaited -= 1
    if consent.seat == 0:
        assert head.seats < MEMBERS_MAX, "the run has no seat left"
        head.seats += 1
        consent.seat = head.seats
    self.consents[id][operator] = consent
    self._keep(id, head)
    seat: uint256 = consent.seat - 1
    occupant: uint256 = self.seats[id][seat].occupant
    before: address = convert(occupant & (2**160 - 1), address)
    if before != msg.sender:
        # The operator rotated the key: the seat and its submission go over to the new one.
        self.seat_of[id][before] = 0
        self.seats[id][seat].occupant = occupant >> 160 << 160 | convert(msg.sender, uint256)
    self.seat_of[id][msg.sender] = consent.seat << 1 | 1
    self.runs[id].waiting |= 1 << (128 + seat)
    leaders: uint256 = self.runs[id].leaders
    self.runs[id].leaders = leaders | 1 << seat if leads else leaders & ~(1 << seat)
    log Joined(run=id, member=msg.sender, seat=seat, leads=leads)


@external
def submit(id: uint256, round: uint256, digest: bytes32, weight: uint256, metrics: Bytes[METRICS_MAX]):
    self._check_member()
    place: uint256 = self.seat_of[id][msg.sender]
    assert place & 1 == 1, "only a member that joined the run submits"
    head: Head = self._head(id)
    self._check_round(head, round)
    assert head.phase == SUBMIT, "the round no longer takes submissions"
    seat: uint256 = (place >> 1) - 1
    waiting: uint256 = self.runs[id].waiting
    assert (waiting >> seat) & 1 == 0, "this member has already submitted"
    assert digest != empty(bytes32), "the update's digest is zero"
    terms: uint256 = self.runs[id].terms
    assert weight <= terms >> 184, "the weight is above the run's weight_max"
    assert weight != 0 or terms >> 184 == 0, "the weight is zero"
    self.seats[id][seat].occupant = weight << 160 | convert(msg.sender, uint256)
    self.seats[id][seat].digest = digest
    self.runs[id].waiting = waiting | 1 << seat | 1 << (128 + seat)
    log Submitted(run=id, round=round, member=msg.sender, digest=digest, weight=weight, metrics=metrics)
    if head.deadline == 0:
        head.deadline = block.timestamp + ((terms >> 40) & (2**48 - 1))
    head = self._merge_if_all_submitted(id, head)
    self._keep(id, head)


@external
def reportMissing(id: uint256, round: uint256, member: address):
    """
    @notice The bytes of this member's update never came. Enough reports strike its submission out of the merge
    """
    seat: uint256 = self._seat(id)
    head: Head = self._head(id)
    self._check_round(head, round)
    self._check_submitter(id, seat)
    assert head.phase == MERGE, "missing updates are reported while the leader merges"
    place: uint256 = self.seat_of[id][member]
    submitted: uint256 = self.runs[id].waiting & LOW
    struck: uint256 = self.runs[id].votes >> 128
    target: uint256 = (place >> 1) - 1 if place != 0 else MEMBERS_MAX
    assert (submitted >> target) & 1 == 1, "the reported member has not submitted to this round"
    assert (struck >> target) & 1 == 0, "the reported submission is already struck"
    assert target != seat, "a member does not report itself"
    doubts: uint256 = self.runs[id].doubts
    reports: uint256 = self.seats[id][target].reports if (doubts >> target) & 1 == 1 else 0
    assert (reports >> seat) & 1 == 0, "this member has already reported that one"
    reports |= 1 << seat
    self.seats[id][target].reports = reports
    self.runs[id].doubts = doubts | 1 << target
    log MissingReported(run=id, round=round, reporter=msg.sender, member=member)
    k: uint256 = self._size(submitted)
    if self._size(reports & ~(self.runs[id].marks >> 128)) < min(max(2, self._faults(id, k) + 1), k - 1):
        return
    struck |= 1 << target
    self.runs[id].votes = struck << 128
    # The next round does not wait for it, until it joins or submits again.
    self.runs[id].waiting &= ~(1 << (128 + target))
    log Struck(run=id, round=round, member=member)
    # In a blind run masks cancel only in the sum over all: who is left masks anew.
    if self._terms(id).weight_max == 0 or self._size(submitted & ~struck) < self._terms(id).submissions_min:
        head = self._restart(id, head)
    else:
        # The merge has other inputs now: in a new view, so that one view has one right result.
        head = self._replace_leader(id, head, INPUTS_CHANGED)
    self._keep(id, head)


@external
def publish(id: uint256, round: uint256, view: uint256, checkpoint: bytes32):
    """
    @notice The leader's result, which is its attestation too
    """
    seat: uint256 = self._seat(id)
    head: Head = self._head(id)
    self._check_view(head, round, view)
    self._check_submitter(id, seat)
    assert head.phase == SUBMIT or seat == head.leader, "only the leader of this view publishes"
    assert head.phase == MERGE, "the round does not wait for the leader"
    assert checkpoint != empty(bytes32), "the checkpoint's digest is zero"
    log Published(run=id, round=round, view=view, leader=msg.sender, checkpoint=checkpoint)
    self.runs[id].published = checkpoint
    head.phase = ATTEST
    head.deadline = block.timestamp + self._terms(id).attest_ticks
    head = self._attested(id, head, seat, checkpoint)
    self._keep(id, head)


@external
def attest(id: uint256, round: uint256, view: uint256, checkpoint: bytes32):
    """
    @notice The member merged again and found the leader's bytes
    """
    self._attest(id, round, view, checkpoint, EVERY_PART)


@external
def attestParts(id: uint256, round: uint256, view: uint256, checkpoint: bytes32, parts: uint256):
    """
    @notice The member merged these parts again and found the leader's bytes. It may add parts later
    """
    self._attest(id, round, view, checkpoint, parts)


@internal
def _attest(id: uint256, round: uint256, view: uint256, checkpoint: bytes32, parts: uint256):
    seat: uint256 = self._seat(id)
    head: Head = self._head(id)
    self._check_verdict(id, head, round, view, seat)
    marks: uint256 = self.runs[id].marks
    before: uint256 = 0
    if (self.runs[id].votes >> seat) & 1 == 1:
        assert (marks >> seat) & 1 == 1, "this member has already attested"
        before = self.seats[id][seat].parts
    assert checkpoint == self.runs[id].published, "the leader published another checkpoint"
    fresh: uint256 = parts & ~before
    assert fresh != 0, "this member attests no further part"
    if fresh != EVERY_PART:
        self.runs[id].marks = marks | 1 << seat
        self.seats[id][seat].parts = before | fresh
        for i: uint256 in range(COUNTER_BITS):
            if fresh == 0:
                break
            word: uint256 = self.runs[id].covered[i]
            self.runs[id].covered[i] = word ^ fresh
            fresh &= word
        log Verified(run=id, round=round, view=view, member=msg.sender, parts=before | parts)
    if before == 0:
        log Attested(run=id, round=round, view=view, member=msg.sender, checkpoint=checkpoint)
    head = self._attested(id, head, seat, checkpoint)
    self._keep(id, head)


@external
def refuse(id: uint256, round: uint256, view: uint256, found: bytes32, evidence: bytes32):
    """
    @notice The member merged again and found other bytes. Enough refusals replace and suspend the leader at once
    """
    seat: uint256 = self._seat(id)
    head: Head = self._head(id)
    self._check_verdict(id, head, round, view, seat)
    votes: uint256 = self.runs[id].votes
    if (votes >> seat) & 1 == 1:
        # Who verified some parts only may learn that another one is wrong.
        assert (self.runs[id].marks >> seat) & 1 == 1, "this member has already attested"
        votes ^= 1 << seat
        self.runs[id].votes = votes
    published: bytes32 = self.runs[id].published
    assert found != published, "a member that found the same attests"
    leader: address = self._member(id, head.leader)
    log Refused(
        run=id, round=round, view=view, leader=leader, member=msg.sender, published=published, found=found,
        evidence=evidence,
    )
    refused: uint256 = self.runs[id].doubts >> 128 | 1 << seat
    self.runs[id].doubts |= 1 << (128 + seat)
    k: uint256 = self._size(self.runs[id].waiting & LOW & ~(votes >> 128))
    heard: uint256 = self._size(refused & ~(self.runs[id].marks >> 128))
    if heard > max(k - (2 * k + 2) // 3, min(self._faults(id, k), unsafe_sub(k, 2))):
        self.runs[id].leaders |= 1 << (128 + head.leader)
        head = self._replace_leader(id, head, REFUSED)
        self._keep(id, head)


@external
def advance(id: uint256, round: uint256, view: uint256):
    """
    @notice What was due by the deadline did not come: the round goes on without it
    """
    self._check_member()
    head: Head = self._head(id)
    self._check_view(head, round, view)
    waiting: uint256 = self.runs[id].waiting
    assert (
        head.phase != SUBMIT or self._size(waiting & LOW) >= self._terms(id).submissions_min
    ), "no deadline runs before enough have submitted"
    assert block.timestamp >= head.deadline, "the deadline has not passed"
    if head.phase == SUBMIT:
        self.runs[id].waiting = (waiting & LOW) << 128 | waiting & LOW
        head.awaited = 0
        head = self._merge(id, head)
    elif head.phase == MERGE:
        head = self._replace_leader(id, head, SILENT)
    else:
        head = self._replace_leader(id, head, UNATTESTED)
    self._keep(id, head)


@internal
@view
def _check_member():
    assert staticcall CONSORTIUM.isMember(msg.sender, skip_contract_check=True), "only a member may do this"


@internal
@view
def _seat(id: uint256) -> uint256:
    self._check_member()
    place: uint256 = self.seat_of[id][msg.sender]
    assert place != 0, "only a member that joined the run may do this"
    return (place >> 1) - 1


@internal
@view
def _check_submitter(id: uint256, seat: uint256):
    assert (self.runs[id].waiting >> seat) & 1 == 1, "only a member that submitted to this round may do this"
    assert (self.runs[id].votes >> 128 >> seat) & 1 == 0, "this member's submission was struck"


@internal
@pure
def _check_round(head: Head, round: uint256):
    assert head.state == OPEN, "the run is not open"
    assert head.round == round, "the run is at another round"


@internal
@pure
def _check_view(head: Head, round: uint256, view: uint256):
    self._check_round(head, round)
    assert head.view == view, "the round is at another view"


@internal
@view
def _check_verdict(id: uint256, head: Head, round: uint256, view: uint256, seat: uint256):
    self._check_view(head, round, view)
    self._check_submitter(id, seat)
    assert head.phase == ATTEST, "the leader has not published"
    assert (self.runs[id].doubts >> 128 >> seat) & 1 == 0, "this member has already refused"


@internal
def _merge_if_all_submitted(id: uint256, head: Head) -> Head:
    if head.state != OPEN or head.phase != SUBMIT or head.awaited != 0:
        return head
    waiting: uint256 = self.runs[id].waiting
    if (waiting >> 128) & ~waiting != 0:
        return head
    if self._size(waiting & LOW) < self._terms(id).submissions_min:
        return head
    return self._merge(id, head)


@internal
def _merge(id: uint256, before: Head) -> Head:
    head: Head = before
    head.phase = MERGE
    head.first_view = head.view
    head.leader = self._elect(id, head)
    head.deadline = block.timestamp + self._terms(id).merge_ticks
    log MergeStarted(
        run=id, round=head.round, view=head.view, leader=self._member(id, head.leader), deadline=head.deadline
    )
    return head


@internal
def _replace_leader(id: uint256, before: Head, reason: uint256) -> Head:
    head: Head = before
    struck: uint256 = self.runs[id].votes >> 128
    if head.view + 1 - head.first_view >= TURNS * self._size(self.runs[id].waiting & LOW & ~struck):
        return self._restart(id, head)
    head.view += 1
    head.phase = MERGE
    head.leader = self._elect(id, head)
    head.deadline = block.timestamp + self._terms(id).merge_ticks
    self.runs[id].votes = struck << 128
    self.runs[id].doubts &= LOW
    self._forget_parts(id)
    log LeaderReplaced(
        run=id, round=head.round, view=head.view, leader=self._member(id, head.leader),
        replaced=self._member(id, before.leader), reason=reason,
    )
    return head


@internal
def _restart(id: uint256, before: Head) -> Head:
    head: Head = before
    head.view += 1
    head.phase = SUBMIT
    head.deadline = 0
    self.runs[id].waiting = self.runs[id].waiting >> 128 << 128
    self.runs[id].votes = 0
    self.runs[id].doubts = 0
    self._forget_parts(id)
    log RoundRestarted(run=id, round=head.round, view=head.view)
    return head


@internal
@view
def _elect(id: uint256, head: Head) -> uint256:
    # The seat number (seed + view) mod k of the k submitters that lead, are not suspended and are not struck.
    unstruck: uint256 = self.runs[id].waiting & LOW & ~(self.runs[id].votes >> 128)
    leaders: uint256 = self.runs[id].leaders
    eligible: uint256 = unstruck & leaders & ~(leaders >> 128)
    if eligible == 0:
        eligible = unstruck
    turn: uint256 = uint256_addmod(convert(self.runs[id].seed, uint256), head.view, self._size(eligible))
    seat: uint256 = 0
    for _: uint256 in range(MEMBERS_MAX):
        if eligible & 1 == 1:
            if turn == 0:
                break
            turn -= 1
        eligible >>= 1
        seat += 1
    return seat


@internal
def _attested(id: uint256, before: Head, seat: uint256, checkpoint: bytes32) -> Head:
    head: Head = before
    votes: uint256 = self.runs[id].votes | 1 << seat
    waiting: uint256 = self.runs[id].waiting
    k: uint256 = self._size(waiting & LOW & ~(votes >> 128))
    attestations: uint256 = self._size(votes & LOW)
    if attestations < (2 * k + 2) // 3 or not self._all_verified(id, votes, k):
        self.runs[id].votes = votes
        return head
    self._discredit(id, head, self.runs[id].doubts >> 128)
    self._forget_parts(id)
    leader: address = self._member(id, head.leader)
    log RoundClosed(
        run=id, round=head.round, view=head.view, leader=leader, checkpoint=checkpoint, attestations=attestations
    )
    self.closings[id][head.round] = (
        convert(leader, uint256) | head.view << 160 | k << 192 | attestations << 200 | block.timestamp << 208
    )
    head.round += 1
    self.bases[id][head.round] = checkpoint
    self.runs[id].seed = keccak256(concat(self.runs[id].seed, checkpoint))
    self.runs[id].waiting = waiting >> 128 << 128
    self.runs[id].votes = 0
    self.runs[id].doubts = 0
    head.phase = SUBMIT
    head.view = 0
    head.opened = block.timestamp
    head.deadline = 0
    if head.round == self._terms(id).rounds:
        head.state = FINISHED
        log RunFinished(run=id, checkpoint=checkpoint)
    return head


@internal
@view
def _faults(id: uint256, submissions: uint256) -> uint256:
    # How many liars the members bear that consent to the run; in a small round they may be a greater share.
    return (max(len(self.approvers[id]), submissions) - 1) // 3


@internal
@view
def _verifiers(id: uint256, submissions: uint256) -> uint256:
    # A wrong checkpoint has a lying leader, so of the others one less lies than the members bear: one here is honest.
    return min(max((submissions - 1) // 3 + 1, self._faults(id, submissions)), submissions - 1)


@internal
@view
def _all_verified(id: uint256, votes: uint256, submissions: uint256) -> bool:
    # Whether enough members besides the leader verified each part.
    needed: uint256 = self._verifiers(id, submissions)
    marked: uint256 = self.runs[id].marks & LOW
    whole: uint256 = self._size(votes & LOW & ~marked) - 1
    if whole >= needed:
        return True
    if marked == 0:
        return False
    needed -= whole
    more: uint256 = 0
    equal: uint256 = EVERY_PART
    for i: uint256 in range(COUNTER_BITS):
        bit: uint256 = COUNTER_BITS - 1 - i
        word: uint256 = self.runs[id].covered[bit]
        if (needed >> bit) & 1 == 0:
            more |= equal & word
            word = ~word
        equal &= word
    return more | equal == EVERY_PART


@internal
def _forget_parts(id: uint256):
    marks: uint256 = self.runs[id].marks
    if marks & LOW != 0:
        self.runs[id].marks = marks >> 128 << 128
        self.runs[id].covered = empty(uint256[COUNTER_BITS])


@internal
def _discredit(id: uint256, head: Head, accusers: uint256):
    # The others found the leader's bytes: who refused them leads no more, and its word moves nothing in this run.
    if accusers == 0:
        return
    self.runs[id].leaders |= accusers << 128
    self.runs[id].marks |= accusers << 128
    for seat: uint256 in range(head.seats, bound=MEMBERS_MAX):
        if (accusers >> seat) & 1 == 1:
            log AccusationFailed(run=id, round=head.round, view=head.view, accuser=self._member(id, seat))


# ------------------------------------------------------------------ words


@internal
@view
def _member(id: uint256, seat: uint256) -> address:
    return convert(self.seats[id][seat].occupant & (2**160 - 1), address)


@internal
@view
def _terms(id: uint256) -> Terms:
    word: uint256 = self.runs[id].terms
    return Terms(
        rounds=word & WORD32,
        submissions_min=(word >> 32) & 255,
        submit_ticks=(word >> 40) & (2**48 - 1),
        merge_ticks=(word >> 88) & (2**48 - 1),
        attest_ticks=(word >> 136) & (2**48 - 1),
        weight_max=word >> 184,
    )


@internal
@view
def _head(id: uint256) -> Head:
    word: uint256 = self.runs[id].head
    return Head(
        state=word & 15,
        phase=(word >> 4) & 15,
        leader=(word >> 8) & 255,
        seats=(word >> 16) & 255,
        awaited=(word >> 24) & 255,
        round=(word >> 32) & WORD32,
        view=(word >> 64) & WORD32,
        first_view=(word >> 96) & WORD32,
        opened=(word >> 128) & WORD64,
        deadline=word >> 192,
    )


@internal
def _keep(id: uint256, head: Head):
    self.runs[id].head = (
        head.state | head.phase << 4 | head.leader << 8 | head.seats << 16 | head.awaited << 24 | head.round << 32
        | head.view << 64 | head.first_view << 96 | head.opened << 128 | head.deadline << 192
    )


@internal
@pure
def _size(members: uint256) -> uint256:
    # The number of bits set, summed in parallel (Warren, Hacker's Delight, 5-1).
    x: uint256 = members
    x = unsafe_sub(x, (x >> 1) & max_value(uint256) // 3)
    x = unsafe_add(
        x & max_value(uint256) // 5,
        (x >> 2) & max_value(uint256) // 5,
    )
    x = unsafe_add(x, x >> 4) & max_value(uint256) // 17
    return unsafe_mul(x, max_value(uint256) // 255) >> 248
