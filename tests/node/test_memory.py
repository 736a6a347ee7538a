"""Holes that a flood leaves in the allocator's memory are given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from swarm.node.memory import free_bytes

HOLES = """
import asyncio, ctypes, psutil
from swarm.node import memory
memory.spare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
rss = psutil.Process().memory_info
before = rss().rss
blocks = [libc.malloc(ctypes.c_size_t(16_000)) for _ in range(15_000)]
for block in blocks:
    ctypes.memset(block, 1, 16_000)
last = blocks.pop()
for block in blocks[:-200]:
    libc.free(block)
held = rss().rss - before
async def look():
    task = asyncio.ensure_future(memory.give_back_for_ever(%s))
    await asyncio.sleep(0.5)
    task.cancel()
asyncio.run(look())
print(held, rss().rss - before)
"""


@pytest.mark.skipif(free_bytes() == 0, reason="this allocator does not say what is free")
@pytest.mark.parametrize(("every_s", "back"), [(0.05, True), (60.0, False)])
def test_free_pages_between_others_go_back_to_the_kernel(every_s: float, back: bool) -> None:
    done = subprocess.run([sys.executable, "-c", HOLES % every_s], capture_output=True, text=True, check=True)
    held, left = (int(part) for part in done.stdout.split())
    assert held > 200_000_000
    assert (left < 60_000_000) == back, "without a look nothing goes back"
