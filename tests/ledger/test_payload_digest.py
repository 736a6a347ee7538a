"""A payload's digest stands for every byte of it: what validators agree on has one form."""

from __future__ import annotations

import pytest

from swarm.encoding import ZERO_ADDRESS, ZERO_DIGEST, keccak256, pack
from swarm.ledger.block import Header, encode_block, encode_payload, payload_digest
from swarm.ledger.trie import ordered_root

TRANSACTIONS = [pack([1, 2, 3]), b"\x02" + pack([4, 5])]


def header(certificate: bytes) -> Header:
    return Header(
        parent_hash=ZERO_DIGEST, coinbase=ZERO_ADDRESS, state_root=ZERO_DIGEST,
        transactions_root=ordered_root(TRANSACTIONS), receipts_root=ZERO_DIGEST, bloom=bytes(256), number=1,
        gas_limit=1, gas_used=1, timestamp_ms=1, parent_beacon_block_root=keccak256(certificate),
    )  # fmt: skip


def test_a_payload_has_the_digest_of_its_block() -> None:
    block = header(b"seals")
    assert payload_digest(encode_payload(encode_block(block, TRANSACTIONS), b"seals")) == block.hash


@pytest.mark.parametrize("transactions", [TRANSACTIONS[:1], TRANSACTIONS[::-1], [*TRANSACTIONS, pack([6])], []])
def test_no_other_body_has_the_same_digest(transactions: list[bytes]) -> None:
    with pytest.raises(ValueError, match="other transactions"):
        payload_digest(encode_payload(encode_block(header(b"seals"), transactions), b"seals"))


def test_no_other_certificate_has_the_same_digest() -> None:
    with pytest.raises(ValueError, match="another certificate"):
        payload_digest(encode_payload(encode_block(header(b"seals"), TRANSACTIONS), b"other seals"))
