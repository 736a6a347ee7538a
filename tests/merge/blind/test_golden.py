"""The same secrets give the same bytes on every machine, and the pieces are those of their standards."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from Crypto.Protocol import SecretSharing

from swarm.encoding import pack
from swarm.merge.blind import Attempt, Fresh, Keys, Seat, public_key
from swarm.merge.blind.keys import expand
from swarm.merge.blind.masks import Mask, apply
from swarm.merge.blind.shares import combine, split
from tests.merge.blind.golden import GOLDEN, found
from tests.merge.test_golden import dispatched


def test_a_blind_round_has_its_golden_bytes() -> None:
    assert found() == json.loads(GOLDEN.read_text())


def test_a_processor_without_the_newest_instructions_makes_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.merge.blind.golden"],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(dispatched()), "OPENSSL_ia32cap": "~0x200000200000000"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text())


def test_a_stream_is_that_of_rfc_8439() -> None:
    # Appendix A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1.
    vector = np.zeros(32, np.uint32)
    apply([Mask(bytes(32), True)], 0, vector)
    assert vector.tobytes()[:16].hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert vector.tobytes()[64:80].hex() == "9f07e7be5551387a98ba977c732d080d"


def rfc5869(salt: bytes, secret: bytes, info: bytes) -> bytes:
    """HKDF of 32 bytes, written out."""
    key = hmac.digest(salt, secret, "sha256")
    return hmac.digest(key, info + b"\x01", "sha256")


# RFC 7748, section 6.1.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c6c6b6d3c3a7ed24ee2f7a2a8b1e4")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")


def test_the_pair_root_is_hkdf_of_x25519() -> None:
    # Alice's and Bob's key pairs of RFC 7748; the shared secret is computed here by its own ladder.
    names = [b"a" * 20, b"b" * 20, b"c" * 20]
    secrets = [ALICE, BOB, bytes(range(32))]
    seats = tuple(
        Seat(name, number, public_key(key)) for number, (name, key) in enumerate(zip(names, secrets, strict=True))
    )
    attempt = Attempt(7, b"x" * 20, 1, 2, 3, bytes(32), bytes(32), seats)
    shared = ladder(ALICE, seats[1].key)
    salt = hashlib.sha256(pack([7, b"x" * 20, names[0], 0, seats[0].key, names[1], 1, seats[1].key])).digest()
    root = rfc5869(salt, shared, b"swarm/blind/pair/1")
    for mine, other, key in ((names[0], names[1], ALICE), (names[1], names[0], BOB)):
        assert Keys(attempt, mine, key).root(other) == root
    info = b"swarm/blind/pair seed/1\x00" + attempt.context
    assert Keys(attempt, names[0], ALICE).pair_seed(names[1]) == hmac.digest(root, info + b"\x01", "sha256")
    assert expand(root, b"label", b"context") == hmac.digest(root, b"label\x00context\x01", "sha256")


def ladder(secret: bytes, key: bytes) -> bytes:
    """X25519 as RFC 7748, section 5, writes it."""
    prime = 2**255 - 19
    scalar = int.from_bytes(secret, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(key, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = scalar >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb = a * a % prime, b * b % prime
        da, cb = d * a % prime, c * b % prime
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % prime, u * (da - cb) ** 2 % prime
        x2, z2 = aa * bb % prime, e * (aa + 121665 * e) % prime
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, prime - 2, prime) % prime).to_bytes(32, "little")


@pytest.mark.parametrize("seed", range(6))
def test_shares_are_those_of_the_library_for_the_same_coefficients(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(seed)
    threshold = source.randint(2, 12)
    count = threshold + source.randint(0, 8)
    secret, chance = source.randbytes(16), source.randbytes(16 * (threshold - 1))
    drawn = iter([chance[start : start + 16] for start in range(0, len(chance), 16)])
    monkeypatch.setattr(SecretSharing, "rng", lambda size: next(drawn))
    theirs = SecretSharing.Shamir.split(threshold, count, secret, ssss=False)
    ours = split(secret, threshold=threshold, count=count, chance=chance)
    assert list(ours) == [share for _, share in theirs]
    places = source.sample(range(count), threshold)
    assert combine({place: ours[place] for place in places}, threshold) == secret


def test_secrets_of_one_attempt_are_not_those_of_another() -> None:
    names = [b"a" * 20, b"b" * 20, b"c" * 20]
    secrets = [ALICE, BOB, bytes(range(32))]
    seats = tuple(Seat(name, 1, public_key(key)) for name, key in zip(names, secrets, strict=True))
    plain = Attempt(7, b"x" * 20, 1, 2, 3, bytes(32), bytes(32), seats)
    seen = set()
    for attempt in (
        replace(plain, chain_id=8),
        replace(plain, contract=b"y" * 20),
        replace(plain, run=2),
        replace(plain, round=3),
        replace(plain, number=4),
        replace(plain, policy=b"p" * 32),
        replace(plain, base=b"q" * 32),
    ):
        keys, fresh = Keys(attempt, names[0], ALICE), Fresh.of(bytes(32), attempt)
        seen |= {keys.pair_seed(names[1]), keys.sealing_key(names[0], names[1]), keys.sealing_key(names[1], names[0])}
        seen |= {fresh.self_seed, fresh.recovery_seed, fresh.chance, attempt.context}
    assert len(seen) == 7 * 7
