"""A whole swarm in one process: real nodes on a virtual clock, network and disk, and the troubles that they meet.

`run(plan)` is the door. A node here is `swarm.node.node.Node` with the real ledger, store, consensus, contracts and
client; what is replaced is time (`sim.loop`), the network (`swarm.net.memory`), the training (`sim.training`) and the
people.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.adversaries import behaviour
from sim.loop import StuckError, VirtualLoop
from sim.observer import Observer, Violation
from sim.people import People, ledger_of
from sim.plan import Plan
from sim.site import Site
from sim.story import Story
from sim.trainer import Trainer
from sim.training import File, first_checkpoint
from sim.troubles import Troubles
from swarm.config import MemberConfig, SwarmConfig
from swarm.encoding import Address, Digest, sha256, short
from swarm.identity import Identity
from swarm.ledger.genesis import Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.merkle import digest_of
from swarm.net.memory import MemoryNetwork

CREATED_MS = 1_700_000_000_000
LEAVE_S = 60.0
DISK_S = 5.0
RECOVERED_S = 120.0
STANDBY_S = 240.0
"""What the reports, a lost one's repetition, and the block that counts them may take."""
CATCH_UP_S = 40.0
"""A request for blocks that was lost in the last trouble is given up after 30 seconds."""


@dataclass(frozen=True)
class Outcome:
    """How a simulated run ended."""

    plan: Plan
    trace: str
    """Digest of everything that happened: equal for equal plans."""
    lines: tuple[str, ...]
    failure: str
    """Which rule was broken; empty if none was."""
    virtual_s: float
    cpu_s: float
    calm_s: float
    """How long the run went on after the troubles were over."""
    blocks: int
    calls: int
    """Transactions in them."""
    events: int
    troubles: int
    checkpoint: Digest | None
    wrong_publications: int
    replacements: int
    struck: int
    restarts: int


def run(plan: Plan, *, tell: Callable[[str], None] | None = None) -> Outcome:
    """Simulate a plan to its end, or to the first broken rule.

    Args:
        tell: hears every line of the story as it happens.
    """
    home = Path(tempfile.mkdtemp(prefix="swarm-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    loop = VirtualLoop(limit_s=plan.trouble_s + plan.calm_s + 1000.0)
    try:
        world = World(plan, home, loop, tell=tell)
        failure = ""
        try:
            loop.run_until_complete(world.run())
        except Violation as error:
            failure = str(error)
        except StuckError as error:
            failure = f"stuck: {error}"
        world.story.say(f"broken: {failure}" if failure else "all is well")
        return world.outcome(failure)
    finally:
        loop.settle()
        loop.close()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Founding:
    """What a swarm of so many members starts from; the last person is the newcomer and no founder."""

    keys: tuple[tuple[Identity, Identity], ...]
    """Node's and operator's."""
    records: tuple[MemberConfig, ...]
    config: SwarmConfig
    genesis: Genesis


@lru_cache(maxsize=64)
def _founding(members: int, followers: int, standby_s: float) -> Founding:
    """The same for all seeds, whose runs elect other leaders anyway."""
    keys = tuple(
        (Identity(sha256(b"simulated node %d" % i)), Identity(sha256(b"simulated operator %d" % i)))
        for i in range(members + 1)
    )
    records = tuple(
        MemberConfig(
            name=f"site-{i + 1}",
            address=node.address,
            operator=operator.address,
            endpoint=f"/memory/{i}/p2p/{node.peer_id}",
            validator=not members - followers <= i < members,
        )
        for i, (node, operator) in enumerate(keys)
    )
    config = SwarmConfig(
        name="simulated",
        chain_id=1337,
        created_ms=CREATED_MS,
        members=records[:members],
        standby_after_s=standby_s,
    )
    return Founding(keys, records, config, Genesis.of(config))


class World:
    """Sites, the network between them, and what befalls them."""

    def __init__(self, plan: Plan, home: Path, loop: VirtualLoop, *, tell: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.story = Story(loop.time, tell=tell)
        self.files: dict[Digest, File] = {}
        self.sites: list[Site] = []
        self._home = home
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = loop.create_future()
        self._calm_s = 0.0
        self._lost: list[Site] = []
        self._began_s = time.process_time()
        network = MemoryNetwork(notice_s=5.0)
        founding = _founding(plan.members, plan.followers, plan.standby_s)
        executions, skews = ExecutionCache(), plan.rng("skew")
        for i, record in enumerate(founding.records[: plan.members + plan.newcomers]):
            identity, operator = founding.keys[i]
            skew_s = skews.uniform(-plan.skew_s, plan.skew_s)
            dishonest = bool(plan.liar) and plan.members - plan.liars <= i < plan.members
            self.sites.append(
                Site(
                    name=record.name,
                    identity=identity,
                    operator=operator,
                    folder=home / record.name,
                    config=founding.config,
                    genesis=founding.genesis,
                    executions=executions,
                    network=network,
                    clock=lambda skew_s=skew_s: CREATED_MS / 1000 + 60.0 + skew_s + loop.time(),  # type: ignore[misc]
                    dishonest=dishonest,
                    behaviour=behaviour(liar=plan.liar, mistake=plan.mistake, dishonest=dishonest),
                    story=self.story,
                    on_broken=self._break,
                )
            )
        self._records = {record.name: record for record in founding.records}
        self.founders = self.sites[: plan.members]
        self.people = People(self.founders, self.story)
        names = {site.identity.address: site.name for site in self.sites}
        self.troubles = Troubles(plan, self.founders, network, self.story, self._start)
        network.fate = self.troubles.fate
        self.observer = Observer(
            plan,
            self.story,
            name=lambda address: names.get(address, short(address)),
            files=self.files,
            liars=frozenset(site.identity.address for site in self.sites if site.dishonest),
            on_event=self.troubles.upon,
            excused=self._excused,
        )
        for site in self.sites:
            site.observer = self.observer

    def outcome(self, failure: str) -> Outcome:
        """What to remember of the run."""
        observer = self.observer
        return Outcome(
            plan=self.plan,
            trace=self.story.digest,
            lines=tuple(self.story.lines),
            failure=failure,
            virtual_s=self._loop.time(),
            cpu_s=time.process_time() - self._began_s,
            calm_s=self._calm_s,
            blocks=observer.height,
            calls=observer.calls,
            events=self.story.events,
            troubles=self.troubles.count,
            checkpoint=observer.finished,
            wrong_publications=observer.wrong_publications,
            replacements=observer.replacements,
            struck=observer.struck,
            restarts=observer.restarts,
        )

    async def run(self) -> None:
        """Found the swarm, agree on a run, train through the troubles, and compare what everybody has.

        Raises:
            Violation: a rule of the swarm was broken.
        """
        self._loop.set_exception_handler(self._upon_exception)
        life = self._start(self._live())
        await asyncio.wait({life, self._broken}, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for site in self.sites:
            await site.close()
        if self._broken.done():
            self._broken.result()

    async def _live(self) -> None:
        for site in self.founders:
            await site.start()
        checkpoint = first_checkpoint(self.plan.rng("genesis"))
        self.files[checkpoint.digest] = checkpoint
        await self.people.agree(self.plan.policy, checkpoint)
        trainers = [
            Trainer(
                site,
                run=self.plan.policy.name,
                train_s=self.plan.train_s,
                rng=self.plan.rng(f"trainer of {site.name}"),
                files=self.files,
                folder=self._home / f"training-{site.name}",
            )
            for site in self.sites
        ]
        training = {
            site.name: self._start(trainer.train() if site in self.founders else self._newcomer(site, trainer))
            for site, trainer in zip(self.sites, trainers, strict=True)
        }
        leaves = self._start(self._leaves())
        absences = [self._start(self._losses()), self._start(self._absences())]
        raging = self._start(self.troubles.rage())
        calm_s = math.inf
        while waited := [t for s in self.sites if not (t := training[s.name]).done() and not (s.dishonest or s.gone)]:
            # A site that is gone is waited for no longer: look again when the troubles have ended.
            watched = [*waited, raging] if not raging.done() else waited
            left_s = max(calm_s + self.plan.calm_s - self._loop.time(), 0.0)
            done, _ = await asyncio.wait(
                watched, timeout=None if raging in watched else left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if raging in done:
                calm_s = self._loop.time()
            if not done:
                at = self.observer.round.number if self.observer.round is not None else 0
                late = ", ".join(name for name, task in training.items() if task in waited)
                raise Violation(
                    f"{self.plan.calm_s:g} s after the last trouble, at round {at}, {late} has not finished"
                )
        self._calm_s = max(self._loop.time() - calm_s, 0.0)
        self.troubles.stop()
        await raging
        await self._all_back(leaves)
        await asyncio.gather(*absences)
        for site in self._lost:
            self.story.say(f"the machine of {site.name} turns up again")
            await site.start()
        await self._catch_up()
        self._compare(trainers)

    async def _all_back(self, leaves: asyncio.Task[None]) -> None:
        """Who is on leave comes back; further leaves are called off."""
        await asyncio.wait({leaves}, timeout=LEAVE_S)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        for site in self.founders:
            if not site.gone:
                await site.start()

    async def _catch_up(self) -> None:
        """A node that missed the last blocks gets them, although no transaction waits any more."""
        until_s = self._loop.time() + CATCH_UP_S
        while self._loop.time() < until_s:
            behind = [s for s in self.sites if s.node is not None and s.node.chain.height < self.observer.height]
            if not behind:
                return
            await asyncio.sleep(0.5)
        raise Violation(f"{behind[0].name} does not catch up with block {self.observer.height}")

    def _compare(self, trainers: list[Trainer]) -> None:
        """Every honest site ends with the same bytes and the same ledger."""
        for site, trainer in zip(self.sites, trainers, strict=True):
            if site.dishonest or site.gone:
                continue
            if trainer.result is None or trainer.result != self.observer.finished:
                found, agreed = (
                    short(digest) if digest else "nothing" for digest in (trainer.result, self.observer.finished)
                )
                raise Violation(f"{site.name} ends with {found}, the ledger says {agreed}")
            assert site.node is not None
            if digest_of(site.node.store.path(trainer.result).read_bytes()) != trainer.result:
                raise Violation(f"the bytes that {site.name} has of {short(trainer.result)} are others")

    # --- people

    async def _leaves(self) -> None:
        """Leaves are planned: one at a time, and people see each through."""
        chance = self.plan.rng("leaves")
        validators = [site for site in self.founders[: self.plan.members - self.plan.followers] if not site.dishonest]
        for site in chance.sample(validators, min(self.plan.leaves, len(validators))):
            await asyncio.sleep(chance.uniform(0.0, self.plan.trouble_s / 3))
            if not site.gone:
                await self.people.leave(site, chance.uniform(1.0, 10.0))

    async def _losses(self) -> None:
        """More validators than the swarm tolerates are gone for good, and the operators replace them."""
        if not self.plan.lost:
            return
        chance = self.plan.rng("losses")
        await asyncio.sleep(chance.uniform(0.0, self.plan.trouble_s / 2))
        validators = self.founders[self.plan.followers :]
        self._lost = chance.sample(validators, self.plan.lost)
        for site in self._lost:
            site.gone = True
            self.story.say(f"{site.name} is lost for good")
            await site.kill()
        left = [site for site in self.founders if site not in self._lost]
        while max([ledger_of(await site.up()).head.number for site in left]) < self.observer.height:
            await self._read_disks()
        height = self.observer.height
        await self.people.recover(self._lost, CREATED_MS + int(1000 * self._loop.time()))
        until_s = self._loop.time() + RECOVERED_S
        while self.observer.height == height:
            if self._loop.time() > until_s:
                raise Violation(f"nobody records the recovery within {RECOVERED_S:g} s")
            await asyncio.sleep(1.0)

    async def _read_disks(self) -> None:
        """A block that only lost machines have decided: their disks are read before anybody signs that it is not."""
        for site in self._lost:
            await site.start()
        self.story.say("the disks of the lost machines are read once more")
        await asyncio.sleep(DISK_S)
        for site in self._lost:
            await site.kill()

    async def _absences(self) -> None:
        """A validator is off for long: the others put it on standby, and it comes back without anybody's help."""
        if not self.plan.absent:
            return
        chance = self.plan.rng("absence")
        await asyncio.sleep(chance.uniform(0.0, self.plan.trouble_s / 2))
        site = chance.choice([one for one in self.founders[self.plan.followers :] if not one.dishonest])
        self.story.say(f"{site.name} is off for long")
        site.gone = True  # for the troubles: nobody starts it
        await site.kill()
        await self._until(site, voting=False, within_s=2 * self.plan.standby_s + STANDBY_S)
        self.story.say(f"{site.name} is on standby")
        site.gone = False
        await site.start()
        await self._until(site, voting=True, within_s=STANDBY_S)
        self.story.say(f"{site.name} votes again")

    async def _until(self, site: Site, *, voting: bool, within_s: float) -> None:
        until_s = self._loop.time() + within_s
        while self._loop.time() < until_s:
            ledgers = [ledger_of(one.node) for one in self.founders if one.node is not None and one is not site]
            if ledgers and all((site.identity.address in ledger.validators()) is voting for ledger in ledgers):
                return
            await asyncio.sleep(1.0)
        raise Violation(f"{site.name} {'is not back from' if voting else 'is not on'} standby within {within_s:g} s")

    async def _newcomer(self, site: Site, trainer: Trainer) -> None:
        await asyncio.sleep(self.plan.rng("newcomer").uniform(0.0, self.plan.trouble_s / 2))
        await self.people.admit(site, self._records[site.name])
        await trainer.train()

    # --- what must not happen

    def _excused(self, member: Address) -> bool:
        return self.troubles.shaken

    def _start(self, work: Coroutine[Any, Any, None] | Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        if not self._broken.done():
            if not isinstance(error, Violation):
                place = traceback.extract_tb(error.__traceback__)[-1:]
                where = "".join(f" ({Path(frame.filename).name} line {frame.lineno})" for frame in place)
                error = Violation(f"{type(error).__name__}: {error}{where}")
            self._broken.set_exception(error)

    def _upon_exception(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        self._break(error if isinstance(error, BaseException) else Violation(str(context.get("message"))))
