"""One ledger for all members: signed calls, blocks that the validators seal, executed once.

The blocks are what nodes would have on their disks, to the last rule that `swarm audit` checks. What is left out is how
validators come to agree (votes travel nowhere, nobody is late) and that each member executes every block again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eth_account import Account

from sim.scale.prepared import VALIDATORS
from swarm.config import MemberConfig, SwarmConfig
from swarm.consensus import Certificate
from swarm.consensus.messages import commit_digest
from swarm.encoding import sha256, to_hex
from swarm.identity import Identity, checksum
from swarm.ledger.abi import reason
from swarm.ledger.client import Contracts
from swarm.ledger.endpoint import TRANSACTION_GAS, Call
from swarm.ledger.genesis import Genesis
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import Asked, Rpc
from swarm.quorum import quorum

CHAIN_ID = 1337
CREATED_MS = 1_700_000_000_000
BLOCK_MS = 100
"""How long a block takes, by the ledger's clock, which is virtual."""

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """An institution's keys, which anybody can derive: it is simulated."""

    name: str
    node: Identity
    operator: Identity

    @classmethod
    def of(cls, number: int, name: str) -> Member:
        """The member with this number."""
        node, operator = (Identity(sha256(f"simulated {whose} {number}".encode())) for whose in ("node", "operator"))
        return cls(name, node, operator)


@dataclass(frozen=True)
class Refusal:
    """A call that the contract did not take, and why."""

    sender: str
    what: str
    reason: str


class Chain:
    """A ledger in a folder, which goes on where an earlier process left it.

    Raises:
        StorageError: the folder cannot be used, or is another ledger's.
    """

    def __init__(self, folder: Path, members: Sequence[Member]) -> None:
        self.members = members
        config = _config(members)
        (folder / "swarm.toml").write_text(_toml(config))
        self._ledger = Ledger.open(folder / "ledger", Genesis.of(config))
        self._by_address = {member.node.address: member for member in members}
        self.contracts = Contracts(Asked(Rpc(self._ledger, self._ledger.add_transaction)))
        self._loop = asyncio.new_event_loop()
        self.now_ms = max(self._ledger.head.timestamp_ms, CREATED_MS) + BLOCK_MS
        """The virtual clock of everybody."""

    def close(self) -> None:
        """Let go of the folder."""
        self._ledger.close()
        self._loop.close()

    @property
    def now_s(self) -> float:
        """Unix seconds by the virtual clock."""
        return self.now_ms / 1000

    @property
    def height(self) -> int:
        """The number of the last block."""
        return self._ledger.head.number

    @property
    def head(self) -> str:
        """The hash of the last block."""
        return self._ledger.head.hash.hex()

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """What a method of `contracts` that reads answers."""
        return self._loop.run_until_complete(question)

    def decide(self, calls: Sequence[tuple[Identity, Call]]) -> list[Refusal]:
        """Put signed calls into blocks, in this order; those that the contracts did not take."""
        sent = {}
        for identity, call in calls:
            raw = self._signed(identity, call)
            sent[self._ledger.add_transaction(raw)] = identity, call
        refused = []
        while self._ledger.pending():
            payload = self._ledger.build(self.now_ms, self._ledger.proposers()[0])
            assert payload is not None
            self._ledger.append(payload, self._sealed(payload))
            self.now_ms = max(self.now_ms, self._ledger.head.timestamp_ms) + BLOCK_MS
            block = self._ledger.block(self.height)
            for raw, receipt in zip(block.raws, block.receipts, strict=True):
                if not receipt.succeeded:
                    identity, call = sent[self._ledger.decode_transaction(raw).hash]
                    refused.append(Refusal(self._name(identity), call.what, self._why(identity, call)))
        return refused

    def wait_until(self, time_s: float) -> None:
        """Let the virtual clock go on: nobody has anything to do before."""
        self.now_ms = max(self.now_ms, round(1000 * time_s) + 1)

    def _signed(self, identity: Identity, call: Call) -> bytes:
        assert call.to is not None
        terms = {
            "chainId": CHAIN_ID,
            "nonce": self._ledger.next_nonce(identity.address),
            "gas": TRANSACTION_GAS,
            "gasPrice": 0,
            "to": checksum(call.to),
            "value": 0,
            "data": to_hex(call.data),
        }
        return bytes(Account.sign_transaction(terms, identity.secret).raw_transaction)

    def _sealed(self, payload: bytes) -> Certificate:
        """A quorum's seals on the next block."""
        voters = self._ledger.validators()
        sealed = commit_digest(CHAIN_ID, self.height + 1, 0, self._ledger.digest_of(payload))
        return Certificate(0, tuple(self._by_address[one].node.sign(sealed) for one in voters[: quorum(len(voters))]))

    def _name(self, identity: Identity) -> str:
        member = self._by_address.get(identity.address)
        return member.name if member else f"operator {checksum(identity.address)}"

    def _why(self, identity: Identity, call: Call) -> str:
        assert call.to is not None
        outcome = self._ledger.call(to=call.to, data=call.data, sender=identity.address)
        return reason(outcome.output) if not outcome.succeeded else "the round went on in the same block"


def _config(members: Sequence[Member]) -> SwarmConfig:
    return SwarmConfig(
        name="simulated",
        chain_id=CHAIN_ID,
        created_ms=CREATED_MS,
        members=tuple(
            MemberConfig(
                name=f"member-{number + 1}",
                address=member.node.address,
                operator=member.operator.address,
                endpoint=f"/ip4/127.0.0.1/tcp/{4101 + number}/p2p/{member.node.peer_id}",
                validator=number < VALIDATORS,
            )
            for number, member in enumerate(members)
        ),
    )


def _toml(config: SwarmConfig) -> str:
    """The file from which `swarm audit` derives the same genesis."""
    tables = [
        f'[consortium]\nname = "{config.name}"\nchain_id = {config.chain_id}\ncreated_ms = {config.created_ms}\n',
        *(
            f'[[members]]\nname = "{member.name}"\naddress = "{checksum(member.address)}"\n'
            f'operator = "{checksum(member.operator)}"\nendpoint = "{member.endpoint}"\n'
            f"validator = {str(member.validator).lower()}\n"
            for member in config.members
        ),
    ]
    return "\n".join(tables)
