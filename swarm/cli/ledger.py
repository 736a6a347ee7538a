"""The ledger as the command line reaches it: over the socket of this site's node, and the operator's signature."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from swarm.config import SiteConfig, load_swarm
from swarm.errors import ConfigError, UnavailableError
from swarm.ledger.client import Contracts, Receipt, Run
from swarm.ledger.endpoint import Call, Web3
from swarm.ledger.line import line_to

if TYPE_CHECKING:
    from swarm.encoding import Address

TRANSACTION_S = 60.0
"""A ledger that sleeps because too few validators are up decides nothing: then the person is told so."""
BLOCK_S = 15.0
"""How far apart somebody else's blocks are at most, usually: what has to be deep takes so much longer."""


@asynccontextmanager
async def contracts_of(site: SiteConfig) -> AsyncIterator[Contracts]:
    """Both contracts, as this site's running node has them.

    Raises:
        UnavailableError: no node of the site runs on this machine.
    """
    if not site.socket.exists():
        raise UnavailableError(f"no node of {site.name} runs on this machine; start it with `swarm node {site.path}`")
    try:
        async with line_to(site.socket) as line:
            yield _contracts(site, line)
    except (ConnectionError, FileNotFoundError) as error:
        raise UnavailableError(f"the node of {site.name} does not answer at {site.socket}: {error}") from error


def _contracts(site: SiteConfig, web3: Web3) -> Contracts:
    external = load_swarm(site.swarm).external
    if external is None:
        return Contracts(web3)
    assert external.consortium is not None  # or the node had not started
    assert external.runs is not None
    return Contracts(web3, consortium=external.consortium, runs=external.runs, since=external.block, free=False)


async def operate(site: SiteConfig, contracts: Contracts, call: Call) -> Receipt:
    """Sign a call with the operator's key and wait until the ledger took it."""
    external = load_swarm(site.swarm).external
    deep_s = 0.0 if external is None else BLOCK_S * (external.confirmations + 1)
    return await contracts.transact(site.operator(), call, timeout_s=TRANSACTION_S + deep_s)


async def named_run(contracts: Contracts, text: str) -> Run:
    """The run with this number, or the newest one with this name; ConfigError names the ones there are."""
    runs = await contracts.runs()
    for run in reversed(runs):
        if text in (str(run.id), run.name):
            return run
    there = ", ".join(f"{run.id} ({run.name})" for run in runs) or "none yet"
    raise ConfigError(f"there is no run {text!r}; there are: {there}")


async def names_of(contracts: Contracts) -> Callable[[Address], str]:
    """How to call an address: by its member's name, else by its first four bytes."""
    known = {member.address: member.name for member in await contracts.members()}
    return lambda address: known.get(address, "0x" + address[:4].hex())
