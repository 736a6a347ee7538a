"""A recipe that costs nothing: 100,000 parameters, 0.4 MB, and batches that change them by a hair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BATCH", "KIND", "agree", "load", "loss", "new_model", "new_optimizer", "scaled"]

KIND = "binary"
BATCH = 1
ROWS = 4000
PARAMETERS = 100_000

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


class Model(nn.Module):
    """One weight decides; the others travel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(PARAMETERS))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:1]


def load() -> dict[str, dict[str, Part]]:
    """One site whose rows are cut over as many as are asked for."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 1, generator=chance)
    y = (x[:, 0] + torch.randn(ROWS, generator=chance) > 0).float()
    return {"rows": {"train": (x, y, {}), "test": (x[:100], y[:100], {})}}


def agree(parts: object) -> None:
    """Nothing has to be agreed on."""


def scaled(x: Tensor, agreed: None) -> Tensor:
    """As they are."""
    return x


def new_model(seed: int) -> nn.Module:
    """Zeros."""
    return Model()


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Plain SGD."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: None) -> Tensor:
    """The cross-entropy of one row."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
