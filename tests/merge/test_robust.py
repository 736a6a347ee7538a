"""The rules that bear false members: bit for bit the same as in exact fractions, and never where a liar wants them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import isqrt
from pathlib import Path

import numpy as np
import pytest

from swarm.config import MERGE_RULES, Policy
from swarm.merge import BadUpdate, Schema, Tensor, merge, merge_files, write_file
from swarm.merge.bound import bound_of
from swarm.merge.coefficients import unit_of
from swarm.merge.fixed import FixedPoint
from swarm.merge.integers import comparisons, sorted_rows
from swarm.merge.rules import capped, counted_weights
from tests.merge.reference import Values, files, moved, policy, read_file, read_vector, steps_of, vector_file

Steps = list[list[int]]
"""Members' updates in whole steps."""

ROBUST: dict[str, dict[str, object]] = {
    "norm_bounded_mean": {"bound": "length", "radius": 0.7},
    "centered_clipping": {"bound": "length", "radius": 0.4, "iterations": 3},
    "geometric_median": {"iterations": 6},
    "coordinate_median": {"weights": "equal"},
    "trimmed_mean": {"weights": "equal", "faults": 2},
    "multi_krum": {"weights": "equal", "faults": 2},
    "nearest_neighbor_mixing": {"weights": "equal", "faults": 2},
}


def rule_of(name: str, **changes: object) -> Policy:
    return policy(merge=name, **(ROBUST[name] | changes))


# The same rules once more, over the vectors themselves and in fractions.


def norm(vector: Sequence[Fraction]) -> int:
    """The Euclidean length in whole steps, rounded down."""
    square = sum(x * x for x in vector)
    return isqrt(square.numerator // square.denominator) if square else 0


def combined(steps: Steps, coefficients: Sequence[Fraction]) -> list[Fraction]:
    return [
        sum((c * q for c, q in zip(coefficients, column, strict=True)), Fraction(0))
        for column in zip(*steps, strict=True)
    ]


def apart(x: Sequence[int], v: Sequence[Fraction], unit: int) -> int:
    """The distance in whole 1/unit of a step."""
    square = sum((unit * (q - p)) ** 2 for q, p in zip(x, v, strict=True))
    return isqrt(square.numerator // square.denominator)


def floored(value: Fraction, unit: int) -> Fraction:
    return Fraction(value * unit // 1, unit)


def norm_bounded_mean(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    bound, total = int(Fraction(rule.radius) * 2**rule.step_bits), sum(weights)
    squares = [sum(q * q for q in x) for x in steps]
    if max(squares) <= bound**2:
        return combined(steps, [Fraction(w, total) for w in weights])
    factors = [Fraction(1) if s <= bound**2 else Fraction(isqrt(bound**2 * unit**2 // s), unit) for s in squares]
    return combined(steps, [floored(w * f / total, unit) for w, f in zip(weights, factors, strict=True)])


def centered_clipping(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    bound, total = int(Fraction(rule.radius) * 2**rule.step_bits), sum(weights)
    centre = [Fraction(0)] * len(steps)
    for _ in range(rule.iterations):
        v = combined(steps, centre)
        pulls = []
        for x, w in zip(steps, weights, strict=True):
            d = apart(x, v, unit)
            pulls.append(w * (Fraction(1) if d <= bound * unit else Fraction(bound * unit * unit // d, unit)))
        centre = [
            floored(a * (1 - sum(pulls, Fraction(0)) / total) + p / total, unit)
            for a, p in zip(centre, pulls, strict=True)
        ]
    return combined(steps, centre)


def geometric_median(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    point = [floored(Fraction(w, sum(weights)), unit) for w in weights]
    for _ in range(rule.iterations):
        v = combined(steps, point)
        far = [apart(x, v, unit) for x in steps]
        away = [0 if d < unit else (w << 160) // d for w, d in zip(weights, far, strict=True)]
        if not sum(away):
            break
        target = [floored(Fraction(p, sum(away)), unit) for p in away]
        held = sum(w for w, d in zip(weights, far, strict=True) if d < unit)
        hold = Fraction(0)
        if held:
            pull = combined(steps, [Fraction(p) - sum(away) * a for p, a in zip(away, point, strict=True)])
            strength = norm([unit * x for x in pull])
            hold = min(Fraction(1), floored(Fraction((held << 160), strength), unit)) if strength else Fraction(1)
        point = [floored(hold * a + (1 - hold) * t, unit) for a, t in zip(point, target, strict=True)]
    return combined(steps, point)


def coordinate_median(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    found = []
    for column in zip(*steps, strict=True):
        order = sorted(column)
        found.append(Fraction(order[(len(order) - 1) // 2] + order[len(order) // 2], 2))
    return found


def trimmed_mean(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    found = []
    for column in zip(*steps, strict=True):
        order = sorted(column)[rule.faults : len(column) - rule.faults]
        found.append(Fraction(sum(order), len(order)))
    return found


def square_apart(x: Sequence[int], y: Sequence[int]) -> int:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def multi_krum(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    count = len(steps)
    scores = []
    for i, x in enumerate(steps):
        others = sorted(square_apart(x, y) for j, y in enumerate(steps) if j != i)
        scores.append((sum(others[: count - rule.faults - 1]), i))
    chosen = [i for _, i in sorted(scores)[: count - rule.faults]]
    return combined([steps[i] for i in chosen], [Fraction(1, len(chosen))] * len(chosen))


def nearest_neighbor_mixing(steps: Steps, weights: Sequence[int], rule: Policy, unit: int) -> list[Fraction]:
    near = len(steps) - rule.faults
    mixed = []
    for i, x in enumerate(steps):
        ranked = sorted(range(len(steps)), key=lambda j: (square_apart(x, steps[j]), j != i, j))[:near]
        mixed.append([sum(steps[j][k] for j in ranked) for k in range(len(x))])
    return [total / near for total in trimmed_mean(mixed, weights, rule, unit)]


REFERENCES: dict[str, Callable[[Steps, Sequence[int], Policy, int], list[Fraction]]] = {
    "norm_bounded_mean": norm_bounded_mean,
    "centered_clipping": centered_clipping,
    "geometric_median": geometric_median,
    "coordinate_median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "multi_krum": multi_krum,
    "nearest_neighbor_mixing": nearest_neighbor_mixing,
}


def merged(folder: Path, base: Values, rows: Values, weights: Sequence[int], rule: Policy) -> Values:
    paths = files(folder, {f"u{i}": row for i, row in enumerate(rows)}, "F64")
    merge_files(vector_file(folder / "base", base, "F64"), paths, weights, rule, folder / "out")
    return read_vector(folder / "out", "F64")


def rows_like(source: np.random.Generator, members: int, count: int) -> Values:
    rows: Values = source.standard_normal((members, count)) * 0.1 + source.standard_normal(count) * 0.05
    rows[0] *= 30
    rows[-1] = rows[1]
    return rows


def test_every_rule_of_the_settings_is_tried_here() -> None:
    assert set(ROBUST) == set(REFERENCES) == set(MERGE_RULES) - {"mean", "sum"}


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("seed", range(4))
def test_a_rule_is_what_fractions_make_of_it(tmp_path: Path, name: str, seed: int) -> None:
    source = np.random.default_rng(seed)
    members = int(source.integers(7, 14))
    rows, base = rows_like(source, members, 60), source.standard_normal(60)
    weights = [int(w) for w in source.integers(1, 3000, members)]
    rule = rule_of(name)
    counted = [1] * members if rule.weights == "equal" else weights
    steps = [[steps_of(float(x), rule) for x in row] for row in rows]
    unit = unit_of(FixedPoint(rule.step_bits, rule.range))
    expected = REFERENCES[name](steps, counted, rule, unit)
    found = merged(tmp_path, base, rows, weights, rule)
    # The same rational, written over the rule's own denominator so that the one float step is the same.
    denominator = {
        "norm_bounded_mean": unit,
        "centered_clipping": unit,
        "geometric_median": unit,
        "coordinate_median": 2,
        "trimmed_mean": members - 4,
        "multi_krum": members - 2,
        "nearest_neighbor_mixing": (members - 2) * (members - 4),
    }[name]
    for at in range(60):
        numerator = expected[at] * denominator
        assert numerator.denominator == 1
        scale = Fraction(1, denominator << rule.step_bits)
        assert found[at] == moved(float(base[at]), int(numerator), scale, "F64"), (seed, at)


@pytest.mark.parametrize("name", ROBUST)
def test_the_order_of_the_members_changes_no_bit(tmp_path: Path, name: str) -> None:
    source = np.random.default_rng(1)
    rows = source.standard_normal((9, 500)) * 0.1
    base, weights = source.standard_normal(500), list(range(1, 10))
    order = list(range(9))
    found = set()
    for _ in range(3):
        random.Random(5).shuffle(order)
        found.add(merged(tmp_path, base, rows[order], [weights[i] for i in order], rule_of(name)).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("size", [1e-6, 8.0, 1e30])
def test_two_liars_of_nine_do_not_carry_the_rule_away(tmp_path: Path, name: str, size: float) -> None:
    """Seven honest members agree up to noise; wherever the liars stand, the result stays near the honest ones."""
    source = np.random.default_rng(2)
    truth = source.standard_normal(400) * 0.01
    honest = truth + source.standard_normal((7, 400)) * 0.01
    for direction in (np.ones(400), -truth / np.abs(truth).max(), source.choice([-1.0, 1.0], 400)):
        rows = np.vstack([honest, np.tile(direction * size, (2, 1))])
        rule = rule_of(name, **({"radius": 0.5} if "radius" in MERGE_RULES[name] else {}))
        found = merged(tmp_path, np.zeros(400), rows, [100] * 9, rule)
        spread = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
        distance = np.linalg.norm(found - honest.mean(axis=0))
        assert distance <= max(2 * spread, 2 / 9 * 0.5 * 3), (distance, spread)


def test_a_plain_mean_is_carried_away(tmp_path: Path) -> None:
    """The planted mistake: the same liars and no robust rule."""
    honest = np.random.default_rng(2).standard_normal((7, 400)) * 0.01
    rows = np.vstack([honest, np.full((2, 400), 8.0)])
    found = merged(tmp_path, np.zeros(400), rows, [100] * 9, policy())
    assert np.linalg.norm(found) > 30


@pytest.mark.parametrize("name", ["trimmed_mean", "coordinate_median", "nearest_neighbor_mixing"])
@pytest.mark.parametrize("seed", range(5))
def test_each_coordinate_stays_between_the_honest_values(tmp_path: Path, name: str, seed: int) -> None:
    source = np.random.default_rng(seed)
    honest = source.standard_normal((5, 300))
    liars = source.choice([-1e9, -3.0, 0.0, 3.0, 1e9], (2, 300))
    rows = np.vstack([honest, liars])[source.permutation(7)]
    found = merged(tmp_path, np.zeros(300), rows, [1] * 7, rule_of(name))
    assert (found <= honest.max(axis=0) + 2.0**-32).all()
    assert (found >= honest.min(axis=0) - 2.0**-32).all()


def test_one_liar_more_than_was_agreed_breaks_a_trimmed_mean(tmp_path: Path) -> None:
    """The planted mistake: the bound of the claim above is sharp."""
    rows = np.vstack([np.zeros((4, 10)), np.full((3, 10), 5.0)])
    assert merged(tmp_path, np.zeros(10), rows, [1] * 7, rule_of("trimmed_mean")).max() == pytest.approx(5 / 3)


def test_where_no_update_is_long_the_bounded_mean_is_the_mean(tmp_path: Path) -> None:
    source = np.random.default_rng(3)
    rows, base = source.standard_normal((5, 200)) * 0.01, source.standard_normal(200)
    weights = [3, 1, 4, 1, 5]
    bounded = merged(tmp_path, base, rows, weights, rule_of("norm_bounded_mean", radius=1.0))
    assert np.array_equal(bounded, merged(tmp_path, base, rows, weights, policy()))


def test_a_long_update_counts_as_far_as_the_radius(tmp_path: Path) -> None:
    rows = np.zeros((4, 2))
    rows[0] = (3.0, 4.0)
    found = merged(tmp_path, np.zeros(2), rows, [1] * 4, rule_of("norm_bounded_mean", radius=1.0))
    assert found == pytest.approx(np.array([0.6, 0.8]) / 4, abs=1e-7)
    assert np.linalg.norm(found) <= 0.25 + 2.0**-32


def test_in_one_iteration_a_site_moves_the_clipped_centre_by_its_share_of_the_radius(tmp_path: Path) -> None:
    source = np.random.default_rng(4)
    rows = source.standard_normal((6, 100)) * 0.01
    rule = rule_of("centered_clipping", radius=0.3, iterations=1)
    honest = merged(tmp_path, np.zeros(100), rows, [1] * 6, rule)
    for lie in (1e-3, 0.5, 8.0):
        rows[2] = lie
        found = merged(tmp_path, np.zeros(100), rows, [1] * 6, rule)
        assert np.linalg.norm(found - honest) <= 2 * 0.3 / 6 + 1e-6


def objective(point: Values, rows: Values, weights: Sequence[int]) -> float:
    return float(np.linalg.norm(rows - point, axis=1) @ np.array(weights, dtype=float))


@pytest.mark.parametrize("seed", range(4))
def test_no_point_nearby_is_better_than_the_geometric_median(tmp_path: Path, seed: int) -> None:
    source = np.random.default_rng(seed)
    rows = source.standard_normal((7, 40)) * 0.1
    rows[0] += 3
    weights = [int(w) for w in source.integers(1, 50, 7)]
    found = merged(tmp_path, np.zeros(40), rows, weights, rule_of("geometric_median", iterations=60))
    best = objective(found, rows, weights)
    assert best < objective(np.average(rows, axis=0, weights=weights), rows, weights)
    for _ in range(200):
        nearby = found + source.standard_normal(40) * 10 ** source.uniform(-5, -1)
        assert objective(nearby, rows, weights) >= best * (1 - 1e-9)


def test_more_than_half_of_the_weight_in_one_place_is_the_geometric_median(tmp_path: Path) -> None:
    """Vardi and Zhang's case: at a data point the plain iteration divides by zero or stays where it should not."""
    rows = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    found = merged(tmp_path, np.zeros(2), rows, [100, 10, 10], rule_of("geometric_median", iterations=60))
    assert np.abs(found).max() < 1e-3
    # The mean of these three is the first of them, which is not their median.
    rows = np.array([[0.0, 0.0], [-1.0, 1.0], [-1.0, -1.0], [2.0, 0.0]])
    weights = [1, 50, 50, 50]
    found = merged(tmp_path, np.zeros(2), rows, weights, rule_of("geometric_median", iterations=100))
    assert objective(found, rows, weights) < objective(rows[0], rows, weights) - 1


def test_krum_leaves_out_who_stands_apart(tmp_path: Path) -> None:
    honest = np.random.default_rng(6).standard_normal((7, 50)) * 0.01
    rows = np.vstack([honest[:3], [np.full(50, 4.0)], honest[3:], [np.full(50, -4.0)]])
    found = merged(tmp_path, np.zeros(50), rows, [1] * 9, rule_of("multi_krum"))
    assert found == pytest.approx(honest.mean(axis=0), abs=2.0**-31)


def test_a_rule_with_too_few_updates_says_how_many_it_needs(tmp_path: Path) -> None:
    base, *paths = files(tmp_path, {f"u{i}": np.zeros(3) for i in range(7)})
    for name, wanted in [("trimmed_mean", 5), ("multi_krum", 7), ("nearest_neighbor_mixing", 5)]:
        with pytest.raises(ValueError, match=rf"{wanted - 1} updates, but .* needs {wanted}"):
            merge_files(base, paths[: wanted - 1], [1] * (wanted - 1), rule_of(name), tmp_path / "out")


def test_whole_numbers_merge_to_the_lower_middle(tmp_path: Path) -> None:

    schema = Schema.of([Tensor("n", "I64", (2,)), Tensor("on", "BOOL", (3,)), Tensor("x", "F32", (1,))])
    counts = [[5, -1], [2**63 - 1, -(2**63)], [7, 3], [6, 0]]
    masks = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 1, 1]]
    paths = []
    for i, (n, on) in enumerate(zip(counts, masks, strict=True)):
        paths.append(tmp_path / f"u{i}")
        values = {"n": np.array(n), "on": np.array(on, np.uint8), "x": np.zeros(1, np.float32)}
        write_file(paths[-1], schema, values)
    merge_files(paths[0], paths, [1] * 4, rule_of("coordinate_median"), tmp_path / "out")
    found = read_file(tmp_path / "out")
    assert found["n"].tolist() == [6, -1]
    assert found["on"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ROBUST)
def test_a_value_that_is_not_finite_is_named_under_every_rule(tmp_path: Path, name: str) -> None:
    base, *paths = files(tmp_path, {f"u{i}": np.zeros(9) for i in range(8)})
    raw = bytearray(paths[3].read_bytes())
    raw[-4:] = b"\x00\x00\xc0\x7f"
    paths[3].write_bytes(raw)
    with pytest.raises(BadUpdate, match=r"update 3: element 8 of x F32\[9\] is nan"):
        merge(base, paths, [1] * 7, rule_of(name), None)


@pytest.mark.parametrize("count", range(1, 13))
def test_the_network_sorts_every_column(count: int) -> None:
    """By the 0-1 principle (Knuth, TAOCP 3, 5.3.4, theorem Z) all zeros and ones suffice."""
    columns = np.array([[bits >> place & 1 for bits in range(2**count)] for place in range(count)])
    expected = np.sort(columns, axis=0)
    assert np.array_equal(np.stack(sorted_rows(columns)), expected)


@pytest.mark.parametrize("count", [31, 64, 100, 128])
def test_the_network_sorts_many_members(count: int) -> None:
    columns = np.random.default_rng(count).integers(-(2**50), 2**50, (count, 300))
    expected = np.sort(columns, axis=0)
    assert np.array_equal(np.stack(sorted_rows(columns)), expected)


def test_a_network_without_one_comparison_sorts_wrongly() -> None:
    """The planted mistake: each comparison is needed."""
    for missing in range(len(comparisons(6))):
        pairs = [pair for place, pair in enumerate(comparisons(6)) if place != missing]
        wrong = 0
        for bits in range(64):
            row = [bits >> place & 1 for place in range(6)]
            for i, j in pairs:
                row[i], row[j] = min(row[i], row[j]), max(row[i], row[j])
            wrong += row != sorted(row)
        assert wrong


def test_the_bound_that_nobody_tunes_is_the_median_length(tmp_path: Path) -> None:
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0], [0.0, -7.0]])
    found = merged(tmp_path, np.zeros(2), rows, [1] * 4, policy(merge="norm_bounded_mean"))
    assert found == pytest.approx(np.array([1.2 + 2.0, 1.6 + 1.0 - 2.0]) / 4, abs=1e-7)
    twice = merged(tmp_path, np.zeros(2), rows, [1] * 4, policy(merge="norm_bounded_mean", radius=2.0))
    assert twice == pytest.approx(np.array([2.4 + 2.0, 3.2 + 1.0 - 4.0]) / 4, abs=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize("name", ["norm_bounded_mean", "centered_clipping"])
def test_less_than_half_of_the_members_do_not_move_the_median_bound_beyond_the_honest(
    tmp_path: Path, name: str, size: float
) -> None:
    """Three of seven lie together, with any length; the result is no longer than an honest update."""
    honest = np.random.default_rng(8).standard_normal((4, 50)) * 0.01
    longest = np.linalg.norm(honest, axis=1).max()
    rows = np.vstack([honest, np.tile(np.ones(50) * size, (3, 1))])
    found = merged(tmp_path, np.zeros(50), rows, [1] * 7, policy(merge=name))
    assert np.linalg.norm(found) <= longest * (1 + 1e-6)


def test_half_of_the_members_move_it() -> None:
    """The planted mistake: four of eight lie, and the upper median is theirs."""
    rule, fixed = policy(merge="norm_bounded_mean"), FixedPoint(32, 8.0)
    assert bound_of(rule, [1] * 4 + [10**20] * 4, fixed) == 1
    assert bound_of(rule, [1] * 4 + [10**20] * 5, fixed) == 10**10


def test_where_most_changed_nothing_nothing_moves(tmp_path: Path) -> None:
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    found = merged(tmp_path, np.ones(2), rows, [1] * 3, policy(merge="norm_bounded_mean"))
    assert np.array_equal(found, np.ones(2))


def test_no_member_counts_for_more_than_the_ratio_times_the_median_weight() -> None:
    assert capped([400, 400, 1_000_000, 380, 410], 2.0) == (400, 400, 800, 380, 410)
    assert capped([400, 1_000_000, 1_000_000, 380, 410], 1.0) == (400, 410, 410, 380, 410)
    assert capped([3, 1], 2.5) == (2, 1)
    assert capped([7], 1.0) == (7,)
    assert counted_weights([5, 1_000_000], policy(weights="equal", weight_ratio_max=2.0)) == (1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_less_than_half_of_the_members_cannot_buy_weight(seed: int) -> None:
    source = random.Random(seed)
    members = source.randint(3, 20)
    liars = (members - 1) // 2
    honest = [source.randint(50, 500) for _ in range(members - liars)]
    weights = [*honest, *(source.choice([1, 10**6]) for _ in range(liars))]
    assert max(capped(weights, 2.0)) <= 2 * max(honest)


def test_a_capped_weight_counts_as_its_cap(tmp_path: Path) -> None:
    rows = np.array([[1.0], [0.0], [0.0]])
    found = merged(tmp_path, np.zeros(1), rows, [1_000_000, 10, 30], policy(weight_ratio_max=2.0))
    assert found == pytest.approx(np.array([60 / 100]), abs=1e-9)
