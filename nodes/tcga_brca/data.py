"""One region's patients of TCGA-BRCA: read, checked, in FLamby's split and with FLamby's 39 covariates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

REGIONS = ("northeast", "south", "west", "midwest", "europe", "canada")
"""FLamby's sites 0 to 5."""
COVARIATES = 39
AGE = 0
"""The column of x that is the age in years; all others are 0 or 1."""
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "brca.csv": "07cb53423f7d579d33cfdbf2cba57b2aee75318b85866c68ce39a75b1f1ba020",
    "train_test_split.csv": "1249c6543a4060ff0fdaf8510fc37017755836db6c9fc5e6af96057c36510990",
}


@dataclass(frozen=True)
class Rows:
    """Patients: `x` is (rows, 39) float32, age in years; `y` is (rows, 2) float32, days and 1 where death was seen."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Region:
    """One site's patients, in FLamby's split."""

    name: str
    train: Rows
    test: Rows


def load(name: str, folder: Path = FOLDER) -> Region:
    """The patients of one region.

    Raises:
        ValueError: no such region; a file is missing or not the published one (with the sha256 it has to have).
    """
    if name not in REGIONS:
        raise ValueError(f"no region is called {name!r}; there are {', '.join(REGIONS)}")
    patients = pd.read_csv(checked(folder / "brca.csv"), index_col="pid")
    split = pd.read_csv(checked(folder / "train_test_split.csv"), index_col="pid").fold2

    def rows(part: str) -> Rows:
        here = patients.loc[split.index[split == f"{part}_{REGIONS.index(name)}"]]
        x = here.drop(columns=["E", "T"]).to_numpy(np.float32, copy=True)
        return Rows(torch.from_numpy(x), torch.from_numpy(here[["T", "E"]].to_numpy(np.float32, copy=True)))

    return Region(name, rows("train"), rows("test"))


def scaled(x: Tensor) -> Tensor:
    """(rows, 39) float32, age in steps of 15 years from 60: constants, so that no region has to tell its own."""
    found = x.clone()
    found[:, AGE] = (found[:, AGE] - 60) / 15
    return found


def checked(path: Path) -> Path:
    """The path, once its bytes are the published ones."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise ValueError(f"{path} is missing (sha256 {expected}); README.md says where it comes from")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} was altered: its sha256 is {found}, the published file has {expected}")
    return path
