"""Follows a ledger by headers and certificates alone, from folders or over the members' JSON-RPC, and compares them.

What that proves, and what not, is `swarm.ledger.light`'s; `audit` executes everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarm.config import SwarmConfig
from swarm.encoding import Digest, short
from swarm.errors import SwarmError
from swarm.ledger.connection import shown
from swarm.ledger.genesis import Genesis
from swarm.ledger.light import LightFollower, Roll, Sealed
from swarm.ledger.light_sources import blocks_at, blocks_in


@dataclass
class Followed:
    """What one source showed."""

    name: str
    light: LightFollower
    hashes: list[Digest] = field(default_factory=list)
    """Of blocks 1 to the last one that holds."""
    difference: str | None = None
    """Why it is not followed any further; None if all it has holds."""

    def read(self, folder: Path) -> None:
        """Follow a site's folder."""
        try:
            for block in blocks_in(folder):
                self._take(block)
        except SwarmError as error:
            self.difference = str(error)

    async def ask(self, url: str) -> None:
        """Follow a node."""
        try:
            async for block in blocks_at(url, self.light.chain_id):
                self._take(block)
        except SwarmError as error:
            self.difference = str(error)

    def _take(self, block: Sealed) -> None:
        self.light.follow(block)
        self.hashes.append(block.header.hash)


@dataclass
class LightReport:
    """What all of them showed."""

    sources: list[Followed]
    difference: str | None = None
    """The first thing that is not as it has to be; two certified blocks at one height are the worst."""

    @property
    def ok(self) -> bool:
        """Everything held, and nobody contradicts anybody."""
        return self.difference is None

    @property
    def lines(self) -> list[str]:
        """The findings for a person, one a line."""
        longest = max(len(one.hashes) for one in self.sources)
        told = []
        for one in self.sources:
            if one.difference is not None:
                told.append(f"{one.name}: {one.difference}")
                continue
            behind = f", {longest - len(one.hashes)} fewer than another source has" if len(one.hashes) < longest else ""
            last = f", the last is {short(one.hashes[-1])}" if one.hashes else ""
            told.append(
                f"{one.name}: {len(one.hashes)} blocks, each sealed by a quorum of the validators of its time"
                f"{last}{behind}; validators changed {one.light.changes} times, {one.light.recoveries} recoveries"
            )
        return told


def follow(config: SwarmConfig, *, folders: Sequence[tuple[str, Path]] = (), urls: Sequence[str] = ()) -> LightReport:
    """Check every block of every source against the validators of its time, from the founders on.

    Args:
        folders: (name, folder) of sites whose `ledger/` lies here.
        urls: JSON-RPC addresses of nodes.
    Raises:
        ConfigError: the settings make no ledger, or an address is none.
    """
    genesis, roll = Genesis.of(config).execution.header, Roll.of(config)
    found = []
    for name, folder in folders:
        one = Followed(name, LightFollower(genesis, roll, chain_id=config.chain_id))
        one.read(folder)
        found.append(one)
    for url in urls:
        one = Followed(shown(url), LightFollower(genesis, roll, chain_id=config.chain_id))
        asyncio.run(one.ask(url))
        found.append(one)
    return LightReport(found, _difference(found))


def _difference(found: Sequence[Followed]) -> str | None:
    longest = max(found, key=lambda one: len(one.hashes))
    for one in found:
        for number, (theirs, other) in enumerate(zip(one.hashes, longest.hashes, strict=False), 1):
            if theirs != other:
                return (
                    f"block {number} is {short(theirs)} at {one.name} and {short(other)} at {longest.name}, and both "
                    "are certified: a third of the validators or more signed two ledgers"
                )
    return next((f"{one.name}: {one.difference}" for one in found if one.difference is not None), None)
