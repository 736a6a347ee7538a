"""What a leader of a blind round sees: exactly the sum of the others, and nothing of one vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swarm.config import load_policy
from swarm.errors import ConfigError
from swarm.learn.leak.attacks import Plan, attack, views
from swarm.learn.leak.blind import Sight, Update, encoding_of, seen_by_leader
from swarm.learn.leak.ground import Ground, with_privacy
from swarm.learn.leak.inversion import Effort
from swarm.learn.recipes import load_recipe, sites_of
from swarm.learn.state import Checkpoint, save_model, write_update

NODES = Path(__file__).parents[3] / "nodes"
SIZE = 5000


def a_round(folder: Path, sites: int, seed: int) -> tuple[Sight, list[torch.Tensor], list[int]]:
    """What the last site sees as the leader; everybody's updates and samples."""
    chance = torch.Generator().manual_seed(seed)
    policy = load_policy(NODES / "heart" / "heart-blind.toml")
    base = folder / "base"
    save_model({"w": torch.zeros(SIZE)}, base)
    values = [0.01 * torch.randn(SIZE, generator=chance) for _ in range(sites)]
    samples = [100 * (number + 1) for number in range(sites)]
    updates = []
    for number, (value, count) in enumerate(zip(values, samples, strict=True)):
        path = folder / f"update{number}"
        write_update({"w": value}, Checkpoint(base), path, range_max=8.0)
        updates.append(Update(f"site{number}", path, count))
    sight = seen_by_leader(base, updates, f"site{sites - 1}", policy, np.random.default_rng(seed), folder)
    assert encoding_of(policy, base, updates).weight_max == 400
    return sight, values, samples


def test_a_leader_sees_the_mean_of_the_others_to_the_step_of_the_fixed_point(tmp_path: Path) -> None:
    sight, values, samples = a_round(tmp_path, 4, 1)
    weights = np.array(samples) / sum(samples)
    mean = sum(w * v.double().numpy() for w, v in zip(weights, values, strict=True))
    assert np.abs(sight.whole["w"] - mean).max() < 1e-8
    others = np.array(samples[:3]) / sum(samples[:3])
    mean = sum(w * v.double().numpy() for w, v in zip(others, values[:3], strict=True))
    assert np.abs(sight.others["w"] - mean).max() < 1e-8
    assert sight.clipped == 0


def test_a_masked_vector_has_nothing_to_do_with_its_update(tmp_path: Path) -> None:
    sight, values, _ = a_round(tmp_path, 4, 2)
    told = np.corrcoef(sight.masked["w"], values[0].numpy())[0, 1]
    assert abs(told) < 5 / SIZE**0.5
    assert abs(np.corrcoef(sight.others["w"], values[0].numpy())[0, 1]) > 0.1  # of the sum each is a part


def test_two_sites_hide_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 are needed to hide one"):
        a_round(tmp_path, 2, 1)


@pytest.mark.slow
def test_one_x_ray_is_recognised_in_the_open_and_in_a_sum_of_three_and_nothing_of_a_round() -> None:
    recipe = load_recipe(NODES / "pneumonia")
    policy = load_policy(NODES / "pneumonia" / "pneumonia.toml")
    ground = Ground(recipe, policy, sites_of(recipe), "clinic1", seed=3, checkpoint=None)
    plan = Plan(Effort(restarts=2, steps=100, refine=50), trials_of_one=4, trials=2, trials_of_interval=2)
    found = {
        view.name: attack(ground, view, plan).verdict for view in views(ground, with_privacy(policy, 8.0, 213), plan)
    }
    assert found == {
        "one": "recognisable",
        "small": "recognisable",
        "interval": "not recognisable",
        "blind interval": "not recognisable",
        "blind small": found["blind small"],  # 12 records at once: sometimes
        "blind one": "recognisable",
        "masked": "not recognisable",
        "private small": "not recognisable",
    }
