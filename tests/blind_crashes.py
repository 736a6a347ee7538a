"""Kills in blind rounds: `python -m tests.blind_crashes --points 60`.

Four real node processes on loopback do blind rounds. In each, one of them, the round's leader to be, a member that
verifies, or another, kills itself with SIGKILL at a named point, and is started again. The run has to end with the
checkpoint of one that nobody disturbed; what the nodes showed each other, which they wrote down beside their folders,
has one vector and one set of survivors an attempt.

`python -m tests.blind_crashes --node SITE.toml ARM JOURNAL` is such a node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swarm.blind import MaskDuty
from swarm.cli.node import set_up_log
from swarm.config import load_site
from swarm.encoding import Address, Digest, to_hex
from swarm.learn.attach import Node
from swarm.learn.seat import Seat
from swarm.ledger.client import Run
from swarm.ledger.endpoint import Call
from swarm.merge import write_file
from swarm.node import masking as node_masking
from swarm.node.mask_log import MaskLog
from swarm.node.masking import Masking, Veil
from swarm.node.participation import Participation
from swarm.node.process import run_node
from swarm.rounds import Duty, RoundState
from swarm.store import Store
from tests.node.hospitals import PARAMETERS, Hospitals

NAMES = ["north", "east", "south", "west"]
ROLES = ("leader", "verifier", "member")
DUTIES = ("JoinMasks", "OpenBlob", "Confirm", "MaskUpdate", "Submit", "RevealMask", "Merge", "Attest", "Fetch")
CALLS = ("join", "confirm", "submit", "reveal", "attest")
WRITES = ("log join", "log mask", "log reveal", "log erase", "serve", "put blob", "sync vector", "put sum")
MOMENTS_MS = (0, 5, 10, 20, 35, 50, 75, 100, 130, 160, 200, 250, 300, 400, 500, 700, 900, 1200)
STEPS = (*DUTIES, *(f"call {call}" for call in CALLS), *WRITES)
POINTS = (
    *(f"before {step}" for step in STEPS),
    *(f"after {step}" for step in STEPS),
    *(f"{moment} ms after the round opened" for moment in MOMENTS_MS),
)  # fmt: skip
LEADERS = ("before Publish", "after Publish", "before call publish", "after call publish")
"""Points that only a leader reaches."""


# --- in the node's process


class Tripwire:
    """Kills this process at the point that the file `arm` names, if this node has the role that it names."""

    def __init__(self, arm: Path, journal: Path) -> None:
        self._arm = arm
        self._journal = journal
        self.role = ""

    def at(self, point: str) -> None:
        """A point is reached."""
        try:
            role, wanted = self._arm.read_text().split("/")
        except (FileNotFoundError, ValueError):
            return
        if wanted == point and role == self.role:
            self.die()

    def die(self) -> None:
        """Now."""
        try:
            os.rename(self._arm, self._arm.with_suffix(".fired"))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def moment_s(self) -> float | None:
        """After which time of the round it kills, where that is what is asked for."""
        try:
            role, wanted = self._arm.read_text().split("/")
        except (FileNotFoundError, ValueError):
            return None
        return int(wanted.split()[0]) / 1000 if wanted.endswith("opened") and role == self.role else None

    def note(self, **what: Any) -> None:
        """Write down what others are about to see."""
        with self._journal.open("a") as journal:
            journal.write(json.dumps(what) + "\n")
            journal.flush()


def _hooked(wire: Tripwire) -> type[Participation]:
    class HookedLog(MaskLog):
        def join(self, run: int, attempt: int, seed: bytes, blob: Digest) -> None:
            wire.at("before log join")
            super().join(run, attempt, seed, blob)
            wire.at("after log join")

        def mask(self, run: int, attempt: int, masked: Digest) -> None:
            wire.at("before log mask")
            super().mask(run, attempt, masked)
            wire.at("after log mask")

        def reveal(self, run: int, attempt: int, survivors: frozenset[Address]) -> None:
            wire.at("before log reveal")
            super().reveal(run, attempt, survivors)
            wire.note(attempt=attempt, survivors=sorted(to_hex(one) for one in survivors))
            wire.at("after log reveal")

        def erase(self, run: int, *, but: int | None) -> None:
            wire.at("before log erase")
            super().erase(run, but=but)
            wire.at("after log erase")

    class Hooked(Masking):
        def __init__(self, **parts: Any) -> None:
            super().__init__(**parts)
            self.log = HookedLog(self._folder, parts["entropy"])

        async def _join(self, run: Run, state: RoundState, veil: Veil) -> None:
            wire.at("before put blob")
            await super()._join(run, state, veil)
            wire.at("after put blob")

        async def serve(self, run: int, attempt: int, submitted: Digest) -> None:
            logged = self.log.read(run, attempt)
            mine = logged is not None and logged.entry.masked == submitted
            fresh = mine and self._masked_place(run, attempt).exists()
            if fresh:
                wire.note(attempt=attempt, vector=to_hex(submitted))
                wire.at("before serve")
            await super().serve(run, attempt, submitted)
            if fresh:
                wire.at("after serve")

    class HookedWork(Participation):
        masks_with = Hooked
        _timed = (-1, 0)

        def _start_duties(self) -> None:
            for effort in self.efforts.values():
                if effort.state is not None and effort.state.expected:
                    self._take_role(effort.state)
            super()._start_duties()

        def _take_role(self, state: RoundState) -> None:
            order = state.expected
            first = int.from_bytes(state.seed, "big")
            roles = {order[(first + turn) % len(order)]: role for turn, role in reversed([*enumerate(ROLES)])}
            wire.role = roles.get(self._me, "")
            moment_s = wire.moment_s
            if moment_s is not None and self._timed != (state.round, moment_s):
                self._timed = state.round, moment_s  # type: ignore[assignment]
                asyncio.get_running_loop().call_later(moment_s, wire.die)

        async def _perform(self, duty: Duty | MaskDuty) -> None:
            wire.at(f"before {type(duty).__name__}")
            await super()._perform(duty)
            wire.at(f"after {type(duty).__name__}")

        async def transact(self, call: Call) -> None:
            name = next((one for one in (*CALLS, "publish") if call.what.startswith(_WORDS[one])), "")
            wire.at(f"before call {name}")
            await super().transact(call)
            wire.at(f"after call {name}")

    return HookedWork


_WORDS = {
    "join": "join attempt", "confirm": "confirm", "submit": "submit", "reveal": "reveal", "attest": "attest",
    "publish": "publish",
}  # fmt: skip


def _run(site: Path, arm: Path, journal: Path) -> None:
    wire = Tripwire(arm, journal)
    sync, put = node_masking.sync_file, Store.put_file

    def sync_file(path: Path) -> None:
        wire.at("before sync vector")
        sync(path)
        wire.at("after sync vector")

    def put_file(self: Store, path: Path, **how: Any) -> Digest:
        wire.at("before put sum")
        done = put(self, path, **how)
        wire.at("after put sum")
        return done

    node_masking.sync_file = sync_file
    Store.put_file = put_file  # type: ignore[method-assign]
    set_up_log(None, verbose=False)
    run_node(site, participation=_hooked(wire))


# --- the campaign


class Veiled(Hospitals):
    """Hospitals whose nodes kill themselves, and whose training gives the same update for a round every time."""

    @property
    def arm(self) -> Path:
        """The file that says who dies next, and where."""
        return self.folder / "arm"

    def start(self, name: str, *, kind: str | None = None) -> None:
        """Start a site's node with its tripwire."""
        command = [sys.executable, "-m", "tests.blind_crashes", "--node", str(self.sites[name]), str(self.arm)]
        command.append(str(self.folder / f"{name}.journal"))
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[1])

    def _train(self, name: str, pause_s: float) -> None:
        trail = self.trails.setdefault(name, [])
        with Node(load_site(self.sites[name]), patience_s=120) as node:
            seat = Seat(node, "test")
            place = seat.take()
            while not place.finished:
                time.sleep(pause_s)
                rng = np.random.default_rng([*name.encode(), place.round])
                with seat.update_file() as path:
                    write_file(path, self.schema, {"weight": rng.normal(0, 1e-2, PARAMETERS).astype(np.float32)})
                    place = seat.exchange(place, path, samples=100, metrics={"loss": 1.0 / (1 + place.round)})
                trail.append((time.monotonic(), place.round))
            self.finals[name] = place.checkpoint

    def revive(self) -> str:
        """Start again whoever died; its name."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, f"{name} ended by itself\n{self.log(name)[-3000:]}"
                self.start(name)
                return name
        return ""


@dataclass
class Campaign:
    """What came of some kills."""

    final: str
    killed: list[str]
    missed: list[str]
    """Points that nobody reached while they were armed."""


def play(folder: Path, points: list[tuple[str, str]], *, rounds: int, patience_s: float = 20.0) -> Campaign:
    """Do a run of blind rounds, and one kill after the other in it.

    Args:
        points: role and point of each.
        rounds: more than there are points: what dies comes back in the same round or the next.
    """
    killed, missed = list[str](), list[str]()
    with Veiled(folder, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=rounds, submit_s=60.0, merge_s=40.0, attest_s=20.0, blind=True)
        for name in NAMES:
            hospitals.train(name)
        for role, point in points:
            if not hospitals.training():
                missed.append(f"{role}: {point}: the run was over")
                continue
            hospitals.arm.write_text(f"{role}/{point}")
            until, name = time.monotonic() + patience_s, ""
            while hospitals.training() and time.monotonic() < until and not (name := hospitals.revive()):
                time.sleep(0.02)
            hospitals.arm.unlink(missing_ok=True)
            (killed if name else missed).append(f"{role}: {point}")
        until = time.monotonic() + 30 * rounds
        while hospitals.training() and time.monotonic() < until:
            hospitals.revive()
            time.sleep(0.1)
        hospitals.join(60)
        assert len(set(hospitals.finals.values())) == 1, f"the sites end with {hospitals.finals}"
        for name in NAMES:
            check_journal(name, hospitals.folder / f"{name}.journal")
        return Campaign(next(iter(hospitals.finals.values())), killed, missed)


def check_journal(name: str, journal: Path) -> None:
    """One vector and one set of survivors an attempt; AssertionError names who and what."""
    shown: Mapping[tuple[int, str], set[str]] = defaultdict(set)
    for line in journal.read_text().splitlines() if journal.exists() else []:
        found = json.loads(line)
        for kind in ("vector", "survivors"):
            if kind in found:
                shown[found["attempt"], kind].add(json.dumps(found[kind]))
    for (attempt, kind), values in shown.items():
        assert len(values) == 1, f"{name} shows {len(values)} of {kind} in attempt {attempt}: {sorted(values)}"


def points_of(count: int) -> list[tuple[str, str]]:
    """So many points of each role, in turn."""
    found = [(role, point) for point in POINTS[:count] for role in ROLES]
    return [*found, *(("leader", point) for point in LEADERS)] if count >= len(POINTS) else found


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.blind_crashes", description=__doc__)
    parser.add_argument("--points", type=int, default=len(POINTS), help="so many points for each of three roles")
    parser.add_argument("--node", nargs=3, type=Path, metavar=("SITE.toml", "ARM", "JOURNAL"), help="be such a node")
    return parser


def main() -> int:
    """Kill, and say what came of it."""
    asked = parser().parse_args()
    if asked.node:
        _run(*asked.node)
        return 0
    todo, each, rounds = points_of(asked.points), 20, 50
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="blind-kills-") as folder:
        right = play(Path(folder), [], rounds=rounds).final
    print(f"undisturbed: {right} after {rounds} rounds, {time.monotonic() - started_s:.0f} s", flush=True)
    killed = missed = 0
    for start in range(0, len(todo), each):
        with tempfile.TemporaryDirectory(prefix="blind-kills-") as folder:
            try:
                found = play(Path(folder), todo[start : start + each], rounds=rounds)
                assert found.final == right, f"the run ends with {found.final}"
            except AssertionError as error:
                print(f"BROKEN at {todo[start : start + each]}: {error}", file=sys.stderr)
                return 1
        killed, missed = killed + len(found.killed), missed + len(found.missed)
        print(f"{killed} kills, {missed} points not reached {found.missed}, {time.monotonic() - started_s:.0f} s",
              flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
