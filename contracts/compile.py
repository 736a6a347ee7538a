"""Compiles the contracts into the artifacts that the package ships, or checks that they are what ships.

    python contracts/compile.py            writes swarm/ledger/artifacts/*.json
    python contracts/compile.py --check    exits 1 and names every artifact that differs from its source

The same sources and compiler give the same bytes on every machine, so anybody can check that the code on a ledger is
the code that can be read here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import vyper
from vyper.compiler import compile_code

SOURCES = Path(__file__).parent
ARTIFACTS = SOURCES.parent / "swarm" / "ledger" / "artifacts"
CONTRACTS = ("Consortium", "Runs", "Blind")
EVM_VERSION = "cancun"
"""What each source asks for in its pragma; written down for those who compile again."""


@cache
def compile_source(name: str, source: str) -> dict[str, Any]:
    """The artifact of a contract's source text."""
    output = compile_code(source, output_formats=["abi", "bytecode", "layout"])
    return {
        "name": name,
        "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        "compiler": f"vyper {vyper.__version__}",
        "evm_version": EVM_VERSION,
        "abi": output["abi"],
        "layout": output["layout"],
        "bytecode": output["bytecode"],
    }


def render(artifact: dict[str, Any]) -> str:
    """The artifact as the text of its file."""
    return json.dumps(artifact, indent=1) + "\n"


def differences(found: str | None, wanted: dict[str, Any]) -> list[str]:
    """The keys in which an artifact's file differs from what the source gives, empty where nothing does."""
    if found is None:
        return ["it is missing"]
    try:
        document = json.loads(found)
    except ValueError as error:
        return [f"it is not JSON ({error})"]
    keys = [key for key in wanted if not isinstance(document, dict) or document.get(key) != wanted[key]]
    return keys or ([] if found == render(wanted) else ["its layout as a file"])


def main(arguments: list[str] | None = None, *, folder: Path = ARTIFACTS) -> int:
    """The exit status: 0, or 1 where `--check` found a difference."""
    parser = argparse.ArgumentParser(description="Compile the contracts.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 where they differ")
    check = parser.parse_args(arguments).check
    differ = False
    for name in CONTRACTS:
        wanted = compile_source(name, (SOURCES / f"{name}.vy").read_text())
        path = folder / f"{name}.json"
        found = path.read_text() if path.exists() else None
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(render(wanted))
            print(f"{path}: {len(wanted['bytecode']) // 2 - 1} bytes of bytecode")
            continue
        for difference in differences(found, wanted):
            differ = True
            print(f"{path} differs from contracts/{name}.vy: {difference}", file=sys.stderr)
    if differ:
        print("run `python contracts/compile.py` and commit what it writes", file=sys.stderr)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
