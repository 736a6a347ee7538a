"""Small merges whose digests are the same on every machine: `python -m tests.merge.golden` prints them.

The inputs are bit patterns from a whole-number formula, so no float arithmetic makes them. `golden.json` holds what
the first machine found; a new rule adds to it, nothing in it changes unless merges are meant to change.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.config import Policy
from swarm.merge import Schema, Tensor, merge_files, write_file
from swarm.merge.files import _Job
from swarm.merge.fixed import NUMPY_TYPES

GOLDEN = Path(__file__).with_name("golden.json")
COUNT = 6000
MEMBERS = 7
WEIGHTS = (1, 303, 17, 5000, 64, 299, 1000)

SCHEMA = Schema.of(
    [
        Tensor("double", "F64", (COUNT // 2, 2)),
        Tensor("single", "F32", (COUNT,)),
        Tensor("brain", "BF16", (COUNT,)),
        Tensor("half", "F16", (3, COUNT // 3)),
        Tensor("batches", "I64", ()),
        Tensor("short", "I16", (101,)),
        Tensor("bytes", "U8", (77,)),
        Tensor("mask", "BOOL", (33,)),
    ]
)
# Bits of the fraction and of the exponent, and the exponent field of 1.0.
_LAYOUT = {"F64": (52, 11, 1023), "F32": (23, 8, 127), "BF16": (7, 8, 127), "F16": (10, 5, 15)}

POLICIES: dict[str, dict[str, object]] = {
    "mean": {},
    "mean of equals": {"weights": "equal"},
    "mean of clipped steps": {"range": 0.25, "step_bits": 20},
    "sum": {"merge": "sum", "weights": "equal"},
    "norm_bounded_mean": {"merge": "norm_bounded_mean", "radius": 20.0},
    "norm_bounded_mean of the short": {"merge": "norm_bounded_mean", "radius": 2000.0},
    "centered_clipping": {"merge": "centered_clipping", "radius": 5.0, "iterations": 3},
    "geometric_median": {"merge": "geometric_median", "iterations": 4},
    "coordinate_median": {"merge": "coordinate_median", "weights": "equal"},
    "trimmed_mean": {"merge": "trimmed_mean", "weights": "equal", "faults": 2},
    "multi_krum": {"merge": "multi_krum", "weights": "equal", "faults": 2},
    "nearest_neighbor_mixing": {"merge": "nearest_neighbor_mixing", "weights": "equal", "faults": 2},
    "what a policy says that says nothing": {
        "merge": "norm_bounded_mean",
        "bound": "median",
        "weight_ratio_max": 2.0,
    },
    "centered_clipping by the median": {"merge": "centered_clipping", "bound": "median", "radius": 0.5},
    "mean of capped weights": {"weight_ratio_max": 1.5},
    "fedavgm": {"server": "fedavgm", "server_rate": 0.7},
    "nesterov": {"server": "nesterov", "server_momentum": 0.95},
    "fedadagrad": {"server": "fedadagrad", "server_rate": 0.03},
    "fedadam": {"server": "fedadam", "server_rate": 0.01, "merge": "coordinate_median", "weights": "equal"},
    "fedyogi": {"server": "fedyogi", "server_rate": 0.01, "server_decay": 0.9, "server_floor": 0.0001},
}


def _noise(member: int, tensor: str, count: int) -> NDArray[np.uint64]:
    """SplitMix64 of the coordinate's number: 64 bits each."""
    seed = int.from_bytes(tensor.encode()[:6], "big") * 1_000_003 + member * 7919
    x = np.arange(count, dtype=np.uint64) + np.uint64(seed % 2**63)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits_of(member: int, tensor: Tensor) -> NDArray[np.generic]:
    """A tensor's elements. Floats have every fraction, exponents from tiny (and zero) to below 1, both signs."""
    noise = _noise(member, tensor.name, tensor.count)
    spelled = np.dtype(NUMPY_TYPES[tensor.dtype].replace("f", "u").replace("i", "u"))
    if tensor.dtype not in _LAYOUT:
        mask = np.uint64(1) if tensor.dtype == "BOOL" else np.uint64(2 ** (8 * spelled.itemsize) - 1)
        return (noise & mask).astype(spelled).reshape(tensor.shape)
    fraction, width, one = _LAYOUT[tensor.dtype]
    spread = np.uint64(min(one, 45))
    exponent = np.uint64(one) - np.uint64(1) - (noise >> np.uint64(54)) % spread
    exponent[::97] = 0
    sign = (noise >> np.uint64(53)) & np.uint64(1)
    bits = (noise & np.uint64(2**fraction - 1)) | exponent << np.uint64(fraction) | sign << np.uint64(fraction + width)
    found: NDArray[np.generic] = bits.astype(spelled).reshape(tensor.shape)
    return found


def write_inputs(folder: Path) -> tuple[Path, list[Path]]:
    """The base and the members' updates."""
    paths = []
    for member in range(MEMBERS + 1):
        write_file(folder / f"{member}", SCHEMA, {t.name: bits_of(member, t) for t in SCHEMA.tensors})
        paths.append(folder / f"{member}")
    return paths[0], paths[1:]


def digests() -> Iterator[tuple[str, str]]:
    """Every policy's name and the digest of its merge; and how long the updates are."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, updates = write_inputs(folder)
        for name, changes in POLICIES.items():
            plain = asdict(Policy("golden", 1, 1, merge="mean", bound="length", weight_ratio_max=1e9))
            policy = Policy(**(plain | changes))
            digest = merge_files(base, updates, WEIGHTS, policy, folder / "out")
            if policy.server != "none":  # a second round, so that the first one's state takes part
                digest = merge_files(folder / "out", updates[::-1], WEIGHTS[::-1], policy, folder / "second")
            yield name, digest.hex()
        with _Job(base, updates, WEIGHTS, Policy("golden", 1, 1), 2) as job:
            yield "squared lengths", " ".join(map(str, job.squares()))


if __name__ == "__main__":
    json.dump(dict(digests()), sys.stdout, indent=1)
    print()
