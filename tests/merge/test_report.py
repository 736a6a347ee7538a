"""What a person is told of a merge: who counted how much, and whose update stands out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from swarm.merge import UpdateReport, merge, standing_out
from swarm.merge.alarm import fell
from tests.merge.reference import Values, files, policy, vector_file


def reports_of(folder: Path, rows: Values, counts: list[int], **changes: object) -> tuple[UpdateReport, ...]:
    paths = files(folder, {f"u{i}": row for i, row in enumerate(rows)})
    base = vector_file(folder / "base", np.ones(rows.shape[1]))
    return merge(base, paths, counts, policy(**changes), None).reports


def crowd(members: int, count: int = 400) -> Values:
    source = np.random.default_rng(0)
    shared = source.standard_normal(count)
    rows: Values = 0.01 * (shared + source.standard_normal((members, count)))
    return rows


def test_an_update_beyond_the_bound_is_told_with_what_was_kept_of_it(tmp_path: Path) -> None:
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    found = reports_of(tmp_path, rows, [10, 10, 10, 1000], merge="norm_bounded_mean", weight_ratio_max=2.0)
    assert [report.norm for report in found] == pytest.approx([5, 1, 1, 1])
    assert [report.kept for report in found] == pytest.approx([0.2, 1, 1, 1], rel=1e-6)
    assert [report.share for report in found] == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_whom_krum_left_out_kept_nothing(tmp_path: Path) -> None:
    rows = crowd(7)
    rows[3] = 4.0
    found = reports_of(tmp_path, rows, [1] * 7, merge="multi_krum", weights="equal", faults=2)
    assert [report.kept == 0 for report in found].count(True) == 2
    assert found[3].kept == 0


@pytest.mark.parametrize("merge_", ["mean", "norm_bounded_mean", "coordinate_median"])
def test_the_cosine_is_that_of_the_angle_to_the_merged_update(tmp_path: Path, merge_: str) -> None:
    rows = crowd(5)
    rows[4] *= -1
    found = reports_of(tmp_path, rows, [1] * 5, merge=merge_, weights="equal")
    if merge_ == "mean":
        change = rows.mean(axis=0)
        expected = rows @ change / np.linalg.norm(rows, axis=1) / np.linalg.norm(change)
        assert [report.cosine for report in found] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found[4].cosine < -0.3 < 0.3 < min(report.cosine for report in found[:4])


def test_honest_updates_do_not_stand_out(tmp_path: Path) -> None:
    for members in (3, 4, 9):
        assert standing_out(reports_of(tmp_path, crowd(members), [1] * members)) == {}


def test_who_is_long_and_who_points_the_other_way_stand_out(tmp_path: Path) -> None:
    rows = crowd(6)
    rows[1] *= 10
    rows[4] *= -1
    found = standing_out(reports_of(tmp_path, rows, [1] * 6, merge="norm_bounded_mean"))
    assert set(found) == {1, 4}
    assert found[1] == "9.7 times as long as the median"
    assert found[4].startswith("points against the others (cosine -0.")


def test_an_update_of_zeros_stands_out_and_breaks_nothing(tmp_path: Path) -> None:
    rows = crowd(5)
    rows[2] = 0
    found = standing_out(reports_of(tmp_path, rows, [1] * 5))
    assert list(found) == [2]


def test_two_updates_cannot_be_compared() -> None:
    assert standing_out([UpdateReport(1.0, 0, 0.5), UpdateReport(1000.0, 0, 0.5)]) == {}
    assert math.isfinite(UpdateReport(1.0, 0, 0.5).cosine)


def test_the_alarm_needs_half_of_those_who_tell() -> None:
    before = {"a": {"auc": 0.9}, "b": {"auc": 0.8}, "c": {"auc": 0.7}, "d": {"loss": 1.0}}
    after = {"a": {"auc": 0.6}, "b": {"auc": 0.7}, "c": {"auc": 0.7}, "d": {"loss": 9.0}}
    assert fell(before, after, "auc", 0.05) == ("a", "b")
    assert fell(before, after, "auc", 0.2) == ()
    assert fell(before, {"a": {"auc": 0.1}}, "auc", 0.2) == ("a",)
    assert fell(before, {}, "auc", 0.2) == ()
    assert fell(before, after, "accuracy", 0.2) == ()
