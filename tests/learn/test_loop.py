"""A loop of two processes: the first alone speaks to the node, and both train the same model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from swarm.errors import ConfigError
from tests.learn.pair import loop
from tests.learn.runs import Operators, history
from tests.node.hospitals import Hospitals

SITE_NOBODY_HAS = Path("nowhere.toml")


def in_two_processes(site: Path, *runs: str) -> list[list[dict[str, Any]]]:
    """What each process says of each run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.learn.pair", str(site), *runs],
            env=settings | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        return [json.loads(one.communicate(timeout=120)[0].splitlines()[-1]) for one in started]
    finally:
        for one in started:
            one.kill()


def test_the_others_have_from_the_first_what_the_node_says(alone: Hospitals) -> None:
    Operators(alone).open_run(
        "pair",
        nn.Linear(2, 1),
        ["north"],
        rounds=2,
        sync_interval=3,
        submissions_min=1,
        merge="mean",
        proximal=0.5,
        range=0.05,  # so that the checkpoint is elsewhere than training was
    )
    (refused, first), (also_refused, second) = in_two_processes(alone.sites["north"], "no such run", "pair")
    assert refused["kind"] == "ConfigError"
    assert "no run 'no such run'" in refused["refused"]
    assert also_refused["refused"] == f"the first process failed: {refused['refused']}"
    assert first["ends"] == [False, False, True, False, False, True]
    assert first == second
    for one in history(alone, "pair"):
        assert one["submissions"][0]["weight"] == 3 * (3 + 4)


def test_a_model_that_is_split_over_processes_is_refused(tmp_path: Path) -> None:
    from torch.distributed import FileStore  # type: ignore[attr-defined]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = nn.Linear(2, 1)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ConfigError, match=r"weight is split over processes .*; a site hands in a whole model"):
            loop(model, SITE_NOBODY_HAS, "any")
    finally:
        dist.destroy_process_group()


def test_what_is_measured_between_two_checkpoints_is_not_told(alone: Hospitals) -> None:
    model = nn.Linear(2, 1)
    Operators(alone).open_run("told", model, ["north"], rounds=2, sync_interval=2, submissions_min=1, merge="mean")
    inner = loop(model, alone.sites["north"], "told", metrics={"auc": "val_auc"})
    inner.begin()
    inner.tell({"val_auc": torch.tensor(0.25), "val_other": 0.0})
    for auc in (0.5, 0.75, 1.0):  # the second is of the first checkpoint
        inner.add(1, 0.0)
        inner.step()
        inner.tell({"val_auc": auc})
    inner.add(1, None)
    inner.step()
    with pytest.raises(ConfigError, match="metrics: the evaluation gave no val_auc, but val_loss"):
        inner.tell({"val_loss": 1.0})
    inner.end()
    inner.tell({})  # of an evaluation after training
    assert [one["submissions"][0]["metrics"]["auc"] for one in history(alone, "told")] == [0.25, 0.75]
