"""The model of the example: a dense network on a fingerprint, and how well it does."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

BITS = 1024


def new_model(seed: int) -> nn.Sequential:
    """1024-64-1 with dropout 0.3; the same seed gives the same parameters everywhere."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(BITS, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1))


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Fresh for every round: moments that were gathered before a merge point elsewhere after it."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0001)


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
