"""A node as a process of its own: settings in, a running node on real disk, clock and network, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from pathlib import Path

from swarm.config import SiteConfig, SwarmConfig, check_site, load_site, load_swarm
from swarm.errors import StorageError
from swarm.identity import Identity
from swarm.ledger.database import set_aside
from swarm.ledger.genesis import Genesis
from swarm.ledger.ledger import Ledger
from swarm.net.libp2p import Libp2pTransport
from swarm.net.transport import Transport
from swarm.node import memory
from swarm.node.chain import Chain
from swarm.node.control import Control
from swarm.node.embedded import EmbeddedChain
from swarm.node.metrics import Metrics
from swarm.node.node import Node
from swarm.node.participation import Participation
from swarm.store import Store

logger = logging.getLogger(__name__)


def open_node(
    site: SiteConfig, swarm: SwarmConfig, identity: Identity, *, participation: type[Participation] = Participation
) -> Node:
    """The site's node on its folder; nothing runs yet. Tests pass a `participation` that breaks rules.

    Raises:
        ConfigError: another node runs on this folder, or the ledger there belongs to another consortium.
        StorageError: the disk is full, read-only or damaged.
    """
    scratch = site.folder / "scratch"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"the site's folder {site.folder} cannot be written: {error}") from error
    transport = Libp2pTransport(
        identity, site.listen, upload_bytes_s=site.max_upload_bytes_s, relay=site.relay, proxy=site.proxy
    )
    chain = _chain(site, swarm, identity, transport)
    try:
        return Node(
            name=site.name,
            identity=identity,
            chain=chain,
            store=Store(site.folder / "store", site.store_max_bytes),
            transport=transport,
            scratch=scratch,
            clock=time.time,
            leads=site.leads,
            proxy=site.proxy,
            relays=site.relay is not None,
            next_update=site.next_update,
            participation=participation,
        )
    except BaseException:
        chain.let_go()
        raise


def _chain(site: SiteConfig, swarm: SwarmConfig, identity: Identity, transport: Transport) -> Chain:
    """The members' own ledger on this site's disk, or somebody else's chain, as `swarm.toml` says."""
    if swarm.external is not None:
        from swarm.node.external import ExternalChain  # brings web3, half a second

        if site.rpc is not None:
            logger.info("[rpc] of %s serves /metrics alone: the chain's own nodes serve JSON-RPC", site.path.name)
        endpoint = site.endpoint or swarm.external.endpoint
        return ExternalChain(swarm, endpoint, site.folder / "external", rpc=site.rpc)
    ledger = Ledger.open(site.folder / "ledger", Genesis.of(swarm), archive=site.archive)
    return EmbeddedChain(
        identity=identity,
        ledger=ledger,
        transport=transport,
        clock=time.time,
        view_timeout_s=swarm.view_timeout_s,
        rpc=site.rpc,
    )


async def serve(
    site: SiteConfig, swarm: SwarmConfig, identity: Identity, *, participation: type[Participation] = Participation
) -> None:
    """Run the site's node until it is told to stop (SIGTERM, SIGINT) or cannot go on."""
    node = open_node(site, swarm, identity, participation=participation)
    node.chain.show_metrics(Metrics(node).text)
    control = Control(node, site.socket)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await node.start()
        await control.start()
        failed, stopped = asyncio.ensure_future(node.failed()), asyncio.ensure_future(stop.wait())
        thrifty = asyncio.ensure_future(memory.give_back_for_ever())
        done, pending = await asyncio.wait({failed, stopped, thrifty}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for task in done & {failed, thrifty}:
            await task
        logger.info("height %d: %s stops", node.chain.height, site.name)
    finally:
        await control.close()
        await node.close()


def run_node(path: Path, *, participation: type[Participation] = Participation, rebuild: bool = False) -> None:
    """Run the node of a site's settings file, until it is told to stop.

    Args:
        rebuild: set the ledger aside first, all but this node's votes, and fetch it again.
    Raises:
        ConfigError, StorageError: what the operator can mend.
    """
    site = load_site(path)
    swarm = load_swarm(site.swarm)
    identity = site.identity()
    check_site(site, swarm, identity)
    memory.spare()
    if rebuild:
        place = set_aside(site.folder / "ledger")
        if place is not None:
            logger.warning("the ledger of %s is set aside in %s and fetched again", site.name, place)
    asyncio.run(serve(site, swarm, identity, participation=participation))
