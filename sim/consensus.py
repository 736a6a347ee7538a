"""Does the ledger fork, or stop for ever? Thousands of small worlds with the real machines answer, one for each seed.

A world has a virtual clock, a network that delays, loses, doubles, reorders and divides, disks, crashes between any two
effects, clocks that run apart, and up to f traitors (`sim.traitors`). It heals after a while; then every honest member
must reach the last height. At no time may two of them hold different blocks, an invalid one or one without a valid
certificate, or contradict their own votes. Everything is drawn from the seed: the same seed is the same story.

    python -m sim.consensus --seeds 1000 --validators 4
    python -m sim.consensus --seeds 1 --validators 4 --seed-start 42 --story
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from heapq import heappop, heappush

from sim.cheap import CHAIN_ID, GENESIS, KeyedHash, builder_of, digest_of, is_valid, make_payload, recover
from sim.traitors import Heard, Traitor
from swarm.consensus import (
    Broadcast,
    Certificate,
    Consensus,
    Decide,
    Effect,
    Help,
    Save,
    check_certificate,
    faults_max,
    quorum,
)
from swarm.consensus.messages import Commit, Message, Prepare, Proposal, RoundChange, decode_message, encode_message
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError

TIMEOUT_S = 1.0
HEALED_S_MAX = 200.0
"""A healed world that is not through by then has stopped: half of them need 1 s, the slowest of 20,000 needed 60 s."""
EVENTS_MAX = 200_000


class BrokenError(Exception):
    """What must never happen has happened."""


@dataclass(frozen=True)
class Weather:
    """What the network, the disks and the members do to each other in one world, until it heals."""

    heal_s: float
    delay_s: float
    """Half of the messages need less than half of this."""
    slow: float
    """The share of messages that need some seconds."""
    loss: dict[type[Message], float]
    loss_after: float
    """A healed network may still lose some."""
    double: float
    divided_s: float
    """How long a division lasts; 0: there is none."""
    crash: float
    """The chance of a crash between two effects."""
    torn: float
    """The chance that a crash takes the last block with it; the votes were synced and stay."""
    nothing_to_build: float
    news_s: float
    """A decided block reaches a laggard within this time: a slow help lets a broken lock show."""
    traitors: int
    lost_for_good: int

    @classmethod
    def drawn(cls, rng: random.Random, validators: int, *, traitors: bool) -> Weather:
        """One of many: from calm to terrible."""
        terrible = rng.random()
        base = rng.choice((0.0, 0.1, 0.4)) * terrible
        kinds: tuple[type[Message], ...] = (Proposal, Prepare, Commit, RoundChange)
        loss = {kind: min(base + rng.choice((0.0, 0.0, 0.7)) * terrible, 0.9) for kind in kinds}
        if rng.random() < 0.4:  # who has decided is alone with it: only then a broken lock forks
            loss[Commit] = rng.uniform(0.4, 0.8)
        liars = faults_max(validators) if traitors and rng.random() < 0.7 else 0
        spare = validators - quorum(validators) - liars
        return cls(
            heal_s=rng.choice((5.0, 15.0, 30.0)),
            delay_s=rng.choice((0.01, 0.1, 0.5)),
            slow=rng.choice((0.0, 0.0, 0.1)) * terrible,
            loss=loss,
            loss_after=rng.choice((0.0, 0.0, 0.1)),
            double=rng.choice((0.0, 0.1)),
            divided_s=rng.choice((0.0, 0.0, 2.0, 10.0)),
            crash=rng.choice((0.0, 0.0, 0.02, 0.1)) * terrible,
            torn=rng.choice((0.0, 0.5)),
            nothing_to_build=rng.choice((0.0, 0.0, 0.3)),
            news_s=rng.choice((0.2, 6.0, 20.0)),
            traitors=liars,
            lost_for_good=rng.randint(0, spare) if rng.random() < 0.3 else 0,
        )

    def told(self) -> str:
        """One line for a story."""
        loss = ", ".join(f"{kind.__name__} {share:.2f}" for kind, share in self.loss.items())
        others = [f"{f.name} {getattr(self, f.name):g}" for f in fields(self) if f.name != "loss"]
        return f"weather: {', '.join(others)}; lost before it heals: {loss}"


class Member:
    """An honest validator: its disk, its clock, and while it runs its machine."""

    def __init__(self, address: Address, rng: random.Random) -> None:
        self.address = address
        self.keys = KeyedHash(address)
        self.chain: list[tuple[bytes, Certificate]] = []
        self.saved: dict[int, bytes] = {}
        self.consensus: Consensus | None = None
        self.life = 0
        self.built = 0
        self.tick_s: float | None = None
        self.syncing = False
        self.rate = rng.uniform(0.9, 1.1)
        self.offset_s = rng.uniform(0.0, 100.0)


class Simulation:
    """One world of one seed."""

    def __init__(
        self,
        seed: int,
        *,
        validators: int,
        heights: int = 3,
        traitors: bool = True,
        machine: type[Consensus] = Consensus,
        saves: bool = True,
        watch_votes: bool = True,
        certificates: Callable[..., None] = check_certificate,
        story: Callable[[str], None] | None = None,
    ) -> None:
        self.rng = rng = random.Random(seed * 1000 + validators)
        self.timeout_s = TIMEOUT_S
        self.now_s = 0.0
        self.heights = heights
        self.validators = tuple(bytes([index + 1]) * 20 for index in range(validators))
        self.decided: list[tuple[bytes, Certificate]] = []
        self.healed = False
        self.events = 0
        self.weather = weather = Weather.drawn(rng, validators, traitors=traitors)
        self._machine, self._saves, self._watch_votes, self._certificates = machine, saves, watch_votes, certificates
        self._story = story
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._proposers = [self.validators]
        self._votes: dict[tuple[Address, int, type[Message], int], object] = {}
        self._reached: dict[tuple[Address, int], int] = {}
        self._sides: dict[Address, int] = {}
        liars = set(rng.sample(self.validators, weather.traitors))
        self.members = {address: Member(address, rng) for address in self.validators if address not in liars}
        heard: defaultdict[int, Heard] = defaultdict(Heard)
        self.traitors = {address: Traitor(self, address, heard, Consensus) for address in liars}
        self._traitor_tick_s: dict[Address, float | None] = dict.fromkeys(liars)

    # --- the run

    def run(self) -> None:
        """Play the world to its end; BrokenError says what went wrong."""
        if self._story:
            self._story(self.weather.told())
        for address in self.members:
            self._start(address)
        for address in self.traitors:
            self._at(self.rng.uniform(0, 2), partial(self._traitor_wakes, address))
        if self.weather.divided_s:
            self._at(self.rng.uniform(0, self.weather.heal_s), self._divide)
        self._at(self.weather.heal_s, self._heal)
        queue = self._queue
        limit_s = self.weather.heal_s + HEALED_S_MAX
        while queue:
            self.now_s, _, act = heappop(queue)
            act()
            self.events += 1
            if self.healed and self._through():
                return
            if self.now_s > limit_s or self.events > EVENTS_MAX:
                break
        raise BrokenError(
            f"it stopped: {self.events} events and {self.now_s - self.weather.heal_s:.0f} s after the network healed, "
            f"heights are {[len(member.chain) for member in self.members.values()]} of {self.heights}"
        )

    def _through(self) -> bool:
        return all(len(m.chain) >= self.heights for m in self.members.values() if m.consensus is not None)

    def _at(self, time_s: float, act: Callable[[], None]) -> None:
        self._sequence += 1
        heappush(self._queue, (time_s, self._sequence, act))

    def _tell(self, member: Address, what: str) -> None:
        if self._story:
            self._story(f"{self.now_s:8.3f} {short(member)[:2]} {what}")

    # --- what a traitor may ask (sim.traitors.World)

    @property
    def heights_open(self) -> range:
        """The heights that somebody honest is still at, and the next; a traitor knows all."""
        return range(min(len(member.chain) for member in self.members.values()) + 1, len(self.decided) + 2)

    def proposers(self, height: int) -> tuple[Address, ...]:
        """The ledger's rule: who built the last block goes on, and now and then the next one begins."""
        while len(self._proposers) < height:
            builder = builder_of(self.decided[len(self._proposers) - 1][0])
            first = self.validators.index(builder) + (len(self._proposers) % 4 == 0)
            first %= len(self.validators)
            self._proposers.append(self.validators[first:] + self.validators[:first])
        return self._proposers[height - 1]

    def parent(self, height: int) -> Digest:
        """The digest of the block below a height."""
        return digest_of(self.decided[height - 2][0]) if height > 1 else GENESIS

    def post(self, sender: Address, receiver: Address, message: Message) -> None:
        """Hand a message to the network, which does with it what the weather says."""
        rng, weather = self.rng, self.weather
        if self.healed:
            if rng.random() < weather.loss_after:
                return
            self._at(self.now_s + rng.random() * min(weather.delay_s, 0.1), partial(self._deliver, receiver, message))
            return
        if self._sides and self._sides[sender] != self._sides[receiver]:
            return
        if rng.random() < weather.loss[type(message)]:
            return
        for _ in range(2 if rng.random() < weather.double else 1):
            delay_s = rng.random() * (5.0 if rng.random() < weather.slow else weather.delay_s)
            self._at(self.now_s + delay_s, partial(self._deliver, receiver, message))

    def show(self, sender: Address, receiver: Address, payload: bytes, certificate: Certificate) -> None:
        """Send a decided block, or what is passed off as one."""
        if self._sides and self._sides[sender] != self._sides[receiver]:
            return
        if self.rng.random() < (self.weather.loss_after if self.healed else self.weather.loss[Commit]):
            return
        delay_s = self.rng.random() * self.weather.news_s
        self._at(self.now_s + delay_s, partial(self._show, receiver, payload, certificate))

    # --- events

    def _deliver(self, address: Address, message: Message) -> None:
        member, traitor = self.members.get(address), self.traitors.get(address)
        if traitor is not None:
            traitor.hear(message)
            self._arm_traitor(address)
        if member is None or member.consensus is None:
            return
        consensus = member.consensus
        try:
            if self._sequence % 64 == 0:
                effects = consensus.receive(encode_message(message), self._clock(member))
            else:
                effects = consensus.accept(message, self._clock(member))
        except PeerError as error:
            self._tell(address, f"refuses {_short(message)}: {error}")
            return
        if effects and self._story:
            self._tell(address, f"got {_short(message)}")
        self._perform(member, effects)
        if consensus.height_seen > consensus.height and not member.syncing:
            member.syncing = True
            self._at(self.now_s + self.rng.random() * self.weather.news_s, partial(self._sync, member))

    def _tick(self, member: Member, life: int, tick_s: float) -> None:
        if member.life != life or member.tick_s != tick_s or member.consensus is None:
            return
        member.tick_s = None
        self._tell(member.address, f"deadline in view {member.consensus.view}")
        self._perform(member, member.consensus.tick(self._clock(member)))

    def _wake(self, member: Member, life: int, height: int) -> None:
        """A transaction waits at this member, until a block takes it."""
        consensus = member.consensus
        if consensus is None or member.life != life or consensus.height != height or len(member.chain) >= height:
            return
        self._at(self.now_s + 3.0, partial(self._wake, member, life, height))
        self._perform(member, consensus.wake(self._clock(member)))

    def _sync(self, member: Member) -> None:
        member.syncing = False
        others = [other for other in self.members.values() if len(other.chain) > len(member.chain)]
        if member.consensus is not None and others:
            source = self.rng.choice(others)
            for payload, certificate in source.chain[len(member.chain) :]:
                self.show(source.address, member.address, payload, certificate)

    def _show(self, address: Address, payload: bytes, certificate: Certificate) -> None:
        member = self.members.get(address)
        if member is None or member.consensus is None:
            return
        height = len(member.chain) + 1
        if payload[5:9] != height.to_bytes(4, "big") or height > len(self.decided) + 1:
            return
        try:
            self._check(height, payload, certificate)
        except PeerError as error:
            self._tell(address, f"refuses a block: {error}")
            return
        self._append(member, payload, certificate, "is shown")

    def _start(self, address: Address) -> None:
        member = self.members.get(address)
        if member is None or member.consensus is not None:
            return
        height = len(member.chain) + 1
        member.consensus = self._machine(
            chain_id=CHAIN_ID,
            height=height,
            proposers=self.proposers(height),
            authenticator=member.keys,
            build=partial(self._build, member),
            judge=partial(self._judge, member),
            digest_of=digest_of,
            timeout_s=TIMEOUT_S,
            saved=member.saved.get(height),
            now_s=self._clock(member),
        )
        if member.life:
            self._tell(address, f"is back at height {height}" + (", with votes" if height in member.saved else ""))
        self._expect_transaction(member)
        self._perform(member, member.consensus.resume(self._clock(member)))

    def _crash(self, member: Member) -> None:
        member.consensus, member.tick_s = None, None
        member.life += 1
        torn = bool(member.chain) and self.rng.random() < self.weather.torn
        if torn:
            member.chain.pop()
        self._tell(member.address, "crashes" + (" and loses its last block" if torn else ""))
        self._at(self.now_s + self.rng.uniform(0.05, 4.0), partial(self._start, member.address))

    def _divide(self) -> None:
        self._sides = {address: self.rng.randrange(2) for address in self.validators}
        self._tell(self.validators[0], f"the network divides: {list(self._sides.values())}")
        self._at(self.now_s + self.weather.divided_s, self._join)

    def _join(self) -> None:
        self._sides = {}
        self._tell(self.validators[0], "the network is whole again")

    def _heal(self) -> None:
        self._join()
        self.healed = True
        dead = self.rng.sample(sorted(self.members), self.weather.lost_for_good)
        for address in dead:
            self._tell(address, "is gone for good")
            member = self.members.pop(address)
            member.consensus, member.life = None, member.life + 1
        for address in self.members:
            self._start(address)

    def _traitor_wakes(self, address: Address) -> None:
        self.traitors[address].wake()
        self._arm_traitor(address)
        if not self.healed:
            self._at(self.now_s + self.rng.uniform(1, 4), partial(self._traitor_wakes, address))

    def _traitor_ticks(self, address: Address, tick_s: float) -> None:
        if self._traitor_tick_s[address] == tick_s:
            self._traitor_tick_s[address] = None
            self.traitors[address].tick()
            self._arm_traitor(address)

    # --- what an honest member's shell does

    def _perform(self, member: Member, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if self.weather.crash and not self.healed and self.rng.random() < self.weather.crash:
                self._crash(member)
                return
            match effect:
                case Save(record=record, height=height):
                    if self._saves:
                        member.saved[height] = record
                case Broadcast(message=data):
                    message = decode_message(data)
                    self._watch(member.address, message)
                    self._tell(member.address, f"sends {_short(message)}")
                    for receiver in self.validators:
                        if receiver != member.address:
                            self.post(member.address, receiver, message)
                case Decide(payload=payload, certificate=certificate, height=height):
                    try:
                        self._check(height, payload, certificate)
                    except PeerError as error:
                        raise BrokenError(f"{short(member.address)} decided without a certificate: {error}") from error
                    self._append(member, payload, certificate, "decides")
                case Help(member=laggard, height=height):
                    if height <= len(member.chain):
                        self.show(member.address, laggard, *member.chain[height - 1])
        self._arm(member)

    def _append(self, member: Member, payload: bytes, certificate: Certificate, how: str) -> None:
        height, digest = len(member.chain) + 1, digest_of(payload)
        self._tell(member.address, f"{how} {short(digest)} at height {height}, view {certificate.view}")
        if height <= len(self.decided):
            agreed = digest_of(self.decided[height - 1][0])
            if digest != agreed:
                raise BrokenError(
                    f"a fork: {short(member.address)} has {short(digest)} at height {height}, "
                    f"others have {short(agreed)}"
                )
        elif not is_valid(payload, height=height, parent=self.parent(height)):
            raise BrokenError(f"{short(member.address)} decided an invalid block at height {height}")
        else:
            self.decided.append((payload, certificate))
        member.chain.append((payload, certificate))
        assert member.consensus is not None
        effects = member.consensus.advance(
            height + 1, self.proposers(height + 1), self._clock(member), saved=member.saved.get(height + 1)
        )
        self._expect_transaction(member)
        self._perform(member, effects)

    def _expect_transaction(self, member: Member) -> None:
        height = len(member.chain) + 1
        if height <= self.heights:
            late = self.rng.random() < 0.3
            wait_s = self.rng.random() * (6.0 if late else 0.2)
            self._at(self.now_s + wait_s, partial(self._wake, member, member.life, height))

    def _build(self, member: Member) -> bytes | None:
        if not self.healed and self.rng.random() < self.weather.nothing_to_build:
            return None
        member.built += 1
        height = len(member.chain) + 1
        counter = member.life * 1000 + member.built
        return make_payload(height=height, parent=self.parent(height), builder=member.address, counter=counter)

    def _judge(self, member: Member, payload: bytes) -> bool:
        height = len(member.chain) + 1
        return is_valid(payload, height=height, parent=self.parent(height))

    def _arm(self, member: Member) -> None:
        if member.consensus is None or member.consensus.deadline_s is None:
            member.tick_s = None
            return
        tick_s = max(self.now_s, (member.consensus.deadline_s - member.offset_s) / member.rate + 1e-9)
        if tick_s != member.tick_s:
            member.tick_s = tick_s
            self._at(tick_s, partial(self._tick, member, member.life, tick_s))

    def _arm_traitor(self, address: Address) -> None:
        deadline_s = self.traitors[address].deadline_s
        if deadline_s is not None and deadline_s != self._traitor_tick_s[address]:
            self._traitor_tick_s[address] = deadline_s
            self._at(max(self.now_s, deadline_s), partial(self._traitor_ticks, address, deadline_s))

    def _clock(self, member: Member) -> float:
        return self.now_s * member.rate + member.offset_s

    # --- what must hold

    def _check(self, height: int, payload: bytes, certificate: Certificate) -> None:
        self._certificates(
            certificate,
            chain_id=CHAIN_ID,
            height=height,
            digest=digest_of(payload),
            validators=self.validators,
            recover=recover,
        )

    def _watch(self, address: Address, message: Message) -> None:
        """An honest member says one thing in a view, and nothing new in a view that it has given up."""
        if not self._watch_votes:
            return
        content = message.prepared if isinstance(message, RoundChange) else message.digest
        said = self._votes.setdefault((address, message.height, type(message), message.view), content)
        if said != content:
            raise BrokenError(f"{short(address)} contradicts an earlier {_short(message)}")


@dataclass(frozen=True)
class Outcome:
    """How one world ended."""

    seed: int
    failure: str | None
    events: int
    healed_s: float
    """The virtual time it needed after it healed."""
    views: int
    """The highest view in which a block was decided."""


def run_seed(seed: int, **settings: object) -> Outcome:
    """Play one world; the settings are `Simulation`'s."""
    world = Simulation(seed, **settings)  # type: ignore[arg-type]
    failure = None
    try:
        world.run()
    except BrokenError as error:
        failure = str(error)
    views = max((certificate.view for _, certificate in world.decided), default=0)
    return Outcome(seed, failure, world.events, world.now_s - world.weather.heal_s, views)


def _short(message: Message) -> str:
    match message:
        case RoundChange(prepared=prepared):
            what = (
                "without a lock" if prepared is None else f"locked on {short(prepared.digest)} of view {prepared.view}"
            )
        case Proposal() | Prepare() | Commit():
            what = short(message.digest)
    return f"{type(message).__name__} {message.height}/{message.view} {what} by {message.signature[44:45].hex()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play many worlds; the exit status is 1 if one broke."""
    parser = argparse.ArgumentParser(prog="python -m sim.consensus", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds")
    parser.add_argument("--seed-start", type=int, default=0, help="the first seed")
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--heights", type=int, default=3, help="blocks in each world")
    parser.add_argument("--no-traitors", action="store_true", help="everybody is honest")
    parser.add_argument("--story", action="store_true", help="print every event")
    options = parser.parse_args(arguments)
    story = print if options.story else None
    began_s = time.process_time()
    outcomes = []
    for seed in range(options.seed_start, options.seed_start + options.seeds):
        outcome = run_seed(
            seed,
            validators=options.validators,
            heights=options.heights,
            traitors=not options.no_traitors,
            story=story,
        )
        outcomes.append(outcome)
        if outcome.failure:
            print(f"seed {seed}: {outcome.failure}")
            again = f"--seeds 1 --seed-start {seed} --validators {options.validators} --heights {options.heights}"
            print(f"see it: python -m sim.consensus {again}{' --no-traitors' * options.no_traitors} --story")
            return 1
    took_s = time.process_time() - began_s
    waits = sorted(outcome.healed_s for outcome in outcomes)
    print(
        f"{len(outcomes)} seeds held, {len(outcomes) / took_s:.0f} a second of one core; "
        f"{sum(outcome.events for outcome in outcomes) / len(outcomes):.0f} events each; "
        f"blocks decided in views up to {max(outcome.views for outcome in outcomes)}; "
        f"healed worlds were through in {waits[len(waits) // 2]:.1f} s (median), {waits[-1]:.0f} s (longest)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
