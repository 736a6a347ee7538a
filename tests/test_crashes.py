"""Kills and power cuts at any write: a few here, hundreds with `python -m tests.crashes`; mistakes that they find."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from sim.loop import StuckError
from swarm.ledger import database
from swarm.store import Store
from tests import crashes, store_crashes
from tests.ledger import disk, power, world
from tests.ledger.kills import Campaign


def test_validators_whose_power_fails_go_on_as_one_chain() -> None:
    assert "20 power cuts" in crashes.cut_power(20, seed=0)


def test_node_processes_that_are_killed_where_they_write_go_on_as_one_chain(tmp_path: Path) -> None:
    found = Campaign(tmp_path, seed=3).run(20)
    assert found.kills.total() >= 20
    assert found.blocks > 3


def test_a_store_that_dies_has_what_it_promised() -> None:
    crashes.crash_stores(8, 8, seed=0)


@pytest.mark.slow
def test_hundreds_of_kills_and_cuts() -> None:
    crashes.cut_power(500, seed=1_000)
    crashes.crash_stores(200, 200, seed=1_000)
    crashes.kill_nodes(200, seed=1_000)


def run_all(story: Callable[[int], object], seeds: int) -> None:
    for seed in range(seeds):
        story(seed)


def test_votes_that_are_not_synced_are_found() -> None:
    """The mistake that forks a ledger: a validator that lost power votes again."""
    connect = disk.Disk.connect

    def careless(self: disk.Disk, path: Path, synchronous: str, schema: str) -> disk.Connection:
        return connect(self, path, "NORMAL", schema)

    with mock.patch.object(disk.Disk, "connect", careless), pytest.raises((power.Broken, StuckError)):
        run_all(power.run_seed, 40)


@pytest.mark.parametrize("blocks", [63, 64, 100, 130])
def test_a_power_cut_takes_fewer_blocks_than_votes_are_kept(tmp_path: Path, blocks: int) -> None:
    """An auditor that reads for long keeps SQLite from its checkpoints, and those are what it syncs at by itself."""
    before, after = disk.Disk(), disk.Disk()
    with mock.patch.object(database, "_connect", before.connect):
        ledger = world.open_ledger(tmp_path / "before")
        ledger._database._ledger.execute("PRAGMA wal_autocheckpoint = 0")
        world.grow(ledger, blocks)
    before.image(tmp_path / "after", random.Random(0), "none")
    after.load(tmp_path / "after")
    with mock.patch.object(database, "_connect", after.connect):
        assert (
            world.open_ledger(tmp_path / "after").head.number == blocks // database.SYNCED_EVERY * database.SYNCED_EVERY
        )
    assert database.SYNCED_EVERY < database.VOTES_KEPT


def test_objects_that_are_not_synced_are_found() -> None:
    with pytest.raises(AssertionError, match=r"is lost|is damaged"):
        run_all(partial(store_crashes.cut, durable=False), 20)


def test_an_object_that_came_unsynced_and_is_promised_later_is_synced_then() -> None:
    """The planted mistake: what is here already is taken for safe."""
    with mock.patch.object(Store, "sync"), pytest.raises(AssertionError, match=r"is lost|is damaged"):
        run_all(store_crashes.cut, 40)
