"""`Runs` and `Blind` for one blind run, with sets of members instead of words of bits: what a block of calls does.

It takes and refuses what the contracts take and refuse, and shows what they show; `tests/sim/test_blind_books.py` plays
random calls to both. All members have joined the run before it starts, and merge everything again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swarm.blind import MaskSeat, MaskState, RevealTold, SharesTold, Stage, Told
from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, Digest, keccak256, sha256
from swarm.ledger.masks import roster_digest
from swarm.rounds import Phase, RoundState, RunState, Submission

RUN = 1
TURNS = 2
"""How often every submitter leads before a round starts again: the contract's."""


class Refused(Exception):
    """The contract refuses a call."""


@dataclass(frozen=True)
class Call:
    """A member's call, before it is signed."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Terms:
    """What a run was proposed with; milliseconds."""

    rounds: int
    submissions_min: int
    submit_ms: int
    merge_ms: int
    attest_ms: int

    @property
    def needed(self) -> int:
        """The least number of members in a sum."""
        return max(3, self.submissions_min)


@dataclass
class Place:
    """A seat's part in the attempt that the books have."""

    member: Address = ZERO_ADDRESS
    key: bytes = b""
    number: int = 0
    next_key: bytes = b""
    next_number: int = 0
    blob: Digest = b""
    commitment: Digest = b""
    recovery: Digest = b""
    edges: frozenset[Address] = frozenset()
    given: frozenset[Address] = frozenset()


@dataclass
class Attempt:
    """The attempt that the books have, over or not."""

    number: int = 0
    open: bool = False
    over: bool = False
    """It failed."""
    round: int = 0
    view: int = 0
    opened: int = 0
    block: int = 0
    roster: frozenset[Address] = frozenset()
    joined: frozenset[Address] = frozenset()
    confirmed: frozenset[Address] = frozenset()
    frozen: frozenset[Address] = frozenset()
    survivors: frozenset[Address] = frozenset()
    revealed: frozenset[Address] = frozenset()
    fixed: int = 0
    digest: Digest = b""
    told: list[Told] = field(default_factory=list)

    @property
    def threshold(self) -> int:
        """t."""
        return 2 * len(self.roster) // 3 + 1


class Books:
    """The state of both contracts.

    Args:
        members: in the order of their seats.
    """

    def __init__(self, members: Sequence[Address], terms: Terms, genesis: Digest, now: int) -> None:
        self.members = tuple(members)
        self.terms = terms
        self.now = now
        self.block = 0
        self.base = genesis
        self.seed = keccak256(genesis + RUN.to_bytes(32, "big"))
        self.state = RunState.OPEN
        self.phase = Phase.SUBMIT
        self.round = self.view = self.first_view = 0
        self.opened, self.deadline = now, 0
        self.leader = ZERO_ADDRESS
        self.expected = frozenset(members)
        self.submitted: dict[Address, Digest] = {}
        self.struck: frozenset[Address] = frozenset()
        self.attested: frozenset[Address] = frozenset()
        self.refused: frozenset[Address] = frozenset()
        self.reports: dict[Address, frozenset[Address]] = {}
        self.suspended: frozenset[Address] = frozenset()
        self.discredited: frozenset[Address] = frozenset()
        self.published: Digest = ZERO_DIGEST
        self.places = {member: Place() for member in members}
        self.attempt = Attempt()
        self.spent = (-1, -1)
        self.events: list[tuple[str, dict[str, Any]]] = []

    # --- what the contracts show

    def in_order(self, some: Iterable[Address]) -> tuple[Address, ...]:
        """By seat."""
        wanted = set(some)
        return tuple(member for member in self.members if member in wanted)

    @property
    def unstruck(self) -> frozenset[Address]:
        """Whose submissions are merged."""
        return frozenset(self.submitted) - self.struck

    def round_state(self) -> RoundState:
        """The current round."""
        submissions = tuple(
            Submission(member, self.submitted[member], 0, member in self.struck)
            for member in self.in_order(self.submitted)
        )
        k = len(self.unstruck)
        deadline = self.phase is not Phase.SUBMIT or len(self.submitted) >= self.terms.submissions_min
        return RoundState(
            run=RUN,
            state=self.state,
            round=self.round,
            phase=self.phase,
            view=self.view,
            leader=self.leader if self.phase is not Phase.SUBMIT else ZERO_ADDRESS,
            base=self.base,
            seed=self.seed,
            opened_s=self.opened / 1000,
            deadline_s=self.deadline / 1000 if deadline else 0.0,
            expected=self.in_order(self.expected),
            submissions=submissions,
            published=self.published if self.phase is Phase.ATTEST else None,
            attested=self.attested,
            refused=self.refused,
            missing=frozenset((by, of) for of, reporters in self.reports.items() for by in reporters),
            verifiers=self._verifiers(k) if self.phase is not Phase.SUBMIT else 0,
        )

    def mask_state(self) -> MaskState:
        """The masks of the current round; `mine` is left empty."""
        here = self.attempt
        shown = self._is_current and not here.over
        roster = here.roster if shown else self._next_roster()
        joined = here.joined if shown else frozenset[Address]()
        stage = Stage.CLOSED
        if shown:
            stage = Stage.FROZEN if here.frozen else Stage.JOINING
        return MaskState(
            run=RUN,
            round=self.round,
            stage=stage,
            attempt=here.number if shown else here.number + 1,
            threshold=here.threshold if shown else 0,
            opened_s=here.opened / 1000 if shown else 0.0,
            block=here.block if shown else 0,
            fixed_s=here.fixed / 1000 if shown else 0.0,
            spent=self._is_spent,
            seats=tuple(self._seat(member, joined, shown) for member in self.in_order(roster)),
            joined=joined,
            confirmed=here.confirmed if shown else frozenset(),
            frozen=here.frozen if shown else frozenset(),
            survivors=here.survivors if shown else frozenset(),
            revealed=here.revealed if shown else frozenset(),
        )

    def key_of(self, member: Address) -> bytes:
        """A member's newest key, empty where it has none."""
        place = self.places[member]
        return place.next_key if place.next_number > place.number else place.key

    @property
    def told(self) -> tuple[Told, ...]:
        """What was revealed in the attempt that is shown."""
        return tuple(self.attempt.told) if self._is_current and not self.attempt.over else ()

    def _seat(self, member: Address, joined: frozenset[Address], shown: bool) -> MaskSeat:
        place = self.places[member]
        newer = not shown and place.next_number > place.number
        key, number = (place.next_key, place.next_number) if newer else (place.key, place.number)
        seat = MaskSeat(self.members.index(member), member, key, number, None, bytes(32), bytes(32))
        if member in joined:
            seat = replace(
                seat, blob=place.blob, commitment=place.commitment, recovery=place.recovery,
                edges=place.edges & self.attempt.roster,
            )  # fmt: skip
        return seat

    def _next_roster(self) -> frozenset[Address]:
        return frozenset(m for m in self.expected if self.places[m].next_number or self.places[m].number)

    # --- calls

    def take(self, sender: Address, call: Call) -> list[tuple[str, dict[str, Any]]]:
        """Do what a call asks for; its events.

        Raises:
            Refused: with the reason; nothing changed.
        """
        self.events = []
        _need(sender in self.places, "only a member may do this")
        getattr(self, f"_call_{call.name}")(sender, *call.arguments)
        return self.events

    def _log(self, name: str, **args: Any) -> None:
        self.events.append((name, args))

    # --- Runs

    def _check_round(self, round_: int) -> None:
        _need(self.state is RunState.OPEN, "the run is not open")
        _need(self.round == round_, "the run is at another round")

    def _check_view(self, round_: int, view: int) -> None:
        self._check_round(round_)
        _need(self.view == view, "the round is at another view")

    def _check_submitter(self, sender: Address) -> None:
        _need(sender in self.submitted, "only a member that submitted to this round may do this")
        _need(sender not in self.struck, "this member's submission was struck")

    def _call_run_join(self, sender: Address) -> None:
        _need(self.state is RunState.OPEN, "the run is not open")
        self.expected |= {sender}
        self._log("Joined", member=sender)

    def _call_submit(self, sender: Address, round_: int, digest: Digest) -> None:
        self._check_round(round_)
        _need(self.phase is Phase.SUBMIT, "the round no longer takes submissions")
        _need(sender not in self.submitted, "this member has already submitted")
        _need(any(digest), "the update's digest is zero")
        self.submitted[sender] = digest
        self.expected |= {sender}
        self._log("Submitted", round=round_, member=sender, digest=digest)
        if not self.deadline:
            self.deadline = self.now + self.terms.submit_ms
        if self.expected <= self.submitted.keys() and len(self.submitted) >= self.terms.submissions_min:
            self._merge()

    def _call_report_missing(self, sender: Address, round_: int, member: Address) -> None:
        self._check_round(round_)
        self._check_submitter(sender)
        _need(self.phase is Phase.MERGE, "missing updates are reported while the leader merges")
        _need(member in self.submitted, "the reported member has not submitted to this round")
        _need(member not in self.struck, "the reported submission is already struck")
        _need(member != sender, "a member does not report itself")
        reports = self.reports.get(member, frozenset())
        _need(sender not in reports, "this member has already reported that one")
        self.reports[member] = reports | {sender}
        self._log("MissingReported", round=round_, reporter=sender, member=member)
        k = len(self.submitted)
        if len(self.reports[member] - self.discredited) < min(max(2, self._faults(k) + 1), k - 1):
            return
        self.struck |= {member}
        self.attested = frozenset()
        self.expected -= {member}
        self._log("Struck", round=round_, member=member)
        self._upon_strike()

    def _upon_strike(self) -> None:
        self._restart()

    def _call_publish(self, sender: Address, round_: int, view: int, checkpoint: Digest) -> None:
        self._check_view(round_, view)
        self._check_submitter(sender)
        _need(self.phase is Phase.SUBMIT or sender == self.leader, "only the leader of this view publishes")
        _need(self.phase is Phase.MERGE, "the round does not wait for the leader")
        _need(any(checkpoint), "the checkpoint's digest is zero")
        self._log("Published", round=round_, view=view, leader=sender, checkpoint=checkpoint)
        self.published = checkpoint
        self.phase = Phase.ATTEST
        self.deadline = self.now + self.terms.attest_ms
        self._attested(sender, checkpoint)

    def _call_attest(self, sender: Address, round_: int, view: int, checkpoint: Digest) -> None:
        self._check_verdict(sender, round_, view)
        _need(sender not in self.attested, "this member has already attested")
        _need(checkpoint == self.published, "the leader published another checkpoint")
        self._log("Attested", round=round_, view=view, member=sender, checkpoint=checkpoint)
        self._attested(sender, checkpoint)

    def _call_refuse(self, sender: Address, round_: int, view: int, found: Digest) -> None:
        self._check_verdict(sender, round_, view)
        _need(sender not in self.attested, "this member has already attested")
        _need(found != self.published, "a member that found the same attests")
        self._log("Refused", round=round_, view=view, leader=self.leader, member=sender)
        self.refused |= {sender}
        k = len(self.unstruck)
        if len(self.refused - self.discredited) > max(k - (2 * k + 2) // 3, min(self._faults(k), k - 2)):
            self.suspended |= {self.leader}
            self._replace_leader()

    def _call_advance(self, sender: Address, round_: int, view: int) -> None:
        self._check_view(round_, view)
        _need(
            self.phase is not Phase.SUBMIT or len(self.submitted) >= self.terms.submissions_min,
            "no deadline runs before enough have submitted",
        )
        _need(self.now >= self.deadline, "the deadline has not passed")
        if self.phase is Phase.SUBMIT:
            self.expected = frozenset(self.submitted)
            self._merge()
        else:
            self._replace_leader()

    def _check_verdict(self, sender: Address, round_: int, view: int) -> None:
        self._check_view(round_, view)
        self._check_submitter(sender)
        _need(self.phase is Phase.ATTEST, "the leader has not published")
        _need(sender not in self.refused, "this member has already refused")

    def _merge(self) -> None:
        self.phase = Phase.MERGE
        self.first_view = self.view
        self.leader = self._elected()
        self.deadline = self.now + self.terms.merge_ms
        self._log("MergeStarted", round=self.round, view=self.view)

    def _replace_leader(self) -> None:
        if self.view + 1 - self.first_view >= TURNS * len(self.unstruck):
            self._restart()
            return
        self.view += 1
        self.phase = Phase.MERGE
        self.leader = self._elected()
        self.deadline = self.now + self.terms.merge_ms
        self.attested = self.refused = frozenset()
        self._log("LeaderReplaced", round=self.round, view=self.view)

    def _restart(self) -> None:
        self.view += 1
        self.phase = Phase.SUBMIT
        self.deadline = 0
        self._forget_round()
        self._log("RoundRestarted", round=self.round, view=self.view)

    def _forget_round(self) -> None:
        self.submitted, self.reports = {}, {}
        self.struck = self.attested = self.refused = frozenset()

    def _elected(self) -> Address:
        eligible = self.in_order(self.unstruck - self.suspended) or self.in_order(self.unstruck)
        return eligible[(int.from_bytes(self.seed, "big") + self.view) % len(eligible)]

    def _attested(self, sender: Address, checkpoint: Digest) -> None:
        self.attested |= {sender}
        k = len(self.unstruck)
        if len(self.attested) < (2 * k + 2) // 3 or len(self.attested) - 1 < self._verifiers(k):
            return
        self.suspended |= self.refused
        self.discredited |= self.refused
        self._log("RoundClosed", round=self.round, view=self.view, base=self.base, checkpoint=checkpoint)
        self.round += 1
        self.base = checkpoint
        self.seed = keccak256(self.seed + checkpoint)
        self.phase = Phase.SUBMIT
        self.view, self.deadline, self.opened = 0, 0, self.now
        self._forget_round()
        if self.round == self.terms.rounds:
            self.state = RunState.FINISHED
            self._log("RunFinished", checkpoint=checkpoint)

    def _faults(self, submissions: int) -> int:
        return (max(len(self.members), submissions) - 1) // 3

    def _verifiers(self, submissions: int) -> int:
        return min(max((submissions - 1) // 3 + 1, self._faults(submissions)), submissions - 1)

    # --- Blind

    @property
    def _standing_view(self) -> int:
        return self.view if self.phase is Phase.SUBMIT else self.first_view

    @property
    def _is_current(self) -> bool:
        here = self.attempt
        return here.number != 0 and (here.round, here.view) == (self.round, self._standing_view)

    @property
    def _is_spent(self) -> bool:
        round_, number = self.spent
        return round_ == self.round and (number != self.attempt.number or not self._is_current)

    def _check_open(self) -> None:
        _need(self.state is RunState.OPEN, "the run is not open")

    def _call_set_key(self, sender: Address, key: bytes) -> None:
        self._check_open()
        _need(any(key), "the key is zero")
        place = self.places[sender]
        place.next_number = max(place.number, place.next_number) + 1
        place.next_key = key
        self._log("KeySet", member=sender, number=place.next_number, key=key)

    def _call_join(
        self, sender: Address, attempt: int, roster: Digest, blob: Digest, commitment: Digest, recovery: Digest
    ) -> None:
        self._check_open()
        _need(self.phase is Phase.SUBMIT, "the round no longer takes submissions")
        _need(not self._is_spent, "a sum of this round was opened: it closes as it began")
        here = self.attempt
        fresh = not self._is_current or here.over
        if fresh:
            here = self._opened()
        _need(here.number == attempt, "another attempt is open")
        _need(not here.frozen, "the attempt is frozen")
        seats = self._roster_seats(here.roster, newer=fresh)
        _need(roster_digest(seats) == roster, "the roster has other members or keys")
        _need(sender in here.roster, "the member is not on the attempt's roster")
        _need(sender not in here.joined, "the member has already joined")
        _need(self.now < here.opened + (self.terms.submit_ms + 1) // 2, "the time to join is over")
        _need(any(blob), "the blob's digest is zero")
        _need(any(commitment) and any(recovery), "a commitment is zero")
        if fresh:
            self._begin(here)
        here.joined |= {sender}
        place = self.places[sender]
        place.blob, place.commitment, place.recovery = blob, commitment, recovery
        place.edges = place.given = frozenset()
        self._log("MasksJoined", round=self.round, attempt=attempt, member=sender, blob=blob)

    def _roster_seats(self, roster: frozenset[Address], *, newer: bool) -> list[MaskSeat]:
        return [self._seat(member, frozenset(), not newer) for member in self.in_order(roster)]

    def _opened(self) -> Attempt:
        roster = self._next_roster()
        _need(len(roster) >= self.terms.needed, "too few members have keys")
        late = self.now >= self.opened + self.terms.submit_ms
        _need(roster == self.expected or late, "members that are awaited have no key yet")
        return Attempt(
            self.attempt.number + 1, True, False, self.round, self._standing_view, self.now, self.block, roster
        )

    def _begin(self, attempt: Attempt) -> None:
        self.attempt = attempt
        for member in attempt.roster:
            place = self.places[member]
            if place.next_number > place.number:
                place.key, place.number = place.next_key, place.next_number
        self._log(
            "AttemptOpened", round=self.round, attempt=attempt.number, roster=attempt.roster,
            threshold=attempt.threshold,
        )  # fmt: skip

    def _joining(self, attempt: int) -> Attempt:
        here = self.attempt
        _need(self._is_current and here.number == attempt, "another attempt is open")
        _need(not here.frozen and not here.over, "the attempt is not joining")
        _need(self.phase is Phase.SUBMIT, "the round no longer takes submissions")
        return here

    def _call_confirm(self, sender: Address, attempt: int, held: frozenset[Address]) -> None:
        self._check_open()
        here = self._joining(attempt)
        _need(sender in here.joined, "only a member that joined the attempt confirms")
        _need(sender not in here.confirmed, "the member has already confirmed")
        _need(held <= here.joined, "a member that is held has not joined")
        self.places[sender].edges = held - {sender}
        here.confirmed |= {sender}
        self._log("MasksConfirmed", round=self.round, attempt=attempt, member=sender, held=held - {sender})
        if here.confirmed == here.roster:
            self._freeze(here)

    def _call_freeze(self, sender: Address, attempt: int) -> None:
        self._check_open()
        here = self._joining(attempt)
        _need(self.now >= here.opened + self.terms.submit_ms, "the deadline has not passed")
        self._freeze(here)

    def _freeze(self, here: Attempt) -> None:
        edges = {
            one: frozenset(
                other for other in here.confirmed
                if other != one and other in self.places[one].edges and one in self.places[other].edges
            )
            for one in here.confirmed
        }  # fmt: skip
        members = here.confirmed
        if any(len(edges[one]) + 1 < len(members) for one in members):
            while weak := {one for one in members if len(edges[one] & members) + 1 < here.threshold}:
                members -= weak
            for one in here.confirmed:
                self.places[one].edges = edges[one] & members
        if len(members) >= max(self.terms.needed, here.threshold):
            here.frozen = members
            self._log("AttemptFrozen", round=self.round, attempt=here.number, members=members)
        else:
            here.over = True
            self._log("AttemptFailed", round=self.round, attempt=here.number, members=members)

    def _check_frozen(self, attempt: int) -> Attempt:
        self._check_open()
        here = self.attempt
        _need(self._is_current and here.number == attempt, "another attempt is open")
        _need(bool(here.frozen), "the attempt is not frozen")
        _need(self.phase is not Phase.SUBMIT, "the round still takes submissions")
        return here

    def _fixed(self, here: Attempt) -> frozenset[Address]:
        """Whose updates are in the sum: settled once."""
        return here.survivors or self.unstruck & here.frozen

    def _call_reveal(
        self, sender: Address, attempt: int, survivors: frozenset[Address], secret: bytes, seeds: tuple[bytes, ...]
    ) -> None:
        here = self._check_frozen(attempt)
        settled = self._fixed(here)
        _need(len(settled) >= max(self.terms.needed, here.threshold), "too few submitted for a sum")
        _need(survivors == settled, "these are not the members of the sum")
        _need(sender in settled, "only a member of the sum reveals its mask")
        _need(sender not in here.revealed, "the member has already revealed its mask")
        place = self.places[sender]
        _need(sha256(b"self" + secret) == place.commitment, "the secret does not open the commitment")
        gone = place.edges & here.frozen - settled
        _need(len(seeds) == len(gone), "one seed belongs to each member that dropped out")
        if not here.survivors:
            here.fixed = self.now
            self._log("SurvivorsFixed", round=self.round, attempt=attempt, survivors=settled)
        here.survivors = settled
        here.revealed |= {sender}
        here.told.append(RevealTold(sender, secret, seeds))
        self._log("Revealed", round=self.round, attempt=attempt, member=sender, secret=secret, gone=gone)
        if len(here.revealed) > (len(here.frozen) - 1) // 3 and self.spent[0] != self.round:
            self.spent = self.round, attempt
            self._log("RoundSpent", round=self.round, attempt=attempt)

    def _call_reveal_shares(
        self, sender: Address, attempt: int, secrets: Mapping[Address, bytes], seeds: Mapping[Address, bytes]
    ) -> None:
        here = self._check_frozen(attempt)
        _need(bool(here.survivors), "nobody has revealed a mask")
        _need(self.now >= here.fixed + self.terms.merge_ms // 2, "the others have time to reveal")
        _need(sender in here.frozen, "only a member that joined the attempt has shares")
        self._check_shares(here, frozenset(secrets), frozenset(seeds))
        fresh = frozenset(secrets) | frozenset(seeds)
        _need(bool(fresh), "no share is given")
        place = self.places[sender]
        _need(not fresh & place.given, "the member has already given one of these shares")
        place.given |= fresh
        here.told.append(SharesTold(sender, dict(secrets), dict(seeds)))
        self._log("SharesRevealed", round=self.round, attempt=attempt, member=sender, secrets=secrets, seeds=seeds)

    def _check_shares(self, here: Attempt, secrets: frozenset[Address], seeds: frozenset[Address]) -> None:
        _need(secrets <= here.survivors, "a share of a secret is of a member of the sum")
        _need(not secrets & here.revealed, "a share of a secret is of a member that has not revealed")
        _need(seeds <= here.frozen - here.survivors, "a share of seeds is of a member that dropped out")


def _need(holds: bool, reason: str) -> None:
    if not holds:
        raise Refused(reason)
