"""Where two checkpoints differ first: what a refusal shows as evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swarm.merge.fixed import NUMPY_TYPES, load
from swarm.merge.schema import ELEMENT_BYTES, FLOATS, Schema
from swarm.merkle import CHUNK_BYTES


@dataclass(frozen=True)
class Difference:
    """The first element in which two checkpoints differ."""

    tensor: str
    index: int
    """Of the element, in row-major order."""
    expected: str
    found: str
    """The values in decimal, exact to the last bit, with their bytes in hexadecimal."""
    chunk: int
    """Of the object, so that one chunk and its proof suffice to show it."""

    def __str__(self) -> str:
        return f"{self.tensor}[{self.index}] is {self.found} where {self.expected} belongs (chunk {self.chunk})"


def first_difference(expected: Path, found: Path) -> Difference | None:
    """Where `found` departs from `expected`, or None if they are the same bytes.

    Raises:
        ValueError: one of them is not a canonical file, or they hold different tensors.
    """
    schema, other = Schema.of_file(expected), Schema.of_file(found)
    if schema != other:
        raise ValueError(f"{found.name} holds other tensors than {expected.name}")
    with open(expected, "rb") as left, open(found, "rb") as right:
        start = 0
        while one := left.read(CHUNK_BYTES):
            two = right.read(CHUNK_BYTES)
            if one != two:
                differ = np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8)
                return _difference(schema, start + int(np.argmax(differ)), start, one, two)
            start += len(one)
    return None


def _difference(schema: Schema, offset: int, start: int, one: bytes, two: bytes) -> Difference:
    tensor, index = schema.locate(offset)
    width = ELEMENT_BYTES[tensor.dtype]
    # Elements are aligned in the file, so none of them crosses from one chunk into the next.
    at = (offset - start) // width * width
    return Difference(
        tensor=tensor.name,
        index=index,
        expected=_shown(one[at : at + width], tensor.dtype),
        found=_shown(two[at : at + width], tensor.dtype),
        chunk=start // CHUNK_BYTES,
    )


def _shown(data: bytes, dtype: str) -> str:
    raw = np.frombuffer(data, np.uint8)
    value = load(raw, dtype, np.empty(1))[0] if dtype in FLOATS else raw.view(NUMPY_TYPES[dtype])[0]
    return f"{value.item()!r} (0x{data[::-1].hex()})"
