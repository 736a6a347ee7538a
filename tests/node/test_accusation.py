"""A node that hears a validator contradict itself keeps the evidence, and its status says so."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sim.loop import run
from swarm.cli.status import accusations
from swarm.consensus.messages import Prepare, encode_message, prepare_digest
from swarm.identity import checksum
from swarm.net.memory import MemoryNetwork, MemoryTransport, steady
from swarm.node.agreement import CONSENSUS
from tests.ledger import world
from tests.node.test_sync import Member, ledger_in, until


async def lied_to(folder: Path) -> Member:
    """An honest validator that another sends two prepares for one view."""
    network = MemoryNetwork(steady(0.001))
    honest = Member(network, 0, ledger_in(folder / "honest"))
    liar = MemoryTransport(network, world.MEMBERS[1].address)
    await honest.start()
    liar.set_members({member.address: "" for member in world.MEMBERS[:4]})
    await liar.start()
    await until(lambda: world.MEMBERS[1].address in honest.transport.connected(), 5)
    for content in (b"\x01", b"\x02", b"\x02", b"\x03"):
        digest = content * 32
        signature = world.MEMBERS[1].sign(prepare_digest(world.CHAIN, 1, 0, digest))
        liar.send(honest.address, CONSENSUS, encode_message(Prepare(1, 0, digest, signature)))
    await until(lambda: bool(honest.agreement.contradictions.kept()), 5)
    await honest.close()
    await liar.close()
    return honest


def test_a_contradiction_is_kept_with_what_proves_it() -> None:
    with tempfile.TemporaryDirectory() as folder:
        honest = run(lied_to(Path(folder)))
        (found,) = honest.agreement.contradictions.kept()
    assert found.member == world.MEMBERS[1].address == found.contradiction.signer()
    assert (found.contradiction.kind, found.contradiction.first.height) == ("Prepare", 1)
    assert honest.failures == []


def test_status_names_who_contradicted_itself_and_where_the_evidence_is() -> None:
    address = checksum(world.MEMBERS[1].address)
    seen = {
        "members": [{"address": address, "name": "east"}],
        "contradictions": [
            {
                "member": address,
                "kind": "Prepare",
                "height": 7,
                "view": 1,
                "path": "/s/contradictions/a.json",
            },
            {
                "member": address,
                "kind": "Commit",
                "height": 9,
                "view": 0,
                "path": "/s/contradictions/b.json",
            },
        ],
    }
    (line,) = accusations(seen)
    assert "east contradicted itself" in line
    assert "height 7, view 1" in line
    assert "2 in /s/contradictions" in line
    assert accusations({"members": []}) == []
