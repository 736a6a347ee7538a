"""One partner's molecules: read, checked, 1,024 bits of fingerprint each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

PARTNERS = ("partner1", "partner2", "partner3", "partner4")
PLACEMENTS = ("chemical_series4", "iid4")
BITS = 1024
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "qsar_androgen_receptor.csv.gz": "10a33ea04a39e04756e08a54486bac34ad0c03551c95f47c20f24d345bbbaf70",
    "split.csv": "ee550929677726a2fb33d278b5506cfbbada6e6e13a037018145b8b872f1efee",
}


@dataclass(frozen=True)
class Rows:
    """Molecules: `x` is (rows, 1024) float32 of 0 and 1, `y` is (rows,) float32, 1 if it binds the receptor."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Site:
    """One partner's molecules, in the fixed split."""

    name: str
    train: Rows
    test: Rows


def load(name: str, placement: str = PLACEMENTS[0], folder: Path = FOLDER) -> Site:
    """The molecules of one partner.

    Raises:
        ValueError: no such partner or placement; a file is missing or not the published one (with its sha256).
    """
    if name not in PARTNERS:
        raise ValueError(f"no partner is called {name!r}; there are {', '.join(PARTNERS)}")
    if placement not in PLACEMENTS:
        raise ValueError(f"no placement is called {placement!r}; there are {', '.join(PLACEMENTS)}")
    everything, split = _tables(folder)
    here = split[split[placement] == PARTNERS.index(name) + 1]

    def rows(part: str) -> Rows:
        found = torch.from_numpy(everything[here.row[here.split == part].to_numpy()]).float()
        return Rows(found[:, :BITS], found[:, BITS])

    return Site(name, rows("train"), rows("test"))


@cache
def _tables(folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """(molecules, 1025) uint8, the last column is the label; and who belongs where."""
    split = pd.read_csv(checked(folder / "split.csv"))
    table = pd.read_csv(checked(folder / "qsar_androgen_receptor.csv.gz"), sep=";", header=None, dtype=np.uint8)
    return table.to_numpy(), split


def checked(path: Path) -> Path:
    """The path, once its bytes are the published ones."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise ValueError(f"{path} is missing (sha256 {expected}); README.md says where it comes from")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} was altered: its sha256 is {found}, the published file has {expected}")
    return path
