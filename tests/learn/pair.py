"""What each of two processes does that train one model together: `python -m tests.learn.pair SITE.toml RUN...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from swarm.errors import SwarmError
from swarm.learn.loop import Loop


def loop(model: nn.Module, site: Path, run: str, **given: Any) -> Loop:
    settings: dict[str, Any] = {"patience_s": 30.0, "keep": None, "metrics": {}, "trackers": ()} | given
    return Loop(model, site, run, **settings)


def work(site: Path, run: str, rank: int) -> dict[str, Any]:
    """Steps on rows that differ by process, as `DistributedDataParallel` does them."""
    torch.manual_seed(rank)
    model = nn.Linear(2, 1)
    inner = loop(model, site, run)
    try:
        inner.begin()
    except SwarmError as error:
        return {"refused": str(error), "kind": type(error).__name__}
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ends, weights = [], []
    while not inner.finished:
        x = torch.full((3 + rank, 2), float(rank + 1))
        optimizer.zero_grad()
        loss = ((parallel(x) - 1) ** 2).mean()
        loss.backward()
        inner.correct()
        optimizer.step()
        inner.add(len(x), loss)
        ends.append(inner.step())
        weights.append(model.weight.flatten().tolist())
    inner.end()
    return {"ends": ends, "weights": weights, "last": model.weight.flatten().tolist()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    print(json.dumps([work(Path(sys.argv[1]), run, dist.get_rank()) for run in sys.argv[2:]]))
    dist.destroy_process_group()
