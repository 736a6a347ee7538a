"""The port through which a node speaks to other members: whole messages, named protocols, members only.

Two stand behind it: `swarm.net.libp2p` (real peers) and `swarm.net.memory` (the simulator). One test suite
runs over both. A message is at most `MESSAGE_MAX_BYTES`; larger things are objects (`swarm.net.transfer`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.net.meter import Meter

MESSAGE_MAX_BYTES = 16 << 20
"""One message or answer; objects travel in ranges of chunks below it."""

Handler: TypeAlias = Callable[[Address, bytes], Awaitable[bytes]]
"""Called with the proven sender and the payload; its answer goes back (for `send` and `broadcast` it is dropped)."""


class Transport(Protocol):
    """Messages to and from members. Every call and handler belongs to the caller's asyncio loop."""

    @property
    def me(self) -> Address:
        """This node's address; its PeerID proves it."""

    @property
    def meter(self) -> Meter:
        """What was exchanged with whom since this process began, and who was sent away."""

    async def start(self) -> None:
        """Listen and begin to keep connections to the members. ConfigError: the port is in use, or not ours to take."""

    async def close(self) -> None:
        """Close every connection; no task, thread or socket is left."""

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer `protocol`. Before `start`. A PeerError or ValueError from the handler drops the message."""

    def set_members(self, members: Mapping[Address, str]) -> None:
        """The members and their endpoints, by the ledger. Who is no longer in it is disconnected at once.

        The caller may include itself. An endpoint is a multiaddr that ends in `/p2p/PEERID`.
        """

    def connected(self) -> frozenset[Address]:
        """The members that can be reached now, without this node."""

    async def request(self, member: Address, protocol: str, payload: bytes, *, timeout_s: float) -> bytes:
        """The member's answer.

        Raises:
            UnavailableError: not connected, connection lost, no answer in `timeout_s`, or it declined.
            PeerError: the answer broke the protocol.
        """

    async def request_into(
        self, member: Address, protocol: str, payload: bytes, into: memoryview, *, timeout_s: float
    ) -> int:
        """How many bytes the member answered; they are in `into` from its beginning, which this call may write to.

        Saves memory and a copy where answers are large.

        Raises:
            UnavailableError: as `request`.
            PeerError: the answer is longer than `into`, or broke the protocol.
        """

    def send(self, member: Address, protocol: str, payload: bytes) -> None:
        """Hand over a message that needs no answer, in order per member. It may be lost: nothing here retries.

        Each member has a bounded queue; when it is full the oldest message goes.
        """

    def broadcast(self, protocol: str, payload: bytes) -> None:
        """`send` to every member but this one."""


def answer_into(answer: bytes | memoryview, into: memoryview, member: Address) -> int:
    """The size of an answer that is put into `into` unless it lies there. PeerError: it is longer."""
    size = len(answer)
    if isinstance(answer, memoryview):
        return size
    if size > len(into):
        raise PeerError(f"{size} bytes of answer, at most {len(into)} were asked for", member=member)
    into[:size] = answer
    return size
