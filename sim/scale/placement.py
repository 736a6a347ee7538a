"""Which rows each virtual site has, and whose it is: the same in every process and for all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.study.experiment import Scenario
from sim.study.scenario import PLACEMENT, check_names, dealt
from swarm.config import MEMBERS_MAX
from swarm.errors import ConfigError
from swarm.learn.recipes import Site

DEALT = ("even", "missing", "dirichlet", "small")
"""Kinds of scenario that deal the rows out to any number of sites."""
PEERS_MAX = MEMBERS_MAX * MEMBERS_MAX
"""As many members, each with as many sites: a sum over either cannot overflow, which a policy is checked for."""


def peers_of(sites: Sequence[Site], scenario: Scenario, kind: str, peers: int) -> list[Site]:
    """The virtual sites of an experiment, of which only `train` counts.

    Args:
        sites: the recipe's own.
        kind: the recipe's.
        peers: how many; 0: as many as the experiment says.
    Raises:
        ConfigError: the rows or the scenario do not allow so many, or a site has no row; says what to change.
    """
    if peers and not 2 <= peers <= PEERS_MAX:
        raise ConfigError(f"--peers {peers}: a swarm is simulated with 2 to {PEERS_MAX} sites")
    rows = sum(len(site.train) for site in sites)
    if peers > rows:
        raise ConfigError(f"--peers {peers}: the recipe has {rows} training rows, and each site needs one at least")
    if scenario.kind == "natural":
        found = cut(sites, peers) if peers else list(sites)
    elif peers and scenario.kind in DEALT:
        found = dealt(sites, replace(scenario, sites=peers), kind)
    else:
        found = dealt(sites, scenario, kind)
        if peers and peers != len(found):
            raise ConfigError(
                f"--peers {peers}: by [scenario] kind {scenario.kind!r} there are {len(found)} sites; leave --peers "
                f"out, or take another kind ({', '.join(('natural', *DEALT))})"
            )
    check_names([site.name for site in found], scenario)
    empty = [site.name for site in found if not len(site.train)]
    if empty:
        raise ConfigError(
            f"site {empty[0]} has no training rows{f', and {len(empty) - 1} others have none' if empty[1:] else ''}: "
            "take fewer --peers, a greater alpha, or [scenario] kind 'small', which leaves nobody without rows"
        )
    found = [replace(site, trains=site.name not in scenario.unseen) for site in found]
    if sum(site.trains for site in found) < 2:
        raise ConfigError("fewer than two sites train; a swarm needs two")
    return found


def cut(sites: Sequence[Site], peers: int) -> list[Site]:
    """Each site cut into departments, together `peers`, the more rows the more of them.

    Raises:
        ConfigError: fewer than there are sites.
    """
    if peers < len(sites):
        raise ConfigError(
            f"--peers {peers}: the recipe has {len(sites)} sites, which are cut into departments, not put together"
        )
    if peers == len(sites):
        return list(sites)
    chance = np.random.default_rng(PLACEMENT)
    found = []
    for site, parts in zip(sites, _parts([len(site.train) for site in sites], peers), strict=True):
        order = chance.permutation(len(site.train))
        nothing = site.test.pick([])
        for number, index in enumerate(np.array_split(order, parts)):
            found.append(Site(f"{site.name}-{number + 1}", site.train.pick(sorted(index.tolist())), nothing))
    return found


def _parts(rows: Sequence[int], peers: int) -> list[int]:
    """How many departments each site has: one, and then each goes where a department has most rows."""
    parts = [1] * len(rows)
    for _ in range(peers - len(rows)):
        parts[max(range(len(rows)), key=lambda i: rows[i] / parts[i])] += 1
    return parts


def institutions_of(peers: int, institutions: int) -> list[range]:
    """Which sites, by their places, belong to each institution: neighbours, as many each but for one.

    Args:
        institutions: how many; 0: one for each site, as long as the consortium's contract has room.
    Raises:
        ConfigError: more than sites, or than the contract admits.
    """
    count = institutions or min(peers, MEMBERS_MAX)
    if not 2 <= count <= min(peers, MEMBERS_MAX):
        raise ConfigError(
            f"--institutions {institutions}: a consortium has 2 to {MEMBERS_MAX} members, here at most one for each of "
            f"{peers} sites"
        )
    return [range(peers * number // count, peers * (number + 1) // count) for number in range(count)]
