"""Base and masked vectors on disk, and the masks that come off their sum → the next checkpoint on disk.

The sum of one coordinate over the survivors is a whole number S below 2^31 in size, exact modulo 2^32 whatever the
order. A parameter becomes base + S · 2^e / U in float64, rounded once, where U is the sum of the weights; or what the
policy's optimizer makes of S · 2^e / U. Exponents of the next round follow from the greatest S of each tensor.

If the sum is none that honest members can have made, the checkpoint stays the base, for everybody alike. In a round of
groups S / U of each group is one row, and the parameter moves by the middle one: exact, because their number is odd
and products of float64 are in the order of what they round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from swarm.encoding import Address, Digest, short
from swarm.merge.blind.encode import Encoding, exponents_of
from swarm.merge.blind.groups import borne
from swarm.merge.blind.masks import Mask
from swarm.merge.blind.summing import BLOCK, MaskedSum, SumRoom
from swarm.merge.blind.unmask import Unmasking
from swarm.merge.blind.vector import EXPONENT_MAX, EXPONENT_MIN, HEADROOM, Masked, Vector
from swarm.merge.disk import Input, in_threads, write_at, written
from swarm.merge.fixed import Float64s, NotFinite, Raw
from swarm.merge.layout import Layout, Segment
from swarm.merge.mean import add_to_base
from swarm.merge.schema import ELEMENT_BYTES, Schema, check_same
from swarm.merge.server import MODEL, Optimizer, Server, model_schema
from swarm.merkle import CHUNK_BYTES, chunk_count, leaf, root

THREADS = 2


@dataclass(frozen=True)
class GroupSeen:
    """The sum of one group."""

    members: tuple[Address, ...]
    norm: float
    """Length of its mean."""
    refused: str
    """Why it counts as no change; empty where it does not."""


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
    groups: tuple[GroupSeen, ...] = ()
    """Where the round was merged in groups: what all see of each."""


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
    sums = [(group, unmasking.masks_of(group)) for group in unmasking.survivors.summed]
    return sum_groups(base, vectors, sums, encoding, out, server=server, threads=threads)


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
    sums = [(frozenset(masked.member for masked in vectors), tuple(masks))]
    return sum_groups(base, vectors, sums, encoding, out, server=server, threads=threads)


def sum_groups(
    base: Path,
    vectors: Sequence[Masked],
    sums: Sequence[tuple[frozenset[Address], tuple[Mask, ...]]],
    encoding: Encoding,
    out: Path | None,
    *,
    server: Server | None = None,
    threads: int = THREADS,
) -> BlindMerged:
    """`merge` without a look at who the survivors are. Raises as it does.

    Args:
        sums: whose vectors are in one sum, and the masks that come off it: one sum, or an odd number of groups'.
    """
    if out is not None and out.exists() and any(out.samefile(path) for path in (base, *(v.path for v in vectors))):
        raise ValueError(f"{out} is an input of the merge; its result needs a file of its own")
    if encoding.exponents != exponents_of(base):
        raise ValueError("the encoding's exponents are not those of the checkpoint")
    with _Job(base, vectors, sums, encoding, server, threads) as job:
        return job.merged(out)


class _Job:
    """The open files of a blind merge, and what was seen of the sum so far."""

    def __init__(
        self,
        base: Path,
        vectors: Sequence[Masked],
        sums: Sequence[tuple[frozenset[Address], tuple[Mask, ...]]],
        encoding: Encoding,
        server: Server | None,
        threads: int,
    ) -> None:
        assert len(sums) % 2
        self._encoding, self._server, self._threads = encoding, server, threads
        self._opened = ExitStack()
        with self._opened:
            self._base_schema = Schema.of_file(base)
            self._vector = Vector(model_schema(self._base_schema), encoding.context)
            self._base = self._opened.enter_context(Input(base))
            opened = {masked.member: self._opened.enter_context(Input(masked.path)) for masked in vectors}
            for masked in vectors:
                self._check(masked)
            exponents = self._vector.exponents_tensor
            self._layout = Layout.of(self._base_schema, server, updates=self._vector.schema, carried=(exponents,))
            self._opened = self._opened.pop_all()
        chunks = chunk_count(self._layout.merged.size_bytes)
        self._sums = [
            MaskedSum(sorted(members), self._vector, [opened[one] for one in sorted(members)], masks, encoding, chunks)
            for members, masks in sums
        ]
        self._left_out: dict[int, str] = {}
        """Groups whose sum is none of honest members, and why: each counts as no change."""
        self._greatest = np.zeros((chunks, len(self._vector.tensors)))
        """Of every chunk and tensor, the greatest merged change; of a median alone."""

    def _check(self, masked: Masked) -> None:
        try:
            check_same(self._vector.schema, Schema.of_file(masked.path))
        except ValueError as error:
            raise BadVector(masked, str(error)) from error

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def merged(self, out: Path | None) -> BlindMerged:
        """The result, written to `out`."""
        size = self._layout.merged.size_bytes
        with written(out, size) as target:
            refused = self._refused(lambda one: one.weight_refused())
            if not refused:
                kept, leaves = self._all_chunks(target)
                before = len(self._left_out)
                refused = self._refused(lambda one: one.refused())
                if not refused:
                    if len(self._left_out) > before:
                        kept, leaves = self._all_chunks(target, again=True)
                    leaves = self._with_exponents(leaves, kept, target)
                    weight = sum(one.weight for one in self._sums)
                    return BlindMerged(root(leaves, size), tuple(leaves), size, weight, self._norm(), "", self._seen())
        return self._unchanged(out, refused)

    def _refused(self, fault: Callable[[MaskedSum], str]) -> str:
        """Why the round changes nothing; empty if it does. A group's sum that is none of honest members is left out."""
        for number, one in enumerate(self._sums):
            if number not in self._left_out and (why := fault(one)):
                self._left_out[number] = why
        if len(self._left_out) <= borne(len(self._sums)):
            return ""
        where = f"of {len(self._left_out)} groups' sums the first: " if len(self._sums) > 1 else ""
        return where + self._left_out[min(self._left_out)]

    def _norm(self) -> float:
        """Length of the merged update, of a median that of the middle group's mean."""
        return sorted(one.norm if number not in self._left_out else 0.0 for number, one in enumerate(self._sums))[
            len(self._sums) // 2
        ]

    def _seen(self) -> tuple[GroupSeen, ...]:
        if len(self._sums) == 1:
            return ()
        return tuple(
            GroupSeen(one.members, one.norm if number not in self._left_out else 0.0, self._left_out.get(number, ""))
            for number, one in enumerate(self._sums)
        )

    def _all_chunks(self, target: int | None, *, again: bool = False) -> tuple[dict[int, Raw], list[Digest]]:
        """The leaves of all chunks; those with exponents are left for later, and are the first that comes back.

        Args:
            again: the sums were looked at.
        """
        kept: dict[int, Raw] = {}
        self._greatest.fill(0)
        later, size = range(*self._exponent_chunks()), self._layout.merged.size_bytes

        def work(bench: _Bench, chunk: int) -> Digest:
            start = chunk * CHUNK_BYTES
            out = bench.out[: min(CHUNK_BYTES, size - start)]
            self._chunk(bench, chunk, out, again)
            if chunk in later:
                kept[chunk] = out.copy()
                return b""
            if target is not None:
                write_at(target, out.data, start)
            return leaf(out.data)

        rows = len(self._sums)
        return kept, in_threads(range(chunk_count(size)), self._threads, lambda: _Bench(self._server, rows), work)

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
        if len(self._sums) == 1:
            greatest = [Fraction(most, self._sums[0].weight) for most in self._sums[0].greatest]
        else:
            most = self._greatest.max(axis=0, initial=0).tolist()
            greatest = [Fraction(one) / Fraction(2) ** e for one, e in zip(most, self._encoding.exponents, strict=True)]
        return [next_exponent(now, one) for now, one in zip(self._encoding.exponents, greatest, strict=True)]

    def _chunk(self, bench: _Bench, chunk: int, out: Raw, again: bool) -> None:
        """One chunk of the merged checkpoint, in `out`."""
        start = chunk * CHUNK_BYTES
        header = self._layout.merged.header[start : start + len(out)]
        out[: len(header)] = np.frombuffer(header, np.uint8)
        for piece in self._layout.pieces(start, start + len(out), BLOCK):
            place = out[piece.place - start : piece.stop - start]
            if not piece.is_float:
                place[:] = self._of_base(piece, MODEL, bench)
                continue
            change = self._change(bench, piece, chunk, again)
            if bench.optimizer is None:
                with self._checked(piece, MODEL):
                    raw = self._of_base(piece, MODEL, bench)
                    add_to_base(change, raw, piece.dtype, place, bench.moved[: piece.count])
            else:
                self._optimize(bench, bench.optimizer, piece, change, place)

    def _change(self, bench: _Bench, piece: Segment, chunk: int, again: bool) -> Float64s:
        """The merged update's coordinates of a piece: of one sum the mean, of several the middle one of their means."""
        first = (piece.update_place - len(self._vector.schema.header)) // 4
        for number, one in enumerate(self._sums):
            mean = bench.means[number][: piece.count]
            if number in self._left_out:
                mean.fill(0)
                continue
            sums = one.at(first, piece.count, bench).view("<i4")
            np.copyto(mean, sums)
            for tensor, begin, end in self._vector.spans(first, piece.count):
                if piece.kind == MODEL and not again:
                    one.look(chunk, tensor, sums[begin:end], bench)
                np.multiply(mean[begin:end], one.scale(tensor), out=mean[begin:end])
        if len(self._sums) == 1:
            only: Float64s = bench.means[0][: piece.count]
            return only
        change: Float64s = np.sort(bench.means[:, : piece.count], axis=0)[len(self._sums) // 2]
        for tensor, begin, end in self._vector.spans(first, piece.count):
            if piece.kind == MODEL:
                most = max(float(change[begin:end].max()), -float(change[begin:end].min()))
                self._greatest[chunk, tensor] = max(most, float(self._greatest[chunk, tensor]))
        return change

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
        weight = sum(one.weight for one in self._sums)
        return BlindMerged(root(leaves, size), tuple(leaves), size, weight, 0.0, refused, self._seen())


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


class _Bench(SumRoom):
    """What one thread works with.

    Args:
        rows: the number of sums.
    """

    def __init__(self, server: Server | None, rows: int) -> None:
        super().__init__()
        self.optimizer = Optimizer(server, BLOCK) if server is not None else None
        self.means = np.empty((rows, BLOCK))
        self.moved = np.empty(BLOCK)
        self.raw: Raw = np.empty(8 * BLOCK, np.uint8)
        self.out: Raw = np.empty(CHUNK_BYTES, np.uint8)
