"""`swarm demo` as a whole, with its real processes: it holds, it believes only what holds, it leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.cli.demo import MARK, fresh
from tests.cli.conftest import run
from tests.ledger.specification import accepted, blocks_of, chain_on_disk
from tests.node.hospitals import Hospitals

HOSPITALS = ["cleveland", "hungarian", "switzerland", "va"]


def demo(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "swarm", "demo", "--dir", str(folder), *arguments]


def processes_of(folder: Path) -> list[int]:
    """The processes that name the folder in their command line, without those of the demo itself."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if bytes(folder) in line and b"demo\0--dir" not in line:
            found.append(int(entry.parent.name))
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One demo with a killed leader, short enough to be waited for, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    command = demo(folder, "--rounds", "8", "--seed", "1")
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
class TestTheDemo:
    def test_everything_holds_with_a_leader_killed_in_the_middle(self, done: Any) -> None:
        folder, ended = done
        assert ended.returncode == 0, ended.stdout + ended.stderr
        told = ended.stdout
        victim = re.search(r"SIGKILL to (\w+), node and training: it leads round (\d+)", told)
        assert victim is not None
        assert victim[1] in HOSPITALS
        assert f"{victim[1]} was killed while it led round {victim[2]}" in told
        assert "merged all the same" in told
        assert f"{victim[1]} caught up" in told
        assert "one checkpoint at all four hospitals: 0x" in told
        assert "audit passed" in told
        assert (folder / "final-model.safetensors").stat().st_size > 0
        assert processes_of(folder) == []

    def test_the_swarm_is_as_good_as_all_patients_in_one_place(self, done: Any) -> None:
        folder, _ = done
        results = json.loads((folder / "results.json").read_text())["results"]
        auc = {row["method"].split(",")[0]: row["everywhere"]["auc"] for row in results if "shared" in row["method"]}
        assert auc["swarm"] > auc["local"]
        assert auc["swarm"] > auc["pooled"] - 0.02

    def test_the_ledger_tells_of_the_kill_to_whoever_was_not_there(self, done: Any) -> None:
        folder, ended = done
        victim = re.search(r"SIGKILL to (\w+)", ended.stdout)
        assert victim is not None
        told = run("audit", folder / "state" / "va", "--json")
        assert told.exit_code == 0
        (site,) = json.loads(told.stdout)["sites"]
        assert site["rounds"] == site["merges"] == 9

    def test_ethereums_specification_executes_every_block_of_it(self, done: Any) -> None:
        folder, _ = done
        ledger = chain_on_disk(folder / "swarm.toml", folder / "state" / "cleveland")
        assert accepted([ledger]) == blocks_of([ledger]) > 30

    def test_a_byte_changed_in_one_hospitals_store_afterwards_is_found(self, done: Any) -> None:
        folder, _ = done
        store = folder / "state" / "hungarian" / "store"
        victim = max((path for path in store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.chmod(0o600)
        victim.write_bytes(data)
        result = run("audit", folder)
        assert result.exit_code == 1, result.output
        assert "audit failed: hungarian" in result.stdout


@pytest.mark.slow
def test_a_demo_that_is_told_to_stop_leaves_no_process_behind(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen(demo(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "training starts" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        assert len(processes_of(folder)) >= len(HOSPITALS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert "Traceback" not in process.stderr.read()
    assert processes_of(folder) == []


def test_a_folder_that_no_demo_made_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        result = run("demo", "--dir", place)
        assert result.exit_code == 2
        assert "name a" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "three years"


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Hospitals]:
    """A node that still runs in an earlier demo's folder, as after the demo itself was killed."""
    with Hospitals(tmp_path, ["solo"]) as found:
        (found.folder / MARK).touch()
        found.start("solo")
        found.ask("solo", "swarm_status")
        yield found


def test_an_earlier_demo_is_replaced_and_a_node_that_it_left_behind_is_ended(left_behind: Hospitals) -> None:
    node = left_behind.processes["solo"]
    fresh(left_behind.folder)
    until = time.monotonic() + 10
    while node.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert node.returncode == 0
    assert not left_behind.folder.exists()
