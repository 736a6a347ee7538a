"""Real nodes over lines as hospitals have them: firewalls, NAT, a slow line, a killed leader, a partition."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.net.namespaces import Internet, Line
from tests.node.bad_network import RELAYS, heart
from tests.node.hospitals import Hospitals

SEEN_S = 0.02


@pytest.mark.slow
def test_the_heart_demo_over_firewall_nat_and_slow_line_ends_with_one_digest(tmp_path: Path) -> None:
    """Two that can only dial out meet over a relay, which is killed as a leader, half are cut off from the others."""
    held, told = heart(tmp_path / "heart", kill="relay")
    print(told)
    assert held  # one digest everywhere, the killed hospital back, the audit passed
    assert told.relayed["hungarian"] == ["switzerland"]
    assert told.relayed["switzerland"] == ["hungarian"]
    assert told.relayed["cleveland"] == told.relayed["va"] == []
    assert set(told.over) <= set(RELAYS)
    assert told.killed == told.over[0]
    assert told.doctor == ["switzerland: over members that relay, of which this site reaches cleveland and va"]
    assert told.parted_in > 0
    assert told.asleep_s > 0


@pytest.mark.slow
def test_when_the_leader_dies_while_slow_members_fetch_they_finish_from_each_other(tmp_path: Path) -> None:
    """Two of four are slow. The leader has published and is gone: a quorum needs one of the slow, who need bytes."""
    fast, slow = Line(rate_bytes_s=25e6), Line(rate_bytes_s=2.5e6)
    lines = {"north": fast, "east": fast, "south": slow, "west": slow}
    with (
        Internet(lines) as internet,
        Hospitals(tmp_path, list(lines), internet=internet, parameters=2_000_000) as found,
    ):
        for name in lines:
            found.start(name)
        found.open_run(rounds=4, submit_s=60, merge_s=60, attest_s=60)
        for name in lines:
            found.train(name)
        addresses = {found.ask(name, "swarm_status")["address"]: name for name in lines}
        victim, killed_in, killed_s = "", -1, 0.0
        while not victim:
            (run,) = found.ask("south", "swarm_status")["runs"]
            leader = addresses.get(run.get("leader") or "", "")
            assert run["state"] != "finished", "no fast member led a round while a slow one fetched"
            if run.get("published") and leader in ("north", "east") and len(run["attested"]) < 3:
                victim, killed_in, killed_s = leader, run["round"], time.monotonic()
                found.kill(victim)
            time.sleep(SEEN_S)
        found.wait_for(
            lambda: found.ask("south", "swarm_status")["runs"][0]["round"] > killed_in, "the round closes", 120
        )
        took_s = time.monotonic() - killed_s
        print(
            f"{victim} was killed in round {killed_in} when it had published; the others closed it {took_s:.1f} s later"
        )
        found.start(victim)
        found.join(300)
        shown = found.swarm("run", "show", str(found.sites["south"]), "test")
    assert len(set(found.finals.values())) == 1, found.finals
    assert took_s < 60, "the others waited for the leader's time to pass"
    print(shown)
