"""An adversary with the ledger, all blobs, all masked vectors, and the secrets of some members: what can it learn?

It opens what it can, until nothing new comes: self and recovery seeds by t shares, pair seeds by its members' keys, by
what was revealed and by opened recovery seeds, and shares where two were sealed under one key and nonce. Then it has
one linear equation a vector, in updates and in masks whose keys it does not know, and eliminates the masks. It is told
which unknown masks are the same one, as if it could guess that. What is left is everything that sums of vectors tell,
since a stream whose key is unknown is uniform: `residual` is what a statistic then gets to see.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.merge.blind import Attempt, Blob, Fresh, Frozen, Keys, Reveal, Said, Shares, open_blob
from swarm.merge.blind.blob import open_seeds
from swarm.merge.blind.keys import RECOVERY, SEED_BYTES, SELF, SHARE, commitment, self_mask_key
from swarm.merge.blind.masks import Mask, Ring, apply
from swarm.merge.blind.shares import combine

Row = list[Fraction]
Edge = frozenset[Address]


@dataclass(frozen=True)
class Seen:
    """One attempt, as the adversary sees it. `masks` are for telling masks apart, `plain` to judge what it found."""

    attempt: Attempt
    frozen: Frozen
    blobs: Mapping[Address, Blob]
    said: Sequence[Said]
    vectors: Mapping[Address, Ring]
    """Everybody's who encoded, survivor or not."""
    masks: Mapping[Address, tuple[Mask, ...]]
    plain: Mapping[Address, Ring]


@dataclass(frozen=True)
class Traitor:
    """A member whose secrets the adversary has."""

    member: Address
    secret: bytes
    seeds: Mapping[bytes, bytes]
    """By the attempt's context."""


class Adversary:
    """What follows from some attempts and some members' secrets."""

    def __init__(self, seen: Sequence[Seen], traitors: Sequence[Traitor]) -> None:
        self._seen = seen
        self._traitors = traitors
        self.shares: dict[tuple[bytes, Address, Address, str], bytes] = {}
        """By context, whose secret, who holds it, and which secret."""
        self.known: set[bytes] = set()
        """Keys of masks."""
        for one in seen:
            self._look(one)
        while self._xor():
            """Every share found may open another one."""
        for one in seen:
            self._combine(one)

    def _look(self, one: Seen) -> None:
        """What the ledger says, and what its members know."""
        context = one.attempt.context
        for said in one.said:
            if isinstance(said, Reveal):
                self.known.add(self_mask_key(said.self_seed, context))
                self.known.update(said.pair_seeds.values())
            else:
                self._note(context, said)
        for traitor in self._traitors:
            keys = Keys(one.attempt, traitor.member, traitor.secret)
            self.known.add(self_mask_key(Fresh.of(traitor.seeds[context], one.attempt).self_seed, context))
            for sender, blob in one.blobs.items():
                if sender == traitor.member:
                    continue
                self.known.add(keys.pair_seed(sender))
                self._note_opened(keys, blob)

    def _note(self, context: bytes, said: Shares) -> None:
        for member, share in said.self_shares.items():
            self.shares[context, member, said.member, "self"] = share
        for member, share in said.recovery_shares.items():
            self.shares[context, member, said.member, "recovery"] = share

    def _note_opened(self, keys: Keys, blob: Blob) -> None:
        try:
            held = open_blob(keys, blob)
        except PeerError:
            return
        self.shares[blob.context, blob.sender, keys.me, "self"] = held.self_share
        self.shares[blob.context, blob.sender, keys.me, "recovery"] = held.recovery_share

    def _xor(self) -> bool:
        """Two ciphertexts under one key and nonce: a share known of one is the other's. Whether anything was found."""
        entries = [
            (blob.context, sender, holder, entry)
            for one in self._seen
            for sender, blob in one.blobs.items()
            for holder, entry in (
                (m, blob.entry(one.attempt, m)) for m in one.attempt.members if m != sender
            )
        ]  # fmt: skip
        found = False
        for first, second in combinations(entries, 2):
            if first[3].sealed[:12] != second[3].sealed[:12] or {*first[1:3]} != {*second[1:3]}:
                continue
            for known, wanted in ((first, second), (second, first)):
                found |= self._carry(known[:3], known[3].sealed, wanted[:3], wanted[3].sealed, wanted[3])
        return found

    def _carry(
        self, known: tuple[bytes, Address, Address], one: bytes, wanted: tuple[bytes, Address, Address], other: bytes,
        entry: object,
    ) -> bool:  # fmt: skip
        found = False
        for place, what in enumerate(("self", "recovery")):
            if (*known, what) not in self.shares or (*wanted, what) in self.shares:
                continue
            start = 12 + place * SEED_BYTES
            stream = _xored(one[start : start + SEED_BYTES], self.shares[*known, what])
            guess = _xored(other[start : start + SEED_BYTES], stream)
            if commitment(SHARE, guess) == getattr(entry, f"{what}_share"):
                self.shares[*wanted, what] = guess
                found = True
        return found

    def _combine(self, one: Seen) -> None:
        """Secrets of which it has t shares."""
        attempt, context = one.attempt, one.attempt.context
        for member, blob in one.blobs.items():
            self_seed = self._secret(one, member, "self")
            if self_seed is not None and commitment(SELF, self_seed) == blob.self_commitment:
                self.known.add(self_mask_key(self_seed, context))
            recovery = self._secret(one, member, "recovery")
            if recovery is not None and commitment(RECOVERY, recovery) == blob.recovery_commitment:
                self.known.update(open_seeds(attempt, blob, recovery).values())

    def _secret(self, one: Seen, member: Address, what: str) -> bytes | None:
        found = {
            one.attempt.place(holder): share
            for (context, of, holder, kind), share in self.shares.items()
            if context == one.attempt.context and of == member and kind == what
        }
        if len(found) < one.attempt.threshold:
            return None
        return combine(dict(list(found.items())[: one.attempt.threshold]), one.attempt.threshold)

    def residual(self, one: Seen, member: Address) -> Ring:
        """A member's vector without the masks whose keys are known."""
        found = one.vectors[member].copy()
        apply([mask.opposite for mask in one.masks[member] if mask.key in self.known], 0, found)
        return found

    def learned(self) -> list[dict[tuple[int, Address], Fraction]]:
        """Every independent sum of residuals without a mask: coefficients by attempt and honest member."""
        liars = {traitor.member for traitor in self._traitors}
        vectors = [
            (number, member) for number, one in enumerate(self._seen) for member in sorted(one.vectors)
            if member not in liars
        ]  # fmt: skip
        unknown = sorted(
            {mask.key for n, m in vectors for mask in self._seen[n].masks[m] if mask.key not in self.known}
        )  # fmt: skip
        columns = {key: place for place, key in enumerate(unknown)}
        rows = []
        for number, member in vectors:
            row = [Fraction(0)] * len(unknown)
            for mask in self._seen[number].masks[member]:
                if mask.key in columns:
                    row[columns[mask.key]] += 1 if mask.added else -1
            rows.append(row)
        return [
            {vectors[place]: value for place, value in enumerate(combination) if value}
            for combination in left_null_space(rows)
        ]

    def opens_alone(self, member: Address) -> bool:
        """Whether some sum of what it learned holds one honest member's update and nobody else's.

        A member's vectors of several attempts at a round hold the same update.
        """
        learned = self.learned()
        members = sorted({who for combination in learned for _, who in combination})
        rows = []
        for combination in learned:
            row = dict.fromkeys(members, Fraction(0))
            for (_, who), value in combination.items():
                row[who] += value
            rows.append([row[who] for who in members])
        alone = [Fraction(int(who == member)) for who in members]
        return member in members and rank([*rows, alone]) == rank(rows)


def _xored(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def left_null_space(rows: Sequence[Row]) -> list[Row]:
    """A basis of the combinations of rows that are zero."""
    count = len(rows)
    wide = [[*row, *(Fraction(int(place == number)) for place in range(count))] for number, row in enumerate(rows)]
    width = len(rows[0]) if rows else 0
    reduced, pivots = _reduced(wide, width)
    return [row[width:] for row in reduced[pivots:]]


def rank(rows: Iterable[Row]) -> int:
    """Of a matrix of fractions."""
    copied = [list(row) for row in rows]
    return _reduced(copied, len(copied[0]) if copied else 0)[1]


def _reduced(rows: list[Row], width: int) -> tuple[list[Row], int]:
    """Gaussian elimination over the first `width` columns; the rows, and how many have a pivot."""
    done = 0
    for column in range(width):
        pivot = next((place for place in range(done, len(rows)) if rows[place][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        for place in range(done + 1, len(rows)):
            if rows[place][column]:
                factor = rows[place][column] / rows[done][column]
                rows[place] = [a - factor * b if b else a for a, b in zip(rows[place], rows[done], strict=True)]
        done += 1
    return rows, done


def byte_score(data: NDArray[np.uint8]) -> float:
    """How far the counts of the 256 byte values are from even, in standard deviations of chi-square's distribution.

    Source: Pearson's chi-square with 255 degrees of freedom: mean 255, variance 510.
    """
    counts = np.bincount(data, minlength=256)
    expected = data.size / 256
    chi_square = float(((counts - expected) ** 2).sum() / expected)
    return (chi_square - 255) / math.sqrt(510)
