"""The operators: they propose and approve, send a site on leave and bring it back, and admit a new member.

People try again until the ledger has their word, whatever happens to their nodes meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial

from sim.site import PAUSE_S, Site
from sim.story import Story
from sim.training import File
from swarm.config import MemberConfig, Policy
from swarm.errors import RejectedError, UnavailableError
from swarm.ledger.client import Contracts
from swarm.ledger.endpoint import Call
from swarm.ledger.ledger import Ledger
from swarm.ledger.recovery import Manifest, Recovery
from swarm.node.embedded import EmbeddedChain
from swarm.node.node import Node
from swarm.rounds import RunState

RUN = 1
PATIENCE_S = 20.0
"""How long a person waits for a transaction before looking again."""
TRIES = 40
"""What the ledger may refuse for good is tried so often; consent until it is there."""


def ledger_of(node: Node) -> Ledger:
    """The ledger on a simulated node's disk."""
    assert isinstance(node.chain, EmbeddedChain)
    return node.chain.ledger


class People:
    """What persons do in one simulated run."""

    def __init__(self, sites: Sequence[Site], story: Story) -> None:
        self._sites = sites
        self._story = story

    async def agree(self, policy: Policy, checkpoint: File) -> None:
        """One operator proposes the run and gives its objects to the own node; the others approve."""
        proposer = self._sites[0]
        assert proposer.node is not None
        proposer.node.store.put(checkpoint.data)
        proposer.node.store.put(policy.encode())

        async def proposed(contracts: Contracts) -> bool:
            return bool(await contracts.runs())

        await self._insist(proposer, lambda contracts: contracts.propose(policy, checkpoint.digest), proposed)
        self._story.say(f"{proposer.name} proposes a run of {policy.rounds} rounds among {len(self._sites)}")
        await asyncio.gather(*(self.approve(site) for site in self._sites if site is not proposer))

    async def approve(self, site: Site) -> None:
        """The site's operator consents to the run."""

        async def approved(contracts: Contracts) -> bool:
            if site.identity.address in await contracts.approvals(RUN):
                return True
            return any(run.state > RunState.OPEN for run in await contracts.runs())

        await self._insist(site, lambda contracts: contracts.approve(RUN), approved)

    async def leave(self, site: Site, away_s: float) -> None:
        """Planned leave: the validator stands down, its machine is off for a while, it resumes."""

        async def standing(contracts: Contracts, wanted: bool) -> bool:
            member = await contracts.member(site.identity.address)
            return member is not None and member.standing is wanted

        if not await self._insist(site, Contracts.stand_down, partial(standing, wanted=False), tries=TRIES):
            return
        self._story.say(f"{site.name} stands down and goes on leave")
        await site.close()
        await asyncio.sleep(away_s)
        await site.start()
        self._story.say(f"{site.name} is back from leave")
        await self._insist(site, Contracts.resume, partial(standing, wanted=True), tries=TRIES)

    async def recover(self, lost: Collection[Site], created_ms: int) -> None:
        """Two thirds of the operators replace validators that are gone for good by those that are not."""
        left = [site for site in self._sites if site not in lost]
        ledgers = [ledger_of(await site.up()) for site in left]
        while len({ledger.head.hash for ledger in ledgers}) > 1:
            await asyncio.sleep(PAUSE_S)  # who is behind catches up first: what is signed is the last block of all
            ledgers = [ledger_of(await site.up()) for site in left]
        head = ledgers[0].head
        recovery = Recovery(
            Manifest(
                chain_id=ledgers[0].chain_id,
                genesis=ledgers[0].genesis_hash,
                height=head.number,
                head=head.hash,
                validators=tuple(sorted(site.identity.address for site in left)),
                reason=f"{', '.join(site.name for site in lost)} burned down",
                created_ms=created_ms,
            )
        )
        for site in self._sites:
            recovery = recovery.signed_by(site.operator)
        self._story.say(f"operators sign that {', '.join(site.name for site in left)} go on after block {head.number}")
        await asyncio.gather(*(self._import(site, recovery) for site in left))

    async def _import(self, site: Site, recovery: Recovery) -> None:
        while True:
            chain = (await site.up()).chain
            assert isinstance(chain, EmbeddedChain)
            try:
                chain.agreement.recover(recovery)
                return
            except RejectedError:
                if chain.height > recovery.manifest.height:
                    return  # the others decided it meanwhile
                await asyncio.sleep(PAUSE_S)

    async def admit(self, site: Site, record: MemberConfig) -> None:
        """A new member: nominated by one operator, approved by the others; then its node starts from nothing."""

        async def nominated(contracts: Contracts) -> bool:
            return bool(await contracts.proposals())

        async def admitted(contracts: Contracts) -> bool:
            return await contracts.member(record.address) is not None

        def nominate(contracts: Contracts) -> Call:
            return contracts.nominate(
                record.address, record.operator, record.name, record.endpoint, validator=record.validator
            )

        await self._insist(self._sites[0], nominate, nominated)
        self._story.say(f"{self._sites[0].name} nominates {record.name}")
        votes = [
            asyncio.ensure_future(self._insist(other, lambda contracts: contracts.approve_proposal(1), admitted))
            for other in self._sites[1:]
        ]
        try:
            # A quorum is enough: who is gone for good cannot vote.
            await self._see(admitted)
        finally:
            for vote in votes:
                vote.cancel()
            await asyncio.gather(*votes, return_exceptions=True)
        self._story.say(f"{record.name} is admitted and starts from nothing")
        await site.start()
        await self.approve(site)

    async def _see(self, holds: Callable[[Contracts], Awaitable[bool]]) -> None:
        """Returns when a node of some founder knows it."""
        while True:
            for site in self._sites:
                if site.node is not None and await holds(site.node.contracts):
                    return
            await asyncio.sleep(PAUSE_S)

    async def _insist(
        self,
        site: Site,
        call: Callable[[Contracts], Call],
        done: Callable[[Contracts], Awaitable[bool]],
        *,
        tries: int | None = None,
    ) -> bool:
        """Whether the ledger took the call of the site's operator, in the end."""
        for _ in itertools.count() if tries is None else range(tries):
            node = await site.up()
            try:
                if await site.or_down(node, done(node.contracts)):
                    return True
                sent = node.contracts.transact(site.operator, call(node.contracts), timeout_s=PATIENCE_S)
                await site.or_down(node, sent)
                return True
            except (ConnectionResetError, UnavailableError, RejectedError):
                await asyncio.sleep(PAUSE_S)
        return False
