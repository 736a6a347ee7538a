"""Files of objects that were evicted, to be written over by those that come: what has pages and blocks costs less.

A reader of an evicted object must not see it change, so a file is written over only if it has this one name, which
nobody else knows, and nobody has it open or mapped: the kernel grants a write lease then and only then (fcntl(2),
F_SETLEASE). Where there are no leases, or another user owns the file, it is unlinked, as if there were no spares.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from pathlib import Path

from swarm.merkle import CHUNK_BYTES

_LEASES = hasattr(fcntl, "F_SETLEASE")

COUNT_MAX = 4
"""What is evicted for one object is written over by that object at once; more only wait."""
SIZE_MIN = CHUNK_BYTES
"""A smaller file is as quickly made."""


class Spares:
    """Spare files in `folder`; the store's lock holds for all of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[Path, int] = {}
        self._made = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all spares."""
        return sum(self._sizes.values())

    def keep(self, place: Path, size: int) -> None:
        """Take over the file of an object that goes; OSError if the disk refuses."""
        if not _LEASES or size < SIZE_MIN:
            place.unlink(missing_ok=True)
            return
        self._made += 1
        spare = self._folder / f"{self._made}.spare"
        with suppress(FileNotFoundError):
            os.replace(place, spare)
            self._sizes[spare] = size

    def take(self, size: int, target: Path) -> bool:
        """Make a spare of about `size` bytes the file `target`, whatever bytes it holds; False if there is none."""
        about = [(abs(has - size), spare) for spare, has in self._sizes.items() if size / 2 <= has <= 2 * size]
        for _, spare in sorted(about):
            del self._sizes[spare]
            if _is_ours_alone(spare):
                with suppress(OSError):
                    os.replace(spare, target)
                    return True
            spare.unlink(missing_ok=True)
        return False

    def trim(self, bytes_max: int) -> None:
        """Let go of the oldest until there are at most `COUNT_MAX`, of at most `bytes_max` together."""
        while len(self._sizes) > COUNT_MAX or self.size_bytes > max(bytes_max, 0):
            spare = next(iter(self._sizes))
            del self._sizes[spare]
            spare.unlink(missing_ok=True)


def _is_ours_alone(path: Path) -> bool:
    """Whether no other name, descriptor or mapping leads to the file, and this user may write it."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        # Who opens it while the lease lasts makes the kernel send a signal; SIGIO, which it would be, ends the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.fchmod(descriptor, 0o600)
        return os.fstat(descriptor).st_nlink == 1
    except OSError:
        return False
    finally:
        os.close(descriptor)
