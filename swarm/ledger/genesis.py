"""Block 0: the contracts as their constructors leave them, a pure function of `swarm.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.config import SwarmConfig
from swarm.encoding import ZERO_DIGEST, Address, Digest
from swarm.errors import ConfigError
from swarm.ledger.artifact import artifact

if TYPE_CHECKING:
    from swarm.ledger.evm import Allocation, Execution

CONSORTIUM: Address = bytes.fromhex("0000000000000000000000000000000000001001")
RUNS: Address = bytes.fromhex("0000000000000000000000000000000000001002")
BLIND: Address = bytes.fromhex("0000000000000000000000000000000000001004")
ARTIFACTS: Address = bytes.fromhex("0000000000000000000000000000000000001003")
"""An account whose code is no program: it holds the digests of the artifacts that the contracts came from."""
ARTIFACTS_MARK = b"\xfeswarm artifacts\x00"
"""0xfe is INVALID (EIP-141): a call of this account fails."""
CONTRACTS = ("Consortium", "Runs", "Blind")
TICKS_PER_SECOND = 1000
"""This ledger's timestamps are milliseconds."""


@dataclass(frozen=True)
class Genesis:
    """What a ledger starts from. Equal settings give equal genesis blocks on every machine."""

    chain_id: int
    execution: Execution
    """Block 0 and its state."""

    @property
    def hash(self) -> Digest:
        """The hash of block 0: two nodes with the same one are on the same ledger."""
        return self.execution.header.hash

    @classmethod
    def of(cls, config: SwarmConfig) -> Genesis:
        """The genesis that `swarm.toml` stands for.

        Raises:
            ConfigError: a number in it cannot work, or the contracts refuse the founders; says which and why.
        """
        # Who only needs the contracts' addresses does not load the EVM.
        from swarm.ledger.evm import TRANSACTION_GAS_MAX, Evm

        if not 0 < config.chain_id < 1 << 53:
            raise ConfigError(f"chain_id = {config.chain_id}, but it has to be 1 to 2**53 - 1")
        if not 0 < config.created_ms < 1 << 53:
            raise ConfigError(f"created_ms = {config.created_ms}, but it has to be Unix milliseconds")
        # A block uses at most half of its limit, and one transaction has to fit.
        if not 2 * TRANSACTION_GAS_MAX <= config.block_gas_limit < 1 << 53:
            raise ConfigError(
                f"block_gas_limit = {config.block_gas_limit}, but it has to be {2 * TRANSACTION_GAS_MAX} to 2**53 - 1"
            )
        evm = Evm(config.chain_id, lambda _: None, lambda _: None)
        execution = evm.genesis(allocations(config), timestamp_ms=config.created_ms, gas_limit=config.block_gas_limit)
        return cls(config.chain_id, execution)


def consortium_creation(config: SwarmConfig, *, ticks_per_second: int) -> bytes:
    """The bytecode that creates `Consortium` with these founders.

    Args:
        ticks_per_second: how many ticks a second of the network's timestamps has, 1000 or 1.
    """
    founders = [
        # A member's identity is in its endpoint's PeerID; the fingerprint is for those who add one of another kind.
        (member.address, member.operator, member.name, member.endpoint, ZERO_DIGEST, member.validator)
        for member in config.members
    ]
    return artifact("Consortium").creation(founders, round(config.standby_after_s * ticks_per_second))


def runs_creation(consortium: Address, *, ticks_per_second: int) -> bytes:
    """The bytecode that creates `Runs` beside the consortium at this address."""
    return artifact("Runs").creation(consortium, ticks_per_second)


def blind_creation(consortium: Address, runs: Address) -> bytes:
    """The bytecode that creates `Blind` beside the two contracts at these addresses."""
    return artifact("Blind").creation(consortium, runs)


def allocations(config: SwarmConfig, *, ticks_per_second: int = TICKS_PER_SECOND) -> Mapping[Address, Allocation]:
    """The accounts of block 0: the contracts as their constructors leave them, and what they came from.

    Raises:
        ConfigError: the contracts refuse the founders, and why.
    """
    from swarm.ledger.evm import Allocation, Evm

    evm = Evm(config.chain_id, lambda _: None, lambda _: None)
    try:
        code = consortium_creation(config, ticks_per_second=ticks_per_second)
        consortium = evm.deploy(CONSORTIUM, code, others={})
        code = runs_creation(CONSORTIUM, ticks_per_second=ticks_per_second)
        runs = evm.deploy(RUNS, code, others={CONSORTIUM: consortium})
        blind = evm.deploy(BLIND, blind_creation(CONSORTIUM, RUNS), others={CONSORTIUM: consortium, RUNS: runs})
    except ValueError as error:
        raise ConfigError(f"the contracts refuse these founders: {error}") from error
    digests = b"".join(artifact(name).digest for name in CONTRACTS)
    artifacts = Allocation(nonce=1, balance=0, code=ARTIFACTS_MARK + digests, storage={})
    return {CONSORTIUM: consortium, RUNS: runs, BLIND: blind, ARTIFACTS: artifacts}
