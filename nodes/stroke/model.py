"""The model of the example: a small dense network on 58 inputs, and how well it does."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

FEATURES = 58


def new_model(seed: int) -> nn.Sequential:
    """58-32-1; the same seed gives the same parameters everywhere."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 1))


def empty_sums() -> dict[str, Tensor]:
    """Where the run that agrees on the scaling starts: nobody counted yet."""
    zeros = torch.zeros(FEATURES, dtype=torch.float64)
    return {"count": zeros[:1].clone(), "sum": zeros.clone(), "sum_of_squares": zeros.clone()}


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Fresh for every round: moments that were gathered before a merge point elsewhere after it."""
    return torch.optim.Adam(model.parameters(), lr=0.001)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, after one step down its gradient."""
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """AUC, where the rows hold both classes, and accuracy at one half."""
    model.eval()
    logits = model(x).squeeze(1)
    scores = {"accuracy": float(((logits > 0) == (y > 0)).double().mean())}
    return {"auc": float(roc_auc_score(y, logits)), **scores} if 0 < y.mean() < 1 else scores
