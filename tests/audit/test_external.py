"""An audit over somebody else's chain finds a node that hides, changes or invents what the contracts logged."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from swarm.audit.external import hear
from swarm.audit.replay import Difference
from swarm.config import ExternalConfig, Policy, SwarmConfig
from swarm.encoding import from_hex, keccak256
from swarm.errors import PeerError, SwarmError
from swarm.ledger.connection import Connection
from swarm.ledger.deploy import deploy
from swarm.ledger.external import ExternalNetwork
from tests.ledger import world
from tests.ledger.anvil import CHAIN, Anvil
from tests.ledger.world import BY_ADDRESS, MEMBERS, OPERATORS

PATIENCE_S = 30.0
POLICY = Policy(name="hearts", rounds=2, sync_interval=1, submit_s=60.0, merge_s=60.0, attest_s=60.0)


class Liar(Connection):
    """Passes answers through, changed by `lie`."""

    lie: Callable[[str, Any], Any] = staticmethod(lambda method, result: result)

    async def make_request(self, method: Any, params: Any) -> Any:
        answer: Any = await super().make_request(method, params)
        return {**answer, "result": self.lie(method, answer["result"])} if "result" in answer else answer


@pytest.fixture
async def told() -> AsyncIterator[tuple[Liar, SwarmConfig]]:
    """A chain with one closed round, and the link to it."""
    with Anvil(base_fee=0) as anvil:
        link = Liar(anvil.url)
        network = ExternalNetwork(link)
        config = dataclasses.replace(world.config(chain_id=CHAIN), external=ExternalConfig(anvil.url))
        places = await deploy(network, config, OPERATORS[0], timeout_s=PATIENCE_S)
        contracts = network.contracts(places)

        async def send(who: Any, call: Any) -> None:
            await contracts.transact(who, call, timeout_s=PATIENCE_S)

        await send(OPERATORS[0], contracts.propose(POLICY, keccak256(b"genesis")))
        for operator in OPERATORS[1:4]:
            await send(operator, contracts.approve(1))
        for member in MEMBERS[:4]:
            await send(member, contracts.join(1, True))
        for place, member in enumerate(MEMBERS[:4]):
            await send(member, contracts.submit(1, 0, keccak256(bytes([place])), 7, {"auc": 0.5}))
        state = await contracts.round_state(1)
        await send(BY_ADDRESS[state.leader], contracts.publish(1, 0, state.view, keccak256(b"merged")))
        for member in MEMBERS[:4]:
            if member.address != state.leader and await contracts.closed_round(1, 0) is None:
                await send(member, contracts.attest(1, 0, state.view, keccak256(b"merged")))
        external = ExternalConfig(anvil.url, places.consortium, places.runs, places.blind, places.block)
        yield link, dataclasses.replace(config, external=external)
        await link.disconnect()


async def test_what_is_told_rightly_is_told_again(told: tuple[Liar, SwarmConfig]) -> None:
    link, config = told
    heard, runs = await hear(ExternalNetwork(link), config, lambda done, of: None)
    assert [len(run.closed) for run in runs.values()] == [1]
    assert heard.blocks == heard.transactions > 13


def hidden(method: str, result: Any) -> Any:
    """The last submission is kept back, in logs and receipts alike."""
    return result[:-6] if method == "eth_getLogs" and len(result) > 6 else result


def cut(method: str, result: Any) -> Any:
    """Everything after the proposal is kept back: whole blocks are missing."""
    return result[:6] if method == "eth_getLogs" else result


def changed(method: str, result: Any) -> Any:
    """A digest in a log is another one."""
    if method != "eth_getLogs" or len(result) <= 6:
        return result
    return [{**log, "data": _flipped(log["data"])} if at == len(result) - 3 else log for at, log in enumerate(result)]


def changed_everywhere(method: str, result: Any) -> Any:
    """The same in the receipts: they do not hash to the header then."""
    if method == "eth_getLogs":
        return changed(method, result)
    if method != "eth_getBlockReceipts" or not result:
        return result
    return [{**one, "logs": [{**log, "data": _flipped(log["data"])} for log in one["logs"]]} for one in result]


def another_header(method: str, result: Any) -> Any:
    """The header names other receipts: it does not hash to the block's hash then."""
    if method == "eth_getBlockByNumber" and result and result["transactions"]:
        return {**result, "receiptsRoot": "0x" + "12" * 32}
    return result


def receipts_gone(method: str, result: Any) -> Any:
    return [] if method == "eth_getBlockReceipts" else result


def _flipped(data: str) -> str:
    raw = bytearray(from_hex(data))
    if raw:
        raw[-1] ^= 1
    return "0x" + raw.hex()


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (hidden, "other logs of the contracts|keeps some back|is not of this round|was the leader"),
        (cut, "keeps some back"),
        (changed, "its receipts hold other logs of the contracts than the node tells of"),
        (changed_everywhere, "its receipts hash to"),
        (another_header, "its header does not hash to"),
        (receipts_gone, "does not give all its receipts"),
    ],
)
async def test_a_lie_is_found(told: tuple[Liar, SwarmConfig], lie: Callable[[str, Any], Any], found: str) -> None:
    link, config = told
    link.lie = lie
    with pytest.raises((Difference, SwarmError), match=found) as raised:
        await hear(ExternalNetwork(link), config, lambda done, of: None)
    assert isinstance(raised.value, (Difference, PeerError))
