"""Nodes and training programs as processes of this machine: started, watched, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

from swarm.cli.control import runs
from swarm.config import SiteConfig
from swarm.errors import ConfigError, UnavailableError

NODE_READY_S = 60.0
"""A node opens its key (a second of scrypt), checks its ledger and listens; a slow disk may take a while."""
STOP_S = 20.0

T = TypeVar("T")


def run_to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, where SIGTERM cancels the work as Ctrl-C does: it stops what it started, and the command exits."""

    async def main() -> T:
        this = asyncio.current_task()
        assert this is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError as error:
        raise typer.Exit(128 + signal.SIGTERM) from error


async def start_node(
    site: SiteConfig,
    log: Path,
    *,
    ready_s: float = NODE_READY_S,
    inside: Callable[[list[str]], list[str]] = lambda command: command,
) -> asyncio.subprocess.Process:
    """The site's node as a process of its own that answers on its socket.

    Args:
        inside: the command as it is run where the node belongs.
    Raises:
        ConfigError: it ended at once; with its last words and where its log is.
        UnavailableError: it does not answer in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = await start(inside([sys.executable, "-m", "swarm", "node", str(site.path)]), log)
    clock = asyncio.get_running_loop().time
    until_s = clock() + ready_s
    try:
        while not await runs(site):
            if process.returncode is not None:
                raise ConfigError(f"the node of {site.name} ended at once: {last_line(log)} (its log is {log})")
            if clock() > until_s:
                raise UnavailableError(f"the node of {site.name} did not answer within {ready_s:g} s; its log is {log}")
            await asyncio.sleep(0.1)
    except BaseException:
        await stop(process)
        raise
    return process


async def start(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> asyncio.subprocess.Process:
    """A process in a session of its own, so that Ctrl-C reaches only the one who started it; output goes to `log`."""
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


async def stop(process: asyncio.subprocess.Process, *, patience_s: float = STOP_S) -> int:
    """Ask the process to end, make it end if it does not, and its exit code."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await process.wait()
        except TimeoutError:
            kill(process)
            await process.wait()
    assert process.returncode is not None
    return process.returncode


def kill(process: asyncio.subprocess.Process) -> None:
    """End the process and what it started, now and without warning, as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def last_line(log: Path) -> str:
    """The last words in a log file."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
