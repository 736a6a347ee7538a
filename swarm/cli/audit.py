"""`swarm audit`: was every block agreed and every merge right? For somebody who was not there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from swarm.cli import screen
from swarm.cli.arguments import Json

if TYPE_CHECKING:
    from swarm.audit import Report


def audit(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="a consortium's folder (swarm.toml, sites/), or one site's (ledger/)")
    ],
    json_: Json = False,
) -> None:
    """Replay the whole ledger from genesis, derive every round again, merge again what the store still holds.

    Exit code 1 and the first difference at the first wrong bit. The nodes may be running.
    """
    report = run_audit(folder)
    if json_:
        screen.print_json(
            {
                "ok": report.ok,
                "first_difference": report.first_difference,
                "trusted": report.trusted,
                "sites": [asdict(s) for s in report.sites],
            }
        )
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(screen.FAILED)


def run_audit(folder: Path) -> Report:
    """The audit of a folder, with a progress bar."""
    from swarm.audit import audit as audit_folder  # brings in the EVM: other commands start without it

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen.err, transient=True, disable=not screen.err.is_terminal) as bar:
        tasks: dict[str, int] = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(bar.tasks[tasks[what]].id, completed=done, total=of)

        return audit_folder(folder, progress=tell)


def print_report(report: Report) -> None:
    """The findings, a line each, and the verdict."""
    for line in report.lines:
        screen.out.print(escape(line))
    if report.trusted is not None:
        screen.out.print(escape(report.trusted))
    if report.ok:
        seals = "receipts" if report.trusted else "seals, state roots, receipts"
        screen.out.print(f"[bold green]audit passed[/]: {seals}, leaders, attestations and merges")
    else:
        screen.out.print(f"[bold red]audit failed[/]: {escape(str(report.first_difference))}")
