"""What may be under way to one node: the rule, and what lies in front of a vote because of it."""

from __future__ import annotations

from collections import deque

import pytest

from swarm.net.libp2p.windows import (
    ALL_BYTES,
    LINE_BYTES_S,
    LONG_S,
    NEAR_S,
    STREAM_MAX_BYTES,
    STREAM_MIN_BYTES,
    Windows,
    credit_is_due,
)
from swarm.net.libp2p.yamux import WINDOW_INITIAL, Session, What

READ_BYTES = 256 << 10


def test_a_stream_alone_has_all_of_it() -> None:
    assert Windows().part((0, 1), WINDOW_INITIAL, 0.0) == ALL_BYTES


@pytest.mark.parametrize("streams", [2, 4, 16, 40])
def test_streams_that_bring_much_share_it_evenly(streams: int) -> None:
    windows, parts = Windows(), [WINDOW_INITIAL] * streams
    for _ in range(20):
        for number in range(streams):
            parts[number] = windows.part((number % 4, number), (parts[number] + 1) // 2, 0.0)
    assert set(parts) == {ALL_BYTES // streams}


def test_who_stopped_leaves_its_part_to_the_others() -> None:
    windows = Windows()
    for number in range(4):
        part = windows.part((0, number), STREAM_MIN_BYTES, 0.0)
    assert part == ALL_BYTES // 4
    for _ in range(ALL_BYTES // STREAM_MIN_BYTES + 1):
        part = windows.part((0, 0), STREAM_MIN_BYTES, 0.0)
    assert part == ALL_BYTES


def test_no_crowd_leaves_a_stream_without_its_least() -> None:
    windows = Windows()
    parts = [windows.part((number, 1), 0, 0.0) for number in range(1000)]
    assert min(parts) == STREAM_MIN_BYTES


def test_a_long_line_is_filled_whoever_else_reads() -> None:
    windows = Windows()
    for number in range(40):
        windows.part((0, number), STREAM_MIN_BYTES, 0.0)
    assert windows.part((1, 1), STREAM_MIN_BYTES, 0.04) == int(0.04 * LINE_BYTES_S)
    assert windows.part((1, 1), STREAM_MIN_BYTES, 0.3) == STREAM_MAX_BYTES
    assert windows.part((1, 1), STREAM_MIN_BYTES, LONG_S) < LONG_S * LINE_BYTES_S


class Line:
    """A sender with more than it can send, a receiver, and a kernel between them that takes whatever comes."""

    def __init__(self, windows: Windows, streams: int, round_trip_s: float = 0.0) -> None:
        self.sender, self.receiver = Session(initiator=True), Session(initiator=False, windows=windows)
        self.receiver.round_trip_s = round_trip_s
        self.woken = 0
        self.streams = [self.sender.open() for _ in range(streams)]
        self.under_way: deque[bytes] = deque()
        self._piece = bytes(8 << 20)

    @property
    def waits_bytes(self) -> int:
        """What is sent and not read."""
        return sum(map(len, self.under_way))

    def turn(self) -> None:
        """Send what credit allows, read once, answer with credit."""
        for stream in self.streams:
            if stream.queued < len(self._piece):
                self.sender.write(stream, self._piece)
        while data := self.sender.outgoing(READ_BYTES):
            self.under_way.append(data)
        for what, _, _ in self.receiver.receive(memoryview(self.under_way.popleft())):
            assert what in (What.OPENED, What.DATA)
        credit = self.receiver.outgoing(READ_BYTES)
        self.woken += bool(credit)
        self.sender.receive(memoryview(credit))


def waiting_bytes(lines: list[Line]) -> int:
    """The most that waits to be read on all lines together, once streams know their parts."""
    most = 0
    for number in range(300):
        for line in lines:
            line.turn()
        if number >= 100:
            most = max(most, sum(line.waits_bytes for line in lines))
    return most


def test_what_lies_before_a_vote_is_bounded_over_all_senders() -> None:
    """It was 28 MB in the kernel with four senders, and up to 67 ms; each of them alone may still have all."""
    windows = Windows()
    together = waiting_bytes([Line(windows, 4) for _ in range(4)])
    assert ALL_BYTES // 2 < together <= ALL_BYTES
    assert ALL_BYTES // 2 < waiting_bytes([Line(Windows(), 1)]) <= ALL_BYTES
    apart = waiting_bytes([Line(Windows(), 4) for _ in range(4)])
    assert apart > 3 * together, "senders that do not share one bound show no less, so nothing was shown"


@pytest.mark.parametrize("round_trip_s", [0.0, NEAR_S])
def test_what_lies_before_a_vote_is_as_much_where_credit_comes_late(round_trip_s: float) -> None:
    together = waiting_bytes([Line(windows, 4, round_trip_s) for windows in [Windows()] for _ in range(4)])
    assert ALL_BYTES // 2 < together <= ALL_BYTES


def test_a_sender_next_door_wakes_half_as_often() -> None:
    """Each wake is for all of its streams that will soon be due; it was 1200 times, for as much."""

    def wakes(round_trip_s: float) -> int:
        windows = Windows()
        lines = [Line(windows, 4, round_trip_s) for _ in range(4)]
        waiting_bytes(lines)
        return sum(line.woken for line in lines)

    assert 200 < wakes(NEAR_S) <= 0.6 * wakes(0.0)


def test_a_line_that_is_not_short_never_runs_dry() -> None:
    assert credit_is_due(ALL_BYTES // 2, ALL_BYTES, NEAR_S * 1.01)
    assert credit_is_due(ALL_BYTES // 2, ALL_BYTES, 0.0), "nothing is known of it yet"
    assert not credit_is_due(ALL_BYTES // 2, ALL_BYTES, NEAR_S)
