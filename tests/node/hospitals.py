"""Real node processes on loopback, and training that does not train, for tests of the whole way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from swarm.cli.consortium import places_of, write_consortium
from swarm.cli.run import agree
from swarm.config import load_policy, load_site
from swarm.learn.attach import Node
from swarm.learn.seat import Place, Seat
from swarm.merge import Schema, Tensor, write_file
from tests.net.namespaces import Internet

PARAMETERS = 1_000
SCHEMA = Schema.of([Tensor("weight", "F32", (PARAMETERS,))])


class Hospitals:
    """A consortium of node processes in a folder; every process is gone when the `with` ends.

    Args:
        internet: where each name is a site; without it they are on this machine's loopback.
        parameters: of the model.
    """

    def __init__(
        self, folder: Path, names: list[str], *, internet: Internet | None = None, parameters: int = PARAMETERS
    ) -> None:
        self.folder = folder / "consortium"
        self.schema = Schema.of([Tensor("weight", "F32", (parameters,))])
        self._internet = internet
        self._parameters = parameters
        places = places_of(names, base_port=0)
        if internet is not None:
            places = places_of([f"{name}@{internet.address(name)}" for name in names], base_port=4101)
        sites = write_consortium(self.folder, name="test", members=places)
        self.sites = dict(zip(names, sites, strict=True))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.finals: dict[str, str] = {}
        self.trails: dict[str, list[tuple[float, int]]] = {}
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(10)

    def start(self, name: str, *, kind: str | None = None) -> None:
        """Start a site's node; `kind` names a node of `tests.node.rule_breakers` that breaks a rule."""
        command = [sys.executable, "-m", "swarm", "node", str(self.sites[name])]
        if kind is not None:
            command = [sys.executable, "-m", "tests.node.rule_breakers", str(self.sites[name]), kind]
        if self._internet is not None:
            command = self._internet.inside(name, command)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])

    def kill(self, name: str) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(10)

    def stop(self) -> None:
        """SIGTERM to all: a clean end."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            assert process.wait(20) == 0, f"{name} did not stop cleanly\n{self._tails()}"

    def log(self, name: str) -> str:
        """What a node printed."""
        return (self.folder / f"{name}.log").read_text()

    def ask(self, name: str, method: str, **params: Any) -> Any:
        """One request to a site's node, waiting for the node to answer."""
        with Node(load_site(self.sites[name]), patience_s=90) as node:
            return node.call(method, **params)

    def swarm(self, *arguments: str) -> str:
        """A command of the command line; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "swarm", *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"swarm {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def open_run(
        self,
        *,
        rounds: int,
        submit_s: float = 4.0,
        merge_s: float = 2.0,
        attest_s: float = 2.0,
        blind: bool = False,
        more: str = "",
    ) -> None:
        """Propose a run called `test` and let every operator approve it.

        Args:
            more: of its policy, lines of TOML.
        """
        names = list(self.sites)
        for name in names:
            self.ask(name, "swarm_status")
        genesis = self.folder / "genesis.safetensors"
        write_file(genesis, self.schema, {"weight": np.zeros(self._parameters, np.float32)})
        policy = self.folder / "policy.toml"
        policy.write_text(
            f'[run]\nname = "test"\nrounds = {rounds}\nsync_interval = 1\nsubmissions_min = {3 if blind else 2}\n'
            + ('merge = "mean"\nblind = true\n' if blind else "")
            + f"submit_s = {submit_s}\nmerge_s = {merge_s}\nattest_s = {attest_s}\n{more}"
        )
        asyncio.run(agree([load_site(site) for site in self.sites.values()], load_policy(policy), genesis))

    def train(self, name: str, *, pause_s: float = 0.05) -> None:
        """Training in a thread, until the run ends: it survives its node's restarts as a training process does."""

        def work() -> None:
            try:
                self._train(name, pause_s)
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=work, name=f"training at {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _train(self, name: str, pause_s: float) -> None:
        rng = np.random.default_rng(sum(name.encode()))
        trail = self.trails.setdefault(name, [])
        with Node(load_site(self.sites[name]), patience_s=60) as node:
            seat = Seat(node, "test")
            place = seat.take()
            while not place.finished:
                time.sleep(pause_s)
                with seat.update_file() as path:
                    update = self.update(name, place.round, rng)
                    write_file(path, self.schema, {"weight": update})
                    place = seat.exchange(place, path, samples=100, metrics=self.metrics(place))
                trail.append((time.monotonic(), place.round))
            self.finals[name] = place.checkpoint

    def update(self, name: str, round_: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """What a site's training changed."""
        return rng.normal(0, 1e-2, self._parameters).astype(np.float32)

    def metrics(self, place: Place) -> Mapping[str, float]:
        """What it tells with it."""
        return {"loss": 1.0 / (1 + place.round)}

    def join(self, timeout_s: float = 60.0) -> None:
        """Wait until training ended everywhere, and raise what it raised."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.1))
            if self.failures:
                raise self.failures[0]
            assert not thread.is_alive(), f"{thread.name} has not ended after {timeout_s} s\n{self._tails()}"

    def training(self) -> bool:
        """Whether training goes on anywhere."""
        return any(thread.is_alive() for thread in self._threads) and not self.failures

    def wait_for(self, holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Poll until `holds`."""
        until = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < until, f"{what}: not within {timeout_s} s\n{self._tails()}"
            time.sleep(0.05)

    def _tails(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in self.processes)
