"""Secrets of 16 bytes in n shares, any t of which open them: Shamir's scheme over GF(2^128), by PyCryptodome.

Its arithmetic is not constant in time, so only secrets that are used once come here. The field is the library's private
`_Element`, because `Shamir.split` draws coefficients of its own, which nobody could draw again.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir, _Element

from swarm.merge.blind.keys import SEED_BYTES


def split(secret: bytes, *, threshold: int, count: int, chance: bytes) -> tuple[bytes, ...]:
    """Shares of the secret, that of place i at i: the same as `Shamir.split`'s, with the coefficients given.

    Args:
        chance: `chance_bytes(threshold)` random bytes, used for this secret alone.
    Raises:
        ValueError: a secret of another length than 16 bytes, or a threshold that no count of shares reaches.
    """
    if len(secret) != SEED_BYTES:
        raise ValueError(f"a secret of {SEED_BYTES} bytes is split, found {len(secret)}")
    if not 2 <= threshold <= count:
        raise ValueError(f"{threshold} of {count} shares cannot open a secret")
    if len(chance) != chance_bytes(threshold):
        raise ValueError(f"{len(chance)} random bytes, {chance_bytes(threshold)} are used")
    drawn = [chance[start : start + SEED_BYTES] for start in range(0, len(chance), SEED_BYTES)]
    coefficients = [_Element(part) for part in (*drawn, secret)]
    return tuple(_at(index, coefficients) for index in range(1, count + 1))


def chance_bytes(threshold: int) -> int:
    """How much randomness one splitting takes."""
    return (threshold - 1) * SEED_BYTES


def _at(index: int, coefficients: list[_Element]) -> bytes:
    value = _Element(0)
    for coefficient in coefficients:
        value = _Element(index) * value + coefficient  # type: ignore[operator]
    return value.encode()


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that exactly `threshold` shares open, by place; wrong shares give some other 16 bytes.

    Raises:
        ValueError: another number of shares.
    """
    if len(shares) != threshold:
        raise ValueError(f"{len(shares)} shares, {threshold} open a secret")
    return bytes(Shamir.combine([(place + 1, share) for place, share in shares.items()], ssss=False))
