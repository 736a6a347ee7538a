"""The example as `swarm compare` takes it; what a recipe shows is in ../README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from data import FEATURES, SPECIALTIES, Rows, Scaling, sums_of
from data import load as load_one
from model import new_model, new_optimizer
from torch import Tensor, nn

__all__ = ["BATCH", "KIND", "agree", "load", "loss", "new_model", "new_optimizer", "scaled"]

KIND = "binary"
BATCH = 256

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


def load() -> dict[str, dict[str, Part]]:
    """The specialtys in the fixed split."""
    sites = {name: load_one(name) for name in SPECIALTIES}
    return {name: {"train": _part(site.train), "test": _part(site.test)} for name, site in sites.items()}


def _part(rows: Rows) -> Part:
    return (
        rows.x,
        rows.y,
        {"sex": ["women" if one else "men" for one in rows.x[:, FEATURES.index("gender=Female")].tolist()]},
    )


def agree(parts: Sequence[tuple[Tensor, Tensor]]) -> Scaling:
    """The scaling that the sites' added sums of every column stand for."""
    sums = [sums_of(x) for x, _ in parts]
    return Scaling.of({name: torch.stack([part[name] for part in sums]).sum(0) for name in sums[0]})


def scaled(x: Tensor, agreed: Scaling) -> Tensor:
    """(rows, 113) float32."""
    return agreed(x)


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: Scaling) -> Tensor:
    """The cross-entropy of one batch."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
