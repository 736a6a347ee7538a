"""How `data/` was made from curatedTBData's matrices: `python pack.py SOURCE`, with the sources' names in README.md.

The 4,000 genes with the highest mean log expression over all training samples are kept (labels are not looked at), and
each sample's total count over all 25,369 genes, so that counts per million stay what they were.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from data import COHORTS, FOLDER

GENES = 4000


def main(source: Path) -> None:
    """Write one file for each cohort and the list of genes."""
    with open(source / "samples.csv", newline="") as file:
        rows = {row["sample_id"]: row for row in csv.DictReader(file)}
    genes = (source / "genes.txt").read_text().split()
    counts, names = {}, {}
    for cohort in COHORTS:
        with np.load(source / "sites" / f"{cohort}.npz", allow_pickle=False) as found:
            counts[cohort], names[cohort] = found["counts"], [str(name) for name in found["sample_id"]]
    trained = np.concatenate(
        [counts[cohort][[rows[name]["split"] == "train" for name in names[cohort]]] for cohort in COHORTS]
    )
    level = np.log2(1e6 * trained / trained.sum(1, keepdims=True) + 1).mean(0)
    kept = np.sort(np.argsort(-level, kind="stable")[:GENES])
    for cohort in COHORTS:
        np.savez_compressed(
            FOLDER / f"{cohort}.npz",
            counts=counts[cohort][:, kept].astype(np.uint32),
            total=counts[cohort].sum(1, dtype=np.uint64),
            label=np.array([rows[name]["label"] == "1" for name in names[cohort]]),
            train=np.array([rows[name]["split"] == "train" for name in names[cohort]]),
            fold=np.array([int(rows[name]["fold"]) for name in names[cohort]], np.int8),
            sample_id=np.array(names[cohort]),
        )
    (FOLDER / "genes.txt").write_text("".join(f"{genes[place]}\n" for place in kept))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
