"""Checkpoint and updates on disk → the next checkpoint on disk, chunk by chunk, in bounded memory.

One chunk of the result depends on the same bytes of the inputs only, so chunks are merged by several threads, by
several members, or again by an auditor, and are the same bytes every time. A chunk is that of the object's Merkle tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from swarm.config import Policy
from swarm.encoding import Digest
from swarm.merge.disk import Found, Input, in_threads, write_at, written
from swarm.merge.encoding import BLOCK, blocks_of, decode_int8, update_schema
from swarm.merge.fixed import Float64s, NotFinite, Raw, Seen, load
from swarm.merge.gram import Gram, Products, gram_of
from swarm.merge.layout import Layout, Segment
from swarm.merge.report import COMPARED_BYTES, COMPARED_EVERY, UpdateReport
from swarm.merge.rules import Block, FloatBlock, Plan, counted_weights, fixed_point, plan_of
from swarm.merge.schema import ELEMENT_BYTES, Schema, check_same
from swarm.merge.server import MODEL, Optimizer, Server, model_schema, server_of
from swarm.merge.squares import Squares, squares_of
from swarm.merkle import CHUNK_BYTES, chunk_count, leaf, root

THREADS = 2
Found_co = TypeVar("Found_co", covariant=True)


@dataclass(frozen=True)
class Merged:
    """A merge's result: the object's digest, its leaves and size, and what was seen of the updates."""

    digest: Digest
    leaves: tuple[Digest, ...]
    size: int
    reports: tuple[UpdateReport, ...]


class BadUpdate(ValueError):
    """An update that no merge takes: other tensors, a value that is not finite, out of a sum's range."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(f"update {index}: {message}")
        self.index = index


def merge_files(
    base: Path, updates: Sequence[Path], weights: Sequence[int], policy: Policy, out: Path, *, threads: int = THREADS
) -> Digest:
    """The digest of the merged checkpoint, which is then in `out`. See `merge`."""
    return merge(base, updates, weights, policy, out, threads=threads).digest


def merge(
    base: Path,
    updates: Sequence[Path],
    weights: Sequence[int],
    policy: Policy,
    out: Path | None,
    *,
    threads: int = THREADS,
) -> Merged:
    """Merge the updates into the base by the policy's rule and write the next checkpoint to `out`.

    The same bytes on every machine, with any number of threads, and for `mean` and `sum` in any order of the updates.
    `out` is not synced; without it only the digest is made.

    Args:
        weights: sample counts, one an update; all count alike where the policy says `equal`.
    Raises:
        BadUpdate: names the first update that cannot be merged, and why.
        ValueError: the base is not a canonical, finite checkpoint; or the weights break the policy.
        StorageError: the disk would not give the inputs or take the result.
    """
    if out is not None and out.exists() and any(out.samefile(path) for path in (base, *updates)):
        raise ValueError(f"{out} is an input of the merge; its result needs a file of its own")
    with _Job(base, updates, weights, policy, threads) as job, written(out, job.size_bytes) as target:
        size = job.size_bytes
        leaves = job.run(range(chunk_count(size)), threads, target)
        return Merged(root(leaves, size), tuple(leaves), size, job.reports())


def merge_chunks(
    base: Path,
    updates: Sequence[Path],
    weights: Sequence[int],
    policy: Policy,
    chunks: Sequence[int],
    *,
    threads: int = THREADS,
) -> dict[int, Digest]:
    """The leaves of some chunks of the merged checkpoint: what a member finds who merges again what it was assigned.

    Raises as `merge` does.
    """
    with _Job(base, updates, weights, policy, threads) as job:
        return dict(zip(chunks, job.run(chunks, threads, None), strict=True))


def check_update(base: Path, update: Path, policy: Policy) -> UpdateReport:
    """What a merge would see of this update; its share is 1, and its direction is compared with none.

    The base's header is read and nothing else of it: nothing is added up.

    Raises:
        BadUpdate: no merge under this policy takes it, and why.
        ValueError: the base is not a canonical checkpoint.
        StorageError: the disk would not give the bytes.
    """
    alone = replace(policy, merge="sum" if policy.merge == "sum" else "mean", server="none")
    with _Job(base, [update], [1], alone, 1) as job:
        job.look(range(chunk_count(job.size_bytes)))
        return job.reports()[0]


def update_size(base: Path, policy: Policy) -> int:
    """Bytes of every update of a round that starts from this checkpoint.

    Raises:
        ValueError: the base is not a canonical checkpoint.
    """
    return update_schema(model_schema(Schema.of_file(base)), policy.encoding).size_bytes


class WholePass(Protocol[Found_co]):
    """Looks at every update's float coordinates, block by block; one for each thread."""

    size: int
    read: Raw

    def add(self, row: int, raw: Raw, dtype: str, size: int) -> None: ...

    def finish(self, size: int) -> None: ...

    def take(self) -> Found_co: ...


class _Job:
    """The open files of a merge, what is done with them, and what was seen so far."""

    def __init__(
        self, base: Path, updates: Sequence[Path], weights: Sequence[int], policy: Policy, threads: int
    ) -> None:
        if len(weights) != len(updates):
            raise ValueError(f"{len(updates)} updates and {len(weights)} weights")
        self._weights = counted_weights(weights, policy)
        self._policy = policy
        self._opened = ExitStack()
        with self._opened:
            self._base = self._opened.enter_context(Input(base))
            self._updates = [self._opened.enter_context(Input(path)) for path in updates]
            self._server = server_of(policy)
            checkpoint = Schema.of_file(base)
            self.layout = Layout.of(
                checkpoint, self._server, updates=update_schema(model_schema(checkpoint), policy.encoding)
            )
            self.size_bytes = self.layout.merged.size_bytes
            for index, path in enumerate(updates):
                try:
                    check_same(self.layout.updates, Schema.of_file(path))
                except ValueError as error:
                    raise BadUpdate(index, f"{error}{_travels(policy)}") from error
            self._threads = threads
            self._plan = plan_of(policy, self._weights, self)
            self._opened = self._opened.pop_all()
        self._clipped = [0] * len(updates)
        # One sum a chunk, so that the report does not depend on which thread was first.
        self._squares = np.zeros((chunk_count(self.size_bytes), len(updates)))
        # Of what is compared, by chunk: each update times the merged one, itself squared, and the merged one squared.
        self._compared = np.zeros((len(self._squares), len(updates), 3))

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def reports(self) -> tuple[UpdateReport, ...]:
        """What was seen of each update."""
        total, kept = sum(self._weights), self._plan.kept(self._weights)
        products = self._compared.sum(axis=0)
        return tuple(
            UpdateReport(
                norm=math.sqrt(math.fsum(self._squares[:, row])),
                clipped=self._clipped[row],
                share=weight / total,
                kept=kept[row],
                cosine=_cosine(*products[row].tolist()),
            )
            for row, weight in enumerate(self._weights)
        )

    def run(self, chunks: Sequence[int], threads: int, target: int | None) -> list[Digest]:
        """Merge these chunks and write them to `target`; their leaves, in the same order."""
        found = in_threads(chunks, threads, self._bench, lambda bench, chunk: self._chunk(bench, chunk, target))
        self._note(chunks, [seen for _, seen in found])
        return [digest for digest, _ in found]

    def look(self, chunks: Sequence[int]) -> None:
        """Only see what these chunks of the updates hold."""
        bench = self._bench()
        self._note(chunks, [self._look(bench, chunk) for chunk in chunks])

    def _bench(self) -> _Bench:
        return _Bench(self._plan, len(self._updates), self._server)

    def _note(self, chunks: Sequence[int], found: list[list[Seen]]) -> None:
        for chunk, seen in zip(chunks, found, strict=True):
            self._squares[chunk] = [part.squares for part in seen]
            self._clipped = [before + part.clipped for before, part in zip(self._clipped, seen, strict=True)]

    def squares(self) -> tuple[int, ...]:
        """The updates' squared lengths: a pass over their float coordinates."""
        members, fixed = len(self._updates), fixed_point(self._policy)
        return squares_of(self._totals(lambda: Squares(members, fixed)), members)

    def gram(self) -> Gram:
        """The updates' inner products: a pass over their float coordinates."""
        members, fixed = len(self._updates), fixed_point(self._policy)
        return gram_of(self._totals(lambda: Products(members, fixed)), members)

    def _totals(self, prepare: Callable[[], WholePass[Found]]) -> list[Found]:
        """What a pass over the updates' float coordinates finds in each chunk."""

        def totals_of(bench: WholePass[Found], chunk: int) -> Found:
            start = chunk * CHUNK_BYTES
            for piece in self.layout.pieces(start, start + CHUNK_BYTES, bench.size):
                if piece.is_float and piece.kind == MODEL:
                    for row in range(len(self._updates)):
                        with self._blamed(row, piece):
                            bench.add(row, *self._update(row, piece, bench.read), piece.count)
                    bench.finish(piece.count)
            return bench.take()

        chunks = range(chunk_count(self.size_bytes))
        return in_threads(chunks, self._threads, prepare, totals_of)

    def _chunk(self, bench: _Bench, chunk: int, target: int | None) -> tuple[Digest, list[Seen]]:
        """Merge and write one chunk; its leaf and what was seen of each update."""
        start = chunk * CHUNK_BYTES
        stop = min(start + CHUNK_BYTES, self.size_bytes)
        if not 0 <= start < stop:
            raise ValueError(f"no chunk {chunk} in {self.size_bytes} bytes")
        out = bench.out[: stop - start]
        header = self.layout.merged.header[start:stop]
        out[: len(header)] = np.frombuffer(header, np.uint8)
        total = [Seen()] * len(self._updates)
        for piece in self.layout.pieces(start, stop, self._plan.block):
            self._take(bench, piece, total)
            place = out[piece.place - start : piece.stop - start]
            if not piece.is_float:
                bench.integers.finish(self._of_base(piece, MODEL, bench.read), piece.dtype, place)
                continue
            change = bench.floats.change()
            if piece.kind == MODEL and chunk % COMPARED_EVERY == 0:
                count = min(piece.count, (start + COMPARED_BYTES - piece.place) // ELEMENT_BYTES[piece.dtype])
                if count > 0:
                    self._compare(bench, piece.cut(0, count), change[:count], chunk)
            if bench.optimizer is not None:
                self._optimize(bench, bench.optimizer, piece, change, place)
            else:
                with self._checked(piece, MODEL):
                    bench.floats.finish(self._of_base(piece, MODEL, bench.read), piece.dtype, place)
        if target is not None:
            write_at(target, out.data, start)
        return leaf(out.data), total

    def _look(self, bench: _Bench, chunk: int) -> list[Seen]:
        """What was seen of each update in one chunk, of which nothing is added up."""
        start, total = chunk * CHUNK_BYTES, [Seen()] * len(self._updates)
        for piece in self.layout.pieces(start, start + CHUNK_BYTES, self._plan.block):
            if not piece.is_float:
                self._take(bench, piece, total)
                continue
            for row in range(len(self._updates)):
                with self._blamed(row, piece):
                    raw, dtype = self._update(row, piece, bench.read)
                    seen = self._plan.fixed.look(raw, dtype, bench.values[: piece.count])
                    self._check_range(seen)
                if piece.kind == MODEL:
                    total[row] += seen
        return total

    def _take(self, bench: _Bench, piece: Segment, total: list[Seen]) -> None:
        """Add up the updates' elements of a piece; what was seen of each is added to `total`."""
        block = bench.floats if piece.is_float else bench.integers
        block.start(piece.count)
        for row in range(len(self._updates)):
            with self._blamed(row, piece):
                seen = block.add(row, *self._update(row, piece, bench.read))
                self._check_range(seen)
            if piece.kind == MODEL:
                total[row] += seen

    def _compare(self, bench: _Bench, piece: Segment, change: Float64s, chunk: int) -> None:
        """Note each update's products with the merged one."""
        length = np.einsum("i,i->", change, change)
        for row, products in enumerate(self._compared[chunk]):
            values = load(*self._update(row, piece, bench.read), bench.values[: piece.count])
            products += np.einsum("i,i->", values, change), np.einsum("i,i->", values, values), length

    def _optimize(self, bench: _Bench, optimizer: Optimizer, piece: Segment, change: Float64s, out: Raw) -> None:
        """What the optimizer makes of the merged block: the parameters, or the kind of state that the piece is of."""

        def before(kind: str) -> tuple[Raw, str] | None:
            if kind not in piece.base_places:
                return None
            return self._of_base(piece, kind, bench.read), piece.dtype_of(kind)

        for kind in optimizer.needed(piece.kind):
            with self._checked(piece, kind):
                optimizer.advance(kind, change, before(kind))
        with self._checked(piece, MODEL):
            optimizer.write(piece.kind, change, before(MODEL), piece.dtype, out)

    def _update(self, row: int, piece: Segment, room: Raw) -> tuple[Raw, str]:
        """An update's elements of a piece, and the dtype that they are read in: of int8 what it means, float32."""
        source, size = self._updates[row], piece.count * ELEMENT_BYTES[piece.update_dtype]
        if piece.scales_place is None:
            return source.read(piece.update_place, room[:size]), piece.update_dtype
        values = room[: 4 * piece.count]
        block, first = divmod(piece.first, BLOCK)
        count = blocks_of(first + piece.count)
        scales, codes = room[len(values) :][: 4 * count], room[len(values) + 4 * count :][:size]
        source.read(piece.scales_place + 4 * block, scales)
        source.read(piece.update_place, codes)
        decode_int8(codes.view(np.int8), scales.view("<f4"), first, values.view("<f4"))
        return values, "F32"

    def _of_base(self, piece: Segment, kind: str, into: Raw) -> Raw:
        """The base's elements of a piece."""
        size = piece.count * ELEMENT_BYTES[piece.dtype_of(kind)]
        return self._base.read(piece.base_places[kind], into[:size])

    def _check_range(self, seen: Seen) -> None:
        if seen.clipped and self._policy.merge == "sum":
            raise ValueError(f"a value is beyond ±{self._policy.range}, and a sum clips nothing")

    @contextmanager
    def _blamed(self, row: int, piece: Segment) -> Iterator[None]:
        """What is wrong with these elements is the update's fault."""
        try:
            yield
        except NotFinite as error:
            place = piece.update_place + error.index * ELEMENT_BYTES[piece.update_dtype]
            raise BadUpdate(row, _where(self.layout.updates, place, error)) from error
        except ValueError as error:
            raise BadUpdate(row, str(error)) from error

    @contextmanager
    def _checked(self, piece: Segment, kind: str) -> Iterator[None]:
        try:
            yield
        except NotFinite as error:
            place = piece.base_places[kind] + error.index * ELEMENT_BYTES[piece.dtype_of(kind)]
            raise ValueError(f"the checkpoint: {_where(self.layout.base, place, error)}") from error


def _cosine(product: float, one: float, other: float) -> float:
    return product / math.sqrt(one * other) if one > 0 and other > 0 else 0.0


def _travels(policy: Policy) -> str:
    return f" (updates of this run travel as {policy.encoding})" if policy.encoding != "float32" else ""


def _where(schema: Schema, place: int, error: NotFinite) -> str:
    tensor, index = schema.locate(place)
    return f"element {index} of {tensor} is {error.what}"


class _Bench:
    """What one thread works with."""

    def __init__(self, plan: Plan, members: int, server: Server | None) -> None:
        self.floats: FloatBlock = plan.block_of_floats()
        self.optimizer = Optimizer(server, plan.block) if server is not None else None
        self.integers: Block = plan.block_of_integers(members)
        self.read: Raw = np.empty(plan.block * 8, np.uint8)
        self.values = np.empty(plan.block)
        self.out: Raw = np.empty(CHUNK_BYTES, np.uint8)
