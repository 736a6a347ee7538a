"""What must hold among validators in any weather: no fork, no bad block, no vote against another, nobody slandered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sim.cheap import CHAIN_ID, digest_of, is_valid, recover
from sim.justified import is_justified
from swarm.consensus import Accuse, Certificate
from swarm.consensus.messages import Commit, Message, Prepare, Proposal, RoundChange
from swarm.encoding import Address, Digest, short


class BrokenError(Exception):
    """What must never happen has happened."""


class World(Protocol):
    """What a witness sees of the world."""

    decided: list[tuple[bytes, Certificate]]

    def validators(self, height: int) -> tuple[Address, ...]:
        """Who decides a height."""

    def proposers(self, height: int) -> tuple[Address, ...]:
        """Who proposes at a height, by view."""

    def parent(self, height: int) -> Digest:
        """The digest of the block below a height."""


class Witness:
    """Is told what is said and decided; BrokenError says what went wrong."""

    def __init__(self, world: World, *, watch_votes: bool, certificates: Callable[..., None]) -> None:
        self._world = world
        self._watch_votes = watch_votes
        self._certificates = certificates
        self._proposed: set[tuple[int, int, Digest]] = set()
        self._votes: dict[tuple[Address, int, type[Message], int], object] = {}

    def check_certified(self, height: int, payload: bytes, certificate: Certificate) -> None:
        """Nothing, if a quorum sealed this block; PeerError if not."""
        self._certificates(
            certificate,
            chain_id=CHAIN_ID,
            height=height,
            digest=digest_of(payload),
            validators=self._world.validators(height),
            recover=recover,
        )

    def takes(self, address: Address, height: int, payload: bytes) -> None:
        """An honest member takes a block: everybody's, or the first at its height and a valid one."""
        decided, digest = self._world.decided, digest_of(payload)
        if height <= len(decided):
            agreed = digest_of(decided[height - 1][0])
            if digest != agreed:
                raise BrokenError(
                    f"a fork: {short(address)} has {short(digest)} at height {height}, others have {short(agreed)}"
                )
        elif not is_valid(payload, height=height, parent=self._world.parent(height)):
            raise BrokenError(f"{short(address)} decided an invalid block at height {height}")

    def accuses(self, address: Address, accusation: Accuse, *, honest: bool) -> None:
        """An honest member accuses another, which is honest or not."""
        accused = accusation.member
        if self._watch_votes and (honest or accusation.contradiction.signer(recover) != accused):
            raise BrokenError(f"{short(address)} accuses {short(accused)}, which is honest")

    def proposes(self, sender: Address, message: Message) -> None:
        """Anybody says something: remember what the proposer of a view proposed and might propose."""
        if isinstance(message, Proposal) and message.height <= len(self._world.decided) + 1:
            proposers = self._world.proposers(message.height)
            if proposers[message.view % len(proposers)] == sender and is_justified(message, sender, proposers):
                self._proposed.add((message.height, message.view, message.digest))

    def says(self, address: Address, message: Message) -> None:
        """An honest member says one thing in a view, and nothing new in a view that it has given up."""
        if not self._watch_votes:
            return
        self.proposes(address, message)
        content = message.prepared if isinstance(message, RoundChange) else message.digest
        said = self._votes.setdefault((address, message.height, type(message), message.view), content)
        if said != content:
            raise BrokenError(f"{short(address)} contradicts an earlier {told(message)}")
        if isinstance(message, Prepare) and (message.height, message.view, message.digest) not in self._proposed:
            raise BrokenError(f"{short(address)} prepares what its proposer had no reason to propose: {told(message)}")


def told(message: Message) -> str:
    """A message in a story."""
    match message:
        case RoundChange(prepared=prepared):
            what = (
                "without a lock" if prepared is None else f"locked on {short(prepared.digest)} of view {prepared.view}"
            )
        case Proposal() | Prepare() | Commit():
            what = short(message.digest)
    return f"{type(message).__name__} {message.height}/{message.view} {what} by {message.signature[44:45].hex()}"
