"""What hostile strangers and a hostile member do to a node's port, one connection at a time.

Nothing here is part of the system. Each attack is a coroutine that opens one connection, does its worst, and returns
when the node hung up or its patience is over; `tests.net.siege` runs hundreds a second of them, the tests a few.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.identity import Identity
from swarm.net.inbox import Done
from swarm.net.libp2p import frames
from swarm.net.libp2p.connection import Connection
from swarm.net.libp2p.frames import Kind
from swarm.net.libp2p.negotiation import Negotiation
from swarm.net.libp2p.pipe import Holder, Pipe
from swarm.net.libp2p.security import NOISE, TLS, Credentials
from swarm.net.transport import MESSAGE_MAX_BYTES

READ_BYTES = 64 << 10
HOLD_S = 30.0
"""How long an attack that only waits goes on unless the node ends it."""
GREETING = b"\x13/multistream/1.0.0\n"
_YAMUX = struct.Struct("!BBHII")


@dataclass(frozen=True)
class Target:
    """Who is attacked."""

    host: str
    port: int
    member: Address
    protocols: tuple[str, ...] = ()
    """Protocols that its node serves, for members' attacks."""
    request: tuple[str, bytes] = ("/swarm/object/1", b"")
    """A protocol and a request that has a large answer."""


def line_of(text: str) -> bytes:
    """A line of multistream-select of at most 126 bytes."""
    return bytes([len(text) + 1]) + text.encode() + b"\n"


class Wire:
    """A socket of the attacker's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, target: Target, source: str = "") -> Wire:
        """Connect, from one of this machine's addresses."""
        local = (source, 0) if source else None
        return cls(*await asyncio.open_connection(target.host, target.port, local_addr=local, limit=READ_BYTES))

    async def say(self, data: bytes) -> None:
        """Send, as fast as it is taken."""
        self.writer.write(data)
        await self.writer.drain()

    async def until_cut(self, seconds: float = HOLD_S) -> bool:
        """Wait until the node hangs up; whether it did."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.reader.read(READ_BYTES):
                    pass
                return True
        return False

    def vanish(self) -> None:
        """Close with a reset."""
        sock = self.writer.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Session:
    """A connection that speaks libp2p with our own machine, up to where an attack begins."""

    def __init__(self, wire: Wire, credentials: Credentials, member: Address) -> None:
        self.wire = wire
        self.machine = Connection(credentials, self, dialled=member)
        self.cut = False

    async def prove(self) -> None:
        """Until both keys are proven, and not one byte further."""
        await self._pump(lambda: self.machine.remote is not None)

    async def open(self) -> None:
        """Until messages can travel."""
        await self._pump(lambda: self.machine.open)

    def raw(self, data: bytes) -> None:
        """Bytes inside the encryption, whatever they are."""
        channel = self.machine._channel
        assert channel is not None
        channel.write(data)
        self.wire.writer.write(channel.outgoing())

    async def flush(self) -> None:
        """Send what the machine holds."""
        while data := self.machine.outgoing(READ_BYTES):
            await self.wire.say(data)

    async def answer(self, seconds: float) -> None:
        """Behave, for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._pump(lambda: False)

    async def _pump(self, there: Callable[[], bool]) -> None:
        await self.flush()
        while not there():
            data = await self.wire.reader.read(READ_BYTES)
            if not data:
                self.cut = True
                raise ConnectionResetError("the node hung up")
            self.machine.receive(memoryview(data))
            if not there():
                await self.flush()

    # What the machine reports; an attacker does not care

    def admit(self, connection: Connection, remote: Address) -> None: ...
    def opened(self, connection: Connection) -> None: ...
    def message(self, connection: Connection, protocol: str, payload: bytes) -> None: ...
    def leaving(self, connection: Connection) -> None: ...
    def stirred(self, connection: Connection) -> None: ...
    def piped(self, connection: Connection, protocol: str, pipe: Pipe) -> Holder | None: ...

    def request(self, connection: Connection, protocol: str, payload: bytes, done: Done) -> None:
        done(None, "no")


@dataclass
class Attacker:
    """Who attacks: a key that is or is no member's, addresses to come from, and chance."""

    credentials: Credentials
    chance: random.Random
    sources: Collection[str] = ("",)

    @classmethod
    def of(cls, identity: Identity, seed: int, sources: Collection[str] = ("",)) -> Attacker:
        """With this key."""
        return cls(Credentials(identity), random.Random(seed), tuple(sources))

    async def dial(self, target: Target) -> Wire:
        """A connection from one of the addresses."""
        return await Wire.open(target, self.chance.choice(list(self.sources)))

    def nonsense(self, most: int = 4096) -> bytes:
        """Random bytes, at least one."""
        return self.chance.randbytes(self.chance.randint(1, most))


Attack: TypeAlias = Callable[[Attacker, Target, Wire], Awaitable[None]]


async def attempt(attack: Attack, attacker: Attacker, target: Target) -> bool:
    """Make one attack, whatever becomes of it; False if the node could not be reached at all."""
    try:
        wire = await attacker.dial(target)
    except OSError:
        return False
    try:
        await attack(attacker, target, wire)
    except (OSError, PeerError, asyncio.IncompleteReadError):
        pass  # hung up on, which is what an attacker has to expect
    finally:
        wire.vanish()
    return True


# Strangers


async def hang_up(_: Attacker, target: Target, wire: Wire) -> None:
    """Connect and go."""


async def say_nothing(_: Attacker, target: Target, wire: Wire) -> None:
    """A half-open handshake that never begins."""
    await wire.until_cut()


async def drip(_: Attacker, target: Target, wire: Wire) -> None:
    """Slow-loris: everything right, a byte at a time."""
    for byte in GREETING + line_of(TLS) * 50:
        await wire.say(bytes([byte]))
        if await wire.until_cut(0.5):
            return


async def noise_of_all_kinds(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Garbage as the first bytes."""
    await wire.say(attacker.nonsense())
    await wire.until_cut(5)


async def another_protocol(_: Attacker, target: Target, wire: Wire) -> None:
    """A web browser, or what looks for one."""
    await wire.say(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    await wire.until_cut(5)


async def long_prefix(_: Attacker, target: Target, wire: Wire) -> None:
    """A line that says it has 2^63 bytes, and then brings them."""
    await wire.say(GREETING + b"\xff" * 8 + b"\x7f" + bytes(60_000))
    await wire.until_cut(5)


async def many_offers(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Protocols that nobody serves, one after the other."""
    await wire.say(GREETING + b"".join(line_of(f"/{attacker.chance.random()}") for _ in range(400)))
    await wire.until_cut(5)


async def flood(_: Attacker, target: Target, wire: Wire) -> None:
    """Megabytes before a key is proven."""
    await wire.say(GREETING + line_of(TLS))
    for _piece in range(64):
        await wire.say(b"\x16\x03\x01\x40\x00" + bytes(16 << 10))
    await wire.until_cut(5)


async def garbage_in_tls(attacker: Attacker, target: Target, wire: Wire) -> None:
    """TLS is agreed on, then nonsense, in a record of the greatest length."""
    await wire.say(GREETING + line_of(TLS) + b"\x16\x03\x01\xff\xff" + attacker.nonsense())
    await wire.until_cut(5)


async def garbage_in_noise(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Noise is agreed on, then a message of the greatest length that is nonsense."""
    await wire.say(GREETING + line_of(NOISE) + b"\xff\xff" + attacker.chance.randbytes(0xFFFF))
    await wire.until_cut(5)


async def half_a_handshake(attacker: Attacker, target: Target, wire: Wire) -> None:
    """A true beginning of TLS, and then silence."""
    session = Session(wire, attacker.credentials, target.member)
    await session.flush()
    session.machine.receive(memoryview(await wire.reader.read(READ_BYTES)))
    hello = session.machine.outgoing(READ_BYTES)
    await wire.say(hello[: attacker.chance.randint(0, len(hello))])
    await wire.until_cut()


async def another_key(attacker: Attacker, target: Target, wire: Wire) -> None:
    """A whole handshake, with a key that is no member's: the dearest thing that a stranger can ask for."""
    await Session(wire, attacker.credentials, target.member).open()
    await wire.until_cut(5)


STRANGERS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        hang_up, say_nothing, drip, noise_of_all_kinds, another_protocol, long_prefix, many_offers, flood,
        garbage_in_tls, garbage_in_noise, half_a_handshake, another_key,
    )
}  # fmt: skip


# Members


async def _member(attacker: Attacker, target: Target, wire: Wire) -> Session:
    session = Session(wire, attacker.credentials, target.member)
    await session.open()
    return session


def _data(number: int, body: bytes, *, flags: int = 0) -> bytes:
    return _YAMUX.pack(0, 0, flags, number, len(body)) + body


def _stream(number: int, protocol: str = frames.PROTOCOL) -> bytes:
    return _YAMUX.pack(0, 1, 1, number, 0) + _data(number, Negotiation(offers=(protocol,)).start())


async def come_and_go(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Connect properly, and vanish at once."""
    await _member(attacker, target, wire)


async def garbage_for_streams(attacker: Attacker, target: Target, wire: Wire) -> None:
    """A proven key, and then nonsense where streams are agreed on."""
    session = Session(wire, attacker.credentials, target.member)
    await session.prove()
    session.raw(attacker.nonsense())
    await wire.until_cut(5)


async def garbage_for_frames(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Nonsense where streams begin."""
    session = await _member(attacker, target, wire)
    session.raw(attacker.nonsense())
    await wire.until_cut(5)


async def garbage_in_a_stream(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Nonsense on a stream, where its protocol is agreed on or behind that."""
    session = await _member(attacker, target, wire)
    begin = _stream(1) if attacker.chance.random() < 0.5 else _YAMUX.pack(0, 1, 1, 1, 0)
    session.raw(begin + _data(1, attacker.nonsense()))
    await wire.until_cut(5)


async def past_the_window(attacker: Attacker, target: Target, wire: Wire) -> None:
    """A frame that says it has four gigabytes."""
    session = await _member(attacker, target, wire)
    session.raw(_stream(1) + _YAMUX.pack(0, 0, 0, 1, 0xFFFFFFFF))
    await wire.until_cut(5)


async def oversized_message(attacker: Attacker, target: Target, wire: Wire) -> None:
    """A message that says it is longer than one may be."""
    session = await _member(attacker, target, wire)
    session.raw(_stream(1) + _data(1, frames.head(Kind.MESSAGE, target.protocols[0], MESSAGE_MAX_BYTES + 1)))
    await wire.until_cut(5)


async def too_many_streams(attacker: Attacker, target: Target, wire: Wire) -> None:
    """A thousand streams."""
    session = await _member(attacker, target, wire)
    session.raw(b"".join(_stream(number) for number in range(1, 2001, 2)))
    await wire.until_cut(5)


async def unfinished_messages(attacker: Attacker, target: Target, wire: Wire) -> None:
    """The greatest message on every stream, never its last byte."""
    session = await _member(attacker, target, wire)
    numbers = range(1, 33, 2)
    for number in numbers:
        session.raw(_stream(number) + _data(number, frames.head(Kind.REQUEST, target.protocols[0], MESSAGE_MAX_BYTES)))
    piece = bytes(64 << 10)
    for _piece in range((MESSAGE_MAX_BYTES >> 16) - 1):
        for number in numbers:
            session.raw(_data(number, piece))
            await wire.writer.drain()
    await wire.until_cut(5)


async def never_read(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Requests with large answers, again and again, on every stream, and not one byte of an answer is read."""
    session = await _member(attacker, target, wire)
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
    protocol, payload = target.request
    ask = frames.head(Kind.REQUEST, protocol, len(payload)) + payload
    numbers = range(1, 33, 2)
    session.raw(b"".join(_stream(number) for number in numbers))
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while not wire.writer.transport.is_closing():
                for number in numbers:
                    session.raw(_YAMUX.pack(0, 1, 0, number, 1 << 22) + _data(number, ask))
                await wire.writer.drain()
                await asyncio.sleep(0.05)


async def pings_unread(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Pings whose answers are not read."""
    session = await _member(attacker, target, wire)
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while not wire.writer.transport.is_closing():
                session.raw(_YAMUX.pack(0, 2, 1, 0, 0) * 4000)
                await wire.writer.drain()
                await asyncio.sleep(0)


async def _pour(session: Session, piece: bytes, begin: bytes, seconds: float) -> None:
    """The same bytes as fast as they are taken; what comes back is read."""
    session.raw(begin)

    async def pour() -> None:
        while not session.wire.writer.transport.is_closing():
            session.raw(piece)
            await session.wire.writer.drain()
            await asyncio.sleep(0)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(pour(), session.wire.until_cut(seconds))


async def pour_messages(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Small messages for the node's protocols, as fast as they are taken."""
    session = await _member(attacker, target, wire)
    told = [frames.head(Kind.MESSAGE, name, 20) + attacker.chance.randbytes(20) for name in target.protocols]
    piece = _YAMUX.pack(0, 1, 0, 1, 0) + _data(1, b"".join(attacker.chance.choices(told, k=500)))
    await _pour(session, piece, _stream(1), 5)


async def pour_requests(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Small requests on eight streams, the next one as soon as there is an answer, none of which makes sense."""
    session = await _member(attacker, target, wire)

    def ask() -> None:
        protocol = attacker.chance.choice(target.protocols)
        session.machine.ask(protocol, attacker.nonsense(100), lambda answer, reason: ask())

    for _ in range(8):
        ask()
    await session.answer(5)


async def pour_pings(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Pings, whose answers are read."""
    session = await _member(attacker, target, wire)
    await _pour(session, _YAMUX.pack(0, 2, 1, 0, 0) * 1000, b"", 5)


async def pour_credit(attacker: Attacker, target: Target, wire: Wire) -> None:
    """Credit for streams that there are not."""
    session = await _member(attacker, target, wire)
    await _pour(session, _YAMUX.pack(0, 1, 0, 77, 1) * 1000, b"", 5)


MEMBERS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        garbage_for_streams, garbage_for_frames, garbage_in_a_stream, past_the_window, oversized_message,
        too_many_streams, unfinished_messages, never_read, pings_unread, pour_messages, pour_requests, pour_pings,
        pour_credit,
    )
}  # fmt: skip
"""What a member does beside coming and going, which has a number of its own: `come_and_go`."""
