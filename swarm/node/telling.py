"""What the members of a run told with their submissions, round by round, as the ledger's events have it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from swarm.course import Told
from swarm.encoding import Address
from swarm.errors import UnavailableError
from swarm.ledger.client import Contracts, Event, decode_metrics

EVENTS = ("Submitted", "Struck", "RoundRestarted", "RoundClosed")


@dataclass
class _Run:
    """As far as it was read."""

    closed: list[Told] = field(default_factory=list)
    open: dict[Address, dict[str, float]] = field(default_factory=dict)
    """Of the round that is not closed."""


class Telling:
    """Reads each block's events once, for all runs."""

    def __init__(self, contracts: Contracts) -> None:
        self._contracts = contracts
        self._runs: dict[int, _Run] = {}
        self._next_block = 0
        self._reading = asyncio.Lock()

    async def rounds(self, run: int, before: int) -> list[Told]:
        """The closed rounds of a run that come before round `before`, which the ledger has reached, in order.

        Raises:
            UnavailableError: the ledger does not tell of all of them (yet).
        """
        async with self._reading:
            height = await self._contracts.height()
            if height >= self._next_block:
                for event in await self._contracts.events(self._next_block, height, names=EVENTS):
                    self._hear(event)
                self._next_block = height + 1
        found = [told for told in self._runs.get(run, _Run()).closed if told.round < before]
        if len(found) != before:
            raise UnavailableError(f"run {run}: the ledger tells of {len(found)} of {before} closed rounds")
        return found

    def _hear(self, event: Event) -> None:
        args = event.args
        here = self._runs.setdefault(int(args["run"]), _Run())
        match event.name:
            case "Submitted":
                here.open[args["member"]] = decode_metrics(args["metrics"])
            case "Struck":
                here.open.pop(args["member"], None)
            case "RoundRestarted":
                here.open = {}
            case "RoundClosed":
                here.closed.append(Told(int(args["round"]), args["checkpoint"], here.open))
                here.open = {}
