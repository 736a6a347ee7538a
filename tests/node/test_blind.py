"""Blind rounds with real node processes: nobody's update is anywhere, and the sum is what it has to be."""

from __future__ import annotations

from pathlib import Path

from tests.node.hospitals import Hospitals

NAMES = ["north", "east", "south", "west"]


def test_four_nodes_close_three_blind_rounds_with_one_checkpoint(tmp_path: Path) -> None:
    with Hospitals(tmp_path, NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=3, submit_s=20.0, merge_s=10.0, attest_s=10.0, blind=True)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join(90)
        assert len(set(hospitals.finals.values())) == 1
        hospitals.stop()
