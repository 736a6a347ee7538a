"""The attacks on single updates: which are tried, on what, and how near each came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swarm.config import Policy
from swarm.encoding import sha256
from swarm.learn.leak.binomial import at_least
from swarm.learn.leak.ground import Ground, Records, Seen, Trained
from swarm.learn.leak.inversion import Effort, Known, invert, label_of_one
from swarm.learn.leak.layer import EXPLAINED, first_linear, inputs, records_of
from swarm.learn.leak.measures import Likeness, likeness
from swarm.merge.blind.keys import SEATS_MIN

RIVALS_MAX = 1000
RIVALS_OF_A_LABEL_MIN = 10
"""With fewer of its label a record's line-up has all labels."""
LOOKED_FOR_MAX = 16
"""Records that an attack looks for at once; an update of more is explained by so many."""
SHOWN = 6
"""Pictures of an attack in the report."""
BY_CHANCE = 0.05
"""What chance does more often than this shows nothing."""


@dataclass(frozen=True)
class Attack:
    """One view of the site's updates, and what came of attacking it."""

    name: str
    title: str
    records: tuple[int, ...]
    """In what was seen, of each trial."""
    likeness: Likeness
    mismatch: tuple[float, ...]
    labels: str
    hard: bool = False
    """Whether fewer records are in it than the policy lets a round have."""
    pictures: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)
    """Pairs of a true record and its nearest reconstruction."""

    @property
    def recognised(self) -> int:
        """Records that somebody would recognise."""
        return sum(self.likeness.recognised)

    @property
    def judged(self) -> int:
        """Records that were looked for."""
        return len(self.likeness.reached)

    @property
    def verdict(self) -> str:
        """In a word or two, for a person."""
        if 2 * self.recognised >= self.judged:
            return "recognisable"
        by_chance = at_least(self.recognised, self.judged, self.likeness.chance)
        return "partly recognisable" if self.recognised and by_chance < BY_CHANCE else "not recognisable"


@dataclass(frozen=True)
class Plan:
    """How much is tried."""

    effort: Effort = field(default_factory=Effort)
    trials_of_one: int = 10
    trials: int = 5
    trials_of_interval: int = 3
    rows: int = 4
    """Records of the small batch."""


@dataclass(frozen=True)
class Draws:
    """What chance decides in a view."""

    chance: torch.Generator
    source: np.random.Generator

    @classmethod
    def of(cls, seed: int, name: str) -> Draws:
        """A view's own: which other views are tried before it changes nothing."""
        number = int.from_bytes(sha256(f"{seed} {name}".encode())[:7])
        return cls(torch.Generator().manual_seed(number), np.random.default_rng(number))


@dataclass(frozen=True)
class View:
    """An update as somebody sees it."""

    name: str
    title: str
    trials: int
    make: Callable[[Draws], Seen]
    hard: bool = False
    unrelated: Callable[[Draws], Seen] | None = None
    """Where there is one trial alone."""
    private: bool = False


def view_of_file(ground: Ground, update: Path) -> View:
    """The very update that a site is about to submit, written by its training.

    Raises:
        ConfigError: the file is no update of this model.
    """
    seen = ground.of_file(update)
    title = f"the update {update.name} itself, as every member of a visible round would have it"

    def another(draws: Draws) -> Seen:
        return ground.plain(ground.interval(ground.site, draws.chance))

    return View("update", title, 1, lambda draws: seen, unrelated=another)


def views(ground: Ground, policy: Policy, plan: Plan) -> list[View]:
    """Every update that is attacked; `policy` is the private one."""
    rows = min(plan.rows, len(ground.mine))

    def batch(site: str, size: int, draws: Draws) -> Trained:
        own = ground.rows[site]
        return ground.step(site, own.pick(torch.randperm(len(own), generator=draws.chance)[:size]))

    def one(size: int) -> Callable[[Draws], Seen]:
        return lambda draws: ground.plain(batch(ground.site, size, draws))

    def interval(draws: Draws) -> Seen:
        return ground.plain(ground.interval(ground.site, draws.chance))

    def summed(size: int, *, masked: bool = False) -> Callable[[Draws], Seen]:
        def make(draws: Draws) -> Seen:
            sites = ground.rows
            parts = [batch(site, size, draws) if size else ground.interval(site, draws.chance) for site in sites]
            return ground.blind(parts, draws.source, masked=masked)

        return make

    def private_one(draws: Draws) -> Seen:
        return ground.plain(ground.private_step(rows, policy, draws.source))

    whole = f"a round: {ground.policy.sync_interval} batches of {ground.recipe.BATCH}"
    found = [
        View("one", "plain, one step on one record", plan.trials_of_one, one(1)),
        View("small", f"plain, one step on {rows} records", plan.trials, one(rows)),
        View("interval", f"plain, {whole}", plan.trials_of_interval, interval),
    ]
    sites = len(ground.rows)
    if sites >= SEATS_MIN:
        sums = f"blind round of {sites} sites, to its leader the sum of {sites - 1}"
        found += [
            View("blind interval", f"{sums}, {whole} each", plan.trials_of_interval, summed(0)),
            View("blind small", f"{sums}, one step on {rows} records each", plan.trials, summed(rows), True),
            View("blind one", f"{sums}, one step on one record each", plan.trials_of_one, summed(1), True),
            View(
                "masked", "blind, one masked vector before the sum: one step on one record", plan.trials,
                summed(1, masked=True),
            ),
        ]  # fmt: skip
    title = f"plain with differential privacy (epsilon {policy.epsilon:g}), one step on about {rows} records"
    found.append(View("private small", title, plan.trials, private_one, private=True))
    if ground.recipe.KIND == "survival":
        # One record alone has no loss, so no gradient.
        found = [view for view in found if view.name not in ("one", "blind one", "masked")]
    return found


def attack(ground: Ground, view: View, plan: Plan, *, tell: Callable[[], None] = lambda: None) -> Attack:
    """Try one view of the updates several times. Each trial's reconstructions are the next one's unrelated gradient."""
    image = ground.is_image
    known = Known.of(ground.known_x, by_column=not image)
    chance = ground.chance(2)
    scale = _Scale.of(ground.known_x, image=image)
    tried, labels = [], ""
    assert view.trials > 1 or view.unrelated is not None, "a trial is compared with another one"
    makers = [view.make] * view.trials + ([view.unrelated] if view.unrelated else [])
    draws = Draws.of(ground.seed, view.name)
    for make in makers:
        seen = make(draws)
        found, mismatch, labels = _invert(ground, seen, known, plan.effort, chance, tell)
        tried.append((seen, found, mismatch))
    results, pictures = [], list[tuple[Tensor, Tensor]]()
    judged = tried[: view.trials]
    for number, (seen, found, _) in enumerate(judged):
        unrelated = tried[(number + 1) % len(tried)][1]
        others = ground.rivals(seen.records)
        results.append(
            likeness(
                scale(found), scale(unrelated), scale(seen.records.x), scale(others.x),
                _line_ups(ground, seen.records, others, chance), scale(known.mean),
                span=scale.span, chance=chance,
            )
        )  # fmt: skip
        if image:
            pictures += _nearest(found, seen.records.x, results[-1])
    whole = results[0]
    for one in results[1:]:
        whole = whole.joined(one)
    sizes = tuple(seen.rows for seen, _, _ in judged)
    mismatches = tuple(mismatch for _, _, mismatch in judged)
    return Attack(view.name, view.title, sizes, whole, mismatches, labels, view.hard, tuple(pictures[:SHOWN]))


def _invert(
    ground: Ground, seen: Seen, known: Known, effort: Effort, chance: torch.Generator, tell: Callable[[], None]
) -> tuple[Tensor, float, str]:
    """Reconstructions (n, ...), how badly they explain what was seen, and how the labels were had."""
    example = ground.mine.x[:1]
    parameters = ground.parameters(ground.model)
    length = torch.stack([part.square().sum() for part in seen.gradient]).sum()
    rows = min(seen.rows, LOOKED_FOR_MAX)
    if not (bool(torch.isfinite(length)) and float(length) > 0):
        # Nothing was trained: the attacker is left with what it knows.
        return known.mean.expand(rows, *example.shape[1:]).clone(), 1.0, "not needed"
    y, how = _labels(ground, seen, rows, chance)
    read, layer = list[Tensor](), first_linear(ground.model, parameters, example)
    if layer is not None:
        values = inputs(seen.gradient, layer, seen.rows, chance)
        values = values[values.isfinite().all(1) & (values.abs().amax(1) > 0)]
        if len(values):
            x, missed = records_of(values, layer, known, tell=tell)
            read.append(x)
            if len(x) >= seen.rows and float(missed.max()) < EXPLAINED:
                return x, float(missed.max()), how if seen.rows == 1 else "not needed"
    inverted = invert(seen.gradient, ground.gradient_of(y), rows, known, effort=effort, chance=chance, tell=tell)
    return torch.cat([inverted.x, *read]), inverted.mismatch, how


def _labels(ground: Ground, seen: Seen, rows: int, chance: torch.Generator) -> tuple[Tensor, str]:
    """Of so many records, as the attacker has them, and how it has them."""
    own = seen.records.y
    y = own[torch.randint(len(own), (rows,), generator=chance)]
    if seen.rows == len(own) and rows <= len(own):
        y = own[torch.randperm(len(own), generator=chance)[:rows]]
    if seen.rows == 1:
        inferred = label_of_one(ground.model, ground.parameters(ground.model), seen.gradient, ground.recipe.KIND)
        if inferred is not None:
            return torch.full_like(y, inferred), "inferred from the update"
    return y, "known"


def _line_ups(ground: Ground, true: Records, others: Records, chance: torch.Generator) -> list[Tensor]:
    """Numbers of each true record's rivals: of its own label where the recipe has labels and there are enough."""
    pools = dict[float, Tensor]()
    found = []
    for label in true.y:
        everybody = torch.arange(len(others))
        if ground.recipe.KIND not in ("binary", "classes"):
            found.append(everybody[:RIVALS_MAX])
            continue
        if float(label) not in pools:
            same = (others.y == label).nonzero().flatten()
            pool = same if len(same) >= RIVALS_OF_A_LABEL_MIN else everybody
            pools[float(label)] = pool[torch.randperm(len(pool), generator=chance)[:RIVALS_MAX]]
        found.append(pools[float(label)])
    return found


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
