"""Where training runs: in worker processes of this machine, or on a Ray cluster. Both make the same bytes."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

import torch

from sim.scale.prepared import Institution, Prepared, Request, prepare
from sim.scale.work import Part, Parts, make_part
from swarm.errors import ConfigError, UnavailableError

ROOT = Path(__file__).resolve().parents[2]


class Engine(Protocol):
    """Trains institutions, several at a time."""

    name: str
    jobs: int

    def train(self, institutions: Sequence[Institution], number: int, base: Path, parts: Parts) -> Iterator[int]:
        """Put the institutions' updates of a round among the parts; yields the number of each that is done."""

    def close(self) -> None:
        """End the workers."""


class Processes:
    """Worker processes, which take over the prepared experiment as it is in this one's memory.

    Make it before anything else starts a thread; torch has one thread in each process.
    """

    name = "local"

    def __init__(self, prepared: Prepared, jobs: int) -> None:
        self.jobs = jobs
        self._prepared = prepared
        context = multiprocessing.get_context("fork")
        self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(prepared,))
        self._pool.submit(os.getpid)  # all of them start with the first call

    def train(self, institutions: Sequence[Institution], number: int, base: Path, parts: Parts) -> Iterator[int]:
        """As the protocol says.

        Raises:
            ConfigError: training diverged.
            UnavailableError: a worker ended; most likely it had too little memory.
        """
        # A few at a time: what is not begun yet is forgotten at once when the run is interrupted.
        waiting, running = list(reversed(institutions)), set[Future[int]]()
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.jobs:
                    running.add(self._pool.submit(_make, waiting.pop().number, number, str(base), str(parts.folder)))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        except BrokenProcessPool as error:
            raise UnavailableError(
                f"round {number}: a worker process ended before its work was done; if the system's log says that it "
                "ran out of memory, take fewer --jobs. What is finished is kept: --resume goes on"
            ) from error

    def close(self) -> None:
        """As the protocol says; work that is under way is finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_PREPARED: Prepared | None = None


def _begin(prepared: Prepared) -> None:
    global _PREPARED
    _PREPARED = prepared
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker where it is; its institution is trained again
    torch.set_num_threads(1)
    # The first optimizer makes torch load its compiler, most of a second: here, while the ledger is set up.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed waits for work for ever otherwise."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _make(institution: int, number: int, base: str, parts: str) -> int:
    assert _PREPARED is not None
    make_part(_PREPARED, _PREPARED.institutions[institution], number, Path(base), Parts(Path(parts)))
    return institution


class OnRay:
    """Actors of a Ray cluster, each of which loads the experiment by itself.

    Every machine needs this source tree and the data at the same path. Checkpoints and updates travel through Ray.

    Args:
        address: of the cluster's head; empty: a cluster of this machine alone, for as long as the run lasts.
    Raises:
        ConfigError: Ray is not installed, or there is no cluster at that address.
    """

    name = "ray"

    def __init__(self, prepared: Prepared, jobs: int, address: str = "") -> None:
        try:
            self._ray = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise ConfigError(f"--engine ray needs {error.name}: pip install 'ray>=2.40,<3'") from error
        self.jobs = jobs
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells its makers of each cluster otherwise
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings: dict[str, Any] = {"address": address} if address else {"num_cpus": jobs, "include_dashboard": False}
        try:
            self._ray.init(
                **settings, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": path}}
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--ray-address {address}: there is no Ray cluster: {error}") from error
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        if cores < jobs:
            self._ray.shutdown()
            raise ConfigError(f"--jobs {jobs}: the Ray cluster has {cores} cores, and each worker takes one")
        actor = self._ray.remote(num_cpus=1)(RayWorker)
        self._actors = [actor.remote(prepared.request, prepared.fingerprint) for _ in range(jobs)]

    def train(self, institutions: Sequence[Institution], number: int, base: Path, parts: Parts) -> Iterator[int]:
        """As the protocol says."""
        parts.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self._ray.put(base.read_bytes())
        waiting, free = list(reversed(institutions)), list(self._actors)
        running: dict[Any, tuple[Any, int]] = {}
        while waiting or running:
            while waiting and free:
                actor, institution = free.pop(), waiting.pop()
                running[actor.make.remote(institution.number, number, checkpoint)] = actor, institution.number
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            actor, place = running.pop(done)
            free.append(actor)
            part, data = self._result(done, number)
            fresh = parts.path(place).with_suffix(".new")
            fresh.write_bytes(data)
            fresh.replace(parts.path(place))
            parts.note(place, part)
            yield place

    def _result(self, done: Any, number: int) -> tuple[Part, bytes]:
        try:
            part, data = self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            raise ConfigError(f"round {number}, on a Ray worker: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            raise UnavailableError(
                f"round {number}: a Ray worker ended before its work was done: {error}; --resume goes on"
            ) from error
        return part, data

    def close(self) -> None:
        """As the protocol says."""
        self._ray.shutdown()


class RayWorker:
    """One actor: an experiment loaded on another machine, perhaps."""

    def __init__(self, request: Request, fingerprint: str) -> None:
        self._prepared = prepare(request)
        if self._prepared.fingerprint != fingerprint:
            raise ConfigError(f"{request.experiment} is another experiment on this machine than where it was started")

    def make(self, institution: int, number: int, checkpoint: bytes) -> tuple[Part, bytes]:
        """An institution's update of a round, and its bytes."""
        with tempfile.TemporaryDirectory(prefix="swarm-ray-") as folder:
            base, parts = Path(folder) / "base", Parts(Path(folder) / "parts")
            base.write_bytes(checkpoint)
            part = make_part(self._prepared, self._prepared.institutions[institution], number, base, parts)
            return part, parts.path(institution).read_bytes()
