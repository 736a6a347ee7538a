"""The command line `swarm`: what a hospital's administrator, operator and auditor type.

Each command is a file here. A command says what went wrong in one line with the way out, and exits with 1, or
with 2 where an argument or a file has to change; it shows no traceback for anything a `SwarmError` describes.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from swarm.cli import (
    audit,
    compare,
    demo,
    deploy,
    doctor,
    evidence,
    export,
    init,
    leak,
    members,
    node,
    recover,
    run,
    screen,
    status,
    train,
)
from swarm.errors import SwarmError


class _Commands(TyperGroup):
    """Turns a `SwarmError` of any command into its line and exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SwarmError as error:
            raise screen.fail(error) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hospitals train one model together: no server in the middle, and a ledger that proves what happened.",
)
app.command()(init.init)
app.command()(init.key)
app.command()(node.node)
app.command()(train.train)
app.command()(status.status)
app.command()(doctor.doctor)
app.command()(audit.audit)
app.command()(evidence.verify_evidence)
app.command()(deploy.deploy)
app.command()(demo.demo)
app.command()(compare.compare)
app.command()(leak.leak_check)
app.add_typer(run.app, name="run")
app.add_typer(members.app, name="members")
app.add_typer(export.app, name="export")
app.add_typer(recover.app, name="recover")


def main() -> None:
    """The entry point `swarm`."""
    app(prog_name="swarm")
