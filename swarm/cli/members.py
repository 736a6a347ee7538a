"""`swarm members`: who is in the consortium, and the operators' votes on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli import screen
from swarm.cli.arguments import Json, SitePath
from swarm.cli.ledger import contracts_of, operate
from swarm.config import check_endpoint, load_site
from swarm.encoding import Address, from_hex
from swarm.errors import ConfigError
from swarm.identity import checksum
from swarm.ledger.client import Contracts, Member
from swarm.ledger.endpoint import Call

app = typer.Typer(no_args_is_help=True, help="Who is in the consortium, and the operators' votes on it.")

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

    async def work() -> tuple[Member, ...]:
        async with contracts_of(settings) as contracts:
            return await contracts.members()

    members = asyncio.run(work())
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
                }
                for m in members
            ]
        )
        return
    rows = [[m.name, checksum(m.address), _part(m), m.endpoint] for m in members]
    screen.show(screen.table("name", "address", "part", "endpoint", rows=rows))


def _part(member: Member) -> str:
    if not member.validator:
        return "follows"
    return "votes" if member.standing else "on leave"


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

    _operate(site, call, f"this site's key is {checksum(member)} now: name its keystore in the site's settings")


@app.command()
def endpoint(site: SitePath, multiaddr: Annotated[str, typer.Argument(help="/ip4/…/tcp/…/p2p/PEERID")]) -> None:
    """Tell the others where this site's node is reached."""
    check_endpoint(multiaddr, load_site(site).identity().address, "the endpoint")

    async def call(contracts: Contracts) -> Call:
        return contracts.set_endpoint(multiaddr)

    _operate(site, call, f"this site is reached at {multiaddr}")


@app.command("stand-down")
def stand_down(site: SitePath) -> None:
    """Planned leave: this site's node does not vote on blocks until `resume`."""

    async def call(contracts: Contracts) -> Call:
        return contracts.stand_down()

    _operate(site, call, "this site's node does not vote any more; `swarm members resume` ends that")


@app.command()
def resume(site: SitePath) -> None:
    """End a planned leave: this site's node votes on blocks again."""

    async def call(contracts: Contracts) -> Call:
        return contracts.resume()

    _operate(site, call, "this site's node votes again")
