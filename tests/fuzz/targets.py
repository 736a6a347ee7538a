"""What is fuzzed: everything that decodes bytes which somebody else chose. Each takes bytes and lets no exception out.

The protocols of a node are fed to the handlers of a real node, as a member would reach them; what members answer, what
strangers say before they are known, and what clients of the JSON-RPC ask goes to its decoder.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from sim.world import _founding
from swarm.config import RpcConfig
from swarm.consensus.certificate import Certificate
from swarm.consensus.messages import decode_message, encode_message, signed_digest
from swarm.encoding import Address, data_of, list_of, pack, to_hex, unpack
from swarm.errors import PeerError, SwarmError, UnavailableError
from swarm.ledger.abi import interface
from swarm.ledger.block import Transaction, decode_block, decode_payload
from swarm.ledger.genesis import RUNS
from swarm.ledger.jsonrpc import INTERNAL_ERROR
from swarm.ledger.ledger import Ledger
from swarm.ledger.web import Web
from swarm.net.memory import MemoryNetwork, MemoryTransport
from swarm.net.transport import Handler
from swarm.node.embedded import EmbeddedChain
from swarm.node.node import Node
from swarm.node.sync import BLOCKS, Sync
from swarm.store import Store
from tests.fuzz.corpus import mutated, recorded, reshaped, reworded
from tests.fuzz.wire import MULTIPLEXED, reframed, wire_targets
from tests.merge.blind import fuzzed

REFUSALS = (SwarmError, ValueError)
"""How a decoder or a handler says no; anything else that escapes is a finding."""


@dataclass(frozen=True)
class Target:
    """Something that takes bytes."""

    name: str
    corpus: tuple[bytes, ...]
    feed: Callable[[bytes], None]
    reshape: Callable[[random.Random, list[bytes]], bytes] = reshaped
    """How one of the corpus becomes another that is well formed."""


class Ears(MemoryTransport):
    """A transport without other members, whose handlers are called by hand."""

    def __init__(self, me: Address) -> None:
        super().__init__(MemoryNetwork(), me)
        self.handlers: dict[str, Handler] = {}
        self.reachable: frozenset[Address] = frozenset()
        self.blocks = b""
        """What a member answers who is asked for blocks."""

    def connected(self) -> frozenset[Address]:
        return self.reachable

    async def request(self, member: Address, protocol: str, payload: bytes, *, timeout_s: float) -> bytes:
        if protocol == BLOCKS and member in self.reachable:
            return self.blocks
        raise UnavailableError("nobody is there")

    def serve(self, protocol: str, handler: Handler) -> None:
        self.handlers[protocol] = handler


class Fed:
    """A real node of four on a ledger with a few blocks, whose three fellows send nonsense."""

    def __init__(self, decided: list[bytes]) -> None:
        founding = _founding(4, 0, 7 * 86_400.0)
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
        config = RpcConfig("127.0.0.1", 0, requests_s=1 << 40)
        self.web = Web(ledger, config, ledger.add_transaction, clock=self.loop.time)
        self._decided = {_block_of(one) for one in decided}
        for payload in decided[: len(decided) // 2]:
            self._say("/swarm/decided/1", payload)

    def feed(self, protocol: str, payload: bytes) -> None:
        """Let a member say this; AssertionError for anything but an answer or a refusal."""
        self._say(protocol, payload)
        self._check()

    def _check(self) -> None:
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

    def sync(self, data: bytes) -> None:
        """Let a member that claims later blocks answer with these bytes when it is asked for them."""
        liar = self.members[0]
        self.transport.blocks, self.transport.reachable = data, frozenset([liar])
        sync = Sync(
            ledger=self.chain.agreement.ledger,
            transport=self.transport,
            heights={liar: self.chain.height + 3},
            append=self._append_forged,
            on_failure=self.node._on_failure,
        )
        self.loop.run_until_complete(sync.run())
        self.transport.reachable = frozenset()
        self._check()

    def _append_forged(self, payload: bytes, certificate: Certificate) -> None:
        """Blocks that are as they were decided are not taken: the node stays where the corpus goes on."""
        if payload in self._decided:
            raise PeerError("for the others")
        self.chain.agreement._append(payload, certificate)

    def ask(self, data: bytes) -> None:
        """Ask the JSON-RPC; an answer that admits a mistake of the node's is a finding, like an exception."""
        answer = self.loop.run_until_complete(self.web.answer(data, f"10.0.0.{len(data) % 5}", None))
        found = json.loads(answer) if answer else []
        for one in found if isinstance(found, list) else [found]:
            assert one.get("error", {}).get("code") != INTERNAL_ERROR, answer
        self._check()

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


def _block_of(decided: bytes) -> bytes:
    block = unpack(decided, max_bytes=16 << 20)[0]
    assert isinstance(block, bytes)
    return block


def _height(decided: bytes) -> int:
    header, _ = decode_block(decode_payload(_block_of(decided))[0])
    return header.number


def questions(web: Web) -> list[bytes]:
    """A request for every method, with parameters that most of them take."""
    address, digest = "0x" + "00" * 19 + "01", "0x" + "11" * 32
    call = {"to": to_hex(RUNS), "data": "0x" + interface("Runs").call("round_state", 1).hex()}
    logs = {"fromBlock": "0x0", "toBlock": "latest", "address": address, "topics": [digest, None, [digest]]}
    samples: list[list[object]] = [
        [], [address], [address, "latest"], [digest], [digest, True], ["0x1", False], ["latest", "0x0"], ["newHeads"],
        [call, "latest"], [logs], [address, ["0x0", digest], "latest"], ["0x5", "latest", [25, 75]], ["0x1"],
        ["logs", logs],
    ]  # fmt: skip
    asked = []
    for number, method in enumerate(sorted(web._rpc._methods)):
        for params in samples:
            asked.append(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode())
    return [*asked, b"[" + b",".join(asked[:5]) + b"]"]


def targets() -> dict[str, Target]:
    """All of them, by name."""
    requests, _ = overheard()
    found = {}

    def add(name: str, corpus: list[bytes], feed: Callable[[bytes], None]) -> None:
        found[name] = Target(name, tuple(corpus), feed)

    for protocol in fed().transport.handlers:
        add(protocol, requests.get(protocol, [b"\x80"]), partial(fed().feed, protocol))
    add("a traitor's votes", requests["/swarm/consensus/1"], fed().vote)
    later = sorted(requests["/swarm/decided/1"], key=_height)[fed().chain.height :]
    pairs = [list_of(unpack(one, max_bytes=16 << 20)) for one in later]
    add("blocks that were asked for", [pack(pairs[:count]) for count in (1, 2, 3)], fed().sync)
    found["json-rpc"] = Target("json-rpc", tuple(questions(fed().web)), fed().ask, reworded)
    decided = [unpack(one, max_bytes=16 << 20) for one in requests["/swarm/decided/1"]]
    payloads = [data_of(list_of(pair)[0]) for pair in decided]
    blocks = [decode_payload(payload)[0] for payload in payloads]
    raws = [raw for block in blocks for raw in decode_block(block)[1]]
    certificates = [data_of(list_of(pair)[1]) for pair in decided]
    add("rlp", blocks + certificates, refusing(lambda data: unpack(data, max_bytes=1 << 20)))
    add("consensus message", requests["/swarm/consensus/1"], refusing(decode_message))
    add("certificate", certificates, refusing(Certificate.decode))
    add("payload", payloads, refusing(lambda data: decode_block(decode_payload(data)[0])))
    add("block", blocks, refusing(decode_block))
    add("transaction", raws, refusing(lambda data: Transaction.read(data, 1337)))
    add("what a member joins a blind round with", [fuzzed.blob(fuzzed.SENDER).encode()], refusing(fuzzed.feed))
    for name, (corpus, feed) in wire_targets().items():
        found[name] = Target(name, tuple(corpus), feed, reframed if name in MULTIPLEXED else mutated)
    return found
