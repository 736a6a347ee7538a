"""What a node loads before it starts: libraries that it does not need cost a hospital half a second each."""

from __future__ import annotations

import subprocess
import sys

import typer

import swarm.cli

LATE = (
    "web3", "aiohttp", "eth_account", "eth_keyfile", "libp2p.host", "libp2p.kad_dht", "httpx", "starlette", "torch",
    "py_ecc.bls", "py_ecc.optimized_bls12_381", "swarm.audit", "swarm.cli.audit", "swarm.cli.demo",
)  # fmt: skip


def loaded_after(script: str) -> set[str]:
    code = f"{script}\nimport sys\nprint(*[name for name in {LATE!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_a_node_on_the_members_ledger_loads_no_library_that_it_does_not_use() -> None:
    assert loaded_after("import swarm.cli, swarm.cli.node, swarm.node.process") == set()


def test_a_precompile_of_a_later_fork_is_there_by_name_only() -> None:
    code = """
import swarm.ledger.evm
from eth.precompiles import bls12_pairing_check
from eth.vm.forks.cancun.computation import CancunComputation

places = {bytes(19) + bytes([place]) for place in range(0x0B, 0x12)}  # EIP-2537, from Prague on
assert not places & set(CancunComputation.get_precompiles())
bls12_pairing_check(None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "AssertionError: bls12_pairing_check is a precompile of Prague" in done.stderr


def test_every_command_that_help_lists_is_one_that_can_be_run() -> None:
    group = typer.main.get_command(swarm.cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    names = group.list_commands(None)  # type: ignore[arg-type]
    found = [group.get_command(None, name) for name in names]  # type: ignore[arg-type]
    assert [command.name for command in found if command is not None and command.get_short_help_str()] == names
    assert {"run", "members", "export", "recover"} <= set(names)
    assert group.get_command(None, "nothing") is None  # type: ignore[arg-type]


def test_a_package_that_was_postponed_starts_when_it_is_asked() -> None:
    script = "import swarm.net.libp2p\nfrom libp2p import new_host\nfrom libp2p.security.tls import transport"
    assert "libp2p.host" in loaded_after(script)
