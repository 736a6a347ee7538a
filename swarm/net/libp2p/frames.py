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
    payload: bytes


def head(kind: Kind, protocol: str, size_bytes: int) -> bytes:
    """What stands before a payload of this size."""
    name = protocol.encode()
    if len(name) > _NAME_MAX:
        raise ValueError(f"a protocol's name has at most {_NAME_MAX} bytes, found {protocol!r}")
    return _HEAD.pack(kind, len(name), size_bytes) + name


class Reader:
    """Cuts what arrives on one stream into frames; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _HEAD.size
        self._names: dict[bytes, str] = {}

    def receive(self, data: memoryview) -> Iterator[Frame]:
        """The frames that are whole now.

        Raises:
            PeerError: an unknown kind, a name that is no text, or a frame longer than a message may be.
        """
        position, size = 0, len(data)
        while position < size:
            if not self._have and size - position >= _HEAD.size:
                kind, name_size, payload_size = self._read_head(data, position)
                end = position + _HEAD.size + name_size + payload_size
                if end <= size:
                    start = position + _HEAD.size
                    yield self._frame(
                        kind, bytes(data[start : start + name_size]), bytes(data[start + name_size : end])
                    )
                    position = end
                    continue
                self._need = end - position
            taken = min(self._need - self._have, size - position)
            self._parts.append(bytes(data[position : position + taken]))
            self._have += taken
            position += taken
            if self._have < self._need:
                return
            whole = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
            kind, name_size, payload_size = self._read_head(whole, 0)
            self._need = _HEAD.size + name_size + payload_size
            if self._have < self._need:
                self._parts = [whole]
                continue
            start = _HEAD.size
            yield self._frame(kind, whole[start : start + name_size], whole[start + name_size :])
            self._parts = []
            self._have = 0
            self._need = _HEAD.size

    def _read_head(self, data: bytes | memoryview, position: int) -> tuple[Kind, int, int]:
        kind, name_size, payload_size = _HEAD.unpack_from(data, position)
        if kind > Kind.DECLINED or name_size > _NAME_MAX:
            raise PeerError(f"not a frame: kind {kind}, a name of {name_size} bytes")
        if payload_size > MESSAGE_MAX_BYTES:
            raise PeerError(f"a message of {payload_size} bytes is on its way, at most {MESSAGE_MAX_BYTES} are read")
        return _KINDS[kind], name_size, payload_size

    def _frame(self, kind: Kind, name: bytes, payload: bytes) -> Frame:
        protocol = self._names.get(name)
        if protocol is None:
            try:
                protocol = name.decode()
            except UnicodeDecodeError as error:
                raise PeerError("a protocol's name that is no text") from error
            if len(self._names) < 64:
                self._names[name] = protocol
        return Frame(kind, protocol, payload)


_KINDS = tuple(Kind)
