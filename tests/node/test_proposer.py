"""A node votes for a new block only if it names the validator that proposes it, however well the block is made."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from sim.loop import run
from swarm.consensus.messages import Prepare, Proposal, decode_message, encode_message, proposal_digest
from swarm.encoding import Address
from swarm.net.memory import MemoryNetwork, MemoryTransport, steady
from swarm.node.agreement import CONSENSUS
from tests.ledger import world
from tests.node.test_sync import Member, ledger_in, until


async def prepared(folder: Path, *, named: int) -> list[Prepare]:
    """What an honest validator prepares of the first proposer's block that names this place in the order."""
    with closing(ledger_in(folder / "proposer")) as ledger:
        order = ledger.proposers()
        ledger.add_transaction(world.propose(world.OPERATORS[0], 0))
        payload = ledger.build(world.now_ms(ledger), order[named])
        assert payload is not None
        digest = ledger.digest_of(payload)
    proposer = world.BY_ADDRESS[order[0]]
    network = MemoryNetwork(steady(0.001))
    index = next(i for i, one in enumerate(world.MEMBERS[:4]) if one.address != order[0])
    honest = Member(network, index, ledger_in(folder / "honest"))
    transport, heard = MemoryTransport(network, proposer.address), []

    async def hear(member: Address, data: bytes) -> bytes:
        message = decode_message(data)
        if isinstance(message, Prepare):
            heard.append(message)
        return b""

    transport.serve(CONSENSUS, hear)
    transport.set_members({member.address: "" for member in world.MEMBERS[:4]})
    await honest.start()
    await transport.start()
    await until(lambda: proposer.address in honest.transport.connected(), 5)
    signature = proposer.sign(proposal_digest(world.CHAIN, 1, 0, digest))
    transport.send(honest.address, CONSENSUS, encode_message(Proposal(1, 0, digest, signature, payload)))
    await asyncio.sleep(0.5)
    await honest.close()
    await transport.close()
    assert honest.failures == []
    return heard


@pytest.mark.parametrize(("named", "votes"), [(0, 1), (1, 0), (3, 0)])
def test_a_new_block_in_anothers_name_gets_no_vote(named: int, votes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert len(run(prepared(Path(folder), named=named))) == votes
