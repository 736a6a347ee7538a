"""The patients that one specialty admitted: read, checked, first stays only; and the scaling that all agree on."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

SPECIALTIES: Mapping[str, str] = {
    "not_recorded": "NotRecorded", "internal_medicine": "InternalMedicine", "other": "OtherSpecialty",
    "family": "Family/GeneralPractice", "emergency": "Emergency/Trauma", "cardiology": "Cardiology",
    "surgery": "Surgery-General",
}  # fmt: skip
"""The authors removed the hospitals' numbers; the admitting specialty stands in. With their names in the file."""
NUMBERS = (
    "time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications", "number_outpatient",
    "number_emergency", "number_inpatient", "number_diagnoses",
)  # fmt: skip
DOSES = ("No", "Steady", "Up", "Down")
LEVELS: Mapping[str, tuple[str, ...]] = {
    "race": ("Caucasian", "AfricanAmerican", "Hispanic", "Asian", "Other", "?"),
    "gender": ("Female", "Male"),
    "age": tuple(f"[{decade}-{decade + 10})" for decade in range(0, 100, 10)),
    "admission_type_id": tuple(map(str, range(1, 9))),
    "discharge_disposition_id": tuple(map(str, range(1, 29))),
    "admission_source_id": tuple(map(str, range(1, 26))),
    "max_glu_serum": ("None", "Norm", ">200", ">300"),
    "A1Cresult": ("None", "Norm", ">7", ">8"),
    "metformin": DOSES,
    "insulin": DOSES,
    "glipizide": DOSES,
    "glyburide": DOSES,
    "change": ("No", "Ch"),
}
FEATURES = (*NUMBERS, *(f"{column}={level}" for column, levels in LEVELS.items() for level in levels))
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "dataset_diabetes.zip": "3a17a3b55b6dd4a1926703185c0ad8e2ed30bc8e2f9b927cdd1000b733d1de8e",
    "split.csv.gz": "edb12945b6183b26cd8dcd681dd764dd3e9b70067cdbf56dbe8b6612fee2738a",
}


@dataclass(frozen=True)
class Rows:
    """Stays: `x` is (rows, 113) float64, columns as in `FEATURES`; `y` is (rows,) float32, 1 if back within 30 days."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Site:
    """One specialty's patients, in the fixed split."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each feature over all sites' training rows, (113,) float64."""

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
        """(rows, 113) float32, as the model takes it."""
        return ((x - self.mean) / self.deviation).float()


def sums_of(x: Tensor) -> dict[str, Tensor]:
    """Count, sum and sum of squares of each feature: added over sites they give the shared scaling."""
    return {
        "count": torch.tensor([len(x)], dtype=torch.float64),
        "sum": x.sum(0),
        "sum_of_squares": (x * x).sum(0),
    }


def load(name: str, folder: Path = FOLDER) -> Site:
    """The patients of one specialty.

    Raises:
        ValueError: no such specialty; a file is missing or not the published one (with the sha256 it has to have).
    """
    if name not in SPECIALTIES:
        raise ValueError(f"no specialty is called {name!r}; there are {', '.join(SPECIALTIES)}")
    inputs, split = _tables(folder)
    here = split[split.site == SPECIALTIES[name]]

    def rows(part: str) -> Rows:
        mine = here[here.split == part]
        y = mine.label.to_numpy(np.float32, copy=True)
        return Rows(torch.from_numpy(inputs[mine.row.to_numpy()]).double(), torch.from_numpy(y))

    return Site(name, rows("train"), rows("test"))


@cache
def _tables(folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """(stays, 113) int16 of everybody, and who belongs where."""
    split = pd.read_csv(checked(folder / "split.csv.gz"))
    with zipfile.ZipFile(checked(folder / "dataset_diabetes.zip")) as archive:
        file = archive.open("dataset_diabetes/diabetic_data.csv")
        kinds = dict.fromkeys(LEVELS, str)
        table = pd.read_csv(file, usecols=[*NUMBERS, *LEVELS], dtype=kinds, keep_default_na=False)
    columns = [table[column].to_numpy(np.int16) for column in NUMBERS]
    columns += [table[column].eq(level).to_numpy(np.int16) for column, levels in LEVELS.items() for level in levels]
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
