"""The example as `swarm compare` takes it; what a recipe shows is in ../README.md."""

from __future__ import annotations

from collections.abc import Sequence

import data
from data import AGE, REGIONS, Rows
from data import load as load_one
from model import cox_loss, new_model, new_optimizer
from torch import Tensor, nn

__all__ = ["BATCH", "KIND", "agree", "load", "loss", "new_model", "new_optimizer", "scaled"]

KIND = "survival"
BATCH = 32

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


def load() -> dict[str, dict[str, Part]]:
    """The six regions in FLamby's split."""
    sites = {name: load_one(name) for name in REGIONS}
    return {name: {"train": _part(site.train), "test": _part(site.test)} for name, site in sites.items()}


def _part(rows: Rows) -> Part:
    return rows.x, rows.y, {"age": ["under 60" if age < 60 else "60 and over" for age in rows.x[:, AGE].tolist()]}


def agree(parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Nothing: what scales the age is a constant."""


def scaled(x: Tensor, agreed: None) -> Tensor:
    """(rows, 39) float32."""
    return data.scaled(x)


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: None) -> Tensor:
    """Cox's partial likelihood within one batch."""
    return cox_loss(model(x).squeeze(1), y)
