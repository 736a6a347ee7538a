"""What is fuzzed: everything that decodes bytes which somebody else chose. Each takes bytes and lets no exception out.

The protocols of a node are fed to the handlers of a real node, as a member would reach them; what members answer, what
strangers say before they are known, and what clients of the JSON-RPC ask goes to its decoder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from sim.world import _founding
from swarm.consensus.certificate import Certificate
from swarm.consensus.messages import decode_message, encode_message, signed_digest
from swarm.encoding import Address, unpack
from swarm.errors import SwarmError
from swarm.ledger.block import Transaction, decode_block, decode_payload
from swarm.ledger.ledger import Ledger
from swarm.net.memory import MemoryNetwork, MemoryTransport
from swarm.net.transport import Handler
from swarm.node.embedded import EmbeddedChain
from swarm.node.node import Node
from swarm.store import Store
from tests.fuzz.corpus import recorded

REFUSALS = (SwarmError, ValueError)
"""How a decoder or a handler says no; anything else that escapes is a finding."""


@dataclass(frozen=True)
class Target:
    """Something that takes bytes."""

    name: str
    corpus: tuple[bytes, ...]
    feed: Callable[[bytes], None]


class Ears(MemoryTransport):
    """A transport without other members, whose handlers are called by hand."""

    def __init__(self, me: Address) -> None:
        super().__init__(MemoryNetwork(), me)
        self.handlers: dict[str, Handler] = {}

    def serve(self, protocol: str, handler: Handler) -> None:
        self.handlers[protocol] = handler


class Fed:
    """A real node of four on a ledger with a few blocks, whose three fellows send nonsense."""

    def __init__(self, decided: list[bytes]) -> None:
        founding = _founding(4, 0)
        identity = founding.keys[0][0]
        self._folder = Path(tempfile.mkdtemp(prefix="swarm-fuzz-"))
        self.members = tuple(record.address for record in founding.records[1:4])
        self.loop = asyncio.new_event_loop()
        self._unhandled: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self._unhandled.append(str(context)))
        self._traitor, self._chain_id = founding.keys[1][0], founding.config.chain_id
        self.transport = Ears(identity.address)
        ledger = Ledger.open(self._folder / "ledger", founding.genesis)
        clock = lambda: founding.config.created_ms / 1000 + 100 + self.loop.time()  # noqa: E731
        self.chain = EmbeddedChain(
            identity=identity,
            ledger=ledger,
            transport=self.transport,
            clock=clock,
            view_timeout_s=founding.config.view_timeout_s,
        )
        scratch = self._folder / "scratch"
        scratch.mkdir()
        self.node = Node(
            name="fed",
            identity=identity,
            chain=self.chain,
            store=Store(self._folder / "objects", 64 << 20, durable=False),
            transport=self.transport,
            scratch=scratch,
            clock=clock,
        )
        self.loop.run_until_complete(self.node.start())
        for payload in decided:
            self._say("/swarm/decided/1", payload)

    def feed(self, protocol: str, payload: bytes) -> None:
        """Let a member say this; AssertionError for anything but an answer or a refusal."""
        self._say(protocol, payload)
        assert not self._unhandled, self._unhandled
        failure = self.node._failure
        assert failure is not None
        assert not failure.done(), failure.exception()

    def _say(self, protocol: str, payload: bytes) -> None:
        member = self.members[len(payload) % 3]

        async def say() -> None:
            try:
                async with asyncio.timeout(5):
                    await self.transport.handlers[protocol](member, payload)
            except REFUSALS:
                return

        self.loop.run_until_complete(say())

    def close(self) -> None:
        """Stop the node and remove its folder."""
        self.loop.run_until_complete(self.node.close())
        self.loop.close()
        shutil.rmtree(self._folder)

    def vote(self, data: bytes) -> None:
        """Let one member sign what it makes of these bytes, at the height that is being decided: a traitor's vote."""
        try:
            message = decode_message(data)
        except REFUSALS:
            return
        message = replace(message, height=self.chain.height + 1 + len(data) % 2)
        signature = self._traitor.sign(signed_digest(message, self._chain_id))
        self.feed("/swarm/consensus/1", encode_message(replace(message, signature=signature)))


def refusing(decode: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """A decoder whose refusals are its right."""

    def feed(data: bytes) -> None:
        try:
            decode(data)
        except REFUSALS:
            return

    return feed


@cache
def overheard() -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    """What a simulated swarm said."""
    return recorded()


@cache
def fed() -> Fed:
    """The node, which all targets of one process share."""
    requests, _ = overheard()
    return Fed(sorted(requests["/swarm/decided/1"], key=_height))


def _height(decided: bytes) -> int:
    block = unpack(decided, max_bytes=16 << 20)[0]
    assert isinstance(block, bytes)
    header, _ = decode_block(decode_payload(block)[0])
    return header.number


def targets() -> dict[str, Target]:
    """All of them, by name."""
    requests, _ = overheard()
    found = {}

    def add(name: str, corpus: list[bytes], feed: Callable[[bytes], None]) -> None:
        found[name] = Target(name, tuple(corpus), feed)

    for protocol in fed().transport.handlers:
        add(protocol, requests.get(protocol, [b"\x80"]), partial(fed().feed, protocol))
    add("a traitor's votes", requests["/swarm/consensus/1"], fed().vote)
    decided = [unpack(one, max_bytes=16 << 20) for one in requests["/swarm/decided/1"]]
    payloads = [bytes(pair[0]) for pair in decided]  # type: ignore[arg-type]
    blocks = [decode_payload(payload)[0] for payload in payloads]
    raws = [raw for block in blocks for raw in decode_block(block)[1]]
    certificates = [bytes(pair[1]) for pair in decided]  # type: ignore[arg-type]
    add("rlp", blocks + certificates, refusing(lambda data: unpack(data, max_bytes=1 << 20)))
    add("consensus message", requests["/swarm/consensus/1"], refusing(decode_message))
    add("certificate", certificates, refusing(Certificate.decode))
    add("payload", payloads, refusing(lambda data: decode_block(decode_payload(data)[0])))
    add("block", blocks, refusing(decode_block))
    add("transaction", raws, refusing(lambda data: Transaction.read(data, 1337)))
    return found
