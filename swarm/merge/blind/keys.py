"""From a member's X25519 key to every secret that it shares with another: pair roots, and what is expanded from them.

A pair root lives as long as both keys; what an attempt at a round uses is expanded from it under the attempt's context,
so that secrets of one attempt say nothing of another's. Randomness is an argument everywhere.

Source: RFC 7748 (X25519), RFC 5869 (HKDF); Bonawitz et al., CCS 2017, for what the secrets are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from swarm.encoding import Address, Digest, Item, pack, sha256, short
from swarm.errors import PeerError

KEY_BYTES = 32
SEED_BYTES = 16
"""Of a self seed and of a recovery seed: what Shamir's scheme over GF(2^128) takes."""
PAIR_SEED_BYTES = 32
SEATS_MIN = 3
"""A sum of two gives each of them the other."""
SEATS_MAX = 128

_PAIR = b"swarm/blind/pair/1"
_SELF_MASK = b"swarm/blind/self mask/1"
_PAIR_SEED = b"swarm/blind/pair seed/1"
_SHARES = b"swarm/blind/shares/1"
_SEEDS = b"swarm/blind/seeds/1"
_FRESH = b"swarm/blind/fresh/1"


@dataclass(frozen=True)
class Seat:
    """A member of an attempt, with the key for masks that stood on the ledger when the attempt began."""

    member: Address
    number: int
    """Counts the member's keys up."""
    key: bytes
    """X25519, 32 bytes."""


@dataclass(frozen=True)
class Attempt:
    """One try at a blind round: what all of its members know of it before it starts.

    Raises:
        ValueError: fewer than 3 seats or too many, seats not in address order, or a key that is no X25519 key.
    """

    chain_id: int
    contract: Address
    run: int
    round: int
    number: int
    """Counts up; no two attempts at a round have the same."""
    policy: Digest
    base: Digest
    seats: tuple[Seat, ...]

    def __post_init__(self) -> None:
        if not SEATS_MIN <= len(self.seats) <= SEATS_MAX:
            raise ValueError(f"a blind round among {len(self.seats)} members; {SEATS_MIN} to {SEATS_MAX} can hide")
        members = [seat.member for seat in self.seats]
        if members != sorted(set(members)):
            raise ValueError("the members of a blind round stand in the order of their addresses, each once")
        for seat in self.seats:
            if len(seat.key) != KEY_BYTES:
                raise ValueError(f"the key of {short(seat.member)} has {len(seat.key)} bytes, {KEY_BYTES} belong")

    @cached_property
    def context(self) -> Digest:
        """What binds every secret to this attempt."""
        seats: list[Item] = [[seat.member, seat.number, seat.key] for seat in self.seats]
        names: list[Item] = [self.chain_id, self.contract, self.run, self.round, self.number, self.policy, self.base]
        return sha256(pack([*names, seats]))

    @property
    def threshold(self) -> int:
        """t: how many members' shares open a secret; any two groups of so many share more than a third of all."""
        return 2 * len(self.seats) // 3 + 1

    @property
    def members(self) -> tuple[Address, ...]:
        """In address order."""
        return tuple(seat.member for seat in self.seats)

    @cached_property
    def _places(self) -> dict[Address, int]:
        return {seat.member: place for place, seat in enumerate(self.seats)}

    def place(self, member: Address) -> int:
        """A member's number in address order; ValueError if it has no seat."""
        if member not in self._places:
            raise ValueError(f"{short(member)} has no seat in attempt {self.number} at round {self.round}")
        return self._places[member]

    def seat(self, member: Address) -> Seat:
        """A member's seat; ValueError if it has none."""
        return self.seats[self.place(member)]


class Keys:
    """A site's secret key and its pair roots in one attempt. It never prints itself."""

    def __init__(self, attempt: Attempt, me: Address, secret: bytes) -> None:
        """
        Args:
            secret: X25519, 32 bytes.
        Raises:
            ValueError: the secret is not that of the key which this member has on the ledger, or it has no seat.
        """
        self.attempt = attempt
        self.me = me
        self._mine = attempt.seat(me)
        if public_key(secret) != self._mine.key:
            raise ValueError(
                f"the secret key at hand is not that of key {self._mine.number} of {short(me)} on the ledger; "
                "a site whose disk was restored announces a new key and sits this round out"
            )
        self._secret = X25519PrivateKey.from_private_bytes(secret)
        self._roots: dict[Address, bytes] = {}

    def __repr__(self) -> str:
        return f"Keys of {short(self.me)} in attempt {self.attempt.number} at round {self.attempt.round}"

    def root(self, other: Address) -> bytes:
        """The pair root with another member, 32 bytes: both sides find the same.

        Raises:
            PeerError: its key is one of the few with which every secret comes to nothing (RFC 7748, section 6.1).
        """
        if other not in self._roots:
            seat = self.attempt.seat(other)
            assert seat != self._mine, "a member shares no secret with itself"
            try:
                shared = self._secret.exchange(X25519PublicKey.from_public_bytes(seat.key))
            except ValueError as error:
                raise PeerError(
                    f"key {seat.number} of {short(other)} gives the same secret with everybody: it is no key",
                    member=other, evidence=seat,
                ) from error  # fmt: skip
            self._roots[other] = _pair_root(self.attempt, shared, self._mine, seat)
        return self._roots[other]

    def pair_seed(self, other: Address) -> bytes:
        """The seed of the mask that the two add and subtract in this attempt, 32 bytes."""
        return expand(self.root(other), _PAIR_SEED, self.attempt.context)

    def sealing_key(self, sender: Address, to: Address) -> bytes:
        """Under which `sender` seals its shares for `to`: one of them is this site. Each direction has its own."""
        other = to if sender == self.me else sender
        return expand(self.root(other), _SHARES, self.attempt.context + sender + to)


def public_key(secret: bytes) -> bytes:
    """The X25519 key that goes on the ledger; ValueError unless the secret has 32 bytes."""
    if len(secret) != KEY_BYTES:
        raise ValueError(f"an X25519 secret has {KEY_BYTES} bytes, found {len(secret)}")
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _pair_root(attempt: Attempt, shared: bytes, one: Seat, other: Seat) -> bytes:
    low, high = sorted((one, other), key=lambda seat: seat.member)
    salt = sha256(
        pack([attempt.chain_id, attempt.contract, low.member, low.number, low.key, high.member, high.number, high.key])
    )
    return HKDF(hashes.SHA256(), 32, salt, _PAIR).derive(shared)


def expand(key: bytes, label: bytes, context: bytes, size: int = 32) -> bytes:
    """HKDF-Expand with SHA-256: `size` bytes that say nothing of the key or of other labels' and contexts'."""
    return HKDFExpand(hashes.SHA256(), size, label + b"\x00" + context).derive(key)


@dataclass(frozen=True, repr=False)
class Fresh:
    """A site's own secrets in one attempt, all from one seed: whoever lost its work makes the same again."""

    self_seed: bytes
    """b: its mask is on the site's vector and nobody else's; revealed when the vector is in the sum."""
    recovery_seed: bytes
    """R: seals the pair seeds; opened by a quorum when the vector is not in the sum."""
    chance: bytes
    """For coefficients and nonces."""

    @classmethod
    def of(cls, seed: bytes, attempt: Attempt) -> Fresh:
        """From 32 bytes of the operating system's randomness, drawn for this attempt alone.

        Raises:
            ValueError: the seed has not 32 bytes.
        """
        if len(seed) != 32:
            raise ValueError(f"an attempt's seed has 32 bytes, found {len(seed)}")
        self_seed = expand(seed, _FRESH, b"self" + attempt.context, SEED_BYTES)
        recovery = expand(seed, _FRESH, b"recovery" + attempt.context, SEED_BYTES)
        return cls(self_seed, recovery, expand(seed, _FRESH, b"chance" + attempt.context))

    def drawn(self, what: bytes, size: int) -> bytes:
        """`size` bytes for one purpose."""
        return expand(self.chance, _FRESH, what, size)


def self_mask_key(self_seed: bytes, context: bytes) -> bytes:
    """The stream key of a site's own mask."""
    return expand(self_seed, _SELF_MASK, context)


def seeds_key(recovery_seed: bytes, context: bytes) -> bytes:
    """Under which a site seals its pair seeds."""
    return expand(recovery_seed, _SEEDS, context)


def commitment(what: bytes, value: bytes) -> Digest:
    """SHA-256 of a label and a secret: a contract with the SHA-256 precompile checks it."""
    return sha256(what + value)


SELF, RECOVERY, PAIR, SHARE = b"self", b"recovery", b"pair", b"share"
