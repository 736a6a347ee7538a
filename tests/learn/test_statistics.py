"""Statistics over sites: the numbers of all rows in one place, from sums alone; and what looks wrong is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import ConfigError
from swarm.learn import Statistics
from swarm.learn.statistics import Agreed
from tests.learn.runs import NAMES, Operators, everywhere
from tests.node.hospitals import Hospitals

EDGES = {"age": [0.0, 40.0, 60.0, 120.0], "cholesterol": [50.0, 150.0, 250.0, 600.0], "sex": [0.0, 0.5, 1.0]}
HEARTS = Statistics(EDGES, NAMES, classes=("well", "ill"))


def rows_of(site: int, count: int = 80) -> tuple[Any, Any]:
    source = np.random.default_rng(site)
    x = np.column_stack(
        [source.normal(55, 10, count).clip(20, 100), source.normal(220, 40, count).clip(60, 500), np.ones(count)]
    )
    return x, source.integers(0, 2, count)


def added(of: Statistics, parts: list[tuple[str, Any, Any]]) -> Agreed:
    told = [of.of(site, x, y) for site, x, y in parts]
    return Agreed(of, {name: torch.stack([part[name] for part in told]).sum(0) for name in of.empty()})


@given(st.integers(0, 1000), st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_mean_deviation_and_histogram_are_those_of_all_rows_in_one_place(seed: int, missing: float) -> None:
    of = Statistics(EDGES, NAMES, classes=("well", "ill"), cell_min=1)
    source = np.random.default_rng(seed)
    parts = []
    for number, name in enumerate(NAMES):
        x, y = rows_of(number + seed)
        x[source.random(x.shape) < missing] = np.nan
        x[source.random(len(x)) < 0.1, 1] = 9999.0
        parts.append((name, x, y))
    agreed = added(of, parts)
    every = np.concatenate([x for _, x, _ in parts])
    every[every == 9999.0] = np.nan
    np.testing.assert_allclose(agreed.mean[:2], np.nanmean(every, 0)[:2], rtol=1e-12)
    np.testing.assert_allclose(agreed.deviation[:2], np.nanstd(every, 0, ddof=1)[:2], rtol=1e-9)
    for place, (name, edges) in enumerate(EDGES.items()):
        column = every[:, place]
        assert agreed.histogram(name).tolist() == np.histogram(column[~np.isnan(column)], edges)[0].tolist()
    assert agreed.balance == {name: {"well": int((y == 0).sum()), "ill": int((y == 1).sum())} for name, _, y in parts}


def test_real_nodes_agree_on_them_and_what_looks_wrong_is_named(hospitals: Hospitals, operators: Operators) -> None:
    operators.open_run("statistics", HEARTS.empty(), NAMES, rounds=1, merge="sum", weights="equal", range=1e5)
    parts = {name: rows_of(number) for number, name in enumerate(NAMES)}
    parts["east"][0][:, 1] /= 38.67  # mmol/l
    parts["south"][0][:40, 0] = np.nan
    parts["west"][1][:] = 0

    def work(name: str) -> Agreed:
        return HEARTS.agree(hospitals.sites[name], *parts[name], run="statistics")

    found = everywhere(work)
    here = added(HEARTS, [(name, *part) for name, part in parts.items()])
    for agreed in found.values():
        for name, total in agreed.totals.items():
            assert torch.equal(total, found["north"].totals[name])
            torch.testing.assert_close(total, here.totals[name], rtol=0, atol=1e-8)
    agreed = found["north"]
    assert agreed.findings() == [
        "east: cholesterol is outside 50 to 600 in 100% of its rows: another unit, or a code for unknown?",
        "south: age is missing in 50% of its rows",
        "west: no row of class ill, or fewer than 5",
        "sex is the same everywhere: it teaches nothing",
    ]
    table = agreed.table()
    assert table.splitlines()[0].split() == ["column", "mean", "deviation", "missing", "outside"]
    assert "look: south: age is missing" in table
    scaled = agreed.scaled(parts["south"][0])
    assert scaled.dtype == torch.float32
    assert bool((scaled[:40, 0] == 0).all())
    assert float(scaled.abs().max()) < 6


def test_a_small_count_and_the_sums_behind_it_do_not_leave_the_site() -> None:
    x = np.full((20, 3), np.nan)
    x[:, 2] = 1.0
    x[:4, 0] = [30.0, 31.0, 32.0, 33.0]  # four patients: their ages could be guessed from a sum
    x[:8, 1] = [100.0] * 5 + [300.0] * 3
    part = HEARTS.of("north", x, np.array([0] * 18 + [1] * 2))
    assert part["known"].tolist() == [0, 8, 20]
    assert part["sum"][0] == part["sum_of_squares"][0] == 0
    assert part["histogram.age"].tolist() == [0, 0, 0]
    assert part["histogram.cholesterol"].tolist() == [5, 0, 0]
    assert part["classes"][0].tolist() == [18, 0]
    assert int(part["withheld"][0]) == 4  # ages known, ages below 40, the three, the class of two
    assert HEARTS.of("north", np.empty((0, 3)), np.empty(0))["rows"].sum() == 0


def test_nobodys_rows_give_numbers_all_the_same() -> None:
    nothing = added(HEARTS, [(name, np.empty((0, 3)), np.empty(0)) for name in NAMES])
    assert nothing.mean.tolist() == [60.0, 325.0, 0.5]
    assert nothing.deviation.tolist() == [1.0, 1.0, 1.0]
    assert nothing.findings() == [f"{name} has no rows, or fewer than 5" for name in NAMES]
    assert "nan" not in nothing.table()


def test_what_does_not_fit_is_refused_by_name() -> None:
    x, y = rows_of(0)
    with pytest.raises(ConfigError, match="mars is not among the sites whose statistics were agreed on: north, east"):
        HEARTS.of("mars", x, y)
    with pytest.raises(ValueError, match=r"x has the shape \(80, 2\), but there are 3 columns"):
        HEARTS.of("north", x[:, :2], y)
    for wrong in (y[:10], y + 1, y - 1):
        with pytest.raises(ValueError, match="y has to be 80 class numbers from 0 to 1"):
            HEARTS.of("north", x, wrong)
    with pytest.raises(ValueError, match=r"the edges of age are \[1, 1\]; two or more finite numbers, ascending"):
        Statistics({"age": [1, 1]}, NAMES)
    with pytest.raises(ValueError, match=r"sites are .*: each has its own name"):
        Statistics(EDGES, ["a", "a"])
    with pytest.raises(ValueError, match="classes were not agreed on"):
        Statistics(EDGES, NAMES).of("north", x, y)
