"""How much does training give away at least? An audit with one training run and planted records.

A fair coin decides for each canary whether it is trained on. The attacker sees every update of the run (or, in a
blind run, every sum), looks at how far each canary's loss fell, beside other canaries of its label, and calls a quarter
of them in and a quarter of them out. How many of these guesses are right bounds epsilon from below (`binomial.py`).

Source: Steinke, Nasr, Jagielski, Privacy Auditing with One (1) Training Run, NeurIPS 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swarm.learn.leak.binomial import CONFIDENCE, epsilon_at_least
from swarm.learn.leak.ground import Records
from swarm.learn.leak.inversion import Known

GUESSED = 4
"""One in so many is called in, and as many out."""
LAST = 4
"""One round in so many is looked at, the last ones: what is learned by heart is learned late."""

FAR = 2.0
"""How far a canary's values lie from the middle, in half spans of known ones: privacy has to hold for any record."""
BLOCK = 4


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    canaries: int
    guesses: int
    right: int
    epsilon_min: float
    """With `CONFIDENCE` training spends at least this."""
    delta: float
    epsilon_seen_max: float
    """What the bound would be had every guess been right: no audit with so many canaries can show more."""


def planted(count: int, known: Known, labels: Tensor, chance: torch.Generator) -> Records:
    """Canaries: inputs that are like no record, each value far below or far above, with labels drawn by lot.

    Of an image (channels, height, width) blocks of 4 x 4 pixels go together, so that a network sees them.
    """
    shape = tuple(known.mean.shape)
    drawn = (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK)) if len(shape) == 3 else shape
    signs = 2.0 * torch.randint(2, (count, *drawn), generator=chance, dtype=torch.float64) - 1
    if len(shape) == 3:
        signs = signs.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[..., : shape[-2], : shape[-1]]
    middle, half = (known.low + known.high) / 2, (known.high - known.low) / 2
    kinds = torch.unique(labels, dim=0)
    return Records((middle + FAR * half * signs).float(), kinds[torch.randint(len(kinds), (count,), generator=chance)])


def scores(first: Tensor, after: Sequence[Tensor], labels: Tensor) -> Tensor:
    """By how much a canary's loss fell until the last rounds, beside the other canaries of its label.

    Labels are compared apart because the label that a site trains most moves all of its canaries alike.

    Args:
        first: (canaries,) losses before training; after: the same after each round.
    """
    last = after[-max(len(after) // LAST, 1) :]
    found = first - torch.stack(list(last)).mean(0)
    for label in torch.unique(labels, dim=0):
        same = (labels == label).reshape(len(labels), -1).all(1)
        found[same] -= found[same].mean()
    return found


def audited(scores: Tensor, inside: Tensor, *, delta: float) -> Audit:
    """Guess by scores that are higher for canaries which were trained on.

    Args:
        scores: (canaries,); inside: (canaries,) bool, the coins.
    """
    count = len(scores)
    each = count // GUESSED
    order = scores.argsort(descending=True)
    right = int(inside[order[:each]].sum()) + int((~inside[order[count - each :]]).sum())
    bound = epsilon_at_least(right, 2 * each, count, delta=delta, confidence=CONFIDENCE)
    best = epsilon_at_least(2 * each, 2 * each, count, delta=delta, confidence=CONFIDENCE)
    return Audit(count, 2 * each, right, bound, delta, best)
