"""The messages of circuit relay v2, as bytes: what an initiator, a relay and a target say before bytes flow.

Each is protobuf behind its length. They come from members, yet whoever answers one has read at most `MESSAGE_MAX`
bytes of it, and fields that are not known are passed over, as protobuf asks.

Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.identity import address_of_peer_id, peer_id_bytes, peer_id_text

HOP, STOP = "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop"
MESSAGE_MAX = 4096
"""go-libp2p's bound; ours have about 60 bytes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class HopKind(IntEnum):
    """What an initiator and a relay say to each other."""

    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopKind(IntEnum):
    """What a relay and a target say to each other."""

    CONNECT = 0
    STATUS = 1


class Status(IntEnum):
    """The outcome."""

    NONE = 0
    """Not said: the message is none that answers."""
    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True)
class Message:
    """A HopMessage or a StopMessage; what it lacks is empty or 0."""

    kind: int
    peer_id: str = ""
    """Of the target in a hop, of the initiator in a stop."""
    status: int = Status.NONE
    duration_s: int = 0
    """How long a relayed connection may live; 0 is without end."""
    data_max: int = 0
    """Bytes in each direction; 0 is without end."""
    expires_s: int = 0
    """Unix time until which a reservation holds."""

    @property
    def peer(self) -> Address:
        """Whose PeerID it is. PeerError: no member's."""
        try:
            return address_of_peer_id(self.peer_id)
        except ValueError as error:
            raise PeerError(f"a message to or from a relay names {self.peer_id[:80]!r}: {error}") from error


# Field numbers: peer, limit, status, reservation. A StopMessage has no reservation.
_HOP_FIELDS, _STOP_FIELDS = (2, 4, 5, 3), (2, 3, 4, 0)


def encode(message: Message, *, hop: bool) -> bytes:
    """The message behind its length, fields in the order of their numbers."""
    peer, limit, status, reservation = _HOP_FIELDS if hop else _STOP_FIELDS
    fields = {1: _number(1, message.kind)}
    if message.peer_id:
        fields[peer] = _bytes(peer, _bytes(1, peer_id_bytes(message.peer_id)))
    if message.expires_s and hop:
        fields[reservation] = _bytes(reservation, _number(1, message.expires_s))
    if message.duration_s or message.data_max:
        fields[limit] = _bytes(limit, _number(1, message.duration_s) + _number(2, message.data_max))
    if message.status:
        fields[status] = _number(status, message.status)
    body = b"".join(fields[number] for number in sorted(fields))
    return _varint(len(body)) + body


def decode(body: bytes, *, hop: bool) -> Message:
    """The message in a body without its length. PeerError: it is none."""
    peer, limit, status, reservation = _HOP_FIELDS if hop else _STOP_FIELDS
    found: dict[str, int] = {}
    peer_id = b""
    for number, value in _fields(body):
        if number == 1:
            found["kind"] = _whole(value)
        elif number == peer:
            peer_id = next((_part(inner) for at, inner in _fields(_part(value)) if at == 1), b"")
        elif number == limit:
            inner = dict(_fields(_part(value)))
            found["duration_s"], found["data_max"] = _whole(inner.get(1, 0)), _whole(inner.get(2, 0))
        elif number == status:
            found["status"] = _whole(value)
        elif number == reservation:
            found["expires_s"] = _whole(dict(_fields(_part(value))).get(1, 0))
    if "kind" not in found:
        raise PeerError("a message to or from a relay does not say what it is")
    return Message(peer_id=peer_id_text(peer_id), **found)


class Reader:
    """Takes what arrives until one message is whole."""

    def __init__(self, *, hop: bool) -> None:
        self.rest = b""
        """What followed the message."""
        self._hop = hop
        self._buffer = b""

    def receive(self, data: bytes | memoryview) -> Message | None:
        """The message, once it is whole. PeerError: it is none, or longer than one may be."""
        self._buffer += data
        try:
            size, position = _read_varint(self._buffer, 0)
        except IndexError:
            return None
        if size > MESSAGE_MAX:
            raise PeerError(f"a message to or from a relay has {size} bytes, at most {MESSAGE_MAX} are read")
        if len(self._buffer) < position + size:
            return None
        body, self.rest = self._buffer[position : position + size], self._buffer[position + size :]
        self._buffer = b""
        return decode(body, hop=self._hop)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number and where the next thing begins. IndexError: the data ends before it."""
    value = 0
    for place in range(10):
        byte = data[position + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, position + place + 1
    raise PeerError("a number in a message to or from a relay has more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field; those of fixed width, which these messages have none of, as 0."""
    position = 0
    try:
        while position < len(data):
            tag, position = _read_varint(data, position)
            value: int | bytes = 0
            if tag & 7 == _VARINT:
                value, position = _read_varint(data, position)
            elif tag & 7 == _BYTES:
                size, position = _read_varint(data, position)
                value = data[position : position + size]
                position += size
            elif tag & 7 in (_FIXED64, _FIXED32):
                position += 8 if tag & 7 == _FIXED64 else 4
            else:
                raise PeerError(f"no protobuf: a field of wire type {tag & 7}")
            if position > len(data):
                raise PeerError("a message to or from a relay ends within a field")
            yield tag >> 3, value
    except IndexError:
        raise PeerError("a message to or from a relay ends within a field") from None


def _whole(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise PeerError("a message to or from a relay has bytes where a number belongs")
    return value


def _part(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise PeerError("a message to or from a relay has a number where bytes belong")
    return value
