"""A transaction is signed as `eth_account` signs it, byte for byte."""

from __future__ import annotations

import random

import pytest
from eth_account import Account

from swarm.encoding import to_hex
from swarm.identity import Identity, checksum
from swarm.ledger.block import Transaction
from swarm.ledger.signing import Terms, signed


@pytest.mark.parametrize("seed", range(40))
def test_a_signed_transaction_is_that_of_eth_account(seed: int) -> None:
    source = random.Random(seed)
    identity = Identity(source.randbytes(31) + b"\x01")
    to = source.choice([None, source.randbytes(20), bytes(19) + b"\x05"])
    data = source.randbytes(source.choice([0, 1, 55, 56, 300]))
    tip = source.choice([None, 0, source.randrange(1 << 40)])
    price = (tip or 0) + source.choice([0, 1, source.randrange(1 << 60)])
    terms = Terms(source.choice([1, 1337, 1 << 40]), source.choice([0, 127, 128, 1 << 33]), 21_000 + seed, price, tip)
    fields: dict[str, object] = {
        "chainId": terms.chain_id,
        "nonce": terms.nonce,
        "gas": terms.gas,
        "to": b"" if to is None else checksum(to),
        "value": 0,
        "data": to_hex(data),
    }
    if tip is None:
        fields["gasPrice"] = price
    else:
        fields |= {"type": 2, "maxFeePerGas": price, "maxPriorityFeePerGas": tip}
    expected = Account.sign_transaction(fields, identity.secret)
    raw, digest = signed(identity, terms, to, data)
    assert (raw, digest) == (bytes(expected.raw_transaction), bytes(expected.hash))
    assert Transaction.read(raw, terms.chain_id).sender == identity.address
