"""Where every element of a merged checkpoint comes from: its places in the updates' files and in the base's.

Without an optimizer all three files have the same header, and every place is the same. With one, updates hold the
model's tensors, and checkpoints the optimizer's state besides. Updates that are encoded have places of their own.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from swarm.merge.encoding import SCALE
from swarm.merge.schema import ELEMENT_BYTES, FLOATS, Schema, Tensor
from swarm.merge.server import MODEL, Server, checkpoint_schema, model_schema, state_dtype, state_tensor


@dataclass(frozen=True)
class Segment:
    """Neighbouring elements of one kind and dtype; places are bytes from the beginning of a file."""

    kind: str
    """MODEL, or which state of the optimizer."""
    dtype: str
    count: int
    place: int
    """In the merged checkpoint."""
    model_dtype: str
    update_dtype: str
    """As updates hold it: the model's, I32 where they are masked, or what the run's encoding makes of it."""
    update_place: int
    base_places: Mapping[str, int]
    """Of the same elements in the base, by kind; a base without state has MODEL only."""
    scales_place: int | None = None
    """Where updates have the scales of the tensor's blocks, if it travels as int8."""
    first: int = 0
    """Which element of its tensor is the first one; kept where there are scales."""

    @property
    def stop(self) -> int:
        """The byte after its last one in the merged checkpoint."""
        return self.place + self.count * ELEMENT_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether updates hold changes of it, not values."""
        return self.model_dtype in FLOATS

    def dtype_of(self, kind: str) -> str:
        """How one kind of the same elements is kept in a checkpoint."""
        return self.model_dtype if kind == MODEL else state_dtype(self.model_dtype)

    def cut(self, first: int, count: int) -> Segment:
        """`count` of its elements from number `first`."""
        return replace(
            self,
            count=count,
            place=self.place + first * ELEMENT_BYTES[self.dtype],
            update_place=self.update_place + first * ELEMENT_BYTES[self.update_dtype],
            base_places={
                kind: place + first * ELEMENT_BYTES[self.dtype_of(kind)] for kind, place in self.base_places.items()
            },
            first=self.first + (first if self.scales_place is not None else 0),
        )

    def joins(self, other: Segment) -> bool:
        """Whether the elements of `other` follow this one's in every file."""
        return replace(other, count=0) == self.cut(self.count, 0)


@dataclass(frozen=True)
class Layout:
    """The schemas of a round's files, and the merged checkpoint's segments in file order."""

    base: Schema
    model: Schema
    updates: Schema
    merged: Schema
    segments: tuple[Segment, ...]

    @classmethod
    def of(
        cls, base: Schema, server: Server | None, *, updates: Schema | None = None, carried: tuple[Tensor, ...] = ()
    ) -> Layout:
        """The layout of a round that starts from a checkpoint with these tensors.

        Args:
            updates: the tensors of the updates' files, where they are not the model's.
            carried: further tensors of the merged checkpoint, which no segment has.
        Raises:
            ValueError: the checkpoint holds some of the optimizer's state, but not all of it.
        """
        model = model_schema(base)
        merged = checkpoint_schema(model, server)
        merged = Schema.of([*merged.tensors, *carried]) if carried else merged
        updates = updates or model
        here, there = _places(base), _places(updates)
        dtypes = {tensor.name: tensor.dtype for tensor in updates.tensors}
        origins = {tensor.name: (MODEL, tensor) for tensor in model.tensors}
        for tensor in model.tensors:
            if server is not None and tensor.dtype in FLOATS:
                origins |= {state_tensor(kind, tensor).name: (kind, tensor) for kind in server.starts}
        _check_state(base, merged, model)
        segments: list[Segment] = []
        for tensor, start, _ in merged.placed:
            if not tensor.count or tensor in carried:
                continue
            kind, source = origins[tensor.name]
            names = {MODEL: source.name}
            if server is not None and source.dtype in FLOATS:
                names |= {state: state_tensor(state, source).name for state in server.starts}
            segment = Segment(
                kind=kind,
                dtype=tensor.dtype,
                count=tensor.count,
                place=len(merged.header) + start,
                model_dtype=source.dtype,
                update_dtype=dtypes.get(source.name, source.dtype),
                update_place=there.get(source.name, 0),
                base_places={state: here[name] for state, name in names.items() if name in here},
                scales_place=there.get(SCALE + source.name) if source.dtype in FLOATS else None,
            )
            if segments and segments[-1].joins(segment):
                segments[-1] = replace(segments[-1], count=segments[-1].count + segment.count)
            else:
                segments.append(segment)
        return cls(base, model, updates, merged, tuple(segments))

    def pieces(self, start: int, stop: int, block: int) -> Iterator[Segment]:
        """The merged checkpoint's elements between two bytes, at most `block` at once."""
        first = bisect.bisect_right(self.segments, start, key=lambda segment: segment.stop)
        for segment in itertools.takewhile(lambda segment: segment.place < stop, self.segments[first:]):
            width = ELEMENT_BYTES[segment.dtype]
            inner = (max(segment.place, start) - segment.place) // width
            outer = (min(segment.stop, stop) - segment.place) // width
            for at in range(inner, outer, block):
                yield segment.cut(at, min(block, outer - at))


def _places(schema: Schema) -> dict[str, int]:
    return {tensor.name: len(schema.header) + start for tensor, start, _ in schema.placed}


def _check_state(base: Schema, merged: Schema, model: Schema) -> None:
    models = set(model.tensors)
    wanted = set(merged.tensors) - models
    found = set(base.tensors) - models
    if found and wanted and found != wanted:
        odd: Tensor = min(found ^ wanted, key=lambda tensor: tensor.name)
        raise ValueError(f"the checkpoint's optimizer state is not the policy's: {odd} is {_said(odd in wanted)}")


def _said(wanted: bool) -> str:
    return "missing" if wanted else "unknown"
