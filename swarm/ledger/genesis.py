"""Block 0: the contracts as their constructors leave them, a pure function of `swarm.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarm.config import SwarmConfig
from swarm.encoding import ZERO_DIGEST, Address
from swarm.errors import ConfigError
from swarm.ledger.artifact import artifact
from swarm.ledger.evm import TRANSACTION_GAS_MAX, Allocation, Evm

CONSORTIUM: Address = bytes.fromhex("0000000000000000000000000000000000001001")
RUNS: Address = bytes.fromhex("0000000000000000000000000000000000001002")
TICKS_PER_SECOND = 1000
"""This ledger's timestamps are milliseconds."""


@dataclass(frozen=True)
class Genesis:
    """What a ledger starts from. Equal settings give equal genesis blocks on every machine."""

    chain_id: int
    timestamp_ms: int
    gas_limit: int
    allocations: Mapping[Address, Allocation]


def genesis_of(config: SwarmConfig) -> Genesis:
    """The genesis that `swarm.toml` stands for.

    Raises:
        ConfigError: a number in it cannot work, or the contracts refuse the founders; says which and why.
    """
    if not 0 < config.chain_id < 1 << 53:
        raise ConfigError(f"chain_id = {config.chain_id}, but it has to be 1 to 2**53 - 1")
    if not 0 < config.created_ms < 1 << 53:
        raise ConfigError(f"created_ms = {config.created_ms}, but it has to be Unix milliseconds")
    # A block uses at most half of its limit, and one transaction has to fit.
    if not 2 * TRANSACTION_GAS_MAX <= config.block_gas_limit < 1 << 53:
        raise ConfigError(
            f"block_gas_limit = {config.block_gas_limit}, but it has to be {2 * TRANSACTION_GAS_MAX} to 2**53 - 1"
        )
    founders = [
        (member.address, member.operator, member.name, member.endpoint, ZERO_DIGEST, member.validator)
        for member in config.members
    ]
    evm = Evm(config.chain_id, lambda _: None, lambda _: None)
    try:
        consortium = evm.deploy(CONSORTIUM, artifact("Consortium").creation(founders), others={})
        others = {CONSORTIUM: consortium}
        runs = evm.deploy(RUNS, artifact("Runs").creation(CONSORTIUM, TICKS_PER_SECOND), others=others)
    except ValueError as error:
        raise ConfigError(f"the contracts refuse these founders: {error}") from error
    return Genesis(config.chain_id, config.created_ms, config.block_gas_limit, {CONSORTIUM: consortium, RUNS: runs})
