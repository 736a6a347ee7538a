"""How much one member may say, and how often one address may connect: token buckets as rules over values and time.

Nothing is lost by a member's share: who has said more is not read from until it is paid, so that it waits and not we.
"""

from __future__ import annotations

from collections import OrderedDict

from swarm.net.libp2p.pace import Pace

MESSAGES_S = 1000.0
"""Messages and requests of one protocol that one member may bring a second; a busy validator brings tens."""
FRAMES_S = 10_000.0
"""Short frames (pings, credit, streams that come and go) of all its streams."""
SAVED_S = 2.0
"""So many seconds' worth may be saved up."""
PROTOCOLS_MAX = 32
"""Protocols with a bucket of their own; names are a stranger's to choose, so the others share one."""
WAIT_MAX_S = 5.0
"""The longest that a member is not read from in one go: it has to be heard before it counts as silent."""
CONNECTIONS_S, CONNECTIONS_SAVED_S = 20.0, 20.0
"""Connections that one address may begin; a handshake takes some 2 ms of a core. Many members may be behind one."""
HOSTS_MAX = 4096


class Shares:
    """What one member has said, over all its connections."""

    def __init__(self) -> None:
        self._frames = Pace(FRAMES_S, burst_s=SAVED_S)
        self._messages: dict[str, Pace] = {}

    def frames(self, count: int, now_s: float) -> None:
        """So many short frames came."""
        self._frames.spend(count, now_s)

    def message(self, protocol: str, now_s: float) -> None:
        """A message or request of this protocol came."""
        name = protocol if protocol in self._messages or len(self._messages) < PROTOCOLS_MAX else ""
        self._messages.setdefault(name, Pace(MESSAGES_S, burst_s=SAVED_S)).spend(1, now_s)

    def wait_s(self, now_s: float) -> float:
        """How long nothing is to be read from it; 0.0 where it may go on."""
        longest_s = self._frames.wait_s(now_s)
        for pace in self._messages.values():
            longest_s = max(longest_s, pace.wait_s(now_s))
        return min(longest_s, WAIT_MAX_S)


class Doors:
    """How often each address has come lately."""

    def __init__(self) -> None:
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    def knock(self, host: str, now_s: float) -> bool:
        """An address connects; whether it may."""
        pace = self._paces.setdefault(host, Pace(CONNECTIONS_S, burst_s=CONNECTIONS_SAVED_S))
        self._paces.move_to_end(host)
        if len(self._paces) > HOSTS_MAX:
            self._paces.popitem(last=False)
        if pace.wait_s(now_s) > 0:
            return False
        pace.spend(1, now_s)
        return True
