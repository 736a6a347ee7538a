"""What an alarm makes of a run's current round, as this node reads it from the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.config import Policy
from swarm.course import Told
from swarm.encoding import Digest
from swarm.ledger.client import Run
from swarm.merge.alarm import Judged, Settled, in_groups, settled
from swarm.node.telling import Telling
from swarm.rounds import Phase, RoundState


@dataclass(frozen=True)
class Alarm:
    """Of one state of one round."""

    settled: Settled | None
    """What the round ends with whatever was submitted; None: with its merge, or while it takes submissions."""
    grouped: frozenset[int] | None
    """Where it is merged in groups, the attempts at its masks in which one was opened; None where it is not."""
    before: Digest
    """The base of the round before, to which an alarm may go back; of the first round its own."""


async def alarm_of(telling: Telling, policy: Policy, run: Run, state: RoundState) -> Alarm | None:
    """What the submissions so far make of the round; None where the ledger has gone on since `state`.

    Raises:
        UnavailableError: the ledger does not tell of all rounds (yet).
    """
    closed = judged(run.genesis, await telling.rounds(run.id, state.round))
    before = closed[-1].base if closed else state.base
    grouped = await telling.opened(state) if in_groups(policy, closed) else None
    if grouped is None and in_groups(policy, closed):
        return None
    if state.phase is Phase.SUBMIT:
        return Alarm(None, grouped, before)
    told = await telling.as_of(state)
    return None if told is None else Alarm(settled(policy, [*closed, Judged(state.base, told)]), grouped, before)


def judged(genesis: Digest, closed: list[Told]) -> list[Judged]:
    """Closed rounds as an alarm looks at them.

    Args:
        genesis: what the first one started from.
    """
    bases = [genesis, *(told.checkpoint for told in closed)]
    return [Judged(base, told.metrics) for base, told in zip(bases, closed, strict=False)]
