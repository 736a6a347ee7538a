"""Transactions as a key signs them: plain ones (EIP-155) and those with a fee market's terms (EIP-1559).

`eth_account` gives the same bytes, to the last one; it takes half a second to load, and a node starts without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.encoding import Address, Digest, Item, keccak256, pack
from swarm.identity import Identity

_FEE_MARKET = b"\x02"


@dataclass(frozen=True)
class Terms:
    """What a transaction says besides whom it calls and with what; it transfers nothing."""

    chain_id: int
    nonce: int
    gas: int
    price: int
    """The most for a unit of gas, in wei."""
    tip: int | None = None
    """Of it to the block's proposer; None: a plain price."""


def signed(identity: Identity, terms: Terms, to: Address | None, data: bytes) -> tuple[bytes, Digest]:
    """The transaction's bytes and its hash. `to` is None where it creates a contract."""
    target = to or b""
    if terms.tip is None:
        head: list[Item] = [terms.nonce, terms.price, terms.gas, target, 0, data]
        r, s, parity = _signature(identity, pack([*head, terms.chain_id, 0, 0]))
        raw = pack([*head, 35 + 2 * terms.chain_id + parity, r, s])
    else:
        body: list[Item] = [terms.chain_id, terms.nonce, terms.tip, terms.price, terms.gas, target, 0, data, []]
        r, s, parity = _signature(identity, _FEE_MARKET + pack(body))
        raw = _FEE_MARKET + pack([*body, parity, r, s])
    return raw, keccak256(raw)


def _signature(identity: Identity, content: bytes) -> tuple[int, int, int]:
    signature = identity.sign(keccak256(content))
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
