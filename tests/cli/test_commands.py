"""The commands that speak to a node, with real nodes of a consortium of two: runs, members, status, audit, train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from swarm.config import load_site
from swarm.identity import checksum
from swarm.merge import write_file
from tests.cli.conftest import Swarm, run
from tests.node.hospitals import PARAMETERS, SCHEMA, Hospitals

POLICY = '[run]\nname = "test"\nrounds = 2\nsync_interval = 1\nsubmissions_min = 2\nsubmit_s = 20.0\n'


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    with Hospitals(tmp_path_factory.mktemp("commands"), ["north", "south"]) as found:
        for name in found.sites:
            found.start(name)
        for name in found.sites:
            found.ask(name, "swarm_status")
        write_file(found.folder / "genesis.safetensors", SCHEMA, {"weight": np.zeros(PARAMETERS, np.float32)})
        (found.folder / "trial.toml").write_text(POLICY)
        yield found


def in_step(hospitals: Hospitals) -> None:
    """Returns when both nodes have the same block: what one was told, the other may hear a moment later."""
    nodes = list(hospitals.sites)
    hospitals.wait_for(lambda: len({hospitals.ask(name, "eth_blockNumber") for name in nodes}) == 1, "one height")


@pytest.fixture
def swarm(swarm: Swarm, hospitals: Hospitals) -> Swarm:
    """A command line that is typed once both nodes are in step."""

    def call(*arguments: str | Path) -> Result:
        in_step(hospitals)
        return swarm(*arguments)

    return call


@pytest.fixture
def north(hospitals: Hospitals) -> Path:
    return hospitals.sites["north"]


@pytest.fixture
def south(hospitals: Hospitals) -> Path:
    return hospitals.sites["south"]


def told(swarm: Swarm, *arguments: str | Path) -> Any:
    """What a command prints with --json; it has to succeed."""
    result = swarm(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def did(swarm: Swarm, *arguments: str | Path) -> str:
    """What a command says; it has to succeed."""
    result = swarm(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(swarm: Swarm, code: int, *arguments: str | Path) -> str:
    """The one line of a command that does not do what it was asked."""
    result = swarm(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def trial(hospitals: Hospitals) -> int:
    """A run that both operators approved, with both rounds done."""
    policy, genesis = hospitals.folder / "trial.toml", hospitals.folder / "genesis.safetensors"
    north, south = hospitals.sites["north"], hospitals.sites["south"]
    proposed = run("run", "propose", north, policy, "--model", genesis, "--json")
    assert proposed.exit_code == 0, proposed.output
    number = int(json.loads(proposed.stdout)["run"])
    in_step(hospitals)
    approved = run("run", "approve", south, "test")
    assert "south consents to run" in approved.stdout
    assert "open" in approved.stdout
    for name in hospitals.sites:
        hospitals.train(name)
    hospitals.join()
    return number


def test_a_run_goes_from_proposal_over_consent_to_its_end(swarm: Swarm, north: Path, trial: int) -> None:
    (listed,) = (one for one in told(swarm, "run", "list", north) if one["id"] == trial)
    assert listed["state"] == "finished"
    assert listed["round"] == listed["rounds"] == 2
    assert listed["approvals"] == ["north", "south"]
    assert sorted(listed["participants"]) == ["north", "south"]


def test_show_tells_each_round_from_the_ledger_the_same_at_every_site(
    swarm: Swarm, north: Path, south: Path, trial: int
) -> None:
    shown = told(swarm, "run", "show", north, str(trial))
    assert [one["round"] for one in shown["closed_rounds"]] == [0, 1]
    for one in shown["closed_rounds"]:
        assert sorted(s["name"] for s in one["submissions"]) == ["north", "south"]
        assert all(s["weight"] == 100 and "loss" in s["metrics"] for s in one["submissions"])
        assert sorted(one["attestations"]) == ["north", "south"]
    assert shown["closed_rounds"][1]["checkpoint"] == shown["checkpoint"]
    assert [merge["round"] for merge in shown["merges"]] == [0, 1]
    for merge, one in zip(shown["merges"], shown["closed_rounds"], strict=True):
        assert merge["merged"] == one["checkpoint"]
        assert {update["name"] for update in merge["updates"]} == {"north", "south"}
        assert sum(update["share"] for update in merge["updates"]) == pytest.approx(1)
    assert "round 0 as this site merged it" in did(swarm, "run", "show", north, "test", "--round", "0")
    assert "has kept no merge of round 9" in refused(swarm, 2, "run", "show", north, "test", "--round", "9")
    assert told(swarm, "run", "show", south, "test") == shown
    assert shown["closed_rounds"][0]["leader"] in did(swarm, "run", "show", north, "test")


def test_status_shows_members_runs_and_what_may_fail(swarm: Swarm, north: Path, trial: int) -> None:
    seen = told(swarm, "status", north)
    assert seen["strength"] == {
        "validators": 2, "connected": 2, "quorum": 2, "spare": 0, "faulty_max": 0, "faulty_now": 0, "missing": [],
        "asleep_since_s": None,
    }  # fmt: skip
    assert {run["name"]: run["state"] for run in seen["runs"]}["test"] == "finished"
    assert "none more may fail" in did(swarm, "status", north)


def test_an_auditor_finds_both_ledgers_right_while_the_nodes_run(swarm: Swarm, north: Path, trial: int) -> None:
    found = told(swarm, "audit", north.parents[1])
    assert found["ok"]
    assert {site["site"]: site["merges"] for site in found["sites"]} == {"north": 2, "south": 2}
    assert "audit passed" in did(swarm, "audit", load_site(north).folder)


def test_what_is_no_run_no_policy_or_no_model_is_refused_by_name(
    swarm: Swarm, hospitals: Hospitals, north: Path, tmp_path: Path, trial: int
) -> None:
    folder = hospitals.folder
    genesis, policy = folder / "genesis.safetensors", folder / "trial.toml"
    assert "there is no run 'trail'; there are: 1 (test)" in refused(swarm, 2, "run", "show", north, "trail")
    assert "the run is over" in refused(swarm, 1, "run", "approve", north, "test")
    assert "no file" in refused(swarm, 2, "run", "propose", north, policy, "--model", tmp_path / "none")
    assert "no file" in refused(swarm, 2, "run", "propose", north, tmp_path / "none.toml", "--model", genesis)
    (tmp_path / "wrong.toml").write_text(POLICY.replace("rounds = 2", "rounds = 0"))
    assert "rounds = 0" in refused(swarm, 2, "run", "propose", north, tmp_path / "wrong.toml", "--model", genesis)
    (tmp_path / "no-model").write_bytes(b"\x80\x04 not safetensors")
    said = refused(swarm, 2, "run", "propose", north, policy, "--model", tmp_path / "no-model")
    assert "no-model" in said


def test_a_run_that_the_operators_stop_is_stopped(swarm: Swarm, hospitals: Hospitals, north: Path, south: Path) -> None:
    policy = hospitals.folder / "stopped.toml"
    policy.write_text(POLICY.replace("test", "stopped"))
    did(swarm, "run", "propose", north, policy, "--model", hospitals.folder / "genesis.safetensors")
    did(swarm, "run", "approve", south, "stopped")
    assert "is open" in did(swarm, "run", "stop", north, "stopped")
    assert "is stopped" in did(swarm, "run", "stop", south, "stopped")


def test_a_member_is_nominated_approved_and_removed_by_votes(
    swarm: Swarm, north: Path, south: Path, tmp_path: Path
) -> None:
    made = swarm("key", "west", "--at", "127.0.0.1:4999", "--dir", tmp_path)
    (member,) = tomllib.loads(made.stdout)["members"]
    details = [part for key in ("name", "address", "operator", "endpoint") for part in (f"--{key}", member[key])]
    did(swarm, "members", "nominate", north, *details)
    proposal = told(swarm, "members", "proposals", north)[-1]
    assert (proposal["kind"], proposal["member"], proposal["decided"]) == ("admit", "west", False)
    assert len(told(swarm, "members", "list", south)) == 2

    did(swarm, "members", "approve", south, str(proposal["id"]))
    listed = {one["name"]: one for one in told(swarm, "members", "list", north)}
    assert listed["west"]["address"] == member["address"]
    assert not listed["west"]["validator"]
    assert "west" in did(swarm, "members", "list", north)

    did(swarm, "members", "remove", south, "west")
    removal = told(swarm, "members", "proposals", south)[-1]
    did(swarm, "members", "approve", north, str(removal["id"]))
    assert [one["name"] for one in told(swarm, "members", "list", south)] == ["north", "south"]
    assert "done" in did(swarm, "members", "proposals", north)


def test_votes_that_cannot_be_are_refused_with_the_reason(swarm: Swarm, north: Path) -> None:
    address = checksum(load_site(north).identity().address)
    assert "no member is called 'east'; there are north, south" in refused(swarm, 2, "members", "remove", north, "east")
    assert "no such proposal" in refused(swarm, 1, "members", "approve", north, "77")
    assert "hexadecimal" in refused(
        swarm, 2, "members", "rotate-key", north, "--address", "0xZZ", "--endpoint", "/ip4/1.2.3.4/tcp/1"
    )
    wrong = ["--name", "x", "--address", address, "--operator", address, "--endpoint", "/ip4/1.2.3.4/tcp/4101"]
    assert "/p2p/PEERID" in refused(swarm, 2, "members", "nominate", north, *wrong)


def test_an_endpoint_that_changed_is_on_the_ledger(swarm: Swarm, north: Path, south: Path) -> None:
    before = {one["name"]: one["endpoint"] for one in told(swarm, "members", "list", south)}["north"]
    moved = before.replace("127.0.0.1", "127.0.0.2")
    did(swarm, "members", "endpoint", north, moved)
    assert {one["name"]: one["endpoint"] for one in told(swarm, "members", "list", south)}["north"] == moved
    did(swarm, "members", "endpoint", north, before)


def test_a_wrong_password_is_one_line_and_no_vote(swarm: Swarm, hospitals: Hospitals, north: Path) -> None:
    folder = hospitals.folder
    (folder / "keys" / "wrong.password").write_text("guess\n")
    settings = north.read_text().replace("keys/north-operator.password", "keys/wrong.password")
    (folder / "sites" / "guesser.toml").write_text(settings)
    try:
        said = refused(swarm, 2, "members", "leave", folder / "sites" / "guesser.toml")
    finally:
        (folder / "sites" / "guesser.toml").unlink()
    assert "does not open with this password" in said
    assert "guess" not in said.replace("guesser", "")


def test_where_no_node_runs_every_command_names_the_way_out(swarm: Swarm, consortium: Path) -> None:
    site = consortium / "sites" / "north.toml"
    for command in (("run", "list"), ("members", "list"), ("members", "leave"), ("run", "approve")):
        said = refused(swarm, 1, *command, site, *(["1"] if command == ("run", "approve") else []))
        assert f"start it with `swarm node {site}`" in said


def test_a_folder_without_a_ledger_cannot_be_audited(swarm: Swarm, consortium: Path, tmp_path: Path) -> None:
    assert "no node has run" in refused(swarm, 2, "audit", consortium)
    assert "neither a consortium's folder" in refused(swarm, 2, "audit", tmp_path)


# --- node and train, as processes


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "swarm", *(str(argument) for argument in arguments)]


def test_a_second_node_on_the_same_folder_is_refused(north: Path) -> None:
    done = subprocess.run(command("node", north), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def solo(tmp_path: Path) -> Path:
    """The settings of a consortium of one, whose node does not run."""
    with Hospitals(tmp_path, ["solo"]) as found:
        return found.sites["solo"]


def test_train_starts_a_node_gives_the_site_to_the_program_and_ends_with_its_code(solo: Path) -> None:
    program = (
        "import os, sys; from swarm.config import load_site; from swarm.learn.attach import Node\n"
        "site = load_site(__import__('pathlib').Path(os.environ['SWARM_SITE']))\n"
        "with Node(site, patience_s=5) as node: print(node.call('swarm_status')['name'])\n"
        "sys.exit(7)"
    )
    done = subprocess.run(
        command("train", solo, "--", sys.executable, "-c", program),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "solo\n"
    assert not load_site(solo).socket.exists(), "the node that train started stops with it"


def test_train_that_is_told_to_stop_leaves_no_node_behind(solo: Path) -> None:
    waits = "import signal, time; print('on', flush=True); time.sleep(600)"
    with subprocess.Popen(command("train", solo, "--", sys.executable, "-c", waits), stdout=subprocess.PIPE) as train:
        assert train.stdout is not None
        assert train.stdout.readline() == b"on\n"
        train.send_signal(signal.SIGTERM)
        assert train.wait(30) == 128 + signal.SIGTERM
    assert not load_site(solo).socket.exists()


def test_train_that_is_stopped_before_its_node_is_up_leaves_no_node_behind(solo: Path) -> None:
    with subprocess.Popen(command("train", solo, "--", "true"), stderr=subprocess.PIPE) as train:
        assert train.stderr is not None
        assert b"starting the node" in train.stderr.readline()
        log = load_site(solo).folder / "node.log"
        while not log.exists():
            time.sleep(0.01)
        train.send_signal(signal.SIGTERM)
        train.wait(30)
    assert [pid for pid in processes_with(str(solo)) if pid != os.getpid()] == []


def processes_with(text: str) -> list[int]:
    """The processes whose command line has this text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_program_that_does_not_exist_is_one_line(swarm: Swarm, north: Path) -> None:
    assert "no-such-program cannot be started" in refused(swarm, 2, "train", north, "--", "no-such-program")


def test_a_node_logs_its_story_to_a_file_and_stops_cleanly(solo: Path, tmp_path: Path) -> None:
    log = tmp_path / "story" / "node.log"
    with subprocess.Popen(command("node", solo, "--log", log), stderr=subprocess.PIPE) as node:
        until = time.monotonic() + 60
        while not (log.exists() and "solo listens" in log.read_text()):
            assert time.monotonic() < until
            time.sleep(0.05)
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
        assert node.stderr is not None
        assert node.stderr.read() == b""
    assert "solo stops" in log.read_text()
