"""`python -m sim uneven RECIPE`: which policy learns most where sites' data are unlike each other.

Every policy trains the same recipe on the same rows in the same orders, with the swarm's own updates and merges; only
the policy differs. Two accuracies: at home, the mean over sites of each site's model on its own test rows, and
everywhere, on all test rows. What counts is the difference to FedAvg, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from sim.study import arms
from sim.study.experiment import Scenario
from sim.study.scenario import placed
from sim.study.study import one_thread
from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.learn import norm_layers
from swarm.learn.recipes import Recipe, Site, load_recipe, sites_of

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "FedAvg": {},
    "FedProx 0.01": {"proximal": 0.01},
    "FedProx 0.1": {"proximal": 0.1},
    "SCAFFOLD": {"scaffold": True},
    "FedAvgM": {"server": "fedavgm"},
    "FedAdam": {"server": "fedadam", "server_rate": 0.01},
    "FedYogi": {"server": "fedyogi", "server_rate": 0.01},
}


@dataclass(frozen=True)
class Found:
    """What one policy reached with one seed."""

    policy: str
    seed: int
    home: float
    everywhere: float


def policies_of(recipe: Recipe, *, rounds: int, interval: int, personal: Sequence[str]) -> dict[str, Policy]:
    """What is compared, by name: FedBN where the model normalizes, personal layers where some are named."""
    plain = Policy("uneven", rounds, interval, merge="mean", weight_ratio_max=1e6)
    found = {name: replace(plain, **changes) for name, changes in VARIANTS.items()}
    if layers := norm_layers(recipe.new_model(0)):
        found["FedBN"] = replace(plain, personal=tuple(layers))
    found |= {f"{pattern} stays": replace(plain, personal=tuple(pattern.split(","))) for pattern in personal}
    return found


def rows_of(folder: Path, scenario: Scenario) -> tuple[Recipe, list[Site]]:
    """A recipe, and its sites in a scenario.

    Raises:
        ConfigError: the recipe has no classes, its data are missing, or the scenario cannot be.
    """
    recipe = load_recipe(folder)
    if recipe.KIND == "survival":
        raise ConfigError(f"{folder} is about survival; an accuracy needs classes")
    return recipe, placed(sites_of(recipe), scenario, recipe.KIND)


def play(seed: int, *, folder: Path, scenario: Scenario, policies: Mapping[str, Policy]) -> list[Found]:
    """Every policy with one seed; errors as `rows_of`."""
    recipe, sites = rows_of(folder, scenario)
    every_x, every_y = (torch.cat([getattr(site.test, key) for site in sites]) for key in ("x", "y"))
    found = []
    with one_thread():
        for name, policy in policies.items():
            study = arms.Study(recipe, policy, scenario, sites)
            trained = arms.swarm(study, seed)
            models = {site.name: trained.at_home.get(site.name, trained.model) for site in sites}
            home = [accuracy(study.outputs(models[site.name], site.test.x), site.test.y) for site in sites]
            alike = models.values() if trained.at_home else [trained.model]
            everywhere = [accuracy(study.outputs(model, every_x), every_y) for model in alike]
            found.append(Found(name, seed, fmean(home), fmean(everywhere)))
    return found


def accuracy(outputs: Tensor, y: Tensor) -> float:
    """The share of rows whose class is called right; one output is the logit of class 1."""
    called = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    return float((called == y.long()).double().mean())


def table(found: Sequence[Found]) -> str:
    """A line a policy: mean and deviation over seeds, and by how much it is better than FedAvg, seed by seed."""
    lines = ["| policy | at home | better than FedAvg | everywhere | better than FedAvg |", "| --- " * 5 + "|"]
    plain = {one.seed: one for one in found if one.policy == "FedAvg"}
    for name in dict.fromkeys(one.policy for one in found):
        mine = [one for one in found if one.policy == name]
        cells = []
        for what in ("home", "everywhere"):
            cells.append(_spread([getattr(one, what) for one in mine]))
            cells.append(_spread([getattr(one, what) - getattr(plain[one.seed], what) for one in mine], sign="+"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    return f"{fmean(values):{sign}.3f} ± {stdev(values) if len(values) > 1 else 0.0:.3f}"


def main(arguments: list[str]) -> int:
    """Play, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m sim uneven", description=__doc__)
    parser.add_argument("recipe", type=Path, help="an example's folder, as nodes/heart")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--interval", type=int, default=20, help="batches of a round")
    parser.add_argument("--alpha", type=float, help="deal rows out anew, each class by a Dirichlet of this")
    parser.add_argument("--sites", type=int, default=6, help="how many, with --alpha")
    parser.add_argument("--personal", action="append", default=[], help="patterns, with commas, of what stays; repeat")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write every number here, as JSON")
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error("--seeds is 1 or more")
    scenario = Scenario() if given.alpha is None else Scenario("dirichlet", sites=given.sites, alpha=given.alpha)
    try:
        recipe, _ = rows_of(given.recipe, scenario)
    except ConfigError as error:
        parser.error(str(error))
    policies = policies_of(recipe, rounds=given.rounds, interval=given.interval, personal=given.personal)
    work = partial(play, folder=given.recipe, scenario=scenario, policies=policies)
    found: list[Found] = []
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for number, some in enumerate(pool.map(work, range(given.seeds)), 1):
            found += some
            print(f"seed {number} of {given.seeds}", flush=True)
    print(table(found))
    if given.out is not None:
        given.out.write_text(json.dumps([asdict(one) for one in found], indent=1))
    return 0
