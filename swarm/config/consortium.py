"""`swarm.toml`: what all members agreed, and whose chain the ledger is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from swarm.config.toml import ENDPOINT_BYTES_MAX, MEMBERS_MAX, name_of, only, read, table_of, value_of, whole
from swarm.encoding import ZERO_ADDRESS, Address, from_hex
from swarm.errors import ConfigError


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
    blind: Address | None = None
    block: int = 0
    """The first block that has the contracts: nothing before it is read."""
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


def load_swarm(path: Path) -> SwarmConfig:
    """What all members agreed.

    Raises:
        ConfigError: names the file, the key, what was found and what is possible.
    """
    document = read(path)
    only(document, {"consortium", "ledger", "members"}, path)
    consortium = table_of(document, "consortium", path)
    ledger = document.get("ledger", {})
    only(consortium, {"name", "chain_id", "created_ms"}, path)
    embedded = {"view_timeout_s", "standby_after_s", "block_gas_limit"}
    only(ledger, embedded | {field.name for field in fields(ExternalConfig)}, path)
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
            from swarm.identity import checksum

            shown = checksum(twice) if isinstance(twice, bytes) else twice
            raise ConfigError(f"{path}: two members have the {key} {shown}; each has its own")
    hot = {member.address for member in members}
    for member in members:
        if member.operator in hot:
            raise ConfigError(f"{path}: {member.name}'s operator is a node's key; a person's key votes, apart from it")
    if not any(member.validator for member in members):
        raise ConfigError(f"{path}: no member is a validator; at least one site has to be up day and night")
    name = name_of(consortium, path)
    timeout_s = value_of(ledger, "view_timeout_s", (int, float), path, SwarmConfig.view_timeout_s)
    if not 0.01 <= timeout_s <= 60:
        raise ConfigError(f"{path}: view_timeout_s = {timeout_s!r}, but it has to be 0.01 to 60 seconds")
    standby_s = value_of(ledger, "standby_after_s", (int, float), path, SwarmConfig.standby_after_s)
    if not 1 <= standby_s <= 366 * 86_400:
        raise ConfigError(f"{path}: standby_after_s = {standby_s!r}, but it has to be 1 second to 366 days")
    return SwarmConfig(
        name=name,
        # Above 2**52 wallets and JavaScript's numbers lose digits of it.
        chain_id=whole(consortium, "chain_id", path, 1, 2**52),
        created_ms=whole(consortium, "created_ms", path, 0, 2**48),
        members=members,
        view_timeout_s=float(timeout_s),
        standby_after_s=float(standby_s),
        # A transaction takes up to 20 million, a block uses at most half of its limit.
        block_gas_limit=whole(ledger, "block_gas_limit", path, 40_000_000, 2**40, SwarmConfig.block_gas_limit),
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
    endpoint = value_of(ledger, "endpoint", str, path)
    check_url(endpoint, f"{path}: the ledger's endpoint")
    names = ("consortium", "runs", "blind")
    consortium, runs, blind = (_address(ledger, key, path) if key in ledger else None for key in names)
    found = {consortium, runs, blind}
    if found != {None} and (None in found or len(found) < len(names)):
        raise ConfigError(
            f"{path}: consortium, runs and blind are three addresses, or absent until `swarm deploy` writes them"
        )
    return ExternalConfig(
        endpoint=endpoint,
        consortium=consortium,
        runs=runs,
        blind=blind,
        block=whole(ledger, "block", path, 0, 2**52, ExternalConfig.block),
        confirmations=whole(ledger, "confirmations", path, 0, 1000, ExternalConfig.confirmations),
    )


def _address(table: Mapping[str, Any], key: str, path: Path) -> Address:
    text = value_of(table, key, str, path)
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
    only(entry, {"name", "address", "operator", "endpoint", "validator"}, path)
    name = name_of(entry, path)
    addresses = {}
    for key in ("address", "operator"):
        text = value_of(entry, key, str, path)
        try:
            addresses[key] = from_hex(text, size=20)
        except ValueError as error:
            raise ConfigError(f"{path}: {name}'s {key}: {error}") from error
        if addresses[key] == ZERO_ADDRESS:
            raise ConfigError(f"{path}: {name}'s {key} is zero")
    endpoint = value_of(entry, "endpoint", str, path)
    if len(endpoint.encode()) > ENDPOINT_BYTES_MAX:
        raise ConfigError(f"{path}: {name}'s endpoint has {len(endpoint)} characters, at most {ENDPOINT_BYTES_MAX}")
    check_endpoint(endpoint, addresses["address"], f"{path}: {name}'s endpoint")
    validator = value_of(entry, "validator", bool, path, True)
    return MemberConfig(name, addresses["address"], addresses["operator"], endpoint, validator)


def check_endpoint(endpoint: str, address: Address, where: str) -> None:
    """ConfigError unless the multiaddr ends in the PeerID of `address`."""
    from swarm.identity import address_of_peer_id, checksum

    head, mark, peer_id = endpoint.rpartition("/p2p/")
    if not mark or not head.startswith("/"):
        raise ConfigError(f"{where} is {endpoint!r}; it has the form /ip4/1.2.3.4/tcp/4101/p2p/PEERID")
    try:
        found = address_of_peer_id(peer_id)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if found != address:
        raise ConfigError(f"{where} has the PeerID of {checksum(found)}, but the address is {checksum(address)}")
