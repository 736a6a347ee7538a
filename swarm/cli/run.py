"""`swarm run` proposes runs, records consent to them, and shows what happened in them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from swarm.blind import SURVIVORS_MIN
from swarm.cli import screen, sights
from swarm.cli.arguments import Json, SitePath
from swarm.cli.control import NodeClient
from swarm.cli.history import RoundHistory, rounds_of
from swarm.cli.ledger import contracts_of, named_run, names_of, operate
from swarm.config import Policy, SiteConfig, load_policy, load_site
from swarm.encoding import Digest, from_hex, short, to_hex
from swarm.errors import ConfigError, UnavailableError
from swarm.ledger.client import Contracts, Run
from swarm.quorum import faults_max
from swarm.rounds import submissions_needed

app = typer.Typer(no_args_is_help=True, help="Propose, approve and follow runs: one training effort of the members.")

RunName = Annotated[str, typer.Argument(metavar="RUN", help="its number, or its name (then the newest of that name)")]


@app.command()
def propose(
    site: SitePath,
    policy: Annotated[Path, typer.Argument(metavar="POLICY.toml", help="the run's policy: a table [run]")],
    model: Annotated[Path, typer.Option("--model", help="the checkpoint that round 0 starts from (safetensors)")],
    json_: Json = False,
) -> None:
    """Propose a run: its policy and first checkpoint. This counts as your operator's approval."""
    settings, agreed = load_site(site), load_policy(policy)
    if not model.is_file():
        raise ConfigError(f"there is no file {model}; a training program writes it (`train.py --genesis`)")
    run = asyncio.run(_propose(settings, agreed, model.resolve()))
    if json_:
        screen.print_json({"run": run, "name": agreed.name})
    else:
        screen.out.print(f"run {run} ({agreed.name}) is proposed; the others run `swarm run approve SITE.toml {run}`")


async def _propose(site: SiteConfig, policy: Policy, model: Path) -> int:
    async with contracts_of(site) as contracts:
        await _check_collusion(contracts, policy.submissions_min, blind=policy.blind)
        _check_start(model, policy)
        genesis = await hand_over(site, policy, model)
        receipt = await operate(site, contracts, contracts.propose(policy, genesis))
        return int(receipt.first("RunProposed").args["run"])


async def _check_collusion(contracts: Contracts, submissions_min: int, *, blind: bool) -> None:
    """ConfigError if the members that may lie could close a round of this run, or open a sum, among themselves."""
    members = len(await contracts.members())
    if blind and members < SURVIVORS_MIN:
        raise ConfigError(
            f"blind = true with {members} members: a sum of two tells each of them the other's update; leave `blind` "
            "out, and every member sees every update, or wait for a third member"
        )
    if blind and members == SURVIVORS_MIN:
        screen.err.print(
            "[yellow]look[/]: a sum of three hides little: two who put their updates together know the third's"
        )
    needed = submissions_needed(members)
    if submissions_min < needed:
        raise ConfigError(
            f"submissions_min = {submissions_min}, but of {members} members {faults_max(members)} may lie, and a round "
            f"with so few submissions could close on their word alone: it has to be {needed} or more"
        )


def _check_start(model: Path, policy: Policy) -> None:
    """ConfigError if no run under this policy can start from the file."""
    from swarm.merge import Schema, check_genesis  # brings in numpy: other commands start without it

    try:
        check_genesis(Schema.of_file(model), policy)
    except ValueError as error:
        raise ConfigError(f"{model}: {error}; `swarm.learn.save_model` writes what a run starts from") from error


async def hand_over(site: SiteConfig, policy: Policy, model: Path) -> Digest:
    """Put the policy and the first checkpoint into the node's store, from where the others take them.

    Returns:
        the first checkpoint's digest.
    """
    async with NodeClient(site) as node:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(policy.encode())
            file.flush()
            await node.call("swarm_put", path=file.name)
        answer = await node.call("swarm_put_model", path=str(model))
        return from_hex(answer["digest"], size=32)


async def agree(sites: Sequence[SiteConfig], policy: Policy, model: Path) -> int:
    """A run that the first site proposes and every operator approves, where one machine holds all their keys.

    Returns:
        the run's number.
    """
    first, *others = sites
    run = await _propose(first, policy, model)

    async def approve_at(site: SiteConfig) -> None:
        async with contracts_of(site) as contracts:
            await operate(site, contracts, contracts.approve(run))

    await asyncio.gather(*(approve_at(site) for site in others))
    return run


@app.command()
def approve(site: SitePath, run: RunName) -> None:
    """Record that your hospital consents to a run, signed by your operator."""
    settings = load_site(site)

    async def work() -> Run:
        async with contracts_of(settings) as contracts:
            found = await named_run(contracts, run)
            await _check_collusion(contracts, found.submissions_min, blind=found.blind)
            await operate(settings, contracts, contracts.approve(found.id))
            return await contracts.run(found.id)

    found = asyncio.run(work())
    screen.out.print(f"{settings.name} consents to run {found.id} ({found.name}), which is {found.state.name.lower()}")


@app.command()
def stop(site: SitePath, run: RunName) -> None:
    """Vote to stop a run; it stops when a quorum of the operators did."""
    settings = load_site(site)

    async def work() -> Run:
        async with contracts_of(settings) as contracts:
            found = await named_run(contracts, run)
            await operate(settings, contracts, contracts.stop(found.id))
            return await contracts.run(found.id)

    found = asyncio.run(work())
    screen.out.print(f"run {found.id} ({found.name}) is {found.state.name.lower()}")


@app.command("list")
def list_(site: SitePath, json_: Json = False) -> None:
    """List every run on the ledger."""
    settings = load_site(site)
    runs = asyncio.run(_list(settings))
    if json_:
        screen.print_json(runs)
        return
    rows = [
        [str(run["id"]), run["name"], run["state"], f"{run['round']}/{run['rounds']}", ", ".join(run["approvals"])]
        for run in runs
    ]
    screen.show(screen.table("run", "name", "state", "rounds", "consent of", rows=rows))


async def _list(site: SiteConfig) -> list[dict[str, Any]]:
    async with contracts_of(site) as contracts:
        return [await _described(contracts, run) for run in await contracts.runs()]


async def _described(contracts: Contracts, run: Run) -> dict[str, Any]:
    name = await names_of(contracts)
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state.name.lower(),
        "round": run.round,
        "rounds": run.rounds,
        "proposer": name(run.proposer),
        "policy": to_hex(run.policy),
        "genesis": to_hex(run.genesis),
        "checkpoint": to_hex(run.checkpoint),
        "approvals": [name(member) for member in await contracts.approvals(run.id)],
        "participants": [name(member) for member in await contracts.participants(run.id)],
    }


@app.command()
def show(
    site: SitePath,
    run: RunName,
    round_: Annotated[
        int | None, typer.Option("--round", help="whose updates are listed (default: the last merged)")
    ] = None,
    json_: Json = False,
) -> None:
    """Show a run round by round: who submitted, led, attested, refused, was left out or stands out."""
    settings = load_site(site)
    described, rounds, merges, alarms, course = asyncio.run(_told(settings, run))
    listed = [one for one in merges if one["updates"] and round_ in (None, one["round"])]
    if round_ is not None and not listed:
        raise ConfigError(f"this site's node has kept no merge of round {round_}; `swarm audit` makes it again")
    if json_:
        closed = [asdict(one) for one in rounds if one.closed]
        screen.print_json({**described, "closed_rounds": closed, "merges": merges, "alarms": alarms, **course})
        return
    screen.out.print(
        f"run {described['id']} ({described['name']}): {described['state']}, round {described['round']} of "
        f"{described['rounds']}, checkpoint {described['checkpoint']}"
    )
    screen.out.print(f"consent of {', '.join(described['approvals'])}; joined: {', '.join(described['participants'])}")
    columns = ("round", "leader", "view", "checkpoint", "submitted (weight)", "attested", "trouble")
    screen.show(screen.table(*columns, rows=[_row(one) for one in rounds]))
    for line in sights.words_of_course(course, str(described["id"]), described["state"]):
        screen.out.print(escape(line))
    _show_merges(listed, merges, alarms)


def _show_merges(
    listed: Sequence[dict[str, Any]], merges: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]]
) -> None:
    if listed:
        screen.out.print(f"round {listed[-1]['round']} as this site merged it:")
        screen.show(screen.table(*sights.COLUMNS, rows=[sights.row_of(update) for update in listed[-1]["updates"]]))
    for line in sights.warnings_of(merges):
        screen.out.print(f"[yellow]look[/]: {escape(line)}")
    for alarm in alarms:
        screen.out.print(
            f"[bold red]alarm[/]: {escape(alarm['metric'])} fell at {escape(', '.join(alarm['members']))} with the "
            f"checkpoint of round {alarm['round']}{', which was given up' if alarm['given_up'] else ''}"
        )


async def _told(
    site: SiteConfig, run: str
) -> tuple[dict[str, Any], list[RoundHistory], list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """A run, its rounds, what this site's merges saw, the alarms, and the best checkpoint."""
    async with contracts_of(site) as contracts:
        found = await named_run(contracts, run)
        name = await names_of(contracts)
        rounds = rounds_of(await contracts.events(0), found.id, name)
        seen = await _seen(site, found.id)
        merges = sights.merges_of(seen["rounds"], name)
        policy = seen["policy"]
        described = await _described(contracts, found)
        return described, rounds, merges, sights.alarms_of(rounds, policy), sights.course_of(rounds, policy)


async def _seen(site: SiteConfig, run: int) -> dict[str, Any]:
    """What the site's node keeps of a run's merges; nothing where the ledger is elsewhere and no node runs here."""
    try:
        async with NodeClient(site) as node:
            found: dict[str, Any] = await node.call("swarm_reports", run=str(run))
            return found
    except UnavailableError:
        return {"rounds": [], "policy": None}


def _row(one: RoundHistory) -> list[str]:
    trouble = [f"{was['leader']} {was['reason']} in view {was['view']}" for was in one.replaced]
    trouble += [f"{no['name']} refused {no['published'][:10]}" for no in one.refusals]
    trouble += [f"{member} struck" for member in one.struck]
    trouble += [f"{member} came late or not at all" for member in one.absent]
    trouble += [f"{member} accused falsely" for member in one.false_accusers]
    trouble += [f"{member} joined with masks and is not in the sum" for member in one.unsummed]
    trouble += [f"{member} did not open its mask; shares of the others did" for member in one.silent]
    if one.sum_closed_off:
        trouble.append("it started again after its sum was opened, and changed nothing")
    return [
        str(one.round),
        one.leader or "-",
        str(one.view),
        short(from_hex(one.checkpoint)) if one.checkpoint else "-",
        ", ".join(f"{s['name']} ({s['weight'] or 'masked'})" for s in one.submissions) or "-",
        str(len(one.attestations)),
        "; ".join(trouble),
    ]


async def history(site: SiteConfig, run: str) -> tuple[dict[str, Any], list[RoundHistory]]:
    """A run and its rounds so far."""
    async with contracts_of(site) as contracts:
        found = await named_run(contracts, run)
        name = await names_of(contracts)
        return await _described(contracts, found), rounds_of(await contracts.events(0), found.id, name)
