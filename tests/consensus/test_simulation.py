"""Agreement, validity and an end to every height, tried over many small worlds; and the mistakes that must show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.consensus import main
from sim.validators import Outcome, run_seed
from tests.consensus.planted import (
    AnyLock,
    AnyName,
    AnyProposer,
    ForgetsLock,
    Impatient,
    LowQuorum,
    MixesViews,
    NeverJumps,
    NeverResends,
    OldValidators,
    Unjustified,
)

ROOT = Path(__file__).parents[2]


def unchecked(*_: object, **__: object) -> None:
    """For a world that takes any certificate."""


def first_broken(seeds: int, *, start: int = 0, **settings: Any) -> Outcome | None:
    outcomes = (run_seed(seed, validators=4, **settings) for seed in range(start, start + seeds))
    return next((outcome for outcome in outcomes if outcome.failure), None)


@pytest.mark.parametrize(("validators", "seeds"), [(1, 40), (2, 60), (3, 60), (4, 120), (5, 30), (7, 20)])
def test_no_world_forks_or_stops(validators: int, seeds: int) -> None:
    broken = [o for o in (run_seed(seed, validators=validators) for seed in range(seeds)) if o.failure]
    assert not broken, f"python -m sim consensus --validators {validators} --seed-start {broken[0].seed} --seeds 1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validators", "seeds"), [(1, 2000), (2, 3000), (3, 3000), (4, 12000), (5, 1500), (6, 800), (7, 800), (10, 150)]
)
def test_thousands_of_worlds_neither_fork_nor_stop(validators: int, seeds: int) -> None:
    start = 1_000_000
    broken = [o for o in (run_seed(start + seed, validators=validators) for seed in range(seeds)) if o.failure]
    assert not broken, f"python -m sim consensus --validators {validators} --seed-start {broken[0].seed} --seeds 1"


def test_a_seed_is_always_the_same_story() -> None:
    stories: list[list[str]] = [[], []]
    for story in stories:
        run_seed(4, validators=4, story=story.append)
    assert stories[0] == stories[1]
    assert any("decides" in line for line in stories[0])


@pytest.mark.parametrize("order", ["0", "1"])
def test_a_story_does_not_depend_on_the_process_that_tells_it(order: str) -> None:
    """Python orders sets of bytes differently in each process; these two differ over this world's two traitors."""
    arguments = ["consensus", "--seeds", "1", "--seed-start", "42", "--validators", "7", "--story"]
    story: list[str] = []
    run_seed(42, validators=7, story=story.append)
    told = subprocess.run(
        [sys.executable, "-m", "sim", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": order},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert told[:-1] == [line for entry in story for line in entry.splitlines()]


def test_worlds_are_hard_enough() -> None:
    """Late views, crashes and traitors do happen: a calm world would prove nothing."""
    outcomes = [run_seed(seed, validators=4) for seed in range(60)]
    assert max(outcome.views for outcome in outcomes) >= 3
    assert sum(outcome.views > 0 for outcome in outcomes) >= 30


@pytest.mark.parametrize(
    ("mistake", "settings", "seeds", "shows"),
    [
        ("a lock is not shown", {"machine": ForgetsLock}, 100, "fork"),
        ("a quorum is one vote short", {"machine": LowQuorum}, 5, "without a certificate"),
        ("and nobody checks it", {"machine": LowQuorum, "certificates": unchecked, "watch_votes": False}, 50, "fork"),
        ("votes are not saved", {"saves": False}, 50, "contradicts"),
        ("commits of several views are counted together", {"machine": MixesViews}, 10, "without a certificate"),
        ("an unjustified proposal is accepted", {"machine": Unjustified}, 20, "no reason to propose"),
        ("anybody may propose", {"machine": AnyProposer}, 50, "no reason to propose"),
        ("a block may be in another's name", {"machine": AnyName}, 40, "no reason to propose"),
        ("a change of validators is not noticed", {"machine": OldValidators}, 10, "no reason to propose"),
        ("views do not grow longer", {"machine": Impatient}, 10, "it stopped"),
        ("lost votes stay lost", {"machine": NeverResends}, 50, "it stopped"),
    ],
)
def test_a_planted_mistake_shows_within_its_seeds(
    mistake: str, settings: dict[str, Any], seeds: int, shows: str
) -> None:
    found = first_broken(seeds, **settings)
    assert found is not None, f"{mistake}: not noticed in {seeds} seeds"
    assert shows in (found.failure or "")


@pytest.mark.parametrize(
    ("mistake", "settings", "start", "seeds", "shows"),
    [
        ("any lock is believed, not only the highest", {"machine": AnyLock}, 860, 40, "no reason to propose"),
        ("f + 1 members in later views take nobody along", {"machine": NeverJumps}, 4930, 40, "it stopped"),
    ],
)
def test_a_mistake_that_rarely_matters_shows_within_five_thousand_seeds(
    mistake: str, settings: dict[str, Any], start: int, seeds: int, shows: str
) -> None:
    """The seeds before these hold: it is shown here without them."""
    found = first_broken(seeds, start=start, **settings)
    assert found is not None, f"{mistake}: not noticed"
    assert shows in (found.failure or "")
    assert first_broken(1, start=found.seed) is None


@pytest.mark.slow
def test_votes_that_are_not_saved_end_in_a_fork() -> None:
    """Not only in contradictions, which the simulator notices first."""
    found = first_broken(600, saves=False, watch_votes=False)
    assert found is not None
    assert "fork" in (found.failure or "")


def test_the_command_reports_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--validators", "4"]) == 0
    assert "3 of 3 seeds held" in capsys.readouterr().out


def test_the_command_tells_how_to_see_a_failure_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.validators.HEALED_S_MAX", -1000.0)  # every world is too late
    assert main(["--seeds", "3", "--seed-start", "7", "--validators", "4", "--no-traitors", "--jobs", "1"]) == 1
    told = capsys.readouterr().out
    assert "seed 7: it stopped" in told
    assert "python -m sim consensus --seeds 1 --seed-start 7 --validators 4 --heights 3 --no-traitors --story" in told


def test_one_command_plays_many_worlds_on_all_cores() -> None:
    command = [sys.executable, "-m", "sim", "consensus", "--seeds", "60", "--jobs", "2", "--progress-s", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "0 broken" in done.stdout
    assert "60 of 60 seeds held" in done.stdout
