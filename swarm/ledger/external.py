"""The contracts on somebody else's EVM network: found, held against what the members agreed, and followed.

What is trusted then is that network's consensus and the node that answers for it; `swarm.toml` names the chain, the
contracts' addresses and how deep a block has to be.
"""

from __future__ import annotations

from dataclasses import dataclass

from web3 import AsyncWeb3
from web3.providers.async_base import AsyncBaseProvider

from swarm.config import SwarmConfig
from swarm.encoding import Address, Digest, from_hex, short
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.identity import checksum
from swarm.ledger.client import Contracts
from swarm.ledger.endpoint import Endpoint
from swarm.ledger.genesis import (
    BLIND,
    CONSORTIUM,
    RUNS,
    allocations,
    blind_creation,
    consortium_creation,
    runs_creation,
)

MILLISECONDS = 10**11
"""Unix time in seconds reaches this in the year 5138: a timestamp above it counts milliseconds."""


@dataclass(frozen=True)
class Head:
    """A block of the chain."""

    number: int
    hash: Digest
    timestamp_s: float
    gas_limit: int


@dataclass(frozen=True)
class Places:
    """Where the contracts are, and since when."""

    consortium: Address
    runs: Address
    blind: Address
    block: int


def places_of(config: SwarmConfig) -> Places:
    """Where `swarm.toml` says that the contracts are; ConfigError if it does not."""
    external = config.external
    if external is None or external.consortium is None or external.runs is None or external.blind is None:
        raise ConfigError(
            "swarm.toml names a chain but not where the contracts are on it: `swarm deploy SITE.toml` puts them there "
            "and writes `consortium`, `runs`, `blind` and `block`"
        )
    return Places(external.consortium, external.runs, external.blind, external.block)


class ExternalNetwork:
    """What is asked of a network before its contracts can be trusted.

    Every method raises `UnavailableError` where the network's node does not answer.
    """

    def __init__(self, provider: AsyncBaseProvider) -> None:
        self._provider = provider
        self.endpoint = Endpoint(AsyncWeb3(provider), free=False)

    def contracts(self, places: Places) -> Contracts:
        """The contracts as the network's last block has them."""
        return Contracts(
            AsyncWeb3(self._provider),
            consortium=places.consortium,
            runs=places.runs,
            blind=places.blind,
            since=places.block,
            free=False,
        )

    async def head(self, tag: str = "latest") -> Head:
        """The block that a tag or a number (`0x…`) names; RejectedError where there is none."""
        block = await self.endpoint.request("eth_getBlockByNumber", tag, False)
        if block is None:
            raise RejectedError(f"the chain has no block {tag}")
        try:
            timestamp = int(block["timestamp"], 16)
            number, gas_limit, digest = int(block["number"], 16), int(block["gasLimit"], 16), from_hex(block["hash"])
        except (ValueError, LookupError, TypeError) as error:
            raise UnavailableError(f"{self._provider} answers with what is no block: {error!r}") from error
        timestamp_s = timestamp / 1000 if timestamp > MILLISECONDS else float(timestamp)
        return Head(number, digest, timestamp_s, gas_limit)

    async def ticks_per_second(self) -> int:
        """How many ticks of this network's timestamps make a second: 1, or 1000 on a ledger of this project's kind."""
        block = await self.endpoint.request("eth_getBlockByNumber", "latest", False)
        return 1000 if int(block["timestamp"], 16) > MILLISECONDS else 1

    async def check(self, config: SwarmConfig) -> None:
        """ConfigError unless this is the chain that the settings name, with the contracts where they say."""
        await self.check_chain(config)
        await self.check_code(config, places_of(config))
        await self.check_founders(config, places_of(config))

    async def check_chain(self, config: SwarmConfig) -> None:
        """ConfigError unless the chain's id is the settings'."""
        found = int(await self.endpoint.request("eth_chainId"), 16)
        if found != config.chain_id:
            raise ConfigError(
                f"{self._provider} is a node of chain {found}, but swarm.toml says chain_id = {config.chain_id}: name "
                "an endpoint of that chain, or the chain's own id"
            )

    async def check_code(self, config: SwarmConfig, places: Places) -> None:
        """ConfigError unless the code at each place is what this installation's constructors leave there.

        Constructors write what never changes (the consortium's address, the clock) into the code, so equal code says
        that those are equal too.
        """
        expected = expected_code(config, places, ticks_per_second=await self.ticks_per_second())
        for name, place in (("Consortium", places.consortium), ("Runs", places.runs), ("Blind", places.blind)):
            found = from_hex(await self.endpoint.request("eth_getCode", "0x" + place.hex(), "latest"))
            if not found:
                raise ConfigError(
                    f"there is no contract at {checksum(place)} on chain {config.chain_id}, where swarm.toml says that "
                    f"{name} is; was the chain reset? `swarm deploy SITE.toml` puts it on a chain"
                )
            if found != expected[place]:
                raise ConfigError(
                    f"the contract at {checksum(place)} is not the {name} that this installation and swarm.toml give: "
                    f"its code has {len(found)} bytes, {len(expected[place])} are expected, and "
                    f"{_first_difference(found, expected[place])}"
                )

    async def check_founders(self, config: SwarmConfig, places: Places) -> None:
        """ConfigError unless the consortium was founded with the members of the settings."""
        contracts = self.contracts(places)
        try:
            events = await contracts.events(places.block, places.block, names=["Admitted"])
        except ValueError as error:
            raise ConfigError(f"{self._provider} tells of founders in what is no event: {error}") from error
        wanted = {(m.address, m.operator, m.name, m.validator) for m in config.members}
        if events:
            found = {(e.args["member"], e.args["operator"], e.args["name"], e.args["validator"]) for e in events}
        elif places == Places(CONSORTIUM, RUNS, BLIND, 0) and await self._is_genesis(config):
            return
        else:  # in a genesis block, which has no events
            members = await contracts.at(places.block).members()
            found = {(m.address, m.operator, m.name, m.validator) for m in members}
        if found != wanted:
            strange = sorted(found ^ wanted)[0]
            raise ConfigError(
                f"the consortium at {checksum(places.consortium)} was founded in block {places.block} by other members "
                f"than swarm.toml names: {strange[2]} ({checksum(strange[0])}) is in only one of the two"
            )

    async def _is_genesis(self, config: SwarmConfig) -> bool:
        """Whether block 0 holds the contracts as the founders' constructors leave them, and nothing else."""
        from swarm.ledger.evm import Evm

        block = await self.endpoint.request("eth_getBlockByNumber", "0x0", False)
        evm = Evm(config.chain_id, lambda _: None, lambda _: None)
        alloc = allocations(config, ticks_per_second=await self.ticks_per_second())
        ours = evm.genesis(alloc, timestamp_ms=0, gas_limit=0).header.state_root
        return block is not None and from_hex(block["stateRoot"]) == ours


def expected_code(config: SwarmConfig, places: Places, *, ticks_per_second: int) -> dict[Address, bytes]:
    """The code that the constructors leave at the places, executed here.

    Raises:
        ConfigError: the contracts refuse these founders.
    """
    from swarm.ledger.evm import Evm  # brings in the EVM: who does not check starts without it

    evm = Evm(config.chain_id, lambda _: None, lambda _: None)
    try:
        consortium = evm.deploy(
            places.consortium, consortium_creation(config, ticks_per_second=ticks_per_second), others={}
        )
        runs = evm.deploy(
            places.runs,
            runs_creation(places.consortium, ticks_per_second=ticks_per_second),
            others={places.consortium: consortium},
        )
        blind = evm.deploy(
            places.blind,
            blind_creation(places.consortium, places.runs),
            others={places.consortium: consortium, places.runs: runs},
        )
    except ValueError as error:
        raise ConfigError(f"the contracts refuse these founders: {error}") from error
    return {places.consortium: consortium.code, places.runs: runs.code, places.blind: blind.code}


def _first_difference(found: bytes, expected: bytes) -> str:
    at = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), None)
    if at is None:
        return "one begins with the other"
    return f"they differ from byte {at} on ({short(found[at : at + 32])} where {short(expected[at : at + 32])} belongs)"


@dataclass(frozen=True)
class Counted:
    """The last block that counts: what stands on it is deep enough."""

    number: int
    hash: Digest


async def counted(network: ExternalNetwork, before: Counted | None, confirmations: int) -> tuple[Head, Counted]:
    """The chain's last block, and the last one that counts now; it never goes back.

    Args:
        before: what counted when this was asked last.
    Raises:
        ConfigError: the chain took back a block that counted.
        UnavailableError: no answer.
    """
    head = await network.head()
    if before is not None:
        try:
            still = await network.head(hex(before.number))
        except RejectedError:
            still = None
        if still is None:
            return head, before  # a node that is behind, as behind an address that several share
        if still.hash != before.hash:
            raise ConfigError(
                f"the chain took back block {before.number} ({short(before.hash)}), which counted after "
                f"{confirmations} confirmations: raise `confirmations` in swarm.toml, or has the chain been reset?"
            )
        if head.number - confirmations <= before.number:
            return head, before
    number = max(head.number - confirmations, 0)
    if number == head.number:
        return head, Counted(head.number, head.hash)
    deep = await network.head(hex(number))
    return head, Counted(deep.number, deep.hash)
