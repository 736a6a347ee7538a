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
from swarm.config import load_swarm
from swarm.errors import ConfigError
from swarm.identity import checksum

if TYPE_CHECKING:
    from swarm.audit import Report


def audit(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="a consortium's folder (swarm.toml, sites/), or one site's (ledger/)")
    ],
    light: Annotated[
        bool, typer.Option("--light", help="check headers, certificates and who votes; execute and merge nothing")
    ] = False,
    url: Annotated[
        list[str] | None,
        typer.Option("--url", help="with --light: ask this node's JSON-RPC instead of the folder; may be repeated"),
    ] = None,
    json_: Json = False,
) -> None:
    """Replay the whole ledger from genesis, derive every round again, merge again what the store still holds.

    Exit code 1 and the first difference at the first wrong bit. The nodes may be running.

    With --light: was each block sealed by a quorum of the validators of its time, from the founders in swarm.toml on?
    That takes about a millisecond a block. It does not show that a block's transactions were executed rightly, nor that
    there is no later block: compare several sources.
    """
    if light or url:
        _follow(folder, url or [], light=light, json_=json_)
        return
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


def _follow(folder: Path, urls: list[str], *, light: bool, json_: bool) -> None:
    from swarm.audit import follow
    from swarm.audit.audit import places_of

    if not light:
        raise ConfigError("--url asks for headers and certificates alone; say --light with it")
    if urls:
        report = follow(load_swarm(folder / "swarm.toml"), urls=urls)
    else:
        config, sites = places_of(folder.resolve())
        report = follow(config, folders=sites)
    if json_:
        sources = [
            {
                "name": one.name,
                "blocks": len(one.hashes),
                "head": one.hashes[-1].hex() if one.hashes else "",
                "validators": [checksum(validator) for validator in one.light.validators],
                "changes": one.light.changes,
                "recoveries": one.light.recoveries,
                "difference": one.difference,
            }
            for one in report.sources
        ]
        screen.print_json({"ok": report.ok, "first_difference": report.difference, "sources": sources})
    else:
        for line in report.lines:
            screen.out.print(escape(line))
        if report.ok:
            screen.out.print("[bold green]certificates hold[/]: what was decided, not that it was executed rightly")
        else:
            screen.out.print(f"[bold red]does not hold[/]: {escape(str(report.difference))}")
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
