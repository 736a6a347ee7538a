"""The bytes of a connection as targets: every decoder between the socket and a handler, and the connection itself.

A decoder is fed twice, whole and cut into pieces as a socket may cut them, and has to say the same both times. The
only refusal is `PeerError`: it is what closes a connection, another exception would leave it open and deaf.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeVar
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key
from libp2p.crypto.keys import PublicKey
from libp2p.crypto.rsa import create_new_key_pair as rsa_key
from libp2p.security.noise.messages import NoiseHandshakePayload
from libp2p.security.tls.certificate import create_cert_template, generate_certificate

from swarm.encoding import Address
from swarm.errors import PeerError
from swarm.identity import Identity
from swarm.net.inbox import Done
from swarm.net.libp2p import frames, identify, security, yamux
from swarm.net.libp2p.connection import ECHOES_MAX_BYTES, PING, UNPROVEN_MAX_BYTES, Connection
from swarm.net.libp2p.frames import Kind
from swarm.net.libp2p.hop import HOP, HopKind, Message, Reader, Status, StopKind, encode
from swarm.net.libp2p.negotiation import Negotiation
from swarm.net.libp2p.pipe import Holder, Pipe
from swarm.net.libp2p.security import NOISE, TLS, Channel, Credentials, NoiseChannel
from swarm.net.libp2p.yamux import Session, Stream, What
from tests.fuzz.corpus import mutated

Found = TypeVar("Found")
Feed = Callable[[bytes], None]

US, MEMBER = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
CONTROL_MAX_BYTES = 1 << 10
"""What a fuzzed session may keep for a peer that asks and does not read: a few pings more than honest ones."""
REPLY_MAX_BYTES = 16 << 10
"""What a stranger may be answered; a server's part of TLS's handshake has 1 KiB."""


def pieces(data: bytes) -> list[memoryview]:
    """`data` cut anywhere, the same way for the same bytes."""
    chance = random.Random(zlib.crc32(data))
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 6)))
    return [memoryview(data)[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def answer(read: Callable[[list[memoryview]], Found], parts: list[memoryview]) -> Found | None:
    """What is read, or None for a refusal."""
    try:
        return read(parts)
    except PeerError:
        return None


def however_cut(read: Callable[[list[memoryview]], object]) -> Feed:
    """A decoder that says the same of the same bytes, whole or in pieces."""

    def feed(data: bytes) -> None:
        whole, cut = answer(read, [memoryview(data)]), answer(read, pieces(data))
        assert whole == cut, f"whole {whole!r}, in pieces {cut!r}"

    return feed


# The decoders


def negotiated(opening: bool) -> Callable[[list[memoryview]], object]:
    """What is agreed on, what is replied, what is left over."""

    def read(parts: list[memoryview]) -> object:
        offers, serves = (security.PROTOCOLS, ()) if opening else ((), security.PROTOCOLS)
        negotiation, replies, rest = Negotiation(offers=offers, serves=serves), b"", b""
        for part in parts:
            if negotiation.chosen is None:
                replies += negotiation.receive(part)
            else:
                rest += part
        assert len(replies) <= REPLY_MAX_BYTES
        return negotiation.chosen, replies, negotiation.rest + rest

    return read


def framed(parts: list[memoryview]) -> object:
    """The frames of a stream, and the same where answers go to a place that is named for them."""
    reader, placed = frames.Reader(), frames.Reader()
    placed.into = memoryview(bytearray(64))
    found = [frame for part in parts for frame in reader.receive(part)]
    same = [frame._replace(payload=bytes(frame.payload)) for part in parts for frame in placed.receive(part)]
    assert same == found, f"{same!r} in its place, {found!r} otherwise"
    return found


def multiplexed(data: bytes) -> None:
    """A session's events are the same, except that cuts decide when credit goes back, and with it who oversteps it."""

    def read(parts: list[memoryview]) -> list[tuple[What, int, bytes]]:
        session = Session(initiator=False)
        told: list[tuple[What, int, bytes]] = []
        opened: dict[int, Stream] = {}
        for part in parts:
            for what, stream, body in session.receive(part):
                number = stream.id if stream is not None else 0
                if what is What.OPENED and stream is not None:
                    assert number not in opened or opened[number].gone, f"stream {number} was opened while it was open"
                    opened[number] = stream
                if what is What.DATA and told and told[-1][:2] == (what, number):
                    told[-1] = (what, number, told[-1][2] + bytes(body))
                elif what is not What.DATA or len(body):
                    told.append((what, number, bytes(body)))
            assert len(list(session.theirs())) <= yamux.STREAMS_MAX
            assert len(session._control) <= CONTROL_MAX_BYTES, f"{len(session._control)} bytes of answers wait"
        session.outgoing(1 << 20)
        return told

    with patch.object(yamux, "CONTROL_MAX_BYTES", CONTROL_MAX_BYTES):
        whole, cut = answer(read, [memoryview(data)]), answer(read, pieces(data))
    assert whole is None or cut is None or whole == cut, f"whole {whole!r}, in pieces {cut!r}"


def hopped(hop: bool) -> Callable[[list[memoryview]], object]:
    """A relay's message."""

    def read(parts: list[memoryview]) -> object:
        reader, rest = Reader(hop=hop), b""
        for at, part in enumerate(parts):
            message = reader.receive(part)
            if message is not None:
                rest = reader.rest + b"".join(parts[at + 1 :])
                return message, rest
        return None

    return read


def certified(data: bytes) -> None:
    """The certificate that TLS brings."""
    answer(lambda _: security.proven_by_certificate(data), [])


def noise_payload(data: bytes) -> None:
    """What a stranger that knows noise says inside the handshake."""
    answer(lambda _: security.proven_by_payload(data, static()), [])


def handshaken(protocol: str, dialled: bool) -> Feed:
    """The first bytes of a security protocol, from a stranger."""

    def feed(data: bytes) -> None:
        channel = credentials()[0].channel(protocol, dialled=dialled)
        channel.outgoing()
        answer(lambda parts: [list(channel.receive(part)) for part in parts], pieces(data))
        assert len(channel.outgoing()) <= REPLY_MAX_BYTES

    return feed


# The connection


class Ear:
    """Who a fuzzed connection reports to: it admits one member and answers every other request at once."""

    def __init__(self) -> None:
        self.waiting: list[Done] = []

    def admit(self, connection: Connection, remote: Address) -> None:
        if remote != MEMBER.address:
            raise PeerError("no member", member=remote)

    def opened(self, connection: Connection) -> None:
        connection.send("/vote", b"ours")
        connection.ask("/object", b"ours", lambda answer, reason: None)

    def message(self, connection: Connection, protocol: str, payload: bytes) -> None:
        assert type(payload) is bytes

    def request(self, connection: Connection, protocol: str, payload: bytes, done: Done) -> None:
        assert type(payload) is bytes
        if len(payload) % 2:
            done(payload, "")
        else:
            self.waiting.append(done)

    def leaving(self, connection: Connection) -> None:
        return

    def piped(self, connection: Connection, protocol: str, pipe: Pipe) -> Holder | None:
        return None

    def stirred(self, connection: Connection) -> None:
        return


class ClearChannel:
    """A channel without a cipher, whose handshake is one byte, so that nonsense reaches what lies behind."""

    def __init__(self, remote: Identity) -> None:
        self.remote: Address | None = None
        self.peer_id = remote.peer_id
        self._other = remote.address
        self._out = bytearray(b"!")

    def receive(self, data: memoryview) -> Iterator[memoryview]:
        if self.remote is None:
            self.remote, data = self._other, data[1:]
        if len(data):
            yield data

    def write(self, data: bytes) -> None:
        self._out += data

    def outgoing(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def close(self) -> None:
        return


class ClearCredentials(Credentials):
    """A node's key, and channels without a cipher to another node."""

    def __init__(self, identity: Identity, remote: Identity) -> None:
        super().__init__(identity)
        self._remote = remote

    def channel(self, protocol: str, *, dialled: bool) -> Channel:
        return ClearChannel(self._remote)


def waiting_echoes(connection: Connection) -> int:
    """The most that waits on one stream to be echoed."""
    streams = connection._session.theirs() if connection._session is not None else ()
    return max((stream.queued for stream in streams if getattr(stream.owner, "pinging", False)), default=0)


def connected(keys: Credentials, dialled: bool, *, said_max: int) -> Feed:
    """A connection from its first byte on; what it is told first may be nonsense from any place."""

    def feed(data: bytes) -> None:
        ear = Ear()
        connection = Connection(keys, ear, dialled=MEMBER.address if dialled else None, pipes=(HOP,))
        said = len(connection.outgoing(1 << 16))
        try:
            for part in pieces(data):
                connection.receive(part)
                waiting = waiting_echoes(connection)
                assert waiting <= ECHOES_MAX_BYTES, f"{waiting} bytes wait to be echoed"
                assert connection.remote is not None or connection._unproven <= UNPROVEN_MAX_BYTES
                said += len(connection.outgoing(1 << 16))
        except PeerError:
            connection.lost()
            return
        for done in ear.waiting:
            done(None, "not now")
        connection.ping()
        said += len(connection.outgoing(1 << 16)) + len(connection.farewell())
        connection.lost()
        assert said <= said_max + 4 * len(data)

    return feed


# What is really said, and what is almost that

MULTIPLEXED = ("yamux", "connection from a member", "connection to a member")
"""The targets whose bytes are frames of yamux; behind the agreement on it, where there is one."""
_HEADER = struct.Struct("!BBHII")
_AGREED = b"/yamux/1.0.0\n"


def reframed(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with one to three of its frames of yamux changed, moved, said twice or left out."""
    data = chance.choice(corpus)
    start = data.find(_AGREED) + len(_AGREED) if _AGREED in data else 0
    found, at = [], start
    while len(data) - at >= _HEADER.size:
        version, kind, flags, number, length = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size :][: length if kind == 0 else 0]
        found.append([version, kind, flags, number, length, body])
        at += _HEADER.size + len(body)
    for _ in range(chance.randint(1, 3)):
        frame = list(chance.choice(found))
        lot = chance.randrange(8)
        if lot == 0:
            frame[2] = chance.choice([0, 1, 2, 4, 8, 5, 9, 12, 0xFFFF])
        elif lot == 1:
            frame[3] = chance.choice([0, 1, 2, 3, 4, 5, 7, 9, 0x7FFFFFFF, 0xFFFFFFFF])
        elif lot == 2:
            frame[4] = chance.choice([0, 1, 12, 1 << 16, 1 << 18, 1 << 23, 1 << 24, 0xFFFFFFFF])
        elif lot == 3:
            frame[1] = chance.randrange(5)
        elif lot == 4 and frame[5]:
            frame[5] = mutated(chance, [frame[5]])
            frame[4] = len(frame[5])
        elif lot == 5:
            found.pop(chance.randrange(len(found)))
        place = chance.randrange(len(found) + 1)
        found[place : place + chance.randrange(2)] = [frame]
    return data[:start] + b"".join(_HEADER.pack(*fields) + body for *fields, body in found)


@cache
def credentials() -> tuple[Credentials, Credentials]:
    """Ours and the member's."""
    return Credentials(US), Credentials(MEMBER)


@cache
def clear() -> tuple[Credentials, Credentials]:
    """The same without a cipher."""
    return ClearCredentials(US, MEMBER), ClearCredentials(MEMBER, US)


@cache
def static() -> PublicKey:
    """The noise key that our payload signs for."""
    return credentials()[0].noise_key.get_public_key()


class Talker(Ear):
    """An honest member."""

    def admit(self, connection: Connection, remote: Address) -> None:
        return

    def opened(self, connection: Connection) -> None:
        return


def conversation(ours: Credentials, theirs: Credentials) -> tuple[bytes, bytes]:
    """All that the dialling and the accepting side of a connection say, in which everything happens once."""
    ends = (
        Connection(theirs, Talker(), dialled=US.address, pipes=(HOP,)),
        Connection(ours, Talker(), dialled=None, pipes=(HOP,)),
    )
    said = (bytearray(), bytearray())

    def talk() -> None:
        silent = False
        while not silent:
            silent = True
            for number in (0, 1):
                while data := ends[number].outgoing(1 << 16):
                    said[number].extend(data)
                    ends[1 - number].receive(memoryview(data))
                    silent = False

    talk()
    for end in ends:
        end.send("/vote", b"a message")
        end.ask("/object", b"odd", lambda answer, reason: None)
        end.ask("/object", b"even", lambda answer, reason: None)
        end.ping()
        session = end._session
        assert session is not None
        for protocol, payload in ((PING, bytes(32)), (identify.PROTOCOL, b""), (HOP, b"\x02\x08\x00"), ("/none", b"")):
            stream = session.open()
            stream.owner = object()  # nobody here hears what comes back
            session.write(stream, Negotiation(offers=(protocol,)).start() + payload)
            if protocol == PING:
                session.finish(stream)
    talk()
    for end in ends:
        end.leave()
    talk()
    return bytes(said[0]), bytes(said[1])


def pinged(number: int) -> bytes:
    """A stream that asks for twice as many echoes as may wait, in pieces that may."""
    opening = Negotiation(offers=(PING,)).start()
    pings = [_HEADER.pack(0, 0, 0, number, 1024) + bytes(1024)] * (2 * ECHOES_MAX_BYTES // 1024)
    return _HEADER.pack(0, 0, 1, number, len(opening)) + opening + b"".join(pings)


def handshake(protocol: str) -> tuple[list[bytes], list[bytes]]:
    """What the dialling and the accepting side send, message by message."""
    ends = (credentials()[1].channel(protocol, dialled=True), credentials()[0].channel(protocol, dialled=False))
    said: tuple[list[bytes], list[bytes]] = ([], [])
    for turn in range(4):
        data = ends[turn % 2].outgoing()
        if data:
            said[turn % 2].append(data)
            list(ends[1 - turn % 2].receive(memoryview(data)))
    return said


def certificates() -> list[bytes]:
    """Ours, one with more extensions, and others' kinds of keys."""
    kinds = [credentials()[0].keys, ed25519_key(), rsa_key()]
    made = [generate_certificate(keys.private_key, create_cert_template())[0] for keys in kinds]
    made.append(generate_certificate(kinds[0].private_key, security._template())[0])
    return [x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER) for pem in made]


def payloads() -> list[bytes]:
    """What noise carries: the key and its signature over the static key."""
    ours = credentials()[0]
    made = [bytes(NoiseChannel(ours, True)._pattern.make_handshake_payload().serialize())]
    for keys in (ed25519_key(), rsa_key()):
        made.append(bytes(NoiseHandshakePayload(keys.public_key, bytes(64)).serialize()))
    return made


def framed_corpus() -> list[bytes]:
    """Frames of every kind, small and large."""
    bodies = [b"", b"odd", bytes(5000)]
    one = [frames.head(kind, name, len(body)) + body for kind in Kind for name in ("", "/vote") for body in bodies]
    return [*one, b"".join(one), frames.head(Kind.MESSAGE, "/large", 1 << 20) + bytes(70_000)]


def hop_corpus(hop: bool) -> list[bytes]:
    """A relay's questions and answers."""
    peer = MEMBER.peer_id
    if hop:
        asked = [Message(HopKind.RESERVE), Message(HopKind.CONNECT, peer_id=peer)]
        answer = Message(HopKind.STATUS, status=Status.OK, duration_s=60, data_max=1 << 20, expires_s=1 << 33)
        return [encode(message, hop=True) for message in (*asked, answer)]
    stop = [Message(StopKind.CONNECT, peer_id=peer, data_max=1 << 17), Message(StopKind.STATUS, status=Status.OK)]
    return [encode(message, hop=False) for message in stop]


@cache
def wire_targets() -> dict[str, tuple[list[bytes], Feed]]:
    """Corpus and feed of each, by name."""
    offers = Negotiation(offers=security.PROTOCOLS).start()
    serves = Negotiation(serves=security.PROTOCOLS).receive(offers)
    secret, clear_talk = conversation(*credentials()), conversation(*clear())
    session = clear_talk[0].partition(_AGREED)[2]
    assert session
    pings = [clear_talk[side] + pinged(number) for side, number in ((0, 101), (1, 102))]
    many = b"".join(_HEADER.pack(0, 1, 1, number, 0) for number in range(1, 4 * yamux.STREAMS_MAX, 2))
    asked = b"".join(_HEADER.pack(0, 2, 1, 0, number) for number in range(CONTROL_MAX_BYTES // _HEADER.size + 4))
    tls, noise = handshake(TLS), handshake(NOISE)
    strange, known = credentials()[0], clear()[0]
    return {
        "negotiation that answers": ([offers, offers + offers, offers + b"rest"], however_cut(negotiated(False))),
        "negotiation that opens": ([serves, serves[:20] + b"\x03na\n" + serves[20:]], however_cut(negotiated(True))),
        "frames": (framed_corpus(), however_cut(framed)),
        "yamux": ([session, session[:24], session[-200:], many, asked], multiplexed),
        "hop messages": (hop_corpus(True), however_cut(hopped(True))),
        "stop messages": (hop_corpus(False), however_cut(hopped(False))),
        "certificate of TLS": (certificates(), certified),
        "payload of noise": (payloads(), noise_payload),
        "TLS that accepts": (tls[0], handshaken(TLS, False)),
        "TLS that dials": (tls[1], handshaken(TLS, True)),
        "noise that accepts": (noise[0], handshaken(NOISE, False)),
        "noise that dials": (noise[1], handshaken(NOISE, True)),
        "connection from a stranger": ([secret[0], offers], connected(strange, False, said_max=REPLY_MAX_BYTES)),
        "connection to a stranger": ([secret[1], serves], connected(strange, True, said_max=REPLY_MAX_BYTES)),
        "connection from a member": ([clear_talk[0], pings[0]], connected(known, False, said_max=128 << 10)),
        "connection to a member": ([clear_talk[1], pings[1]], connected(known, True, said_max=128 << 10)),
    }
