# pragma version 0.4.3
# pragma optimize gas
# pragma evm-version cancun
# @title Blind rounds: whose masks are in a round, who is in its sum, and what is opened so that only the sum shows
# @license Apache-2.0
# @notice A blind round is a round of Runs whose submissions are masked vectors. Here stand the keys, who joined with
#         which masks, the frozen set, the set of survivors, and the secrets that these open. States, callers and events
#         are described in Blind.md. Every call checks who, then when, then what.
#
# Seats are those of Runs; sets of members are bitmaps over seats. A seat's record is reused by each attempt, and holds
# where the attempt's bitmap has its bit.

interface Consortium:
    def isMember(who: address) -> bool: view

interface Runs:
    def words(id: uint256) -> (uint256, uint256, uint256, uint256): view
    def seatOf(id: uint256, member: address) -> uint256: view

# A share of a member's secret or of its seeds' key.
struct Share:
    seat: uint256  # whose
    value: bytes16

# A seat as nodes see it.
struct Place:
    seat: uint256
    member: address
    key: bytes32  # its X25519 public key
    number: uint256  # of its keys, this is the n-th
    blob: bytes32  # digest of what it gives the others; zero where it has not joined
    commitment: bytes32  # SHA-256 of "self" and the secret behind its own mask
    recovery: bytes32  # SHA-256 of "recovery" and the key of its sealed seeds
    edges: uint256  # before the freeze: whose blobs it holds; then: with whom it has masks in common

struct AttemptRecord:
    stage: uint256
    number: uint256  # of the attempt, or, where none is open, of the next one
    round: uint256
    threshold: uint256
    opened: uint256
    block: uint256
    joined: uint256
    confirmed: uint256
    frozen: uint256
    survivors: uint256
    revealed: uint256
    fixed: uint256
    spent: bool
    places: DynArray[Place, MEMBERS_MAX]  # the roster; where no attempt is open, who would be in it

event KeySet:
    run: indexed(uint256)
    member: indexed(address)
    seat: uint256
    number: uint256
    key: bytes32

event AttemptOpened:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    roster: uint256
    threshold: uint256

event MasksJoined:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    member: address
    seat: uint256
    blob: bytes32
    commitment: bytes32
    recovery: bytes32

event MasksConfirmed:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    member: address
    held: uint256

event AttemptFrozen:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    members: uint256

event AttemptFailed:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    members: uint256

event SurvivorsFixed:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    survivors: uint256

event Revealed:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    member: address
    secret: bytes16
    seeds: DynArray[bytes32, MEMBERS_MAX]

event SharesRevealed:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256
    member: address
    secrets: DynArray[Share, MEMBERS_MAX]
    seeds: DynArray[Share, MEMBERS_MAX]

event RoundSpent:
    run: indexed(uint256)
    round: indexed(uint256)
    attempt: uint256

MEMBERS_MAX: constant(uint256) = 128
# A sum of two hides nothing from either of them.
SURVIVORS_MIN: constant(uint256) = 3

JOINING: constant(uint256) = 1
FROZEN: constant(uint256) = 2
FAILED: constant(uint256) = 3

RUN_OPEN: constant(uint256) = 1
SUBMIT: constant(uint256) = 0

LOW: constant(uint256) = 2**128 - 1
WORD32: constant(uint256) = 2**32 - 1
WORD48: constant(uint256) = 2**48 - 1
WORD64: constant(uint256) = 2**64 - 1

# What Runs says of a run, unpacked.
struct Standing:
    open: bool
    blind: bool
    submitting: bool
    awaited: uint256  # members that consented and have no seat yet
    round: uint256
    view: uint256  # at which this try at the round began to take submissions
    opened: uint256
    expected: uint256
    unstruck: uint256
    needed: uint256  # members of a sum
    submit_ticks: uint256
    merge_ticks: uint256

struct Attempt:
    number: uint256
    stage: uint256
    round: uint256
    view: uint256
    threshold: uint256
    opened: uint256
    block: uint256
    fixed: uint256

struct Kept:
    # number 32, stage 8, threshold 8, round 32, view 32, opened 64, block 64 bits
    head: uint256
    members: uint256  # roster << 128 | joined
    agreed: uint256  # confirmed << 128 | frozen
    opening: uint256  # survivors << 128 | revealed
    fixed: uint256
    roster: bytes32  # digest of its seats, members and keys

struct Seat:
    member: address
    key: bytes32
    number: uint256  # of the key
    next_member: address
    next_key: bytes32  # from the next attempt on
    next_number: uint256
    blob: bytes32
    commitment: bytes32
    recovery: bytes32
    edges: uint256
    given: uint256  # of whom it gave shares

CONSORTIUM: immutable(Consortium)
RUNS: immutable(Runs)

kept: HashMap[uint256, Kept]
seats: HashMap[uint256, Seat[MEMBERS_MAX]]
keyed: HashMap[uint256, uint256]
# (round + 1) << 32 | attempt
spent: HashMap[uint256, uint256]


@deploy
def __init__(consortium: address, runs: address):
    assert consortium != empty(address), "the consortium's address is zero"
    assert runs != empty(address), "the address of Runs is zero"
    CONSORTIUM = Consortium(consortium)
    RUNS = Runs(runs)


# ------------------------------------------------------------------ reading


@external
@view
def attempt_state(run: uint256) -> AttemptRecord:
    """
    @notice All that a member has to know about the masks of the current round, in one call
    """
    now: Standing = self._standing(run)
    here: Attempt = self._attempt(run)
    kept: Kept = self.kept[run]
    shown: AttemptRecord = empty(AttemptRecord)
    shown.round = now.round
    shown.spent = self._is_spent(run, now, here)
    roster: uint256 = now.expected & self.keyed[run]
    shown.number = here.number + 1
    if self._is_current(here, now) and (here.stage == JOINING or here.stage == FROZEN):
        shown.stage = here.stage
        shown.number = here.number
        shown.threshold = here.threshold
        shown.opened = here.opened
        shown.block = here.block
        shown.joined = kept.members & LOW
        shown.confirmed = kept.agreed >> 128
        shown.frozen = kept.agreed & LOW
        shown.survivors = kept.opening >> 128
        shown.revealed = kept.opening & LOW
        shown.fixed = here.fixed
        roster = kept.members >> 128
    for seat: uint256 in range(MEMBERS_MAX):
        if roster >> seat == 0:
            break
        if (roster >> seat) & 1 == 0:
            continue
        one: Seat = self.seats[run][seat]
        place: Place = Place(
            seat=seat, member=one.member, key=one.key, number=one.number, blob=empty(bytes32),
            commitment=empty(bytes32), recovery=empty(bytes32), edges=0,
        )
        if shown.stage == 0 and one.next_number > one.number:
            place.member = one.next_member
            place.key = one.next_key
            place.number = one.next_number
        if (shown.joined >> seat) & 1 == 1:
            place.blob = one.blob
            place.commitment = one.commitment
            place.recovery = one.recovery
            place.edges = one.edges
        shown.places.append(place)
    return shown


@external
@view
def keyOf(run: uint256, member: address) -> (uint256, bytes32):
    """
    @notice The number and value of the member's newest key in this run; zeros where it has none
    """
    place: uint256 = staticcall RUNS.seatOf(run, member)
    if place == 0:
        return 0, empty(bytes32)
    one: Seat = self.seats[run][(place >> 1) - 1]
    if one.next_number > one.number:
        one.member = one.next_member
        one.key = one.next_key
        one.number = one.next_number
    return one.number, one.key if one.member == member else empty(bytes32)


# ------------------------------------------------------------------ keys and masks


@external
def setKey(run: uint256, key: bytes32):
    """
    @notice The member's X25519 public key for the masks of this run, from the next attempt on that it is in
    """
    seat: uint256 = self._seat(run)
    now: Standing = self._open(run)
    assert key != empty(bytes32), "the key is zero"
    number: uint256 = max(self.seats[run][seat].number, self.seats[run][seat].next_number) + 1
    self.seats[run][seat].next_member = msg.sender
    self.seats[run][seat].next_key = key
    self.seats[run][seat].next_number = number
    self.keyed[run] |= 1 << seat
    log KeySet(run=run, member=msg.sender, seat=seat, number=number, key=key)


@external
def join(
    run: uint256, attempt: uint256, roster: bytes32, blob: bytes32, commitment: bytes32, recovery: bytes32
):
    """
    @notice The member is ready for the round's masks; the first one opens the attempt and settles its roster
    @param roster The digest of those that the blob is for: see Blind.md
    """
    seat: uint256 = self._seat(run)
    now: Standing = self._open(run)
    assert now.submitting, "the round no longer takes submissions"
    here: Attempt = self._attempt(run)
    assert not self._is_spent(run, now, here), "a sum of this round was opened: it closes as it began"
    if not self._is_current(here, now) or here.stage == FAILED:
        here = self._begin(run, now, here)
    assert here.number == attempt, "another attempt is open"
    assert here.stage == JOINING, "the attempt is frozen"
    assert self.kept[run].roster == roster, "the roster has other members or keys"
    members: uint256 = self.kept[run].members
    assert (members >> 128 >> seat) & 1 == 1, "the member is not on the attempt's roster"
    assert (members >> seat) & 1 == 0, "the member has already joined"
    assert block.timestamp < here.opened + (now.submit_ticks + 1) // 2, "the time to join is over"
    assert self.seats[run][seat].member == msg.sender, "the seat's key is that of another node"
    assert blob != empty(bytes32), "the blob's digest is zero"
    assert commitment != empty(bytes32) and recovery != empty(bytes32), "a commitment is zero"
    self.kept[run].members = members | 1 << seat
    self.seats[run][seat].blob = blob
    self.seats[run][seat].commitment = commitment
    self.seats[run][seat].recovery = recovery
    self.seats[run][seat].edges = 0
    self.seats[run][seat].given = 0
    log MasksJoined(
        run=run, round=now.round, attempt=attempt, member=msg.sender, seat=seat, blob=blob, commitment=commitment,
        recovery=recovery,
    )


@external
def confirm(run: uint256, attempt: uint256, held: uint256):
    """
    @notice The member holds the blobs of these seats, and what they hold for it is right
    """
    seat: uint256 = self._seat(run)
    now: Standing = self._open(run)
    here: Attempt = self._joining(run, now, attempt)
    members: uint256 = self.kept[run].members
    agreed: uint256 = self.kept[run].agreed
    assert (members >> seat) & 1 == 1, "only a member that joined the attempt confirms"
    assert (agreed >> 128 >> seat) & 1 == 0, "the member has already confirmed"
    assert held & ~(members & LOW) == 0, "a member that is held has not joined"
    self.seats[run][seat].edges = held & ~(1 << seat)
    agreed |= 1 << (128 + seat)
    self.kept[run].agreed = agreed
    log MasksConfirmed(run=run, round=now.round, attempt=attempt, member=msg.sender, held=held & ~(1 << seat))
    if agreed >> 128 == members >> 128:
        self._freeze(run, now, here)


@external
def freeze(run: uint256, attempt: uint256):
    """
    @notice The time to join and confirm passed: the attempt goes on with those who did, or fails
    """
    assert staticcall CONSORTIUM.isMember(msg.sender), "only a member may do this"
    now: Standing = self._open(run)
    here: Attempt = self._joining(run, now, attempt)
    assert block.timestamp >= here.opened + now.submit_ticks, "the deadline has not passed"
    self._freeze(run, now, here)


# ------------------------------------------------------------------ opening the sum


@external
def reveal(
    run: uint256, attempt: uint256, survivors: uint256, secret: bytes16, seeds: DynArray[bytes32, MEMBERS_MAX]
):
    """
    @notice The member opens its own mask, and those that it shares with members that are not in the sum
    @param survivors The set that it opens them for
    @param seeds By seat, of those that joined and are not in the sum, as far as it shares masks with them
    """
    seat: uint256 = self._seat(run)
    now: Standing = self._open(run)
    here: Attempt = self._frozen(run, now, attempt)
    joined: uint256 = self.kept[run].agreed & LOW
    opening: uint256 = self.kept[run].opening
    if opening == 0:
        opening = (now.unstruck & joined) << 128
        assert self._size(opening >> 128) >= max(now.needed, here.threshold), "too few submitted for a sum"
        self.kept[run].fixed = block.timestamp
        log SurvivorsFixed(run=run, round=now.round, attempt=attempt, survivors=opening >> 128)
    assert survivors == opening >> 128, "these are not the members of the sum"
    assert (survivors >> seat) & 1 == 1, "only a member of the sum reveals its mask"
    assert (opening >> seat) & 1 == 0, "the member has already revealed its mask"
    assert self.seats[run][seat].member == msg.sender, "the seat's key is that of another node"
    opened: bytes32 = sha256(concat(b"self", secret))
    assert opened == self.seats[run][seat].commitment, "the secret does not open the commitment"
    gone: uint256 = self.seats[run][seat].edges & joined & ~survivors
    assert len(seeds) == self._size(gone), "one seed belongs to each member that dropped out"
    opening |= 1 << seat
    self.kept[run].opening = opening
    log Revealed(run=run, round=now.round, attempt=attempt, member=msg.sender, secret=secret, seeds=seeds)
    # More than may lie: an honest one is among them, and its sum may be known.
    if self._size(opening & LOW) > (self._size(joined) - 1) // 3 and self.spent[run] >> 32 != now.round + 1:
        self.spent[run] = (now.round + 1) << 32 | attempt
        log RoundSpent(run=run, round=now.round, attempt=attempt)


@external
def revealShares(
    run: uint256, attempt: uint256, secrets: DynArray[Share, MEMBERS_MAX], seeds: DynArray[Share, MEMBERS_MAX]
):
    """
    @notice The member gives its shares of what silent members should have opened
    @param secrets Of members of the sum that have not revealed, by seat
    @param seeds Of members that joined and are not in the sum, by seat
    """
    seat: uint256 = self._seat(run)
    now: Standing = self._open(run)
    here: Attempt = self._frozen(run, now, attempt)
    joined: uint256 = self.kept[run].agreed & LOW
    opening: uint256 = self.kept[run].opening
    assert opening != 0, "nobody has revealed a mask"
    assert block.timestamp >= here.fixed + now.merge_ticks // 2, "the others have time to reveal"
    assert (joined >> seat) & 1 == 1, "only a member that joined the attempt has shares"
    survivors: uint256 = opening >> 128
    fresh: uint256 = 0
    for share: Share in secrets:
        assert share.seat < MEMBERS_MAX and fresh >> share.seat == 0, "shares are in the order of seats, each once"
        assert (survivors >> share.seat) & 1 == 1, "a share of a secret is of a member of the sum"
        assert (opening >> share.seat) & 1 == 0, "a share of a secret is of a member that has not revealed"
        fresh |= 1 << share.seat
    others: uint256 = 0
    for share: Share in seeds:
        assert share.seat < MEMBERS_MAX and others >> share.seat == 0, "shares are in the order of seats, each once"
        assert ((joined & ~survivors) >> share.seat) & 1 == 1, "a share of seeds is of a member that dropped out"
        others |= 1 << share.seat
    fresh |= others
    assert fresh != 0, "no share is given"
    given: uint256 = self.seats[run][seat].given
    assert fresh & given == 0, "the member has already given one of these shares"
    self.seats[run][seat].given = given | fresh
    log SharesRevealed(
        run=run, round=now.round, attempt=attempt, member=msg.sender, secrets=secrets, seeds=seeds
    )


# ------------------------------------------------------------------ rules


@internal
@view
def _seat(run: uint256) -> uint256:
    assert staticcall CONSORTIUM.isMember(msg.sender), "only a member may do this"
    place: uint256 = staticcall RUNS.seatOf(run, msg.sender)
    assert place & 1 == 1, "only a member that joined the run may do this"
    return (place >> 1) - 1


@internal
@view
def _open(run: uint256) -> Standing:
    now: Standing = self._standing(run)
    assert now.open, "the run is not open"
    assert now.blind, "the run is not blind"
    return now


@internal
@view
def _joining(run: uint256, now: Standing, attempt: uint256) -> Attempt:
    here: Attempt = self._attempt(run)
    assert self._is_current(here, now) and here.number == attempt, "another attempt is open"
    assert here.stage == JOINING, "the attempt is not joining"
    assert now.submitting, "the round no longer takes submissions"
    return here


@internal
@view
def _frozen(run: uint256, now: Standing, attempt: uint256) -> Attempt:
    here: Attempt = self._attempt(run)
    assert self._is_current(here, now) and here.number == attempt, "another attempt is open"
    assert here.stage == FROZEN, "the attempt is not frozen"
    assert not now.submitting, "the round still takes submissions"
    return here


@internal
def _begin(run: uint256, now: Standing, before: Attempt) -> Attempt:
    roster: uint256 = now.expected & self.keyed[run]
    count: uint256 = self._size(roster)
    assert count >= now.needed, "too few members have keys"
    complete: bool = now.awaited == 0 and now.expected == roster
    assert complete or block.timestamp >= now.opened + now.submit_ticks, "members that are awaited have no key yet"
    here: Attempt = Attempt(
        number=before.number + 1, stage=JOINING, round=now.round, view=now.view, threshold=2 * count // 3 + 1,
        opened=block.timestamp, block=block.number, fixed=0,
    )
    digest: bytes32 = empty(bytes32)
    for seat: uint256 in range(MEMBERS_MAX):
        if roster >> seat == 0:
            break
        if (roster >> seat) & 1 == 0:
            continue
        if self.seats[run][seat].next_number > self.seats[run][seat].number:
            self.seats[run][seat].member = self.seats[run][seat].next_member
            self.seats[run][seat].key = self.seats[run][seat].next_key
            self.seats[run][seat].number = self.seats[run][seat].next_number
        member: address = self.seats[run][seat].member
        digest = keccak256(abi_encode(digest, seat, member, self.seats[run][seat].number, self.seats[run][seat].key))
    self.kept[run].roster = digest
    self.kept[run].members = roster << 128
    self.kept[run].agreed = 0
    self.kept[run].opening = 0
    self.kept[run].fixed = 0
    self._keep(run, here)
    log AttemptOpened(run=run, round=now.round, attempt=here.number, roster=roster, threshold=here.threshold)
    return here


@internal
def _freeze(run: uint256, now: Standing, before: Attempt):
    here: Attempt = before
    confirmed: uint256 = self.kept[run].agreed >> 128
    members: uint256 = confirmed
    whole: bool = True
    for seat: uint256 in range(MEMBERS_MAX):
        if confirmed >> seat == 0:
            break
        if (confirmed >> seat) & 1 == 1 and (self.seats[run][seat].edges | 1 << seat) & confirmed != confirmed:
            whole = False
    if not whole:
        members = self._mutual(run, confirmed, here.threshold)
    if self._size(members) >= max(now.needed, here.threshold):
        here.stage = FROZEN
        self.kept[run].agreed = confirmed << 128 | members
        log AttemptFrozen(run=run, round=now.round, attempt=here.number, members=members)
    else:
        here.stage = FAILED
        log AttemptFailed(run=run, round=now.round, attempt=here.number, members=members)
    self._keep(run, here)


@internal
def _mutual(run: uint256, confirmed: uint256, threshold: uint256) -> uint256:
    # An edge needs both. Who has too few for its shares to open anything is left out, until nobody is.
    edges: uint256[MEMBERS_MAX] = empty(uint256[MEMBERS_MAX])
    for one: uint256 in range(MEMBERS_MAX):
        if (confirmed >> one) & 1 == 0:
            continue
        held: uint256 = self.seats[run][one].edges & confirmed
        for other: uint256 in range(MEMBERS_MAX):
            if held >> other == 0:
                break
            if (held >> other) & 1 == 1 and (self.seats[run][other].edges >> one) & 1 == 1:
                edges[one] |= 1 << other
    members: uint256 = confirmed
    for _: uint256 in range(MEMBERS_MAX):
        left: uint256 = members
        for seat: uint256 in range(MEMBERS_MAX):
            if (members >> seat) & 1 == 1 and self._size(edges[seat] & members) + 1 < threshold:
                left &= ~(1 << seat)
        if left == members:
            break
        members = left
    for seat: uint256 in range(MEMBERS_MAX):
        if (confirmed >> seat) & 1 == 1:
            self.seats[run][seat].edges = edges[seat] & members
    return members


@internal
@view
def _is_spent(run: uint256, now: Standing, here: Attempt) -> bool:
    # A sum was opened in an attempt of this round that is over.
    spent: uint256 = self.spent[run]
    if spent >> 32 != now.round + 1:
        return False
    return spent & WORD32 != here.number or not self._is_current(here, now)


@internal
@pure
def _is_current(here: Attempt, now: Standing) -> bool:
    return here.number != 0 and here.round == now.round and here.view == now.view


@internal
@view
def _attempt(run: uint256) -> Attempt:
    word: uint256 = self.kept[run].head
    return Attempt(
        number=word & WORD32,
        stage=(word >> 32) & 255,
        round=(word >> 48) & WORD32,
        view=(word >> 80) & WORD32,
        threshold=(word >> 40) & 255,
        opened=(word >> 112) & WORD64,
        block=word >> 176,
        fixed=self.kept[run].fixed,
    )


@internal
def _keep(run: uint256, here: Attempt):
    self.kept[run].head = (
        here.number | here.stage << 32 | here.threshold << 40 | here.round << 48 | here.view << 80 | here.opened << 112
        | here.block << 176
    )


@internal
@view
def _standing(run: uint256) -> Standing:
    head: uint256 = 0
    waiting: uint256 = 0
    votes: uint256 = 0
    terms: uint256 = 0
    head, waiting, votes, terms = staticcall RUNS.words(run)
    submitting: bool = (head >> 4) & 15 == SUBMIT
    view: uint256 = (head >> 64) & WORD32
    if not submitting:
        view = (head >> 96) & WORD32
    return Standing(
        open=head & 15 == RUN_OPEN,
        blind=terms >> 184 == 0,
        submitting=submitting,
        awaited=(head >> 24) & 255,
        round=(head >> 32) & WORD32,
        view=view,
        opened=(head >> 128) & WORD64,
        expected=waiting >> 128,
        unstruck=waiting & LOW & ~(votes >> 128),
        needed=max(SURVIVORS_MIN, (terms >> 32) & 255),
        submit_ticks=(terms >> 40) & WORD48,
        merge_ticks=(terms >> 88) & WORD48,
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
