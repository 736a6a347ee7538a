"""What the streams of a connection are for: requests of ours, one after the other, and what the other side opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from swarm.net.libp2p import frames
from swarm.net.libp2p.negotiation import Negotiation

Answered: TypeAlias = Callable[[bytes | memoryview | None, str], None]
"""Called once with the answer, a view if it lies where it was wanted, and ""; or with None and the reason."""


class Ask:
    """One request on its way, until its `done` was called or it was withdrawn."""

    __slots__ = ("done", "head", "into", "payload")

    def __init__(self, head: bytes, payload: bytes, done: Answered, into: memoryview | None) -> None:
        self.head = head
        self.payload = payload
        self.done = done
        self.into = into


class Outward:
    """A stream that we opened: for messages, or for requests one after the other."""

    __slots__ = ("ask", "negotiation", "reader")

    def __init__(self) -> None:
        self.negotiation: Negotiation | None = Negotiation(offers=(frames.PROTOCOL,))
        self.reader = frames.Reader()
        self.ask: Ask | None = None


class Inward:
    """A stream that the other side opened."""

    __slots__ = ("answering", "ended", "negotiation", "pinging", "reader")

    def __init__(self, serves: tuple[str, ...]) -> None:
        self.negotiation: Negotiation | None = Negotiation(serves=serves)
        self.reader = frames.Reader()
        self.answering = False
        self.ended = False
        self.pinging = False
