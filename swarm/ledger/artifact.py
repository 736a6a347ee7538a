"""The compiled contracts that ship with the package; `contracts/compile.py` writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from eth_abi.abi import encode

from swarm.encoding import Digest, from_hex, sha256
from swarm.errors import ConfigError


@dataclass(frozen=True)
class Artifact:
    """A compiled contract."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    """What creates it, without the constructor's arguments."""
    digest: Digest
    """SHA-256 of the artifact's file: genesis commits to it."""

    def creation(self, *arguments: object) -> bytes:
        """The bytecode that creates the contract with these constructor arguments."""
        inputs: list[dict[str, Any]] = next(
            (entry["inputs"] for entry in self.abi if entry["type"] == "constructor"), []
        )
        kinds = [_kind(entry) for entry in inputs]
        return self.bytecode + encode(kinds, arguments)


def _kind(entry: dict[str, Any]) -> str:
    """An ABI type as text, structs written out as tuples."""
    kind = str(entry["type"])
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(_kind(part) for part in entry["components"]) + ")" + kind.removeprefix("tuple")


@cache
def artifact(name: str) -> Artifact:
    """The contract called `Consortium` or `Runs`; ConfigError if the installation lacks it."""
    try:
        data = resources.files("swarm.ledger").joinpath("artifacts", f"{name}.json").read_bytes()
        document = json.loads(data)
        return Artifact(name, document["abi"], from_hex(document["bytecode"]), sha256(data))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the compiled contract {name} is missing or damaged in this installation; "
            f"`python contracts/compile.py` writes it ({error})"
        ) from error
