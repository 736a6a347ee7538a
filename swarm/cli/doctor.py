"""`swarm doctor` tests what a site needs to take part, and says what to change or to ask the network department for."""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import typer

from swarm.cli import screen
from swarm.cli.arguments import Json, SitePath
from swarm.cli.control import NodeClient
from swarm.config import Proxy, SiteConfig, SwarmConfig, check_site, load_site, load_swarm
from swarm.encoding import Address, from_hex, short
from swarm.errors import ConfigError, SwarmError, UnavailableError
from swarm.identity import Identity

CLOCK_MAX_S = 2.0
"""Blocks carry the proposer's time and members judge it by their own: more than this costs views."""
DISK_MIN_BYTES = 2_000_000_000
CONNECT_S = 8.0
"""How long members have to be connected, where no node of this site runs."""
SLOW_BYTES_S = 1_000_000
RELAYS_MIN = 2
"""Members that relay, where some are met in no other way: one of them may be away."""


@dataclass(frozen=True)
class Check:
    """One thing that was tested."""

    what: str
    found: str
    ok: bool
    advice: str = ""
    """What to do where it is not ok."""


class Eyes(Protocol):
    """Who looks at the network for the doctor: the running node, or a transport made for it."""

    async def members(self) -> list[dict[str, Any]]:
        """The others: `name`, `address`, `endpoint`, `connected`, `relay`, and `last_failure` of dialling."""

    async def probe(self, member: str) -> dict[str, Any]:
        """A `Finding` as a dictionary; UnavailableError and PeerError as `Probe.measure`."""


def doctor(site: SitePath, json_: Json = False) -> None:
    """Test keys, disk, port, clock, and the way to every member: reachability both ways, latency, speed."""
    checks = asyncio.run(examine(site))
    if json_:
        screen.print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            mark = "[green]ok  [/]" if check.ok else "[bold red]mend[/]"
            screen.out.print(f"{mark} {check.what}: {check.found}", highlight=False)
            if not check.ok:
                screen.out.print(f"     {check.advice}", highlight=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(screen.FAILED)


async def examine(path: Any) -> list[Check]:
    """Every check in order; those that need an earlier one which failed are left out."""
    try:
        site = load_site(path)
        swarm = load_swarm(site.swarm)
        identity = site.identity()
        member = check_site(site, swarm, identity)
    except ConfigError as error:
        return [Check("settings and key", str(error), False, "correct the file, or name the right one")]
    role = "a founder" if member is not None else "no founder: admitted later, or not yet"
    if site.rotated_from is not None:
        role = f"in the place of {short(site.rotated_from)}, if the ledger says so"
    checks = [Check("settings and key", f"{site.name} is {short(identity.address)}, {role}", True), *_local(site)]
    if site.proxy is not None:
        checks.append(await _proxy(site.proxy))
    try:
        async with _eyes(site, swarm, identity) as (eyes, where):
            checks.append(Check("port", where, True))
            checks += await _network(eyes, site)
    except ConfigError as error:
        checks.append(Check("port", str(error), False, "change `listen` in the site's settings, or free the port"))
    return checks


def _local(site: SiteConfig) -> list[Check]:
    checks = []
    for what, file in (("keystore", site.keystore), ("password file", site.password_file)):
        if file is not None:
            mode = file.stat().st_mode & 0o777
            private = mode & 0o077 == 0
            advice = f"chmod 600 {file}"
            checks.append(Check(what, f"{file} has mode {mode:o}", private, advice))
    folder = next(place for place in (site.folder, *site.folder.parents) if place.exists())
    free = shutil.disk_usage(folder).free
    advice = f"free at least {DISK_MIN_BYTES / 1e9:g} GB, or set `folder` to another disk"
    checks.append(Check("disk", f"{free / 1e9:.1f} GB free at {folder}", free >= DISK_MIN_BYTES, advice))
    return checks


async def _proxy(proxy: Proxy) -> Check:
    """Whether the proxy answers; whether it lets members through shows in the ways to them."""
    from swarm.net.libp2p.dialling import connect

    when = "members are dialled through" if proxy.always else "where the direct way fails, members are dialled through"
    try:
        (await connect(proxy.host, proxy.port)).close()
    except OSError as error:
        advice = "correct `proxy` in the site's settings (or HTTPS_PROXY), or ask the network department for its place"
        return Check("proxy", f"{when} {proxy}, which does not answer: {error}", False, advice)
    return Check("proxy", f"{when} {proxy}, which answers", True)


async def _network(eyes: Eyes, site: SiteConfig) -> list[Check]:
    checks, ahead, blocked, relays = [], [], [], dict[str, bool]()
    others = await eyes.members()
    for member in others:
        what = f"way to {member['name']}"
        if not member["connected"]:
            checks.append(Check(what, member["last_failure"] or "not connected", False, _ask_for(member, site)))
            continue
        try:
            found = await eyes.probe(member["address"])
        except SwarmError as error:
            checks.append(Check(what, str(error), False, "connected, but no answer: is its node overloaded?"))
            continue
        ahead.append(found["clock_ahead_s"])
        if not member["relay"]:
            relays[member["name"]] = found["relays"]
        if found["reaches_us"]:
            blocked.append(f"{member['name']} ({found['reaches_us']})")
        speeds = found["down_bytes_s"], found["up_bytes_s"]
        text = f"{found['round_trip_s'] * 1e3:.1f} ms, {speeds[0] / 1e6:.1f} MB/s down, {speeds[1] / 1e6:.1f} MB/s up"
        if member["relay"]:
            over = [one["name"] for one in others if one["address"].lower() == member["relay"].lower()]
            text += f", over {over[0] if over else member['relay']}, which relays"
        slow = (
            f"a model of 100 MB takes {1e8 / min(speeds):.0f} s: ask for a faster line, or for less on it{_on_loss()}"
        )
        checks.append(Check(what, text, min(speeds) >= SLOW_BYTES_S, slow))
    if ahead:
        median_s = statistics.median(ahead)
        text = f"{abs(median_s):.2f} s {'behind' if median_s > 0 else 'ahead of'} the median of {len(ahead)} members"
        checks.append(Check("clock", text, abs(median_s) <= CLOCK_MAX_S, "switch on NTP (`timedatectl set-ntp true`)"))
        reached = "every connected member can dial this site" if not blocked else "not from " + ", ".join(blocked)
        advice = (
            f"ask the network department: let TCP in from the members, at the place that the ledger names "
            f"(this site listens on {site.listen}; firewalls elsewhere let 443 out most often). Until "
            "then it takes part over connections that it opens itself, and over a member that relays"
        )
        checks.append(Check("reached from outside", reached, not blocked, advice))
    if hidden := [member["name"] for member in others if member["relay"]]:
        checks.append(_relays(hidden, relays))
    if not others:
        checks.append(Check("members", "this site is the only member", True))
    return checks


def _relays(hidden: list[str], asked: dict[str, bool]) -> Check:
    """Whether who is met over a relay is still met while one that relays is away.

    Args:
        hidden: who is.
        asked: whether they relay, of the members with a direct connection.
    """
    relays, others = ([name for name, does in asked.items() if does is wanted] for wanted in (True, False))
    met = " and ".join(hidden)
    found = f"{met}: over members that relay, of which this site reaches {' and '.join(relays) or 'none now'}"
    ask = f"ask {' or '.join(others)} to relay as well (a table [relay] in that site's settings)"
    advice = (
        f"{ask if others else 'let one more site be dialled, and relay'}: while "
        f"{relays[0] if relays else 'the one that relays'} is away, this site and {met} do not meet, and the ledger "
        "waits where the others are too few without them"
    )
    return Check("relays", found, len(relays) >= RELAYS_MIN, advice)


def _on_loss() -> str:
    """What helps where the line loses packets and the system keeps its sockets from what would help."""
    from swarm.net.libp2p.wire import endure_loss

    with socket.socket() as one:
        if endure_loss(one):
            return ""
    return (
        "; if it loses packets, let programs use BBR, at both ends: `modprobe tcp_bbr` and "
        '`sysctl -w net.ipv4.tcp_allowed_congestion_control="reno cubic bbr"`'
    )


def _ask_for(member: dict[str, Any], site: SiteConfig) -> str:
    endpoints = member["endpoint"].replace(",", " or ")
    return (
        f"if its node runs: ask the network department to let TCP out from this machine to {endpoints}; if it answers "
        f"others, ask {member['name']} to look at its `swarm doctor`; if neither site can let the other in, a member "
        "that both reach can relay (a table [relay] in that site's settings)"
    )


@asynccontextmanager
async def _eyes(site: SiteConfig, swarm: SwarmConfig, identity: Identity) -> AsyncIterator[tuple[Eyes, str]]:
    """The running node, or a transport on the site's own port while nobody else uses it."""
    try:
        async with NodeClient(site) as node:
            yield _NodesEyes(node), f"the node of {site.name} runs and listens on {site.listen}"
        return
    except UnavailableError:
        pass
    eyes = _OwnEyes(site, swarm, identity)
    await eyes.open()
    try:
        yield eyes, f"{site.listen} is free (no node of {site.name} runs; the founders of swarm.toml were asked)"
    finally:
        await eyes.close()


class _NodesEyes:
    def __init__(self, node: NodeClient) -> None:
        self._node = node

    async def members(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._node.call("swarm_network"))["members"]
        return found

    async def probe(self, member: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._node.call("swarm_probe", member=member, timeout_s=120.0)
        return found


class _OwnEyes:
    def __init__(self, site: SiteConfig, swarm: SwarmConfig, identity: Identity) -> None:
        # Who asks a running node does not wait for libp2p to load.
        from swarm.net.libp2p import Libp2pTransport
        from swarm.net.probe import Probe

        self._founders = swarm.members
        self._me = identity.address
        self._transport = Libp2pTransport(identity, site.listen, proxy=site.proxy)
        self._endpoints: dict[Address, str] = {member.address: member.endpoint for member in swarm.members}
        relays = site.relay is not None
        self._probe = Probe(self._transport, lambda: self._endpoints, time.time, proxy=site.proxy, relays=relays)

    async def open(self) -> None:
        self._probe.serve()
        await self._transport.start()
        self._transport.set_members(self._endpoints)
        until_s = time.monotonic() + CONNECT_S
        wanted = set(self._endpoints) - {self._me}
        while time.monotonic() < until_s and not wanted <= self._transport.connected():  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self._transport.close()

    async def members(self) -> list[dict[str, Any]]:
        meter, connected = self._transport.meter, self._transport.connected()
        return [
            {
                "name": member.name,
                "address": "0x" + member.address.hex(),
                "endpoint": member.endpoint,
                "connected": member.address in connected or member.address == self._me,
                "relay": meter.of(member.address).relay,
                "last_failure": meter.of(member.address).last_failure,
            }
            for member in self._founders
            if member.address != self._me
        ]

    async def probe(self, member: str) -> dict[str, Any]:
        return asdict(await self._probe.measure(from_hex(member, size=20)))
