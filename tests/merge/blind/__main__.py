"""`python -m tests.merge.blind --cases 10000 [--first 0]`: random blind rounds against the visible mean."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import Counter

from tests.merge.blind.cases import tried


def main() -> None:
    """Try them on all processors; say how far it is, and at the end what members did wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    seeds = range(chosen.first, chosen.first + chosen.cases)
    faults: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(chosen.processes) as pool:
        for number, found in enumerate(pool.imap_unordered(tried, seeds, chunksize=10), 1):
            faults.update(found.split(", "))
            if number % 1000 == 0:
                print(f"{number} of {chosen.cases} rounds: every blind mean was the visible one", flush=True)
    print("members that did something wrong:")
    for fault, count in sorted(faults.items()):
        print(f"  {count:7} {fault or 'rounds without any'}")


if __name__ == "__main__":
    main()
