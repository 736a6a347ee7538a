"""What tensors a checkpoint holds, and the one file that they make: canonical safetensors.

A file is the 8-byte length of the header, the header (JSON), and the tensors' bytes, little-endian and without
gaps. safetensors allows many headers for the same tensors; here there is one: tensors by element size, largest first,
then by name; keys in the order dtype, shape, data_offsets; no spaces but the padding to 8 bytes; no metadata. So equal
parameters are equal bytes, every tensor is aligned, and any safetensors reader opens the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Hostile JSON takes some twenty times its bytes once it is parsed; a tensor's entry takes about 100 bytes.
HEADER_BYTES_MAX = 8 << 20
TENSORS_MAX = 1 << 16
NAME_BYTES_MAX = 1024
DIMENSIONS_MAX = 16
# Far above any disk; below it no sum of sizes passes 64 bits.
DATA_BYTES_MAX = 1 << 48

ELEMENT_BYTES: Mapping[str, int] = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


Buffer: TypeAlias = bytes | memoryview | NDArray[Any]
"""Contiguous bytes; an array has to be C-contiguous."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, its dtype as safetensors spells it, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return self.count * ELEMENT_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Schema:
    """The tensors of a checkpoint, in file order. Make it with `Schema.of`; the constructor takes a canonical order."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Schema:
        """The schema of these tensors, in any order.

        Raises:
            ValueError: names the tensor that has an unknown dtype, a bad shape or a name that another one has.
        """
        found = tuple(sorted(tensors, key=_place))
        _check_tensors(found)
        return cls(found)

    @cached_property
    def header(self) -> bytes:
        """The file's bytes before the data: the length and the JSON, padded to a multiple of 8."""
        document = {
            tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
            for tensor, start, stop in self.placed
        }
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def placed(self) -> tuple[tuple[Tensor, int, int], ...]:
        """Every tensor with the range of its bytes in the data."""
        start, found = 0, []
        for tensor in self.tensors:
            found.append((tensor, start, start + tensor.size_bytes))
            start += tensor.size_bytes
        return tuple(found)

    @cached_property
    def data_bytes(self) -> int:
        """Bytes of all elements."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.data_bytes

    @cached_property
    def runs(self) -> tuple[tuple[str, int, int], ...]:
        """Dtype and byte range in the file of every stretch of neighbouring tensors with one dtype."""
        base, found = len(self.header), list[tuple[str, int, int]]()
        for tensor, start, stop in self.placed:
            if start == stop:
                continue
            if found and found[-1][0] == tensor.dtype:
                found[-1] = (tensor.dtype, found[-1][1], base + stop)
            else:
                found.append((tensor.dtype, base + start, base + stop))
        return tuple(found)

    def locate(self, offset: int) -> tuple[Tensor, int]:
        """The tensor at a byte of the file, and the index of the element there (in row-major order)."""
        place = offset - len(self.header)
        for tensor, start, stop in self.placed:
            if start <= place < stop:
                return tensor, (place - start) // ELEMENT_BYTES[tensor.dtype]
        raise ValueError(f"no tensor has byte {offset}")

    @classmethod
    def of_bytes(cls, header: bytes) -> Schema:
        """The schema in a file's first bytes: the length and the whole header; later bytes are not looked at.

        Raises:
            ValueError: not a canonical header; says what differs.
        """
        size = header_size(header[:8])
        if len(header) < 8 + size:
            raise ValueError(f"a header of {size} bytes, found {len(header) - 8} of them")
        schema = _parse(header[8 : 8 + size])
        if schema.header != header[: 8 + size]:
            raise ValueError(_what_differs(schema.header[8:], header[8 : 8 + size]))
        return schema

    @classmethod
    def of_file(cls, path: Path) -> Schema:
        """The schema of a file, whose length was checked against it.

        Raises:
            ValueError: not a canonical file; names it and says what differs.
        """
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno()).st_size
                prefix = file.read(8)
                schema = cls.of_bytes(prefix + file.read(header_size(prefix)))
            if found != schema.size_bytes:
                raise ValueError(f"{found} bytes, but its tensors take {schema.size_bytes}")
        except ValueError as error:
            raise ValueError(f"{path.name} is not a canonical safetensors file: {error}") from error
        return schema


def header_size(prefix: bytes) -> int:
    """Bytes of the JSON, from a file's first 8 bytes; ValueError if it is cut short or out of bounds."""
    if len(prefix) != 8:
        raise ValueError(f"{len(prefix)} bytes are too few for a header")
    size = int.from_bytes(prefix, "little")
    if not 2 <= size <= HEADER_BYTES_MAX:
        raise ValueError(f"a header of {size} bytes, between 2 and {HEADER_BYTES_MAX} are read")
    return size


def write_file(path: Path, schema: Schema, values: Mapping[str, Buffer]) -> None:
    """Write the canonical file: `values` holds every tensor's elements, contiguous and little-endian.

    What is at `path` is written over, which takes half as long as a new file; it is empty if that fails. A BF16 tensor
    may come as its uint16 bits. The caller syncs or stores the file.

    Raises:
        ValueError: a name is missing or unknown, or a tensor has another number of bytes.
    """
    unknown = set(values) - {tensor.name for tensor in schema.tensors}
    if unknown:
        raise ValueError(f"the schema has no tensor {min(unknown)!r}")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as file:
        try:
            _write_tensors(file, schema, values)
        except BaseException:
            file.truncate(0)
            raise
        file.truncate()


def _write_tensors(file: FileIO, schema: Schema, values: Mapping[str, Buffer]) -> None:
    file.write(schema.header)
    for tensor in schema.tensors:
        if tensor.name not in values:
            raise ValueError(f"tensor {tensor.name!r} is missing")
        view = _bytes_of(values[tensor.name])
        if len(view) != tensor.size_bytes:
            raise ValueError(f"{tensor} has {tensor.size_bytes} bytes, found {len(view)}")
        while view:
            view = view[file.write(view) :]


def _bytes_of(value: Buffer) -> memoryview:
    view = value.reshape(-1).view("u1").data if isinstance(value, np.ndarray) else memoryview(value)
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_same(expected: Schema, found: Schema) -> None:
    """ValueError unless both hold the same tensors; it lists the first that are missing, unknown or different."""
    if expected == found:
        return
    wanted = {tensor.name: tensor for tensor in expected.tensors}
    there = {tensor.name: tensor for tensor in found.tensors}
    faults = [f"{wanted[name]} is missing" for name in wanted if name not in there]
    faults += [f"{there[name]} is unknown" for name in there if name not in wanted]
    faults += [
        f"{name} is {there[name].dtype}{list(there[name].shape)} where {wanted[name].dtype}{list(wanted[name].shape)} "
        "belongs"
        for name in wanted
        if name in there and there[name] != wanted[name]
    ]
    more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
    raise ValueError("not the checkpoint's tensors: " + "; ".join(faults[:4]) + more)


def _place(tensor: Tensor) -> tuple[int, str]:
    return -ELEMENT_BYTES.get(tensor.dtype, 0), tensor.name


def _check_tensors(tensors: tuple[Tensor, ...]) -> None:
    if len(tensors) > TENSORS_MAX:
        raise ValueError(f"{len(tensors)} tensors, at most {TENSORS_MAX}")
    total, names = 0, set[str]()
    for tensor in tensors:
        name = tensor.name
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"the name {name!r} is no Unicode text") from error
        if not 1 <= size <= NAME_BYTES_MAX:
            raise ValueError(f"a name of {size} bytes, between 1 and {NAME_BYTES_MAX} are allowed")
        if name == "__metadata__":
            raise ValueError("a canonical file has no __metadata__")
        if name in names:
            raise ValueError(f"two tensors are called {name!r}")
        names.add(name)
        if tensor.dtype not in ELEMENT_BYTES:
            raise ValueError(f"{name} has the dtype {tensor.dtype!r}; there are {', '.join(ELEMENT_BYTES)}")
        if len(tensor.shape) > DIMENSIONS_MAX:
            raise ValueError(f"{name} has {len(tensor.shape)} dimensions, at most {DIMENSIONS_MAX} are allowed")
        # Bounds every factor first: a hostile shape makes a product of any length.
        if not all(0 <= extent <= DATA_BYTES_MAX for extent in tensor.shape):
            raise ValueError(f"{name} has an extent that is negative or above {DATA_BYTES_MAX}")
        total += tensor.size_bytes
        if total > DATA_BYTES_MAX:
            raise ValueError(f"the tensors up to {name} take more than {DATA_BYTES_MAX} bytes")


# A header is read by its own grammar and not as any JSON: nesting, long numbers and repeated keys have no place in it.
_ENTRY = re.compile(
    rb'"((?:[^"\\]++|\\.)*+)":\{"dtype":"(\w{1,8})","shape":\[((?:\d{1,15},)*\d{1,15}|)\],"data_offsets":\[(\d{1,15}),(\d{1,15})\]\}'
)


def _parse(text: bytes) -> Schema:
    if text[:1] != b"{":
        raise ValueError(f"the header begins with {text[:1]!r} where an opening brace belongs")
    tensors, start, at = list[Tensor](), 0, 1
    while text[at : at + 1] != b"}":
        if len(tensors) == TENSORS_MAX:
            raise ValueError(f"more than {TENSORS_MAX} tensors")
        found = _ENTRY.match(text, at + bool(tensors))
        if found is None or (tensors and text[at : at + 1] != b","):
            raise ValueError(_no_entry(text, at, tensors))
        tensor, offsets = _tensor(found)
        _check_tensors((tensor,))
        if tensors and _place(tensors[-1]) > _place(tensor):
            last = tensors[-1].name
            raise ValueError(f"{tensor.name} stands after {last}; tensors stand by element size, then by name")
        if offsets != (start, start + tensor.size_bytes):
            belongs = (start, start + tensor.size_bytes)
            raise ValueError(f"{tensor.name} has the offsets {offsets}, but {belongs} belong there")
        start, at = start + tensor.size_bytes, found.end()
        tensors.append(tensor)
    return Schema.of(tensors)


def _tensor(found: re.Match[bytes]) -> tuple[Tensor, tuple[int, int]]:
    try:
        name = json.loads(b'"' + found[1] + b'"')
    except UnicodeDecodeError as error:
        raise ValueError(f"a name that is not UTF-8: {error}") from error
    shape = tuple(int(extent) for extent in found[3].split(b",")) if found[3] else ()
    return Tensor(name, found[2].decode(), shape), (int(found[4]), int(found[5]))


def _no_entry(text: bytes, at: int, tensors: list[Tensor]) -> str:
    after = f"after {tensors[-1].name}" if tensors else "at the beginning"
    found = text[at : at + 80]
    if b'"__metadata__"' in found[:16]:
        return "the header has __metadata__, which no canonical file has"
    return (
        f"the header is not in its canonical form: {after}, at byte {at}, stands {found!r}; a tensor is written "
        '"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'
    )


def _what_differs(expected: bytes, found: bytes) -> str:
    at = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return f"the header has {len(found)} bytes, its canonical form {len(expected)}"
    return (
        f"the header is not in its canonical form: at byte {at} {found[at : at + 24]!r} stands where "
        f"{expected[at : at + 24]!r} belongs"
    )
