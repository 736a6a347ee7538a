"""What the ledger hears of is on this site's disk first."""

from __future__ import annotations

from typing import Any
from unittest import mock

from sim.plan import Plan
from sim.world import run
from swarm.encoding import Digest
from swarm.ledger.client import Contracts
from swarm.store import Store


def test_an_update_is_synced_before_the_ledger_hears_of_it() -> None:
    synced: set[Digest] = set()
    submitted: list[Digest] = []
    real_sync, real_submit = Store.sync, Contracts.submit

    def sync(store: Store, digest: Digest) -> None:
        real_sync(store, digest)
        synced.add(digest)

    def submit(contracts: Contracts, run_: int, round_: int, update: Digest, *rest: Any) -> Any:
        assert update in synced
        submitted.append(update)
        return real_submit(contracts, run_, round_, update, *rest)

    with mock.patch.object(Store, "sync", sync), mock.patch.object(Contracts, "submit", submit):
        outcome = run(Plan(seed=5))
    assert not outcome.failure
    assert len(submitted) >= 4
