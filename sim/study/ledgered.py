"""The swarm as it is: every site a real node, with ledger, contracts, consensus and store, in one process.

Time is virtual and the network is in memory (`sim.loop`, `swarm.net.memory`): training takes real time and no virtual
time. Nothing is lost; `sim.world` is where troubles are. A site that comes late consents and joins when its round is
open, one that leaves withdraws; the others submit to a round when everybody who begins or ends with it has done so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.loop import VirtualLoop
from sim.study.arms import Peer, Study, Trained, scratch, trained, update
from swarm.config import MemberConfig, SwarmConfig
from swarm.encoding import Digest, sha256
from swarm.identity import Identity
from swarm.learn.part import Part
from swarm.learn.state import save_model
from swarm.ledger.genesis import Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import Ledger
from swarm.net.memory import MemoryNetwork, MemoryTransport
from swarm.node.embedded import EmbeddedChain
from swarm.node.node import Node
from swarm.store import Store

CREATED_MS = 1_700_000_000_000
STORE_MAX_BYTES = 4 << 30
PATIENCE_S = 60.0
ROUND_S = 600.0
"""Virtual seconds that a round may take before something must be wrong."""


@dataclass(frozen=True)
class Member:
    """A site with its keys."""

    peer: Peer
    identity: Identity
    operator: Identity


def swarm(study: Study, seed: int) -> Trained:
    """What real nodes agree on, over all rounds.

    Raises:
        AssertionError: sites end with different checkpoints.
    """
    loop = VirtualLoop(limit_s=ROUND_S * (study.policy.rounds + 1))
    with scratch() as folder:
        try:
            parts = {peer.name: study.part(seed) for peer in study.peers}
            digest, path = loop.run_until_complete(_run(study, seed, folder, loop, parts))
            return trained(study, seed, digest, path, parts)
        finally:
            loop.settle()
            loop.close()


async def _run(
    study: Study, seed: int, folder: Path, loop: VirtualLoop, parts: Mapping[str, Part]
) -> tuple[Digest, Path]:
    members = [
        Member(peer, *(Identity(sha256(f"study {key} {peer.number}".encode())) for key in ("node", "operator")))
        for peer in study.peers
    ]
    nodes = _nodes(members, folder, loop)
    try:
        for node in nodes:
            await node.start()
        run = await _agree(study, seed, members, nodes, folder)
        gates = Gates(study)
        ends = await asyncio.gather(
            *(
                _take_part(study, seed, member, node, run, folder, parts[member.peer.name], gates)
                for member, node in zip(members, nodes, strict=True)
            )
        )
        stayed = [end for end in ends if end is not None]
        assert len({digest for digest, _ in stayed}) == 1, "sites end with different checkpoints"
        digest, path = stayed[0]
        kept = folder / "last"
        kept.write_bytes(path.read_bytes())
        return digest, kept
    finally:
        for node in nodes:
            await node.close()


class Gates:
    """Who has to come or go before anybody submits to a round, so that each round has those whom the scenario says."""

    def __init__(self, study: Study) -> None:
        rounds = study.policy.rounds
        come = [study.scenario.late.get(peer.name, 0) for peer in study.peers]
        go = [study.scenario.leaves.get(peer.name, rounds) for peer in study.peers]
        self._missing = [come.count(number) + go.count(number) for number in range(rounds)]
        self._open = [asyncio.Event() for _ in range(rounds)]
        self._begun = [asyncio.Event() for _ in range(rounds)]
        self._begun[0].set()

    def pass_on(self, number: int) -> None:
        """One more has come, or gone."""
        self._missing[number] -= 1
        if not self._missing[number]:
            self._open[number].set()

    async def wait(self, number: int) -> None:
        """Until all have; the round is open on the ledger."""
        self._begun[number].set()
        if self._missing[number]:
            await self._open[number].wait()

    async def begun(self, number: int) -> None:
        """Until somebody has seen the round open."""
        await self._begun[number].wait()


def _nodes(members: Sequence[Member], folder: Path, loop: VirtualLoop) -> list[Node]:
    config = SwarmConfig(
        name="study",
        chain_id=1337,
        created_ms=CREATED_MS,
        members=tuple(
            MemberConfig(
                name=f"site-{member.peer.number}",
                address=member.identity.address,
                operator=member.operator.address,
                endpoint=f"/memory/{member.peer.number}/p2p/{member.identity.peer_id}",
            )
            for member in members
        ),
    )
    genesis, network, executions = Genesis.of(config), MemoryNetwork(), ExecutionCache()

    def clock() -> float:
        return CREATED_MS / 1000 + 60.0 + loop.time()

    def node_of(member: Member) -> Node:
        home = folder / f"node-{member.peer.number}"
        (home / "scratch").mkdir(parents=True)
        transport = MemoryTransport(network, member.identity.address)
        ledger = Ledger.open(home / "ledger", genesis, executions=executions)
        return Node(
            name=member.peer.name,
            identity=member.identity,
            chain=EmbeddedChain(
                identity=member.identity,
                ledger=ledger,
                transport=transport,
                clock=clock,
                view_timeout_s=config.view_timeout_s,
            ),
            store=Store(home / "objects", STORE_MAX_BYTES, durable=False),
            transport=transport,
            scratch=home / "scratch",
            clock=clock,
        )

    return [node_of(member) for member in members]


async def _agree(study: Study, seed: int, members: Sequence[Member], nodes: Sequence[Node], folder: Path) -> int:
    """The run's number: one operator proposes it, all others who are there from the beginning approve it."""
    first = folder / "genesis"
    save_model(study.recipe.new_model(seed), first, policy=study.policy)
    there = [(member, node) for member, node in zip(members, nodes, strict=True) if not _begins(study, member.peer)]
    (member, node), *others = there
    genesis = node.store.put(first.read_bytes())
    node.store.put(study.policy.encode())
    proposal = node.contracts.propose(study.policy, genesis)
    await node.contracts.transact(member.operator, proposal, timeout_s=PATIENCE_S)
    (run,) = await node.contracts.runs()
    await asyncio.gather(*(_approve(member, node, run.id) for member, node in others))
    return run.id


async def _approve(member: Member, node: Node, run: int) -> None:
    await node.contracts.transact(member.operator, node.contracts.approve(run), timeout_s=PATIENCE_S)


def _begins(study: Study, peer: Peer) -> int:
    return study.scenario.late.get(peer.name, 0)


async def _take_part(
    study: Study, seed: int, member: Member, node: Node, run: int, folder: Path, part: Part, gates: Gates
) -> tuple[Digest, Path] | None:
    """The last checkpoint as a site has it; None if it left before."""
    peer, begins = member.peer, _begins(study, member.peer)
    ends = study.scenario.leaves.get(peer.name, study.policy.rounds)
    if begins:
        await gates.begun(begins)
        await _approve(member, node, run)
    place, _ = await node.training.attach(study.policy.name)
    gates.pass_on(begins)
    while not place.finished:
        if place.round == ends:
            withdrawal = node.contracts.withdraw(run)
            await node.contracts.transact(member.operator, withdrawal, timeout_s=PATIENCE_S)
            gates.pass_on(ends)
            return None
        await gates.wait(place.round)
        path = folder / f"update-{peer.number}"
        _, weight = update(study, peer, seed, place.round, place.path, path, part)
        _, taken = await node.training.submit(place.run, place.round, path, weight, {})
        assert taken, f"round {place.round} took no update of {peer.name}"
        place = await node.training.wait(place.run, place.round)
    return place.digest, place.path
