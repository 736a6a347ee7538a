"""Was this record trained on? Membership inference on the merged model, by its loss.

Half of every site's records train; the other half, drawn by the same coin, does not: so both are alike in all but that.
Two attackers: one who calls a record a member where its loss is low, and one who compares the loss with those of models
trained with and without the record (shadow models).

Source: Yeom et al., Privacy Risk in Machine Learning, CSF 2018 (loss); Carlini et al., Membership Inference Attacks
From First Principles, IEEE S&P 2022 (LiRA: logit-scaled losses, Gaussians with a pooled variance where shadows are
few).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RATE = 0.001
"""The rate of false positives at which an attack has to be judged: who accuses one in two is no threat."""
NEGATIVES_MIN = 1000
"""Below it one false positive is more than `RATE`."""


@dataclass(frozen=True)
class Membership:
    """How well one attack tells members from others."""

    auc: float
    """0.5 is chance."""
    members: int
    others: int
    true_positives: float | None
    """The share of members found at `RATE` false positives; None where too few others cannot show it."""


def measured(scores: Tensor, members: Tensor) -> Membership:
    """Judge scores that are higher for members.

    Args:
        scores: (records,); members: (records,) bool.
    Raises:
        ValueError: no member, or nobody else.
    """
    inside, outside = scores[members].double(), scores[~members].double()
    if not len(inside) or not len(outside):
        raise ValueError("membership is measured on members and others; one of them is missing")
    ordered = outside.sort().values
    below = torch.searchsorted(ordered, inside, right=False)
    up_to = torch.searchsorted(ordered, inside, right=True)
    auc = float((below + up_to).double().mean()) / (2 * len(outside))
    rate = None
    if len(outside) >= NEGATIVES_MIN:
        allowed = math.floor(RATE * len(outside))
        threshold = ordered[len(outside) - allowed - 1]  # so many others lie above it at most
        rate = float((inside > threshold).double().mean())
    return Membership(auc, len(inside), len(outside), rate)


def by_loss(losses: Tensor) -> Tensor:
    """Scores of who looks at the loss alone."""
    return -losses


def by_shadows(losses: Tensor, shadows: Tensor, inside: Tensor) -> Tensor:
    """Scores of who has shadow models: the logarithm of how much likelier the loss is if the record was trained on.

    Args:
        losses: (records,) of the attacked model.
        shadows: (models, records) losses of the shadow models.
        inside: (models, records) bool: which of them trained on which record; each record is in some and not in others.
    """
    value, known = _logits(losses), _logits(shadows)
    if not (inside.any(0) & (~inside).any(0)).all():
        raise ValueError("every record needs a shadow model that trained on it and one that did not")
    with_it, without = _mean(known, inside), _mean(known, ~inside)
    spread_in = (((known - with_it) ** 2)[inside].mean()).clamp_min(1e-12)
    spread_out = (((known - without) ** 2)[~inside].mean()).clamp_min(1e-12)
    likely = -((value - with_it) ** 2) / (2 * spread_in) - spread_in.log() / 2
    unlikely = -((value - without) ** 2) / (2 * spread_out) - spread_out.log() / 2
    return likely - unlikely


def coins(models: int, records: int, chance: torch.Generator) -> Tensor:
    """(models, records) bool: who trains on what; each record is in half of the models, drawn by lot."""
    order = torch.rand((models, records), generator=chance).argsort(0)
    return order < models // 2


def _logits(losses: Tensor) -> Tensor:
    """log(p / (1 - p)) of the label's probability p, the loss being -log p."""
    safe = losses.double().clamp(1e-9, 50)
    return -torch.log(torch.expm1(safe))


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum(0) / where.sum(0)
