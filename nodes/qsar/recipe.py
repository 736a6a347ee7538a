"""The example as `swarm compare` takes it; what a recipe shows is in ../README.md."""

from __future__ import annotations

from collections.abc import Sequence

from data import PARTNERS, Rows
from data import load as load_one
from model import new_model, new_optimizer
from torch import Tensor, nn

__all__ = ["BATCH", "KIND", "agree", "load", "loss", "new_model", "new_optimizer", "scaled"]

KIND = "binary"
BATCH = 16

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


def load() -> dict[str, dict[str, Part]]:
    """The partners in the fixed split."""
    sites = {name: load_one(name) for name in PARTNERS}
    return {name: {"train": _part(site.train), "test": _part(site.test)} for name, site in sites.items()}


def _part(rows: Rows) -> Part:
    return rows.x, rows.y, {}


def agree(parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Nothing: bits are on one scale."""


def scaled(x: Tensor, agreed: None) -> Tensor:
    """(rows, 1024) float32."""
    return x


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: None) -> Tensor:
    """The cross-entropy of one batch."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
