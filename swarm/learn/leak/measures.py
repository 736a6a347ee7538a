"""How alike are a reconstruction and the record, and would somebody who knows nothing have come as near?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

DECIBEL_MIN = 3.0
"""A record is recognised only if it is nearer by so much than without the update: 3 dB are a factor of 1.4."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
PSNR_MAX = 99.0


def psnr(found: Tensor, true: Tensor, span: float) -> Tensor:
    """Peak signal-to-noise ratio in dB, (n, m) for n found and m true records: 20 log10(span / rms difference).

    Args:
        found: (n, ...); true: (m, ...).
        span: from the least to the greatest value that a record can have.
    """
    left, right = found.flatten(1).double(), true.flatten(1).double()
    squares = torch.cdist(left, right).square() / left.shape[1]
    return (10 * torch.log10(span**2 / squares.clamp_min(1e-30))).clamp_max(PSNR_MAX)


def ssim(found: Tensor, true: Tensor, span: float) -> Tensor:
    """Structural similarity of images with a Gaussian window, (n,): 1 where they are the same.

    Args:
        found, true: (n, channels, height, width); at least 11 pixels high and wide.
    Source: Wang et al., Image Quality Assessment, IEEE TIP 2004; its constants and its window.
    """
    at = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = torch.exp(-(at**2) / (2 * SSIM_SIGMA**2))
    line /= line.sum()
    window = (line[:, None] * line[None, :]).expand(found.shape[1], 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, groups=x.shape[1])

    a, b = found.double(), true.double()
    of_a, of_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - of_a**2, mean(b * b) - of_b**2, mean(a * b) - of_a * of_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = (2 * of_a * of_b + c1) * (2 * both + c2) / ((of_a**2 + of_b**2 + c1) * (var_a + var_b + c2))
    return values.flatten(1).mean(1)


def places(found: Tensor, true: Tensor, others: Tensor, rivals: Sequence[Tensor], middle: Tensor) -> list[int]:
    """Where each true record stands in a line-up with rivals of its own, by how much a reconstruction looks like it.

    Likeness is the cosine between two deviations from `middle`, and the best reconstruction counts. Who knows nothing
    of the update puts a true record first in one line-up of (rivals + 1): that is chance. Ties count as defeats.

    Args:
        found: (n, ...) reconstructions; true: (m, ...); others: (k, ...); middle: (...).
        rivals: for each of the m, numbers of `others`.
    Returns:
        (m,): 1 is first.
    """

    def directions(x: Tensor) -> Tensor:
        away = (x.double() - middle).flatten(1)
        one: Tensor = away / away.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return one

    seen = directions(found).T
    own, theirs = (directions(true) @ seen).amax(1), (directions(others) @ seen).amax(1)
    return [1 + int((theirs[line_up] >= value).sum()) for value, line_up in zip(own, rivals, strict=True)]


@dataclass(frozen=True)
class Likeness:
    """What one attack reached, record by record. dB is PSNR; of a table its columns are in deviations."""

    reached: tuple[float, ...]
    """dB of the nearest reconstruction."""
    blank: tuple[float, ...]
    """dB without the update: the best of the mean of other records and as many other records as were reconstructed."""
    unrelated: tuple[float, ...]
    """dB of the reconstructions from an unrelated gradient."""
    places: tuple[int, ...]
    """In a line-up with rivals; 1 is first."""
    rivals: tuple[int, ...]
    """Of each line-up: records of the same site and label that are not in the update."""
    similarity: tuple[float, ...] = ()
    """SSIM of the nearest reconstruction; images only."""
    similarity_blank: tuple[float, ...] = ()
    """SSIM of the mean image."""

    @property
    def recognised(self) -> tuple[bool, ...]:
        """Nearer than without the update by `DECIBEL_MIN`, and first in its line-up."""
        floor = (max(a, b) for a, b in zip(self.blank, self.unrelated, strict=True))
        return tuple(
            reached >= level + DECIBEL_MIN and place == 1
            for reached, level, place in zip(self.reached, floor, self.places, strict=True)
        )

    @property
    def first(self) -> int:
        """Records that are first in their line-ups."""
        return sum(place == 1 for place in self.places)

    @property
    def chance(self) -> float:
        """The share of records that are first for who knows nothing of the update."""
        return mean(tuple(1 / (rivals + 1) for rivals in self.rivals))

    @property
    def ahead(self) -> float:
        """The share of rivals that a true record leaves behind: 0.5 is chance; nan without any rival."""
        shares = [1 - (place - 1) / rivals for place, rivals in zip(self.places, self.rivals, strict=True) if rivals]
        return mean(tuple(shares))

    def joined(self, other: Likeness) -> Likeness:
        """Of both attacks' records together."""
        return Likeness(
            self.reached + other.reached,
            self.blank + other.blank,
            self.unrelated + other.unrelated,
            self.places + other.places,
            self.rivals + other.rivals,
            self.similarity + other.similarity,
            self.similarity_blank + other.similarity_blank,
        )


def likeness(
    found: Tensor,
    unrelated: Tensor,
    true: Tensor,
    others: Tensor,
    rivals: Sequence[Tensor],
    middle: Tensor,
    *,
    span: float,
    chance: torch.Generator,
) -> Likeness:
    """How near an attack came.

    Args:
        found: (n, ...) reconstructions; unrelated: those from another gradient.
        true: (m, ...) records of the update.
        others: (k, ...) records that are not in it: what is known of such records.
        rivals: for each of the m, the numbers of those that it stands in a line-up with.
        middle: (...) what the attacker takes for the mean of such records.
    """
    near, place = psnr(found, true, span).max(0)
    mean_record = others.mean(0, keepdim=True)
    drawn = others[torch.randperm(len(others), generator=chance)[: len(found)]]
    blank = torch.cat([mean_record, drawn])
    similarity: tuple[float, ...] = ()
    without: tuple[float, ...] = ()
    if is_image(true):
        similarity = tuple(ssim(found[place], true, span).tolist())
        without = tuple(ssim(mean_record.expand_as(true), true, span).tolist())
    return Likeness(
        tuple(near.tolist()),
        tuple(psnr(blank, true, span).max(0).values.tolist()),
        tuple(psnr(unrelated, true, span).max(0).values.tolist()),
        tuple(places(found, true, others, rivals, middle)),
        tuple(len(one) for one in rivals),
        similarity,
        without,
    )


def is_image(x: Tensor) -> bool:
    """(rows, channels, height, width), large enough for a picture."""
    return x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= SSIM_WINDOW


def mean(values: tuple[float, ...]) -> float:
    """Of some numbers; nan of none."""
    return sum(values) / len(values) if values else math.nan
