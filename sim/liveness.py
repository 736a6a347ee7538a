"""`python -m sim liveness --seeds N`: validators that are lost for good and replaced, and long absences that end.

Even seeds lose more than a third of the validators at once; odd ones have a validator off until it is put on standby.
Loss, crashes and partitions go on meanwhile. `python -m sim` reproduces a failure with the command that is printed.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from dataclasses import replace

from sim.__main__ import many
from sim.plan import Plan


def draw(seed: int) -> Plan:
    """A plan from a seed."""
    rng = random.Random(f"{seed}/liveness")
    troubled = Plan(
        seed=seed,
        delay_s=rng.choice([0.001, 0.01, 0.05]),
        loss=rng.choice([0.0, 0.0, 0.05, 0.15]),
        crashes=rng.choice([0, 1, 2]),
        partitions=rng.choice([0, 0, 1]),
        skew_s=rng.choice([0.0, 0.2, 1.0]),
        train_s=rng.choice([0.5, 2.0, 4.0]),
    )
    if seed % 2:
        return replace(troubled, members=rng.randint(5, 7), absent=1, standby_s=rng.choice([20.0, 60.0]))
    members, lost = rng.choice([(4, 2), (5, 2), (6, 3), (7, 3)])
    return replace(troubled, members=members, lost=lost)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m sim liveness", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args(arguments)
    return 1 if many([draw(given.seed + i) for i in range(given.seeds)], given.jobs) else 0
