"""A network inside one process, for the simulator and tests: the same port, no sockets, no threads, no wall clock.

Everything happens through the running loop's `call_at` and `time`, so that under a virtual clock a run is the
same every time. Messages, the wishes of fate about them, partitions and crashes are here; what members say to
each other is not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from swarm.encoding import Address, short
from swarm.errors import UnavailableError
from swarm.net.inbox import Inbox
from swarm.net.meter import Meter
from swarm.net.transport import MESSAGE_MAX_BYTES, Handler, answer_into

Fate: TypeAlias = Callable[[Address, Address, str, int], float | None]
"""(from, to, protocol, size in bytes) of one message or answer → its delay in seconds, or None: it is lost."""

LINK_MAX = 1000
LINK_MAX_BYTES = 2 * MESSAGE_MAX_BYTES
"""Messages under way from one member to another, as the real transport's queue: the oldest goes."""


def steady(delay_s: float) -> Fate:
    """Every message takes `delay_s`, none is lost."""
    return lambda source, target, protocol, size: delay_s


class MemoryNetwork:
    """Where memory transports meet.

    Args:
        fate: decides about every message and every answer; may be replaced at any time.
        notice_s: how long after a partition begins `connected` still names the members behind it (a cut path
            makes no sound; libp2p notices it by missing pings).
    """

    def __init__(self, fate: Fate | None = None, *, notice_s: float = 30.0) -> None:
        self.fate: Fate = fate or steady(0.001)
        self._notice_s = notice_s
        self._endpoints: dict[Address, MemoryTransport] = {}
        self._side: dict[Address, int] = {}
        self._parted_s = 0.0

    def transport(self, me: Address) -> MemoryTransport:
        """An endpoint for `me`; it is reachable once it has started. After a crash: a new one for the same address."""
        return MemoryTransport(self, me)

    def partition(self, *sides: Iterable[Address]) -> None:
        """Only messages within a side arrive from now on; who is in no side given is in one more, together."""
        self._side = {address: number for number, side in enumerate(sides, 1) for address in side}
        self._parted_s = asyncio.get_running_loop().time()

    def heal(self) -> None:
        """End the partition."""
        self._side = {}

    def crash(self, address: Address) -> None:
        """Kill the endpoint: its connections drop, its handlers are cancelled, requests under way fail."""
        endpoint = self._endpoints.get(address)
        if endpoint is not None:
            endpoint._stop()

    def _parted(self, a: Address, b: Address) -> bool:
        return self._side.get(a, 0) != self._side.get(b, 0)

    def _noticed(self, a: Address, b: Address) -> bool:
        return self._parted(a, b) and asyncio.get_running_loop().time() >= self._parted_s + self._notice_s


class MemoryTransport:
    """`Transport` over a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, me: Address) -> None:
        self._network = network
        self._me = me
        self._members: tuple[Address, ...] = ()
        self._inbox = Inbox()
        self._links: dict[Address, Link] = {}
        self._asked: dict[asyncio.Future[bytes], Address] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._running = False
        self.meter = Meter()
        """Stays empty: nothing is measured in a simulated network."""

    @property
    def me(self) -> Address:
        """This node's address."""
        return self._me

    async def start(self) -> None:
        """Be reachable. ValueError if the address is in use: one node has one address."""
        if self._me in self._network._endpoints:
            raise ValueError(f"{short(self._me)} is on this network already")
        self._network._endpoints[self._me] = self
        self._running = True

    async def close(self) -> None:
        """Leave the network and wait until every handler has ended."""
        self._stop()
        await self._inbox.close()

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer `protocol`."""
        self._inbox.serve(protocol, handler)

    def set_members(self, members: Mapping[Address, str]) -> None:
        """Whom this node speaks to; who is no longer named is cut at once."""
        self._members = tuple(address for address in members if address != self._me)
        if not self._running:
            return
        for address, other in list(self._network._endpoints.items()):
            if address != self._me and address not in self._members:
                self._drop(address)
                other._drop(self._me)

    def connected(self) -> frozenset[Address]:
        """The members that run, name this node as a member too, and are not known to be behind a partition."""
        return frozenset(member for member in self._members if self._peer(member) is not None)

    async def request(self, member: Address, protocol: str, payload: bytes, *, timeout_s: float) -> bytes:
        """The member's answer; UnavailableError as the port says."""
        _check_size(payload)
        peer = self._peer(member)
        if peer is None:
            raise UnavailableError(f"{short(member)} is not connected")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()

        def late() -> None:
            if not answered.done():
                error = UnavailableError(f"{short(member)} gave no answer to {protocol} in {timeout_s:g} s")
                answered.set_exception(error)

        def arrived() -> None:
            peer._inbox.request(self._me, protocol, payload, reply)

        def reply(answer: bytes | None, reason: str) -> None:
            peer._carry(self, protocol, len(answer or b""), lambda: learn(answer, reason))

        def learn(answer: bytes | None, reason: str) -> None:
            if answered.done():
                return
            if answer is None:
                answered.set_exception(UnavailableError(f"{short(member)} declined {protocol}: {reason}"))
            else:
                answered.set_result(answer)

        timer = loop.call_later(timeout_s, late)
        self._asked[answered] = member
        try:
            self._carry(peer, protocol, len(payload), arrived)
            return await answered
        finally:
            timer.cancel()
            del self._asked[answered]

    async def request_into(
        self, member: Address, protocol: str, payload: bytes, into: memoryview, *, timeout_s: float
    ) -> int:
        """The size of the member's answer, which is in `into`; errors as the port says."""
        return answer_into(await self.request(member, protocol, payload, timeout_s=timeout_s), into, member)

    def send(self, member: Address, protocol: str, payload: bytes) -> None:
        """Hand over a message that needs no answer, in order per member."""
        _check_size(payload)
        peer = self._peer(member)
        if peer is None:
            return
        delay_s = self._network.fate(self._me, member, protocol, len(payload))
        if delay_s is None:
            return
        link = self._links.get(member)
        if link is None or link.target is not peer:
            link = self._links[member] = Link(self, peer)
        link.put(delay_s, protocol, payload)

    def broadcast(self, protocol: str, payload: bytes) -> None:
        """`send` to every member but this one, in the order `set_members` named them."""
        for member in self._members:
            self.send(member, protocol, payload)

    def _peer(self, member: Address) -> MemoryTransport | None:
        other = self._network._endpoints.get(member)
        if other is None or not self._running or member not in self._members or self._me not in other._members:
            return None
        return None if self._network._noticed(self._me, member) else other

    def _carry(self, to: MemoryTransport, protocol: str, size_bytes: int, arrive: Callable[[], None]) -> None:
        """Let `arrive` happen at the other side after the delay that fate gives, if both are still there then."""
        if not (self._running and to._running):
            return
        delay_s = self._network.fate(self._me, to._me, protocol, size_bytes)
        if delay_s is None:
            return

        def deliver() -> None:
            self._timers.discard(timer)
            if self._reaches(to):
                arrive()

        timer = asyncio.get_running_loop().call_later(delay_s, deliver)
        self._timers.add(timer)

    def _reaches(self, to: MemoryTransport) -> bool:
        return (
            self._running
            and to._running
            and to._me in self._members
            and self._me in to._members
            and not self._network._parted(self._me, to._me)
        )

    def _drop(self, member: Address) -> None:
        """Lose the connection to `member`: what is under way to it is gone, what was asked of it fails."""
        link = self._links.pop(member, None)
        if link is not None:
            link.cut()
        for answered, asked in list(self._asked.items()):
            if asked == member and not answered.done():
                answered.set_exception(UnavailableError(f"the connection to {short(member)} was lost"))

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        del self._network._endpoints[self._me]
        self._inbox.cancel()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for member in list(dict.fromkeys([*self._links, *self._asked.values()])):
            self._drop(member)
        for other in self._network._endpoints.values():
            other._drop(self._me)


class Link:
    """What is under way from one endpoint to another: first in, first out, bounded, one timer for its head."""

    def __init__(self, source: MemoryTransport, target: MemoryTransport) -> None:
        self.target = target
        self._source = source
        self._queue: deque[tuple[float, str, bytes]] = deque()
        self._bytes = 0
        self._latest_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, delay_s: float, protocol: str, payload: bytes) -> None:
        """Arrive after `delay_s`, but not before what was put earlier."""
        loop = asyncio.get_running_loop()
        self._latest_s = max(self._latest_s, loop.time() + delay_s)
        self._queue.append((self._latest_s, protocol, payload))
        self._bytes += len(payload)
        while len(self._queue) > LINK_MAX or self._bytes > LINK_MAX_BYTES:
            self._bytes -= len(self._queue.popleft()[2])
        if self._timer is None:
            self._timer = loop.call_at(self._queue[0][0], self._arrive)

    def cut(self) -> None:
        """Lose everything."""
        self._queue.clear()
        self._bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arrive(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._queue and self._queue[0][0] <= now_s:
            _, protocol, payload = self._queue.popleft()
            self._bytes -= len(payload)
            if self._source._reaches(self.target):
                self.target._inbox.message(self._source._me, protocol, payload)
        if self._queue and self._timer is None:
            self._timer = loop.call_at(self._queue[0][0], self._arrive)


def _check_size(payload: bytes) -> None:
    if len(payload) > MESSAGE_MAX_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes, at most {MESSAGE_MAX_BYTES} travel")
