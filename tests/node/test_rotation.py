"""A site takes a new key between two rounds, and a removed member is cut off, with real processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from swarm.config import load_site
from swarm.identity import Identity, checksum, save_keystore
from tests.node.hospitals import Hospitals

NAMES = ["north", "east", "south", "west"]
ROUNDS = 12


@pytest.mark.slow
def test_a_key_is_rotated_and_no_round_is_lost(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=ROUNDS, submit_s=60.0, merge_s=20.0, attest_s=20.0)
        for name in NAMES:
            hospitals.train(name, pause_s=0.3)
        hospitals.wait_for(lambda: len(hospitals.trails.get("west", ())) >= 3, "three rounds", 60)

        site = load_site(hospitals.sites["west"])
        fresh = Identity.generate()
        old = site.identity()
        keystore = site.keystore.with_name("west-new.json")
        assert site.password_file is not None
        save_keystore(fresh, keystore, site.password_file.read_text().strip(), scrypt_n=1 << 12)
        endpoint = f"{site.listen}/p2p/{fresh.peer_id}"
        # Signed by the operator, over the running node; then the node restarts with the new key.
        hospitals.swarm(
            "members", "rotate-key", str(site.path), "--address", checksum(fresh.address), "--endpoint", endpoint
        )
        hospitals.kill("west")
        text = site.path.read_text()
        named = f'keystore = "{keystore}"\nrotated_from = "{checksum(old.address)}"'
        site.path.write_text(re.sub(r"^keystore = .*$", named, text, flags=re.MULTILINE))
        hospitals.start("west")
        hospitals.join(120)

        assert len(set(hospitals.finals.values())) == 1
        assert set(hospitals.finals) == set(NAMES)
        told = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["north"]), "test", "--json"))
        rounds = told["closed_rounds"]
        assert len(rounds) == ROUNDS
        assert all(len(one["submissions"]) == 4 for one in rounds), "west's update is in every round"
        peers = {one["name"]: one for one in hospitals.ask("north", "swarm_network")["members"]}
        assert peers["west"]["address"] == checksum(fresh.address)
        assert peers["west"]["connected"]
        assert checksum(old.address) not in {one["address"] for one in peers.values()}


@pytest.mark.slow
def test_a_removed_member_is_cut_off_by_the_block_that_removes_it(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)

        def meshed() -> bool:
            seen = [hospitals.ask(name, "swarm_status")["members"] for name in NAMES]
            return all(one["connected"] for members in seen for one in members)

        hospitals.wait_for(meshed, "all are connected", 60)
        hospitals.swarm("members", "remove", str(hospitals.sites["north"]), "west")
        for name in ("east", "south"):
            hospitals.swarm("members", "approve", str(hospitals.sites[name]), "1")
        for name in ("north", "east", "south"):
            found = hospitals.ask(name, "swarm_network")["members"]
            assert "west" not in {one["name"] for one in found}, "whoever has the block speaks with it no more"

        def alone() -> bool:
            return not any(one["connected"] for one in hospitals.ask("west", "swarm_network")["members"])

        hospitals.wait_for(alone, "nobody speaks with west", 10)
        # It dials on, and is sent away as a stranger each time.
        hospitals.wait_for(
            lambda: any("no member" in kind for kind in hospitals.ask("north", "swarm_network")["refused"]),
            "west is refused", 30,
        )  # fmt: skip
