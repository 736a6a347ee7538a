"""A little of the campaign in every test run; `make fuzz` is the whole of it."""

from __future__ import annotations

import struct

import pytest

from swarm.encoding import unpack
from swarm.net.libp2p import connection
from swarm.net.libp2p.negotiation import Negotiation
from swarm.net.libp2p.yamux import Event, Session
from tests.fuzz.__main__ import Escaped, fuzz
from tests.fuzz.targets import Target, refusing, targets
from tests.fuzz.wire import however_cut, reframed, wire_targets


def test_nothing_but_refusals_comes_of_nonsense_and_nothing_grows() -> None:
    for target in targets().values():
        assert fuzz(target, 600, seed=1) < 32, target.name


def test_a_planted_mistake_is_found_and_its_input_named() -> None:
    def careless(data: bytes) -> object:
        item = unpack(data, max_bytes=1 << 20)
        return item[0] if isinstance(item, list) else item  # an empty list has no first item

    target = Target("careless", (b"\xc2\x01\x02", b"\xc0"), refusing(careless))
    with pytest.raises(Escaped, match=r"careless, seed 0, input \d+: IndexError"):
        fuzz(target, 1000, seed=0)


def test_a_decoder_that_hears_where_its_bytes_were_cut_is_found() -> None:
    target = Target("forgetful", (b"\x01\x02\x03\x04",), however_cut(lambda parts: [bytes(part) for part in parts]))
    with pytest.raises(Escaped, match="forgetful, seed 0, input 0: AssertionError"):
        fuzz(target, 10, seed=0)


def test_a_refusal_that_does_not_close_the_connection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    next_line = Negotiation._next_line

    def careless(self: Negotiation) -> bytes | None:
        line = next_line(self)
        return line if line is None else line.decode().encode()  # UnicodeDecodeError is no PeerError

    monkeypatch.setattr(Negotiation, "_next_line", careless)
    (name, (corpus, feed)), *_ = wire_targets().items()
    with pytest.raises(Escaped, match="UnicodeDecodeError"):
        fuzz(Target(name, tuple(corpus), feed), 1000, seed=0)


def test_a_stream_that_is_opened_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = Session._accept

    def careless(self: Session, number: int, events: list[Event]) -> None:
        self._streams.pop(number, None)
        accept(self, number, events)

    monkeypatch.setattr(Session, "_accept", careless)
    corpus, feed = wire_targets()["yamux"]
    with pytest.raises(Escaped, match="was opened while it was open"):
        fuzz(Target("yamux", tuple(corpus), feed, reframed), 2000, seed=0)


def test_answers_that_pile_up_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Session, kind: int, flags: int, number: int, length: int) -> None:
        self._control += struct.pack("!BBHII", 0, kind, flags, number, length)

    monkeypatch.setattr(Session, "_put", careless)
    corpus, feed = wire_targets()["yamux"]
    with pytest.raises(Escaped, match="bytes of answers wait"):
        fuzz(Target("yamux", tuple(corpus), feed, reframed), 2000, seed=0)


@pytest.mark.parametrize("name", ["connection from a member", "connection to a member"])
def test_echoes_that_pile_up_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, feed = wire_targets()[name]
    monkeypatch.setattr(connection, "ECHOES_MAX_BYTES", 1 << 30)
    with pytest.raises(Escaped, match="bytes wait to be echoed"):
        fuzz(Target(name, tuple(corpus), feed, reframed), 2000, seed=0)
