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


def test_cast_reads_the_swarm_votes_and_executes_a_transaction_again(swarm: Swarm) -> None:
    question, consortium, runs = swarm.question(), checksum(CONSORTIUM), checksum(RUNS)

    def cast(*arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [str(foundry("cast")), *arguments, "--rpc-url", swarm.http],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert (done.returncode != 0) == fails, f"cast {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    def vote(operator: int, *call: str) -> Any:
        # Without --legacy cast offers a fee of at least 1 wei, and nobody here has one.
        key = question["operators"][operator]
        return json.loads(cast("send", "--legacy", "--json", "--private-key", key, consortium, *call))

    assert int(cast("chain-id")) == swarm.chain
    roster = cast("call", consortium, "roster()((address,(address,string,string,bytes32,bool,bool))[])")
    assert all(checksum(member.address) in roster and f'"{member.name}"' in roster for member in swarm.members)
    [closed] = json.loads(cast("call", "--json", runs, "closedRound(uint256,uint256)(bytes32)", "1", "0"))
    assert closed == swarm.shown["closed_rounds"][0]["checkpoint"]
    logs = json.loads(cast("logs", "--json", "--from-block", "0", "--address", runs, event_of("Runs", "RoundClosed")))
    assert len(logs) == ROUNDS
    block = json.loads(cast("block", "latest", "--json"))
    assert json.loads(cast("rpc", "swarm_getCertificate", block["number"])) != "0x"
    proof = json.loads(cast("proof", consortium, "0"))
    assert proof["codeHash"] == cast("codehash", consortium).strip()
    assert int(proof["storageProof"][0]["value"], 16) == int(cast("storage", consortium, "0"), 16)
    assert "there is no such proposal" in cast(
        "call", consortium, "approve(uint256)", "99", "--from", checksum(swarm.operators[0].address), fails=True
    )

    new = question["newcomer"]
    receipt = vote(
        0, "nominate(address,address,string,string,bytes32,bool)",
        new["member"], new["operator"], new["name"], new["endpoint"], new["fingerprint"], "false",
    )  # fmt: skip
    assert int(receipt["status"], 16) == 1
    proposal = str(int(receipt["logs"][0]["topics"][1], 16))
    again = vote(0, "approve(uint256)", proposal, "--gas-limit", "300000")
    assert int(again["status"], 16) == 0
    # cast fetches the state that the transaction met and executes it itself, in another EVM.
    assert "this member has already approved" in cast("run", again["transactionHash"])
    assert int(vote(1, "approve(uint256)", proposal)["status"], 16) == 1
    assert cast("call", consortium, "isMember(address)(bool)", new["member"]).strip() == "true"

    removal = vote(0, "proposeRemoval(address)", new["member"])
    vote(1, "approve(uint256)", str(int(removal["logs"][0]["topics"][1], 16)))
    assert cast("call", consortium, "isMember(address)(bool)", new["member"]).strip() == "false"


def event_of(contract: str, name: str) -> str:
    """An event as cast reads it: `RoundClosed(uint256 indexed,…)`."""
    (found,) = (item for item in artifact(contract).abi if item["type"] == "event" and item["name"] == name)
    return f"{name}({','.join(i['type'] + (' indexed' if i['indexed'] else '') for i in found['inputs'])})"


async def test_web3_over_http_and_websocket_reads_votes_and_is_told(swarm: Swarm) -> None:
    question = swarm.question()
    over_http: Any = AsyncWeb3(AsyncHTTPProvider(swarm.http))
    assert await over_http.is_connected()
    contract = over_http.eth.contract(address=checksum(CONSORTIUM), abi=artifact("Consortium").abi)
    nonce = await over_http.eth.get_transaction_count(checksum(swarm.operators[0].address))
    new = question["newcomer"]
    nominate = contract.functions.nominate(
        new["member"], new["operator"], new["name"], new["endpoint"], new["fingerprint"], False
    )
    filled = await nominate.build_transaction({"from": checksum(swarm.operators[0].address), "nonce": nonce})
    signed = over_http.eth.account.sign_transaction(filled, swarm.operators[0].secret)

    polled = await over_http.eth.filter({"address": checksum(CONSORTIUM)})
    async with AsyncWeb3(WebSocketProvider(swarm.ws)) as over_websocket:
        heads = await over_websocket.eth.subscribe("newHeads")
        logs = await over_websocket.eth.subscribe("logs", {"address": checksum(CONSORTIUM)})
        digest = await over_http.eth.send_raw_transaction(signed.raw_transaction)
        told: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE_S):
            async for message in over_websocket.socket.process_subscriptions():
                told.setdefault(str(message["subscription"]), message["result"])
                if len(told) == 2:
                    break
        receipt = await over_websocket.eth.wait_for_transaction_receipt(digest)
        assert told[heads]["hash"] == receipt["blockHash"]
        assert told[logs]["transactionHash"] == digest
        assert await over_websocket.eth.unsubscribe(heads)
    assert {log["transactionHash"] for log in await polled.get_new_entries()} == {digest}
    await over_http.provider.disconnect()
