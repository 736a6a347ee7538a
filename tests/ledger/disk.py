"""A disk that can lose power: SQLite's own writes and syncs, recorded, and what may lie on the plates after a cut.

A write is on the plates once its file was synced after it. Of the writes since then any may be there, in any order, any
may be torn at a sector; a file that was never synced may be missing, one that was deleted may be back. The database's
code runs unchanged: only the connection is another one, to the same SQLite through a VFS that takes notes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw

SECTOR = 512
_NAMES = itertools.count()


class PowerCut(Exception):
    """The disk is off."""


@dataclass
class Plates:
    """One file: what is certainly there, and what may be."""

    synced: bytes = b""
    named: bool = False
    """Its name is certainly in the folder."""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes) of each write since the last sync; (size, None) of each truncation."""
    deleted: bool = False
    journal: bool = False

    def sync(self) -> None:
        self.synced = self.after(self.pending)
        self.pending, self.named = [], True

    def after(self, writes: Iterable[tuple[int, bytes | None]]) -> bytes:
        """The content once these are there too."""
        data = bytearray(self.synced)
        for at, piece in writes:
            if piece is None:
                del data[at:]
                data.extend(bytes(at - len(data)))
            else:
                data.extend(bytes(max(at - len(data), 0)))
                data[at : at + len(piece)] = piece
        return bytes(data)

    def lost(self, rng: random.Random, how: str) -> bytes | None:
        """What a cut leaves of it; None: no file.

        Args:
            how: "none" of the pending writes is there, "all" are, the "first" ones are and the next is torn, or "any".
        """
        if self.deleted and (self.named or rng.random() < 0.5):
            return None
        if not self.named and how != "all" and rng.random() < 0.5:
            return None
        if how == "none":
            return self.synced
        if how == "all":
            return self.after(self.pending)
        if how == "first":
            until = rng.randrange(len(self.pending) + 1)
            torn = _sectors(self.pending[until : until + 1])
            return self.after([*self.pending[:until], *torn[: rng.randrange(len(torn) + 1)]])
        return self.after(piece for piece in _sectors(self.pending) if rng.random() < 0.5)


def _sectors(writes: Iterable[tuple[int, bytes | None]]) -> list[tuple[int, bytes | None]]:
    """The same writes in pieces that a disk writes whole."""
    pieces: list[tuple[int, bytes | None]] = []
    for at, data in writes:
        if data is None:
            pieces.append((at, None))
            continue
        ends = range(SECTOR - at % SECTOR, len(data) + SECTOR, SECTOR)
        pieces += [(at + max(end - SECTOR, 0), data[max(end - SECTOR, 0) : end]) for end in ends]
    return [(at, data) for at, data in pieces if data is None or data]


class Disk(apsw.VFS):
    """The disk under one folder. Give `connect` to a `Database` as its way to open files."""

    def __init__(self) -> None:
        self.name = f"disk-{next(_NAMES)}"
        super().__init__(self.name, "")
        self.files: dict[str, Plates] = {}
        self.steps = 0
        """Writes, truncations, syncs and deletions so far."""
        self.cut_at: int | None = None
        self.on_cut: Callable[[], None] = lambda: None
        self.off = False

    def step(self) -> None:
        """One more; the power may fail now."""
        if not self.off:
            self.steps += 1
            if self.cut_at is not None and self.steps >= self.cut_at:
                self.on_cut()
        if self.off:
            raise PowerCut

    def sync_folder(self) -> None:
        """Every name that is there now stays, every one that is gone stays gone."""
        for plates in self.files.values():
            plates.named = True

    def load(self, folder: Path) -> None:
        """Begin with the files that lie in the folder, all of them on the plates."""
        self.files = {path.name: Plates(path.read_bytes(), named=True) for path in folder.glob("*.sqlite*")}
        self.files = {name: plates for name, plates in self.files.items() if not name.endswith("-shm")}

    def image(self, folder: Path, rng: random.Random, how: str) -> None:
        """Write what a cut leaves into an empty folder."""
        folder.mkdir(parents=True)
        for name, plates in self.files.items():
            data = plates.lost(rng, how)
            if data is not None:
                (folder / name).write_bytes(data)

    def connect(self, path: Path, synchronous: str, schema: str) -> Connection:
        """A connection as `swarm.ledger.database` makes them."""
        connection = Connection(path, self.name)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.executescript(schema)
        except BaseException:
            connection.close()
            raise
        return connection

    # --- what SQLite calls

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "temporary")
        return _File(self, name, flags, path.name)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.step()
        super().xDelete(filename, syncdir)
        plates = self.files.get(Path(filename).name)
        if plates is not None:
            plates.deleted, plates.named = True, syncdir


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int], own: str) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        plates = disk.files.get(own)
        if plates is None or plates.deleted:
            plates = disk.files[own] = Plates(journal=own.endswith(("-wal", "-journal")))
        self._plates = plates

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.step()
        self._plates.pending.append((offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._disk.step()
        self._plates.pending.append((newsize, None))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self._disk.step()
        if not self._plates.named and self._plates.journal:
            # As SQLite's own Unix layer does: the first sync of a new journal syncs the folder too.
            self._disk.sync_folder()
        self._plates.sync()


class Connection:
    """`sqlite3.Connection`, as far as the database uses it, over SQLite through a VFS."""

    def __init__(self, path: Path, vfs: str) -> None:
        with _translated():
            self._file = apsw.Connection(str(path), vfs=vfs)

    def execute(self, sql: str, values: Iterable[object] = ()) -> _Cursor:
        with _translated():
            return _Cursor(self._file.execute(sql, tuple(values)))

    def executemany(self, sql: str, rows: Iterable[Iterable[object]]) -> None:
        with _translated():
            self._file.executemany(sql, [tuple(row) for row in rows])

    def executescript(self, sql: str) -> None:
        self.execute(sql)

    @property
    def in_transaction(self) -> bool:
        return self._file.in_transaction

    def close(self) -> None:
        with contextlib.suppress(PowerCut):  # sqlite3 does not speak of a last checkpoint that fails either
            self._file.close(True)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.in_transaction:
            self.execute("COMMIT" if kind is None else "ROLLBACK")


class _Cursor:
    def __init__(self, cursor: apsw.Cursor) -> None:
        self._cursor = cursor

    def fetchone(self) -> Any:
        with _translated():
            return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        with _translated():
            yield from self._cursor


class _translated:
    """apsw's errors as sqlite3's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, PowerCut):
            raise _error("the power is off", sqlite3.SQLITE_IOERR) from error
        if isinstance(error, apsw.Error):
            code = getattr(error, "extendedresult", 0)
            raise _error(str(error), code) from error


def _error(message: str, code: int) -> sqlite3.OperationalError:
    translated = sqlite3.OperationalError(message)
    translated.sqlite_errorcode = code
    return translated
