"""Blind rounds whose nodes, real processes, are killed at named points; `python -m tests.blind_crashes` has all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.blind_crashes import play, points_of


@pytest.mark.slow
def test_some_kills_change_nothing(tmp_path: Path) -> None:
    right = play(tmp_path / "right", [], rounds=12).final
    points = points_of(99)[::29][:5]
    found = play(tmp_path / "killed", points, rounds=12)
    assert found.final == right
    assert len(found.killed) >= 3


def test_a_node_killed_between_its_masks_and_their_use_comes_back(tmp_path: Path) -> None:
    found = play(tmp_path, [("leader", "after log mask"), ("member", "after log reveal")], rounds=3)
    assert len(found.killed) == 2
