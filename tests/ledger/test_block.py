"""Bytes of blocks and transactions: one form each, and a stranger's bytes are a ValueError at worst."""

from __future__ import annotations

import random
import time

import pytest
import rlp
from eth.vm.forks.cancun.blocks import CancunBlock
from eth.vm.forks.cancun.transactions import CancunTransactionBuilder
from eth_bloom.bloom import BloomFilter
from hypothesis import given
from hypothesis import strategies as st

from swarm.encoding import keccak256
from swarm.ledger.block import (
    Log,
    Receipt,
    Transaction,
    bloom_of,
    decode_block,
    decode_payload,
    decode_receipts,
    encode_block,
    encode_payload,
    encode_receipts,
    payload_digest,
)
from tests.ledger import world
from tests.ledger.world import OPERATORS

BLOCK = world.genesis().execution.block


def test_a_block_read_by_py_evm_is_the_one_that_was_written() -> None:
    theirs = rlp.decode(BLOCK, sedes=CancunBlock)
    header, raws = decode_block(BLOCK)
    assert theirs.header.hash == header.hash == world.genesis().hash
    assert theirs.header.timestamp == header.timestamp_ms == world.CREATED_MS
    assert raws == ()
    assert encode_block(header, raws) == BLOCK


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_transaction_is_read_as_py_evm_reads_it(kind: int, seed: int) -> None:
    rng = random.Random(seed)
    sender, price = rng.choice(OPERATORS), rng.getrandbits(40)
    to = None if seed == 0 else rng.randbytes(20)
    data, value = rng.randbytes(rng.randint(0, 90)), rng.getrandbits(70)
    raw = world.signed(sender, rng.getrandbits(30), to, data, kind=kind, price=price, value=value)
    ours, theirs = Transaction.read(raw, world.CHAIN), CancunTransactionBuilder.decode(raw)
    assert ours.hash == theirs.hash
    assert ours.sender == theirs.sender == sender.address
    assert (ours.nonce, ours.gas, ours.value, ours.data) == (theirs.nonce, theirs.gas, theirs.value, theirs.data)
    assert (ours.max_fee, ours.max_priority_fee) == (theirs.max_fee_per_gas, theirs.max_priority_fee_per_gas)
    assert (ours.to or b"") == theirs.to
    assert (ours.y_parity, ours.r, ours.s) == (theirs.y_parity, theirs.r, theirs.s)
    assert [(a, tuple(s)) for a, s in ours.access_list] == [(a, tuple(s)) for a, s in theirs.access_list]


def test_the_second_form_of_a_signature_is_refused() -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    raw = world.propose(OPERATORS[0], 0)
    parts = rlp.decode(raw[1:])
    flipped = (order - int.from_bytes(parts[-1], "big")).to_bytes(32, "big")
    parity = b"" if parts[-3] == b"\x01" else b"\x01"
    other = b"\x02" + rlp.encode([*parts[:-3], parity, parts[-2], flipped])
    with pytest.raises(ValueError, match="EIP-2"):
        Transaction.read(other, world.CHAIN)


def receipts(rng: random.Random) -> tuple[Receipt, ...]:
    return tuple(
        Receipt(
            rng.randint(0, 2),
            rng.random() < 0.5,
            rng.getrandbits(30),
            rng.getrandbits(31),
            tuple(
                Log(rng.randbytes(20), tuple(rng.randbytes(32) for _ in range(rng.randint(0, 4))), rng.randbytes(50))
                for _ in range(rng.randint(0, 3))
            ),
            rng.randbytes(rng.randint(0, 40)),
        )
        for _ in range(rng.randint(0, 5))
    )


@pytest.mark.parametrize("seed", range(10))
def test_receipts_come_back_as_they_were_written(seed: int) -> None:
    made = receipts(random.Random(seed))
    assert decode_receipts(encode_receipts(made)) == made
    for receipt in made:
        bloom = BloomFilter()
        bloom.extend(part for log in receipt.logs for part in (log.address, *log.topics))
        assert int.from_bytes(bloom_of(receipt.logs), "big") == int(bloom)


def test_a_payloads_digest_is_the_blocks_hash_and_commits_to_the_certificate() -> None:
    header, _ = decode_block(BLOCK)
    parts = rlp.decode(BLOCK)
    parts[0][19] = keccak256(b"certificate")
    block = rlp.encode(parts)
    payload = encode_payload(block, b"certificate")
    assert payload_digest(payload) == decode_block(block)[0].hash != header.hash
    with pytest.raises(ValueError, match="another certificate"):
        payload_digest(encode_payload(block, b"other"))


@given(st.binary(max_size=300))
def test_random_bytes_are_a_value_error_at_worst(data: bytes) -> None:
    for read in (decode_block, decode_payload, payload_digest, decode_receipts, _transaction):
        _survives(read, data)


@given(st.binary(max_size=400))
def test_one_payload_has_one_encoding(data: bytes) -> None:
    for payload in (data, rlp.codec.length_prefix(len(data), 0xC0) + data):
        try:
            block, certificate = decode_payload(payload)
        except ValueError:
            continue
        assert encode_payload(block, certificate) == payload


@given(st.binary(max_size=120), st.integers(0, 3))
def test_one_block_has_one_encoding(body: bytes, part: int) -> None:
    """Whatever stands in a block's parts is read only from the bytes that would be written for it."""
    parts = rlp.decode(BLOCK)
    encoded = [rlp.encode(parts[0]), b"\xc0", b"\xc0", b"\xc0"]
    encoded[part] = body
    inner = b"".join(encoded)
    data = rlp.codec.length_prefix(len(inner), 0xC0) + inner
    try:
        header, raws = decode_block(data)
    except ValueError:
        return
    assert encode_block(header, raws) == data


def test_a_block_of_a_million_nothings_is_refused_at_once() -> None:
    parts = rlp.decode(BLOCK)
    nothing = rlp.encode([parts[0], [b""] * 1_000_000, [], []])
    start = time.perf_counter()
    with pytest.raises(ValueError, match="more than"):
        decode_block(nothing)
    assert time.perf_counter() - start < 0.5


@given(st.integers(0, len(BLOCK) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_block_is_refused_or_read_as_what_it_says(position: int, junk: bytes) -> None:
    damaged = BLOCK[:position] + junk + BLOCK[position + len(junk) :]
    try:
        header, raws = decode_block(damaged)
    except ValueError:
        return
    assert encode_block(header, raws) == damaged


@given(st.integers(0, 250), st.binary(min_size=1, max_size=4), st.integers(0, 2))
def test_a_damaged_transaction_is_refused_or_read_as_what_it_says(position: int, junk: bytes, kind: int) -> None:
    raw = RAW[kind]
    damaged = raw[:position] + junk + raw[position + len(junk) :]
    try:
        read = Transaction.read(damaged, world.CHAIN)
    except ValueError:
        return
    assert read.raw == damaged
    assert read.hash == keccak256(damaged)


RAW = [world.propose(OPERATORS[0], 0, kind=kind) for kind in range(3)]


def _transaction(data: bytes) -> object:
    return Transaction.read(data, world.CHAIN)


def _survives(read: object, data: bytes) -> None:
    assert callable(read)
    try:
        read(data)
    except ValueError:
        return
