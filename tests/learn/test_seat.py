"""A seat's update file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm.config import SiteConfig
from swarm.errors import StorageError
from swarm.learn.seat import Seat


def seat_in(folder: Path) -> tuple[Seat, Path]:
    """A seat that has no node yet, and where its node would leave a file."""
    site: Any = SimpleNamespace(folder=folder)
    site.next_update = SiteConfig.next_update.fget(site)  # type: ignore[attr-defined]
    return Seat(SimpleNamespace(site=site), "run"), site.next_update  # type: ignore[arg-type]


def test_an_update_is_written_over_what_the_node_left_and_only_once(tmp_path: Path) -> None:
    seat, left = seat_in(tmp_path)
    left.parent.mkdir()
    left.write_bytes(b"an update of long ago")
    with seat.update_file() as first, seat.update_file() as second:
        assert first.read_bytes() == b"an update of long ago"
        assert not second.exists()
    assert list(left.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    seat, left = seat_in(tmp_path)
    left.parent.write_text("a file in the way")
    with pytest.raises(StorageError, match="an update cannot be written to"), seat.update_file():
        pass
