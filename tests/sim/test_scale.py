"""Many virtual sites on one ledger are the swarm that a few real nodes are, and an interrupted run loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sim.scale.command import main
from sim.scale.needs import needs_of
from sim.scale.placement import cut, institutions_of, peers_of
from sim.scale.prepared import Institution, Prepared, Request, prepare
from sim.scale.results import results
from sim.scale.rounds import Broken, Closed, Swarm
from sim.scale.work import Parts, make_part, samples_of
from sim.study import arms
from sim.study.experiment import Scenario
from sim.study.study import one_thread
from swarm.audit import audit
from swarm.encoding import Address, Digest
from swarm.errors import ConfigError
from swarm.learn import save_model
from swarm.learn.recipes import load_recipe, sites_of
from swarm.merge import merge_files
from swarm.rounds import Merge
from tests.others import ray_path

ROOT = Path(__file__).parents[2]
HEART = ROOT / "nodes" / "heart"
POLICY = """
[run]
name = "short"
rounds = 3
sync_interval = 5
weight_max = 10_000
"""
EXPERIMENT = """
[experiment]
name = "short"
recipe = "{recipe}"
policy = "policy.toml"
bootstrap = 100
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Here:
    """Trains in this process."""

    name, jobs = "here", 1

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def train(self, institutions: Sequence[Institution], number: int, base: Path, parts: Parts) -> Iterator[int]:
        for one in institutions:
            make_part(self._prepared, one, number, base, parts)
            yield one.number

    def close(self) -> None:
        pass


def write(
    folder: Path, *, policy: str = "", scenario: str = "", recipe: Path = HEART, rounds: int = 3, experiment: str = ""
) -> Path:
    """An experiment's file in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.toml").write_text(POLICY.replace("rounds = 3", f"rounds = {rounds}") + policy)
    path = folder / "experiment.toml"
    path.write_text(EXPERIMENT.format(recipe=recipe) + experiment + scenario)
    return path


def play(
    prepared: Prepared, folder: Path, *, verifiers: int = 2, kind: type[Swarm] = Swarm
) -> tuple[dict[str, Any], Swarm, list[Closed]]:
    folder.mkdir(exist_ok=True)
    swarm = kind(prepared, folder, Here(prepared), verifiers=verifiers, store_max_bytes=1 << 30)
    try:
        closed = list(swarm.play())
        return results(prepared, swarm, closed), swarm, closed
    finally:
        swarm.close()


def plain(prepared: Prepared) -> str:
    """The last checkpoint of the same merges without ledger and members."""
    return arms.swarm(prepared.study, prepared.request.seed).checkpoint.hex()


def test_the_shared_ledger_ends_with_the_bytes_of_the_merges_without_one_and_an_audit_finds_nothing(
    tmp_path: Path,
) -> None:
    prepared = prepare(Request(write(tmp_path)))
    found, swarm, _ = play(prepared, tmp_path / "out")
    assert found["checkpoint"] == plain(prepared)
    assert swarm.merged_themselves == 2 * 3
    report = audit(tmp_path / "out")
    assert report.ok, report.first_difference
    (site,) = report.sites
    assert (site.rounds, site.merges) == (3, 3)


def test_sites_that_come_late_or_leave_cost_a_deadline_and_no_bytes(tmp_path: Path) -> None:
    scenario = "[scenario]\nlate = { va = 2 }\nleaves = { hungarian = 1 }\n"
    prepared = prepare(Request(write(tmp_path, scenario=scenario)))
    _, swarm, closed = play(prepared, tmp_path / "out")
    assert [one.institutions for one in closed] == [3, 2, 3]
    assert closed[-1].checkpoint == plain(prepared)
    assert swarm.chain.now_ms > 1_700_000_000_000 + 2 * 30_000  # submit_s, once for each who is awaited and away


def test_an_institutions_update_is_the_mean_of_its_sites(tmp_path: Path) -> None:
    policy = 'merge = "mean"\nweight_ratio_max = 1e9\n'
    small = '[scenario]\nkind = "small"\nsites = 6\nalpha = 1.0\n'
    prepared = prepare(Request(write(tmp_path, policy=policy, scenario=small), peers=7, institutions=3))
    _, swarm, closed = play(prepared, tmp_path / "out")
    assert [one.sites for one in closed] == [7, 7, 7]
    grouped = swarm.model(bytes.fromhex(closed[-1].checkpoint)).state_dict()
    flat = arms.swarm(prepared.study, 0).model.state_dict()
    for name, value in flat.items():
        torch.testing.assert_close(grouped[name], value, rtol=0, atol=1e-6)


def test_an_institution_counts_for_all_rows_of_its_sites_and_its_mean_is_exact(tmp_path: Path) -> None:
    prepared = prepare(Request(write(tmp_path), peers=7, institutions=3))
    base, parts = tmp_path / "base", Parts(tmp_path / "parts")
    save_model(prepared.recipe.new_model(0), base)
    institution = prepared.institutions[1]
    part = make_part(prepared, institution, 0, base, parts)
    made = [arms.update(prepared.study, p, 0, 0, base, tmp_path / p.name) for p in institution.peers]
    assert len(made) == part.sites == 2
    assert part.weight == sum(weight for _, weight in made) == part.samples
    # The institution's update moves the checkpoint to where both updates with their weights do, to the last bit.
    mean = replace(prepared.policy, merge="mean", weight_ratio_max=2.0**39)
    both = merge_files(base, [path for path, _ in made], [w for _, w in made], mean, tmp_path / "both")
    assert merge_files(base, [parts.path(1)], [part.weight], mean, tmp_path / "one") == both


def test_a_site_counts_the_rows_that_it_saw() -> None:
    for rows, batch, batches in [(10, 4, 1), (10, 4, 3), (10, 4, 8), (3, 4, 5), (8, 4, 3)]:
        chance = torch.Generator().manual_seed(0)
        seen = sum(len(index) for index in arms.stream(rows, batch, chance, batches))
        assert samples_of(rows, batch, batches) == seen


class LyingLeader(Swarm):
    """Whoever is the leader finds something else than the merge."""

    def merge(self, who: Address, duty: Merge) -> Digest:
        found = super().merge(who, duty)
        state = self.chain.ask(self.chain.contracts.round_state(duty.run))
        if who != state.leader:
            return found
        checkpoint = bytearray(self._store.read(found, 0, self._store.size(found)))
        checkpoint[-1] ^= 1
        return self._store.put(bytes(checkpoint))


def test_a_leader_whose_merge_is_wrong_is_found_by_those_who_merge_for_themselves(tmp_path: Path) -> None:
    prepared = prepare(Request(write(tmp_path)))
    with pytest.raises(Broken, match="it owes Refuse"):
        play(prepared, tmp_path / "out", kind=LyingLeader)
    # Where nobody but the leader merges, all others take over what it says, and an audit finds it.
    play(prepared, tmp_path / "believed", kind=LyingLeader, verifiers=1)
    report = audit(tmp_path / "believed")
    assert not report.ok
    assert "round 0" in (report.first_difference or "")


def test_more_sites_than_members_are_institutions_of_128(tmp_path: Path) -> None:
    small = '[scenario]\nkind = "small"\nsites = 2\nalpha = 0.3\n'
    path = write(tmp_path, scenario=small, recipe=ROOT / "bench" / "small", rounds=1)
    prepared = prepare(Request(path, peers=150, share=0.5))
    found, swarm, closed = play(prepared, tmp_path / "out")
    assert (closed[0].institutions, closed[0].sites) == (128, 128)  # half of one or two is one
    assert [(one["submissions"], one["attestations"]) for one in found["rounds"]] == [(128, 86)]
    assert {refusal.reason for refusal in swarm.refusals} == {"the run is not open"}
    assert len(swarm.refusals) == 128 - 86


def test_a_share_of_the_sites_is_drawn_anew_for_every_round(tmp_path: Path) -> None:
    prepared = prepare(Request(write(tmp_path), peers=40, institutions=2, share=0.25))
    drawn = [[p.number for p in prepared.present(prepared.institutions[0], number)] for number in range(3)]
    assert [len(one) for one in drawn] == [5, 5, 5]
    assert len({tuple(one) for one in drawn}) == 3


SITES = sites_of(load_recipe(HEART))
ROWS = sum(len(site.train) for site in SITES)


@pytest.mark.parametrize(
    ("kind", "peers"),
    [(kind, peers) for kind in ("natural", "small") for peers in (4, 7, 100, ROWS)] + [("even", 7), ("even", 100)],
)
def test_every_row_belongs_to_one_site_and_every_site_to_one_institution(kind: str, peers: int) -> None:
    scenario = Scenario(kind=kind, alpha=0.1)
    found = peers_of(SITES, scenario, "binary", peers)
    assert len({site.name for site in found}) == peers
    rows = torch.cat([site.train.x for site in found])
    assert sorted(map(tuple, rows.tolist())) == sorted(tuple(r) for site in SITES for r in site.train.x.tolist())
    assert all(len(site.train) for site in found)
    places = [place for one in institutions_of(peers, 0) for place in one]
    assert places == list(range(peers))


def test_departments_have_rows_of_one_hospital_and_the_larger_one_has_more_of_them() -> None:
    found = cut(SITES, 40)
    parts = {site.name: [one for one in found if one.name.rpartition("-")[0] == site.name] for site in SITES}
    for site in SITES:
        held = torch.cat([one.train.x for one in parts[site.name]])
        assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, site.train.x.tolist()))
    order = sorted(SITES, key=lambda site: len(site.train))
    assert [len(parts[site.name]) for site in order] == sorted(len(parts[site.name]) for site in order)


def test_small_sites_differ_in_their_mixture_the_more_the_smaller_alpha_is() -> None:
    def spread(alpha: float) -> float:
        found = peers_of(SITES, Scenario(kind="small", alpha=alpha), "binary", 30)
        return float(np.std([site.train.y.mean() for site in found]))

    assert spread(0.05) > 0.3 > 0.15 > spread(100.0)


@pytest.mark.parametrize(
    ("options", "scenario", "said"),
    [
        ("--peers 487", "", "486 training rows"),
        ("--peers 3", "", "4 sites, which are cut"),
        ("--peers 1", "", "2 to 16384"),
        ("--peers 300", '[scenario]\nkind = "dirichlet"\nsites = 4\n', "have none"),
        ("--peers 6", '[scenario]\nkind = "sizes"\nshares = [0.5, 0.5]\n', "there are 2 sites"),
        ("--institutions 5", "", "2 to 128"),
        ("--peers 200 --institutions 129", "", "2 to 128"),
        ("--share 0", "", "above 0"),
        ("--jobs 0", "", "1 or more"),
        ("--memory 0.1", "", "may be used"),
        ("", '[scenario]\nkinds = "even"\n', "has no 'kinds'"),
        ("", "[scenario]\nlate = { lausanne = 1 }\n", "no site 'lausanne'"),
        ("", "[scenario]\nlate = { va = 1, switzerland = 1, hungarian = 1 }\n", "in round 0 only 1 of 4"),
        ("", '[scenario]\nunseen = ["va", "switzerland", "hungarian"]\n', "fewer than two sites train"),
        ("--engine ray --ray-address 127.0.0.1:1", "", "ray"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(
    options: str, scenario: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, scenario=scenario)
    assert main([str(path), *options.split(), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "parts").exists()


NOT_SIMULATED = {
    "blind": "blind = true\nsubmissions_min = 3\nmerge = 'mean'",
    "scaffold": "scaffold = true\nmerge = 'mean'",
    "personal": 'personal = ["bias"]',
    "work_s": "work_s = 1.0",
    "sync_interval_max": "sync_interval_max = 9",
    "best_metric": 'best_metric = "auc"',
    "epsilon": "epsilon = 8.0\ndelta = 1e-3\nclip = 1.0",
    "replace_batchnorm": "replace_batchnorm = true",
}


@pytest.mark.parametrize("key", NOT_SIMULATED)
def test_a_policy_that_is_not_simulated_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"the policy \w+ says {key} = "):
        prepare(Request(write(tmp_path, policy=NOT_SIMULATED[key] + "\n")))


def test_a_model_that_the_machine_cannot_hold_is_refused_with_the_numbers(tmp_path: Path) -> None:
    prepared = prepare(Request(write(tmp_path, recipe=ROOT / "bench" / "small"), peers=100))
    one, two = needs_of(prepared, 1), needs_of(prepared, 2)
    assert one.model == 400_000
    assert two.memory > one.memory + 8 * one.model
    with pytest.raises(ConfigError, match=r"about \d+\.\d GB of memory, and 0\.2 GB"):
        two.check(memory=200_000_000, disk=1 << 40, jobs=2)
    with pytest.raises(ConfigError, match="of disk"):
        two.check(memory=1 << 40, disk=1_000_000, jobs=2)
    two.check(memory=1 << 40, disk=1 << 40, jobs=2)


def start(path: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal has it, and with its own hash seed."""
    command = [sys.executable, "-m", "sim", str(path), "--peers", "6", "--institutions", "3", "--out", str(out), *more]
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "PYTHONHASHSEED": "random"},
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if re.search(words, line):
            return
    raise AssertionError(f"it never said {words!r}: {''.join(told)}")


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(how: signal.Signals, tmp_path: Path) -> None:
    path = write(tmp_path, scenario='[scenario]\nkind = "small"\nsites = 6\n', rounds=30)
    out = tmp_path / "out"
    first = start(path, out, "--jobs", "2")
    wait_for(first, "round 2 of 30 closed")
    os.killpg(first.pid, how)
    _, told = first.communicate(timeout=60)
    assert first.returncode == (130 if how is signal.SIGINT else -how), told
    before = (out / "rounds.jsonl").read_text()
    assert 2 <= len(before.splitlines()) < 30
    assert main([str(path), "--peers", "6", "--institutions", "3", "--out", str(out)]) == 2  # not without --resume
    again = start(path, out, "--jobs", "1", "--resume")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert "6 peers, round 30 of 30" in told
    assert (out / "rounds.jsonl").read_text().startswith(before)
    found, _, _ = play(prepare(Request(path.resolve(), peers=6, institutions=3)), tmp_path / "whole")
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(found))
    assert (out / "results.json").read_text() == json.dumps(found, indent=1) + "\n"


@pytest.mark.parametrize("left", [b"", b"half of it", None])
def test_an_update_that_is_not_whole_is_made_again(left: bytes | None, tmp_path: Path) -> None:
    prepared = prepare(Request(write(tmp_path)))
    base, parts = tmp_path / "base", Parts(tmp_path / "out" / "parts" / "0")
    save_model(prepared.recipe.new_model(0), base)
    for institution in prepared.institutions[:2]:
        make_part(prepared, institution, 0, base, parts)
    if left is None:
        parts.path(0).unlink()
    else:
        parts.path(0).write_bytes(left)
    trained = []
    folder = tmp_path / "out"

    class Counting(Here):
        def train(self, institutions: Sequence[Institution], number: int, base: Path, parts: Parts) -> Iterator[int]:
            trained.append([one.number for one in institutions])
            return super().train(institutions, number, base, parts)

    swarm = Swarm(prepared, folder, Counting(prepared), verifiers=2, store_max_bytes=1 << 30)
    try:
        assert list(swarm.play())[-1].checkpoint == plain(prepared)
    finally:
        swarm.close()
    assert trained == [[0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.slow
def test_ray_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ray_path()), *filter(None, [os.environ.get("PYTHONPATH")])]))
    path = write(tmp_path)
    process = start(path, tmp_path / "ray", "--engine", "ray", "--jobs", "2")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "2 workers (ray)" in told
    found, _, _ = play(prepare(Request(path.resolve(), peers=6, institutions=3)), tmp_path / "here")
    assert (tmp_path / "ray" / "results.json").read_text() == json.dumps(found, indent=1) + "\n"


@pytest.mark.slow
def test_a_comparison_writes_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    path = write(tmp_path, experiment="seeds = 2\nledger_seeds = [0]\nleave_one_out = false\n")
    for name in ("one", "two"):
        command = [
            sys.executable,
            "-c",
            "from swarm.cli import main; main()",
            "compare",
            str(path),
            "--out",
            str(tmp_path / name),
        ]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True)
    assert (tmp_path / "one" / "results.json").read_bytes() == (tmp_path / "two" / "results.json").read_bytes()
