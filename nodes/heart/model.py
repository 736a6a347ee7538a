"""The model of the example, and how well it does: logistic regression on 13 features, AUC and accuracy."""

from __future__ import annotations

import torch
from data import FEATURES
from torch import Tensor, nn


def new_model(seed: int) -> nn.Linear:
    """Logistic regression, 13 inputs to one logit; the same seed gives the same parameters everywhere."""
    torch.manual_seed(seed)
    return nn.Linear(len(FEATURES), 1)


PRIVATE_BATCH = 16
"""Rows of a batch in the private run: few larger steps need less noise than many small ones."""


def new_private_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Larger steps than without privacy: each patient's gradient is cut to half its unit."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def empty_sums() -> dict[str, Tensor]:
    """Where the run that agrees on the scaling starts: nobody counted yet."""
    zeros = torch.zeros(len(FEATURES), dtype=torch.float64)
    return {"count": zeros[:1].clone(), "sum": zeros.clone(), "sum_of_squares": zeros.clone()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, after one step down its gradient."""
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy at one half and, where the rows hold both classes, AUC."""
    logits = model(x).squeeze(1)
    scores = {"accuracy": float(((logits > 0) == (y > 0)).float().mean())}
    area = auc(logits, y)
    return scores if area is None else {"auc": area, **scores}


def auc(logits: Tensor, y: Tensor) -> float | None:
    """How often a diseased patient stands above a healthy one, a tie counting half; None where one class is missing."""
    sick, healthy = logits[y > 0], logits[y == 0]
    if not len(sick) or not len(healthy):
        return None
    above = (sick[:, None] > healthy[None, :]).double() + 0.5 * (sick[:, None] == healthy[None, :]).double()
    return float(above.mean())


def describe(scores: dict[str, float]) -> str:
    """`AUC 0.873, accuracy 0.798`, or that there is no AUC."""
    area = f"AUC {scores['auc']:.3f}" if "auc" in scores else "no AUC (only one class)"
    return f"{area}, accuracy {scores['accuracy']:.3f}"
