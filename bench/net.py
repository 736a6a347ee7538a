"""What the network costs: one stream on loopback beside asyncio, raw TCP and go-libp2p; many senders; small messages.

    python -m bench.net [--megabytes 400] [--repeats 5] [--json FILE]

Every end is a process of its own. Ways to move the bytes take turns, and medians are told: rate, CPU of both ends
for a gigabyte, growth of an end's memory. Ours is requests whose answers are as large as those of objects: one after
another on one stream, and as many at once as a transfer has. asyncio's streams use the same certificates and TLS
settings. Go's ends are two daemons: the processes that feed them are not counted as CPU, but the bytes pass them, as
they pass any user of the daemon.

Then four senders to one receiver, while each of them also sends it a message of 100 bytes every 10 ms.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer
from rich.console import Console
from rich.table import Table

from swarm.encoding import Address
from swarm.identity import Identity
from swarm.net.libp2p import Libp2pTransport
from swarm.net.libp2p.security import Credentials
from swarm.net.transfer import RANGE_MAX, WORKERS_MAX
from tests.others import ROOT
from tests.others.p2pd import Control, Daemon

PIECE_BYTES = RANGE_MAX << 20
"""What one request brings, as in a transfer of objects."""
WRITE_BYTES = 256 << 10
SENDERS = 4
MESSAGE_EVERY_S = 0.01
PATIENCE_S = 120.0
_STAMP = struct.Struct("!d")


@dataclass(frozen=True)
class Spent:
    """What a way to move bytes took."""

    seconds: float
    cpu_s: float
    """Of both ends."""
    memory_bytes: int
    """Growth of the end that grew more, at its highest."""


@dataclass(frozen=True)
class Way:
    """A way to move bytes, as the median of several runs."""

    name: str
    megabytes_s: float
    cpu_s_gb: float
    memory_mb: float
    rates: list[float]


@dataclass(frozen=True)
class Crowd:
    """Four senders to one receiver at once."""

    megabytes_s: float
    of_one_sender: float
    message_p50_ms: float
    message_p99_ms: float
    message_max_ms: float
    messages: int


class Part(NamedTuple):
    """What one end spent, by the clock that all processes share."""

    began_s: float
    ended_s: float
    cpu_s: float
    memory_bytes: int


class Usage:
    """This process from now on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the highest memory is now
        self._began_s = time.monotonic()
        self._cpu_s = cpu_s()
        self._memory = _memory("VmRSS")

    def spent(self) -> Part:
        """Until now."""
        memory = _memory("VmHWM") - self._memory
        return Part(self._began_s, time.monotonic(), cpu_s() - self._cpu_s, memory)


def cpu_s() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


# The ends: each a process that is told by its parent what to do, and says what it spent

Work = Callable[[Connection, bool, int], Coroutine[Any, Any, None]]


def _end(work: Work, parent: Connection, sends: bool, size: int) -> None:
    asyncio.run(work(parent, sends, size))


async def heard(parent: Connection) -> Any:
    """What the parent says next."""
    return await asyncio.to_thread(parent.recv)


async def raw_tcp(parent: Connection, sends: bool, size: int) -> None:
    """Sockets and system calls."""
    with socket.create_server(("127.0.0.1", 0)) if not sends else socket.socket() as sock:
        if sends:
            sock.connect(("127.0.0.1", await heard(parent)))
            piece = memoryview(bytes(WRITE_BYTES))
            usage = Usage()
            left = size
            while left:
                left -= sock.send(piece[: min(left, WRITE_BYTES)])
            parent.send(usage.spent())
            return
        parent.send(sock.getsockname()[1])
        taken, _ = sock.accept()
        with taken:
            buffer = bytearray(WRITE_BYTES)
            usage = Usage()
            while size:
                size -= taken.recv_into(buffer)
            parent.send(usage.spent())


async def asyncio_tls(parent: Connection, sends: bool, size: int) -> None:
    """asyncio's streams over TLS 1.3."""
    keys = Credentials(Identity(bytes([1 + sends]) * 32))
    if sends:
        port = await heard(parent)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=keys._client)
        parent.send(await _written(writer, size))
        writer.close()
        return
    over: asyncio.Future[Part] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.set_result(await _read(reader, size))
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=keys._server, limit=WRITE_BYTES)
    parent.send(server.sockets[0].getsockname()[1])
    parent.send(await over)
    server.close()


async def go_libp2p(parent: Connection, sends: bool, size: int) -> None:
    """A user of a go daemon each; the daemons are connected already."""
    folder, peer_id = await heard(parent)
    daemon = Control(Path(folder))
    if sends:
        await heard(parent)
        _, writer = await daemon.open(peer_id, "/bench")
        parent.send(await _written(writer, size))
        writer.close()
        return
    over: asyncio.Future[Part] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.set_result(await _read(reader, size))

    await daemon.take("/bench", take)
    parent.send("takes")
    parent.send(await over)
    daemon.close()


async def _written(writer: asyncio.StreamWriter, size: int) -> Part:
    piece, usage = memoryview(bytes(WRITE_BYTES)), Usage()
    while size:
        taken = min(size, WRITE_BYTES)
        writer.write(piece[:taken])
        await writer.drain()
        size -= taken
    return usage.spent()


async def _read(reader: asyncio.StreamReader, size: int) -> Part:
    usage = Usage()
    while size:
        size -= len(await reader.read(WRITE_BYTES))
    return usage.spent()


async def ours(parent: Connection, sends: bool, size: int) -> None:
    """A site: it serves pieces and hears messages; the parent tells what to pull, and to whom to send messages."""
    number = await heard(parent)
    late_s: list[float] = []
    piece = bytes(PIECE_BYTES)

    async def give(_: Address, wanted: bytes) -> bytes:
        return piece[: int.from_bytes(wanted)]

    async def hear(_: Address, message: bytes) -> bytes:
        late_s.append(time.monotonic() - _STAMP.unpack_from(message)[0])
        return b""

    transport = Libp2pTransport(Identity(bytes([number]) * 32), "/ip4/127.0.0.1/tcp/0")
    transport.serve("/piece", give)
    transport.serve("/message", hear)
    await transport.start()
    parent.send((transport.me, transport.endpoint))
    members = await heard(parent)
    transport.set_members(members)
    while len(transport.connected()) < len(members) - 1:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    parent.send("connected")
    usage, talking = Usage(), asyncio.create_task(asyncio.sleep(0))
    while (told := await heard(parent)) != "end":
        if told == "fresh":
            usage = Usage()
            late_s.clear()
        elif told == "spent":
            talking.cancel()
            parent.send((usage.spent(), late_s))
        elif isinstance(told, tuple):
            at_once, sources = told
            share = size // at_once
            began_s = time.monotonic()
            await asyncio.gather(*(_pull(transport, source, share) for source in sources for _ in range(at_once)))
            parent.send(time.monotonic() - began_s)
        else:
            talking = asyncio.create_task(_talk(transport, told))
    await transport.close()


async def _pull(transport: Libp2pTransport, source: Address, size: int) -> None:
    into = memoryview(bytearray(PIECE_BYTES))
    while size:
        wanted = min(size, PIECE_BYTES)
        question = wanted.to_bytes(4)
        answered = await transport.request_into(source, "/piece", question, into, timeout_s=PATIENCE_S)
        assert answered == wanted
        size -= wanted


async def _talk(transport: Libp2pTransport, to: Address) -> None:
    while True:
        transport.send(to, "/message", _STAMP.pack(time.monotonic()).ljust(100, b"\0"))
        await asyncio.sleep(MESSAGE_EVERY_S)


# What is measured with them


class Ends:
    """Processes, and the pipes to them; the first receives."""

    def __init__(self, work: Work, senders: int, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self._processes = []
        for number in range(senders + 1):
            mine, its = context.Pipe()
            process = context.Process(target=_end, args=(work, its, number > 0, size))
            process.start()
            self.pipes.append(mine)
            self._processes.append(process)

    def close(self) -> None:
        """Wait for their end."""
        for process in self._processes:
            process.join(PATIENCE_S)


def one_way(work: Work, size: int) -> Spent:
    """From one process to another, by sockets of their own."""
    ends = Ends(work, 1, size)
    receiver, sender = ends.pipes
    sender.send(receiver.recv())
    sent, received = [pipe.recv() for pipe in (sender, receiver)]
    ends.close()
    memory = max(sent.memory_bytes, received.memory_bytes)
    return Spent(received.ended_s - sent.began_s, sent.cpu_s + received.cpu_s, memory)


async def by_go(binary: Path, size: int) -> Spent:
    """The same through two go daemons, whose CPU and memory are counted."""
    async with (
        Daemon(binary, Identity(bytes([1]) * 32), security="tls") as taker,
        Daemon(binary, Identity(bytes([2]) * 32), security="tls") as giver,
    ):
        await giver.connect(taker.endpoint)
        ends = Ends(go_libp2p, 1, size)
        receiver, sender = ends.pipes
        receiver.send((str(taker.folder), giver.who.peer_id))
        sender.send((str(giver.folder), taker.who.peer_id))
        receiver.recv()
        daemons = [psutil.Process(daemon.pid) for daemon in (taker, giver)]
        before = [(sum(daemon.cpu_times()[:2]), daemon.memory_info().rss) for daemon in daemons]
        sender.send("now")
        sent, received = await asyncio.to_thread(lambda: [pipe.recv() for pipe in (sender, receiver)])
        after = [(sum(daemon.cpu_times()[:2]), daemon.memory_info().rss) for daemon in daemons]
        ends.close()
    cpu = sum(late[0] - early[0] for early, late in zip(before, after, strict=True))
    memory = max(late[1] - early[1] for early, late in zip(before, after, strict=True))
    return Spent(received.ended_s - sent.began_s, cpu, memory)


class Sites:
    """Our sites, connected; the first receives."""

    def __init__(self, senders: int, size: int) -> None:
        self._ends = Ends(ours, senders, size)
        self.pipes = self._ends.pipes
        for number, pipe in enumerate(self.pipes, start=1):
            pipe.send(number)
        self.members: dict[Address, str] = dict(pipe.recv() for pipe in self.pipes)
        for pipe in self.pipes:
            pipe.send(self.members)
        for pipe in self.pipes:
            pipe.recv()

    def pull(self, *, at_once: int, talk: bool = False) -> tuple[Spent, list[float]]:
        """The first has the others' bytes; with messages from them meanwhile, how late those were."""
        receiver, *senders = self.pipes
        me, *others = self.members
        for pipe in self.pipes:
            pipe.send("fresh")
        if talk:
            for sender in senders:
                sender.send(me)
        receiver.send((at_once, tuple(others)))
        seconds = receiver.recv()
        for pipe in self.pipes:
            pipe.send("spent")
        parts, late_s = zip(*[pipe.recv() for pipe in self.pipes], strict=True)
        memory = max(part.memory_bytes for part in parts)
        return Spent(seconds, sum(part.cpu_s for part in parts), memory), late_s[0]

    def close(self) -> None:
        """End them."""
        for pipe in self.pipes:
            pipe.send("end")
        self._ends.close()


def way(name: str, runs: list[Spent], size: int) -> Way:
    """The medians."""
    rates = [size / run.seconds / 1e6 for run in runs]
    cpu = statistics.median(run.cpu_s / size * 1e9 for run in runs)
    return Way(name, statistics.median(rates), cpu, max(run.memory_bytes for run in runs) / 1e6, rates)


def crowd(size: int, repeats: int, one_sender: float) -> Crowd:
    """Four senders at once, without messages for the rate and with them for their delay."""
    sites = Sites(SENDERS, size)
    rates = [SENDERS * size / sites.pull(at_once=WORKERS_MAX)[0].seconds / 1e6 for _ in range(repeats)]
    late_ms = sorted(late * 1e3 for _ in range(repeats) for late in sites.pull(at_once=WORKERS_MAX, talk=True)[1])
    sites.close()
    rate = statistics.median(rates)
    p99 = late_ms[int(len(late_ms) * 0.99)]
    return Crowd(rate, rate / one_sender, statistics.median(late_ms), p99, late_ms[-1], len(late_ms))


def main(
    megabytes: Annotated[int, typer.Option(help="What one sender sends.")] = 400,
    repeats: Annotated[int, typer.Option(help="Runs of each; medians are told.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Print what each way to move bytes takes, and how four senders and small messages fare."""
    size = megabytes * 1_000_000
    binary = ROOT / "go" / "hivemind" / "hivemind_cli" / "p2pd"
    progress = Console(stderr=True)
    sites = Sites(1, size)
    runs: dict[str, Callable[[], Spent]] = {
        "ours, one stream": lambda: sites.pull(at_once=1)[0],
        f"ours, {WORKERS_MAX} requests at once": lambda: sites.pull(at_once=WORKERS_MAX)[0],
        "asyncio streams, TLS 1.3": lambda: one_way(asyncio_tls, size),
        "raw TCP": lambda: one_way(raw_tcp, size),
    }
    if binary.exists():
        runs["go-libp2p to go-libp2p, TLS"] = lambda: asyncio.run(by_go(binary, size))
    else:
        progress.print("no go-libp2p here: `make others` installs it")
    found: dict[str, list[Spent]] = {name: [] for name in runs}
    for number in range(repeats):
        progress.print(f"one stream, run {number + 1} of {repeats} …")
        for name, run in runs.items():
            found[name].append(run())
    sites.close()
    ways = [way(name, spent, size) for name, spent in found.items()]
    progress.print(f"{SENDERS} senders to one receiver …")
    many = crowd(size, max(repeats // 2, 1), ways[1].megabytes_s)
    report(ways, many, megabytes)
    if json_file is not None:
        json_file.write_text(json.dumps({"ways": [asdict(one) for one in ways], "crowd": asdict(many)}, indent=1))


def report(ways: list[Way], many: Crowd, megabytes: int) -> None:
    """Print it."""
    table = Table(title=f"one stream, {megabytes} MB between two processes on loopback")
    for heading in ("", "MB/s", "slowest", "fastest", "ours is x", "CPU-s / GB, both ends", "memory grew by MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in ways:
        table.add_row(
            one.name, f"{one.megabytes_s:.0f}", f"{min(one.rates):.0f}", f"{max(one.rates):.0f}",
            f"{ways[0].megabytes_s / one.megabytes_s:.2f}", f"{one.cpu_s_gb:.2f}", f"{one.memory_mb:.0f}",
        )  # fmt: skip
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(table)
    rate = f"{many.megabytes_s:.0f} MB/s in all, {many.of_one_sender:.2f} x one sender"
    console.print(f"{SENDERS} senders to one receiver: {rate}")
    console.print(
        f"100-byte messages meanwhile ({many.messages}): p50 {many.message_p50_ms:.1f} ms, "
        f"p99 {many.message_p99_ms:.1f} ms, at most {many.message_max_ms:.1f} ms"
    )


if __name__ == "__main__":
    typer.run(main)
