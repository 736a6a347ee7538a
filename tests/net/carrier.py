"""One site of a transfer in a namespace: it serves what its store holds, and pulls one object.

The first line of its input is the plan. It prints a line when it listens, another when the object is here, and ends
with its input. Run by `tests.net.test_namespaces` as `python -m tests.net.carrier`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from swarm.config import RelayConfig
from swarm.encoding import from_hex
from swarm.errors import UnavailableError
from swarm.net.libp2p import Libp2pTransport
from swarm.net.transfer import pull, serve_objects
from swarm.store import Store
from tests.net.kit import identity


async def carry(plan: dict[str, Any]) -> None:
    store = Store(Path(plan["folder"]), 4 << 30, durable=False)
    relay = RelayConfig() if plan["relays"] else None
    transport = Libp2pTransport(identity(plan["number"]), plan["listen"], ping_s=plan["ping_s"], relay=relay)
    serve_objects(transport, store, lambda member, digest: True)
    await transport.start()
    transport.set_members({identity(int(n)).address: endpoint for n, endpoint in plan["members"].items()})
    print("listens", flush=True)
    if plan["wanted"]:
        await asyncio.sleep(plan["idle_s"])
        digest, began_s = from_hex(plan["wanted"], size=32), time.monotonic()
        sources = tuple(identity(number).address for number in plan["sources"])
        while not store.has(digest):
            try:
                await pull(transport, store, digest, sources, size_max=4 << 30)
            except UnavailableError:
                await asyncio.sleep(0.3)
        told = {"seconds": time.monotonic() - began_s}
        for name in ("received_bytes", "connections", "lost", "requests_failed"):
            told[name] = sum(getattr(traffic, name) for traffic in transport.meter.peers.values())
        print(json.dumps(told), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await transport.close()


if __name__ == "__main__":
    asyncio.run(carry(json.loads(sys.stdin.readline())))
