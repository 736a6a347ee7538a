"""What a ledger keeps on disk: state, blocks, receipts and certificates in one SQLite file, votes in another.

A block is one transaction: after a crash at any moment the file holds whole blocks only. Blocks can be fetched again
from other members, so they are not synced one by one (WAL, `synchronous=NORMAL`); a vote cannot, so it is
(`synchronous=FULL`). Of the state, the last heights' are kept, unless the site keeps all. SQLite's errors are
translated here and nowhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.encoding import Digest, sha256
from swarm.errors import ConfigError, StorageError, UnavailableError
from swarm.ledger.state import Changes

VOTES_KEPT = 256
"""Heights whose votes are kept: more than a power cut can take blocks, so that no height is voted on anew."""
SYNCED_EVERY = 64
"""A power cut takes the blocks since the last that was synced: those at multiples of this are."""
STATES_KEPT = 128
"""Heights whose state can be read, at least."""
PRUNED_EVERY = 16
CONFLICTS_MAX = 16
"""Blocks of another chain that are kept: the first ones prove it, and whoever made them can make more."""
FORMAT = 2

_LEDGER = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
    hash BLOB PRIMARY KEY, value BLOB NOT NULL, places INTEGER NOT NULL, gone INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS superfluous ON state (gone) WHERE places = 0;
CREATE TABLE IF NOT EXISTS blocks (
    number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, payload BLOB NOT NULL, certificate BLOB NOT NULL,
    receipts BLOB NOT NULL, bloom BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS transactions (
    hash BLOB PRIMARY KEY, number INTEGER NOT NULL, position INTEGER NOT NULL) WITHOUT ROWID;
"""
_VOTES = """
CREATE TABLE IF NOT EXISTS votes (height INTEGER PRIMARY KEY, record BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS recoveries (
    id INTEGER PRIMARY KEY, height INTEGER NOT NULL, manifest BLOB NOT NULL, checksum BLOB NOT NULL, vote BLOB);
CREATE TABLE IF NOT EXISTS conflicts (
    height INTEGER, hash BLOB, payload BLOB NOT NULL, certificate BLOB NOT NULL, PRIMARY KEY (height, hash));
"""


@dataclass(frozen=True)
class BlockRow:
    """A block as it lies on disk."""

    number: int
    hash: Digest
    payload: bytes
    certificate: bytes
    receipts: bytes
    bloom: bytes


class Database:
    """One ledger's folder. One process at a time."""

    def __init__(self, folder: Path, *, archive: bool = False) -> None:
        """Open or create.

        Args:
            archive: keep the state after every block, not only after the last ones.
        Raises:
            ConfigError: another process has the folder.
            StorageError: the folder cannot be written, or its files are damaged; says what to do.
        """
        self.folder = folder
        self._archive = archive
        self._closed = False
        self._path, self._votes_path = folder / "ledger.sqlite", folder / "votes.sqlite"
        with contextlib.ExitStack() as opened:
            self._lock = lock_folder(folder)
            opened.callback(self._lock.close)
            with self._translated():
                self._ledger = _connect(self._path, "NORMAL", _LEDGER)
                self._check_format()
            opened.callback(self._ledger.close)
            with self._translated(votes=True):
                self._votes = _connect(self._votes_path, "FULL", _VOTES)
            opened.callback(self._votes.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close both files and let go of the folder."""
        self._closed = True
        with self._translated():
            self._opened.close()

    def _bytes(self, value: object) -> bytes:
        """What SQLite gave, if it is bytes still: a flipped bit can change a value's kind."""
        if not isinstance(value, bytes):
            raise self.damaged(f"{type(value).__name__} where bytes belong")
        return value

    def damaged(self, found: str) -> StorageError:
        """The error for a ledger file whose content is not what was written."""
        return StorageError(
            f"the ledger in {self._path} is damaged ({found}); start the node once with `swarm node SITE.toml "
            f"--rebuild`, or move ledger.sqlite* out of {self.folder} (leave votes.sqlite* there) and start again: the "
            "node fetches every block from the other members and verifies it"
        )

    # --- state and blocks

    def state(self, digest: Digest) -> bytes | None:
        """The trie node or code with this hash."""
        with self._translated():
            row = self._ledger.execute("SELECT value FROM state WHERE hash = ?", (digest,)).fetchone()
        return None if row is None else self._bytes(row[0])

    def meta(self, key: str) -> bytes | None:
        """A value kept under a name."""
        with self._translated():
            row = self._ledger.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._bytes(row[0])

    def states_from(self) -> int:
        """The first height whose state is kept."""
        return int.from_bytes(self.meta("states_from") or b"", "big")

    def begin(self, genesis: BlockRow, state: Changes) -> None:
        """Write block 0 into an empty file."""
        with self._transaction() as ledger:
            ledger.execute("INSERT INTO meta VALUES ('genesis', ?)", (genesis.hash,))
            _insert(ledger, genesis, state, ())

    def append(
        self,
        block: BlockRow,
        *,
        state: Changes,
        transactions: Sequence[Digest],
        parent_certificate: bytes,
    ) -> None:
        """Write a block and all it changed, and the certificate of its parent that it carries: all or nothing."""
        with self._transaction(synced=block.number % SYNCED_EVERY == 0) as ledger:
            _insert(ledger, block, state, transactions)
            if block.number > 1:
                ledger.execute(
                    "UPDATE blocks SET certificate = ? WHERE number = ? AND certificate != ?",
                    (parent_certificate, block.number - 1, parent_certificate),
                )
            if not self._archive and block.number % PRUNED_EVERY == 0 and block.number > STATES_KEPT:
                _prune(ledger, block.number - STATES_KEPT)

    def last(self) -> BlockRow | None:
        """The block with the greatest number; None in an empty file."""
        return self._block("ORDER BY number DESC LIMIT 1", ())

    def block(self, number: int) -> BlockRow | None:
        """A block by number."""
        return self._block("WHERE number = ?", (number,))

    def block_by_hash(self, digest: Digest) -> BlockRow | None:
        """A block by hash."""
        return self._block("WHERE hash = ?", (digest,))

    def block_hash(self, number: int) -> Digest | None:
        """A block's hash by number."""
        with self._translated():
            row = self._ledger.execute("SELECT hash FROM blocks WHERE number = ?", (number,)).fetchone()
        return None if row is None else self._bytes(row[0])

    def blocks(self, first: int, last: int) -> Iterator[BlockRow]:
        """The blocks with these numbers, in order, both ends included."""
        for number in range(first, last + 1):
            row = self.block(number)
            if row is None:
                return
            yield row

    def blooms(self, first: int, last: int) -> list[tuple[int, bytes]]:
        """(number, bloom filter) of these blocks, both ends included."""
        with self._translated():
            query = "SELECT number, bloom FROM blocks WHERE number BETWEEN ? AND ? ORDER BY number"
            return [(number, self._bytes(bloom)) for number, bloom in self._ledger.execute(query, (first, last))]

    def transaction(self, digest: Digest) -> tuple[int, int] | None:
        """(block number, position) of a transaction."""
        with self._translated():
            row = self._ledger.execute("SELECT number, position FROM transactions WHERE hash = ?", (digest,)).fetchone()
        return None if row is None else (row[0], row[1])

    def _block(self, where: str, values: tuple[object, ...]) -> BlockRow | None:
        query = f"SELECT number, hash, payload, certificate, receipts, bloom, checksum FROM blocks {where}"
        with self._translated():
            row = self._ledger.execute(query, values).fetchone()
        if row is None:
            return None
        number, *parts, checksum = row
        block = BlockRow(number, *(self._bytes(part) for part in parts))
        if not isinstance(number, int) or checksum != _checksum(block):
            raise self.damaged(f"block {number} has not the bytes that were written")
        return block

    # --- votes

    def save_vote(self, height: int, record: bytes) -> None:
        """Keep what this validator said at a height; on the disk's plate when this returns."""
        with self._translated(votes=True), self._votes:
            self._votes.execute("BEGIN IMMEDIATE")
            self._votes.execute("INSERT OR REPLACE INTO votes VALUES (?, ?, ?)", (height, record, sha256(record)))
            if height % 16 == 0:
                self._votes.execute("DELETE FROM votes WHERE height < ?", (height - VOTES_KEPT,))

    def saved_vote(self, height: int) -> bytes | None:
        """What this validator said at a height."""
        with self._translated(votes=True):
            row = self._votes.execute("SELECT record, checksum FROM votes WHERE height = ?", (height,)).fetchone()
            if row is not None and (not isinstance(row[0], bytes) or row[1] != sha256(row[0])):
                raise sqlite3.DatabaseError(f"the vote at height {height} has not the bytes that were written")
        return None if row is None else row[0]

    def first_vote(self) -> int | None:
        """The lowest height whose vote is kept; None where this validator never voted."""
        with self._translated(votes=True):
            (height,) = self._votes.execute("SELECT MIN(height) FROM votes").fetchone()
        return None if height is None else int(height)

    def begin_recovery(self, height: int, manifest: bytes) -> None:
        """Keep a manifest that replaces who votes at a height; what this validator said there before is put aside, so
        that it neither binds the new vote nor is lost as evidence. On the disk's plate when this returns."""
        with self._translated(votes=True), self._votes:
            self._votes.execute("BEGIN IMMEDIATE")
            self._votes.execute(
                "INSERT INTO recoveries (height, manifest, checksum, vote) "
                "VALUES (?, ?, ?, (SELECT record FROM votes WHERE height = ?))",
                (height, manifest, sha256(manifest), height),
            )
            self._votes.execute("DELETE FROM votes WHERE height = ?", (height,))

    def recoveries(self) -> dict[int, bytes]:
        """The last manifest for each height that has one."""
        with self._translated(votes=True):
            rows = self._votes.execute("SELECT height, manifest, checksum FROM recoveries ORDER BY id").fetchall()
            for height, manifest, checksum in rows:
                if not isinstance(manifest, bytes) or checksum != sha256(manifest):
                    raise sqlite3.DatabaseError(f"the manifest for height {height} has not the bytes that were written")
        return {height: manifest for height, manifest, _ in rows}

    # --- conflicts

    def keep_conflict(self, height: int, digest: Digest, payload: bytes, certificate: bytes) -> bool:
        """Keep a certified block that is not this ledger's; False: it is here, or there is no room for more."""
        with self._translated(votes=True):
            cursor = self._votes.execute(
                "INSERT OR IGNORE INTO conflicts SELECT ?, ?, ?, ? WHERE (SELECT COUNT(*) FROM conflicts) < ?",
                (height, digest, payload, certificate, CONFLICTS_MAX),
            )
            return cursor.rowcount == 1

    def conflicts(self) -> tuple[tuple[int, Digest], ...]:
        """(height, hash) of the certified blocks that are not this ledger's, by height."""
        with self._translated(votes=True):
            rows = self._votes.execute("SELECT height, hash FROM conflicts ORDER BY height, hash").fetchall()
        return tuple((height, digest) for height, digest in rows)

    # --- errors

    def _check_format(self) -> None:
        (found,) = self._ledger.execute("PRAGMA user_version").fetchone()
        if found == FORMAT:
            return
        if found or self._ledger.execute("SELECT 1 FROM blocks LIMIT 1").fetchone() is not None:
            raise self._of_another_version(found)
        self._ledger.execute(f"PRAGMA user_version = {FORMAT}")

    def _of_another_version(self, found: int) -> StorageError:
        return StorageError(
            f"{self._path} was written by another version of swarm (format {found}, this one writes {FORMAT}); run "
            f"that version, or move ledger.sqlite* out of {self.folder} (leave votes.sqlite* there) and start again: "
            "the node fetches every block from the other members and verifies it"
        )

    @contextlib.contextmanager
    def _transaction(self, *, synced: bool = False) -> Iterator[sqlite3.Connection]:
        with self._translated():
            self._ledger.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._ledger.execute("BEGIN IMMEDIATE")
            try:
                yield self._ledger
                self._ledger.execute("COMMIT")
            except BaseException:
                if self._ledger.in_transaction:
                    self._ledger.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _translated(self, *, votes: bool = False) -> Iterator[None]:
        path = self._votes_path if votes else self._path
        try:
            yield
        except sqlite3.ProgrammingError as error:
            if self._closed:
                raise UnavailableError(f"the ledger in {self.folder} is closed") from error
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # A damaged schema can make SQLite's own message unreadable.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ConfigError(f"another program has {path} open and locked; close it and start again") from error
            if code == sqlite3.SQLITE_READONLY:
                raise StorageError(f"{path} is read-only: make it and its folder writable for this user") from error
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise StorageError(
                    f"the disk would not take or give the bytes of {path} ({error}); make room or mend the disk and "
                    "start again: the ledger is whole up to its last block"
                ) from error
            if code == sqlite3.SQLITE_CANTOPEN:
                raise StorageError(
                    f"{path} cannot be opened: {error}; make its folder writable for this user"
                ) from error
            if votes:
                raise StorageError(
                    f"the votes in {path} are damaged ({error}); a node that forgot its votes must not vote again at "
                    "the same height: wait until the other validators have decided another block, then move "
                    f"votes.sqlite* out of {self.folder} and start"
                ) from error
            raise self.damaged(str(error)) from error


def _insert(ledger: sqlite3.Connection, block: BlockRow, state: Changes, transactions: Sequence[Digest]) -> None:
    ledger.executemany(
        "INSERT INTO state VALUES (?, ?, ?, 0) ON CONFLICT (hash) DO UPDATE SET places = places + excluded.places",
        [(digest, state.writes[digest], places) for digest, places in state.come.items()],
    )
    ledger.executemany(
        "UPDATE state SET places = places - ?, gone = ? WHERE hash = ?",
        [(places, block.number, digest) for digest, places in state.gone.items()],
    )
    ledger.execute(
        "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)",
        (block.number, block.hash, block.payload, block.certificate, block.receipts, block.bloom, _checksum(block)),
    )
    ledger.executemany(
        "INSERT INTO transactions VALUES (?, ?, ?)",
        [(digest, block.number, position) for position, digest in enumerate(transactions)],
    )


def _prune(ledger: sqlite3.Connection, first: int) -> None:
    """Forget what no state from the one after block `first` on has."""
    ledger.execute("DELETE FROM state WHERE places = 0 AND gone <= ?", (first,))
    ledger.execute("INSERT OR REPLACE INTO meta VALUES ('states_from', ?)", (first.to_bytes(8, "big"),))


def _checksum(block: BlockRow) -> Digest:
    """Over what never changes: a certificate may give way to the one that the next block carries."""
    return sha256(block.hash + block.bloom + sha256(block.payload) + block.receipts)


def _connect(path: Path, synchronous: str, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


class FolderLock:
    """A file that one process can hold."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+")  # noqa: SIM115 - it is held for the ledger's life
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip()
            self._file.close()
            raise ConfigError(
                f"another node (process {owner or 'unknown'}) runs on {path.parent}; two nodes cannot share a folder: "
                "stop that one, or give this site a `folder` of its own"
            ) from None
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def close(self) -> None:
        """Let another process have it. Flushing may fail on a full disk; the lock is gone all the same."""
        with contextlib.suppress(OSError):
            self._file.close()


def set_aside(folder: Path) -> Path | None:
    """Move a ledger's blocks and state to a folder beside them; its votes stay. Where they are; None: there are none.

    Raises:
        ConfigError: a node runs on the folder.
        StorageError: the files cannot be moved.
    """
    lock = lock_folder(folder)
    try:
        files = sorted(folder.glob("ledger.sqlite*"))
        if not files:
            return None
        place = next(place for n in itertools.count(1) if not (place := folder / f"set-aside-{n}").exists())
        place.mkdir()
        for path in files:
            path.rename(place / path.name)
        return place
    except OSError as error:
        raise StorageError(f"the ledger in {folder} cannot be set aside: {error}") from error
    finally:
        lock.close()


def lock_folder(folder: Path) -> FolderLock:
    """The right to be the only process on this folder, until it is closed.

    Raises:
        ConfigError: another process has it.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FolderLock(folder / "lock")
    except OSError as error:
        raise StorageError(
            f"the ledger's folder {folder} cannot be used: {error}; name a writable one in the site's `folder`"
        ) from error
