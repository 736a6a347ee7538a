"""The heart demo between hospitals as they are: behind a firewall, behind NAT, on a slow line, with cuts.

Four namespaces with lines of their own, the real node and training processes in them. Hungarian and Switzerland can
only dial out, so each reaches the other over Cleveland, which relays. The leader of a round is killed, and half of the
hospitals are parted from the other half for a while: no block can be decided then.

    python -m tests.node.bad_network [--rounds N] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm.cli import screen
from swarm.cli.consortium import Place, places_of
from swarm.cli.control import NodeClient
from swarm.cli.demo import HOSPITALS, Demo, fresh
from swarm.cli.processes import run_to_the_end
from swarm.errors import UnavailableError
from tests.net.namespaces import Internet, Line, why_not

LINES = {
    "cleveland": Line(delay_s=0.005),
    "hungarian": Line(delay_s=0.01, inbound=False),
    "switzerland": Line(delay_s=0.01, nat=True),
    "va": Line(rate_bytes_s=5e6 / 8, delay_s=0.03, loss=0.002),
}
RELAY = "cleveland"
PARTED = ["switzerland", "va"]
PARTED_S = 15.0


@dataclass
class Told:
    """What was seen."""

    parted_in: int = -1
    """The round in which half of the hospitals were cut off."""
    asleep_s: float = -1.0
    """From the cut to the first block after it."""
    relayed: dict[str, list[str]] = field(default_factory=dict)
    """Who is reached over a relay, for each hospital."""
    carried: dict[str, dict[str, int]] = field(default_factory=dict)
    """What the lines carried: bytes `sent` and `received`, packets `lost`."""


class BadNetwork(Demo):
    """The demo over an `Internet`."""

    def __init__(self, internet: Internet, folder: Path, *, seed: int = 0, rounds: int | None = None) -> None:
        super().__init__(folder, seed=seed, rounds=rounds, kills=True)
        self.told = Told()
        self._internet = internet
        self._partition: asyncio.Task[None] | None = None

    def places(self) -> list[Place]:
        return places_of([f"{name}@{self._internet.address(name)}" for name in HOSPITALS], base_port=4101)

    def inside(self, name: str, command: list[str]) -> list[str]:
        return self._internet.inside(name, command)

    def _found_consortium(self) -> None:
        super()._found_consortium()
        with (self.folder / "sites" / f"{RELAY}.toml").open("a") as file:
            file.write("\n[relay]\n")

    async def _start_training(self) -> None:
        await self._until_connected()
        await super()._start_training()
        self._partition = asyncio.get_running_loop().create_task(self._part())

    async def _until_finished(self) -> tuple[str, int]:
        found = await super()._until_finished()
        assert self._partition is not None
        await self._partition
        self.told.carried = self._internet.tell()
        return found

    async def _until_connected(self) -> None:
        """All with all, some of them over the relay."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + 60:
            ways = {name: await self._ways(name) for name in HOSPITALS}
            if all(way["connected"] for found in ways.values() for way in found):
                self.told.relayed = {
                    name: sorted(way["name"] for way in found if way["relay"]) for name, found in ways.items()
                }
                self.seen.say(f"all are connected after {time.monotonic() - began_s:.1f} s: {self.told.relayed}")
                return
            await asyncio.sleep(0.1)
        raise UnavailableError(f"not all are connected after a minute: {json.dumps(ways, indent=1)}")

    async def _ways(self, name: str) -> list[dict[str, Any]]:
        async with NodeClient(self.hospitals[name].site) as node:
            found: list[dict[str, Any]] = (await node.call("swarm_network"))["members"]
            return found

    async def _part(self) -> None:
        """Once the killed hospital has taken part again: cut half of them off, and heal."""
        while not (self.seen.run == "heart" and self.seen.round >= self._part_at and self._all_up()):  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.1)
        self.told.parted_in, height, began_s = self.seen.round, self.seen.height, time.monotonic()
        self._internet.tell(cut=PARTED)
        self.seen.say(f"{' and '.join(PARTED)} are cut off in round {self.told.parted_in}, for {PARTED_S:g} s")
        await asyncio.sleep(PARTED_S)
        self._internet.tell(heal=PARTED)
        self.seen.say("the lines are whole again")
        # One block may have been on its way.
        while self.seen.height <= height + 1:  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.05)
        self.told.asleep_s = time.monotonic() - began_s

    @property
    def _part_at(self) -> int:
        return self._kill_at + 3

    def _all_up(self) -> bool:
        return all(self.seen.states[name] == "up" for name in HOSPITALS)


def heart(folder: Path, *, rounds: int | None = None, seed: int = 0) -> tuple[bool, Told]:
    """Run it; whether everything held, and what was seen."""
    with Internet(LINES, seed=seed) as internet:
        course = BadNetwork(internet, folder, seed=seed, rounds=rounds)
        return run_to_the_end(course.run()), course.told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--rounds", type=int)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--dir", type=Path, default=Path("bad-network"))
    given = arguments.parse_args()
    if reason := why_not():
        sys.exit(reason)
    began_s = time.monotonic()
    held, told = heart(fresh(given.dir.resolve()), rounds=given.rounds, seed=given.seed)
    screen.out.print(told)
    screen.out.print(f"{time.monotonic() - began_s:.0f} s; {'everything held' if held else 'NOT everything held'}")
    sys.exit(not held)


if __name__ == "__main__":
    main()
