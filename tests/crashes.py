"""Kills and power cuts by the hundred: `python -m tests.crashes --kills 500 --cuts 500`.

Ledger kills are of real node processes on loopback, ledger cuts of the real ledger and agreement on disks that lose
power, store kills and cuts of the object store. It prints what was done and exits with 1 at the first thing that must
not happen, with the seed that shows it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tests import store_crashes
from tests.ledger import kills as ledger_kills
from tests.ledger import power

KILLS_A_CAMPAIGN = 40
"""Then four new folders: a genesis is killed too, and chains stay short enough to be read after every kill."""


def kill_nodes(kills: int, seed: int) -> str:
    """What the kills of node processes came to."""
    total, genesis, blocks = Counter[str](), 0, 0
    while total.total() < kills:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            number = seed + total.total()
            try:
                campaign = ledger_kills.Campaign(Path(folder), number)
                found = campaign.run(min(KILLS_A_CAMPAIGN, kills - total.total()))
            except Exception as error:
                raise AssertionError(f"kills, seed {number}: {error}") from error
        total += found.kills
        genesis += found.genesis_kills
        blocks += found.blocks
    ways = ", ".join(f"{count} at {way}" for way, count in sorted(total.items()))
    return (
        f"{total.total()} kills of node processes ({ways}; {genesis} before the first block), {blocks} blocks decided"
    )


def cut_power(cuts: int, seed: int) -> str:
    """What the power cuts of validators came to."""
    done = blocks = lost = genesis = 0
    number = seed
    while done < cuts:
        try:
            found = power.run_seed(number)
        except Exception as error:
            raise AssertionError(f"power cuts, seed {number}: {error}") from error
        done, blocks, number = done + found.cuts, blocks + found.blocks, number + 1
        lost, genesis = lost + found.blocks_lost, genesis + found.genesis_cuts
    return (
        f"{done} power cuts of validators in {number - seed} stories ({genesis} before the first block), "
        f"{blocks} blocks decided, {lost} times a block was gone from one disk and came back"
    )


def crash_stores(kills: int, cuts: int, seed: int) -> str:
    """What the crashes of object stores came to."""
    for crash, count in ((store_crashes.kill, kills), (store_crashes.cut, cuts)):
        for number in range(seed, seed + count):
            try:
                crash(number)
            except Exception as error:
                raise AssertionError(f"store, {crash.__name__}({number}): {error}") from error
    return f"{kills} kills and {cuts} power cuts of stores"


def main(
    kills: Annotated[int, typer.Option(help="kills of node processes")] = 500,
    cuts: Annotated[int, typer.Option(help="power cuts of validators")] = 500,
    stores: Annotated[int, typer.Option(help="kills of stores, and as many power cuts")] = 250,
    seed: Annotated[int, typer.Option(help="of the first story")] = 0,
) -> None:
    """Kill and cut, and say what was found."""
    works: list[tuple[int, Callable[[], str]]] = [
        (cuts, lambda: cut_power(cuts, seed)),
        (stores, lambda: crash_stores(stores, stores, seed)),
        (kills, lambda: kill_nodes(kills, seed)),
    ]
    for wanted, work in works:
        if not wanted:
            continue
        start_s = time.monotonic()
        try:
            print(f"{work()}; {time.monotonic() - start_s:.0f} s", flush=True)
        except AssertionError as error:
            print(f"BROKEN: {error}", file=sys.stderr)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
