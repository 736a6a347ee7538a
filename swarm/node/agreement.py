"""The node's part in the ledger: it performs what consensus wants, spreads transactions and blocks, and catches up.

The rules are in `swarm.consensus` (which votes) and `swarm.ledger` (which blocks); here are the timers and messages.
Validators vote; everyone else follows: they get each decided block with its certificate and verify it themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from swarm.consensus import Accuse, Broadcast, Certificate, Consensus, Contradiction, Decide, Effect, Help, Save
from swarm.encoding import Address, Digest, data_of, list_of, number, pack, short, unpack
from swarm.errors import PeerError, RejectedError, StorageError, UnavailableError
from swarm.identity import Identity, checksum, recover
from swarm.ledger.block import decode_block, decode_payload
from swarm.ledger.contradictions import Contradictions
from swarm.ledger.ledger import CLOCK_AHEAD_MS, Ledger
from swarm.ledger.recovery import Recovery
from swarm.net.transport import MESSAGE_MAX_BYTES, Handler, Transport
from swarm.node.sync import BLOCKS, SYNC_BYTES, Sync, read_request
from swarm.quorum import faults_max

logger = logging.getLogger(__name__)

CONSENSUS = "/swarm/consensus/1"
TRANSACTIONS = "/swarm/transactions/1"
DECIDED = "/swarm/decided/1"
HEAD = "/swarm/head/1"

BATCH_S = 0.01
"""A proposer waits this long after the first transaction, so that those sent together share a block."""
HEAD_EVERY_S = 2.0
"""How often a node tells the others its height, and sends again transactions that no block took."""
GREET_EVERY_S = 0.1
GREET_TIMEOUT_S = 2.0
"""A member that was just connected is asked for its height, so that a node that was away begins at once."""


class Keys:
    """Signs and recovers with secp256k1: the authenticator of real validators."""

    def __init__(self, identity: Identity) -> None:
        self.me = identity.address
        self._identity = identity

    def sign(self, digest: Digest) -> bytes:
        """65 bytes r ‖ s ‖ v."""
        return self._identity.sign(digest)

    def recover(self, digest: Digest, signature: bytes) -> Address:
        """Who signed; ValueError if nobody did."""
        return recover(digest, signature)


class Agreement:
    """Keeps one ledger in step with the other members'."""

    def __init__(
        self,
        *,
        identity: Identity,
        ledger: Ledger,
        transport: Transport,
        clock: Callable[[], float],
        view_timeout_s: float,
        on_block: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.ledger = ledger
        self.contradictions = Contradictions(ledger.folder / "contradictions")
        self._me = identity.address
        self._authenticator = Keys(identity)
        self._transport = transport
        self._clock = clock
        self._view_timeout_s = view_timeout_s
        self._on_block = on_block
        self._on_failure = on_failure
        self._consensus: Consensus | None = None
        self._vote_chain = ledger.vote_chain
        """What the votes of `_consensus` name as their chain."""
        self._timer: asyncio.TimerHandle | None = None
        self._batch: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._sync: asyncio.Task[None] | None = None
        self._heights: dict[Address, int] = {}
        self._heard_s: dict[Address, float] = {}
        """When each member last sent a vote or its height, by the loop's clock."""
        self._fetching = Sync(
            ledger=ledger, transport=transport, heights=self._heights, append=self._take_block, on_failure=on_failure
        )
        self._greeted: frozenset[Address] = frozenset()
        self._greetings: set[asyncio.Task[None]] = set()
        self._greet: asyncio.TimerHandle | None = None
        self._closed = False

    # --- life

    def start(self) -> None:
        """Serve the ledger's protocols; call before the transport starts."""
        for protocol, handler in (
            (CONSENSUS, self._receive_consensus),
            (TRANSACTIONS, self._receive_transactions),
            (DECIDED, self._receive_decided),
            (HEAD, self._receive_head),
            (BLOCKS, self._serve_blocks),
        ):
            self._transport.serve(protocol, self._answering(handler))

    def run(self) -> None:
        """Begin to vote and to follow; call when the transport runs."""
        head = self.ledger.head
        if head.timestamp_ms > self._now_ms() + CLOCK_AHEAD_MS:
            logger.warning(
                "height %d: the last block's time is %.0f s ahead of this machine's clock: set the clock, or, if it is "
                "right, know that the ledger's deadlines wait until it has caught up",
                head.number, (head.timestamp_ms - self._now_ms()) / 1000,
            )  # fmt: skip
        if self._me in self.ledger.validators() and not self.ledger.may_vote(head.number + 1):
            logger.warning(
                "height %d: this node voted on later heights and has its votes of this one no more: it fetches blocks "
                "from the other members and votes again once it is where it was",
                head.number,
            )
        self._enter_height()
        self._beat_now()
        self._greet_now()

    async def close(self) -> None:
        """Stop every timer and task."""
        self._closed = True
        for handle in (self._timer, self._batch, self._beat, self._greet):
            if handle is not None:
                handle.cancel()
        tasks = [*self._greetings, *([] if self._sync is None else [self._sync])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def height_seen(self) -> int:
        """The greatest height that any member claims."""
        return max([self.ledger.head.number, *self._heights.values()])

    @property
    def caught_up(self) -> bool:
        """Whether this node knows of no later block: false after a start until members in reach told their height."""
        if self._consensus is not None and self._consensus.deadline_s is not None:
            return False  # one is being decided; after a power cut that may be one that was decided before
        heard = [height for member, height in self._heights.items() if member in self._transport.connected()]
        if len(heard) < len(self._transport.connected()) or not (heard or self.ledger.validators() == (self._me,)):
            return False
        # The greatest heights may be claims of members that lie.
        heights = sorted([self.ledger.head.number, *heard], reverse=True)
        return self.ledger.head.number >= heights[faults_max(len(heights))]

    def validators(self) -> tuple[Address, ...]:
        """Who decides the next block."""
        return self.ledger.validators()

    def heard_since(self, since_s: float) -> frozenset[Address]:
        """The members that sent a vote or their height since then, by the loop's clock."""
        return frozenset(member for member, at_s in self._heard_s.items() if at_s >= since_s)

    @property
    def heights(self) -> Mapping[Address, int]:
        """The height that each member in reach claims."""
        connected = self._transport.connected()
        return {member: height for member, height in self._heights.items() if member in connected}

    def recover(self, recovery: Recovery) -> None:
        """Take part in deciding the block that replaces the validators; RejectedError says why not."""
        self.ledger.begin_recovery(recovery)
        logger.warning("height %d: the validators are replaced by a manifest", self.ledger.head.number + 1)
        # What the validators before said at this height is put aside with their machine.
        self._consensus = None
        self._arm()
        self._enter_height()

    def _answering(self, handler: Handler) -> Handler:
        """A member's fault drops its message; this node's own (a full disk) is the node's to handle."""

        async def answer(member: Address, payload: bytes) -> bytes:
            if self._closed:
                raise UnavailableError("this node is stopping")
            try:
                return await handler(member, payload)
            except (StorageError, AssertionError) as error:
                self._on_failure(error)
                raise UnavailableError("this node had to stop") from error

        return answer

    # --- transactions

    def add_transaction(self, raw: bytes) -> Digest:
        """Take a transaction from this site and send it to the validators; RejectedError says why not."""
        digest = self.ledger.add_transaction(raw)
        self._spread([raw])
        self._wake_soon()
        return digest

    def _spread(self, raws: Sequence[bytes]) -> None:
        message = pack(list(raws))
        for member in self.ledger.validators():
            if member != self._me:
                self._transport.send(member, TRANSACTIONS, message)

    async def _receive_transactions(self, member: Address, payload: bytes) -> bytes:
        for raw in list_of(unpack(payload, max_bytes=MESSAGE_MAX_BYTES), size_max=4096):
            try:
                self.ledger.add_transaction(data_of(raw))
            except RejectedError as error:
                logger.debug("transaction from %s not taken: %s", short(member), error)
        self._wake_soon()
        return b""

    def _wake_soon(self) -> None:
        if self._consensus is not None and self._batch is None and self.ledger.pending():
            self._batch = asyncio.get_running_loop().call_later(BATCH_S, self._guarded(self._wake))

    def _wake(self) -> None:
        self._batch = None
        if self._consensus is not None and self.ledger.pending():
            self._perform(self._consensus.wake(self._now()))

    # --- consensus

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _judge(self, payload: bytes, proposer: Address) -> bool:
        """Whose block it is decides who proposes next: nobody puts another's name there (validateNonPreparedBlock)."""
        header, _ = decode_block(decode_payload(payload)[0])
        ahead_s = (header.timestamp_ms - self._now_ms()) / 1000
        if ahead_s * 1000 > CLOCK_AHEAD_MS:
            logger.warning(
                "height %d: %s proposes a block %.0f s ahead of this machine's clock: one of the clocks is wrong",
                header.number, short(proposer), ahead_s,
            )  # fmt: skip
        return header.coinbase == proposer and self.ledger.judge(payload, self._now_ms())

    def _enter_height(self) -> None:
        """Take part in the decision of the next height, if this node is one of its validators."""
        height, proposers = self.ledger.head.number + 1, self.ledger.proposers()
        if self._me not in proposers or not self.ledger.may_vote(height):
            if self._consensus is not None:
                logger.info("height %d: this node does not vote", height)
            self._consensus = None
        elif self._consensus is None or self._vote_chain != self.ledger.vote_chain:
            self._vote_chain = self.ledger.vote_chain
            self._consensus = Consensus(
                chain_id=self._vote_chain,
                height=height,
                proposers=proposers,
                authenticator=self._authenticator,
                build=lambda: self.ledger.build(self._now_ms(), self._me),
                judge=self._judge,
                digest_of=self.ledger.digest_of,
                timeout_s=self._view_timeout_s,
                saved=self.ledger.saved_vote(height),
                now_s=self._now(),
            )
            self._perform(self._consensus.resume(self._now()))
        else:
            # After a power failure the votes may be further on than the blocks.
            saved = self.ledger.saved_vote(height)
            self._perform(self._consensus.advance(height, proposers, self._now(), saved=saved))
        self._wake_soon()

    async def _receive_consensus(self, member: Address, payload: bytes) -> bytes:
        consensus = self._consensus
        self._heard_s[member] = self._now()
        if consensus is not None:
            self._perform(consensus.receive(payload, self._now()))
            if consensus.height_seen > self.ledger.head.number + 1:
                self._heights[member] = max(self._heights.get(member, 0), consensus.height_seen - 1)
                self._sync_soon()
        return b""

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Save(record=record, height=height):
                    self.ledger.save_vote(height, record)
                case Broadcast(message=message):
                    for member in self.ledger.validators():
                        if member != self._me:
                            self._transport.send(member, CONSENSUS, message)
                case Decide(payload=payload, certificate=certificate):
                    self._append(payload, certificate)
                case Help(member=member, height=height):
                    self._help(member, height)
                case Accuse(member=member, contradiction=found):
                    self._accuse(member, found)
        self._arm()

    def _accuse(self, member: Address, found: Contradiction) -> None:
        if self.contradictions.keep(member, found):
            logger.warning(
                "height %d: validator %s signed two different ones of %s in view %d: it lies, or two nodes have its "
                "key; the evidence is in %s",
                found.first.height, checksum(member), found.kind, found.first.view, self.contradictions.folder,
            )  # fmt: skip

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._consensus is not None and self._consensus.deadline_s is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._consensus.deadline_s, self._guarded(self._tick))

    def _tick(self) -> None:
        self._timer = None
        if self._consensus is not None:
            self._perform(self._consensus.tick(self._now()))

    def _guarded(self, call: Callable[[], None]) -> Callable[[], None]:
        """A timer's exception is the node's to handle: a full disk stops it, nothing is swallowed."""

        def run() -> None:
            try:
                call()
            except Exception as error:
                self._on_failure(error)

        return run

    # --- blocks

    def _append(self, payload: bytes, certificate: Certificate) -> None:
        head = self.ledger.append(payload, certificate)
        validators = set(self.ledger.validators())
        if head.coinbase == self._me or (self._me in validators and head.coinbase not in validators):
            message = pack([payload, certificate.encode()])
            for member in self._transport.connected() - validators:
                self._transport.send(member, DECIDED, message)
        self._on_block()
        self._enter_height()

    def _take_block(self, payload: bytes, certificate: Certificate) -> None:
        """Append a block that another member says was decided; PeerError: it does not hold here."""
        try:
            self._append(payload, certificate)
        except PeerError:
            self._note_conflict(payload, certificate)
            raise

    def _note_conflict(self, payload: bytes, certificate: Certificate) -> None:
        """Keep two decisions about one height as evidence: a third of the validators or more signed both."""
        found = self.ledger.note_conflict(payload, certificate)
        if found is not None:
            logger.critical(
                "height %d: two certified blocks, %s here and %s elsewhere: a third of the validators or more signed "
                "both; this node stays on its own chain and keeps the other block as evidence (`swarm status`, "
                "`swarm audit`); stop relying on later blocks until the operators have spoken",
                found.height, short(found.ours), short(found.theirs),
            )  # fmt: skip

    def _help(self, member: Address, height: int) -> None:
        """A laggard still votes on a height that is decided: show it the decision."""
        if height <= self.ledger.head.number:
            for payload, certificate in self.ledger.blocks_from(height, 1):
                self._transport.send(member, DECIDED, pack([payload, certificate]))

    async def _receive_decided(self, member: Address, payload: bytes) -> bytes:
        block, certificate = list_of(unpack(payload, max_bytes=MESSAGE_MAX_BYTES), size=2)
        number_ = self.ledger.number_of(data_of(block))
        if number_ == self.ledger.head.number + 1:
            self._take_block(data_of(block), Certificate.decode(data_of(certificate)))
        elif number_ <= self.ledger.head.number:
            self._note_conflict(data_of(block), Certificate.decode(data_of(certificate)))
        elif number_ > self.ledger.head.number:
            self._heights[member] = max(self._heights.get(member, 0), number_)
            self._sync_soon()
        return b""

    async def _receive_head(self, member: Address, payload: bytes) -> bytes:
        self._heard_s[member] = self._now()
        self._learn_height(member, payload)
        return pack(self.ledger.head.number)

    def _learn_height(self, member: Address, payload: bytes) -> None:
        self._heights[member] = number(unpack(payload, max_bytes=64))
        if self._heights[member] > self.ledger.head.number:
            self._sync_soon()

    def _greet_now(self) -> None:
        """Ask those who were just connected how far they are."""
        connected = self._transport.connected()
        for member in sorted(connected - self._greeted):
            task = asyncio.get_running_loop().create_task(self._ask_height(member))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)
        self._greeted = connected
        self._greet = asyncio.get_running_loop().call_later(GREET_EVERY_S, self._guarded(self._greet_now))

    async def _ask_height(self, member: Address) -> None:
        try:
            answer = await self._transport.request(
                member, HEAD, pack(self.ledger.head.number), timeout_s=GREET_TIMEOUT_S
            )
            self._learn_height(member, answer)
        except (UnavailableError, PeerError, ValueError) as error:
            logger.debug("%s did not tell its height: %s", short(member), error)

    def _beat_now(self) -> None:
        self._transport.broadcast(HEAD, pack(self.ledger.head.number))
        pending = self.ledger.pending_transactions()
        if pending:
            self._spread(pending[:256])
            self._wake_soon()
        self._beat = asyncio.get_running_loop().call_later(HEAD_EVERY_S, self._guarded(self._beat_now))

    async def _serve_blocks(self, member: Address, payload: bytes) -> bytes:
        start, count = read_request(payload)
        return pack([list(pair) for pair in self.ledger.blocks_from(start, SYNC_BYTES, blocks_max=count)])

    def _sync_soon(self) -> None:
        if (self._sync is None or self._sync.done()) and not self._closed:
            self._sync = asyncio.get_running_loop().create_task(self._catch_up())

    async def _catch_up(self) -> None:
        # A block that is being decided arrives by itself a moment later: only a real gap is asked for.
        await asyncio.sleep(BATCH_S * 5)
        await self._fetching.run()
