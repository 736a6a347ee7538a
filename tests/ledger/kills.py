"""Four real node processes on real disks and loopback, killed with SIGKILL wherever they write.

A node dies at a chosen statement of its ledger (genesis, a block, a block that it fetches) or of its votes, or at any
moment from outside; one of them, or several at once. What each said and decided it first wrote down beside its folder,
which a kill does not take back: so in the end it is known whether anybody voted twice, or lost what was decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

from swarm.config import SiteConfig, SwarmConfig
from swarm.consensus import Certificate
from swarm.encoding import Address
from swarm.errors import RejectedError, StorageError, UnavailableError
from swarm.ledger import database
from swarm.ledger.archive import Archive
from swarm.ledger.database import BlockRow
from swarm.ledger.genesis import Genesis
from swarm.net.libp2p import Libp2pTransport
from swarm.node import process
from swarm.node.agreement import CONSENSUS, Agreement
from swarm.node.embedded import EmbeddedChain
from tests.ledger import world
from tests.ledger.power import Broken, Witness

NODES = 4
PATIENCE_S = 120.0
WAYS = ("block", "vote", "sync", "moment")


@dataclass
class Tripwire:
    """Where a process kills itself: at a statement of one of its files, counted from its start."""

    file: str
    statement: int

    def watch(self, connection: sqlite3.Connection, path: Path) -> None:
        """Count the statements of a connection to that file."""
        if path.name != self.file:
            return

        def trace(_: str) -> None:
            self.statement -= 1
            if self.statement <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        connection.set_trace_callback(trace)


@dataclass
class Victim:
    """One of the four nodes."""

    index: int
    folder: Path
    pid: int = 0
    read: int = 0
    """Bytes of its notes that were read."""
    had: int = 0
    """The greatest height that it noted to be on its disk."""

    @property
    def notes(self) -> Path:
        return self.folder.with_suffix(".notes")


@dataclass(frozen=True)
class Killed:
    """What a campaign did."""

    kills: Counter[str] = field(default_factory=Counter)
    blocks: int = 0
    genesis_kills: int = 0
    """Kills that left a folder without its first block."""
    seconds: float = 0.0


class Campaign:
    """Kills in `folder` until there were `kills` of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.witness = Witness()
        self.kills: Counter[str] = Counter()
        self.genesis_kills = 0
        members = world.config(NODES).members
        ports = [_free_port() for _ in members]
        self.swarm: SwarmConfig = replace(
            world.config(NODES),
            members=tuple(
                replace(member, endpoint=f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}")
                for member, port, identity in zip(members, ports, world.MEMBERS, strict=False)
            ),
            view_timeout_s=0.5,
        )
        self.genesis = Genesis.of(self.swarm)
        self.ports = ports
        self.victims = [Victim(index, folder / f"node-{index}") for index in range(NODES)]

    def run(self, kills: int) -> Killed:
        """Kill and start again, then let all four agree; Broken says what went wrong."""
        start_s = time.monotonic()
        try:
            for victim in self.victims:
                self._start(victim, self._wire("genesis") if self.rng.random() < 0.5 else None)
            while self.kills.total() < kills:
                self._kill_some(kills - self.kills.total())
            self._agree()
        finally:
            for victim in self.victims:
                self._end(victim)
        blocks = max(self.witness.decided, default=0)
        return Killed(self.kills, blocks, self.genesis_kills, time.monotonic() - start_s)

    def _wire(self, way: str) -> Tripwire:
        if way == "vote":
            return Tripwire("votes.sqlite", self.rng.randrange(1, 30))
        return Tripwire("ledger.sqlite", self.rng.randrange(1, 40 if way == "genesis" else 80))

    def _kill_some(self, kills_max: int) -> None:
        """One to four of them die, in one way, and are started again."""
        way = self.rng.choice(WAYS)
        chosen = self.rng.sample(self.victims, min(self.rng.choice((1, 1, 2, 3, 4)), kills_max))
        if way == "moment":
            time.sleep(self.rng.uniform(0.0, 0.7))
            for victim in chosen:
                self._end(victim)
        else:
            # It begins anew with a wire in it; what it missed meanwhile it has to fetch.
            for victim in chosen:
                self._end(victim)
                self._look(victim)
                self.kills["moment"] += 1
            if way == "sync" and len(chosen) == 1:
                self._fall_behind(3)
            for victim in chosen:
                self._start(victim, self._wire(way))
            self._wait_for_ends(chosen)
        for victim in chosen:
            self.kills[way] += 1
            self._look(victim)
            self._start(victim, None)

    def _decided(self) -> int:
        for victim in self.victims:
            self._read_notes(victim)
        return max(self.witness.decided, default=0)

    def _fall_behind(self, blocks: int) -> None:
        """Wait for the others to decide some blocks; not for ever, they may be too few at the moment."""
        goal, until_s = self._decided() + blocks, time.monotonic() + 5.0
        while self._decided() < goal and time.monotonic() < until_s:
            time.sleep(0.05)

    def _wait_for_ends(self, victims: list[Victim]) -> None:
        """Until their wires killed them; where too few are up to write anything, from outside."""
        until_s = time.monotonic() + 4.0
        while any(victim.pid for victim in victims) and time.monotonic() < until_s:
            for victim in victims:
                self._reap(victim)
            time.sleep(0.01)
        for victim in victims:
            self._end(victim)

    # --- processes

    def _start(self, victim: Victim, wire: Tripwire | None) -> None:
        victim.pid = os.fork()
        if victim.pid == 0:
            code = 70
            try:
                with open(victim.folder.with_suffix(".log"), "ab") as log:
                    os.dup2(log.fileno(), 2)
                asyncio.run(self._node(victim, wire))
                code = 0
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)

    def _end(self, victim: Victim) -> None:
        self._reap(victim)
        if victim.pid:
            os.kill(victim.pid, signal.SIGKILL)
            os.waitpid(victim.pid, 0)
            victim.pid = 0

    def _reap(self, victim: Victim) -> None:
        if not victim.pid:
            return
        pid, status = os.waitpid(victim.pid, os.WNOHANG)
        if pid:
            victim.pid = 0
            if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
                raise Broken(f"node {victim.index} ended by itself: {_tail(victim.folder.with_suffix('.log'))}")

    # --- what they left

    def _look(self, victim: Victim) -> None:
        """The ledger of a dead node: whole, a beginning of what was decided, and all that it ever said it had."""
        had = self._read_notes(victim)
        rows = self._rows(victim)
        if not rows:
            self.genesis_kills += 1
        if had > (rows[-1].number if rows else 0):
            raise Broken(f"node {victim.index} had block {had} and has {len(rows)} blocks")
        for row in rows[1:]:
            self.witness.decision(row.number, row.hash)

    @staticmethod
    def _rows(victim: Victim) -> list[BlockRow]:
        try:
            archive = Archive(victim.folder / "ledger")
        except StorageError:
            return []  # not even a file
        with contextlib.closing(archive):
            damage = archive.damage()
            if damage is not None:
                raise Broken(f"node {victim.index}: {damage}")
            try:
                return list(archive.blocks())
            except StorageError:
                return []  # killed before its tables were there

    def _read_notes(self, victim: Victim) -> int:
        """Take in what a node wrote down; the greatest height that it said it has."""
        if victim.notes.exists():
            data = victim.notes.read_bytes()
            end = data.rfind(b"\n") + 1
            for line in data[victim.read : end].splitlines():
                kind, first, rest = line.split(b" ", 2)
                if kind == b"said":
                    self.witness.vote(bytes.fromhex(first.decode()), bytes.fromhex(rest.decode()))
                elif kind == b"decided":
                    self.witness.decision(int(first), bytes.fromhex(rest.decode()))
                else:
                    victim.had = max(victim.had, int(first))
            victim.read = end
        return victim.had

    def _agree(self) -> None:
        """All four go on, together, past everything that was decided."""
        goal = self._decided() + 3
        until_s = time.monotonic() + PATIENCE_S
        while min(self._read_notes(victim) for victim in self.victims) < goal:
            for victim in self.victims:
                self._reap(victim)
            if time.monotonic() > until_s:
                heights = [self._read_notes(victim) for victim in self.victims]
                raise Broken(f"not beyond block {goal} within {PATIENCE_S} s: {heights}")
            time.sleep(0.1)
        for victim in self.victims:
            self._end(victim)
            self._look(victim)

    # --- inside a node's process

    async def _node(self, victim: Victim, wire: Tripwire | None) -> None:
        notes = os.open(victim.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._install(notes, wire)
        identity, operator = world.MEMBERS[victim.index], world.OPERATORS[victim.index]
        node = process.open_node(self._site(victim), self.swarm, identity)
        assert isinstance(node.chain, EmbeddedChain)
        await node.start()
        failed = asyncio.ensure_future(node.failed())
        rng = random.Random(os.getpid())
        while not failed.done():
            await asyncio.wait({failed}, timeout=rng.uniform(0.02, 0.3))
            with contextlib.suppress(RejectedError, UnavailableError):
                raw = world.propose(operator, node.chain.ledger.next_nonce(operator.address))
                node.chain.agreement.add_transaction(raw)
        failed.result()

    def _site(self, victim: Victim) -> SiteConfig:
        return SiteConfig(
            path=victim.folder / "site.toml", name=f"site {victim.index}", swarm=victim.folder / "swarm.toml",
            keystore=victim.folder, password_file=None, operator_keystore=None, operator_password_file=None,
            folder=victim.folder, listen=f"/ip4/127.0.0.1/tcp/{self.ports[victim.index]}",
        )  # fmt: skip

    def _install(self, notes: int, wire: Tripwire | None) -> None:
        """Let this process write down what it says and decides, and die at its wire. It is a fork: nobody else does."""
        append, send, connect = Agreement._append, Libp2pTransport.send, database._connect

        def noted_append(agreement: Agreement, payload: bytes, certificate: Certificate) -> None:
            height = agreement.ledger.number_of(payload)
            if height == agreement.ledger.head.number + 1:
                os.write(notes, b"decided %d %s\n" % (height, agreement.ledger.digest_of(payload).hex().encode()))
            append(agreement, payload, certificate)
            os.write(notes, b"has %d -\n" % height)

        def noted_send(transport: Libp2pTransport, member: Address, protocol: str, payload: bytes) -> None:
            if protocol == CONSENSUS:
                os.write(notes, b"said %s %s\n" % (transport.me.hex().encode(), payload.hex().encode()))
            send(transport, member, protocol, payload)

        def watched_connect(path: Path, synchronous: str, schema: str) -> sqlite3.Connection:
            connection = connect(path, synchronous, schema)
            if wire is not None:
                wire.watch(connection, path)
            return connection

        mock.patch.object(Agreement, "_append", noted_append).start()
        mock.patch.object(Libp2pTransport, "send", noted_send).start()
        mock.patch.object(database, "_connect", watched_connect).start()
        mock.patch.object(Genesis, "of", return_value=self.genesis).start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:] if path.exists() else ""
