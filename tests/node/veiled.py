"""Blind rounds in virtual time: real nodes on the simulator's clock and network, for tests of what may befall them.

What a round closes with is held against the mean of the plain updates, which only this file knows.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.adversaries import Behaviour
from sim.loop import VirtualLoop
from sim.observer import Observer, Violation
from sim.people import ledger_of
from sim.plan import Plan
from sim.site import Site
from sim.training import File, first_checkpoint
from sim.world import World
from swarm.audit.retell import retell
from swarm.config import Policy
from swarm.encoding import Address, Digest, keccak256, short
from swarm.ledger.abi import interface
from swarm.ledger.genesis import BLIND, RUNS
from swarm.ledger.ledger import Ledger
from swarm.merge import Schema
from swarm.merge.blind.groups import groups_of
from swarm.node.participation import Participation
from swarm.node.training import Checkpoint

FLOATS = ("layer.bias", "layer.weight")


@dataclass(frozen=True)
class BlindPlan(Plan):
    """A plan whose run is blind."""

    alarm_action: str = "tell"

    @property
    def policy(self) -> Policy:
        """The run's policy."""
        acts = self.alarm_action != "tell"
        return replace(
            super().policy,
            alarm_metric="score" if acts else "",
            alarm_fall=0.1 if acts else Policy.alarm_fall,
            alarm_action=self.alarm_action,
            blind=True,
            submissions_min=max(3, super().policy.submissions_min),
            weight_max=1000,
            norm_max=100.0,
        )


@dataclass
class Closed:
    """How a round ended."""

    round: int
    checkpoint: Digest
    survivors: frozenset[Address]
    changed: bool
    """Whether it is another checkpoint than the one before."""


class BlindObserver(Observer):
    """Sees the blocks of all nodes; checks forks, elections and quorums, and the sum of every blind round."""

    def __init__(self, world: Veiled, **parts: Any) -> None:
        super().__init__(world.plan, world.story, files=world.files, **parts)
        self._world = world
        self._blind = interface("Blind")
        self.survivors: frozenset[int] = frozenset()
        self.said: list[tuple[str, Mapping[str, Any]]] = []
        """Every event of both contracts."""

    def look(self, who: str, ledger: Ledger, first: int) -> int:
        """As any observer's, and the masks' events too."""
        for number in range(first, ledger.head.number + 1):
            block = ledger.block(number)
            if number < len(self._hashes):
                if self._hashes[number] != block.header.hash:
                    raise Violation(f"fork at block {number}")
                continue
            self._hashes.append(block.header.hash)
            for log in (log for receipt in block.receipts for log in receipt.logs):
                contract = {RUNS: self._runs, BLIND: self._blind}.get(log.address)
                event = contract.event(log.topics, log.data) if contract is not None else None
                if event is not None:
                    self.said.append(event)
                    self._upon(*event)
        return ledger.head.number + 1

    def _upon_SurvivorsFixed(self, found: Mapping[str, Any]) -> None:
        self.survivors = frozenset(seat for seat in range(128) if found["survivors"] >> seat & 1)
        self._story.say(f"round {found['round']}: the sum is of {len(self.survivors)}")

    def _upon_RoundRestarted(self, found: Mapping[str, Any]) -> None:
        super()._upon_RoundRestarted(found)
        self.survivors = frozenset()

    def _upon_Published(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        round_.published, round_.attested, round_.verified = found["checkpoint"], {found["leader"]}, {}
        round_.wrong_leaders |= self._liars & {found["leader"]}

    def _upon_Struck(self, found: Mapping[str, Any]) -> None:
        self._at(found).struck.add(found["member"])
        self.struck += 1

    def _upon_RoundClosed(self, found: Mapping[str, Any]) -> None:
        round_ = self._at(found)
        members = frozenset(self._seats[seat] for seat in self.survivors)
        self.closed.append(found["checkpoint"])
        changed = found["checkpoint"] != round_.base.digest
        self._world.closed.append(Closed(round_.number, found["checkpoint"], members, changed))
        self._story.say(f"round {round_.number}: closed with {short(found['checkpoint'])}, a sum of {len(members)}")
        base = replace(round_.base, digest=found["checkpoint"])
        self.round = type(round_)(round_.number + 1, base, keccak256(round_.seed + found["checkpoint"]))
        self.survivors = frozenset()


class Veiled(World):
    """A blind run of a few rounds. Subclasses say what befalls it.

    Args:
        liars: what some sites run in place of the honest participation, by their number.
    """

    plan: BlindPlan

    def __init__(
        self,
        plan: BlindPlan,
        home: Path,
        loop: VirtualLoop,
        *,
        liars: Mapping[int, type[Participation]] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(plan, home, loop, tell=tell)
        self.closed: list[Closed] = []
        self.checks_sums = True
        """Against the plain updates; an auditor looks in any case."""
        self.plain: dict[tuple[Address, int], tuple[File, int]] = {}
        """What each site trained in each round, and on how many samples."""
        self.upon: Callable[[str, Mapping[str, Any]], Awaitable[None]] | None = None
        """Told about every event, once."""
        for number, kind in (liars or {}).items():
            self.founders[number]._behaviour = Behaviour(participation=kind)
            # Where all make the same mistake, all are waited for.
            self.founders[number].dishonest = len(liars or {}) < plan.members
        names = {site.identity.address: site.name for site in self.sites}
        self.observer = BlindObserver(
            self,
            name=lambda address: names.get(address, short(address)),
            liars=frozenset(site.identity.address for site in self.founders if site.dishonest),
            on_event=self._on_event,
            excused=lambda member: True,
        )
        for site in self.sites:
            site.observer = self.observer

    def _on_event(self, name: str, found: Mapping[str, Any]) -> None:
        if self.upon is not None:
            self._start(self.upon(name, found))

    def site(self, address: Address) -> Site:
        """The site of a member."""
        return next(site for site in self.sites if site.identity.address == address)

    def address(self, number: int) -> Address:
        """The address of a site by its number."""
        return self.founders[number].identity.address

    async def _live(self) -> None:
        for site in self.founders:
            await site.start()
        checkpoint = first_checkpoint(self.plan.rng("genesis"))
        self.files[checkpoint.digest] = checkpoint
        await self.people.agree(self.plan.policy, checkpoint)
        training = [self._start(self._train(site)) for site in self.founders]
        pairs = list(zip(self.founders, training, strict=True))
        # A site that is gone in the middle is waited for no longer.
        while waited := {task for site, task in pairs if not task.done() and not (site.dishonest or site.gone)}:
            await asyncio.wait(waited, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        self._check_sums(checkpoint)

    async def _train(self, site: Site) -> None:
        chance = self.plan.rng(f"training of {site.name}")
        run = self.plan.policy.name

        async def again() -> Checkpoint:
            assert site.node is not None
            place, _ = await site.node.training.attach(run)
            return place

        async def take() -> Checkpoint:
            place, _ = await site.ask(lambda node: node.attach(run), again)
            return place

        place = await take()
        while not place.finished:
            await asyncio.sleep(chance.uniform(0.5, 4.5))
            place = await self._exchange(site, place, chance, again, take)

    async def _exchange(
        self,
        site: Site,
        place: Checkpoint,
        chance: random.Random,
        again: Callable[[], Awaitable[Checkpoint]],
        take: Callable[[], Awaitable[Checkpoint]],
    ) -> Checkpoint:
        update, weight, at = self.trained(site, place, chance), self.weighs(site, chance), place
        self.plain[site.identity.address, place.round] = update, weight
        path = self._home / f"{site.name}-{place.round}.safetensors"
        path.write_bytes(update.data)
        told = self.told(site, place)
        while True:
            _, submitted = await site.ask(lambda node: node.submit(at.run, at.round, path, weight, told), again)
            if not submitted:
                after = await site.ask(lambda node: node.wait(at.run, at.round), again)
                return after if after.finished else await take()
            after = await site.ask(lambda node: node.wait(at.run, at.round), again)
            if after.round > at.round or after.finished:
                return after

    def trained(self, site: Site, place: Checkpoint, chance: random.Random) -> File:
        """A site's update of a round."""
        return small_update(chance, place.round)

    def weighs(self, site: Site, chance: random.Random) -> int:
        """On how many samples."""
        return chance.randint(50, 1000)

    def told(self, site: Site, place: Checkpoint) -> Mapping[str, float]:
        """What it tells with it."""
        return {"loss": 1.0 / (1 + place.round)}

    def _check_sums(self, genesis: File) -> None:
        """Every round's change is the weighted mean of its survivors' plain updates, or the median of their groups'
        means, as far as fixed point goes."""
        base: Mapping[str, Any] = genesis.values
        stood, went_back = [genesis.digest], False
        for closed in self.closed:
            stores = [site.node.store for site in self.founders if site.node is not None]
            merged = values_of(next(store.path(closed.checkpoint) for store in stores if store.has(closed.checkpoint)))
            groups = [closed.survivors]
            if went_back and self.plan.alarm_action == "groups":
                seats = {member: seat for seat, member in enumerate(self.observer._seats)}
                groups = [*groups_of(stood[-1], {one: seats[one] for one in closed.survivors})] or groups
            summed = self.plan.policy.blind and closed.checkpoint not in stood
            for name in FLOATS if summed and self.checks_sums else ():
                means = [self._mean(name, closed.round, group) for group in groups]
                middle = np.sort(np.stack(means), axis=0)[len(means) // 2]
                wrong = np.abs(np.float64(merged[name]) - np.float64(base[name]) - middle).max()
                if wrong > 2e-6:
                    raise Violation(f"round {closed.round}: {name} is {wrong:.3g} off the mean of {len(groups)} sums")
            base = merged
            went_back = closed.checkpoint in stood
            stood.append(closed.checkpoint)
        for site in self.sites if self.plan.policy.blind else ():
            _check_kept(site, [file for file, _ in self.plain.values()])
        self._audit()

    def _mean(self, name: str, round_: int, members: frozenset[Address]) -> Any:
        """Of the plain updates of some."""
        rows = [self.plain[member, round_] for member in members]
        total = sum(weight for _, weight in rows)
        return sum(np.float64(file.values[name]) * weight for file, weight in rows) / total

    def _audit(self) -> None:
        """An auditor finds the same, and opens every sum again that a site has the vectors of."""
        again = set[int]()
        for site in self.founders:
            if site.node is not None:
                seen = retell(ledger_of(site.node), site.folder / "objects", lambda done, of: None).seen
                again |= {one.round for one in seen}
        if again != {closed.round for closed in self.closed}:
            raise Violation(f"of {len(self.closed)} rounds an auditor did {sorted(again)} again")


def small_update(chance: random.Random, round_: int) -> File:
    """What training changed: below the range that a first round clips to."""
    values = {
        "batches": np.array(10 * (round_ + 1), "<i8"),
        "layer.bias": np.array([chance.gauss(0, 0.05) for _ in range(2)], "<f4"),
        "layer.weight": np.array([chance.gauss(0, 0.05) for _ in range(6)], "<f4").reshape(3, 2),
    }
    return File.of(values)


def values_of(path: Path) -> dict[str, Any]:
    """The float tensors of a checkpoint."""
    schema, data = Schema.of_file(path), path.read_bytes()
    start = len(schema.header)
    return {
        tensor.name: np.frombuffer(data[start + first : start + last], "<f4").reshape(tensor.shape)
        for tensor, first, last in schema.placed
        if tensor.name in FLOATS
    }


def _check_kept(site: Site, plain: list[File]) -> None:
    """No plain update is in a store, and no seed of a round that is over on a disk."""
    for place in (site.folder / "objects").rglob("*"):
        if place.is_file() and place.read_bytes() in {file.data for file in plain}:
            raise Violation(f"{site.name} has a plain update in its store")


@dataclass
class Ended:
    """A world that was played to its end."""

    world: Veiled
    lines: list[str] = field(default_factory=list)

    @property
    def sums(self) -> list[int]:
        """How many updates were in the sum of each round."""
        return [len(closed.survivors) for closed in self.world.closed]

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """What the contracts logged under a name."""
        return [found for event, found in self.world.observer.said if event == name]  # type: ignore[attr-defined]


def play(
    plan: BlindPlan,
    *,
    liars: Mapping[int, type[Participation]] | None = None,
    upon: Callable[[Veiled, str, Mapping[str, Any]], Awaitable[None]] | None = None,
    kind: type[Veiled] | None = None,
    checks_sums: bool = True,
) -> Ended:
    """Play a blind run; Violation where something is not as it has to be."""
    home = Path(tempfile.mkdtemp(prefix="swarm-veiled-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    loop = VirtualLoop(limit_s=2_000.0)
    lines: list[str] = []
    try:
        world = (kind or Veiled)(plan, home, loop, liars=liars, tell=lines.append)
        world.checks_sums = checks_sums
        if upon is not None:
            told = upon

            async def hear(name: str, found: Mapping[str, Any]) -> None:
                await told(world, name, found)

            world.upon = hear
        loop.run_until_complete(world.run())
        return Ended(world, lines)
    except BaseException as error:
        error.add_note("\n".join(lines[-40:]))
        raise
    finally:
        loop.settle()
        loop.close()
        shutil.rmtree(home, ignore_errors=True)
