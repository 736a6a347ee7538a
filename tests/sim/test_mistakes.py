"""Known mistakes, made by every honest node on purpose: the simulator notices each within the seeds named here."""

from __future__ import annotations

from collections.abc import Iterator

from sim.plan import Plan
from sim.world import run
from swarm.rounds import submissions_needed


def failures(plans: Iterator[Plan]) -> Iterator[str]:
    """What was noticed in each plan that went wrong."""
    return (outcome.failure for outcome in map(run, plans) if outcome.failure)


def test_attesting_without_merging_is_noticed_within_8_seeds() -> None:
    plans = (Plan(seed=seed, liar=("bit", "wrong")[seed % 2], mistake="credulous") for seed in range(8))
    assert "but the merge of its submissions is" in next(failures(plans))


def test_submitting_without_custody_is_noticed_within_3_seeds() -> None:
    plans = (Plan(seed=seed, gone=1, delay_s=0.05, mistake="careless") for seed in range(3))
    assert "which is honest, is lost" in next(failures(plans))


def test_votes_that_are_not_kept_are_noticed_within_6_seeds_of_power_cuts() -> None:
    plans = (
        Plan(seed=seed, blackouts=1, power_cuts=2, crashes=2, loss=0.1, train_s=1.0, mistake="forgetful")
        for seed in range(6)
    )
    assert "fork" in next(failures(plans))


def slow_sites(seed: int, submissions_min: int) -> Plan:
    """Seven members of which two collude; training takes so long that few submit in time."""
    return Plan(
        seed=seed, members=7, liar="collude", liars=2, submissions_min=submissions_min, patience=0.2, train_s=20.0,
        trouble_s=5.0,
    )  # fmt: skip


def test_two_that_collude_are_no_quorum_of_a_round_with_two_submissions() -> None:
    """The contract counts against those who consent to the run, not against those who submitted."""
    outcomes = [run(slow_sites(seed, submissions_min=2)) for seed in (0, 2)]
    assert not any(outcome.failure for outcome in outcomes)
    assert all(outcome.wrong_publications for outcome in outcomes)


def test_the_same_plans_without_the_mistake_are_well() -> None:
    for seed in range(2):
        assert not run(Plan(seed=seed, liar=("bit", "wrong")[seed % 2])).failure
        assert not run(Plan(seed=seed, gone=1, delay_s=0.05)).failure
        assert not run(slow_sites(seed, submissions_needed(7))).failure
        assert not run(Plan(seed=seed, blackouts=1, power_cuts=2, crashes=2, loss=0.1, train_s=1.0)).failure
