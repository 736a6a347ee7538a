"""Replays a ledger from genesis into an empty one, and compares every row that lies on disk with what comes out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from swarm.consensus import Certificate
from swarm.encoding import Digest, short
from swarm.errors import PeerError
from swarm.ledger.archive import Archive
from swarm.ledger.artifact import artifact
from swarm.ledger.database import BlockRow
from swarm.ledger.genesis import ARTIFACTS_MARK, CONTRACTS, Genesis
from swarm.ledger.judging import ExecutionCache
from swarm.ledger.ledger import Ledger


class Difference(Exception):
    """The first thing in a folder that is not as it has to be: where, found, expected."""


@dataclass(frozen=True)
class Replay:
    """A ledger made anew from the audited one's transactions."""

    ledger: Ledger
    transactions: int


@contextmanager
def replayed(
    folder: Path, genesis: Genesis, executions: ExecutionCache, progress: Callable[[int, int], None]
) -> Iterator[Replay]:
    """The ledger of a site's folder, executed again from genesis; gone when the `with` ends.

    Raises:
        Difference: seals, hashes, state roots, receipts, contracts' code or rows that are not what they have to be.
        StorageError: SQLite cannot read the file.
    """
    with (
        closing(Archive(folder / "ledger")) as archive,
        tempfile.TemporaryDirectory(prefix="swarm-audit-") as scratch,
    ):
        damage = archive.damage()
        if damage is not None:
            raise Difference(f"{archive.path} is damaged: {damage}")
        ledger = Ledger.open(Path(scratch), genesis, archive=True, executions=executions)
        try:
            _replay(archive, ledger, progress)
            with closing(Archive(Path(scratch))) as again:
                count = _compare_rows(archive, again)
            _check_conflicts(archive, ledger)
            yield Replay(ledger, count)
        finally:
            ledger.close()


def _replay(archive: Archive, ledger: Ledger, progress: Callable[[int, int], None]) -> None:
    height = archive.height()
    for expected, row in enumerate(archive.blocks()):
        if row.number != expected:
            raise Difference(f"block {expected} is missing")
        if expected == 0:
            _check_genesis(row, ledger, archive)
        else:
            _append(row, ledger)
        progress(expected, height)


def _check_genesis(row: BlockRow, ledger: Ledger, archive: Archive) -> None:
    if row.hash == ledger.genesis_hash:
        return
    # Block 0 holds the artifacts' digests, so it can be said whether the contracts differ, or the settings.
    held = next((value for _, value, _ in archive.state() if value.startswith(ARTIFACTS_MARK)), b"")
    digests = held.removeprefix(ARTIFACTS_MARK)
    for place, name in enumerate(CONTRACTS):
        found = artifact(name).digest
        if digests[32 * place : 32 * place + 32] != found:
            raise Difference(
                f"the contract artifact {name} of this installation ({short(found)}) is not the one that the ledger "
                f"began with ({short(digests[32 * place : 32 * place + 32])}): one of them was changed"
            )
    raise Difference(
        f"block 0 is {short(row.hash)}, but swarm.toml and the contracts' artifacts give {short(ledger.genesis_hash)}"
    )


def _append(row: BlockRow, ledger: Ledger) -> None:
    try:
        certificate = Certificate.decode(row.certificate)
    except (PeerError, ValueError) as error:
        raise Difference(f"block {row.number}: its certificate cannot be read: {error}") from error
    if certificate.encode() != row.certificate:
        raise Difference(f"block {row.number}: its certificate is not in canonical form")
    try:
        ledger.append(row.payload, certificate)
    except PeerError as error:
        raise Difference(f"block {row.number}: {error}") from error


def _check_conflicts(archive: Archive, ledger: Ledger) -> None:
    """What the node kept as evidence is judged again; what does not hold accuses nobody."""
    for height, payload, sealed in archive.conflicts():
        try:
            found = ledger.note_conflict(payload, Certificate.decode(sealed))
        except PeerError:
            continue
        if found is not None:
            raise Difference(
                f"block {found.height} was decided twice: {short(found.ours)} here, and the node kept a certified "
                f"block at height {height} that is or follows {short(found.theirs)}; a third of the validators or more "
                "signed both"
            )


def _compare_rows(archive: Archive, again: Archive) -> int:
    """Every row as replayed; the number of transactions."""
    for found, wanted in zip_longest(archive.blocks(), again.blocks()):
        if found is None or wanted is None:
            raise Difference("the ledger on disk and the replayed one differ in their number of blocks")
        for name in ("hash", "payload", "certificate", "receipts", "bloom"):
            if getattr(found, name) != getattr(wanted, name):
                what = "the certificate that the next block commits to" if name == "certificate" else "the replayed one"
                raise Difference(f"block {found.number}: its {name} on disk is not {what}")
    count = _compare("the index of transactions", archive.transactions(), again.transactions())
    _compare_state(archive.state(), again.state())
    return count


def _compare_state(found: Iterator[tuple[Digest, bytes, int]], wanted: Iterator[tuple[Digest, bytes, int]]) -> None:
    """What a site keeps is as replayed, and what the last block's state needs is kept; older state may be gone."""
    one = next(found, None)
    for other in wanted:
        if one == other:
            one = next(found, None)
        elif other[2] or (one is not None and one[0] <= other[0]):
            raise Difference(f"the state: the entry {short((one or other)[0])} on disk is not the replayed one")
    if one is not None:
        raise Difference(f"the state: the entry {short(one[0])} on disk is not the replayed one")


def _compare(what: str, found: Iterable[tuple[object, ...]], wanted: Iterable[tuple[object, ...]]) -> int:
    count = 0
    for one, other in zip_longest(found, wanted):
        if one != other:
            key = (one or other or (b"",))[0]
            shown = short(key) if isinstance(key, bytes) else repr(key)
            raise Difference(f"{what}: the entry {shown} on disk is not the replayed one")
        count += 1
    return count
