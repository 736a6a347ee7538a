"""`python -m sim attack`: every merge rule against every attack, on real patients' data.

The table shows the accuracy on the test rows of all sites after the last round, the mean over the seeds. A finished
cell is kept in OUT/cells: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sim.attack.attacks import ATTACKS
from sim.attack.grid import cells_of, play_all
from sim.attack.report import boards, table, verdict, write_all
from sim.attack.rules import RULES
from sim.attack.tasks import SETTINGS, USUAL
from swarm.errors import SwarmError


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    told = "\n".join(f"  {name:<16} {attack.source}" for name, attack in ATTACKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m sim attack",
        description=__doc__,
        epilog=f"attacks:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rules", type=names, default=RULES, help=f"of {', '.join(RULES)} (default: all)")
    parser.add_argument("--attacks", type=names, default=tuple(ATTACKS), help="see below (default: all)")
    parser.add_argument(
        "--data", type=names, default=USUAL, help=f"of {', '.join(SETTINGS)} (default: {', '.join(USUAL)})"
    )
    parser.add_argument("--sites", type=int, help="over how many sites the data are cut (default: what suits the data)")
    parser.add_argument("--dishonest", type=int, help="how many of them (default: one in five)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--rounds", type=int, help="default: what the data need")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("attack-results"), help="default: attack-results")
    return parser


def names(text: str) -> tuple[str, ...]:
    """`mean,trimmed_mean` as a tuple."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def settings_of(given: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Data, sites and dishonest sites, as given or as the data suggest."""
    found = []
    for data in given.data:
        for sites, dishonest in SETTINGS.get(data, ((0, 1),)):
            plain = given.sites is None
            found.append(
                (
                    data,
                    sites if plain else given.sites,
                    given.dishonest or (dishonest if plain else max(1, given.sites // 5)),
                )
            )
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, report and write; 2 if the arguments cannot be."""
    given = parser().parse_args(arguments)
    # A table is folded on a narrow terminal and whole in a pipe.
    screen = Console() if sys.stdout.isatty() else Console(width=200)
    try:
        for option in ("seeds", "jobs", "rounds"):
            if getattr(given, option) is not None and getattr(given, option) < 1:
                raise ValueError(f"--{option} {getattr(given, option)}: 1 or more")
        for option in ("rules", "attacks", "data"):
            if not getattr(given, option):
                raise ValueError(f"--{option} names nothing")
        cells = cells_of(settings_of(given), given.rules, given.attacks, range(given.seeds), given.rounds)
        bar = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*bar, console=screen) as progress:
            line = progress.add_task("cells", total=len(cells))
            played = play_all(cells, given.out, given.jobs, lambda _: progress.advance(line))
    except (ValueError, SwarmError, OSError) as error:
        print(f"{parser().prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on with what is finished in {given.out}", file=sys.stderr)
        return 130
    found = boards(played)
    for board in found:
        screen.print(f"\n{board.title}: accuracy in %; a site alone has {board.local:.1f}", highlight=False)
        screen.print(table(board))
    for board in found:
        screen.print(verdict(board), highlight=False)
    screen.print(f"written: {', '.join(map(str, write_all(played, found, given.out)))}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
