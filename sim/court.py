"""The `Runs` contract in the real EVM with nothing around it: calls in, events and states out.

No keys, no votes and no network: many rounds in a second, for campaigns about what the contract and the rules decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from swarm.config import MemberConfig, Policy, SwarmConfig
from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, Address, Digest, keccak256
from swarm.ledger.abi import interface
from swarm.ledger.block import Header, Transaction
from swarm.ledger.evm import Evm
from swarm.ledger.genesis import RUNS, Genesis
from swarm.merkle import digest_of
from swarm.rounds import Phase, RoundState, RunState, Submission

GAS = 20_000_000
CREATED_MS = 1_750_000_000_000


@dataclass(frozen=True)
class Call:
    """A call on `Runs`."""

    sender: Address
    function: str
    arguments: tuple[object, ...]


def node_of(index: int) -> Address:
    """The address of a member's node."""
    return keccak256(b"node %d" % index)[12:]


def operator_of(index: int) -> Address:
    """The address of its operator."""
    return keccak256(b"operator %d" % index)[12:]


@cache
def _genesis(members: int) -> Genesis:
    records = tuple(
        MemberConfig(f"site-{i + 1}", node_of(i), operator_of(i), f"/ip4/10.0.0.{i}/tcp/4101") for i in range(members)
    )
    return Genesis.of(SwarmConfig("campaign", 1337, CREATED_MS, records))


class Court:
    """A ledger of one process with `members` founders, and its runs."""

    def __init__(self, members: int) -> None:
        self.members = tuple(node_of(i) for i in range(members))
        self._runs = interface("Runs")
        self._database: dict[bytes, bytes] = {}
        self._hashes: dict[int, Digest] = {}
        self._evm = Evm(1337, self._database.get, self._hashes.get)
        execution = _genesis(members).execution
        self._database.update(execution.changes.writes)
        self._head: Header = execution.header
        self._hashes[0] = self._head.hash
        self._nonces: dict[Address, int] = {}
        self.now_ms = CREATED_MS

    def decide(self, calls: Sequence[Call]) -> list[tuple[str, Mapping[str, Any]]]:
        """Execute the calls in a block of their own; the events of those that the contract took, in order."""
        self.now_ms += 1
        parent = self._head
        execution = self._evm.execute(
            parent,
            [self._transaction(call) for call in calls],
            timestamp_ms=self.now_ms,
            coinbase=ZERO_ADDRESS,
            parent_beacon_block_root=ZERO_DIGEST,
        )
        self._database.update(execution.changes.writes)
        self._evm.advance(parent.state_root, execution.changes)
        self._head = execution.header
        self._hashes[self._head.number] = self._head.hash
        told = []
        for receipt in execution.receipts:
            for log in receipt.logs:
                found = self._runs.event(log.topics, log.data)
                assert found is not None
                told.append(found)
        return told

    def _transaction(self, call: Call) -> Transaction:
        nonce = self._nonces.get(call.sender, 0)
        self._nonces[call.sender] = nonce + 1
        data = self._runs.call(call.function, *call.arguments)
        raw = b"\x02" + call.sender + nonce.to_bytes(8, "big") + data
        return Transaction(raw, keccak256(raw), call.sender, 0, nonce, GAS, 0, 0, RUNS, 0, data, (), 0, 0, 0)

    def ask(self, function: str, *arguments: object) -> Any:
        """What a view of `Runs` answers."""
        data = self._runs.call(function, *arguments)
        outcome = self._evm.call(self._head, sender=ZERO_ADDRESS, to=RUNS, data=data)
        assert outcome.succeeded, function
        return self._runs.result(function, outcome.output)

    def open_run(self, policy: Policy, genesis: Digest) -> tuple[int, list[tuple[str, Mapping[str, Any]]]]:
        """A run that all operators approve and all members join: its number, and the events."""
        run = self.ask("count") + 1
        seconds = (policy.submit_s, policy.merge_s, policy.attest_s)
        terms = (
            policy.name, digest_of(policy.encode()), genesis, policy.rounds, policy.submissions_min,
            *(round(1000 * value) for value in seconds), policy.weight_max,
        )  # fmt: skip
        told = self.decide([Call(operator_of(0), "propose", terms)])
        told += self.decide([Call(operator_of(i), "approve", (run,)) for i in range(1, len(self.members))])
        told += self.decide([Call(member, "join", (run, True)) for member in self.members])
        return run, told

    def state(self, run: int) -> RoundState:
        """The run's current round."""
        (
            state, round_, phase, view, leader, base, seed, opened, deadline, expected, submissions, published,
            attested, refused, missing, verifiers, verified,
        ) = self.ask("round_state", run)  # fmt: skip
        return RoundState(
            run=run, state=RunState(state), round=round_, phase=Phase(phase), view=view, leader=leader, base=base,
            seed=seed, opened_s=opened / 1000, deadline_s=deadline / 1000, expected=tuple(expected),
            submissions=tuple(Submission(*one) for one in submissions),
            published=published if published != ZERO_DIGEST else None, attested=frozenset(attested),
            refused=frozenset(refused), missing=frozenset(missing), verifiers=verifiers, verified=tuple(verified),
        )  # fmt: skip
