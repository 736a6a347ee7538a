"""What differential privacy costs: `python -m sim private nodes/heart/private.toml --epsilon 8 3`.

Trains a recipe by a private policy's rounds, steps and rates: once without clipping and noise, and once for each
epsilon, over the same seeds, with the swarm's own updates and merges (`sim.study.arms`) and the very steps that a site
makes (`swarm.learn.private`). The noise is solved for each site from its own rows. What a recipe may show for it:
`PRIVATE_BATCH`, expected rows of a batch, and `new_private_optimizer(model)`; without them `BATCH` and `new_optimizer`.

The chance of private steps is secret at a site; here it starts from the seed, so that a table can be made again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sim.study import arms, metrics
from sim.study.arms import Peer, Study
from sim.study.experiment import Scenario
from sim.study.study import one_thread
from swarm.config import Policy, load_policy
from swarm.errors import SwarmError
from swarm.learn.private import Private
from swarm.learn.recipes import Recipe, load_recipe, sites_of

NONE = 0.0
"""Stands for a run that is not private."""


@dataclass(frozen=True)
class Result:
    """One policy over the seeds."""

    epsilon: float
    spent: tuple[float, float]
    """The least and the most that a site spent."""
    noise: tuple[float, float]
    values: dict[str, list[float]]
    """By metric, of each seed, on all sites' test rows."""


class PrivateStudy(Study):
    """A study whose sites train privately, or with the same batches and optimizer where the policy is not private."""

    def __init__(self, recipe: Recipe, policy: Policy, sites: Sequence[Any], folder: Path) -> None:
        super().__init__(recipe, policy, Scenario(), sites)
        self.folder = folder
        self.batch = int(getattr(recipe, "PRIVATE_BATCH", recipe.BATCH))
        self.new_optimizer = getattr(recipe, "new_private_optimizer", recipe.new_optimizer)
        self.at: dict[str, Private] = {}
        """Each site's, by name."""

    def begin(self, seed: int) -> None:
        """A run of its own: nothing was spent."""
        self.at.clear()
        for path in self.folder.glob("*.json"):
            path.unlink()

    def train_round(
        self, model: nn.Module, peer: Peer, seed: int, number: int, correct: Callable[[], None] = lambda: None
    ) -> int:
        """A peer's part of a round."""
        if not self.policy.private:
            chance = np.random.default_rng([seed, peer.number, number])
            optimizer = self.new_optimizer(model)
            model.train()
            for _ in range(self.policy.sync_interval):
                index = np.flatnonzero(chance.random(len(peer.y)) < self.batch / len(peer.y)).tolist()
                if index:
                    self._step(model, optimizer, peer.x[index], peer.y[index])
            return self.batch * self.policy.sync_interval
        if peer.name not in self.at:
            loader: DataLoader[Any] = DataLoader(TensorDataset(peer.x, peer.y), batch_size=self.batch)
            self.at[peer.name] = Private(
                model, self.new_optimizer(model), loader, self.policy, self.folder / f"{peer.name}.json",
                source=np.random.default_rng([seed, peer.number]),
            )  # fmt: skip
        private, left = self.at[peer.name], self.policy.sync_interval
        model.train()
        while left:
            for x, y in private.loader:
                self._step(model, private.optimizer, x, y)
                left -= 1
                if not left:
                    break
        private.release(number)
        return private.samples * self.policy.sync_interval

    def _step(self, model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        self.recipe.loss(model, x, y, self.agreed).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def measure(folder: Path, policy: Policy, seeds: int) -> Result:
    """One policy, all seeds.

    Raises:
        SwarmError: the recipe or a site's rows do not fit the policy.
    """
    recipe = load_recipe(folder)
    sites = sites_of(recipe)
    test = [site.test for site in sites]
    truth = np.concatenate([rows.y.numpy() for rows in test])
    names = metrics.METRICS[recipe.KIND]
    values: dict[str, list[float]] = {name: [] for name in names}
    with one_thread(), arms.scratch() as scratch:
        study = PrivateStudy(recipe, policy, sites, scratch)
        for seed in range(seeds):
            study.begin(seed)
            model = arms.swarm(study, seed).model
            outputs = np.concatenate([study.outputs(model, rows.x).numpy() for rows in test])
            found = metrics.measure(recipe.KIND, truth, outputs, np.ones((1, len(truth))))
            for name in names:
                values[name].append(float(found[name][0]))
        spent = [private.epsilon for private in study.at.values()] or [0.0]
        noise = [private.noise for private in study.at.values()] or [0.0]
    return Result(policy.epsilon, (min(spent), max(spent)), (min(noise), max(noise)), values)


def table(results: Sequence[Result]) -> str:
    """For a README."""
    names = list(results[0].values)
    lines = [["epsilon", "spent at the sites", "noise", *names]]
    lines.append(["---"] * len(lines[0]))
    for one in results:
        private = one.epsilon > 0
        lines.append(
            [
                f"{one.epsilon:g}" if private else "not private",
                f"{one.spent[0]:.2f} to {one.spent[1]:.2f}" if private else "–",
                f"{one.noise[0]:.2f} to {one.noise[1]:.2f}" if private else "–",
                *(_mean(one.values[name]) for name in names),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 if something does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m sim private", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("policy", type=Path, help="a private run's policy beside its recipe: nodes/NAME/private.toml")
    parser.add_argument("--epsilon", type=float, nargs="+", help="instead of the policy's")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(argv)
    try:
        policy = load_policy(given.policy)
        plain = replace(policy, epsilon=NONE, delta=0.0, clip=0.0, unit="record")
        agreed = [plain, *(replace(policy, epsilon=one) for one in given.epsilon or [policy.epsilon])]
        print(table([measure(given.policy.resolve().parent, one, given.seeds) for one in agreed]))
    except SwarmError as error:
        print(f"sim private: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
