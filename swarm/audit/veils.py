"""Tells blind rounds again from the ledger's events, and opens every sum again whose vectors the store still holds.

Who may be in an attempt, whose vectors are in its sum and what may be revealed is derived from the events by rules of
its own; the masks that come off follow from the blobs and what was revealed, as everybody else finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swarm.audit.replay import Difference
from swarm.config import Policy
from swarm.encoding import Address, Digest, from_hex, sha256, short
from swarm.errors import PeerError
from swarm.merge.blind.blob import Blob
from swarm.merge.blind.encode import Encoding
from swarm.merge.blind.groups import groups_of
from swarm.merge.blind.keys import Attempt, Seat
from swarm.merge.blind.merging import BlindMerged, merge
from swarm.merge.blind.unmask import Frozen, Reveal, Said, Shares, Survivors, Unmasking, freeze, unmasking
from swarm.merge.blind.vector import Masked
from swarm.merge.server import server_of
from swarm.rounds import Submission
from swarm.store import object_place

SURVIVORS_MIN = 3


@dataclass(frozen=True)
class Chain:
    """Which ledger: every secret is bound to it."""

    chain_id: int
    contract: Address
    """Of blind rounds."""


@dataclass
class _Joined:
    blob: Digest
    commitment: Digest
    recovery: Digest


@dataclass
class Try:
    """An attempt at a blind round."""

    number: int
    round: int
    seats: dict[int, Seat]
    """The roster."""
    joined: dict[int, _Joined] = field(default_factory=dict)
    held: dict[int, frozenset[int]] = field(default_factory=dict)
    """Of whom each that confirmed holds what it has to."""
    frozen: frozenset[int] = frozenset()
    survivors: frozenset[int] = frozenset()
    revealed: set[int] = field(default_factory=set)
    said: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def threshold(self) -> int:
        """Shares that open a secret."""
        return 2 * len(self.seats) // 3 + 1

    def seat_of(self, member: Address) -> int | None:
        """A member's seat, None where it has none."""
        return next((seat for seat, one in self.seats.items() if one.member == member), None)

    def dropped(self, seat: int) -> frozenset[int]:
        """With whom a member that confirmed has no mask in common, by its own word."""
        return frozenset(self.held.keys() - self.held[seat] - {seat})


@dataclass
class MaskStory:
    """The masks of one run as their events tell them."""

    where: Callable[[], str]
    keys: dict[int, Seat] = field(default_factory=dict)
    here: Try | None = None
    spent: tuple[int, int] | None = None
    """The round and attempt of the last sum that may be known."""
    opened: list[tuple[int, int]] = field(default_factory=list)
    """Every round and attempt in which a mask was opened."""

    def follow(self, name: str, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        """One event of the contract of blind rounds, in order.

        Args:
            unstruck: what was submitted to the round so far and not struck.
        Raises:
            Difference: it is not as it has to be.
        """
        if name == "KeySet":
            self.keys[int(values["seat"])] = Seat(
                _address(values["member"]), int(values["number"]), bytes(values["key"])
            )  # fmt: skip
        elif name == "AttemptOpened":
            self._opened(values)
        elif name in _HANDLERS:
            here = self.here
            self._need(here is not None and here.number == int(values["attempt"]), f"{name} of another attempt")
            assert here is not None
            _HANDLERS[name](self, here, values, unstruck)

    def closed(self, round_: int) -> Try | None:
        """The attempt whose sum a round closed with; None where it had to close as it began, or is not blind."""
        here = self.here
        if here is None or here.round != round_ or not here.survivors:
            return None
        return here

    def opened_before(self, here: Try) -> bool:
        """Whether a mask was opened in an earlier attempt of a round."""
        return any(round_ == here.round and number < here.number for round_, number in self.opened)

    def restarted(self) -> None:
        """The round takes submissions again: what was joined is over."""
        if self.here is not None and self.here.survivors:
            self.here.survivors = frozenset()
            self.here.frozen = frozenset()

    def _need(self, holds: bool, what: str) -> None:
        if not holds:
            raise Difference(f"{self.where()}: {what}")

    def _opened(self, values: Mapping[str, Any]) -> None:
        before = 0 if self.here is None else self.here.number
        seats = {seat: self.keys[seat] for seat in _bits(values["roster"]) if seat in self.keys}
        number, round_ = int(values["attempt"]), int(values["round"])
        self._need(number == before + 1, f"attempt {number} follows attempt {before}")
        self._need(len(seats) == int(values["roster"]).bit_count(), "a member without a key is on the roster")
        self.here = Try(number, round_, seats)
        self._need(int(values["threshold"]) == self.here.threshold, f"attempt {number} has another threshold")
        self._need(self.spent is None or self.spent[0] != round_, "a second sum of a round is prepared")

    def _joined(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        seat, member = int(values["seat"]), _address(values["member"])
        self._need(seat in here.seats and here.seats[seat].member == member, f"{short(member)} is not on the roster")
        self._need(seat not in here.joined and not here.frozen, f"{short(member)} joins a second time, or too late")
        here.joined[seat] = _Joined(bytes(values["blob"]), bytes(values["commitment"]), bytes(values["recovery"]))

    def _confirmed(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        seat = here.seat_of(_address(values["member"]))
        self._need(seat in here.joined and seat not in here.held, "who did not join confirms")
        assert seat is not None
        here.held[seat] = frozenset(_bits(values["held"]))

    def _frozen(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        found = self._core(here)
        self._need(frozenset(_bits(values["members"])) == found, f"attempt {here.number} froze other members")
        here.frozen = found

    def _failed(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        # Where all who confirmed hold each other, they are what is left, however few they are.
        whole = all(here.held.keys() - {one} <= held for one, held in here.held.items())
        left = frozenset(here.held) if whole else self._core(here)
        self._need(frozenset(_bits(values["members"])) == left, f"attempt {here.number} failed otherwise")

    def _core(self, here: Try) -> frozenset[int]:
        """Who confirmed and keeps t - 1 edges among those who do."""
        members = set(here.held)
        while True:
            lonely = {
                one
                for one in members
                if sum(two in here.held[one] and one in here.held[two] for two in members - {one}) < here.threshold - 1
            }
            if not lonely:
                return frozenset(members)
            members -= lonely

    def _fixed(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        found = frozenset(_bits(values["survivors"]))
        submitted = {here.seat_of(submission.member) for submission in unstruck}
        self._need(not here.survivors, f"attempt {here.number} has a second set of survivors")
        self._need(found == here.frozen & submitted, f"attempt {here.number} sums others than those who submitted")
        self._need(
            len(found) >= max(SURVIVORS_MIN, here.threshold), f"attempt {here.number} opens a sum of {len(found)}"
        )
        here.survivors = found
        self.opened.append((here.round, here.number))

    def _revealed(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        member = _address(values["member"])
        seat = here.seat_of(member)
        self._need(seat in here.survivors and seat not in here.revealed, f"{short(member)} reveals out of turn")
        assert seat is not None
        right = sha256(b"self" + bytes(values["secret"])) == here.joined[seat].commitment
        self._need(right, f"what {short(member)} revealed does not open its commitment")
        here.revealed.add(seat)
        here.said.append(("Revealed", values))

    def _shared(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        secrets, seeds = ({int(seat) for seat, _ in values[kind]} for kind in ("secrets", "seeds"))
        self._need(here.seat_of(_address(values["member"])) in here.frozen, "shares of one who did not take part")
        self._need(secrets <= here.survivors - here.revealed, "shares of a secret that has to stay one")
        self._need(seeds <= here.frozen - here.survivors, "shares of the seeds of a member that is in the sum")
        here.said.append(("SharesRevealed", values))

    def _spent(self, here: Try, values: Mapping[str, Any], unstruck: tuple[Submission, ...]) -> None:
        self.spent = here.round, here.number


_HANDLERS: dict[str, Callable[[MaskStory, Try, Mapping[str, Any], tuple[Submission, ...]], None]] = {
    "MasksJoined": MaskStory._joined,
    "MasksConfirmed": MaskStory._confirmed,
    "AttemptFrozen": MaskStory._frozen,
    "AttemptFailed": MaskStory._failed,
    "SurvivorsFixed": MaskStory._fixed,
    "Revealed": MaskStory._revealed,
    "SharesRevealed": MaskStory._shared,
    "RoundSpent": MaskStory._spent,
}
EVENTS = frozenset({"KeySet", "AttemptOpened", *_HANDLERS})
"""Of the contract of blind rounds."""


def open_again(
    chain: Chain,
    run: int,
    policy_digest: Digest,
    policy: Policy,
    base: Digest,
    here: Try,
    submissions: tuple[Submission, ...],
    store: Path,
    *,
    grouped: bool,
) -> BlindMerged | None:
    """The sum of a round, opened again from the store; None where the store does not hold all that it takes.

    Args:
        grouped: it was to be merged in groups.
    Raises:
        Difference: what the ledger and the bytes say cannot be opened.
    """
    names = (chain.chain_id, chain.contract, run, here.round, here.number, policy_digest, base)
    attempt = Attempt(*names, tuple(sorted(here.seats.values(), key=lambda seat: seat.member)))
    vectors = {s.member: object_place(store, s.digest) for s in submissions}
    blobs = {seat: object_place(store, here.joined[seat].blob) for seat in here.frozen}
    needed = [object_place(store, base), *(vectors[here.seats[seat].member] for seat in here.survivors)]
    if not all(place.is_file() for place in (*needed, *blobs.values())):
        return None
    try:
        opened = {
            here.seats[seat].member: Blob.decode(place.read_bytes(), attempt, here.seats[seat].member)
            for seat, place in blobs.items()
        }
        confirmed = {
            here.seats[seat].member: [here.seats[other].member for other in here.dropped(seat)] for seat in here.held
        }
        frozen = freeze(attempt, confirmed)
        if grouped:
            places = {here.seats[seat].member: seat for seat in here.frozen}
            frozen = replace(frozen, groups=groups_of(base, places, frozen.dropped))
        settled = Survivors(frozen, frozenset(here.seats[seat].member for seat in here.survivors))
        found = unmasking(settled, opened, [_said(here, frozen, *one) for one in here.said])
        if not isinstance(found, Unmasking):
            raise Difference(f"run {run} round {here.round}: it closed although its sum cannot be opened")
        place = object_place(store, base)
        encoding = Encoding.under(policy, place, len(here.frozen), attempt.context)
        masked = [Masked(member, vectors[member]) for member in settled.in_order]
        return merge(place, masked, found, encoding, None, server=server_of(policy))
    except (ValueError, PeerError) as error:
        raise Difference(f"run {run} round {here.round}: its sum cannot be opened: {error}") from error


def _said(here: Try, frozen: Frozen, name: str, values: Mapping[str, Any]) -> Said:
    member = _address(values["member"])
    if name == "Revealed":
        gone = [
            here.seats[seat].member
            for seat in sorted(here.frozen - here.survivors)
            if here.seats[seat].member in frozen.neighbors(member)
        ]
        seeds = [bytes(seed) for seed in values["seeds"]]
        return Reveal(member, bytes(values["secret"]), dict(zip(gone, seeds, strict=True)))
    secrets, seeds_ = (
        {here.seats[int(seat)].member: bytes(value) for seat, value in values[kind]} for kind in ("secrets", "seeds")
    )
    return Shares(member, secrets, seeds_)


def _bits(bitmap: Any) -> list[int]:
    return [seat for seat in range(int(bitmap).bit_length()) if int(bitmap) >> seat & 1]


def _address(value: Any) -> Address:
    return from_hex(value) if isinstance(value, str) else bytes(value)
