"""`python -m tests.fuzz --inputs 1000000`: so many inputs for every target; the seed of one that fails is printed."""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable

import psutil

from tests.fuzz.corpus import mutated
from tests.fuzz.targets import Target, targets

GROWTH_MAX_MB = 64
"""Of the process, after the first tenth of the inputs."""


class Escaped(Exception):
    """An exception that is no refusal left a target."""


def fuzz(target: Target, inputs: int, seed: int, *, progress: Callable[[int], None] = lambda _: None) -> float:
    """Feed so many inputs; how much the process grew meanwhile, in MB.

    Raises:
        Escaped: names the target, the input's seed and the input.
    """
    process, corpus = psutil.Process(), list(target.corpus)
    before = 0
    for number in range(inputs):
        chance = random.Random(f"{target.name} {seed} {number}")
        data = (mutated if number % 2 else target.reshape)(chance, corpus)
        try:
            target.feed(data)
        except Exception as error:
            raise Escaped(f"{target.name}, seed {seed}, input {number}: {error!r} at {data.hex()}") from error
        if number == inputs // 10:
            gc.collect()
            before = process.memory_info().rss
        if number % 4096 == 0:
            progress(number)
    gc.collect()
    return float(process.memory_info().rss - before) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many for each target (default 1000000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument("--list", action="store_true", help="name the targets and stop")
    wanted = parser.parse_args()
    known = targets()
    if wanted.list:
        print("\n".join(known))
        return 0
    unknown = set(wanted.target or ()) - set(known)
    if unknown:
        parser.error(f"no target {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    failed = 0
    for name in wanted.target or known:
        began_s = time.monotonic()

        def progress(number: int, name: str = name, began_s: float = began_s) -> None:
            if sys.stderr.isatty():
                rate = number / max(time.monotonic() - began_s, 1e-9)
                print(f"\r{name}: {number:,} of {wanted.inputs:,}, {rate:,.0f} a second", end="", file=sys.stderr)

        try:
            grown_mb = fuzz(known[name], wanted.inputs, wanted.seed, progress=progress)
        except Escaped as escaped:
            print(f"FAILED {escaped}")
            failed += 1
            continue
        rate = wanted.inputs / (time.monotonic() - began_s)
        verdict = "ok" if grown_mb < GROWTH_MAX_MB else "GREW"
        failed += verdict != "ok"
        print(f"{verdict} {name}: {wanted.inputs:,} inputs, {rate:,.0f} a second, {grown_mb:+.1f} MB", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
