"""What a node loads before it starts: libraries that it does not need cost a hospital half a second each."""

from __future__ import annotations

import subprocess
import sys

LATE = ("web3", "aiohttp", "eth_account", "eth_keyfile", "libp2p.host", "libp2p.kad_dht", "httpx", "starlette", "torch")


def loaded_after(script: str) -> set[str]:
    code = f"{script}\nimport sys\nprint(*[name for name in {LATE!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_a_node_on_the_members_ledger_loads_no_library_that_it_does_not_use() -> None:
    assert loaded_after("import swarm.cli, swarm.node.process") == set()


def test_a_package_that_was_postponed_starts_when_it_is_asked() -> None:
    script = "import swarm.net.libp2p\nfrom libp2p import new_host\nfrom libp2p.security.tls import transport"
    assert "libp2p.host" in loaded_after(script)
