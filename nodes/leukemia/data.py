"""One node's leukaemia samples: read, checked, as log2 of intensities.

The samples are not in this repository, because their licence is another one: README.md says where they are had.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

NODES = ("node1", "node2", "node3")
PROBES = 7129
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "expression.csv": "8ae3529c62d6fb7bad3d51daad26eb46fe133a38b35ab9149e02d577e52895e9",
    "samples.csv": "95200c14c62cb932e99c4722a5ea2bcee048a5ca4232bfaa97681bf295220642",
}


@dataclass(frozen=True)
class Rows:
    """Samples: `x` is (rows, 7129) float32, log2 of intensities less 10; `y` is 1 for AML, 0 for ALL."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Site:
    """One node's samples, in the fixed split."""

    name: str
    train: Rows
    test: Rows


def load(name: str, folder: Path | None = None) -> Site:
    """The samples of one node, in the split of Golub et al.

    Args:
        folder: where both files are; by default $LEUKEMIA_DATA, or `data/`.
    Raises:
        ValueError: no such node; a file is missing or not the published one (with the sha256 it has to have).
    """
    if name not in NODES:
        raise ValueError(f"no node is called {name!r}; there are {', '.join(NODES)}")
    levels, samples = _tables(folder or Path(os.environ.get("LEUKEMIA_DATA") or FOLDER))
    here = samples.demo_node.to_numpy() == NODES.index(name) + 1

    def rows(part: str) -> Rows:
        mine = here & (samples.golub_split.to_numpy() == part)
        y = samples.label.to_numpy(np.float32, copy=True)[mine]
        return Rows(torch.from_numpy(levels[mine]), torch.from_numpy(y))

    return Site(name, rows("train"), rows("test"))


@cache
def _tables(folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """(samples, 7129) float32 of everybody, and what is known of each sample, in the same order.

    Intensities count from 100 to 16,000, as is usual for these arrays. The 10 is a constant near the middle of their
    logs, so that no node has to tell its own.
    """
    samples = pd.read_csv(io.BytesIO(checked(folder / "samples.csv")))
    raw = pd.read_csv(io.BytesIO(checked(folder / "expression.csv")), index_col="probe")
    found = raw[samples.Samples.astype(str)].to_numpy(np.float64).T
    return np.log2(found.clip(100, 16_000)).astype(np.float32) - 10, samples


def checked(path: Path) -> bytes:
    """The file's bytes, unpacked, once they are the published ones."""
    expected, packed = SHA256[path.name], path.with_name(f"{path.name}.gz")
    if not path.is_file() and not packed.is_file():
        raise ValueError(
            f"{path} is missing (sha256 {expected}); README.md says where it is had, and $LEUKEMIA_DATA where it lies"
        )
    path, found = (path, path.read_bytes()) if path.is_file() else (packed, gzip.decompress(packed.read_bytes()))
    digest = hashlib.sha256(found).hexdigest()
    if digest != expected:
        raise ValueError(f"{path} was altered: its sha256 is {digest}, the published file has {expected}")
    return found
