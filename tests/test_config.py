"""A setting that cannot work is refused when it loads: its file, its key, what was found and what is possible."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import (
    EQUAL_ONLY,
    MEMBERS_MAX,
    MERGE_RULES,
    POLICY_BYTES_MAX,
    Policy,
    RelayConfig,
    RpcConfig,
    SiteConfig,
    SwarmConfig,
    check_endpoint,
    check_site,
    load_policy,
    load_site,
    load_swarm,
)
from swarm.errors import ConfigError
from swarm.identity import Identity, checksum, save_keystore
from swarm.merge.rules import fixed_point


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


def endpoint(number: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{4000 + number}/p2p/{identity(number).peer_id}"


def member(number: int, **changes: object) -> dict[str, object]:
    return {
        "name": f"hospital-{number}",
        "address": checksum(identity(number).address),
        "operator": checksum(identity(1000 + number).address),
        "endpoint": endpoint(number),
    } | changes


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(value)


def table(values: dict[str, Any]) -> str:
    return "".join(f"{key} = {toml(value)}\n" for key, value in values.items())


CONSORTIUM: dict[str, object] = {"name": "heart", "chain_id": 7, "created_ms": 1_700_000_000_000}


def write_swarm(
    folder: Path,
    *,
    members: list[dict[str, object]] | None = None,
    ledger: dict[str, object] | None = None,
    more: str = "",
    **consortium: object,
) -> Path:
    path = folder / "swarm.toml"
    text = "[consortium]\n" + table({k: v for k, v in (CONSORTIUM | consortium).items() if v is not None})
    if ledger is not None:
        text += "[ledger]\n" + table(ledger)
    for entry in [member(1), member(2)] if members is None else members:
        text += "[[members]]\n" + table({k: v for k, v in entry.items() if v is not None})
    path.write_text(text + more)
    return path


def test_what_the_members_agreed_is_read(tmp_path: Path) -> None:
    path = write_swarm(
        tmp_path,
        members=[member(1), member(2, validator=False)],
        ledger={"view_timeout_s": 2, "block_gas_limit": 10**9},
    )
    swarm = load_swarm(path)
    assert (swarm.name, swarm.chain_id, swarm.created_ms) == ("heart", 7, 1_700_000_000_000)
    assert (swarm.view_timeout_s, swarm.block_gas_limit) == (2.0, 10**9)
    assert [(m.name, m.validator) for m in swarm.members] == [("hospital-1", True), ("hospital-2", False)]
    assert swarm.members[0].address == identity(1).address
    assert swarm.members[0].operator == identity(1001).address
    assert swarm.member_named("hospital-2") is swarm.members[1]
    with pytest.raises(ConfigError, match=r"no member is called 'x'; there are hospital-1, hospital-2"):
        swarm.member_named("x")


def test_what_nobody_wrote_has_its_default(tmp_path: Path) -> None:
    swarm = load_swarm(write_swarm(tmp_path))
    assert (swarm.view_timeout_s, swarm.block_gas_limit) == (SwarmConfig.view_timeout_s, SwarmConfig.block_gas_limit)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda f: write_swarm(f, colour=3), "'colour' is no setting here; there are chain_id, created_ms, name"),
        (
            lambda f: write_swarm(f, more="[other]\n"),
            "'other' is no setting here; there are consortium, ledger, members",
        ),
        (
            lambda f: write_swarm(f, ledger={"gas": 1}),
            "'gas' is no setting here; there are blind, block, block_gas_limit",
        ),
        (lambda f: write_swarm(f, name=None), "'name' is missing"),
        (lambda f: write_swarm(f, name=3), "name = 3, but a str belongs there"),
        (lambda f: write_swarm(f, name=""), "name = '', but it has to be 1 to 64 plain bytes"),
        (lambda f: write_swarm(f, name="a\nb"), r"name = 'a\\nb', but it has to be 1 to 64"),
        (lambda f: write_swarm(f, chain_id=None), "'chain_id' is missing"),
        (lambda f: write_swarm(f, chain_id=True), "chain_id = True, but a int belongs there"),
        (lambda f: write_swarm(f, chain_id=0), "chain_id = 0, but it has to be 1 to 4503599627370496"),
        (lambda f: write_swarm(f, chain_id=2**60), f"chain_id = {2**60}, but it has to be 1 to"),
        (lambda f: write_swarm(f, created_ms=-1), "created_ms = -1, but it has to be 0 to"),
        (lambda f: write_swarm(f, created_ms=1.5), "created_ms = 1.5, but a int belongs there"),
        (lambda f: write_swarm(f, ledger={"view_timeout_s": "1"}), "view_timeout_s = '1', but a number belongs there"),
        (
            lambda f: write_swarm(f, ledger={"view_timeout_s": 0}),
            "view_timeout_s = 0, but it has to be 0.01 to 60 seconds",
        ),
        (lambda f: write_swarm(f, ledger={"view_timeout_s": math.nan}), "view_timeout_s = nan, but it has to be"),
        (
            lambda f: write_swarm(f, ledger={"block_gas_limit": 10}),
            "block_gas_limit = 10, but it has to be 40000000 to",
        ),
        (lambda f: write_swarm(f, members=[]), r"\[\[members\]\] names the founding members, at least one"),
        (
            lambda f: write_swarm(f, members=[member(1, colour="red")]),
            "'colour' is no setting here; there are address, ",
        ),
        (
            lambda f: write_swarm(f, members=[member(1, address="0x12")]),
            "hospital-1's address: '0x12' has 1 bytes where 20",
        ),
        (
            lambda f: write_swarm(f, members=[member(1, address="zz" * 20)]),
            "hospital-1's address: .* is not hexadecimal",
        ),
        (lambda f: write_swarm(f, members=[member(1, operator="0x" + "00" * 20)]), "hospital-1's operator is zero"),
        (lambda f: write_swarm(f, members=[member(1, operator=None)]), "'operator' is missing"),
        (lambda f: write_swarm(f, members=[member(1, validator="yes")]), "validator = 'yes', but a bool belongs there"),
        (lambda f: write_swarm(f, members=[member(1, name="x" * 65)]), "name = 'x+', but it has to be 1 to 64"),
        (lambda f: write_swarm(f, members=[member(1, name=" x")]), "name = ' x', but it has to be 1 to 64"),
        (
            lambda f: write_swarm(f, members=[member(1, endpoint="127.0.0.1:80")]),
            "hospital-1's endpoint is '127.0.0.1:80'; it has the form",
        ),
        (
            lambda f: write_swarm(f, members=[member(1, endpoint="/ip4/1.2.3.4/tcp/1/p2p/0OIl")]),
            "hospital-1's endpoint: ",
        ),
        (
            lambda f: write_swarm(f, members=[member(1, endpoint=endpoint(2))]),
            "hospital-1's endpoint has the PeerID of 0x.*, but the address is 0x",
        ),
        (
            lambda f: write_swarm(f, members=[member(1, endpoint="/dns4/" + "x" * 300 + endpoint(1))]),
            "hospital-1's endpoint has .* at most 256",
        ),
        (
            lambda f: write_swarm(f, members=[member(1), member(2, name="hospital-1")]),
            "two members have the name hospital-1",
        ),
        (
            lambda f: write_swarm(f, members=[member(1), member(1, name="b", operator=checksum(identity(5).address))]),
            "two members have the address 0x",
        ),
        (
            lambda f: write_swarm(f, members=[member(1), member(2, operator=checksum(identity(1001).address))]),
            "two members have the operator 0x",
        ),
        (
            lambda f: write_swarm(f, members=[member(1, operator=checksum(identity(2).address)), member(2)]),
            "hospital-1's operator is a node's key; a person's key votes",
        ),
        (lambda f: write_swarm(f, members=[member(1, validator=False)]), "no member is a validator; at least one site"),
        (
            lambda f: write_swarm(f, members=[{"name": "x"}] * (MEMBERS_MAX + 1)),
            f"{MEMBERS_MAX + 1} members, at most {MEMBERS_MAX}",
        ),
    ],
)
def test_an_agreement_that_cannot_work_is_refused(tmp_path: Path, write: Callable[[Path], Path], words: str) -> None:
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: .*{words}"):
        load_swarm(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"the table \[consortium\] is missing"),
        (b"= 3", "not a readable TOML file"),
        (b"\xff", "not a readable TOML file"),
        (b"consortium = 3", "a table belongs where|is missing"),
        (b"members = 3\n[consortium]\nname='x'", r"\[\[members\]\] names the founding"),
        (b"members = [3]\n[consortium]\nname='x'", r"\[\[members\]\] holds tables"),
        (b"ledger = 3\nmembers=[1]\n[consortium]\nname='x'", "a table belongs where 3 stands"),
    ],
)
def test_a_file_that_is_no_agreement_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "swarm.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path}.*({words})"):
        load_swarm(path)


@pytest.mark.parametrize("load", [load_swarm, load_site, load_policy])
def test_a_missing_file_says_what_writes_one(tmp_path: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError, match=rf"no file {tmp_path}/nothing\.toml; `swarm init DIR`"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match=rf"{tmp_path} is not a readable TOML file"):
        load(tmp_path)


def test_an_endpoint_ends_in_its_members_peer_id() -> None:
    address = identity(1).address
    check_endpoint(endpoint(1), address, "here")
    for wrong in ("", "/p2p/", "x" + endpoint(1), endpoint(1) + "/", endpoint(1)[:-1], "/ip4/1.2.3.4/tcp/1/p2p/"):
        with pytest.raises(ConfigError, match=r"^here"):
            check_endpoint(wrong, address, "here")


@given(st.text(max_size=60))
def test_any_text_is_an_endpoint_or_a_config_error(text: str) -> None:
    try:
        check_endpoint(text, identity(1).address, "here")
    except ConfigError:
        return
    assert text.endswith(identity(1).peer_id)


# A site.

SITE: dict[str, object] = {
    "name": "hospital-1",
    "keystore": "key.json",
    "folder": "data",
    "listen": "/ip4/0.0.0.0/tcp/1",
}


def write_site(place: Path, /, **changes: object) -> Path:
    path = place / "sites" / "one.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("[site]\n" + table({k: v for k, v in (SITE | changes).items() if v is not None}))
    return path


def test_a_sites_paths_start_at_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_site(tmp_path, password_file="../pw", operator_keystore="/abs/op.json")
    site = load_site(Path("sites/one.toml"))
    assert site.path == tmp_path / "sites" / "one.toml"
    assert site.keystore == tmp_path / "sites" / "key.json"
    assert site.folder == tmp_path / "sites" / "data"
    assert site.swarm == tmp_path / "swarm.toml"
    assert site.password_file == tmp_path / "pw"
    assert site.operator_keystore == Path("/abs/op.json")
    assert site.operator_password_file is None
    assert (site.store_max_bytes, site.leads) == (SiteConfig.store_max_bytes, True)


@pytest.mark.parametrize(
    ("text", "speed"), [("20 MB/s", 20e6), ("0.5MB/s", 5e5), ("20 Mbit/s", 2.5e6), ("64 kB/s", 64e3)]
)
def test_a_sites_cap_on_what_it_sends_is_a_speed(tmp_path: Path, text: str, speed: float) -> None:
    assert load_site(write_site(tmp_path, max_upload=text)).max_upload_bytes_s == speed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "'colour' is no setting here; there are archive, endpoint, folder, "),
        ({"name": None}, "'name' is missing"),
        ({"keystore": None}, "'keystore' is missing"),
        ({"folder": None}, "'folder' is missing"),
        ({"listen": None}, "'listen' is missing"),
        ({"keystore": 3}, "keystore = 3, but a str belongs there"),
        ({"keystore": "a\0b"}, r"keystore = 'a\\x00b', but a path has no zero byte"),
        ({"leads": 1}, "leads = 1, but a bool belongs there"),
        ({"store_max_bytes": 1.5}, "store_max_bytes = 1.5, but a int belongs there"),
        ({"store_max_bytes": 0}, "store_max_bytes = 0, but it has to be 1048576 to"),
        ({"store_max_bytes": -5}, "store_max_bytes = -5, but it has to be"),
        ({"max_upload": 5}, "max_upload = 5, but a str belongs there"),
        ({"max_upload": "20 miles"}, "max_upload = '20 miles', but a speed belongs there, in kB/s, MB/s"),
        ({"max_upload": "1 kB/s"}, "max_upload = '1 kB/s', but it has to be 10 kB/s or more"),
        ({"proxy": "proxy.hospital:3128"}, "proxy = 'proxy.hospital:3128', but it has the form http://HOST:PORT"),
        ({"proxy": "http://me:secret@p:3128"}, "proxy has a password in it, and settings hold no secret"),
        ({"proxy": 3128}, "proxy = 3128, but a str belongs there"),
    ],
)
def test_a_site_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = write_site(tmp_path, **changes)
    with pytest.raises(ConfigError, match=rf"^{path}: {words}"):
        load_site(path)


def write_rpc(place: Path, lines: str) -> Path:
    path = write_site(place)
    path.write_text(f"{path.read_text()}\n[rpc]\n{lines}\n")
    return path


def test_a_site_serves_json_rpc_where_it_says_and_nowhere_else(tmp_path: Path) -> None:
    assert load_site(write_site(tmp_path)).rpc is None
    assert load_site(write_rpc(tmp_path, 'listen = "127.0.0.1:8545"')).rpc == RpcConfig("127.0.0.1", 8545)
    lines = 'listen = "[::1]:0"\nhosts = ["north.example"]\norigins = ["https://a.example"]\nrequests_s = 5'
    found = load_site(write_rpc(tmp_path, lines)).rpc
    assert found == RpcConfig("::1", 0, ("north.example",), ("https://a.example",), requests_s=5)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "'listen' is missing"),
        ('listen = "8545"', "it has the form IP:PORT"),
        ('listen = "localhost:8545"', "it has the form IP:PORT"),
        ('listen = "127.0.0.1:65536"', "it has the form IP:PORT"),
        ('listen = "127.0.0.1:-1"', "it has the form IP:PORT"),
        ('listen = "127.0.0.1:1"\nhosts = "a"', "a list belongs there"),
        ('listen = "127.0.0.1:1"\norigins = [1]', "a list of names belongs there"),
        ('listen = "127.0.0.1:1"\nbatch_max = 0', "batch_max = 0, but it has to be 1 to 10000"),
        ('listen = "127.0.0.1:1"\ncall_gas = 99999999', "call_gas = 99999999"),
        ('listen = "127.0.0.1:1"\nport = 1', "'port' is no setting here"),
    ],
)
def test_json_rpc_that_cannot_be_served_is_refused(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_site(write_rpc(tmp_path, lines))


def write_relay(place: Path, lines: str) -> Path:
    path = write_site(place)
    path.write_text(f"{path.read_text()}\n[relay]\n{lines}\n")
    return path


def test_a_site_relays_only_where_it_says_so_and_no_more_than_it_says(tmp_path: Path) -> None:
    assert load_site(write_site(tmp_path)).relay is None
    assert load_site(write_relay(tmp_path, "")).relay == RelayConfig()
    lines = 'max_speed = "2 MB/s"\ncircuits_max = 3\nduration_s = 600'
    assert load_site(write_relay(tmp_path, lines)).relay == RelayConfig(2e6, 3, 600)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("speed = 1", "'speed' is no setting here; there are circuits_max, duration_s, max_speed"),
        ("circuits_max = 0", "circuits_max = 0, but it has to be 1 to 1000"),
        ("duration_s = 5", "duration_s = 5, but it has to be 60 to"),
        ('max_speed = "1 kB/s"', "max_speed = '1 kB/s', but it has to be 10 kB/s or more"),
    ],
)
def test_a_relay_that_cannot_work_is_refused(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_site(write_relay(tmp_path, lines))


def test_the_proxy_is_the_settings_or_else_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://of-the-machine:8080")
    found = load_site(write_site(tmp_path)).proxy
    assert found is not None
    assert (found.host, found.port, found.always) == ("of-the-machine", 8080, False)
    found = load_site(write_site(tmp_path, proxy="http://proxy.hospital:3128")).proxy
    assert found is not None
    assert (found.host, found.port, found.always) == ("proxy.hospital", 3128, True)
    assert load_site(write_site(tmp_path, proxy="")).proxy is None


def test_the_sockets_path_is_short_and_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = load_site(write_site(tmp_path, folder="/srv/node"))
    assert site.socket == Path("/srv/node/node.sock")
    deep = [replace(site, folder=Path("/" + "d" * 120) / name) for name in ("a", "b")]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    names = {found.socket for found in deep}
    assert len(names) == 2
    assert all(len(str(name)) < 108 and name.parent == Path("/run/user/7") for name in names)


def test_a_sites_key_is_the_one_that_was_agreed(tmp_path: Path) -> None:
    swarm = load_swarm(write_swarm(tmp_path))
    site = load_site(write_site(tmp_path))
    assert check_site(site, swarm, identity(1)) is swarm.members[0]
    late = replace(site, name="hospital-9")
    assert check_site(late, swarm, identity(9)) is None
    with pytest.raises(
        ConfigError, match=rf"^{site.path}: the key in {site.keystore} is 0x.*says that hospital-1 is 0x"
    ):
        check_site(site, swarm, identity(2))


@pytest.mark.parametrize("table", ["site", "rpc", "relay"])
def test_every_setting_of_a_site_stands_in_the_reference(tmp_path: Path, table: str) -> None:
    path = write_site(tmp_path)
    text = path.read_text() if table == "site" else f"{path.read_text()}\n[{table}]\n"
    path.write_text(text + "nonsense = 1\n")
    with pytest.raises(ConfigError) as refused:
        load_site(path)
    names = str(refused.value).partition("there are ")[2].split(", ")
    assert len(names) > 2
    reference = (Path(__file__).parents[1] / "swarm" / "config" / "README.md").read_text()
    part = reference.partition(f"| `[{table}]` |")[2].partition("\n\n")[0]
    assert [name for name in names if f"`{name}`" not in part] == []


@pytest.mark.parametrize(
    ("name", "key", "rotated_from", "words"),
    [
        ("hospital-1", 9, 2, "was founded with 0x"),  # another member's first key
        ("hospital-1", 9, 8, "was founded with 0x"),  # nobody's
        ("hospital-1", 1, 1, "which is the key in"),  # the keystore is still the old one
        ("hospital-1", 1, 9, "was founded with 0x"),  # the two the wrong way round
        ("hospital-1", 2, 1, "is that of hospital-2"),
        ("hospital-9", 8, 9, "has no member called hospital-9"),
    ],
)
def test_a_key_that_was_rotated_is_held_against_what_was_agreed(
    tmp_path: Path, name: str, key: int, rotated_from: int, words: str
) -> None:
    swarm = load_swarm(write_swarm(tmp_path, members=[member(1), member(2)]))
    site = load_site(write_site(tmp_path, name=name, rotated_from=checksum(identity(rotated_from).address)))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(site.path))}: .*{words}"):
        check_site(site, swarm, identity(key))


def test_a_founder_starts_with_the_key_that_replaced_its_first_one(tmp_path: Path) -> None:
    swarm = load_swarm(write_swarm(tmp_path))
    site = load_site(write_site(tmp_path, rotated_from=checksum(identity(1).address)))
    assert check_site(site, swarm, identity(9)) is None


@pytest.mark.parametrize("text", ["hospital-1", "0x12", "0x" + "z" * 40, ""])
def test_a_rotated_key_is_named_by_its_address(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"rotated_from = {text!r}, but an address belongs there"):
        load_site(write_site(tmp_path, rotated_from=text))


def test_a_rotated_key_whose_keystore_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_PASSWORD", "secret")
    site = load_site(write_site(tmp_path, keystore="keys/new.json", rotated_from=checksum(identity(1).address)))
    with pytest.raises(ConfigError, match=r"keys/new\.json"):
        site.identity()


def test_keys_open_with_the_password_of_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = load_site(write_site(tmp_path, password_file="pw", operator_keystore="op.json"))
    save_keystore(identity(1), site.keystore, "secret", scrypt_n=2)
    assert site.operator_keystore is not None
    save_keystore(identity(1001), site.operator_keystore, "other", scrypt_n=2)
    with pytest.raises(ConfigError, match=rf"^{site.path}: the password file {tmp_path}/sites/pw cannot be read"):
        site.identity()
    (tmp_path / "sites" / "pw").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"the password file .* cannot be read"):
        site.identity()
    (tmp_path / "sites" / "pw").write_text("secret\n")
    assert site.identity().address == identity(1).address
    monkeypatch.delenv("SWARM_OPERATOR_PASSWORD", raising=False)
    with pytest.raises(
        ConfigError, match=rf"^{site.path}: .* neither in a `password_file` nor in SWARM_OPERATOR_PASSWORD"
    ):
        site.operator()
    monkeypatch.setenv("SWARM_OPERATOR_PASSWORD", "other")
    assert site.operator().address == identity(1001).address
    with pytest.raises(ConfigError, match=rf"^{site.path}: .*name `operator_keystore`"):
        replace(site, operator_keystore=None).operator()


# A policy.

PLAIN = Policy("heart", 10, 8)
ROBUST: dict[str, dict[str, object]] = {
    "norm_bounded_mean": {"radius": 2.0},
    "centered_clipping": {"radius": 0.5, "iterations": 3},
    "geometric_median": {"iterations": 9},
    "coordinate_median": {"weights": "equal"},
    "trimmed_mean": {"weights": "equal", "faults": 1, "submissions_min": 3},
    "multi_krum": {"weights": "equal", "faults": 1, "submissions_min": 5},
    "nearest_neighbor_mixing": {"weights": "equal", "faults": 2, "submissions_min": 5},
}


def policy_of(**changes: Any) -> Policy:
    return replace(PLAIN, **changes)


def write_policy(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "run.toml"
    path.write_text("[run]\n" + table(values))
    return path


NEEDED: dict[str, Any] = {"name": "heart", "rounds": 10, "sync_interval": 8}


def test_a_policy_names_what_stays_at_a_site(tmp_path: Path) -> None:
    found = load_policy(write_policy(tmp_path, NEEDED | {"personal": ["bn*", "head.*"]}))
    assert found.personal == ("bn*", "head.*")
    assert Policy.decode(found.encode()) == found
    assert Policy(**json.loads(found.encode())) == found
    assert [found.stays(name) for name in ("bn1.weight", "head.bias", "body.bn.weight", "HEAD.bias")] == [1, 1, 0, 0]


def test_a_policy_is_its_bytes(tmp_path: Path) -> None:
    found = load_policy(write_policy(tmp_path, NEEDED | {"range": 4, "weights": "equal"}))
    assert found == policy_of(range=4.0, weights="equal")
    assert Policy.decode(found.encode()) == found
    assert json.loads(found.encode())["range"] == 4.0


@pytest.mark.parametrize("name", MERGE_RULES)
def test_every_merge_can_be_agreed_on(tmp_path: Path, name: str) -> None:
    values = NEEDED | {"merge": name} | ROBUST.get(name, {"weights": "equal"} if name == "sum" else {})
    found = load_policy(write_policy(tmp_path, values))
    assert found.merge == name
    assert Policy.decode(found.encode()) == found
    fixed_point(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "'colour' is no setting of a run; there are alarm_action, "),
        ({"name": ""}, "name = '', but it has to be 1 to 64 plain characters"),
        ({"name": "../x"}, "name = '../x', but it has to be"),
        ({"name": "x" * 65}, "name = 'x+', but it has to be"),
        ({"name": "heart\n"}, r"name = 'heart\\n', but it has to be"),
        ({"rounds": 0}, "rounds = 0, but it has to be 1 to 1000000"),
        ({"rounds": True}, "rounds is a int, found True"),
        ({"rounds": 2.0}, r"rounds is a int, found 2\.0"),
        ({"rounds": "2"}, "rounds is a int, found '2'"),
        ({"sync_interval": -1}, "sync_interval = -1, but it has to be 1 to"),
        ({"merge": "median"}, "merge = 'median', but it has to be one of mean, sum, norm_bounded_mean"),
        ({"weights": "age"}, "weights = 'age', but it has to be one of samples, equal"),
        ({"merge": "sum"}, "weights = 'samples', but it has to be 'equal' where merge = 'sum'"),
        ({"step_bits": 7}, "step_bits = 7, but it has to be 8 to 40"),
        ({"step_bits": 41}, "step_bits = 41, but it has to be 8 to 40"),
        ({"range": 0.0}, "range = 0.0, but it has to be above 0"),
        ({"range": -1.0}, "range = -1.0, but it has to be above 0"),
        ({"range": math.inf}, "range = inf, but it has to be above 0"),
        ({"range": math.nan}, "range = nan, but it has to be above 0"),
        ({"range": "8"}, "range is a float, found '8'"),
        ({"range": 1e-12}, r"range = 1e-12, but it has to be 1 to 2\*\*51 steps of 2\*\*-32"),
        ({"range": 2.0**19, "weight_max": 1}, r"range = 524288.0, but it has to be 1 to 2\*\*51 steps"),
        ({"weight_max": 0}, "weight_max = 0, but it has to be 1 to"),
        ({"weight_max": 10**7}, r"128 members x weight_max x range x 2\*\*step_bits passes 2\*\*63.*lower"),
        ({"submissions_min": 0}, "submissions_min = 0, but it has to be 1 to 128"),
        ({"submissions_min": 129}, "submissions_min = 129, but it has to be 1 to 128"),
        ({"submit_s": 0.0}, "submit_s = 0.0, but it has to be 0.1 seconds to 30 days"),
        ({"merge_s": math.inf}, "merge_s = inf, but it has to be 0.1 seconds"),
        ({"attest_s": math.nan}, "attest_s = nan, but it has to be 0.1 seconds"),
        ({"faults": 1}, r"faults = 1, but it has to be left out \(0\): merge = 'norm_bounded_mean' takes no faults"),
        (
            {"merge": "mean", "radius": 2.0},
            r"radius = 2.0, but it has to be left out \(1.0\): merge = 'mean' takes no radius",
        ),
        ({"bound": "mode"}, "bound = 'mode', but it has to be one of median, length"),
        ({"merge": "mean", "bound": "length"}, r"bound = 'length', but it has to be left out \(median\)"),
        ({"weight_ratio_max": 0.5}, r"weight_ratio_max = 0.5, but it has to be 1 to 2\*\*40"),
        ({"weight_ratio_max": math.nan}, "weight_ratio_max = nan, but it has to be"),
        ({"server": "adam"}, "server = 'adam', but it has to be one of none, fedavgm, "),
        (
            {"merge": "sum", "weights": "equal", "server": "fedadam"},
            "server = 'fedadam', but it has to be 'none' where merge = 'sum'",
        ),
        ({"server_rate": 0.1}, r"server_rate = 0.1, but it has to be left out \(1.0\): server = 'none'"),
        ({"server": "fedavgm", "server_decay": 0.5}, r"server_decay = 0.5, but it has to be left out \(0.99\)"),
        ({"server": "fedadam", "server_momentum": 1.0}, "server_momentum = 1.0, but it has to be 0 or more and"),
        ({"server": "fedyogi", "server_floor": 0.0}, "server_floor = 0.0, but it has to be 1e-12 to 1"),
        ({"server": "nesterov", "server_rate": math.inf}, "server_rate = inf, but it has to be above 0"),
        ({"alarm_fall": 0.1}, r"alarm_fall = 0.1, but it has to be left out \(0.05\) without an alarm_metric"),
        ({"alarm_metric": "auc", "alarm_fall": 0.0}, "alarm_fall = 0.0, but it has to be above 0"),
        ({"alarm_metric": "a" * 65}, "alarm_metric = 'a{65}', but it has to be a metric's name, at most 64"),
        ({"alarm_metric": "auc", "alarm_action": "stop"}, "alarm_action = 'stop', but it has to be one of tell, skip,"),
        (
            {"alarm_action": "skip"},
            r"alarm_action = 'skip', but it has to be left out \('tell'\) without an alarm_metric",
        ),
        ({"alarm_metric": "auc", "alarm_action": "groups"}, "alarm_action = 'groups', but it has to be 'tell' or"),
        ({"alarm_metric": "auc", "alarm_action": "skip", "rounds": 1}, "rounds = 1, but it has to be 2 or more where"),
        (
            {"alarm_metric": "auc", "alarm_action": "skip", "merge": "mean", "scaffold": True},
            r"alarm_action = 'skip', but it has to be left out \('tell'\) where scaffold = true",
        ),
        ({"merge": "norm_bounded_mean", "iterations": 2}, r"iterations = 2, but it has to be left out \(5\)"),
        ({"merge": "norm_bounded_mean", "radius": 0.0}, r"radius = 0.0, but it has to be 2\*\*-32 to 2\*\*40"),
        ({"merge": "norm_bounded_mean", "radius": math.nan}, "radius = nan, but it has to be"),
        ({"merge": "centered_clipping", "iterations": 0}, "iterations = 0, but it has to be 1 to 100"),
        ({"merge": "geometric_median", "range": 2000.0}, r"range = 2000.0, but it has to be below 2\*\*42 steps"),
        (
            {"merge": "trimmed_mean", "faults": 1},
            "weights = 'samples', but it has to be 'equal' where merge = 'trimmed_mean'",
        ),
        (
            {"merge": "trimmed_mean", "weights": "equal"},
            "faults = 0, but it has to be 1 or more where merge = 'trimmed_mean'",
        ),
        (
            {"merge": "trimmed_mean", "weights": "equal", "faults": 1},
            "faults = 1, but it has to be at most 0: submissions_min = 2",
        ),
        (
            {"merge": "multi_krum", "weights": "equal", "faults": 2, "submissions_min": 6},
            "faults = 2, but it has to be at most 1: submissions_min = 6",
        ),
        ({"personal": "bn*"}, "personal is a list of texts, found 'bn\\*'"),
        ({"personal": ["bn*", 3]}, r"personal is a list of texts, found \['bn\*', 3\]"),
        ({"personal": ["*"]}, r"personal = \('\*',\), but it has to be patterns that leave something to share"),
        ({"personal": ["bn*", "bn*"]}, r"personal = \(.*\), but it has to be 64 patterns, each once"),
        ({"personal": [""]}, "personal = .* patterns of 1 to 256 plain bytes"),
        ({"personal": ["swarm.control.*"]}, "personal = .* patterns of the model's names"),
        ({"personal": ["a"], "merge": "sum", "weights": "equal"}, "personal = .* left out where merge = 'sum'"),
        ({"proximal": -0.1}, "proximal = -0.1, but it has to be 0 to 1000"),
        ({"proximal": math.nan}, "proximal = nan, but it has to be 0 to 1000"),
        ({"proximal": 0.1, "merge": "sum", "weights": "equal"}, "proximal = 0.1, but it has to be left out"),
        ({"scaffold": True}, "merge = 'norm_bounded_mean', but it has to be 'mean' where scaffold = true"),
        ({"scaffold": True, "merge": "mean", "server": "fedadam"}, "server = 'fedadam', but it has to be 'none' where"),
        ({"scaffold": 1}, "scaffold is a bool, found 1"),
        ({"sync_interval_max": 8}, "sync_interval_max = 8, but it has to be 0, or more than sync_interval = 8"),
        (
            {"sync_interval_max": 80, "rounds": 2},
            "sync_interval_max = 80, but it has to be 0 in a run of so few rounds",
        ),
        ({"sync_growth": 2.0}, r"sync_growth = 2.0, but it has to be left out \(1.5\) without a sync_interval_max"),
        ({"sync_growth": 1.0, "sync_interval_max": 80}, "sync_growth = 1.0, but it has to be above 1, at most 10"),
        ({"work_s": 30.0}, "work_s = 30.0, but it has to be less than submit_s = 30: who trains longer"),
        ({"work_s": 0.01}, "work_s = 0.01, but it has to be 0, or 0.1 seconds to 30 days"),
        ({"best_mode": "min"}, "best_mode = 'min', but it has to be left out without a best_metric"),
        ({"best_metric": "auc", "best_mode": "most"}, "best_mode = 'most', but it has to be one of max, min"),
        ({"patience": 3}, "patience = 3, but it has to be left out without a best_metric"),
        ({"clip": 1.0}, r"clip = 1.0, but it has to be left out \(0.0\) without an epsilon"),
        ({"unit": "patient"}, r"unit = 'patient', but it has to be left out \(record\) without an epsilon"),
        ({"epsilon": 3.0}, "delta = 0.0, but it has to be 1e-12 to 0.01 where a run is private"),
        ({"epsilon": 3.0, "delta": 1e-5}, "clip = 0.0, but it has to be 0.000001 to 1000000"),
        ({"epsilon": 0.01, "delta": 1e-5, "clip": 1.0}, r"epsilon = 0.01, but it has to be 0 \(not private\), or 0.05"),
        ({"epsilon": 3.0, "delta": 1e-5, "clip": 1.0, "unit": "row"}, "unit = 'row', but it has to be one of record"),
        (
            {"epsilon": 3.0, "delta": 1e-5, "clip": 1.0, "proximal": 0.1},
            "proximal = 0.1, but it has to be left out where a run is private: it works on gradients without noise",
        ),
        (
            {"epsilon": 3.0, "delta": 1e-5, "clip": 1.0, "sync_interval_max": 200},
            "sync_interval_max = 200, but it has to be left out where a run is private: it works on the losses",
        ),
        (
            {"epsilon": 3.0, "delta": 1e-5, "clip": 1.0, "alarm_metric": "loss"},
            "alarm_metric = 'loss', but it has to be another one where a run is private",
        ),
        ({"patience": 9, "best_metric": "auc"}, "patience = 9, but it has to be 0 to 8: of 10 rounds 9 checkpoints"),
        ({"best_metric": "auc", "min_delta": 0.1}, "min_delta = 0.1, but it has to be left out without patience"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write_policy(tmp_path, NEEDED | changes)
    with pytest.raises(ConfigError, match=rf"^{path}: {words}"):
        load_policy(path)
    with pytest.raises(ConfigError, match=rf"^policy: {words}"):
        Policy.decode(json.dumps(json.loads(PLAIN.encode()) | changes, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize("key", NEEDED)
def test_a_policy_without_what_it_needs_names_it(tmp_path: Path, key: str) -> None:
    path = write_policy(tmp_path, {k: v for k, v in NEEDED.items() if k != key})
    with pytest.raises(ConfigError, match=rf"^{path}: '{key}' is missing"):
        load_policy(path)


def test_a_policys_file_has_one_table(tmp_path: Path) -> None:
    path = write_policy(tmp_path, NEEDED)
    path.write_text(path.read_text() + "[more]\n")
    with pytest.raises(ConfigError, match=rf"^{path}: 'more' is no setting here; there are run"):
        load_policy(path)
    path.write_text("")
    with pytest.raises(ConfigError, match=rf"^{path}: the table \[run\] is missing"):
        load_policy(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b"\xff",
        b"[" * POLICY_BYTES_MAX,
        b'{"name":"x","rounds":1,"sync_interval":1}',
        PLAIN.encode() + b" ",
        PLAIN.encode().replace(b'"rounds":10', b'"rounds": 10'),
        PLAIN.encode().replace(b'"range":8.0', b'"range":8'),
        PLAIN.encode().replace(b'"range":8.0', b'"range":8.00'),
        PLAIN.encode().replace(b'"rounds":10', b'"rounds":10,"rounds":10'),
        PLAIN.encode().replace(b"heart", b"\\u0068eart"),
        PLAIN.encode().replace(b"10", b"1" * 5000),
        PLAIN.encode() + b" " * POLICY_BYTES_MAX,
    ],
)
def test_bytes_that_are_no_canonical_policy_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Policy.decode(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_policy_or_a_config_error(data: bytes) -> None:
    try:
        found = Policy.decode(data)
    except ConfigError:
        return
    assert found.encode() == data


@given(st.data())
def test_a_changed_policy_is_another_policy_or_refused(data: st.DataObject) -> None:
    changed = bytearray(PLAIN.encode())
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = Policy.decode(bytes(changed))
    except ConfigError:
        return
    assert found != PLAIN


@given(
    st.sampled_from(sorted(MERGE_RULES)),
    st.integers(8, 40),
    st.floats(1e-9, 2**40, allow_nan=False),
    st.integers(1, 2**40),
    st.integers(0, 10),
    st.integers(1, 128),
)
def test_a_policy_that_loads_has_a_merge_that_cannot_overflow(
    merge: str, bits: int, width: float, weight: int, faults: int, least: int
) -> None:
    wanted = policy_of(
        merge=merge,
        step_bits=bits,
        range=width,
        weight_max=weight,
        faults=faults if "faults" in MERGE_RULES[merge] else 0,
        submissions_min=least,
        weights="equal" if merge in EQUAL_ONLY else "samples",
    )
    try:
        policy = Policy.decode(wanted.encode())
    except ConfigError:
        return
    fixed = fixed_point(policy)
    assert 1 <= fixed.limit < 2**51
    weights = weight if policy.weights == "samples" else 1
    assert MEMBERS_MAX * weights * fixed.limit < 2**63
