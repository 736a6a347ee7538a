"""What hospitals do to computers, done to real files and ledgers: disks full or read-only, wrong clocks, lost bits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.loop import run
from swarm.consensus.record import Record
from swarm.errors import ConfigError, StorageError
from swarm.ledger import database
from swarm.ledger.database import set_aside
from swarm.ledger.ledger import Ledger
from swarm.net.memory import MemoryNetwork
from swarm.store import Store
from tests.ledger import world
from tests.ledger.test_database import BLOCKS, check, follow, in_child, told
from tests.node.test_sync import Member, close, until

DAY_S = 86_400


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 KB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def test_a_disk_that_is_full_stops_the_ledger_and_room_lets_it_go_on(small_disk: Path) -> None:
    ledger = world.open_ledger(small_disk / "ledger")
    with pytest.raises(StorageError, match=r"ledger\.sqlite.*make room"):
        world.grow(ledger, 1000)
    stopped = ledger.head
    with pytest.raises(StorageError, match=r"votes\.sqlite.*make room"):
        vote_on(ledger, 1000)
    remount(small_disk, "size=8m")
    assert ledger.head == stopped
    world.grow(ledger, 3)
    ledger.close()
    with contextlib.closing(world.open_ledger(small_disk / "ledger")) as again:
        assert again.head.number == stopped.number + 3


def vote_on(ledger: Ledger, heights: int) -> None:
    for height in range(1, heights):
        ledger.save_vote(height, os.urandom(4000))


def test_a_ledger_that_was_closed_by_a_full_disk_opens_when_there_is_room(small_disk: Path) -> None:
    ledger = world.open_ledger(small_disk / "ledger")
    with pytest.raises(StorageError):
        world.grow(ledger, 1000)
    stopped = ledger.head
    with contextlib.suppress(StorageError):
        ledger.close()
    remount(small_disk, "size=8m")
    with contextlib.closing(world.open_ledger(small_disk / "ledger")) as again:
        assert again.head == stopped
        world.grow(again, 1)


def test_a_disk_that_turns_read_only_is_an_error_with_the_way_out(small_disk: Path) -> None:
    world.open_ledger(small_disk / "ledger").close()
    Store(small_disk / "store", 1 << 20)
    remount(small_disk, "ro")
    assert "writable" in told(lambda: world.open_ledger(small_disk / "ledger"))
    with pytest.raises(StorageError, match="mounted read-only"):
        Store(small_disk / "store", 1 << 20).put(b"object")
    remount(small_disk, "rw")
    world.open_ledger(small_disk / "ledger").close()


def test_a_full_disk_leaves_no_half_object_in_the_store(small_disk: Path) -> None:
    store = Store(small_disk / "store", 1 << 30)
    kept = store.put(b"small")
    with pytest.raises(StorageError, match="disk is full"):
        store.put(os.urandom(600_000))
    again = Store(small_disk / "store", 1 << 30)
    assert again.digests() == {kept}
    assert list((small_disk / "store" / "tmp").iterdir()) == []


# --- damage


def pages(path: Path) -> int:
    return path.stat().st_size // 4096


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of eight blocks, closed."""
    folder = tmp_path_factory.mktemp("sound")
    ledger = world.open_ledger(folder)
    follow(ledger)
    ledger.close()
    return folder


def damaged_at(sound: Path, folder: Path, at: int, *, cut: bool = False) -> str:
    """What the operator is told of a copy with a flipped bit (or its end) at this byte; empty: all was found sound."""
    shutil.copytree(sound, folder)
    path = folder / "ledger.sqlite"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data[:at] if cut else data)
    found = told(lambda: check(folder))
    shutil.rmtree(folder)
    return found


def test_a_flipped_bit_in_any_page_is_found_or_does_not_matter(sound: Path, tmp_path: Path) -> None:
    """Found by the checksums of blocks, the hashes of state, or SQLite; `check` itself compares every block."""
    results = [
        damaged_at(sound, tmp_path / f"{page}", page * 4096 + (page * 1237) % 4096)
        for page in range(pages(sound / "ledger.sqlite"))
    ]
    assert all(not found or "--rebuild" in found or "swarm.toml" in found for found in results)
    assert any(results)


@pytest.mark.slow
def test_flipped_bits_all_over_every_page_are_found_or_do_not_matter(sound: Path, tmp_path: Path) -> None:
    for at in range(7, (sound / "ledger.sqlite").stat().st_size, 211):
        found = damaged_at(sound, tmp_path / f"{at}", at)
        assert not found or "--rebuild" in found or "swarm.toml" in found or "mend the disk" in found, (at, found)


def test_a_file_that_ends_at_any_page_is_found(sound: Path, tmp_path: Path) -> None:
    for page in range(1, pages(sound / "ledger.sqlite"), 3):
        found = damaged_at(sound, tmp_path / f"{page}", page * 4096, cut=True)
        assert "--rebuild" in found or "mend the disk" in found, (page, found)


def test_a_damaged_write_ahead_log_ends_the_ledger_earlier_and_never_elsewhere(tmp_path: Path) -> None:
    def work() -> None:
        follow(world.open_ledger(tmp_path / "killed"))
        os._exit(9)

    assert in_child(work) == 9
    wal = (tmp_path / "killed" / "ledger.sqlite-wal").read_bytes()
    lengths = set()
    for at in range(0, len(wal), len(wal) // 25):
        folder = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "killed", folder)
        (folder / "ledger.sqlite-wal").write_bytes(wal[:at] + bytes([wal[at] ^ 1]) + wal[at + 1 :])
        (folder / "ledger.sqlite-shm").unlink(missing_ok=True)
        lengths.add(check(folder))
    assert min(lengths) < BLOCKS
    assert max(lengths) >= BLOCKS - 1


# --- folders


def test_a_folder_of_another_consortium_is_told_apart(tmp_path: Path) -> None:
    world.open_ledger(tmp_path, 4).close()
    with pytest.raises(ConfigError, match="another `folder` for another consortium"):
        world.open_ledger(tmp_path, 5)
    world.open_ledger(tmp_path, 4).close()


def test_a_ledger_of_another_version_is_told_apart(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    ledger._database._ledger.execute(f"PRAGMA user_version = {database.FORMAT + 1}")
    ledger.close()
    with pytest.raises(StorageError, match="another version of swarm"):
        world.open_ledger(tmp_path)


def test_a_ledger_that_is_set_aside_leaves_its_votes(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    with pytest.raises(ConfigError, match="another node"):
        set_aside(tmp_path)
    follow(ledger)
    ledger.save_vote(7, b"said")
    ledger.close()
    place = set_aside(tmp_path)
    assert place is not None
    assert (place / "ledger.sqlite").exists()
    with contextlib.closing(world.open_ledger(tmp_path)) as again:
        assert again.head.number == 0
        assert again.saved_vote(7) == b"said"
        assert not again.may_vote(1), "what it said there is forgotten"
        assert again.may_vote(7)
    assert set_aside(tmp_path) != place


def test_a_rebuilt_validator_follows_until_it_is_where_its_votes_are(tmp_path: Path) -> None:
    async def story() -> None:
        network = MemoryNetwork()
        others = [Member(network, index, follower(tmp_path / str(index))) for index in range(3)]
        rebuilt = world.open_ledger(tmp_path / "3")
        rebuilt.save_vote(BLOCKS + 1, Record(height=BLOCKS + 1, view=0, votes=(), lock=None).encode())
        new = Member(network, 3, rebuilt)
        for member in [*others, new]:
            await member.start()
        assert new.agreement._consensus is None
        await until(lambda: new.ledger.head.number == BLOCKS, 10.0)
        await until(lambda: new.agreement._consensus is not None, 1.0)
        await close(new, *others)

    run(story())


def follower(folder: Path) -> Ledger:
    ledger = world.open_ledger(folder)
    follow(ledger)
    return ledger


def test_two_real_nodes_cannot_run_on_one_folder(tmp_path: Path) -> None:
    def second() -> None:
        os._exit(7 if "two nodes cannot share a folder" in told(lambda: world.open_ledger(tmp_path)) else 8)

    with contextlib.closing(world.open_ledger(tmp_path)) as ledger:
        assert in_child(second) == 7
        follow(ledger)
    assert check(tmp_path) == BLOCKS


# --- clocks


@pytest.mark.parametrize("jumps_s", [(DAY_S,), (-DAY_S,), (DAY_S, -DAY_S), (DAY_S, DAY_S, DAY_S, DAY_S)])
def test_clocks_that_jump_a_day_stop_nothing_and_fork_nothing(
    tmp_path: Path, jumps_s: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """While they run: one clock ahead or back, one of each, or all at once; and back again where it came from."""

    async def story() -> None:
        network = MemoryNetwork()
        members = [Member(network, index, world.open_ledger(tmp_path / str(index))) for index in range(4)]
        offsets = dict.fromkeys(range(4), 0)
        for index, member in enumerate(members):
            member.agreement._clock = lambda index=index: (  # type: ignore[misc]
                world.CREATED_MS / 1000 + asyncio.get_running_loop().time() + offsets[index]
            )
            await member.start()
        await decide_more(members)
        offsets |= dict(enumerate(jumps_s))
        await decide_more(members)
        offsets |= dict.fromkeys(range(4), 0)
        await decide_more(members)
        heads = {member.ledger.block(6).header.hash for member in members}
        assert len(heads) == 1
        await close(*members)

    with caplog.at_level(logging.WARNING):
        run(story())
    assert DAY_S not in jumps_s or "ahead of this machine's clock" in caplog.text


async def decide_more(members: list[Member]) -> None:
    """Two more blocks; calls come in at every node in turn."""
    goal = max(member.ledger.head.number for member in members) + 2
    for turn in range(40):
        if min(member.ledger.head.number for member in members) >= goal:
            return
        operator, member = world.OPERATORS[turn % 4], members[turn % 4]
        member.agreement.add_transaction(world.propose(operator, member.ledger.next_nonce(operator.address)))
        await asyncio.sleep(3.0)
    raise AssertionError(f"not at {goal}: {[member.ledger.head.number for member in members]}")


def grow_alone(ledger: Ledger, blocks: int, *, now_ms: int | None = None) -> None:
    """The only validator builds, judges and decides."""
    for _ in range(blocks):
        now_ms = ledger.head.timestamp_ms + 250 if now_ms is None else now_ms + 250
        operator = world.OPERATORS[0]
        ledger.add_transaction(world.propose(operator, ledger.next_nonce(operator.address)))
        payload = ledger.build(now_ms, world.MEMBERS[0].address)
        assert payload is not None
        assert ledger.judge(payload, now_ms)
        world.decide(ledger, payload)


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_a_clock_that_jumped_a_day_between_two_runs_stops_nothing(tmp_path: Path, jump_s: int) -> None:
    """One hospital alone, on one machine: nobody else's clock helps."""
    with contextlib.closing(world.open_ledger(tmp_path, 1)) as ledger:
        grow_alone(ledger, 2)
    with contextlib.closing(world.open_ledger(tmp_path, 1)) as ledger:
        now_ms = ledger.head.timestamp_ms + jump_s * 1000
        grow_alone(ledger, 2, now_ms=now_ms)
    with contextlib.closing(world.open_ledger(tmp_path, 1)) as ledger:
        grow_alone(ledger, 2, now_ms=now_ms - jump_s * 1000)
        assert ledger.head.number == 6
