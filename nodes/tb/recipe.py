"""The example as `swarm compare` takes it; what a recipe shows is in ../README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from data import COHORTS, Rows, Scaling, sums_of
from data import load as load_one
from model import PRIVATE_BATCH, new_model, new_optimizer, new_private_optimizer
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
BATCH = 8

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


def load() -> dict[str, dict[str, Part]]:
    """The six cohorts in the fixed split."""
    sites = {name: load_one(name) for name in COHORTS}
    return {name: {"train": _part(site.train, name), "test": _part(site.test, name)} for name, site in sites.items()}


def _part(rows: Rows, cohort: str) -> Part:
    return rows.x, rows.y, {"cells": ["PBMC" if cohort == "brazil_pbmc" else "whole blood"] * len(rows)}


def agree(parts: Sequence[tuple[Tensor, Tensor]]) -> Scaling:
    """The scaling that the sites' added sums of every gene stand for."""
    sums = [sums_of(x) for x, _ in parts]
    return Scaling.of({name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]})


def scaled(x: Tensor, agreed: Scaling) -> Tensor:
    """(rows, 4000) float32."""
    return agreed(x)


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: Scaling) -> Tensor:
    """The cross-entropy of one batch."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
