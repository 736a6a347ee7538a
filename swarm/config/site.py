"""`sites/NAME.toml`: what one site decided for its own node.

Keys are loaded where they are needed: their libraries take half a second, and a training process has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.config.consortium import MemberConfig, SwarmConfig, check_url
from swarm.config.proxy import Proxy, proxy_of
from swarm.config.toml import only, read, table_of, value_of, whole
from swarm.encoding import from_hex, sha256
from swarm.errors import ConfigError

if TYPE_CHECKING:
    from swarm.identity import Identity


LEAK_CHECK = "swarm.leak_check."
"""Begins the name of the metric by which a site states its leak check; 64 hexadecimal digits of its digest follow."""
LEAK_CHECK_RESULTS = Path("leak-check") / "results.json"
"""In a site's folder: what the digest is of."""


@dataclass(frozen=True)
class RpcConfig:
    """`[rpc]` of a site's settings: where the ledger is read as JSON-RPC (HTTP and WebSocket), and how much of it."""

    host: str
    """An IP address of this machine."""
    port: int
    """0 takes a free one at each start."""
    hosts: tuple[str, ...] = ()
    """Names by which browsers may call this node, besides its IP addresses and `localhost`."""
    origins: tuple[str, ...] = ()
    """Web pages' origins, as in `https://explorer.example`, whose scripts may read answers."""
    body_max_bytes: int = 1 << 20
    batch_max: int = 100
    requests_s: int = 200
    """What one client gets; an answer counts as one request for each 2 ms that it takes, at least as one."""
    connections_max: int = 100
    metrics: bool = False
    """Whoever reaches the port may read `/metrics`, too; False: this machine alone."""
    subscriptions_max: int = 32
    """Of one WebSocket."""
    log_blocks_max: int = 10_000
    logs_max: int = 2_000
    call_gas: int = 10_000_000


@dataclass(frozen=True)
class RelayConfig:
    """`[relay]` of a site's settings: that it joins members that cannot reach each other, and how much of that."""

    bytes_s: float = 5e6
    """Of all that is relayed, both directions together; it counts in `max_upload` as well."""
    circuits_max: int = 16
    """Pairs of members joined at once; each keeps up to 2.5 MiB of memory."""
    duration_s: int = 3600
    """Then a relayed connection ends and is made anew, if it is still needed."""


@dataclass(frozen=True)
class SiteConfig:
    """`sites/NAME.toml`: what one site decided, with every path made absolute."""

    path: Path
    name: str
    swarm: Path
    keystore: Path
    password_file: Path | None
    operator_keystore: Path | None
    operator_password_file: Path | None
    folder: Path
    """Where the node keeps its ledger, votes and objects, and where its socket is."""
    listen: str
    """A multiaddr to listen on, `/ip4/127.0.0.1/tcp/4101`."""
    store_max_bytes: int = 20_000_000_000
    max_upload_bytes_s: float | None = None
    """The most that this site sends in a second, over all members; None: as fast as it goes."""
    leads: bool = True
    archive: bool = False
    """Keep the ledger's state after every block, not only after the last ones."""
    rpc: RpcConfig | None = None
    """None: the ledger is read on this machine only, through the node's socket."""
    relay: RelayConfig | None = None
    """None: this site relays for nobody."""
    proxy: Proxy | None = None
    """Through which others are dialled: `proxy = "http://proxy.hospital:3128"`, else HTTPS_PROXY of the environment."""
    rotated_from: bytes | None = None
    """The address that `swarm.toml` names for this site, where its operator has replaced that key since."""
    endpoint: str | None = None
    """This site's own way to somebody else's chain, in place of the one in `swarm.toml`; None: that one."""

    @property
    def socket(self) -> Path:
        """The Unix socket on which a training process and the command line reach the node.

        A socket's path has at most 107 bytes on Linux: a deep folder gets a short name in the runtime directory.
        """
        plain = self.folder / "node.sock"
        if len(os.fsencode(plain)) <= 100:
            return plain
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp"))
        return runtime / f"swarm-{os.getuid()}-{sha256(os.fsencode(plain)).hex()[:16]}.sock"

    @property
    def next_update(self) -> Path:
        """Where the node leaves a file of its store that is in nobody's use, for training's next update to be written
        over it: quicker than a new one."""
        return self.folder / "updates" / "next"

    def identity(self) -> Identity:
        """The node's key, unlocked."""
        from swarm.identity import load_keystore

        return load_keystore(self.keystore, _password(self.password_file, "SWARM_PASSWORD", self.path))

    def operator(self) -> Identity:
        """The operator's key, unlocked: a person's, for votes and consent."""
        if self.operator_keystore is None:
            raise ConfigError(f"{self.path}: votes are signed by the operator; name `operator_keystore` here")
        password = _password(self.operator_password_file, "SWARM_OPERATOR_PASSWORD", self.path)
        from swarm.identity import load_keystore

        return load_keystore(self.operator_keystore, password)


def load_site(path: Path) -> SiteConfig:
    """What one site decided; relative paths start at the folder of the file.

    Raises:
        ConfigError: names the file, the key, what was found and what is possible.
    """
    path = path.resolve()
    document = read(path)
    only(document, {"site", "rpc", "relay"}, path)
    site = table_of(document, "site", path)
    possible = {
        "name", "swarm", "keystore", "password_file", "operator_keystore", "operator_password_file",
        "folder", "listen", "store_max_bytes", "max_upload", "leads", "archive", "endpoint",
        "proxy", "rotated_from",
    }  # fmt: skip
    only(site, possible, path)

    def place(key: str, default: str | None = None) -> Path:
        relative: str = value_of(site, key, str, path, default)
        if "\0" in relative:
            raise ConfigError(f"{path}: {key} = {relative!r}, but a path has no zero byte")
        return (path.parent / relative).resolve()

    def place_or_none(key: str) -> Path | None:
        return place(key) if key in site else None

    if "endpoint" in site:
        check_url(value_of(site, "endpoint", str, path), f"{path}: endpoint")
    return SiteConfig(
        path=path,
        name=value_of(site, "name", str, path),
        swarm=place("swarm", "../swarm.toml"),
        keystore=place("keystore"),
        password_file=place_or_none("password_file"),
        operator_keystore=place_or_none("operator_keystore"),
        operator_password_file=place_or_none("operator_password_file"),
        folder=place("folder"),
        listen=value_of(site, "listen", str, path),
        store_max_bytes=whole(site, "store_max_bytes", path, 1 << 20, 1 << 60, SiteConfig.store_max_bytes),
        max_upload_bytes_s=_speed(site, "max_upload", path),
        leads=value_of(site, "leads", bool, path, True),
        archive=value_of(site, "archive", bool, path, False),
        rpc=_rpc(table_of(document, "rpc", path), path) if "rpc" in document else None,
        relay=_relay(table_of(document, "relay", path), path) if "relay" in document else None,
        proxy=proxy_of(value_of(site, "proxy", str, path) if "proxy" in site else None, f"{path}: proxy"),
        rotated_from=_address(value_of(site, "rotated_from", str, path), path) if "rotated_from" in site else None,
        endpoint=site.get("endpoint"),
    )


def _address(text: str, path: Path) -> bytes:
    try:
        return from_hex(text, size=20)
    except ValueError as error:
        raise ConfigError(f"{path}: rotated_from = {text!r}, but an address belongs there, 0x…: {error}") from error


# Each number of [rpc]: the least and the most that a node can live with.
_RPC_NUMBERS = {
    "body_max_bytes": (1 << 10, 1 << 26),
    "batch_max": (1, 10_000),
    "requests_s": (1, 1_000_000),
    "connections_max": (1, 10_000),
    "subscriptions_max": (1, 10_000),
    "log_blocks_max": (1, 1_000_000),
    "logs_max": (1, 100_000),
    "call_gas": (100_000, 30_000_000),
}


def _rpc(table: Mapping[str, Any], path: Path) -> RpcConfig:
    only(table, {"listen", "hosts", "origins", "metrics", *_RPC_NUMBERS}, path)
    listen = value_of(table, "listen", str, path)
    host, _, port = listen.rpartition(":")
    try:
        address = str(ip_address(host.removeprefix("[").removesuffix("]")))
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 1 << 16
    except ValueError:
        number = 1 << 16
    if number >= 1 << 16:
        raise ConfigError(
            f"{path}: listen = {listen!r} in [rpc], but it has the form IP:PORT, as in 127.0.0.1:8545 or [::1]:8545"
        )
    names = {}
    for key in ("hosts", "origins"):
        names[key] = value_of(table, key, list, path, [])
        if not all(isinstance(name, str) and name for name in names[key]):
            raise ConfigError(f"{path}: {key} = {names[key]!r} in [rpc], but a list of names belongs there")
    numbers = {
        key: whole(table, key, path, low, high, getattr(RpcConfig, key)) for key, (low, high) in _RPC_NUMBERS.items()
    }
    metrics: bool = value_of(table, "metrics", bool, path, False)
    return RpcConfig(address, number, tuple(names["hosts"]), tuple(names["origins"]), metrics=metrics, **numbers)


def _relay(table: Mapping[str, Any], path: Path) -> RelayConfig:
    only(table, {"max_speed", "circuits_max", "duration_s"}, path)
    return RelayConfig(
        bytes_s=_speed(table, "max_speed", path) or RelayConfig.bytes_s,
        circuits_max=whole(table, "circuits_max", path, 1, 1000, RelayConfig.circuits_max),
        duration_s=whole(table, "duration_s", path, 60, 1 << 20, RelayConfig.duration_s),
    )


def check_site(site: SiteConfig, swarm: SwarmConfig, identity: Identity) -> MemberConfig | None:
    """The founding member that this site is, or None if it was admitted later, or its operator has replaced its key.

    Raises:
        ConfigError: the site's name stands in `swarm.toml` with another key, or `rotated_from` names a key that this
            site never had.
    """
    from swarm.identity import checksum

    founder = next((member for member in swarm.members if member.name == site.name), None)
    if site.rotated_from is not None:
        _check_rotated(site, swarm, identity)
    elif founder is not None and founder.address != identity.address:
        raise ConfigError(
            f"{site.path}: the key in {site.keystore} is {checksum(identity.address)}, but {site.swarm} says that "
            f"{site.name} is {checksum(founder.address)}; name that "
            f"member's keystore, or the swarm.toml it belongs to; if the operator replaced its key, say so in "
            f'{site.path.name}: rotated_from = "{checksum(founder.address)}"'
        )
    return next((member for member in swarm.members if member.address == identity.address), None)


def _check_rotated(site: SiteConfig, swarm: SwarmConfig, identity: Identity) -> None:
    """Hold `rotated_from` against `swarm.toml`; that the new key is the member's now, only the ledger says."""
    from swarm.identity import checksum

    assert site.rotated_from is not None
    founder = next((member for member in swarm.members if member.name == site.name), None)
    said = f"{site.path}: rotated_from = {checksum(site.rotated_from)!r}"
    if founder is None:
        raise ConfigError(
            f"{said}, but {site.swarm} has no member called {site.name}; who was admitted later is known by the ledger "
            "alone: take the line out, or correct `name`"
        )
    if site.rotated_from != founder.address:
        raise ConfigError(
            f"{said}, but {site.swarm} says that {site.name} was founded with {checksum(founder.address)}: that one "
            "belongs there, however often the key was replaced since; or take the line out if it never was"
        )
    if identity.address == founder.address:
        raise ConfigError(
            f"{said}, which is the key in {site.keystore} itself; name the keystore of the key that replaced it, or "
            "take the line out"
        )
    other = next((member.name for member in swarm.members if member.address == identity.address), None)
    if other is not None:
        raise ConfigError(
            f"{site.path}: the key in {site.keystore} is that of {other} by {site.swarm}; name the keystore of the key "
            f"that replaced {site.name}'s"
        )


_SPEEDS = {"kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "kbit/s": 125.0, "Mbit/s": 125e3, "Gbit/s": 125e6}


def _speed(table: Mapping[str, Any], key: str, path: Path) -> float | None:
    """Bytes a second of a text like "20 MB/s"; None where the key is absent."""
    if key not in table:
        return None
    text: str = value_of(table, key, str, path)
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+/s)", text.strip())
    if found is None or found[2] not in _SPEEDS:
        raise ConfigError(f"{path}: {key} = {text!r}, but a speed belongs there, in {', '.join(_SPEEDS)}: '20 MB/s'")
    speed = float(found[1]) * _SPEEDS[found[2]]
    if not 10e3 <= speed <= 1e12:
        raise ConfigError(f"{path}: {key} = {text!r}, but it has to be 10 kB/s or more: rounds would not end")
    return speed


def _password(file: Path | None, variable: str, site: Path) -> str:
    if file is not None:
        try:
            return file.read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{site}: the password file {file} cannot be read: {error}") from error
    password = os.environ.get(variable)
    if password is None:
        raise ConfigError(f"{site}: the key's password is neither in a `password_file` nor in {variable}")
    return password
