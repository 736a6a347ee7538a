"""Settings: what all members agreed (`swarm.toml`), what one site decided (`sites/*.toml`), what one run is
(its policy). Read once, frozen, passed as arguments. A combination that cannot work fails here, with the reason.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from swarm.encoding import ZERO_ADDRESS, Address, from_hex, sha256
from swarm.errors import ConfigError
from swarm.identity import Identity, address_of_peer_id, checksum, load_keystore

MEMBERS_MAX = 128
"""The contracts' arrays have this bound."""
NAME_BYTES_MAX = 64
"""The contracts' names have this bound."""
ENDPOINT_BYTES_MAX = 256
"""The contracts' endpoints have this bound."""

# Every merge that can be named, with the settings that it alone takes. Those of the second half bear false members.
MERGE_RULES: Mapping[str, tuple[str, ...]] = {
    "mean": (),
    "sum": (),
    "norm_bounded_mean": ("bound", "radius"),
    "centered_clipping": ("bound", "radius", "iterations"),
    "geometric_median": ("iterations",),
    "coordinate_median": (),
    "trimmed_mean": ("faults",),
    "multi_krum": ("faults",),
    "nearest_neighbor_mixing": ("faults",),
}
# The others look at whole updates before they merge one coordinate.
CHUNK_RULES = ("mean", "sum", "coordinate_median", "trimmed_mean")
WEIGHT_RULES = ("samples", "equal")
BOUND_RULES = ("median", "length")
# They rank updates or values, and one member is one voice.
EQUAL_ONLY = ("sum", "coordinate_median", "trimmed_mean", "multi_krum", "nearest_neighbor_mixing")
# What may act on the merged update, with the settings that it takes.
SERVER_RULES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "fedavgm": ("server_rate", "server_momentum"),
    "nesterov": ("server_rate", "server_momentum"),
    "fedadagrad": ("server_rate", "server_momentum", "server_floor"),
    "fedadam": ("server_rate", "server_momentum", "server_decay", "server_floor"),
    "fedyogi": ("server_rate", "server_momentum", "server_decay", "server_floor"),
}
# A policy has some 700 bytes; what a stranger calls one is not parsed beyond this.
POLICY_BYTES_MAX = 1 << 14


@dataclass(frozen=True)
class MemberConfig:
    """One founding member, as `swarm.toml` names it."""

    name: str
    address: Address
    operator: Address
    endpoint: str
    """A multiaddr that ends in `/p2p/PEERID`."""
    validator: bool = True


@dataclass(frozen=True)
class ExternalConfig:
    """Somebody else's EVM network that holds the contracts, in place of the members' own ledger."""

    endpoint: str
    """JSON-RPC: `http://`, `https://`, `ws://` or `wss://`. A site may name another one of the same network."""
    consortium: Address | None = None
    """Where the contract is; None until `swarm deploy` has put it there."""
    runs: Address | None = None
    block: int = 0
    """The first block that has both contracts: nothing before it is read."""
    confirmations: int = 0
    """How many blocks stand on one before what it says counts here; 0 where a block is final, as under QBFT."""


@dataclass(frozen=True)
class SwarmConfig:
    """`swarm.toml`: what all members agreed. Genesis is a pure function of it."""

    name: str
    chain_id: int
    created_ms: int
    """Unix time in milliseconds: the genesis block's timestamp."""
    members: tuple[MemberConfig, ...]
    view_timeout_s: float = 1.0
    """How long the first proposer of a block has before the next one tries."""
    standby_after_s: float = 7 * 86_400.0
    """A validator that is silent for so long is put on standby by the others."""
    block_gas_limit: int = 400_000_000
    external: ExternalConfig | None = None
    """None: the members keep a ledger of their own."""

    def member_named(self, name: str) -> MemberConfig:
        """The founding member of this name; ConfigError names the ones there are."""
        for member in self.members:
            if member.name == name:
                return member
        raise ConfigError(f"no member is called {name!r}; there are {', '.join(m.name for m in self.members)}")


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
    subscriptions_max: int = 32
    """Of one WebSocket."""
    log_blocks_max: int = 10_000
    logs_max: int = 2_000
    call_gas: int = 10_000_000


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

    def identity(self) -> Identity:
        """The node's key, unlocked."""
        return load_keystore(self.keystore, _password(self.password_file, "SWARM_PASSWORD", self.path))

    def operator(self) -> Identity:
        """The operator's key, unlocked: a person's, for votes and consent."""
        if self.operator_keystore is None:
            raise ConfigError(f"{self.path}: votes are signed by the operator; name `operator_keystore` here")
        password = _password(self.operator_password_file, "SWARM_OPERATOR_PASSWORD", self.path)
        return load_keystore(self.operator_keystore, password)


@dataclass(frozen=True)
class Policy:
    """What the members of a run agree on; its digest is on the ledger and its bytes are an object."""

    name: str
    rounds: int
    sync_interval: int
    """Local batches between two rounds."""
    merge: str = "norm_bounded_mean"
    weights: str = "samples"
    range: float = 8.0
    """Every coordinate of an update is clipped to ±range before it is merged (for `sum`: refused)."""
    weight_max: int = 1_000_000
    """The ledger refuses a submission of more samples."""
    weight_ratio_max: float = 1.0
    """No member counts for more than this many times the round's median weight."""
    submissions_min: int = 2
    submit_s: float = 30.0
    merge_s: float = 5.0
    attest_s: float = 5.0
    verify_all_members: int = 7
    """Where no more submitted than this, everybody merges everything again."""
    verify_all_bytes: int = 64 << 20
    """Where the checkpoint is no larger than this, too. Beyond both, each merges the parts it was assigned."""
    step_bits: int = 32
    """An update's fixed point has the step 2**-step_bits."""
    faults: int = 0
    """How many members `trimmed_mean`, `multi_krum` and `nearest_neighbor_mixing` bear, whatever they send."""
    bound: str = "median"
    """What `radius` counts in: the median length of the round's updates, or 1 (`length`)."""
    radius: float = 1.0
    """How long an update may be (`norm_bounded_mean`), or how far one may pull at once (`centered_clipping`)."""
    iterations: int = 5
    """How often `centered_clipping` and `geometric_median` move their point."""
    server: str = "none"
    """What acts on the merged update: an optimizer whose state is part of the checkpoint."""
    server_rate: float = 1.0
    """The optimizer's learning rate."""
    server_momentum: float = 0.9
    """How much of the last step stays in the next one."""
    server_decay: float = 0.99
    """How much of the last mean square stays in the next one (`fedadam`, `fedyogi`)."""
    server_floor: float = 0.001
    """What is added to the root of the mean square: how adaptive the adaptive ones are."""
    alarm_metric: str = ""
    """Of the metrics that members submit, one whose fall raises an alarm; greater is better. None if empty."""
    alarm_fall: float = 0.05
    """By how much it has to fall at half of the members, from one round to the next."""

    @property
    def by_chunks(self) -> bool:
        """Whether one chunk of the merge takes the same chunk of its inputs and nothing else."""
        return self.merge in CHUNK_RULES and self.server == "none"

    def encode(self) -> bytes:
        """Canonical bytes: JSON, keys sorted, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Policy:
        """The policy in canonical bytes.

        Raises:
            ConfigError: not a policy, or one that cannot work.
        """
        if len(data) > POLICY_BYTES_MAX:
            raise ConfigError(f"not a policy: {len(data)} bytes, at most {POLICY_BYTES_MAX} are read")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not a policy: {error}") from error
        policy = _policy(document, "policy")
        if policy.encode() != data:
            raise ConfigError("the policy is not in its canonical form")
        return policy


def load_policy(path: Path) -> Policy:
    """The policy in a TOML file with one table `[run]`."""
    document = _read(path)
    _only(document, {"run"}, path)
    return _policy(_table(document, "run", path), str(path))


def _policy(document: object, where: str) -> Policy:
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: a policy is a table of settings")
    kinds = {field.name: field.type for field in fields(Policy)}
    unknown = sorted(set(document) - set(kinds))
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r} is no setting of a run; there are {', '.join(sorted(kinds))}")
    values: dict[str, Any] = {}
    for key, value in document.items():
        kind = kinds[key]
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value).__name__ != kind:
            raise ConfigError(f"{where}: {key} is a {kind}, found {value!r}")
        values[key] = value
    missing = [field.name for field in fields(Policy) if field.default is MISSING and field.name not in values]
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing")
    policy = Policy(**values)
    _check_policy(policy, where)
    return policy


def _check_policy(policy: Policy, where: str) -> None:
    def need(holds: bool, key: str, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{where}: {key} = {getattr(policy, key)!r}, but it has to be {wanted}")

    need(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", policy.name) is not None, "name", "1 to 64 plain characters")
    need(1 <= policy.rounds <= 1_000_000, "rounds", "1 to 1000000")
    need(1 <= policy.sync_interval <= 1_000_000_000, "sync_interval", "1 to 1000000000 batches")
    need(policy.merge in MERGE_RULES, "merge", f"one of {', '.join(MERGE_RULES)}")
    need(policy.weights in WEIGHT_RULES, "weights", f"one of {', '.join(WEIGHT_RULES)}")
    need(policy.bound in BOUND_RULES, "bound", f"one of {', '.join(BOUND_RULES)}")
    need(policy.server in SERVER_RULES, "server", f"one of {', '.join(SERVER_RULES)}")
    need(
        policy.merge not in EQUAL_ONLY or policy.weights == "equal",
        "weights",
        f"'equal' where merge = {policy.merge!r}",
    )
    need(8 <= policy.step_bits <= 40, "step_bits", "8 to 40")
    need(0 < policy.range < 2**40, "range", "above 0 and below 2**40")
    steps = policy.range * 2**policy.step_bits
    need(1 <= steps < 2**51, "range", f"1 to 2**51 steps of 2**-{policy.step_bits}")
    need(1 <= policy.weight_max < 2**40, "weight_max", "1 to 2**40 samples")
    need(1 <= policy.weight_ratio_max < 2**40, "weight_ratio_max", "1 to 2**40")
    need(1 <= policy.submissions_min <= MEMBERS_MAX, "submissions_min", f"1 to {MEMBERS_MAX}")
    need(0 <= policy.verify_all_members <= MEMBERS_MAX, "verify_all_members", f"0 to {MEMBERS_MAX}")
    need(0 <= policy.verify_all_bytes < 2**48, "verify_all_bytes", "0 to 2**48 bytes")
    _check_merge(policy, need)
    _check_server(policy, need)
    _check_alarm(policy, need)
    for key in ("submit_s", "merge_s", "attest_s"):
        need(0.1 <= getattr(policy, key) <= 30 * 86_400, key, "0.1 seconds to 30 days")
    weight_sum = MEMBERS_MAX * (policy.weight_max if policy.weights == "samples" else 1)
    if weight_sum * policy.range * 2**policy.step_bits >= 2**63:
        raise ConfigError(
            f"{where}: {MEMBERS_MAX} members x weight_max x range x 2**step_bits passes 2**63, so a sum could "
            "overflow; lower weight_max, range or step_bits"
        )


def _check_merge(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What one rule asks of its own settings; those of other rules stay as they are, or they would look obeyed."""
    taken = MERGE_RULES[policy.merge]
    for key in ("faults", "bound", "radius", "iterations"):
        if key not in taken:
            wanted = getattr(Policy, key)
            need(getattr(policy, key) == wanted, key, f"left out ({wanted}): merge = {policy.merge!r} takes no {key}")
    if "faults" in taken:
        bears = (policy.submissions_min - (3 if policy.merge == "multi_krum" else 1)) // 2
        need(policy.faults >= 1, "faults", f"1 or more where merge = {policy.merge!r}")
        need(
            policy.faults <= bears,
            "faults",
            f"at most {max(bears, 0)}: submissions_min = {policy.submissions_min} updates bear no more "
            f"where merge = {policy.merge!r}",
        )
    need(1 <= policy.iterations <= 100, "iterations", "1 to 100")
    need(2.0**-policy.step_bits <= policy.radius < 2**40, "radius", f"2**-{policy.step_bits} to 2**40")
    if policy.merge in ("norm_bounded_mean", "centered_clipping", "geometric_median", "nearest_neighbor_mixing"):
        need(
            policy.range * 2**policy.step_bits < 2**42,
            "range",
            f"below 2**42 steps of 2**-{policy.step_bits} where merge = {policy.merge!r}",
        )


def _check_server(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    """What the optimizer on the merged update asks of its settings."""
    taken = SERVER_RULES[policy.server]
    need(policy.server == "none" or policy.merge != "sum", "server", "'none' where merge = 'sum': no step is agreed on")
    for key in SERVER_RULES["fedadam"]:
        if key not in taken:
            wanted = getattr(Policy, key)
            need(getattr(policy, key) == wanted, key, f"left out ({wanted}): server = {policy.server!r} takes no {key}")
    need(0 < policy.server_rate <= 1000, "server_rate", "above 0, at most 1000")
    need(0 <= policy.server_momentum < 1, "server_momentum", "0 or more and below 1")
    need(0 <= policy.server_decay < 1, "server_decay", "0 or more and below 1")
    need(1e-12 <= policy.server_floor <= 1, "server_floor", "1e-12 to 1")


def _check_alarm(policy: Policy, need: Callable[[bool, str, str], None]) -> None:
    need(len(policy.alarm_metric.encode()) <= 64, "alarm_metric", "a metric's name, at most 64 bytes")
    need(0 < policy.alarm_fall < 2**40, "alarm_fall", "above 0")
    unset = policy.alarm_fall == Policy.alarm_fall
    need(unset or bool(policy.alarm_metric), "alarm_fall", f"left out ({Policy.alarm_fall}) without an alarm_metric")


def load_swarm(path: Path) -> SwarmConfig:
    """What all members agreed.

    Raises:
        ConfigError: names the file, the key, what was found and what is possible.
    """
    document = _read(path)
    _only(document, {"consortium", "ledger", "members"}, path)
    consortium = _table(document, "consortium", path)
    ledger = document.get("ledger", {})
    _only(consortium, {"name", "chain_id", "created_ms"}, path)
    embedded = {"view_timeout_s", "standby_after_s", "block_gas_limit"}
    _only(ledger, embedded | {field.name for field in fields(ExternalConfig)}, path)
    entries = document.get("members")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: [[members]] names the founding members, at least one")
    if len(entries) > MEMBERS_MAX:
        raise ConfigError(f"{path}: {len(entries)} members, at most {MEMBERS_MAX}")
    members = tuple(_member(entry, path) for entry in entries)
    for key in ("name", "address", "operator", "endpoint"):
        values = [getattr(member, key) for member in members]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            shown = checksum(twice) if isinstance(twice, bytes) else twice
            raise ConfigError(f"{path}: two members have the {key} {shown}; each has its own")
    hot = {member.address for member in members}
    for member in members:
        if member.operator in hot:
            raise ConfigError(f"{path}: {member.name}'s operator is a node's key; a person's key votes, apart from it")
    if not any(member.validator for member in members):
        raise ConfigError(f"{path}: no member is a validator; at least one site has to be up day and night")
    name = _name(consortium, path)
    timeout_s = _value(ledger, "view_timeout_s", (int, float), path, SwarmConfig.view_timeout_s)
    if not 0.01 <= timeout_s <= 60:
        raise ConfigError(f"{path}: view_timeout_s = {timeout_s!r}, but it has to be 0.01 to 60 seconds")
    standby_s = _value(ledger, "standby_after_s", (int, float), path, SwarmConfig.standby_after_s)
    if not 1 <= standby_s <= 366 * 86_400:
        raise ConfigError(f"{path}: standby_after_s = {standby_s!r}, but it has to be 1 second to 366 days")
    return SwarmConfig(
        name=name,
        # Above 2**52 wallets and JavaScript's numbers lose digits of it.
        chain_id=_whole(consortium, "chain_id", path, 1, 2**52),
        created_ms=_whole(consortium, "created_ms", path, 0, 2**48),
        members=members,
        view_timeout_s=float(timeout_s),
        standby_after_s=float(standby_s),
        # A transaction takes up to 20 million, a block uses at most half of its limit.
        block_gas_limit=_whole(ledger, "block_gas_limit", path, 40_000_000, 2**40, SwarmConfig.block_gas_limit),
        external=_external(ledger, path),
    )


def _external(ledger: Mapping[str, Any], path: Path) -> ExternalConfig | None:
    """What `[ledger]` says of somebody else's chain, None if it names none."""
    if "endpoint" not in ledger:
        stray = sorted(set(ledger) & {field.name for field in fields(ExternalConfig)})
        if stray:
            raise ConfigError(f"{path}: {stray[0]!r} is for somebody else's chain; name its `endpoint` under [ledger]")
        return None
    own = sorted(set(ledger) & {"view_timeout_s", "block_gas_limit"})
    if own:
        raise ConfigError(f"{path}: {own[0]!r} is for a ledger of the members' own; leave it out beside `endpoint`")
    endpoint = _value(ledger, "endpoint", str, path)
    check_url(endpoint, f"{path}: the ledger's endpoint")
    consortium, runs = (_address(ledger, key, path) if key in ledger else None for key in ("consortium", "runs"))
    if (consortium is None) != (runs is None) or (consortium is not None and consortium == runs):
        raise ConfigError(f"{path}: consortium and runs are two addresses, or absent until `swarm deploy` writes them")
    return ExternalConfig(
        endpoint=endpoint,
        consortium=consortium,
        runs=runs,
        block=_whole(ledger, "block", path, 0, 2**52, ExternalConfig.block),
        confirmations=_whole(ledger, "confirmations", path, 0, 1000, ExternalConfig.confirmations),
    )


def _address(table: Mapping[str, Any], key: str, path: Path) -> Address:
    text = _value(table, key, str, path)
    try:
        found = from_hex(text, size=20)
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: {error}") from error
    if found == ZERO_ADDRESS:
        raise ConfigError(f"{path}: {key} is the address zero")
    return found


def check_url(url: str, where: str) -> None:
    """ConfigError unless this is the address of a JSON-RPC endpoint."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https", "ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        shown = url.rpartition("@")[2].partition("?")[0]  # no password of somebody's
        raise ConfigError(f"{where} is {shown!r}; it has the form http://HOST:PORT, https://…, ws://… or wss://…")


def _member(entry: object, path: Path) -> MemberConfig:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: [[members]] holds tables")
    _only(entry, {"name", "address", "operator", "endpoint", "validator"}, path)
    name = _name(entry, path)
    addresses = {}
    for key in ("address", "operator"):
        text = _value(entry, key, str, path)
        try:
            addresses[key] = from_hex(text, size=20)
        except ValueError as error:
            raise ConfigError(f"{path}: {name}'s {key}: {error}") from error
        if addresses[key] == ZERO_ADDRESS:
            raise ConfigError(f"{path}: {name}'s {key} is zero")
    endpoint = _value(entry, "endpoint", str, path)
    if len(endpoint.encode()) > ENDPOINT_BYTES_MAX:
        raise ConfigError(f"{path}: {name}'s endpoint has {len(endpoint)} characters, at most {ENDPOINT_BYTES_MAX}")
    check_endpoint(endpoint, addresses["address"], f"{path}: {name}'s endpoint")
    validator = _value(entry, "validator", bool, path, True)
    return MemberConfig(name, addresses["address"], addresses["operator"], endpoint, validator)


def check_endpoint(endpoint: str, address: Address, where: str) -> None:
    """ConfigError unless the multiaddr ends in the PeerID of `address`."""
    head, mark, peer_id = endpoint.rpartition("/p2p/")
    if not mark or not head.startswith("/"):
        raise ConfigError(f"{where} is {endpoint!r}; it has the form /ip4/1.2.3.4/tcp/4101/p2p/PEERID")
    try:
        found = address_of_peer_id(peer_id)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if found != address:
        raise ConfigError(f"{where} has the PeerID of {checksum(found)}, but the address is {checksum(address)}")


def load_site(path: Path) -> SiteConfig:
    """What one site decided; relative paths start at the folder of the file.

    Raises:
        ConfigError: names the file, the key, what was found and what is possible.
    """
    path = path.resolve()
    document = _read(path)
    _only(document, {"site", "rpc"}, path)
    site = _table(document, "site", path)
    possible = {
        "name", "swarm", "keystore", "password_file", "operator_keystore", "operator_password_file",
        "folder", "listen", "store_max_bytes", "max_upload", "leads", "archive", "endpoint",
    }  # fmt: skip
    _only(site, possible, path)

    def place(key: str, default: str | None = None) -> Path:
        relative: str = _value(site, key, str, path, default)
        if "\0" in relative:
            raise ConfigError(f"{path}: {key} = {relative!r}, but a path has no zero byte")
        return (path.parent / relative).resolve()

    def place_or_none(key: str) -> Path | None:
        return place(key) if key in site else None

    if "endpoint" in site:
        check_url(_value(site, "endpoint", str, path), f"{path}: endpoint")
    return SiteConfig(
        path=path,
        name=_value(site, "name", str, path),
        swarm=place("swarm", "../swarm.toml"),
        keystore=place("keystore"),
        password_file=place_or_none("password_file"),
        operator_keystore=place_or_none("operator_keystore"),
        operator_password_file=place_or_none("operator_password_file"),
        folder=place("folder"),
        listen=_value(site, "listen", str, path),
        store_max_bytes=_whole(site, "store_max_bytes", path, 1 << 20, 1 << 60, SiteConfig.store_max_bytes),
        max_upload_bytes_s=_speed(site, "max_upload", path),
        leads=_value(site, "leads", bool, path, True),
        archive=_value(site, "archive", bool, path, False),
        rpc=_rpc(_table(document, "rpc", path), path) if "rpc" in document else None,
        endpoint=site.get("endpoint"),
    )


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
    _only(table, {"listen", "hosts", "origins", *_RPC_NUMBERS}, path)
    listen = _value(table, "listen", str, path)
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
        names[key] = _value(table, key, list, path, [])
        if not all(isinstance(name, str) and name for name in names[key]):
            raise ConfigError(f"{path}: {key} = {names[key]!r} in [rpc], but a list of names belongs there")
    numbers = {
        key: _whole(table, key, path, low, high, getattr(RpcConfig, key)) for key, (low, high) in _RPC_NUMBERS.items()
    }
    return RpcConfig(address, number, tuple(names["hosts"]), tuple(names["origins"]), **numbers)


def check_site(site: SiteConfig, swarm: SwarmConfig, identity: Identity) -> MemberConfig | None:
    """The founding member that this site is, or None if it was admitted later.

    Raises:
        ConfigError: the site's name stands in `swarm.toml` with another key.
    """
    for member in swarm.members:
        if member.name == site.name and member.address != identity.address:
            raise ConfigError(
                f"{site.path}: the key in {site.keystore} is {checksum(identity.address)}, but {site.swarm} says that "
                f"{site.name} is {checksum(member.address)}; name that "
                "member's keystore, or the swarm.toml it belongs to"
            )
    return next((member for member in swarm.members if member.address == identity.address), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}; `swarm init DIR` writes a consortium's folder") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error


def _table(document: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    table = document.get(key)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: the table [{key}] is missing")
    return table


def _only(table: object, possible: set[str], path: Path) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: a table belongs where {table!r} stands")
    unknown = sorted(set(table) - possible)
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]!r} is no setting here; there are {', '.join(sorted(possible))}")


def _value(table: Mapping[str, Any], key: str, kind: Any, path: Path, default: Any = None) -> Any:
    value = table.get(key, default)
    if value is None:
        raise ConfigError(f"{path}: {key!r} is missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = getattr(kind, "__name__", "number")
        raise ConfigError(f"{path}: {key} = {value!r}, but a {wanted} belongs there")
    return value


def _whole(table: Mapping[str, Any], key: str, path: Path, low: int, high: int, default: int | None = None) -> int:
    value: int = _value(table, key, int, path, default)
    if not low <= value <= high:
        raise ConfigError(f"{path}: {key} = {value}, but it has to be {low} to {high}")
    return value


_SPEEDS = {"kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "kbit/s": 125.0, "Mbit/s": 125e3, "Gbit/s": 125e6}


def _speed(table: Mapping[str, Any], key: str, path: Path) -> float | None:
    """Bytes a second of a text like "20 MB/s"; None where the key is absent."""
    if key not in table:
        return None
    text: str = _value(table, key, str, path)
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+/s)", text.strip())
    if found is None or found[2] not in _SPEEDS:
        raise ConfigError(f"{path}: {key} = {text!r}, but a speed belongs there, in {', '.join(_SPEEDS)}: '20 MB/s'")
    speed = float(found[1]) * _SPEEDS[found[2]]
    if not 10e3 <= speed <= 1e12:
        raise ConfigError(f"{path}: {key} = {text!r}, but it has to be 10 kB/s or more: rounds would not end")
    return speed


def _name(table: Mapping[str, Any], path: Path) -> str:
    name: str = _value(table, "name", str, path)
    if not name.isprintable() or not 1 <= len(name.encode()) <= NAME_BYTES_MAX or name != name.strip():
        raise ConfigError(f"{path}: name = {name!r}, but it has to be 1 to {NAME_BYTES_MAX} plain bytes of text")
    return name


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
