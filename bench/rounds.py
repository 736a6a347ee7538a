"""What a round costs: real node processes on loopback, no training, ledger and full verification on.

    python -m bench.rounds [--members 4] [--rounds 10] [--sizes 0.4,40,400] [--json FILE]

For each model size: seconds a round (median), CPU seconds a round (all nodes), bytes on the wire a round (loopback's
counter), peak memory of a node, start-up until the first closed round; beside them torch's gloo doing gather, mean and
broadcast with as many processes, and a copy of the model in memory. Of the wire's bytes, those that verification takes
are told apart: the leader needs n - 1 updates, and each of the n - 1 others fetches as many to merge them again; who
merged again needs no checkpoint from anybody.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from swarm.cli.consortium import places_of, write_consortium
from swarm.cli.run import agree
from swarm.config import load_policy, load_site
from swarm.learn.attach import Node
from swarm.merge import Schema, Tensor, write_file

ROUNDS_MIN, WRITTEN_MB = 4, 1_600
"""How many rounds are measured of a model that is large for the disk: every node keeps all updates of a round."""
STORED_ROUNDS, STORE_SPARE_BYTES = 2, 64 << 20
"""A node's store is full after so many rounds, as any is after some weeks: what comes takes the place of what goes."""


@dataclass(frozen=True)
class Cost:
    """What was measured for one model size."""

    model_mb: float
    round_s: float
    round_s_max: float
    cpu_s: float
    wire_mb: float
    verify_mb: float
    """Of it, what the members that are not the leader fetch to merge again."""
    memory_mb: float
    start_s: float
    gloo_s: float
    memcpy_s: float


def _model(folder: Path, parameters: int) -> Path:
    path = folder / "genesis.safetensors"
    schema = Schema.of([Tensor("weight", "F32", (parameters,))])
    write_file(path, schema, {"weight": np.zeros(parameters, np.float32)})
    return path


def _gloo(rank: int, size: int, parameters: int, rounds: int, port: int, result: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    mine = torch.full((parameters,), float(rank))
    parts = [torch.empty_like(mine) for _ in range(size)] if rank == 0 else None
    times = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        dist.gather(mine, parts)
        merged = torch.stack(parts).mean(0) if parts is not None else torch.empty_like(mine)
        dist.broadcast(merged, 0)
        times.append(time.perf_counter() - start)
    if rank == 0:
        result.put(statistics.median(times))
    dist.destroy_process_group()


def gloo_seconds(members: int, parameters: int, rounds: int) -> float:
    """Median seconds of gather, mean and broadcast of one float32 vector between `members` processes."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    jobs = [
        context.Process(target=_gloo, args=(rank, members, parameters, rounds, port, result)) for rank in range(members)
    ]
    for job in jobs:
        job.start()
    seconds = float(result.get(timeout=300))
    for job in jobs:
        job.join()
    return seconds


def memcpy_seconds(parameters: int) -> float:
    """Median seconds to copy one float32 vector."""
    source = np.ones(parameters, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _bound_store(site: Path, size_bytes: int) -> None:
    """A line of the site's own table; the last one begins there or ends the file."""
    text = site.read_text()
    site.write_text(text.replace("[site]\n", f"[site]\nstore_max_bytes = {size_bytes}\n", 1))


def measure(members: int, megabytes: float, rounds: int, stored_rounds: int = STORED_ROUNDS) -> Cost:
    """Start `members` nodes on loopback, close `rounds` rounds with a model of this size, and stop them."""
    parameters = int(megabytes * 1e6 / 4)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    names = [f"site{index}" for index in range(members)]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        consortium = folder / "consortium"
        sites = write_consortium(consortium, name="bench", members=places_of(names, base_port=0))
        genesis = _model(folder, parameters)
        for site in sites:
            _bound_store(site, stored_rounds * (members + 1) * genesis.stat().st_size + STORE_SPARE_BYTES)
        policy = folder / "policy.toml"
        policy.write_text(
            f'[run]\nname = "bench"\nrounds = {rounds}\nsync_interval = 1\nsubmissions_min = {members}\n'
            + "".join(f"{name}_s = {60 + int(megabytes)}\n" for name in ("submit", "merge", "attest"))
        )
        started = time.time()
        for site in sites:
            with (folder / f"{site.stem}.log").open("wb") as log:
                nodes.append(
                    subprocess.Popen([sys.executable, "-m", "swarm", "node", str(site)], stdout=log, stderr=log)
                )
        for site in sites:
            with Node(load_site(site), patience_s=60) as session:
                session.call("swarm_status")
        asyncio.run(agree([load_site(site) for site in sites], load_policy(policy), genesis))
        processes = [psutil.Process(node.pid) for node in nodes]
        before_cpu = sum(sum(process.cpu_times()[:2]) for process in processes)
        before_wire = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        trainers = []
        for site in sites:
            arguments = [str(site), "bench", str(genesis), str(folder / f"{site.stem}.json")]
            trainers.append(subprocess.Popen([sys.executable, "-m", "bench.trainer", *arguments]))
        for trainer in trainers:
            if trainer.wait():
                raise SystemExit(f"a training process ended with {trainer.returncode}")
        cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes) - before_cpu
        wire = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before_wire
        memory = max(_peak_bytes(process.pid) for process in processes)
        times = json.loads((folder / f"{names[0]}.json").read_text())
        gaps = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
        return Cost(
            model_mb=megabytes,
            round_s=statistics.median(gaps),
            round_s_max=max(gaps),
            cpu_s=cpu_s / rounds,
            wire_mb=wire / rounds / 1e6,
            verify_mb=(members - 1) ** 2 * genesis.stat().st_size / 1e6,
            memory_mb=memory / 1e6,
            start_s=times[1] - started,
            gloo_s=gloo_seconds(members, parameters, 5),
            memcpy_s=memcpy_seconds(parameters),
        )
    finally:
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            node.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _sizes(text: str) -> list[float]:
    try:
        found = [float(size) for size in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of sizes; 0.4,40,400 is one") from error
    if not all(0.001 <= size <= 4_000 for size in found):
        raise typer.BadParameter(f"{text!r}: a size is from 0.001 to 4000 MB")
    return found


def main(
    members: Annotated[int, typer.Option(help="Node processes.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds to close for each size; fewer of large models.")] = 10,
    sizes: Annotated[str, typer.Option(help="Model sizes in MB, with commas.")] = "0.4,40",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Print what a round costs at each model size."""
    table = Table(title=f"{members} nodes on loopback, {rounds} rounds, no training, every member verifies")
    for heading in (
        "model MB", "s / round", "max", "CPU-s / round", "wire MB / round", "of it to verify",
        "peak MB a node", "first round after s", "gloo s", "x gloo", "memcpy s",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    costs = []
    for size in _sizes(sizes):
        cost = measure(members, size, min(rounds, max(ROUNDS_MIN, int(WRITTEN_MB / size))))
        costs.append(cost)
        table.add_row(
            f"{cost.model_mb:g}",
            f"{cost.round_s:.2f}",
            f"{cost.round_s_max:.2f}",
            f"{cost.cpu_s:.2f}",
            f"{cost.wire_mb:.1f}",
            f"{cost.verify_mb:.1f}",
            f"{cost.memory_mb:.0f}",
            f"{cost.start_s:.1f}",
            f"{cost.gloo_s:.4f}",
            f"{cost.round_s / cost.gloo_s:.1f}",
            f"{cost.memcpy_s:.4f}",
        )
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


if __name__ == "__main__":
    typer.run(main)
