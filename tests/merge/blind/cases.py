"""Random blind rounds, each against the visible mean: `tried(seed)` says what happened or raises."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from swarm.merge.blind import Masked, Unmasking, encode, exponents_of, unmasking
from swarm.merge.blind.merging import sum_masked
from tests.merge.blind import reference
from tests.merge.blind.world import Played, World, merged, play, world

# The first case of so many is also held against fractions, coordinate by coordinate.
FRACTIONS_EVERY = 20


def tried(seed: int) -> str:
    """One whole round; what its members did wrong, empty where they did nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        case = world(seed, folder)
        source = random.Random(f"play {seed}")
        played = play(case, source)
        assert isinstance(played.found, Unmasking), f"seed {seed}: {played.found}"
        for site in case.sites:
            if not site.fault:
                assert site.member in played.survivors.members, f"seed {seed}: an honest member was left out"
        blind = merged(case, played, threads=1 + seed % 2, out=folder / "blind")
        assert blind.digest == visible(case, played, folder / "visible"), f"seed {seed}: the digests differ"
        _same_for_all(case, played, source, blind.digest)
        if seed % FRACTIONS_EVERY == 0:
            _against_fractions(case, played, folder / "blind")
        return ", ".join(sorted(site.fault for site in case.sites if site.fault))


def visible(case: World, played: Played, folder: Path) -> bytes:
    """The digest of the merge of the same fixed-point updates, none of them masked."""
    folder.mkdir()
    encoding, plain = case.encoding(played.frozen), []
    for site in case.sites:
        if site.member in played.survivors.members:
            plain.append(Masked(site.member, folder / site.member.hex()))
            encode(case.updates[site.member], site.weight, encoding, (), plain[-1].path, threads=1)
    found = sum_masked(case.base, plain, (), encoding, None, threads=1)
    assert not found.refused
    return found.digest


def _same_for_all(case: World, played: Played, source: random.Random, digest: bytes) -> None:
    """Whoever reads more of the ledger, or the same in another order, finds the same checkpoint."""
    said, complete = list(played.said), 0
    for end in range(len(said), -1, -1):
        if not isinstance(unmasking(played.survivors, played.blobs, said[:end]), Unmasking):
            complete = end + 1
            break
    source.shuffle(said)
    for others in (played.said[:complete], said):
        found = unmasking(played.survivors, played.blobs, others)
        again = Played(played.blobs, played.frozen, played.vectors, played.survivors, others, found)
        assert merged(case, again).digest == digest


def _against_fractions(case: World, played: Played, blind: Path) -> None:
    exponents = list(exponents_of(case.base))
    updates = {member: case.updates[member] for member in played.survivors.members}
    weights = {site.member: site.weight for site in case.sites}
    sums, weight = reference.vectors(
        updates, weights, len(played.frozen.joined), case.weight_max, exponents, case.norm_max
    )
    expected = reference.checkpoint(case.base, sums, weight, exponents)
    found = reference.floats_of(blind)
    assert {name: found[name] for name in expected} == expected
    assert reference.exponents_in(blind) == reference.next_exponents(sums, weight, exponents)
