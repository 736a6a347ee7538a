"""The example as `swarm compare` takes it; what a recipe shows is in ../README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from data import HOSPITALS, Rows, Scaling, sums_of
from data import load as load_one
from model import PRIVATE_BATCH, new_model, new_private_optimizer
from torch import Tensor, nn

__all__ = [
    "BATCH",
    "KIND",
    "PRIVATE_BATCH",
    "agree",
    "load",
    "loss",
    "new_model",
    "new_optimizer",
    "new_private_optimizer",
    "scaled",
]

KIND = "binary"
BATCH = 4
AGE, SEX = 0, 1
"""Columns of `data.FEATURES`; sex is 1 for men."""

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


def load() -> dict[str, dict[str, Part]]:
    """The four hospitals in FLamby's split."""
    sites = {name: load_one(name) for name in HOSPITALS}
    return {name: {"train": _part(site.train), "test": _part(site.test)} for name, site in sites.items()}


def _part(rows: Rows) -> Part:
    groups = {
        "age": ["under 55" if age < 55 else "55 and over" for age in rows.x[:, AGE].tolist()],
        "sex": ["men" if sex == 1 else "women" for sex in rows.x[:, SEX].tolist()],
    }
    return rows.x, rows.y, groups


def agree(parts: Sequence[tuple[Tensor, Tensor]]) -> Scaling:
    """The scaling that the sites' added column sums stand for."""
    sums = [sums_of(x) for x, _ in parts]
    return Scaling.of({name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]})


def scaled(x: Tensor, agreed: Scaling) -> Tensor:
    """(rows, 13) float32."""
    return agreed(x)


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Plain SGD, as in train.py."""
    return torch.optim.SGD(model.parameters(), lr=0.01)


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: Scaling) -> Tensor:
    """The cross-entropy of one batch."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
