"""Other people's implementations that ours is held against; `make others` installs them, each in a place of its own."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / ".others"


def node_modules(package: str = "ethers") -> Path:
    """Where ethers, viem and js-libp2p are; skips where Node.js or `package` is missing.

    Scripts run with `node` and NODE_PATH here.
    """
    if shutil.which("node") is None:
        pytest.skip("Node.js is not on this machine")
    return _needed(ROOT / "node" / "node_modules" / package).parent


def foundry(name: str) -> Path:
    """The binary `anvil` or `cast`; skips where it is missing."""
    return _needed(ROOT / "node" / "node_modules" / f"@foundry-rs/{name}-linux-amd64" / "bin" / name)


def eels_python() -> Path:
    """A Python that has Ethereum's execution specification (`ethereum`); skips where it is missing."""
    return _needed(ROOT / "eels" / "bin" / "python")


def byzfl_path() -> Path:
    """A folder for PYTHONPATH that has ByzFL, for this Python; skips where it is missing."""
    return _needed(ROOT / "byzfl" / "byzfl").parent


def go_libp2p() -> Path:
    """The binary `p2pd`, go-libp2p as a daemon (`tests.others.p2pd` speaks with it); skips where it is missing."""
    return _needed(ROOT / "go" / "hivemind" / "hivemind_cli" / "p2pd")


def ray_path() -> Path:
    """A folder for PYTHONPATH that has Ray, for this Python; skips where it is missing."""
    return _needed(ROOT / "ray" / "ray").parent


def add_loops(package: str) -> None:
    """Let a `package` of somebody's training loop (lightning, peft, ...) be imported; skips where it is missing."""
    if find_spec(package) is None:
        sys.path.append(str(_needed(ROOT / "loops" / package).parent))


def _needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is missing: `make others` installs it", allow_module_level=True)
    return path
