"""A store that dies at any step of what it writes: killed, or its disk without power.

What `put` or `finish` gave back is there afterwards, whole; a pin that was set holds, unless the power went; whatever
else is there is what its name says or is set aside; and what was on its way goes on.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from swarm.encoding import Digest
from swarm.errors import UnavailableError
from swarm.merkle import CHUNK_BYTES, chunks_of, digest_of, leaf
from swarm.store import Store
from tests.store_disk import PowerCut, StoreDisk

MAX_BYTES = 64 * CHUNK_BYTES
TIGHT_BYTES = 5 * CHUNK_BYTES
"""The bound of every other story: what comes is written over what was evicted."""
WHY, KEPT = "a round", "another round"


class Promises:
    """What the store said is done."""

    def __init__(self, note: Callable[[str], None] = lambda line: None) -> None:
        self.lines: list[str] = []
        self._note = note

    def add(self, kind: str, digest: Digest) -> None:
        line = f"{kind} {digest.hex()}"
        self.lines.append(line)
        self._note(line)


def some(story: int, turn: int) -> bytes:
    """An object of up to three chunks; in a tight story a large one."""
    rng = random.Random(story * 100 + turn)
    sizes = (0, 5, 70_000, CHUNK_BYTES, CHUNK_BYTES + 9, 2 * CHUNK_BYTES + 1)
    size = rng.choice(sizes[3:] if story % 2 else sizes)
    return rng.randbytes(7) * (size // 7) + rng.randbytes(size % 7)


def work(folder: Path, seed: int, promises: Promises, *, durable: bool = True) -> None:
    """Put, receive, pin and remove; every promise is noted once it was given."""
    rng = random.Random(seed)
    store = Store(folder, TIGHT_BYTES if seed % 2 else MAX_BYTES, durable=durable)
    for turn in range(12):
        data = some(seed, turn)
        digest = digest_of(data)
        if store.max_bytes - store.used_bytes < 3 * CHUNK_BYTES:
            for _, gone, _ in store._evictable():
                promises.add("removes", gone)
        kind = rng.choice(
            ("put", "file", "move", "known", "share", "unsynced", "receive", "receive", "pin", "keep", "remove")
        )
        if kind == "put":
            store.put(data)
            promises.add("has", digest)
        elif kind in ("file", "move", "known", "share"):
            path = store.scratch()
            _write(path, data)
            leaves = [leaf(chunk) for chunk in chunks_of(data)] if kind == "known" else None
            sync = kind != "share" or rng.random() < 0.5
            store.put_file(path, move=kind in ("move", "known"), share=kind == "share", leaves=leaves, sync=sync)
            if not sync:
                store.sync(digest)
            promises.add("has", digest)
        elif kind == "receive":
            _receive(store, data, rng)
            promises.add("has", digest)
        elif kind == "unsynced":
            _receive(store, data, rng, sync=False)
            if rng.random() < 0.5:
                store.put(data)
                promises.add("has", digest)
        elif kind == "pin":
            store.pin(digest, WHY)
            promises.add("pinned", digest)
        elif kind == "keep":
            store.pin_only(rng.sample(sorted(store.digests()), min(1, len(store.digests()))), KEPT)
        elif store.digests():
            gone = rng.choice(sorted(store.digests()))
            promises.add("removes", gone)
            store.remove(gone)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    assert os.write(descriptor, data) == len(data)
    os.close(descriptor)


def _receive(store: Store, data: bytes, rng: random.Random, *, sync: bool = True) -> None:
    chunks = list(chunks_of(memoryview(data)))
    partial = store.receive(digest_of(data), len(data), [leaf(chunk) for chunk in chunks])
    missing = partial.missing()
    rng.shuffle(missing)
    for index in missing:
        partial.write(index, chunks[index])
    partial.finish(sync=sync)


def check(folder: Path, seed: int, lines: list[str], *, pins: bool) -> int:
    """Open the folder and hold the store to what it said; how many objects there are."""
    store = Store(folder, MAX_BYTES)
    expected, pinned = _promised(lines)
    assert not pins or pinned <= store.pinned().get(WHY, frozenset()), f"story {seed}: a pin is lost"
    for digest in expected:
        assert store.has(digest), f"story {seed}: object {digest.hex()[:8]} is lost"
        assert store.verify(digest), f"story {seed}: object {digest.hex()[:8]} is damaged"
    for digest in store.digests():
        with contextlib.suppress(UnavailableError):
            assert digest_of(store.path(digest).read_bytes()) == digest, f"story {seed}: other bytes than the name says"
    found = len(store.digests())
    for turn in range(12):
        data = some(seed, turn)
        _receive(store, data, random.Random(seed))
        assert store.path(digest_of(data)).read_bytes() == data, f"story {seed}: what was on its way does not go on"
    return found


def _promised(lines: list[str]) -> tuple[set[Digest], set[Digest]]:
    expected: set[Digest] = set()
    pinned: set[Digest] = set()
    for line in lines:
        kind, name = line.split()
        digest = bytes.fromhex(name)
        if kind == "pinned":
            pinned.add(digest)
        elif kind == "has":
            expected.add(digest)
        else:
            expected.discard(digest)
    return expected, pinned


STORIES = 20
"""Different works to die in; at which step, and what is left of it, the seed says."""


@cache
def steps(seed: int) -> int:
    """How many steps the work of a seed takes where nothing happens."""
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        disk = StoreDisk(Path(folder), lambda step: None)
        with disk.recording():
            work(Path(folder) / "store", seed, Promises())
        return disk.steps


def cut(seed: int, *, durable: bool = True) -> int:
    """One power cut at a step that the seed chooses; the objects that are there afterwards."""
    rng, story = random.Random(seed), seed % STORIES
    last = rng.randrange(1, steps(story) + 1)
    promises = Promises()

    def fail(step: int) -> None:
        if step >= last:
            raise PowerCut

    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        folder = Path(scratch)
        disk = StoreDisk(folder / "before", fail)
        with disk.recording(), contextlib.suppress(PowerCut):
            work(folder / "before" / "store", story, promises, durable=durable)
        disk.image(folder / "after", rng)
        return check(folder / "after" / "store", story, promises.lines, pins=False)


def kill(seed: int) -> int:
    """One kill of a process at a step that the seed chooses; the objects that are there afterwards."""
    story = seed % STORIES
    last = random.Random(seed).randrange(1, steps(story) + 1)
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        folder, notes = Path(scratch) / "store", Path(scratch) / "notes"
        child = os.fork()
        if child == 0:
            _die_at(last, folder, story, notes)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        lines = notes.read_text().splitlines() if notes.exists() else []
        return check(folder, story, lines, pins=True)


def note(descriptor: int, line: str) -> None:
    """Write a line down where a kill does not take it back."""
    os.write(descriptor, line.encode() + b"\n")


def _die_at(last: int, folder: Path, seed: int, notes: Path) -> None:
    def fail(step: int) -> None:
        if step >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with StoreDisk(folder, fail).recording():
            work(folder, seed, Promises(lambda line: note(descriptor, line)))
    finally:
        os._exit(70)
