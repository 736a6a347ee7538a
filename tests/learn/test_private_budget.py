"""What is spent: against Opacus' own solver, against the closed form, and against a disk that forgets."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants.utils import get_noise_multiplier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarm.config import Policy
from swarm.errors import ConfigError, StorageError
from swarm.learn import private_budget
from swarm.learn.private import Private
from swarm.learn.private_budget import Spent, Steps, epsilon_by_rdp, epsilon_of, noise_for

POLICY = Policy("private", 3, 4, epsilon=0.8, delta=1e-3, clip=1.0)


def exact_epsilon(deviation: float, delta: float) -> float:
    """Of one Gaussian with sensitivity 1: Balle and Wang, Improving the Gaussian Mechanism, ICML 2018, theorem 8."""

    def over(epsilon: float) -> float:
        def phi(t: float) -> float:
            return math.erfc(-t / math.sqrt(2)) / 2

        half = 1 / (2 * deviation)
        return phi(half - epsilon * deviation) - math.exp(epsilon) * phi(-half - epsilon * deviation)

    low, high = 0.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if over(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (5.0, 10), (20.0, 60)])
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_epsilon_is_that_of_the_closed_form_where_everybody_is_in_every_batch(
    noise: float, count: int, delta: float
) -> None:
    # Steps without sampling are one Gaussian with less noise.
    exact = exact_epsilon(noise / math.sqrt(count), delta)
    assert exact <= epsilon_of([Steps(noise, 1.0, count)], delta) <= exact + 0.02
    assert exact <= epsilon_by_rdp([Steps(noise, 1.0, count)], delta) <= 1.2 * exact + 0.12
    # One step in four forgotten is seen.
    if count > 3:
        assert epsilon_of([Steps(noise, 1.0, count - count // 4)], delta) < exact


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(2.0, 0.05, 60), (0.5, 0.25, 10)])
def test_the_noise_is_that_of_opacus_solver_and_spends_no_more_than_agreed(
    epsilon: float, rate: float, steps: int
) -> None:
    noise = noise_for(epsilon=epsilon, delta=1e-4, rate=rate, steps=steps)
    theirs = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=1e-4, sample_rate=rate, steps=steps, accountant="prv"
    )
    assert noise == pytest.approx(theirs, rel=0.02)
    reached = epsilon_of([Steps(noise, rate, steps)], 1e-4)
    assert epsilon - private_budget.TOLERANCE <= reached <= epsilon


def test_the_rest_of_a_budget_takes_more_noise_and_none_is_left_beyond_it() -> None:
    spent = [Steps(3.0, 0.2, 5)]
    rest = noise_for(epsilon=1.0, delta=1e-3, rate=0.2, steps=20, spent=spent)
    assert epsilon_of([Steps(rest, 0.2, 20)], 1e-3) < 0.95
    assert epsilon_of([*spent, Steps(rest, 0.2, 20)], 1e-3) <= 1.0
    with pytest.raises(ConfigError, match=r"no noise lets 20 steps more end at epsilon 1 .*after \d\.\d+ was spent"):
        noise_for(epsilon=1.0, delta=1e-3, rate=0.2, steps=20, spent=[Steps(1.2, 0.2, 5)])


def site(path: Path, *, rows: int = 40, policy: Policy = POLICY, **settings: Any) -> tuple[Private, nn.Linear]:
    model = nn.Linear(3, 1)
    loader = DataLoader(TensorDataset(torch.ones(rows, 3), torch.ones(rows)), batch_size=8)
    return Private(model, torch.optim.SGD(model.parameters(), lr=0.1), loader, policy, path, **settings), model


def train(one: Private, model: nn.Linear, steps: int = 4) -> None:
    for _ in range(steps):
        x, _ = next(iter(one.loader))
        one.optimizer.zero_grad()
        model(x).sum().backward()
        one.optimizer.step()


def test_a_restart_forgets_no_epsilon_and_the_last_round_is_within_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "training" / "1.privacy.json"
    told: list[float] = []
    for number in range(3):
        one, model = site(path, told=told[-1] if told else 0.0, done=number)  # a new process for each round
        assert one.released(number - 1) or not number
        assert not one.released(number)
        train(one, model)
        told.append(one.release(number))
        assert one.released(number)
    whole, model = site(tmp_path / "other.json")
    train(whole, model, 12)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(whole.release(2), abs=1e-9)
    assert POLICY.epsilon - 0.02 <= told[-1] <= POLICY.epsilon
    one, model = site(path, told=told[-1], done=2)
    train(one, model)
    with pytest.raises(
        ConfigError, match=r"budget of run private is spent: with round 3 epsilon would be \d\.\d+ of 0\.8"
    ):
        one.release(3)
    assert private_budget.read(path) == Spent(one.spent.policy, 2, (Steps(one.noise, 0.2, 12),))


def test_steps_that_were_not_given_away_are_counted_with_the_next_ones_unless_the_process_died(tmp_path: Path) -> None:
    path = tmp_path / "1.privacy.json"
    one, model = site(path)
    train(one, model, 3)  # a round that ended without this site's update
    train(one, model, 4)
    one.release(1)
    assert one.spent.steps[0].count == 7
    train(one, model, 2)
    after, model = site(path, told=one.epsilon, done=2)
    train(after, model, 4)
    after.release(2)
    assert after.spent.steps[0].count == 11
    with pytest.raises(ConfigError, match="no private step since the last update"):
        after.release(3)


def test_it_is_on_the_disk_before_it_is_told_and_a_full_disk_lets_nothing_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.privacy.json"
    one, model = site(path)
    train(one, model)
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        order.append("sync")
        fsync(file)

    def replaced(draft: Path, target: Path) -> None:
        order.append("replace")
        replace(draft, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    one.release(0)
    assert order == ["sync", "replace", "sync"]
    before = path.read_bytes()
    train(one, model)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        one.release(1)
    assert path.read_bytes() == before
    assert not one.released(1)


@pytest.mark.parametrize("damage", ["gone", "older", "cut", "nonsense"])
def test_a_site_that_lost_its_file_stops_until_its_operator_says_so(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "1.privacy.json"
    one, model = site(path)
    train(one, model)
    one.release(0)
    older = path.read_bytes()
    train(one, model)
    told = one.release(1)
    match damage:
        case "gone":
            path.unlink()
        case "older":
            path.write_bytes(older)
        case "cut":
            path.write_bytes(path.read_bytes()[:-10])
        case "nonsense":
            path.write_text(json.dumps({"policy": "x", "round": 0, "steps": [[1.0, 0.2, -4]]}))
    with pytest.raises(StorageError, match="assume_spent=True"):
        site(path, told=told, done=2)
    back, model = site(path, told=told, done=2, assume_spent=True)
    assert back.spent.steps == (Steps(one.noise, 0.2, 12),)  # three of three rounds
    assert back.epsilon >= told
    train(back, model)
    with pytest.raises(ConfigError, match="is spent"):
        back.release(2)
    again, _ = site(path, told=told, done=2)  # the word counts once, and is written down
    assert again.spent == back.spent


def test_rows_that_came_meanwhile_change_the_noise_of_the_rest_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "1.privacy.json"
    one, model = site(path)
    train(one, model)
    first = one.release(0)
    two, model = site(path, rows=20, told=first, done=1)
    assert two.rate == 0.4
    assert two.noise > one.noise
    for number in (1, 2):
        train(two, model)
        last = two.release(number)
    assert first < last <= POLICY.epsilon
    assert len(two.spent.steps) == 2


def test_the_file_of_another_run_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "1.privacy.json"
    one, model = site(path)
    train(one, model)
    one.release(0)
    other = Policy("private", 3, 5, epsilon=0.8, delta=1e-3, clip=1.0)
    with pytest.raises(ConfigError, match="is of another run"):
        site(path, policy=other)
