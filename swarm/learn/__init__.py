"""What a training loop uses; loaded when it is asked for, because it brings in torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.learn.callback import SwarmCallback
    from swarm.learn.lightning import SwarmLightningCallback
    from swarm.learn.once import sum_over_members
    from swarm.learn.part import norm_layers
    from swarm.learn.private_model import replace_batchnorm
    from swarm.learn.state import load_model, save_model
    from swarm.learn.statistics import Statistics
    from swarm.learn.trackers import MLflow, TensorBoard
    from swarm.learn.transformers import SwarmTrainerCallback

__all__ = [
    "MLflow",
    "Statistics",
    "SwarmCallback",
    "SwarmLightningCallback",
    "SwarmTrainerCallback",
    "TensorBoard",
    "load_model",
    "norm_layers",
    "replace_batchnorm",
    "save_model",
    "sum_over_members",
]

_MODULES = {
    "MLflow": "trackers",
    "Statistics": "statistics",
    "SwarmCallback": "callback",
    "SwarmLightningCallback": "lightning",
    "SwarmTrainerCallback": "transformers",
    "TensorBoard": "trackers",
    "load_model": "state",
    "norm_layers": "part",
    "replace_batchnorm": "private_model",
    "save_model": "state",
    "sum_over_members": "once",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"swarm.learn.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'swarm.learn' has no attribute {name!r}")
