"""Whole swarms of real processes: a leader that dies at each step, and leaders that lie."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.node.hospitals import Hospitals
from tests.node.rule_breakers import DIE_IN_ROUND

NAMES = ["north", "east", "south", "west"]


def rounds_of(hospitals: Hospitals, name: str) -> list[dict[str, Any]]:
    """The closed rounds of the run, as the ledger's events tell them."""
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites[name]), "test", "--json"))
    return list(shown["closed_rounds"])


def test_four_nodes_train_one_model(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=4)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join()
        assert len(set(hospitals.finals.values())) == 1
        assert len(rounds_of(hospitals, "north")) == 4


@pytest.mark.parametrize("kind", ["DiesAfterSubmit", "DiesDuringFetch", "DiesAfterPublish", "DiesDuringAttest"])
def test_a_leader_that_dies_costs_under_ten_seconds_and_no_submission(tmp_path: Path, kind: str) -> None:
    rounds = DIE_IN_ROUND + 12
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name, kind=kind)
        hospitals.open_run(rounds=rounds)
        for name in NAMES:
            hospitals.train(name, pause_s=0.2)

        def dead() -> list[str]:
            return [name for name in NAMES if hospitals.processes[name].poll() is not None]

        hospitals.wait_for(lambda: bool(dead()), "a leader dies")
        (victim,) = dead()
        survivors = [name for name in NAMES if name != victim]
        closed = DIE_IN_ROUND + 1
        hospitals.wait_for(
            lambda: all(hospitals.trails[name][-1][1] >= closed for name in survivors), "the round closes without it"
        )
        hospitals.start(victim)
        hospitals.join(90)
        assert len(set(hospitals.finals.values())) == 1
        assert set(hospitals.finals) == set(NAMES)

        for name in survivors:
            times = [time_s for time_s, _ in hospitals.trails[name]]
            assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 10
        told = rounds_of(hospitals, survivors[0])
        assert len(told) == rounds
        assert len(told[DIE_IN_ROUND]["submissions"]) == 4, "the dead leader's submission is merged all the same"
        assert any(victim in [s["name"] for s in r["submissions"]] for r in told[DIE_IN_ROUND + 1 :]), (
            "it takes part again"
        )


@pytest.mark.parametrize("kind", ["PublishesAnother", "PublishesOneBit", "NeverSpeaks"])
def test_a_dishonest_leader_is_replaced_in_the_same_round(tmp_path: Path, kind: str) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        hospitals.start("north", kind=kind)
        for name in NAMES[1:]:
            hospitals.start(name)
        hospitals.open_run(rounds=8)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(90)
        assert len({hospitals.finals[name] for name in NAMES[1:]}) == 1
        told = rounds_of(hospitals, "east")
        replaced = [r for r in told if r["replaced"]]
        assert replaced, "north led no round in eight: choose another seed"
        for one in replaced:
            assert one["replaced"][0]["leader"] == "north"
            assert one["leader"] != "north"
            assert len(one["submissions"]) == 4
        if kind != "NeverSpeaks":
            assert len(replaced) == 1, "a leader that was refused does not lead again in this run"
            assert replaced[0]["replaced"][0]["reason"] == "refused"
            assert len(replaced[0]["refusals"]) >= 2
            assert all(refusal["found"] == replaced[0]["checkpoint"] for refusal in replaced[0]["refusals"])
