"""Training without learning: a small model's schema, pseudo-random updates, and a second way to merge them.

The merge here is written from the rules' words with whole numbers and fractions, one coordinate at a time, and shares
no code with `swarm.merge`: what a swarm closes is compared with it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from swarm.config import Policy
from swarm.encoding import Digest
from swarm.merkle import digest_of

Parameters = Mapping[str, NDArray[np.generic]]

SHAPES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "batches": ("<i8", ()),
    "layer.bias": ("<f4", (2,)),
    "layer.weight": ("<f4", (3, 2)),
}
"""A linear layer and a counter, in file order: by element size, then by name."""

_NAMES = {"<i8": "I64", "<f4": "F32"}


@dataclass(frozen=True)
class File:
    """A checkpoint or an update: its values, its bytes and its name."""

    values: Parameters
    data: bytes
    digest: Digest

    @classmethod
    def of(cls, values: Parameters) -> File:
        """The canonical safetensors file of these values."""
        header, body = {}, b""
        for name, (kind, shape) in SHAPES.items():
            part = np.ascontiguousarray(values[name], dtype=kind).tobytes()
            header[name] = {
                "dtype": _NAMES[kind],
                "shape": list(shape),
                "data_offsets": [len(body), len(body) + len(part)],
            }
            body += part
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        data = len(text).to_bytes(8, "little") + text + body
        return cls(values, data, digest_of(data))


def first_checkpoint(rng: random.Random) -> File:
    """Where a run starts."""
    return File.of(_draw(rng, 1.0, batches=0))


def train(rng: random.Random, *, round_: int) -> File:
    """What a site's training changed: mostly small numbers, now and then one beyond the policy's range."""
    scale = 100.0 if rng.random() < 0.1 else 0.1
    return File.of(_draw(rng, scale, batches=10 * (round_ + 1) + rng.randint(0, 3)))


def merge(base: File, updates: Sequence[File], weights: Sequence[int], policy: Policy) -> File:
    """The weighted mean of the updates on top of the base; for whole numbers the largest of them.

    base + float64(sum of w q) * float64(1 / (sum of w * 2**bits)), where q is an update's coordinate, clipped to the
    policy's range, in steps of 2**-bits, rounded half to even; rounded to float32.
    """
    assert policy.merge == "mean"
    limit = int(Fraction(policy.range) * 2**policy.step_bits)
    scale = float(Fraction(1, sum(weights) * 2**policy.step_bits))
    merged: dict[str, NDArray[np.generic]] = {}
    for name, (kind, shape) in SHAPES.items():
        columns = [list(update.values[name].reshape(-1)) for update in updates]
        if kind == "<i8":
            column = [max(int(value) for value in row) for row in zip(*columns, strict=True)]
            merged[name] = np.array(column, dtype=kind).reshape(shape)
            continue
        found: list[float] = []
        for start, *row in zip(base.values[name].reshape(-1), *columns, strict=True):
            steps = [round(Fraction(float(value)) * 2**policy.step_bits) for value in row]
            total = sum(w * max(-limit, min(limit, q)) for w, q in zip(weights, steps, strict=True))
            found.append(float(start) + float(total) * scale)
        merged[name] = np.array(found).astype(kind).reshape(shape)
    return File.of(merged)


def _draw(rng: random.Random, scale: float, *, batches: int) -> Parameters:
    values: dict[str, NDArray[np.generic]] = {}
    for name, (kind, shape) in SHAPES.items():
        if kind == "<i8":
            values[name] = np.array(batches, dtype=kind)
        else:
            count = int(np.prod(shape))
            values[name] = np.array([rng.gauss(0.0, scale) for _ in range(count)], dtype=kind).reshape(shape)
    return values
