"""The process's memory: what objects pass through is kept, what a flood of strangers left behind is given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging

logger = logging.getLogger(__name__)

KEPT_BYTES = 32 << 20
"""Free memory that is kept at the end of each arena."""
SCATTERED_MAX_BYTES = 2 * KEPT_BYTES
"""With more free memory than this, pages between what is in use are given back, too."""
LOOK_EVERY_S = 15.0
ARENAS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


class _Info(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def spare() -> None:
    """Let this process keep the memory that objects pass through, and not walk over its libraries each time.

    By default glibc gives the megabytes of every answer back to the kernel and takes them anew, page by page; and the
    garbage collector looks at a million objects of the imported libraries each time, which live as long as the process.
    """
    gc.collect()
    gc.freeze()
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):  # glibc's; elsewhere the allocator decides
        for option, value in ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, KEPT_BYTES), (_M_TRIM_THRESHOLD, KEPT_BYTES)):
            allocator.mallopt(option, value)


async def give_back_for_ever(every_s: float = LOOK_EVERY_S) -> None:
    """Look at how much is free now and then. Ten thousand handshakes that came to nothing leave holes, of which
    glibc gives none back by itself."""
    while True:
        await asyncio.sleep(every_s)
        free = free_bytes()
        if free > SCATTERED_MAX_BYTES:
            await asyncio.to_thread(give_back)
            logger.debug("%d MB of memory were free, %d MB are", free >> 20, free_bytes() >> 20)


def free_bytes() -> int:
    """What the allocator holds and nobody uses; 0 where it does not say."""
    allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "mallinfo2"):  # glibc 2.33
        return 0
    allocator.mallinfo2.restype = _Info
    return int(allocator.mallinfo2().fordblks)


def give_back() -> None:
    """Give free pages back to the kernel, but for what is kept at the end: some 10 ms."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "malloc_trim"):
        allocator.malloc_trim(ctypes.c_size_t(KEPT_BYTES))
