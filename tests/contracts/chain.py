"""The contracts on the real execution, one call a block, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, Digest, keccak256
from swarm.errors import RejectedError
from swarm.ledger.abi import Interface, reason
from swarm.ledger.artifact import Artifact, artifact
from swarm.ledger.block import Header, Transaction
from swarm.ledger.evm import Evm
from swarm.ledger.genesis import BLIND, CONSORTIUM, RUNS, TICKS_PER_SECOND

START_MS = 1_700_000_000_000
ABSENCE = 60_000
"""After so many ticks a report of an absence counts no more."""
GAS = 20_000_000


def address(name: str) -> Address:
    """A node's or a person's address, from a name."""
    return keccak256(name.encode())[12:]


def node(index: int) -> Address:
    """The address of member `index`."""
    return address(f"node {index}")


def operator(index: int) -> Address:
    """The address of the person who votes for member `index`."""
    return address(f"operator {index}")


def founder(index: int, *, validator: bool = True) -> tuple[Address, Address, str, str, bytes, bool]:
    """A founder as the constructor takes it."""
    return node(index), operator(index), f"site {index}", f"/ip4/10.0.0.{index}/tcp/4101", bytes(32), validator


class Chain:
    """A ledger of one process: `send` decides a block with one call, `ask` reads."""

    def __init__(
        self,
        founders: list[tuple[Address, Address, str, str, bytes, bool]],
        *,
        consortium: Artifact | None = None,
        runs: Artifact | None = None,
        blind: Artifact | None = None,
        ticks_per_second: int = TICKS_PER_SECOND,
        absence: int = ABSENCE,
    ) -> None:
        compiled = {
            CONSORTIUM: consortium or artifact("Consortium"),
            RUNS: runs or artifact("Runs"),
            BLIND: blind or artifact("Blind"),
        }
        self.interfaces = {to: Interface(one) for to, one in compiled.items()}
        self._database: dict[bytes, bytes] = {}
        self._hashes: dict[int, Digest] = {}
        self.evm = Evm(1, self._database.get, self._hashes.get)
        first = self.evm.deploy(CONSORTIUM, compiled[CONSORTIUM].creation(founders, absence), others={})
        second = self.evm.deploy(
            RUNS, compiled[RUNS].creation(CONSORTIUM, ticks_per_second), others={CONSORTIUM: first}
        )
        others = {CONSORTIUM: first, RUNS: second}
        third = self.evm.deploy(BLIND, compiled[BLIND].creation(CONSORTIUM, RUNS), others=others)
        genesis = self.evm.genesis({**others, BLIND: third}, timestamp_ms=START_MS, gas_limit=400_000_000)
        self._database.update(genesis.changes.writes)
        self.head: Header = genesis.header
        self._hashes[0] = self.head.hash
        self.now_ms = START_MS
        self.events: list[tuple[str, dict[str, Any]]] = []
        """All events so far."""
        self.gas_used = 0
        self._nonces: dict[Address, int] = {}

    def send(self, sender: Address, to: Address, function: str, *arguments: object) -> list[tuple[str, dict[str, Any]]]:
        """The events of a call, or RejectedError with the contract's reason."""
        self.now_ms += 1
        nonce = self._nonces.get(sender, 0)
        data = self.interfaces[to].call(function, *arguments)
        raw = b"\x02" + sender + nonce.to_bytes(8, "big") + data
        transaction = Transaction(raw, keccak256(raw), sender, 0, nonce, GAS, 0, 0, to, 0, data, (), 0, 0, 0)
        parent = self.head
        execution = self.evm.execute(
            parent, [transaction], timestamp_ms=self.now_ms, coinbase=ZERO_ADDRESS, parent_beacon_block_root=ZERO_DIGEST
        )
        receipt = execution.receipts[0]
        if not receipt.succeeded:
            before = replace(parent, timestamp_ms=self.now_ms)
            raise RejectedError(reason(self.evm.call(before, sender=sender, to=to, data=data).output))
        self._nonces[sender] = nonce + 1
        self._database.update(execution.changes.writes)
        self.evm.advance(parent.state_root, execution.changes)
        self.head = execution.header
        self._hashes[self.head.number] = self.head.hash
        self.gas_used = receipt.gas_used
        events = []
        for log in receipt.logs:
            found = self.interfaces[log.address].event(log.topics, log.data)
            assert found is not None
            events.append((found[0], dict(found[1])))
        self.events += events
        return events

    def ask(self, to: Address, function: str, *arguments: object) -> Any:
        """What a view answers."""
        data = self.interfaces[to].call(function, *arguments)
        outcome = self.evm.call(self.head, sender=ZERO_ADDRESS, to=to, data=data)
        if not outcome.succeeded:
            raise RejectedError(reason(outcome.output))
        return self.interfaces[to].result(function, outcome.output)
