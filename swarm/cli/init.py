"""`swarm init` writes a consortium's folder; `swarm key` writes one member's own keys and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from swarm.cli import screen
from swarm.cli.consortium import (
    BASE_PORT,
    BLIND_MEMBERS_MIN,
    PORT_MAX,
    Keys,
    member_table,
    places_of,
    write_consortium,
    write_keys,
    write_site,
)
from swarm.errors import ConfigError
from swarm.identity import Identity

EXAMPLES = Path(__file__).resolve().parents[2] / "nodes"
"""The examples of a checkout; an installed package has none."""


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the new folder; refused if it is there and not empty")],
    members: Annotated[
        str,
        typer.Option(
            help="the members' names, with commas: [b]north,south[/] all on this machine, or with the place where "
            "others reach them: [b]north@10.0.0.1,south@node.south.example:4102[/]",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="the consortium's name (default: the folder's)")] = None,
    example: Annotated[
        str | None, typer.Option(help="copy an example's training program, policies and data: a name under nodes/")
    ] = None,
    base_port: Annotated[
        int, typer.Option(min=0, max=PORT_MAX, help="the first member's port; 0 takes free ports of this machine")
    ] = BASE_PORT,
    chain_id: Annotated[
        int | None,
        typer.Option(min=1, max=2**53 - 1, help="the ledger's number among Ethereum networks (default: random)"),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="the JSON-RPC of somebody else's chain, in place of a ledger of the members' own"),
    ] = None,
) -> None:
    """Write a new consortium: swarm.toml, every member's settings, keys and passwords, and who gets which file."""
    asked = places_of(members.split(","), base_port=base_port)
    if endpoint is not None and chain_id is None:
        raise ConfigError("--endpoint names somebody else's chain: say its number as well, with --chain-id")
    source = _example(example) if example is not None else None
    with key_progress() as progress:
        written = write_consortium(
            folder,
            name=name or folder.absolute().name,
            members=asked,
            chain_id=chain_id,
            endpoint=endpoint,
            example=source,
            progress=progress,
        )
    screen.out.print(
        f"{len(written)} members in {screen.here(folder)}: read {screen.here(folder / 'WHO-GETS-WHAT.txt')}"
    )
    if source is None and len(asked) < BLIND_MEMBERS_MIN:
        screen.err.print(
            f"[yellow]look[/]: with {len(asked)} members policy.toml is not blind: every member sees every other's "
            "update, and a sum of so few would hide little of each; from four members on it is"
        )
    screen.out.print(f"next: swarm node {screen.here(written[0])}")


def _example(name: str) -> Path:
    found = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) if EXAMPLES.is_dir() else []
    if name not in found:
        there = f"there are {', '.join(found)}" if found else "an installed package has none; take them from a checkout"
        raise ConfigError(f"no example is called {name!r}; {there}")
    return EXAMPLES / name


def key(
    name: Annotated[str, typer.Argument(help="the member's name, as the others will read it")],
    at: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="where the other members will reach this node")],
    folder: Annotated[Path, typer.Option("--dir", help="where keys/ and sites/ go")] = Path(),
) -> None:
    """Write one member's own keys and settings, and print the public lines that the others need.

    A founder's lines go into swarm.toml; a newcomer's are what `swarm members nominate` asks for.
    """
    (place,) = places_of([f"{name}@{at}"], base_port=BASE_PORT)
    there = [path for stem in (f"keys/{name}", f"keys/{name}-operator") for path in folder.glob(f"{stem}.*")]
    there += [path for path in (folder / "sites" / f"{name}.toml",) if path.exists()]
    if there:
        raise ConfigError(
            f"{there[0]} is there already; a key is never overwritten: take another --dir, or move it away"
        )
    pair = Keys(Identity.generate(), Identity.generate())
    with key_progress() as progress:
        write_keys(folder / "keys", {name: pair}, progress=progress)
    site = write_site(folder, place)
    screen.err.print(f"keys in {screen.here(folder / 'keys')} (secret), settings in {screen.here(site)}")
    screen.err.print("public, for the other members:")
    typer.echo(member_table(place, pair), nl=False)


@contextmanager
def key_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar for the keys, which take about a second each; nothing where no person watches."""
    with Progress(console=screen.err, transient=True, disable=not screen.err.is_terminal) as bar:
        task = bar.add_task("making keys", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
