"""Dishonest validators: everything that one can do with its own key and with what the others sent it.

A traitor runs twins: two honest machines with one key, each of which speaks to some of the others, so that it
proposes and votes twice, forgets and contradicts itself in believable ways (Bano et al., Twins, 2020). Habits drawn
from the seed come on top: it hides its lock, keeps round changes back, votes for all it hears of, forges
justifications and certificates, proposes what is invalid. All traitors of a world know what any of them has heard.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sim.cheap import CHAIN_ID, KeyedHash, digest_of, make_payload
from swarm.consensus import Broadcast, Certificate, Consensus, Effect
from swarm.consensus.messages import (
    Commit,
    Message,
    Prepare,
    Prepared,
    Promise,
    Proposal,
    RoundChange,
    commit_digest,
    decode_message,
    prepare_digest,
    proposal_digest,
    round_change_digest,
)
from swarm.encoding import Address, Digest
from swarm.errors import PeerError
from swarm.quorum import quorum


class World(Protocol):
    """What a traitor can do to the world."""

    now_s: float
    rng: random.Random
    timeout_s: float
    heights: int
    everybody: tuple[Address, ...]
    """All who vote at some height."""

    @property
    def heights_open(self) -> range:
        """The heights that somebody honest is still at, and the next; a traitor knows all."""

    def proposers(self, height: int) -> tuple[Address, ...]:
        """Who proposes at a height, by view."""

    def post(self, sender: Address, receiver: Address, message: Message) -> None:
        """Hand a message to the network."""

    def parent(self, height: int) -> Digest:
        """The digest of the block below a height."""

    def show(self, sender: Address, receiver: Address, payload: bytes, certificate: Certificate) -> None:
        """Claim to a member that this was decided."""


@dataclass
class Heard:
    """What the traitors of a world have heard about one height, together."""

    proposals: dict[tuple[int, Digest], Proposal] = field(default_factory=dict)
    prepares: dict[tuple[int, Digest], dict[Address, bytes]] = field(default_factory=dict)
    commits: dict[tuple[int, Digest], dict[Address, bytes]] = field(default_factory=dict)
    changes: dict[int, dict[Address, RoundChange]] = field(default_factory=dict)

    def note(self, message: Message) -> None:
        """Remember a message."""
        sender = message.signature[44:64]
        match message:
            case Proposal():
                self.proposals[message.view, message.digest] = message
            case Prepare():
                self.prepares.setdefault((message.view, message.digest), {})[sender] = message.signature
            case Commit():
                self.commits.setdefault((message.view, message.digest), {})[sender] = message.signature
            case RoundChange():
                self.changes.setdefault(message.view, {})[sender] = message


@dataclass(frozen=True)
class Habits:
    """How often a traitor does what; each a probability."""

    hide_lock: float
    withhold: float
    vote_for_all: float
    forge: float
    mislead: float
    invalid: float
    usurp: float
    single_out: float

    @classmethod
    def drawn(cls, rng: random.Random) -> Habits:
        """Some habits strong, some absent."""
        return cls(*(rng.choice((0.0, 0.3, 1.0)) for _ in range(8)))


class Traitor:
    """One dishonest validator and its twins."""

    def __init__(self, world: World, me: Address, heard: defaultdict[int, Heard], machine: type[Consensus]) -> None:
        self.me = me
        self._world = world
        self._heard = heard
        self._keys = KeyedHash(me)
        self._habits = Habits.drawn(world.rng)
        self._counter = 0
        self._voted: set[tuple[int, int, Digest]] = set()
        self._forged: set[tuple[int, int]] = set()
        self._machine = machine
        self._heights = [1, 1]
        self._twins: list[Consensus | None] = [self._twin(side, 1) for side in range(2)]
        self._sides: dict[Address, int] = {}
        self.take_sides()

    @property
    def deadline_s(self) -> float | None:
        """When `tick` is due."""
        return min((t.deadline_s for t in self._twins if t is not None and t.deadline_s is not None), default=None)

    def take_sides(self) -> None:
        """Choose anew which twin speaks to whom."""
        for member in self._world.everybody:
            self._sides[member] = int(self._world.rng.random() < 0.5)

    def wake(self) -> None:
        """A transaction waits."""
        self._keep_up()
        for side, twin in enumerate(self._twins):
            if twin is not None and twin.height <= self._world.heights:
                self._speak(side, twin.wake(self._world.now_s))

    def tick(self) -> None:
        """The time of a twin has come."""
        self._keep_up()
        if self._world.rng.random() < 0.3:
            self.take_sides()
        for side, twin in enumerate(self._twins):
            if twin is not None:
                self._speak(side, twin.tick(self._world.now_s))

    def hear(self, message: Message) -> None:
        """Use a message against everybody."""
        rng = self._world.rng
        self._keep_up()
        self._heard[message.height].note(message)
        for side, twin in enumerate(self._twins):
            if twin is not None and rng.random() < 0.8:
                try:
                    self._speak(side, twin.accept(message, self._world.now_s))
                except PeerError:
                    continue  # a traitor does not complain
        if isinstance(message, RoundChange):
            if rng.random() < self._habits.forge:
                self._forge_proposal(message.height, message.view)
        elif rng.random() < self._habits.vote_for_all:
            self._vote_for(message.height, message.view, message.digest)
        if isinstance(message, Prepare) and rng.random() < self._habits.usurp:
            self._usurp(message.height, message.view)
        if isinstance(message, Commit) and rng.random() < self._habits.mislead:
            self._forge_certificate(message)

    def _twin(self, side: int, height: int) -> Consensus | None:
        """A machine for a height, unless this validator sits out there."""
        proposers = self._world.proposers(height)
        if self.me not in proposers:
            return None
        return self._machine(
            chain_id=CHAIN_ID,
            height=height,
            proposers=proposers,
            authenticator=self._keys,
            build=lambda: self._build(self._heights[side]),
            judge=lambda payload, proposer: True,
            digest_of=digest_of,
            timeout_s=self._world.timeout_s,
            now_s=self._world.now_s,
        )

    def _keep_up(self) -> None:
        """One twin goes on with the first who decide, the other stays with the last who have not."""
        heights = self._world.heights_open
        for side, height in enumerate((heights[-1], heights[0])):
            if self._heights[side] >= height:
                continue
            self._heights[side] = height
            twin, proposers = self._twins[side], self._world.proposers(height)
            if twin is None or self.me not in proposers:
                self._twins[side] = twin = self._twin(side, height)
            else:
                self._speak(side, twin.advance(height, proposers, self._world.now_s))
            if twin is not None and height <= self._world.heights:
                self._speak(side, twin.wake(self._world.now_s))

    def _build(self, height: int) -> bytes:
        """A block; now and then one that is invalid, or in another's name, who would propose the next one too."""
        self._counter += 1
        valid = self._world.rng.random() >= self._habits.invalid / 2
        builder = self.me
        if not valid and self._counter % 2:
            valid, builder = True, next(one for one in self._world.proposers(height) if one != self.me)
        return make_payload(
            height=height, parent=self._world.parent(height), builder=builder, counter=self._counter, valid=valid
        )

    def _speak(self, side: int, effects: Sequence[Effect]) -> None:
        """Send what a twin wants sent, changed by habit, to those whom this twin speaks to."""
        rng = self._world.rng
        for effect in effects:
            if not isinstance(effect, Broadcast):
                continue
            message = decode_message(effect.message)
            if isinstance(message, RoundChange):
                if rng.random() < self._habits.withhold:
                    continue
                if message.prepared is not None and rng.random() < self._habits.hide_lock:
                    message = self._round_change(message.height, message.view)
            self._heard[message.height].note(message)
            if isinstance(message, Prepare | Commit) and rng.random() < self._habits.single_out:
                # Then one member alone is locked, or has decided, and all depends on what the others learn of it.
                self._world.post(self.me, rng.choice(self._world.proposers(message.height)), message)
                continue
            for member in self._world.everybody:
                if member != self.me and self._sides[member] == side:
                    self._world.post(self.me, member, message)

    def _to_some(self, message: Message) -> None:
        for member in self._world.everybody:
            if member != self.me and self._world.rng.random() < 0.7:
                self._world.post(self.me, member, message)

    def _round_change(self, height: int, view: int) -> RoundChange:
        signature = self._keys.sign(round_change_digest(CHAIN_ID, height, view, None))
        return RoundChange(height, view, None, signature)

    def _vote_for(self, height: int, view: int, digest: Digest) -> None:
        if (height, view, digest) in self._voted:
            return
        self._voted.add((height, view, digest))
        prepare = self._keys.sign(prepare_digest(CHAIN_ID, height, view, digest))
        commit = self._keys.sign(commit_digest(CHAIN_ID, height, view, digest))
        for message in (Prepare(height, view, digest, prepare), Commit(height, view, digest, commit)):
            self._heard[message.height].note(message)
            self._to_some(message)

    def _usurp(self, height: int, view: int) -> None:
        """Propose in another's view; in the first one nothing else would be wrong with it."""
        if height in self._world.heights_open and (height, -1 - view) not in self._forged:
            self._forged.add((height, -1 - view))
            payload = self._build(height)
            signature = self._keys.sign(proposal_digest(CHAIN_ID, height, view, digest_of(payload)))
            self._to_some(Proposal(height, view, digest_of(payload), signature, payload))

    def _forge_proposal(self, height: int, view: int) -> None:
        """As the proposer of a view, propose against the lock with a justification that only looks right."""
        if height not in self._world.heights_open:
            return
        proposers = self._world.proposers(height)
        if proposers[view % len(proposers)] != self.me:
            return
        rng, heard = self._world.rng, self._heard[height]
        changes = dict(heard.changes.get(view, {}))
        if len(changes) + 1 < quorum(len(proposers)) or (height, view) in self._forged:
            return
        self._forged.add((height, view))
        if rng.random() < 0.5:
            changes[self.me] = self._round_change(height, view)
        needed = quorum(len(proposers))
        locked = [c for c in changes.values() if c.prepared is not None]
        promises = [Promise(c.prepared, c.signature) for c in changes.values()]
        rng.shuffle(promises)
        free = [promise for promise in promises if promise.prepared is None]
        payload = self._build(height)
        prepares: tuple[bytes, ...] = ()
        shown = promises
        split = len({c.prepared.digest for c in locked if c.prepared is not None}) > 1
        match 2 if split and rng.random() < 0.8 else rng.randrange(7):
            case 0:  # those without a lock, though they are too few
                shown = free
            case 1:  # the locks are there and not obeyed
                pass
            case 2 if locked:  # the lowest lock instead of the highest
                lowest = min(locked, key=lambda c: c.prepared.view if c.prepared else 0)
                payload, prepares = lowest.payload, lowest.prepares
            case 3 if free:  # one promise repeated until they are enough
                shown = (free * needed)[:needed]
            case 4:  # promises of other views
                shown = [Promise(None, c.signature) for those in heard.changes.values() for c in those.values()]
            case 5:  # nothing at all
                shown = []
            case _:  # a lock that never was, with prepares of something else
                claim = Prepared(view - 1, digest_of(payload))
                signature = self._keys.sign(round_change_digest(CHAIN_ID, height, view, claim))
                shown = [*free[: needed - 1], Promise(claim, signature)]
                others = [s for votes in heard.prepares.values() for s in votes.values()]
                mine = self._keys.sign(prepare_digest(CHAIN_ID, height, claim.view, claim.digest))
                prepares = (mine, *others)[:needed]
        digest = digest_of(payload)
        signature = self._keys.sign(proposal_digest(CHAIN_ID, height, view, digest))
        proposal = Proposal(height, view, digest, signature, payload, tuple(shown[: len(proposers)]), prepares)
        self._to_some(proposal)
        if rng.random() < 0.3:
            self._to_some(replace(proposal, prepares=()))

    def _forge_certificate(self, message: Commit) -> None:
        """Seals of several views, or too few, or one of them twice, passed off as a decision."""
        heard = self._heard[message.height]
        proposal = next((p for (_, digest), p in heard.proposals.items() if digest == message.digest), None)
        if proposal is None:
            return
        seals = {self.me: self._keys.sign(commit_digest(CHAIN_ID, message.height, message.view, message.digest))}
        for (_, digest), votes in heard.commits.items():
            if digest == message.digest:
                seals.update(votes)
        ordered = [seal for _, seal in sorted(seals.items())]
        if self._world.rng.random() < 0.3:
            ordered = (ordered * 3)[: quorum(len(self._world.proposers(message.height)))]
        certificate = Certificate(message.view, tuple(ordered))
        for member in self._world.everybody:
            if member != self.me and self._world.rng.random() < 0.3:
                self._world.show(self.me, member, proposal.payload, certificate)
