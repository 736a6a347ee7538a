"""Disks that fill, break, tear and forget; processes that are killed; two that want one folder.

Whatever happens, the ledger opens on a whole block and goes on, or says what is wrong and what to do.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from swarm.consensus.certificate import Certificate
from swarm.errors import ConfigError, StorageError, UnavailableError
from swarm.ledger.database import VOTES_KEPT, Database
from swarm.ledger.ledger import Ledger
from tests.ledger import world

BLOCKS = 8
SEEDS = int(os.environ.get("DISK_SEEDS", "40"))


@cache
def decided() -> list[tuple[bytes, Certificate]]:
    """A chain of eight blocks."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = world.open_ledger(Path(folder))
        blocks = world.grow(ledger, BLOCKS)
        ledger.close()
    return blocks


def hashes() -> list[bytes]:
    return [Ledger.digest_of(payload) for payload, _ in decided()]


def follow(ledger: Ledger, blocks: int = BLOCKS) -> None:
    """Append what is missing."""
    for payload, seals in decided()[ledger.head.number : blocks]:
        ledger.append(payload, seals)


def check(folder: Path) -> int:
    """The ledger in the folder is a whole beginning of the chain and can go on to its end; how long it was."""
    ledger = world.open_ledger(folder)
    found = ledger.head.number
    assert [ledger.block(number).header.hash for number in range(1, found + 1)] == hashes()[:found]
    assert [payload for payload, _ in ledger.blocks_from(1, 1 << 30)] == [payload for payload, _ in decided()[:found]]
    follow(ledger)
    assert ledger.head.hash == hashes()[-1]
    ledger.close()
    return found


def in_child(work: Callable[[], None], *, kill_after_s: float | None = None) -> int:
    """Do it in a child process that has nothing of ours open; its exit code, or minus the signal that ended it."""
    decided()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)  # the moment of a kill is what this is about
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- killed


def statements_of_an_append(folder: Path) -> int:
    ledger = world.open_ledger(folder)
    count = 0

    def trace(_: str) -> None:
        nonlocal count
        count += 1

    ledger._database._ledger.set_trace_callback(trace)
    follow(ledger, 1)
    ledger._database._ledger.set_trace_callback(None)
    ledger.close()
    return count


def test_a_node_that_dies_at_any_statement_of_an_append_has_the_block_or_has_it_not(tmp_path: Path) -> None:
    count = statements_of_an_append(tmp_path / "count")
    assert count > 10
    found = []
    for last in range(1, count + 1):
        folder = tmp_path / str(last)

        def die(folder: Path = folder, last: int = last) -> None:
            ledger = world.open_ledger(folder)
            follow(ledger, 3)
            left = last

            def trace(_: str) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)

            ledger._database._ledger.set_trace_callback(trace)
            follow(ledger, 4)

        assert in_child(die) in (0, 9)
        found.append(check(folder))
        shutil.rmtree(folder)
    assert set(found) == {3}, "SQLite reports a statement before it runs it, COMMIT too"


@pytest.mark.parametrize("seed", range(12))
def test_a_node_that_is_killed_goes_on_from_its_last_whole_block(tmp_path: Path, seed: int) -> None:
    def run() -> None:
        ledger = world.open_ledger(tmp_path)
        follow(ledger)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(run, kill_after_s=random.Random(seed).uniform(0.005, 0.06)) == -signal.SIGKILL
    check(tmp_path)


def test_a_vote_is_remembered_when_the_process_dies_right_after(tmp_path: Path) -> None:
    def run() -> None:
        ledger = world.open_ledger(tmp_path)
        ledger.save_vote(1, b"first")
        ledger.save_vote(1, b"second")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(run) == -signal.SIGKILL
    ledger = world.open_ledger(tmp_path)
    assert ledger.saved_vote(1) == b"second"
    assert ledger.saved_vote(2) is None
    ledger.close()


def test_votes_of_heights_long_gone_are_forgotten(ledger: Ledger) -> None:
    for height in range(1, VOTES_KEPT + 66, 5):
        ledger.save_vote(height, b"%d" % height)
    kept = [height for height in range(1, VOTES_KEPT + 66) if ledger.saved_vote(height) is not None]
    assert VOTES_KEPT <= kept[-1] - kept[0] <= VOTES_KEPT + 5 * 16
    assert ledger.saved_vote(kept[-1]) == b"%d" % kept[-1]


# --- full, read-only, taken


def test_a_full_disk_stops_the_ledger_at_a_whole_block_and_room_lets_it_go_on(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    follow(ledger, 2)
    pages = ledger._database._ledger.execute("PRAGMA page_count").fetchone()[0]
    ledger._database._ledger.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="make room"):
        follow(ledger)
    stopped = ledger.head
    assert stopped.number < BLOCKS
    assert ledger.block(stopped.number).header.hash == stopped.hash
    assert ledger.judge(decided()[stopped.number][0], world.now_ms(ledger))
    ledger._database._ledger.execute("PRAGMA max_page_count = 100000")
    follow(ledger)
    assert ledger.head.hash == hashes()[-1]
    ledger.close()
    assert check(tmp_path) == BLOCKS


@pytest.mark.parametrize("size_kb", [4, 20, 100, 160, 220, 300])
def test_a_disk_that_refuses_to_write_is_a_storage_error_wherever_it_happens(tmp_path: Path, size_kb: int) -> None:
    """RLIMIT_FSIZE makes write(2) fail for real: in the lock, while opening, or in the middle of a block."""

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_kb << 10, size_kb << 10))
        os._exit(7 if str(tmp_path) in told(fill) else 8)

    def fill() -> None:
        ledger = world.open_ledger(tmp_path)
        follow(ledger)
        for height in range(1000):
            ledger.save_vote(height, bytes(1000))

    assert in_child(run) == 7
    check(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="name a writable one"):
        world.open_ledger(tmp_path / "file")
    with pytest.raises(StorageError, match="name a writable one"):
        world.open_ledger(tmp_path / "file" / "below")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_nobody(work: Callable[[], None]) -> int:
    def run() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        os._exit(7 if "writable" in told(work) else 8)

    return in_child(run)


def test_a_read_only_folder_is_an_error_with_the_way_out(public: Path) -> None:
    world.open_ledger(public / "ledger").close()
    for path in (public / "ledger").iterdir():
        path.chmod(0o444)
    (public / "ledger").chmod(0o555)
    assert as_nobody(lambda: world.open_ledger(public / "ledger").close()) == 7
    assert as_nobody(lambda: world.open_ledger(public / "other").close()) == 7


def test_a_read_only_file_is_an_error_with_the_way_out(public: Path) -> None:
    folder = public / "ledger"
    world.open_ledger(folder).close()
    folder.chmod(0o777)
    for path in folder.iterdir():
        path.chmod(0o666)
    (folder / "ledger.sqlite").chmod(0o444)

    def run() -> None:
        follow(world.open_ledger(folder))

    assert as_nobody(run) == 7


def test_two_nodes_cannot_share_a_folder(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()}.*two nodes cannot share a folder"):
        world.open_ledger(tmp_path)
    ledger.close()
    world.open_ledger(tmp_path).close()


def test_a_closed_ledger_is_not_called_damaged(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    ledger.close()
    ledger.close()
    with pytest.raises(UnavailableError, match="is closed"):
        ledger.saved_vote(1)
    with pytest.raises(UnavailableError, match="is closed"):
        ledger.certificate(0)


def test_a_killed_nodes_lock_is_free(tmp_path: Path) -> None:
    def run() -> None:
        world.open_ledger(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(run)
    world.open_ledger(tmp_path).close()


def test_another_programs_lock_on_the_file_is_told_apart_from_damage(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigError, match="another program"):
        follow(ledger, 1)
    other.execute("ROLLBACK")
    other.close()
    follow(ledger)
    ledger.close()


# --- damaged


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of eight blocks, closed, and some votes."""
    folder = tmp_path_factory.mktemp("sound")
    ledger = world.open_ledger(folder)
    follow(ledger)
    for height in range(1, BLOCKS + 2):
        ledger.save_vote(height, b"vote %d " % height * 50)
    ledger.close()
    return folder


def read_everything(folder: Path) -> list[bytes]:
    """Read all there is, and make one more block; the hashes of those that were there."""
    with contextlib.closing(world.open_ledger(folder)) as ledger:
        found = [ledger.block(number) for number in range(1, ledger.head.number + 1)]
        for number in range(ledger.head.number + 1):
            ledger.certificate(number)
        ledger.blocks_from(0, 1 << 30)
        ledger.logs(0, BLOCKS, frozenset(), [], logs_max=1000)
        for address in world.BY_ADDRESS:
            ledger.nonce(address)
        world.grow(ledger, 1)
        return [block.header.hash for block in found]


def told(work: Callable[[], object]) -> str:
    """What the operator is told where this fails by a StorageError or ConfigError; empty where it does not."""
    try:
        work()
    except (StorageError, ConfigError) as error:
        return str(error)
    return ""


def test_everything_can_be_read_where_nothing_is_damaged(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "copy")
    assert read_everything(tmp_path / "copy") == hashes()


def damage(path: Path, rng: random.Random, flips: list[int]) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice(flips)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_flipped_bits_are_found_or_do_not_matter(sound: Path, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "copy"
    found: list[bytes] = []
    shutil.copytree(sound, folder)
    damage(folder / "ledger.sqlite", random.Random(seed), [1, 1, 8, 200])
    message = told(lambda: found.extend(read_everything(folder)))
    if not message:
        assert found == hashes()[: len(found)], seed
        return
    assert any(way in message for way in ("move ledger.sqlite", "mend the disk", "swarm.toml")), (seed, message)
    # What it says to do works.
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    assert check(folder) == 0


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_torn_file_is_found_and_what_the_error_says_to_do_works(sound: Path, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    path = folder / "ledger.sqlite"
    os.truncate(path, int(path.stat().st_size * share))
    if share == 0:
        # An empty file is a new ledger: every block is fetched again.
        assert check(folder) == 0
        return
    with pytest.raises(StorageError, match=r"move ledger\.sqlite"):
        read_everything(folder)
    for damaged in folder.glob("ledger.sqlite*"):
        damaged.unlink()
    assert check(folder) == 0
    database = Database(folder)
    assert database.saved_vote(3) == b"vote 3 " * 50
    database.close()


def test_something_else_in_the_ledgers_place_is_found(tmp_path: Path) -> None:
    tmp_path.joinpath("ledger.sqlite").write_text("these are not the blocks you are looking for\n" * 100)
    with pytest.raises(StorageError, match="is damaged"):
        world.open_ledger(tmp_path)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_damaged_votes_are_never_taken_for_votes(sound: Path, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "copy"
    found: dict[int, bytes | None] = {}
    shutil.copytree(sound, folder)
    damage(folder / "votes.sqlite", random.Random(seed), [1, 20, 400])

    def read() -> None:
        with contextlib.closing(Database(folder)) as database:
            found.update({height: database.saved_vote(height) for height in range(1, BLOCKS + 2)})

    message = told(read)
    assert not message or "must not vote again" in message or "mend the disk" in message, seed
    assert all(vote in (None, b"vote %d " % height * 50) for height, vote in found.items()), seed


def test_a_missing_piece_of_state_is_found_when_it_is_needed(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    follow(ledger, 4)
    root = ledger.head.state_root
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as file:
        file.execute("DELETE FROM state WHERE hash = ?", (root,))
    file.close()
    with pytest.raises(StorageError, match="is missing"):
        world.open_ledger(tmp_path)


def test_a_head_without_its_certificate_is_found(tmp_path: Path) -> None:
    ledger = world.open_ledger(tmp_path)
    follow(ledger, 4)
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as file:
        file.execute("UPDATE blocks SET certificate = x'c0' WHERE number = 4")
    file.close()
    with pytest.raises(StorageError, match="certificate of block 4"):
        world.open_ledger(tmp_path)
