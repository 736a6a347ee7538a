"""Fetches blocks that were decided without this node, from several members at once, and verifies each.

Every block is checked by the ledger against the validators of its time, so a member can only waste time: one that gave
what does not hold is left alone for a while. What was appended is on disk, so a broken link costs what was under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swarm.consensus import Certificate
from swarm.encoding import Address, data_of, list_of, number, pack, short, unpack
from swarm.errors import PeerError, StorageError, UnavailableError
from swarm.ledger.ledger import Ledger
from swarm.net.transport import MESSAGE_MAX_BYTES, Transport

logger = logging.getLogger(__name__)

BLOCKS = "/swarm/blocks/2"
SYNC_TIMEOUT_S = 30.0
SYNC_BYTES = 4 << 20
"""One answer, unless a single block is larger."""
SPAN_BLOCKS = 64
SPANS_MAX = 4
"""Asked for at once, each of another member: with their answers waiting, about 32 MB."""
HEDGE_S = 3.0
"""After so long another member is asked for the next block as well: one that is silent holds nobody up."""
ABSENT_S, ABSENT_MAX_S = 2.0, 60.0
"""How long nothing is asked of a member that gave nothing; doubled each time."""
FALSE_S, FALSE_MAX_S = 300.0, 3600.0
"""The same of one that gave what does not hold."""


@dataclass(frozen=True)
class Span:
    """Blocks that somebody is asked for: `count` from `start` on."""

    start: int
    count: int


@dataclass(frozen=True)
class Asked:
    """Who was asked for what, and when by the loop's clock."""

    member: Address
    span: Span
    at_s: float


@dataclass
class Doubt:
    """Why a member is not asked for now."""

    until_s: float = 0.0
    times: int = 0

    def grow(self, now_s: float, first_s: float, most_s: float) -> None:
        """Once more."""
        self.times += 1
        self.until_s = now_s + min(first_s * 2 ** (self.times - 1), most_s)


def next_spans(head: int, goal: int, known: Mapping[int, int], idle: Mapping[Address, int]) -> dict[Address, Span]:
    """Whom to ask for what: the lowest spans that nobody was asked for, each of another member that says it has them.

    Args:
        head: the last block that is here.
        goal: the last that anybody who is asked claims to have.
        known: (first, last) of what was asked for or waits to be appended.
        idle: members that may be asked, and the height that each claims.
    """
    wanted: dict[Address, Span] = {}
    free = sorted(idle)
    start = head + 1
    for _ in range(SPANS_MAX):
        while start in known:
            start = known[start] + 1
        if start > goal or start > head + SPANS_MAX * SPAN_BLOCKS:
            break
        member = next((one for one in free if idle[one] >= start), None)
        if member is None:
            break
        free.remove(member)
        last = min(start + SPAN_BLOCKS - 1, idle[member], *(first - 1 for first in known if first > start), goal)
        wanted[member] = Span(start, last - start + 1)
        start = last + 1
    return wanted


class Sync:
    """Brings a ledger to the height that other members claim.

    Args:
        heights: what each member claims, kept up to date by the caller.
        append: takes the next block; PeerError: it does not hold.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        transport: Transport,
        heights: Mapping[Address, int],
        append: Callable[[bytes, Certificate], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._ledger = ledger
        self._transport = transport
        self._heights = heights
        self._append = append
        self._on_failure = on_failure
        self._doubts: dict[Address, Doubt] = {}
        self._asked: dict[asyncio.Task[bytes], Asked] = {}
        self._waiting: dict[int, tuple[Address, bytes, Certificate]] = {}

    async def run(self) -> None:
        """Ask, append and ask again, until nobody who may be asked claims a later block."""
        try:
            while True:
                self._ask()
                if not self._asked:
                    return
                await asyncio.wait(self._asked, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in self._asked if task.done()]:
                    asked = self._asked.pop(task)
                    self._take(task, asked.member, asked.span)
                await self._append_waiting()
        except (StorageError, AssertionError) as error:
            self._on_failure(error)
        finally:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)
            self._asked.clear()
            self._waiting.clear()

    def in_doubt(self) -> frozenset[Address]:
        """The members that are not asked for anything now."""
        now_s = self._now()
        return frozenset(member for member, doubt in self._doubts.items() if doubt.until_s > now_s)

    # --- asking

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _ask(self) -> None:
        doubted, busy = self.in_doubt(), {asked.member for asked in self._asked.values()}
        head, now_s = self._ledger.head.number, self._now()
        claims = {
            member: height
            for member, height in self._heights.items()
            if height > head and member not in doubted and member in self._transport.connected()
        }
        known = {
            asked.span.start: asked.span.start + asked.span.count - 1
            for asked in self._asked.values()
            if not (asked.span.start <= head + 1 and now_s - asked.at_s > HEDGE_S)
        }
        known |= {height: height for height in self._waiting}
        idle = {member: height for member, height in claims.items() if member not in busy}
        for member, span in next_spans(head, max(claims.values(), default=head), known, idle).items():
            request = pack([span.start, span.count])
            call = self._transport.request(member, BLOCKS, request, timeout_s=SYNC_TIMEOUT_S)
            self._asked[asyncio.ensure_future(call)] = Asked(member, span, now_s)

    def _take(self, task: asyncio.Task[bytes], member: Address, span: Span) -> None:
        """Keep what a member gave; whether it holds is seen when its turn comes."""
        try:
            blocks = list_of(unpack(task.result(), max_bytes=MESSAGE_MAX_BYTES), size_max=span.count)
            for height, pair in enumerate(blocks, span.start):
                block, certificate = list_of(pair, size=2)
                if self._ledger.number_of(data_of(block)) != height:
                    raise PeerError(
                        f"block {self._ledger.number_of(data_of(block))} where block {height} was asked for"
                    )
                self._waiting[height] = (member, data_of(block), Certificate.decode(data_of(certificate)))
        except UnavailableError as error:
            self._doubt(member, ABSENT_S, ABSENT_MAX_S, str(error))
            return
        except (PeerError, ValueError) as error:
            self._doubt(member, FALSE_S, FALSE_MAX_S, str(error))
            return
        if not blocks:
            self._doubt(member, ABSENT_S, ABSENT_MAX_S, f"it claims block {span.start} and does not give it")

    async def _append_waiting(self) -> None:
        while (height := self._ledger.head.number + 1) in self._waiting:
            member, payload, certificate = self._waiting.pop(height)
            try:
                self._append(payload, certificate)
            except (PeerError, ValueError) as error:
                self._doubt(member, FALSE_S, FALSE_MAX_S, str(error))
            else:
                self._doubts.pop(member, None)
            await asyncio.sleep(0)
        # Others may have brought blocks meanwhile.
        self._waiting = {at: block for at, block in self._waiting.items() if at > self._ledger.head.number}

    def _doubt(self, member: Address, first_s: float, most_s: float, why: str) -> None:
        doubt = self._doubts.setdefault(member, Doubt())
        doubt.grow(self._now(), first_s, most_s)
        self._waiting = {at: block for at, block in self._waiting.items() if block[0] != member}
        pause_s = doubt.until_s - self._now()
        logger.info(
            "height %d: %s is not asked for blocks for %.0f s: %s",
            self._ledger.head.number,
            short(member),
            pause_s,
            why,
        )


def read_request(payload: bytes) -> tuple[int, int]:
    """(first block, how many at most) that a member asks for.

    Raises:
        ValueError: not such a request.
    """
    start, count = list_of(unpack(payload, max_bytes=64), size=2)
    return number(start), min(number(count), SPAN_BLOCKS)
