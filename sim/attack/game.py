"""One cell of the table: a run of so many rounds under one merge rule and one attack.

The merge is the product's own, `swarm.merge.merge` on files. An update that it refuses is left out of the round, as a
struck submission is; a round that is left with fewer updates than the policy asks for does not close.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sim.attack.attacks import Attack, Floats, Scene
from sim.attack.tasks import Rows, Task, Vector
from swarm.config import Policy
from swarm.merge import BadUpdate, Schema, Tensor, merge, write_file


@dataclass(frozen=True)
class Outcome:
    """How good the last checkpoint is, on the test rows of all sites."""

    accuracy: float
    auc: float
    backdoor: float
    """How many of the ill are called healthy when their rows carry the trigger."""
    refused: int = 0
    """Updates that no merge took, over all rounds."""
    stuck: int = 0
    """Rounds that did not close for want of updates; the checkpoint stayed."""


def play(task: Task, policy: Policy, attack: Attack, dishonest: Sequence[int], seed: int, folder: Path) -> Outcome:
    """A run from genesis to the policy's last round, and how good its checkpoint is.

    The dishonest claim the greatest weight that the policy takes, whatever else they do.

    Args:
        dishonest: numbers of the sites that attack together.
        folder: where the files of the merge lie; a folder in memory is quickest.
    """
    sites = [poisoned(rows, attack, task) if i in dishonest else rows for i, rows in enumerate(task.sites)]
    genesis = task.learner.genesis(seed)
    table = Table(len(genesis), policy, folder)
    base, first, refused, stuck = genesis, None, 0, 0
    for number in range(policy.rounds):
        orders = [order_of(seed, site, number) for site in range(len(sites))]
        trained = task.learner.train(base, sites, orders, task.batches)
        updates = np.stack([after - base for after in trained]).astype(np.float64)
        honest = np.delete(updates, list(dishonest), axis=0)
        first = honest if first is None else first
        if len(dishonest):
            scene = Scene(
                honest=honest,
                own=updates[list(dishonest)],
                first=first,
                progress=(base - genesis).astype(np.float64),
                chance=np.random.default_rng([seed, number]),
            )
            updates[list(dishonest)] = attack.change(scene)
        samples = task.batches * task.batch
        weights = [policy.weight_max if site in dishonest else samples for site in range(len(sites))]
        after, left_out = table.merged(base, updates, weights)
        refused, stuck = refused + left_out, stuck + (after is None)
        base = base if after is None else after
    return replace(judged(task, base), refused=refused, stuck=stuck)


def poisoned(rows: Rows, attack: Attack, task: Task) -> Rows:
    """The rows that a dishonest site trains on."""
    if attack.flips_labels:
        return Rows(rows.x, 1 - rows.y)
    if attack.plants_trigger:
        return Rows(torch.cat([rows.x, task.triggered(rows.x)]), torch.cat([rows.y, torch.zeros_like(rows.y)]))
    return rows


def order_of(seed: int, site: int, number: int) -> int:
    """What orders a site's rows in a round."""
    return (seed * 128 + site) * 1_000_003 + number


class Table:
    """Files for a merge of vectors, written again every round."""

    def __init__(self, parameters: int, policy: Policy, folder: Path) -> None:
        self._schema = Schema.of([Tensor("model", "F32", (parameters,))])
        self._policy = policy
        self._folder = folder

    def merged(self, base: Vector, updates: Floats, weights: Sequence[int]) -> tuple[Vector | None, int]:
        """The next checkpoint and how many updates were refused; None if too few were left."""
        before, after = self._folder / "base", self._folder / "merged"
        self._write(before, base)
        left = []
        for number, update in enumerate(updates):
            path = self._folder / f"update{number}"
            self._write(path, as_float32(update))
            left.append((path, weights[number]))
        while len(left) >= self._policy.submissions_min:
            try:
                merge(
                    before, [path for path, _ in left], [weight for _, weight in left], self._policy, after, threads=1
                )
            except BadUpdate as error:
                del left[error.index]
                continue
            raw = after.read_bytes()[len(self._schema.header) :]
            return np.frombuffer(raw, "<f4").copy(), len(updates) - len(left)
        return None, len(updates) - len(left)

    def _write(self, path: Path, vector: Vector) -> None:
        write_file(path, self._schema, {"model": np.ascontiguousarray(vector, "<f4")})


def as_float32(update: Floats) -> Vector:
    """What a file holds: beyond float32 its largest value."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(update, -largest, largest).astype(np.float32)


def judged(task: Task, model: Vector) -> Outcome:
    """How good a model is."""
    test = task.test
    logits = task.learner.logits(model, test.x)
    ill = test.y > 0
    fooled = task.learner.logits(model, task.triggered(test.x[ill])) <= 0
    return Outcome(
        accuracy=float(((logits > 0) == ill).double().mean()),
        auc=auc(logits, ill),
        backdoor=float(fooled.double().mean()),
    )


def auc(logits: torch.Tensor, ill: torch.Tensor) -> float:
    """How often an ill row stands above a healthy one, a tie counting half."""
    high, low = logits[ill], logits[~ill]
    above = (high[:, None] > low[None, :]).double() + 0.5 * (high[:, None] == low[None, :]).double()
    return float(above.mean())


def local(task: Task, sites: Sequence[int], seed: int, rounds: int) -> list[Outcome]:
    """What these sites reach alone, with as many batches as a run has."""
    genesis = task.learner.genesis(seed)
    rows = [task.sites[site] for site in sites]
    orders = [order_of(seed, site, 0) for site in sites]
    models = task.learner.train(genesis, rows, orders, task.batches * rounds)
    return [judged(task, model) for model in models]
