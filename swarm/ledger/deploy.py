"""Puts the contracts on somebody else's network, by three ordinary transactions, or finds them there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from swarm.config import SwarmConfig
from swarm.encoding import Address, from_hex
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.identity import Identity, checksum
from swarm.ledger.endpoint import Call
from swarm.ledger.external import ExternalNetwork, Places, expected_code
from swarm.ledger.genesis import blind_creation, consortium_creation, runs_creation

CODE_MAX_BYTES = 24_576
"""A contract's code (EIP-170)."""
INIT_CODE_MAX_BYTES = 49_152
"""What creates it, with the constructor's arguments (EIP-3860)."""
POLL_S = 0.5


async def deploy(
    network: ExternalNetwork,
    config: SwarmConfig,
    identity: Identity,
    *,
    timeout_s: float,
    consortium: Address | None = None,
) -> Places:
    """The contracts on the network, with the founders of the settings, checked and as deep as the settings ask.

    Args:
        identity: signs and pays.
        timeout_s: for each of the three transactions and for the depth.
        consortium: goes on where an earlier deployment stopped: it is there already.
    Raises:
        ConfigError: another chain, a contract beyond what networks take, or founders that it refuses.
        RejectedError: the network refused a transaction, and why.
        UnavailableError: no answer, or not in a block in time.
    """
    await network.check_chain(config)
    ticks = await network.ticks_per_second()
    _check_sizes(config, ticks)
    if consortium is None:
        consortium, _ = await _create(
            network, identity, "Consortium", consortium_creation(config, ticks_per_second=ticks), config, timeout_s
        )
    try:
        runs, _ = await _create(
            network, identity, "Runs", runs_creation(consortium, ticks_per_second=ticks), config, timeout_s
        )
        blind, block = await _create(network, identity, "Blind", blind_creation(consortium, runs), config, timeout_s)
        places = Places(consortium, runs, blind, await _founded(network, consortium, block))
        await _wait_for_depth(network, block, config.external.confirmations if config.external else 0, timeout_s)
    except (RejectedError, UnavailableError) as error:
        raise type(error)(
            f"{error}; Consortium is at {checksum(consortium)}: go on with --consortium {checksum(consortium)}"
        ) from error
    await network.check_code(config, places)
    await network.check_founders(config, places)
    return places


def _check_sizes(config: SwarmConfig, ticks: int) -> None:
    init = len(consortium_creation(config, ticks_per_second=ticks))
    if init > INIT_CODE_MAX_BYTES:
        raise ConfigError(
            f"{len(config.members)} founders make a transaction of {init} bytes, networks take {INIT_CODE_MAX_BYTES} "
            "(EIP-3860): found the consortium with fewer, and let them nominate the others"
        )
    places = Places(b"\x01" * 20, b"\x02" * 20, b"\x03" * 20, 0)
    names = {places.consortium: "Consortium", places.runs: "Runs", places.blind: "Blind"}
    for place, code in expected_code(config, places, ticks_per_second=ticks).items():
        name = names[place]
        if len(code) > CODE_MAX_BYTES:
            raise ConfigError(
                f"{name} has {len(code)} bytes of code, and networks take {CODE_MAX_BYTES} (EIP-170): it runs on a "
                "ledger of the members' own, or on a network with a greater `contractSizeLimit`"
            )


async def _create(
    network: ExternalNetwork, identity: Identity, name: str, code: bytes, config: SwarmConfig, timeout_s: float
) -> tuple[Address, int]:
    call = Call(None, code, f"create {name}")
    gas = await _gas(network, identity, call)
    limit = (await network.head()).gas_limit
    if gas > limit:
        raise ConfigError(
            f"{name} with {len(config.members)} founders takes {gas} gas to create, and a block there has {limit}: "
            "found the consortium with fewer, and let them nominate the others"
        )
    receipt: Mapping[str, Any] = await network.endpoint.transact(identity, call, timeout_s=timeout_s)
    return from_hex(receipt["contractAddress"], size=20), int(receipt["blockNumber"], 16)


async def _gas(network: ExternalNetwork, identity: Identity, call: Call) -> int:
    message = {"from": checksum(identity.address), "data": "0x" + call.data.hex()}
    try:
        return int(await network.endpoint.request("eth_estimateGas", message), 16)
    except RejectedError as error:
        raise RejectedError(
            f"{call.what}: the network does not take it: {error} (signed and paid by {checksum(identity.address)})"
        ) from error


async def _founded(network: ExternalNetwork, consortium: Address, last: int) -> int:
    """The block in which the consortium logged its founders: found by halving where its code first is."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        try:
            found = await network.endpoint.request("eth_getCode", checksum(consortium), hex(middle))
        except RejectedError:  # a node that has forgotten old states
            found = "0x"
        low, high = (low, middle) if len(found) > 2 else (middle + 1, high)
    return low


async def _wait_for_depth(network: ExternalNetwork, block: int, confirmations: int, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                if (await network.head()).number >= block + confirmations:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise UnavailableError(
            f"block {block} is not {confirmations} blocks deep after {timeout_s:g} s; does this network make blocks?"
        ) from error
