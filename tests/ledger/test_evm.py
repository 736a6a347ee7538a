"""Our blocks against py-evm's own chain, database and mining path, which share nothing with ours but the interpreter.

Random contracts do what contracts of ours never do (create and destroy each other, revert half-way, move money), so
that the journal under the interpreter is right for everything and not for two contracts.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import rlp
from eth.chains.base import Chain
from eth.db.atomic import AtomicDB
from eth.vm.forks.cancun import CancunVM
from eth.vm.forks.cancun.blocks import CancunBlock
from eth_utils.exceptions import ValidationError

from swarm.encoding import ZERO_DIGEST, Address, Digest, keccak256
from swarm.errors import RejectedError
from swarm.identity import Identity
from swarm.ledger.block import EMPTY_LIST_HASH, EMPTY_TRIE_ROOT, Header, Transaction
from swarm.ledger.evm import TRANSACTION_GAS_MAX, Allocation, Evm, Execution, contract_address
from swarm.ledger.state import State
from tests.ledger import world

GAS_LIMIT = 400_000_000
SEEDS = int(os.environ.get("EVM_SEEDS", "20"))
"""More seeds cost a tenth of a second each."""
CONTRACTS = tuple(bytes([0xC0 + i]) * 20 for i in range(4))
SENDERS = tuple(Identity(bytes([7, i + 1]) * 16) for i in range(3))
RICH = 10**18
BEACON_ROOTS = bytes.fromhex("000f3df6d732807ef1319fb7b8bb8522d0beac02")
BEACON_CODE = bytes.fromhex(
    "3373fffffffffffffffffffffffffffffffffffffffe14604d57602036146024575f5ffd5b5f35801560495762001fff810690815414603c57"
    "5f5ffd5b62001fff01545f5260205ff35b5f5ffd5b62001fff42064281555f359062001fff015500"
)


class Bench:
    """An Evm over a dictionary, and py-evm's chain with the same genesis."""

    def __init__(self, allocations: dict[Address, Allocation]) -> None:
        self.allocations = allocations
        self.blocks: list[bytes] = []
        self.database: dict[Digest, bytes] = {}
        self.hashes: dict[int, Digest] = {}
        self.evm = Evm(world.CHAIN, self.database.get, self.hashes.get)
        genesis = self.evm.genesis(allocations, timestamp_ms=world.CREATED_MS, gas_limit=GAS_LIMIT)
        self.header = self._keep(genesis, EMPTY_TRIE_ROOT)
        chain = Chain.configure("Oracle", vm_configuration=((0, CancunVM),), chain_id=world.CHAIN)
        self.oracle = chain.from_genesis(
            AtomicDB(),
            {
                "difficulty": 0, "gas_limit": GAS_LIMIT, "timestamp": world.CREATED_MS, "mix_hash": ZERO_DIGEST,
                "nonce": bytes(8), "base_fee_per_gas": 0, "extra_data": b"", "parent_beacon_block_root": ZERO_DIGEST,
            },
            {
                address: {"balance": one.balance, "nonce": one.nonce, "code": one.code, "storage": dict(one.storage)}
                for address, one in allocations.items()
            },
        )  # fmt: skip
        assert self.oracle.get_canonical_head().hash == genesis.header.hash

    def _keep(self, execution: Execution, parent: Digest) -> Header:
        self.database.update(execution.changes.writes)
        self.evm.advance(parent, execution.changes)
        self.hashes[execution.header.number] = execution.header.hash
        self.blocks.append(execution.block)
        return execution.header

    def step(self, raws: list[bytes], *, root: Digest = bytes(32)) -> Execution:
        """Execute a block here, and let py-evm import it with all of its checks."""
        transactions = [Transaction.read(raw, world.CHAIN) for raw in raws]
        execution = self.evm.execute(
            self.header, transactions, timestamp_ms=self.header.timestamp_ms + 7, coinbase=SENDERS[0].address,
            parent_beacon_block_root=root,
        )  # fmt: skip
        self.oracle.import_block(rlp.decode(execution.block, sedes=CancunBlock))
        self.header = self._keep(execution, self.header.state_root)
        return execution


def push(value: int) -> bytes:
    data = value.to_bytes(max((value.bit_length() + 7) // 8, 1), "big")
    return bytes([0x5F + len(data)]) + data


def random_code(rng: random.Random, depth: int = 0) -> bytes:
    """A program of a few statements; it may fail half-way, as real ones do."""
    code = b""
    for _ in range(rng.randint(2, 9)):
        code += rng.choice(_STATEMENTS)(rng, depth)
    return code + rng.choice([b"\x00", b"\x00", push(0) + push(0) + b"\xf3", push(32) + push(0) + b"\xfd", b"\xfe"])


def _store(rng: random.Random, _: int) -> bytes:
    return push(rng.choice([0, 0, 1, 2, 1 << 255])) + push(rng.randint(0, 3)) + b"\x55"


def _add(rng: random.Random, _: int) -> bytes:
    slot = push(rng.randint(0, 3))
    return slot + b"\x54" + push(rng.randint(1, 9)) + b"\x01" + slot + b"\x55"


def _transient(rng: random.Random, _: int) -> bytes:
    slot = push(rng.randint(0, 1))
    return slot + b"\x5c" + push(1) + b"\x01" + slot + b"\x5d" + slot + b"\x5c" + push(rng.randint(0, 3)) + b"\x55"


def _log(rng: random.Random, _: int) -> bytes:
    topics = rng.randint(0, 4)
    return b"".join(push(rng.getrandbits(64)) for _ in range(topics)) + push(24) + push(8) + bytes([0xA0 + topics])


def _look(rng: random.Random, _: int) -> bytes:
    who = push(int.from_bytes(rng.choice([*CONTRACTS, SENDERS[0].address, b"\x05" * 20]), "big"))
    return who + rng.choice([b"\x31", b"\x3b", b"\x3f"]) + push(rng.randint(0, 3)) + b"\x55"


def _ask(rng: random.Random, _: int) -> bytes:
    """Block values: hash of an ancestor, time, number, gas left, base fee, coinbase."""
    what = rng.choice(
        [push(rng.randint(0, 5)) + b"\x40", b"\x42", b"\x43", b"\x5a", b"\x48", b"\x41", b"\x44", b"\x4a"]
    )
    return what + push(rng.randint(0, 3)) + b"\x55"


def _call(rng: random.Random, _: int) -> bytes:
    to = push(int.from_bytes(rng.choice([*CONTRACTS, b"\x02".rjust(20, b"\0"), b"\x06" * 20]), "big"))
    kind = rng.choice([0xF1, 0xF2, 0xF4, 0xFA])
    value = push(rng.choice([0, 0, 1, 10**19])) if kind in (0xF1, 0xF2) else b""
    gas = push(rng.choice([100, 30_000, 400_000]))
    return push(32) + push(0) + push(8) + push(0) + value + to + gas + bytes([kind]) + push(rng.randint(0, 3)) + b"\x55"


def _create(rng: random.Random, depth: int) -> bytes:
    if depth > 1:
        return b""
    init = random_code(rng, depth + 1)[:200]
    code = b"".join(push(byte) + push(offset) + b"\x53" for offset, byte in enumerate(init))
    salt, kind = (push(rng.randint(0, 1)), b"\xf5") if rng.random() < 0.5 else (b"", b"\xf0")
    return code + salt + push(len(init)) + push(0) + push(rng.choice([0, 0, 3])) + kind + push(2) + b"\x55"


def _destroy(rng: random.Random, _: int) -> bytes:
    if rng.random() < 0.5:
        return b""
    return push(int.from_bytes(rng.choice([*CONTRACTS, b"\x08" * 20]), "big")) + b"\xff"


_STATEMENTS: list[Callable[[random.Random, int], bytes]] = [
    _store, _store, _add, _transient, _log, _look, _ask, _call, _call, _create, _destroy,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
def test_py_evms_own_chain_accepts_every_block(seed: int) -> None:
    random_chain(seed)


def random_chain(seed: int) -> Bench:
    """Five blocks of random transactions between random contracts, each imported by py-evm."""
    rng = random.Random(seed)
    allocations = {
        address: Allocation(random_code(rng), {slot: rng.randint(1, 9) for slot in range(rng.randint(0, 4))}, 1, 100)
        for address in CONTRACTS
    }
    allocations |= {sender.address: Allocation(b"", {}, 0, RICH) for sender in SENDERS[: rng.randint(1, 3)]}
    if seed % 2:
        allocations[BEACON_ROOTS] = Allocation(BEACON_CODE, {}, 1, 0)
    bench = Bench(allocations)
    nonces = dict.fromkeys(SENDERS, 0)
    for number in range(5):
        raws = []
        for _ in range(rng.randint(1, 5)):
            sender = rng.choice([one for one in SENDERS if one.address in allocations])
            to = rng.choice([*CONTRACTS, *CONTRACTS, SENDERS[0].address, None])
            data = random_code(rng) if to is None else rng.randbytes(rng.randint(0, 40))
            value, price = rng.choice([0, 0, 5]), rng.choice([0, 0, 3])
            gas = rng.choice([60_000 if to else 120_000, 200_000, 1_000_000])
            fields = {"gas": gas, "kind": rng.randint(0, 2), "price": price}
            raws.append(world.signed(sender, nonces[sender], to, data, value=value, **fields))
            nonces[sender] += 1
        bench.step(raws, root=keccak256(b"%d %d" % (seed, number)))
    return bench


def _all_seeds() -> None:
    for seed in range(SEEDS):
        random_chain(seed)


@pytest.mark.parametrize(
    "broken",
    [
        lambda patch: patch.setattr(State, "discard", lambda self, checkpoint: None),
        lambda patch: patch.setattr(State, "lock_changes", lambda self: None),
        lambda patch: patch.setattr(State, "delete_account", lambda self, address: None),
        lambda patch: patch.setattr("swarm.ledger.evm._REFUND_SHARE", 2),
    ],
    ids=["a revert undoes nothing", "warm slots stay warm", "nothing is destroyed", "refunds are London's no more"],
)
def test_a_planted_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    broken(monkeypatch)
    with pytest.raises((ValidationError, AssertionError)):
        _all_seeds()


def test_one_block_is_the_same_bytes_however_it_is_reached() -> None:
    """From warm caches, and from the database alone."""
    bench = Bench({CONTRACTS[0]: Allocation(_add(random.Random(1), 0) + b"\x00", {})})
    for nonce in range(3):
        bench.step([world.signed(SENDERS[0], nonce, CONTRACTS[0], b"")])
    transaction = Transaction.read(world.signed(SENDERS[0], 3, CONTRACTS[0], b""), world.CHAIN)

    def once(evm: Evm) -> bytes:
        return evm.execute(
            bench.header, [transaction], timestamp_ms=bench.header.timestamp_ms + 1, coinbase=SENDERS[1].address,
            parent_beacon_block_root=bytes(32),
        ).block  # fmt: skip

    cold = Evm(world.CHAIN, bench.database.get, bench.hashes.get)
    assert once(bench.evm) == once(cold) == once(bench.evm)


def test_a_block_is_executed_without_trace_until_it_is_decided() -> None:
    bench = Bench({CONTRACTS[0]: Allocation(_add(random.Random(1), 0) + b"\x00", {})})
    before = dict(bench.database)
    transaction = Transaction.read(world.signed(SENDERS[0], 0, CONTRACTS[0], b""), world.CHAIN)
    first, second = (
        bench.evm.execute(
            bench.header, [transaction], timestamp_ms=bench.header.timestamp_ms + 1, coinbase=SENDERS[0].address,
            parent_beacon_block_root=bytes(32),
        )
        for _ in range(2)
    )  # fmt: skip
    assert first == second
    assert bench.database == before
    assert bench.evm.call(bench.header, sender=SENDERS[0].address, to=CONTRACTS[0], data=b"").succeeded


def test_the_base_fee_stays_zero_because_a_block_stops_at_half_its_gas() -> None:
    # An endless loop burns what it gets: ten times 20 million is all that fits.
    bench = Bench({CONTRACTS[0]: Allocation(b"\x00", {}), CONTRACTS[1]: Allocation(b"\xfe", {})})
    raws = [world.signed(SENDERS[0], n, CONTRACTS[1], b"", gas=TRANSACTION_GAS_MAX) for n in range(10)]
    execution = bench.step(raws)
    assert execution.header.gas_used == GAS_LIMIT // 2
    assert not any(receipt.succeeded for receipt in execution.receipts)
    with pytest.raises(RejectedError, match="gas left"):
        bench.step([world.signed(SENDERS[1], n, CONTRACTS[1], b"", gas=TRANSACTION_GAS_MAX) for n in range(11)])
    # And the next block may follow with base fee zero still.
    bench.step([world.signed(SENDERS[0], 10, CONTRACTS[0], b"")])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"nonce": 1}, "next nonce is 0"),
        ({"gas": 20_000}, "gas limit"),
        ({"gas": TRANSACTION_GAS_MAX + 1}, "gas limit"),
        ({"price": 1}, "cannot pay"),
        ({"value": 1}, "cannot pay"),
    ],
)
def test_a_transaction_that_no_block_can_have_is_refused_and_when_building_left_out(
    fields: dict[str, int], reason: str
) -> None:
    bench = Bench({CONTRACTS[0]: Allocation(b"\x00", {})})
    nonce = fields.pop("nonce", 0)
    bad = Transaction.read(world.signed(SENDERS[0], nonce, CONTRACTS[0], b"", **fields), world.CHAIN)
    good = Transaction.read(world.signed(SENDERS[1], 0, CONTRACTS[0], b""), world.CHAIN)

    def made(transactions: list[Transaction], *, leave_out: bool = False) -> Execution:
        return bench.evm.execute(
            bench.header, transactions, timestamp_ms=bench.header.timestamp_ms + 1, coinbase=SENDERS[0].address,
            parent_beacon_block_root=bytes(32), leave_out=leave_out,
        )  # fmt: skip

    with pytest.raises(RejectedError, match=reason):
        made([good, bad])
    left = made([bad, good], leave_out=True)
    assert left.transactions == (good,)
    assert left == made([good])


def test_a_constructor_runs_at_the_address_it_will_have() -> None:
    # The constructor stores its own address and leaves one byte of code.
    creation = bytes.fromhex("305f55" + "60fe5f53" + "60015ff3")
    evm = Evm(world.CHAIN, lambda _: None, lambda _: None)
    made = evm.deploy(CONTRACTS[2], creation, others={})
    assert made == Allocation(b"\xfe", {0: int.from_bytes(CONTRACTS[2], "big")}, 1, 0)
    with pytest.raises(ValueError, match="constructor"):
        evm.deploy(CONTRACTS[2], b"\xfe", others={})


def test_a_created_contract_has_the_address_that_its_creator_and_nonce_give() -> None:
    bench = Bench({SENDERS[0].address: Allocation(b"", {}, 5, 0)})
    bench.step([world.signed(SENDERS[0], 5, None, bytes.fromhex("60fe5f5360015ff3"))])
    state = bench.evm.at(bench.header.state_root)
    assert state.code(state.account(contract_address(SENDERS[0].address, 5)).code_hash) == b"\xfe"


def test_an_uncles_hash_in_a_header_is_that_of_no_uncles() -> None:
    assert keccak256(rlp.encode([])) == EMPTY_LIST_HASH
