"""What is new on a ledger since somebody last looked: polled filters, and subscriptions that are told.

Nobody's news are kept for them: a filter and a subscription are places in the chain of blocks, and in a ring of the
last transactions that came to wait. However slow a reader is, it costs the same. Pure but for the ledger it reads.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.encoding import Digest, to_hex
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import Criteria, Rpc, RpcError
from swarm.ledger.rpc_json import header_json, log_json, transaction_json

ARRIVALS_KEPT = 4096
"""As many as may wait at a time; who looks more rarely misses hashes of transactions that stand in blocks by then."""
FILTERS_MAX = 1024
FILTERS_OF_CLIENT_MAX = 64
FILTER_LIFE_S = 300.0
"""How long an unasked filter stays, as in go-ethereum."""
HASHES_MAX = 10_000
_BLOCK_LOGS_MAX = 1 << 20  # of one block, whose gas bounds them


class Arrivals:
    """The hashes of the last transactions that came to wait, numbered in the order of their coming."""

    def __init__(self) -> None:
        self._last: deque[Digest] = deque(maxlen=ARRIVALS_KEPT)
        self.count = 0

    def add(self, digest: Digest) -> None:
        """One came."""
        self._last.append(digest)
        self.count += 1

    def since(self, count: int) -> list[Digest]:
        """Those after the first `count`, as far as they are kept."""
        new = min(self.count - count, len(self._last))
        return list(self._last)[len(self._last) - new :]


@dataclass
class _Filter:
    kind: str
    client: str
    wanted: Mapping[str, Any]
    criteria: Criteria
    block: int
    """The next block to look at."""
    arrival: int
    asked_s: float


class Filters:
    """`eth_newFilter` and its kin: for clients that poll."""

    def __init__(self, ledger: Ledger, rpc: Rpc, arrivals: Arrivals) -> None:
        self._ledger = ledger
        self._rpc = rpc
        self._arrivals = arrivals
        self._open: dict[str, _Filter] = {}

    def new(self, kind: str, wanted: Mapping[str, Any], *, client: str, now_s: float) -> str:
        """The id of a new filter of `kind` logs, heads or pending.

        Raises:
            RpcError: this client, or all of them, have too many.
            ValueError: `wanted` names no logs.
        """
        self._expire(now_s)
        mine = sum(one.client == client for one in self._open.values())
        if mine >= FILTERS_OF_CLIENT_MAX or len(self._open) >= FILTERS_MAX:
            raise RpcError(
                -32005,
                f"{mine} filters of {client} and {len(self._open)} in all are open: eth_uninstallFilter ends one, and "
                f"one that nobody asks for {FILTER_LIFE_S:.0f} s ends by itself",
            )
        number = "0x" + secrets.token_hex(16)
        self._open[number] = _Filter(
            kind, client, dict(wanted), Criteria.read(wanted), self._ledger.head.number + 1, self._arrivals.count, now_s
        )
        return number

    def changes(self, number: str, now_s: float) -> list[Any]:
        """What is new since the last time; of very much the first part, and the rest the next time."""
        found = self._find(number, now_s)
        if found.kind == "pending":
            new = self._arrivals.since(found.arrival)
            found.arrival = self._arrivals.count
            return [to_hex(digest) for digest in new]
        first, head = found.block, self._ledger.head.number
        most = HASHES_MAX if found.kind == "heads" else self._rpc.limits.log_blocks_max
        last = min(head, first + most - 1)
        if found.kind == "heads":
            hashes = [to_hex(self._ledger.block(block).header.hash) for block in range(first, last + 1)]
            found.block = last + 1
            return hashes
        while last > first:
            try:
                logs = self._rpc.logs(found.criteria, first, last)
                break
            except ValueError:  # more logs than are told at a time
                last = (first + last) // 2
        else:
            logs = self._block_logs(found.criteria, first) if first <= head else []
        found.block = max(last + 1, first)
        return logs

    def logs(self, number: str, now_s: float) -> list[Any]:
        """All logs that a filter asks for, from its first block on."""
        found = self._find(number, now_s)
        if found.kind != "logs":
            raise ValueError("this filter is not of logs")
        return list(self._rpc.handle("eth_getLogs", [found.wanted]))

    def end(self, number: str, now_s: float) -> bool:
        """Whether there was such a filter; there is none now."""
        self._expire(now_s)
        return self._open.pop(number, None) is not None

    def _block_logs(self, criteria: Criteria, block: int) -> list[Any]:
        found = self._ledger.logs(block, block, criteria.addresses, criteria.topics, logs_max=_BLOCK_LOGS_MAX)
        return [log_json(entry) for entry in found]

    def _find(self, number: str, now_s: float) -> _Filter:
        self._expire(now_s)
        found = self._open.get(number)
        if found is None:
            raise RpcError(-32000, f"filter not found: it is ended, or nobody asked for {FILTER_LIFE_S:.0f} s")
        found.asked_s = now_s
        return found

    def _expire(self, now_s: float) -> None:
        for number in [n for n, one in self._open.items() if now_s - one.asked_s > FILTER_LIFE_S]:
            del self._open[number]


@dataclass(frozen=True)
class _Subscription:
    kind: str
    criteria: Criteria
    whole: bool
    """Transactions in full, not their hashes."""
    block: int
    """The first that it is told."""


class Subscriptions:
    """`eth_subscribe` of one connection.

    Args:
        most: how many it may have.
    """

    def __init__(self, ledger: Ledger, arrivals: Arrivals, most: int) -> None:
        self._ledger = ledger
        self._arrivals = arrivals
        self._most = most
        self._open: dict[str, _Subscription] = {}
        self._block = ledger.head.number + 1
        self._arrival = arrivals.count

    def new(self, kind: str, options: Any = None) -> str:
        """The id of a subscription to newHeads, logs or newPendingTransactions; ValueError: another, or too many."""
        if kind not in ("newHeads", "logs", "newPendingTransactions"):
            raise ValueError(f"no subscription to {kind!r}; there are newHeads, logs and newPendingTransactions")
        if len(self._open) >= self._most:
            raise ValueError(f"{len(self._open)} subscriptions are open, one connection has no more")
        criteria = Criteria.read(options or {}) if kind == "logs" else Criteria(frozenset(), ())
        if not self._open:
            self._block, self._arrival = self._ledger.head.number + 1, self._arrivals.count
        number = "0x" + secrets.token_hex(16)
        self._open[number] = _Subscription(kind, criteria, options is True, self._ledger.head.number + 1)
        return number

    def end(self, number: str) -> bool:
        """Whether there was such a subscription; there is none now."""
        return self._open.pop(number, None) is not None

    def news(self) -> Iterator[tuple[str, Any]]:
        """(subscription, what it is told), in order, up to now; ask again when something happened."""
        arrived = self._arrivals.since(self._arrival)
        self._arrival = self._arrivals.count
        for digest in arrived:
            for number, one in list(self._open.items()):
                if one.kind == "newPendingTransactions" and number in self._open:
                    told = self._waiting(digest) if one.whole else to_hex(digest)
                    if told is not None:
                        yield number, told
        while self._open and self._block <= self._ledger.head.number:
            block = self._block
            self._block += 1
            yield from self._of_block(block)

    def _of_block(self, block: int) -> Iterator[tuple[str, Any]]:
        for number, one in list(self._open.items()):
            if block < one.block:
                continue
            if one.kind == "newHeads" and number in self._open:
                yield number, header_json(self._ledger.block(block).header)
            elif one.kind == "logs":
                wanted = one.criteria
                found = self._ledger.logs(block, block, wanted.addresses, wanted.topics, logs_max=_BLOCK_LOGS_MAX)
                yield from ((number, log_json(entry)) for entry in found if number in self._open)

    def _waiting(self, digest: Digest) -> dict[str, Any] | None:
        found = self._ledger.pending_transaction(digest)
        return None if found is None else transaction_json(self._ledger, found.raw, None, None)
