"""Random merges: `python -m tests.merge.cases COUNT` prints one digest over the results of COUNT of them.

Values come from whole numbers alone (a generator's bits, divided by powers of two), so that every machine has the same.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.config import EQUAL_ONLY, MERGE_RULES, SERVER_RULES, Policy
from swarm.merge import Schema, Tensor, merge, write_file
from tests.merge.reference import encoded, policy

DTYPES = ("F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL")


@dataclass(frozen=True)
class Case:
    """The files and the policy of one merge."""

    base: Path
    updates: list[Path]
    weights: list[int]
    rule: Policy


def drawn(seed: int, folder: Path) -> Case:
    """A case, its files written to `folder`."""
    source = np.random.default_rng(seed)
    members = int(source.integers(1, 8))
    tensors = [
        Tensor(
            f"t{i}", str(source.choice(DTYPES)), tuple(int(n) for n in source.integers(0, 40, source.integers(0, 3)))
        )
        for i in range(int(source.integers(1, 6)))
    ]
    schema = Schema.of([*tensors, Tensor("x", "F32", (int(source.integers(1, 3000)),))])
    paths = []
    for number in range(members + 1):
        paths.append(folder / f"{number}")
        write_file(paths[-1], schema, {t.name: _values(source, t) for t in schema.tensors})
    weights = [int(weight) for weight in source.integers(1, 5000, members)]
    return Case(paths[0], paths[1:], weights, _policy(source, members))


def _values(source: np.random.Generator, tensor: Tensor) -> NDArray[np.generic]:
    if tensor.dtype in ("F32", "F64", "F16", "BF16"):
        whole = source.integers(-(2**30), 2**30, tensor.shape)
        scale = 2.0 ** -source.integers(24, 45, tensor.shape)
        return encoded(np.asarray(whole * scale), tensor.dtype)
    kind = {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.uint8}[tensor.dtype]
    return np.asarray(source.integers(0, 2 if tensor.dtype == "BOOL" else 200, tensor.shape)).astype(kind)


def _policy(source: np.random.Generator, members: int) -> Policy:
    possible = [name for name in MERGE_RULES if "faults" not in MERGE_RULES[name] or members >= 5]
    name = str(source.choice(possible))
    changes: dict[str, object] = {
        "weights": "equal" if name in EQUAL_ONLY else str(source.choice(["equal", "samples"]))
    }
    if "faults" in MERGE_RULES[name]:
        changes["faults"] = 1
    if "bound" in MERGE_RULES[name]:
        changes |= {"bound": str(source.choice(["median", "length"])), "radius": float(source.choice([0.5, 1.0, 40.0]))}
    if name == "sum":
        changes |= {"range": 1000.0}
    else:
        changes["server"] = str(source.choice([*SERVER_RULES, *(["none"] * 6)]))
        changes["weight_ratio_max"] = float(source.choice([1.0, 2.0, 1e9]))
    return policy(merge=name, **changes)


def digest_of_all(count: int) -> str:
    """One digest over the results of the first `count` cases."""
    hasher = hashlib.sha256()
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            case = drawn(seed, Path(folder))
            hasher.update(merge(case.base, case.updates, case.weights, case.rule, None).digest)
    return hasher.hexdigest()


if __name__ == "__main__":
    print(digest_of_all(int(sys.argv[1])))
