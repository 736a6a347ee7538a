"""The model of the example: a dense network on 4,000 genes, and how well it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GENES = 4000


def new_model(seed: int) -> nn.Sequential:
    """4000-64-1 with dropout 0.3; the same seed gives the same parameters everywhere."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(GENES, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1))


PRIVATE_BATCH = 16
"""Rows of a batch in the private run: few larger steps need less noise than many small ones."""


def new_private_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Larger steps than without privacy: each sample's gradient is cut to half its unit."""
    return torch.optim.SGD(model.parameters(), lr=0.2)


def empty_sums() -> dict[str, Tensor]:
    """Where the run that agrees on the scaling starts: nobody counted yet."""
    zeros = torch.zeros(GENES, dtype=torch.float64)
    return {"count": zeros[:1].clone(), "sum": zeros.clone(), "sum_of_squares": zeros.clone()}


def new_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Plain SGD: it keeps nothing from one round to the next."""
    return torch.optim.SGD(model.parameters(), lr=0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, after one step down its gradient."""
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy at one half, and AUC."""
    model.eval()
    logits = model(x).squeeze(1)
    return {"auc": auc(logits, y), "accuracy": float(((logits > 0) == (y > 0)).double().mean())}


def auc(logits: Tensor, y: Tensor) -> float:
    """How often a sick person stands above another, a tie counting half."""
    sick, healthy = logits[y > 0], logits[y == 0]
    above = (sick[:, None] > healthy[None, :]).double() + 0.5 * (sick[:, None] == healthy[None, :]).double()
    return float(above.mean())
