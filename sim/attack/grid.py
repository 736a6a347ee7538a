"""Many cells: which ones, played by several processes, each kept in a file as soon as it is finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from sim.attack.attacks import ATTACKS
from sim.attack.game import Outcome, local, play
from sim.attack.rules import policy_of
from sim.attack.tasks import TASKS, Task
from swarm.errors import ConfigError

LOCAL = "local"
"""In the place of a rule: every honest site alone, without a swarm."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run. For `LOCAL` the outcome is the mean over the honest sites' own models."""

    data: str
    sites: int
    dishonest: int
    rule: str
    attack: str
    seed: int
    rounds: int

    @property
    def name(self) -> str:
        """Its file's name."""
        return f"{self.data}-{self.sites}-{self.dishonest}-{self.rule}-{self.attack}-{self.seed}-{self.rounds}.json"

    @property
    def policy(self) -> str:
        """The policy as its canonical JSON; empty for `LOCAL`."""
        if self.rule == LOCAL:
            return ""
        task = task_of(self.data, self.sites)
        given = policy_of(self.rule, faults=self.dishonest, rounds=self.rounds, interval=task.batches)
        return given.encode().decode()


def cells_of(
    settings: Sequence[tuple[str, int, int]],
    rules: Sequence[str],
    attacks: Sequence[str],
    seeds: Sequence[int],
    rounds: int | None,
) -> list[Cell]:
    """Every combination, and for each setting what the sites reach alone.

    Args:
        settings: data, sites, dishonest sites.
        rounds: None takes what each data set needs.
    Raises:
        ValueError: a name is unknown, or a number impossible; says what is possible.
    """
    for kind, given, known in (("attack", attacks, ATTACKS), ("data set", [s[0] for s in settings], TASKS)):
        for name in given:
            if name not in known:
                raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    found = []
    for data, sites, dishonest in settings:
        if not 1 <= dishonest < sites / 2:
            raise ValueError(f"{dishonest} of {sites} sites dishonest; it has to be 1 or more and less than half")
        usual = task_of(data, sites).rounds
        length = rounds or usual
        for rule in rules:
            bears = policy_of(rule, faults=dishonest, rounds=length, interval=1).submissions_min
            if bears > sites:
                raise ValueError(f"{rule} that bears {dishonest} needs {bears} sites, and there are {sites}")
        pairs = [(LOCAL, "none"), *((rule, attack) for rule in rules for attack in attacks)]
        found += [Cell(data, sites, dishonest, *pair, seed, length) for pair in pairs for seed in seeds]
    return found


@cache
def task_of(data: str, sites: int) -> Task:
    """The data set, cut over so many sites."""
    return TASKS[data](sites)


def liars(cell: Cell) -> list[int]:
    """Which sites are dishonest: drawn from the seed, the same under every rule and attack."""
    drawn = np.random.default_rng(cell.seed).permutation(cell.sites)[: cell.dishonest]
    return sorted(int(site) for site in drawn)


def played(cell: Cell) -> Outcome:
    """What comes of a cell."""
    one_thread()
    task = task_of(cell.data, cell.sites)
    if cell.rule == LOCAL:
        alone = local(task, [site for site in range(cell.sites) if site not in liars(cell)], cell.seed, cell.rounds)
        return Outcome(
            accuracy=fmean(one.accuracy for one in alone),
            auc=fmean(one.auc for one in alone),
            backdoor=fmean(one.backdoor for one in alone),
        )
    policy = policy_of(cell.rule, faults=cell.dishonest, rounds=cell.rounds, interval=task.batches)
    dishonest = [] if cell.attack == "none" else liars(cell)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        return play(task, policy, ATTACKS[cell.attack], dishonest, cell.seed, Path(folder))


def one_thread() -> None:
    """The order of float additions, and so every last digit, must not depend on how many cores are idle."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def play_all(cells: Sequence[Cell], out: Path, jobs: int, done: Callable[[Cell], None]) -> list[tuple[Cell, Outcome]]:
    """Every cell's outcome, in the order of the cells; what an earlier call finished in `out` is read.

    Raises:
        ConfigError: a file in `out` is not a cell's.
    """
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: dict[Cell, Outcome] = {}
    left = []
    for cell in cells:
        kept = read(folder / cell.name, cell)
        if kept is None:
            left.append(cell)
        else:
            outcomes[cell] = kept
            done(cell)
    for cell, outcome in _outcomes(left, jobs):
        write(folder / cell.name, cell, outcome)
        outcomes[cell] = outcome
        done(cell)
    return [(cell, outcomes[cell]) for cell in cells]


def _outcomes(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Outcome]]:
    if jobs == 1 or len(cells) < 2:
        yield from ((cell, played(cell)) for cell in cells)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(played, cell): cell for cell in cells}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write(path: Path, cell: Cell, outcome: Outcome) -> None:
    """Keep a cell: the file is whole or not there."""
    document = {**asdict(cell), "policy": cell.policy, **asdict(outcome)}
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(path)


def read(path: Path, cell: Cell) -> Outcome | None:
    """A kept cell; None if there is none, or it was played with another policy.

    Raises:
        ConfigError: the file is not a cell's.
    """
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        outcome = Outcome(**{key: document.pop(key) for key in Outcome.__dataclass_fields__})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is no finished cell ({error!r}); remove it and start again") from error
    return outcome if document == {**asdict(cell), "policy": cell.policy} else None
