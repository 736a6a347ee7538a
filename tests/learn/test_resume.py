"""Training that died goes on bit for bit: optimizer, scheduler, every source of chance, and what stays at the site."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from swarm import SwarmCallback
from swarm.errors import ConfigError, StorageError
from swarm.learn import resume
from tests.learn.runs import Operators
from tests.node.hospitals import Hospitals

ROUNDS, BATCHES = 4, 5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    """One hospital is a consortium too; what it trains depends on itself alone."""
    with Hospitals(tmp_path_factory.mktemp("alone"), ["north"]) as found:
        found.start("north")
        found.ask("north", "swarm_status")
        yield found


class Died(Exception):
    """The training process is gone."""


class Net(nn.Module):
    """Draws numbers (dropout), and has a layer that stays at the site."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.dropout(torch.relu(self.body(x)), 0.3, train=True))
        return found


def train(site: Path, run: str, seed: int, *, dies_at: tuple[int, int] | None = None, keeps: bool = True) -> str:
    """The whole run, or as far as (round, batch); the digest of the last checkpoint and of what stayed here."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5)
    keep: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler, "order": order}
    swarm = SwarmCallback(model, site, run, keep=keep if keeps else None)
    swarm.on_train_begin()
    while not swarm.finished:
        for batch in range(BATCHES):
            if dies_at == (swarm.round, batch):
                raise Died
            x = torch.randn(6, 3, generator=order) + random.random() + np.random.normal()
            loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            swarm.on_batch_end(samples=len(x), loss=loss.item())
        scheduler.step()
        swarm.on_epoch_end({"rate": float(scheduler.get_last_lr()[0]), "noise": float(torch.rand(()))})
    swarm.on_train_end()
    return swarm.checkpoint + model.head.weight.detach().numpy().tobytes().hex()


def open_run(hospitals: Hospitals, name: str) -> Path:
    torch.manual_seed(0)
    Operators(hospitals).open_run(
        name, Net(), ["north"],
        rounds=ROUNDS, sync_interval=BATCHES, submissions_min=1, merge="mean", personal=("head.*",),
    )  # fmt: skip
    return hospitals.sites["north"]


def test_training_that_died_twice_ends_with_the_bytes_of_training_that_did_not(alone: Hospitals) -> None:
    expected = train(open_run(alone, "whole"), "whole", seed=1)
    site = open_run(alone, "cut")
    with pytest.raises(Died):
        train(site, "cut", seed=1, dies_at=(1, 3))
    with pytest.raises(Died):
        train(site, "cut", seed=2, dies_at=(3, 0))  # before its first batch
    assert train(site, "cut", seed=3) == expected
    # The metrics of the round in which it died were not lost either.
    rounds = [one["submissions"][0]["metrics"] for one in _history(alone, "cut")]
    assert rounds == [one["submissions"][0]["metrics"] for one in _history(alone, "whole")]


def test_without_what_was_kept_it_ends_elsewhere(alone: Hospitals) -> None:
    expected = train(open_run(alone, "whole again"), "whole again", seed=1)
    site = open_run(alone, "forgetful")
    with pytest.raises(Died):
        train(site, "forgetful", seed=1, dies_at=(2, 0), keeps=False)
    assert train(site, "forgetful", seed=1, keeps=False) != expected


def _history(hospitals: Hospitals, run: str) -> list[dict[str, Any]]:
    shown = json.loads(hospitals.swarm("run", "show", str(hospitals.sites["north"]), run, "--json"))
    found: list[dict[str, Any]] = shown["closed_rounds"]
    return found


KILLED = """
import os, sys
from pathlib import Path
from tests.learn import test_resume
site, run, seed, round_, batch = sys.argv[1:]
try:
    print(test_resume.train(Path(site), run, int(seed), dies_at=(int(round_), int(batch))))
except test_resume.Died:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(alone: Hospitals) -> None:
    def process(run: str, seed: int, round_: int, batch: int) -> tuple[int, str]:
        command = [sys.executable, "-c", KILLED, os.fspath(alone.sites["north"]), run, *map(str, (seed, round_, batch))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout.strip()

    open_run(alone, "lived")
    open_run(alone, "killed")
    status, expected = process("lived", 1, 99, 0)
    assert status == 0
    assert process("killed", 1, 0, 2)[0] == -9
    assert process("killed", 2, 2, 4)[0] == -9
    assert process("killed", 3, 99, 0) == (0, expected)


# --- the file


def kept(**states: Any) -> resume.Kept:
    return resume.Kept("ab", 3, "0x12", {"auc": 0.5}, {"personal.w": torch.ones(2)}, states)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, 5)], [3]
    ),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
}


def some_steps(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, first: int, last: int) -> None:
    for number in range(first, last):
        optimizer.zero_grad()
        loss = (model(torch.full((2, 3), number / 7)) ** 2).mean()
        loss.backward()
        optimizer.step()
        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([1.0] if plateau else []))


@pytest.mark.parametrize("of_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("of_scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:.*")
def test_the_state_of_any_optimizer_and_scheduler_comes_back(
    tmp_path: Path, of_optimizer: str, of_scheduler: str
) -> None:
    def new() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(5)
        model = nn.Linear(3, 2)
        optimizer = OPTIMIZERS[of_optimizer](model.parameters())
        return model, optimizer, SCHEDULERS[of_scheduler](optimizer)

    model, optimizer, scheduler = new()
    some_steps(model, optimizer, scheduler, 0, 4)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    keep = {"optimizer": optimizer, "scheduler": scheduler}
    resume.write(tmp_path / "kept", kept(**resume.states_of(keep)))
    some_steps(model, optimizer, scheduler, 4, 9)
    other, *others = new()
    following = dict(zip(keep, others, strict=True))
    other.load_state_dict(weights)
    found = resume.read(tmp_path / "kept")
    assert found is not None
    resume.restore(following, found.states)
    some_steps(other, following["optimizer"], following["scheduler"], 4, 9)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_plain_values_come_back_as_what_they_were(tmp_path: Path) -> None:
    values = {1: (2, [3.5, None]), "milestones": Counter([2, 2, 5]), "best": math.inf, "count": np.int64(3), "on": True}
    resume.write(tmp_path / "kept", kept(values=values))
    found = resume.read(tmp_path / "kept")
    assert found is not None
    assert found.states["values"] == values
    assert [type(value) for value in found.states["values"].values()] == [tuple, Counter, float, int, bool]


def test_every_source_of_chance_goes_on(tmp_path: Path) -> None:
    first, second = torch.Generator().manual_seed(1), np.random.default_rng(2)
    keep = {"torch": first, "numpy": second}

    def draw() -> list[float]:
        own = [float(torch.rand((), generator=first)), float(second.normal())]
        return [*own, float(torch.rand(())), float(np.random.normal()), random.random(), random.gauss(0, 1)]

    random.gauss(0, 1)  # Python and numpy keep the second of two such numbers
    np.random.normal()
    resume.write(tmp_path / "kept", kept(**resume.states_of(keep)))
    expected = draw()
    found = resume.read(tmp_path / "kept")
    assert found is not None
    assert (found.round, found.checkpoint, found.metrics) == (3, "0x12", {"auc": 0.5})
    assert torch.equal(found.tensors["personal.w"], torch.ones(2))
    resume.restore(keep, found.states)
    assert draw() == expected


def test_what_cannot_be_kept_or_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep: model is a int, which has neither a state_dict nor draws numbers"):
        resume.check_keepable({"model": 3})
    with pytest.raises(ConfigError, match=r"keep.named.odd.what is a object; only tensors and plain values"):
        resume.write(tmp_path / "kept", kept(named={"odd": {"what": object()}}))
    assert resume.read(tmp_path / "kept") is None
    small = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    states = resume.states_of({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)})
    with pytest.raises(ConfigError, match="what was kept of optimizer does not fit it"):
        resume.restore({"optimizer": small}, states)
    with pytest.raises(ConfigError, match="nothing was kept of scheduler, but of optimizer"):
        resume.restore({"optimizer": small, "scheduler": small}, states)


@pytest.mark.parametrize("cut", [0, 1, 7, 60, 200])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "kept"
    resume.write(path, kept(**resume.states_of({})))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StorageError, match=r"cannot be read from \S+kept .*without the file, training starts"):
        resume.read(path)
