"""A training process that does not train: it submits a new update each round and notes when rounds closed.

python -m bench.trainer SITE.toml RUN GENESIS.safetensors MARKS.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from swarm.config import load_site
from swarm.learn.attach import Node
from swarm.learn.seat import Seat
from swarm.merge import Schema, write_file


def train(site: Path, run: str, genesis: Path, marks: Path) -> None:
    """Take part to the end; the times of the start and of each round's end go to `marks`."""
    times = [time.time()]
    with Node(load_site(site), patience_s=60) as node:
        seat = Seat(node, run)
        place = seat.take()
        schema = Schema.of_file(genesis)
        rng = np.random.default_rng(int.from_bytes(site.name.encode(), "big"))
        values = rng.standard_normal(schema.tensors[0].shape[0], np.float32) * np.float32(1e-3)
        update = np.empty_like(values)
        while not place.finished:
            with seat.update_file() as path:
                np.multiply(values, np.float32(1 + place.round), out=update)
                write_file(path, schema, {"weight": update})
                place = seat.exchange(place, path, samples=100, metrics={"loss": 1.0})
            times.append(time.time())
    marks.write_text(json.dumps(times))


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
