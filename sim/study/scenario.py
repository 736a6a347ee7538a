"""Who has which rows: a recipe's sites, or the same rows dealt out anew. The placement is the same for all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.study.experiment import Scenario
from swarm.errors import ConfigError
from swarm.learn.recipes import Rows, Site, together

PLACEMENT = 20210526
"""Seed of every placement."""


def placed(sites: Sequence[Site], scenario: Scenario, kind: str) -> list[Site]:
    """The sites of a scenario.

    Args:
        kind: the recipe's; only two or more classes can be unevenly placed.
    Raises:
        ConfigError: a site without rows, a site that is not there, or shares that the rows do not allow; names it.
    """
    found = list(sites) if scenario.kind == "natural" else dealt(sites, scenario, kind)
    check_names([site.name for site in found], scenario)
    found = [replace(site, trains=site.name not in scenario.unseen) for site in found]
    if scenario.test_prevalence:
        if kind != "binary":
            raise ConfigError(f"[scenario] test_prevalence is for two classes; this recipe is {kind}")
        found = [replace(site, test=thinned(site.test, scenario.test_prevalence)) for site in found]
    for site in found:
        for what, rows in (("training", site.train), ("test", site.test)):
            if not len(rows):
                raise ConfigError(f"site {site.name} has no {what} rows; change [scenario], or leave the site out")
    if sum(site.trains for site in found) < 2:
        raise ConfigError("fewer than two sites train; a comparison needs two")
    return found


def check_names(known: Sequence[str], scenario: Scenario) -> None:
    """Nothing, if the scenario names only these sites; ConfigError names the first other one."""
    for key in ("late", "leaves", "slow", "unseen"):
        for name in getattr(scenario, key):
            if name not in known:
                some = f"{', '.join(known[:8])}{', …' if len(known) > 8 else ''}"
                raise ConfigError(f"[scenario] {key}: there is no site {name!r}; there are {some}")


def dealt(sites: Sequence[Site], scenario: Scenario, kind: str) -> list[Site]:
    """All rows put together and dealt out again; a site may get none.

    Raises:
        ConfigError: the rows do not allow the scenario.
    """
    train, test = together([site.train for site in sites]), together([site.test for site in sites])
    if scenario.kind == "group":
        return _by_group(train, test, scenario.by)
    count = len(scenario.shares) or scenario.sites
    chance = np.random.default_rng(PLACEMENT)
    if kind == "survival" and scenario.kind not in ("even", "sizes"):
        raise ConfigError(f"[scenario] kind {scenario.kind!r} needs classes; this recipe is about survival")
    deal = {
        "prevalence": _by_prevalence,
        "missing": _without_class,
        "dirichlet": _by_dirichlet,
        "small": _many_small,
    }
    shares = scenario.shares if scenario.kind == "sizes" else (1 / count,) * count
    if scenario.kind in deal:
        parts = deal[scenario.kind](_classes(train, kind), scenario, chance)
    else:
        parts = _in_shares(_classes(train, kind), shares, chance)
    tests = _in_shares(_classes(test, kind), (1 / count,) * count, chance)
    return [
        Site(f"site-{number + 1}", train.pick(sorted(mine)), test.pick(sorted(tested)))
        for number, (mine, tested) in enumerate(zip(parts, tests, strict=True))
    ]


def _by_group(train: Rows, test: Rows, by: str) -> list[Site]:
    """One site for each subgroup, its test rows with it."""
    if by not in train.groups:
        some = f"there are {', '.join(train.groups)}" if train.groups else "it knows none"
        raise ConfigError(f"[scenario] by = {by!r}: the recipe tells rows not apart by it; {some}")

    def of(rows: Rows, group: str) -> Rows:
        return rows.pick([place for place, one in enumerate(rows.groups[by]) if one == group])

    groups = sorted({*train.groups[by], *test.groups[by]})
    return [Site(group, of(train, group), of(test, group)) for group in groups]


def _classes(rows: Rows, kind: str) -> np.ndarray:
    """(rows,) the class of each row; for survival whether its end was seen."""
    y = rows.y[:, 1] if kind == "survival" else rows.y
    return np.asarray(y.numpy(), dtype=np.int64)


def _in_shares(classes: np.ndarray, shares: Sequence[float], chance: np.random.Generator) -> list[list[int]]:
    """Row numbers by site, every class in the same shares."""
    return _cut(classes, {int(label): shares for label in np.unique(classes)}, chance)


def _by_dirichlet(classes: np.ndarray, scenario: Scenario, chance: np.random.Generator) -> list[list[int]]:
    """Source: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019."""
    shares = {
        int(label): chance.dirichlet([scenario.alpha] * scenario.sites).tolist() for label in np.unique(classes)
    }  # fmt: skip
    return _cut(classes, shares, chance)


def _many_small(classes: np.ndarray, scenario: Scenario, chance: np.random.Generator) -> list[list[int]]:
    """As many rows for each, in a mixture of classes that each site draws for itself; what is left of a class at the
    end goes where rows are missing.

    Source: Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019, section 3: q ~ Dir(alpha p).
    """
    labels, counts = np.unique(classes, return_counts=True)
    left = [chance.permutation(np.flatnonzero(classes == label)).tolist() for label in labels]
    parts: list[list[int]] = []
    for number in range(scenario.sites):
        size = len(classes) * (number + 1) // scenario.sites - len(classes) * number // scenario.sites
        mixture = chance.dirichlet(scenario.alpha * len(labels) * counts / len(classes))
        wanted = chance.multinomial(size, mixture).tolist()
        part = [rows.pop() for rows, many in zip(left, wanted, strict=True) for _ in range(min(many, len(rows)))]
        while len(part) < size:
            part.append(max(left, key=len).pop())
        parts.append(part)
    return parts


def _without_class(classes: np.ndarray, scenario: Scenario, chance: np.random.Generator) -> list[list[int]]:
    """Even, but for the first site, whose rows of one class the others have."""
    labels = np.unique(classes)
    if scenario.lacks not in labels:
        raise ConfigError(f"[scenario] lacks = {scenario.lacks}: there are the classes {labels.tolist()}")
    even, others = (1 / scenario.sites,) * scenario.sites, (1 / (scenario.sites - 1),) * (scenario.sites - 1)
    return _cut(classes, {int(one): (0.0, *others) if one == scenario.lacks else even for one in labels}, chance)


def _by_prevalence(classes: np.ndarray, scenario: Scenario, chance: np.random.Generator) -> list[list[int]]:
    """Sizes in the proportions that are asked for, as large as the rarer class allows; so is the share of class 1."""
    if set(np.unique(classes)) - {0, 1}:
        raise ConfigError("[scenario] kind 'prevalence' is for two classes")
    ones, zeros = (chance.permutation(np.flatnonzero(classes == label)).tolist() for label in (1, 0))
    proportions = scenario.sizes or (1.0,) * len(scenario.shares)
    planned = list(zip(scenario.shares, proportions, strict=True))
    ill, well = sum(share * part for share, part in planned), sum((1 - share) * part for share, part in planned)
    unit = min(len(ones) / ill if ill else np.inf, len(zeros) / well if well else np.inf)
    parts: list[list[int]] = []
    for share, part in planned:
        size = int(part * unit)
        wanted = min(round(share * size), size)
        parts.append([ones.pop() for _ in range(min(wanted, len(ones)))])
        parts[-1] += [zeros.pop() for _ in range(min(size - wanted, len(zeros)))]
    return parts


def _cut(classes: np.ndarray, shares: dict[int, Sequence[float]], chance: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in next(iter(shares.values()))]
    for label, wanted in shares.items():
        rows = chance.permutation(np.flatnonzero(classes == label))
        cuts = np.rint(np.cumsum(wanted)[:-1] * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(piece.tolist())
    return parts


def thinned(test: Rows, prevalence: float) -> Rows:
    """As many rows as leave this share of class 1."""
    chance = np.random.default_rng(PLACEMENT)
    ones, zeros = (chance.permutation(np.flatnonzero(test.y.numpy() == label)) for label in (1, 0))
    keep = min(len(ones), round(prevalence / (1 - prevalence) * len(zeros)))
    others = min(len(zeros), round((1 - prevalence) / prevalence * keep)) if keep else len(zeros)
    return test.pick(sorted([*ones[:keep].tolist(), *zeros[:others].tolist()]))
