"""The command line `swarm`: what a hospital's administrator, operator and auditor type.

Each command is a file here. A command says what went wrong in one line with the way out, and exits with 1, or
with 2 where an argument or a file has to change; it shows no traceback for anything a `SwarmError` describes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperGroup

from swarm.errors import SwarmError

_PLACES = {
    "init": "init.init",
    "key": "init.key",
    "node": "node.node",
    "train": "train.train",
    "status": "status.status",
    "doctor": "doctor.doctor",
    "audit": "audit.audit",
    "verify-evidence": "evidence.verify_evidence",
    "deploy": "deploy.deploy",
    "demo": "demo.demo",
    "compare": "compare.compare",
    "leak-check": "leak.leak_check",
    "run": "run.app",
    "members": "members.app",
    "export": "export.app",
    "recover": "recover.app",
}
"""Each command: its file, and the function or the group of commands there. In the order in which help lists them."""


class _Late(Mapping[str, Any]):
    """The commands by name; one is loaded when it is asked for: a node starts without what auditors need."""

    def __getitem__(self, name: str) -> Any:
        file, _, attribute = _PLACES[name].partition(".")
        found = getattr(import_module(f"swarm.cli.{file}"), attribute)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(name)(found)
            command = typer.main.get_command(alone)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


class _Commands(TyperGroup):
    """Turns a `SwarmError` of any command into its line and exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(Any, _Late())

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SwarmError as error:
            from swarm.cli import screen

            raise screen.fail(error) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def swarm() -> None:
    """Hospitals train one model together: no server in the middle, and a ledger that proves what happened."""


def main() -> None:
    """The entry point `swarm`."""
    app(prog_name="swarm")
