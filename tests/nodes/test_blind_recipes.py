"""Masks cost no accuracy: heart disease and tuberculosis, trained with visible merges and with blind ones."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from sim.study import arms
from sim.study.experiment import Scenario
from swarm.config import Policy, load_policy
from swarm.learn import save_model
from swarm.learn.recipes import load_recipe, sites_of
from swarm.learn.state import Checkpoint, State
from swarm.merge import merge_files
from tests.merge.blind.world import Site, World, attempt_of, merged, play

NODES = Path(__file__).parents[2] / "nodes"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["heart", "tb"])
def test_a_blind_run_ends_with_the_auc_of_a_visible_one(name: str, seed: int, tmp_path: Path) -> None:
    recipe = load_recipe(NODES / name)
    sites = sites_of(recipe)
    visible = replace(load_policy(NODES / name / f"{name}.toml"), merge="mean", weight_ratio_max=1e6)
    study = arms.Study(recipe, visible, Scenario(), sites)
    x, y = torch.cat([site.test.x for site in sites]), torch.cat([site.test.y for site in sites])

    def auc(base: Path) -> float:
        model = recipe.new_model(seed)
        State(model).load(Checkpoint(base))
        return float(roc_auc_score(y.numpy(), study.outputs(model, x)[:, 0].numpy()))

    seen, masked = trained(study, seed, visible, tmp_path / "seen"), blind(study, seed, tmp_path / "masked")
    print(f"{name}, seed {seed}: AUC {auc(seen):.4f} visible, {auc(masked):.4f} blind")
    assert abs(auc(seen) - auc(masked)) <= 0.001


def trained(study: arms.Study, seed: int, policy: Policy, folder: Path) -> Path:
    """The last checkpoint of a run whose updates everybody sees."""
    folder.mkdir()
    base = folder / "base"
    save_model(study.recipe.new_model(seed), base)
    for number in range(policy.rounds):
        made = [arms.update(study, peer, seed, number, base, folder / peer.name) for peer in study.peers]
        merge_files(base, [path for path, _ in made], [weight for _, weight in made], policy, folder / "next")
        (folder / "next").replace(base)
    return base


def blind(study: arms.Study, seed: int, folder: Path) -> Path:
    """The last checkpoint of a run whose updates nobody sees: every round with its own masks, opened by all."""
    folder.mkdir()
    source, base = random.Random(seed), folder / "base"
    save_model(study.recipe.new_model(seed), base)
    weight_max = study.policy.sync_interval * study.recipe.BATCH
    for number in range(study.policy.rounds):
        made = [arms.update(study, peer, seed, number, base, folder / peer.name) for peer in study.peers]
        members = sorted(source.randbytes(20) for _ in study.peers)
        sites = [
            Site(member, source.randbytes(32), source.randbytes(32), weight)
            for member, (_, weight) in zip(members, made, strict=True)
        ]
        attempt = attempt_of({site.member: site.secret for site in sites}, number)
        updates = {member: path for member, (path, _) in zip(members, made, strict=True)}
        case = World(attempt, sites, folder, base, updates, weight_max=weight_max)
        found = merged(case, play(case, source), out=folder / "next")
        assert not found.refused
        (folder / "next").replace(base)
    return base
