"""The example as `swarm compare` takes it; what a recipe shows is in ../README.md.

MedMNIST has one test set for all: it is dealt out to the clinics in turn, so that all of it together is the original.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from data import CLINICS, Images, balance_of, counts_of, part
from data import load as load_one
from model import new_model, new_optimizer
from torch import Tensor, nn

__all__ = ["BATCH", "KIND", "agree", "load", "loss", "new_model", "new_optimizer", "scaled"]

KIND = "binary"
BATCH = 32

Part = tuple[Tensor, Tensor, dict[str, list[str]]]


def load() -> dict[str, dict[str, Part]]:
    """The four clinics of the placement `dirichlet05_4`."""
    test = part("test")
    sites: dict[str, dict[str, Part]] = {}
    for number, name in enumerate(CLINICS):
        mine = slice(number, None, len(CLINICS))
        train = load_one(name)
        sites[name] = {"train": (train.x, train.y, {}), "test": (test.x[mine], test.y[mine], {})}
    return sites


def agree(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """How much an ill child counts in the loss."""
    counts = [counts_of(Images(x, y)) for x, y in parts]
    return balance_of({name: torch.stack([one[name] for one in counts]).sum(0) for name in counts[0]})


def scaled(x: Tensor, agreed: Tensor) -> Tensor:
    """(images, 1, 28, 28) float32; they are on the model's scale already."""
    return x


def loss(model: nn.Module, x: Tensor, y: Tensor, agreed: Tensor) -> Tensor:
    """The cross-entropy of one batch, an ill child counting as agreed."""
    return nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y, pos_weight=agreed)
