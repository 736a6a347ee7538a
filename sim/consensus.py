"""`python -m sim consensus`: thousands of small worlds of validators, on all cores; none may fork or stop for ever.

    python -m sim consensus --seeds 100000 --validators 4
    python -m sim consensus --seeds 1 --seed-start 42 --validators 4 --story

The exit status is 1 if a world broke; each that did comes with the command that tells its story again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

from sim.validators import Outcome, run_seed

CHUNK = 25
"""Worlds that a process plays before it reports: less than a second of work at four validators."""
SHOWN_MAX = 20
"""Broken worlds that are told of; a mistake in the machine may break all of them."""


@dataclass
class Tally:
    """What many worlds came to."""

    seeds: int = 0
    events: int = 0
    views: int = 0
    changes: int = 0
    crashes: int = 0
    waits_s: list[float] = field(default_factory=list)
    broken: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.seeds += 1
        self.events += outcome.events
        self.views = max(self.views, outcome.views)
        self.changes += outcome.changes
        self.crashes += outcome.crashes
        self.waits_s.append(outcome.healed_s)
        if outcome.failure:
            self.broken.append(outcome)

    def progress(self, seeds: int, took_s: float) -> str:
        """How far it is."""
        rate = self.seeds / took_s
        left_s = (seeds - self.seeds) / rate
        return f"{self.seeds} seeds, {len(self.broken)} broken, {rate:.0f} a second, {left_s:.0f} s left"

    def told(self, took_s: float) -> str:
        """One line for a person."""
        waits_s = sorted(self.waits_s)
        return (
            f"{self.seeds - len(self.broken)} of {self.seeds} seeds held, {self.seeds / took_s:.0f} a second; "
            f"{self.events / self.seeds:.0f} events each; {self.crashes} crashes, {self.changes} changes of "
            f"validators; blocks decided in views up to {self.views}; healed worlds were through in "
            f"{waits_s[len(waits_s) // 2]:.1f} s (median), {waits_s[-1]:.0f} s (longest)"
        )


def played(seeds: range, *, jobs: int, settings: dict[str, object]) -> Iterator[Outcome]:
    """The outcomes of these seeds, as they end."""
    if jobs == 1:
        for seed in seeds:
            yield run_seed(seed, **settings)
        return
    chunks = iter([seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)])
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("forkserver")) as pool:
        waiting: set[Future[list[Outcome]]] = set()
        for chunk in chunks:
            waiting.add(pool.submit(_play, chunk, settings))
            if len(waiting) >= 4 * jobs:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        for future in waiting:
            yield from future.result()


def _play(seeds: range, settings: dict[str, object]) -> list[Outcome]:
    return [run_seed(seed, **settings) for seed in seeds]


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m sim consensus", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds")
    parser.add_argument("--seed-start", type=int, default=0, help="the first seed")
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--heights", type=int, default=3, help="blocks in each world")
    parser.add_argument("--no-traitors", action="store_true", help="everybody is honest")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--progress-s", type=float, default=10.0, help="tell how far it is every so many seconds")
    parser.add_argument("--story", action="store_true", help="print every event, in one process")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Play many worlds; the exit status is 1 if one broke."""
    options = parser().parse_args(arguments)
    if min(options.seeds, options.validators, options.heights, options.jobs) < 1:
        parser().error("seeds, validators, heights and jobs are 1 or more")
    settings: dict[str, object] = {
        "validators": options.validators,
        "heights": options.heights,
        "traitors": not options.no_traitors,
    }
    if options.story:
        settings["story"] = print
    seeds = range(options.seed_start, options.seed_start + options.seeds)
    began_s = told_s = time.perf_counter()
    tally = Tally()
    for outcome in played(seeds, jobs=1 if options.story else min(options.jobs, options.seeds), settings=settings):
        tally.add(outcome)
        if outcome.failure and len(tally.broken) <= SHOWN_MAX:
            world = (
                f"--validators {options.validators} --heights {options.heights}{' --no-traitors' * options.no_traitors}"
            )
            print(f"seed {outcome.seed}: {outcome.failure}")
            print(f"see it: python -m sim consensus --seeds 1 --seed-start {outcome.seed} {world} --story", flush=True)
        if time.perf_counter() - told_s >= options.progress_s:
            told_s = time.perf_counter()
            print(tally.progress(options.seeds, told_s - began_s), flush=True)
    print(tally.told(time.perf_counter() - began_s))
    return 1 if tally.broken else 0
