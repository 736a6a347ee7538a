"""Statistics that the members agree on before they train: one sum over sites, from which no row can be read back.

A site sends counts and sums: rows, missing values, a histogram and the first two moments of every column, rows of every
class. What all sites added gives the shared scaling, and a table that says which site's data look wrong before a model
learns from them. Values beyond the agreed edges are counted as such and are in no sum, so neither 999 for "unknown" nor
another unit spoils a mean.

What it tells: who shares a run sees every member's update, so every member sees each site's own counts and sums, not
only the total. A count from 1 to `cell_min` - 1 is sent as 0, and so are the sums behind it; what is withheld that way
may still follow from the other counts of the same column. Coarse edges tell less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swarm.config import load_site
from swarm.errors import ConfigError
from swarm.learn.once import sum_over_members

Floats = NDArray[np.float64]
MISSING_MANY, OUTSIDE_MANY = 0.2, 0.01
"""Shares of a site's values from which the table speaks of them."""


@dataclass(frozen=True)
class Statistics:
    """What is counted: the same at every site, or the sums mean nothing.

    Args:
        columns: the edges of each column's histogram, by name, ascending and in the order of the columns: values from
            the first to the last one are plausible.
        sites: the members' names.
        classes: the labels' names; empty where there are none.
        cell_min: smaller counts than this are not told.
    """

    columns: Mapping[str, Sequence[float]]
    sites: Sequence[str]
    classes: Sequence[str] = ()
    cell_min: int = 5

    def __post_init__(self) -> None:
        if not self.columns or not self.sites:
            raise ValueError("statistics need a column and a site")
        for name, edges in self.columns.items():
            if len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
                raise ValueError(f"the edges of {name} are {list(edges)}; two or more finite numbers, ascending")
        for what, names in (("sites", self.sites), ("classes", self.classes)):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} are {list(names)}: each has its own name")
        if self.cell_min < 1:
            raise ValueError(f"cell_min = {self.cell_min}; 1 tells every count")

    def empty(self) -> dict[str, Tensor]:
        """What the run starts from, for `save_model`: nobody counted yet."""
        sites, columns = len(self.sites), len(self.columns)
        shapes = {
            "rows": (sites,),
            "missing": (sites, columns),
            "outside": (sites, columns),
            "withheld": (sites,),
            "known": (columns,),
            "sum": (columns,),
            "sum_of_squares": (columns,),
        } | {f"histogram.{name}": (len(edges) - 1,) for name, edges in self.columns.items()}
        if self.classes:
            shapes["classes"] = (sites, len(self.classes))
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def of(self, site: str, x: Any, y: Any = None) -> dict[str, Tensor]:
        """One site's part of the sum.

        Args:
            x: (rows, columns), NaN where a value is missing.
            y: (rows,) the number of each row's class; None where there are no classes.
        Raises:
            ConfigError: the site is not among the agreed ones.
            ValueError: the shapes or a class do not fit.
        """
        values, labels = self._checked(site, x, y)
        here = list(self.sites).index(site)
        found = {name: tensor.numpy() for name, tensor in self.empty().items()}
        teller = _Teller(self.cell_min)
        found["rows"][here] = teller.tell(len(values))
        for place, (name, edges) in enumerate(self.columns.items()):
            column = values[:, place]
            known = column[~np.isnan(column)]
            inside = known[(known >= edges[0]) & (known <= edges[-1])]
            found["missing"][here, place] = teller.tell(len(column) - len(known))
            found["outside"][here, place] = teller.tell(len(known) - len(inside))
            counts, _ = np.histogram(inside, edges)
            found[f"histogram.{name}"][:] = [teller.tell(int(count)) for count in counts]
            found["known"][place] = teller.tell(len(inside))
            if found["known"][place]:
                centre, half = _unit(edges)
                scaled = (inside - centre) / half
                found["sum"][place], found["sum_of_squares"][place] = scaled.sum(), (scaled * scaled).sum()
        if self.classes:
            counts = np.bincount(labels, minlength=len(self.classes))
            found["classes"][here] = [teller.tell(int(count)) for count in counts]
        found["withheld"][here] = teller.withheld
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def agree(self, site: str | Path, x: Any, y: Any = None, *, run: str, patience_s: float = 600.0) -> Agreed:
        """Take part in the run that adds all sites' statistics up; errors as `of` and `sum_over_members`."""
        own = self.of(load_site(Path(site)).name, x, y)
        return Agreed(self, sum_over_members(site, own, run, patience_s=patience_s))

    def _checked(self, site: str, x: Any, y: Any) -> tuple[Floats, NDArray[np.int64]]:
        if site not in self.sites:
            raise ConfigError(f"{site} is not among the sites whose statistics were agreed on: {', '.join(self.sites)}")
        values = np.asarray(x, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            raise ValueError(f"x has the shape {values.shape}, but there are {len(self.columns)} columns")
        labels = np.asarray([] if y is None else y, dtype=np.int64)
        fits = labels.shape == (len(values),) and bool(((labels >= 0) & (labels < len(self.classes))).all())
        if self.classes and not fits:
            raise ValueError(f"y has to be {len(values)} class numbers from 0 to {len(self.classes) - 1}")
        if not self.classes and y is not None:
            raise ValueError("classes were not agreed on; leave y out, or name them")
        return values, labels


class _Teller:
    """Says a count, or 0 in place of a small one."""

    def __init__(self, cell_min: int) -> None:
        self._cell_min = cell_min
        self.withheld = 0

    def tell(self, count: int) -> int:
        if 0 < count < self._cell_min:
            self.withheld += 1
            return 0
        return count


def _unit(edges: Sequence[float]) -> tuple[float, float]:
    """Centre and half the width of the plausible range: sums of values in this unit stay below the number of rows."""
    return (edges[0] + edges[-1]) / 2, (edges[-1] - edges[0]) / 2


@dataclass(frozen=True)
class Agreed:
    """What all sites' statistics give together; every site holds the same."""

    of: Statistics
    totals: Mapping[str, Tensor]

    @property
    def mean(self) -> Tensor:
        """(columns,) float64, of the plausible values; the middle of the edges where nobody has any."""
        units = torch.tensor([_unit(edges) for edges in self.of.columns.values()], dtype=torch.float64)
        return units[:, 0] + units[:, 1] * self.totals["sum"] / self.totals["known"].clamp(min=1)

    @property
    def deviation(self) -> Tensor:
        """(columns,) float64, of the plausible values; 1 where a column does not vary."""
        units = torch.tensor([_unit(edges) for edges in self.of.columns.values()], dtype=torch.float64)
        known = self.totals["known"].clamp(min=2)
        mean = self.totals["sum"] / known
        variance = (self.totals["sum_of_squares"] - self.totals["sum"] * mean) / (known - 1)
        varies = (variance > 1e-9) & (self.totals["known"] > 1)  # below it is what the fixed point of a sum leaves
        return torch.where(varies, units[:, 1] * variance.clamp(min=0).sqrt(), 1.0)

    def scaled(self, x: Any) -> Tensor:
        """(rows, columns) float32 on the shared scale; a value that is missing or beyond the edges becomes the mean."""
        values = torch.as_tensor(np.asarray(x, dtype=np.float64))
        low, high = torch.tensor([(e[0], e[-1]) for e in self.of.columns.values()], dtype=torch.float64).unbind(1)
        plausible = (values >= low) & (values <= high)
        return torch.where(plausible, (values - self.mean) / self.deviation, 0.0).float()

    def histogram(self, column: str) -> Tensor:
        """How many plausible values lie between each two edges, over all sites."""
        return self.totals[f"histogram.{column}"]

    @property
    def balance(self) -> dict[str, dict[str, int]]:
        """Rows of each class, by site; 0 also stands for fewer than `cell_min`."""
        counts = self.totals.get("classes", torch.zeros(len(self.of.sites), 0))
        return {
            site: dict(zip(self.of.classes, map(int, row.tolist()), strict=True))
            for site, row in zip(self.of.sites, counts, strict=True)
        }

    def findings(self) -> list[str]:
        """What a person has to look at before training, a line each."""
        found = []
        rows = self.totals["rows"]
        for number, site in enumerate(self.of.sites):
            if not rows[number]:
                found.append(f"{site} has no rows, or fewer than {self.of.cell_min}")
                continue
            for place, name in enumerate(self.of.columns):
                missing = float(self.totals["missing"][number, place] / rows[number])
                outside = float(self.totals["outside"][number, place] / rows[number])
                if missing > MISSING_MANY:
                    found.append(f"{site}: {name} is missing in {missing:.0%} of its rows")
                if outside > OUTSIDE_MANY:
                    edges = list(self.of.columns[name])
                    found.append(
                        f"{site}: {name} is outside {edges[0]:g} to {edges[-1]:g} in {outside:.0%} of its rows: "
                        "another unit, or a code for unknown?"
                    )
            found += [
                f"{site}: no row of class {name}, or fewer than {self.of.cell_min}"
                for name, count in self.balance[site].items()
                if not count
            ]
        for place, name in enumerate(self.of.columns):
            if (
                self.totals["known"][place]
                and int((self.histogram(name) > 0).sum()) < 2
                and self.deviation[place] == 1.0
            ):
                found.append(f"{name} is the same everywhere: it teaches nothing")
        return found

    def table(self) -> str:
        """The data-quality table, as text: a line a column, a line a site, and what to look at."""
        rows = self.totals["rows"].sum().clamp(min=1)
        lines = [f"{'column':<24} {'mean':>10} {'deviation':>10} {'missing':>8} {'outside':>8}"]
        for place, name in enumerate(self.of.columns):
            missing, outside = (float(self.totals[kind][:, place].sum() / rows) for kind in ("missing", "outside"))
            lines.append(
                f"{name:<24} {float(self.mean[place]):>10.4g} {float(self.deviation[place]):>10.4g} "
                f"{missing:>8.1%} {outside:>8.1%}"
            )
        lines.append(
            f"{'site':<24} {'rows':>10} {'withheld':>10} " + " ".join(f"{name:>10}" for name in self.of.classes)
        )
        for number, site in enumerate(self.of.sites):
            counts = " ".join(f"{count:>10}" for count in self.balance[site].values())
            held = f"{int(self.totals['rows'][number]):>10} {int(self.totals['withheld'][number]):>10}"
            lines.append(f"{site:<24} {held} {counts}".rstrip())
        return "\n".join([*lines, *(f"look: {finding}" for finding in self.findings())])
