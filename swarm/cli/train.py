"""`swarm train` runs a training program beside this site's node, and starts one for it where none runs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli import screen
from swarm.cli.arguments import SitePath
from swarm.cli.control import runs
from swarm.cli.processes import run_to_the_end, start_node, stop
from swarm.config import SiteConfig, load_site
from swarm.errors import ConfigError


def train(
    site: SitePath,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="the training program: -- python train.py ...")
    ],
) -> None:
    """Run a training program that takes part for this hospital.

    If no node of this hospital runs here, one is started, and stopped again when the program ends. The program finds
    the settings file in the variable SWARM_SITE. The exit code is the program's.
    """
    raise typer.Exit(run_to_the_end(_train(load_site(site), command)))


async def _train(site: SiteConfig, command: list[str]) -> int:
    node = None
    if not await runs(site):
        log = site.folder / "node.log"
        screen.err.print(f"starting the node of {site.name}; its log is {screen.here(log)}")
        node = await start_node(site, log)
    try:
        return await _run(command, site.path)
    finally:
        if node is not None:
            await stop(node)


async def _run(command: list[str], site: Path) -> int:
    try:
        program = await asyncio.create_subprocess_exec(*command, env={**os.environ, "SWARM_SITE": str(site)})
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be started: {error}") from error
    loop = asyncio.get_running_loop()
    # A terminal sends Ctrl-C to the program as well: it decides how to end, and its node outlives it.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, program.terminate)
    code = await program.wait()
    return 128 - code if code < 0 else code
