"""Sites behind proxies: out through CONNECT, in through a plain TCP proxy."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable

import pytest

from swarm.config import Proxy, proxy_of
from swarm.encoding import Address
from swarm.errors import ConfigError
from swarm.net.libp2p import Libp2pTransport, dialling
from swarm.net.libp2p.proxy import ANSWER_MAX_BYTES
from tests.net.kit import ANY_PORT, identity, until
from tests.net.test_libp2p import Line, port_of

NAME = "other-hospital.example"
"""Only the proxy knows where it is, as in a network whose machines have no names of the internet."""


class ConnectProxy:
    """A real proxy on loopback: CONNECT alone, and a name and password where it wants them."""

    def __init__(self, *, password: str = "", answers: bytes | None = None) -> None:
        self.port = 0
        self.asked: list[str] = []
        self._wants = "Basic " + base64.b64encode(password.encode()).decode() if password else ""
        self._answers = answers
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ConnectProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._connect(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.split("\r\n")
        method, place, _ = request.split(" ")
        self.asked.append(place)
        if self._answers is not None:
            writer.write(self._answers)
            await writer.drain()
            return
        if self._wants and f"Proxy-Authorization: {self._wants}" not in lines:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            await writer.drain()
            return
        host, _, port = place.rpartition(":")
        if method != "CONNECT" or host != NAME:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        there, back = await asyncio.open_connection("127.0.0.1", int(port))
        # The head and the first bytes of the other side may arrive in one piece.
        writer.write(b"HTTP/1.1 200 Connection established\r\nProxy-Agent: a test\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, back))
                group.create_task(self._carry(there, writer))
        finally:
            back.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        raise ConnectionError("one side is over, so is the other")


async def echo(sender: Address, payload: bytes) -> bytes:
    return payload


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Libp2pTransport]]:
    made: list[Libp2pTransport] = []

    def one(number: int, proxy: Proxy | None = None) -> Libp2pTransport:
        made.append(Libp2pTransport(identity(number), ANY_PORT, proxy=proxy))
        made[-1].serve("/echo", echo)
        return made[-1]

    yield one
    for transport in made:
        await transport.close()


async def inside_and_outside(make: Callable[..., Libp2pTransport], proxy: Proxy | None) -> list[Libp2pTransport]:
    """A site with that proxy, and a member whose name only the proxy can resolve."""
    inside, outside = make(1, proxy), make(2)
    await outside.start()
    await inside.start()
    outside.set_members({inside.me: ""})
    inside.set_members({outside.me: f"/dns4/{NAME}/tcp/{port_of(outside)}/p2p/{identity(2).peer_id}"})
    return [inside, outside]


# Out through CONNECT


async def test_a_site_whose_only_way_out_is_a_proxy_speaks_with_members(make: Callable[..., Libp2pTransport]) -> None:
    async with ConnectProxy() as proxy:
        inside, outside = await inside_and_outside(make, proxy_of(proxy.url, environment={}))
        await until(lambda: inside.connected() == {outside.me} and outside.connected() == {inside.me})
        for transport, other in ((inside, outside), (outside, inside)):
            assert await transport.request(other.me, "/echo", b"both ways", timeout_s=5) == b"both ways"
        payload = bytes(range(256)) * 20_000
        assert await inside.request(outside.me, "/echo", payload, timeout_s=20) == payload
        assert set(proxy.asked) == {f"{NAME}:{port_of(outside)}"}


async def test_the_environments_proxy_with_its_password_is_taken_where_the_direct_way_fails(
    make: Callable[..., Libp2pTransport],
) -> None:
    async with ConnectProxy(password="swarm:open%sesame") as proxy:
        url = f"http://swarm:open%25sesame@127.0.0.1:{proxy.port}"
        inside, outside = await inside_and_outside(make, proxy_of(None, environment={"HTTPS_PROXY": url}))
        await until(lambda: inside.connected() == {outside.me}, 15)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
        (b"HTTP/1.1 407 Who are you?\r\n\r\n", "name and a password"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * ANSWER_MAX_BYTES, "more than 8192 bytes"),
        (b"", "hung up"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "SSH-2.0"),
        (b"HTTP/1.1 2000 Nonsense\r\n\r\n", "2000 Nonsense"),
    ],
)
async def test_a_proxy_that_lets_nothing_through_is_named_with_its_answer(
    make: Callable[..., Libp2pTransport], answers: bytes, said: str
) -> None:
    async with ConnectProxy(answers=answers) as proxy:
        inside, outside = await inside_and_outside(make, proxy_of(proxy.url, environment={}))
        await until(lambda: said in inside.meter.of(outside.me).last_failure)
        assert f"the proxy {proxy.url}" in inside.meter.of(outside.me).last_failure


async def test_a_proxy_that_never_answers_costs_one_handshakes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.libp2p.keeper.HANDSHAKE_S", 0.3)
    async with asyncio.timeout(10), Line() as deaf:
        deaf.deaf = True
        deaf.target = deaf.port  # somewhere that accepts
        inside = Libp2pTransport(identity(1), ANY_PORT, proxy=Proxy("127.0.0.1", deaf.port))
        await inside.start()
        try:
            inside.set_members({identity(2).address: f"/dns4/{NAME}/tcp/443"})
            began_s = time.monotonic()
            await until(lambda: inside.meter.of(identity(2).address).dials_failed >= 2)
            assert time.monotonic() - began_s < 5
        finally:
            await inside.close()


async def test_this_machine_and_exempt_hosts_are_reached_without_the_proxy() -> None:
    proxy = proxy_of(
        "http://127.0.0.1:1", environment={"NO_PROXY": "clinic.example, .ward.example,10.0.0.0/8,192.0.2.7"}
    )
    assert proxy is not None
    for host in ("127.0.0.1", "::1", "localhost", "clinic.example", "a.clinic.example", "b.ward.example", "10.9.8.7"):
        assert not proxy.serves(host), host
    for host in ("notclinic.example", "192.0.2.8", "example", "2001:db8::1"):
        assert proxy.serves(host), host
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        (await dialling.connect("127.0.0.1", server.sockets[0].getsockname()[1], proxy)).close()


@pytest.mark.parametrize(
    "setting",
    ["proxy.hospital:3128", "https://proxy.hospital", "socks5://p:1080", "http://", "http://p:99999", "http://p/x"],
)
def test_what_is_no_http_proxy_is_refused_with_the_form(setting: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        proxy_of(setting, environment={})


def test_a_password_belongs_in_the_environment_and_is_never_shown() -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as refused:
        proxy_of("http://me:topsecret@proxy.hospital:3128", environment={})
    assert "topsecret" not in str(refused.value)
    proxy = proxy_of(None, environment={"https_proxy": "me:topsecret@proxy.hospital:3128"})
    assert proxy is not None
    assert proxy.authorization == "Basic " + base64.b64encode(b"me:topsecret").decode()
    assert "topsecret" not in repr(proxy) + str(proxy)
    assert proxy.authorization not in repr(proxy) + str(proxy)
    with pytest.raises(ConfigError) as refused:
        proxy_of(None, environment={"https_proxy": "https://me:topsecret@proxy.hospital:3128"})
    assert "topsecret" not in str(refused.value)


def test_an_empty_setting_sets_the_environments_proxy_aside() -> None:
    assert proxy_of("", environment={"HTTPS_PROXY": "http://proxy.hospital:3128"}) is None
    assert proxy_of(None, environment={}) is None


# In through a TCP proxy


async def test_members_behind_one_forwarding_proxy_share_its_address_and_are_all_let_in(
    make: Callable[..., Libp2pTransport],
) -> None:
    """The endpoint names the proxy's place; everybody seems to come from it."""
    async with Line() as forwarding:
        site, *others = (make(number) for number in range(1, 9))
        await site.start()
        forwarding.target = port_of(site)
        site.set_members({other.me: "" for other in others})
        for other, number in zip(others, range(2, 9), strict=True):
            await other.start()
            other.set_members({site.me: f"/ip4/127.0.0.1/tcp/{forwarding.port}/p2p/{identity(1).peer_id}"})
            assert other.me == identity(number).address
        await until(lambda: site.connected() == {other.me for other in others})
        for other in others:
            assert await site.request(other.me, "/echo", b"there and back", timeout_s=5) == b"there and back"
