"""What `swarm run propose` refuses before it asks anybody: a first checkpoint that no run can start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swarm.cli.run import _check_start
from swarm.config import Policy
from swarm.errors import ConfigError
from swarm.merge import Schema, Tensor, write_file

POLICY = Policy("adam", 3, 1, server="fedadam")


def model(path: Path, name: str) -> Path:
    write_file(path, Schema.of([Tensor(name, "F32", (2,))]), {name: np.zeros(2, np.float32)})
    return path


def test_a_plain_model_is_taken(tmp_path: Path) -> None:
    _check_start(model(tmp_path / "plain", "weight"), POLICY)


def test_the_checkpoint_of_another_runs_optimizer_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path / "merged", "swarm.server.momentum.weight")
    with pytest.raises(ConfigError, match=rf"{path}: the name swarm\.server\.momentum\.weight is kept .*save_model"):
        _check_start(path, POLICY)


def test_what_is_no_model_is_refused_before_a_key_is_unlocked(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(ConfigError, match=r"text.*not a canonical safetensors file"):
        _check_start(tmp_path / "text", POLICY)
