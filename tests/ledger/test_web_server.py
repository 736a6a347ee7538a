"""A real server on loopback, and strangers who are slow, greedy, many, or talk nonsense."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import websockets

from swarm.config import RpcConfig
from swarm.encoding import keccak256, to_hex
from swarm.errors import ConfigError
from swarm.ledger import web, web_server
from swarm.ledger.web import Web
from swarm.ledger.web_server import Server
from tests.ledger import world
from tests.ledger.served import OPEN_RPC, Served
from tests.ledger.world import OPERATORS

PATIENCE_S = 30


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "ledger")
    yield served
    served.close()


def asking(method: str, *params: Any, number: int = 1) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server hangs up."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionError:
        return b""


async def answers(url: str) -> bool:
    """Whether it still serves others."""
    async with httpx.AsyncClient() as client:
        found = await client.post(url, content=asking("eth_blockNumber"), timeout=PATIENCE_S)
        return "result" in found.json()


def websocket(url: str, **options: Any) -> Any:
    return websockets.connect(url.replace("http", "ws"), max_size=None, **options)


# --- at the door


async def test_a_taken_or_foreign_address_is_named_with_the_way_out(served: Served) -> None:
    def server(config: RpcConfig) -> Server:
        return Server(Web(served.ledger, config, served.take, clock=lambda: 0.0), served.next_block)

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} is in use: .*another port, `listen` in \[rpc\]"):
            await server(RpcConfig("127.0.0.1", port)).start()
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0 is not this machine's"):
        await server(RpcConfig("192.0.2.1", 0)).start()
    never_started = server(RpcConfig("127.0.0.1", 0))
    await never_started.close()


async def test_a_port_is_free_again_when_the_server_has_stopped_with_clients_connected(served: Served) -> None:
    async with served.listening() as url, connected(url), websocket(url):
        port = urlsplit(url).port
        assert port
    async with served.listening(replace(OPEN_RPC, port=port)) as again:
        assert await answers(again)


async def test_a_websocket_of_a_strangers_page_is_refused(served: Served) -> None:
    async with served.listening() as url:
        with pytest.raises(websockets.InvalidStatus, match="403"):
            await websocket(url, origin="https://evil.example")
        with pytest.raises(websockets.InvalidStatus, match="403"):
            await websockets.connect("ws://evil.example", host="127.0.0.1", port=urlsplit(url).port)
    friendly = replace(OPEN_RPC, origins=("https://good.example",))
    async with served.listening(friendly) as url, websocket(url, origin="https://good.example") as line:
        await line.send(asking("eth_chainId"))
        assert json.loads(await line.recv())["result"] == hex(world.CHAIN)


# --- WebSocket


async def test_a_websocket_answers_batches_and_tells_heads_logs_and_what_waits_in_order(served: Served) -> None:
    async with served.listening() as url, websocket(url) as line:
        names = {}
        for number, kind in enumerate(("newHeads", "logs", "newPendingTransactions")):
            await line.send(asking("eth_subscribe", kind, number=number))
            names[json.loads(await line.recv())["result"]] = kind
        await line.send(f"[{asking('eth_chainId')},{asking('eth_blockNumber')}]")
        assert [answer["result"] for answer in json.loads(await line.recv())] == [hex(world.CHAIN), "0x0"]
        raw = world.propose(OPERATORS[0], 0)
        await line.send(asking("eth_sendRawTransaction", to_hex(raw)))
        assert json.loads(await line.recv())["result"] == to_hex(keccak256(raw))
        told = [json.loads(await line.recv())["params"] for _ in range(4)]
        kinds = [names[one["subscription"]] for one in told]
        assert kinds[:2] == ["newPendingTransactions", "newHeads"]
        assert set(kinds[2:]) == {"logs"}
        assert told[0]["result"] == to_hex(keccak256(raw))
        assert told[1]["result"]["hash"] == to_hex(served.ledger.head.hash)
        assert {one["result"]["transactionHash"] for one in told[2:]} == {to_hex(keccak256(raw))}
        for name in names:
            await line.send(asking("eth_unsubscribe", name))
            assert json.loads(await line.recv())["result"] is True
        await line.send(asking("eth_sendRawTransaction", to_hex(world.propose(OPERATORS[1], 0))))
        await line.recv()
        await line.send(asking("eth_blockNumber", number=99))
        assert json.loads(await line.recv()) == {"jsonrpc": "2.0", "id": 99, "result": "0x2"}, "no news any more"


async def test_a_websocket_that_asks_too_often_waits_and_loses_nothing(served: Served) -> None:
    async with served.listening(replace(OPEN_RPC, requests_s=100)) as url, websocket(url) as line:
        began_s = asyncio.get_running_loop().time()
        for number in range(230):
            await line.send(asking("eth_chainId", number=number))
        assert [json.loads(await line.recv())["id"] for _ in range(230)] == list(range(230))
        assert asyncio.get_running_loop().time() - began_s > 0.25


async def test_a_websocket_message_that_is_too_long_ends_it(served: Served) -> None:
    async with served.listening(replace(OPEN_RPC, body_max_bytes=4096)) as url:
        async with websocket(url) as line:
            await line.send(" " * 5000)
            with pytest.raises(websockets.ConnectionClosedError, match="1009"):
                await line.recv()
        async with websocket(url) as line:
            await line.send("[" * 4000)
            assert json.loads(await line.recv())["error"]["code"] == -32700
            await line.send(b"\xff" * 10)
            assert json.loads(await line.recv())["error"]["code"] == -32700


async def test_a_message_of_endless_empty_frames_ends_it(served: Served) -> None:
    async with served.listening() as url, connected(url) as (reader, writer):
        await upgrade(reader, writer)
        empty_masked = b"\x80\x00\x00\x00\x00"
        writer.write(b"\x01" + empty_masked + (b"\x00" + empty_masked) * 5000)
        assert await ended(reader) == b""


async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A WebSocket by hand."""
    writer.write(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")


def frame(text: str, opcode: int = 1) -> bytes:
    """A client's frame with a mask of zeros."""
    data = text.encode()
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + size + bytes(4) + data


@pytest.mark.parametrize("flood", ["requests", "pings", "news"])
async def test_who_never_reads_is_dropped_and_costs_no_memory(
    served: Served, monkeypatch: pytest.MonkeyPatch, flood: str
) -> None:
    monkeypatch.setattr(web_server, "STALL_S", 0.5)
    process = psutil.Process()
    async with served.listening() as url, connected(url) as (reader, writer):
        await upgrade(reader, writer)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        gc.collect()
        before = process.memory_info().rss
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(keep_sending(served, writer, flood), PATIENCE_S)
        assert process.memory_info().rss - before < 32 << 20
        assert await answers(url)


async def keep_sending(served: Served, writer: asyncio.StreamWriter, flood: str) -> None:
    """Makes the server send more and more."""
    for _ in range(32):
        writer.write(frame(asking("eth_subscribe", "newHeads")))
    while True:
        if flood == "news":  # 32 × 1.7 KB a block
            world.grow(served.ledger, 1)
            served.announce()
            writer.write(frame("", 10))
        else:
            asked = frame(asking("eth_getBlockByNumber", "0x0", True)) if flood == "requests" else frame("x" * 100, 9)
            writer.write(asked * 100)
        await writer.drain()
        await asyncio.sleep(0)


# --- HTTP


def posted(body: str) -> bytes:
    """A whole request."""
    return b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body.encode()


async def test_a_request_that_never_ends_is_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "HEAD_S", 0.4)
    monkeypatch.setattr(web_server, "IDLE_S", 0.4)
    monkeypatch.setattr(web, "BODY_S", 0.4)
    whole = posted(asking("eth_blockNumber"))
    async with served.listening() as url:
        async with connected(url) as (reader, _):
            assert await ended(reader) == b"", "who says nothing"
        for start in (b"", whole + whole):
            async with connected(url) as (reader, writer):
                writer.write(start)
                ending = asyncio.create_task(ended(reader))
                for byte in b"POST / HTTP/1.1\r\nHost: " + b"1" * 1000:  # a byte now and then, never the end
                    if ending.done():
                        break
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)
                assert (await ending).count(b"200 OK") == len(start) // len(whole)
        async with connected(url) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            said = await ended(reader)
            assert b" 408 " in said
            assert b"had not arrived" in said
        assert await answers(url)


async def test_an_idle_connection_may_ask_again_later(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "HEAD_S", 0.3)
    async with served.listening() as url, connected(url) as (reader, writer):
        for _ in range(2):
            writer.write(posted(asking("eth_blockNumber")))
            assert b" 200 " in await asyncio.wait_for(reader.readline(), PATIENCE_S)
            await reader.readuntil(b"}")
            await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b" 400 "),
        (b"GET / HTTP/1.1\r\nHost: " + b"a" * 100_000, b" 400 "),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000, b" 400 "),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b" 400 "),
        (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b" 413 "),
        (
            b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n" + b" " * (2 << 20),
            b" 413 ",
        ),
        (b"POST http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n", b" 403 "),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b" 4"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", b" 405 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" 40"),
    ],
    ids=lambda item: str(item)[:60],
)
async def test_nonsense_gets_an_error_and_serves_others_still(served: Served, said: bytes, answered: bytes) -> None:
    async with served.listening() as url:
        async with connected(url) as (reader, writer):
            writer.write(said)
            first = await asyncio.wait_for(reader.readline(), PATIENCE_S)
            assert answered in first
        assert await answers(url)


async def test_a_thousand_connections_are_too_many_and_cost_little(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"this machine allows {hard} open files, and both ends of a thousand connections take more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    process = psutil.Process()
    config = replace(OPEN_RPC, connections_max=50)
    try:
        async with served.listening(config) as url:
            place = urlsplit(url)
            gc.collect()
            before = process.memory_info().rss
            lines = []
            for _ in range(1000):
                lines.append(await asyncio.open_connection(place.hostname, place.port))
            firsts = [asyncio.create_task(reader.readline()) for reader, _ in lines]
            done, waiting = await asyncio.wait(firsts, timeout=2)
            assert len(waiting) == 50
            assert {task.result() for task in done if task.exception() is None} == {
                b"HTTP/1.1 503 Service Unavailable\r\n"
            }
            assert process.memory_info().rss - before < 100 << 20
            for task in waiting:
                task.cancel()
            for _, writer in lines:
                writer.close()
            await asyncio.sleep(0.1)
            assert await answers(url)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connections_are_kept_and_pipelined_requests_answered_in_order(served: Served) -> None:
    async with served.listening() as url, connected(url) as (reader, writer):
        for number in range(5):
            writer.write(posted(asking("eth_chainId", number=number)))
        for number in range(5):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            size = int(
                next(line.split()[1] for line in head.splitlines() if line.lower().startswith(b"content-length"))
            )
            assert json.loads(await reader.readexactly(size))["id"] == number


def test_an_answers_body_does_not_wait_for_its_head_to_be_acknowledged() -> None:
    """asyncio takes Nagle's rule only from sockets that name TCP; accepted ones are like the one that listens."""
    with web_server._bound("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP
