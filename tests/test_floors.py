"""Who may import whom: the picture of the design as data. When the picture changes, change it here.

Imports are read from the sources, those inside functions too; those under `if TYPE_CHECKING` count as well,
because a type that comes from above is knowledge of it. Only `swarm/__init__.py` shows names from everywhere,
and it does so when they are asked for.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up. Parts on one line are neighbours and do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "quorum"),
    ("encoding",),
    ("identity", "merkle"),
    ("config",),
    ("consensus", "merge", "rounds", "course"),
    ("blind",),
    ("store",),
    ("ledger", "net"),
    ("node",),
    ("learn", "audit", "dashboard"),
    ("cli",),
)

# Each outside package and the files or folders that may import it: its doors.
DOORS: dict[str, tuple[str, ...]] = {
    "eth": ("swarm/ledger/evm.py",),
    "sha3": ("swarm/encoding.py",),
    "blake3": ("swarm/merkle.py",),
    "eth_keys": ("swarm/identity.py",),
    "eth_account": ("swarm/identity.py", "swarm/ledger"),
    "py_ecc": ("swarm/identity.py",),
    "eth_utils": ("swarm/identity.py", "swarm/ledger"),
    "eth_abi": ("swarm/ledger",),
    "rlp": ("swarm/encoding.py", "swarm/ledger"),
    "trie": ("swarm/ledger",),
    "coincurve": ("swarm/identity.py", "swarm/net"),
    "base58": ("swarm/identity.py", "swarm/net"),
    "aiohttp": ("swarm/ledger",),  # links to other networks' nodes, and what web3's HTTP provider raises
    "web3": ("swarm/ledger", "swarm/node", "swarm/cli"),
    "starlette": tuple(f"swarm/ledger/web{part}.py" for part in ("", "_guard", "_metrics", "_server")),
    "uvicorn": ("swarm/ledger/web_server.py",),
    "h11": ("swarm/ledger/web_server.py",),
    "websockets": ("swarm/ledger/web_server.py",),
    "prometheus_client": ("swarm/node/metrics.py",),
    "numpy": ("swarm/merge", "swarm/learn"),
    "cryptography": ("swarm/identity.py", "swarm/merge", "swarm/net"),
    "Crypto": ("swarm/merge/blind/shares.py",),
    "libp2p": ("swarm/net",),
    "trio": ("swarm/net",),
    "multiaddr": ("swarm/net",),
    "torch": ("swarm/learn",),
    "safetensors": ("swarm/learn",),
    "lightning": ("swarm/learn/lightning.py",),
    "pytorch_lightning": ("swarm/learn/lightning.py",),
    "transformers": ("swarm/learn/transformers.py",),
    "mlflow": ("swarm/learn/trackers.py",),
    "opacus": tuple(f"swarm/learn/private{part}.py" for part in ("", "_budget", "_model", "_steps")),
    "typer": ("swarm/cli",),
    "rich": ("swarm/cli",),
    "vyper": ("contracts/compile.py",),
}

# A rule takes values and the time and returns values: no clock, no I/O, no tasks, no chance, no log.
RULES = ("errors", "quorum", "encoding", "merkle", "consensus", "merge", "rounds", "course", "blind")
NOT_IN_RULES = {
    "asyncio",
    "logging",
    "random",
    "secrets",
    "select",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
}
TASKS_LIVE_IN = (
    "swarm/ledger",
    "swarm/net",
    "swarm/node",
    "swarm/learn",
    "swarm/audit",
    "swarm/dashboard",
    "swarm/cli",
)

EXAMPLES_MAY_IMPORT = {"swarm", "swarm.learn"}

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load"}


@dataclass(frozen=True)
class Import:
    """One imported module: `swarm.ledger.client`, at a line of a file."""

    module: str
    line: int
    lazy: bool
    """Inside a function or `if TYPE_CHECKING`: it does not happen when the module is imported."""


def imports_of(path: Path, source: str) -> Iterator[Import]:
    """Every module that a file imports; `from x import y` counts as `x.y` where that is a module or may be one."""
    for node, lazy in _walk(ast.parse(source), lazy=False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(ROOT).with_suffix("").parts)
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            stem = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield Import(f"{stem}.{alias.name}" if _is_module(stem, alias.name) else stem, node.lineno, lazy)


def _walk(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, lazy
        yield from _walk(child, lazy=lazy or _is_lazy(child))


def _is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _is_module(stem: str, name: str) -> bool:
    folder = ROOT.joinpath(*stem.split("."))
    return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


def part_of(path: Path) -> str:
    """`ledger` for swarm/ledger/evm.py and `rounds` for swarm/rounds.py; '' for the package's own front."""
    inside = path.relative_to(ROOT / "swarm").with_suffix("").parts
    return "" if inside[0] in ("__init__", "__main__") else inside[0]


def floor_of(part: str) -> int:
    for number, parts in enumerate(FLOORS):
        if part in parts:
            return number
    raise AssertionError(f"swarm/{part} stands on no floor: give it one in FLOORS")


def faults_of(path: Path, source: str) -> list[str]:
    """What in one file goes against the tables above, in words."""
    where = path.relative_to(ROOT).as_posix()
    found: list[str] = []
    for item in imports_of(path, source):
        at = f"{where}:{item.line}"
        top = item.module.split(".")[0]
        if top in UNSAFE_MODULES:
            found.append(f"{at} imports {top}: what comes from outside is never unpickled")
        if where.startswith("nodes/") and top == "swarm" and item.module not in EXAMPLES_MAY_IMPORT:
            found.append(f"{at} imports {item.module}; an example uses what `swarm` and `swarm.learn` show")
        if where.startswith(("swarm/", "contracts/")) and top in DOORS and not _within(where, DOORS[top]):
            found.append(f"{at} imports {top}, whose door is {', '.join(DOORS[top])}")
        if where.startswith("swarm/"):
            found.extend(f"{at} {fault}" for fault in _floor_faults(path, where, item, top))
    found.extend(f"{where}:{line} calls {name}()" for name, line in _unsafe_calls(source))
    return found


def _floor_faults(path: Path, where: str, item: Import, top: str) -> Iterator[str]:
    part = part_of(path)
    if top == "swarm" and item.module != "swarm":
        other = item.module.split(".")[1]
        if not part and not item.lazy and where == "swarm/__init__.py" and floor_of(other) > floor_of("config"):
            yield f"imports {item.module} at once; `import swarm` is quick, so show it when it is asked for"
        elif part and part != other and floor_of(other) >= floor_of(part):
            relation = "its neighbour" if floor_of(other) == floor_of(part) else "above it"
            yield f"imports {item.module}, {relation}: imports go down"
    elif top not in DOORS and top not in sys.stdlib_module_names and top != "swarm":
        yield f"imports {top}, which has no door: give it one in DOORS"
    if part in RULES and top in NOT_IN_RULES:
        yield f"imports {top}; a rule opens nothing, reads no clock and logs nothing"
    if top == "asyncio" and not _within(where, TASKS_LIVE_IN):
        yield "imports asyncio; tasks live in the drivers, the node and above"


def _within(where: str, places: Iterable[str]) -> bool:
    return any(where == place or where.startswith(f"{place}/") for place in places)


def _unsafe_calls(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            pickled = any(
                keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
                for keyword in node.keywords
            )
            if name in UNSAFE_CALLS or pickled:
                yield name, node.lineno


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_every_import_goes_down_and_through_its_door() -> None:
    files = sources("swarm", "contracts", "nodes", "sim", "bench")
    assert len(files) > 10
    assert [fault for path in files for fault in faults_of(path, path.read_text())] == []


PLANTED = {
    ("swarm/store/objects.py", "import swarm.ledger.ledger"): "above it",
    ("swarm/errors.py", "from swarm.encoding import short"): "above it",
    ("swarm/net/transport.py", "from swarm.ledger import client"): "its neighbour",
    ("swarm/net/transport.py", "from ..ledger import client"): "its neighbour",
    ("swarm/merge/mean.py", "def f():\n    from swarm.rounds import Phase"): "its neighbour",
    ("swarm/ledger/ledger.py", "if TYPE_CHECKING:\n    from swarm.node.process import run_node"): "above it",
    ("swarm/ledger/ledger.py", "from eth.vm.base import VM"): "door",
    ("swarm/node/process.py", "import torch.nn"): "door",
    ("swarm/node/process.py", "def f():\n    import trio"): "door",
    ("swarm/store/objects.py", "import requests"): "has no door",
    ("swarm/ledger/genesis.py", "import vyper"): "door",
    ("swarm/consensus/qbft.py", "import time"): "no clock",
    ("swarm/rounds.py", "from time import monotonic"): "no clock",
    ("swarm/store/objects.py", "import asyncio"): "tasks live",
    ("swarm/store/objects.py", "import pickle"): "unpickled",
    ("swarm/learn/state.py", "import torch\ntorch.load('x')"): "calls torch.load()",
    ("sim/world.py", "eval('1')"): "calls eval()",
    ("swarm/merge/mean.py", "import numpy as np\nnp.load(p, allow_pickle=True)"): "calls np.load()",
    ("swarm/mystery.py", "import swarm.errors"): "no floor",
    ("swarm/__init__.py", "from swarm.learn import SwarmCallback"): "at once",
    ("nodes/heart/train.py", "from swarm.store import Store"): "an example uses",
}


@pytest.mark.parametrize(("place", "fault"), list(PLANTED.items()), ids=lambda item: str(item)[:60])
def test_a_planted_violation_is_found(place: tuple[str, str], fault: str) -> None:
    where, source = place
    try:
        found = faults_of(ROOT / where, source)
    except AssertionError as error:
        found = [str(error)]
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("swarm/ledger/evm.py", "from eth.vm.base import VM\nfrom swarm.store import Store"),
        ("swarm/cli/demo.py", "from swarm.learn import state\nimport rich.live"),
        ("swarm/__init__.py", "if TYPE_CHECKING:\n    from swarm.learn import callback"),
        ("swarm/__init__.py", "def __getattr__(name):\n    from swarm.learn import callback\n    return callback"),
        ("nodes/heart/train.py", "import torch\nfrom swarm import SwarmCallback\nfrom swarm.learn import adopt"),
        ("sim/world.py", "from swarm.node import process\nimport trio"),
    ],
)
def test_what_the_picture_allows_is_allowed(where: str, source: str) -> None:
    assert faults_of(ROOT / where, source) == []


@pytest.mark.parametrize("module", ["swarm", "swarm.cli"])
def test_importing_the_front_pulls_in_neither_torch_nor_the_evm_nor_libp2p(module: str) -> None:
    heavy = {"torch", "eth", "libp2p", "trio", "vyper"}
    script = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
