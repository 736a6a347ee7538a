"""The same swarm on somebody else's chain: real node processes, anvil, and what may happen to a chain and its links."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from swarm.config import load_site, load_swarm
from swarm.encoding import ZERO_DIGEST, to_hex
from swarm.ledger.abi import interface
from swarm.ledger.genesis import CONSORTIUM, RUNS
from tests.ledger.anvil import CHAIN, Anvil
from tests.node.hospitals import Hospitals
from tests.node.test_metrics import scraped

NAMES = ["north", "east", "south", "west"]


def settle_on(hospitals: Hospitals, anvil: Anvil, url: str, *, confirmations: int = 0, funded: bool = True) -> None:
    """Write the chain into `swarm.toml`, give everybody means, and deploy."""
    path = hospitals.folder / "swarm.toml"
    text = re.sub(r"chain_id = \d+", f"chain_id = {CHAIN}", path.read_text())
    text = re.sub(
        r"(\[ledger\]\n)view_timeout_s[^\n]*\n",
        rf'\1endpoint = "{url}"  # of the ministry\nconfirmations = {confirmations}\n',
        text,
    )
    path.write_text(text)
    if funded:
        for member in load_swarm(path).members:
            anvil.fund(member.address, member.operator)
    print(hospitals.swarm("deploy", str(hospitals.sites["north"])))


def reached(hospitals: Hospitals, closed: int) -> bool:
    """Whether so many rounds have closed, as training at one site sees it."""
    trail = hospitals.trails.get("north", [])
    return len(trail) > 0 and trail[-1][1] >= closed


def rounds_of(hospitals: Hospitals, name: str) -> list[dict[str, Any]]:
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites[name]), "test", "--json"))
    return list(shown["closed_rounds"])


@pytest.mark.parametrize(("link", "base_fee"), [("http", 10**9), pytest.param("ws", 0, marks=pytest.mark.slow)])
def test_four_nodes_train_one_model_on_a_chain_of_somebody_else(tmp_path: Path, link: str, base_fee: int) -> None:
    with Anvil(base_fee=base_fee) as anvil, Hospitals(tmp_path, NAMES) as hospitals:
        settle_on(hospitals, anvil, anvil.url if link == "http" else anvil.ws, funded=base_fee > 0)
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=4)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(120)
        assert len(set(hospitals.finals.values())) == 1
        told = rounds_of(hospitals, "north")
        assert len(told) == 4
        assert all(len(one["submissions"]) == 4 and not one["replaced"] for one in told)
        assert "somebody else's chain" in hospitals.swarm("status", str(hospitals.sites["west"]))
        seen = json.loads(hospitals.swarm("status", str(hospitals.sites["west"]), "--json"))
        assert seen["external"]["answers"]
        measured = scraped(seen["external"]["metrics"].removesuffix("/metrics"))
        assert measured["swarm_height"][""] > 3
        assert measured["swarm_run_round"] == {"test": 4}
        assert measured["swarm_peer_connected"] == dict.fromkeys(set(NAMES) - {"west"}, 1)
        assert "code and founders checked" in hospitals.swarm("deploy", str(hospitals.sites["south"]))
        hospitals.stop()
        verdict = hospitals.swarm("audit", str(hospitals.folder))
        assert verdict.count("4 rounds of 1 runs derived again, 4 merges done again") == 4
        assert "trusted: the chain's own consensus" in verdict
        assert "audit passed: receipts" in verdict


def test_a_chain_that_restarts_in_the_middle_of_a_round_costs_time_and_no_submission(tmp_path: Path) -> None:
    """Its pool is gone then, and every link; a node sends again what it does not know to have arrived."""
    options = ["--state", str(tmp_path / "state.json"), "--preserve-historical-states"]
    with Anvil(options=options) as anvil, Hospitals(tmp_path, NAMES) as hospitals:
        settle_on(hospitals, anvil, anvil.ws)
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=4)
        for name in NAMES:
            hospitals.train(name, pause_s=0.3)
        hospitals.wait_for(lambda: reached(hospitals, 1), "round 1 closes", 60)
        anvil.stop()
        anvil.start()
        hospitals.join(180)
        assert len(set(hospitals.finals.values())) == 1
        told = rounds_of(hospitals, "east")
        assert [len(one["submissions"]) for one in told] == [4] * 4
        sent = submissions_on(anvil)
        assert len(sent) == len(set(sent)) == 16, "each member submitted once to each round"


@pytest.mark.slow
def test_blocks_that_are_taken_back_before_they_count_change_nothing(tmp_path: Path) -> None:
    with Anvil(block_s=1) as anvil, Hospitals(tmp_path, NAMES) as hospitals:
        settle_on(hospitals, anvil, anvil.url, confirmations=3)
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=3, submit_s=20.0, merge_s=20.0, attest_s=20.0)
        for name in NAMES:
            hospitals.train(name)
        seen = 0
        while hospitals.training():
            if anvil.height >= seen + 4:
                anvil.reorg(3)
                seen = anvil.height
            time.sleep(0.2)
        hospitals.join(240)
        assert len(set(hospitals.finals.values())) == 1
        told = rounds_of(hospitals, "south")
        assert len(told) == 3
        assert all(one["checkpoint"] for one in told)


def submissions_on(anvil: Anvil) -> list[tuple[str, str]]:
    """Sender and data of every transaction in the chain that calls `submit`, taken or refused."""
    selector = to_hex(interface("Runs").call("submit", 1, 0, ZERO_DIGEST, 1, b"")[:4])
    found = []
    for number in range(anvil.height + 1):
        for sent in anvil.ask("eth_getBlockByNumber", hex(number), True)["transactions"]:
            if sent["input"].startswith(selector):
                found.append((sent["from"], sent["input"][: 10 + 3 * 64]))
    return found


@pytest.mark.slow
def test_hospitals_train_over_the_json_rpc_of_our_own_validators(tmp_path: Path) -> None:
    """Four members keep a ledger of this project's kind; two others take part through its JSON-RPC alone."""
    validators, outside = ["a", "b", "c", "d"], ["north", "east"]
    with Hospitals(tmp_path, [*validators, *outside]) as hospitals:
        agreed = hospitals.folder / "swarm.toml"
        text = agreed.read_text()
        for name in outside:
            text = text.replace(f'name = "{name}"\n', f'name = "{name}"\nvalidator = false\n')
        agreed.write_text(text)
        url = load_site(hospitals.sites["a"]).rpc
        assert url is not None
        table = (
            f'[ledger]\nendpoint = "http://{url.host}:{url.port}"\nconsortium = "{to_hex(CONSORTIUM)}"\n'
            f'runs = "{to_hex(RUNS)}"\n\n'
        )
        (hospitals.folder / "outside.toml").write_text(re.sub(r"\[ledger\]\n[^\[]*", table, text))
        for name in outside:
            site = hospitals.sites[name]
            own = re.sub(r"\[rpc\].*", "", site.read_text(), flags=re.S)  # they have no ledger that others could read
            site.write_text(own.replace("../swarm.toml", "../outside.toml"))
        for name in [*validators, *outside]:
            hospitals.start(name)
        hospitals.open_run(rounds=3)
        for name in outside:
            hospitals.train(name)
        hospitals.join(120)
        assert len(set(hospitals.finals.values())) == 1
        told = rounds_of(hospitals, "b")
        assert [sorted(s["name"] for s in one["submissions"]) for one in told] == [sorted(outside)] * 3
        assert told == rounds_of(hospitals, "north")


@pytest.mark.slow
def test_blind_rounds_close_on_a_chain_of_somebody_else_and_an_audit_opens_them_again(tmp_path: Path) -> None:
    with Anvil() as anvil, Hospitals(tmp_path, NAMES) as hospitals:
        settle_on(hospitals, anvil, anvil.ws)
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=2, submit_s=30.0, merge_s=20.0, attest_s=20.0, blind=True)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(180)
        assert len(set(hospitals.finals.values())) == 1
        hospitals.stop()
        verdict = hospitals.swarm("audit", str(hospitals.folder))
        assert verdict.count("2 rounds of 1 runs derived again, 2 merges done again") == 4
