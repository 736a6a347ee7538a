"""How messages lie on a stream: a kind, a protocol's name, a length, the payload.

The length comes first and nothing is taken for whole before it has arrived, so a connection that is cut in the
middle is never mistaken for an end; that the bytes are the sender's is what TLS and noise prove.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from swarm.errors import PeerError
from swarm.net.transport import MESSAGE_MAX_BYTES

PROTOCOL = "/swarm/frames/1.0.0"

_HEAD = struct.Struct("!BBI")
_NAME_MAX = 64
_SMALL_BYTES = 4 << 10


class Kind(IntEnum):
    """What a frame is."""

    MESSAGE = 0
    REQUEST = 1
    ANSWER = 2
    DECLINED = 3
    """The payload is the reason, UTF-8."""


class Frame(NamedTuple):
    """One message on a stream."""

    kind: Kind
    protocol: str
    """Empty for answers."""
    payload: bytes | memoryview
    """A view of the place that was named for it, or bytes."""


def head(kind: Kind, protocol: str, size_bytes: int) -> bytes:
    """What stands before a payload of this size."""
    name = protocol.encode()
    if len(name) > _NAME_MAX:
        raise ValueError(f"a protocol's name has at most {_NAME_MAX} bytes, found {protocol!r}")
    return _HEAD.pack(kind, len(name), size_bytes) + name


class Reader:
    """Cuts what arrives on one stream into frames; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self.into: memoryview | None = None
        """Where the payload of the next answer goes, if there is room for it."""
        self._head = bytearray()
        self._kind = Kind.MESSAGE
        self._name_size = 0
        self._size = 0
        self._left = 0
        """Bytes of name and payload still to come."""
        self._direct: memoryview | None = None
        """Where the payload that is on its way goes."""
        self._parts: list[bytes] = []
        self._small = bytearray()
        self._names: dict[bytes, str] = {}

    @property
    def held_bytes(self) -> int:
        """What is kept here of a frame that is not whole."""
        return self._size - self._left if self._left and self._direct is None else 0

    def receive(self, data: memoryview) -> Iterator[Frame]:
        """The frames that are whole now; of `data` nothing is kept.

        Raises:
            PeerError: an unknown kind, a name that is no text, or a frame longer than a message may be.
        """
        position, size = 0, len(data)
        while position < size:
            if not self._left:
                if not self._head and size - position >= _HEAD.size:
                    self._read_head(data, position)
                    position += _HEAD.size
                else:
                    taken = min(_HEAD.size - len(self._head), size - position)
                    self._head += data[position : position + taken]
                    position += taken
                    if len(self._head) < _HEAD.size:
                        return
                    self._read_head(self._head, 0)
                    self._head.clear()
                if self._direct is None and size - position >= self._left:
                    end = position + self._left
                    self._left = 0
                    yield self._frame(data[position:end])
                    position = end
                continue
            taken = min(self._left, size - position)
            self._keep(data[position : position + taken])
            position += taken
            self._left -= taken
            if not self._left:
                yield self._kept()

    def _keep(self, part: memoryview) -> None:
        """Small parts are gathered first: an object of its own costs more than few bytes do."""
        if self._direct is not None:
            start = self._size - self._left
            self._direct[start : start + len(part)] = part
            return
        if len(part) < _SMALL_BYTES:
            self._small += part
            return
        if self._small:
            self._parts.append(bytes(self._small))
            self._small.clear()
        self._parts.append(bytes(part))

    def _kept(self) -> Frame:
        if self._direct is not None:
            payload, self._direct = self._direct, None
            return Frame(self._kind, "", payload)
        whole = b"".join((*self._parts, self._small))
        self._parts.clear()
        self._small.clear()
        return self._frame(whole)

    def _read_head(self, data: bytearray | memoryview, position: int) -> None:
        kind, name_size, payload_size = _HEAD.unpack_from(data, position)
        if kind > Kind.DECLINED or name_size > _NAME_MAX:
            raise PeerError(f"not a frame: kind {kind}, a name of {name_size} bytes")
        if payload_size > MESSAGE_MAX_BYTES:
            raise PeerError(f"a message of {payload_size} bytes is on its way, at most {MESSAGE_MAX_BYTES} are read")
        self._kind, self._name_size = _KINDS[kind], name_size
        self._size = self._left = name_size + payload_size
        into = self.into
        if into is not None and kind == Kind.ANSWER and not name_size and 0 < payload_size <= len(into):
            self._direct = into[:payload_size]

    def _frame(self, body: bytes | memoryview) -> Frame:
        # Of a whole `bytes` the whole slice is itself: a large answer has no name and is not copied again.
        payload = bytes(body[self._name_size :])
        name = bytes(body[: self._name_size])
        protocol = self._names.get(name)
        if protocol is None:
            try:
                protocol = name.decode()
            except UnicodeDecodeError as error:
                raise PeerError("a protocol's name that is no text") from error
            if len(self._names) < 64:
                self._names[name] = protocol
        return Frame(self._kind, protocol, payload)


_KINDS = tuple(Kind)
