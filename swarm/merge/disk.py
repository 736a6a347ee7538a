"""Inputs read at any place by any thread, a result written in pieces, and a merge's chunks shared among threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from swarm.errors import StorageError
from swarm.merge.fixed import Raw

_SYNC_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)
"""Linux' sync_file_range(2), which Python does not know."""
if _SYNC_RANGE is not None:
    _SYNC_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing

Bench = TypeVar("Bench")
Found = TypeVar("Found")


class Input:
    """An input file, read at any place by any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk(path):
            self._file = os.open(path, os.O_RDONLY)

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, offset: int, into: Raw) -> Raw:
        """Fill `into`; StorageError where the disk does not give it, or the file became shorter meanwhile."""
        view = into.data
        try:
            while view:
                count = os.preadv(self._file, [view], offset)
                if not count:
                    raise StorageError(f"{self._path} ends at byte {offset}; it was changed while it was read")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise _refused(error, self._path) from error
        return into


@contextmanager
def written(out: Path | None, size: int) -> Iterator[int | None]:
    """A file of this size, of which every byte is to be written; it is removed again if the merge fails."""
    if out is None:
        yield None
        return
    with disk(out):
        target = os.open(out, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        with disk(out):
            os.ftruncate(target, size)
        yield target
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    finally:
        os.close(target)


def write_at(target: int, view: memoryview, offset: int) -> None:
    """Write all of it there. The disk begins at once, so whoever syncs the file at the end waits for the last piece."""
    begin, size = offset, len(view)
    with disk(None):
        while view:
            count = os.pwrite(target, view, offset)
            view, offset = view[count:], offset + count
    if _SYNC_RANGE is not None:
        # Advice: where it is refused the sync at the end takes longer, and says what is wrong.
        _SYNC_RANGE(target, begin, size, _WRITE)


@contextmanager
def disk(path: Path | None) -> Iterator[None]:
    """The door for what the operating system says about the disk."""
    try:
        yield
    except OSError as error:
        raise _refused(error, path) from error


def _refused(error: OSError, path: Path | None) -> StorageError:
    return StorageError(
        f"{error.filename or path or 'the merged checkpoint'}: {error.strerror or error}; a merge reads its inputs and "
        "writes a file of the checkpoint's size: check the disk that holds the site's `folder`"
    )


def in_threads(
    items: Sequence[int], threads: int, prepare: Callable[[], Bench], work: Callable[[Bench, int], Found]
) -> list[Found]:
    """`work` on every item, in their order, by several threads, each with what `prepare` gave it.

    Every thread has its own stride of the items and stops at its first error. Of these the one at the first item is
    raised, as if there were one thread.
    """
    count = max(1, min(threads, len(items)))
    found: list[list[Found]] = [[] for _ in range(count)]

    def stride(number: int) -> Exception | None:
        mine = prepare()
        try:
            for item in items[number::count]:
                found[number].append(work(mine, item))
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(count - 1) if count > 1 else nullcontext() as pool:
        helpers = [pool.submit(stride, number) for number in range(1, count)] if pool else []
        errors = [stride(0), *(helper.result() for helper in helpers)]
    faults = [(len(found[number]) * count + number, error) for number, error in enumerate(errors) if error]
    if faults:
        raise min(faults, key=lambda fault: fault[0])[1]
    return [found[place % count][place // count] for place in range(len(items))]
