"""A private run of real sites: what is told, what stops a site, and that nobody merges beyond the agreed epsilon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback
from swarm.errors import ConfigError
from tests.learn.runs import NAMES, Operators, everywhere
from tests.node.hospitals import Hospitals

SITES = NAMES[:3]
ROUNDS, STEPS, BATCH = 3, 3, 8
AGREED = {
    "rounds": ROUNDS, "sync_interval": STEPS, "merge": "mean", "submit_s": 6.0, "best_metric": "auc",
    "epsilon": 0.8, "delta": 1e-3, "clip": 1.0, "unit": "patient", "replace_batchnorm": True,
}  # fmt: skip


class Died(Exception):
    """The training process is gone."""


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def train(site: Path, *, dies_in: int = -1) -> list[float]:
    """The run, or as far as the moment before an update is handed over; what was spent after each round."""
    x = torch.randn(40, 3)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).float()), batch_size=BATCH)
    model: nn.Module = net()
    spent: list[float] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with SwarmCallback(model, site, run="private", keep={"optimizer": optimizer}) as swarm:
        model, private, batches = swarm.private(model, optimizer, loader, patients=[row // 2 for row in range(40)])
        exchange = swarm._seat.exchange

        def dying(*args, **settings):  # type: ignore[no-untyped-def]
            if swarm.round == dies_in:
                raise Died
            return exchange(*args, **settings)

        swarm._seat.exchange = dying  # type: ignore[method-assign]
        while not swarm.finished:
            swarm.on_epoch_end({"auc": 0.5})
            for rows, y in batches:
                private.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(model(rows).squeeze(1), y)
                loss.backward()  # type: ignore[no-untyped-call]
                private.step()
                if swarm.on_batch_end(samples=len(rows), loss=float(loss)):
                    assert swarm._private is not None
                    spent.append(swarm._private.epsilon)
                    break
    return spent


def test_what_is_spent_is_on_the_ledger_and_a_site_that_spent_all_stops_while_the_others_go_on(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run("private", net(), NAMES, **AGREED)

    def work(name: str) -> list[float]:
        if name == "east":
            # It dies after it wrote down that the second update leaves, and before it does: that counts as spent.
            with pytest.raises(Died):
                train(hospitals.sites[name], dies_in=1)
            with pytest.raises(ConfigError, match=r"budget of run private is spent: with round 2"):
                train(hospitals.sites[name])
            return []
        return train(hospitals.sites[name])

    found = everywhere(work, SITES, timeout_s=120)
    assert len(found["north"]) == len(found["south"]) == ROUNDS
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["west"]), "private", "--json"))
    told = [{s["name"]: s for s in one["submissions"]} for one in shown["closed_rounds"]]
    assert [sorted(one) for one in told] == [["east", "north", "south"], ["east", "north", "south"], ["north", "south"]]
    for number, one in enumerate(told):
        for name in ("north", "south"):
            assert one[name]["metrics"]["swarm.epsilon"] == found[name][number]
        for submission in one.values():
            assert submission["weight"] == BATCH * STEPS, "how many rows were drawn is told to nobody"
            assert set(submission["metrics"]) == {"auc", "swarm.epsilon"}, "and neither is the loss of rows"
    assert 0.78 < found["north"][-1] <= 0.8
    epsilons = [one["east"]["metrics"]["swarm.epsilon"] for one in told[:2]]
    assert epsilons[0] == found["north"][0]
    assert epsilons[1] == found["north"][2], "the update that never left was counted"


def test_a_node_submits_nothing_without_an_epsilon_that_the_members_agreed_on(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run("bounded", net(), SITES, **AGREED)
    site = hospitals.sites["north"]
    model = net()
    with SwarmCallback(model, site, run="bounded") as swarm:
        with pytest.raises(ValueError, match=r"swarm\.epsilon: names that begin with swarm\."):
            swarm.on_epoch_end({"swarm.epsilon": 0.1})
        for _ in range(STEPS - 1):
            assert not swarm.on_batch_end(samples=8)
        with pytest.raises(ConfigError, match=r"run bounded is private: train with what `swarm\.private"):
            swarm.on_batch_end(samples=8)
        with swarm._seat.update_file() as path:
            swarm._at_work().write(path)
            for metrics in ({}, {"swarm.epsilon": 0.81}, {"swarm.epsilon": 0.0}, {"swarm.epsilon": -1.0}):
                with pytest.raises(ConfigError, match=r"a submission declares swarm\.epsilon, at most 0\.8"):
                    swarm._seat.exchange(swarm._here(), path, samples=8, metrics=metrics)


@pytest.mark.slow
def test_a_submission_beyond_the_agreed_epsilon_is_struck_by_everybody(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        hospitals.start("north", kind="Overspends")
        for name in NAMES[1:]:
            hospitals.start(name)
        for name in NAMES:
            hospitals.ask(name, "swarm_status")
        Operators(hospitals).open_run("private", net(), NAMES, **(AGREED | {"submit_s": 20.0}))
        everywhere(lambda name: train(hospitals.sites[name]), NAMES, timeout_s=120)
        shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["east"]), "private", "--json"))
        assert [one["struck"] for one in shown["closed_rounds"]] == [[], ["north"], ["north"]]
