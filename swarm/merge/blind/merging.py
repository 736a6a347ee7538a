"""Base and masked vectors on disk, and the masks that come off their sum → the next checkpoint on disk.

The sum of one coordinate over the survivors is a whole number S below 2^31 in size, exact modulo 2^32 whatever the
order. A parameter becomes base + S · 2^e / U in float64, rounded once, where U is the sum of the weights; or what the
policy's optimizer makes of S · 2^e / U. Exponents of the next round follow from the greatest S of each tensor.

If the sum is none that honest members can have made, the checkpoint stays the base, for everybody alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swarm.encoding import Digest, short
from swarm.merge.blind.encode import Encoding, exponents_of
from swarm.merge.blind.masks import Mask, Ring, apply
from swarm.merge.blind.unmask import Unmasking
from swarm.merge.blind.vector import EXPONENT_MAX, EXPONENT_MIN, HEADROOM, Masked, Vector
from swarm.merge.disk import Input, in_threads, write_at, written
from swarm.merge.fixed import Float64s, NotFinite, Raw
from swarm.merge.layout import Layout, Segment
from swarm.merge.mean import add_to_base
from swarm.merge.schema import ELEMENT_BYTES, Schema, check_same
from swarm.merge.server import MODEL, Optimizer, Server, model_schema
from swarm.merkle import CHUNK_BYTES, chunk_count, leaf, root

BLOCK = 1 << 16
THREADS = 2


@dataclass(frozen=True)
class BlindMerged:
    """A blind merge's result: the checkpoint's digest, leaves and size, and what all see of the sum."""

    digest: Digest
    leaves: tuple[Digest, ...]
    size: int
    weight: int
    """Sum of the survivors' weights, in units of which a member has `Encoding.room` at most."""
    norm: float
    """Length of the merged update; rounded down to a float64 the same way everywhere."""
    refused: str
    """Why the checkpoint stayed the base; empty where it did not."""


class BadVector(ValueError):
    """A masked file that no blind merge takes: other tensors than the attempt's."""

    def __init__(self, masked: Masked, message: str) -> None:
        super().__init__(f"the masked vector of {short(masked.member)}: {message}")
        self.member = masked.member


def merge(
    base: Path,
    vectors: Sequence[Masked],
    unmasking: Unmasking,
    encoding: Encoding,
    out: Path | None,
    *,
    server: Server | None = None,
    threads: int = THREADS,
) -> BlindMerged:
    """Sum the survivors' vectors, take the masks off, and write the next checkpoint to `out`.

    The same bytes on every machine, with any number of threads. Without `out` only the digest is made.

    Args:
        vectors: one for each survivor, in any order.
        encoding: what the members encoded by; its exponents are the base's.
    Raises:
        BadVector: names the member whose file has other tensors.
        ValueError: the base is not a canonical, finite checkpoint; its exponents are not the encoding's; or the vectors
            are not the survivors'.
        StorageError: the disk would not give the inputs or take the result.
    """
    vectors = sorted(vectors, key=lambda masked: masked.member)
    members, wanted = [masked.member for masked in vectors], unmasking.survivors.in_order
    if members != list(wanted):
        raise ValueError(
            f"vectors of {', '.join(map(short, members)) or 'nobody'} where those of {', '.join(map(short, wanted))} "
            "are merged"
        )
    if encoding.members != len(unmasking.survivors.frozen.joined):
        raise ValueError(
            f"encoded for {encoding.members} members, but {len(unmasking.survivors.frozen.joined)} take part"
        )
    return sum_masked(base, vectors, unmasking.masks, encoding, out, server=server, threads=threads)


def sum_masked(
    base: Path,
    vectors: Sequence[Masked],
    masks: Sequence[Mask],
    encoding: Encoding,
    out: Path | None,
    *,
    server: Server | None = None,
    threads: int = THREADS,
) -> BlindMerged:
    """`merge` without a look at who the survivors are: `masks` come off. Raises as it does."""
    if out is not None and out.exists() and any(out.samefile(path) for path in (base, *(v.path for v in vectors))):
        raise ValueError(f"{out} is an input of the merge; its result needs a file of its own")
    if encoding.exponents != exponents_of(base):
        raise ValueError("the encoding's exponents are not those of the checkpoint")
    with _Job(base, vectors, masks, encoding, server, threads) as job:
        return job.merged(out)


class _Job:
    """The open files of a blind merge, and what was seen of the sum so far."""

    def __init__(
        self,
        base: Path,
        vectors: Sequence[Masked],
        masks: Sequence[Mask],
        encoding: Encoding,
        server: Server | None,
        threads: int,
    ) -> None:
        self._encoding, self._masks, self._server, self._threads = encoding, tuple(masks), server, threads
        self._opened = ExitStack()
        with self._opened:
            self._base_schema = Schema.of_file(base)
            self._vector = Vector(model_schema(self._base_schema))
            self._base = self._opened.enter_context(Input(base))
            self._vectors = [self._opened.enter_context(Input(masked.path)) for masked in vectors]
            for masked in vectors:
                self._check(masked)
            exponents = self._vector.exponents_tensor
            self._layout = Layout.of(self._base_schema, server, updates=self._vector.schema, carried=(exponents,))
            self._opened = self._opened.pop_all()
        chunks = chunk_count(self._layout.merged.size_bytes)
        tensors = len(self._vector.tensors)
        # Of every chunk and tensor: the greatest sum, and for the length the sums of squares in limbs.
        self._greatest = np.zeros((chunks, tensors), np.int64)
        self._squares = np.zeros((chunks, tensors, 3), np.int64)
        self._weight = self._signed(self._sum_at(self._vector.weight_at, 1, _Bench(None)))

    def _check(self, masked: Masked) -> None:
        try:
            check_same(self._vector.schema, Schema.of_file(masked.path))
        except ValueError as error:
            raise BadVector(masked, str(error)) from error

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @staticmethod
    def _signed(sums: Ring) -> int:
        return int(sums.view("<i4")[0])

    def merged(self, out: Path | None) -> BlindMerged:
        """The result, written to `out`."""
        size = self._layout.merged.size_bytes
        with written(out, size) as target:
            refused = self._weight_refused()
            if not refused:
                kept: dict[int, Raw] = {}
                leaves = self._all_chunks(target, kept)
                refused = self._sum_refused()
                if not refused:
                    leaves = self._with_exponents(leaves, kept, target)
                    return BlindMerged(root(leaves, size), tuple(leaves), size, self._weight, self._norm(), "")
        return self._unchanged(out, refused)

    def _all_chunks(self, target: int | None, kept: dict[int, Raw]) -> list[Digest]:
        """The leaves of all chunks; those with exponents are left for later and put into `kept`."""
        later, size = range(*self._exponent_chunks()), self._layout.merged.size_bytes

        def work(bench: _Bench, chunk: int) -> Digest:
            start = chunk * CHUNK_BYTES
            out = bench.out[: min(CHUNK_BYTES, size - start)]
            self._chunk(bench, chunk, out)
            if chunk in later:
                kept[chunk] = out.copy()
                return b""
            if target is not None:
                write_at(target, out.data, start)
            return leaf(out.data)

        return in_threads(range(chunk_count(size)), self._threads, lambda: _Bench(self._server), work)

    def _exponents_at(self) -> tuple[int, int]:
        """The bytes of the merged file that are exponents."""
        schema = self._layout.merged
        return next(
            (len(schema.header) + start, len(schema.header) + stop)
            for tensor, start, stop in schema.placed
            if tensor == self._vector.exponents_tensor
        )

    def _exponent_chunks(self) -> tuple[int, int]:
        start, stop = self._exponents_at()
        return start // CHUNK_BYTES, (stop - 1) // CHUNK_BYTES + 1

    def _with_exponents(self, leaves: list[Digest], kept: dict[int, Raw], target: int | None) -> list[Digest]:
        """All leaves, once the exponents of the next round are known."""
        start, stop = self._exponents_at()
        exponents = np.array(self._next_exponents(), np.int8).view(np.uint8)
        for chunk, out in kept.items():
            first = chunk * CHUNK_BYTES
            begin, end = max(start, first), min(stop, first + len(out))
            out[begin - first : end - first] = exponents[begin - start : end - start]
            if target is not None:
                write_at(target, out.data, first)
            leaves[chunk] = leaf(out.data)
        return leaves

    def _next_exponents(self) -> list[int]:
        """Of every float tensor."""
        greatest = self._greatest.max(axis=0, initial=0).tolist()
        return [
            next_exponent(now, Fraction(most, self._weight))
            for now, most in zip(self._encoding.exponents, greatest, strict=True)
        ]

    def _chunk(self, bench: _Bench, chunk: int, out: Raw) -> None:
        """One chunk of the merged checkpoint, in `out`."""
        start = chunk * CHUNK_BYTES
        header = self._layout.merged.header[start : start + len(out)]
        out[: len(header)] = np.frombuffer(header, np.uint8)
        for piece in self._layout.pieces(start, start + len(out), BLOCK):
            place = out[piece.place - start : piece.stop - start]
            if not piece.is_float:
                place[:] = self._of_base(piece, MODEL, bench)
                continue
            change = self._change(bench, piece, chunk)
            if bench.optimizer is None:
                with self._checked(piece, MODEL):
                    raw = self._of_base(piece, MODEL, bench)
                    add_to_base(change, raw, piece.dtype, place, bench.moved[: piece.count])
            else:
                self._optimize(bench, bench.optimizer, piece, change, place)

    def _change(self, bench: _Bench, piece: Segment, chunk: int) -> Float64s:
        """The merged update's coordinates of a piece."""
        first = (piece.update_place - len(self._vector.schema.header)) // 4
        sums = self._sum_at(first, piece.count, bench).view("<i4")
        change = bench.change[: piece.count]
        np.copyto(change, sums)
        for number, begin, end in self._vector.spans(first, piece.count):
            part = change[begin:end]
            if piece.kind == MODEL:
                greatest = max(int(part.max()), -int(part.min()))
                self._greatest[chunk, number] = max(greatest, int(self._greatest[chunk, number]))
                self._squares[chunk, number] += bench.squares(sums[begin:end])
            scale = float(Fraction(2) ** self._encoding.exponents[number] / self._weight)
            np.multiply(part, scale, out=part)
        return change

    def _sum_at(self, first: int, count: int, bench: _Bench) -> Ring:
        """The unmasked sum of some coordinates."""
        sums, read = bench.sums[:count], bench.read[:count]
        offset = len(self._vector.schema.header) + 4 * first
        sums.fill(0)
        for source in self._vectors:
            source.read(offset, read.view(np.uint8))
            np.add(sums, read, out=sums)
        apply(self._masks, first, sums)
        return sums

    def _optimize(self, bench: _Bench, optimizer: Optimizer, piece: Segment, change: Float64s, out: Raw) -> None:
        """What the optimizer makes of the merged update: the parameters, or the kind of state that the piece is of."""

        def before(kind: str) -> tuple[Raw, str] | None:
            if kind not in piece.base_places:
                return None
            return self._of_base(piece, kind, bench), piece.dtype_of(kind)

        for kind in optimizer.needed(piece.kind):
            with self._checked(piece, kind):
                optimizer.advance(kind, change, before(kind))
        with self._checked(piece, MODEL):
            optimizer.write(piece.kind, change, before(MODEL), piece.dtype, out)

    def _of_base(self, piece: Segment, kind: str, bench: _Bench) -> Raw:
        size = piece.count * ELEMENT_BYTES[piece.dtype_of(kind)]
        return self._base.read(piece.base_places[kind], bench.raw[:size])

    @contextmanager
    def _checked(self, piece: Segment, kind: str) -> Iterator[None]:
        try:
            yield
        except NotFinite as error:
            place = piece.base_places[kind] + error.index * ELEMENT_BYTES[piece.dtype_of(kind)]
            tensor, index = self._base_schema.locate(place)
            raise ValueError(f"the checkpoint: element {index} of {tensor} is {error.what}") from error

    def _weight_refused(self) -> str:
        """Why the sum of the weights cannot be one of honest members; empty if it can."""
        low, high = len(self._vectors), len(self._vectors) * self._encoding.room
        if low <= self._weight <= high:
            return ""
        return f"the weights add up to {self._weight}, honest ones to {low} to {high}"

    def _sum_refused(self) -> str:
        """Why the sum cannot be one of honest members; empty if it can."""
        greatest = self._greatest.max(axis=0, initial=0)
        worst = int(greatest.argmax())
        if greatest[worst] > self._weight:
            return (
                f"a coordinate of {self._vector.tensors[worst].name} adds up to {greatest[worst]}, honest ones to "
                f"{self._weight} at most"
            )
        squares, bound = self._squared_norm(), self._norm_bound()
        if squares > bound * bound:
            return (
                f"the merged update is {math.sqrt(squares):.6g} long, a mean of honest ones at most "
                f"{self._encoding.norm_max:.6g}"
            )
        return ""

    def _squared_norm(self) -> Fraction:
        """Of the merged update, exact."""
        total = Fraction(0)
        for exponent, limbs in zip(self._encoding.exponents, self._squares.sum(axis=0, dtype=object), strict=True):
            low, mixed, high = (int(limb) for limb in limbs)
            total += (low + (mixed << 17) + (high << 32)) * Fraction(4) ** exponent
        return total / self._weight**2

    def _norm_bound(self) -> Fraction | float:
        """What no mean of honest vectors is longer than: the agreed length, and half a unit each for its rounding."""
        if self._encoding.norm_max == math.inf:
            return math.inf
        tensors = zip(self._vector.tensors, self._encoding.exponents, strict=True)
        # In units of 2^EXPONENT_MIN all is whole; the root is rounded up.
        whole = sum(tensor.count << 2 * (exponent - EXPONENT_MIN) for tensor, exponent in tensors)
        rounding = Fraction(math.isqrt(whole) + 1) * Fraction(2) ** EXPONENT_MIN * len(self._vectors) / 2
        return Fraction(self._encoding.norm_max) + rounding / self._weight

    def _norm(self) -> float:
        squares = self._squared_norm()
        return math.isqrt(int(squares * 4**40)) / 2**40

    def _unchanged(self, out: Path | None, refused: str) -> BlindMerged:
        """The base once more."""
        size, leaves = self._base_schema.size_bytes, list[Digest]()
        room: Raw = np.empty(CHUNK_BYTES, np.uint8)
        with written(out, size) as target:
            for start in range(0, size, CHUNK_BYTES):
                part = self._base.read(start, room[: min(CHUNK_BYTES, size - start)])
                leaves.append(leaf(part.data))
                if target is not None:
                    write_at(target, part.data, start)
        return BlindMerged(root(leaves, size), tuple(leaves), size, self._weight, 0.0, refused)


def next_exponent(now: int, greatest: Fraction) -> int:
    """A tensor's exponent for the next round: room for changes of `HEADROOM` times the greatest merged one.

    It falls by one a round at most, because clipping costs more than coarse steps; a tensor without a change keeps it.

    Args:
        greatest: of the merged changes, in units of 2^now.
    """
    if not greatest:
        return now
    wanted = HEADROOM * greatest
    # The least e with wanted <= 2^e.
    exponent = wanted.numerator.bit_length() - wanted.denominator.bit_length() - 1
    while Fraction(2) ** exponent < wanted:
        exponent += 1
    return max(EXPONENT_MIN, min(EXPONENT_MAX, max(now + exponent, now - 1)))


class _Bench:
    """What one thread works with."""

    def __init__(self, server: Server | None) -> None:
        self.optimizer = Optimizer(server, BLOCK) if server is not None else None
        self.sums: Ring = np.empty(BLOCK, np.uint32)
        self.read: Ring = np.empty(BLOCK, np.uint32)
        self.change = np.empty(BLOCK)
        self.moved = np.empty(BLOCK)
        self.raw: Raw = np.empty(8 * BLOCK, np.uint8)
        self.out: Raw = np.empty(CHUNK_BYTES, np.uint8)
        self._limb = np.empty(BLOCK, np.int32)
        self._low, self._high = np.empty(BLOCK), np.empty(BLOCK)

    def squares(self, sums: NDArray[np.int32]) -> tuple[int, int, int]:
        """The sum of squares in three limbs: worth 1, 2^17 and 2^32. Whole float64 below 2^53, exact in any order."""
        limb, low, high = (room[: len(sums)] for room in (self._limb, self._low, self._high))
        np.copyto(low, np.bitwise_and(sums, 0xFFFF, out=limb))
        np.copyto(high, np.right_shift(sums, 16, out=limb))
        products = (np.einsum("i,i->", low, low), np.einsum("i,i->", low, high), np.einsum("i,i->", high, high))
        return int(products[0]), int(products[1]), int(products[2])
