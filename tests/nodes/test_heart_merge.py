"""The merge that the heart example agrees on: it bears a liar, and without one it costs nothing."""

from __future__ import annotations

from itertools import chain, islice, repeat
from pathlib import Path

import pytest
import torch
from data import HOSPITALS, Scaling, load
from evaluate import BATCHES, ROUNDS, scaled, summed
from model import new_model, score, step
from torch import optim
from torch.utils.data import DataLoader, TensorDataset
from train import order_of

from swarm.config import load_policy
from swarm.learn import save_model
from swarm.learn.state import Checkpoint, State, write_update
from swarm.merge import merge_files

EXAMPLE = Path(__file__).parents[2] / "nodes" / "heart"


def swarmed(folder: Path, seed: int, *, lies: float | None = None) -> dict[str, float]:
    """AUC and accuracy on all test rows, after the example's rounds merged by its policy, without nodes between.

    Args:
        lies: a fifth site, which sends the mean of the others' changes times this, and says it saw weight_max samples.
    """
    policy = load_policy(EXAMPLE / "heart.toml")
    hospitals = [load(name) for name in HOSPITALS]
    scaling = Scaling.of(summed(hospitals))
    model, base = new_model(seed), folder / "0"
    save_model(model, base)
    for number in range(ROUNDS):
        checkpoint, updates, weights = Checkpoint(base), [], []
        for hospital in hospitals:
            State(model).load(checkpoint)
            optimizer = optim.SGD(model.parameters(), lr=0.01)
            order = torch.Generator().manual_seed(order_of(seed, hospital.name, number))
            rows = scaled(hospital.train, scaling)
            loader = DataLoader(TensorDataset(*rows), batch_size=4, shuffle=True, generator=order)
            weights.append(0)
            for x, y in islice(chain.from_iterable(repeat(loader)), BATCHES):
                step(model, optimizer, x, y)
                weights[-1] += len(x)
            updates.append(folder / hospital.name)
            write_update(State(model).tensors, checkpoint, updates[-1], range_max=policy.range)
        if lies is not None:
            changes = [Checkpoint(path).tensors for path in updates]
            lie = {
                name: value + lies * sum(change[name] for change in changes) / len(changes)
                for name, value in checkpoint.tensors.items()
            }
            updates.append(folder / "liar")
            weights.append(policy.weight_max)
            write_update(lie, checkpoint, updates[-1], range_max=policy.range)
        base = folder / f"{number + 1}"
        merge_files(folder / f"{number}", updates, weights, policy, base)
    State(model).load(Checkpoint(base))
    everyone = [(scaling(hospital.test.x), hospital.test.y) for hospital in hospitals]
    return score(model, torch.cat([x for x, _ in everyone]), torch.cat([y for _, y in everyone]))


def test_the_default_merge_learns_what_the_plain_mean_learns(tmp_path: Path) -> None:
    found = swarmed(tmp_path, 0)
    assert found["auc"] > 0.878
    assert found["accuracy"] > 0.78


@pytest.mark.slow
@pytest.mark.parametrize("lies", [-1.0, -10.0, -1000.0])
def test_a_site_of_five_that_lies_and_claims_every_sample_does_little_harm(tmp_path: Path, lies: float) -> None:
    found = swarmed(tmp_path, 0, lies=lies)
    assert found["auc"] > 0.84
    assert found["accuracy"] > 0.72
