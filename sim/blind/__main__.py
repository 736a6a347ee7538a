"""`python -m sim blind --seeds N`: blind runs in virtual time, each with troubles drawn from its seed."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from sim.blind.plan import Plan, draw
from sim.blind.work import MISTAKES
from sim.blind.world import BOOKS, Outcome, run
from sim.logs import show_logs


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m sim blind", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="so many seeds, and count failures; without it, tell one"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--mistake", choices=[*MISTAKES, *BOOKS], default="", help="what is planted")
    parser.add_argument("--log", action="store_true", help="show the nodes' own logs too")
    return parser


def many(plans: Sequence[Plan], jobs: int) -> int:
    """Run all and report; the number of failures."""
    began_s, failures, cpu_s, virtual_s, counts = time.perf_counter(), 0, 0.0, 0.0, Counter[str]()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for done, outcome in enumerate(pool.map(run, plans, chunksize=8), 1):
            cpu_s, virtual_s, counts = cpu_s + outcome.cpu_s, virtual_s + outcome.virtual_s, counts + outcome.counts
            if outcome.failure:
                failures += 1
                print(f"seed {outcome.plan.seed}: {outcome.failure}", flush=True)
            if done % 1000 == 0:
                rate = done / (time.perf_counter() - began_s)
                print(f"{done} seeds, {failures} failures, {rate:.1f} seeds/s", flush=True)
    real_s = time.perf_counter() - began_s
    print(
        f"{len(plans)} seeds in {real_s:.1f} s ({len(plans) / real_s:.1f} a second, {len(plans) / cpu_s:.1f} a second "
        f"of CPU): {failures} failures; {virtual_s / 3600:.1f} virtual hours; "
        + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    )
    return failures


def main(arguments: Sequence[str]) -> int:
    """Run what the command line says; the exit status."""
    asked = parser().parse_args(arguments)
    if asked.log:
        show_logs()
    drawn = partial(draw, mistake=asked.mistake)
    if asked.seeds:
        return 1 if many([drawn(asked.seed + number) for number in range(asked.seeds)], asked.jobs) else 0
    outcome: Outcome = run(drawn(asked.seed), tell=lambda line: print(line, flush=True))
    print(f"\n{drawn(asked.seed)}\n{outcome.failure or 'all is well'}\n{dict(outcome.counts)}; {outcome.cpu_s:.3f} s")
    return 1 if outcome.failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
