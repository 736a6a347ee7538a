"""A ledger in virtual time over the books: calls wait, blocks take them in any order, and members hear of blocks late.

Blocks are final when they are there, as agreement makes them. What `swarm.ledger.client.Contracts` is to a node is here
`Window`: the same questions, answered as of the block that this node has heard of.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.blind.books import RUN, Books, Call, Refused
from swarm.blind import MaskState, Told
from swarm.config import Policy
from swarm.encoding import Address, Digest, short
from swarm.errors import RejectedError, UnavailableError
from swarm.identity import Identity
from swarm.ledger.client import Run
from swarm.ledger.masks import roster_digest
from swarm.merkle import digest_of
from swarm.quorum import quorum
from swarm.rounds import RoundState

BLOCK_S = 0.25
"""From a call until the block that has it."""
CONTRACT = b"\x10" * 20
CHAIN_ID = 1337


@dataclass(frozen=True)
class Shown:
    """What the contracts showed right after a block."""

    state: RoundState
    masks: MaskState
    keys: Mapping[Address, bytes]
    told: tuple[Told, ...]


class Waiting:
    """A call under way."""

    def __init__(self, sender: Address, call: Call) -> None:
        self.sender = sender
        self.call = call
        self.height = 0
        """Of the block that has it; 0 while none has."""
        self.refusal = ""


class Ledger:
    """Calls and blocks.

    Args:
        reach: the members that can hear each other now, of which a quorum has to decide a block.
        about: hears of every call before others can see it.
        told: and as soon as they can.
        decided: hears of every call that a block took, with its events.
    """

    def __init__(
        self,
        books: Books,
        chance: random.Random,
        *,
        clock: Callable[[], float],
        reach: Callable[[], frozenset[Address]],
        about: Callable[[Address, Call], None],
        told: Callable[[Address, Call], None],
        decided: Callable[[Address, Call, list[tuple[str, dict[str, Any]]]], None],
    ) -> None:
        self.books = books
        self._chance = chance
        self._clock = clock
        self._reach = reach
        self.about = about
        self._told = told
        self._decided = decided
        self.blocks = [self._show()]
        self.heights: dict[Address, int] = dict.fromkeys(books.members, 0)
        """How far each member's own ledger is; it outlives its node."""
        self.hears: dict[Address, Callable[[], None]] = {}
        """Whose node runs, and what to call when it has another block."""
        self._waiting: list[Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._moving: set[Address] = set()

    @property
    def height(self) -> int:
        """Of the newest block."""
        return len(self.blocks) - 1

    def send(self, sender: Address, call: Call) -> Waiting:
        """Give a call to the others; UnavailableError where nobody can be reached."""
        if sender not in self._reach():
            raise UnavailableError(f"{short(sender)} reaches no quorum")
        same = [one for one in self._waiting if (one.sender, one.call) == (sender, call)]
        if same:
            return same[0]
        self._told(sender, call)
        waiting = Waiting(sender, call)
        self._waiting.append(waiting)
        self._arm()
        return waiting

    def stir(self) -> None:
        """Members reach each other again."""
        self._arm()
        for member in self.hears:
            self._move(member)

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            delay_s = BLOCK_S * self._chance.uniform(0.2, 1.8)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._decide)

    def _decide(self) -> None:
        self._timer = None
        if len(self._reach()) < quorum(len(self.books.members)):
            return
        books = self.books
        books.now, books.block = int(1000 * self._clock()), books.block + 1
        calls, self._waiting = self._waiting, []
        self._chance.shuffle(calls)
        for one in calls:
            one.height = books.block
            try:
                events = books.take(one.sender, one.call)
            except Refused as refusal:
                one.refusal = str(refusal)
            else:
                self._decided(one.sender, one.call, events)
        self.blocks.append(self._show())
        for member in self.hears:
            self._move(member)

    def _show(self) -> Shown:
        books = self.books
        keys = {member: books.key_of(member) for member in books.members}
        return Shown(books.round_state(), books.mask_state(), keys, books.told)

    def _move(self, member: Address) -> None:
        """A member hears of the newest block, some time later."""
        if member in self._moving:
            return
        self._moving.add(member)
        delay_s = self._chance.expovariate(1 / 0.05) + (1.0 if self._chance.random() < 0.03 else 0.0)
        asyncio.get_running_loop().call_later(delay_s, self._heard, member)

    def _heard(self, member: Address) -> None:
        self._moving.discard(member)
        hears = self.hears.get(member)
        if hears is None or member not in self._reach() or self.heights[member] == self.height:
            return
        self.heights[member] = self.height
        hears()


class Window:
    """The contracts as one node sees them."""

    address = CONTRACT

    def __init__(self, ledger: Ledger, me: Address, policy: Policy, genesis: Digest) -> None:
        self._ledger = ledger
        self._me = me
        self._block: int | None = None
        self._run = Run(
            id=RUN, name=policy.name, proposer=me, policy=digest_of(policy.encode()), genesis=genesis,
            rounds=policy.rounds, submissions_min=policy.submissions_min, submit_s=policy.submit_s,
            merge_s=policy.merge_s, attest_s=policy.attest_s, weight_max=0, state=ledger.books.state, round=0,
            checkpoint=genesis,
        )  # fmt: skip

    @property
    def _shown(self) -> Shown:
        height = self._ledger.heights[self._me] if self._block is None else self._block
        return self._ledger.blocks[height]

    def at(self, block: int) -> Window:
        """As of this block."""
        past = copy.copy(self)
        past._block = block
        return past

    async def chain_id(self) -> int:
        """The chain's number."""
        return CHAIN_ID

    async def height(self) -> int:
        """Of the newest block that this node has."""
        return self._ledger.heights[self._me]

    async def runs(self, *, after: int = 0) -> tuple[Run, ...]:
        """The run."""
        return () if after >= RUN else (await self.run(RUN),)

    async def run(self, id: int) -> Run:
        """The run as it stands."""
        state = self._shown.state
        return replace(self._run, state=state.state, round=state.round, checkpoint=state.base)

    async def member(self, address: Address) -> Address | None:
        """Whether this is one."""
        return address if address in self._ledger.books.members else None

    async def approvals(self, run: int) -> Collection[Address]:
        """Everybody consents."""
        return self._ledger.books.members

    async def participants(self, run: int) -> Collection[Address]:
        """Everybody joined."""
        return self._ledger.books.members

    async def round_state(self, run: int) -> RoundState:
        """The current round."""
        return self._shown.state

    async def secrets_told(self, masks: MaskState) -> tuple[Told, ...]:
        """What was revealed in the attempt."""
        return self._shown.told

    @property
    def masks(self) -> Window:
        """The contract of blind rounds."""
        return self

    async def state(self, run: int, me: Address) -> MaskState:
        """The masks of the current round."""
        shown = self._shown
        return replace(shown.masks, mine=shown.keys[me])

    # --- calls

    def join(self, *arguments: Any) -> Call:
        """Join the run again, or the attempt that the state tells of."""
        if isinstance(arguments[0], int):
            return Call("run_join", ())
        masks, blob, commitment, recovery = arguments
        return Call("join", (masks.attempt, roster_digest(masks.seats), blob, commitment, recovery))

    def set_key(self, run: int, key: bytes) -> Call:
        """Put a key on the ledger."""
        return Call("set_key", (key,))

    def confirm(self, masks: MaskState, held: Collection[Address]) -> Call:
        """Say whose blobs are here and right."""
        return Call("confirm", (masks.attempt, frozenset(held)))

    def freeze(self, run: int, attempt: int) -> Call:
        """The time to join passed."""
        return Call("freeze", (attempt,))

    def reveal(
        self, masks: MaskState, survivors: Collection[Address], secret: bytes, seeds: Collection[bytes]
    ) -> Call:  # fmt: skip
        """Open a mask."""
        return Call("reveal", (masks.attempt, frozenset(survivors), secret, tuple(seeds)))

    def reveal_shares(self, masks: MaskState, secrets: Mapping[Address, bytes], seeds: Mapping[Address, bytes]) -> Call:
        """Give shares."""
        return Call("reveal_shares", (masks.attempt, dict(secrets), dict(seeds)))

    def submit(self, run: int, round: int, digest: Digest, weight: int, metrics: Mapping[str, float]) -> Call:
        """Submit a masked vector."""
        assert weight == 0, "weights of a blind run are masked"
        return Call("submit", (round, digest))

    def report_missing(self, run: int, round: int, member: Address) -> Call:
        """Report a vector that never came."""
        return Call("report_missing", (round, member))

    def publish(self, run: int, round: int, view: int, checkpoint: Digest) -> Call:
        """Publish a merge."""
        return Call("publish", (round, view, checkpoint))

    def attest(self, run: int, round: int, view: int, checkpoint: Digest, parts: int = 0) -> Call:
        """Attest it."""
        return Call("attest", (round, view, checkpoint))

    def refuse(self, run: int, round: int, view: int, found: Digest, evidence: Digest) -> Call:
        """Refuse it."""
        return Call("refuse", (round, view, found))

    def advance(self, run: int, round: int, view: int) -> Call:
        """A deadline passed."""
        return Call("advance", (round, view))

    async def transact(self, identity: Identity, call: Call, *, timeout_s: float) -> None:
        """As `Contracts.transact`: returns when this node has the block that took the call."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + timeout_s
        self._ledger.about(self._me, call)
        await asyncio.sleep(self._ledger._chance.uniform(0.0, 0.02))
        waiting = self._ledger.send(self._me, call)
        while not waiting.height or self._ledger.heights[self._me] < waiting.height:
            await asyncio.sleep(0.1)
            if clock() > until_s:
                raise UnavailableError(f"no block has the call {call.name}")
        if waiting.refusal:
            raise RejectedError(waiting.refusal)
