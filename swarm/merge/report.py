"""What a merge saw of each update, and which of them a person should look at. It decides nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Of so many chunks the first is read again up to here to compare directions; small models have no other.
COMPARED_EVERY = 16
COMPARED_BYTES = 1 << 18
# Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993: beyond it a value stands out.
SCORE_MAX = 3.5
# Lengths that differ by less than a tenth are alike, however alike the others are.
SPREAD_MIN = 0.1
COMPARED_MIN = 3


@dataclass(frozen=True)
class UpdateReport:
    """What a merge saw of one update. For people: floats may differ in their last digits elsewhere."""

    norm: float
    """Euclidean, of the float coordinates, after clipping to the policy's range."""
    clipped: int
    """Coordinates that were beyond the policy's range."""
    share: float
    """Its part of all weights, as the policy counts them."""
    kept: float = 1.0
    """How much of it counted besides its weight: below 1 where it was longer than the bound, 0 where left out."""
    cosine: float = 0.0
    """Of the angle to the merged update, on the float coordinates in the first quarter of every sixteenth chunk."""


def standing_out(reports: Sequence[UpdateReport]) -> dict[int, str]:
    """The updates that stand out of a round, with what is unusual in words.

    A length stands out by its robust z-score: its logarithm's distance from the median, in median absolute deviations.
    A direction does if it is against the merged update while most are along it. Two updates cannot be compared.
    """
    if len(reports) < COMPARED_MIN:
        return {}
    found: dict[int, list[str]] = {}
    lengths = [math.log(max(report.norm, 1e-300)) for report in reports]
    middle = statistics.median(lengths)
    spread = 1.4826 * statistics.median(abs(length - middle) for length in lengths)
    for index, length in enumerate(lengths):
        if abs(length - middle) > SCORE_MAX * max(spread, SPREAD_MIN):
            found.setdefault(index, []).append(
                f"{math.exp(min(length - middle, 700.0)):.3g} times as long as the median"
            )
    if statistics.median(report.cosine for report in reports) > 0:
        for index, report in enumerate(reports):
            if report.cosine < -0.1:
                found.setdefault(index, []).append(f"points against the others (cosine {report.cosine:.2f})")
    return {index: "; ".join(words) for index, words in found.items()}
