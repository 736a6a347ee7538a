"""`swarm demo`: four real hospitals train one model on this machine, one of them is killed while it leads, and an
audit proves what happened. Every part is the real one: node and training processes, libp2p, blocks, patients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from swarm.cli import screen
from swarm.cli.audit import print_report, run_audit
from swarm.cli.consortium import Place, places_of, write_consortium
from swarm.cli.control import NodeClient
from swarm.cli.demo_view import Spectator, print_results
from swarm.cli.init import key_progress
from swarm.cli.ledger import contracts_of
from swarm.cli.processes import kill, last_line, run_to_the_end, start, start_node, stop
from swarm.cli.run import agree
from swarm.config import SiteConfig, load_policy, load_site
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.rounds import Phase

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
RUNS = ("heart-scaling", "heart")
BLIND, VISIBLE = "heart-blind.toml", "heart.toml"
"""The policies of the run that trains: nobody sees a hospital's update, or every member does."""
ROUNDS_MIN = 8
"""Fewer leave no time to kill a leader and to see it take part again."""
KILL_AT_ROUND = 4
AIM_ROUNDS = 2
"""For so many rounds only a leader that has not published yet is killed; then any leader."""
PAUSE_S = 1.0
"""A round of this small model takes half a second; real training takes longer, and a person wants to watch."""
MARK = ".swarm-demo"
"""A folder with this file was made by the demo, which may therefore replace it."""
LOOK_S = 0.03
"""How often a node is asked how things stand."""
AIM_S = 0.005
"""How often while a leader is awaited that is to be killed: with this small model it leads for a tenth of a second."""
READ_S = 0.3
"""How often the ledger's events are read."""
SILENCE_S = 60.0
"""No block for so long: something is wrong. The longest deadline of the runs is a fraction of it."""


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="where the consortium is made; an earlier demo is replaced")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="of the first parameters and the order of the patients")] = 0,
    rounds: Annotated[
        int | None, typer.Option(min=ROUNDS_MIN, help="how many rounds (default: the policy's, 15)")
    ] = None,
    no_kill: Annotated[bool, typer.Option("--no-kill", help="let every hospital live")] = False,
    visible: Annotated[
        bool, typer.Option("--visible", help="merge visible updates by the default rule, in place of masked ones")
    ] = False,
) -> None:
    """Four real hospitals train one model on this machine; the leader of a round is killed; an audit proves it all.

    The exit code is 0 only if everything held: one model at all hospitals, the killed one back, the audit passed.
    """
    began_s = time.monotonic()
    course = Demo(fresh(folder.resolve()), seed=seed, rounds=rounds, kills=not no_kill, visible=visible)
    held = run_to_the_end(course.run())
    screen.out.print(f"{time.monotonic() - began_s:.0f} s from the first key to the verdict")
    if not held:
        raise typer.Exit(screen.FAILED)


def fresh(folder: Path) -> Path:
    """The folder, without the demo that was in it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder with --dir")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise ConfigError(f"{folder} is there and no earlier demo made it; name another one with --dir")
        for site in (folder / "sites").glob("*.toml"):
            _end_node_of(load_site(site))
        shutil.rmtree(folder)
    return folder


def _end_node_of(site: SiteConfig) -> None:
    """End the node that a demo left behind when it was killed itself; the socket's other end says which process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(os.fspath(site.socket))
        except OSError:
            return
        process, _, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(process, signal.SIGTERM)
        line.recv(1)  # it hangs up when it ends


def example_folder() -> Path:
    """The heart example of this checkout."""
    folder = Path(__file__).parents[2] / "nodes" / "heart"
    if not (folder / "train.py").is_file():
        raise ConfigError(f"the example {folder} is not installed; run the demo from a checkout of the project")
    return folder


@dataclass
class _Hospital:
    """One hospital's two processes."""

    site: SiteConfig
    node: asyncio.subprocess.Process | None = None
    training: asyncio.subprocess.Process | None = None
    digest: str = ""
    """The checkpoint that its node ended with."""

    @property
    def logs(self) -> tuple[Path, Path]:
        """The node's and the training's."""
        return self.site.folder / "node.log", self.site.folder / "training.log"


class Demo:
    """The whole course, step by step. Tests put its processes elsewhere than on one loopback."""

    def __init__(self, folder: Path, *, seed: int, rounds: int | None, kills: bool, visible: bool = False) -> None:
        self.folder = folder
        self.seed = seed
        self.rounds = rounds
        self.kills = kills
        self.policies = {"heart-scaling": "heart-scaling.toml", "heart": VISIBLE if visible else BLIND}
        """By run, the file in the folder."""
        self.hospitals: dict[str, _Hospital] = {}
        self.seen = Spectator(HOSPITALS, RUNS)

    async def run(self) -> bool:
        """Everything; whether all of it held."""
        self._found_consortium()
        try:
            with self.seen.shown():
                await self._start_nodes()
                await self._consent()
                await self._start_training()
                victim, killed_in = await self._until_finished()
                same = await self._compare_digests()
                checkpoint, scaling = await self._take_results()
        finally:
            await asyncio.gather(
                *(stop(p) for h in self.hospitals.values() for p in (h.training, h.node) if p is not None)
            )
        return await self._conclude(victim, killed_in, same, checkpoint, scaling)

    def places(self) -> list[Place]:
        """Where the hospitals' nodes are reached."""
        return places_of(HOSPITALS, base_port=0)

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command as it is run at one hospital."""
        return command

    # --- the course

    def _found_consortium(self) -> None:
        with key_progress() as progress:
            sites = write_consortium(
                self.folder,
                name="heart",
                members=self.places(),
                example=example_folder(),
                progress=progress,
            )
        (self.folder / MARK).touch()
        if self.rounds is not None:
            policy = self.folder / self.policies["heart"]
            policy.write_text(re.sub(r"(?m)^rounds = \d+", f"rounds = {self.rounds}", policy.read_text()))
        self.hospitals = {name: _Hospital(load_site(site)) for name, site in zip(HOSPITALS, sites, strict=True)}

    async def _start_nodes(self) -> None:
        self.seen.say("four hospitals, a key each; starting a node at each of them")
        await asyncio.gather(*(self._start_node(hospital) for hospital in self.hospitals.values()))
        self.seen.say("the nodes listen on loopback; libp2p connections, members only")

    async def _start_node(self, hospital: _Hospital) -> None:
        hospital.node = await start_node(
            hospital.site, hospital.logs[0], inside=lambda command: self.inside(hospital.site.name, command)
        )

    async def _consent(self) -> None:
        """One hospital proposes both runs, every operator approves them."""
        seed = str(self.seed)
        await asyncio.gather(
            *(self._python("train.py", "--genesis", f"{r}.safetensors", "--run", r, "--seed", seed) for r in RUNS)
        )
        sites = [hospital.site for hospital in self.hospitals.values()]
        for name in RUNS:
            policy = load_policy(self.folder / self.policies[name])
            run = await agree(sites, policy, self.folder / f"{name}.safetensors")
            self.seen.say(
                f"run {run} ({name}) is proposed by {sites[0].name}; all four operators consent, on the ledger"
            )

    async def _start_training(self) -> None:
        policy = load_policy(self.folder / self.policies["heart"])
        how = "blind rounds" if policy.blind else "rounds"
        self.seen.say(f"training starts at each hospital: first the shared scaling, then {policy.rounds} {how}")
        for hospital in self.hospitals.values():
            await self._train(hospital)

    async def _train(self, hospital: _Hospital) -> None:
        settings = ["--seed", str(self.seed), "--pause", str(PAUSE_S)]
        command = [sys.executable, "train.py", str(hospital.site.path), *settings]
        # Four trainings share this machine: a thread each is quicker than all cores for all.
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        hospital.training = await start(
            self.inside(hospital.site.name, command),
            hospital.logs[1],
            environment=environment,
            folder=self.folder,
        )

    async def _python(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode:
            raise ConfigError(f"{arguments[0]} failed: {err.decode(errors='replace').strip()}")
        return out.decode()

    async def _until_finished(self) -> tuple[str, int]:
        """Watch until the run's end; who was killed in which round (empty, -1 if nobody)."""
        victim, killed_in = "", -1
        back: asyncio.Task[None] | None = None
        clock = asyncio.get_running_loop().time
        height, grown_s, read_s = 0, clock(), 0.0
        while True:
            aims = self.kills and not victim and self.seen.run == "heart" and self.seen.round >= self._kill_at
            state = await self._look()
            if clock() - read_s > READ_S and not aims:
                await self._read_ledger()
                read_s = clock()
            if back is not None and back.done():
                await back
            if state == "finished" and (not victim or (back is not None and back.done())):
                break
            if aims:
                victim = self._kill_leader()
                killed_in = self.seen.round if victim else -1
            elif victim and back is None and self.seen.round > killed_in:
                back = asyncio.get_running_loop().create_task(self._bring_back(victim))
            self._check_alive()
            if self.seen.height > height:
                height, grown_s = self.seen.height, clock()
            if clock() - grown_s > SILENCE_S:
                raise UnavailableError(
                    f"no block for {SILENCE_S:g} s and the run has not ended; the logs: {self.folder}/state/*/*.log"
                )
            await asyncio.sleep(AIM_S if aims else LOOK_S)
        await self._read_ledger()
        return victim, killed_in

    @property
    def _kill_at(self) -> int:
        return KILL_AT_ROUND if self.rounds is None else min(KILL_AT_ROUND, self.rounds // 4)

    def _kill_leader(self) -> str:
        leader = self.seen.leader
        late = self.seen.phase != Phase.MERGE.name.lower() and self.seen.round < self._kill_at + AIM_ROUNDS
        if not leader or late:
            return ""
        hospital = self.hospitals[leader]
        assert hospital.node is not None
        assert hospital.training is not None
        kill(hospital.node)
        kill(hospital.training)
        hospital.node, hospital.training = None, None
        self.seen.states[leader] = "killed"
        self.seen.say(
            f"[bold red]SIGKILL[/] to {leader}, node and training: it leads round {self.seen.round} "
            f"(phase {self.seen.phase})"
        )
        return leader

    async def _bring_back(self, name: str) -> None:
        hospital = self.hospitals[name]
        self.seen.say(f"{name} is started again")
        self.seen.states[name] = "returning"
        await self._start_node(hospital)
        await self._train(hospital)
        async with NodeClient(hospital.site) as node:
            while True:
                height = (await node.call("swarm_status"))["height"]
                if height >= self.seen.height:
                    break
                await asyncio.sleep(0.1)
        self.seen.states[name] = "up"
        self.seen.say(f"[green]{name} caught up[/]: block {height}")

    def _check_alive(self) -> None:
        for name, hospital in self.hospitals.items():
            for process, log in zip((hospital.node, hospital.training), hospital.logs, strict=True):
                if process is not None and process.returncode:
                    raise ConfigError(f"a process of {name} ended with {process.returncode}: {last_line(log)} ({log})")

    async def _compare_digests(self) -> bool:
        """Whether every hospital's node and training ended with one checkpoint."""
        for hospital in self.hospitals.values():
            assert hospital.training is not None
            async with asyncio.timeout(60):
                await hospital.training.wait()
            async with NodeClient(hospital.site) as node:
                hospital.digest = (await node.call("swarm_run", run="heart"))["checkpoint"]
            said = last_line(hospital.logs[1])
            if hospital.training.returncode or hospital.digest not in said:
                self.seen.say(f"[red]{hospital.site.name}'s training ended otherwise[/]: {escape(said)}")
                return False
        return len({hospital.digest for hospital in self.hospitals.values()}) == 1

    async def _take_results(self) -> tuple[Path, Path]:
        """Copies of the final model and of the agreed scaling, out of the first hospital's store."""
        copies = []
        async with NodeClient(self.hospitals[HOSPITALS[0]].site) as node:
            for run in reversed(RUNS):
                digest = (await node.call("swarm_run", run=run))["checkpoint"]
                found = await node.call("swarm_object", digest=digest)
                copies.append(self.folder / ("final-model.safetensors" if run == "heart" else "scaling.safetensors"))
                shutil.copyfile(found["path"], copies[-1])
        return copies[0], copies[1]

    # --- looking

    async def _look(self) -> str:
        """Ask a node that is up how things stand; the state of the run `heart`."""
        status = await self._ask_one("swarm_status")
        if status is None:
            return ""
        self.seen.see(status)
        return next((str(run["state"]) for run in status["runs"] if run["name"] == "heart"), "")

    async def _ask_one(self, method: str) -> Any:
        for name, hospital in self.hospitals.items():
            if self.seen.states[name] == "up":
                with contextlib.suppress(UnavailableError):
                    async with NodeClient(hospital.site) as node:
                        return await node.call(method, timeout_s=5)
        return None

    async def _read_ledger(self) -> None:
        site = next(h.site for name, h in self.hospitals.items() if self.seen.states[name] == "up")
        with contextlib.suppress(UnavailableError, RejectedError):  # it is read again in a moment
            async with contracts_of(site) as contracts:
                self.seen.read(await contracts.events(self.seen.next_block))

    # --- the end

    async def _conclude(self, victim: str, killed_in: int, same: bool, checkpoint: Path, scaling: Path) -> bool:
        models = ["--checkpoint", str(checkpoint), "--scaling", str(scaling)]
        rows = json.loads(await self._python("evaluate.py", "--json", "--seed", str(self.seed), *models))
        (self.folder / "results.json").write_text(json.dumps({"seed": self.seed, "results": rows}, indent=1))
        print_results(rows, HOSPITALS)
        if self.rounds is not None:
            screen.out.print(f"the swarm trained for {self.rounds} rounds; FedAvg for the policy's own number")
        held = same
        if same:
            screen.out.print(f"one checkpoint at all four hospitals: {self.hospitals[HOSPITALS[0]].digest}")
        else:
            screen.out.print("[bold red]the hospitals ended with different checkpoints[/]")
        if victim:
            held = self.survived(*self._tell_of_victim(victim, killed_in)) and held
        elif self.kills:
            screen.out.print("[bold red]no leader could be killed: the run was over too soon[/]")
            held = False
        report = run_audit(self.folder)
        print_report(report)
        screen.out.print(f"the ledger of each hospital: {screen.here(self.folder)}/state/HOSPITAL/ledger")
        screen.out.print(f"the model: {screen.here(checkpoint)}; look again: swarm audit {screen.here(self.folder)}")
        return held and report.ok

    def survived(self, merged: bool, back: bool) -> bool:
        """Whether a kill ended as it should: the killed one's submission was merged, it took part again."""
        return merged and back

    def _tell_of_victim(self, victim: str, killed_in: int) -> tuple[bool, bool]:
        rounds = self.seen.history("heart")
        led = rounds[killed_in]
        merged = victim in {s["name"] for s in led.submissions}
        after = [one.round for one in rounds[killed_in + 1 :] if victim in {s["name"] for s in one.submissions}]
        took_over = f"{led.leader} took over in view {led.view}"
        how = took_over if led.leader != victim else "it had published, the others attested"
        screen.out.print(
            f"{victim} was killed while it led round {killed_in}: {how}; its submission was "
            f"{'merged all the same' if merged else '[red]lost[/]'}; "
            f"it took part again from round {after[0] if after else '[red]never[/]'}"
        )
        return merged, bool(after)
