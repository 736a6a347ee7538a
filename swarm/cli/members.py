"""`swarm members`: who is in the consortium, and the operators' votes on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli import screen
from swarm.cli.arguments import Json, SitePath
from swarm.cli.control import NodeClient
from swarm.cli.ledger import contracts_of, operate
from swarm.cli.status import PARTS
from swarm.config import SiteConfig, check_endpoint, load_site, load_swarm
from swarm.encoding import Address, from_hex
from swarm.errors import ConfigError, RejectedError
from swarm.identity import checksum
from swarm.ledger.client import Contracts, Member
from swarm.ledger.endpoint import Call
from swarm.node.standby import part
from swarm.quorum import quorum

app = typer.Typer(no_args_is_help=True, help="Who is in the consortium, and the operators' votes on it.")

SETTLE_S = 0.5
SETTLE_TRIES = 60
"""Members tell their height every two seconds."""

Who = Annotated[str, typer.Argument(metavar="MEMBER", help="its name or address")]


def _address(text: str) -> Address:
    try:
        return from_hex(text, size=20)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address: {error}") from error


async def _member(contracts: Contracts, who: str) -> Member:
    members = await contracts.members()
    for member in members:
        if who in (member.name, checksum(member.address)) or who.lower() == "0x" + member.address.hex():
            return member
    raise ConfigError(f"no member is called {who!r}; there are {', '.join(member.name for member in members)}")


@app.command("list")
def list_(site: SitePath, json_: Json = False) -> None:
    """List the members, by the ledger."""
    settings = load_site(site)

    async def work() -> tuple[tuple[Member, ...], frozenset[Address]]:
        async with contracts_of(settings) as contracts:
            return await contracts.members(), frozenset(await contracts.standbys())

    members, standbys = asyncio.run(work())
    if json_:
        screen.print_json(
            [
                {
                    "name": m.name,
                    "address": checksum(m.address),
                    "operator": checksum(m.operator),
                    "endpoint": m.endpoint,
                    "validator": m.validator,
                    "standing": m.standing,
                    "part": part(m, standbys),
                }
                for m in members
            ]
        )
        return
    rows = [[m.name, checksum(m.address), PARTS[part(m, standbys)], m.endpoint] for m in members]
    screen.show(screen.table("name", "address", "part", "endpoint", rows=rows))


@app.command()
def proposals(site: SitePath, json_: Json = False) -> None:
    """List what operators vote on, and what they decided."""
    settings = load_site(site)

    async def work() -> list[dict[str, object]]:
        async with contracts_of(settings) as contracts:
            quorum = await contracts.quorum()
            return [
                {
                    "id": p.id,
                    "kind": p.kind.name.lower().replace("_", " "),
                    "member": p.member.name,
                    "address": checksum(p.member.address),
                    "approvals": p.approvals,
                    "quorum": quorum,
                    "decided": p.decided,
                }
                for p in await contracts.proposals()
            ]

    found = asyncio.run(work())
    if json_:
        screen.print_json(found)
        return
    rows = [
        [str(p["id"]), f"{p['kind']} {p['member']}", "done" if p["decided"] else f"{p['approvals']} of {p['quorum']}"]
        for p in found
    ]
    screen.show(screen.table("id", "proposal", "approvals", rows=rows))


def _operate(site: Path, call: Callable[[Contracts], Awaitable[Call]], done: str) -> None:
    """Sign a call with the site's operator key, wait until the ledger took it, and say so."""
    settings = load_site(site)

    async def work() -> None:
        async with contracts_of(settings) as contracts:
            await operate(settings, contracts, await call(contracts))

    asyncio.run(work())
    screen.out.print(done)


@app.command()
def nominate(
    site: SitePath,
    name: Annotated[str, typer.Option(help="the new member's name")],
    address: Annotated[str, typer.Option(help="its node's address, 0x…")],
    operator: Annotated[str, typer.Option(help="its operator's address, 0x…")],
    endpoint: Annotated[str, typer.Option(help="/ip4/…/tcp/…/p2p/PEERID")],
    validator: Annotated[bool, typer.Option(help="it is up day and night and votes on blocks")] = False,
) -> None:
    """Nominate a new member (its `swarm key` prints these lines). This counts as your approval."""
    member, person = _address(address), _address(operator)
    check_endpoint(endpoint, member, "--endpoint")

    async def call(contracts: Contracts) -> Call:
        return contracts.nominate(member, person, name, endpoint, validator=validator)

    _operate(site, call, f"{name} is nominated")


@app.command()
def remove(site: SitePath, member: Who) -> None:
    """Propose to remove a member. This counts as your approval."""

    async def call(contracts: Contracts) -> Call:
        return contracts.propose_removal((await _member(contracts, member)).address)

    _operate(site, call, f"the removal of {member} is proposed")


@app.command()
def validator(
    site: SitePath,
    member: Who,
    on: Annotated[bool, typer.Option("--on/--off", help="vote on blocks, or follow only")] = True,
) -> None:
    """Propose that a member votes on blocks, or follows only. This counts as your approval."""

    async def call(contracts: Contracts) -> Call:
        return contracts.propose_validator((await _member(contracts, member)).address, on)

    _operate(site, call, f"it is proposed that {member} {'votes' if on else 'follows only'}")


@app.command()
def approve(site: SitePath, proposal: Annotated[int, typer.Argument(help="its number, from `proposals`")]) -> None:
    """Approve a proposal; a quorum carries it out at once."""

    async def call(contracts: Contracts) -> Call:
        return contracts.approve_proposal(proposal)

    _operate(site, call, f"proposal {proposal} is approved")


@app.command("rotate-key")
def rotate_key(
    site: SitePath,
    address: Annotated[str, typer.Option(help="the new key's address, 0x…")],
    endpoint: Annotated[str, typer.Option(help="the endpoint with the new PeerID")],
) -> None:
    """Replace this site's node key by another, signed by the operator."""
    member = _address(address)
    check_endpoint(endpoint, member, "--endpoint")

    async def call(contracts: Contracts) -> Call:
        return contracts.rotate_key(member, endpoint)

    old = next((one for one in load_swarm(load_site(site).swarm).members if one.name == load_site(site).name), None)
    founder = "" if old is None else f', with rotated_from = "{checksum(old.address)}"'
    done = f"this site's key is {checksum(member)} now: name its keystore in the site's settings{founder}"
    _operate(site, call, f"{done}, and restart the node")


@app.command()
def endpoint(site: SitePath, multiaddr: Annotated[str, typer.Argument(help="/ip4/…/tcp/…/p2p/PEERID")]) -> None:
    """Tell the others where this site's node is reached."""
    check_endpoint(multiaddr, load_site(site).identity().address, "the endpoint")

    async def call(contracts: Contracts) -> Call:
        return contracts.set_endpoint(multiaddr)

    _operate(site, call, f"this site is reached at {multiaddr}")


@app.command()
def leave(site: SitePath) -> None:
    """Planned leave: from the next block on, blocks are decided without this site's node.

    Returns when the others have that block, so that the node can be switched off. Signed by the site's operator; where
    the settings name no operator's key, by the node.
    """
    settings = load_site(site)
    block, settled = asyncio.run(_leave(settings))
    screen.out.print(
        f"from block {block + 1} on blocks are decided without {settings.name}; "
        + (
            f"the others have block {block}, so its node may be switched off"
            if settled
            else f"leave its node on until `swarm status` shows that the others have block {block}"
        )
        + "; `swarm members return` ends the leave"
    )


@app.command("return")
def return_(site: SitePath) -> None:
    """End a planned leave, or a standby: this site's node votes on blocks again, from the next one on."""
    settings = load_site(site)
    block = asyncio.run(_stand(settings, "swarm_return", Contracts.resume))
    screen.out.print(f"from block {block + 1} on the node of {settings.name} votes again: it stays on day and night")


async def _leave(site: SiteConfig) -> tuple[int, bool]:
    """The last block that this site votes on, and whether a quorum of those who stay has it."""
    try:
        block = await _stand(site, "swarm_leave", Contracts.stand_down)
    except RejectedError as error:
        if "too few validators would stand" not in str(error):
            raise
        async with contracts_of(site) as contracts:
            floor, stand = await contracts.floor(), len(await contracts.validators())
        raise RejectedError(
            f"{stand} validators stand, and leave never takes them below {floor} (four tolerate one that fails): wait "
            "until another one is back, or let operators admit a further validator: `swarm members validator`"
        ) from error
    async with NodeClient(site) as node:
        for _ in range(SETTLE_TRIES):
            seen = await node.call("swarm_status")
            if "heights" not in seen:
                return block, True  # the chain is kept by others
            have = sum(seen["heights"].get(one, 0) >= block for one in seen["validators"])
            if have >= quorum(len(seen["validators"])):
                return block, True
            await asyncio.sleep(SETTLE_S)
    return block, False


async def _stand(site: SiteConfig, method: str, call: Callable[[Contracts], Call]) -> int:
    """The block that took the call of this site's operator, or of its node where the operator's key is elsewhere."""
    if site.operator_keystore is None:
        async with NodeClient(site) as node:
            return int((await node.call(method))["block"])
    async with contracts_of(site) as contracts:
        return (await operate(site, contracts, call(contracts))).block
