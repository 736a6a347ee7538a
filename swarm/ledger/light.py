"""Follows a ledger by its headers and certificates alone: nothing is executed, and no state is kept but who may vote.

What this proves: each block was sealed by a quorum of the validators of its time, beginning with the founders, and is
the one after the block before. Who votes next stands in the `Consortium` contract's events; they are proven by the
header's receipts root, and the header's bloom filter says in which blocks there are any. What it does not prove: that
the transactions were executed rightly (the quorum that sealed the state root says so; `swarm audit` executes them
again), and that there is no later block than the last one shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from swarm.config import SwarmConfig
from swarm.consensus import Certificate, check_certificate
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError, RejectedError
from swarm.identity import recover as recover_secp256k1
from swarm.ledger.abi import interface
from swarm.ledger.block import Header, Log, Receipt, Transaction, bloom_of, check_follows
from swarm.ledger.genesis import CONSORTIUM
from swarm.ledger.recovery import Electorate, Recovery, is_recovery
from swarm.ledger.trie import ordered_root

_NO_VOTER_CHANGES = frozenset(
    {"Nominated", "RemovalProposed", "ValidatorProposed", "Approved", "EndpointChanged", "ReportedAbsent"}
)


@dataclass(frozen=True)
class Sealed:
    """A decided block as a light follower takes it."""

    header: Header
    certificate: Certificate
    receipts: tuple[Receipt, ...] = ()
    """All of the block, where `tells_of_members`."""
    transactions: tuple[bytes, ...] = ()
    """All of the block, raw, where `tells_of_recovery`."""


def tells_of_members(header: Header) -> bool:
    """Whether a block may change who votes, so that its receipts are needed; a filter errs on this side only."""
    return _holds(header, CONSORTIUM)


def tells_of_recovery(header: Header) -> bool:
    """Whether a block may record a recovery, so that its transactions are needed."""
    return _holds(header, CONSORTIUM) and _holds(header, interface("Consortium").topics["Recovered"])


def _holds(header: Header, part: bytes) -> bool:
    bits = _bits(part)
    return int.from_bytes(header.bloom, "big") & bits == bits


@lru_cache(maxsize=4)
def _bits(part: bytes) -> int:
    return int.from_bytes(bloom_of([Log(part, (), b"")]), "big")


@dataclass(frozen=True)
class Seat:
    """A member as far as voting goes."""

    operator: Address
    validator: bool
    standing: bool = True


@dataclass(frozen=True)
class Roll:
    """The members, told again from the `Consortium` contract's events."""

    seats: Mapping[Address, Seat]

    @classmethod
    def of(cls, config: SwarmConfig) -> Roll:
        """The founders."""
        return cls({one.address: Seat(one.operator, one.validator) for one in config.members})

    @property
    def validators(self) -> tuple[Address, ...]:
        """Who decides the next block, sorted by address."""
        return tuple(sorted(member for member, seat in self.seats.items() if seat.validator and seat.standing))

    @property
    def operators(self) -> dict[Address, Address]:
        """Who signs a recovery, and the member that each stands for."""
        return {seat.operator: member for member, seat in self.seats.items()}

    def after(self, logs: Sequence[Log]) -> Roll:
        """The members after these events of the contract.

        Raises:
            ValueError: an event that the contract does not have, or about somebody who is no member.
        """
        seats = dict(self.seats)
        for log in logs:
            told = interface("Consortium").event(log.topics, log.data)
            if told is None:
                raise ValueError("the Consortium contract has no such event; another version of this program is needed")
            _tell(seats, *told)
        return Roll(seats)


def _tell(seats: dict[Address, Seat], name: str, values: Mapping[str, Any]) -> None:
    if name in _NO_VOTER_CHANGES:
        return
    if name == "Recovered":
        named = frozenset(values["validators"])
        seats.update({one: Seat(seat.operator, one in named) for one, seat in seats.items()})
        return
    member = values["old" if name == "KeyRotated" else "member"]
    if (member in seats) == (name == "Admitted"):
        raise ValueError(f"{name} of {short(member)}, which is {'a' if member in seats else 'no'} member")
    match name:
        case "Admitted":
            seats[member] = Seat(values["operator"], values["validator"])
        case "Removed":
            del seats[member]
        case "KeyRotated":
            seats[values["member"]] = seats.pop(member)
        case "ValidatorChanged":
            seats[member] = replace(seats[member], validator=values["on"])
        case "StoodDown" | "PutOnStandby":
            seats[member] = replace(seats[member], standing=False)
        case "Resumed":
            seats[member] = replace(seats[member], standing=True)
        case _:
            raise ValueError(f"nobody has written down here what {name} means for who votes")


class LightFollower:
    """The last block that is known to be decided, and who decides the next.

    Args:
        genesis: block 0, which follows from `swarm.toml`.
        roll: its members.
    """

    def __init__(
        self,
        genesis: Header,
        roll: Roll,
        *,
        chain_id: int,
        recover: Callable[[Digest, bytes], Address] = recover_secp256k1,
    ) -> None:
        self.head = genesis
        self.roll = roll
        self.validators = roll.validators
        self.changes = 0
        """Blocks after which others voted than before."""
        self.recoveries = 0
        self._genesis = genesis.hash
        self.chain_id = chain_id
        self._recover = recover

    def follow(self, block: Sealed) -> None:
        """Take the next block.

        Raises:
            PeerError: it does not follow, is not certified, or what it shows is not what its header commits to; the
                follower stays where it was.
        """
        header = block.header
        try:
            check_follows(header, self.head)
            recovery = self._recovery(block)
            electorate = Electorate(self.validators, self.chain_id) if recovery is None else recovery.electorate
            if header.coinbase not in electorate.validators:
                raise ValueError(f"it is proposed by {short(header.coinbase)}, which is no validator")
            check_certificate(
                block.certificate,
                chain_id=electorate.vote_chain,
                height=header.number,
                digest=header.hash,
                validators=electorate.validators,
                recover=self._recover,
            )
            roll = self._told(block)
        except (ValueError, RejectedError) as error:
            raise PeerError(f"block {header.number} ({short(header.hash)}): {error}", evidence=block) from error
        validators = roll.validators
        self.changes += validators != self.validators
        self.recoveries += recovery is not None
        self.head, self.roll, self.validators = header, roll, validators

    def _recovery(self, block: Sealed) -> Recovery | None:
        """The recovery that gives this block its validators, signed by two thirds of the operators."""
        if not tells_of_recovery(block.header):
            return None
        if not block.transactions or ordered_root(block.transactions) != block.header.transactions_root:
            raise ValueError("it may record a recovery, and these are not the transactions that its header commits to")
        transaction = Transaction.read(block.transactions[0], self.chain_id)
        if not is_recovery(transaction):
            return None
        recovery = Recovery.of(transaction, self.chain_id)
        recovery.check(
            chain_id=self.chain_id,
            genesis=self._genesis,
            height=self.head.number,
            head=self.head.hash,
            operators=self.roll.operators,
            recover=self._recover,
        )
        return recovery

    def _told(self, block: Sealed) -> Roll:
        if not tells_of_members(block.header):
            return self.roll
        if ordered_root([receipt.encode() for receipt in block.receipts]) != block.header.receipts_root:
            raise ValueError("it may change who votes, and these are not the receipts that its header commits to")
        return self.roll.after([log for one in block.receipts for log in one.logs if log.address == CONSORTIUM])
