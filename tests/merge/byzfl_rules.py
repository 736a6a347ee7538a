"""What ByzFL makes of vectors: run by `test_byzfl.py` in a process that has ByzFL on its path, and nothing of ours.

`python byzfl_rules.py CASES.npz RESULTS.npz`: CASES holds (members, parameters) float64 arrays `0`, `1`, … and, as
`settings`, a row (faults, length, iterations) for each; RESULTS gets an array `RULE.0`, … for every rule and case.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import numpy as np

# ByzFL names torchvision's data sets when it is imported; there is no build of it for the CPU alone.
for _name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
    sys.modules[_name] = MagicMock()

import byzfl  # noqa: E402

Vectors = np.ndarray[Any, np.dtype[np.float64]]


def clipped_to_the_median(rows: Vectors) -> Vectors:
    lengths = np.sort(np.linalg.norm(rows, axis=1))
    found: Vectors = byzfl.Clipping(c=float(lengths[(len(rows) - 1) // 2]))(rows)
    return found


RULES: dict[str, Callable[[Vectors, int, float, int], Any]] = {
    "mean": lambda x, f, length, steps: byzfl.Average()(x),
    "norm_bounded_mean": lambda x, f, length, steps: byzfl.Average()(byzfl.Clipping(c=length)(x)),
    "norm_bounded_mean of the median": lambda x, f, length, steps: byzfl.Average()(clipped_to_the_median(x)),
    "centered_clipping": lambda x, f, length, steps: byzfl.CenteredClipping(L=steps, tau=length)(x),
    "geometric_median": lambda x, f, length, steps: byzfl.GeometricMedian(nu=1e-12, T=200)(x),
    "geometric_median halfway": lambda x, f, length, steps: byzfl.GeometricMedian(nu=1e-12, T=60)(x),
    "coordinate_median": lambda x, f, length, steps: byzfl.Median()(x),
    "trimmed_mean": lambda x, f, length, steps: byzfl.TrMean(f=f)(x),
    "multi_krum": lambda x, f, length, steps: byzfl.MultiKrum(f=f)(x),
    "nearest_neighbor_mixing": lambda x, f, length, steps: byzfl.TrMean(f=f)(byzfl.NNM(f=f)(x)),
    "neighbors": lambda x, f, length, steps: byzfl.NNM(f=f)(x),
}

if __name__ == "__main__":
    cases = np.load(sys.argv[1])
    found = {}
    for case, (faults, length, iterations) in enumerate(cases["settings"]):
        for name, rule in RULES.items():
            found[f"{name}.{case}"] = rule(cases[str(case)].copy(), int(faults), float(length), int(iterations))
    np.savez(sys.argv[2], **found)
