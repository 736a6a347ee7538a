"""`swarm demo`: four real hospitals train one model on this machine, one of them is killed while it leads, and an
audit proves what happened. Every part is the real one: node and training processes, libp2p, blocks, patients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from swarm.cli import screen
from swarm.cli.audit import print_report, run_audit
from swarm.cli.consortium import places_of, write_consortium
from swarm.cli.control import NodeClient
from swarm.cli.history import RoundHistory, rounds_of
from swarm.cli.init import key_progress
from swarm.cli.ledger import contracts_of
from swarm.cli.processes import kill, last_line, start, start_node, stop
from swarm.cli.run import agree
from swarm.config import SiteConfig, load_policy, load_site
from swarm.encoding import from_hex
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.ledger.client import Event
from swarm.rounds import Phase

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
RUNS = ("heart-scaling", "heart")
KILL_AT_ROUND = 4
PAUSE_S = 1.0
"""A round of this small model takes half a second; real training takes longer, and a person wants to watch."""
MARK = ".swarm-demo"
"""A folder with this file was made by the demo, which may therefore replace it."""
LOOK_S = 0.03
STORY_LINES = 12
PATIENCE_S = 150.0


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="where the consortium is made; an earlier demo is replaced")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="of the first parameters and the order of the patients")] = 0,
    no_kill: Annotated[bool, typer.Option("--no-kill", help="let every hospital live")] = False,
) -> None:
    """Four real hospitals train one model on this machine; the leader of a round is killed; an audit proves it all."""
    began_s = time.monotonic()
    held = asyncio.run(_Demo(_fresh(folder.resolve()), seed=seed, kills=not no_kill).run())
    screen.out.print(f"{time.monotonic() - began_s:.0f} s from the first key to the verdict")
    if not held:
        raise typer.Exit(screen.FAILED)


def _fresh(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise ConfigError(f"{folder} is there and no earlier demo made it; name another one with --dir")
        shutil.rmtree(folder)
    return folder


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
    killed: bool = False
    height: int = 0
    digest: str = ""

    @property
    def logs(self) -> tuple[Path, Path]:
        """The node's and the training's."""
        return self.site.folder / "node.log", self.site.folder / "training.log"


@dataclass
class _View:
    """What the live view shows."""

    connected: int = 0
    height: int = 0
    run: str = ""
    round: int = 0
    rounds: int = 0
    phase: str = ""
    view: int = 0
    leader: str = ""
    submitted: frozenset[str] = frozenset()
    attested: frozenset[str] = frozenset()
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)


class _Demo:
    """The whole course, step by step."""

    def __init__(self, folder: Path, *, seed: int, kills: bool) -> None:
        self.folder = folder
        self.seed = seed
        self.kills = kills
        self.hospitals: dict[str, _Hospital] = {}
        self.view = _View()
        self.began_s = time.monotonic()
        self._events: list[Event] = []
        self._told: set[tuple[object, ...]] = set()
        self._names: dict[bytes, str] = {}
        self._live: Live | None = None

    async def run(self) -> bool:
        """Everything; whether all of it held."""
        self._found_consortium()
        try:
            with self._shown():
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

    # --- the course

    def _found_consortium(self) -> None:
        with key_progress() as progress:
            sites = write_consortium(
                self.folder,
                name="heart",
                members=places_of(HOSPITALS, base_port=0),
                example=example_folder(),
                progress=progress,
            )
        (self.folder / MARK).touch()
        self.hospitals = {name: _Hospital(load_site(site)) for name, site in zip(HOSPITALS, sites, strict=True)}

    async def _start_nodes(self) -> None:
        self._say("four hospitals, a key each; starting a node at each of them")
        await asyncio.gather(*(self._start_node(hospital) for hospital in self.hospitals.values()))
        self._say("the nodes listen on loopback; libp2p connections, members only")

    async def _start_node(self, hospital: _Hospital) -> None:
        hospital.node = await start_node(hospital.site, hospital.logs[0])

    async def _consent(self) -> None:
        """One hospital proposes both runs, every operator approves them."""
        await asyncio.gather(
            *(
                self._python("train.py", "--genesis", f"{r}.safetensors", "--run", r, "--seed", str(self.seed))
                for r in RUNS
            )
        )
        sites = [hospital.site for hospital in self.hospitals.values()]
        for name in RUNS:
            policy = load_policy(self.folder / f"{name}.toml")
            run = await agree(sites, policy, self.folder / f"{name}.safetensors")
            self._say(f"run {run} ({name}) is proposed by {sites[0].name}; all four operators consent, on the ledger")

    async def _start_training(self) -> None:
        self._say("training starts at each hospital: first the shared scaling, then 15 rounds of 100 batches")
        for hospital in self.hospitals.values():
            await self._train(hospital)

    async def _train(self, hospital: _Hospital) -> None:
        command = [
            sys.executable,
            "train.py",
            str(hospital.site.path),
            "--seed",
            str(self.seed),
            "--pause",
            str(PAUSE_S),
        ]
        # Four trainings share this machine: a thread each is quicker than all cores for all.
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        hospital.training = await start(command, hospital.logs[1], environment=environment, folder=self.folder)

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
        until_s = time.monotonic() + PATIENCE_S
        looked_s = 0.0
        while True:
            state = await self._look(full=time.monotonic() - looked_s > 0.3)
            if time.monotonic() - looked_s > 0.3:
                looked_s = time.monotonic()
            if back is not None and back.done():
                await back
            if state == "finished" and (not victim or (back is not None and back.done())):
                break
            if self.kills and not victim and self.view.run == "heart" and self.view.round >= KILL_AT_ROUND:
                victim = self._kill_leader()
                killed_in = self.view.round if victim else -1
            elif victim and back is None and self.view.round > killed_in:
                back = asyncio.get_running_loop().create_task(self._bring_back(victim))
            self._check_alive()
            if time.monotonic() > until_s:
                raise UnavailableError(
                    f"the run has not ended within {PATIENCE_S:g} s; the logs are in {self.folder}/state"
                )
            await asyncio.sleep(LOOK_S)
        await self._look(full=True)
        return victim, killed_in

    def _kill_leader(self) -> str:
        leader = self.view.leader
        if not leader:
            return ""
        hospital = self.hospitals[leader]
        assert hospital.node is not None
        assert hospital.training is not None
        kill(hospital.node)
        kill(hospital.training)
        hospital.killed, hospital.node, hospital.training = True, None, None
        self._say(
            f"[bold red]SIGKILL[/] to {leader}, node and training: it leads round {self.view.round} "
            f"(phase {self.view.phase})"
        )
        return leader

    async def _bring_back(self, name: str) -> None:
        hospital = self.hospitals[name]
        self._say(f"{name} is started again")
        await self._start_node(hospital)
        hospital.killed = False
        await self._train(hospital)
        head = 0
        while True:
            async with NodeClient(hospital.site) as node:
                seen = await node.call("swarm_status")
            head = max(head, self.view.height)
            if seen["height"] >= head:
                break
            await asyncio.sleep(0.1)
        self._say(f"[green]{name} caught up[/]: height {seen['height']}")

    def _check_alive(self) -> None:
        for name, hospital in self.hospitals.items():
            if hospital.killed:
                continue
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
                self._say(f"[red]{hospital.site.name}'s training ended otherwise[/]: {escape(said)}")
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

    # --- the end

    async def _conclude(self, victim: str, killed_in: int, same: bool, checkpoint: Path, scaling: Path) -> bool:
        rows = json.loads(
            await self._python(
                "evaluate.py",
                "--json",
                "--seed",
                str(self.seed),
                "--checkpoint",
                str(checkpoint),
                "--scaling",
                str(scaling),
            )
        )
        (self.folder / "results.json").write_text(json.dumps({"seed": self.seed, "results": rows}, indent=1))
        (screen.out if screen.out.is_terminal else Console(width=140)).print(_results(rows))
        held = same
        if same:
            screen.out.print(f"one checkpoint at all four hospitals: {self.hospitals[HOSPITALS[0]].digest}")
        else:
            screen.out.print("[bold red]the hospitals ended with different checkpoints[/]")
        if victim:
            held = self._tell_of_victim(victim, killed_in) and held
        elif self.kills:
            screen.out.print("[bold red]no leader could be killed: the run was over too soon[/]")
            held = False
        report = run_audit(self.folder)
        print_report(report)
        screen.out.print(f"the ledger of each hospital: {screen.here(self.folder)}/state/HOSPITAL/ledger")
        screen.out.print(f"the model: {screen.here(checkpoint)}; look again: swarm audit {screen.here(self.folder)}")
        return held and report.ok

    def _tell_of_victim(self, victim: str, killed_in: int) -> bool:
        rounds = self._rounds("heart")
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
        return merged and bool(after)

    # --- looking

    async def _look(self, *, full: bool) -> str:
        """Ask a living node how things stand; the state of the run `heart`."""
        view = self.view
        alive = [hospital for hospital in self.hospitals.values() if not hospital.killed]
        for hospital in alive:
            with contextlib.suppress(UnavailableError):
                async with NodeClient(hospital.site) as node:
                    seen = await node.call("swarm_status", timeout_s=5)
                break
        else:
            return ""
        self._names = {from_hex(m["address"]): m["name"] for m in seen["members"]}
        view.height = seen["height"]
        view.connected = sum(1 for member in seen["members"] if member["connected"])
        runs = {run["name"]: run for run in seen["runs"]}
        run = next(
            (runs[name] for name in RUNS if name in runs and runs[name]["state"] != "finished"), runs.get("heart")
        )
        if run is not None and "phase" in run:
            view.run, view.round, view.rounds = run["name"], run["round"], run["rounds"]
            view.phase, view.view = run["phase"], run["view"]
            # Addresses of the status are in mixed case; members by name are what a person reads.
            view.leader = (
                self._name(run["leader"]) if run["leader"] and run["phase"] != Phase.SUBMIT.name.lower() else ""
            )
            view.submitted = frozenset(self._name(member) for member in run["submitted"])
            view.attested = frozenset(self._name(member) for member in run["attested"])
        if full:
            await self._read_events(hospital.site)
            self._tell_rounds()
        self._refresh()
        return str(runs["heart"]["state"]) if "heart" in runs else ""

    def _name(self, address: str) -> str:
        return self._names.get(from_hex(address), address[:10])

    async def _read_events(self, site: SiteConfig) -> None:
        with contextlib.suppress(UnavailableError, RejectedError):
            async with contracts_of(site) as contracts:
                first = self._events[-1].block + 1 if self._events else 0
                self._events += await contracts.events(first)

    def _rounds(self, run: str) -> list[RoundHistory]:
        number = next(
            (e.args["run"] for e in reversed(self._events) if e.name == "RunProposed" and e.args["name"] == run), 0
        )
        return rounds_of(self._events, int(number), lambda address: self._names.get(address, address.hex()[:8]))

    def _tell_rounds(self) -> None:
        for run in RUNS:
            for one in self._rounds(run):
                for submission in one.submissions:
                    self.view.metrics.setdefault(submission["name"], {}).update(submission["metrics"])
                for was in one.replaced:
                    self._say_once(
                        ("replaced", run, one.round, was["view"]),
                        f"[yellow]{run} round {one.round}: {was['leader']} {was['reason']}[/], "
                        f"{one.leader} leads view {one.view}",
                    )
                if one.closed:
                    self._say_once(
                        ("closed", run, one.round),
                        f"{run} round {one.round} closed: {len(one.submissions)} merged by {one.leader}, "
                        f"{len(one.attestations)} attested, checkpoint {one.checkpoint[:10]}",
                    )

    # --- showing

    def _say_once(self, key: tuple[object, ...], text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._say(text)

    def _say(self, text: str) -> None:
        line = f"[dim]{time.monotonic() - self.began_s:5.1f} s[/] {text}"
        self.view.story.append(line)
        if self._live is None:
            screen.out.print(line)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """A live view on a terminal; elsewhere the story, line by line."""
        if not screen.out.is_terminal:
            yield
            return
        with Live(console=screen.out, auto_refresh=False, transient=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._refresh()
                self._live = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        view = self.view
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("hospital", "node", "leader", "submitted", "attested", "loss", "AUC (own test)", "accuracy"):
            table.add_column(heading)
        for name, hospital in self.hospitals.items():
            metrics = view.metrics.get(name, {})
            table.add_row(
                name,
                "[red]killed[/]" if hospital.killed else "[green]up[/]",
                "[bold]leads[/]" if view.leader == name else "",
                "yes" if name in view.submitted else "",
                "yes" if name in view.attested else "",
                *(f"{metrics[key]:.3f}" if key in metrics else "" for key in ("loss", "auc", "accuracy")),
            )
        where = f"height {view.height}, {view.connected} of {len(self.hospitals)} members connected"
        if view.run:
            round_ = f"round {min(view.round + 1, view.rounds)} of {view.rounds}"
            where = f"{view.run}: {round_}, {view.phase}, view {view.view}; {where}"
        return Group(where, table, *view.story[-STORY_LINES:])


def _results(rows: Sequence[dict[str, Any]]) -> Table:
    """AUC / accuracy of each method, on each hospital's test rows and on all."""
    table = Table(title="AUC / accuracy on test patients", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in (*HOSPITALS, "all four"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [_cell(row["own"][name]) for name in HOSPITALS] + [_cell(row["everywhere"])]
        style = "bold" if row["method"].startswith("swarm") else None
        table.add_row(row["method"], *cells, style=style)
    return table


def _cell(scores: dict[str, float]) -> str:
    area = f"{scores['auc']:.3f}" if "auc" in scores else "-"
    return f"{area} / {scores['accuracy']:.3f}"
