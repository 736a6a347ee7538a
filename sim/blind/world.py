"""One blind run in virtual time: sites that crash, go back to a backup, lie or are gone, and a network that is lossy.

`run(plan)` is the door. Of a node everything is real but its chain: participation, masks, their log, training's line,
store, transfer. Consensus and contracts are `sim.blind.ledger`.
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from sim.blind.books import RUN, Attempt, Books, Terms
from sim.blind.ledger import Ledger, Window
from sim.blind.plan import Ambush, Plan
from sim.blind.watch import Violation, Watch
from sim.blind.work import COORDINATES, Work, work_of
from sim.loop import StuckError, VirtualLoop
from swarm.encoding import ZERO_DIGEST, Address, sha256
from swarm.errors import SwarmError
from swarm.identity import Identity
from swarm.ledger.client import Contracts
from swarm.merkle import digest_of
from swarm.net.memory import MemoryNetwork, MemoryTransport
from swarm.net.transfer import serve_objects
from swarm.node.training import Training
from swarm.rounds import RunState, Update
from swarm.store import Store

START_S = 1_700_000_000.0
STORE_MAX_BYTES = 1 << 20
CALM_S = 400.0
"""How long after the last trouble a run may take; leaders that are gone wait for each other's deadlines."""
GENESIS = bytes(32) + struct.pack(f"<{COORDINATES}I", *range(COORDINATES))


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    plan: Plan
    failure: str
    lines: tuple[str, ...]
    virtual_s: float
    cpu_s: float
    counts: Counter[str]


@lru_cache(maxsize=16)
def _identities(members: int) -> tuple[Identity, ...]:
    return tuple(Identity(sha256(b"blind node %d" % number)) for number in range(members))


class _BothKinds(Books):
    """Takes shares of both secrets of one member."""

    def _check_shares(self, here: Attempt, secrets: frozenset[Address], seeds: frozenset[Address]) -> None:
        return


class _SecondSum(Books):
    """Opens as many sums of a round as are asked for."""

    @property
    def _is_spent(self) -> bool:
        return False


BOOKS: Mapping[str, type[Books]] = {
    "contract takes both kinds": _BothKinds,
    "second sum": _SecondSum,
}
"""The contract's mistakes."""


class Site:
    """A member: its disk, and its node while one runs."""

    def __init__(self, world: World, number: int, identity: Identity) -> None:
        self.number = number
        self.me = identity.address
        self.folder = world.home / str(number)
        self.lie = world.plan.liars.get(number, "")
        self.gone = False
        self.done = False
        self.work: Work | None = None
        self._world = world
        self._identity = identity
        self._transport: MemoryTransport | None = None
        self._training: asyncio.Task[None] | None = None
        self._starts = 0
        self._chance = world.plan.rng(f"site {number}")
        self._skew_s = self._chance.uniform(-world.plan.skew_s, world.plan.skew_s)
        self._again = random.Random()

    async def start(self) -> None:
        """Start a node on this site's disk."""
        if self.work is not None or self.gone:
            return
        world = self._world
        self._starts += 1
        store = Store(self.folder / "objects", STORE_MAX_BYTES, durable=False)
        for data in (GENESIS, world.policy.encode()):
            store.put(data)
        transport = world.network.transport(self.me)
        window = cast(Contracts, Window(world.ledger, self.me, world.policy, digest_of(GENESIS)))
        kind = work_of(self.lie, world.plan.mistake)
        work = kind(
            identity=self._identity,
            contracts=window,
            store=store,
            transport=transport,
            scratch=self.folder / "scratch",
            clock=lambda: world.clock() + self._skew_s,
            on_failure=self._fail,
            entropy=self._chance.randbytes,
        )
        work.watch = work.masking.watch = world.watch
        work.masking.chance = self._chance
        self.work, self._transport = work, transport
        work.start()
        serve_objects(transport, store, lambda member, digest: True)
        await transport.start()
        transport.set_members(dict.fromkeys(world.members, ""))
        world.ledger.hears[self.me] = work.on_block
        work.run()
        self._training = asyncio.get_running_loop().create_task(self._train(work, store, window))
        world.ledger.stir()

    async def crash(self) -> None:
        """End the node at once; what is on the disk stays."""
        work, transport, training = self.work, self._transport, self._training
        if work is None or transport is None or training is None:
            return
        self.work = None
        self._world.ledger.hears.pop(self.me, None)
        self._world.network.crash(self.me)
        training.cancel()
        await asyncio.gather(training, return_exceptions=True)
        await work.close()
        await transport.close()

    def back_up(self) -> None:
        """Keep the disk as it is now."""
        if self.folder.is_dir():
            shutil.copytree(self.folder, self.folder.with_suffix(".backup"), dirs_exist_ok=True)

    def restore(self) -> None:
        """Have the disk of the backup again."""
        backup = self.folder.with_suffix(".backup")
        shutil.rmtree(self.folder, ignore_errors=True)
        if backup.is_dir():
            shutil.copytree(backup, self.folder)

    def _fail(self, error: BaseException) -> None:
        if not self.lie:
            self._world.break_(error)

    async def _train(self, work: Work, store: Store, window: Contracts) -> None:
        try:
            await self._trained(work, store, window)
        except SwarmError as error:
            self._fail(error)
        except Exception as error:
            self._fail(error)

    async def _trained(self, work: Work, store: Store, window: Contracts) -> None:
        world = self._world
        training = Training(
            me=self.me, work=work, contracts=window, store=store, leads=True,
            caught_up=lambda: world.ledger.heights[self.me] == world.ledger.height,
        )  # fmt: skip
        await work.until(lambda: RUN in work.efforts)
        place, _ = await training.attach(world.policy.name)
        while not place.finished:
            await asyncio.sleep(self._chance.uniform(0.0, world.plan.quick_s))
            effort = work.efforts[RUN]
            state = effort.state
            fits = effort.veil is not None and effort.veil.state.round == place.round
            if state is not None and state.round == place.round and state.state is RunState.OPEN and fits:
                assert effort.veil is not None
                path = self.folder / "update"
                path.write_bytes(self._update(place.round))
                work.masking.take(effort.run, effort.veil, path, 1)
                effort.update = Update(place.round, ZERO_DIGEST, 0, {})
                work.stir()
                await work.until(lambda at=place.round: self._settled(work, at))  # type: ignore[misc]
            place = await training.wait(RUN, place.round)
        self.done = True
        world.ended.set()

    def _settled(self, work: Work, round_: int) -> bool:
        state = work.efforts[RUN].state
        assert state is not None
        mine = self.me in {s.member for s in state.submissions}
        return state.round > round_ or state.state is not RunState.OPEN or mine

    def _update(self, round_: int) -> bytes:
        """What training changed; after a restart mostly something else."""
        attempt = self._starts if self._chance.random() < self._world.plan.again else 0
        chance = random.Random(f"{self._world.plan.seed}/{self.number}/{round_}/{attempt}")
        return struct.pack(f"<{COORDINATES}i", *(chance.randint(-(2**24), 2**24) for _ in range(COORDINATES)))


class World:
    """Sites, the network and the ledger between them, and what befalls them."""

    def __init__(self, plan: Plan, home: Path, loop: VirtualLoop) -> None:
        self.plan = plan
        self.home = home
        self.policy = plan.policy
        self.lines: list[str] = []
        self.ended = asyncio.Event()
        self._loop = loop
        self._chance = plan.rng("fate")
        self._apart: frozenset[Address] = frozenset()
        self._calm = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._ambushes = list(plan.ambushes)
        self._skips = Counter[int]()
        identities = _identities(plan.members)
        self.members = tuple(identity.address for identity in identities)
        self.sites = [Site(self, number, identity) for number, identity in enumerate(identities)]
        names = {site.me: f"site-{site.number}" for site in self.sites}
        self.network = MemoryNetwork(self._fate, notice_s=2.0)
        policy = self.policy
        milliseconds = (int(1000 * s) for s in (policy.submit_s, policy.merge_s, policy.attest_s))
        terms = Terms(policy.rounds, policy.submissions_min, *milliseconds)
        kind = BOOKS.get(plan.mistake, Books)
        books = kind(self.members, terms, digest_of(GENESIS), int(1000 * START_S))
        self.watch = Watch(
            books,
            frozenset(site.me for site in self.sites if site.lie),
            {site.me: site.folder / "blind" for site in self.sites},
            name=names.__getitem__,
            upon=self._upon,
            say=self.say,
        )
        self.watch.bases[digest_of(GENESIS)] = GENESIS
        self.ledger = Ledger(
            books,
            plan.rng("ledger"),
            clock=self.clock,
            reach=self._reach,
            about=lambda sender, call: self.watch.step(sender, call.name, before=True),
            told=self.watch.told,
            decided=self.watch.decided,
        )

    def clock(self) -> float:
        """The right time."""
        return START_S + self._loop.time()

    def say(self, text: str) -> None:
        """A line of the story."""
        self.lines.append(f"{self._loop.time():8.3f} s  {text}")

    def break_(self, error: BaseException) -> None:
        """Something happened that must not."""
        if self._failure is None:
            self._failure = error
            if not isinstance(error, Violation):
                self.lines.append("".join(traceback.format_exception(error)))
        self.ended.set()

    async def run(self) -> None:
        """To the end of the run at every honest site that is left.

        Raises:
            Violation: a rule was broken.
        """
        self._loop.set_exception_handler(lambda loop, context: self.break_(_error_of(context)))
        for site in self.sites:
            await site.start()
        troubles = [self._start(self._part(*partition)) for partition in self.plan.partitions]
        for ambush in self.plan.ambushes:
            if ambush.restored:
                troubles.append(self._start(self._back_up(ambush)))
        until_s = self._loop.time() + CALM_S
        while not self._over():
            if self._loop.time() > until_s:
                late = ", ".join(f"site-{site.number}" for site in self.sites if not (site.done or site.gone))
                raise Violation(f"after {CALM_S:g} s {late} has not finished: round {self.ledger.books.round}")
            self.ended.clear()
            try:
                await asyncio.wait_for(self.ended.wait(), 20.0)
            except TimeoutError:
                self._calm = self._loop.time() > 60.0
            self._check()
        self._check()
        await self._settle(troubles)
        self._compare()

    def _check(self) -> None:
        failure = self.watch.failure or self._failure
        if failure is not None:
            raise failure if isinstance(failure, Violation) else Violation(f"{type(failure).__name__}: {failure}")

    def _over(self) -> bool:
        return all(site.done or site.gone or bool(site.lie) for site in self.sites)

    async def _settle(self, troubles: list[asyncio.Task[None]]) -> None:
        """No more troubles; who is down comes back."""
        self._ambushes.clear()
        self._calm = True
        await asyncio.gather(*troubles)
        for site in self.sites:
            await site.start()
        await asyncio.sleep(20.0)
        self._check()
        for site in self.sites:
            await site.crash()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _compare(self) -> None:
        books = self.ledger.books
        self.watch.check_sums(books.round)
        for site in self.sites:
            if site.lie or site.gone:
                continue
            store = Store(site.folder / "objects", STORE_MAX_BYTES, durable=False)
            if not store.has(books.base):
                raise Violation(f"site-{site.number} does not have the last checkpoint")
            if not site.gone:
                self.watch.check_erased(site.me)

    # --- troubles

    def _fate(self, source: Address, target: Address, protocol: str, size: int) -> float | None:
        if not self._calm and self.plan.loss and self._chance.random() < self.plan.loss:
            return None
        return self._chance.expovariate(1 / 0.02)

    def _reach(self) -> frozenset[Address]:
        up = frozenset(self.ledger.hears)
        return max(up & self._apart, up - self._apart, key=len)

    async def _part(self, at_s: float, lasts_s: float, apart: frozenset[int]) -> None:
        await asyncio.sleep(at_s)
        self._apart = frozenset(self.members[number] for number in apart)
        self.network.partition(self._apart)
        self.say(f"the network parts: {sorted(apart)} | the others")
        await asyncio.sleep(lasts_s)
        self._apart = frozenset()
        self.network.heal()
        self.ledger.stir()
        self.say("the network is whole again")

    async def _back_up(self, ambush: Ambush) -> None:
        await asyncio.sleep(self.plan.rng("backup").choice([0.0, 0.5, 1.0, 2.0, 4.0]))
        self.sites[ambush.site].back_up()

    def _upon(self, member: Address, step: str, before: bool) -> None:
        for ambush in list(self._ambushes):
            site = self.sites[ambush.site]
            if (site.me, ambush.step, ambush.before) != (member, step, before):
                continue
            self._skips[id(ambush)] += 1
            if self._skips[id(ambush)] > ambush.skip:
                self._ambushes.remove(ambush)
                self._start(self._strike(site, ambush))

    async def _strike(self, site: Site, ambush: Ambush) -> None:
        self.watch.counts["crashes"] += 1
        gone = math.isinf(ambush.down_s)
        self.say(f"site-{site.number} {'is gone' if gone else 'dies'} at {ambush.step}")
        site.gone = site.gone or gone
        await site.crash()
        if gone:
            self.ended.set()
            return
        if ambush.restored:
            site.restore()
            self.watch.counts["restored"] += 1
            self.say(f"site-{site.number} has the disk of its backup")
        await asyncio.sleep(ambush.down_s)
        await site.start()
        self.say(f"site-{site.number} is back")

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.break_(error)


def _error_of(context: Mapping[str, Any]) -> BaseException:
    error = context.get("exception")
    return error if isinstance(error, BaseException) else Violation(str(context.get("message")))


def run(plan: Plan, *, tell: Callable[[str], None] | None = None) -> Outcome:
    """Play a plan to its end, or to the first broken rule."""
    home = Path(tempfile.mkdtemp(prefix="swarm-blind-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    loop = VirtualLoop(limit_s=2_000.0)
    began_s = time.process_time()
    failure = ""
    asyncio.set_event_loop(loop)
    try:
        world = World(plan, home, loop)
        try:
            loop.run_until_complete(world.run())
        except Violation as error:
            failure = str(error)
        except StuckError as error:
            failure = f"stuck: {error}"
        if tell is not None:
            for line in world.lines:
                tell(line)
        counts = Counter(world.watch.counts)
        counts["closed with a sum"] = sum(kind == "with a sum" for _, kind in world.watch.closed)
        counts["closed as it began"] = sum(kind == "as it began" for _, kind in world.watch.closed)
        return Outcome(
            plan, failure, tuple(world.lines), loop.time(), time.process_time() - began_s, counts
        )  # fmt: skip
    finally:
        loop.settle()
        asyncio.set_event_loop(None)
        loop.close()
        shutil.rmtree(home, ignore_errors=True)
