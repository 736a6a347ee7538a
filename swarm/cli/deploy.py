"""`swarm deploy` puts the contracts on the chain that `swarm.toml` names, or checks those that are there."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli import screen
from swarm.cli.arguments import Json, SitePath
from swarm.config import SiteConfig, SwarmConfig, load_site, load_swarm
from swarm.encoding import Address, from_hex
from swarm.errors import ConfigError, StorageError
from swarm.identity import checksum

if TYPE_CHECKING:
    from swarm.ledger.external import Places

DEPLOY_S = 600.0


def deploy(
    site: SitePath,
    consortium: Annotated[
        str | None, typer.Option(help="0x…: the Consortium is there already, put only the others beside it")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="how long each transaction may take")] = DEPLOY_S,
    json_: Json = False,
) -> None:
    """Put the contracts on the chain whose `endpoint` stands under [ledger] in swarm.toml.

    Your operator's key signs the three transactions and pays for them. Where the contracts are is written into
    swarm.toml, which then goes to every member. If it stands there already, the contracts are checked instead:
    the code byte for byte, and the founders.
    """
    settings = load_site(site)
    config = load_swarm(settings.swarm)
    if config.external is None:
        raise ConfigError(
            f"{settings.swarm}: the members keep a ledger of their own, and its contracts are in its first block; to "
            "use somebody else's chain write its `endpoint` under [ledger], and its chain_id under [consortium]"
        )
    there = config.external.consortium is not None
    places = asyncio.run(_find(settings, config) if there else _deploy(settings, config, consortium, timeout_s))
    if not there:
        write_places(settings.swarm, places)
    if json_:
        found = {
            "consortium": checksum(places.consortium),
            "runs": checksum(places.runs),
            "blind": checksum(places.blind),
            "block": places.block,
        }
        screen.print_json({**found, "deployed": not there})
        return
    screen.out.print(
        f"Consortium {checksum(places.consortium)}\nRuns       {checksum(places.runs)}\n"
        f"Blind      {checksum(places.blind)}"
    )
    screen.out.print(
        f"all are on chain {config.chain_id} as swarm.toml says: code and founders checked"
        if there
        else f"written into {screen.here(settings.swarm)}; give this file to every member"
    )


async def _find(site: SiteConfig, config: SwarmConfig) -> Places:
    from swarm.ledger.connection import Connection
    from swarm.ledger.external import ExternalNetwork, places_of

    link = Connection(_url(site, config))
    try:
        await ExternalNetwork(link).check(config)
    finally:
        await link.disconnect()
    return places_of(config)


async def _deploy(site: SiteConfig, config: SwarmConfig, consortium: str | None, timeout_s: float) -> Places:
    from swarm.ledger.connection import Connection
    from swarm.ledger.deploy import deploy as put
    from swarm.ledger.external import ExternalNetwork

    there = None if consortium is None else _address(consortium)
    link = Connection(_url(site, config))
    try:
        network = ExternalNetwork(link)
        return await put(network, config, site.operator(), timeout_s=timeout_s, consortium=there)
    finally:
        await link.disconnect()


def _url(site: SiteConfig, config: SwarmConfig) -> str:
    assert config.external is not None
    return site.endpoint or config.external.endpoint


def _address(text: str) -> Address:
    try:
        return from_hex(text, size=20)
    except ValueError as error:
        raise ConfigError(f"--consortium: {error}") from error


def write_places(path: Path, places: Places) -> None:
    """Write where the contracts are into the table [ledger] of `swarm.toml`; every other byte stays.

    Raises:
        StorageError: the file cannot be written; the message has the lines to write by hand.
        ConfigError: the same, where the file is not written as usual.
    """
    named = {"consortium": places.consortium, "runs": places.runs, "blind": places.blind}
    lines = "".join(f'{name} = "{checksum(place)}"\n' for name, place in named.items()) + f"block = {places.block}\n"
    before = load_swarm(path)
    assert before.external is not None
    text = path.read_text()
    head = re.search(r"^\[ledger\][^\n]*\n", text, re.MULTILINE)
    written = text if head is None else text[: head.end()] + lines + text[head.end() :]
    hand = f"write these lines under [ledger] in {path} by hand:\n{lines}"
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".toml", delete=False) as draft:
            draft.write(written)
        name = Path(draft.name)
        try:
            external = replace(
                before.external,
                consortium=places.consortium,
                runs=places.runs,
                blind=places.blind,
                block=places.block,
            )
            if head is None or load_swarm(name) != replace(before, external=external):
                raise ConfigError(hand)
            name.chmod(path.stat().st_mode & 0o777)
            os.replace(name, path)
        finally:
            name.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error}); {hand}") from error
