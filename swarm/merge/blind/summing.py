"""The sum of some members' vectors with their masks off, coordinate by coordinate, and whether honest ones can make it.

Exact modulo 2^32 whatever the order; whole numbers below 2^31 in size for honest members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from swarm.encoding import Address
from swarm.merge.blind.encode import Encoding
from swarm.merge.blind.masks import Mask, Ring, apply
from swarm.merge.blind.vector import EXPONENT_MIN, Vector
from swarm.merge.disk import Input

BLOCK = 1 << 16


class SumRoom:
    """What one thread sums with."""

    def __init__(self) -> None:
        self.sums: Ring = np.empty(BLOCK, np.uint32)
        self.read: Ring = np.empty(BLOCK, np.uint32)
        self._limb = np.empty(BLOCK, np.int32)
        self._low, self._high = np.empty(BLOCK), np.empty(BLOCK)

    def squares(self, sums: NDArray[np.int32]) -> tuple[int, int, int]:
        """The sum of squares in three limbs: worth 1, 2^17 and 2^32. Whole float64 below 2^53, exact in any order."""
        limb, low, high = (room[: len(sums)] for room in (self._limb, self._low, self._high))
        np.copyto(low, np.bitwise_and(sums, 0xFFFF, out=limb))
        np.copyto(high, np.right_shift(sums, 16, out=limb))
        products = (np.einsum("i,i->", low, low), np.einsum("i,i->", low, high), np.einsum("i,i->", high, high))
        return int(products[0]), int(products[1]), int(products[2])


class MaskedSum:
    """A sum, and what was seen of it so far.

    Args:
        members: whose vectors these are.
        vectors: their files, open.
        masks: what comes off the sum.
        chunks: of the merged file, in which the sum is looked at.
    """

    def __init__(
        self,
        members: Sequence[Address],
        vector: Vector,
        vectors: Sequence[Input],
        masks: Sequence[Mask],
        encoding: Encoding,
        chunks: int,
    ) -> None:
        self.members = tuple(members)
        self._vector, self._vectors, self._masks, self._encoding = vector, vectors, tuple(masks), encoding
        # Of every chunk and tensor: the greatest sum, and for the length the sums of squares in limbs.
        self._greatest = np.zeros((chunks, len(vector.tensors)), np.int64)
        self._squares = np.zeros((chunks, len(vector.tensors), 3), np.int64)
        self.weight = int(self.at(vector.weight_at, 1, SumRoom()).view("<i4")[0])
        """The members' weights, added up."""

    def at(self, first: int, count: int, room: SumRoom) -> Ring:
        """Some coordinates of the sum, in the room's `sums`."""
        sums, read = room.sums[:count], room.read[:count]
        offset = len(self._vector.schema.header) + 4 * first
        sums.fill(0)
        for source in self._vectors:
            source.read(offset, read.view(np.uint8))
            np.add(sums, read, out=sums)
        apply(self._masks, first, sums)
        return sums

    def look(self, chunk: int, tensor: int, sums: NDArray[np.int32], room: SumRoom) -> None:
        """Take note of a part of a tensor; each part is looked at once."""
        greatest = max(int(sums.max()), -int(sums.min()))
        self._greatest[chunk, tensor] = max(greatest, int(self._greatest[chunk, tensor]))
        self._squares[chunk, tensor] += room.squares(sums)

    def scale(self, tensor: int) -> float:
        """What a whole number of a tensor is worth in the mean."""
        return float(Fraction(2) ** self._encoding.exponents[tensor] / self.weight)

    @property
    def greatest(self) -> list[int]:
        """Of every float tensor, the greatest sum in size."""
        found: list[int] = self._greatest.max(axis=0, initial=0).tolist()
        return found

    def weight_refused(self) -> str:
        """Why the sum of the weights cannot be one of honest members; empty if it can."""
        low, high = len(self._vectors), len(self._vectors) * self._encoding.room
        if low <= self.weight <= high:
            return ""
        return f"the weights add up to {self.weight}, honest ones to {low} to {high}"

    def refused(self) -> str:
        """Why the sum, all of which was looked at, cannot be one of honest members; empty if it can."""
        greatest = self._greatest.max(axis=0, initial=0)
        worst = int(greatest.argmax())
        if greatest[worst] > self.weight:
            return (
                f"a coordinate of {self._vector.tensors[worst].name} adds up to {greatest[worst]}, honest ones to "
                f"{self.weight} at most"
            )
        squares, bound = self._squared_norm(), self._norm_bound()
        if squares > bound * bound:
            return (
                f"the merged update is {math.sqrt(squares):.6g} long, a mean of honest ones at most "
                f"{self._encoding.norm_max:.6g}"
            )
        return ""

    @property
    def norm(self) -> float:
        """Length of the mean, rounded down to a float64 the same way everywhere."""
        return math.isqrt(int(self._squared_norm() * 4**40)) / 2**40

    def _squared_norm(self) -> Fraction:
        """Of the mean, exact."""
        total = Fraction(0)
        for exponent, limbs in zip(self._encoding.exponents, self._squares.sum(axis=0, dtype=object), strict=True):
            low, mixed, high = (int(limb) for limb in limbs)
            total += (low + (mixed << 17) + (high << 32)) * Fraction(4) ** exponent
        return total / self.weight**2

    def _norm_bound(self) -> Fraction | float:
        """What no mean of honest vectors is longer than: the agreed length, and half a unit each for its rounding."""
        if self._encoding.norm_max == math.inf:
            return math.inf
        tensors = zip(self._vector.tensors, self._encoding.exponents, strict=True)
        # In units of 2^EXPONENT_MIN all is whole; the root is rounded up.
        whole = sum(tensor.count << 2 * (exponent - EXPONENT_MIN) for tensor, exponent in tensors)
        rounding = Fraction(math.isqrt(whole) + 1) * Fraction(2) ** EXPONENT_MIN * len(self._vectors) / 2
        return Fraction(self._encoding.norm_max) + rounding / self.weight
