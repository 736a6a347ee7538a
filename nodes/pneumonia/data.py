"""One clinic's X-rays: read, checked and brought to one scale.

The images come from one hospital; `site_assignment.csv.gz` places them at four clinics with uneven shares of
pneumonia. All clinics are judged on MedMNIST's own test set, which nobody trains on.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLINICS = ("clinic1", "clinic2", "clinic3", "clinic4")
PLACEMENTS = ("iid4", "prevalence_skew4", "dirichlet05_4")
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "pneumoniamnist.npz": "e1792d3f03751cb101e99f19a63b3c1941436c988665f47853417b05be250cd8",
    "site_assignment.csv.gz": "d8ecd6ed34cd3a7839240c12f796f7bcef31576451ff801fc706262914cabbac",
}

# What brings grey values of 0 to 1 to about mean 0 and deviation 1: the mean and deviation of all
# training images, as constants, so that no clinic has to tell its own.
MEAN, DEVIATION = 0.5719, 0.1684


@dataclass(frozen=True)
class Images:
    """X-rays: `x` is (images, 1, 28, 28) float32 on the model's scale, `y` is (images,) float32, 1 with pneumonia."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def load(clinic: str, placement: str = "dirichlet05_4", folder: Path = FOLDER) -> Images:
    """The training images of one clinic.

    Raises:
        ValueError: no such clinic or placement; a file is missing or not the published one (with its sha256).
    """
    if clinic not in CLINICS:
        raise ValueError(f"no clinic is called {clinic!r}; there are {', '.join(CLINICS)}")
    if placement not in PLACEMENTS:
        raise ValueError(f"no placement is called {placement!r}; there are {', '.join(PLACEMENTS)}")
    everyone = part("train", folder)
    with gzip.open(checked(folder / "site_assignment.csv.gz"), "rt", newline="") as file:
        index = [
            int(row["train_index"])
            for row in csv.DictReader(file)
            if int(row[placement]) == CLINICS.index(clinic) + 1
        ]  # fmt: skip
    return Images(everyone.x[index], everyone.y[index])


def counts_of(images: Images) -> dict[str, Tensor]:
    """How many are healthy and how many ill: added over clinics they give the shared balance."""
    ill = float(images.y.sum())
    return {
        "healthy": torch.tensor([len(images) - ill], dtype=torch.float64),
        "ill": torch.tensor([ill], dtype=torch.float64),
    }


def balance_of(counts: Mapping[str, Tensor]) -> Tensor:
    """How much an ill child counts in the loss, so that both classes weigh the same over all clinics together."""
    return (counts["healthy"] / counts["ill"]).float()


def part(name: str, folder: Path = FOLDER) -> Images:
    """MedMNIST's `train` (4,708 images), `val` (524) or `test` (624) as a whole."""
    with np.load(checked(folder / "pneumoniamnist.npz"), allow_pickle=False) as file:
        grey = torch.from_numpy(file[f"{name}_images"]).float().div(255).unsqueeze(1)
        return Images((grey - MEAN) / DEVIATION, torch.from_numpy(file[f"{name}_labels"]).float().squeeze(1))


def checked(path: Path) -> Path:
    """The path, once its bytes are the published ones."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise ValueError(f"{path} is missing (sha256 {expected}); README.md says where it comes from")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} was altered: its sha256 is {found}, the published file has {expected}")
    return path
