"""Runs what a transport's handlers do with the messages that arrive: begun in order, bounded per member.

Both transports deliver through it, so a handler sees the same behaviour over a socket and in the simulator.
It lives on the caller's asyncio loop and knows no network.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from swarm.encoding import Address, short
from swarm.errors import PeerError, SwarmError
from swarm.net.transport import MESSAGE_MAX_BYTES, Handler

logger = logging.getLogger(__name__)

RUNNING_MAX = 64
"""Handlers at work for one member at once, on messages and again on requests: more than an honest node has open."""
RUNNING_MAX_BYTES = 8 * MESSAGE_MAX_BYTES
"""What those handlers may hold of one member; one more is begun where it is not passed yet."""
WAITING_MAX = 1000
WAITING_MAX_BYTES = 2 * MESSAGE_MAX_BYTES
"""What waits for a free handler, per member; the oldest goes."""

Done: TypeAlias = Callable[[bytes | None, str], None]
"""Called once with the answer and "", or with None and the reason why there is none."""


class Inbox:
    """The handlers of one transport and the messages they are at work on."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[tuple[Address, bool], _Load] = {}
        """By sender, and whether they answer requests."""
        self._waiting: dict[Address, Backlog] = {}

    def serve(self, protocol: str, handler: Handler) -> None:
        """Give `protocol` its handler; ValueError if it has one."""
        if protocol in self._handlers:
            raise ValueError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    def message(self, sender: Address, protocol: str, payload: bytes) -> None:
        """Begin the handler of a message that needs no answer, after those of the same sender before it."""
        handler = self._handlers.get(protocol)
        if handler is None:
            logger.debug("%s sent %s, which is not served here", short(sender), protocol)
            return
        waiting = self._waiting.get(sender)
        if waiting is not None or self._full(sender, asked=False):
            if waiting is None:
                waiting = self._waiting[sender] = Backlog()
            waiting.add(protocol, payload)
            return
        self._begin(sender, handler, payload, None)

    def request(self, sender: Address, protocol: str, payload: bytes, done: Done) -> None:
        """Begin the handler of a request; `done` hears the outcome, unless the inbox is closed before."""
        handler = self._handlers.get(protocol)
        if handler is None:
            done(None, f"{protocol} is not served here")
        elif self._full(sender, asked=True):
            done(None, "as many of your requests as one member may have are being worked on already")
        else:
            self._begin(sender, handler, payload, done)

    def cancel(self) -> None:
        """Cancel every handler at work and forget what waits."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """`cancel`, and wait until every handler has ended (but the one that calls this)."""
        self.cancel()
        ending = [task for task in self._tasks if task is not asyncio.current_task()]
        if ending:
            await asyncio.wait(ending)

    def _begin(self, sender: Address, handler: Handler, payload: bytes, done: Done | None) -> None:
        load = self._running.setdefault((sender, done is not None), _Load())
        load.handlers += 1
        load.bytes += len(payload)
        task = asyncio.get_running_loop().create_task(self._run(sender, handler, payload, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, sender: Address, handler: Handler, payload: bytes, done: Done | None) -> None:
        answer: bytes | None = None
        reason = "stopped"
        try:
            answer = await handler(sender, payload)
            if len(answer) > MESSAGE_MAX_BYTES:
                raise AssertionError(f"a handler answered {len(answer)} bytes, at most {MESSAGE_MAX_BYTES} travel")
        except (PeerError, ValueError) as error:
            logger.debug("dropped a message of %s: %s", short(sender), error)
            answer, reason = None, str(error)
        except SwarmError as error:
            logger.info("declined a message of %s: %s", short(sender), error)
            answer, reason = None, str(error)
        except Exception as error:
            # Our own mistake: whoever owns the loop decides what it means; the asker is not left waiting.
            answer, reason = None, "an error at the other side"
            context = {"message": f"handler of a message of {short(sender)} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
        finally:
            self._ended(sender, len(payload), asked=done is not None)
        if done is not None:
            done(answer, "" if answer is not None else reason)

    def _full(self, sender: Address, *, asked: bool) -> bool:
        load = self._running.get((sender, asked))
        return load is not None and (load.handlers >= RUNNING_MAX or load.bytes >= RUNNING_MAX_BYTES)

    def _ended(self, sender: Address, size_bytes: int, *, asked: bool) -> None:
        load = self._running[sender, asked]
        load.handlers -= 1
        load.bytes -= size_bytes
        if not load.handlers:
            del self._running[sender, asked]
        waiting = None if asked else self._waiting.get(sender)
        while waiting is not None and not self._full(sender, asked=False):
            following = waiting.take()
            if following is None:
                del self._waiting[sender]
                return
            protocol, payload = following
            self._begin(sender, self._handlers[protocol], payload, None)


@dataclass
class _Load:
    """What is at work for one sender."""

    handlers: int = 0
    bytes: int = 0


class Backlog:
    """Protocols and payloads in order, bounded in number and bytes: when it is full the oldest goes."""

    def __init__(self, count_max: int = WAITING_MAX, bytes_max: int = WAITING_MAX_BYTES) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._queue: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self.dropped = 0
        """How many went because it was full."""

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, protocol: str, payload: bytes) -> None:
        """Put a message at the end."""
        self._queue.append((protocol, payload))
        self._bytes += len(payload)
        while len(self._queue) > self._count_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._queue.popleft()[1])
            self.dropped += 1

    def take(self) -> tuple[str, bytes] | None:
        """The oldest message, or None."""
        if not self._queue:
            return None
        protocol, payload = self._queue.popleft()
        self._bytes -= len(payload)
        return protocol, payload
