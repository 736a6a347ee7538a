"""What a member owes in a blind round, besides what `swarm.rounds` says: whose masks are in it, and what opens the sum.

The ledger's part is `contracts/Blind.md`, the cryptography is `swarm.merge.blind`. As there, a node keeps nothing about
a round that it could not read again; its secrets alone it has to keep, and `lost` says when it did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeAlias

from swarm.encoding import Address, Digest
from swarm.rounds import ADVANCE_STAGGER_S, Fetch, Phase, RoundState, RunState

SURVIVORS_MIN = 3
"""A sum of two hides nothing from either of them."""
KEY_ROUNDS_MAX = 100
KEY_AGE_MAX_S = 24 * 3600.0
"""A key for masks is replaced after so many rounds or so long: a secret that is stolen opens nothing that is older."""


class Stage(IntEnum):
    """Where the masks of a round are; the numbers are the contract's."""

    CLOSED = 0
    """No attempt is open: the next one may be."""
    JOINING = 1
    FROZEN = 2


@dataclass(frozen=True)
class MaskSeat:
    """A member of an attempt's roster, or one that would be in it."""

    seat: int
    member: Address
    key: bytes
    """X25519, public."""
    number: int
    """Counts the member's keys up."""
    blob: Digest | None = None
    """What it gave the others; None where it has not joined."""
    commitment: Digest = b""
    recovery: Digest = b""
    edges: frozenset[Address] = frozenset()
    """Before the freeze: whose blobs it confirmed; then: with whom it has masks in common."""


@dataclass(frozen=True)
class MaskState:
    """The masks of a run's current round, as the contract shows them. Times are Unix seconds by the ledger's clock."""

    run: int
    round: int
    stage: Stage
    attempt: int
    """Its number; where none is open, that of the next one."""
    threshold: int
    opened_s: float
    block: int
    """In which the attempt was opened: what was revealed in it is logged later."""
    fixed_s: float
    """When the survivors were settled; 0 before."""
    spent: bool
    """A sum of this round may be known and the round did not close with it: no other one is ever opened."""
    seats: tuple[MaskSeat, ...]
    """The roster; where no attempt is open, who would be in it."""
    joined: frozenset[Address] = frozenset()
    confirmed: frozenset[Address] = frozenset()
    frozen: frozenset[Address] = frozenset()
    survivors: frozenset[Address] = frozenset()
    revealed: frozenset[Address] = frozenset()
    mine: bytes = b""
    """This node's newest key on the ledger, empty where it has none."""
    groups: tuple[frozenset[Address], ...] = ()
    """Where the round is merged in groups: all frozen members, each in one; the contract knows nothing of it."""

    @property
    def members(self) -> frozenset[Address]:
        """The roster."""
        return frozenset(seat.member for seat in self.seats)

    def seat(self, member: Address) -> MaskSeat | None:
        """A member's seat, None where it has none."""
        return next((seat for seat in self.seats if seat.member == member), None)

    def seat_bits(self, members: Iterable[Address]) -> int:
        """Members as the contract's bitmap."""
        wanted = set(members)
        return sum(1 << seat.seat for seat in self.seats if seat.member in wanted)


@dataclass(frozen=True)
class RevealTold:
    """What a survivor said of itself on the ledger."""

    member: Address
    secret: bytes
    seeds: tuple[bytes, ...]
    """With those that dropped out and that it shares masks with, by seat."""

    def __repr__(self) -> str:
        return f"RevealTold({len(self.seeds)} seeds)"


@dataclass(frozen=True)
class SharesTold:
    """The shares of others' secrets that a member gave on the ledger."""

    member: Address
    secrets: Mapping[Address, bytes]
    seeds: Mapping[Address, bytes]

    def __repr__(self) -> str:
        return f"SharesTold({len(self.secrets)} secrets, {len(self.seeds)} seeds)"


Told: TypeAlias = RevealTold | SharesTold


@dataclass(frozen=True)
class Entry:
    """What this site wrote down of an attempt before anybody could see it."""

    attempt: int
    blob: Digest
    masked: Digest | None = None
    """The one vector that was ever masked with these masks."""
    survivors: frozenset[Address] | None = None
    """The one set for which secrets were ever opened."""


@dataclass(frozen=True)
class HaveMasks:
    """What this node has of a blind round."""

    key: bytes
    """Its public key; the secret one is on its disk."""
    last_key: bytes = b""
    """The one before, as long as an attempt may be under way with it."""
    key_rounds: int = 0
    key_age_s: float = 0.0
    """For how many rounds, and how long, the key has been in use."""
    entry: Entry | None = None
    """Of the attempt that the state tells of."""
    before: frozenset[Digest] = frozenset()
    """Vectors that it masked in the attempts before this one."""
    sits_out: bool = False
    """Its disk was restored in this round: it joins the next one."""
    attached: bool = False
    """Training is attached."""
    plain: bool = False
    """Training gave an update for this round."""
    blobs: frozenset[Digest] = frozenset()
    """Blobs in the store."""
    right: frozenset[Address] = frozenset()
    """Whose blob was looked at, and holds for this node what it has to."""
    wrong: frozenset[Address] = frozenset()
    """Whose blob was looked at, and does not."""
    masked: bool = False
    """The bytes of the entry's masked vector are in the store."""
    missing: tuple[frozenset[Address], frozenset[Address]] | None = None
    """Whose own secrets and whose sealed seeds the sum still lacks; None while that is not known."""
    void: bool = False
    """Somebody committed to shares that open nothing: the attempt cannot end."""
    given: frozenset[Address] = frozenset()
    """Of whom this node has given its shares."""
    reported: bool = False
    """It said in this attempt that bytes never came: they may be struck, and then no sum with them may be known."""
    shares_of: frozenset[Address] = frozenset()
    """Of whom it has any."""


@dataclass(frozen=True)
class SetKey:
    """Put this node's key for masks on the ledger."""

    run: int
    key: bytes


@dataclass(frozen=True)
class RenewKey:
    """Draw a new key, for the attempts after this one; the old one is erased when none is under way with it."""

    run: int
    round: int


@dataclass(frozen=True)
class ForgetKey:
    """Erase the key before this one: no attempt will use it again."""

    run: int
    round: int


@dataclass(frozen=True)
class Return:
    """Be awaited again: a deadline passed without this member, and who is not awaited is on no roster."""

    run: int
    round: int


@dataclass(frozen=True)
class Rotate:
    """The ledger knows of deeds that this node's disk does not: take new keys, and sit this round out."""

    run: int
    round: int


@dataclass(frozen=True)
class JoinMasks:
    """Draw this attempt's secrets, write them down, give others what they need to know of them, and say so."""

    run: int
    round: int
    attempt: int


@dataclass(frozen=True)
class OpenBlob:
    """See whether what a member joined with is right for this node."""

    run: int
    round: int
    attempt: int
    member: Address
    blob: Digest


@dataclass(frozen=True)
class Confirm:
    """Say whose blobs are here and right."""

    run: int
    round: int
    attempt: int
    held: frozenset[Address]


@dataclass(frozen=True)
class Freeze:
    """The time to join passed: ask the contract to go on."""

    run: int
    round: int
    attempt: int


@dataclass(frozen=True)
class MaskUpdate:
    """Encode training's update, mask it, and write down that these masks are used."""

    run: int
    round: int
    attempt: int


@dataclass(frozen=True)
class RevealMask:
    """Write down for whom, then open this node's mask."""

    run: int
    round: int
    attempt: int
    survivors: frozenset[Address]


@dataclass(frozen=True)
class GiveShares:
    """Give this node's shares of what silent members should have opened."""

    run: int
    round: int
    attempt: int
    secrets: frozenset[Address]
    seeds: frozenset[Address]


MaskDuty: TypeAlias = (
    Fetch
    | SetKey
    | RenewKey
    | ForgetKey
    | Return
    | Rotate
    | JoinMasks
    | OpenBlob
    | Confirm
    | Freeze
    | MaskUpdate
    | RevealMask
    | GiveShares
)


@dataclass(frozen=True)
class MaskTerms:
    """What the policy says about blind rounds."""

    submit_s: float
    """Half of it is for joining, three quarters for confirming; then the attempt goes on with those who did."""
    merge_s: float
    """After half of it others give shares of what silent members should have opened."""
    submissions_min: int

    @property
    def needed(self) -> int:
        """The least number of members in a sum."""
        return max(SURVIVORS_MIN, self.submissions_min)


def survivors_of(state: RoundState, masks: MaskState) -> frozenset[Address]:
    """Whose vectors are in the sum: settled by the first reveal, and until then who submitted and takes part."""
    if masks.survivors:
        return masks.survivors
    return frozenset(s.member for s in state.merged) & masks.frozen


def summed(state: RoundState, masks: MaskState) -> RoundState:
    """The round as its merge sees it: what others than the survivors submitted is not there."""
    if state.phase is Phase.SUBMIT or masks.spent:
        return state
    survivors = survivors_of(state, masks)
    return replace(state, submissions=tuple(s for s in state.submissions if s.member in survivors))


def enough(state: RoundState, masks: MaskState, terms: MaskTerms) -> bool:
    """Whether there is a sum to be opened; in groups, one of each."""
    survivors = survivors_of(state, masks)
    hidden = all(len(group & survivors) >= SURVIVORS_MIN for group in masks.groups)
    return masks.stage is Stage.FROZEN and hidden and len(survivors) >= max(terms.needed, masks.threshold)


def gives_up(
    state: RoundState, masks: MaskState, me: Address, since_s: float, now_s: float, terms: MaskTerms
) -> bool:  # fmt: skip
    """Whether `me`, who takes no part in this attempt, submits the round's base: too few are left to submit, and only
    with enough submissions does the ledger go on, find no sum, and begin the round again.

    Args:
        since_s: when this node saw the first submission in this attempt; 0 before.
    """
    return (
        state.phase is Phase.SUBMIT
        and masks.stage is Stage.FROZEN
        and me not in masks.frozen
        and len(state.submissions) < terms.submissions_min
        and 0 < since_s <= now_s - terms.submit_s
    )


def lost(state: RoundState, masks: MaskState, me: Address, have: HaveMasks) -> bool:
    """Whether the ledger knows a deed of `me` in this attempt that its own log does not: its disk was restored.

    Without the log it cannot know which masks it used and what it opened.
    """
    seat, entry = masks.seat(me), have.entry
    if masks.stage is Stage.CLOSED or seat is None or me not in masks.joined:
        return False
    if entry is None or entry.blob != seat.blob:
        return True
    if me in masks.revealed and entry.survivors != masks.survivors:
        return True
    mine = next((s for s in state.submissions if s.member == me), None)
    # A submission that was under way when the round began again counts in the attempt that follows.
    return mine is not None and me in masks.frozen and mine.digest not in {entry.masked, *have.before}


def mask_duties(
    state: RoundState,
    masks: MaskState,
    me: Address,
    have: HaveMasks,
    now_s: float,
    terms: MaskTerms,
    *,
    complete: bool,
) -> frozenset[MaskDuty]:
    """What `me` owes now for the masks of the round.

    Args:
        state: the round by the ledger, all submissions in it.
        masks: the same round's masks.
        complete: whether base and all survivors' vectors are here.
    """
    if state.state is not RunState.OPEN or masks.round != state.round or masks.spent:
        return frozenset()
    if lost(state, masks, me, have) and not have.sits_out:
        return frozenset({Rotate(state.run, state.round)})
    owed = _owed_now(state, masks, me, have, now_s, terms, complete) | _owed_key(state, masks, me, have)
    if have.attached and me in state.expected and masks.mine != have.key:
        # A key that is set while an attempt is under way counts from the next one on.
        owed.add(SetKey(state.run, have.key))
    # Awaited in an attempt that it cannot join, it would only make the others wait.
    elif (
        have.attached and me not in state.expected and (state.phase is not Phase.SUBMIT or masks.stage is Stage.CLOSED)
    ):
        owed.add(Return(state.run, state.round))
    return frozenset(owed)


def _owed_key(state: RoundState, masks: MaskState, me: Address, have: HaveMasks) -> set[MaskDuty]:
    """A key that is old is replaced while an attempt is frozen: the ledger has the new one before the next attempt."""
    seat = masks.seat(me)
    if masks.mine != have.key or seat is None or seat.key != have.key:
        return set()
    if have.last_key:
        return {ForgetKey(state.run, state.round)}
    old = have.key_rounds >= KEY_ROUNDS_MAX or have.key_age_s >= KEY_AGE_MAX_S
    return {RenewKey(state.run, state.round)} if old and masks.stage is Stage.FROZEN and have.attached else set()


def _owed_now(
    state: RoundState,
    masks: MaskState,
    me: Address,
    have: HaveMasks,
    now_s: float,
    terms: MaskTerms,
    complete: bool,
) -> set[MaskDuty]:
    if lost(state, masks, me, have):
        return set()
    if masks.stage is Stage.CLOSED:
        return _owed_before(state, masks, me, have, now_s, terms)
    if masks.stage is Stage.JOINING:
        return _owed_joining(state, masks, me, have, now_s, terms)
    return _owed_frozen(state, masks, me, have, now_s, terms, complete)


def _owed_before(
    state: RoundState, masks: MaskState, me: Address, have: HaveMasks, now_s: float, terms: MaskTerms
) -> set[MaskDuty]:
    if not have.attached or have.sits_out or masks.mine != have.key or state.phase is not Phase.SUBMIT:
        return set()
    waited = set(state.expected) <= masks.members or now_s >= state.opened_s + terms.submit_s
    if me in masks.members and waited and len(masks.members) >= terms.needed:
        return {JoinMasks(state.run, state.round, masks.attempt)}
    return set()


def _owed_joining(
    state: RoundState, masks: MaskState, me: Address, have: HaveMasks, now_s: float, terms: MaskTerms
) -> set[MaskDuty]:
    owed: set[MaskDuty] = set()
    seat = masks.seat(me)
    if seat is None:
        return owed
    if me not in masks.joined:
        known = seat.key in {have.key, have.last_key}
        if have.attached and known and not have.sits_out and now_s < masks.opened_s + terms.submit_s / 2:
            owed.add(JoinMasks(state.run, state.round, masks.attempt))
    elif me not in masks.confirmed:
        owed |= _owed_blobs(state, masks, me, have)
        others = masks.joined - {me}
        seen = have.right | have.wrong
        if (masks.joined == masks.members and others <= seen) or now_s >= masks.opened_s + 0.75 * terms.submit_s:
            owed.add(Confirm(state.run, state.round, masks.attempt, have.right & others))
    if now_s >= freeze_due_s(masks, me, terms):
        owed.add(Freeze(state.run, state.round, masks.attempt))
    return owed


def _owed_blobs(state: RoundState, masks: MaskState, me: Address, have: HaveMasks) -> set[MaskDuty]:
    """Have every blob, and look at those that are here."""
    owed: set[MaskDuty] = set()
    for seat in masks.seats:
        if seat.member == me or seat.blob is None:
            continue
        if seat.blob not in have.blobs:
            sources = (seat.member, *sorted(masks.joined - {me, seat.member}))
            owed.add(Fetch(seat.blob, sources))
        elif seat.member not in have.right | have.wrong:
            owed.add(OpenBlob(state.run, state.round, masks.attempt, seat.member, seat.blob))
    return owed


def _owed_frozen(
    state: RoundState,
    masks: MaskState,
    me: Address,
    have: HaveMasks,
    now_s: float,
    terms: MaskTerms,
    complete: bool,
) -> set[MaskDuty]:
    owed = {
        Fetch(seat.blob, (seat.member, *sorted(masks.frozen - {me, seat.member})))
        for seat in masks.seats
        if seat.member in masks.frozen and seat.blob is not None and seat.blob not in have.blobs
    } | set[MaskDuty]()
    if me not in masks.frozen or have.sits_out or have.entry is None:
        return owed
    if state.phase is Phase.SUBMIT:
        if have.plain and have.entry.masked is None:
            owed.add(MaskUpdate(state.run, state.round, masks.attempt))
        return owed
    survivors = survivors_of(state, masks)
    reported = have.reported or any(reporter == me for reporter, _ in state.missing)
    opens = have.entry.survivors in (None, survivors) and me in survivors and me not in masks.revealed
    if enough(state, masks, terms) and opens and complete and not reported:
        owed.add(RevealMask(state.run, state.round, masks.attempt, survivors))
    # More than may lie have then revealed, so the contract knows that the round's sum may be known.
    helps = not reported and (me in masks.revealed or me not in survivors)
    if helps and masks.fixed_s and now_s >= masks.fixed_s + terms.merge_s / 2 and have.missing is not None:
        secrets, seeds = (
            (lacking - have.given - {me}) & _shared(masks, me, have) for lacking in have.missing
        )  # fmt: skip
        secrets -= masks.revealed
        if secrets or seeds:
            owed.add(GiveShares(state.run, state.round, masks.attempt, secrets, seeds))
    return owed


def _shared(masks: MaskState, me: Address, have: HaveMasks) -> frozenset[Address]:
    """Of whom this node has shares, or can have them again from the blobs that are here."""
    here = {seat.member for seat in masks.seats if seat.blob in have.blobs}
    return frozenset(here) - have.wrong


def freeze_due_s(masks: MaskState, me: Address, terms: MaskTerms) -> float:
    """When `me` calls `freeze`: members take turns, so that one transaction does it and any one may be off."""
    order = sorted(masks.members)
    turn = order.index(me) if me in order else len(order)
    return masks.opened_s + terms.submit_s + ADVANCE_STAGGER_S * turn


def next_mask_change_s(
    state: RoundState, masks: MaskState, me: Address, now_s: float, terms: MaskTerms
) -> float | None:
    """When to ask `mask_duties` again although nothing arrived; None where only an arrival can change them."""
    times: list[float] = []
    if masks.stage is Stage.CLOSED:
        times.append(state.opened_s + terms.submit_s)
    elif masks.stage is Stage.JOINING:
        times += [masks.opened_s + 0.75 * terms.submit_s, freeze_due_s(masks, me, terms)]
    elif masks.fixed_s:
        times.append(masks.fixed_s + terms.merge_s / 2)
    return min((time for time in times if time > now_s), default=None)
