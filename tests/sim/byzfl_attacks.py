"""What ByzFL's attacks send: run by `test_attack_attacks.py` in a process that has ByzFL on its path, none of ours.

`python byzfl_attacks.py CASES.npz RESULTS.npz`: CASES holds the honest updates `0`, `1`, … as (members, parameters)
float64 and, as `settings`, a row (z of a little is enough, member that is copied) for each.
"""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import numpy as np

# ByzFL names torchvision's data sets when it is imported; there is no build of it for the CPU alone.
for _name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
    sys.modules[_name] = MagicMock()

import byzfl  # noqa: E402

if __name__ == "__main__":
    cases = np.load(sys.argv[1])
    found = {}
    for case, (z, copied) in enumerate(cases["settings"]):
        honest = cases[str(case)]
        found[f"sign_flip.{case}"] = byzfl.SignFlipping()(honest)
        found[f"flip_10.{case}"] = byzfl.InnerProductManipulation(tau=10.0)(honest)
        found[f"inner_product.{case}"] = byzfl.InnerProductManipulation(tau=0.5)(honest)
        found[f"fall_of_empires.{case}"] = byzfl.InnerProductManipulation(tau=0.1)(honest)
        found[f"little.{case}"] = byzfl.ALittleIsEnough(tau=-float(z))(honest)
        found[f"mimic.{case}"] = byzfl.Mimic(epsilon=int(copied))(honest)
    np.savez(sys.argv[2], **found)
