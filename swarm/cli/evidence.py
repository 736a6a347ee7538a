"""`swarm verify-evidence`: did a leader publish wrong bytes, or is the accusation false? For anybody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from swarm.cli import screen
from swarm.cli.arguments import Json
from swarm.encoding import to_hex
from swarm.errors import ConfigError

if TYPE_CHECKING:
    from swarm.audit.retell import Publication


def verify_evidence(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the object that a refusal names as its evidence")],
    ledger: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="a consortium's or a site's folder, whose ledger is replayed, or a node's JSON-RPC over HTTP",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Merge again what the evidence shows: exit code 0 if the leader published wrong bytes, 1 if that is not proven.

    Without --ledger the verdict holds if the ledger says what the evidence claims; with it that is checked too.
    """
    from swarm.audit.accusation import check, read_evidence  # brings in numpy and the EVM
    from swarm.merge.evidence import Finding

    evidence = read_evidence(file)
    verdict = check(evidence, None if ledger is None else _publications(ledger))
    claim = evidence.claim
    if json_:
        screen.print_json(
            {
                "verdict": verdict.finding.name.lower(),
                "reason": verdict.reason,
                "ledger": ledger,
                "run": claim.run,
                "round": claim.round,
                "view": claim.view,
                "leader": to_hex(claim.leader),
                "published": to_hex(claim.published),
                "chunk": evidence.chunk,
            }
        )
    else:
        screen.out.print(
            f"run {claim.run} round {claim.round} view {claim.view}: leader {to_hex(claim.leader)}, published "
            f"{to_hex(claim.published)}, {len(claim.submissions)} submissions"
        )
        if ledger is None:
            screen.out.print("not compared with a ledger (--ledger): this is the accuser's word")
        screen.out.print(escape(str(verdict)))
    if verdict.finding is not Finding.GUILTY:
        raise typer.Exit(screen.FAILED)


def _publications(ledger: str) -> list[Publication]:
    from swarm.audit.accusation import replayed_publications, told_publications
    from swarm.audit.replay import Difference

    try:
        if not ledger.startswith(("http://", "https://")):
            with replayed_publications(Path(ledger)) as publications:
                return publications
        from web3 import AsyncHTTPProvider, AsyncWeb3

        from swarm.ledger.client import Contracts

        return asyncio.run(told_publications(Contracts(AsyncWeb3(AsyncHTTPProvider(ledger)))))
    except Difference as difference:
        raise ConfigError(f"the ledger {ledger} is not sound: {difference}") from difference
