"""A ledger's file as an auditor reads it: nothing is written, repaired or trusted, and the node may be running."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from swarm.encoding import Digest
from swarm.errors import StorageError
from swarm.ledger.database import BlockRow


class Archive:
    """The rows of one `ledger.sqlite`."""

    def __init__(self, folder: Path) -> None:
        """Open for reading.

        Raises:
            StorageError: no such file, or SQLite cannot read it.
        """
        self.path = folder / "ledger.sqlite"
        if not self.path.is_file():
            raise StorageError(f"there is no ledger at {self.path}; name a site's folder, or a consortium's")
        with self._translated():
            self._file = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
            try:
                self._file.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                # A copy on read-only media has no place for SQLite's shared memory file, and nobody writes to it.
                self._file.close()
                self._file = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
            # All that is read is of one moment, while the node goes on writing.
            self._file.execute("BEGIN")
            self._file.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def damage(self) -> str | None:
        """What SQLite itself finds wrong with the file; None if nothing."""
        try:
            (found,) = self._file.execute("PRAGMA integrity_check(1)").fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            return str(error)
        return None if found == "ok" else str(found)

    def height(self) -> int:
        """The greatest block number; StorageError for a file without a block."""
        with self._translated():
            (height,) = self._file.execute("SELECT MAX(number) FROM blocks").fetchone()
        if not isinstance(height, int):
            raise StorageError(f"{self.path} holds no block")
        return height

    def blocks(self) -> Iterator[BlockRow]:
        """Every block, in the order of numbers."""
        with self._translated():
            query = "SELECT number, hash, payload, certificate, receipts, bloom FROM blocks ORDER BY number"
            for row in self._file.execute(query):
                yield BlockRow(*row)

    def transactions(self) -> Iterator[tuple[Digest, int, int]]:
        """(hash, block, position) of every transaction, by hash."""
        with self._translated():
            yield from self._file.execute("SELECT hash, number, position FROM transactions ORDER BY hash")

    def state(self) -> Iterator[tuple[Digest, bytes, int]]:
        """(hash, value, places in the tries of the last block) of every trie node and code, by hash."""
        with self._translated():
            yield from self._file.execute("SELECT hash, value, places FROM state ORDER BY hash")

    def conflicts(self) -> list[tuple[int, bytes, bytes]]:
        """(height, payload, certificate) of the blocks of another chain that the node kept as evidence."""
        votes = self.path.with_name("votes.sqlite")
        if not votes.is_file():
            return []
        with self._translated(), closing(sqlite3.connect(f"{votes.resolve().as_uri()}?mode=ro", uri=True)) as file:
            if file.execute("SELECT 1 FROM sqlite_master WHERE name = 'conflicts'").fetchone() is None:
                return []
            return file.execute("SELECT height, payload, certificate FROM conflicts ORDER BY height, hash").fetchall()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise StorageError(f"{self.path} cannot be read as a ledger: {error}") from error
