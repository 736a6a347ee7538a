"""What a simulation will take of this machine, reckoned before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from sim.scale.prepared import Prepared
from swarm.errors import ConfigError

PROCESS_BYTES = 400 << 20
"""What this program, torch and the ledger take before there is a model."""
WORKER_BYTES = 150 << 20
"""What a worker process takes of its own; the rest it shares with the one that started it."""
COPIES = 8
"""Of the model, in a worker: checkpoint, parameters, gradients, an optimizer's two, the change, what torch holds."""
PEER_BYTES = 4096
"""For a virtual site that does not train at the moment: its name and where its rows are."""
GB = 1e9


@dataclass(frozen=True)
class Needs:
    """What is needed at the same time, in bytes."""

    memory: int
    disk: int
    model: int
    """One checkpoint."""

    def check(self, *, memory: int, disk: int, jobs: int) -> None:
        """Nothing, if the machine has it; ConfigError says what is needed and what helps."""
        if self.memory > memory:
            raise ConfigError(
                f"this takes about {self.memory / GB:.1f} GB of memory, and {memory / GB:.1f} GB may be used: take "
                f"fewer --peers, fewer --jobs ({jobs}, each with {COPIES} x {self.model / 1e6:.1f} MB of model), "
                "or say --memory if more is free"
            )
        if self.disk > disk:
            raise ConfigError(
                f"this takes about {self.disk / GB:.1f} GB of disk, and {disk / GB:.1f} GB are free: take fewer "
                "--institutions, or another disk (--out)"
            )


def needs_of(prepared: Prepared, jobs: int) -> Needs:
    """What an experiment takes with so many workers; batches and what layers give are not reckoned."""
    model = sum(
        tensor.numel() * tensor.element_size()
        for tensor in prepared.recipe.new_model(prepared.request.seed).state_dict().values()
    )
    sites = prepared.study.peers
    rows = sum(peer.x.numel() * peer.x.element_size() for peer in sites)
    tests = sum(test.x.numel() * test.x.element_size() for test in prepared.tests.values())
    each = -(-prepared.peers // len(prepared.institutions))
    return Needs(
        memory=PROCESS_BYTES + jobs * (WORKER_BYTES + COPIES * model) + 3 * (rows + tests) + PEER_BYTES * len(sites),
        disk=model * (2 * len(prepared.institutions) + jobs * (each + 2) + 4),
        model=model,
    )


def free_memory() -> int:
    """Bytes that may be used: nine tenths of what this machine has free."""
    return int(0.9 * psutil.virtual_memory().available)
