"""An alarm that the members agreed on: a metric on their own hold-out data fell.

A member evaluates the checkpoint that it starts a round from and records the numbers with its submission to that round
(`SwarmCallback.on_epoch_end`), so two rounds' submissions show what the merge between them did to the model. What the
run does then follows from the ledger alone, so that leader, verifiers and auditors find the same: nothing but telling
people, or going back to the checkpoint before the fall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from swarm.config import Policy
from swarm.encoding import Digest

Metrics = Mapping[Any, Mapping[str, float]]
"""What each member submitted to a round, by member and metric."""


@dataclass(frozen=True)
class Judged:
    """One round, as far as an alarm looks at it."""

    base: Digest
    """The checkpoint that it started from."""
    metrics: Metrics
    """What those whose submissions were not struck told of that checkpoint."""


@dataclass(frozen=True)
class Settled:
    """What a round ends with, whatever was submitted to it."""

    checkpoint: Digest
    why: str
    fell_at: tuple[Any, ...]
    """The members whose metric fell; empty where there was no alarm."""


def fell(before: Metrics, after: Metrics, metric: str, fall: float) -> tuple[Any, ...]:
    """The members at which the metric fell by more than `fall`, if they are half of those who tell, or more; else none.

    Args:
        before, after: the metrics of two rounds that follow each other; greater is better.
    """
    told = [member for member in before if metric in before[member] and metric in after.get(member, {})]
    found = tuple(member for member in told if before[member][metric] - after[member][metric] > fall)
    return found if found and 2 * len(found) >= len(told) else ()


def rings(policy: Policy, rounds: Sequence[Judged]) -> tuple[Any, ...]:
    """The members at which the metric fell with the base of the last of these rounds, where the run has to act; else
    none.

    They have to be half of all who submitted to that round, or more: fewer than half can lie and cause nothing, or be
    silent and hide nothing that all others saw. A round that an alarm ended goes back to a checkpoint that stood
    before, so its successor's base is not judged again; nor is one that the round before did not change.

    Args:
        rounds: all of the run from the first on, without a gap.
    """
    found = _fallen(policy, rounds[-2:])
    # Of falls in a row, the second is that of a round which the first one ended: every other one rings.
    in_a_row = 0
    for place in range(len(rounds), 1, -1):
        if not _fallen(policy, rounds[place - 2 : place]):
            break
        in_a_row += 1
    return found if in_a_row % 2 else ()


def _fallen(policy: Policy, two: Sequence[Judged]) -> tuple[Any, ...]:
    for before, after in pairwise(two):
        if before.base == after.base:
            return ()
        found = fell(before.metrics, after.metrics, policy.alarm_metric, policy.alarm_fall)
        return found if 2 * len(found) >= len(after.metrics) else ()
    return ()


def settled(policy: Policy, rounds: Sequence[Judged]) -> Settled | None:
    """What the last of these rounds ends with whatever was submitted to it; None: with the merge of its submissions.

    After an alarm it is the base of the round before. The run's last round merges nothing in any case: it judges what
    it starts from, or a poisoner would wait for the merge that nobody judges.

    Args:
        rounds: all of the run from the first on; of the last one the submissions are complete.
    """
    if not policy.acts_on_alarm:
        return None
    found = rings(policy, rounds)
    if found:
        why = (
            f"{policy.alarm_metric} fell by more than {policy.alarm_fall:g} at {len(found)} of "
            f"{len(rounds[-1].metrics)} members with the checkpoint of round {len(rounds) - 2}, which is given up"
        )
        return Settled(rounds[-2].base, why, found)
    if len(rounds) == policy.rounds:
        return Settled(rounds[-1].base, "the last round judges what it starts from, and merges nothing", ())
    return None


def in_groups(policy: Policy, closed: Sequence[Judged]) -> bool:
    """Whether the round after these is merged in groups: an alarm ended the last of them.

    Args:
        closed: all closed rounds.
    """
    return policy.alarm_action == "groups" and bool(rings(policy, closed))
