"""A site's cap on what it sends: a token bucket that all its connections share, as a rule over values and time."""

from __future__ import annotations

BURST_S = 0.1
"""So much of a second may leave at once."""


class Pace:
    """How much may be sent now.

    Args:
        bytes_s: the cap in bytes (or whatever is counted) a second; None for none.
        burst_s: so much of a second, or so many seconds' worth, may go at once.
    """

    def __init__(self, bytes_s: float | None, *, burst_s: float = BURST_S) -> None:
        if bytes_s is not None and bytes_s <= 0:
            raise ValueError(f"a cap of {bytes_s} bytes a second lets nothing through")
        self._bytes_s = bytes_s
        self._burst_s = burst_s
        self._credit = 0.0 if bytes_s is None else bytes_s * burst_s
        self._at_s = 0.0

    def piece_bytes(self, size_bytes: int) -> int:
        """How much of `size_bytes` to send at once, so that no piece is more than a burst."""
        return size_bytes if self._bytes_s is None else max(min(size_bytes, int(self._bytes_s * self._burst_s)), 1024)

    def wait_s(self, now_s: float) -> float:
        """How long bulk has to wait; 0.0 where it may go."""
        if self._bytes_s is None or self._credit >= 0:
            return 0.0
        self._refill(now_s, self._bytes_s)
        return max(-self._credit / self._bytes_s, 0.0)

    def spend(self, size_bytes: int, now_s: float) -> None:
        """So much leaves now. Votes and blocks spend too, but wait for nothing: bulk waits the longer."""
        if self._bytes_s is not None:
            self._refill(now_s, self._bytes_s)
            self._credit -= size_bytes

    def _refill(self, now_s: float, bytes_s: float) -> None:
        self._credit = min(self._credit + (now_s - self._at_s) * bytes_s, bytes_s * self._burst_s)
        self._at_s = now_s
