"""The visible mean of the same fixed-point updates once more, in Python's whole numbers and fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from swarm.merge import Schema
from tests.merge.reference import decoded, moved, read_file

FLOATS = ("F32", "F64", "F16", "BF16")


def room(members: int) -> int:
    return (2**31 - 1) // members - 1


def counted(weight: int, members: int, weight_max: int) -> int:
    """A sample count as a whole number."""
    if not weight_max:
        return room(members)
    exact = Fraction(min(weight, weight_max) * room(members), weight_max)
    return max(1, math.floor(exact + Fraction(1, 2)))


def floats_of(path: Path) -> dict[str, list[float]]:
    """Every float tensor of a file, flat, by name in order."""
    schema, found = Schema.of_file(path), read_file(path)
    named = {tensor.name: tensor.dtype for tensor in schema.tensors if tensor.dtype in FLOATS}
    return {name: decoded(found[name], named[name]).reshape(-1).tolist() for name in sorted(named)}


def steps(value: float, exponent: int, counts: int, shrunk: float) -> int:
    """A coordinate in fixed point; the two float operations are those of the encoding."""
    scaled = value * (shrunk * 2.0**-exponent)
    return round(max(-1.0, min(1.0, scaled)) * float(counts))


def vectors(
    updates: Mapping[bytes, Path], weights: Mapping[bytes, int], members: int, weight_max: int, exponents: list[int],
    norm_max: float,
) -> tuple[dict[str, list[int]], int]:  # fmt: skip
    """The sums of all coordinates by tensor, and the sum of the weights."""
    sums: dict[str, list[int]] = {}
    for member, path in updates.items():
        counts = counted(weights[member], members, weight_max)
        floats = floats_of(path)
        norm = math.sqrt(math.fsum(value * value for values in floats.values() for value in values))
        shrunk = min(1.0, norm_max / norm * (1 - 2**-40)) if norm_max < math.inf and norm > 0 else 1.0
        for exponent, (name, values) in zip(exponents, floats.items(), strict=True):
            row = [steps(value, exponent, counts, shrunk) for value in values]
            sums[name] = [a + b for a, b in zip(sums.get(name, [0] * len(row)), row, strict=True)]
    return sums, sum(counted(weights[member], members, weight_max) for member in updates)


def checkpoint(base: Path, sums: Mapping[str, list[int]], weight: int, exponents: list[int]) -> dict[str, list[float]]:
    """What the merged checkpoint's float tensors are."""
    dtypes = {tensor.name: tensor.dtype for tensor in Schema.of_file(base).tensors}
    found = {}
    for exponent, (name, values) in zip(exponents, floats_of(base).items(), strict=True):
        scale = Fraction(2) ** exponent / weight
        found[name] = [
            moved(value, total, scale, dtypes[name]) for value, total in zip(values, sums[name], strict=True)
        ]  # fmt: skip
    return found


def next_exponents(sums: Mapping[str, list[int]], weight: int, exponents: list[int]) -> list[int]:
    """What the checkpoint carries for the next round."""
    found = []
    for now, values in zip(exponents, sums.values(), strict=True):
        greatest = Fraction(max(map(abs, values), default=0), weight) * Fraction(2) ** now
        if not greatest:
            found.append(now)
            continue
        wanted = next(e for e in range(-100, 100) if Fraction(2) ** e >= 16 * greatest)
        found.append(max(0, min(8, max(wanted, now - 1))))
    return found


def exponents_in(path: Path) -> list[int]:
    """What a checkpoint carries."""
    found: list[int] = np.frombuffer(read_file(path)["swarm.blind.exponents"].tobytes(), np.int8).tolist()
    return found
