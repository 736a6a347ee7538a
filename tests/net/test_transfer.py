"""Pulling objects: from several sources, past liars, through cut lines, on from where it stopped."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from swarm.encoding import Address, Digest, Item, data_of, list_of, number, pack, unpack
from swarm.errors import PeerError, StorageError, UnavailableError
from swarm.merkle import CHUNK_BYTES, digest_of
from swarm.net import transfer
from swarm.net.transfer import pull, pull_chunks, serve_objects
from swarm.net.transport import Transport
from swarm.store import Store
from tests.net.kit import Swarm, identity, until

MIB = 1 << 20
SIZE_MAX = 64 * MIB
Twist = Callable[[bytes, bytes], Awaitable[bytes]]
"""(what was asked, the true answer) → the answer given."""


class Site:
    """A transport with a store that serves what it has, through a twist if one is given."""

    def __init__(self, transport: Transport, folder: Path) -> None:
        self.transport = transport
        self.store = Store(folder, SIZE_MAX, durable=False)
        self.asked: list[tuple[bytes, int, int]] = []

    @property
    def me(self) -> Address:
        return self.transport.me


class Twisted:
    """A transport whose object handler is wrapped: what a broken or dishonest source does."""

    def __init__(self, site: Site, inner: Transport, twist: Twist | None) -> None:
        self._site, self._inner, self._twist = site, inner, twist

    @property
    def me(self) -> Address:
        return self._inner.me

    def serve(self, protocol: str, handler: Callable[[Address, bytes], Awaitable[bytes]]) -> None:
        async def wrapped(sender: Address, payload: bytes) -> bytes:
            what, _, *rest = list_of(unpack(payload, max_bytes=128))
            numbers = [number(item) for item in rest] + [0, 0]
            self._site.asked.append((data_of(what), numbers[0], numbers[1]))
            answer = await handler(sender, payload)
            return answer if self._twist is None else await self._twist(data_of(what), answer)

        self._inner.serve(protocol, wrapped)


@pytest.fixture(params=["memory", "libp2p"])
async def swarm(request: pytest.FixtureRequest) -> AsyncIterator[Swarm]:
    made = Swarm(request.param)
    yield made
    await made.close()


async def sites(swarm: Swarm, folder: Path, *twists: Twist | None) -> tuple[Site, list[Site]]:
    """The site that pulls, and one source for each twist."""
    made: list[Site] = []
    for index, twist in enumerate((None, *twists)):
        transport = swarm.make(index + 1)
        site = Site(transport, folder / str(index))
        serve_objects(Twisted(site, transport, twist), site.store, lambda member, digest: True)  # type: ignore[arg-type]
        await swarm.start(transport)
        made.append(site)
    await until(lambda: all(len(site.transport.connected()) == len(made) - 1 for site in made))
    return made[0], made[1:]


async def slowly(what: bytes, answer: bytes) -> bytes:
    """A source whose every answer takes a while."""
    await asyncio.sleep(0.02)
    return answer


def blob(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 200_000, 300_000, MIB, MIB + 1, 5 * MIB - 7, 21 * MIB + 3])
async def test_an_object_of_any_size_arrives_whole(swarm: Swarm, tmp_path: Path, size: int) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    data = blob(size)
    digest = source.store.put(data)
    seen: list[tuple[int, int]] = []
    await pull(
        me.transport, me.store, digest, [source.me], size_max=size, progress=lambda here, of: seen.append((here, of))
    )
    assert me.store.read(digest, 0, size) == data
    assert seen[-1] == (size, size)
    assert [here for here, _ in seen] == sorted(here for here, _ in seen)
    await pull(me.transport, me.store, digest, [], size_max=size)


async def test_several_sources_share_the_work(swarm: Swarm, tmp_path: Path) -> None:
    me, sources = await sites(swarm, tmp_path, slowly, slowly, slowly)
    data = blob(40 * MIB)
    for source in sources:
        digest = source.store.put(data)
    await pull(me.transport, me.store, digest, [source.me for source in sources], size_max=SIZE_MAX)
    assert me.store.read(digest, 0, len(data)) == data
    shares = [sum(count for what, _, count in source.asked if what == b"range") for source in sources]
    assert sum(shares) == 40
    assert min(shares) >= 3


async def test_a_liar_and_an_absent_source_are_passed_over(swarm: Swarm, tmp_path: Path) -> None:
    async def lie(what: bytes, answer: bytes) -> bytes:
        return answer[:-1] + bytes([answer[-1] ^ 1]) if what == b"range" else answer

    async def lie_early(what: bytes, answer: bytes) -> bytes:
        return answer[:-1] + bytes([answer[-1] ^ 1])

    async def cut_short(what: bytes, answer: bytes) -> bytes:
        return answer[: len(answer) // 2]

    async def describe_another(what: bytes, answer: bytes) -> bytes:
        return pack([9 * MIB + 5, bytes(320), b""]) if what == b"describe" else answer

    async def go_on(what: bytes, answer: bytes) -> bytes:
        return answer + b"more"

    me, sources = await sites(swarm, tmp_path, describe_another, lie, lie_early, cut_short, go_on, None, None)
    data = blob(9 * MIB + 5)
    for source in (*sources[:5], sources[6]):
        digest = source.store.put(data)
    absent = identity(200).address
    order = [me.me, absent, *(source.me for source in sources)]
    await pull(me.transport, me.store, digest, order, size_max=SIZE_MAX)
    assert me.store.read(digest, 0, len(data)) == data
    ranges = [sum(what == b"range" for what, _, _ in source.asked) for source in sources]
    assert max(ranges[:6]) <= 1, "a liar is asked once"
    assert ranges[6] > 1


async def test_only_liars_leave_it_unavailable_and_nothing_wrong_is_kept(swarm: Swarm, tmp_path: Path) -> None:
    async def lie(what: bytes, answer: bytes) -> bytes:
        return bytes(len(answer)) if what == b"range" else answer

    me, sources = await sites(swarm, tmp_path, lie, lie)
    data = blob(3 * MIB)
    for source in sources:
        digest = source.store.put(data)
    with pytest.raises(UnavailableError, match="3 of 3 chunks are missing"):
        await pull(me.transport, me.store, digest, [source.me for source in sources], size_max=SIZE_MAX)
    assert not me.store.has(digest)


async def test_nobody_has_it(swarm: Swarm, tmp_path: Path) -> None:
    me, sources = await sites(swarm, tmp_path, None, None)
    digest = digest_of(b"never seen")
    with pytest.raises(UnavailableError, match="none of 2 sources"):
        await pull(me.transport, me.store, digest, [source.me for source in sources], size_max=SIZE_MAX)
    with pytest.raises(UnavailableError, match="none of 0 sources"):
        await pull(me.transport, me.store, digest, [], size_max=SIZE_MAX)


async def test_who_may_not_read_learns_nothing(swarm: Swarm, tmp_path: Path) -> None:
    transports = [swarm.make(1), swarm.make(2)]
    mine, theirs = Store(tmp_path / "a", SIZE_MAX), Store(tmp_path / "b", SIZE_MAX)
    secret = theirs.put(blob(2 * MIB))
    asked: list[tuple[Address, Digest]] = []

    def refuse(member: Address, digest: Digest) -> bool:
        asked.append((member, digest))
        return False

    serve_objects(transports[1], theirs, refuse)
    for transport in transports:
        await swarm.start(transport)
    await until(lambda: bool(transports[0].connected()))
    with pytest.raises(UnavailableError, match="is not here") as refused:
        await pull(transports[0], mine, secret, [transports[1].me], size_max=SIZE_MAX)
    theirs.remove(secret)
    with pytest.raises(UnavailableError) as absent:
        await pull(transports[0], mine, secret, [transports[1].me], size_max=SIZE_MAX)
    assert str(refused.value) == str(absent.value)
    assert asked == [(transports[0].me, secret)]


async def test_an_object_past_the_bound_is_not_taken(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    digest = source.store.put(blob(2 * MIB))
    with pytest.raises(PeerError, match="at most"):
        await pull(me.transport, me.store, digest, [source.me], size_max=2 * MIB - 1)
    assert [what for what, _, _ in source.asked] == [b"describe"]


async def test_an_object_that_does_not_fit_on_the_disk_is_a_storage_error(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    digest = source.store.put(blob(2 * MIB))
    small = Store(tmp_path / "small", MIB)
    with pytest.raises(StorageError):
        await pull(me.transport, small, digest, [source.me], size_max=SIZE_MAX)


async def test_a_transfer_goes_on_where_it_was_cancelled(swarm: Swarm, tmp_path: Path) -> None:
    async def slowly(what: bytes, answer: bytes) -> bytes:
        await asyncio.sleep(0.02 if what == b"range" else 0)
        return answer

    me, (source,) = await sites(swarm, tmp_path, slowly)
    data = blob(30 * MIB + 1)
    digest = source.store.put(data)
    some = asyncio.Event()
    pulling = asyncio.create_task(
        pull(
            me.transport,
            me.store,
            digest,
            [source.me],
            size_max=SIZE_MAX,
            progress=lambda here, of: some.set() if here > 3 * MIB else None,
        )
    )
    await some.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    # What was asked before the cancel has arrived when this is answered.
    await me.transport.request(source.me, transfer.PROTOCOL, pack(["describe", digest]), timeout_s=5)
    source.asked.clear()
    # Another process: what is on disk is all that is left.
    again = Store(me.store.folder, SIZE_MAX, durable=False)
    await pull(me.transport, again, digest, [source.me], size_max=SIZE_MAX)
    assert again.read(digest, 0, len(data)) == data
    fetched = sum(count for what, _, count in source.asked if what == b"range")
    assert 0 < fetched <= 31 - 4


async def test_a_line_cut_in_the_middle_does_not_end_a_transfer(swarm: Swarm, tmp_path: Path) -> None:
    cut = asyncio.Event()
    me, (source, spare) = await sites(swarm, tmp_path, None, None)

    async def twist(what: bytes, answer: bytes) -> bytes:
        if what == b"range" and not cut.is_set():
            cut.set()
            # The member is struck off and admitted again while it answers.
            me.transport.set_members({m: e for m, e in swarm.endpoints.items() if m != twisted.me})
            await asyncio.sleep(0.02)
            me.transport.set_members(swarm.endpoints)
        return answer

    transport = swarm.make(7)
    twisted = Site(transport, tmp_path / "twisted")
    serve_objects(Twisted(twisted, transport, twist), twisted.store, lambda member, digest: True)  # type: ignore[arg-type]
    await swarm.start(transport)
    await until(lambda: len(me.transport.connected()) == 3)
    data = blob(12 * MIB)
    digest = twisted.store.put(data)
    source.store.put(data)
    await pull(me.transport, me.store, digest, [twisted.me, spare.me, source.me], size_max=SIZE_MAX)
    assert cut.is_set()
    assert me.store.read(digest, 0, len(data)) == data


async def test_the_only_source_may_lose_its_line_for_a_second(swarm: Swarm, tmp_path: Path) -> None:
    ranges = 0

    async def twist(what: bytes, answer: bytes) -> bytes:
        nonlocal ranges
        ranges += what == b"range"
        if ranges == 3:
            ranges += 1
            me.transport.set_members({me.me: ""})
            await asyncio.sleep(0.02)
            me.transport.set_members(swarm.endpoints)
        return answer

    me, (source,) = await sites(swarm, tmp_path, twist)
    data = blob(12 * MIB)
    digest = source.store.put(data)
    await pull(me.transport, me.store, digest, [source.me], size_max=SIZE_MAX)
    assert me.store.read(digest, 0, len(data)) == data


async def test_a_source_that_stalls_is_overtaken(swarm: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALL_S", 0.05)
    monkeypatch.setattr(transfer, "HEDGE_S", 0.05)

    async def never(what: bytes, answer: bytes) -> bytes:
        if what == b"range":
            await asyncio.Event().wait()
        return answer

    async def mute(what: bytes, answer: bytes) -> bytes:
        await asyncio.Event().wait()
        return answer

    me, sources = await sites(swarm, tmp_path, mute, never, None)
    data = blob(6 * MIB)
    for source in sources:
        digest = source.store.put(data)
    async with asyncio.timeout(5):
        await pull(me.transport, me.store, digest, [source.me for source in sources], size_max=SIZE_MAX)
    assert me.store.read(digest, 0, len(data)) == data


async def test_two_pulls_of_one_object_at_once_both_end(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    data = blob(10 * MIB)
    digest = source.store.put(data)
    pulls = [pull(me.transport, me.store, digest, [source.me], size_max=SIZE_MAX) for _ in range(3)]
    await asyncio.gather(*pulls)
    assert me.store.read(digest, 0, len(data)) == data


async def test_two_pulls_of_one_object_at_once_bring_each_chunk_once(swarm: Swarm, tmp_path: Path) -> None:
    """An update that its member offers and that the others are asked for, too, once it is on the ledger."""

    me, sources = await sites(swarm, tmp_path, slowly, slowly, slowly)
    data = blob(40 * MIB)
    for source in sources:
        digest = source.store.put(data)
    async with asyncio.TaskGroup() as group:
        group.create_task(pull(me.transport, me.store, digest, [sources[0].me], size_max=SIZE_MAX))
        await until(lambda: len(sources[0].asked) > 4)
        group.create_task(pull(me.transport, me.store, digest, [s.me for s in sources[1:]], size_max=SIZE_MAX))
        group.create_task(pull_chunks(me.transport, me.store, digest, [sources[2].me], range(20, 40), size=len(data)))
    assert me.store.read(digest, 0, len(data)) == data
    given = Counter(
        chunk
        for source in sources
        for what, first, count in source.asked
        if what == b"range"
        for chunk in range(first, first + count)
    )
    assert set(given) == set(range(40))
    assert set(given.values()) == {1}
    assert all(any(what == b"range" for what, _, _ in source.asked) for source in sources)


async def test_a_pull_that_is_cancelled_does_not_stop_another_of_the_same_object(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, slowly)
    data = blob(20 * MIB)
    digest = source.store.put(data)
    some = asyncio.Event()
    stays, goes = (
        asyncio.create_task(
            pull(me.transport, me.store, digest, [source.me], size_max=SIZE_MAX, progress=lambda here, of: some.set())
        )
        for _ in range(2)
    )
    await some.wait()
    goes.cancel()
    await stays
    assert me.store.read(digest, 0, len(data)) == data


async def test_nonsense_is_declined(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    digest = source.store.put(blob(2 * MIB))
    nonsense: list[Item] = [
        [],
        [b"describe"],
        [b"range", digest, 0, 0],
        [b"range", digest, 0, 9],
        [b"range", digest, 2, 1],
        [b"range", digest, 2**63, 2],
        [b"steal", digest],
        [b"describe", digest, 1],
        [b"describe", b"short"],
    ]
    for words in nonsense:
        with pytest.raises(UnavailableError):
            await me.transport.request(source.me, transfer.PROTOCOL, pack(words), timeout_s=5)
    for junk in (b"", b"\xff" * 10, bytes(1000)):
        with pytest.raises(UnavailableError):
            await me.transport.request(source.me, transfer.PROTOCOL, junk, timeout_s=5)
    assert CHUNK_BYTES == MIB


async def test_some_chunks_are_pulled_once_and_the_rest_later(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    data = blob(6 * MIB + 5)
    digest = source.store.put(data)
    asked = {"size": len(data)}
    found = await pull_chunks(me.transport, me.store, digest, (source.me,), {1, 4, 6}, **asked)
    assert not me.store.has(digest)
    assert found.path.stat().st_size == len(data)
    for chunk in (1, 4, 6):
        part = data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        assert found.path.read_bytes()[chunk * CHUNK_BYTES :][: len(part)] == part
    assert sorted(first for what, first, _ in source.asked if what == b"range") == [1, 4, 6]
    source.asked.clear()
    await pull_chunks(me.transport, me.store, digest, (source.me,), {4, 6}, **asked)
    assert not [first for what, first, _ in source.asked if what == b"range"]
    await pull(me.transport, me.store, digest, (source.me,), size_max=len(data))
    assert me.store.read(digest, 0, len(data)) == data
    assert 1 not in [first for what, first, _ in source.asked if what == b"range"]
    whole = await pull_chunks(me.transport, me.store, digest, (), {0}, **asked)
    assert whole.path.read_bytes() == data


async def test_chunks_of_an_object_of_another_size_are_not_taken(swarm: Swarm, tmp_path: Path) -> None:
    me, (source,) = await sites(swarm, tmp_path, None)
    digest = source.store.put(blob(2 * MIB))
    for size, match in ((3 * MIB, "3145728 belong"), (MIB, "at most 1048576")):
        with pytest.raises(PeerError, match=match):
            await pull_chunks(me.transport, me.store, digest, (source.me,), {0}, size=size)
    with pytest.raises(ValueError, match="chunks 2 to 2"):
        await pull_chunks(me.transport, me.store, digest, (source.me,), {2}, size=2 * MIB)


@pytest.mark.parametrize("sync", [True, False])
async def test_only_what_has_to_be_durable_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    swarm = Swarm("memory")
    me, (source,) = await sites(swarm, tmp_path, None)
    me.store = Store(tmp_path / "durable", SIZE_MAX)
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    digest = source.store.put(blob(2 * MIB))
    await pull(me.transport, me.store, digest, [source.me], size_max=SIZE_MAX, sync=sync)
    place = me.store.path(digest)
    assert (place.stat().st_ino in synced) == sync
    # Asked for again as something that has to last, it is synced although it is here.
    await pull(me.transport, me.store, digest, [source.me], size_max=SIZE_MAX)
    assert {place.stat().st_ino, place.parent.stat().st_ino, place.parent.parent.stat().st_ino} <= synced
    await swarm.close()
