"""How a run goes on by what its members told: the interval, the best checkpoint, an early end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import Policy
from swarm.course import Told, best, ended_after, judged, sync_interval

GROWING = Policy("grow", 50, 10, sync_interval_max=100, sync_growth=2.0)
JUDGED = Policy("judged", 50, 10, best_metric="auc", patience=3)


def rounds(*told: Mapping[Any, float], name: str = "auc") -> list[Told]:
    """Closed rounds in which members told one number each."""
    return [
        Told(number, bytes([number]) * 32, {member: {name: value} for member, value in one.items()})
        for number, one in enumerate(told)
    ]


def alone(*values: float, name: str = "auc") -> list[Told]:
    return rounds(*({"a": value} for value in values), name=name)


def test_the_interval_grows_while_the_loss_falls_and_shrinks_when_it_rises() -> None:
    told = alone(1.0, 0.9, 0.8, 0.8, 0.85, 0.9, 0.95, name="loss")
    assert [sync_interval(GROWING, told[:n]) for n in range(8)] == [10, 10, 20, 40, 40, 20, 10, 10]
    assert sync_interval(GROWING, alone(*(1 / n for n in range(1, 40)), name="loss")) == 100
    assert sync_interval(Policy("fixed", 50, 10), told) == 10


def test_a_growth_that_is_no_whole_number_is_exact_and_always_moves() -> None:
    policy = Policy("grow", 50, 1, sync_interval_max=1000, sync_growth=1.1)
    falling = alone(*(1 / n for n in range(1, 12)), name="loss")
    assert [sync_interval(policy, falling[:n]) for n in range(1, 12)] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(("lies", "grown"), [(1, False), (2, False), (3, True)])
def test_fewer_than_half_of_the_members_cannot_stretch_the_interval(lies: int, grown: bool) -> None:
    liars = [f"liar {i}" for i in range(lies)]
    before = dict.fromkeys(liars, 1e300) | {"a": 1.0, "b": 1.0}
    after = dict.fromkeys(liars, -1e300) | {"a": 1.0, "b": 1.1}
    assert (sync_interval(GROWING, rounds(before, after, name="loss")) > 10) == grown


def test_a_member_that_tells_no_loss_or_was_away_counts_for_nothing() -> None:
    told = rounds({"a": 1.0, "b": 1.0}, {"a": 0.5, "c": 9.0}, name="loss")
    assert sync_interval(GROWING, told) == 20
    assert sync_interval(GROWING, [Told(0, b"", {"a": {}}), Told(1, b"", {"a": {"loss": 1.0}})]) == 10


def test_the_best_checkpoint_is_the_one_that_the_next_rounds_submissions_judged_best() -> None:
    found = best(JUDGED, alone(0.5, 0.7, 0.9, 0.8))
    assert found is not None
    assert (found.round, found.checkpoint, found.value) == (1, bytes([1]) * 32, 0.9)  # round 2 judged round 1's
    least = best(Policy("least", 50, 10, best_metric="auc", best_mode="min"), alone(0.5, 0.7, 0.6, 0.8))
    assert least is not None
    assert (least.round, least.value) == (1, 0.6)
    assert best(JUDGED, alone(0.5)) is None
    assert best(Policy("plain", 50, 10), alone(0.5, 0.6)) is None


def test_of_two_that_are_alike_the_earlier_one_is_the_best() -> None:
    found = best(JUDGED, alone(0.0, 0.7, 0.7, 0.7))
    assert found is not None
    assert found.round == 0


def test_a_checkpoint_that_half_of_the_members_tell_nothing_of_is_not_judged() -> None:
    told = rounds({"a": 0.1, "b": 0.1}, {"a": 0.9}, {"a": 0.5, "b": 0.6})
    silent = [told[0], Told(1, b"x", {"a": {"auc": 0.9}, "b": {}}), told[2]]
    assert [(one.round, one.value) for one in judged(JUDGED, silent)] == [(1, 0.5)]


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=9),
    st.lists(st.sampled_from([-1e308, 0.0, 1e308]), max_size=4),
)
def test_fewer_than_half_of_the_members_lift_no_checkpoint_above_what_an_honest_one_measured(
    honest: list[float], lies: list[float]
) -> None:
    values = dict(enumerate(honest + lies[: (len(honest) - 1)]))
    (found,) = judged(JUDGED, rounds(values, values))
    assert min(honest) <= found.value <= max(honest)


def test_the_run_is_over_when_patience_checkpoints_were_no_better() -> None:
    course = [0.0, 0.5, 0.7, 0.69, 0.7, 0.6, 0.9]
    ends = [ended_after(JUDGED, alone(*course[:n])) for n in range(len(course) + 1)]
    # 0.7 judges round 1's checkpoint; those of rounds 2, 3 and 4 are no better, which round 5's submissions tell.
    assert ends == [None, None, None, None, None, None, 5, 5]
    assert ended_after(Policy("on", 50, 10, best_metric="auc"), alone(*course)) is None


def test_patience_starts_anew_with_every_better_checkpoint() -> None:
    assert ended_after(JUDGED, alone(0.0, 0.5, 0.4, 0.4, 0.6, 0.5, 0.5)) is None
    assert ended_after(JUDGED, alone(0.0, 0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5)) == 7


def test_a_gain_below_min_delta_does_not_count_for_patience() -> None:
    policy = Policy("delta", 50, 10, best_metric="auc", patience=2, min_delta=0.05)
    assert ended_after(policy, alone(0.0, 0.5, 0.52, 0.54)) == 3
    assert ended_after(policy, alone(0.0, 0.5, 0.52, 0.56)) is None
    found = best(policy, alone(0.0, 0.5, 0.52, 0.54))
    assert found is not None
    assert found.value == 0.54  # the best one is the best one all the same


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 5))
def test_a_run_that_is_over_stays_over_whatever_comes_later(values: list[float], patience: int) -> None:
    policy = Policy("over", 50, 10, best_metric="auc", patience=patience)
    ends = [ended_after(policy, alone(*values[:n])) for n in range(len(values) + 1)]
    first = next((end for end in ends if end is not None), None)
    assert all(end in (None, first) for end in ends)
    assert first is None or ends.index(first) == first + 1
