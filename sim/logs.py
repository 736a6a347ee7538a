"""The nodes' logs, each line with the virtual time and the site that wrote it."""

from __future__ import annotations

import asyncio
import logging
import sys

from sim.site import SITE


def show_logs(level: int = logging.DEBUG) -> None:
    """Print what the nodes of this process log from now on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("swarm")
    logger.addHandler(handler)
    logger.setLevel(level)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now_s = asyncio.get_running_loop().time()
        return f"{now_s:9.3f} s  [{SITE.get()}] {record.name.removeprefix('swarm.')}: {record.getMessage()}"
