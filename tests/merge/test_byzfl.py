"""Our rules beside ByzFL's (Gonzalez et al. 2025), which is written in floats by the authors of several of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from swarm.config import Policy
from swarm.merge import merge_files
from swarm.merge.coefficients import unit_of
from swarm.merge.gram import Gram, distance_squared
from swarm.merge.multi_krum import score
from swarm.merge.nearest_neighbor_mixing import neighbors
from swarm.merge.rules import fixed_point
from tests.merge.reference import Values, files, policy, read_vector, vector_file
from tests.others import byzfl_path

SCRIPT = Path(__file__).with_name("byzfl_rules.py")
# With these a rational coefficient is finer than a step, so that steps are what limits the result.
EXACT: dict[str, object] = {"step_bits": 16, "range": 4.0}


def rule_of(name: str, faults: int, length: float, iterations: int, **changes: object) -> Policy:
    own: dict[str, dict[str, object]] = {
        "mean": {},
        "norm_bounded_mean": {"bound": "length", "radius": length},
        "norm_bounded_mean of the median": {"bound": "median"},
        "centered_clipping": {"bound": "length", "radius": length, "iterations": iterations},
        "geometric_median": {"iterations": 100},
        "coordinate_median": {"weights": "equal"},
        "trimmed_mean": {"weights": "equal", "faults": faults},
        "multi_krum": {"weights": "equal", "faults": faults},
        "nearest_neighbor_mixing": {"weights": "equal", "faults": faults},
    }
    return policy(merge=name.split()[0], **(own[name] | changes))


RULES = tuple(name for name in (
    "mean", "norm_bounded_mean", "norm_bounded_mean of the median", "centered_clipping", "geometric_median",
    "coordinate_median", "trimmed_mean", "multi_krum", "nearest_neighbor_mixing",
))  # fmt: skip


def drawn(source: np.random.Generator) -> tuple[Values, tuple[int, float, int]]:
    """Vectors on the grid of steps: a crowd, some far away; in one case of five, two that are the same."""
    members, count = int(source.integers(5, 16)), int(source.integers(2, 40))
    faults = int(source.integers(1, (members - 3) // 2 + 1))
    rows = source.standard_normal((members, count)) * 0.2 + source.standard_normal(count) * 0.2
    rows[: int(source.integers(0, faults + 1))] *= source.uniform(-5, 5)
    if source.random() < 0.2:
        rows[-1] = rows[-2]
    rows = np.clip(np.round(rows * 2**16), -(2**17), 2**17) / 2**16
    rows = rows[source.permutation(members)]
    return rows, (faults, float(np.round(source.uniform(0.05, 2.0) * 2**10) / 2**10), int(source.integers(1, 8)))


def of_byzfl(folder: Path, cases: list[tuple[Values, tuple[int, float, int]]]) -> Mapping[str, Values]:
    vectors = {str(place): rows for place, (rows, _) in enumerate(cases)}
    vectors["settings"] = np.array([settings for _, settings in cases])
    np.savez(folder / "cases.npz", allow_pickle=False, **vectors)
    command = [sys.executable, str(SCRIPT), str(folder / "cases.npz"), str(folder / "results.npz")]
    environment = os.environ | {"PYTHONPATH": str(byzfl_path()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=500, capture_output=True)
    return dict(np.load(folder / "results.npz"))


def ours(folder: Path, rows: Values, rule: Policy) -> Values:
    paths = files(folder, {f"u{i}": row for i, row in enumerate(rows)}, "F64")
    base = vector_file(folder / "base", np.zeros(rows.shape[1]), "F64")
    merge_files(base, paths, [100] * len(rows), rule, folder / "out", threads=1)
    return read_vector(folder / "out", "F64")


def gram_of_rows(rows: Values) -> Gram:
    steps = [[int(x) for x in row * 2**16] for row in rows]
    return tuple(tuple(sum(a * b for a, b in zip(x, y, strict=True)) for y in steps) for x in steps)


def is_tie(name: str, rows: Values, faults: int) -> bool:
    """Whether the choice of members hangs on distances that are equal, or nearly so in float64."""
    gram = gram_of_rows(rows)
    kept = len(rows) - faults
    if name == "multi_krum":
        ranked = sorted(score(gram, i, faults) for i in range(len(rows)))
        return ranked[kept] - ranked[kept - 1] <= 1e-9 * ranked[kept]
    if name == "nearest_neighbor_mixing":
        for i in range(len(rows)):
            far = sorted(distance_squared(gram, i, j) for j in range(len(rows)))
            if far[kept] - far[kept - 1] <= 1e-9 * far[kept]:
                return True
    return False


def converges(halfway: Values, end: Values) -> bool:
    """Whether ByzFL's own iteration is near its end: from another start, ours is too. In few dimensions it is slow."""
    return bool(np.abs(halfway - end).max() * 2**16 < 0.25)


def compare(folder: Path, count: int, seed: int) -> dict[str, int]:
    """How often each rule was compared and found equal."""
    source = np.random.default_rng(seed)
    cases = [drawn(source) for _ in range(count)]
    theirs = of_byzfl(folder, cases)
    compared = dict.fromkeys(RULES, 0)
    for place, (rows, (faults, length, iterations)) in enumerate(cases):
        halfway = theirs[f"geometric_median halfway.{place}"]
        for name in RULES:
            expected = theirs[f"{name}.{place}"]
            if is_tie(name, rows, faults) or (name == "geometric_median" and not converges(halfway, expected)):
                continue
            rule = rule_of(name, faults, length, iterations, **EXACT)
            distance = np.abs(ours(folder, rows, rule) - expected).max() * 2**16
            assert distance <= 2, (seed, place, name, distance)
            fine = rule_of(name, faults, length, iterations)
            room = 2 * 2.0**-32 + len(rows) * np.abs(rows).max() / unit_of(fixed_point(fine)) * (iterations + 1)
            assert np.abs(ours(folder, rows, fine) - expected).max() <= max(room, 1e-6), (seed, place, name)
            compared[name] += 1
        check_neighbors(rows, faults, theirs[f"neighbors.{place}"])
    return compared


def check_neighbors(rows: Values, faults: int, mixed: Values) -> None:
    """The same members are chosen: each one's mixture is the mean of ours."""
    if is_tie("nearest_neighbor_mixing", rows, faults):
        return
    gram = gram_of_rows(rows)
    for i in range(len(rows)):
        group = neighbors(gram, i, len(rows) - faults)
        assert rows[list(group)].mean(axis=0) == pytest.approx(mixed[i], abs=1e-12)


def test_every_rule_is_byzfls(tmp_path: Path) -> None:
    compared = compare(tmp_path, 50, seed=0)
    assert min(compared.values()) >= 35, compared


@pytest.mark.slow
def test_every_rule_is_byzfls_in_a_thousand_cases(tmp_path: Path) -> None:
    compared = compare(tmp_path, 1400, seed=1)
    assert min(compared.values()) >= 1000, compared


def test_another_rule_is_not_byzfls(tmp_path: Path) -> None:
    """The planted mistake: Krum's score without the farthest of the neighbours that ByzFL counts, as in the first
    paper (Blanchard et al. 2017), chooses others now and then."""
    source = np.random.default_rng(3)
    differ = 0
    for _ in range(60):
        rows, (faults, _, _) = drawn(source)
        found = gram_of_rows(rows)
        paper = [first_paper_score(found, i, faults) for i in range(len(rows))]
        differ += chosen(paper, faults) != chosen([score(found, i, faults) for i in range(len(rows))], faults)
    assert differ >= 3


def first_paper_score(gram: Gram, member: int, faults: int) -> int:
    others = sorted(distance_squared(gram, member, other) for other in range(len(gram)) if other != member)
    return sum(others[: len(gram) - faults - 2])


def chosen(scores: list[int], faults: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: (scores[i], i))[: len(scores) - faults])
