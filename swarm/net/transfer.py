"""Large objects by digest, over any transport: pulled in ranges of chunks, checked on arrival, resumed.

Bytes that match their digest are welcome from anyone, so a source that lies or has gone is dropped and the next one
is asked. There is no limit on how long a transfer takes, only on how long one answer does: hospitals have slow lines.

    describe: digest → size, leaves, and the bytes themselves of a small object
    range:    digest, first chunk, chunks → their bytes
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from swarm.encoding import Address, Digest, data_of, list_of, number, pack, short, unpack
from swarm.errors import PeerError, SwarmError, UnavailableError
from swarm.merkle import CHUNK_BYTES, chunk_count, digest_of, root
from swarm.net.transport import MESSAGE_MAX_BYTES, Transport
from swarm.store import Partial, Store

logger = logging.getLogger(__name__)

PROTOCOL = "/swarm/object/1"

RANGE_MAX = 4
"""Chunks in one answer: a source and its asker hold two each, and a line of 1 Gbit/s over 60 ms is kept busy."""
INLINE_MAX_BYTES = 256 << 10
"""An object this small comes with its description, and is hashed on the loop: a thread would take longer."""
WORKERS_MAX = 4
"""Answers under way for one object: enough to keep a line busy, few enough to bound memory (16 MiB)."""
DESCRIBE_S = 20.0
HEDGE_S = 1.0
"""Without a description after this long the next source is asked as well."""
RANGE_S = 180.0
"""For one chunk at the least: 6 KB/s. A dead line is noticed sooner, by the transport."""
GROW_S, SHRINK_S = 0.5, 5.0
"""A source that answers faster than the first gets longer ranges, slower than the second shorter ones."""
STALL_S = 5.0
"""A range that takes longer is asked of another source as well, when that one has nothing else to do."""
SECOND_CHANCES = 3
"""How often a source that gave chunks before may fail: lines break, and are there again a second later."""
PAUSE_S = 1.0

Progress: TypeAlias = Callable[[int, int], None]
"""(bytes that are here, bytes of the object)."""
_T = TypeVar("_T")


def serve_objects(transport: Transport, store: Store, may_read: Callable[[Address, Digest], bool]) -> None:
    """Let members read what is in the store, as far as `may_read` agrees; call before the transport starts."""

    async def answer(member: Address, payload: bytes) -> bytes:
        what, *rest = list_of(unpack(payload, max_bytes=128), size_max=4)
        digest = data_of(rest[0], size=32) if rest else b""
        # Whether an object is absent or not for this member is not told apart.
        if not store.has(digest) or not may_read(member, digest):
            raise UnavailableError(f"object {short(digest)} is not here")
        size = store.size(digest)
        if what == b"describe" and len(rest) == 1:
            leaves = store.known_leaves(digest)
            if leaves is None:
                leaves = await _aside(size, store.leaves, digest)
            inline = store.read(digest, 0, size) if size <= INLINE_MAX_BYTES else b""
            return pack([size, b"".join(leaves), inline])
        if what == b"range" and len(rest) == 3:
            first, count = number(rest[1]), number(rest[2])
            if not 1 <= count <= RANGE_MAX or first + count > chunk_count(size):
                raise ValueError(f"chunks {first} to {first + count} of an object of {chunk_count(size)}")
            start = first * CHUNK_BYTES
            return await _aside(size, store.read, digest, start, min(count * CHUNK_BYTES, size - start))
        raise ValueError("neither a description nor a range is asked for")

    transport.serve(PROTOCOL, answer)


async def pull(
    transport: Transport,
    store: Store,
    digest: Digest,
    sources: Collection[Address],
    *,
    size_max: int,
    sync: bool = True,
    progress: Progress | None = None,
) -> None:
    """Have the object in the store, from whichever of the sources give it; goes on where an earlier pull stopped.

    Args:
        sources: members that may have it, best first; this node itself is passed over.
        size_max: bytes; a larger object is not taken.
        sync: have it on the disk before this returns; False for what can be fetched again after a power cut.

    Raises:
        UnavailableError: no source has given (all of) it; what came is kept for the next time.
        PeerError: the object is larger than `size_max`.
        StorageError: the store would not take it.
    """
    if store.has(digest):
        if sync:
            await asyncio.to_thread(store.sync, digest)
        return
    candidates = [source for source in dict.fromkeys(sources) if source != transport.me]
    size, leaves, inline, dropped = await _describe(transport, digest, candidates, size_max)
    with _arrival(store, digest, size, leaves) as arrival:
        partial = arrival.partial
        if inline and partial.missing():
            partial.write(0, inline)
        missing = partial.missing()
        if missing:
            candidates = [source for source in candidates if source not in dropped]
            await _Pull(transport, arrival, missing, candidates, progress).run()
        await asyncio.to_thread(functools.partial(partial.finish, sync=sync))
    if progress is not None:
        progress(size, size)


@dataclass(frozen=True)
class Chunks:
    """Some chunks of an object, in a file of the object's size; where others were not asked for any bytes may be."""

    path: Path
    leaves: tuple[Digest, ...]


async def pull_chunks(
    transport: Transport,
    store: Store,
    digest: Digest,
    sources: Collection[Address],
    chunks: Collection[int],
    *,
    size: int,
) -> Chunks:
    """Have these chunks of an object on disk; those that came before are not asked for again, also after a restart.

    The file stays until the store makes room; pin the object to keep it.

    Args:
        size: bytes that the object has; one of another size is not taken.

    Raises:
        UnavailableError: no source has given all of them; what came is kept for the next time.
        PeerError: the object has another size.
        ValueError: the object has no such chunk.
        StorageError: the store would not take it.
    """
    if store.has(digest):
        return Chunks(store.path(digest), store.leaves(digest))
    candidates = [source for source in dict.fromkeys(sources) if source != transport.me]
    found, leaves, inline, dropped = await _describe(transport, digest, candidates, size)
    if found != size:
        raise PeerError(f"object {short(digest)} has {found} bytes where {size} belong")
    wanted = sorted(set(chunks))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(leaves):
        raise ValueError(f"chunks {wanted[0]} to {wanted[-1]} of an object of {len(leaves)}")
    with _arrival(store, digest, size, leaves) as arrival:
        partial = arrival.partial
        if inline and partial.missing():
            partial.write(0, inline)
        missing = sorted(set(wanted).intersection(partial.missing()))
        if missing:
            candidates = [source for source in candidates if source not in dropped]
            await _Pull(transport, arrival, missing, candidates, None).run()
        if not partial.missing():
            await asyncio.to_thread(partial.finish)
        return Chunks(partial.path, tuple(leaves))


async def describe(
    transport: Transport, digest: Digest, sources: Collection[Address], *, size_max: int
) -> tuple[int, list[Digest]]:
    """Size and leaves of an object, proven by its digest.

    Raises:
        UnavailableError: no source tells them.
        PeerError: the object is larger than `size_max`.
    """
    candidates = [source for source in dict.fromkeys(sources) if source != transport.me]
    size, leaves, _, _ = await _describe(transport, digest, candidates, size_max)
    return size, leaves


async def _describe(
    transport: Transport, digest: Digest, sources: list[Address], size_max: int
) -> tuple[int, list[Digest], bytes, set[Address]]:
    """Size, leaves, bytes if small, and the sources that failed; the first true description of several wins."""
    waiting = deque(sources)
    asked: dict[asyncio.Task[bytes], Address] = {}
    dropped: set[Address] = set()
    last: SwarmError | None = None
    message = pack(["describe", digest])
    loop = asyncio.get_running_loop()
    try:
        while waiting or asked:
            if waiting:
                source = waiting.popleft()
                request = transport.request(source, PROTOCOL, message, timeout_s=DESCRIBE_S)
                asked[loop.create_task(request)] = source
            done, _ = await asyncio.wait(
                asked, timeout=HEDGE_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                source = asked.pop(task)
                try:
                    size, leaves, inline = _read_description(task.result(), digest, source)
                except (UnavailableError, PeerError) as error:
                    logger.debug("%s does not describe %s: %s", short(source), short(digest), error)
                    dropped.add(source)
                    last = error
                    continue
                if size > size_max:
                    raise PeerError(f"object {short(digest)} has {size} bytes, at most {size_max} are taken here")
                return size, leaves, inline, dropped
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    raise UnavailableError(
        f"none of {len(sources)} sources has object {short(digest)}; the last said: {last}"
    ) from last


def _read_description(answer: bytes, digest: Digest, source: Address) -> tuple[int, list[Digest], bytes]:
    try:
        size_item, leaves_item, inline_item = list_of(unpack(answer, max_bytes=MESSAGE_MAX_BYTES), size=3)
        size, joined, inline = number(size_item), data_of(leaves_item), data_of(inline_item)
        if len(joined) % 32:
            raise ValueError("leaves have 32 bytes each")
        leaves = [joined[start : start + 32] for start in range(0, len(joined), 32)]
        if root(leaves, size) != digest:
            raise ValueError("size and leaves are those of another object")
        if inline and (size > INLINE_MAX_BYTES or digest_of(inline) != digest):
            raise ValueError("other bytes came with it")
    except ValueError as error:
        raise PeerError(f"not a description of object {short(digest)}: {error}", member=source) from error
    return size, leaves, inline


@dataclass
class _Range:
    """Chunks that one source is asked for."""

    first: int
    count: int
    source: Address
    since_s: float
    doubled: bool = False

    @property
    def chunks(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass
class _Arrival:
    """An object on its way here, for all pulls of it: what one asks for the others do not."""

    partial: Partial
    users: int = 0
    active: list[_Range] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """A range has ended."""


class _Pull:
    """One object, or some of its chunks, from several sources."""

    def __init__(
        self,
        transport: Transport,
        arrival: _Arrival,
        missing: list[int],
        sources: list[Address],
        progress: Progress | None,
    ) -> None:
        self._transport = transport
        self._arrival = arrival
        self._partial = arrival.partial
        self._sources = sources
        self._progress = progress
        self._wanted = deque(missing)
        self._left = set(missing)
        """Each of them is wanted, or this pull has asked for it."""
        self._lengths = dict.fromkeys(sources, 1)
        self._last: SwarmError | None = None

    async def run(self) -> None:
        """Until nothing is missing, or no source is left."""
        if not self._sources:
            raise UnavailableError(f"no source is left for object {short(self._partial.digest)}")
        loop = asyncio.get_running_loop()
        each = max(1, min(2, WORKERS_MAX // len(self._sources)))
        tasks = [loop.create_task(self._work(source)) for source in self._sources[:WORKERS_MAX] for _ in range(each)]
        # Those past the first few step in where one of them fails.
        spare = deque(self._sources[WORKERS_MAX:])
        pending = set(tasks)
        try:
            while pending and self._left:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                    if spare and self._left:
                        replacement = loop.create_task(self._work(spare.popleft()))
                        tasks.append(replacement)
                        pending.add(replacement)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._left:
            raise UnavailableError(
                f"object {short(self._partial.digest)}: {len(self._left)} of {len(self._partial.leaves)} chunks are "
                f"missing and no source is left; the last failed so: {self._last}"
            ) from self._last

    async def _work(self, source: Address) -> None:
        loop = asyncio.get_running_loop()
        failures, given = 0, False
        into = memoryview(b"")
        while self._left:
            failed = False
            mine = self._take(source, loop.time())
            if mine is None:
                await self._change()
                continue
            if len(into) < mine.count * CHUNK_BYTES:
                into = memoryview(bytearray(mine.count * CHUNK_BYTES))
            try:
                await self._fetch(mine, into)
            except UnavailableError as error:
                self._last = error
                failed = True
            except PeerError as error:
                self._last = error
                logger.warning("%s is dropped as a source: %s", short(source), error)
                return
            else:
                given = True
                self._adapt(source, loop.time() - mine.since_s)
            finally:
                self._arrival.active.remove(mine)
                self._give_back(mine)
            if failed:
                failures += 1
                if not given or failures > SECOND_CHANCES:
                    logger.debug("%s gives no more of %s: %s", short(source), short(self._partial.digest), self._last)
                    return
                await asyncio.sleep(PAUSE_S)

    def _take(self, source: Address, now_s: float) -> _Range | None:
        """The next chunks in a row; when all are under way, those that have been so for long at another source."""
        first, count = self._row(self._lengths[source])
        if count:
            mine = _Range(first, count, source, now_s)
        else:
            stalled = [
                other
                for other in self._arrival.active
                if other.source != source
                and not other.doubled
                and now_s - other.since_s >= STALL_S
                and not self._left.isdisjoint(other.chunks)
            ]
            if not stalled:
                return None
            slowest = min(stalled, key=lambda other: other.since_s)
            slowest.doubled = True
            mine = _Range(slowest.first, slowest.count, source, now_s, doubled=True)
        self._arrival.active.append(mine)
        return mine

    def _row(self, length: int) -> tuple[int, int]:
        """The first wanted chunk that nobody is asked for, and how many up to `length` follow it in a row: they are not
        wanted any more. What another pull brought meanwhile is not either."""
        first, count, passed = 0, 0, list[int]()
        while self._wanted and count < length and (not count or self._wanted[0] == first + count):
            chunk = self._wanted.popleft()
            if self._partial.has(chunk):
                self._left.discard(chunk)
            elif any(chunk in other.chunks for other in self._arrival.active):
                passed.append(chunk)
            else:
                first, count = (first, count + 1) if count else (chunk, 1)
        self._wanted.extendleft(reversed(passed))
        return first, count

    def _give_back(self, ended: _Range) -> None:
        """What did not come is wanted again."""
        for chunk in reversed(ended.chunks):
            if chunk in self._left and chunk not in self._wanted:
                self._wanted.appendleft(chunk)
        self._arrival.changed.set()

    async def _fetch(self, mine: _Range, into: memoryview) -> None:
        partial = self._partial
        message = pack(["range", partial.digest, mine.first, mine.count])
        timeout_s = RANGE_S * mine.count
        size = await self._transport.request_into(mine.source, PROTOCOL, message, into, timeout_s=timeout_s)
        if size != min(mine.count * CHUNK_BYTES, partial.size - mine.first * CHUNK_BYTES):
            raise PeerError(f"{size} bytes for {mine.count} chunks", member=mine.source)
        try:
            await _aside(size, self._write, mine, into[:size])
        except ValueError as error:
            raise PeerError(f"other bytes than asked for: {error}", member=mine.source) from error
        finally:
            if self._progress is not None:
                self._progress(partial.size - self._left_bytes(), partial.size)

    def _write(self, mine: _Range, data: memoryview) -> None:
        try:
            self._partial.write(mine.first, data)
        finally:
            self._left.difference_update([chunk for chunk in mine.chunks if self._partial.has(chunk)])

    def _left_bytes(self) -> int:
        chunks = len(self._partial.leaves)
        unused = chunks * CHUNK_BYTES - self._partial.size if chunks - 1 in self._left else 0
        return len(self._left) * CHUNK_BYTES - unused

    def _adapt(self, source: Address, took_s: float) -> None:
        length = self._lengths[source]
        if took_s < GROW_S:
            self._lengths[source] = min(length * 2, RANGE_MAX)
        elif took_s > SHRINK_S:
            self._lengths[source] = max(length // 2, 1)

    async def _change(self) -> None:
        self._arrival.changed.clear()
        try:
            async with asyncio.timeout(STALL_S):
                await self._arrival.changed.wait()
        except TimeoutError:
            return


_arrivals: WeakKeyDictionary[Store, dict[Digest, _Arrival]] = WeakKeyDictionary()
"""What pulls are at work on, by store."""


@contextmanager
def _arrival(store: Store, digest: Digest, size: int, leaves: list[Digest]) -> Iterator[_Arrival]:
    """Shared with the other pulls of the object at the same store; the last one to leave closes its `Partial`."""
    arrivals = _arrivals.setdefault(store, {})
    partial = store.receive(digest, size, leaves)
    arrival = arrivals.get(digest)
    if arrival is None or arrival.partial is not partial:
        arrival = arrivals[digest] = _Arrival(partial)
    arrival.users += 1
    try:
        yield arrival
    finally:
        arrival.users -= 1
        if not arrival.users:
            if arrivals.get(digest) is arrival:
                del arrivals[digest]
            partial.close()


async def _aside(size_bytes: int, call: Callable[..., _T], *arguments: object) -> _T:
    """The result of a call that hashes or reads `size_bytes`: in a thread if that takes longer than going there."""
    if size_bytes <= INLINE_MAX_BYTES:
        return call(*arguments)
    return await asyncio.to_thread(call, *arguments)
