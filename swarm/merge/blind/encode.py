"""A site's update → its masked vector, in one pass over the file; nothing unmasked touches the disk.

    room  M = floor((2^31 - 1) / members) - 1       what each may bring
    weight  u = max(1, round(M w / weight_max))     a whole number up to M; M where all count alike
    coordinate  q = round(clip(x s 2^-e, ±1) u)     |q| <= u, so no sum of honest vectors leaves ±2^31
    s = min(1, norm_max / length of x),  e = the tensor's exponent

The mean is sum(q) / sum(u) in steps of 2^e. Each q is half a unit wrong at most, so a coordinate of the mean is
wrong by members · 2^e / (2 sum(u)) at most, and by what was clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swarm.config import Policy
from swarm.encoding import Digest
from swarm.merge.blind.masks import Mask, Ring, apply
from swarm.merge.blind.vector import EXPONENT_MAX, EXPONENT_MIN, EXPONENTS, FIRST_EXPONENT, Vector, room_of
from swarm.merge.disk import Input, in_threads, write_at, written
from swarm.merge.fixed import Float64s, NotFinite, Raw, check_finite, load
from swarm.merge.schema import ELEMENT_BYTES, Schema, Tensor, check_same
from swarm.merge.server import model_schema
from swarm.merkle import CHUNK_BYTES, chunk_count, leaf, root

BLOCK = 1 << 16
THREADS = 2


@dataclass(frozen=True)
class Encoding:
    """What all members of an attempt put their updates into the ring by.

    Raises:
        ValueError: an exponent out of bounds, or a length or a weight that cannot be.
    """

    members: int
    """How many take part: all who are frozen into the attempt, not only those whose vectors arrive."""
    exponents: tuple[int, ...]
    """Of the float tensors in the order of their names: a change beyond ±2^e is clipped."""
    weight_max: int = 0
    """Heavier updates count as this; 0: all count alike."""
    norm_max: float = math.inf
    """Longer updates are scaled down to this length."""
    context: Digest = b""
    """Of the attempt: it is named in the vectors' files, and one of another attempt does not fit."""

    @classmethod
    def under(cls, policy: Policy, base: Path, members: int, context: Digest) -> Encoding:
        """What the policy says for updates on this checkpoint; `members` are frozen into the attempt.

        Raises as `exponents_of` does.
        """
        weight_max = policy.weight_max if policy.weights == "samples" else 0
        return cls(members, exponents_of(base), weight_max, policy.norm_max or math.inf, context)

    def __post_init__(self) -> None:
        if not 1 <= self.members < 2**20:
            raise ValueError(f"{self.members} members encode nothing")
        if not all(EXPONENT_MIN <= exponent <= EXPONENT_MAX for exponent in self.exponents):
            raise ValueError(f"an exponent is out of {EXPONENT_MIN} to {EXPONENT_MAX}: {self.exponents}")
        if not self.norm_max > 0:
            raise ValueError(f"updates may be {self.norm_max} long; a length above 0 belongs there")
        if not 0 <= self.weight_max < 2**40:
            raise ValueError(f"weights up to {self.weight_max}; 0 to 2**40 belong there")

    @property
    def room(self) -> int:
        """M."""
        return room_of(self.members)

    def weight(self, weight: int) -> int:
        """u: what an update counts, from its sample count.

        Raises:
            ValueError: not a positive whole number.
        """
        if isinstance(weight, bool) or not isinstance(weight, int) or weight < 1:
            raise ValueError(f"the weight of an update is {weight!r}; a positive whole number belongs there")
        if not self.weight_max:
            return self.room
        return max(1, (2 * self.room * min(weight, self.weight_max) + self.weight_max) // (2 * self.weight_max))


@dataclass(frozen=True)
class Encoded:
    """A masked vector that was written, and what the site alone knows of it."""

    digest: Digest
    leaves: tuple[Digest, ...]
    size: int
    clipped: int
    """Coordinates beyond their tensor's range."""
    norm: float
    """The update's length before it was scaled down; nan where no length is agreed on."""


class Unfit(ValueError):
    """An update that cannot be encoded: other tensors, or a value that is not finite."""


def exponents_of(base: Path) -> tuple[int, ...]:
    """The exponents that a checkpoint carries, for the float tensors in the order of their names.

    Raises:
        ValueError: not a canonical checkpoint, no float tensor, or exponents that cannot be.
        StorageError: the disk would not give them.
    """
    schema = Schema.of_file(base)
    vector = Vector(model_schema(schema))
    for tensor, start, _ in schema.placed:
        if tensor.name == EXPONENTS:
            return _checked(base, schema, vector, tensor, start)
    return (FIRST_EXPONENT,) * len(vector.tensors)


def _checked(base: Path, schema: Schema, vector: Vector, tensor: Tensor, start: int) -> tuple[int, ...]:
    if tensor != vector.exponents_tensor:
        raise ValueError(f"the checkpoint has {tensor} where {vector.exponents_tensor} belongs")
    with Input(base) as file:
        raw = file.read(len(schema.header) + start, np.empty(tensor.size_bytes, np.uint8))
    found = tuple(raw.view(np.int8).tolist())
    for of, exponent in zip(vector.tensors, found, strict=True):
        if not EXPONENT_MIN <= exponent <= EXPONENT_MAX:
            raise ValueError(
                f"the checkpoint's exponent of {of.name} is {exponent}, not {EXPONENT_MIN}..{EXPONENT_MAX}"
            )
    return found


def encode(
    update: Path,
    weight: int,
    encoding: Encoding,
    masks: Sequence[Mask],
    out: Path,
    *,
    threads: int = THREADS,
) -> Encoded:
    """Write the update's masked vector to `out`. Call it once for a set of masks: a second vector under the same ones
    opens the difference of the two.

    Args:
        update: a canonical file of the model's tensors.
        weight: the update's sample count.
        masks: of this site in this attempt; without any, the vector is open to everybody.
    Raises:
        Unfit: the update has other tensors than the encoding, or a value that is not finite.
        ValueError: the weight is no positive whole number.
        StorageError: the disk would not give the update or take the vector.
    """
    try:
        model = Schema.of_file(update)
        vector = Vector(model, encoding.context)
    except ValueError as error:
        raise Unfit(str(error)) from error
    if len(encoding.exponents) != len(vector.tensors):
        raise Unfit(f"the update has {len(vector.tensors)} float tensors, the checkpoint {len(encoding.exponents)}")
    with Input(update) as source:
        work = _Encoding(source, vector, encoding, encoding.weight(weight), masks, threads)
        size = vector.schema.size_bytes
        with written(out, size) as target:
            assert target is not None
            found = in_threads(
                range(chunk_count(size)), threads, _Bench, lambda bench, chunk: work.chunk(bench, chunk, target)
            )
    leaves = tuple(digest for digest, _ in found)
    return Encoded(root(leaves, size), leaves, size, sum(clipped for _, clipped in found), work.norm)


def check_fits(base: Path, update: Path) -> None:
    """Raises Unfit unless the update holds the model's tensors of this checkpoint."""
    try:
        check_same(model_schema(Schema.of_file(base)), Schema.of_file(update))
    except ValueError as error:
        raise Unfit(str(error)) from error


class _Bench:
    """What one thread works with."""

    def __init__(self) -> None:
        self.out: Raw = np.empty(CHUNK_BYTES, np.uint8)
        self.raw: Raw = np.empty(8 * BLOCK, np.uint8)
        self.values = np.empty(BLOCK)


class _Encoding:
    """One update on its way into the ring."""

    def __init__(
        self, source: Input, vector: Vector, encoding: Encoding, weight: int, masks: Sequence[Mask], threads: int
    ) -> None:
        self._source = source
        self._vector = vector
        self._masks = masks
        self._weight = weight
        places = {tensor.name: len(vector.model.header) + start for tensor, start, _ in vector.model.placed}
        self._places = [places[tensor.name] for tensor in vector.tensors]
        self.norm = math.nan
        shrunk = 1.0
        if encoding.norm_max < math.inf:
            self.norm = self._length(threads)
            # A hair less, so that no rounding of ours makes the update longer than what was agreed.
            shrunk = min(1.0, encoding.norm_max / self.norm * (1 - 2**-40)) if self.norm > 0 else 1.0
        self._scales = [shrunk * 2.0**-exponent for exponent in encoding.exponents]

    def chunk(self, bench: _Bench, chunk: int, target: int) -> tuple[Digest, int]:
        """Write one chunk of the masked file; its leaf, and how many coordinates were clipped."""
        header, size = self._vector.schema.header, self._vector.schema.size_bytes
        start = chunk * CHUNK_BYTES
        out = bench.out[: min(CHUNK_BYTES, size - start)]
        head = header[start : start + len(out)]
        out[: len(head)] = np.frombuffer(head, np.uint8)
        elements: Ring = out[len(head) :].view("<u4")
        first = (start + len(head) - len(header)) // 4
        clipped = 0
        if first <= self._vector.weight_at < first + len(elements):
            elements[self._vector.weight_at - first] = self._weight
        for number, begin, end in self._vector.spans(first, len(elements)):
            inner = first + begin - int(self._vector.starts[number])
            for at in range(0, end - begin, BLOCK):
                part = elements[begin + at : min(begin + at + BLOCK, end)]
                clipped += self._quantize(bench, number, inner + at, part)
        apply(self._masks, first, elements)
        write_at(target, out.data, start)
        return leaf(out.data), clipped

    def _quantize(self, bench: _Bench, number: int, inner: int, out: Ring) -> int:
        """Some coordinates of a tensor, unmasked; how many were clipped."""
        values = self._read(bench, number, inner, len(out))
        with np.errstate(over="ignore"):  # infinity is clipped like anything else
            np.multiply(values, self._scales[number], out=values)
        clipped = 0
        if not (values.max() <= 1.0 and values.min() >= -1.0):
            clipped = int(np.count_nonzero(np.abs(values) > 1.0))
            np.clip(values, -1.0, 1.0, out=values)
        np.multiply(values, float(self._weight), out=values)
        np.rint(values, out=values)
        np.copyto(out.view("<i4"), values, casting="unsafe")
        return clipped

    def _read(self, bench: _Bench, number: int, inner: int, count: int) -> Float64s:
        """Elements of a tensor as float64. Unfit: one is not finite."""
        tensor = self._vector.tensors[number]
        width = ELEMENT_BYTES[tensor.dtype]
        raw = self._source.read(self._places[number] + inner * width, bench.raw[: count * width])
        values = load(raw, tensor.dtype, bench.values[:count])
        if not (np.isfinite(values.max()) and np.isfinite(values.min())):
            with _named(tensor, inner):
                check_finite(values)
        return values

    def _length(self, threads: int) -> float:
        """The update's Euclidean length over all float tensors; its last digits are this machine's own."""
        blocks = [
            (number, inner)
            for number, tensor in enumerate(self._vector.tensors)
            for inner in range(0, tensor.count, BLOCK)
        ]

        def squares(bench: _Bench, block: int) -> float:
            number, inner = blocks[block]
            count = min(BLOCK, self._vector.tensors[number].count - inner)
            values = self._read(bench, number, inner, count)
            with np.errstate(over="ignore"):
                return float(np.einsum("i,i->", values, values))

        total = math.fsum(in_threads(range(len(blocks)), threads, _Bench, squares))
        if not math.isfinite(total):
            raise Unfit("the update is longer than float64 can say")
        return math.sqrt(total)


@contextmanager
def _named(tensor: Tensor, inner: int) -> Iterator[None]:
    try:
        yield
    except NotFinite as error:
        raise Unfit(f"element {inner + error.index} of {tensor} is {error.what}") from error
