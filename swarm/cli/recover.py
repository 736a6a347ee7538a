"""`swarm recover`: two thirds of the operators replace validators when more than a third are gone for good.

A manifest travels from operator to operator as a file; each signs it where the own node knows no later block. Then
every site imports it, and the new validators record it in the next block.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from swarm.cli import screen
from swarm.cli.arguments import SitePath
from swarm.cli.control import NodeClient
from swarm.cli.ledger import contracts_of
from swarm.config import SiteConfig, load_site, load_swarm
from swarm.encoding import Address, Digest, from_hex, short, to_hex
from swarm.errors import ConfigError, RejectedError, SwarmError
from swarm.identity import checksum
from swarm.quorum import faults_max, quorum

if TYPE_CHECKING:
    from swarm.ledger.client import Member
    from swarm.ledger.ledger import Ledger
    from swarm.ledger.recovery import Recovery

app = typer.Typer(
    no_args_is_help=True,
    help="When more than a third of the validators are gone for good: two thirds of the operators replace them.",
)

ManifestPath = Annotated[Path, typer.Argument(metavar="MANIFEST", help="the file that `propose` wrote")]


@dataclass(frozen=True)
class Seen:
    """What this site's ledger says, from the running node or from its folder."""

    chain_id: int
    genesis: Digest
    height: int
    height_seen: int
    """The greatest height that any member in reach claims."""
    head: Digest
    validators: tuple[Address, ...]
    members: tuple[Member, ...]

    def name(self, address: Address) -> str:
        """A member's name; its address where it is none."""
        return next((member.name for member in self.members if member.address == address), checksum(address))

    def names(self, addresses: Sequence[Address]) -> str:
        """Their names, in this order."""
        return ", ".join(self.name(address) for address in addresses) or "nobody"

    def operators(self) -> dict[Address, Address]:
        """Who may sign, and the member that each stands for."""
        return {member.operator: member.address for member in self.members}

    def check(self, recovery: Recovery) -> None:
        """RejectedError if this ledger knows better than the manifest, whoever signed it so far."""
        if self.height_seen > recovery.manifest.height:
            raise RejectedError(
                f"the manifest says that block {recovery.manifest.height} is the last, but block {self.height_seen} is "
                "known: the longer ledger stands, and a recovery is not needed or starts from there"
            )
        try:
            recovery.check(
                chain_id=self.chain_id,
                genesis=self.genesis,
                height=self.height,
                head=self.head,
                operators=self.operators(),
            )
        except RejectedError as error:
            if "operators have to sign" not in str(error):
                raise


async def see(site: SiteConfig) -> Seen:
    """What the site's node knows; where none runs, what lies in its folder.

    Raises:
        ConfigError: the members use somebody else's chain, which keeps its own validators.
    """
    from swarm.ledger.genesis import Genesis

    config = load_swarm(site.swarm)
    if config.external is not None:
        raise ConfigError(
            f"{site.swarm}: the ledger is kept by {config.external.endpoint}, which has its own validators"
        )
    genesis = Genesis.of(config)
    if not await _runs(site):
        return await asyncio.to_thread(_from_folder, site)
    async with NodeClient(site) as node:
        status = await node.call("swarm_status")
    async with contracts_of(site) as contracts:
        members = await contracts.members()
    return Seen(
        chain_id=status["chain_id"],
        genesis=genesis.hash,
        height=status["height"],
        height_seen=status["height_seen"],
        head=from_hex(status["head"], size=32),
        validators=tuple(from_hex(one, size=20) for one in status["validators"]),
        members=members,
    )


async def _runs(site: SiteConfig) -> bool:
    try:
        async with NodeClient(site):
            return True
    except SwarmError:
        return False


def _from_folder(site: SiteConfig) -> Seen:
    from swarm.ledger.genesis import Genesis
    from swarm.ledger.ledger import Ledger

    ledger = Ledger.open(site.folder / "ledger", Genesis.of(load_swarm(site.swarm)), archive=site.archive)
    try:
        head = ledger.head
        return Seen(
            chain_id=ledger.chain_id,
            genesis=ledger.genesis_hash,
            height=head.number,
            height_seen=head.number,
            head=head.hash,
            validators=ledger.validators(),
            members=_members(ledger),
        )
    finally:
        ledger.close()


def _members(ledger: Ledger) -> tuple[Member, ...]:
    from swarm.ledger.client import Contracts
    from swarm.ledger.rpc import Asked, Rpc

    contracts = Contracts(Asked(Rpc(ledger, ledger.add_transaction)))
    return asyncio.run(contracts.members())


def read(path: Path) -> Recovery:
    """The recovery in a file; ConfigError names the file."""
    from swarm.ledger.recovery import FILE_BYTES_MAX, Recovery

    try:
        with path.open("rb") as file:
            return Recovery.decode(file.read(FILE_BYTES_MAX + 1))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def in_words(recovery: Recovery, seen: Seen) -> list[str]:
    """What a signature under this manifest says, a line each."""
    manifest = recovery.manifest
    chosen = manifest.validators
    left_out = [one for one in seen.validators if one not in chosen]
    faults = faults_max(len(chosen))
    made = datetime.fromtimestamp(manifest.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"made       {made}, because: {manifest.reason}",
        f"ledger     chain {manifest.chain_id}, began from {short(manifest.genesis)}",
        f"last block {manifest.height} ({short(manifest.head)}); who signs says that no later block was decided",
        f"validators {seen.names(chosen)} decide from block {manifest.height + 1} on; "
        + (f"{faults} of them may fail or lie" if faults else "none of them may lie, that takes 4"),
        f"left out   {seen.names(left_out)}; who signs says that they never decide block {manifest.height + 1}",
        f"signed by  {seen.names([seen.operators().get(one, one) for one in recovery.signers])} "
        f"({len(recovery.signatures)} of the {quorum(len(seen.members))} that are needed)",
    ]
    if left_out and len(left_out) >= quorum(len(seen.validators)):
        lines.append(
            f"CAREFUL    those left out are enough to decide blocks without the others: if they run again with their "
            f"ledgers, or decided block {manifest.height + 1} before they were lost, there are two ledgers"
        )
    return lines


@app.command()
def propose(
    site: SitePath,
    validators: Annotated[str, typer.Option(metavar="A,B,C", help="who votes from now on: names or addresses")],
    reason: Annotated[str, typer.Option(help="why, for the record: at most 256 bytes")],
) -> None:
    """Print a manifest that makes these members the validators, signed by this site's operator.

    Send it to the other operators (`swarm recover sign`) until two thirds have signed.
    """
    from swarm.ledger.recovery import Manifest, Recovery

    settings = load_site(site)
    seen = asyncio.run(see(settings))
    manifest = Manifest(
        chain_id=seen.chain_id,
        genesis=seen.genesis,
        height=seen.height,
        head=seen.head,
        validators=_chosen(validators, seen),
        reason=reason,
        created_ms=time.time_ns() // 1_000_000,
    )
    recovery = Recovery(manifest)
    seen.check(recovery)
    recovery = recovery.signed_by(settings.operator())
    seen.check(recovery)
    _explain(recovery, seen)
    typer.echo(recovery.encode(), nl=False)


def _chosen(text: str, seen: Seen) -> tuple[Address, ...]:
    by_name = {name: m.address for m in seen.members for name in (m.name, to_hex(m.address), checksum(m.address))}
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = next((word for word in words if word not in by_name), None)
    if unknown is not None:
        raise ConfigError(f"no member is called {unknown!r}; there are {', '.join(m.name for m in seen.members)}")
    if not words:
        raise ConfigError("--validators names at least one member")
    return tuple(sorted({by_name[word] for word in words}))


@app.command()
def show(site: SitePath, manifest: ManifestPath) -> None:
    """Say in plain words what a manifest says, and whether this site's ledger agrees."""
    seen = asyncio.run(see(load_site(site)))
    recovery = read(manifest)
    _explain(recovery, seen)
    seen.check(recovery)


@app.command()
def sign(
    site: SitePath,
    manifest: ManifestPath,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask, for scripts")] = False,
) -> None:
    """Sign a manifest with this site's operator key, after showing what that says; the file gets the signature."""
    settings = load_site(site)
    seen = asyncio.run(see(settings))
    recovery = read(manifest)
    _explain(recovery, seen)
    seen.check(recovery)
    operator = settings.operator()
    if operator.address not in seen.operators():
        raise RejectedError(f"{checksum(operator.address)} is no member's operator by this ledger")
    if not yes and not typer.confirm(f"sign this for {settings.name}?", err=True):
        raise typer.Exit(screen.FAILED)
    signed = recovery.signed_by(operator)
    fresh = manifest.with_name(manifest.name + ".new")
    fresh.write_text(signed.encode())
    os.replace(fresh, manifest)
    left = quorum(len(seen.members)) - len(signed.signatures)
    then = f"{left} more have to sign" if left > 0 else "every site imports it now: `swarm recover import`"
    screen.err.print(f"{escape(screen.here(manifest))} is signed by {len(signed.signatures)} operators; {then}")


@app.command("import")
def import_(
    site: SitePath,
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST…", help="one file, or copies that different operators signed")
    ],
) -> None:
    """Replace the validators as the manifest says; at every site, whether its node runs or not."""
    settings = load_site(site)
    recovery = _together([read(path) for path in manifests])
    asyncio.run(_import(settings, recovery))
    height = recovery.manifest.height + 1
    screen.out.print(
        f"block {height} is decided by the manifest's validators as soon as two thirds of them have imported it; "
        "`swarm status` shows it"
    )


async def _import(site: SiteConfig, recovery: Recovery) -> None:
    (await see(site)).check(recovery)
    if await _runs(site):
        async with NodeClient(site) as node:
            await node.call("swarm_recover", manifest=recovery.encode())
    else:
        await asyncio.to_thread(_into_folder, site, recovery)


def _into_folder(site: SiteConfig, recovery: Recovery) -> None:
    from swarm.ledger.genesis import Genesis
    from swarm.ledger.ledger import Ledger

    ledger = Ledger.open(site.folder / "ledger", Genesis.of(load_swarm(site.swarm)), archive=site.archive)
    try:
        ledger.begin_recovery(recovery)
    finally:
        ledger.close()


def _together(copies: Sequence[Recovery]) -> Recovery:
    """One recovery with the signatures of all copies; ConfigError if they are not copies of one manifest."""
    first = copies[0]
    if any(copy.manifest != first.manifest for copy in copies):
        raise ConfigError("these files are different manifests; their signatures do not count together")
    found = {signer: seal for copy in copies for signer, seal in zip(copy.signers, copy.signatures, strict=True)}
    return replace(first, signatures=tuple(found[signer] for signer in sorted(found)))


def _explain(recovery: Recovery, seen: Seen) -> None:
    for line in in_words(recovery, seen):
        screen.err.print(escape(line))
