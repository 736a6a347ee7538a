"""What only real sockets can show: strangers, floods, cut lines, restarts."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from swarm.encoding import Address
from swarm.errors import ConfigError, UnavailableError
from swarm.net.libp2p import Libp2pTransport, keeper, mesh
from swarm.net.libp2p.connection import Connection
from swarm.net.libp2p.mesh import HANDSHAKES_MAX
from swarm.net.libp2p.security import Credentials
from tests.net.kit import ANY_PORT, Swarm, identity, until


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    made = Swarm("libp2p")
    yield made
    await made.close()


async def echo(sender: Address, payload: bytes) -> bytes:
    return payload


async def pair(swarm: Swarm, *, ping_s: float = 15.0) -> tuple[Libp2pTransport, Libp2pTransport]:
    a, b = await one(swarm, 1, ping_s=ping_s), await one(swarm, 2, ping_s=ping_s)
    await until(lambda: bool(a.connected()) and bool(b.connected()))
    return a, b


async def one(swarm: Swarm, number: int, *, ping_s: float = 15.0) -> Libp2pTransport:
    transport = swarm.make(number, ping_s=ping_s)
    assert isinstance(transport, Libp2pTransport)
    transport.serve("/echo", echo)
    await swarm.start(transport)
    return transport


async def through(line: Line, swarm: Swarm, *, ping_s: float = 15.0) -> tuple[Libp2pTransport, Libp2pTransport]:
    """Two members of which the second reaches the first over the line, and there is no other way."""
    a, b = (Libp2pTransport(identity(number), ANY_PORT, ping_s=ping_s) for number in (1, 2))
    for transport in (a, b):
        swarm.transports.append(transport)
        transport.serve("/echo", echo)
        await transport.start()
    line.target = port_of(a)
    a.set_members({b.me: ""})
    b.set_members({a.me: f"/ip4/127.0.0.1/tcp/{line.port}/p2p/{identity(1).peer_id}"})
    await until(lambda: b.connected() == {a.me} and a.connected() == {b.me})
    return a, b


def port_of(transport: Libp2pTransport) -> int:
    return int(transport.endpoint.split("/")[4])


async def stranger(transport: Libp2pTransport) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port_of(transport))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# Strangers


async def test_plaintext_and_secio_are_not_spoken(swarm: Swarm) -> None:
    """Whoever knows a member's public key passes for it over plaintext, which the library offers by itself."""
    a, _ = await pair(swarm)
    reader, writer = await stranger(a)
    writer.write(b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n\x0d/secio/1.0.0\n")
    assert await reader.readexactly(20 + 4 + 4) == b"\x13/multistream/1.0.0\n\x03na\n\x03na\n"
    writer.close()


@pytest.mark.parametrize(
    "flood",
    [
        b"\xff\xff\xff\xff\x7f" + b"a" * 100_000,  # a first line of 34 GB
        b"\x13/multistream/1.0.0\n" + b"\xff\xff\xff\xff\x7f" + b"a" * 100_000,
        b"\x13/multistream/1.0.0\n" + b"\x03ls\n" * 10_000,
        b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n" + b"\x16\x03\x01\xff\xff" + b"a" * 100_000,
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff\xff" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: hospital\r\n\r\n",
    ],
)
async def test_a_strangers_flood_is_cut_off_and_costs_no_memory(swarm: Swarm, flood: bytes) -> None:
    a, b = await pair(swarm)
    reader, writer = await stranger(a)
    writer.write(flood)
    try:
        async with asyncio.timeout(5):
            while await reader.read(4096):
                pass
    except ConnectionError:
        pass
    writer.close()
    assert await b.request(a.me, "/echo", b"unharmed", timeout_s=5) == b"unharmed"
    assert a._mesh._handshakes == {}


@pytest.mark.parametrize("seed", range(30))
async def test_random_first_bytes_do_no_harm(swarm: Swarm, seed: int) -> None:
    a = await one(swarm, 1)
    chance = random.Random(seed)
    openings = [b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"]
    openings.append(b"\x13/multistream/1.0.0\n\x07/noise\n")
    for _ in range(5):
        _, writer = await stranger(a)
        writer.write(chance.choice(openings) + chance.randbytes(chance.randrange(1, 3000)))
        if chance.random() < 0.5:
            writer.write_eof()
        writer.close()
    b = await one(swarm, 2)
    await until(lambda: a.me in b.connected())
    assert await b.request(a.me, "/echo", b"unharmed", timeout_s=5) == b"unharmed"


async def test_silent_strangers_keep_no_member_out_and_are_dropped(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "HANDSHAKE_S", 0.5)
    a = await one(swarm, 1)
    strangers = [await stranger(a) for _ in range(3 * HANDSHAKES_MAX)]
    await until(lambda: len(a._mesh._handshakes) == HANDSHAKES_MAX)
    loop = asyncio.get_running_loop()
    since_s = loop.time()
    b = await one(swarm, 2)
    await until(lambda: a.me in b.connected())
    assert loop.time() - since_s < 0.4
    assert await b.request(a.me, "/echo", b"in", timeout_s=5) == b"in"
    await until(lambda: not a._mesh._handshakes)
    for reader, writer in strangers:
        with suppress(ConnectionError):
            assert await reader.read(100) == b""
        writer.close()
    assert b.connected() == {a.me}


async def test_another_member_at_a_members_place_is_not_taken_for_it(swarm: Swarm) -> None:
    a, b = await one(swarm, 1), await one(swarm, 2)
    c = await one(swarm, 3)
    lying = dict(swarm.endpoints)
    lying[b.me] = c.endpoint.replace(identity(3).peer_id, identity(2).peer_id)
    await b.close()
    a.set_members(lying)
    await asyncio.sleep(0.3)
    assert a.connected() == {c.me}


# Life


class Caller:
    """The other end of a line, without a transport around it."""

    def __init__(self, number: int, target: Libp2pTransport) -> None:
        self.ready = False
        self._target = target
        self._connection = Connection(CREDENTIALS[number], self, dialled=target.me)  # type: ignore[arg-type]

    def admit(self, connection: Connection, remote: Address) -> None:
        assert remote == self._target.me

    def opened(self, connection: Connection) -> None:
        self.ready = True

    async def call(self) -> asyncio.StreamWriter:
        """Until messages can travel, or the other side closes."""
        reader, writer = await stranger(self._target)
        async with asyncio.timeout(5):
            while not self.ready:
                writer.write(self._connection.outgoing(4096))
                data = await reader.read(4096)
                if not data:
                    break
                self._connection.receive(memoryview(data))
        return writer


CREDENTIALS = {number: Credentials(identity(number)) for number in (2, 9)}


async def test_three_hundred_lines_of_a_member_come_and_go(swarm: Swarm) -> None:
    """The library holds a slot for each inbound connection until the process ends, and goes deaf after 250."""
    a = await one(swarm, 1)
    a.set_members({identity(2).address: f"/ip4/127.0.0.1/tcp/9/p2p/{identity(2).peer_id}"})
    before = open_files(), len(asyncio.all_tasks())
    for turn in range(300):
        caller = Caller(2, a)
        writer = await caller.call()
        assert caller.ready
        await until(lambda: bool(a.connected()))
        if turn % 2:
            writer.transport.abort()
        else:
            writer.close()
        await until(lambda: not a.connected())
    await until(lambda: (open_files(), len(asyncio.all_tasks())) <= before)


async def test_who_is_no_member_is_sent_away_right_after_its_key_is_proven(swarm: Swarm) -> None:
    a = await one(swarm, 1)
    a.set_members({identity(2).address: ""})
    for number, welcome in ((2, True), (9, False), (2, True)):
        caller = Caller(number, a)
        with suppress(ConnectionError):
            (await caller.call()).close()
        assert caller.ready == welcome


async def test_a_cut_path_is_noticed_by_missing_pings(swarm: Swarm) -> None:
    """Nothing tells that a path is gone but silence; the library waits for ever."""
    async with Line() as line:
        a, b = await through(line, swarm, ping_s=0.1)
        (peer,) = b._mesh._peers.values()
        wires = list(peer.wires)
        await asyncio.sleep(0.6)
        assert peer.wires == wires, "pings keep an idle line"
        asked = asyncio.create_task(b.request(a.me, "/echo", b"x", timeout_s=60))
        assert await asked == b"x"
        line.deaf = True
        waiting = asyncio.create_task(b.request(a.me, "/echo", b"y", timeout_s=60))
        with pytest.raises(UnavailableError, match="lost"):
            await asyncio.wait_for(waiting, 2)
        await until(lambda: not a.connected(), 2)


async def test_a_message_that_is_cut_in_the_middle_is_never_taken_for_whole(swarm: Swarm) -> None:
    """The library reports a lost line as the end of the stream."""
    heard: list[int] = []

    async def hear(sender: Address, payload: bytes) -> bytes:
        heard.append(len(payload))
        return b""

    async with Line() as line:
        a, b = await through(line, swarm)
        a.serve("/hear", hear)
        for limit in (1_000, 70_000, 900_000, 3_000_000):
            await until(lambda: b.connected() == {a.me} and a.connected() == {b.me})
            line.left = limit
            b.send(a.me, "/hear", bytes(4_000_000))
            with pytest.raises(UnavailableError):
                await b.request(a.me, "/echo", bytes(4_000_000), timeout_s=5)
            line.left = 1 << 40
        await until(lambda: b.connected() == {a.me})
        b.send(a.me, "/hear", b"whole")
        await until(lambda: bool(heard))
    assert heard == [5]


async def test_both_dialling_at_once_leaves_one_line_and_loses_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "YIELD_S", 0.0)
    twice = 0
    for _ in range(5):
        a, b = (Libp2pTransport(identity(number), ANY_PORT) for number in (1, 2))
        for transport in (a, b):
            transport.serve("/echo", echo)
            await transport.start()
        for transport in (a, b):
            transport.set_members({a.me: a.endpoint, b.me: b.endpoint})
        (there,), (back,) = a._mesh._peers.values(), b._mesh._peers.values()
        try:
            await until(lambda: bool(a.connected()) and bool(b.connected()))  # noqa: B023
            for turn in range(30):
                word = str(turn).encode()
                twice += len(there.wires) == 2 == len(back.wires)
                assert await a.request(b.me, "/echo", word, timeout_s=5) == word
                assert await b.request(a.me, "/echo", word, timeout_s=5) == word
                await asyncio.sleep(0.01)
            assert len(there.wires) == len(back.wires) == 1
        finally:
            await a.close()
            await b.close()
    assert twice, "both never dialled at once, so nothing was shown"


async def test_a_member_with_a_new_line_is_spoken_to_over_that_one(swarm: Swarm) -> None:
    """A member that lost power and is back dials again; its old line is dead and does not know it."""
    async with Line() as line:
        a, b = await through(line, swarm)
        line.deaf = True
        again = Libp2pTransport(identity(2), ANY_PORT)
        again.serve("/echo", echo)
        swarm.transports.append(again)
        await again.start()
        again.set_members({a.me: a.endpoint})
        await until(lambda: again.connected() == {a.me})
        assert await a.request(b.me, "/echo", b"new", timeout_s=5) == b"new"


async def test_a_dial_takes_no_longer_than_its_handshake(swarm: Swarm) -> None:
    """The library waits 250 ms after every dial, and remembers a failed one for a minute."""
    loop = asyncio.get_running_loop()
    a, b = Libp2pTransport(identity(1), ANY_PORT), Libp2pTransport(identity(2), ANY_PORT)
    swarm.transports += [a, b]
    first, second = (a, b) if a.me < b.me else (b, a)
    await second.start()
    second.set_members({first.me: ""})
    await first.start()
    since_s = loop.time()
    first.set_members({second.me: second.endpoint})
    await until(lambda: first.connected() == {second.me})
    assert loop.time() - since_s < 0.2


async def test_no_socket_keeps_a_small_write_back(swarm: Swarm) -> None:
    """The side that dialled did: credit and votes waited 40 ms for an acknowledgement, and bulk ran at 80 MB/s."""
    for transport in await pair(swarm):
        ((wire,),) = (peer.wires for peer in transport._mesh._peers.values())
        assert wire._transport is not None
        assert wire._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_every_address_of_a_name_is_tried(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library tries one address of a kind. Here the first is dead, as an old line of a hospital would be."""
    a = await one(swarm, 1)
    closed = socket.socket()
    closed.bind(("127.0.0.2", 0))

    async def addresses(host: str, port: int, **_: object) -> list[object]:
        assert host == "site.example"
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.2", port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    b = await one(swarm, 2)
    a.set_members({b.me: ""})
    b.set_members({})
    b.set_members({a.me: f"/dns4/site.example/tcp/{port_of(a)}/p2p/{identity(1).peer_id}"})
    await until(lambda: b.connected() == {a.me}, 2)
    closed.close()


async def test_nothing_is_left_open(swarm: Swarm) -> None:
    """The library leaves the sockets of one stop in twelve open."""
    files = open_files()
    for _ in range(8):
        small = Swarm("libp2p")
        made = [await one(small, number) for number in (1, 2, 3)]
        await until(lambda: all(len(transport.connected()) == 2 for transport in made))  # noqa: B023
        await small.close()
        await until(lambda: open_files() <= files)


# Settings


async def test_a_port_in_use_is_the_operators_to_mend(swarm: Swarm) -> None:
    a = await one(swarm, 1)
    b = Libp2pTransport(identity(2), f"/ip4/127.0.0.1/tcp/{port_of(a)}")
    with pytest.raises(ConfigError, match=rf"port {port_of(a)}.*another port.*`listen`"):
        await b.start()
    await b.close()
    elsewhere = Libp2pTransport(identity(2), "/ip4/203.0.113.7/tcp/4101")
    with pytest.raises(ConfigError, match="no such address"):
        await elsewhere.start()
    await elsewhere.close()


@pytest.mark.parametrize("listen", ["", "127.0.0.1:4101", "/ip4/127.0.0.1/udp/4101", "/ip4/127.0.0.1/tcp/70000"])
def test_an_address_that_cannot_be_listened_on_is_named(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        Libp2pTransport(identity(1), listen)


async def test_a_member_that_cannot_be_dialled_dials_us(swarm: Swarm) -> None:
    a, b = await one(swarm, 1), await one(swarm, 2)
    for endpoint in ("", "/ip4/10.0.0.1/udp/1/quic-v1", a.endpoint):
        a.set_members({b.me: endpoint})
        b.set_members({})
        await until(lambda: not a.connected())
        b.set_members({a.me: a.endpoint})
        await until(lambda: a.connected() == {b.me})
        assert await a.request(b.me, "/echo", b"back", timeout_s=5) == b"back"


# The line between two ends


class Line:
    """A relay in front of a port, that can fall silent or break after so many bytes."""

    def __init__(self) -> None:
        self.port = 0
        self.target = 0
        self.deaf = False
        self.left = 1 << 40
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        ends = (writer, there_writer)
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._carry(source, target, ends))
            self._tasks.add(task)

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, ends: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        try:
            while data := await source.read(4096):
                if self.deaf:
                    await asyncio.Event().wait()
                self.left -= len(data)
                if self.left < 0:
                    break
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            for end in ends:
                end.transport.abort()
