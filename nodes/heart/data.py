"""One hospital's patients: read, checked and prepared as FLamby's Fed-Heart-Disease says.

Each site reads its own file and nobody else's. What is done to the columns is in README.md, with the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
FEATURES = (
    "age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak",
    "cp=2", "cp=3", "cp=4", "restecg=1", "restecg=2",
)  # fmt: skip
FOLDER = Path(__file__).resolve().parent / "data"

# The files of the UCI repository, byte for byte, and FLamby's fixed split as row numbers of those files.
SHA256 = {
    "flamby_split.csv": "a2d2090606cc200c724617c8cfa360270f63c0855cc3e74fa46b5d3803a2da60",
    "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}


@dataclass(frozen=True)
class Rows:
    """Patients: `x` is (rows, 13) float64 in the files' units, `y` is (rows,) float32, 1 where diseased."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Hospital:
    """One site's patients, in FLamby's split."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each feature, (13,) float64: what brings all sites' columns to one scale."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, sums: Mapping[str, Tensor]) -> Scaling:
        """The scaling that the sums of `sums_of` stand for; a column without spread keeps its unit."""
        count, total, squares = (sums[name].double() for name in ("count", "sum", "sum_of_squares"))
        mean = total / count
        variance = (squares - total * mean) / (count - 1)
        # A sum of squares leaves dust of about 1e-16 of its size where a column is constant; that is no spread.
        spread = variance > 1e-9 * (squares / count)
        return cls(mean, torch.where(spread, variance, 1.0).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, 13) float32, as the model takes it."""
        return ((x - self.mean) / self.deviation).float()


def sums_of(x: Tensor) -> dict[str, Tensor]:
    """Count, sum and sum of squares of each column, in float64: added over sites they give the shared scaling."""
    return {
        "count": torch.tensor([len(x)], dtype=torch.float64),
        "sum": x.sum(0),
        "sum_of_squares": (x * x).sum(0),
    }


def load(name: str, folder: Path = FOLDER) -> Hospital:
    """The patients of one hospital.

    Raises:
        ValueError: no such hospital; a file is missing or not the published one (with the sha256 it has to have).
    """
    if name not in HOSPITALS:
        raise ValueError(f"no hospital is called {name!r}; there are {', '.join(HOSPITALS)}")
    table = pd.read_csv(checked(folder / f"processed.{name}.data"), header=None, na_values="?")
    split = pd.read_csv(checked(folder / "flamby_split.csv"))
    split = split[split.site == name].set_index("row").split
    columns = dict(zip(("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"),
                       (0, 1, 3, 4, 5, 7, 8, 9), strict=True))  # fmt: skip
    frame = pd.DataFrame({feature: table[column] for feature, column in columns.items()})
    for level in (2, 3, 4):
        frame[f"cp={level}"] = (table[2] == level).astype(float)
    for level in (1, 2):
        frame[f"restecg={level}"] = (table[6] == level).astype(float)
    sick = (table[13] > 0).astype(float)

    def rows(part: str) -> Rows:
        index = split.index[split == part]
        x = torch.from_numpy(frame.loc[index, list(FEATURES)].to_numpy(np.float64, copy=True))
        assert not x.isnan().any(), "the split leaves out every patient with an unknown value"
        return Rows(x, torch.from_numpy(sick.loc[index].to_numpy(np.float32, copy=True)))

    return Hospital(name, rows("train"), rows("test"))


def checked(path: Path) -> Path:
    """The path, once its bytes are the published ones."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise ValueError(f"{path} is missing (sha256 {expected}); README.md says where it comes from")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} was altered: its sha256 is {found}, the published file has {expected}")
    return path
