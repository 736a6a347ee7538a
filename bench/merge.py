"""What a merge costs: files in, checkpoint out, digest included; beside torch's float mean and a copy in memory.

    python -m bench.merge [--members 4 --members 10] [--millions 10] [--rule mean] [--repeats 3] [--folder DIR]

For each number of members and parameters: seconds (median), gigabytes of updates merged a second, seconds relative to
`torch.stack(updates).mean(0)` and to copying as many bytes in memory, what the merging process needs of memory beyond
its start, and the seconds of a member that verifies its share of the chunks, where f + 1 members verify each.

Four updates are different files, further ones are hard links to them; torch has them in memory beforehand, and where
they do not fit it takes a mebi-parameter at a time. The files lie in the page cache.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from swarm.config import MERGE_RULES, Policy
from swarm.merge import Schema, Tensor, merge, merge_chunks, write_file
from swarm.merkle import chunk_count
from swarm.quorum import faults_max

Found = TypeVar("Found")

DISTINCT = 4
SLICE = 1 << 20
# What torch's stack may take at once; more is done in slices.
STACK_MAX_BYTES = 6 << 30


@dataclass(frozen=True)
class Cost:
    """What was measured for one rule, number of members and model."""

    rule: str
    members: int
    millions: float
    merge_s: float
    merge_one_thread_s: float
    gigabytes_per_s: float
    torch_s: float
    torch_sliced: bool
    memcpy_s: float
    memory_mb: float
    memory_of_model: float
    verify_s: float


def inputs(folder: Path, members: int, parameters: int) -> tuple[Path, list[Path]]:
    """A base and `members` updates."""
    schema = Schema.of([Tensor("weight", "F32", (parameters,))])
    source = np.random.default_rng(0)
    for number in range(min(members, DISTINCT) + 1):
        values = source.standard_normal(parameters, np.float32) * np.float32(1.0 if number == 0 else 0.01)
        write_file(folder / f"{number}", schema, {"weight": values})
    for number in range(DISTINCT + 1, members + 1):
        os.link(folder / f"{1 + (number - 1) % DISTINCT}", folder / f"{number}")
    return folder / "0", [folder / f"{number}" for number in range(1, members + 1)]


def policy_of(rule: str, members: int) -> Policy:
    """A policy with this merge, as a consortium of this size would write it."""
    faults = max(1, faults_max(members))
    if rule == "multi_krum":
        faults = max(1, min(faults, (members - 3) // 2))
    equal = rule in ("sum", "coordinate_median", "trimmed_mean", "multi_krum", "nearest_neighbor_mixing")
    return Policy(
        "bench", 1, 1, merge=rule, weights="equal" if equal else "samples",
        faults=faults if "faults" in MERGE_RULES[rule] else 0,
    )  # fmt: skip


def weights_of(members: int) -> list[int]:
    """Sample counts that differ."""
    return [400 + 13 * (number % 7) for number in range(members)]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of several runs, after one that warms up where there are several."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def _merging(folder: str, members: int, rule: str, repeats: int) -> tuple[float, float, float]:
    """Seconds with two threads and with one, and mebibytes of memory: in a process of its own."""
    base, *updates = [Path(folder) / f"{number}" for number in range(members + 1)]
    policy, weights, out = policy_of(rule, members), weights_of(members), Path(folder) / "out"
    before_mb = _memory_mb("VmRSS")
    two_s = seconds(lambda: merge(base, updates, weights, policy, out), repeats)
    needed_mb = _memory_mb("VmHWM") - before_mb
    one_s = seconds(lambda: merge(base, updates, weights, policy, out, threads=1), 1)
    return two_s, one_s, needed_mb


def _memory_mb(kind: str) -> float:
    """This process's memory now (VmRSS) or at its highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def _verifying(folder: str, members: int, rule: str) -> float:
    """Seconds of a member that merges its share of the chunks again."""
    base, *updates = [Path(folder) / f"{number}" for number in range(members + 1)]
    count = chunk_count(base.stat().st_size)
    share = min(count, -(-count * (faults_max(members) + 1) // max(members - 1, 1)))
    policy, weights = policy_of(rule, members), weights_of(members)
    return seconds(lambda: merge_chunks(base, updates, weights, policy, range(share)), 1)


def _torch(folder: str, members: int, parameters: int, repeats: int) -> tuple[float, bool]:
    import torch

    torch.set_num_threads(2)
    head = (Path(folder) / "0").stat().st_size - 4 * parameters
    rows = [
        torch.from_numpy(np.fromfile(Path(folder) / f"{number}", np.float32, offset=head))
        for number in range(1, min(members, DISTINCT) + 1)
    ]
    everyone = [rows[number % len(rows)] for number in range(members)]
    if members * parameters * 4 <= STACK_MAX_BYTES:
        return seconds(lambda: torch.stack(everyone).mean(0), repeats), False

    def sliced() -> None:
        for start in range(0, parameters, SLICE):
            torch.stack([row[start : start + SLICE] for row in everyone]).mean(0)

    return seconds(sliced, repeats), True


def _memcpy(members: int, parameters: int, repeats: int) -> float:
    source = np.ones(parameters, np.float32)
    target = np.empty_like(source)
    return members * seconds(lambda: np.copyto(target, source), repeats)


def alone(work: Callable[..., Found], *arguments: object) -> Found:
    """What `work` gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure(folder: Path, members: int, parameters: int, rules: list[str], repeats: int) -> list[Cost]:
    """Every rule on the same files, each part in a process of its own."""
    inputs(folder, members, parameters)
    torch_s, sliced = alone(_torch, str(folder), members, parameters, repeats)
    memcpy_s = alone(_memcpy, members, parameters, repeats)
    found = []
    for rule in rules:
        two_s, one_s, needed_mb = alone(_merging, str(folder), members, rule, repeats)
        verify_s = alone(_verifying, str(folder), members, rule)
        size = 4 * parameters
        found.append(
            Cost(
                rule, members, parameters / 1e6, two_s, one_s, members * size / two_s / 1e9, torch_s, sliced, memcpy_s,
                needed_mb, needed_mb * 2**20 / size, verify_s,
            )
        )  # fmt: skip
    return found


def main(
    members: Annotated[list[int], typer.Option(help="how many updates")] = [4, 10, 50],  # noqa: B006
    millions: Annotated[list[float], typer.Option(help="parameters, in millions")] = [10.0, 100.0],  # noqa: B006
    rule: Annotated[list[str], typer.Option(help="merge rules")] = [  # noqa: B006
        "mean",
        "norm_bounded_mean",
        "centered_clipping",
    ],
    repeats: Annotated[int, typer.Option(help="the median of so many")] = 3,
    folder: Annotated[Path | None, typer.Option(help="where the files are written")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write the numbers here")] = None,
) -> None:
    """Measure and print a table."""
    table = Table("rule", "n", "M", "s", "1 thr.", "GB/s", "x torch", "x copy", "MB", "of model", "verify s")
    costs: list[Cost] = []
    progress = Console(stderr=True)
    for size in millions:
        for count in members:
            progress.print(f"{count} updates of {size:g} million parameters …")
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                costs += measure(Path(scratch), count, int(size * 1e6), rule, repeats)
    for cost in costs:
        table.add_row(
            cost.rule, str(cost.members), f"{cost.millions:g}", f"{cost.merge_s:.3f}", f"{cost.merge_one_thread_s:.3f}",
            f"{cost.gigabytes_per_s:.2f}", f"{cost.merge_s / cost.torch_s:.2f}{'*' if cost.torch_sliced else ''}",
            f"{cost.merge_s / cost.memcpy_s:.2f}", f"{cost.memory_mb:.0f}", f"{cost.memory_of_model:.2f}",
            f"{cost.verify_s:.3f}",
        )  # fmt: skip
    Console().print(table)
    if any(cost.torch_sliced for cost in costs):
        Console().print("* torch in slices: the stack of all updates would not fit into memory")
    if json_ is not None:
        json_.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


if __name__ == "__main__":
    typer.run(main)
