"""The contract `Blind` as typed Python: keys, joinings, frozen sets, and what was revealed. `contracts/Blind.md`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from swarm.blind import MaskSeat, MaskState, RevealTold, SharesTold, Stage, Told
from swarm.encoding import Address, Digest, keccak256
from swarm.ledger.abi import abi, interface
from swarm.ledger.endpoint import Call

_BLIND = interface("Blind")

Ask = Callable[..., Awaitable[Any]]
"""Asks the contract: a view's name and its arguments."""


class Masks:
    """The contract at one address, as of one block.

    Args:
        ask: a view of the contract.
        ticks: how many ticks of the ledger's timestamps make a second.
    """

    def __init__(self, address: Address, ask: Ask, ticks: Callable[[], Awaitable[int]]) -> None:
        self.address = address
        self._ask = ask
        self._ticks = ticks

    async def state(self, run: int, me: Address) -> MaskState:
        """The masks of a run's current round."""
        (
            stage, number, round, threshold, opened, block, joined, confirmed, frozen, survivors, revealed, fixed,
            spent, places,
        ) = await self._ask("attempt_state", run)  # fmt: skip
        _, mine = await self._ask("keyOf", run, me)
        ticks = await self._ticks()
        members = {place[0]: place[1] for place in places}
        seats = tuple(
            MaskSeat(
                seat, member, key, count, blob if any(blob) else None, commitment, recovery, members_of(edges, members)
            )
            for seat, member, key, count, blob, commitment, recovery, edges in places
        )  # fmt: skip
        return MaskState(
            run=run, round=round, stage=Stage(stage), attempt=number, threshold=threshold, opened_s=opened / ticks,
            block=block, fixed_s=fixed / ticks, spent=spent, seats=seats, joined=members_of(joined, members),
            confirmed=members_of(confirmed, members), frozen=members_of(frozen, members),
            survivors=members_of(survivors, members), revealed=members_of(revealed, members),
            mine=mine if any(mine) else b"",
        )  # fmt: skip

    def set_key(self, run: int, key: bytes) -> Call:
        """Put a node's X25519 key for a run on the ledger."""
        return self._call(f"set the key for masks in run {run}", "setKey", run, key)

    def join(self, masks: MaskState, blob: Digest, commitment: Digest, recovery: Digest) -> Call:
        """Join the attempt that the state tells of, or open it."""
        what = f"join attempt {masks.attempt} at round {masks.round} of run {masks.run}"
        roster = roster_digest(masks.seats)
        return self._call(what, "join", masks.run, masks.attempt, roster, blob, commitment, recovery)

    def confirm(self, masks: MaskState, held: Iterable[Address]) -> Call:
        """Say whose blobs are here and right."""
        what = f"confirm attempt {masks.attempt} at round {masks.round} of run {masks.run}"
        return self._call(what, "confirm", masks.run, masks.attempt, masks.seat_bits(held))

    def freeze(self, run: int, attempt: int) -> Call:
        """Say that the time to join passed."""
        return self._call(f"freeze attempt {attempt} of run {run}", "freeze", run, attempt)

    def reveal(self, masks: MaskState, survivors: Iterable[Address], secret: bytes, seeds: Iterable[bytes]) -> Call:
        """Open a survivor's mask; the seeds in the order of seats."""
        what = f"reveal in attempt {masks.attempt} at round {masks.round} of run {masks.run}"
        return self._call(
            what, "reveal", masks.run, masks.attempt, masks.seat_bits(survivors), secret, list(seeds)
        )  # fmt: skip

    def reveal_shares(self, masks: MaskState, secrets: Mapping[Address, bytes], seeds: Mapping[Address, bytes]) -> Call:
        """Give shares of what silent members should have opened."""
        what = f"give shares in attempt {masks.attempt} at round {masks.round} of run {masks.run}"
        both = (
            [(seat.seat, given[seat.member]) for seat in masks.seats if seat.member in given]
            for given in (secrets, seeds)
        )
        return self._call(what, "revealShares", masks.run, masks.attempt, *both)

    def _call(self, what: str, function: str, *arguments: object) -> Call:
        return Call(self.address, _BLIND.call(function, *arguments), what)


def members_of(bits: int, members: Mapping[int, Address]) -> frozenset[Address]:
    """The contract's bitmap as members."""
    return frozenset(member for seat, member in members.items() if bits >> seat & 1)


def roster_digest(seats: Iterable[MaskSeat]) -> Digest:
    """What the contract compares a joining's roster by."""
    digest = bytes(32)
    for seat in sorted(seats, key=lambda one: one.seat):
        kinds = ["bytes32", "uint256", "address", "uint256", "bytes32"]
        digest = keccak256(abi.encode(kinds, [digest, seat.seat, seat.member, seat.number, seat.key]))
    return digest


def told(name: str, args: Mapping[str, Any], members: Mapping[int, Address]) -> Told | None:
    """What an event says of secrets; None where it says nothing of them.

    Args:
        members: by seat.
    """
    if name == "Revealed":
        return RevealTold(bytes(args["member"]), bytes(args["secret"]), tuple(bytes(one) for one in args["seeds"]))
    if name == "SharesRevealed":
        secrets, seeds = (
            {members[seat]: bytes(value) for seat, value in args[kind] if seat in members}
            for kind in ("secrets", "seeds")
        )
        return SharesTold(bytes(args["member"]), secrets, seeds)
    return None
