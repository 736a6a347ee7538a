"""When the alarm rings, and what a round then ends with: a function of what stands on the ledger, over many runs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from swarm.config import Policy
from swarm.encoding import Digest, sha256
from swarm.merge.alarm import Judged, Settled, in_groups, rings, settled

SKIP = Policy("alarm", 10, 5, alarm_metric="auc", alarm_action="skip")
GROUPS = replace(SKIP, blind=True, merge="mean", submissions_min=3, alarm_action="groups")
MEMBERS = ("a", "b", "c", "d")


def alike(auc: float, members: Sequence[str] = MEMBERS) -> Mapping[str, Mapping[str, float]]:
    return {member: {"auc": auc} for member in members}


def told(*values: float, bases: str = "") -> list[Judged]:
    """Rounds of which all members tell the same; each has a base of its own, or the one that its letter names."""
    letters = bases or "".join(chr(ord("a") + number) for number in range(len(values)))
    return [Judged(letter.encode() * 32, alike(value)) for letter, value in zip(letters, values, strict=True)]


def ends(found: Settled | None) -> Digest | None:
    return None if found is None else found.checkpoint


def test_a_fall_ends_the_round_that_tells_of_it_with_the_base_of_the_round_before() -> None:
    rounds = told(0.9, 0.91, 0.6)
    assert [ends(settled(SKIP, rounds[:n])) for n in (1, 2, 3)] == [None, None, b"b" * 32]
    found = settled(SKIP, rounds)
    assert found is not None
    assert found.fell_at == MEMBERS
    assert found.why == "auc fell by more than 0.05 at 4 of 4 members with the checkpoint of round 1, which is given up"


def test_the_first_round_has_nothing_to_fall_from_and_the_second_goes_back_to_the_first_checkpoint() -> None:
    assert settled(SKIP, told(0.1)) is None
    assert ends(settled(SKIP, told(0.9, 0.1))) == b"a" * 32


def test_the_checkpoint_that_a_run_went_back_to_rings_no_alarm_again() -> None:
    """Measured once more it may look worse: it stood before, and there is nothing behind it to go back to."""
    assert settled(SKIP, told(0.9, 0.6, 0.5, bases="aba")) is None
    # What comes from it is held against what was told of it the second time.
    assert settled(SKIP, told(0.9, 0.6, 0.5, 0.48, bases="abac")) is None
    assert ends(settled(SKIP, told(0.9, 0.6, 0.5, 0.4, bases="abac"))) == b"a" * 32


def test_a_second_poisoned_round_rings_again() -> None:
    rounds = told(0.9, 0.6, 0.9, 0.5, 0.9, bases="abaca")
    assert [ends(settled(SKIP, rounds[:n])) for n in range(1, 6)] == [None, b"a" * 32, None, b"a" * 32, None]


def test_a_round_that_changed_nothing_is_not_judged() -> None:
    assert settled(SKIP, told(0.9, 0.1, bases="aa")) is None


@pytest.mark.parametrize(("fallen", "rung"), [(1, False), (2, True), (3, True)])
def test_half_of_those_who_submitted_ring_it(fallen: int, rung: bool) -> None:
    after = {**alike(0.9), **alike(0.1, MEMBERS[:fallen])}
    assert bool(rings(SKIP, [Judged(b"a", alike(0.9)), Judged(b"b", after)])) is rung


def test_who_tells_no_metric_neither_rings_nor_hides_it() -> None:
    before = Judged(b"a", alike(0.9))
    one = {**{member: {"loss": 1.0} for member in MEMBERS}, "a": {"auc": 0.1}}
    assert not rings(SKIP, [before, Judged(b"b", one)])
    assert rings(SKIP, [before, Judged(b"b", {**alike(0.1, "ab"), "c": {}, "d": {"loss": 1.0}})])
    # Who was not there before has nothing to hold it against.
    assert not rings(SKIP, [Judged(b"a", alike(0.9, "a")), Judged(b"b", alike(0.1))])
    assert not rings(SKIP, [before, Judged(b"b", {})])


def test_the_last_round_judges_and_merges_nothing() -> None:
    short = replace(SKIP, rounds=3)
    assert ends(settled(short, told(0.8, 0.85, 0.9))) == b"c" * 32
    assert ends(settled(short, told(0.8, 0.85, 0.2))) == b"b" * 32
    assert settled(replace(short, alarm_action="tell"), told(0.8, 0.85, 0.2)) is None


def test_the_round_after_an_alarm_is_merged_in_groups_and_no_other() -> None:
    rounds = told(0.9, 0.6, 0.9, 0.95, bases="abac")
    assert [in_groups(GROUPS, rounds[:n]) for n in range(5)] == [False, False, True, False, False]
    assert not in_groups(SKIP, rounds[:2])


@pytest.mark.parametrize("seed", range(200))
def test_fewer_than_half_cannot_ring_it_and_all_others_together_do(seed: int) -> None:
    source = random.Random(seed)
    count = source.randint(2, 12)
    names = [f"m{number}" for number in range(count)]
    liars = set(names[: (count - 1) // 2])

    def said(truth: float) -> dict[str, dict[str, float]]:
        lies: list[dict[str, float]] = [{}, {"auc": 1e300}, {"auc": -1e300}, {"auc": truth}]
        return {name: source.choice(lies) if name in liars else {"auc": truth} for name in names}

    assert not rings(SKIP, [Judged(b"a", said(0.9)), Judged(b"b", said(0.88))])
    assert rings(SKIP, [Judged(b"a", said(0.9)), Judged(b"b", said(0.8))])


@pytest.mark.parametrize("seed", range(200))
def test_a_whole_run_never_keeps_a_checkpoint_that_fell(seed: int) -> None:
    """Rounds of which some are poisoned, played by the rule: every second one at most is given up, and the last
    checkpoint is as good as the best that honest rounds made, less what is no alarm."""
    source = random.Random(seed)
    policy = replace(SKIP, rounds=source.randint(2, 30))
    worth = {b"start": 0.5}
    base, rounds, given_up = b"start", list[Judged](), list[bool]()
    while len(rounds) < policy.rounds:
        rounds.append(Judged(base, alike(worth[base] + source.uniform(-0.01, 0.01))))
        found = settled(policy, rounds)
        given_up.append(bool(found and found.fell_at))
        if found is not None:
            base = found.checkpoint
            continue
        merged = sha256(base + bytes([len(rounds)]))
        worth[merged] = worth[base] + (source.choice([-0.3, -1.0]) if source.random() < 0.3 else 0.01)
        base = merged
    assert worth[base] >= 0.5
    assert not any(one and two for one, two in pairwise(given_up))
