"""What merges saw is kept for people, bounded, and its loss stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.merge import UpdateReport
from swarm.node.reports import Reports
from swarm.rounds import Submission

SUBMISSIONS = [Submission(bytes([n]) * 20, bytes([n]) * 32, 10 * n) for n in (1, 2)]
SEEN = [UpdateReport(0.5, 0, 0.25), UpdateReport(1.5, 3, 0.75, 0.5, 0.9)]


def test_a_round_is_read_back_as_it_was_seen(tmp_path: Path) -> None:
    reports = Reports(tmp_path / "reports")
    reports.unusable(7, 10, b"\x03" * 20, "element 0 of x F32[1] is nan")
    reports.merged(7, 10, bytes(32), SUBMISSIONS, SEEN)
    reports.merged(7, 9, bytes(32), SUBMISSIONS, SEEN)
    reports.merged(8, 0, bytes(32), SUBMISSIONS, SEEN)
    first, second = Reports(tmp_path / "reports").of(7)
    assert (first["round"], second["round"]) == (9, 10)
    assert second["unusable"] == {"0x" + "03" * 20: "element 0 of x F32[1] is nan"}
    assert second["updates"][1] == {
        "member": "0x" + "02" * 20,
        "weight": 20,
        "norm": 1.5,
        "clipped": 3,
        "share": 0.75,
        "kept": 0.5,
        "cosine": 0.9,
    }


def test_the_oldest_rounds_are_forgotten(tmp_path: Path) -> None:
    reports = Reports(tmp_path, rounds_max=3)
    for round_ in range(10):
        reports.merged(1, round_, bytes(32), SUBMISSIONS, SEEN)
    assert [found["round"] for found in reports.of(1)] == [7, 8, 9]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"x" * (1 << 19)])
def test_a_broken_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    reports = Reports(tmp_path)
    (tmp_path / "1-0.json").write_bytes(content)
    assert reports.of(1) == []
    reports.merged(1, 0, bytes(32), SUBMISSIONS, SEEN)
    assert len(reports.of(1)) == 1


def test_a_disk_that_takes_nothing_stops_no_merge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "reports").write_text("a file where the folder belongs")
    Reports(tmp_path / "reports").merged(1, 0, bytes(32), SUBMISSIONS, SEEN)
    assert "what the merge saw is not kept" in caplog.text
