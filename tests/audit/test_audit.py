"""An audit passes on what a swarm left behind, and fails at every byte that is changed, naming what differs."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from swarm.audit import audit
from tests.ledger.specification import accepted, blocks_of, chain_on_disk
from tests.node.hospitals import Hospitals

NAMES = ["north", "east", "south", "west"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What three rounds of four real nodes left on disk."""
    with Hospitals(tmp_path_factory.mktemp("audited"), NAMES) as hospitals:
        for name in NAMES:
            hospitals.start(name)
        hospitals.open_run(rounds=3)
        for name in NAMES:
            hospitals.train(name)
        hospitals.join()
        hospitals.stop()
        yield hospitals.folder


@pytest.fixture
def site(consortium: Path, tmp_path: Path) -> Path:
    """A copy of one site's folder that a test may damage, below the consortium's swarm.toml."""
    shutil.copy(consortium / "swarm.toml", tmp_path)
    return Path(shutil.copytree(consortium / "state" / "north", tmp_path / "north"))


def rows(site: Path) -> int:
    with closing(sqlite3.connect(site / "ledger" / "ledger.sqlite")) as file:
        (count,) = file.execute("SELECT COUNT(*) FROM blocks").fetchone()
    return int(count)


def change_column(site: Path, column: str, number: int, at: int, flip: int) -> bool:
    """Flip bits of one byte of a block's column; False if the column has no such byte."""
    with closing(sqlite3.connect(site / "ledger" / "ledger.sqlite")) as file:
        (data,) = file.execute(f"SELECT {column} FROM blocks WHERE number = ?", (number,)).fetchone()
        if not data:
            return False
        changed = bytearray(data)
        changed[at % len(changed)] ^= flip
        file.execute(f"UPDATE blocks SET {column} = ? WHERE number = ?", (bytes(changed), number))
        file.commit()
    return True


def test_what_a_swarm_left_behind_passes(consortium: Path) -> None:
    report = audit(consortium)
    assert report.ok, report.lines
    assert [found.site for found in report.sites] == sorted(NAMES)
    assert {(found.rounds, found.merges) for found in report.sites} == {(3, 3)}
    for found in report.sites:
        assert [(one.run, one.round) for one in found.seen] == [(1, 0), (1, 1), (1, 2)]
        for one in found.seen:
            assert sum(update.seen.share for update in one.updates) == pytest.approx(1)
            assert len(one.updates) + len(one.left_out) == len(NAMES)
    assert len({found.head for found in report.sites}) == 1


def test_ethereums_specification_executes_every_block_of_real_nodes_and_finds_the_same_state(consortium: Path) -> None:
    ledger = chain_on_disk(consortium / "swarm.toml", consortium / "state" / "north")
    assert accepted([ledger]) == blocks_of([ledger]) > 10


@pytest.mark.parametrize("column", ["payload", "certificate", "receipts"])
def test_every_byte_of_a_block_its_certificate_and_its_receipts_counts(site: Path, column: str) -> None:
    chance = random.Random(column)
    clean = (site / "ledger" / "ledger.sqlite").read_bytes()
    count = rows(site)
    tried = 0
    while tried < 60:
        number, at, flip = chance.randrange(1, count), chance.randrange(1 << 20), chance.randrange(1, 256)
        if not change_column(site, column, number, at, flip):
            continue
        tried += 1
        report = audit(site)
        assert not report.ok, f"block {number}: {column} byte {at} changed by {flip:#x} went unnoticed"
        assert f"block {number}" in str(report.first_difference) or f"block {number + 1}" in str(
            report.first_difference
        )
        for extra in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
            (site / "ledger" / extra).unlink(missing_ok=True)
        (site / "ledger" / "ledger.sqlite").write_bytes(clean)
    assert audit(site).ok


def test_every_byte_of_a_stored_object_counts(site: Path) -> None:
    chance = random.Random(7)
    places = [place for place in sorted((site / "store" / "objects").glob("??/*")) if len(place.name) == 62]
    assert len(places) > 10
    for _ in range(40):
        place = chance.choice(places)
        clean = place.read_bytes()
        changed = bytearray(clean)
        changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
        place.chmod(0o600)
        place.write_bytes(changed)
        report = audit(site)
        assert not report.ok
        assert (place.parent.name + place.name)[:8] in str(report.first_difference)
        place.write_bytes(clean)
    assert audit(site).ok


def test_every_byte_of_a_contract_artifact_counts(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "installation"
    shutil.copytree(ROOT / "swarm", copy / "swarm", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import json, random, sys
from pathlib import Path
from swarm.audit import audit
from swarm.ledger.abi import interface
from swarm.ledger.artifact import artifact
folder, site = Path(sys.argv[1]), Path(sys.argv[2])
chance, told = random.Random(11), []
def look():
    artifact.cache_clear(); interface.cache_clear()
    return audit(site)
assert look().ok
for _ in range(40):
    name = chance.choice(["Consortium", "Runs"])
    place = folder / f"{name}.json"
    clean = place.read_bytes()
    changed = bytearray(clean)
    changed[chance.randrange(len(changed))] ^= chance.randrange(1, 128)
    place.write_bytes(changed)
    report = look()
    told.append([name, report.ok, str(report.first_difference)])
    place.write_bytes(clean)
print(json.dumps(told))
"""
    artifacts = copy / "swarm" / "ledger" / "artifacts"
    done = subprocess.run(
        [sys.executable, "-c", script, str(artifacts), str(site)],
        env={"PYTHONPATH": str(copy), "PATH": ""},
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, ok, difference in json.loads(done.stdout):
        assert not ok
        assert name in difference


def test_a_truncated_ledger_is_named(site: Path) -> None:
    file = site / "ledger" / "ledger.sqlite"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    report = audit(site)
    assert not report.ok
    assert "ledger.sqlite" in str(report.first_difference)


def test_a_block_that_is_taken_out_is_missed(site: Path) -> None:
    with closing(sqlite3.connect(site / "ledger" / "ledger.sqlite")) as file:
        file.execute("DELETE FROM blocks WHERE number = 3")
        file.commit()
    assert "block 3 is missing" in str(audit(site).first_difference)


def test_another_swarm_toml_does_not_fit_the_ledger(site: Path) -> None:
    settings = site.parent / "swarm.toml"
    settings.write_text(settings.read_text().replace('name = "north"', 'name = "nord"'))
    assert "swarm.toml" in str(audit(site).first_difference)
