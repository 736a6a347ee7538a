"""What the members of a run told with their submissions, round by round, as the ledger's events have it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from swarm.config import EPSILON
from swarm.course import Told
from swarm.encoding import Address
from swarm.errors import UnavailableError
from swarm.ledger.client import Contracts, Event, decode_metrics
from swarm.rounds import RoundState

EVENTS = ("Submitted", "Struck", "SurvivorsFixed", "RoundRestarted", "RoundClosed")


@dataclass
class _Run:
    """As far as it was read."""

    closed: list[Told] = field(default_factory=list)
    open: dict[Address, dict[str, float]] = field(default_factory=dict)
    """Of the round that is not closed."""
    view: int = 0
    """At which the round that is not closed began to take these submissions."""
    fixed: set[int] = field(default_factory=set)
    """The attempts at its masks in which somebody opened one."""
    epsilon: dict[Address, float] = field(default_factory=dict)
    """The most that each member ever declared to have spent, in submissions that were struck too."""


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
        await self._read()
        found = [told for told in self._runs.get(run, _Run()).closed if told.round < before]
        if len(found) != before:
            raise UnavailableError(f"run {run}: the ledger tells of {len(found)} of {before} closed rounds")
        return found

    async def now(self, run: int) -> Mapping[Address, Mapping[str, float]]:
        """What the members told with their submissions of the round that is not closed."""
        await self._read()
        return dict(self._runs.get(run, _Run()).open)

    async def as_of(self, state: RoundState) -> Mapping[Address, Mapping[str, float]] | None:
        """What those told whose submissions a round merges; None where the ledger has gone on since `state`.

        Args:
            state: of a round that takes no more submissions.
        """
        await self._read()
        here = self._runs.get(state.run, _Run())
        now = len(here.closed) == state.round and here.view <= state.view
        return dict(here.open) if now and here.open.keys() == {s.member for s in state.merged} else None

    async def opened(self, state: RoundState) -> frozenset[int] | None:
        """The attempts of the round in which a mask was opened; None where the ledger is in a later round."""
        await self._read()
        here = self._runs.get(state.run, _Run())
        return frozenset(here.fixed) if len(here.closed) == state.round else None

    async def epsilon(self, run: int, member: Address) -> float:
        """The most that a member ever declared to have spent of its privacy budget in a run; 0 if it never did."""
        await self._read()
        return self._runs.get(run, _Run()).epsilon.get(member, 0.0)

    async def _read(self) -> None:
        async with self._reading:
            height = await self._contracts.height()
            if height >= self._next_block:
                for event in await self._contracts.events(self._next_block, height, names=EVENTS):
                    self._hear(event)
                self._next_block = height + 1

    def _hear(self, event: Event) -> None:
        args = event.args
        here = self._runs.setdefault(int(args["run"]), _Run())
        match event.name:
            case "Submitted":
                told = here.open[args["member"]] = decode_metrics(args["metrics"])
                here.epsilon[args["member"]] = max(here.epsilon.get(args["member"], 0.0), told.get(EPSILON, 0.0))
            case "Struck":
                here.open.pop(args["member"], None)
            case "SurvivorsFixed":
                here.fixed.add(int(args["attempt"]))
            case "RoundRestarted":
                here.open, here.view = {}, int(args["view"])
            case "RoundClosed":
                here.closed.append(Told(int(args["round"]), args["checkpoint"], here.open))
                here.open, here.view, here.fixed = {}, 0, set()
