"""What a leader of a blind round sees: a real attempt with real masks among all sites, in one process.

Every site's update is encoded and masked as a node does it. The leader has all masked vectors, what everybody reveals,
and so the sum, exactly; it takes its own vector off. Secrets come from the check's seed: nothing of it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.config import Policy
from swarm.encoding import Address, sha256
from swarm.errors import ConfigError
from swarm.merge.blind import (
    Attempt,
    Encoding,
    Fresh,
    Keys,
    Masked,
    Seat,
    Survivors,
    Unmasking,
    Vector,
    blob_of,
    encode,
    exponents_of,
    freeze,
    masks_of,
    merge,
    open_blob,
    public_key,
    reveal_of,
    unmasking,
)
from swarm.merge.blind.keys import SEATS_MIN
from swarm.merge.blind.masks import Ring, apply
from swarm.merge.schema import Schema

Values = Mapping[str, NDArray[np.float64]]
"""By tensor, flat."""


@dataclass(frozen=True)
class Update:
    """A site's part in the round."""

    site: str
    path: Path
    """A canonical file of the model's tensors."""
    samples: int


@dataclass(frozen=True)
class Sight:
    """What the leader makes of what it sees."""

    others: Values
    """The mean of the others' updates: the sum without its own, by the others' weights."""
    whole: Values
    """The mean of all updates, as the checkpoint takes it over."""
    masked: Values
    """The first site's masked vector, as if it were an update."""
    clipped: int
    """Coordinates of all sites beyond the agreed range."""


def encoding_of(policy: Policy, base: Path, updates: Sequence[Update]) -> Encoding:
    """The run's own where it is blind; otherwise what a blind run of such updates would agree on."""
    weight_max = policy.weight_max if policy.blind else max(update.samples for update in updates)
    norm_max = policy.norm_max or float("inf")
    return Encoding(
        len(updates), exponents_of(base), weight_max if policy.weights == "samples" else 0, norm_max
    )  # fmt: skip


def seen_by_leader(
    base: Path, updates: Sequence[Update], leader: str, policy: Policy, source: np.random.Generator, folder: Path
) -> Sight:
    """A blind attempt at a round in which nobody vanishes.

    Args:
        base: the checkpoint that all trained from.
        leader: one of the sites.
        source: draws everybody's secrets.
        folder: for the masked vectors.
    Raises:
        ConfigError: fewer than three sites, or a sum that a blind merge refuses.
    """
    if len(updates) < SEATS_MIN:
        raise ConfigError(f"a blind round among {len(updates)} sites; {SEATS_MIN} are needed to hide one")
    encoding = encoding_of(policy, base, updates)
    by_member = {sha256(update.site.encode())[:20]: update for update in updates}
    paths = {member: folder / f"masked-{update.site}" for member, update in by_member.items()}
    opened, clipped = _attempt(by_member, paths, encoding, source)
    vectors = [Masked(member, path) for member, path in paths.items()]
    merged = merge(base, vectors, opened, encoding, None, threads=1)
    if merged.refused:
        raise ConfigError(f"the blind merge refuses the sum of these updates: {merged.refused}")
    model = Schema.of_file(by_member[opened.survivors.in_order[0]].path)
    vector = Vector(model)
    total = np.zeros(vector.size, np.uint32)
    for path in paths.values():
        total += _elements(path, vector)
    apply(opened.masks, 0, total)
    own = folder / "own"
    led = next(update for update in updates if update.site == leader)
    encode(led.path, led.samples, encoding, (), own, threads=1)
    first = _elements(folder / f"masked-{updates[0].site}", vector)
    return Sight(
        _values(total - _elements(own, vector), vector, encoding), _values(total, vector, encoding),
        _values(first, vector, encoding), clipped,
    )  # fmt: skip


def _attempt(
    updates: Mapping[Address, Update], paths: Mapping[Address, Path], encoding: Encoding, source: np.random.Generator
) -> tuple[Unmasking, int]:
    """All steps of an attempt; the masked vectors are written to `paths`."""
    members = sorted(updates)
    secrets = {member: source.bytes(32) for member in members}
    seats = tuple(Seat(member, 1, public_key(secrets[member])) for member in members)
    attempt = Attempt(1, bytes(20), 1, 0, 1, bytes(32), bytes(32), seats)
    keys = {member: Keys(attempt, member, secrets[member]) for member in members}
    fresh = {member: Fresh.of(source.bytes(32), attempt) for member in members}
    blobs = {member: blob_of(keys[member], fresh[member]) for member in members}
    held = [open_blob(keys[to], blobs[of]) for to in members for of in members if to != of]
    assert all(one.agrees for one in held), "two sites of one process find different masks"
    frozen = freeze(attempt, dict.fromkeys(members, ()))
    clipped = 0
    for member, update in updates.items():
        masks = masks_of(frozen, keys[member], fresh[member])
        clipped += encode(update.path, update.samples, encoding, masks, paths[member], threads=1).clipped
    survivors = Survivors(frozen, frozenset(members))
    said = [reveal_of(survivors, keys[member], fresh[member]) for member in members]
    opened = unmasking(survivors, blobs, said)
    assert isinstance(opened, Unmasking), "everybody has revealed, so nothing is missing"
    return opened, clipped


def _elements(path: Path, vector: Vector) -> Ring:
    return np.frombuffer(path.read_bytes()[len(vector.schema.header) :], "<u4")


def _values(sums: Ring, vector: Vector, encoding: Encoding) -> Values:
    """The mean that a sum of encoded vectors stands for; of what is none, numbers of the same kind."""
    signed = sums.view("<i4").astype(np.float64)
    weight = max(abs(float(signed[vector.weight_at])), 1.0)
    found = {}
    for tensor, start, exponent in zip(vector.tensors, vector.starts.tolist(), encoding.exponents, strict=True):
        found[tensor.name] = signed[start : start + tensor.count] * 2.0**exponent / weight
    return found
