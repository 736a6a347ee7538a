"""The heart demo between hospitals as they are: behind a firewall, behind NAT, on a slow line, with cuts.

Four namespaces with lines of their own, the real node and training processes in them. Hungarian and Switzerland can
only dial out, so each reaches the other over Cleveland or VA, which relay. The leader of a round is killed, any or the
one that is named, and half of the hospitals are parted from the other half for a while: no block can be decided then.

    python -m tests.node.bad_network [--kill relay|HOSPITAL] [--rounds N] [--dir FOLDER]
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
HIDDEN = ("hungarian", "switzerland")
RELAYS = ("cleveland", "va")
"""While one is away the two that only dial out still meet; the ledger needs both of them then."""
PARTED = ["switzerland", "va"]
PARTED_S = 15.0
PART_AFTER_ROUNDS = 2
"""After the killed one is back."""
ROUNDS_TO_KILL = 24
"""Where one is named, it has to lead after the fourth round: in one of 300 runs it does not."""


@dataclass
class Told:
    """What was seen."""

    killed: str = ""
    merged: bool = False
    """Its last submission."""
    doctor: list[str] = field(default_factory=list)
    """What the doctor of one that only dials out says of relays."""
    parted_in: int = -1
    """The round in which half of the hospitals were cut off."""
    asleep_s: float = -1.0
    """From the cut to the first block after it."""
    relayed: dict[str, list[str]] = field(default_factory=dict)
    """Who is reached over a relay, for each hospital."""
    over: list[str] = field(default_factory=list)
    """Which relay joined the two that only dial out: before training, and at the end."""
    carried: dict[str, dict[str, int]] = field(default_factory=dict)
    """What the lines carried: bytes `sent` and `received`, packets `lost`."""


class BadNetwork(Demo):
    """The demo over an `Internet`."""

    def __init__(
        self, internet: Internet, folder: Path, *, seed: int = 0, rounds: int | None = None, kill: str = ""
    ) -> None:
        super().__init__(folder, seed=seed, rounds=rounds, kills=True)
        self.told = Told()
        self._kill = kill
        self._internet = internet
        self._partition: asyncio.Task[None] | None = None

    def places(self) -> list[Place]:
        return places_of([f"{name}@{self._internet.address(name)}" for name in HOSPITALS], base_port=4101)

    def inside(self, name: str, command: list[str]) -> list[str]:
        return self._internet.inside(name, command)

    def _found_consortium(self) -> None:
        super()._found_consortium()
        for relay in RELAYS:
            with (self.folder / "sites" / f"{relay}.toml").open("a") as file:
                file.write("\n[relay]\n")

    async def _start_training(self) -> None:
        await self._until_connected()
        self.told.over.append(await self._over())
        self.told.doctor = await self._doctor(HIDDEN[0])
        self.seen.say(f"the doctor at {HIDDEN[0]}: {'; '.join(self.told.doctor)}")
        await super()._start_training()
        self._partition = asyncio.get_running_loop().create_task(self._part())

    def survived(self, merged: bool, back: bool) -> bool:
        """On such lines one may die before anybody has a copy of its masked update: then the round goes on without."""
        self.told.merged = merged
        return back

    async def _until_finished(self) -> tuple[str, int]:
        found = await super()._until_finished()
        assert self._partition is not None
        if self.told.parted_in < 0:
            self._partition.cancel()  # the one to kill led so late that the run was over
        await asyncio.gather(self._partition, return_exceptions=self._partition.cancelling() > 0)
        self.told.over.append(await self._over())
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

    async def _over(self) -> str:
        """Who joins the two that only dial out, by the word of one of them; empty if nobody does now."""
        ways = await self._ways(HIDDEN[0])
        relay = next(way["relay"] for way in ways if way["name"] == HIDDEN[1])
        return next((way["name"] for way in ways if way["address"] == relay), "")

    async def _doctor(self, name: str) -> list[str]:
        """The findings about relays of `swarm doctor`, run at the hospital."""
        command = [sys.executable, "-m", "swarm", "doctor", str(self.hospitals[name].site.path), "--json"]
        process = await asyncio.create_subprocess_exec(*self.inside(name, command), stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return [check["found"] for check in json.loads(out) if check["what"] == "relays"]

    def _kill_leader(self) -> str:
        wanted = self.told.over[0] if self._kill == "relay" else self._kill
        if wanted and self.seen.leader != wanted:
            return ""
        self.told.killed = super()._kill_leader()
        return self.told.killed

    async def _part(self) -> None:
        """Once the killed hospital has taken part again: cut half of them off, and heal."""
        while not (self.told.killed and self._all_up()):  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.1)
        part_at = self.seen.round + PART_AFTER_ROUNDS
        while self.seen.round < part_at:  # noqa: ASYNC110 - tells nobody
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

    def _all_up(self) -> bool:
        return all(self.seen.states[name] == "up" for name in HOSPITALS)


def heart(folder: Path, *, rounds: int | None = None, seed: int = 0, kill: str = "") -> tuple[bool, Told]:
    """Run it; whether everything held, and what was seen.

    Args:
        kill: the hospital to kill when it leads; `relay`: the one that joins the two; empty: whoever leads.
    """
    with Internet(LINES, seed=seed) as internet:
        course = BadNetwork(internet, folder, seed=seed, rounds=rounds or (ROUNDS_TO_KILL if kill else None), kill=kill)
        held = run_to_the_end(course.run())
        return held and course.told.parted_in >= 0, course.told


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    whom = "the one to kill when it leads: that which joins the two, or by name (default: whoever leads)"
    arguments.add_argument("--kill", choices=("relay", *HOSPITALS), default="", help=whom)
    arguments.add_argument("--rounds", type=int)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--dir", type=Path, default=Path("bad-network"))
    given = arguments.parse_args()
    if reason := why_not():
        sys.exit(reason)
    began_s = time.monotonic()
    held, told = heart(fresh(given.dir.resolve()), rounds=given.rounds, seed=given.seed, kill=given.kill)
    screen.out.print(told)
    screen.out.print(f"{time.monotonic() - began_s:.0f} s; {'everything held' if held else 'NOT everything held'}")
    sys.exit(not held)


if __name__ == "__main__":
    main()
