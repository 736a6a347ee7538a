"""Block 0: a pure function of what the members agreed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.config import MEMBERS_MAX, MemberConfig, SwarmConfig
from swarm.encoding import to_hex
from swarm.errors import ConfigError
from swarm.identity import Identity
from swarm.ledger.abi import interface
from swarm.ledger.genesis import CONSORTIUM, RUNS, Genesis
from swarm.ledger.ledger import Ledger
from tests.ledger import world
from tests.ledger.world import MEMBERS, OPERATORS


def ask(ledger: Ledger, contract: str, function: str, *arguments: object) -> object:
    to = CONSORTIUM if contract == "Consortium" else RUNS
    outcome = ledger.call(to=to, data=interface(contract).call(function, *arguments))
    assert outcome.succeeded, outcome.error
    return interface(contract).result(function, outcome.output)


def test_the_contracts_know_the_founders(ledger: Ledger) -> None:
    assert ask(ledger, "Consortium", "members") == tuple(member.address for member in MEMBERS[:4])
    assert set(ledger.validators()) == {member.address for member in MEMBERS[:4]}
    assert list(ledger.validators()) == sorted(ledger.validators())
    record = ask(ledger, "Consortium", "member", MEMBERS[2].address)
    config = world.config().members[2]
    assert record == (OPERATORS[2].address, config.name, config.endpoint, bytes(32), True, True)
    assert ask(ledger, "Consortium", "memberOf", OPERATORS[1].address) == MEMBERS[1].address
    assert ask(ledger, "Runs", "ticksPerSecond") == 1000
    assert ask(ledger, "Runs", "count") == 0


def test_who_only_follows_does_not_decide(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, world.genesis(6, 4))
    assert set(ledger.validators()) == {member.address for member in MEMBERS[:4]}
    ledger.add_transaction(world.propose(OPERATORS[5], 0))
    ledger.close()


def test_another_process_comes_to_the_same_hash() -> None:
    code = "from tests.ledger import world; print(world.genesis().hash.hex())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.strip() == world.genesis().hash.hex()


def test_every_setting_that_is_agreed_is_in_the_hash() -> None:
    config = world.config()
    first = config.members[0]
    others = [
        replace(config, created_ms=config.created_ms + 1),
        replace(config, block_gas_limit=config.block_gas_limit + 1),
        replace(config, members=config.members[:3]),
        replace(config, members=(*config.members[1:], first)),
        replace(config, members=(replace(first, name="other"), *config.members[1:])),
        replace(config, members=(replace(first, operator=OPERATORS[7].address), *config.members[1:])),
        replace(config, members=(replace(first, endpoint=first.endpoint.replace("4000", "5000")), *config.members[1:])),
        replace(config, members=(replace(first, validator=False), *config.members[1:])),
    ]
    hashes = {Genesis.of(other).hash for other in others}
    assert len(hashes) == len(others)
    assert Genesis.of(config).hash not in hashes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chain_id": 0}, "chain_id"),
        ({"chain_id": 1 << 53}, "chain_id"),
        ({"created_ms": 0}, "created_ms"),
        ({"block_gas_limit": 10}, "block_gas_limit"),
    ],
)
def test_numbers_that_cannot_work_are_named(change: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Genesis.of(replace(world.config(), **change))  # type: ignore[arg-type]


def test_founders_that_the_contract_refuses_are_an_error_of_the_settings() -> None:
    config = world.config()
    twice = replace(config.members[1], operator=config.members[0].operator)
    with pytest.raises(ConfigError, match="refuse these founders"):
        Genesis.of(replace(config, members=(config.members[0], twice)))


def test_as_many_members_as_the_contracts_can_hold_found_a_ledger(tmp_path: Path) -> None:
    founders = []
    for number in range(1, MEMBERS_MAX + 1):
        member, operator = Identity(number.to_bytes(32, "big")), Identity((1000 + number).to_bytes(32, "big"))
        endpoint = f"/dns4/{'x' * 60}.hospital-{number}.example.org/tcp/4101/p2p/{member.peer_id}"
        founders.append(MemberConfig(f"hospital {number} {'n' * 40}", member.address, operator.address, endpoint))
    config = SwarmConfig("large", world.CHAIN, world.CREATED_MS, tuple(founders))
    ledger = Ledger.open(tmp_path, Genesis.of(config))
    assert len(ledger.validators()) == MEMBERS_MAX
    ledger.close()


def test_a_ledger_of_other_settings_is_not_opened(tmp_path: Path) -> None:
    world.open_ledger(tmp_path).close()
    with pytest.raises(ConfigError, match=r"swarm\.toml"):
        world.open_ledger(tmp_path, 5)
    again = world.open_ledger(tmp_path)
    assert to_hex(again.genesis_hash) == to_hex(world.genesis().hash)
    again.close()
