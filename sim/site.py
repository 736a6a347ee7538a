"""One simulated institution: its keys, its disk, its node while one runs, and the line that training holds to it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from sim.adversaries import Behaviour
from sim.observer import Observer
from sim.story import Story
from swarm.config import SwarmConfig
from swarm.errors import UnavailableError
from swarm.identity import Identity
from swarm.ledger.block import EMPTY_TRIE_ROOT, decode_block, decode_payload
from swarm.ledger.genesis import Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.pruning import replaced
from swarm.ledger.trie import Nodes
from swarm.net.memory import MemoryNetwork, MemoryTransport
from swarm.net.transport import Handler
from swarm.node.embedded import EmbeddedChain
from swarm.node.node import Node
from swarm.node.training import Training

STORE_MAX_BYTES = 64 << 20
PAUSE_S = 0.5
"""How long training waits before it asks a node again that could not."""

SITE: ContextVar[str] = ContextVar("SITE", default="world")
"""Whose code runs, for logs."""

T = TypeVar("T")


class Site:
    """A member of the simulated swarm. Its folder is the disk that outlives every node.

    Args:
        clock: the site's wall clock in Unix seconds, which may be wrong.
        on_broken: told about the first thing that must never happen.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        operator: Identity,
        folder: Path,
        config: SwarmConfig,
        genesis: Genesis,
        executions: ExecutionCache,
        network: MemoryNetwork,
        clock: Callable[[], float],
        dishonest: bool,
        behaviour: Behaviour,
        story: Story,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self.name = name
        self.identity = identity
        self.operator = operator
        self.folder = folder
        self.dishonest = dishonest
        self.gone = False
        """It will not come back."""
        self.node: Node | None = None
        self.observer: Observer | None = None
        self._config = config
        self._genesis = genesis
        self._executions = executions
        self._network = network
        self._clock = clock
        self._behaviour = behaviour
        self._story = story
        self._on_broken = on_broken
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._power = asyncio.Event()
        self._line: Node | None = None
        """The node that training spoke to last."""
        self._watches: list[asyncio.Task[None]] = []

    # --- the node's life

    async def start(self) -> None:
        """Start a node on this site's disk, as `swarm.node.process` does; nothing happens where one runs."""
        if self.node is not None:
            return
        SITE.set(self.name)
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        transport = _Transport(self._network, self.identity.address, self.name)
        ledger = self._behaviour.ledger.open(self.folder / "ledger", self._genesis, executions=self._executions)
        chain = EmbeddedChain(
            identity=self.identity,
            ledger=ledger,
            transport=transport,
            clock=self._clock,
            view_timeout_s=self._config.view_timeout_s,
        )
        node = Node(
            name=self.name,
            identity=self.identity,
            chain=chain,
            store=self._behaviour.store(self.folder / "objects", STORE_MAX_BYTES, durable=False),
            transport=transport,
            scratch=scratch,
            clock=self._clock,
            participation=self._behaviour.participation,
        )
        self.node = node
        await node.start()
        if self.node is not node:
            return  # killed while it started
        loop = asyncio.get_running_loop()
        self._watches = [loop.create_task(self._watch(chain)), loop.create_task(self._fail(node))]
        self._down.clear()
        self._up.set()

    async def kill(self, *, blocks_lost: int = 0) -> None:
        """End the node as `kill -9` does: what is on the disk at this moment is what the next one finds.

        Args:
            blocks_lost: as a power cut does, take away so many of the last blocks; votes are synced and stay.
        """
        node = self.node
        if node is None:
            return
        self._network.crash(self.identity.address)
        kept = self.folder.with_suffix(".kept")
        shutil.copytree(self.folder, kept)
        await self._stop(node)
        shutil.rmtree(self.folder)
        kept.rename(self.folder)
        if blocks_lost:
            _forget_blocks(self.folder / "ledger" / "ledger.sqlite", blocks_lost)
            self._power, off = asyncio.Event(), self._power
            off.set()

    async def close(self) -> None:
        """Stop the node in order, if one runs."""
        if self.node is not None:
            await self._stop(self.node)

    async def _stop(self, node: Node) -> None:
        self.node = None
        self._up.clear()
        self._down.set()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await node.close()

    async def _watch(self, chain: EmbeddedChain) -> None:
        """Show every block to the observer."""
        assert self.observer is not None
        following = 0
        try:
            while True:
                following = self.observer.look(self.name, chain.ledger, following)
                await chain.next_block()
        except Exception as error:
            self._on_broken(error)

    async def _fail(self, node: Node) -> None:
        try:
            await node.failed()
        except Exception as error:
            self._on_broken(error)

    # --- what training sees

    async def power_cut(self) -> None:
        """Returns when the machine loses power: training on it dies."""
        await self._power.wait()

    async def ask(self, request: Callable[[Training], Awaitable[T]], again: Callable[[], Awaitable[object]]) -> T:
        """The answer of this site's node to its training process, however often the node dies meanwhile.

        Args:
            again: called before the request is repeated at a node that was started anew: it has forgotten the line.
        """
        while True:
            node = await self.up()
            try:
                if self._line is not node:
                    if self._line is not None:
                        await self.or_down(node, again())
                    self._line = node
                return await self.or_down(node, request(node.training))
            except (ConnectionResetError, UnavailableError):
                await asyncio.sleep(PAUSE_S)

    async def up(self) -> Node:
        """The site's node, once one runs."""
        while self.node is None or not self._up.is_set():
            await self._up.wait()
        return self.node

    async def or_down(self, node: Node, answer: Awaitable[T]) -> T:
        """The answer of a node; ConnectionResetError if the node ends first."""
        asked, down = asyncio.ensure_future(answer), asyncio.ensure_future(self._down.wait())
        try:
            await asyncio.wait({asked, down}, return_when=asyncio.FIRST_COMPLETED)
            if self.node is node and asked.done():
                return asked.result()
            raise ConnectionResetError(f"the node of {self.name} is gone")
        finally:
            for task in (asked, down):
                task.cancel()
            await asyncio.gather(asked, down, return_exceptions=True)


class _Transport(MemoryTransport):
    """Handlers run under the name of the site that they belong to."""

    def __init__(self, network: MemoryNetwork, me: bytes, name: str) -> None:
        super().__init__(network, me)
        self._name = name

    def serve(self, protocol: str, handler: Handler) -> None:
        async def named(member: bytes, payload: bytes) -> bytes:
            SITE.set(self._name)
            return await handler(member, payload)

        super().serve(protocol, named)


def _forget_blocks(path: Path, count: int) -> None:
    with sqlite3.connect(path) as ledger:
        (last,) = ledger.execute("SELECT max(number) FROM blocks").fetchone()
        first = max(last - count + 1, 1)
        ledger.execute("DELETE FROM blocks WHERE number >= ?", (first,))
        ledger.execute("DELETE FROM transactions WHERE number >= ?", (first,))
        _count_places(ledger)
    ledger.close()


def _count_places(ledger: sqlite3.Connection) -> None:
    """How often the state after the last block that is left has each trie node: as when that block was written."""
    (payload,) = ledger.execute("SELECT payload FROM blocks ORDER BY number DESC LIMIT 1").fetchone()
    header, _ = decode_block(decode_payload(payload)[0])
    rows = dict(ledger.execute("SELECT hash, value FROM state"))
    _, places = replaced(Nodes(rows.get), {}, EMPTY_TRIE_ROOT, header.state_root)
    ledger.execute("UPDATE state SET places = 0")
    ledger.executemany("UPDATE state SET places = ? WHERE hash = ?", [(n, digest) for digest, n in places.items()])
