"""`swarm node` runs a site's node until it is told to stop."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from swarm.cli import screen
from swarm.cli.arguments import SitePath
from swarm.errors import StorageError


def node(
    site: SitePath,
    log: Annotated[Path | None, typer.Option(help="write the log to this file instead of the terminal")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log every effect, for a developer")] = False,
    rebuild: Annotated[
        bool, typer.Option(help="set a damaged ledger aside and fetch every block from the other members again")
    ] = False,
) -> None:
    """Run this hospital's node: it keeps the ledger, votes, serves checkpoints, and takes part for training.

    It stops on Ctrl-C or SIGTERM, loses nothing that was agreed, and goes on from there at the next start.
    """
    # What is imported stays: to look for garbage among it meanwhile, and ever after, takes a tenth of the start.
    gc.disable()
    from swarm.node.process import run_node  # brings in the EVM and the network: half a second

    gc.freeze()
    gc.enable()
    set_up_log(log, verbose=verbose)
    run_node(site, rebuild=rebuild)


def set_up_log(file: Path | None, *, verbose: bool) -> None:
    """The story of a run at INFO on a terminal in colour, in a file or a pipe with times; ours at DEBUG if asked."""
    handler: logging.Handler
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(file)
        except OSError as error:
            raise StorageError(f"the log file {file} cannot be written: {error}") from error
        handler.setFormatter(plain)
    elif screen.err.is_terminal:
        handler = RichHandler(console=screen.err, show_path=False, log_time_format="%H:%M:%S", markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(plain)
    # Other packages' notes (libp2p, web3) are for their developers: only their warnings are shown.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("swarm").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
