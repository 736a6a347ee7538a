"""One clinic's ten-second windows of acceleration: read, checked, scaled as all agree.

Six users are a clinic.

The windows are not in this repository, because nobody licensed them to be: README.md says where they are had.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

CLINICS = ("clinic1", "clinic2", "clinic3", "clinic4", "clinic5", "clinic6")
ACTIVITIES = ("Walking", "Jogging", "Upstairs", "Downstairs", "Sitting", "Standing")
FEATURES = 43
FOLDER = Path(__file__).resolve().parent / "data"

WINDOWS = "WISDM_ar_v1.1_transformed.arff"
SHA256 = {
    WINDOWS: "8cb3fbbad6398ac4b817cc7b98f387efa89ac24b26d1270a5e7a1049a8f9c31a",
    "test_rows.txt": "55965d29659ea5d220b09a72070258e6b2c4bf6a33993ae35c3b5709e235e809",
}


@dataclass(frozen=True)
class Rows:
    """Windows: `x` is (rows, 43) float64 with NaN where unknown, `y` is (rows,) int64, a place in `ACTIVITIES`."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Clinic:
    """One site's windows; of each user 30 % are for the test."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each feature over all sites' known values, (43,) float64."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, sums: Mapping[str, Tensor]) -> Scaling:
        """The scaling that the added sums of `sums_of` stand for; a feature without spread keeps its unit."""
        known, total, squares = (sums[name].double() for name in ("known", "sum", "sum_of_squares"))
        mean = total / known
        variance = (squares - total * mean) / (known - 1)
        return cls(mean, torch.where(variance > 1e-9 * squares / known, variance, 1.0).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, 43) float32, as the model takes it; what is unknown is the mean."""
        return ((x - self.mean) / self.deviation).nan_to_num(0.0).float()


def sums_of(x: Tensor) -> dict[str, Tensor]:
    """How many values are known, their sum and sum of squares, by feature: added over sites they give the scaling."""
    return {"known": (~x.isnan()).double().sum(0), "sum": x.nansum(0), "sum_of_squares": (x * x).nansum(0)}


def load(name: str, folder: Path | None = None) -> Clinic:
    """The windows of one clinic: those of the users whose number, divided by six, leaves the clinic's.

    Args:
        folder: where the authors' file is, as it is or with `.gz`; by default $WISDM_DATA, or `data/`.
    Raises:
        ValueError: no such clinic; a file is missing or not the published one (with the sha256 it has to have).
    """
    if name not in CLINICS:
        raise ValueError(f"no clinic is called {name!r}; there are {', '.join(CLINICS)}")
    table = _table(folder or Path(os.environ.get("WISDM_DATA") or FOLDER))
    here = table[table.user % len(CLINICS) == (CLINICS.index(name) + 1) % len(CLINICS)]
    return Clinic(name, _rows(here[~here.tested]), _rows(here[here.tested]))


def _rows(table: pd.DataFrame) -> Rows:
    x = table.drop(columns=["user", "activity", "tested"]).to_numpy(np.float64, copy=True)
    return Rows(torch.from_numpy(x), torch.tensor([ACTIVITIES.index(one) for one in table.activity]))


@cache
def _table(folder: Path) -> pd.DataFrame:
    """All windows: 43 features, of which the times between peaks are in seconds, user, activity, whether tested."""
    text = checked(folder / WINDOWS).decode()
    head, _, body = text.partition("@data\n")
    names = [line.split('"')[1] for line in head.splitlines() if line.startswith("@attribute") and '"' in line]
    table = pd.read_csv(io.StringIO(body), header=None, names=[*names, "activity"], na_values="?")
    table = table.drop(columns="UNIQUE_ID")
    peaks = ["XPEAK", "YPEAK", "ZPEAK"]
    table[peaks] /= 1000
    table["tested"] = table.index.isin([int(row) for row in checked(FOLDER / "test_rows.txt").split()])
    return table


def checked(path: Path) -> bytes:
    """The file's bytes, unpacked, once they are the published ones."""
    expected, packed = SHA256[path.name], path.with_name(f"{path.name}.gz")
    if not path.is_file() and not packed.is_file():
        raise ValueError(
            f"{path} is missing (sha256 {expected}); README.md says where it is had, and $WISDM_DATA where it lies"
        )
    path, found = (path, path.read_bytes()) if path.is_file() else (packed, gzip.decompress(packed.read_bytes()))
    digest = hashlib.sha256(found).hexdigest()
    if digest != expected:
        raise ValueError(f"{path} was altered: its sha256 is {digest}, the published file has {expected}")
    return found
