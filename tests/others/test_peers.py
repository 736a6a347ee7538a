"""go-libp2p and js-libp2p as they come at the other end: TLS and noise, dialling both ways, identify, ping, streams."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator

import pytest
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.identity.identify.pb.identify_pb2 import Identify

from swarm.encoding import Address
from swarm.net.libp2p import Libp2pTransport, frames, identify
from swarm.net.libp2p.connection import PING
from swarm.net.libp2p.frames import Kind
from swarm.net.libp2p.security import PROTOCOLS, TLS
from tests.net.kit import ANY_PORT, identity, until
from tests.others import go_libp2p
from tests.others.js import JsPeer
from tests.others.p2pd import Daemon, read_varint

OURS, THEIRS = identity(1), identity(2)
ECHO = "/echo"
PIECE_BYTES = 8_000_000
PATIENCE_S = 60.0
SECURITY = pytest.mark.parametrize("security", ["tls" if one == TLS else "noise" for one in PROTOCOLS])


async def echo(_: Address, payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest() + payload


@pytest.fixture
async def ours() -> AsyncIterator[Libp2pTransport]:
    transport = Libp2pTransport(OURS, ANY_PORT)
    transport.serve(ECHO, echo)
    await transport.start()
    yield transport
    await transport.close()


def pieces(count: int) -> list[bytes]:
    """So many payloads, each another."""
    return [hashlib.shake_128(bytes([number])).digest(PIECE_BYTES) for number in range(count)]


async def asked(reader: StreamReader, writer: StreamWriter, payload: bytes, answers: frames.Reader) -> bytes:
    """The answer to a request that a go peer sends on a stream to us."""

    async def send() -> None:
        writer.write(frames.head(Kind.REQUEST, ECHO, len(payload)))
        writer.write(payload)
        await writer.drain()

    sending = asyncio.create_task(send())
    while data := await reader.read(1 << 20):
        for frame in answers.receive(memoryview(data)):
            await sending
            assert frame.kind is Kind.ANSWER, bytes(frame.payload[:200])
            return bytes(frame.payload)
    raise ConnectionError("the stream ended before the answer")


async def answering(reader: StreamReader, writer: StreamWriter) -> None:
    """What a go peer does with a stream of ours: every request gets its payload's digest and its payload."""
    requests = frames.Reader()
    while data := await reader.read(1 << 20):
        for frame in requests.receive(memoryview(data)):
            answer = await echo(OURS.address, bytes(frame.payload))
            writer.write(frames.head(Kind.ANSWER, "", len(answer)) + answer)
            await writer.drain()


async def go_to_us(ours: Libp2pTransport, security: str, payloads: list[bytes]) -> None:
    ours.set_members({THEIRS.address: ""})
    async with Daemon(go_libp2p(), THEIRS, security=security) as go, asyncio.timeout(PATIENCE_S):
        await go.connect(ours.endpoint)
        reader, writer = await go.open(OURS.peer_id, frames.PROTOCOL)
        answers = frames.Reader()
        for payload in payloads:
            assert await asked(reader, writer, payload, answers) == hashlib.sha256(payload).digest() + payload
        writer.close()


async def us_to_go(ours: Libp2pTransport, security: str, payloads: list[bytes]) -> None:
    async with Daemon(go_libp2p(), THEIRS, security=security) as go, asyncio.timeout(PATIENCE_S):
        await go.take(frames.PROTOCOL, answering)
        ours.set_members({THEIRS.address: go.endpoint})
        await until(lambda: bool(ours.connected()), PATIENCE_S)
        for payload in payloads:
            answer = await ours.request(THEIRS.address, ECHO, payload, timeout_s=PATIENCE_S)
            assert answer == hashlib.sha256(payload).digest() + payload
        await until(lambda: ours.meter.of(THEIRS.address).round_trip_s is not None, PATIENCE_S)
        assert ours.meter.of(THEIRS.address).dials_failed == 0


@SECURITY
async def test_go_dials_us_and_what_it_streams_comes_back_byte_for_byte(ours: Libp2pTransport, security: str) -> None:
    await go_to_us(ours, security, pieces(1))


@SECURITY
async def test_we_dial_go_and_what_we_stream_comes_back_byte_for_byte(ours: Libp2pTransport, security: str) -> None:
    await us_to_go(ours, security, pieces(1))


@pytest.mark.slow
@SECURITY
async def test_four_hundred_megabytes_pass_between_go_and_us(ours: Libp2pTransport, security: str) -> None:
    await go_to_us(ours, security, pieces(50))
    await us_to_go(ours, security, pieces(50))


@SECURITY
async def test_go_pings_us_and_learns_who_we_are(ours: Libp2pTransport, security: str) -> None:
    ours.set_members({THEIRS.address: ""})
    async with Daemon(go_libp2p(), THEIRS, security=security) as go, asyncio.timeout(PATIENCE_S):
        await go.connect(ours.endpoint)
        await until(lambda: f"{identify.PROTOCOL} received message from {OURS.peer_id}" in go.log(), PATIENCE_S)
        reader, writer = await go.open(OURS.peer_id, PING)
        for number in range(3):
            writer.write(bytes([number]) * 32)
            assert await reader.readexactly(32) == bytes([number]) * 32
        reader, _ = await go.open(OURS.peer_id, identify.PROTOCOL)
        told = await reader.read()
        size, start = read_varint(told, 0)
        assert len(told) == start + size
        message = Identify.FromString(told[start:])
    assert deserialize_public_key(message.public_key).to_bytes() == OURS.public_key
    assert {PING, identify.PROTOCOL, frames.PROTOCOL} <= set(message.protocols)
    assert message.agent_version.startswith("swarm-ledger")


async def test_a_go_peer_that_is_no_member_gets_nothing(ours: Libp2pTransport) -> None:
    async with Daemon(go_libp2p(), THEIRS) as go, asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):  # with TLS go may take itself for connected before we know who it is
            await go.connect(ours.endpoint)
        with pytest.raises(ConnectionError):
            await go.open(OURS.peer_id, PING)
        await until(lambda: ours.meter.refused["no member"] > 0, PATIENCE_S)
    assert ours.connected() == frozenset()


@SECURITY
async def test_js_dials_us_pings_learns_who_we_are_and_is_answered(ours: Libp2pTransport, security: str) -> None:
    ours.set_members({THEIRS.address: ""})
    async with JsPeer(THEIRS, security) as js:
        await js.ask("connect", to=ours.endpoint)
        assert (await js.ask("ping", to=ours.endpoint))["ms"] >= 0
        answer = await js.ask("request", to=ours.endpoint, name=ECHO, size=1_000_000)
        (known,) = (await js.ask("identified"))["identified"]
    assert answer["kind"] == Kind.ANSWER
    payload = (b"swarm of hospitals " * 52_632)[:1_000_000]
    assert answer["sent"] == hashlib.sha256(payload).hexdigest()
    assert bytes.fromhex(answer["answered"]) == hashlib.sha256(payload).digest() + payload
    assert known["peer"] == OURS.peer_id
    assert {PING, identify.PROTOCOL, frames.PROTOCOL} <= set(known["protocols"])


@SECURITY
async def test_we_dial_js_and_it_answers(ours: Libp2pTransport, security: str) -> None:
    async with JsPeer(THEIRS, security) as js:
        ours.set_members({THEIRS.address: js.endpoint})
        await until(lambda: bool(ours.connected()), PATIENCE_S)
        payload = hashlib.shake_128(b"js").digest(1_000_000)
        answer = await ours.request(THEIRS.address, ECHO, payload, timeout_s=PATIENCE_S)
        assert answer == hashlib.sha256(payload).digest() + payload
        await until(lambda: ours.meter.of(THEIRS.address).round_trip_s is not None, PATIENCE_S)
