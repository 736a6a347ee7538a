"""Blind rounds that are merged in groups: who is in which, what opens, and what a poisoned group can do."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.encoding import Address
from swarm.merge import Schema, write_file
from swarm.merge.blind import Masked, Reveal, Survivors, Unmasking, encode
from swarm.merge.blind.groups import borne, groups_of
from swarm.merge.blind.keys import SEATS_MIN
from swarm.merge.blind.merging import sum_masked
from tests.merge.blind.adversary import Adversary
from tests.merge.blind.test_adversary import Swarm
from tests.merge.blind.world import SCHEMA, Played, World, merged, play, submitted, values_of, world
from tests.merge.reference import decoded, read_file

FLOATS = [tensor for tensor in SCHEMA.tensors if tensor.dtype != "I64"]


def seats_of(count: int) -> dict[Address, int]:
    return {bytes([number]) * 20: number for number in range(count)}


@pytest.mark.parametrize(
    ("members", "groups"), [(3, 0), (8, 0), (9, 3), (11, 3), (12, 3), (14, 3), (15, 5), (20, 5), (21, 7), (128, 41)]
)
def test_the_largest_odd_number_of_groups_of_three_or_more(members: int, groups: int) -> None:
    found = groups_of(b"base" * 8, seats_of(members))
    assert len(found) == groups
    assert sorted(member for group in found for member in group) == sorted(seats_of(members) if groups else [])
    sizes = [len(group) for group in found]
    assert not sizes or (min(sizes) >= SEATS_MIN and max(sizes) - min(sizes) <= 1)
    assert not groups or members >= 3 * (2 * borne(groups) + 1)


def test_nobody_chooses_the_groups() -> None:
    """Neither by its key nor by when it comes: the draw is by seat and checkpoint."""
    seats = seats_of(9)
    found = groups_of(b"x" * 32, seats)
    assert groups_of(b"x" * 32, dict(reversed(seats.items()))) == found
    other = {(b"new" + member)[:20]: seat for member, seat in seats.items()}
    renamed = {frozenset((b"new" + member)[:20] for member in group) for group in found}
    assert set(groups_of(b"x" * 32, other)) == renamed
    draws = {frozenset(groups_of(bytes([n]) * 32, seats)) for n in range(50)}
    assert len(draws) > 30
    together = sum(any({*list(seats)[:2]} <= group for group in draw) for draw in draws) / len(draws)
    assert 0.05 < together < 0.5  # a quarter, where they are drawn


@pytest.mark.parametrize("seed", range(100))
def test_two_without_a_mask_in_common_are_in_no_group_together(seed: int) -> None:
    source = random.Random(seed)
    seats = seats_of(source.choice([9, 15, 16]))
    liar = source.choice(list(seats))
    most = len(seats) - (2 * len(seats) // 3 + 1)
    apart = [frozenset((liar, other)) for other in source.sample([s for s in seats if s != liar], most)]
    found = groups_of(source.randbytes(32), seats, apart)
    assert all(not edge <= group for group in found for edge in apart)
    assert all(len(group) >= SEATS_MIN for group in found)


def floats_of(path: Path) -> NDArray[np.float64]:
    """All float elements of a checkpoint, in order."""
    found = read_file(path)
    return np.concatenate([decoded(found[tensor.name], tensor.dtype).reshape(-1) for tensor in FLOATS])


def alone(case: World, played: Played, group: frozenset[Address], out: Path) -> NDArray[np.float64]:
    """The checkpoint that the plain updates of some members make in the same fixed point: nothing is masked."""
    plain = []
    for member in sorted(group & played.survivors.members):
        path = case.folder / f"plain {member.hex()}"
        encode(case.updates[member], case.by_member[member].weight, case.encoding(played.frozen), (), path, threads=1)
        plain.append(Masked(member, path))
    found = sum_masked(case.base, plain, (), case.encoding(played.frozen), out, threads=1)
    assert not found.refused
    return floats_of(out)


@pytest.mark.parametrize("seed", range(12))
def test_the_merge_is_the_median_of_the_groups_visible_means_bit_for_bit(seed: int, tmp_path: Path) -> None:
    """Rounding keeps order, so the median of the groups' checkpoints is the checkpoint of their median."""
    source = random.Random(seed)
    case = replace(world(seed, tmp_path, members=source.choice([9, 11, 15]), faults=()), norm_max=float("inf"))
    groups = groups_of(case.attempt.base, {site.member: place for place, site in enumerate(case.sites)})
    if seed % 2:  # one is silent about its mask, and where a group can spare it, one vanishes with its vector
        silent, *spare = source.sample(case.sites, len(case.sites))
        silent.fault = "vanishes after submitting"
        for site in [one for one in spare if any(one.member in g and len(g) > SEATS_MIN for g in groups)][:1]:
            site.fault = "vanishes after confirming"
    played = play(case, source, grouped=True)
    assert played.frozen.groups == groups
    found = merged(case, played, out=tmp_path / "merged")
    assert not found.refused
    rows = [alone(case, played, group, tmp_path / f"group {n}") for n, group in enumerate(played.frozen.groups)]
    assert np.array_equal(floats_of(tmp_path / "merged"), np.sort(np.stack(rows), axis=0)[len(rows) // 2])
    assert [frozenset(group.members) for group in found.groups] == list(played.survivors.summed)
    again = merged(case, played, threads=3)
    assert again.digest == found.digest


@pytest.mark.parametrize("seed", range(9))
def test_one_poisoned_group_moves_nothing_beyond_what_the_honest_groups_say(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    case = replace(world(seed, tmp_path, members=9, faults=()), norm_max=float("inf"))
    honest = play(case, source, grouped=True)
    bad = honest.frozen.groups[seed % 3]
    others = [group for group in honest.frozen.groups if group != bad]
    rows = [alone(case, honest, group, tmp_path / f"group {n}") for n, group in enumerate(others)]
    numbers = np.random.default_rng(seed)
    liars = sorted(bad) if seed % 2 else sorted(bad)[:1]
    for member in liars:
        if seed % 3:  # whole words of the ring, larger than honest sums are; in some its weight too
            raw = np.fromfile(honest.vectors[member], np.uint8)
            words = raw[len(Schema.of_file(honest.vectors[member]).header) :].view("<u4")
            words = words[: len(words) - seed % 3 + 1]
            words += numbers.integers(0, 2**32, len(words), np.uint32)
            raw.tofile(honest.vectors[member])
        else:  # an update as an honest one may be, only false
            false = values_of(numbers, 100.0)
            write_file(case.updates[member], SCHEMA, false)
    if not seed % 3:
        honest = replace(honest, vectors=submitted(case, honest.frozen))
    found = merged(case, honest, out=tmp_path / "merged")
    assert not found.refused
    after = floats_of(tmp_path / "merged")
    assert (after >= np.minimum(*rows)).all()
    assert (after <= np.maximum(*rows)).all()
    (seen,) = [group for group in found.groups if frozenset(group.members) == bad]
    assert bool(seen.refused) is bool(seed % 3)
    assert all(not group.refused for group in found.groups if group is not seen)


def test_more_groups_than_are_borne_change_nothing(tmp_path: Path) -> None:
    case = replace(world(3, tmp_path, members=9, faults=()), norm_max=1e-6)
    played = play(case, random.Random(3), grouped=True)
    for group in played.frozen.groups[:2]:
        raw = np.fromfile(played.vectors[min(group)], np.uint8)
        raw[-20:] += 77
        raw.tofile(played.vectors[min(group)])
    found = merged(case, played, out=tmp_path / "merged")
    assert found.refused.startswith("of 2 groups' sums the first: ")
    assert (tmp_path / "merged").read_bytes() == case.base.read_bytes()


def test_a_group_of_two_is_not_opened(tmp_path: Path) -> None:
    case = world(5, tmp_path, members=9, faults=())
    played = play(case, random.Random(5), grouped=True)
    rest = played.frozen.joined - {min(played.frozen.groups[1])}
    with pytest.raises(ValueError, match="2 updates would be in a group's sum, 3 are needed to hide one"):
        Survivors(played.frozen, rest)
    # In one sum of all, eight of nine are enough.
    assert Survivors(replace(played.frozen, groups=()), rest).summed == (rest,)


def test_groups_that_are_not_all_members_each_once_are_refused(tmp_path: Path) -> None:
    case = world(5, tmp_path, members=9, faults=())
    frozen = play(case, random.Random(5), grouped=True).frozen
    with pytest.raises(ValueError, match="are not all members, each once"):
        replace(frozen, groups=frozen.groups[:2])
    with pytest.raises(ValueError, match="are not all members, each once"):
        replace(frozen, groups=(*frozen.groups, frozen.groups[0]))


def test_who_masks_by_other_groups_than_all_spoils_the_sums_and_shows_nothing(tmp_path: Path) -> None:
    """A leader, or anybody, that chose groups of its own: masks do not cancel, and the sums are none of honest ones."""
    case = world(6, tmp_path, members=9, faults=())
    played = play(case, random.Random(6), grouped=True)
    first, second, third = played.frozen.groups
    one, two = min(first), min(second)
    chosen = replace(played.frozen, groups=(first - {one} | {two}, second - {two} | {one}, third))
    assert isinstance(played.found, Unmasking)
    by_choice = replace(played.found, survivors=Survivors(chosen, played.survivors.members))
    found = merged(case, replace(played, found=by_choice))
    assert found.refused


@pytest.mark.parametrize("seed", range(6))
def test_the_ledger_the_leader_and_some_members_learn_the_groups_sums_and_nothing_beyond(seed: int) -> None:
    """Seeds of pairs in two groups come out as well, where one of them dropped out: they masked nothing."""
    source = random.Random(seed)
    swarm = Swarm.of(seed, source.choice([12, 13, 16]))
    members = sorted(swarm.secrets)
    groups = groups_of(source.randbytes(32), {member: place for place, member in enumerate(members)})
    gone = source.choice([one for one in members if all(one not in g or len(g) > SEATS_MIN for g in groups)])
    survivors = [one for one in members if one != gone]
    played = swarm.attempt(1, survivors, source.sample(survivors, 2), groups=groups)
    seen = played[0]
    away = {said.member for said in seen.said if isinstance(said, Reveal) and gone in said.pair_seeds}
    assert len(away) == len(survivors) - 2
    traitors = source.sample(members, 2)
    adversary = Adversary([seen], [swarm.traitor(one, [played]) for one in traitors])
    sums = [{(0, one): 1 for one in group - {gone} - {*traitors}} for group in groups]
    learned = sorted(adversary.learned(), key=lambda one: min(one))
    assert learned == sorted((one for one in sums if one), key=lambda one: min(one))


def test_one_whose_masks_are_all_with_other_groups_would_be_open() -> None:
    """Planted: a draw that ignores which edges were dropped."""
    swarm = Swarm.of(3, 9)
    members = sorted(swarm.secrets)
    seats = {member: place for place, member in enumerate(members)}
    blind = groups_of(b"b" * 32, seats)
    victim, *others = sorted(blind[0])
    dropped = [frozenset((victim, other)) for other in others]
    for groups, open_ in ((blind, True), (groups_of(b"b" * 32, seats, dropped), False)):
        played = swarm.attempt(1, members, groups=groups, dropped=dropped)
        assert Adversary([played[0]], []).opens_alone(victim) is open_


def test_two_sums_over_other_groups_of_the_same_updates_would_open_single_ones() -> None:
    """Why a round of groups in which a mask was opened never opens another sum."""
    swarm = Swarm.of(4, 9)
    members = sorted(swarm.secrets)
    first = swarm.attempt(1, members, groups=(members[:3], members[3:6], members[6:]))
    again = swarm.attempt(2, members, groups=(members[1:4], [members[0], *members[4:6]], members[6:]))
    assert not Adversary([first[0]], []).opens_alone(members[0])
    traitor = swarm.traitor(members[3], [first, again])
    assert Adversary([first[0], again[0]], [traitor]).opens_alone(members[0])
