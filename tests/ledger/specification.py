"""Ethereum's execution specification (EELS) as a judge of our blocks: chains for it, and its verdict."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarm.config import SwarmConfig, load_swarm
from swarm.encoding import Address
from swarm.identity import Identity
from swarm.ledger import genesis
from swarm.ledger.abi import interface
from swarm.ledger.archive import Archive
from swarm.ledger.block import decode_payload
from swarm.ledger.evm import Allocation
from swarm.ledger.genesis import CONSORTIUM, RUNS, Genesis
from swarm.ledger.ledger import Ledger
from tests.ledger import world
from tests.ledger.test_evm import random_chain
from tests.ledger.world import BY_ADDRESS, MEMBERS, OPERATORS
from tests.others import eels_python

Chain = dict[str, Any]
SCRIPT = Path(__file__).parent / "eels" / "check.py"


def accepted(chains: list[Chain], *, timeout_s: float = 600.0) -> int:
    """How many blocks after genesis the specification executed, with every root, hash and gas figure as we say.

    Raises:
        AssertionError: it refused one; its words.
    """
    command = [str(eels_python()), str(SCRIPT)]
    answer = subprocess.run(command, input=json.dumps(chains), text=True, capture_output=True, timeout=timeout_s)
    assert answer.returncode == 0, answer.stderr[-4000:]
    return int(answer.stdout)


def blocks_of(chains: list[Chain]) -> int:
    """How many blocks after genesis there are."""
    return sum(len(one["blocks"]) - 1 for one in chains)


def chain(chain_id: int, allocations: Mapping[Address, Allocation], blocks: list[bytes]) -> Chain:
    """What `eels/check.py` reads: the state at genesis, and the blocks from genesis on."""
    return {
        "chain_id": chain_id,
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


def contracts_of(config: SwarmConfig) -> Mapping[Address, Allocation]:
    """The accounts that a consortium starts with."""
    return genesis.allocations(config)


def chain_on_disk(swarm_toml: Path, site: Path) -> Chain:
    """The ledger that a node left in its site's folder."""
    config = load_swarm(swarm_toml)
    archive = Archive(site / "ledger")
    try:
        rows = [row for row in archive.blocks() if row.number > 0]
    finally:
        archive.close()
    blocks = [decode_payload(row.payload)[0] for row in rows]
    return chain(config.chain_id, contracts_of(config), [Genesis.of(config).execution.block, *blocks])


def random_programs(seed: int) -> Chain:
    """Five blocks of transfers, calls, creations, reverts and exhausted gas between random programs."""
    bench = random_chain(seed)
    return chain(world.CHAIN, bench.allocations, bench.blocks)


class Play:
    """Blocks of signed calls on our contracts; a call that the contracts refuse is in its block all the same."""

    def __init__(self, folder: Path) -> None:
        self._ledger: Ledger = world.open_ledger(folder)
        self._nonces: dict[Address, int] = {}
        self.blocks = [world.genesis().execution.block]
        self.validators = {self._ledger.validators()}
        """Every set of them so far."""

    def decide(self, *calls: tuple[Identity, str, tuple[object, ...]], gas: int = 5_000_000) -> None:
        """One block with these calls; `Consortium.approve` where both contracts have the function."""
        raws: list[bytes] = []
        for who, function, arguments in calls:
            nonce = self._nonces[who.address] = self._nonces.get(who.address, -1) + 1
            contract, _, name = function.rpartition(".")
            if contract:  # both contracts have the function
                data = interface(contract).call(name, *arguments)
                raws.append(world.signed(who, nonce, CONSORTIUM, data, kind=len(raws) % 3, gas=gas))
            else:
                raws.append(world.call(who, nonce, function, *arguments, kind=len(raws) % 3, gas=gas))
        payload = world.build(self._ledger, *raws)
        self.blocks.append(decode_payload(payload)[0])
        world.decide(self._ledger, payload)
        self.validators.add(self._ledger.validators())

    def ask(self, contract: str, function: str, *arguments: object) -> Any:
        """What a view answers."""
        found = interface(contract)
        to = RUNS if contract == "Runs" else CONSORTIUM
        return found.result(function, self._ledger.call(to=to, data=found.call(function, *arguments)).output)

    def chain(self) -> Chain:
        """The blocks so far; the ledger is closed."""
        self._ledger.close()
        return chain(world.CHAIN, contracts_of(world.config()), self.blocks)


def real_rounds(folder: Path, rounds: int) -> Chain:
    """A run of four members from proposal on, and blocks of refused calls."""
    play = Play(folder)
    members = MEMBERS[:4]
    play.decide((OPERATORS[0], "propose", ("hearts", b"\1" * 32, b"\2" * 32, 9, 2, 60_000, 60_000, 60_000, 1_000_000)))
    play.decide(*[(operator, "approve", (1,)) for operator in OPERATORS[1:4]])
    play.decide(*[(member, "join", (1, True)) for member in members])
    for number in range(rounds):
        digests = [bytes([number + 1, i + 1]) * 16 for i in range(4)]
        play.decide(*[(m, "submit", (1, number, d, 100, b"{}")) for m, d in zip(members, digests, strict=True)])
        state = play.ask("Runs", "round_state", 1)
        leader, view, checkpoint = BY_ADDRESS[state[4]], state[3], bytes([77, number + 1]) * 16
        play.decide((leader, "publish", (1, number, view, checkpoint)))
        play.decide(*[(m, "attest", (1, number, view, checkpoint)) for m in members if m is not leader])
    play.decide((OPERATORS[2], "approve", (99,)))
    return play.chain()


def random_votes(folder: Path, seed: int, blocks: int) -> Chain:
    """Members and validators come and go, keys rotate; many calls are refused, some run out of gas."""
    chance = random.Random(seed)
    play = Play(folder)
    newcomers = 0
    while len(play.blocks) <= blocks or (len(play.validators) == 1 and len(play.blocks) < 10 * blocks):
        calls: list[tuple[Identity, str, tuple[object, ...]]] = []
        proposals = play.ask("Consortium", "proposals")
        voters = [one for one in OPERATORS if any(play.ask("Consortium", "memberOf", one.address))]
        for operator in chance.sample(voters, chance.randint(1, min(5, len(voters)))):
            member = chance.choice(MEMBERS[:6])
            newcomer = 4 + newcomers % 4
            newcomers += 1
            record = (f"site {newcomer}", f"/ip4/10.0.0.{newcomer}/tcp/1/p2p/x", bytes(32), chance.random() < 0.5)
            calls.append(
                chance.choice(
                    [
                        (operator, "nominate", (MEMBERS[newcomer].address, OPERATORS[newcomer].address, *record)),
                        (operator, "proposeRemoval", (member.address,)),
                        (operator, "proposeValidator", (member.address, chance.random() < 0.5)),
                        (operator, "setEndpoint", ("/ip4/10.9.9.9/tcp/1/p2p/y", bytes(32))),
                        (operator, "standDown", ()),
                        (operator, "resume", ()),
                        *[(operator, "Consortium.approve", (max(proposals - chance.randint(0, 3), 1),))] * 9,
                    ]
                )
            )
        play.decide(*calls, gas=chance.choice([40_000, 120_000, 5_000_000, 5_000_000, 5_000_000]))
    assert len(play.validators) > 1, f"seed {seed}: no vote changed the validators"
    return play.chain()
