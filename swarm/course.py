"""How a run goes on by what its members told with their submissions: the next sync interval, the best checkpoint, an
early end. Pure functions of what stands on the ledger, so that every site finds the same.

What a member tells in a round was measured on the checkpoint that the round started from
(`SwarmCallback.on_epoch_end`); its `loss` is the mean loss of the round's batches. Both are told by members and checked
by nobody. A majority of those who submitted decides, so fewer than half of them can neither stretch an interval that
the honest ones would not, nor lift a checkpoint above what some honest member measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from swarm.config import Policy
from swarm.encoding import Digest

LOSS = "loss"


@dataclass(frozen=True)
class Told:
    """One closed round."""

    round: int
    checkpoint: Digest
    """What it ended with."""
    metrics: Mapping[Any, Mapping[str, float]]
    """What each member whose submission was merged told, by member."""


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far."""

    round: int
    """The round that it ended."""
    checkpoint: Digest
    value: float
    """The agreed metric there."""


def sync_interval(policy: Policy, rounds: Sequence[Told]) -> int:
    """Batches until the next exchange, after these rounds.

    It grows by `sync_growth`, up to `sync_interval_max`, after a round in which the loss fell at more than half of
    those who told it in this round and the last; it shrinks by as much, down to `sync_interval`, where it rose at so
    many.
    """
    interval = policy.sync_interval
    if not policy.sync_interval_max:
        return interval
    growth = Fraction(str(policy.sync_growth))  # 1.1 is eleven tenths
    for before, after in pairwise(rounds):
        losses = [
            (before.metrics[member][LOSS], told[LOSS])
            for member, told in after.metrics.items()
            if LOSS in told and LOSS in before.metrics.get(member, {})
        ]
        if 2 * sum(new < old for old, new in losses) > len(losses):
            interval = min(math.ceil(interval * growth), policy.sync_interval_max)
        elif 2 * sum(new > old for old, new in losses) > len(losses):
            interval = max(math.floor(interval / growth), policy.sync_interval)
    return interval


def judged(policy: Policy, rounds: Sequence[Told]) -> Iterable[Best]:
    """Every checkpoint of these rounds that was judged, in order: by the lower median of what members told of it.

    One that no more than half of the next round's members tell of is not judged, and neither are the run's first
    checkpoint nor its last.
    """
    for before, after in pairwise(rounds):
        values = sorted(told[policy.best_metric] for told in after.metrics.values() if policy.best_metric in told)
        if 2 * len(values) > len(after.metrics):
            yield Best(before.round, before.checkpoint, values[(len(values) - 1) // 2])


def best(policy: Policy, rounds: Sequence[Told]) -> Best | None:
    """The best checkpoint of these rounds, the earlier one of two that are alike; None if none was judged."""
    found: Best | None = None
    for one in judged(policy, rounds) if policy.best_metric else ():
        if found is None or _gain(policy, found.value, one.value) > 0:
            found = one
    return found


def ended_after(policy: Policy, rounds: Sequence[Told]) -> int | None:
    """The round with which the run is over because `patience` checkpoints were no better; None if it goes on."""
    if not policy.patience:
        return None
    leader: Best | None = None
    waited = 0
    for one in judged(policy, rounds):
        if leader is None or _gain(policy, leader.value, one.value) > policy.min_delta:
            leader, waited = one, 0
            continue
        waited += 1
        if waited == policy.patience:
            return one.round + 1  # the round whose submissions judged it
    return None


def _gain(policy: Policy, before: float, after: float) -> float:
    return after - before if policy.best_mode == "max" else before - after
