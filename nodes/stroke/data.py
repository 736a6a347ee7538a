"""One country's patients of the International Stroke Trial: read, checked, what was known when they were randomised.

Every column that was written later would tell the outcome: only `NUMBERS` and `LEVELS` are inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

COUNTRIES: Mapping[str, str] = {
    "uk": "UK", "italy": "ITAL", "switzerland": "SWIT", "poland": "POLA", "netherlands": "NETH", "sweden": "SWED",
    "australia": "AUSL", "norway": "NORW", "argentina": "ARGE", "spain": "SPAI", "others": "OTHER",
}  # fmt: skip
"""The ten largest and, as one, the other 26, with their names in the files."""
NUMBERS = ("RDELAY", "AGE", "RSBP")
LEVELS: Mapping[str, tuple[str, ...]] = {
    "RCONSC": ("F", "D", "U"),
    "SEX": ("F", "M"),
    "RSLEEP": ("N", "Y"),
    "RATRIAL": ("", "N", "Y"),
    "RCT": ("N", "Y"),
    "RVISINF": ("N", "Y"),
    "RHEP24": ("", "N", "Y"),
    "RASP3": ("", "N", "Y"),
    **{f"RDEF{number}": ("N", "Y", "C") for number in range(1, 9)},
    "STYPE": ("LACS", "OTH", "PACS", "POCS", "TACS"),
    "RXASP": ("N", "Y"),
    "RXHEP": ("N", "L", "M", "H"),
}
"""Empty is unknown, C is that it could not be judged; both are levels like others."""
FEATURES = (*NUMBERS, *(f"{column}={level}" for column, levels in LEVELS.items() for level in levels))
OUTCOMES = ("label_dead_or_dependent_6m", "label_dead_14d")
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "ist.csv.gz": "3514ae9fb3b578d98e524cc7e0fd0ef9a9c0dfe94b934191c1e48139241c4e9c",
    "split.csv.gz": "adac0b63d29b4247e86ae8f46e8d7367c263d637d099dabd40ce7a3c5400ac15",
}


@dataclass(frozen=True)
class Rows:
    """Patients: `x` is (rows, 58) float64 in the order of `FEATURES`, `y` is (rows,) float32, 1 with the outcome."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Site:
    """One country's patients, in the fixed split."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each feature over all sites' training rows, (58,) float64."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, sums: Mapping[str, Tensor]) -> Scaling:
        """The scaling that the added sums of `sums_of` stand for; a feature without spread keeps its unit."""
        count, total, squares = (sums[name].double() for name in ("count", "sum", "sum_of_squares"))
        mean = total / count
        variance = (squares - total * mean) / (count - 1)
        return cls(mean, torch.where(variance > 1e-9 * squares / count, variance, 1.0).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, 58) float32, as the model takes it."""
        return ((x - self.mean) / self.deviation).float()


def sums_of(x: Tensor) -> dict[str, Tensor]:
    """Count, sum and sum of squares of each feature: added over sites they give the shared scaling."""
    return {
        "count": torch.tensor([len(x)], dtype=torch.float64),
        "sum": x.sum(0),
        "sum_of_squares": (x * x).sum(0),
    }


def load(name: str, folder: Path = FOLDER, *, outcome: str = OUTCOMES[0]) -> Site:
    """The patients of one country.

    Args:
        outcome: dead or dependent after six months, or dead within 14 days.
    Raises:
        ValueError: no such country or outcome; a file is missing or not the published one (with its sha256).
    """
    if name not in COUNTRIES:
        raise ValueError(f"no country is called {name!r}; there are {', '.join(COUNTRIES)}")
    if outcome not in OUTCOMES:
        raise ValueError(f"no outcome is called {outcome!r}; there are {', '.join(OUTCOMES)}")
    inputs, split = _tables(folder)
    here = split[split.site == COUNTRIES[name]]

    def rows(part: str) -> Rows:
        mine = here[here.split == part]
        y = mine[outcome].to_numpy(np.float32, copy=True)
        return Rows(torch.from_numpy(inputs[mine.row.to_numpy()]), torch.from_numpy(y))

    return Site(name, rows("train"), rows("test"))


@cache
def _tables(folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """(patients, 58) of everybody, and who belongs where."""
    split = pd.read_csv(checked(folder / "split.csv.gz"))
    table = pd.read_csv(checked(folder / "ist.csv.gz"), usecols=[*NUMBERS, *LEVELS], keep_default_na=False)
    columns = [table[column].to_numpy(np.float64) for column in NUMBERS]
    columns += [table[column].eq(level).to_numpy(np.float64) for column, levels in LEVELS.items() for level in levels]
    return np.stack(columns, axis=1), split


def checked(path: Path) -> Path:
    """The path, once its bytes are the published ones."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise ValueError(f"{path} is missing (sha256 {expected}); README.md says where it comes from")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} was altered: its sha256 is {found}, the published file has {expected}")
    return path
