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
        for name in NAMES:
            hospitals.start(name, kind=kind)
        hospitals.open_run(rounds=DIE_IN_ROUND + 4)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(90)
        assert len(set(hospitals.finals.values())) == 1
        told = rounds_of(hospitals, "east")
        assert [one["round"] for one in told if one["replaced"]] == [DIE_IN_ROUND]
        round_ = told[DIE_IN_ROUND]
        liar = round_["replaced"][0]["leader"]
        assert round_["leader"] != liar
        assert len(round_["submissions"]) == 4
        if kind == "NeverSpeaks":
            assert round_["replaced"][0]["reason"] == "silent"
            return
        assert round_["replaced"][0]["reason"] == "refused"
        assert len(round_["refusals"]) >= 2
        for refusal in round_["refusals"]:
            assert (refusal["leader"], refusal["found"]) == (liar, round_["checkpoint"])
            place = hospitals.ask("east", "swarm_object", digest=refusal["evidence"])["path"]
            evidence = json.loads(Path(place).read_bytes().partition(b"\n")[0])
            assert evidence["published"] == refusal["published"]
            if kind == "PublishesOneBit":
                assert "weight[" in evidence["first_difference"]
        judged = json.loads(hospitals.swarm("verify-evidence", place, "--ledger", str(hospitals.folder), "--json"))
        assert (judged["verdict"], judged["leader"]) == ("guilty", evidence["leader"])
        later = told[DIE_IN_ROUND + 1 :]
        assert liar not in [one["leader"] for one in later], "a leader that was refused leads no more in this run"
        assert all(liar in [s["name"] for s in one["submissions"]] for one in later), "but its updates count"


def test_an_update_that_no_merge_takes_is_struck_and_the_round_closes_without_it(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        hospitals.start("north", kind="SubmitsNonsense")
        for name in NAMES[1:]:
            hospitals.start(name)
        hospitals.open_run(rounds=DIE_IN_ROUND + 2)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(90)
        assert len(set(hospitals.finals.values())) == 1
        told = rounds_of(hospitals, "east")
        assert [one["struck"] for one in told] == [["north"] if n == DIE_IN_ROUND else [] for n in range(len(told))]
