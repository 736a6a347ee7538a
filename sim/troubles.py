"""What befalls a simulated swarm: lost messages, partitions, crashes, power cuts, and members that go for good.

Everything is drawn from the plan's seed before it happens, and ends when the plan says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.plan import Plan
from sim.site import Site
from sim.story import Story
from swarm.encoding import Address
from swarm.net.memory import MemoryNetwork
from swarm.node.agreement import CONSENSUS
from swarm.quorum import faults_max

SHAKEN_S = 35.0
"""How long a round may suffer from a trouble that is over: a request that was lost is given up after 20 s, one for
blocks after 30. (On a real line a lost message ends the connection, and the request at once.)"""
STEPS = ("Submitted", "MergeStarted", "Published", "Attested", "vote", "vote")
"""Moments at which a member may be killed: the steps of a round by the ledger's events, and in the middle of a vote."""
VOTES = 200
"""Messages of consensus that a validator sends in a short run, about: one of them is its last."""

_WHO = {"Submitted": "member", "MergeStarted": "leader", "Published": "leader", "Attested": "member"}


@dataclass
class _Ambush:
    site: Site
    event: str
    skip: int
    """How many of these events the site still survives."""
    down_s: float | None
    """None: for good."""
    blocks_lost: int


class Troubles:
    """Troubles of one run.

    Args:
        start: runs something beside everything else, and tells if it fails.
    """

    def __init__(
        self,
        plan: Plan,
        sites: Sequence[Site],
        network: MemoryNetwork,
        story: Story,
        start: Callable[[Awaitable[None]], asyncio.Task[None]],
    ) -> None:
        self._plan = plan
        self._sites = sites
        self._network = network
        self._story = story
        self._start = start
        self._chance = plan.rng("fate")
        self._on = False
        self._enough = asyncio.Event()
        self._parted = False
        self._shaken_s = float("-inf")
        self._ambushes: list[_Ambush] = []
        self._under_way: list[asyncio.Task[None]] = []
        self.count = 0
        """Crashes and partitions so far."""

    def fate(self, source: Address, target: Address, protocol: str, size: int) -> float | None:
        """The delay of a message, or None if it is lost."""
        if protocol == CONSENSUS and self._ambushes:
            self._spring("vote", source)
        if self._on and self._plan.loss and self._chance.random() < self._plan.loss:
            return None
        return self._chance.expovariate(1.0 / self._plan.delay_s) if self._plan.delay_s else 0.0

    @property
    def shaken(self) -> bool:
        """Whether bytes may be out of reach through no fault of a member's software: the network loses messages or
        is parted, or more members are down than custody provides for; or that was so a moment ago."""
        self._feel()
        return asyncio.get_running_loop().time() < self._shaken_s + SHAKEN_S

    async def rage(self) -> None:
        """All troubles of the plan, until they are over and every site that comes back is back."""
        rng = self._plan.rng("troubles")
        self._on = True
        late_s = self._plan.trouble_s * 0.8
        for power in [False] * self._plan.crashes + [True] * self._plan.power_cuts:
            site, down_s = rng.choice(self._sites), rng.uniform(0.2, 12.0)
            blocks_lost = rng.randint(1, 4) if power else 0
            step = rng.choice(["", "", *STEPS])
            skip, when_s = rng.randrange(VOTES if step == "vote" else self._plan.rounds), rng.uniform(0.0, late_s)
            if step:
                self._ambushes.append(_Ambush(site, step, skip, down_s, blocks_lost))
            else:
                self._later(when_s, partial(self._crash, site, down_s, blocks_lost))
        for _ in range(self._plan.blackouts):
            when_s = rng.uniform(0.0, late_s)
            for site in self._sites:
                self._later(when_s, partial(self._crash, site, rng.uniform(0.5, 6.0), rng.randint(1, 3)))
        for _ in range(self._plan.partitions):
            side = [site for site in self._sites if rng.random() < 0.5]
            self._later(rng.uniform(0.0, late_s), partial(self._part, side, rng.uniform(1.0, 10.0)))
        honest = [site for site in self._sites[1:] if not site.dishonest]
        for site in rng.sample(honest, self._plan.gone):
            self._ambushes.append(_Ambush(site, "Submitted", rng.randrange(self._plan.rounds), None, 0))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._enough.wait(), self._plan.trouble_s)
        self._enough.set()
        self._ambushes.clear()
        while any(not task.done() for task in self._under_way):
            await asyncio.wait(self._under_way)
        self._feel()
        self._on = False
        self._story.say("the troubles are over")

    def stop(self) -> None:
        """No new troubles; those that began end in their time."""
        self._enough.set()

    def upon(self, event: str, found: Mapping[str, Any]) -> None:
        """An event is on the ledger: a member that was to die at it dies now."""
        if event in _WHO:
            self._spring(event, found[_WHO[event]])

    def _spring(self, event: str, who: Address) -> None:
        for ambush in list(self._ambushes):
            if ambush.event != event or ambush.site.identity.address != who:
                continue
            ambush.skip -= 1
            if ambush.skip < 0:
                self._ambushes.remove(ambush)
                if event == "vote":
                    # Now: of those that it was about to tell, the others hear nothing.
                    self._network.crash(who)
                self._under_way.append(self._start(self._crash(ambush.site, ambush.down_s, ambush.blocks_lost)))

    def _feel(self) -> None:
        down = sum(1 for site in self._sites if site.node is None)
        lossy = self._on and self._plan.loss > 0
        if lossy or self._parted or down > faults_max(len(self._sites)):
            self._shaken_s = asyncio.get_running_loop().time()

    def _later(self, delay_s: float, what: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), delay_s)
                return
            await what()

        self._under_way.append(self._start(wait()))

    async def _crash(self, site: Site, down_s: float | None, blocks_lost: int) -> None:
        if site.node is None:
            return
        self.count += 1
        lost = f" and loses {blocks_lost} blocks" if blocks_lost else ""
        self._story.say(f"{site.name} {'is gone for good' if down_s is None else 'crashes'}{lost}")
        site.gone = down_s is None
        await site.kill(blocks_lost=blocks_lost)
        self._feel()
        if down_s is None:
            return
        await asyncio.sleep(down_s)
        self._feel()
        await site.start()
        self._story.say(f"{site.name} is back")

    async def _part(self, side: Sequence[Site], lasts_s: float) -> None:
        self.count += 1
        self._parted = True
        self._feel()
        self._network.partition([site.identity.address for site in side])
        self._story.say(f"the network parts: {', '.join(site.name for site in side) or 'nobody'} | the others")
        await asyncio.sleep(lasts_s)
        self._feel()
        self._parted = False
        self._network.heal()
        self._story.say("the network is whole again")
