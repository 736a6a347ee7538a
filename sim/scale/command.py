"""`python -m sim EXPERIMENT.toml --peers 1000`: a swarm of many virtual sites, trained here or on Ray.

Everybody's rounds, duties and merges, the contracts and the ledger are real; sim/README.md says what is shared. Ctrl-C
loses nothing that is finished; --resume goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swarm.cli import screen
from swarm.errors import ConfigError, SwarmError

INTERRUPTED = 130
STORE_MIN_BYTES = 1 << 30
"""Small experiments keep every update, so that `swarm audit` merges every round again."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    found = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    found.add_argument("experiment", type=Path, help="the file that `swarm compare` takes too")
    found.add_argument("--peers", type=int, default=0, help="virtual sites (default: as many as the experiment says)")
    found.add_argument(
        "--institutions", type=int, default=0,
        help="members of the consortium that they belong to (default: one for each site, at most 128)",
    )  # fmt: skip
    found.add_argument(
        "--share", type=float, default=1.0,
        help="of each institution's sites, how many train in a round, drawn anew for every round (default 1)",
    )  # fmt: skip
    found.add_argument("--seed", type=int, default=0, help="of the model and the order of the rows")
    found.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    found.add_argument("--engine", choices=("local", "ray"), default="local", help="where sites train")
    found.add_argument("--ray-address", default="", help="of a Ray cluster's head (default: one on this machine)")
    found.add_argument(
        "--verify", type=int, default=2, metavar="N",
        help="members that merge for themselves in a round, the leader among them; the others take over what the first "
        "of them found (default 2)",
    )  # fmt: skip
    found.add_argument(
        "--memory", type=float, metavar="GB", help="how much may be used (default: most of what is free)"
    )
    found.add_argument("--out", type=Path, help="folder for the results (default: results/NAME-PEERS, here)")
    found.add_argument("--resume", action="store_true", help="go on with what an interrupted run left")
    return found


@dataclass
class Times:
    """How long it took, of this process alone."""

    began_s: float
    first_round_s: float | None = None
    rounds_s: list[float] = field(default_factory=list)

    def note(self) -> None:
        """A round closed just now."""
        now_s = time.time() - self.began_s
        if self.first_round_s is None:
            self.first_round_s = now_s
        else:
            self.rounds_s.append(now_s - self.first_round_s - sum(self.rounds_s))


def main(arguments: Sequence[str]) -> int:
    """Run what the command line says; the exit status."""
    given = parser().parse_args(arguments)
    try:
        return _run(given)
    except SwarmError as error:
        return screen.fail(error).exit_code


def _run(given: argparse.Namespace) -> int:
    for name, low in (("jobs", 1), ("verify", 1), ("seed", 0), ("peers", 0), ("institutions", 0)):
        if getattr(given, name) < low:
            raise ConfigError(f"--{name} {getattr(given, name)}: it has to be {low} or more")
    # Brings in torch: who asks for --help does not wait for it.
    import torch

    from sim.scale.engines import Engine, OnRay, Processes
    from sim.scale.needs import free_memory, needs_of
    from sim.scale.prepared import Request, prepare

    torch.set_num_threads(1)
    times = Times(_process_began_s())
    prepared = prepare(Request(given.experiment.resolve(), given.peers, given.institutions, given.seed, given.share))
    folder = given.out or Path("results") / f"{prepared.experiment.name}-{prepared.peers}"
    jobs = min(given.jobs, len(prepared.institutions))
    needs = needs_of(prepared, jobs if given.engine == "local" else 0)
    memory = int(given.memory * 1e9) if given.memory is not None else free_memory()
    place = next(parent for parent in folder.resolve().parents if parent.exists())
    needs.check(memory=memory, disk=shutil.disk_usage(place).free, jobs=jobs)
    _begin(folder, prepared.fingerprint, resume=given.resume)
    signal.signal(signal.SIGINT, _interrupted)
    engine: Engine = OnRay(prepared, jobs, given.ray_address) if given.engine == "ray" else Processes(prepared, jobs)
    try:
        found = _play(prepared, folder, engine, times, verifiers=given.verify, needs=needs)
    except KeyboardInterrupt:
        screen.err.print(f"stopped; what is finished is in {screen.here(folder)}, and --resume goes on with it")
        return INTERRUPTED
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; --resume goes on") from error
    finally:
        engine.close()
    _write(folder, found, times)
    _show(found, folder, times)
    return 0


def _interrupted(*_: object) -> None:
    """Ctrl-C, at once: `asyncio` would wait for the round's training, and find that its workers ended."""
    raise KeyboardInterrupt


def _process_began_s() -> float:
    """When this process was started, so that imports count."""
    import psutil

    return float(psutil.Process().create_time())


def _begin(folder: Path, fingerprint: str, *, resume: bool) -> None:
    """ConfigError if the folder has something that this run would not go on with."""
    mark = folder / "experiment.sha256"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if mark.exists():
            if mark.read_text() != fingerprint:
                raise ConfigError(f"{folder} has results of other settings; take another folder (--out), or delete it")
            if not resume:
                raise ConfigError(f"{folder} has results already; go on with them (--resume), or take another (--out)")
        mark.write_text(fingerprint)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error


def _play(prepared: Any, folder: Path, engine: Any, times: Times, *, verifiers: int, needs: Any) -> dict[str, Any]:
    """Train to the end, and what came out."""
    from sim.scale.prepared import described
    from sim.scale.rounds import Swarm
    from sim.study import metrics

    screen.err.print(f"{described(prepared)} {engine.jobs} workers ({engine.name}).")
    main_metric = metrics.MAIN[prepared.recipe.KIND]
    with _progress(prepared) as progress:
        swarm = Swarm(
            prepared, folder, engine, verifiers=verifiers, tell=progress.trained,
            store_max_bytes=max(STORE_MIN_BYTES, 2 * needs.disk),
        )  # fmt: skip
        try:
            closed = []
            for one in swarm.play():
                closed.append(one)
                times.note()
                progress.closed(one.round, f"{main_metric} {one.measures[main_metric]}")
            from sim.scale.results import results  # with all that a comparison needs: nearly half a second

            return results(prepared, swarm, closed)
        finally:
            swarm.close()


class _Progress:
    """A line that says peers, rounds and time left; where nobody looks at a terminal, a line a round."""

    def __init__(self, prepared: Any, bar: Any) -> None:
        self._peers, self._rounds = prepared.peers, prepared.policy.rounds
        self._of = len(prepared.institutions)
        self._bar = bar
        self._task = bar.add_task(self._words(0), total=self._of * self._rounds, news="")
        self._began: tuple[float, int] | None = None
        """When this process began with its first round, and which that was."""

    def trained(self, number: int, done: int, of: int) -> None:
        """So many of a round's institutions have trained."""
        self._began = self._began or (time.monotonic(), number)
        self._bar.update(self._task, completed=self._of * (number + done / max(of, 1)), description=self._words(number))

    def closed(self, number: int, news: str) -> None:
        """A round is over."""
        self._bar.update(self._task, completed=self._of * (number + 1), news=news)
        if not screen.err.is_terminal and self._began is not None:
            began_s, first = self._began
            each_s = (time.monotonic() - began_s) / (number + 1 - first)
            left_s = each_s * (self._rounds - number - 1)
            screen.err.print(f"{self._words(number)} closed: {news}; about {left_s:.0f} s left")

    def _words(self, number: int) -> str:
        return f"{self._peers} peers, round {number + 1} of {self._rounds}"


@contextmanager
def _progress(prepared: Any) -> Iterator[_Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[news]}"))
    with Progress(*columns, console=screen.err, disable=not screen.err.is_terminal) as bar:
        yield _Progress(prepared, bar)


def _write(folder: Path, found: dict[str, Any], times: Times) -> None:
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    document = {
        **asdict(times),
        "seconds": time.time() - times.began_s,
        "memory_bytes": 1024 * memory,
        "worker_memory_bytes_max": 1024 * children,
    }
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "times.json").write_text(json.dumps(document, indent=1) + "\n")


def _show(found: dict[str, Any], folder: Path, times: Times) -> None:
    def cell(value: dict[str, Any]) -> str:
        if "undefined" in value:
            return f"({value['undefined']})"
        return (
            f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else str(value["mean"])
        )

    names = list(next(iter(found["measures"].values())))
    rows = [[where, *(cell(measures[name]) for name in names)] for where, measures in found["measures"].items()]
    screen.show(screen.table("test rows of", *names, rows=rows, title=found["what"]))
    screen.err.print(
        f"{len(found['rounds'])} rounds in {time.time() - times.began_s:.1f} s; everything is in {screen.here(folder)}"
    )
