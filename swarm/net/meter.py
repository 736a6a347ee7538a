"""What a transport counts, for people and for their monitoring: bytes, round-trip times, losses, refused strangers."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from swarm.encoding import Address

RATE_S = 10.0
"""Rates are those of about so many seconds."""
REASONS_MAX = 32
"""Kinds of refusals that are told apart."""


@dataclass
class Traffic:
    """What was exchanged with one member since this process began."""

    sent_bytes: int = 0
    received_bytes: int = 0
    round_trip_s: float | None = None
    """Of the last ping on an open connection."""
    connections: int = 0
    """Connections made."""
    lost: int = 0
    """Connections that ended without our wish."""
    dials_failed: int = 0
    last_failure: str = ""
    """Why the last dial failed."""
    requests: int = 0
    requests_failed: int = 0
    relay: str = ""
    """Address of the member that relays the connection in use, if one does; its bytes count for that one as well."""
    dropped: int = 0
    """Messages that gave way because the queue to it was full."""
    pauses: int = 0
    """How often it said more than its share, and was not read from until that was paid."""
    _samples: deque[tuple[float, int, int]] = field(default_factory=deque, repr=False)

    def sample(self, now_s: float) -> None:
        """Remember the counters of this moment for `rates`."""
        self._samples.append((now_s, self.sent_bytes, self.received_bytes))
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - RATE_S:
            self._samples.popleft()

    def rates(self, now_s: float) -> tuple[float, float]:
        """Bytes a second sent and received, over the last ten seconds or so."""
        self.sample(now_s)
        begin_s, sent, received = self._samples[0]
        past_s = now_s - begin_s
        if past_s <= 0:
            return 0.0, 0.0
        return (self.sent_bytes - sent) / past_s, (self.received_bytes - received) / past_s


class Meter:
    """The counters of one transport."""

    def __init__(self) -> None:
        self.peers: dict[Address, Traffic] = {}
        """Members, by address. Who is removed from the consortium is forgotten."""
        self.refused: Counter[str] = Counter()
        """Connections that never got as far as a message, by what was wrong with them."""

    def of(self, member: Address) -> Traffic:
        """The counters of a member."""
        return self.peers.setdefault(member, Traffic())

    def refuse(self, kind: str) -> None:
        """Count a connection that was sent away."""
        self.refused[kind if kind in self.refused or len(self.refused) < REASONS_MAX else "other"] += 1
