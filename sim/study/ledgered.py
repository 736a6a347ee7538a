"""The swarm as it is: every site a real node, with ledger, contracts, consensus and store, in one process.

Time is virtual and the network is in memory (`sim.loop`, `swarm.net.memory`): training takes real time and no virtual
time. Sites are well and nothing is lost; `sim.world` is where troubles are.
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
from swarm.node.training import Checkpoint as Place
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
        await _agree(study, seed, members, nodes, folder)
        # All join before the first one submits: nobody is left out of the first round.
        places = await asyncio.gather(*(node.training.attach(study.policy.name) for node in nodes))
        ends = await asyncio.gather(
            *(
                _take_part(study, seed, member.peer, node, place, folder, parts[member.peer.name])
                for member, node, (place, _) in zip(members, nodes, places, strict=True)
            )
        )
        assert len({digest for digest, _ in ends}) == 1, "sites end with different checkpoints"
        digest, path = ends[0]
        kept = folder / "last"
        kept.write_bytes(path.read_bytes())
        return digest, kept
    finally:
        for node in nodes:
            await node.close()


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


async def _agree(study: Study, seed: int, members: Sequence[Member], nodes: Sequence[Node], folder: Path) -> None:
    """One operator proposes the run, all the others approve it."""
    first = folder / "genesis"
    save_model(study.recipe.new_model(seed), first, policy=study.policy)
    genesis = nodes[0].store.put(first.read_bytes())
    nodes[0].store.put(study.policy.encode())
    proposal = nodes[0].contracts.propose(study.policy, genesis)
    await nodes[0].contracts.transact(members[0].operator, proposal, timeout_s=PATIENCE_S)
    (run,) = await nodes[0].contracts.runs()
    await asyncio.gather(
        *(
            node.contracts.transact(member.operator, node.contracts.approve(run.id), timeout_s=PATIENCE_S)
            for member, node in list(zip(members, nodes, strict=True))[1:]
        )
    )


async def _take_part(
    study: Study, seed: int, peer: Peer, node: Node, place: Place, folder: Path, part: Part
) -> tuple[Digest, Path]:
    while not place.finished:
        path = folder / f"update-{peer.number}"
        _, weight = update(study, peer, seed, place.round, place.path, path, part)
        _, taken = await node.training.submit(place.run, place.round, path, weight, {})
        assert taken, f"round {place.round} took no update of {peer.name}"
        place = await node.training.wait(place.run, place.round)
    return place.digest, place.path
