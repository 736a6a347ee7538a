"""One cohort's blood samples: read, checked, as log2 of counts per million; and the scaling that all agree on.

Each site reads its own file and nobody else's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

COHORTS = ("india_south", "uganda", "uk_london", "south_africa", "brazil_pbmc", "brazil_blood")
GENES = 4000
FOLDER = Path(__file__).resolve().parent / "data"

SHA256 = {
    "brazil_blood.npz": "63ba26ca2d056d2553738de14119b1fe56ed06c3e089f3690c412c083474d1f3",
    "brazil_pbmc.npz": "5684c487e08f7fa8efabf144e2fa9657633c953b323b96e54ede3a9961003edf",
    "genes.txt": "2e599cce3c5bdedf7825454dbe75385e71a1d0b7bd0825ba46376987de35ae66",
    "india_south.npz": "4e2a1ee5b038012117ea356e75ead51866f3d54089bc19b597d589854b6072ad",
    "south_africa.npz": "d4e539c279de990d57457b36ac893c5468448bf313e393c5e6c232e345274f53",
    "uganda.npz": "fd41f4b5056afcd582e62d1c463511690cd400b50b0dd89043dd118cd7d95025",
    "uk_london.npz": "48c30f7095e150101f2c2d6e205a7063b437d9a982d47d5c85d2fd66f7fc6f85",
}


@dataclass(frozen=True)
class Rows:
    """Samples: `x` is (samples, 4000) float64, log2(counts per million + 1); `y` is 1 with active tuberculosis."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Cohort:
    """One site's samples, in the fixed split."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Scaling:
    """Mean and deviation of each gene over all sites' training samples, (4000,) float64."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, sums: Mapping[str, Tensor]) -> Scaling:
        """The scaling that the added sums of `sums_of` stand for; a gene without spread keeps its unit."""
        count, total, squares = (sums[name].double() for name in ("count", "sum", "sum_of_squares"))
        mean = total / count
        variance = (squares - total * mean) / (count - 1)
        return cls(mean, torch.where(variance > 1e-9, variance, 1.0).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """(samples, 4000) float32, as the model takes it."""
        return ((x - self.mean) / self.deviation).float()


def sums_of(x: Tensor) -> dict[str, Tensor]:
    """Count, sum and sum of squares of each gene: added over sites they give the shared scaling."""
    return {
        "count": torch.tensor([len(x)], dtype=torch.float64),
        "sum": x.sum(0),
        "sum_of_squares": (x * x).sum(0),
    }


def load(name: str, folder: Path = FOLDER, *, fold: int | None = None) -> Cohort:
    """The samples of one cohort.

    Args:
        fold: tests on this one of the five folds (0 to 4) instead of the fixed 35 %.
    Raises:
        ValueError: no such cohort or fold; the file is missing or not the published one (with its sha256).
    """
    if name not in COHORTS:
        raise ValueError(f"no cohort is called {name!r}; there are {', '.join(COHORTS)}")
    if fold not in (None, 0, 1, 2, 3, 4):
        raise ValueError(f"there is no fold {fold!r}; there are 0 to 4")
    with np.load(checked(folder / f"{name}.npz"), allow_pickle=False) as file:
        counts = torch.from_numpy(file["counts"].astype(np.float64))
        total = torch.from_numpy(file["total"].astype(np.float64))
        y = torch.from_numpy(file["label"].astype(np.float32))
        trains = torch.from_numpy(file["train"] if fold is None else file["fold"] != fold)
    x = torch.log2(1e6 * counts / total[:, None] + 1)
    return Cohort(name, Rows(x[trains], y[trains]), Rows(x[~trains], y[~trains]))


def checked(path: Path) -> Path:
    """The path, once its bytes are the published ones."""
    expected = SHA256[path.name]
    if not path.is_file():
        raise ValueError(f"{path} is missing (sha256 {expected}); README.md says where it comes from")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} was altered: its sha256 is {found}, the published file has {expected}")
    return path
