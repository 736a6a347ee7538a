"""Runs whose course follows what the members tell, and steps that a policy corrects, with real nodes."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from swarm import SwarmCallback
from swarm.errors import ConfigError
from tests.learn.runs import NAMES, Operators, everywhere
from tests.node.hospitals import Hospitals


def shift(model: nn.Linear, by: float) -> None:
    with torch.no_grad():
        model.weight.add_(by)


def test_every_site_stretches_the_interval_alike_and_stops_at_the_same_round_with_the_best_checkpoint_known(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run(
        "course", nn.Linear(2, 1), NAMES, merge="mean",
        rounds=30, sync_interval=2, sync_interval_max=6, sync_growth=2.0, best_metric="auc", patience=2,
    )  # fmt: skip
    judged = [0.5, 0.6, 0.8, 0.7, 0.75, 0.9, 0.9, 0.9]

    def work(name: str) -> tuple[list[int], int, str, int, torch.Tensor]:
        model, intervals = nn.Linear(2, 1), []
        with SwarmCallback(model, hospitals.sites[name], run="course") as swarm:
            while not swarm.finished:
                intervals.append(swarm.sync_interval)
                swarm.on_epoch_end({"auc": judged[swarm.round] + 0.01 * NAMES.index(name)})
                loss, ended = 1 / (1 + swarm.round), False
                while not ended:
                    shift(model, 0.1)
                    ended = swarm.on_batch_end(samples=10, loss=loss)
            best = swarm.adopt_best()
            assert best == swarm.best
        return intervals, swarm.round, best.checkpoint, best.round, model.weight.detach()

    results = everywhere(work)
    first = results["north"]
    assert first[0] == [2, 2, 4, 6, 6]  # the loss fell from round 0 to round 1, and so on
    assert first[1] == 5  # the checkpoints after 3 and 4 rounds are no better than the one after 2
    assert first[3] == 2
    assert all(result[:4] == first[:4] for result in results.values())
    start = load_file(hospitals.folder / "course.safetensors")["weight"]
    for result in results.values():
        assert torch.equal(result[4], first[4])
        torch.testing.assert_close(result[4], start + 0.4, rtol=0, atol=1e-6)  # two rounds of two batches
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["east"]), "course", "--json"))
    assert (shown["best"]["round"], shown["best"]["checkpoint"], shown["ended_after"]) == (1, first[2], 4)
    assert shown["best"]["value"] == pytest.approx(0.81)
    # Who comes later finds the run over too.
    with SwarmCallback(nn.Linear(2, 1), hospitals.sites["west"], run="course") as swarm:
        assert swarm.finished
        assert swarm.round == 5


def test_a_slow_site_submits_what_it_has_when_the_agreed_time_is_over(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run(
        "budget", nn.Linear(1, 1), NAMES[:3], merge="mean", rounds=2, sync_interval=4, work_s=1.0, weight_ratio_max=9.0
    )

    def work(name: str) -> list[int]:
        model, batches = nn.Linear(1, 1), []
        with SwarmCallback(model, hospitals.sites[name], run="budget") as swarm:
            while not swarm.finished:
                batches.append(0)
                ended = False
                while not ended:
                    time.sleep(0.6 if name == "south" else 0.0)
                    shift(model, 0.1)
                    ended = swarm.on_batch_end(samples=10, loss=0.5)
                    batches[-1] += 1
        return batches

    found = everywhere(work, NAMES[:3])
    assert found["north"] == found["east"] == [4, 4]
    assert found["south"] == [2, 2]
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["north"]), "budget", "--json"))
    for one in shown["closed_rounds"]:
        assert {s["name"]: s["weight"] for s in one["submissions"]} == {"north": 40, "east": 40, "south": 20}


def test_scaffold_and_fedprox_are_told_to_a_loop_that_forgets_them(hospitals: Hospitals, operators: Operators) -> None:
    operators.open_run(
        "scaffold", nn.Linear(2, 1), NAMES[:3],
        rounds=2, sync_interval=2, merge="mean", weights="equal", scaffold=True, proximal=0.1,
    )  # fmt: skip
    x = {name: torch.full((4, 2), float(number)) for number, name in enumerate(NAMES)}

    def work(name: str) -> torch.Tensor:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        forgets = name == "east"
        with SwarmCallback(model, hospitals.sites[name], run="scaffold") as swarm:
            while not swarm.finished:
                optimizer.zero_grad()
                loss = ((model(x[name]) - 1) ** 2).mean()
                loss.backward()
                if not forgets:
                    swarm.on_before_optimizer_step()
                optimizer.step()
                if not forgets:
                    swarm.on_batch_end(samples=4)
                    continue
                assert not swarm.on_batch_end(samples=4)
                with pytest.raises(ConfigError, match=r"no step was corrected.*swarm.on_before_optimizer_step\(\)"):
                    swarm.on_batch_end(samples=4)
                forgets = False
                swarm.restart()
        return model.weight.detach()

    results = everywhere(work, NAMES[:3])
    assert torch.equal(results["north"], results["east"])
    assert torch.equal(results["north"], results["south"])
