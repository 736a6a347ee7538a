"""A running swarm read, and voted in, with other people's tools as they come: ethers 6, viem 2, cast and web3.py."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web3 import AsyncHTTPProvider, AsyncWeb3, WebSocketProvider

from swarm.config import load_site, load_swarm
from swarm.encoding import to_hex
from swarm.identity import Identity, checksum
from swarm.ledger.artifact import artifact
from swarm.ledger.genesis import CONSORTIUM, RUNS
from tests.node.hospitals import Hospitals
from tests.others import foundry, node_modules

ROUNDS = 3
NAMES = ["north", "south"]
PATIENCE_S = 120


class Swarm:
    """Two nodes that have trained one run, and everything a client has to know to read it."""

    def __init__(self, hospitals: Hospitals) -> None:
        self.hospitals = hospitals
        self.sites = [load_site(hospitals.sites[name]) for name in NAMES]
        self.http = hospitals.ask("north", "swarm_status")["rpc"]
        self.ws = self.http.replace("http://", "ws://")
        self.chain = load_swarm(self.sites[0].swarm).chain_id
        self.operators = [site.operator() for site in self.sites]
        self.shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["north"]), "test", "--json"))
        self.members = load_swarm(self.sites[0].swarm).members

    def question(self) -> dict[str, Any]:
        """What a script gets; each one nominates a member of its own."""
        member, operator = Identity.generate(), Identity.generate()
        return {
            "http": self.http,
            "ws": self.ws,
            "chain": self.chain,
            "operators": [to_hex(operator.secret) for operator in self.operators],
            "addresses": {"Consortium": checksum(CONSORTIUM), "Runs": checksum(RUNS)},
            "abi": {name: artifact(name).abi for name in ("Consortium", "Runs")},
            "newcomer": {
                "member": checksum(member.address),
                "operator": checksum(operator.address),
                "name": "newcomer",
                "endpoint": f"/ip4/127.0.0.1/tcp/9/p2p/{member.peer_id}",
                "fingerprint": "0x" + "00" * 32,
            },
        }


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Hospitals(tmp_path_factory.mktemp("clients"), NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=ROUNDS)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(PATIENCE_S)
        yield Swarm(hospitals)


@pytest.mark.parametrize("library", ["ethers", "viem"])
def test_a_javascript_client_reads_the_swarm_votes_and_follows_it(swarm: Swarm, library: str) -> None:
    question = swarm.question()
    done = subprocess.run(
        ["node", str(Path(__file__).with_name(f"{library}.mjs"))],
        input=json.dumps(question),
        env={**os.environ, "NODE_PATH": str(node_modules())},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    seen = json.loads(done.stdout)

    assert int(seen["chain"]) == swarm.chain
    assert {(member, name) for member, name in seen["members"]} == {
        (checksum(member.address), member.name) for member in swarm.members
    }
    assert sorted(seen["validators"]) == sorted(checksum(member.address) for member in swarm.members)
    closed = [round["checkpoint"] for round in swarm.shown["closed_rounds"]]
    assert len(closed) == ROUNDS
    assert seen["closed"] == [round["checkpoint"] for round in seen["rounds"]] == closed
    assert seen["run"] == {"name": "test", "rounds": str(ROUNDS), "round": str(ROUNDS), "checkpoint": closed[-1]}
    assert seen["events"].count("RoundClosed") == ROUNDS
    assert {"RunProposed", "RunOpened", "Submitted", "Published", "Attested", "RunFinished"} <= set(seen["events"])

    assert seen["header"]["computed"] == seen["header"]["told"]
    assert seen["code"]["computed"] == seen["code"]["told"]
    assert [int(value, 16) for value in seen["proven"]] == [int(value, 16) for value in seen["stored"]]
    assert any(int(value, 16) for value in seen["proven"])
    assert seen["revert"] == {"code": True, "reason": "there is no such proposal"}

    assert "Admitted" in seen["vote"]
    assert seen["admitted"]
    assert seen["followed"]["nominated"] == question["newcomer"]["member"]
    assert set(seen["followed"]["of"]) <= set(seen["followed"]["blocks"])
    assert seen["failed"] == {"status": 0}
    assert seen["removed"]
