"""go-libp2p, as the daemon `p2pd` runs it: start one, tell it to connect, open streams through it, take its streams.

The daemon hands every stream of the network on as a connection of a Unix socket, byte for byte. Its control messages
are protobuf with their length before them; the few fields used here are written and read by hand.

Source: https://github.com/libp2p/go-libp2p-daemon/blob/master/specs/CONTROL.md and pb/p2pd.proto
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType

import base58
from libp2p.crypto.secp256k1 import create_new_key_pair
from multiaddr import Multiaddr

from swarm.identity import Identity

PATIENCE_S = 20.0
MESSAGE_MAX_BYTES = 1 << 20
STREAM_BYTES = 1 << 20
"""What a reader of a stream buffers."""

CONTROL = "control"
LOGGED = "error,net/identify=debug,autorelay=debug"
"""What `Daemon.log` has: errors, whom it has identified, and the relays where it has a place."""
_IDENTIFY, _CONNECT, _STREAM_OPEN, _STREAM_HANDLER = 0, 1, 2, 3

Taker = Callable[[StreamReader, StreamWriter], Awaitable[None]]


class Control:
    """What a running daemon can be told, from any process.

    Args:
        folder: the daemon's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: list[asyncio.Server] = []

    async def connect(self, endpoint: str) -> None:
        """Dial a peer, over a relay where its place says so. ConnectionError: no connection, with go's words."""
        place, _, peer = endpoint.rpartition("/p2p/")
        wanted = _bytes(1, _peer(peer)) + _bytes(2, Multiaddr(place).to_bytes()) + _number(3, int(PATIENCE_S))
        _, writer = await self._ask(_CONNECT, 2, wanted)
        writer.close()

    async def open(self, peer_id: str, protocol: str) -> tuple[StreamReader, StreamWriter]:
        """A stream to a peer, ConnectionError if it refuses."""
        wanted = _bytes(1, _peer(peer_id)) + _bytes(2, protocol.encode()) + _number(3, int(PATIENCE_S))
        return await self._ask(_STREAM_OPEN, 3, wanted)

    async def take(self, protocol: str, taker: Taker) -> None:
        """Accept streams of `protocol`."""

        async def taken(reader: StreamReader, writer: StreamWriter) -> None:
            await _message(reader)  # which peer's it is
            try:
                await taker(reader, writer)
            finally:
                writer.close()

        path = self._folder / f"taker{len(self._servers)}"
        self._servers.append(await asyncio.start_unix_server(taken, path, limit=STREAM_BYTES))
        place = _varint(400) + _delimited(bytes(path))  # /unix; the library's own loses the leading slash
        _, writer = await self._ask(
            _STREAM_HANDLER, 4, _bytes(1, place) + _bytes(2, protocol.encode()) + _number(3, False)
        )
        writer.close()

    async def places(self) -> list[str]:
        """The multiaddrs at which it says it is reached, the one that it listens on first."""
        reader, writer = await self._connected()
        writer.write(_delimited(_number(1, _IDENTIFY)))
        fields = dict(_fields(await _message(reader)))
        writer.close()
        return [str(Multiaddr(content)) for number, content in _fields(fields[4]) if number == 2]

    def close(self) -> None:
        """Accept no more streams."""
        for server in self._servers:
            server.close()

    async def _connected(self) -> tuple[StreamReader, StreamWriter]:
        for _ in range(100):  # the socket exists a moment before it is listened on
            try:
                return await asyncio.open_unix_connection(self._folder / CONTROL, limit=STREAM_BYTES)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
        raise ConnectionError("p2pd does not listen")

    async def _ask(self, kind: int, field: int, wanted: bytes) -> tuple[StreamReader, StreamWriter]:
        reader, writer = await self._connected()
        writer.write(_delimited(_number(1, kind) + _bytes(field, wanted)))
        answer = dict(_fields(await _message(reader)))
        if answer.get(1, b"\0") != b"\0":
            writer.close()
            raise ConnectionError(dict(_fields(answer[2]))[1].decode(errors="replace"))
        return reader, writer


class Daemon(Control):
    """A go-libp2p peer.

    Args:
        binary: `tests.others.go_libp2p()`.
        who: its key.
        security: "tls", "noise", or "" for both.
        circuits: it speaks, and is spoken with, over relays.
        relays: it is one.
        reserves_at: the multiaddr of a relay where it asks for a place, as one that nobody can dial.
    """

    def __init__(
        self,
        binary: Path,
        who: Identity,
        *,
        security: str = "",
        circuits: bool = False,
        relays: bool = False,
        reserves_at: str = "",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="p2pd-"))  # a Unix socket's path has 108 bytes at most
        super().__init__(self.folder)
        self.who = who
        self._binary = binary
        self._security = security
        self._circuits = circuits or relays or bool(reserves_at)
        self._relays = relays
        self._reserves_at = reserves_at
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = ""
        """Its multiaddr with the PeerID, once it runs."""

    async def __aenter__(self) -> Daemon:
        self._process = self._launched()
        try:
            await self._started()
            self.endpoint = f"{(await self.places())[0]}/p2p/{self.who.peer_id}"
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and remove its files."""
        self.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder)

    def log(self) -> str:
        """What it has written, see `LOGGED`."""
        return (self.folder / "log").read_text()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def _launched(self) -> subprocess.Popen[bytes]:
        key = self.folder / "key"
        key.write_bytes(create_new_key_pair(self.who.secret).private_key.serialize())
        flags = [f"-relay={str(self._circuits).lower()}", f"-relayService={str(self._relays).lower()}"]
        if self._relays:
            flags += ["-forceReachabilityPublic"]
        if self._reserves_at:
            flags += ["-autoRelay", "-relayDiscovery=false", f"-trustedRelays={self._reserves_at}"]
            flags += ["-forceReachabilityPrivate", "-dhtClient"]  # it wants a DHT for that
        flags += [f"-{kind}={str(self._security in ('', kind)).lower()}" for kind in ("tls", "noise")]
        with open(self.folder / "log", "wb") as log:
            return subprocess.Popen(
                [
                    self._binary, "-listen", f"/unix{self.folder / CONTROL}", "-hostAddrs", "/ip4/127.0.0.1/tcp/0",
                    "-id", key, *flags,
                ],
                stdout=log, stderr=log, env={**os.environ, "GOLOG_LOG_LEVEL": LOGGED},
            )  # fmt: skip

    async def _started(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(PATIENCE_S):
            while not (self.folder / CONTROL).exists():
                if self._process.poll() is not None:
                    raise ConnectionError(f"p2pd ended: {self.log()[-500:]}")
                await asyncio.sleep(0.02)


def _peer(peer_id: str) -> bytes:
    return bytes(base58.b58decode(peer_id))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _delimited(message: bytes) -> bytes:
    return _varint(len(message)) + message


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in unsigned LEB128, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents; a number's content is the one byte it has here."""
    position = 0
    while position < len(message):
        key, position = read_varint(message, position)
        value, position = read_varint(message, position)
        if key & 7 == 2:
            yield key >> 3, message[position : position + value]
            position += value
        else:
            yield key >> 3, bytes([value])


async def _message(reader: StreamReader) -> bytes:
    size, shift = 0, 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        assert size <= MESSAGE_MAX_BYTES
        return await reader.readexactly(size)
