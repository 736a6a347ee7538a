"""What a member gives to the others when it joins an attempt: sealed shares of its secrets, and what they must match.

A share pair opens for one other member only. The pair seeds are sealed under the recovery seed, so that a quorum can
open them if the member vanishes, and nothing of any other attempt with them. Everybody holds everybody's blob before
anything is masked; its digest and two commitments are on the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarm.encoding import Address, Digest, data_of, list_of, pack, short, unpack
from swarm.errors import PeerError
from swarm.merge.blind.keys import (
    PAIR,
    PAIR_SEED_BYTES,
    RECOVERY,
    SEATS_MAX,
    SEED_BYTES,
    SELF,
    SHARE,
    Attempt,
    Fresh,
    Keys,
    commitment,
    seeds_key,
)
from swarm.merge.blind.shares import chance_bytes, split

_NONCE, _TAG = 12, 16
_SEALED = _NONCE + 2 * SEED_BYTES + _TAG
BLOB_BYTES_MAX = 256 * SEATS_MAX
"""A sender's blob has some 200 bytes for each other member."""


@dataclass(frozen=True)
class Entry:
    """What a blob holds for one other member."""

    sealed: bytes
    """A nonce, and the share of the self seed and that of the recovery seed under the pair's key in this direction."""
    self_share: Digest
    """Commitment to the first of the two."""
    recovery_share: Digest
    pair: Digest
    """Commitment to the seed of the mask that the two have in common."""


@dataclass(frozen=True)
class Blob:
    """A member's joining of an attempt."""

    context: Digest
    sender: Address
    self_commitment: Digest
    recovery_commitment: Digest
    seeds: bytes
    """The pair seeds with every other seat, in address order, sealed under the recovery seed."""
    entries: tuple[Entry, ...]
    """One for every other seat, in address order."""

    def encode(self) -> bytes:
        """Canonical bytes: RLP."""
        entries = [[entry.sealed, entry.self_share, entry.recovery_share, entry.pair] for entry in self.entries]
        return pack(
            [self.context, self.sender, self.self_commitment, self.recovery_commitment, self.seeds, entries]
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes, attempt: Attempt, sender: Address) -> Blob:
        """The blob of a member in an attempt.

        Raises:
            PeerError: it is none, or one of another attempt or member.
        """
        try:
            return cls._decode(data, attempt, sender)
        except ValueError as error:
            raise PeerError(
                f"what {short(sender)} joins attempt {attempt.number} at round {attempt.round} with is wrong: {error}",
                member=sender, evidence=data,
            ) from error  # fmt: skip

    @classmethod
    def _decode(cls, data: bytes, attempt: Attempt, sender: Address) -> Blob:
        others = len(attempt.seats) - 1
        parts = list_of(unpack(data, max_bytes=BLOB_BYTES_MAX), size=6)
        context, member, own, recovery = (data_of(part) for part in parts[:4])
        if context != attempt.context:
            raise ValueError(f"it is for the attempt {short(context)}, this one is {short(attempt.context)}")
        if member != sender:
            raise ValueError(f"it is by {short(member)}")
        found = []
        for part in list_of(parts[5], size=others):
            sealed, *commitments = list_of(part, size=4)
            found.append(Entry(data_of(sealed, size=_SEALED), *(data_of(one, size=32) for one in commitments)))
        return cls(
            context, member, data_of(own, size=32), data_of(recovery, size=32),
            data_of(parts[4], size=others * PAIR_SEED_BYTES + _TAG), tuple(found),
        )  # fmt: skip

    def entry(self, attempt: Attempt, member: Address) -> Entry:
        """What it holds for another member."""
        place, mine = attempt.place(member), attempt.place(self.sender)
        assert place != mine, "a blob holds nothing for its sender"
        return self.entries[place - (place > mine)]


@dataclass(frozen=True)
class Held:
    """What one member holds of another's secrets; they never print."""

    sender: Address
    self_share: bytes
    recovery_share: bytes
    agrees: bool
    """Whether both find the same pair seed. If not, the two use no common mask: the edge is dropped."""

    def __repr__(self) -> str:
        return f"Held(of {short(self.sender)}, {'agrees' if self.agrees else 'disagrees'})"


def blob_of(keys: Keys, fresh: Fresh) -> Blob:
    """What this site joins the attempt with; the same again from the same seed.

    Raises:
        PeerError: names a member whose key is no key.
    """
    attempt, me = keys.attempt, keys.me
    others = [member for member in attempt.members if member != me]
    own = _split(fresh, b"self", fresh.self_seed, attempt)
    recovery = _split(fresh, b"recovery", fresh.recovery_seed, attempt)
    entries, pairs = [], []
    for member in others:
        place = attempt.place(member)
        nonce = fresh.drawn(b"nonce" + member, _NONCE)
        cipher = ChaCha20Poly1305(keys.sealing_key(me, member))
        sealed = cipher.encrypt(nonce, own[place] + recovery[place], attempt.context + me + member)
        pairs.append(keys.pair_seed(member))
        entries.append(
            Entry(
                nonce + sealed, commitment(SHARE, own[place]), commitment(SHARE, recovery[place]),
                commitment(PAIR, pairs[-1]),
            )
        )  # fmt: skip
    seeds = _seeds_cipher(fresh.recovery_seed, attempt).encrypt(bytes(_NONCE), b"".join(pairs), attempt.context + me)
    return Blob(
        attempt.context, me, commitment(SELF, fresh.self_seed), commitment(RECOVERY, fresh.recovery_seed), seeds,
        tuple(entries),
    )  # fmt: skip


def _split(fresh: Fresh, what: bytes, secret: bytes, attempt: Attempt) -> tuple[bytes, ...]:
    chance = fresh.drawn(b"coefficients of " + what, chance_bytes(attempt.threshold))
    return split(secret, threshold=attempt.threshold, count=len(attempt.seats), chance=chance)


def _seeds_cipher(recovery_seed: bytes, attempt: Attempt) -> ChaCha20Poly1305:
    """The seed is random and seals one message, so the nonce is 0."""
    return ChaCha20Poly1305(seeds_key(recovery_seed, attempt.context))


def open_blob(keys: Keys, blob: Blob) -> Held:
    """This site's shares of the sender's secrets, and whether the two agree on their mask.

    Raises:
        PeerError: the sender's key is no key, or its shares do not open or do not match their commitments. Who finds
            that drops its edge to the sender; the sender is out of the attempt if too many do.
    """
    attempt, sender, me = keys.attempt, blob.sender, keys.me
    entry = blob.entry(attempt, me)
    cipher = ChaCha20Poly1305(keys.sealing_key(sender, me))
    try:
        opened = cipher.decrypt(entry.sealed[:_NONCE], entry.sealed[_NONCE:], attempt.context + sender + me)
    except InvalidTag as error:
        raise PeerError(
            f"the shares that {short(sender)} sealed for {short(me)} do not open", member=sender, evidence=blob
        ) from error
    shares = opened[:SEED_BYTES], opened[SEED_BYTES:]
    for share, wanted, what in zip(shares, (entry.self_share, entry.recovery_share), ("self", "recovery"), strict=True):
        if commitment(SHARE, share) != wanted:
            raise PeerError(
                f"the share of its {what} seed that {short(sender)} sealed for {short(me)} differs from its commitment",
                member=sender, evidence=blob,
            )  # fmt: skip
    return Held(sender, *shares, agrees=commitment(PAIR, keys.pair_seed(sender)) == entry.pair)


def open_seeds(attempt: Attempt, blob: Blob, recovery_seed: bytes) -> dict[Address, bytes]:
    """The pair seeds of a vanished member, by the other member.

    Raises:
        PeerError: its recovery seed does not open what it sealed.
    """
    try:
        plain = _seeds_cipher(recovery_seed, attempt).decrypt(bytes(_NONCE), blob.seeds, blob.context + blob.sender)
    except InvalidTag as error:
        raise PeerError(
            f"the pair seeds of {short(blob.sender)} do not open under its recovery seed",
            member=blob.sender, evidence=blob,
        ) from error  # fmt: skip
    others = [member for member in attempt.members if member != blob.sender]
    return {
        member: plain[place * PAIR_SEED_BYTES : (place + 1) * PAIR_SEED_BYTES] for place, member in enumerate(others)
    }
