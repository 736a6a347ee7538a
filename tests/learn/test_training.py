"""Training loops beside real node processes: the callback, a sum agreed first, restarts, late sites, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from swarm import SwarmCallback, sum_over_members
from swarm.config import load_site
from swarm.errors import ConfigError
from swarm.learn.attach import Node
from tests.learn.runs import NAMES, Operators, everywhere
from tests.node.hospitals import Hospitals


def shift(model: nn.Linear, by: float) -> None:
    """Training of the simplest kind: the change of the parameters is known."""
    with torch.no_grad():
        model.weight.add_(by)


class Counter(nn.Module):
    """A weight, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.batches: torch.Tensor
        self.register_buffer("batches", torch.tensor(0))


def test_sites_end_with_the_mean_of_their_changes_weighted_by_samples(
    hospitals: Hospitals, operators: Operators
) -> None:
    changes = {"north": (1.0, 10), "east": (2.0, 20), "south": (4.0, 30), "west": (-8.0, 40)}
    expected = 3 * sum(2 * by * n for by, n in changes.values()) / sum(n for _, n in changes.values())
    operators.open_run("mean", nn.Linear(2, 1), merge="mean", weight_ratio_max=4.0, range=100.0, by=NAMES)

    def work(name: str) -> tuple[nn.Linear, str, list[int]]:
        model, seen = nn.Linear(2, 1), []
        by, samples = changes[name]
        with SwarmCallback(model, hospitals.sites[name], run="mean") as swarm:
            while not swarm.finished:
                shift(model, by)
                if swarm.on_batch_end(samples=samples, loss=0.5):
                    seen.append(swarm.round)
                    swarm.on_epoch_end({"auc": 0.75})
        return model, swarm.checkpoint, seen

    results = everywhere(work)
    start = load_file(hospitals.folder / "mean.safetensors")
    assert len({checkpoint for _, checkpoint, _ in results.values()}) == 1
    for model, _, seen in results.values():
        assert seen == [1, 2, 3]
        torch.testing.assert_close(model.weight, start["weight"] + expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(model.bias, start["bias"])
        assert torch.equal(model.weight, results["north"][0].weight)


def test_a_sum_is_the_same_bits_at_every_site_and_a_late_site_gets_it_too(
    hospitals: Hospitals, operators: Operators
) -> None:
    parts = {name: np.random.default_rng(i).normal(0, 1e3, 5) for i, name in enumerate(NAMES)}
    operators.open_run(
        "sum", {"total": np.zeros(5), "count": np.zeros(1)}, by=NAMES,
        rounds=1, merge="sum", weights="equal", range=1e5, submissions_min=3, submit_s=2.0,
    )  # fmt: skip

    def work(name: str) -> dict[str, torch.Tensor]:
        return sum_over_members(hospitals.sites[name], {"total": parts[name], "count": np.ones(1)}, run="sum")

    early = everywhere(work, NAMES[:3])
    late = work("west")
    for found in [*early.values(), late]:
        assert torch.equal(found["total"], early["north"]["total"])
        np.testing.assert_allclose(found["total"], sum(parts[name] for name in NAMES[:3]), rtol=0, atol=1e-8)
        assert found["count"] == 3


def test_whole_numbers_and_values_beyond_the_range_are_refused_by_a_sum(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run("small", {"a": np.zeros(1)}, rounds=1, merge="sum", weights="equal", range=10.0, by=NAMES)
    site = hospitals.sites["north"]
    with pytest.raises(ValueError, match="a: whole numbers are not added"):
        sum_over_members(site, {"a": np.zeros(1, np.int64)}, run="small")
    with pytest.raises(ValueError, match="a: values beyond ±10"):
        sum_over_members(site, {"a": np.array([10.5])}, run="small")
    with pytest.raises(ConfigError, match=r"b F64\[1\] is unknown|a F64\[1\] is missing"):
        sum_over_members(site, {"b": np.zeros(1)}, run="small")


def test_a_model_or_run_that_does_not_fit_is_refused_with_the_way_out(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run("fit", nn.Linear(2, 1), by=NAMES[:3])
    with (
        pytest.raises(ConfigError, match=r"weight is F32\[1, 3\] where F32\[1, 2\] belongs"),
        SwarmCallback(nn.Linear(3, 1), hospitals.sites["north"], run="fit"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="no run 'nothing'"),
        SwarmCallback(nn.Linear(2, 1), hospitals.sites["north"], run="nothing"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="operator has not approved"),
        SwarmCallback(nn.Linear(2, 1), hospitals.sites["west"], run="fit"),
    ):
        pass


def test_a_diverged_site_is_refused_and_goes_on_from_the_last_checkpoint(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run("diverged", Counter(), by=NAMES[:3], rounds=2, sync_interval=1)

    def work(name: str) -> int:
        model, refused = Counter(), 0
        with SwarmCallback(model, hospitals.sites[name], run="diverged") as swarm:
            while not swarm.finished:
                with torch.no_grad():
                    model.weight.add_(1)
                    model.batches.add_(5)
                    if name == "north" and swarm.round == 1 and not refused:
                        model.weight[1] = float("nan")
                if model.weight.isfinite().all():
                    swarm.on_batch_end(samples=4)
                else:
                    with pytest.raises(ValueError, match=r"not finite in weight \(1 of 3 values\)"):
                        swarm.on_batch_end(samples=4)
                    refused += 1
                    swarm.restart()
        assert torch.equal(model.weight, torch.full((3,), 2.0))
        assert model.batches == 10
        return refused

    assert everywhere(work, NAMES[:3]) == {"north": 1, "east": 0, "south": 0}


def test_batches_after_the_last_round_are_not_left_in_the_model(hospitals: Hospitals, operators: Operators) -> None:
    operators.open_run("ended", nn.Linear(1, 1), by=NAMES[:3], rounds=1, sync_interval=1)

    def work(name: str) -> float:
        model = nn.Linear(1, 1)
        with SwarmCallback(model, hospitals.sites[name], run="ended") as swarm:
            start = model.weight.item()
            for _ in range(4):
                shift(model, 1.0)
                swarm.on_batch_end(samples=1)
        return model.weight.item() - start

    assert everywhere(work, NAMES[:3]) == pytest.approx(dict.fromkeys(NAMES[:3], 1.0))


def test_a_run_that_the_members_stop_ends_training_at_its_last_checkpoint(
    hospitals: Hospitals, operators: Operators
) -> None:
    operators.open_run("stopped", nn.Linear(1, 1), by=NAMES[:3], rounds=1000, sync_interval=1)
    rounds: list[int] = []

    def work(name: str) -> tuple[str, bool]:
        model = nn.Linear(1, 1)
        with SwarmCallback(model, hospitals.sites[name], run="stopped") as swarm:
            while not swarm.finished:
                shift(model, 0.1)
                swarm.on_batch_end(samples=1)
                rounds.append(swarm.round)
            assert swarm.round < swarm.rounds
            last = load_file(hospitals.ask(name, "swarm_object", digest=swarm.checkpoint)["path"])
        return swarm.checkpoint, torch.equal(model.weight, last["weight"])

    def stop() -> None:
        hospitals.wait_for(lambda: bool(rounds) and rounds[-1] >= 2, "two rounds")
        operators.stop("stopped", by=NAMES[:3])

    thread = threading.Thread(target=stop)
    thread.start()
    results = everywhere(work, NAMES[:3])
    thread.join()
    assert len({checkpoint for checkpoint, _ in results.values()}) == 1
    assert all(same for _, same in results.values())


@pytest.mark.slow
def test_training_goes_on_when_its_node_is_killed_and_started_again(hospitals: Hospitals, operators: Operators) -> None:
    operators.open_run("killed", nn.Linear(1, 1), by=NAMES, rounds=8, sync_interval=1, submit_s=3.0)
    rounds: dict[str, list[int]] = {name: [] for name in NAMES}

    def work(name: str) -> str:
        model = nn.Linear(1, 1)
        with SwarmCallback(model, hospitals.sites[name], run="killed", patience_s=60) as swarm:
            while not swarm.finished:
                time.sleep(0.3)
                shift(model, 0.1)
                swarm.on_batch_end(samples=1)
                rounds[name].append(swarm.round)
        return swarm.checkpoint

    def restart() -> None:
        hospitals.wait_for(lambda: len(rounds["west"]) >= 2, "two rounds")
        hospitals.kill("west")
        time.sleep(1.0)
        hospitals.start("west")

    thread = threading.Thread(target=restart)
    thread.start()
    results = everywhere(work, timeout_s=120)
    thread.join()
    assert len(set(results.values())) == 1
    assert rounds["north"][-1] == rounds["west"][-1] == 8


@pytest.mark.slow
def test_a_site_that_was_too_late_adopts_the_others_checkpoint(hospitals: Hospitals, operators: Operators) -> None:
    operators.open_run("late", nn.Linear(1, 1), by=NAMES, rounds=5, sync_interval=1, submit_s=1.5)

    def work(name: str) -> tuple[str, list[int]]:
        model, seen = nn.Linear(1, 1), []
        with SwarmCallback(model, hospitals.sites[name], run="late") as swarm:
            while not swarm.finished:
                if name == "west" and swarm.round == 1:
                    time.sleep(6)
                shift(model, 0.1)
                swarm.on_batch_end(samples=1)
                seen.append(swarm.round)
        return swarm.checkpoint, seen

    results = everywhere(work, timeout_s=120)
    assert len({checkpoint for checkpoint, _ in results.values()}) == 1
    assert len(results["west"][1]) < 5
    assert len(results["north"][1]) == 5


LONELY = """
import sys, time
from torch import nn
from swarm import SwarmCallback
with SwarmCallback(nn.Linear(1, 1), sys.argv[1], run=sys.argv[2]) as swarm:
    print("attached", swarm.round, flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
def test_a_node_that_training_started_ends_when_training(
    hospitals: Hospitals, operators: Operators, killed: bool
) -> None:
    run = f"lonely-{killed}"
    operators.open_run(run, nn.Linear(1, 1), by=NAMES)
    site = load_site(hospitals.sites["east"])
    hospitals.processes["east"].send_signal(signal.SIGTERM)
    hospitals.processes["east"].wait(20)
    assert not site.socket.exists()
    try:
        command = [sys.executable, "-c", LONELY, os.fspath(site.path), run, "600" if killed else "0"]
        training = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert training.stdout is not None
        assert training.stdout.readline() == b"attached 0\n"
        if killed:
            training.kill()
        else:
            assert site.socket.exists() or training.wait(30) == 0
        training.wait(30)
        training.stdout.close()
        hospitals.wait_for(lambda: not site.socket.exists(), "the node ends with the training")
    finally:
        hospitals.start("east")
    with Node(site, patience_s=30) as node:  # its folder was left in order
        assert node.call("swarm_status")["name"] == "east"


def test_the_training_process_loads_neither_the_ledger_nor_the_network() -> None:
    script = (
        "import sys, swarm, swarm.learn; swarm.SwarmCallback; swarm.sum_over_members; swarm.learn.save_model;"
        "print(*sorted({'web3', 'eth', 'libp2p', 'trio', 'asyncio', 'swarm.ledger', 'swarm.net'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"asyncio"}  # torch itself imports asyncio


def test_asking_for_an_unknown_name_is_an_attribute_error() -> None:
    import swarm

    with pytest.raises(AttributeError, match="no attribute 'SwarmCallbak'"):
        swarm.SwarmCallbak  # noqa: B018
