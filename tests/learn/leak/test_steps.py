"""A leak check that is stopped goes on where it was, and never with another check's results."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.errors import ConfigError
from swarm.learn.leak.steps import Steps, forget


def test_what_is_worked_out_once_is_kept_for_the_same_check_alone(tmp_path: Path) -> None:
    made = []

    def make() -> list[float]:
        made.append(1)
        return [0.5, float(len(made))]

    place = tmp_path / "steps"
    first = Steps(place, {"seed": 1}).of("losses 0", make)
    assert Steps(place, {"seed": 1}).of("losses 0", make) == first == [0.5, 1.0]
    assert Steps(place, {"seed": 2}).of("losses 0", make) == [0.5, 2.0]
    assert Steps(None, {"seed": 1}).of("losses 0", make) == [0.5, 3.0]
    for path in place.rglob("*.json"):
        path.write_text(path.read_text()[:-3])  # a crash while it was written
    assert Steps(place, {"seed": 1}).of("losses 0", make) == [0.5, 4.0]
    forget(place)
    assert not place.exists()


def test_a_step_that_fails_leaves_nothing_behind_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Steps(tmp_path / "steps", {}).of("one", fails)
    assert not (tmp_path / "steps").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Steps(tmp_path / "file", {}).of("one", lambda: 1)
