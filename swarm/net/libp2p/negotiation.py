"""multistream-select 1.0: two sides agree on a protocol, one line each. Bytes in, bytes out.

These are the first bytes that any stranger sends, so a line is at most `LINE_MAX` bytes and a negotiation at
most `OFFERS_MAX` lines; the library's own reader has no such bound.

Source: https://github.com/multiformats/multistream-select
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from swarm.errors import PeerError

LINE_MAX = 1024
"""Longest line that is read, before anything is known about the sender. Ours have 30 bytes."""
OFFERS_MAX = 16
"""Lines read in one negotiation; a libp2p peer offers two or three protocols."""

_REFUSED = "na"


class Negotiation:
    """One negotiation, on either side.

    Args:
        offers: what the opening side would like, best first; empty for the side that answers.
        serves: what the answering side accepts.
    """

    def __init__(self, *, offers: Sequence[str] = (), serves: Collection[str] = ()) -> None:
        self.chosen: str | None = None
        """The protocol agreed on."""
        self.rest = b""
        """What arrived after the agreement: the first bytes of the protocol."""
        self._offers = list(offers)
        self._serves = serves
        self._opening = bool(offers)
        self._greeted = False
        self._lines = 0
        self._buffer = b""

    def start(self) -> bytes:
        """What the opening side sends first: greeting and best offer in one."""
        return _GREETING + _line(self._offers[0])

    def receive(self, data: bytes | memoryview) -> bytes:
        """The bytes to send in return.

        Raises:
            PeerError: no multistream-select, a line too long, too many lines, or nothing in common.
        """
        self._buffer += data
        replies = b""
        while self.chosen is None:
            if not self._greeted:
                if self._buffer[: len(_GREETING)] != _GREETING[: len(self._buffer)]:
                    raise PeerError("the first line is not the greeting of multistream-select")
                if len(self._buffer) < len(_GREETING):
                    break
                self._buffer = self._buffer[len(_GREETING) :]
                self._greeted = True
                replies += b"" if self._opening else _GREETING
            line = self._next_line()
            if line is None:
                break
            if self._opening:
                replies += self._answered(line)
            else:
                replies += self._offered(line)
        if self.chosen is not None:
            self.rest, self._buffer = self._buffer, b""
        return replies

    def _answered(self, line: bytes) -> bytes:
        if line == self._offers[0].encode():
            self.chosen = self._offers[0]
            return b""
        if line != _REFUSED.encode():
            raise PeerError(f"{self._offers[0]} was offered and the answer is neither that nor {_REFUSED!r}")
        refused = self._offers.pop(0)
        if not self._offers:
            raise PeerError(f"no protocol in common, {refused} was the last offer")
        return _line(self._offers[0])

    def _offered(self, line: bytes) -> bytes:
        name = line.decode("utf-8", "replace")
        if name in self._serves:
            self.chosen = name
            return _line(name)
        return _line(_REFUSED)

    def _next_line(self) -> bytes | None:
        buffer = self._buffer
        if not buffer:
            return None
        length, width = buffer[0], 1
        if length >= 0x80:
            if len(buffer) < 2:
                return None
            length, width = (length & 0x7F) | buffer[1] << 7, 2
        # A third length byte would make the second one at least 0x80, which is past LINE_MAX as well.
        if not 1 <= length <= LINE_MAX:
            raise PeerError(f"a line of multistream-select has 1 to {LINE_MAX} bytes")
        if len(buffer) < width + length:
            return None
        self._lines += 1
        if self._lines > OFFERS_MAX:
            raise PeerError(f"more than {OFFERS_MAX} lines and no agreement")
        line, self._buffer = buffer[width : width + length], buffer[width + length :]
        if line[-1:] != b"\n":
            raise PeerError("a line of multistream-select does not end")
        return line[:-1]


def _line(text: str) -> bytes:
    line = text.encode() + b"\n"
    length = len(line)
    prefix = bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
    return prefix + line


_GREETING = _line("/multistream/1.0.0")
