"""Whole blind rounds in memory and small files: honest members, those who vanish at any step, and those who lie."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.merge import Schema, Tensor, write_file
from swarm.merge.blind import (
    Attempt,
    BlindMerged,
    Blob,
    Encoding,
    Entry,
    Fresh,
    Frozen,
    Held,
    Keys,
    Masked,
    Missing,
    Reveal,
    Said,
    Seat,
    Shares,
    Survivors,
    Unmasking,
    blob_of,
    encode,
    exponents_of,
    freeze,
    masks_of,
    merge,
    open_blob,
    public_key,
    reveal_of,
    shares_of,
    unmasking,
)
from swarm.merge.blind.groups import groups_of
from tests.merge.reference import encoded

STEPS = (
    "never joins",
    "vanishes after joining",
    "vanishes after confirming",
    "vanishes after submitting",
    "vanishes after revealing",
)
LIES = (
    "commits to other pair seeds",
    "seals bad shares",
    "reveals a wrong self seed",
    "reveals wrong pair seeds",
    "says nothing of the vanished",
    "gives false shares",
)


@dataclass
class Site:
    """One member: its secrets, and what it does wrong (nothing if empty)."""

    member: Address
    secret: bytes
    seed: bytes
    weight: int
    fault: str = ""
    held: dict[Address, Held] = field(default_factory=dict)

    def does(self, step: str) -> bool:
        """Whether it is still there when this step ends."""
        return self.fault not in STEPS[: STEPS.index(step) + 1]


@dataclass
class World:
    """One attempt at a round."""

    attempt: Attempt
    sites: list[Site]
    folder: Path
    base: Path
    updates: dict[Address, Path]
    norm_max: float = float("inf")
    weight_max: int = 100

    @property
    def by_member(self) -> dict[Address, Site]:
        return {site.member: site for site in self.sites}

    def keys(self, site: Site) -> Keys:
        return Keys(self.attempt, site.member, site.secret)

    def fresh(self, site: Site) -> Fresh:
        return Fresh.of(site.seed, self.attempt)

    def encoding(self, frozen: Frozen) -> Encoding:
        context = self.attempt.context
        return Encoding(len(frozen.joined), exponents_of(self.base), self.weight_max, self.norm_max, context)


def attempt_of(secrets: Mapping[Address, bytes], number: int = 1) -> Attempt:
    """An attempt among these members."""
    seats = tuple(Seat(member, 1, public_key(secrets[member])) for member in sorted(secrets))
    return Attempt(1337, b"\x10" * 20, 3, 4, number, b"p" * 32, b"b" * 32, seats)


SCHEMA = Schema.of(
    [
        Tensor("a.weight", "F32", (3, 4)),
        Tensor("b.half", "F16", (5,)),
        Tensor("c.double", "F64", (2,)),
        Tensor("d.brain", "BF16", (3,)),
        Tensor("e.batches", "I64", ()),
        Tensor("f.empty", "F32", (0, 3)),
        Tensor("z.bias", "F32", (7,)),
    ]
)


def values_of(source: np.random.Generator, scale: float) -> dict[str, NDArray[np.generic]]:
    """Elements of every tensor of `SCHEMA`."""
    found: dict[str, NDArray[np.generic]] = {}
    for tensor in SCHEMA.tensors:
        if tensor.dtype == "I64":
            found[tensor.name] = np.asarray(source.integers(0, 100, tensor.shape), np.int64)
        else:
            found[tensor.name] = encoded(source.standard_normal(tensor.shape) * scale, tensor.dtype)
    return found


def world(seed: int, folder: Path, *, members: int = 0, faults: Sequence[str] | None = None) -> World:
    """A drawn world: 3 to 20 members, up to n - t of them faulty unless `faults` says whose they are."""
    source, numbers = random.Random(seed), np.random.default_rng(seed)
    count = members or source.randint(3, 20)
    names = sorted(source.randbytes(20) for _ in range(count))
    sites = [Site(name, source.randbytes(32), source.randbytes(32), source.randint(1, 150)) for name in names]
    attempt = attempt_of({site.member: site.secret for site in sites}, number=seed)
    if faults is None:
        broken = source.randint(0, count - attempt.threshold)
        faults = [source.choice(STEPS + LIES) for _ in range(broken)]
    for site, fault in zip(source.sample(sites, len(faults)), faults, strict=True):
        site.fault = fault
    write_file(folder / "base", SCHEMA, values_of(numbers, 1.0))
    scale = source.choice([0.001, 0.1, 0.1, 2.0])
    updates = {}
    for number, site in enumerate(sites):
        updates[site.member] = folder / f"update {number}"
        write_file(updates[site.member], SCHEMA, values_of(numbers, scale))
    return World(
        attempt, sites, folder, folder / "base", updates, source.choice([float("inf"), float("inf"), 0.5, 4.0]),
        source.choice([0, 1, 100, 1000]),
    )  # fmt: skip


@dataclass
class Played:
    """What a round came to."""

    blobs: dict[Address, Blob]
    frozen: Frozen
    vectors: dict[Address, Path]
    survivors: Survivors
    said: list[Said]
    found: Unmasking | Missing


def play(case: World, source: random.Random, *, grouped: bool = False) -> Played:
    """Every step of the round, with everybody's faults."""
    blobs = joined(case, source)
    frozen = freeze(case.attempt, confirmed(case, blobs))
    if grouped:
        seats = {member: case.attempt.place(member) for member in frozen.joined}
        frozen = replace(frozen, groups=groups_of(case.attempt.base, seats, frozen.dropped))
    vectors = submitted(case, frozen)
    survivors = Survivors(frozen, frozenset(vectors))
    said = revealed(case, survivors, source)
    missing = unmasking(survivors, blobs, said)
    if isinstance(missing, Missing):
        said += shared(case, survivors, missing, source)
    return Played(blobs, frozen, vectors, survivors, said, unmasking(survivors, blobs, said))


def joined(case: World, source: random.Random) -> dict[Address, Blob]:
    """The blobs of all who join."""
    found = {}
    for site in case.sites:
        if not site.does("never joins"):
            continue
        blob = _lying(case, site, blob_of(case.keys(site), case.fresh(site)), source)
        found[site.member] = Blob.decode(blob.encode(), case.attempt, site.member)
    return found


def _lying(case: World, site: Site, blob: Blob, source: random.Random) -> Blob:
    def changed(entry: Entry) -> Entry:
        if source.random() < 0.5:
            return entry
        if site.fault == "commits to other pair seeds":
            return replace(entry, pair=source.randbytes(32))
        return replace(entry, sealed=source.randbytes(len(entry.sealed)))

    if site.fault not in ("commits to other pair seeds", "seals bad shares"):
        return blob
    return replace(blob, entries=tuple(changed(entry) for entry in blob.entries))


def confirmed(case: World, blobs: Mapping[Address, Blob]) -> dict[Address, frozenset[Address]]:
    """Who confirms, and which edges each drops."""
    found = {}
    for site in case.sites:
        if not site.does("vanishes after joining"):
            continue
        dropped = set()
        for sender, blob in blobs.items():
            if sender == site.member:
                continue
            try:
                site.held[sender] = open_blob(case.keys(site), blob)
            except PeerError as error:
                if error.member != sender or case.by_member[sender].fault != "seals bad shares":
                    raise
            if sender not in site.held or not site.held[sender].agrees:
                dropped.add(sender)
        found[site.member] = frozenset(dropped)
    return found


def submitted(case: World, frozen: Frozen) -> dict[Address, Path]:
    """The masked vectors that arrive."""
    found = {}
    for site in case.sites:
        if site.member in frozen.joined and site.does("vanishes after confirming"):
            found[site.member] = out = case.folder / f"masked {site.member.hex()}"
            masks = masks_of(frozen, case.keys(site), case.fresh(site))
            encode(case.updates[site.member], site.weight, case.encoding(frozen), masks, out, threads=1)
    return found


def revealed(case: World, survivors: Survivors, source: random.Random) -> list[Said]:
    """What the survivors reveal, in any order; liars do so before and after others."""
    found: list[Said] = []
    for site in case.sites:
        if site.member not in survivors.members or not site.does("vanishes after submitting"):
            continue
        said = reveal_of(survivors, case.keys(site), case.fresh(site))
        if site.fault == "reveals a wrong self seed":
            said = Reveal(said.member, source.randbytes(16), said.pair_seeds)
        elif site.fault == "reveals wrong pair seeds":
            said = Reveal(said.member, said.self_seed, {gone: source.randbytes(32) for gone in said.pair_seeds})
        elif site.fault == "says nothing of the vanished":
            said = Reveal(said.member, said.self_seed)
        found.append(said)
    source.shuffle(found)
    return found


def shared(case: World, survivors: Survivors, missing: Missing, source: random.Random) -> list[Said]:
    """The shares of what is missing, by all who are still there."""
    found: list[Said] = []
    for site in case.sites:
        if not site.held or not site.does("vanishes after revealing"):
            continue
        said = shares_of(survivors, missing, site.member, site.held)
        if site.fault == "gives false shares":
            said = Shares(
                said.member,
                {member: source.randbytes(16) for member in said.self_shares},
                {member: source.randbytes(16) for member in said.recovery_shares},
            )
        found.append(said)
    source.shuffle(found)
    return found


def merged(case: World, played: Played, *, threads: int = 1, out: Path | None = None) -> BlindMerged:
    """The blind merge."""
    assert isinstance(played.found, Unmasking), played.found
    vectors = [Masked(member, path) for member, path in played.vectors.items()]
    return merge(case.base, vectors, played.found, case.encoding(played.frozen), out, threads=threads)
