"""Yamux: many streams over one connection, as a machine without I/O. Bytes in, events and bytes out.

Written anew because the library's own holds a frame whole, warns instead of enforcing its window, polls while
the other side's is empty, gives up after 5 s of it, and takes a lost connection for the end of a stream.
Here whoever feeds the machine consumes every event before it asks what to send, so credit goes back by itself; what is
kept of a message is bounded one floor up, in `frames`.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md; the window doubles as go-yamux's does.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from typing import TypeAlias

from swarm.errors import PeerError
from swarm.net.libp2p.windows import STREAM_MAX_BYTES, Windows, credit_is_due

PROTOCOL = "/yamux/1.0.0"

WINDOW_INITIAL = 256 << 10
"""What a stream may send before it hears of more; the specification's."""
FRAME_MAX = 128 << 10
"""Payload of one frame that we send: an urgent one waits for at most this much of another stream."""
STREAMS_MAX = 16
"""Streams that the other side may have open, each with one unfinished message; ours are 9."""
REFUSED_MAX = 256
"""Streams refused for being too many before the connection is cut."""
CONTROL_MAX_BYTES = 64 << 10
"""Answers (pings, resets, credit) that wait to be sent: more means that the other side asks and does not read."""

SHORT_BYTES = 4 << 10
"""A frame below it is short: many of those cost more than what they bring."""

_HEADER = struct.Struct("!BBHII")
_DATA, _WINDOW, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8


class What(Enum):
    """What an event tells."""

    OPENED = auto()
    """The other side opened the stream."""
    DATA = auto()
    """Bytes of the stream: a view of what was given to `receive`."""
    END = auto()
    """The other side sends no more on it."""
    RESET = auto()
    """The other side gave the stream up; it is gone."""
    PONG = auto()
    """The answer to a ping."""
    GO_AWAY = auto()
    """The other side wants no new streams."""


class Stream:
    """One stream; `owner` is for whoever uses it."""

    __slots__ = (
        "ended", "finished", "finishing", "gone", "held", "id", "limit", "owner", "queue",
        "queued", "ready", "receivable", "sendable", "urgent", "window_max",
    )  # fmt: skip

    def __init__(self, number: int, *, urgent: bool) -> None:
        self.id = number
        self.urgent = urgent
        self.owner: object = None
        self.sendable = WINDOW_INITIAL
        self.receivable = WINDOW_INITIAL
        """What the other side may send still."""
        self.limit = WINDOW_INITIAL
        """What it may have under way; doubles while data flows, up to its part of what this node takes."""
        self.window_max = STREAM_MAX_BYTES
        self.held = False
        """No credit goes back: whoever uses the stream has nowhere to put more."""
        self.queue: deque[bytes | memoryview] = deque()
        self.queued = 0
        """Bytes given to `write` that have not left yet."""
        self.ready = False
        self.finishing = False
        self.finished = False
        self.ended = False
        self.gone = False
        """Reset, or ended on both sides: it takes nothing any more."""


Event: TypeAlias = tuple[What, Stream | None, memoryview]
_NOTHING = memoryview(b"")


class Session:
    """All streams of one connection.

    Args:
        initiator: this side dialled.
        windows: what may be under way to this node, over all its sessions; None: this is the only one.
    """

    def __init__(self, *, initiator: bool, streams_max: int = STREAMS_MAX, windows: Windows | None = None) -> None:
        self.round_trip_s = 0.0
        """What its line takes there and back; 0.0 until it is known."""
        self._windows = windows or Windows()
        self._streams: dict[int, Stream] = {}
        self._next_id = 1 if initiator else 2
        self._theirs = 0 if initiator else 1
        self._streams_max = streams_max
        self._inbound = 0
        self._refused = 0
        self._credit_due = False
        self.short = 0
        """Short frames that came, or that what came makes us send."""
        self._control = bytearray()
        self._urgent: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()
        self._header = bytearray()
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: Stream | None = None

    def open(self, *, urgent: bool = False) -> Stream:
        """A new stream; what is written to an urgent one goes before all others."""
        stream = Stream(self._next_id, urgent=urgent)
        self._next_id += 2
        self._streams[stream.id] = stream
        self._put(_WINDOW, _SYN, stream.id, 0)
        return stream

    def write(self, stream: Stream, data: bytes | memoryview) -> None:
        """Queue bytes; they are not copied before they leave."""
        if stream.gone or stream.finishing or not len(data):
            return
        stream.queue.append(data)
        stream.queued += len(data)
        self._make_ready(stream)

    def finish(self, stream: Stream) -> None:
        """Tell the other side that no more comes, after what is queued."""
        if not stream.gone and not stream.finishing:
            stream.finishing = True
            if not stream.queued:
                self._send_fin(stream)

    def reset(self, stream: Stream) -> None:
        """Give the stream up, both ways."""
        if not stream.gone:
            self._put(_WINDOW, _RST, stream.id, 0)
            self._forget(stream)

    def drop(self) -> None:
        """Nothing comes or leaves any more: every stream is gone, with what its owner holds."""
        for stream in tuple(self._streams.values()):
            self._forget(stream)
            stream.owner = None
        self._urgent.clear()
        self._bulk.clear()

    def all(self) -> Iterator[Stream]:
        """The streams that are not gone."""
        return iter(self._streams.values())

    def theirs(self) -> Iterator[Stream]:
        """The streams that the other side opened and that are not gone."""
        return (stream for stream in self._streams.values() if stream.id % 2 == self._theirs)

    def hold(self, stream: Stream) -> None:
        """Give the other side no more credit; what it was given may still come."""
        stream.held = True

    def release(self, stream: Stream) -> None:
        """Give credit again."""
        stream.held = False
        self._credit_due = self._credit_due or self._due(stream)

    def ping(self, value: int) -> None:
        """Ask for a sign of life."""
        self._put(_PING, _SYN, 0, value & 0xFFFFFFFF)

    def go_away(self) -> None:
        """Tell the other side to open no more streams."""
        self._put(_GO_AWAY, 0, 0, 0)

    @property
    def bulk_waits(self) -> bool:
        """A stream that is not urgent has bytes to send and the window for them."""
        return bool(self._bulk)

    def outgoing(self, size_bytes: int, *, bulk: bool = True) -> bytes:
        """The next bytes to send, about `size_bytes` of them; empty if there is nothing or no window.

        Args:
            bulk: streams that are not urgent may send, too.
        """
        if self._credit_due:
            self._give_credit()
        pieces: list[bytes | memoryview] = []
        total = len(self._control)
        if total:
            pieces.append(bytes(self._control))
            self._control.clear()
        while total < size_bytes:
            line = self._urgent or (self._bulk if bulk else None)
            if not line:
                break
            stream = line.popleft()
            stream.ready = False
            if stream.queued and not stream.gone:
                total += self._frame(stream, pieces)
                self._make_ready(stream)
                if stream.finishing and not stream.queued:
                    self._send_fin(stream)
                    pieces.append(bytes(self._control))
                    self._control.clear()
        return b"".join(pieces) if len(pieces) != 1 else bytes(pieces[0])

    def receive(self, data: memoryview) -> list[Event]:
        """What the bytes mean, in order.

        Raises:
            PeerError: they break the protocol; nothing further can be read from this connection.
        """
        events: list[Event] = []
        position, size = 0, len(data)
        while position < size:
            if self._body_left:
                taken = min(self._body_left, size - position)
                self._body(data[position : position + taken], events)
                position += taken
            elif self._header or size - position < _HEADER.size:
                taken = min(_HEADER.size - len(self._header), size - position)
                self._header += data[position : position + taken]
                position += taken
                if len(self._header) == _HEADER.size:
                    whole = _HEADER.unpack(self._header)
                    self._header.clear()
                    self._read_header(whole, events)
            else:
                self._read_header(_HEADER.unpack_from(data, position), events)
                position += _HEADER.size
        return events

    def _read_header(self, header: tuple[int, int, int, int, int], events: list[Event]) -> None:
        version, kind, flags, number, length = header
        if version != 0 or kind > _GO_AWAY:
            raise PeerError(f"not a yamux frame: version {version}, type {kind}")
        self.short += kind != _DATA or length < SHORT_BYTES
        if kind == _PING:
            if flags & _SYN:
                self._put(_PING, _ACK, 0, length)
            else:
                events.append((What.PONG, None, _NOTHING))
            return
        if kind == _GO_AWAY:
            events.append((What.GO_AWAY, None, _NOTHING))
            return
        if flags & _SYN:
            self._accept(number, events)
        stream = self._streams.get(number)
        if kind == _WINDOW:
            if stream is not None:
                stream.sendable += length
                if stream.sendable > 0xFFFFFFFF:
                    raise PeerError(f"stream {number}: more credit than a window can hold")
                self._make_ready(stream)
            self._flags(stream, flags, events)
            return
        if length > (stream.receivable if stream is not None else STREAM_MAX_BYTES):
            raise PeerError(f"stream {number}: {length} bytes sent past its window")
        if length:
            self._body_left, self._body_flags, self._body_stream = length, flags, stream
        else:
            self._flags(stream, flags, events)

    def _accept(self, number: int, events: list[Event]) -> None:
        if number % 2 != self._theirs or number == 0:
            raise PeerError(f"opened stream {number}, whose number is not its to give")
        if number in self._streams:
            raise PeerError(f"opened stream {number} twice")
        if self._inbound >= self._streams_max:
            self._refused += 1
            if self._refused > REFUSED_MAX:
                raise PeerError(f"opened more than {self._streams_max} streams, again and again")
            self._put(_WINDOW, _RST, number, 0)
            return
        stream = self._streams[number] = Stream(number, urgent=False)
        self._inbound += 1
        self._put(_WINDOW, _ACK, number, 0)
        events.append((What.OPENED, stream, _NOTHING))

    def _body(self, part: memoryview, events: list[Event]) -> None:
        stream = self._body_stream
        self._body_left -= len(part)
        if stream is not None and not stream.gone:
            stream.receivable -= len(part)
            events.append((What.DATA, stream, part))
            self._credit_due = self._credit_due or self._due(stream)
        if not self._body_left:
            self._body_stream = None
            self._flags(stream, self._body_flags, events)

    def _due(self, stream: Stream) -> bool:
        return credit_is_due(stream.limit - stream.receivable, stream.limit, self.round_trip_s)

    def _give_credit(self) -> None:
        """Streams that will be due soon come along with those that are, or the other side wakes for each by itself."""
        self._credit_due = False
        for stream in self._streams.values():
            if (stream.limit - stream.receivable) * 4 >= stream.limit:
                self._give_credit_to(stream)

    def _give_credit_to(self, stream: Stream) -> None:
        brought = stream.limit - stream.receivable
        if stream.held or stream.gone or stream.ended:
            return
        part = self._windows.part((id(self), stream.id), brought, self.round_trip_s)
        stream.limit = min(stream.limit * 2, stream.window_max, part)
        credit = stream.limit - stream.receivable
        if credit > 0:
            self._put(_WINDOW, 0, stream.id, credit)
            stream.receivable += credit

    def _flags(self, stream: Stream | None, flags: int, events: list[Event]) -> None:
        if stream is None or stream.gone:
            return
        if flags & _RST:
            self._forget(stream)
            events.append((What.RESET, stream, _NOTHING))
        elif flags & _FIN and not stream.ended:
            stream.ended = True
            events.append((What.END, stream, _NOTHING))
            if stream.finished:
                self._forget(stream)

    def _frame(self, stream: Stream, pieces: list[bytes | memoryview]) -> int:
        room = min(stream.sendable, FRAME_MAX)
        queue = stream.queue
        place = len(pieces)
        pieces.append(b"")
        size = 0
        while queue and size < room:
            piece = queue[0]
            if len(piece) <= room - size:
                queue.popleft()
            else:
                view = memoryview(piece)
                piece, queue[0] = view[: room - size], view[room - size :]
            pieces.append(piece)
            size += len(piece)
        pieces[place] = _HEADER.pack(0, _DATA, 0, stream.id, size)
        stream.queued -= size
        stream.sendable -= size
        return size + _HEADER.size

    def _make_ready(self, stream: Stream) -> None:
        if stream.queued and stream.sendable > 0 and not stream.ready:
            stream.ready = True
            (self._urgent if stream.urgent else self._bulk).append(stream)

    def _send_fin(self, stream: Stream) -> None:
        self._put(_WINDOW, _FIN, stream.id, 0)
        stream.finished = True
        if stream.ended:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.gone = True
        stream.queue.clear()
        stream.queued = 0
        if self._streams.pop(stream.id, None) is not None and stream.id % 2 == self._theirs:
            self._inbound -= 1

    def _put(self, kind: int, flags: int, number: int, length: int) -> None:
        self._control += _HEADER.pack(0, kind, flags, number, length)
        if len(self._control) > CONTROL_MAX_BYTES:
            raise PeerError("asks for answers and does not read them")
