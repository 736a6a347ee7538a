"""`swarm init` and `swarm key`: a folder that loads, secrets that only their owner reads, refusals with the way out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from swarm.cli.consortium import places_of, policy_toml, write_consortium
from swarm.config import check_site, load_policy, load_site, load_swarm
from swarm.errors import ConfigError, StorageError
from swarm.rounds import submissions_needed

from .conftest import Swarm


def test_the_folder_that_init_writes_loads_and_every_key_fits_its_member(consortium: Path) -> None:
    agreed = load_swarm(consortium / "swarm.toml")
    assert [member.name for member in agreed.members] == ["north", "south"]
    assert agreed.name == "trial"
    assert 0 < agreed.chain_id < 2**31
    for member in agreed.members:
        site = load_site(consortium / "sites" / f"{member.name}.toml")
        assert check_site(site, agreed, site.identity()) == member
        assert site.operator().address == member.operator
        assert load_swarm(site.swarm) == agreed


def test_a_member_on_this_machine_listens_on_loopback_and_one_elsewhere_on_every_interface(consortium: Path) -> None:
    north, south = (load_site(consortium / "sites" / f"{name}.toml") for name in ("north", "south"))
    assert north.listen.startswith("/ip4/127.0.0.1/tcp/")
    assert south.listen == "/ip4/0.0.0.0/tcp/4200"
    endpoint = load_swarm(south.swarm).member_named("south").endpoint
    assert endpoint.startswith("/dns4/node.south.example/tcp/4200/p2p/16Uiu2")


def test_keys_and_passwords_are_for_their_owner_only_and_are_all_different(consortium: Path) -> None:
    secrets = sorted((consortium / "keys").iterdir())
    assert [path.name for path in secrets] == sorted(
        f"{name}{who}.{kind}"
        for name in ("north", "south")
        for who in ("", "-operator")
        for kind in ("json", "password")
    )
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert len({path.read_text() for path in secrets}) == len(secrets)


def test_the_readme_names_every_secret_file_and_no_password(consortium: Path) -> None:
    text = (consortium / "WHO-GETS-WHAT.txt").read_text()
    for path in (consortium / "keys").iterdir():
        assert f"keys/{path.name}" in text
        if path.suffix == ".password":
            assert path.read_text().strip() not in text


def test_an_example_comes_with_its_program_its_policies_and_its_data(consortium: Path) -> None:
    assert (consortium / "train.py").is_file()
    assert load_policy(consortium / "heart.toml").name == "heart"
    assert (consortium / "data" / "processed.cleveland.data").is_file()
    assert not list(consortium.rglob("__pycache__"))


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(swarm: Swarm, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    result = swarm("init", tmp_path, "--members", "a,b")
    assert result.exit_code == 2
    assert "not empty" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("a,a", "each has its own name"),
        ("a,", "letters, digits"),
        ("../a", "letters, digits"),
        ("a b", "letters, digits"),
        ("a-operator", "does not end in -operator"),
        ("a@", "HOST:PORT"),
        ("a@host:0", "HOST:PORT"),
        ("a@host:70000", "HOST:PORT"),
        ("a@ho st", "HOST:PORT"),
        (",".join(f"m{number}" for number in range(129)), "1 to 128"),
    ],
)
def test_members_that_cannot_be_are_refused_and_nothing_is_written(
    swarm: Swarm, tmp_path: Path, members: str, said: str
) -> None:
    result = swarm("init", tmp_path / "new", "--members", members)
    assert result.exit_code == 2
    assert said in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_example_is_refused_with_the_ones_there_are(swarm: Swarm, tmp_path: Path) -> None:
    result = swarm("init", tmp_path / "new", "--members", "a", "--example", "hart")
    assert result.exit_code == 2
    assert "there are diabetes, heart, leukemia" in result.output


def test_ports_past_the_last_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="the last is 65535"):
        places_of(["a", "b"], base_port=65535)


def test_ports_count_up_on_one_machine_and_start_again_at_each_host() -> None:
    here = places_of(["a", "b"], base_port=5000)
    assert [place.address for place in here] == ["/ip4/127.0.0.1/tcp/5000", "/ip4/127.0.0.1/tcp/5001"]
    there = places_of(["a@10.0.0.1", "b@[2001:db8::1]", "c@[::1]:7"], base_port=5000)
    assert [place.address for place in there] == [
        "/ip4/10.0.0.1/tcp/5000",
        "/ip6/2001:db8::1/tcp/5000",
        "/ip6/::1/tcp/7",
    ]
    assert [place.listen for place in there] == ["/ip4/0.0.0.0/tcp/5000", "/ip6/::/tcp/5000", "/ip6/::1/tcp/7"]


def test_free_ports_are_all_different() -> None:
    assert len({place.port for place in places_of([f"m{number}" for number in range(20)], base_port=0)}) == 20


def test_what_fails_midway_leaves_no_folder_behind(tmp_path: Path) -> None:
    def give_up(done: int, of: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        write_consortium(tmp_path / "new", name="x", members=places_of(["a"], base_port=0), progress=give_up)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_clear_line(swarm: Swarm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = swarm("init", tmp_path / "file" / "new", "--members", "a")
    assert result.exit_code == 1
    assert "does not take a new folder" in result.output


def test_a_newcomers_own_key_prints_public_lines_that_fit_its_settings(swarm: Swarm, tmp_path: Path) -> None:
    result = swarm("key", "west", "--at", "10.1.2.3:4999", "--dir", tmp_path)
    assert result.exit_code == 0
    (member,) = tomllib.loads(result.stdout)["members"]
    site = load_site(tmp_path / "sites" / "west.toml")
    identity = site.identity()
    assert member["name"] == "west"
    assert member["endpoint"] == f"/ip4/10.1.2.3/tcp/4999/p2p/{identity.peer_id}"
    assert bytes.fromhex(member["address"][2:]) == identity.address
    assert bytes.fromhex(member["operator"][2:]) == site.operator().address
    password = (tmp_path / "keys" / "west.password").read_text().strip()
    assert password not in result.output

    again = swarm("key", "west", "--at", "10.1.2.3:4999", "--dir", tmp_path)
    assert again.exit_code == 2
    assert "never overwritten" in again.output
    assert (tmp_path / "keys" / "west.password").read_text().strip() == password


def test_settings_with_a_name_that_needs_quotes_load(tmp_path: Path) -> None:
    name = 'Σ "north" \\ 1'
    write_consortium(tmp_path / "new", name=name, members=places_of(["a"], base_port=0))
    assert load_swarm(tmp_path / "new" / "swarm.toml").name == name


def test_a_consortium_on_somebody_elses_chain_names_it(tmp_path: Path) -> None:
    write_consortium(
        tmp_path / "new",
        name="x",
        members=places_of(["a"], base_port=0),
        chain_id=7,
        endpoint="ws://chain.example:8546",
    )
    agreed = load_swarm(tmp_path / "new" / "swarm.toml")
    assert agreed.chain_id == 7
    assert agreed.external is not None
    assert (agreed.external.endpoint, agreed.external.consortium) == ("ws://chain.example:8546", None)
    with pytest.raises(ConfigError, match=r"endpoint is 'ftp://chain\.example'"):
        write_consortium(
            tmp_path / "no", name="x", members=places_of(["a"], base_port=0), endpoint="ftp://chain.example"
        )


@pytest.mark.parametrize(("names", "blind"), [("a,b,c", False), ("a,b,c,d", True), ("a,b,c,d,e,f,g", True)])
def test_a_new_policy_is_blind_where_a_sum_can_hide_one(tmp_path: Path, names: str, blind: bool) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_toml("Two words", len(names.split(","))))
    found = load_policy(policy)
    assert (found.blind, found.name) == (blind, "Two-words")
    assert found.submissions_min >= submissions_needed(len(names.split(",")))
