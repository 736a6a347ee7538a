"""A consortium's folder: `swarm.toml`, every site's settings, their keys, and who gets which file.

What is agreed and what is one site's own is `swarm.config`'s; this file only writes it down for the first time.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from swarm.config import MEMBERS_MAX, MemberConfig, load_policy, load_site, load_swarm
from swarm.errors import ConfigError, StorageError
from swarm.identity import SCRYPT_N_RANDOM, Identity, checksum, save_keystore
from swarm.rounds import submissions_needed

BASE_PORT = 4101
RPC_APART = 8545 - BASE_PORT
"""A node's JSON-RPC has Ethereum's usual port where the node has ours, and as many nodes as here have their own."""
PORT_MAX = 65535
BLIND_MEMBERS_MIN = 4
"""From so many members on a new policy is blind."""
LOOPBACK = "127.0.0.1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")
_PASSWORD_BYTES = 24


@dataclass(frozen=True)
class Place:
    """Where one member's node will be reached."""

    name: str
    host: str
    port: int
    rpc_port: int
    """Where the node serves JSON-RPC, on loopback."""

    @property
    def address(self) -> str:
        """The multiaddr without the PeerID."""
        kind = "ip6" if ":" in self.host else "ip4" if re.fullmatch(r"[0-9.]+", self.host) else "dns4"
        return f"/{kind}/{self.host}/tcp/{self.port}"

    @property
    def listen(self) -> str:
        """Where the node listens: on loopback if it is reached there, else on every interface."""
        if self.host in (LOOPBACK, "::1", "localhost"):
            return self.address
        return f"/{'ip6/::' if ':' in self.host else 'ip4/0.0.0.0'}/tcp/{self.port}"


def places_of(members: Sequence[str], *, base_port: int) -> list[Place]:
    """Places for members given as `NAME` (on this machine, ports count up) or `NAME@HOST[:PORT]`.

    Args:
        base_port: the first port; 0 takes free ones of this machine.
    Raises:
        ConfigError: a name that cannot be a file's, given twice, or a port that is none.
    """
    found: list[Place] = []
    ports = free_ports(2 * len(members)) if base_port == 0 else []
    free = iter(ports[::2] or range(base_port, base_port + len(members)))
    rpc_free = iter(ports[1::2] or map(_rpc_port, range(base_port, base_port + len(members))))
    for member in members:
        name, at, where = member.strip().partition("@")
        if not _NAME.fullmatch(name) or name.endswith("-operator"):
            raise ConfigError(
                f"a member's name is {member.strip()!r}; it names files, so it has letters, digits, - and _, at most "
                "48, and does not end in -operator"
            )
        if name in (place.name for place in found):
            raise ConfigError(f"two members are called {name}; each has its own name")
        port, rpc_port = next(free), next(rpc_free)
        here = Place(name, LOOPBACK, port, rpc_port)
        found.append(_place(name, where, base_port or BASE_PORT) if at else here)
        if not at and port > PORT_MAX:
            raise ConfigError(f"{name} would have port {port}; the last is {PORT_MAX}, so take a lower --base-port")
    if not 1 <= len(found) <= MEMBERS_MAX:
        raise ConfigError(f"{len(found)} members; a consortium has 1 to {MEMBERS_MAX}, as in --members north,south")
    return found


def _place(name: str, where: str, port: int) -> Place:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::([0-9]{1,5}))?", where)
    if match is None or not 1 <= int(match[3] or port) <= PORT_MAX:
        raise ConfigError(f"{name} is at {where!r}; it has the form HOST or HOST:PORT (IPv6: [HOST]:PORT)")
    port = int(match[3] or port)
    return Place(name, match[1] or match[2], port, _rpc_port(port))


def _rpc_port(port: int) -> int:
    return port + RPC_APART if port + RPC_APART <= PORT_MAX else port - RPC_APART


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@dataclass(frozen=True)
class Keys:
    """A member's two keys: the node's, which is always unlocked, and the operator's, a person's."""

    node: Identity
    operator: Identity


def write_consortium(
    folder: Path,
    *,
    name: str,
    members: Sequence[Place],
    chain_id: int | None = None,
    endpoint: str | None = None,
    example: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Path]:
    """A new consortium's folder, whole or not at all; the sites' settings files in the order of `members`.

    Args:
        folder: absent or empty.
        chain_id: a random one unless given.
        endpoint: of somebody else's chain, in place of a ledger of the members' own.
        example: a folder with a training program, copied beside the settings.
        progress: told how many of how many keys are written.
    Raises:
        ConfigError: the folder is not empty, or the settings cannot work together.
        StorageError: the disk does not take it.
    """
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and not empty; name a new folder, or empty this one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".swarm-init-", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"{folder.parent} does not take a new folder: {error}") from error
    try:
        _fill(
            draft, name=name, members=members, chain_id=chain_id, endpoint=endpoint, example=example, progress=progress
        )
        draft.chmod(0o755)
        os.replace(draft, folder)
    except OSError as error:
        raise StorageError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [folder / "sites" / f"{place.name}.toml" for place in members]


def _fill(
    folder: Path,
    *,
    name: str,
    members: Sequence[Place],
    chain_id: int | None,
    endpoint: str | None,
    example: Path | None,
    progress: Callable[[int, int], None],
) -> None:
    if example is not None:
        leave = shutil.ignore_patterns("__pycache__", "*.pyc", "swarm.toml", "sites", "keys", "state", ".*")
        shutil.copytree(example, folder, ignore=leave, dirs_exist_ok=True, copy_function=shutil.copyfile)
    keys = {place.name: Keys(Identity.generate(), Identity.generate()) for place in members}
    number = chain_id if chain_id is not None else secrets.randbelow(2**31 - 1) + 1
    text = _swarm_toml(name, number, members, keys, endpoint)
    (folder / "swarm.toml").write_text(text)
    load_swarm(folder / "swarm.toml")
    for place in members:
        write_site(folder, place)
    write_keys(folder / "keys", keys, progress=progress)
    for place in members:
        load_site(folder / "sites" / f"{place.name}.toml")
    if example is None:
        (folder / "policy.toml").write_text(policy_toml(name, len(members)))
        load_policy(folder / "policy.toml")
    (folder / "WHO-GETS-WHAT.txt").write_text(_who_gets_what(name, members, example))


def write_keys(
    folder: Path, keys: dict[str, Keys], *, progress: Callable[[int, int], None] = lambda done, of: None
) -> None:
    """Each member's keystores `NAME.json`, `NAME-operator.json` and their `.password` files, for their owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = [(name, pair.node) for name, pair in keys.items()]
    wanted += [(f"{name}-operator", pair.operator) for name, pair in keys.items()]
    # scrypt releases the interpreter lock, so threads use every core.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        work = [pool.submit(_write_key, folder, stem, identity) for stem, identity in wanted]
        for done, each in enumerate(as_completed(work), 1):
            each.result()
            progress(done, len(wanted))


def _write_key(folder: Path, stem: str, identity: Identity) -> None:
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    descriptor = os.open(folder / f"{stem}.password", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
    save_keystore(identity, folder / f"{stem}.json", password, scrypt_n=SCRYPT_N_RANDOM)


def member_table(place: Place, keys: Keys) -> str:
    """What the others need to know of a member: one `[[members]]` table of `swarm.toml`, nothing in it secret."""
    member = MemberConfig(
        place.name, keys.node.address, keys.operator.address, f"{place.address}/p2p/{keys.node.peer_id}"
    )
    return (
        "[[members]]\n"
        f"name = {_text(member.name)}\n"
        f"address = {_text(checksum(member.address))}\n"
        f"operator = {_text(checksum(member.operator))}\n"
        f"endpoint = {_text(member.endpoint)}\n"
    )


def _swarm_toml(name: str, chain_id: int, members: Sequence[Place], keys: dict[str, Keys], endpoint: str | None) -> str:
    ledger = "view_timeout_s = 1.0  # how long a silent proposer is waited for before the next one tries\n"
    if endpoint is not None:
        ledger = (
            f"endpoint = {_text(endpoint)}  # somebody else's chain; `swarm deploy` puts the contracts there\n"
            "confirmations = 0  # how many blocks stand on one before it counts; 0 where a block is final\n"
        )
    head = (
        "# What all members agreed. The ledger's first block follows from this file, so every member has the same\n"
        "# content, and a change of it makes another ledger. Members who come later are on the ledger, not here.\n"
        "[consortium]\n"
        f"name = {_text(name)}\n"
        f"chain_id = {chain_id}\n"
        f"created_ms = {time.time_ns() // 1_000_000}\n\n"
        f"[ledger]\n{ledger}"
    )
    return "\n".join([head, *(member_table(place, keys[place.name]) for place in members)])


def write_site(folder: Path, place: Place) -> Path:
    """`sites/NAME.toml` with the places that this command line uses."""
    path = folder / "sites" / f"{place.name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"# What {place.name} decided for its own node. Paths start at this file's folder.\n"
        "[site]\n"
        f"name = {_text(place.name)}\n"
        'swarm = "../swarm.toml"\n'
        f"listen = {_text(place.listen)}\n"
        f"folder = {_text(f'../state/{place.name}')}  # the ledger, the votes and the objects\n"
        f"keystore = {_text(f'../keys/{place.name}.json')}\n"
        f"password_file = {_text(f'../keys/{place.name}.password')}  # or the variable SWARM_PASSWORD\n"
        "# For votes and consent. Where the operator has a machine of their own, take these two lines there.\n"
        f"operator_keystore = {_text(f'../keys/{place.name}-operator.json')}\n"
        f"operator_password_file = {_text(f'../keys/{place.name}-operator.password')}  # or SWARM_OPERATOR_PASSWORD\n"
        "\n"
        "# The ledger for wallets, scripts and block explorers of this machine, by http:// and ws:// at this address:\n"
        "# it is read there, and takes what members have signed. Without this table it is not served.\n"
        "[rpc]\n"
        f"listen = {_text(f'{LOOPBACK}:{place.rpc_port}')}\n"
    )
    return path


def policy_toml(name: str, members: int) -> str:
    """A policy to start from: blind where there are enough members for a sum to hide one."""
    needed = submissions_needed(members)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:64] or "run"
    if members >= BLIND_MEMBERS_MIN:
        kind = (
            'merge = "mean"\n'
            "# Updates and sample counts leave a hospital masked; nobody learns more than their sum.\n"
            "blind = true\n"
            f"submissions_min = {max(needed, 3)}  # with fewer, no sum is opened\n"
        )
    else:
        kind = (
            'merge = "norm_bounded_mean"  # no update is longer than the median of the round\'s updates\n'
            f"# Every member sees every other member's update: a sum of {members} would hide little of each.\n"
            "blind = false\n"
            f"submissions_min = {max(needed, min(2, members))}\n"
        )
    return (
        "# The draft of a run: `swarm run propose SITE.toml policy.toml --model GENESIS.safetensors`.\n"
        "[run]\n"
        f"name = {_text(plain)}\n"
        "rounds = 20\n"
        "sync_interval = 100  # local batches between two rounds\n"
        f"{kind}"
        "submit_s = 60.0  # how long the others are waited for\n"
        "merge_s = 30.0\n"
        "attest_s = 30.0\n"
    )


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _who_gets_what(name: str, members: Sequence[Place], example: Path | None) -> str:
    lines = [
        f"The consortium {name!r}: who gets which file",
        "",
        "Everybody, the same bytes; nothing in it is secret:",
        "  swarm.toml",
    ]
    if example is None:
        lines.append("  policy.toml, the draft of a run's policy")
    else:
        lines.append(f"  the training program and the policies (from the example {example.name!r});")
        lines.append("  of data/ each hospital keeps its own file only")
    for place in members:
        keys = f"keys/{place.name}"
        lines += [
            "",
            f"{place.name}, and nobody else:",
            f"  sites/{place.name}.toml",
            f"  {keys}.json, {keys}.password                     SECRET, for the machine of the node",
            f"  {keys}-operator.json, {keys}-operator.password   SECRET, for the person who votes and consents",
        ]
    lines += [
        "",
        "All keys were made on this machine, which is right for a trial. Members who do not trust one machine with",
        "everybody's keys make their own: `swarm key NAME --at HOST:PORT` writes one member's keys and settings and",
        "prints the public lines that belong into swarm.toml.",
        "",
        "Then, at each hospital:",
        "  swarm node sites/NAME.toml                                 runs the node, day and night",
        "  swarm status sites/NAME.toml                               shows who is connected and what runs",
        "  swarm run propose sites/NAME.toml POLICY.toml --model GENESIS.safetensors    (one of them)",
        "  swarm run approve sites/NAME.toml RUN                      gives this hospital's consent",
        "  swarm train sites/NAME.toml -- python train.py sites/NAME.toml",
        "",
    ]
    return "\n".join(lines)
