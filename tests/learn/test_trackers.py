"""What a site records of its rounds: with the real TensorBoard and MLflow, and when a tracker fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swarm import SwarmCallback
from swarm.errors import ConfigError
from swarm.learn import MLflow, TensorBoard
from swarm.learn.trackers import Tracker
from tests.learn.runs import Operators
from tests.node.hospitals import Hospitals
from tests.others import add_loops


class Broken:
    """A server that is away."""

    def record(self, round_: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("nobody listens")

    def close(self) -> None:
        raise ConnectionError("nobody listens")


def take_part(hospitals: Hospitals, run: str, *trackers: Tracker) -> None:
    """Three rounds of two batches of five rows, with losses 0 to 5."""
    model = nn.Linear(2, 1)
    Operators(hospitals).open_run(run, model, ["north"], rounds=3, sync_interval=2, submissions_min=1, merge="mean")
    batch = 0
    with SwarmCallback(model, hospitals.sites["north"], run, trackers=trackers) as swarm:
        while not swarm.finished:
            with torch.no_grad():
                model.weight.add_(0.1)
            if swarm.on_batch_end(samples=5, loss=float(batch)):
                swarm.on_epoch_end({"auc": 0.5 + swarm.round / 10})
            batch += 1


LOSSES = [(0, 0.5), (1, 2.5), (2, 4.5)]
AUCS = [(1, 0.6), (2, 0.7)]


def test_tensorboard_shows_the_rounds(alone: Hospitals, tmp_path: Path) -> None:
    add_loops("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    take_part(alone, "board", TensorBoard(tmp_path / "events"))
    events: Any = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("swarm/loss")] == LOSSES
    assert {one.step: one.value for one in events.Scalars("swarm/auc")} == pytest.approx(dict(AUCS))
    assert [one.value for one in events.Scalars("swarm/samples")] == [10, 10, 10]
    assert all(one.value > 0 for one in events.Scalars("swarm/exchange_s"))


def test_mlflow_shows_the_rounds(alone: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_loops("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlflow").as_uri()
    tracker = MLflow("heart", uri=uri)
    take_part(alone, "flow", tracker, Broken())
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("heart").experiment_id])
    assert (run.info.run_id, run.info.status) == (tracker.run_id, "FINISHED")
    assert [(one.step, one.value) for one in client.get_metric_history(tracker.run_id, "swarm/loss")] == LOSSES
    assert [(one.step, one.value) for one in client.get_metric_history(tracker.run_id, "swarm/auc")] == AUCS
    assert MLflow("heart", uri=uri, run_id=tracker.run_id).run_id == tracker.run_id


def test_training_goes_on_without_a_tracker_that_fails(alone: Hospitals, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        take_part(alone, "broken", Broken())
    told = [one for one in caplog.messages if one == "run broken: Broken recorded nothing: nobody listens"]
    assert len(told) == 4


@pytest.mark.parametrize(
    ("package", "tracker", "words"),
    [
        (
            "torch.utils.tensorboard.writer",
            lambda: TensorBoard("x"),
            "TensorBoard is not installed: pip install tensorboard",
        ),
        ("mlflow.tracking", lambda: MLflow("x"), "MLflow is not installed: pip install mlflow-skinny, or mlflow"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str, tracker: Any, words: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigError, match=words):
        tracker()
