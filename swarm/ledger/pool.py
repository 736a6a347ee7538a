"""Transactions that wait for a block. Bounded, because anybody among the members can fill it.

A transaction waits until a block includes its nonce; it is never replaced by another one, so whoever holds it can rely
on it. Fees do not order anything here: first come, first served, each sender's in the order of their nonces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from swarm.encoding import Address, Digest, short
from swarm.errors import RejectedError
from swarm.ledger.block import Transaction

SENDER_MAX = 64
"""A member owes at most a handful of calls a round; a program that scripts more can wait for blocks."""
TRANSACTIONS_MAX = 4096
BYTES_MAX = 16 << 20
"""A whole pool fits into one message to a member that comes back."""


class Pool:
    """Transactions by sender and nonce.

    Args:
        nonce: the next nonce of an address, by the ledger's head.
    """

    def __init__(self, nonce: Callable[[Address], int]) -> None:
        self._nonce = nonce
        self._by_hash: dict[Digest, Transaction] = {}
        self._by_sender: dict[Address, dict[int, Transaction]] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, digest: Digest) -> Transaction | None:
        """A waiting transaction by hash."""
        return self._by_hash.get(digest)

    def add(self, transaction: Transaction) -> None:
        """Take a transaction that its sender can pay and that nobody has taken yet.

        Raises:
            RejectedError: its nonce is used, taken or too far ahead, or the pool is full.
        """
        if transaction.hash in self._by_hash:
            return
        mine = self._by_sender.get(transaction.sender, {})
        next_nonce = self._nonce(transaction.sender)
        if transaction.nonce < next_nonce:
            raise RejectedError(f"nonce {transaction.nonce} is used, the next one is {next_nonce}")
        if transaction.nonce >= next_nonce + SENDER_MAX:
            raise RejectedError(f"nonce {transaction.nonce} is too far ahead, the next one is {next_nonce}")
        if transaction.nonce in mine:
            other = mine[transaction.nonce]
            raise RejectedError(
                f"a transaction with nonce {transaction.nonce} waits already ({short(other.hash)}) and is not replaced"
            )
        if len(self._by_hash) >= TRANSACTIONS_MAX or self._size_bytes + len(transaction.raw) > BYTES_MAX:
            raise RejectedError(f"{len(self._by_hash)} transactions wait and fill the pool; send it again later")
        self._by_sender.setdefault(transaction.sender, {})[transaction.nonce] = transaction
        self._by_hash[transaction.hash] = transaction
        self._size_bytes += len(transaction.raw)

    def next_nonce(self, sender: Address) -> int:
        """The first nonce of `sender` that neither the ledger nor the pool has."""
        nonce, mine = self._nonce(sender), self._by_sender.get(sender, {})
        while nonce in mine:
            nonce += 1
        return nonce

    def executable(self) -> Iterator[Transaction]:
        """What a block can take now: first come first, but each sender's in the order of their nonces."""
        ready: dict[Address, int] = {sender: self._nonce(sender) for sender in self._by_sender}
        for transaction in list(self._by_hash.values()):
            sender = transaction.sender
            if sender not in ready or transaction.nonce < ready[sender]:
                continue
            # Its predecessors may have come later: they go before it, or it waits.
            mine, nonce = self._by_sender[sender], ready[sender]
            if any(before not in mine for before in range(nonce, transaction.nonce)):
                continue
            for number in range(nonce, transaction.nonce + 1):
                yield mine[number]
            ready[sender] = transaction.nonce + 1

    def pending(self) -> bool:
        """Whether a block could take something now."""
        return any(self._nonce(sender) in mine for sender, mine in self._by_sender.items())

    def transactions(self) -> list[Transaction]:
        """Everything that waits, in the order of arrival."""
        return list(self._by_hash.values())

    def forget_used(self, admitted: Callable[[Address], bool] | None = None) -> None:
        """After a block: drop what can never be included, and the transactions of senders no longer admitted."""
        for sender, mine in list(self._by_sender.items()):
            next_nonce = self._nonce(sender)
            out = admitted is not None and not admitted(sender)
            for nonce in [nonce for nonce in mine if out or nonce < next_nonce]:
                transaction = mine.pop(nonce)
                del self._by_hash[transaction.hash]
                self._size_bytes -= len(transaction.raw)
            if not mine:
                del self._by_sender[sender]
