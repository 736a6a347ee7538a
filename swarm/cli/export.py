"""`swarm export` writes what other programs need to keep this consortium's chain."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli import screen
from swarm.cli.arguments import SitePath
from swarm.config import load_site, load_swarm
from swarm.errors import ConfigError, StorageError
from swarm.identity import checksum

app = typer.Typer(no_args_is_help=True, help="Write what another program needs to keep this consortium's chain.")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="the file to write; it must not be there")]


@app.command("besu-genesis")
def besu_genesis(
    swarm: Annotated[Path, typer.Argument(metavar="swarm.toml", help="what all members agreed")],
    out: Out,
    block_s: Annotated[int, typer.Option(min=1, max=3600, help="seconds between two blocks")] = 1,
) -> None:
    """Write a genesis for Hyperledger Besu: QBFT, with the Consortium contract as the list of its validators.

    The contracts are in its first block, at the addresses that they have on a ledger of the members' own.
    """
    from swarm.ledger.besu import besu_genesis as genesis  # brings in the EVM
    from swarm.ledger.genesis import BLIND, CONSORTIUM, RUNS

    config = load_swarm(swarm)
    # A validator that proposes nothing is waited for a few blocks.
    document = genesis(config, block_period_s=block_s, request_timeout_s=4 * block_s)
    _write(out, json.dumps(document, indent=2) + "\n", mode=0o644)
    validators = ", ".join(member.name for member in config.members if member.validator)
    screen.out.print(
        f"wrote {screen.here(out)}: chain {config.chain_id}, validators {validators}\n\n"
        "At each validator, with the member's own key, which is the validator's:\n"
        "  swarm export besu-key sites/NAME.toml besu-key\n"
        f"  besu --genesis-file={out.name} --data-path=besu --node-private-key-file=besu-key --min-gas-price=0 \\\n"
        "       --rpc-http-enabled --rpc-http-api=ETH,NET,WEB3,QBFT --rpc-ws-enabled --revert-reason-enabled \\\n"
        "       --bootnodes=enode://PUBLIC_KEY@HOST:30303\n\n"
        "In swarm.toml, in place of what stands under [ledger] now, the same at every member:\n"
        "  [ledger]\n"
        '  endpoint = "http://127.0.0.1:8545"\n'
        f'  consortium = "{checksum(CONSORTIUM)}"\n'
        f'  runs = "{checksum(RUNS)}"\n'
        f'  blind = "{checksum(BLIND)}"\n\n'
        "A block of QBFT is final, so confirmations stay 0. `swarm deploy SITE.toml` then checks code and founders.",
        markup=False,
    )


@app.command("besu-key")
def besu_key(site: SitePath, out: Out) -> None:
    """Write this site's node key as Besu reads it. It is a SECRET: 64 digits, for this user only."""
    identity = load_site(site).identity()
    _write(out, identity.secret.hex() + "\n", mode=0o600)
    screen.out.print(
        f"wrote {screen.here(out)}: the key of {checksum(identity.address)}; keep it as secret as a keystore"
    )


def _write(out: Path, text: str, *, mode: int) -> None:
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigError(f"{out} is there already; name another file, or remove it") from error
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error}") from error
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise StorageError(f"{out} cannot be written: {error}") from error
