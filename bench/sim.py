"""How long a swarm of virtual sites takes: real ledger, contracts and merges, training that costs nothing.

    python -m bench.sim [--peers 4 --peers 100 --peers 1000] [--json FILE]

For each number of sites, with a model of 0.4 MB and ten rounds (`bench/small`): from the start of the process to the
first closed round, seconds a round (median of the others), the whole, and the most memory that all processes took
together; beside them one round of FedAvg as a plain loop in one process, without ledger, files and verification.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

EXPERIMENT = Path(__file__).parent / "small" / "experiment.toml"
SAMPLE_S = 0.2


@dataclass(frozen=True)
class Cost:
    """What was measured for one number of sites."""

    peers: int
    institutions: int
    first_round_s: float
    round_s: float
    whole_s: float
    memory_mb: float
    loop_s: float


def measure(peers: int) -> Cost:
    """Run the command in a process of its own, and a plain loop in this one."""
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "sim", str(EXPERIMENT), "--peers", str(peers), "--out", str(out)]
        with open(Path(folder) / "told", "w+") as told:
            process = subprocess.Popen(command, stdout=told, stderr=told)
            memory = _watched(process)
            if process.returncode:
                told.seek(0)
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told.read()}")
        times = json.loads((out / "times.json").read_text())
        results = json.loads((out / "results.json").read_text())
    return Cost(
        peers=peers,
        institutions=len(results["institutions"]),
        first_round_s=times["first_round_s"],
        round_s=median(times["rounds_s"]),
        whole_s=times["seconds"],
        memory_mb=memory / 1e6,
        loop_s=_plain_loop(peers),
    )


def _watched(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; the most bytes that it and its children took, each shared page counted once."""
    most, whole = 0, psutil.Process(process.pid)
    while process.poll() is None:
        taken = 0
        try:
            for one in [whole, *whole.children(recursive=True)]:
                taken += one.memory_full_info().pss
        except psutil.Error:
            continue  # one of them ended while it was looked at
        finally:
            most = max(most, taken)
        time.sleep(SAMPLE_S)
    return most


def _plain_loop(peers: int) -> float:
    """Seconds for a round of FedAvg without anything else."""
    from dataclasses import replace

    from sim.scale.prepared import Request, prepare
    from sim.study.arms import Study, federated
    from sim.study.study import one_thread

    with one_thread():
        prepared = prepare(Request(EXPERIMENT, peers))
        study: Study = prepared.study
        study.policy = replace(study.policy, rounds=1)
        federated(study, 0)
        began_s = time.perf_counter()
        federated(study, 0)
        return time.perf_counter() - began_s


def main(
    peers: Annotated[list[int] | None, typer.Option(help="virtual sites; may be repeated")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the numbers here, too")] = None,
) -> None:
    """Measure and print."""
    costs = [measure(count) for count in peers or [4, 100, 1000]]
    table = Table(title="10 rounds, 0.4 MB, no training", title_justify="left", box=None)
    for column in (
        "sites", "institutions", "to the first round", "a round", "ten rounds", "memory", "plain loop, a round",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(
            f"{cost.peers}", f"{cost.institutions}", f"{cost.first_round_s:.1f} s", f"{cost.round_s:.2f} s",
            f"{cost.whole_s:.1f} s", f"{cost.memory_mb:.0f} MB", f"{cost.loop_s:.3f} s",
        )  # fmt: skip
    Console().print(table)
    if json_ is not None:
        json_.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
