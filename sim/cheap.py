"""Stand-ins that cost a microsecond where the real thing costs fifty: keys and blocks for thousands of seeds.

A keyed hash signs; a payload is a few fields. What is simulated is the agreement: neither cryptography nor execution.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from swarm.encoding import Address, Digest

CHAIN_ID = 7
GENESIS: Digest = hashlib.blake2b(b"genesis", digest_size=32).digest()

_MARK = b"block"


class KeyedHash:
    """An authenticator whose signatures only it makes, by the rules of this simulator: nobody else calls `sign`."""

    def __init__(self, me: Address) -> None:
        self.me = me
        self._key = b"secret" + me

    def sign(self, digest: Digest) -> bytes:
        """65 bytes in the form of a secp256k1 signature: the keyed hash, then who signed."""
        tag = hashlib.blake2b(digest, digest_size=32, key=self._key).digest()
        return tag + bytes(12) + self.me + b"\x00"

    def recover(self, digest: Digest, signature: bytes) -> Address:
        """Who signed; ValueError if nobody did."""
        return recover(digest, signature)


def recover(digest: Digest, signature: bytes) -> Address:
    """Who signed; ValueError if nobody did."""
    member = signature[44:64]
    if hashlib.blake2b(digest, digest_size=32, key=b"secret" + member).digest() != signature[:32]:
        raise ValueError("nobody signed this")
    return member


def validator_addresses(validators: int) -> tuple[Address, ...]:
    """Addresses that read as 01…, 02…, 03…"""
    return tuple(bytes([index + 1]) * 20 for index in range(validators))


def make_payload(*, height: int, parent: Digest, builder: Address, counter: int, valid: bool = True) -> bytes:
    """A block, as far as agreement needs one; no two calls with different arguments give the same."""
    return _MARK + height.to_bytes(4, "big") + parent + builder + counter.to_bytes(4, "big") + bytes([valid])


@lru_cache(maxsize=4096)
def digest_of(payload: bytes) -> Digest:
    """A payload's digest; ValueError if it is none."""
    if not payload.startswith(_MARK) or len(payload) != 66:
        raise ValueError("not a payload")
    return hashlib.blake2b(payload, digest_size=32).digest()


def builder_of(payload: bytes) -> Address:
    """Who built it."""
    return payload[41:61]


def is_valid(payload: bytes, *, height: int, parent: Digest) -> bool:
    """Whether honest members may decide this payload after this parent."""
    return payload[5:9] == height.to_bytes(4, "big") and payload[9:41] == parent and payload[65] == 1
