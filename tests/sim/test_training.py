"""The simulator's second opinion on a merge: the same bytes as `swarm.merge`, by other means."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim.plan import Plan
from sim.training import SHAPES, File, first_checkpoint, merge, train
from swarm.merge import merge_files
from swarm.merge.schema import Schema, Tensor

POLICY = Plan().policy


@pytest.mark.parametrize("seed", range(20))
def test_both_ways_to_merge_give_the_same_bytes(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    base = first_checkpoint(rng)
    updates = [train(rng, round_=seed) for _ in range(rng.randint(1, 7))]
    weights = [rng.randint(1, POLICY.weight_max) for _ in updates]
    paths = []
    for i, file in enumerate([base, *updates]):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(file.data)
    out = tmp_path / "merged"
    digest = merge_files(paths[0], paths[1:], weights, POLICY, out)
    again = merge(base, updates, weights, POLICY)
    assert digest == again.digest
    assert out.read_bytes() == again.data


def test_the_files_are_canonical() -> None:
    file = first_checkpoint(random.Random(1))
    names = {"<i8": "I64", "<f4": "F32"}
    schema = Schema.of(Tensor(name, names[kind], shape) for name, (kind, shape) in SHAPES.items())
    assert Schema.of_bytes(file.data) == schema


def test_another_range_gives_another_merge() -> None:
    """The clipping is part of the second opinion: without it a coordinate beyond the range would move the result."""
    rng = random.Random(3)
    base = first_checkpoint(rng)
    wild = File.of({**base.values, "layer.bias": np.array([50.0, -50.0], dtype="<f4")})
    narrow, wide = merge(base, [wild], [1], POLICY), merge(base, [wild], [1], replace(POLICY, range=64.0))
    assert narrow.values["layer.bias"][0] == pytest.approx(float(base.values["layer.bias"][0]) + 8.0)
    assert wide.values["layer.bias"][0] == pytest.approx(float(base.values["layer.bias"][0]) + 50.0)
