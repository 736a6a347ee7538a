"""`swarm doctor` on real sites: a node that runs, one that does not, members that are away, a port that is taken."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.cli.doctor import _relays
from swarm.config import load_site, load_swarm
from swarm.net.libp2p.dialling import listen_place
from tests.cli.conftest import run
from tests.node.hospitals import Hospitals

NAMES = ["north", "east", "south", "west"]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    """Three of four run."""
    with Hospitals(tmp_path_factory.mktemp("doctor"), NAMES) as found:
        for name in NAMES[:3]:
            found.start(name)
        found.wait_for(
            lambda: all(sum(m["connected"] for m in found.ask(n, "swarm_status")["members"]) == 3 for n in NAMES[:3]),
            "three are connected",
        )
        yield found


def site(hospitals: Hospitals, name: str) -> Path:
    return hospitals.folder / "sites" / f"{name}.toml"


def checks_of(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    told = run("doctor", path, "--json")
    return told.exit_code, {check["what"]: check for check in json.loads(told.stdout)}


def test_a_running_node_is_asked_and_the_member_that_is_away_is_named(hospitals: Hospitals) -> None:
    code, checks = checks_of(site(hospitals, "north"))
    assert code == 1
    assert {what for what, check in checks.items() if not check["ok"]} == {"way to west"}
    assert "network department" in checks["way to west"]["advice"]
    assert "/ip4/127.0.0.1/tcp/" in checks["way to west"]["advice"]
    assert "MB/s up" in checks["way to east"]["found"]
    assert "3 members" not in checks["clock"]["found"]
    assert checks["reached from outside"]["found"] == "every connected member can dial this site"


def test_without_a_node_the_site_looks_for_itself(hospitals: Hospitals) -> None:
    code, checks = checks_of(site(hospitals, "west"))
    assert code == 0, [check for check in checks.values() if not check["ok"]]
    assert "is free" in checks["port"]["found"]
    assert {f"way to {name}" for name in NAMES[:3]} <= checks.keys()


def test_a_port_that_another_process_has_is_the_operators_to_mend(hospitals: Hospitals) -> None:
    path = site(hospitals, "west")
    with socket.create_server(listen_place(load_site(path).listen)):
        code, checks = checks_of(path)
    assert code == 1
    assert "another process has it" in checks["port"]["found"]


def test_a_key_that_others_may_read_is_named_with_the_command(hospitals: Hospitals) -> None:
    path = site(hospitals, "north")
    keystore = load_site(path).keystore
    keystore.chmod(0o644)
    try:
        told = run("doctor", path)
    finally:
        keystore.chmod(0o600)
    assert told.exit_code == 1
    assert f"chmod 600 {keystore}" in told.stdout


def test_settings_that_do_not_load_are_the_first_and_only_finding(tmp_path: Path) -> None:
    told = run("doctor", tmp_path / "nothing.toml")
    assert told.exit_code == 1
    assert "there is no file" in told.stdout


def test_two_that_only_dial_out_and_one_that_relays_are_one_too_few(tmp_path: Path) -> None:
    """Of another that can be dialled the doctor says that it should relay as well."""
    with Hospitals(tmp_path, ["north", "east", "south", "west"]) as found:
        founders = {member.name: member.endpoint for member in load_swarm(found.folder / "swarm.toml").members}
        text = (found.folder / "swarm.toml").read_text()
        for name in ("south", "west"):
            text = text.replace(founders[name], "/p2p-circuit/p2p/" + founders[name].rpartition("/")[2])
        (found.folder / "swarm.toml").write_text(text)
        with found.sites["north"].open("a") as settings:
            settings.write("\n[relay]\n")
        for name in ("north", "east", "south"):
            found.start(name)
        found.wait_for(lambda: sum(m["connected"] for m in _seen(found, "south")) == 2, "three are connected", 60)
        code, checks = checks_of(found.sites["west"])
        assert code == 1
        assert {what for what, check in checks.items() if not check["ok"]} == {"reached from outside", "relays"}
        assert "over north, which relays" in checks["way to south"]["found"]
        assert "south: over members that relay, of which this site reaches north" in checks["relays"]["found"]
        assert "ask east to relay as well" in checks["relays"]["advice"]


def _seen(hospitals: Hospitals, name: str) -> list[dict[str, Any]]:
    return list(hospitals.ask(name, "swarm_network")["members"])


def test_two_that_relay_are_enough() -> None:
    assert _relays(["south"], {"north": True, "east": True, "west": False}).ok


def test_where_nobody_else_can_be_dialled_one_more_site_has_to_be() -> None:
    check = _relays(["south"], {"north": True})
    assert not check.ok
    assert check.advice.startswith("let one more site be dialled, and relay: while north is away")


def test_a_proxy_that_does_not_answer_is_told_apart_from_the_members(hospitals: Hospitals) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, and nobody listens
        path = hospitals.folder / "sites" / "proxied.toml"
        text = site(hospitals, "west").read_text()
        path.write_text(text.replace("[site]\n", f'[site]\nproxy = "http://127.0.0.1:{port}"\n'))
        _, checks = checks_of(path)
    assert not checks["proxy"]["ok"]
    assert f"http://127.0.0.1:{port}" in checks["proxy"]["found"]
    assert "network department" in checks["proxy"]["advice"]
    assert checks["way to north"]["ok"]  # this machine is reached without it


def test_a_proxy_that_is_none_is_named(hospitals: Hospitals) -> None:
    path = hospitals.folder / "sites" / "wrong-proxy.toml"
    path.write_text(site(hospitals, "west").read_text().replace("[site]\n", '[site]\nproxy = "socks5://p:1080"\n'))
    _, checks = checks_of(path)
    assert "http://HOST:PORT" in checks["settings and key"]["found"]
    assert str(path) in checks["settings and key"]["found"]
