"""What the command line prints, and how: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from swarm.errors import ConfigError, SwarmError

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

FAILED = 1
"""The exit code of a command that could not do what it was asked."""
MISCONFIGURED = 2
"""The exit code where a file or an argument has to change first; also Click's for a wrong argument."""
PLAIN_WIDTH = 400
"""Where no terminal says how wide it is: wider than any line of ours."""


def fail(error: SwarmError) -> typer.Exit:
    """Prints the one line that a person acts on, and is the exit to raise."""
    err.print(f"[bold red]error[/] {escape(' '.join(str(error).split()))}")
    return typer.Exit(MISCONFIGURED if isinstance(error, ConfigError) else FAILED)


def print_json(value: Any) -> None:
    """One JSON document on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show(what: RenderableType) -> None:
    """Print tables and groups of them: folded to a terminal's width, but never cut for a file or a pipe."""
    (out if out.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)).print(what)


def table(*columns: str, rows: Iterable[Iterable[str]], title: str | None = None) -> Table:
    """A plain table whose cells are shown as they are; to be printed with `show`."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    return shown


def here(path: Path) -> str:
    """The path as a person in this folder would write it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
