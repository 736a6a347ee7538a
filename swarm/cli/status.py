"""`swarm status` shows what a site's node sees: members, ledger, runs, and how much more may fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape

from swarm.cli import screen
from swarm.cli.arguments import Json, SitePath
from swarm.cli.control import NodeClient
from swarm.config import SiteConfig, load_site
from swarm.quorum import faults_max, quorum

WATCH_S = 0.5
NOT_SERVED = "not served: a table [rpc] in the site settings, with listen, turns it on"
PARTS = {"votes": "votes", "leave": "on leave", "standby": "on standby", "follows": "follows"}
"""What a member does for blocks, for people."""


def status(
    site: SitePath,
    json_: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="keep showing it until Ctrl-C")] = False,
) -> None:
    """Show who is connected, where the ledger and the runs are, and how many more nodes may fail."""
    settings = load_site(site)
    if watch and not json_:
        asyncio.run(_watch(settings))
        return
    seen = asyncio.run(_ask(settings))
    if json_:
        screen.print_json({**seen, "strength": None if "external" in seen else strength(seen)})
    else:
        screen.show(view(seen))


async def _ask(site: SiteConfig) -> Any:
    async with NodeClient(site) as node:
        return await _seen(node)


async def _seen(node: NodeClient) -> dict[str, Any]:
    return {**await node.call("swarm_status"), "network": await node.call("swarm_network")}


async def _watch(site: SiteConfig) -> None:
    async with NodeClient(site) as node:
        with Live(console=screen.out, auto_refresh=False) as live:
            while True:
                live.update(view(await _seen(node)), refresh=True)
                await asyncio.sleep(WATCH_S)


def strength(seen: Mapping[str, Any]) -> dict[str, Any]:
    """How the ledger stands, from a node's status.

    Returns:
        validators, connected (with this node), quorum, spare (how many more may fail before it sleeps; below 0: how
        many are missing), faulty_max (how many may lie and no block is forged), faulty_now (how many may lie and it
        goes on, with those that are down now), missing (names of the validators that are not connected),
        asleep_since_s (Unix seconds; None while it is awake, or where the node does not say).
    """
    validators = len(seen["validators"])
    missing = [member["name"] for member in seen["members"] if member["validator"] and not member["connected"]]
    connected = validators - len(missing)
    needed = quorum(validators)
    return {
        "validators": validators,
        "connected": connected,
        "quorum": needed,
        "spare": connected - needed,
        "faulty_max": faults_max(validators),
        "faulty_now": max(faults_max(validators) - len(missing), 0),
        "missing": missing,
        "asleep_since_s": seen.get("asleep_since_s") if connected < needed else None,
    }


def in_words(found: Mapping[str, Any], now_s: float) -> str:
    """What `strength` means, for a person."""
    up = f"{found['connected']} of {found['validators']} validators are connected"
    if found["spare"] < 0:
        since = found["asleep_since_s"]
        return (
            f"asleep{'' if since is None else f' since {ago(max(now_s - since, 0))}'}: {up} and {found['quorum']} are "
            "needed; nothing is lost, it wakes when "
            f"{-found['spare']} of these are back: {', '.join(found['missing'])}. "
            "If too many are gone for good, two thirds of the operators replace them: `swarm recover propose`"
        )
    more = f"{found['spare']} more may fail" if found["spare"] else "none more may fail"
    return f"awake: {up}, {more}; {_liars_in_words(found)}"


def _liars_in_words(found: Mapping[str, Any]) -> str:
    if not found["faulty_max"]:
        return "a crash at most is tolerated, no traitor: that takes 4 validators"
    if found["faulty_now"]:
        return f"up to {found['faulty_now']} may even lie"
    return f"no block is forged while at most {found['faulty_max']} lie, but one that lies could stop the ledger now"


def absences(seen: Mapping[str, Any]) -> list[str]:
    """Which validators do not vote and why, and what waits to be recorded; a line each."""
    parts: Mapping[str, str] = seen.get("parts", {})
    days = seen.get("standby_after_s", 0) / 86_400
    lines = [
        f"{name} is on standby: the others had not heard of it for {days:.3g} days; it votes again when it is back"
        for name in _playing(seen, parts, "standby")
    ]
    lines += [
        f"{name} is on leave: `swarm members return` ends that, at its site" for name in _playing(seen, parts, "leave")
    ]
    lines += [
        f"CONFLICT: another block, {conflict['hash'][:10]}, was certified for height {conflict['height']} too: a third "
        "of the validators or more signed both. `swarm audit` shows it; settle it among the operators before you rely "
        "on later blocks"
        for conflict in seen.get("conflicts", [])
    ]
    if seen.get("recovery") is not None:
        lines.append(
            f"a manifest that replaces the validators was imported: block {seen['recovery']} records it as soon as two "
            "thirds of the new ones have imported it"
        )
    return lines + accusations(seen)


def accusations(seen: Mapping[str, Any]) -> list[str]:
    """Which validators signed two contradicting messages; a line for each member."""
    names = {member["address"]: member["name"] for member in seen["members"]}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in seen.get("contradictions", ()):
        found.setdefault(one["member"], []).append(one)
    return [
        f"{names.get(member, member)} contradicted itself (first two different ones of {those[0]['kind']} at height "
        f"{those[0]['height']}, view {those[0]['view']}): it lies, or two nodes have its key; evidence: "
        f"{len(those)} in {Path(those[0]['path']).parent}"
        for member, those in found.items()
    ]


def _playing(seen: Mapping[str, Any], parts: Mapping[str, str], part: str) -> list[str]:
    return [member["name"] for member in seen["members"] if parts.get(member["address"]) == part]


def elsewhere(external: Mapping[str, Any]) -> str:
    """How a chain that is not the members' own stands, for a person: who decides its blocks is not theirs to say."""
    return (
        f"somebody else's chain at {external['endpoint']}, which "
        f"{'answers' if external['answers'] else 'does not answer now'}: its last block is {external['head']}, and one "
        f"counts with {external['confirmations']} more on it\n"
        f"          Consortium {external['consortium']}, Runs {external['runs']}"
    )


def served(seen: Mapping[str, Any]) -> str:
    """Where others read this node: its ledger, or its metrics alone where the ledger is somebody else's."""
    if "external" in seen:
        return f"metrics   {escape(seen['external'].get('metrics') or NOT_SERVED)}"
    return f"JSON-RPC  {escape(seen.get('rpc') or NOT_SERVED)}"


def view(seen: Mapping[str, Any]) -> RenderableType:
    """A node's status as a person reads it."""
    names = {member["address"]: member["name"] for member in seen["members"]}

    def named(addresses: list[str]) -> str:
        return ", ".join(names.get(address, address) for address in addresses) or "-"

    parts = seen.get("parts", {})
    behind = max(seen.get("height_seen", 0) - seen["height"], 0)
    late = f", {behind} behind the others" if behind else ""
    age_s = max(time.time() - seen["timestamp_ms"] / 1000, 0)
    stands = elsewhere(seen["external"]) if "external" in seen else escape(in_words(strength(seen), time.time()))
    head = (
        f"[b]{seen['name']}[/]  {seen['address']}\n"
        f"ledger    block {seen['height']}, {ago(age_s)}{late} (chain {seen['chain_id']})\n"
        f"          {stands}\n"
        + "".join(f"          {escape(line)}\n" for line in absences(seen))
        + f"{served(seen)}\n"
    )
    members = screen.table(
        "member",
        "address",
        "part",
        "connected",
        rows=(
            (
                member["name"],
                member["address"],
                PARTS[parts.get(member["address"], "votes" if member["validator"] else "follows")],
                "this node" if member["address"] == seen["address"] else "yes" if member["connected"] else "no",
            )
            for member in seen["members"]
        ),
    )
    runs = screen.table(
        "run", "name", "state", "round", "phase", "view", "leader", "submitted", "attested",
        rows=(
            (
                str(run["id"]),
                run["name"],
                run["state"],
                f"{run['round']}/{run['rounds']}",
                phase_in_words(run) if run["state"] == "open" else "-",
                str(run.get("view", "-")) if run["state"] == "open" else "-",
                names.get(run.get("leader") or "", "-"),
                named(run.get("submitted", [])),
                named(run.get("attested", [])),
            )
            for run in seen["runs"]
        ),
    )  # fmt: skip
    return Group(
        head, members, "", *network(seen), runs if seen["runs"] else "no runs yet: `swarm run propose` makes one"
    )


def network(seen: Mapping[str, Any]) -> list[RenderableType]:
    """What goes to and comes from each other member, and who was sent away; nothing where the node does not say."""
    found = seen.get("network")
    if not found or not found["members"]:
        return []
    rows = (
        (
            one["name"],
            "-" if one["round_trip_s"] is None or not one["connected"] else f"{one['round_trip_s'] * 1000:.1f} ms",
            f"{in_bytes(one['sent_bytes'])}, {in_bytes(one['sent_bytes_s'])}/s",
            f"{in_bytes(one['received_bytes'])}, {in_bytes(one['received_bytes_s'])}/s",
            f"{one['connections']}, lost {one['lost']}",
            str(one["dials_failed"]),
            f"{one['requests_failed']} of {one['requests']}",
            ", ".join(_troubles(one)) or "-",
        )
        for one in found["members"]
    )
    headings = ("network", "round trip", "sent", "received", "connections", "dials failed", "unanswered", "remarks")
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(found["refused"].items()))
    return [screen.table(*headings, rows=rows), *([f"sent away: {escape(refused)}"] if refused else []), ""]


def _troubles(one: Mapping[str, Any]) -> list[str]:
    names = {"dropped": "messages gave way", "pauses": "pauses: it said more than its share"}
    found = [f"{one[key]} {words}" for key, words in names.items() if one[key]]
    if one["relay"]:
        found.append(f"relayed by {one['relay'][:10]}")
    if not one["connected"] and one["last_failure"]:
        found.append(str(one["last_failure"]))
    return found


def in_bytes(size: float) -> str:
    """`0 B`, `1.2 kB`, `3.4 GB`."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size:.0f} B"


def phase_in_words(run: Mapping[str, Any]) -> str:
    """Where a run's round is, and its masks where it is blind."""
    phase, masks = str(run.get("phase", "-")), run.get("masks")
    if masks is None:
        return phase
    if masks["spent"]:
        return f"{phase}, blind: a sum was opened before it started again, so it changes nothing"
    if phase != "submit":
        return f"{phase}, blind: {len(masks['revealed'])} of {len(masks['survivors'])} opened their masks"
    told = {"closed": "no masks yet", "joining": f"{len(masks['joined'])} joined", "frozen": "masks are ready"}
    return f"{phase}, blind: {told[masks['stage']]}"


def ago(age_s: float) -> str:
    """`12 s ago`, `3 h ago`."""
    for size_s, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if age_s >= 2 * size_s:
            return f"{age_s / size_s:.0f} {unit} ago"
    return f"{age_s:.0f} s ago"
