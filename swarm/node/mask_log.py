"""What a node must not forget, and not keep for long, of blind rounds: on disk before anybody sees what follows.

    key-RUN.json          the X25519 secret of a run, since when, the one before it while it is in use, and the round
                          that is sat out after a restore                                               mode 600
    RUN-ATTEMPT.json      an attempt: its seed, what was given to others, what was masked, for whom it was opened

A file is replaced as a whole: written beside, synced, renamed, and the folder synced. Masks are used for one vector and
opened for one set of survivors; the log refuses a second one. When the attempt is over its seed is erased and the
digests stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from swarm.blind import Entry
from swarm.encoding import Address, Digest, from_hex, to_hex
from swarm.errors import RejectedError, StorageError
from swarm.merge.blind.keys import public_key

SEED_BYTES = 32
FILE_MAX_BYTES = 64 << 10
KEPT_MAX = 64
"""Attempts of a run whose digests are kept."""
RECENT = 8
"""So many attempts back a submission may come from that the ledger takes late."""


class SecondUse(AssertionError):
    """Masks would be used for a second vector, or opened for a second set: this node made a mistake."""


@dataclass(frozen=True)
class Logged:
    """An attempt as the log has it."""

    entry: Entry
    seed: bytes
    """Empty once it was erased."""

    def __repr__(self) -> str:
        return f"Logged({self.entry})"


@dataclass(frozen=True)
class Key:
    """The secrets that a run's masks are agreed upon with."""

    secret: bytes
    """X25519, 32 bytes."""
    round: int
    since_s: float
    """The round and the Unix time at which it was drawn."""
    last: bytes = b""
    """The one before it, empty once it was erased."""
    sits_out: int = -1
    """The round that is sat out, because the disk was restored in it."""

    @cached_property
    def public(self) -> bytes:
        """What the ledger shows of it."""
        return public_key(self.secret)

    @cached_property
    def last_public(self) -> bytes:
        """Of the one before it; empty where there is none."""
        return public_key(self.last) if self.last else b""

    def secret_of(self, public: bytes) -> bytes:
        """The secret of a public key of this node; RejectedError if it has it no longer."""
        if public == self.public:
            return self.secret
        if self.last and public == self.last_public:
            return self.last
        raise RejectedError("the secret of this node's key for masks is not here: it was replaced")

    def __repr__(self) -> str:
        return f"Key(of round {self.round})"


class MaskLog:
    """The log in a folder of its own.

    Args:
        entropy: so many random bytes.
    Raises:
        StorageError: the folder cannot be made, or a file in it cannot be read.
    """

    def __init__(self, folder: Path, entropy: Callable[[int], bytes]) -> None:
        self.folder = folder
        self._entropy = entropy
        self._known: dict[tuple[int, int], Logged | None] = {}
        self._keys: dict[int, Key] = {}

    # --- keys

    def key(self, run: int, round_: int, now_s: float) -> Key:
        """The secrets of a run; the first one is drawn when it is asked for the first time."""
        if run not in self._keys:
            document = self._read(self._key_place(run))
            if document is None:
                self._put_key(run, Key(self._entropy(SEED_BYTES), round_, now_s))
            else:
                self._keys[run] = _key(run, document)
        return self._keys[run]

    def sits_out(self, run: int, round_: int) -> bool:
        """Whether this round is sat out, because the disk was restored in it."""
        place = self._key_place(run)
        return (run in self._keys or place.exists()) and self.key(run, round_, 0.0).sits_out == round_

    def rotate(self, run: int, round_: int, now_s: float) -> None:
        """The disk was restored in this round: draw a new secret, forget the others, and sit the round out."""
        self._put_key(run, Key(self._entropy(SEED_BYTES), round_, now_s, sits_out=round_))

    def renew(self, run: int, round_: int, now_s: float) -> None:
        """Draw a new secret, and keep the one before it until `forget`."""
        before = self.key(run, round_, now_s)
        self._put_key(run, replace(before, secret=self._entropy(SEED_BYTES), round=round_, since_s=now_s,
                                   last=before.secret))  # fmt: skip

    def forget(self, run: int) -> None:
        """Erase the secret before this one."""
        self._put_key(run, replace(self._keys[run], last=b""))

    def _put_key(self, run: int, key: Key) -> None:
        document = {
            "secret": to_hex(key.secret),
            "last": to_hex(key.last),
            "round": key.round,
            "since_s": key.since_s,
            "sits_out": key.sits_out,
        }
        self._write(self._key_place(run), document)
        self._keys[run] = key

    def _key_place(self, run: int) -> Path:
        return self.folder / f"key-{run}.json"

    # --- attempts

    def read(self, run: int, attempt: int) -> Logged | None:
        """An attempt; None where nothing of it was written."""
        if (run, attempt) not in self._known:
            document = self._read(self._place(run, attempt))
            self._known[run, attempt] = None if document is None else _logged(attempt, document)
        return self._known[run, attempt]

    def masked_before(self, run: int, attempt: int) -> frozenset[Digest]:
        """The vectors of the few attempts before this one."""
        found = (self.read(run, number) for number in range(max(attempt - RECENT, 1), attempt))
        return frozenset(logged.entry.masked for logged in found if logged is not None and logged.entry.masked)

    def seed(self, run: int, attempt: int) -> bytes:
        """The seed of an attempt that is about to be joined; the same one however often this is asked."""
        logged = self.read(run, attempt)
        return logged.seed if logged is not None and logged.seed else self._entropy(SEED_BYTES)

    def join(self, run: int, attempt: int, seed: bytes, blob: Digest) -> None:
        """Before the ledger hears of it: what others are given. Until something is masked, a later one replaces it."""
        logged = self.read(run, attempt)
        if logged is not None and (logged.entry.masked is not None or (logged.seed and logged.seed != seed)):
            raise SecondUse(f"attempt {attempt} of run {run} is joined a second time")
        self._keep(run, Logged(Entry(attempt, blob), seed))

    def mask(self, run: int, attempt: int, masked: Digest) -> None:
        """Before anybody is given it: the vector that these masks are on."""
        logged = self._joined(run, attempt)
        if logged.entry.masked not in (None, masked):
            raise SecondUse(f"the masks of attempt {attempt} of run {run} are on another vector already")
        self._keep(run, replace(logged, entry=replace(logged.entry, masked=masked)))

    def reveal(self, run: int, attempt: int, survivors: frozenset[Address]) -> None:
        """Before the ledger hears of it: for whom masks are opened."""
        logged = self._joined(run, attempt)
        if logged.entry.survivors not in (None, survivors):
            raise SecondUse(f"the masks of attempt {attempt} of run {run} were opened for others")
        self._keep(run, replace(logged, entry=replace(logged.entry, survivors=survivors)))

    def erase(self, run: int, *, but: int | None) -> None:
        """Erase the seeds of a run's attempts; the digests of the newest stay.

        Args:
            but: the attempt that goes on, None where none does.
        """
        places = sorted(self.folder.glob(f"{run}-*.json"), key=lambda place: int(place.stem.split("-")[1]))
        numbers = [int(place.stem.split("-")[1]) for place in places]
        for number in numbers:
            logged = self.read(run, number) if number != but else None
            if logged is not None and logged.seed:
                self._keep(run, replace(logged, seed=b""))
        for number in numbers[:-KEPT_MAX]:
            self._place(run, number).unlink(missing_ok=True)
            self._known.pop((run, number), None)

    def _joined(self, run: int, attempt: int) -> Logged:
        logged = self.read(run, attempt)
        if logged is None:
            raise SecondUse(f"attempt {attempt} of run {run} was never joined from here")
        if not logged.seed:
            raise RejectedError(f"attempt {attempt} of run {run} is over, its seed is erased")
        return logged

    def _keep(self, run: int, logged: Logged) -> None:
        entry = logged.entry
        document = {
            "seed": to_hex(logged.seed),
            "blob": to_hex(entry.blob),
            "masked": None if entry.masked is None else to_hex(entry.masked),
            "survivors": None if entry.survivors is None else sorted(to_hex(one) for one in entry.survivors),
        }
        self._write(self._place(run, entry.attempt), document)
        self._known[run, entry.attempt] = logged

    def _place(self, run: int, attempt: int) -> Path:
        return self.folder / f"{run}-{attempt}.json"

    # --- disk

    def _read(self, place: Path) -> dict[str, Any] | None:
        try:
            with place.open("rb") as file:
                document = json.loads(file.read(FILE_MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StorageError(f"{place}, which holds masks of blind rounds, cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise StorageError(f"{place} holds no masks of a blind round")
        return document

    def _write(self, place: Path, document: dict[str, Any]) -> None:
        draft = place.with_suffix(".part")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(document))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, place)
            sync_folder(self.folder)
        except OSError as error:
            raise StorageError(f"{place}, which holds masks of blind rounds, cannot be written: {error}") from error


def _key(run: int, document: dict[str, Any]) -> Key:
    try:
        return Key(
            from_hex(document["secret"], size=SEED_BYTES),
            int(document["round"]),
            float(document["since_s"]),
            from_hex(document["last"]),
            int(document["sits_out"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(f"the key for masks of run {run} cannot be read: {error!r}") from error


def _logged(attempt: int, document: dict[str, Any]) -> Logged:
    try:
        masked, survivors = document["masked"], document["survivors"]
        entry = Entry(
            attempt,
            from_hex(document["blob"], size=32),
            None if masked is None else from_hex(masked, size=32),
            None if survivors is None else frozenset(from_hex(one, size=20) for one in survivors),
        )
        return Logged(entry, from_hex(document["seed"]))
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(f"the masks of attempt {attempt} cannot be read: {error!r}") from error


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
