"""The same swarm on somebody else's chain: real node processes, anvil, and what may happen to a chain and its links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from swarm.config import load_swarm
from tests.ledger.anvil import CHAIN, Anvil
from tests.node.hospitals import Hospitals

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


def rounds_of(hospitals: Hospitals, name: str) -> list[dict[str, Any]]:
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites[name]), "test", "--json"))
    return list(shown["closed_rounds"])


@pytest.mark.parametrize(("link", "base_fee"), [("http", 10**9), ("ws", 0)])
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
        hospitals.stop()
