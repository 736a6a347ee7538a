"""Ledgers of four members, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm.ledger.ledger import Ledger
from tests.ledger import world


@pytest.fixture
def make_ledger(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Open ledgers; they are closed when the test ends."""
    made: list[Ledger] = []

    def make(members: int = 4) -> Ledger:
        made.append(world.open_ledger(tmp_path / str(len(made)), members))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    return make_ledger()
