"""What must not be evicted, and why.

The record outlives the process. It is not synced: it changes with every submission, and each member finds in the ledger
what to pin. So one that a power cut spoiled is dropped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from swarm.encoding import Digest

log = logging.getLogger(__name__)


class Pins:
    """Digests by the reason why they are kept. The store's lock holds for all of it.

    Args:
        write: makes these bytes the file, whole or not at all.
    """

    def __init__(self, path: Path, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._held = _read(path)

    def held(self) -> Mapping[str, set[Digest]]:
        """What is kept, by why."""
        return self._held

    def digests(self) -> set[Digest]:
        """What is kept for any reason."""
        return {digest for held in self._held.values() for digest in held}

    def add(self, digest: Digest, why: str) -> None:
        """Keep it for this reason too."""
        held = self._held.setdefault(why, set())
        if digest not in held:
            held.add(digest)
            self._save()

    def only(self, wanted: set[Digest], why: str) -> set[Digest]:
        """Make exactly these what `why` keeps; those that are new."""
        before = self._held.get(why, set())
        if before == wanted:
            return set()
        self._held[why] = wanted
        if not wanted:
            del self._held[why]
        self._save()
        return wanted - before

    def _save(self) -> None:
        document = {why: _names(held) for why, held in sorted(self._held.items())}
        self._write(json.dumps(document, indent=1).encode())


def _names(digests: Iterable[Digest]) -> list[str]:
    return sorted(digest.hex() for digest in digests)


def _read(path: Path) -> dict[str, set[Digest]]:
    try:
        document = json.loads(path.read_text())
        return {why: {bytes.fromhex(name) for name in names} for why, names in document.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        log.warning("%s is damaged and counts as empty (%s): what no run needs now may be evicted earlier", path, error)
        return {}
