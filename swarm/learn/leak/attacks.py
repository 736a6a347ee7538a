"""The attacks on single updates: which are tried, on what, and how near each came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from swarm.config import Policy
from swarm.learn.leak.ground import Ground, Seen
from swarm.learn.leak.inversion import Effort, Known, first_layer, invert, label_of_one, layer_inputs
from swarm.learn.leak.measures import Likeness, likeness

DECOYS_MAX = 1000
LOOKED_FOR_MAX = 16
"""Records that an attack looks for at once; an update of more is explained by so many."""
SHOWN = 6
"""Pictures of an attack in the report."""


@dataclass(frozen=True)
class Attack:
    """One view of the site's updates, and what came of attacking it."""

    name: str
    title: str
    records: tuple[int, ...]
    """In the update, of each trial."""
    likeness: Likeness
    mismatch: tuple[float, ...]
    labels: str
    pictures: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)
    """Pairs of a true record and its nearest reconstruction."""

    @property
    def recognised(self) -> int:
        """Records that somebody would recognise."""
        return sum(self.likeness.recognised)

    @property
    def verdict(self) -> str:
        """In a word or two, for a person."""
        share = self.recognised / len(self.likeness.recognised)
        if share >= 0.5:
            return "recognisable"
        return "partly recognisable" if self.recognised else "not recognisable"


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    effort: Effort = field(default_factory=Effort)
    trials_of_one: int = 4
    trials: int = 3
    rows: int = 4
    """Records of the small batch."""


def views(ground: Ground, policy: Policy, plan: Plan) -> list[tuple[str, str, int, Callable[[int], Seen]]]:
    """Name, title, trials and maker of each update that is attacked; `policy` is the private one."""
    mine, rows = ground.mine, min(plan.rows, len(ground.mine))
    chance = ground.chance(1)

    def batch(site: str, size: int) -> Seen:
        own = ground.rows[site]
        return ground.step(own.pick(torch.randperm(len(own), generator=chance)[:size]))

    found = [
        ("one", "plain, one step on one record", plan.trials_of_one, lambda trial: batch(ground.site, 1)),
        ("small", f"plain, one step on {rows} records", plan.trials, lambda trial: batch(ground.site, rows)),
        (
            "interval",
            f"plain, a sync interval of {ground.policy.sync_interval} batches of {ground.recipe.BATCH}",
            2,
            lambda trial: ground.interval(ground.site, chance),
        ),
    ]
    # A member of a run takes its own update off the sum: one of the sites is the attacker.
    summed = list(ground.rows)[: max(len(ground.rows) - 1, 1)]
    if len(summed) >= 2:
        many = f"blind, sum over {len(summed)} sites (the attacker's own taken off)"
        found += [
            (
                "blind one",
                f"{many}, one record each",
                2,
                lambda trial: ground.summed([batch(site, 1) for site in summed]),
            ),
            (
                "blind small",
                f"{many}, {rows} records each",
                2,
                lambda trial: ground.summed([batch(site, rows) for site in summed]),
            ),
            (
                "blind interval",
                f"{many}, a sync interval each",
                2,
                lambda trial: ground.summed([ground.interval(site, chance) for site in summed]),
            ),
        ]
    source = np.random.default_rng(ground.seed + 1)
    found.append(
        (
            "private small",
            f"plain with differential privacy (epsilon {policy.epsilon:g}), one step on about {rows} records",
            plan.trials,
            lambda trial: ground.private_step(min(rows, len(mine)), policy, source),
        )
    )
    if ground.recipe.KIND == "survival":
        found = [one for one in found if one[0] != "one"]  # one record alone has no loss, so no gradient
    return found


def attack(
    ground: Ground,
    name: str,
    title: str,
    trials: int,
    make: Callable[[int], Seen],
    plan: Plan,
    *,
    tell: Callable[[], None] = lambda: None,
) -> Attack:
    """Try one view of the updates several times. Each trial's reconstructions are the next one's unrelated gradient."""
    image = ground.is_image
    known = Known.of(ground.known_x, by_column=not image)
    chance = ground.chance(2)
    scale = _Scale.of(ground.known_x, image=image)
    tried, labels = [], ""
    for trial in range(max(trials, 2)):
        seen = make(trial)
        found, mismatch, labels = _invert(ground, seen, known, plan.effort, chance, tell)
        tried.append((seen, found, mismatch))
    results, pictures = [], list[tuple[Tensor, Tensor]]()
    for number, (seen, found, _) in enumerate(tried):
        unrelated = tried[(number + 1) % len(tried)][1]
        true = scale(seen.records.x)
        results.append(
            likeness(
                scale(found),
                scale(unrelated),
                true,
                scale(_decoys(ground, seen, chance)),
                span=scale.span,
                chance=chance,
            )
        )
        if image:
            pictures += _nearest(found, seen.records.x, results[-1])
    whole = results[0]
    for one in results[1:]:
        whole = whole.joined(one)
    sizes = tuple(len(seen.records) for seen, _, _ in tried)
    return Attack(
        name, title, sizes, whole, tuple(mismatch for _, _, mismatch in tried), labels, tuple(pictures[:SHOWN])
    )


def _invert(
    ground: Ground, seen: Seen, known: Known, effort: Effort, chance: torch.Generator, tell: Callable[[], None]
) -> tuple[Tensor, float, str]:
    """Reconstructions (n, ...), how badly they explain the update, and how the labels were had."""
    rows = min(len(seen.records), LOOKED_FOR_MAX)
    y, how = seen.records.y[torch.randperm(len(seen.records), generator=chance)[:rows]], "known"
    if len(seen.records) == 1:
        inferred = label_of_one(ground.model, seen.gradient, ground.recipe.KIND)
        if inferred is not None:
            y, how = torch.full_like(seen.records.y, inferred), "inferred from the update"
    shape = seen.records.x.shape[1:]
    layer = first_layer(ground.model, int(torch.tensor(shape).prod()))
    try:
        inverted = invert(seen.gradient, ground.gradient_of(y), rows, known, effort=effort, chance=chance, tell=tell)
    except ValueError:
        # Nothing was trained: the attacker is left with what it knows.
        return known.mean.expand(rows, *shape).clone(), 1.0, how
    found = inverted.x
    if layer is not None:
        read = layer_inputs(seen.gradient, *layer).reshape(-1, *shape)
        found = torch.cat([found, torch.minimum(torch.maximum(read, known.low), known.high)])
    return found, inverted.mismatch, how


def _decoys(ground: Ground, seen: Seen, chance: torch.Generator) -> Tensor:
    """Records of the attacked site and of the test rows that are not in the update."""
    pool = torch.cat([ground.mine.x, ground.test.x])
    pool = pool[torch.randperm(len(pool), generator=chance)[: DECOYS_MAX + len(seen.records)]]
    inside = torch.cdist(pool.flatten(1).double(), seen.records.x.flatten(1).double()).amin(1) < 1e-9
    return pool[~inside][:DECOYS_MAX]


@dataclass(frozen=True)
class _Scale:
    """Records as they are compared: images as they are, columns of a table in deviations."""

    mean: Tensor
    deviation: Tensor
    span: float

    @classmethod
    def of(cls, x: Tensor, *, image: bool) -> _Scale:
        values = x.double()
        if image:
            zero = torch.zeros((), dtype=torch.float64)
            return cls(zero, zero + 1, float(values.max() - values.min()) or 1.0)
        deviation = values.std(0)
        return cls(values.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation)), 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) / self.deviation


def _nearest(found: Tensor, true: Tensor, likeness: Likeness) -> Sequence[tuple[Tensor, Tensor]]:
    """The records that came out best, each with its reconstruction."""
    best = sorted(range(len(true)), key=lambda i: -likeness.reached[i])[:2] if len(true) > SHOWN else range(len(true))
    pairs = []
    for i in best:
        place = (found.double() - true[i].double()).flatten(1).square().sum(1).argmin()
        pairs.append((true[i].double(), found[place].double()))
    return pairs
