"""The merge's arithmetic once more, in Python's whole numbers and fractions, and small files to try it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.config import Policy
from swarm.merge import Schema, Tensor, write_file
from swarm.merge.fixed import NUMPY_TYPES, load, store

# Bits of the significand with the hidden one, exponent of the smallest step, largest finite value.
FORMATS = {
    "F64": (53, -1074, Fraction(2**53 - 1) * 2**971),
    "F32": (24, -149, Fraction(2**24 - 1) * 2**104),
    "F16": (11, -24, Fraction(65504)),
    "BF16": (8, -133, Fraction(2**8 - 1) * 2**120),
}
FLOAT_TYPES = tuple(FORMATS)

Values = NDArray[np.float64]


def policy(**changes: object) -> Policy:
    """A policy for tests: the plain weighted mean, no weight capped, unless they say otherwise."""
    plain = {"name": "test", "rounds": 1, "sync_interval": 1, "merge": "mean", "weight_ratio_max": 1e9}
    return Policy(**(plain | changes))  # type: ignore[arg-type]


def nearest(value: Fraction) -> int:
    """The nearest whole number, ties to even."""
    return round(value)


def rounded(value: Fraction, dtype: str) -> Fraction:
    """The nearest number of the format, ties to even, saturated."""
    precision, smallest, largest = FORMATS[dtype]
    if value == 0:
        return Fraction(0)
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent += 0 if abs(value) >= Fraction(2) ** exponent else -1
    step = Fraction(2) ** max(exponent - precision + 1, smallest)
    return max(-largest, min(largest, nearest(value / step) * step))


def steps_of(value: float, policy: Policy) -> int:
    """An update's coordinate in fixed point."""
    limit = int(Fraction(policy.range) * 2**policy.step_bits)
    return max(-limit, min(limit, nearest(Fraction(value) * 2**policy.step_bits)))


def moved(base: float, numerator: int, scale: Fraction, dtype: str) -> float:
    """base + numerator * scale as the merge rounds it; Python's floats are IEEE 754 binary64."""
    return float(rounded(Fraction(base + float(numerator) * float(scale)), dtype))


def mean_of(base: float, column: Sequence[float], weights: Sequence[int], policy: Policy, dtype: str) -> float:
    """One coordinate of the weighted mean."""
    total = sum(w * steps_of(x, policy) for w, x in zip(weights, column, strict=True))
    return moved(base, total, Fraction(1, sum(weights) * 2**policy.step_bits), dtype)


def sum_of(base: float, column: Sequence[float], policy: Policy, dtype: str) -> float:
    """One coordinate of the sum."""
    return moved(base, sum(steps_of(x, policy) for x in column), Fraction(1, 2**policy.step_bits), dtype)


def encoded(values: Values, dtype: str) -> NDArray[np.generic]:
    """The values in a float dtype, as numpy holds its bits."""
    raw = np.empty(values.size * np.dtype(NUMPY_TYPES[dtype]).itemsize, np.uint8)
    store(np.array(values, dtype=np.float64).reshape(-1), dtype, raw)
    return raw.view(NUMPY_TYPES[dtype]).reshape(values.shape)


def decoded(array: NDArray[np.generic], dtype: str) -> Values:
    """Float64 of what a tensor holds."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return load(raw, dtype, np.empty(array.size)).reshape(array.shape)


def read_file(path: Path) -> dict[str, NDArray[np.generic]]:
    """Every tensor of a canonical file, BF16 as bits."""
    schema, data = Schema.of_file(path), path.read_bytes()
    head = len(schema.header)
    return {
        tensor.name: np.frombuffer(data[head + start : head + stop], NUMPY_TYPES[tensor.dtype]).reshape(tensor.shape)
        for tensor, start, stop in schema.placed
    }


def vector_file(path: Path, values: Values, dtype: str = "F32") -> Path:
    """A file with one float tensor `x`."""
    write_file(path, Schema.of([Tensor("x", dtype, values.shape)]), {"x": encoded(values, dtype)})
    return path


def files(folder: Path, rows: Mapping[str, Values], dtype: str = "F32") -> list[Path]:
    """Files of one tensor each, by name."""
    return [vector_file(folder / name, values, dtype) for name, values in rows.items()]


def read_vector(path: Path, dtype: str = "F32") -> Values:
    """The values of the tensor `x`."""
    return decoded(read_file(path)["x"], dtype)
