"""Does the ledger fork, or stop for ever? One small world of validators with the real machines answers for each seed.

A world has a virtual clock, a network that delays, loses, doubles, reorders and divides, disks that are slow, crashes
between any two effects and in the middle of a write, clocks that run apart, validators that change with a block, and up
to f traitors (`sim.traitors`). It heals after a while (`sim.weather`); then every honest member must reach the last
height. At no time may two of them hold different blocks, an invalid one or one without a valid certificate, contradict
their own votes, or prepare what the view's proposer had no reason to propose (`sim.witness`). Everything is drawn
from the seed: the same seed is the same story. Many seeds are `sim.consensus`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from heapq import heappop, heappush

from sim.cheap import (
    CHAIN_ID,
    GENESIS,
    KeyedHash,
    builder_of,
    digest_of,
    is_valid,
    make_payload,
    validator_addresses,
)
from sim.traitors import Heard, Traitor
from sim.weather import Weather
from sim.witness import BrokenError, Witness, told
from swarm.consensus import (
    Accuse,
    Broadcast,
    Certificate,
    Consensus,
    Decide,
    Effect,
    Help,
    Save,
    check_certificate,
    turns,
)
from swarm.consensus.messages import Commit, Message, decode_message, encode_message
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError

TIMEOUT_S = 1.0
HEALED_S_MAX = 118.0
"""A healed world that is not through by then has stopped: half of them need 3 s, the slowest of 5,000 needed 73 s.
Where every message needs longer than the first views last, each height takes several of them: three times as long."""
EVENTS_MAX = 200_000
BEAT_S = 2.0
"""How often a member tells another how far it is: who does not vote hears of blocks in no other way."""


class Member:
    """An honest validator: its disk, its clock, and while it runs its machine."""

    def __init__(self, address: Address, rng: random.Random) -> None:
        self.address = address
        self.keys = KeyedHash(address)
        self.chain: list[tuple[bytes, Certificate]] = []
        self.saved: dict[int, bytes] = {}
        self.consensus: Consensus | None = None
        self.up = False
        self.life = 0
        self.built = 0
        self.tick_s: float | None = None
        self.syncing = False
        self.writing: list[Callable[[], None]] | None = None
        """While a vote is on its way to the disk: what waits for it."""
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
        self.crashes = 0
        self.changes = 0
        self.accusations = 0
        self.now_s = 0.0
        self.heights = heights
        self.decided: list[tuple[bytes, Certificate]] = []
        self.healed = False
        self.events = 0
        self.weather = weather = Weather.drawn(rng, validators, traitors=traitors)
        self.everybody = validator_addresses(validators + weather.changes)
        self._machine, self._saves = machine, saves
        self._witness = Witness(self, watch_votes=watch_votes, certificates=certificates)
        self._story = story
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._validators = [self.everybody[:validators]]
        self._proposers = [self.everybody[:validators]]
        self._sides: dict[Address, int] = {}
        liars = rng.sample(self.everybody, weather.traitors)
        self.members = {address: Member(address, rng) for address in self.everybody if address not in liars}
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
        for _ in range(self.weather.divisions):
            self._at(self.rng.uniform(0, self.weather.heal_s), self._divide)
        if self.weather.changes:
            for address in self.members:
                self._at(self.rng.uniform(0, BEAT_S), partial(self._beat, address))
        self._at(self.weather.heal_s, self._heal)
        queue = self._queue
        limit_s = self.weather.heal_s + HEALED_S_MAX * (3 if self.weather.least_after_s else 1)
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
        return all(len(m.chain) >= self.heights for m in self.members.values() if m.up)

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
            last = len(self._proposers)
            builder, order = builder_of(self.decided[last - 1][0]), self.validators(last + 1)
            self._proposers.append(turns(order, builder, passes=last % 4 == 0))
        return self._proposers[height - 1]

    def validators(self, height: int) -> tuple[Address, ...]:
        """Who decides a height, sorted: a block's digest says whether somebody else sits out from the next one on."""
        while len(self._validators) < height:
            digest, found = digest_of(self.decided[len(self._validators) - 1][0]), self._validators[-1]
            if self.weather.changes and digest[0] < 128:
                out = self.everybody[digest[1] % len(self.everybody)]
                self.changes += out in found
                found = tuple(address for address in self.everybody if address != out)
            self._validators.append(found)
        return self._validators[height - 1]

    def parent(self, height: int) -> Digest:
        """The digest of the block below a height."""
        return digest_of(self.decided[height - 2][0]) if height > 1 else GENESIS

    def post(self, sender: Address, receiver: Address, message: Message) -> None:
        """Hand a message to the network, which does with it what the weather says."""
        rng, weather = self.rng, self.weather
        if sender in self.traitors:
            self._witness.proposes(sender, message)
        if self.healed:
            if rng.random() < weather.loss_after:
                return
            delay_s = weather.least_after_s + rng.random() * min(weather.delay_s, 0.1)
            self._at(self.now_s + delay_s, partial(self._deliver, receiver, message))
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
        if member is None or member.consensus is None or self._waits(member, partial(self._deliver, address, message)):
            return
        consensus = member.consensus
        try:
            if self._sequence % 64 == 0:
                effects = consensus.receive(encode_message(message), self._clock(member))
            else:
                effects = consensus.accept(message, self._clock(member))
        except PeerError as error:
            self._tell(address, f"refuses {told(message)}: {error}")
            return
        if effects and self._story:
            self._tell(address, f"got {told(message)}")
        self._perform(member, effects)
        if consensus.height_seen > consensus.height and not member.syncing:
            member.syncing = True
            self._at(self.now_s + self.rng.random() * self.weather.news_s, partial(self._sync, member))

    def _tick(self, member: Member, life: int, tick_s: float) -> None:
        if member.life != life or member.tick_s != tick_s or member.consensus is None:
            return
        if self._waits(member, partial(self._tick, member, life, tick_s)):
            return
        member.tick_s = None
        self._tell(member.address, f"deadline in view {member.consensus.view}")
        self._perform(member, member.consensus.tick(self._clock(member)))

    def _wake(self, member: Member, life: int, height: int) -> None:
        """A transaction waits at this member, until a block takes it."""
        consensus = member.consensus
        if consensus is None or member.life != life or consensus.height != height or len(member.chain) >= height:
            return
        if self._waits(member, partial(self._wake, member, life, height)):
            return
        self._at(self.now_s + 3.0, partial(self._wake, member, life, height))
        self._perform(member, consensus.wake(self._clock(member)))

    def _sync(self, member: Member) -> None:
        member.syncing = False
        others = [other for other in self.members.values() if len(other.chain) > len(member.chain)]
        if member.up and others:
            source = self.rng.choice(others)
            for payload, certificate in source.chain[len(member.chain) :]:
                self.show(source.address, member.address, payload, certificate)

    def _show(self, address: Address, payload: bytes, certificate: Certificate) -> None:
        member = self.members.get(address)
        if member is None or not member.up or self._waits(member, partial(self._show, address, payload, certificate)):
            return
        height = len(member.chain) + 1
        if payload[5:9] != height.to_bytes(4, "big") or height > len(self.decided) + 1:
            return
        try:
            self._witness.check_certified(height, payload, certificate)
        except PeerError as error:
            self._tell(address, f"refuses a block: {error}")
            return
        self._append(member, payload, certificate, "is shown")

    def _beat(self, address: Address) -> None:
        member = self.members.get(address)
        if member is None:
            return
        if member.up and not member.syncing:
            self._sync(member)
        self._at(self.now_s + BEAT_S, partial(self._beat, address))

    def _start(self, address: Address) -> None:
        member = self.members.get(address)
        if member is None or member.up:
            return
        member.up = True
        height = len(member.chain) + 1
        if member.life:
            self._tell(address, f"is back at height {height}" + (", with votes" if height in member.saved else ""))
        self._enter_height(member)

    def _enter_height(self, member: Member) -> None:
        """Take part in the next decision, or follow."""
        height = len(member.chain) + 1
        proposers, saved, clock_s = self.proposers(height), member.saved.get(height), self._clock(member)
        if member.address not in proposers:
            member.consensus = None
            self._arm(member)
            return
        if member.consensus is not None:
            effects = member.consensus.advance(height, proposers, clock_s, saved=saved)
        else:
            member.consensus = self._machine(
                chain_id=CHAIN_ID,
                height=height,
                proposers=proposers,
                authenticator=member.keys,
                build=partial(self._build, member),
                judge=partial(self._judge, member),
                digest_of=digest_of,
                timeout_s=TIMEOUT_S,
                saved=saved,
                now_s=clock_s,
            )
            effects = member.consensus.resume(clock_s)
        self._expect_transaction(member)
        self._perform(member, effects)

    def _crash(self, member: Member) -> None:
        member.up, member.consensus, member.tick_s, member.writing = False, None, None, None
        member.life += 1
        self.crashes += 1
        torn = bool(member.chain) and self.rng.random() < self.weather.torn
        if torn:
            member.chain.pop()
        self._tell(member.address, "crashes" + (" and loses its last block" if torn else ""))
        self._at(self.now_s + self.rng.uniform(0.05, 4.0), partial(self._start, member.address))

    def _divide(self) -> None:
        if self.healed:
            return
        self._sides = {address: self.rng.randrange(2) for address in self.everybody}
        self._tell(self.everybody[0], f"the network divides: {list(self._sides.values())}")
        self._at(self.now_s + self.weather.divided_s, self._join)

    def _join(self) -> None:
        self._sides = {}
        self._tell(self.everybody[0], "the network is whole again")

    def _heal(self) -> None:
        self._join()
        self.healed = True
        dead = self.rng.sample(sorted(self.members), self.weather.lost_for_good)
        for address in dead:
            self._tell(address, "is gone for good")
            member = self.members.pop(address)
            member.up, member.consensus, member.life = False, None, member.life + 1
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

    def _waits(self, member: Member, act: Callable[[], None]) -> bool:
        """Whether the member is busy writing; then the act comes after that."""
        if member.writing is None:
            return False
        member.writing.append(act)
        return True

    def _written(self, member: Member, life: int, save: Save, rest: Sequence[Effect]) -> None:
        """A vote has reached the disk, or a crash came meanwhile: then all of it is there, or nothing."""
        if member.life != life:
            return
        crashes = not self.healed and self.rng.random() < self.weather.crash
        if not crashes or self.rng.random() < 0.5:
            self._keep(member, save)
        if crashes:
            self._crash(member)
            return
        waiting, member.writing = member.writing or [], None
        self._perform(member, rest)
        for act in waiting:
            act()

    def _keep(self, member: Member, save: Save) -> None:
        if self._saves:
            member.saved[save.height] = save.record

    def _perform(self, member: Member, effects: Sequence[Effect]) -> None:
        for position, effect in enumerate(effects):
            if self.weather.crash and not self.healed and self.rng.random() < self.weather.crash:
                self._crash(member)
                return
            match effect:
                case Save() if self.weather.disk_s:
                    member.writing = []
                    disk_s = self.rng.random() * (
                        min(self.weather.disk_s, 0.05) if self.healed else self.weather.disk_s
                    )
                    rest = effects[position + 1 :]
                    self._at(self.now_s + disk_s, partial(self._written, member, member.life, effect, rest))
                    return
                case Save():
                    self._keep(member, effect)
                case Broadcast(message=data):
                    message = _decoded(data)
                    self._witness.says(member.address, message)
                    self._tell(member.address, f"sends {told(message)}")
                    for receiver in self.validators(message.height):
                        if receiver != member.address:
                            self.post(member.address, receiver, message)
                case Decide(payload=payload, certificate=certificate, height=height):
                    try:
                        self._witness.check_certified(height, payload, certificate)
                    except PeerError as error:
                        raise BrokenError(f"{short(member.address)} decided without a certificate: {error}") from error
                    self._append(member, payload, certificate, "decides")
                case Accuse():
                    self._witness.accuses(member.address, effect, honest=effect.member not in self.traitors)
                    self.accusations += 1
                case Help(member=laggard, height=height):
                    if height <= len(member.chain):
                        self.show(member.address, laggard, *member.chain[height - 1])
        self._arm(member)

    def _append(self, member: Member, payload: bytes, certificate: Certificate, how: str) -> None:
        height, digest = len(member.chain) + 1, digest_of(payload)
        self._tell(member.address, f"{how} {short(digest)} at height {height}, view {certificate.view}")
        self._witness.takes(member.address, height, payload)
        if height > len(self.decided):
            self.decided.append((payload, certificate))
        member.chain.append((payload, certificate))
        if builder_of(payload) == member.address:
            for address in self.everybody:
                if address not in self.validators(height + 1):
                    self.show(member.address, address, payload, certificate)
        self._enter_height(member)

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

    def _judge(self, member: Member, payload: bytes, proposer: Address) -> bool:
        height = len(member.chain) + 1
        return builder_of(payload) == proposer and is_valid(payload, height=height, parent=self.parent(height))

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
    changes: int
    """How often another validator sat out."""
    crashes: int


def run_seed(seed: int, **settings: object) -> Outcome:
    """Play one world; the settings are `Simulation`'s."""
    world = Simulation(seed, **settings)  # type: ignore[arg-type]
    failure = None
    try:
        world.run()
    except BrokenError as error:
        failure = str(error)
    views = max((certificate.view for _, certificate in world.decided), default=0)
    healed_s = world.now_s - world.weather.heal_s
    return Outcome(seed, failure, world.events, healed_s, views, world.changes, world.crashes)


@lru_cache(maxsize=1024)
def _decoded(data: bytes) -> Message:
    return decode_message(data)  # the same votes are sent again and again
