"""How much may be under way to this node: its busy streams share one bound. A rule over values, without a clock.

What was sent and is not read yet lies in the kernel, up to 32 MB a connection, and a vote behind it waits until all of
that is decrypted. So credit bounds how late small messages are, and all connections that one loop reads share it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

ALL_BYTES = 4 << 20
"""Of all streams together, on short lines: 5 ms of a core that decrypts. A single one with less costs more CPU."""
STREAM_MIN_BYTES = 64 << 10
"""However many share it."""
STREAM_MAX_BYTES = 8 << 20
LONG_S = 0.01
"""A round trip from which on a line counts as long. On shorter ones the bound for all is enough for 3 Gbit/s."""
LINE_BYTES_S = 125e6
"""A stream of a long line may fill 1 Gbit/s: what is under way there is on the line, and waits for nobody."""

NEAR_S = 0.002
"""A round trip up to which credit may come late: what is left of it meanwhile fills 4 Gbit/s."""

Reader: TypeAlias = tuple[int, int]
"""A connection, a stream."""


def credit_is_due(brought_bytes: int, limit_bytes: int, round_trip_s: float) -> bool:
    """Whether a stream that brought so much of what it may have under way should hear of more.

    Every credit wakes the other side, which on a busy machine takes the processor from who decrypts; so next door it
    comes after three quarters. Elsewhere the other half is under way until it arrives.

    Args:
        round_trip_s: of its connection; 0.0 where it is not known.
    """
    return brought_bytes * 4 >= limit_bytes * (3 if 0 < round_trip_s <= NEAR_S else 2)


class Windows:
    """Which streams brought much lately, by all that came since."""

    def __init__(self) -> None:
        self._read_bytes = 0
        self._readers: OrderedDict[Reader, int] = OrderedDict()

    def part(self, reader: Reader, brought_bytes: int, round_trip_s: float) -> int:
        """What a stream may have under way that brought so many bytes since it asked last.

        Args:
            brought_bytes: at least a quarter of what it was given.
            round_trip_s: of its connection; 0.0 where it is not known.
        """
        self._read_bytes += brought_bytes
        self._readers[reader] = self._read_bytes
        self._readers.move_to_end(reader)
        # Each of n that read equally fast asks again after three quarters of its n-th at the latest.
        while self._read_bytes - next(iter(self._readers.values())) > ALL_BYTES:
            self._readers.popitem(last=False)
        line_bytes = int(round_trip_s * LINE_BYTES_S) if round_trip_s > LONG_S else STREAM_MIN_BYTES
        return min(max(ALL_BYTES // len(self._readers), line_bytes), STREAM_MAX_BYTES)
