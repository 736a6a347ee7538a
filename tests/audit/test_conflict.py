"""An audit of a ledger whose node kept a second decision about a height says so."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from swarm.audit.replay import Difference, replayed
from swarm.ledger.judging import ExecutionCache
from tests.ledger import world


def site_with(folder: Path, *, seals: int) -> Path:
    """A site's folder with six blocks, whose node was shown another fourth one with so many seals."""
    with contextlib.closing(world.open_ledger(folder / "other")) as other:
        world.grow(other, 3)
        operator = world.OPERATORS[1]
        payload = world.build(other, world.propose(operator, other.next_nonce(operator.address), "another"))
        certificate = world.decision(other, payload)
    with contextlib.closing(world.open_ledger(folder / "site" / "ledger")) as ledger:
        world.grow(ledger, 6)
        ledger._database.keep_conflict(
            4, ledger.digest_of(payload), payload, type(certificate)(0, certificate.seals[:seals]).encode()
        )
    return folder / "site"


def test_a_height_that_was_decided_twice_fails_the_audit(tmp_path: Path) -> None:
    site = site_with(tmp_path, seals=3)
    with (
        pytest.raises(Difference, match="block 4 was decided twice"),
        replayed(site, world.genesis(), ExecutionCache(), lambda done, of: None),
    ):
        pass


def test_evidence_that_does_not_hold_accuses_nobody(tmp_path: Path) -> None:
    site = site_with(tmp_path, seals=2)
    with replayed(site, world.genesis(), ExecutionCache(), lambda done, of: None) as replay:
        assert replay.ledger.head.number == 6
