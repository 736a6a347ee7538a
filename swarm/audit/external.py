"""An audit where the contracts are on somebody else's chain.

Derived again are every run, round and merge, from logs that are held against the chain's receipts and headers.
Trusted is what no member could prove: the chain's own consensus and execution, and that the node which was asked
shows that chain. Whoever doubts it audits again with another node as `endpoint` in swarm.toml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarm.audit.replay import Difference
from swarm.audit.retell import RunStory, compare_records, runs_of
from swarm.config import SwarmConfig
from swarm.encoding import Digest
from swarm.ledger.client import Contracts
from swarm.ledger.connection import Connection, shown
from swarm.ledger.external import ExternalNetwork, counted, places_of
from swarm.ledger.testimony import Testimony, testimony

Record = tuple[Digest, int]
"""A closed round's checkpoint, and how many submissions were merged."""


def told_by(
    config: SwarmConfig, url: str, progress: Callable[[int, int], None]
) -> tuple[Testimony, dict[int, RunStory]]:
    """What the chain's node at this address says, checked as far as it can be, and the runs that follow from it.

    Raises:
        Difference: the rounds that the events tell are not what they have to be, or not the contract's.
        ConfigError, PeerError, UnavailableError: another chain, logs that its receipts do not hold, or no answer.
    """

    async def work() -> tuple[Testimony, dict[int, RunStory]]:
        link = Connection(url)
        try:
            return await hear(ExternalNetwork(link), config, progress)
        finally:
            await link.disconnect()

    return asyncio.run(work())


async def hear(
    network: ExternalNetwork, config: SwarmConfig, progress: Callable[[int, int], None]
) -> tuple[Testimony, dict[int, RunStory]]:
    """`told_by` of a network that is connected."""
    assert config.external is not None
    places = places_of(config)
    await network.check(config)
    _, head = await counted(network, None, config.external.confirmations)
    told = await testimony(network, places, head, progress)
    runs = runs_of(told.events)
    contracts = network.contracts(places).at(head.number)
    await _check_complete(contracts, runs)
    compare_records(runs, (await _records(contracts, runs)).get)
    return told, runs


async def _check_complete(contracts: Contracts, runs: dict[int, RunStory]) -> None:
    """A node that keeps logs back is found by the contract's own count of runs and rounds."""
    found = {run.id: run.round for run in await contracts.runs()}
    told = {number: run.index for number, run in runs.items()}
    if found != told:
        number = sorted({*found.items()} ^ {*told.items()})[0][0]
        raise Difference(
            f"run {number}: the contract is at round {found.get(number, 'none')}, the logs that the node tells of lead "
            f"to round {told.get(number, 'none')}: it keeps some back"
        )


async def _records(contracts: Contracts, runs: dict[int, RunStory]) -> dict[tuple[int, int], Record]:
    records = {}
    for number, run in runs.items():
        for index in range(len(run.closed)):
            closed = await contracts.closed_round(number, index)
            if closed is not None:
                records[number, index] = closed.checkpoint, closed.submissions
    return records


def trusted(url: str) -> str:
    """What the verdict rests on, for a person."""
    return (
        f"trusted: the chain's own consensus and execution, and that the node at {shown(url)} shows that chain; "
        "checked: the contracts' code and founders, and that each log is in receipts which a header commits to"
    )
