"""Waiting transactions: ordered by nonce, bounded, never replaced."""

from __future__ import annotations

import random

import pytest

from swarm.encoding import Address
from swarm.errors import RejectedError
from swarm.ledger import pool as module
from swarm.ledger.block import Transaction
from swarm.ledger.pool import SENDER_MAX, Pool
from tests.ledger import world
from tests.ledger.world import OPERATORS


class Waiting(Pool):
    """A pool over nonces that the test moves."""

    def __init__(self) -> None:
        self.nonces: dict[Address, int] = {}
        super().__init__(lambda address: self.nonces.get(address, 0))


def transaction(sender: int, nonce: int, name: str = "run") -> Transaction:
    return Transaction.read(world.propose(OPERATORS[sender], nonce, name), world.CHAIN)


def order(pool: Pool) -> list[tuple[int, int]]:
    senders = {operator.address: index for index, operator in enumerate(OPERATORS)}
    return [(senders[one.sender], one.nonce) for one in pool.executable()]


def test_first_come_first_served_but_each_senders_in_the_order_of_nonces() -> None:
    pool = Waiting()
    for sender, nonce in [(0, 1), (1, 0), (0, 0), (2, 1), (1, 1)]:
        pool.add(transaction(sender, nonce))
    assert order(pool) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(pool) == 5
    assert pool.next_nonce(OPERATORS[0].address) == 2
    assert pool.next_nonce(OPERATORS[2].address) == 0


def test_a_gap_waits_and_is_filled() -> None:
    pool = Waiting()
    pool.add(transaction(0, 1))
    assert not pool.pending()
    assert order(pool) == []
    pool.add(transaction(0, 0))
    assert pool.pending()
    assert order(pool) == [(0, 0), (0, 1)]


def test_a_waiting_transaction_is_never_replaced() -> None:
    pool = Waiting()
    first = transaction(0, 0)
    pool.add(first)
    pool.add(first)
    with pytest.raises(RejectedError, match="not replaced"):
        pool.add(transaction(0, 0, "another"))
    assert pool.transactions() == [first]


def test_what_a_block_took_is_forgotten() -> None:
    pool = Waiting()
    for nonce in range(3):
        pool.add(transaction(0, nonce))
    pool.add(transaction(1, 0))
    pool.nonces[OPERATORS[0].address] = 2
    pool.forget_used()
    assert order(pool) == [(0, 2), (1, 0)]
    with pytest.raises(RejectedError, match="is used"):
        pool.add(transaction(0, 1))
    pool.forget_used(lambda address: address != OPERATORS[1].address)
    assert order(pool) == [(0, 2)]


def test_one_sender_cannot_fill_the_pool() -> None:
    pool = Waiting()
    pool.add(transaction(0, SENDER_MAX - 1))
    with pytest.raises(RejectedError, match="too far ahead"):
        pool.add(transaction(0, SENDER_MAX))


def test_a_full_pool_takes_nothing_more_until_a_block_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Waiting()
    monkeypatch.setattr(module, "TRANSACTIONS_MAX", 3)
    for sender in range(3):
        pool.add(transaction(sender, 0))
    with pytest.raises(RejectedError, match="fill the pool"):
        pool.add(transaction(3, 0))
    pool.nonces[OPERATORS[0].address] = 1
    pool.forget_used()
    pool.add(transaction(3, 0))
    monkeypatch.setattr(module, "TRANSACTIONS_MAX", 100)
    monkeypatch.setattr(module, "BYTES_MAX", sum(len(one.raw) for one in pool.transactions()) + 10)
    with pytest.raises(RejectedError, match="fill the pool"):
        pool.add(transaction(4, 0))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_executable_is_a_gapless_run_of_nonces_for_each_sender(seed: int) -> None:
    rng = random.Random(seed)
    pool = Waiting()
    made: dict[tuple[int, int], Transaction] = {}
    for _ in range(60):
        if rng.random() < 0.2:
            done = order(pool)
            for sender, nonce in done[: rng.randint(0, len(done))]:
                pool.nonces[OPERATORS[sender].address] = nonce + 1
            pool.forget_used()
        sender, nonce = rng.randint(0, 2), rng.randint(0, 9)
        one = made.setdefault((sender, nonce), transaction(sender, nonce))
        try:
            pool.add(one)
        except RejectedError:
            assert nonce < pool.nonces.get(one.sender, 0), seed
        for index in range(3):
            address = OPERATORS[index].address
            mine = [nonce for sender, nonce in order(pool) if sender == index]
            start = pool.nonces.get(address, 0)
            assert mine == list(range(start, pool.next_nonce(address))), seed
        assert pool.pending() == bool(order(pool)), seed
