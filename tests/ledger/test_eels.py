"""The Ethereum specification itself as oracle: it accepts our genesis and every block on it (see `eels/check.py`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from swarm.encoding import Address
from swarm.identity import Identity
from swarm.ledger import genesis
from swarm.ledger.abi import interface
from swarm.ledger.block import decode_payload
from swarm.ledger.evm import Allocation, Evm
from swarm.ledger.genesis import RUNS
from tests.ledger import world
from tests.ledger.test_evm import SEEDS, random_chain
from tests.ledger.world import BY_ADDRESS, MEMBERS, OPERATORS

Chain = dict[str, Any]


def chain(allocations: Mapping[Address, Allocation], blocks: list[bytes]) -> Chain:
    return {
        "chain_id": world.CHAIN,
        "alloc": {
            address.hex(): {
                "nonce": one.nonce,
                "balance": one.balance,
                "code": one.code.hex(),
                "storage": {str(slot): value for slot, value in one.storage.items()},
            }
            for address, one in allocations.items()
        },
        "blocks": [block.hex() for block in blocks],
    }


def real_rounds(folder: Path, rounds: int) -> Chain:
    """The contracts' genesis, a run of four members, and blocks of refused calls."""
    ledger = world.open_ledger(folder)
    blocks = [world.genesis().execution.block]
    nonces: dict[Address, int] = {}

    def decide(*calls: tuple[Identity, str, tuple[object, ...]]) -> None:
        raws: list[bytes] = []
        for who, function, arguments in calls:
            nonce = nonces[who.address] = nonces.get(who.address, -1) + 1
            raws.append(world.call(who, nonce, function, *arguments, kind=len(raws) % 3))
        payload = world.build(ledger, *raws)
        blocks.append(decode_payload(payload)[0])
        world.decide(ledger, payload)

    members = MEMBERS[:4]
    decide((OPERATORS[0], "propose", ("hearts", b"\1" * 32, b"\2" * 32, 9, 2, 60_000, 60_000, 60_000, 1_000_000)))
    decide(*[(operator, "approve", (1,)) for operator in OPERATORS[1:4]])
    decide(*[(member, "join", (1, True)) for member in members])
    for number in range(rounds):
        digests = [bytes([number + 1, i + 1]) * 16 for i in range(4)]
        decide(*[(m, "submit", (1, number, d, 100, b"{}")) for m, d in zip(members, digests, strict=True)])
        asked = interface("Runs").call("round_state", 1)
        state = interface("Runs").result("round_state", ledger.call(to=RUNS, data=asked).output)
        leader, view, checkpoint = BY_ADDRESS[state[4]], state[3], bytes([77, number + 1]) * 16
        decide((leader, "publish", (1, number, view, checkpoint)))
        decide(*[(m, "attest", (1, number, view, checkpoint)) for m in members if m is not leader])
    decide(
        (OPERATORS[1], "nominate", (MEMBERS[5].address, OPERATORS[5].address, "new", "/ip4/1/p2p/x", bytes(32), True))
    )
    decide((OPERATORS[2], "approve", (99,)))
    ledger.close()
    evm = Evm(world.CHAIN, lambda _: None, lambda _: None)
    return chain(genesis._contracts(evm, world.config()), blocks)


@pytest.mark.slow
@pytest.mark.skipif("SWARM_EELS" not in os.environ, reason="SWARM_EELS names a Python that has EELS")
def test_the_specification_accepts_every_block(tmp_path: Path) -> None:
    chains = [real_rounds(tmp_path, 4)]
    for seed in range(SEEDS):
        bench = random_chain(seed)
        chains.append(chain(bench.allocations, bench.blocks))
    script = Path(__file__).parent / "eels" / "check.py"
    answer = subprocess.run(
        [os.environ["SWARM_EELS"], str(script)], input=json.dumps(chains), text=True, capture_output=True, timeout=600
    )
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) == sum(len(one["blocks"]) - 1 for one in chains)
