"""An alarm that the members agreed on: a metric on their own hold-out data fell. It tells people, and selects nothing.

A member evaluates the checkpoint that it starts a round from and records the numbers with its submission to that round
(`SwarmCallback.on_epoch_end`), so two rounds' submissions show what the merge between them did to the model.
"""

from __future__ import annotations

from collections.abc import Mapping

Metrics = Mapping[str, Mapping[str, float]]
"""What each member submitted to a round, by member and metric."""


def fell(before: Metrics, after: Metrics, metric: str, fall: float) -> tuple[str, ...]:
    """The members at which the metric fell by more than `fall`, if they are half of those who tell, or more; else none.

    Args:
        before, after: the metrics of two rounds that follow each other; greater is better.
    """
    told = [member for member in before if metric in before[member] and metric in after.get(member, {})]
    found = tuple(member for member in told if before[member][metric] - after[member][metric] > fall)
    return found if found and 2 * len(found) >= len(told) else ()
