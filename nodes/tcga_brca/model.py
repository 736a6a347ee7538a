"""The model of the example: Cox's proportional hazards, and how well it ranks patients by risk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COVARIATES = 39


def new_model(seed: int) -> nn.Linear:
    """39 covariates to one log risk; the same seed gives the same parameters everywhere."""
    torch.manual_seed(seed)
    return nn.Linear(COVARIATES, 1)


def new_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Plain SGD: it keeps nothing from one round to the next."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def cox_loss(risks: Tensor, y: Tensor) -> Tensor:
    """Minus the log of Cox's partial likelihood within one batch, over the batch's rows.

    A patient is compared with those of the batch who lived at least as long; a batch without a death teaches nothing.

    Args:
        risks: (rows,) log risks.
        y: (rows, 2) days, and 1 where death was seen.
    Source: Cox, Regression Models and Life-Tables, 1972; by batches as in FLamby's Fed-TCGA-BRCA.
    """
    days, died = y[:, 0], y[:, 1]
    still_there = days[None, :] >= days[:, None]
    of_those = torch.where(still_there, risks[None, :], -torch.inf).logsumexp(1)
    return ((of_those - risks) * died).mean()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """The loss of one batch, after one step down its gradient."""
    optimizer.zero_grad()
    loss = cox_loss(model(x).squeeze(1), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The concordance index: how often, of two whose order is known, the greater risk dies first; a tie counts half.

    Nothing where no two patients can be compared.
    """
    risks, days, died = model(x).squeeze(1), y[:, 0], y[:, 1] > 0
    known = died[:, None] & (days[:, None] < days[None, :])
    first = (risks[:, None] > risks[None, :]).double() + 0.5 * (risks[:, None] == risks[None, :]).double()
    return {"c_index": float(first[known].mean())} if known.any() else {}
