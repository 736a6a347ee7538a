"""A node's port under siege: do the honest members' rounds go on as fast, and is all memory given back?

    python -m tests.net.siege [--minutes 10] [--json FILE]

Four node processes train in rounds. A fifth member, who only attacks, and strangers from many addresses attack the
first node from a process of their own: 10,000 connections a minute of every kind in `tests.net.hostile`, a thousand
half-open handshakes at once, 2,000 connects and disconnects by the member. It is quiet before and afterwards, and what
is told is held against that. The exit code is 1 where something promised did not hold.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from swarm.config import load_site
from swarm.encoding import pack
from swarm.identity import Identity
from swarm.merkle import digest_of
from swarm.net.libp2p.dialling import places_of
from swarm.net.probe import PROBE
from swarm.net.transfer import PROTOCOL as OBJECTS
from swarm.node.agreement import CONSENSUS, DECIDED, HEAD, TRANSACTIONS
from swarm.node.sync import BLOCKS
from tests.net.hostile import MEMBERS, STRANGERS, Attacker, Target, attempt, come_and_go, say_nothing
from tests.node.hospitals import Hospitals

HONEST = ["north", "east", "south", "west"]
TRAITOR = "mallory"
PAUSE_S = 0.5
"""Training between two rounds: without it the nodes alone would take every core of a small machine."""
PARAMETERS = 250_000
SOURCES = [f"127.0.{net}.{host}" for net in (1, 2) for host in range(1, 31)] + ["127.0.0.1"]
"""Where strangers come from; the last one is the members' own address, as behind one NAT."""
MEMBERS_SOURCES = [f"127.0.3.{host}" for host in range(1, 11)]
"""Where the member comes from: from one address it would be sent away for coming too often, and do nothing else."""
HALF_OPEN_EVERY_S = 30.0
AT_ONCE_MAX = 4000
"""Attacks under way at once, for the attacker's own sake."""
SETTLE_S = 45.0
BACK_BYTES = 50_000_000
PEAK_BYTES = 200_000_000


@dataclass(frozen=True)
class Plan:
    """What the attackers are told."""

    seconds: float
    seed: int
    target: dict[str, Any]
    keystore_site: str
    a_minute: int
    half_open: int
    churn: int


@dataclass
class Seen:
    """What was seen of one node in one phase."""

    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)


# The attackers' process


async def attack(plan: Plan) -> dict[str, int]:
    """Attack for so long; how many attacks of each kind were made."""
    target = Target(
        plan.target["host"], plan.target["port"], bytes.fromhex(plan.target["member"]),
        (CONSENSUS, TRANSACTIONS, DECIDED, HEAD, BLOCKS, OBJECTS, PROBE),
        (OBJECTS, pack(["range", bytes.fromhex(plan.target["digest"]), 0, 1])),
    )  # fmt: skip
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # being hung up on is no news here
    chance = random.Random(plan.seed)
    stranger = Attacker.of(Identity(chance.randbytes(32)), plan.seed, SOURCES)
    member = Attacker.of(load_site(Path(plan.keystore_site)).identity(), plan.seed, MEMBERS_SOURCES)
    made: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end_s = loop.time() + plan.seconds
    under_way: set[asyncio.Task[bool]] = set()

    def begin(kind: str, who: Attacker) -> None:
        if len(under_way) >= AT_ONCE_MAX:
            made["too many at once for the attacker"] += 1
            return
        task = loop.create_task(attempt({**STRANGERS, **MEMBERS, "come and go": come_and_go}[kind], who, target))
        made[kind] += 1
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async def steadily(count: int, do: Callable[[], None]) -> None:
        """So many times until the end, evenly, and late ones made up for."""
        began_s = loop.time()
        for number in range(count):
            await asyncio.sleep(max(began_s + number * plan.seconds / count - loop.time(), 0))
            if loop.time() > end_s:
                return
            do()

    async def half_open() -> None:
        while loop.time() < end_s:
            for _ in range(plan.half_open):
                begin("half a handshake" if chance.random() < 0.2 else "say nothing", stranger)
            await asyncio.sleep(min(HALF_OPEN_EVERY_S, max(end_s - loop.time(), 0)))

    async def misbehave() -> None:
        kinds: list[str] = []
        while loop.time() < end_s:
            kinds = kinds or chance.sample(list(MEMBERS), len(MEMBERS))
            kind = kinds.pop()
            made[kind] += 1
            await attempt(MEMBERS[kind], member, target)

    kinds = [kind for kind in STRANGERS if STRANGERS[kind] is not say_nothing]
    await asyncio.gather(
        steadily(int(plan.a_minute * plan.seconds / 60), lambda: begin(chance.choice(kinds), stranger)),
        steadily(plan.churn, lambda: begin("come and go", member)),
        half_open(),
        misbehave(),
    )
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    return dict(made)


# The honest members


class Besieged(Hospitals):
    """Four hospitals that train, and a member that has a key and nothing good in mind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [*HONEST, TRAITOR], parameters=PARAMETERS)
        with (self.folder / "swarm.toml").open("a") as agreed:
            agreed.write("validator = false\n")
        self.traitor = self.sites.pop(TRAITOR)

    def target(self) -> dict[str, Any]:
        """Whom to attack: the first of them, and an object that it has."""
        site = load_site(self.sites[HONEST[0]])
        address = site.identity().address
        genesis = self.folder / "genesis.safetensors"
        host, port = places_of(address, site.listen)[0]
        return {"host": host, "port": port, "member": address.hex(), "digest": digest_of(genesis.read_bytes()).hex()}

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> dict[str, Seen]:
        """Look at every node for so long, once a second or so."""
        found = {name: Seen() for name in HONEST}
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not until():
            for name, seen in found.items():
                process = psutil.Process(self.processes[name].pid)
                seen.memory.append(process.memory_info().rss)
                seen.descriptors.append(process.num_fds())
            found[HONEST[0]].tasks.append(self.tasks())
            assert self.training(), f"training ended: {self.failures}"
            time.sleep(0.5)
        return found

    def tasks(self) -> int:
        """Tasks of the besieged node."""
        text = self.ask(HONEST[0], "swarm_metrics")
        return int(next(f for f in text_string_to_metric_families(text) if f.name == "swarm_tasks").samples[0].value)

    def round_times(self, began_s: float, ended_s: float) -> list[float]:
        """Seconds of every member's exchanges that lay between these times."""
        found = []
        for name in HONEST:
            times = [at_s for at_s, _ in self.trails[name] if began_s <= at_s <= ended_s]
            found += [later - earlier - PAUSE_S for earlier, later in itertools.pairwise(times)]
        return found


@dataclass(frozen=True)
class Outcome:
    """What a siege showed."""

    minutes: float
    attacks: dict[str, int]
    attacks_a_minute: float
    refused: dict[str, int]
    quiet_s: float
    """Median of a round's exchange before and after the siege."""
    siege_s: float
    quiet_p95_s: float
    siege_p95_s: float
    rounds: int
    """Closed under siege."""
    before_bytes: int
    peak_bytes: int
    after_bytes: int
    others_grew_bytes: int
    """Of the nodes that were not attacked, the one that grew most from before to afterwards."""
    tasks: tuple[int, int]
    """The least before, and afterwards."""
    descriptors: tuple[int, int]

    def faults(self, *, a_minute: int, slower: float) -> list[str]:
        """What was promised and did not hold."""
        grown = self.peak_bytes - self.before_bytes
        left = self.after_bytes - self.before_bytes - max(self.others_grew_bytes, 0)
        rules = {
            f"{self.attacks_a_minute:.0f} attacks a minute were made": self.attacks_a_minute < 0.9 * a_minute,
            f"a round took {self.siege_s / self.quiet_s:.2f} times as long": self.siege_s > slower * self.quiet_s,
            f"memory grew by {grown / 1e6:.0f} MB": grown > PEAK_BYTES,
            f"{left / 1e6:.0f} MB were not given back": left > BACK_BYTES,
        }
        for what, (least_before, least_after) in {"tasks": self.tasks, "descriptors": self.descriptors}.items():
            rules[f"{least_after - least_before} {what} are left over"] = least_after > least_before
        return [words for words, broken in rules.items() if broken]


def besiege(folder: Path, *, minutes: float, a_minute: int, half_open: int, churn: int, seed: int) -> Outcome:
    """Quiet, siege, quiet."""
    seconds = minutes * 60
    quiet_s = min(max(seconds / 5, 15.0), 60.0)
    with Besieged(folder) as hospitals:
        for name in HONEST:
            hospitals.start(name)
        hospitals.open_run(rounds=1_000_000)
        for name in HONEST:
            hospitals.train(name, pause_s=PAUSE_S)
        hospitals.wait_for(lambda: all(len(hospitals.trails.get(name, ())) > 5 for name in HONEST), "five rounds", 90)
        marks = [time.monotonic()]
        before = hospitals.watch(quiet_s)
        marks.append(time.monotonic())
        plan = Plan(seconds, seed, hospitals.target(), str(hospitals.traitor), a_minute, half_open, churn)
        command = [sys.executable, "-m", "tests.net.siege", "--attack", json.dumps(asdict(plan))]
        attackers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        try:
            during = hospitals.watch(seconds + 30, lambda: attackers.poll() is not None)
            told, _ = attackers.communicate(timeout=60)
        finally:
            attackers.kill()
            attackers.wait()
        marks.append(time.monotonic())
        hospitals.watch(SETTLE_S / 3 if minutes < 2 else SETTLE_S)
        marks.append(time.monotonic())
        after = hospitals.watch(quiet_s)
        marks.append(time.monotonic())
        refused = hospitals.ask(HONEST[0], "swarm_network")["refused"]
        first, second = hospitals.round_times(*marks[:2]), hospitals.round_times(*marks[3:])
        under = hospitals.round_times(*marks[1:3])
        hospitals.stop()
    made: dict[str, int] = json.loads(told)
    victim = HONEST[0]
    strangers = sum(count for kind, count in made.items() if kind in STRANGERS and kind != "say nothing")
    return Outcome(
        minutes=minutes,
        attacks=made,
        attacks_a_minute=strangers / minutes,
        refused=refused,
        quiet_s=statistics.median(first + second),
        siege_s=statistics.median(under),
        quiet_p95_s=_p95(first + second),
        siege_p95_s=_p95(under),
        rounds=len(under) // len(HONEST),
        before_bytes=max(before[victim].memory),
        peak_bytes=max(during[victim].memory),
        after_bytes=min(after[victim].memory),
        others_grew_bytes=max(min(after[name].memory) - max(before[name].memory) for name in HONEST[1:]),
        tasks=(min(before[victim].tasks), min(after[victim].tasks)),
        descriptors=(min(before[victim].descriptors), min(after[victim].descriptors)),
    )


def _p95(times: list[float]) -> float:
    return sorted(times)[len(times) * 95 // 100]


def report(found: Outcome, faults: list[str]) -> None:
    """Print it."""
    table = Table(
        title=f"{found.minutes:g} minutes of siege, {found.attacks_a_minute:.0f} attacks of strangers a minute"
    )
    for heading in ("", "quiet", "siege", "afterwards"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("a round, s (median)", f"{found.quiet_s:.3f}", f"{found.siege_s:.3f}", "")
    table.add_row("a round, s (95 of 100)", f"{found.quiet_p95_s:.3f}", f"{found.siege_p95_s:.3f}", "")
    memory = (found.before_bytes, found.peak_bytes, found.after_bytes)
    table.add_row("memory, MB", *(f"{size / 1e6:.0f}" for size in memory))
    table.add_row("tasks", str(found.tasks[0]), "", str(found.tasks[1]))
    table.add_row("descriptors", str(found.descriptors[0]), "", str(found.descriptors[1]))
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(table)
    console.print(f"{found.rounds} rounds closed under siege; attacks made: {found.attacks}")
    console.print(f"sent away: {found.refused}")
    for fault in faults:
        console.print(f"[bold red]NOT HELD[/] {fault}")


def main(
    minutes: Annotated[float, typer.Option(help="Of siege; the quiet before and after comes on top.")] = 10.0,
    a_minute: Annotated[int, typer.Option(help="Connections of strangers a minute.")] = 10_000,
    half_open: Annotated[int, typer.Option(help="Half-open handshakes at once.")] = 1_000,
    churn: Annotated[int, typer.Option(help="Connects and disconnects by a member.")] = 2_000,
    slower: Annotated[float, typer.Option(help="How many times as long a round may take.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the attackers' chance.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    attack_: Annotated[str, typer.Option("--attack", hidden=True)] = "",
) -> None:
    """Besiege a node and tell what became of it."""
    if attack_:
        print(json.dumps(asyncio.run(attack(Plan(**json.loads(attack_))))), flush=True)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    with tempfile.TemporaryDirectory(prefix="siege-") as folder:
        found = besiege(Path(folder), minutes=minutes, a_minute=a_minute, half_open=half_open, churn=churn, seed=seed)
    faults = found.faults(a_minute=a_minute, slower=slower)
    report(found, faults)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(found) | {"faults": faults}, indent=1))
    # Training's threads wait for nodes that are gone: there is nothing to wait for.
    sys.stdout.flush()
    os._exit(1 if faults else 0)


if __name__ == "__main__":
    typer.run(main)
