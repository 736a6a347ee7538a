"""What the ledger, the leader and t - 1 members learn together: the sum, and nothing beyond it."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarm.encoding import Address
from swarm.merge.blind import (
    Blob,
    Fresh,
    Frozen,
    Held,
    Keys,
    Missing,
    Said,
    Shares,
    Survivors,
    blob_of,
    freeze,
    masks_of,
    open_blob,
    reveal_of,
    shares_of,
    unmasking,
)
from swarm.merge.blind.masks import Mask, Ring, apply
from swarm.merge.blind.shares import combine, split
from tests.merge.blind.adversary import Adversary, Seen, Traitor, byte_score
from tests.merge.blind.world import attempt_of

COORDINATES = 1 << 14


@dataclass
class Swarm:
    """Members with their keys and updates; what they submit in every attempt is the same update."""

    secrets: dict[Address, bytes]
    plain: dict[Address, Ring]
    source: random.Random

    @classmethod
    def of(cls, seed: int, members: int) -> Swarm:
        source = random.Random(seed)
        secrets = {source.randbytes(20): source.randbytes(32) for _ in range(members)}
        values = np.random.default_rng(seed)
        # Small numbers: the worst case, their upper bytes are all alike.
        plain = {name: values.integers(0, 100, COORDINATES, np.uint32) for name in secrets}
        return cls(secrets, plain, source)

    def attempt(
        self,
        number: int,
        survivors: Sequence[Address],
        silent: Sequence[Address] = (),
        *,
        mistake: str = "",
        groups: Sequence[Collection[Address]] = (),
        dropped: Collection[frozenset[Address]] = (),
    ) -> tuple[Seen, dict[Address, bytes]]:
        """An attempt in which some submit and others vanish, and some of those who submit are then silent.

        Args:
            groups: where it is merged in groups.
            dropped: pairs without a mask in common.
        """
        attempt = attempt_of(self.secrets, number)
        seeds = {name: self.source.randbytes(32) for name in self.secrets}
        keys = {name: Keys(attempt, name, secret) for name, secret in self.secrets.items()}
        fresh = {name: Fresh.of(seed, attempt) for name, seed in seeds.items()}
        blobs = {name: blob_of(keys[name], fresh[name]) for name in self.secrets}
        if mistake == "a static nonce":
            blobs = {name: _sealed_alike(keys[name], fresh[name], blob) for name, blob in blobs.items()}
        frozen = freeze(
            attempt, {one: [two for edge in dropped if one in edge for two in edge - {one}] for one in keys}
        )
        frozen = replace(frozen, groups=tuple(map(frozenset, groups)))
        masks = {name: masks_of(frozen, keys[name], fresh[name]) for name in self.secrets}
        if mistake == "a reused mask":
            masks = {name: _of_another_attempt(self, frozen, name) for name in self.secrets}
        vectors = {name: _masked(self.plain[name], masks[name]) for name in self.secrets}
        held = {name: {o: _open(keys[name], blobs[o], mistake) for o in blobs if o != name} for name in self.secrets}
        chosen = Survivors(frozen, frozenset(survivors))
        said: list[Said] = [reveal_of(chosen, keys[m], fresh[m]) for m in chosen.in_order if m not in silent]
        missing = unmasking(chosen, blobs, said)
        if isinstance(missing, Missing):
            away = {*silent, *chosen.vanished}
            said += [shares_of(chosen, missing, m, held[m]) for m in sorted(self.secrets) if m not in away]
            assert not isinstance(unmasking(chosen, blobs, said), Missing)
        if mistake == "both kinds of share":
            gone = min(chosen.vanished)
            said += [Shares(m, {gone: held[m][gone].self_share}) for m in chosen.in_order]
            said += [Shares(m, {}, {gone: held[m][gone].recovery_share}) for m in chosen.in_order]
        return Seen(attempt, frozen, blobs, said, vectors, masks, self.plain), seeds

    def traitor(self, member: Address, played: Sequence[tuple[Seen, dict[Address, bytes]]]) -> Traitor:
        return Traitor(
            member, self.secrets[member], {seen.attempt.context: seeds[member] for seen, seeds in played}
        )  # fmt: skip


def _masked(plain: Ring, masks: Sequence[Mask]) -> Ring:
    vector = plain.copy()
    apply(masks, 0, vector)
    return vector


def _of_another_attempt(swarm: Swarm, frozen: Frozen, name: Address) -> tuple[Mask, ...]:
    """Planted: masks that do not depend on the attempt."""
    always = attempt_of(swarm.secrets, 0)
    same = replace(frozen, attempt=always)
    return masks_of(same, Keys(always, name, swarm.secrets[name]), Fresh.of(name + bytes(12), always))


STATIC = bytes(12)


def _sealed_alike(keys: Keys, fresh: Fresh, blob: Blob) -> Blob:
    """Planted: one key a pair for all attempts and both directions, and one nonce."""
    held = {}
    for member in keys.attempt.members:
        if member != keys.me:
            entry = blob.entry(keys.attempt, member)
            cipher = ChaCha20Poly1305(keys.sealing_key(keys.me, member))
            plain = cipher.decrypt(entry.sealed[:12], entry.sealed[12:], blob.context + keys.me + member)
            sealed = ChaCha20Poly1305(keys.root(member)).encrypt(STATIC, plain, blob.context + keys.me + member)
            held[member] = replace(entry, sealed=STATIC + sealed)
    return replace(blob, entries=tuple(held[member] for member in sorted(held)))


def _open(keys: Keys, blob: Blob, mistake: str) -> Held:
    if mistake != "a static nonce":
        return open_blob(keys, blob)
    entry = blob.entry(keys.attempt, keys.me)
    cipher = ChaCha20Poly1305(keys.root(blob.sender))
    plain = cipher.decrypt(STATIC, entry.sealed[12:], blob.context + blob.sender + keys.me)
    return Held(blob.sender, plain[:16], plain[16:], True)


def honest_sum(seen: Seen, names: set[Address]) -> Ring:
    return sum((seen.plain[name] for name in names), np.zeros(COORDINATES, np.uint32))


@pytest.mark.parametrize("seed", range(12))
def test_the_ledger_the_leader_and_t_minus_one_members_learn_the_honest_sum_and_no_more(seed: int) -> None:
    source = random.Random(seed)
    members = source.choice([4, 5, 7, 8, 10])
    swarm = Swarm.of(seed, members)
    names = sorted(swarm.secrets)
    attempt = attempt_of(swarm.secrets)
    away = source.sample(names, source.randint(0, members - attempt.threshold))
    cut = source.randint(0, len(away))
    vanished, silent = away[:cut], away[cut:]
    survivors = [name for name in names if name not in vanished]
    played = [swarm.attempt(1, survivors, silent)]
    # At least two honest survivors, or their sum is an update by itself.
    traitors = source.sample(survivors, min(attempt.threshold - 1, len(survivors) - 2))
    adversary = Adversary([played[0][0]], [swarm.traitor(name, played) for name in traitors])
    seen, honest = played[0][0], set(survivors) - set(traitors)
    learned = adversary.learned()
    assert [set(combination) for combination in learned] == [{(0, name) for name in honest}], f"seed {seed}"
    assert len({*learned[0].values()}) == 1
    # It does learn that sum: the adversary is no straw man.
    found = sum((adversary.residual(seen, name) for name in honest), np.zeros(COORDINATES, np.uint32))
    assert np.array_equal(found, honest_sum(seen, honest))
    for name in set(names) - set(traitors):
        assert not adversary.opens_alone(name)
        assert abs(byte_score(adversary.residual(seen, name).view(np.uint8))) < 6, f"seed {seed}"
    for some in (sorted(honest)[:k] for k in range(1, len(honest))):
        partial = sum((adversary.residual(seen, name) for name in some), np.zeros(COORDINATES, np.uint32))
        assert abs(byte_score(partial.view(np.uint8))) < 6, f"seed {seed}: a part of the sum is not uniform"


@pytest.mark.parametrize("seed", range(4))
def test_t_minus_one_shares_fit_every_secret(seed: int) -> None:
    source = random.Random(seed)
    threshold = source.randint(2, 9)
    count = threshold + source.randint(0, 5)
    shares = split(
        source.randbytes(16), threshold=threshold, count=count, chance=source.randbytes(16 * (threshold - 1))
    )
    places = source.sample(range(count), threshold - 1)
    known = {place: shares[place] for place in places}
    missing = next(place for place in range(count) if place not in known)
    # With each value of one more share another secret comes out: none is likelier than another.
    found = {combine(known | {missing: value.to_bytes(16, "big")}, threshold) for value in range(64)}
    assert len(found) == 64
    assert combine(known | {missing: shares[missing]}, threshold) == combine(
        {place: shares[place] for place in source.sample(range(count), threshold)}, threshold
    )


def test_attempts_whose_sums_were_never_opened_tell_nothing() -> None:
    swarm = Swarm.of(5, 7)
    names = sorted(swarm.secrets)
    played = [swarm.attempt(number, names) for number in (1, 2, 3)]
    voided = [(replace(seen, said=()), seeds) for seen, seeds in played[:2]]
    adversary = Adversary(
        [seen for seen, _ in (*voided, played[2])], [swarm.traitor(name, played) for name in names[:4]]
    )
    assert [set(combination) for combination in adversary.learned()] == [{(2, name) for name in names[4:]}]
    assert not any(adversary.opens_alone(name) for name in names)


def caught(mistake: str) -> Adversary:
    """Two attempts with a planted mistake: the first is void before anything is revealed but shares of one member."""
    swarm = Swarm.of(9, 7)
    names = sorted(swarm.secrets)
    if mistake == "both kinds of share":
        played = [swarm.attempt(1, names[:6], mistake=mistake)]
    elif mistake == "a static nonce":
        # In the first attempt one was silent and its shares are public; in the second it vanished, unopened.
        played = [swarm.attempt(1, names, names[6:], mistake=mistake), swarm.attempt(2, names[:6], mistake=mistake)]
    elif mistake == "a reused mask":
        first = swarm.attempt(1, names, mistake="")
        played = [swarm.attempt(n, names, mistake=mistake) for n in (1, 2)]
        assert played[0][0].attempt == first[0].attempt
        # Training went on between the two.
        other = {name: plain * np.uint32(3) for name, plain in swarm.plain.items()}
        second = played[1][0]
        vectors = {name: _masked(other[name], second.masks[name]) for name in names}
        played = [
            (replace(played[0][0], said=()), played[0][1]),
            (replace(second, said=(), vectors=vectors, plain=other), played[1][1]),
        ]
    else:
        played = [swarm.attempt(1, names), swarm.attempt(2, names[:6])]
    return Adversary([seen for seen, _ in played], [swarm.traitor(names[0], played)])


@pytest.mark.parametrize("mistake", ["both kinds of share", "a static nonce", "one update in two sums"])
def test_a_planted_mistake_opens_an_update(mistake: str) -> None:
    swarm = Swarm.of(9, 7)
    adversary = caught(mistake)
    last = max(swarm.secrets)
    assert adversary.opens_alone(last)


def test_a_reused_mask_opens_the_difference_of_two_vectors() -> None:
    adversary = caught("a reused mask")
    names = sorted(Swarm.of(9, 7).secrets)
    found = {frozenset(combination) for combination in adversary.learned()}
    assert frozenset([(0, names[3]), (1, names[3])]) in found


def test_without_the_mistake_the_same_views_open_nothing() -> None:
    swarm = Swarm.of(9, 7)
    names = sorted(swarm.secrets)
    for played in (
        [swarm.attempt(1, names[:6])],
        [swarm.attempt(1, names, names[6:])],
        [(replace(swarm.attempt(1, names)[0], said=()), {}), swarm.attempt(2, names[:6])],
    ):
        adversary = Adversary([seen for seen, _ in played], [])
        assert not any(adversary.opens_alone(name) for name in names)
        assert len(adversary.learned()) == 1
