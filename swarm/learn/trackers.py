"""Where a site writes down how its rounds went, for its own people: TensorBoard, MLflow, anything with `record`.

What is recorded stays at the site; what the others see is what stands on the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from swarm.errors import ConfigError


class Tracker(Protocol):
    """Takes the numbers of one round after the other."""

    def record(self, round_: int, values: Mapping[str, float]) -> None:
        """Write down what was handed in for a round (0 is the first), and what it cost; `swarm/NAME` by custom."""

    def close(self) -> None:
        """Training has left the run; it may come back."""


class TensorBoard:
    """Scalars `swarm/NAME` over rounds, in an event file of a folder.

    Raises:
        ConfigError: the package `tensorboard` is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError("TensorBoard is not installed: pip install tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder))

    def record(self, round_: int, values: Mapping[str, float]) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(f"swarm/{name}", value, round_)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file; a later round begins another."""
        self._writer.close()


class MLflow:
    """Metrics `swarm/NAME` over rounds, in one run of an experiment; the run ends when training leaves.

    Args:
        experiment: its name; made if there is none.
        uri: where MLflow keeps it; None: what `MLFLOW_TRACKING_URI` says.
        run_id: of a run that is there; None makes one.
    Raises:
        ConfigError: the package `mlflow` or `mlflow-skinny` is missing.
    """

    def __init__(self, experiment: str, *, uri: str | None = None, run_id: str | None = None) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError("MLflow is not installed: pip install mlflow-skinny, or mlflow") from error
        self._client: Any = MlflowClient(tracking_uri=uri)
        if run_id is None:
            found = self._client.get_experiment_by_name(experiment)
            number = found.experiment_id if found is not None else self._client.create_experiment(experiment)
            run_id = str(self._client.create_run(number).info.run_id)
        self.run_id = run_id

    def record(self, round_: int, values: Mapping[str, float]) -> None:
        """One metric each."""
        for name, value in values.items():
            self._client.log_metric(self.run_id, f"swarm/{name}", value, step=round_)

    def close(self) -> None:
        """The run is finished."""
        self._client.set_terminated(self.run_id)
