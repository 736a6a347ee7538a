"""What members told, from the ledger's events: each block once, and only what was merged."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast

import pytest

from swarm.errors import UnavailableError
from swarm.ledger.client import Contracts, Event, encode_metrics
from swarm.node.telling import Telling
from swarm.rounds import Phase, RoundState, RunState, Submission

A, B, C = b"a" * 20, b"b" * 20, b"c" * 20


class Ledger:
    """Blocks of events, and how often each was read."""

    def __init__(self, *blocks: list[Event]) -> None:
        self.blocks = list(blocks)
        self.read: list[int] = []
        self.fails = False

    async def height(self) -> int:
        return len(self.blocks) - 1

    async def events(self, first: int, last: int, names: Collection[str]) -> tuple[Event, ...]:
        await asyncio.sleep(0)
        if self.fails:
            raise UnavailableError("not now")
        self.read += range(first, last + 1)
        return tuple(e for block in self.blocks[first : last + 1] for e in block if e.name in names)


def event(name: str, run: int = 1, **args: Any) -> Event:
    return Event(name, {"run": run, **args}, 0, 0, b"")


def submitted(member: bytes, loss: float, run: int = 1) -> Event:
    return event("Submitted", run, member=member, metrics=encode_metrics({"loss": loss}))


def closed(number: int, run: int = 1) -> Event:
    return event("RoundClosed", run, round=number, checkpoint=bytes([number]) * 32)


def told(telling: Telling, before: int, run: int = 1) -> list[dict[bytes, float]]:
    rounds = asyncio.run(telling.rounds(run, before))
    return [{member: metrics["loss"] for member, metrics in one.metrics.items()} for one in rounds]


def telling_of(ledger: Ledger) -> Telling:
    return Telling(cast(Contracts, ledger))


def test_only_what_was_merged_counts() -> None:
    ledger = Ledger(
        [submitted(A, 9.0), submitted(C, 9.0), event("RoundRestarted", view=9)],
        [submitted(A, 1.0), submitted(B, 2.0), event("Struck", member=B), closed(0)],
        [submitted(B, 3.0, run=2), submitted(A, 4.0), submitted(B, 5.0), closed(1), submitted(A, 6.0)],
    )
    telling = telling_of(ledger)
    assert told(telling, 2) == [{A: 1.0}, {A: 4.0, B: 5.0}]
    assert told(telling, 1) == [{A: 1.0}]
    assert told(telling, 0, run=2) == []


def test_what_is_told_of_a_round_is_that_of_its_state_or_the_ledger_has_gone_on() -> None:
    ledger = Ledger([submitted(A, 1.0), submitted(B, 2.0), event("SurvivorsFixed", round=0, attempt=1)])
    telling = telling_of(ledger)

    def as_of(round_: int, view: int, *members: bytes) -> dict[bytes, float] | None:
        submissions = tuple(Submission(member, b"d" * 32, 1) for member in members)
        state = RoundState(
            1, RunState.OPEN, round_, Phase.MERGE, view, A, b"b" * 32, b"s" * 32, 0.0, 0.0, members, submissions
        )  # fmt: skip
        found = asyncio.run(telling.as_of(state))
        opened.append(asyncio.run(telling.opened(state)))
        return None if found is None else {member: metrics["loss"] for member, metrics in found.items()}

    opened: list[frozenset[int] | None] = []
    assert as_of(0, 3, A, B) == {A: 1.0, B: 2.0}
    ledger.blocks.append([event("RoundRestarted", view=4), submitted(A, 7.0), submitted(B, 8.0)])
    assert as_of(0, 3, A, B) is None
    assert as_of(0, 4, A, B) == {A: 7.0, B: 8.0}
    ledger.blocks.append([event("Struck", member=B)])
    assert as_of(0, 4, A, B) is None
    assert as_of(0, 4, A) == {A: 7.0}
    ledger.blocks.append([closed(0), submitted(A, 1.0)])
    assert as_of(0, 4, A) is None
    assert opened == [frozenset({1})] * 5 + [None]


def test_each_block_is_read_once_also_when_two_ask_at_once() -> None:
    ledger = Ledger([submitted(A, 1.0), closed(0)])
    telling = telling_of(ledger)

    async def both() -> list[int]:
        return [len(rounds) for rounds in await asyncio.gather(telling.rounds(1, 1), telling.rounds(1, 1))]

    assert asyncio.run(both()) == [1, 1]
    ledger.blocks.append([submitted(A, 2.0), closed(1)])
    assert told(telling, 2) == [{A: 1.0}, {A: 2.0}]
    assert ledger.read == [0, 1]


def test_a_round_that_the_events_do_not_tell_of_yet_is_asked_for_again() -> None:
    ledger = Ledger([submitted(A, 1.0)])
    telling = telling_of(ledger)
    with pytest.raises(UnavailableError, match="run 1: the ledger tells of 0 of 1 closed rounds"):
        told(telling, 1)
    ledger.blocks.append([closed(0)])
    ledger.fails = True
    with pytest.raises(UnavailableError, match="not now"):
        told(telling, 1)
    ledger.fails = False
    assert told(telling, 1) == [{A: 1.0}]
