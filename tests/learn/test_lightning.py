"""Lightning's Trainer takes part in runs with real nodes: rounds, metrics, accumulation, restarts, refusals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm import SwarmCallback
from swarm.errors import ConfigError
from tests.learn.runs import Operators, history, run_example
from tests.node.hospitals import Hospitals
from tests.others import add_loops

add_loops("lightning")

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch.loggers.logger import Logger  # noqa: E402

from swarm.learn.lightning import SwarmLightningCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*")
BATCHES = 4
"""Of an epoch."""


def rows(seed: int = 7) -> TensorDataset:
    x = torch.randn(BATCHES * 8, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


class Net(pl.LightningModule):  # type: ignore[misc]
    """Draws numbers, and moves its rate every epoch."""

    def __init__(self, *, dies_in: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.dies_in = dies_in
        self.swarm: SwarmCallback | None = None
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == self.dies_in and batch_idx == 2:
            raise RuntimeError("power cut")
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_error", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.8)]


class Book(Logger):  # type: ignore[misc]
    """A logger of the trainer that remembers."""

    name, version = "book", 0

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.found.append(dict(metrics))

    def log_hyperparams(self, *_: Any) -> None:
        """None are of interest."""


def trainer(callback: SwarmLightningCallback, folder: Path, **given: Any) -> pl.Trainer:
    settings: dict[str, Any] = {"max_epochs": -1, "logger": False, "num_sanity_val_steps": 0} | given
    return pl.Trainer(
        accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, callbacks=[callback], **settings,
    )  # fmt: skip


def fit(site: Path, run: str, folder: Path, module: Net, *, seed: int = 1, **given: Any) -> SwarmLightningCallback:
    torch.manual_seed(seed)
    callback = SwarmLightningCallback(site, run, **given.pop("callback", {}))
    loaders = [DataLoader(rows(), batch_size=8, shuffle=True), DataLoader(rows(8), batch_size=16)]
    trainer(callback, folder, **given).fit(module, *loaders)
    return callback


def test_a_fit_takes_part_and_stops_with_the_run(alone: Hospitals, tmp_path: Path) -> None:
    module, book = Net(), Book()
    Operators(alone).open_run("fit", module, ["north"], rounds=3, sync_interval=3, submissions_min=1, merge="mean")
    told = {"error": "val_error"}
    callback = fit(alone.sites["north"], "fit", tmp_path, module, logger=book, callback={"metrics": told})
    swarm = callback.loop.swarm
    assert (swarm.round, swarm.finished) == (3, True)
    assert len(module.losses) == 9
    submissions = [one["submissions"][0] for one in history(alone, "fit")]
    assert [one["weight"] for one in submissions] == [24, 24, 24]
    for number, one in enumerate(submissions):
        assert one["metrics"]["loss"] == pytest.approx(sum(module.losses[3 * number : 3 * number + 3]) / 3)
    # What is told of round 1 on was measured on the checkpoint that the round began with, not within an epoch.
    assert "error" not in submissions[0]["metrics"]
    assert all("error" in one["metrics"] for one in submissions[1:])
    rounds = [one for one in book.found if "swarm/round" in one]
    assert [one["swarm/round"] for one in rounds] == [0, 1, 2]
    assert rounds[1]["swarm/loss"] == submissions[1]["metrics"]["loss"]
    assert all(one["swarm/batches"] == 3 for one in rounds)


def test_a_step_is_a_batch_however_much_it_accumulates(alone: Hospitals, tmp_path: Path) -> None:
    module = Net()
    Operators(alone).open_run(
        "steps", module.net, ["north"], rounds=2, sync_interval=2, submissions_min=1, merge="mean"
    )
    fit(alone.sites["north"], "steps", tmp_path, module, accumulate_grad_batches=2, callback={"part": "net"})
    assert len(module.losses) == 8
    for number, one in enumerate(history(alone, "steps")):
        assert one["submissions"][0]["weight"] == 32
        loss = sum(module.losses[4 * number : 4 * number + 4]) / 4
        assert one["submissions"][0]["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_fit_that_died_goes_on_bit_for_bit(alone: Hospitals, tmp_path: Path) -> None:
    def opened(run: str) -> str:
        torch.manual_seed(0)
        Operators(alone).open_run(
            run, Net(), ["north"], rounds=4, sync_interval=BATCHES, submissions_min=1, merge="mean"
        )
        return run

    site = alone.sites["north"]
    whole = fit(site, opened("whole fit"), tmp_path, Net()).loop.swarm.checkpoint
    run = opened("cut fit")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(site, run, tmp_path, Net(dies_in=2))
    assert fit(site, run, tmp_path, Net(), seed=2).loop.swarm.checkpoint == whole
    forgets = fit(site, opened("forgetful fit"), tmp_path, Net(), seed=2, callback={"keep": False})
    assert forgets.loop.swarm.checkpoint != whole


def test_steps_are_corrected_before_the_optimizer(alone: Hospitals, tmp_path: Path) -> None:
    """A pull of weight 1/rate with plain SGD takes every step back to the checkpoint, but for the last gradient."""

    class Plain(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    moved = {}
    for run, proximal in (("free", 0.0), ("pulled", 10.0)):
        torch.manual_seed(0)
        module = Plain()
        start = next(module.net.parameters()).detach().clone()
        Operators(alone).open_run(
            run, module, ["north"], rounds=1, sync_interval=4, submissions_min=1, merge="mean", proximal=proximal
        )
        fit(alone.sites["north"], run, tmp_path, module)
        moved[run] = float((next(module.net.parameters()) - start).norm())
    assert 0 < moved["pulled"] < 0.6 * moved["free"]


def test_what_cannot_work_is_refused_with_the_way_out(
    alone: Hospitals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Grows(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.more = nn.Linear(2, 2)

    site, module = alone.sites["north"], Net()
    Operators(alone).open_run("refused", module, ["north"], rounds=9, sync_interval=4, submissions_min=1, merge="mean")
    with pytest.raises(ConfigError, match=r"more\.bias F32\[2\] is unknown|more.weight"):
        fit(site, "refused", tmp_path, Grows())
    with pytest.raises(ConfigError, match=r"part = 'head' is no submodule; there are net"):
        fit(site, "refused", tmp_path, Net(), callback={"part": "head"})
    with pytest.raises(ConfigError, match=r"the evaluation gave no val_auc, but .*val_error"):
        fit(site, "refused", tmp_path, Net(), callback={"metrics": {"auc": "val_auc"}})
    with pytest.raises(ValueError, match="known once the fit has begun"):
        _ = SwarmLightningCallback(site).loop
    with caplog.at_level(logging.WARNING):
        fit(site, "refused", tmp_path, Net(), max_epochs=1)
    assert "run refused goes on, and the fit ends" in caplog.text


def test_the_example_of_the_readme_runs(alone: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))})
    Operators(alone).open_run("lightning", start, ["north"], rounds=2, sync_interval=3, submissions_min=1, merge="mean")
    x = torch.randn(32, 3)
    found = TensorDataset(x, (x.sum(1, keepdim=True) > 0).float())
    names = run_example("Lightning", site=alone.sites["north"], train_rows=found, test_rows=found)
    assert names["swarm"].loop.finished
    assert "accuracy" in history(alone, "lightning")[1]["submissions"][0]["metrics"]
