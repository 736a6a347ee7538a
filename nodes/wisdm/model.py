"""The model of the example: a small dense network for six activities, and how well it does."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

FEATURES, HIDDEN, ACTIVITIES = 43, 64, 6


def new_model(seed: int) -> nn.Sequential:
    """43-64-6, in two parts that a policy can name: `body` and `head`; the same seed gives the same parameters."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(HIDDEN, ACTIVITIES)))


def empty_sums() -> dict[str, Tensor]:
    """Where the run that agrees on the scaling starts: nobody counted yet."""
    return {name: torch.zeros(FEATURES, dtype=torch.float64) for name in ("known", "sum", "sum_of_squares")}


def new_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Plain SGD: it keeps nothing from one round to the next."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, after one step down its gradient."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The share of windows whose activity is called right."""
    return {"accuracy": float((model(x).argmax(1) == y).double().mean())}
