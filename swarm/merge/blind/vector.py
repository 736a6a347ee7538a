"""A masked vector as a file: canonical safetensors, every float tensor of the model as I32, and one for the weight.

Coordinates are numbered as the elements lie in the file. Whole numbers and truth values are not in it: their largest
would need them unmasked, and a count of batches tells a count of patients. The checkpoint keeps the base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.encoding import Address, Digest
from swarm.merge.blind.masks import VECTOR_MAX
from swarm.merge.schema import FLOATS, Schema, Tensor
from swarm.merge.server import BLIND

WEIGHT = BLIND + "weight"
"""In a masked file; the attempt's context follows, so that a vector of another attempt has another header."""
EXPONENTS = BLIND + "exponents"
"""In a checkpoint: the exponent of every float tensor of the model, in the order of their names, I8."""
EXPONENT_MIN, EXPONENT_MAX = 0, 8
FIRST_EXPONENT = 0
"""Before the first merge says more."""
# How many times the greatest merged change a single site's may be before it is clipped. Near the end of training sites
# still pull apart while their mean rests, so that no multiple would do: hence the room of ±1 that is always there.
HEADROOM = 16


@dataclass(frozen=True)
class Masked:
    """A member's masked vector on disk. It is no update: no other merge takes it."""

    member: Address
    path: Path


@dataclass(frozen=True)
class Vector:
    """The coordinates of a model's masked vectors.

    Args:
        context: of the attempt whose masks are on them; empty where there is none.
    Raises:
        ValueError: the model has no float tensor, more coordinates than a mask, or a name that is kept.
    """

    model: Schema
    context: Digest = b""

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("the model has no float parameters: there is nothing to merge blindly")
        if self.schema.data_bytes // 4 > VECTOR_MAX:
            raise ValueError(f"{self.schema.data_bytes // 4} coordinates, a mask has {VECTOR_MAX}")

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The model's float tensors in the order of their names, as their exponents lie."""
        floats = (tensor for tensor in self.model.tensors if tensor.dtype in FLOATS)
        return tuple(sorted(floats, key=lambda tensor: tensor.name))

    @cached_property
    def schema(self) -> Schema:
        """Of a masked file."""
        return Schema.of([*(Tensor(tensor.name, "I32", tensor.shape) for tensor in self.tensors), self._weight])

    @property
    def exponents_tensor(self) -> Tensor:
        """Of the merged checkpoint."""
        return Tensor(EXPONENTS, "I8", (len(self.tensors),))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each of `tensors` begins, as a number of coordinates."""
        return np.array([self._firsts[tensor.name] for tensor in self.tensors], np.int64)

    @cached_property
    def weight_at(self) -> int:
        """The weight's coordinate."""
        return self._firsts[self._weight.name]

    @cached_property
    def _weight(self) -> Tensor:
        return Tensor(f"{WEIGHT}.{self.context.hex()}" if self.context else WEIGHT, "I32", (1,))

    @cached_property
    def _firsts(self) -> dict[str, int]:
        return {tensor.name: start // 4 for tensor, start, _ in self.schema.placed}

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return self.schema.data_bytes // 4

    def spans(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """The tensors among these coordinates: its number in `tensors`, from and to, counted from `first`."""
        found, at = [], int(np.searchsorted(self.starts, first, side="right")) - 1
        for number in range(max(at, 0), len(self.tensors)):
            start = int(self.starts[number])
            if start >= first + count:
                break
            begin, end = max(start, first), min(start + self.tensors[number].count, first + count)
            if begin < end:
                found.append((number, begin - first, end - first))
        return found


def room_of(members: int) -> int:
    """The largest whole number that each of so many members may bring: their sum stays below 2^31."""
    return (2**31 - 1) // members - 1
