"""Somebody else's EVM network as a node's chain: its blocks are followed, not voted on, and count once deep enough."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from web3 import AsyncWeb3
from web3.types import RPCEndpoint

from swarm.config import RpcConfig, SwarmConfig
from swarm.encoding import short, to_hex
from swarm.errors import RejectedError, UnavailableError
from swarm.identity import checksum
from swarm.ledger.client import Contracts
from swarm.ledger.confirmed import Confirmed
from swarm.ledger.connection import Connection, shown
from swarm.ledger.database import lock_folder
from swarm.ledger.endpoint import no_answer
from swarm.ledger.external import Counted, ExternalNetwork, Head, counted, places_of
from swarm.ledger.rpc import RpcError

if TYPE_CHECKING:
    from swarm.ledger.web_server import Server

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the chain's end is looked for; where the node tells of blocks by itself, it is asked at once."""
START_S = 30.0
"""How long a start waits for a network that does not answer."""
LATE_S = 60.0
"""A chain without an answer for so long is said in the log, once."""


class ExternalChain:
    """A `Chain` over a JSON-RPC endpoint of the network that `swarm.toml` names.

    Args:
        url: of the endpoint; a site may have its own.
        folder: one node at a time runs on it.
        rpc: where `/metrics` is served; None: nowhere.
    Raises:
        ConfigError: the settings do not say where the contracts are, or another node runs on the folder.
        StorageError: the folder cannot be written.
    """

    def __init__(self, config: SwarmConfig, url: str, folder: Path, *, rpc: RpcConfig | None = None) -> None:
        assert config.external is not None
        self._config = config
        self._url = url
        self._confirmations = config.external.confirmations
        self._places = places_of(config)
        self._lock = lock_folder(folder)
        self._hint = asyncio.Event()
        self._link = Connection(url, on_head=self._hint.set)
        self._network = ExternalNetwork(self._link)
        self._view = Confirmed(self._link)
        self.contracts = Contracts(
            AsyncWeb3(self._view),
            consortium=self._places.consortium,
            runs=self._places.runs,
            blind=self._places.blind,
            since=self._places.block,
            on_block=self.next_block,
            free=False,
        )
        self._block_event = asyncio.Event()
        self._head: Head | None = None
        self._counted: Counted | None = None
        self._answered_s = 0.0
        self._touched = True
        self._follower: asyncio.Task[None] | None = None
        self._server = None if rpc is None else self._metrics_server(rpc)
        self._tell_block: Callable[[], None] | None = None
        self._tell_failure: Callable[[BaseException], None] | None = None

    def _metrics_server(self, config: RpcConfig) -> Server:
        from swarm.ledger.web_metrics import MetricsAlone  # a fifth of a second, for those who serve
        from swarm.ledger.web_server import Server

        return Server(MetricsAlone(config, clock=time.monotonic), self.next_block)

    def show_metrics(self, metrics: Callable[[], bytes]) -> None:
        """Answer `/metrics` with this, where the site has `[rpc]`; before `start`."""
        if self._server is not None:
            self._server.web.metrics.text = metrics

    async def start(self, on_block: Callable[[], None], on_failure: Callable[[BaseException], None]) -> None:
        """Check the chain, the contracts' code and the founders; an endpoint that is away is waited for a while.

        Raises:
            ConfigError: it is another chain, or `/metrics` cannot be served where the site says.
            UnavailableError: no answer.
        """
        self._tell_block, self._tell_failure = on_block, on_failure
        clock = asyncio.get_running_loop().time
        until_s = clock() + START_S
        while True:
            try:
                await self._network.check(self._config)
                await self._look()
                break
            except UnavailableError as error:
                if clock() >= until_s:
                    raise UnavailableError(f"no answer from the chain at {shown(self._url)}: {error}") from error
                await asyncio.sleep(POLL_S)
        assert self._counted is not None
        if self._server is not None:
            await self._server.start()
        logger.info(
            "chain %d at %s: block %d counts (%s)",
            self._config.chain_id,
            shown(self._url),
            self._counted.number,
            short(self._counted.hash),
        )

    def run(self) -> None:
        """Begin to follow the chain."""
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """Stop following."""
        if self._server is not None:
            await self._server.close()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)

    async def close(self) -> None:
        """Hang up."""
        await self._link.disconnect()
        self.let_go()

    def let_go(self) -> None:
        """Unlock the folder; for who made a chain and could not use it."""
        self._lock.close()

    @property
    def height(self) -> int:
        """The last block that counts."""
        return self._view.height

    @property
    def caught_up(self) -> bool:
        """Whether the chain's end was seen a moment ago."""
        return asyncio.get_running_loop().time() < self._answered_s + 10 * POLL_S

    @property
    def touched_members(self) -> bool:
        """Whether the consortium logged anything in the last blocks."""
        return self._touched

    async def next_block(self) -> None:
        """Returns when another block counts than now."""
        await self._block_event.wait()

    async def request(self, method: str, params: Sequence[Any]) -> Any:
        """The chain's answer as of the last block that counts; RpcError otherwise."""
        try:
            response = await self._view.make_request(RPCEndpoint(method), params)
        except no_answer() as error:
            raise UnavailableError(f"the chain does not answer {method}: {error!r}") from error
        refusal = response.get("error")
        if isinstance(refusal, Mapping):
            raise RpcError(int(refusal.get("code", -32000)), str(refusal.get("message", refusal)), refusal.get("data"))
        return response.get("result")

    async def status(self) -> Mapping[str, Any]:
        """Where the chain is."""
        assert self._head is not None
        assert self._counted is not None
        return {
            "height": self._counted.number,
            "height_seen": self._counted.number,
            "head": to_hex(self._counted.hash),
            "timestamp_ms": int(self._head.timestamp_s * 1000),
            "chain_id": self._config.chain_id,
            "validators": [],
            "faults_tolerated": 0,
            "external": {
                "endpoint": shown(self._url),
                "head": self._head.number,
                "confirmations": self._confirmations,
                "answers": self.caught_up,
                "metrics": None if self._server is None else f"{self._server.url}/metrics",
                "consortium": checksum(self._places.consortium),
                "runs": checksum(self._places.runs),
                "blind": checksum(self._places.blind),
            },
        }

    # --- following

    async def _follow(self) -> None:
        late = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._hint.wait()
            self._hint.clear()
            try:
                await self._look()
                if late:
                    logger.info("the chain at %s answers again", shown(self._url))
                late = False
            except (UnavailableError, RejectedError) as error:
                logger.debug("the chain was not read: %s", error)
                if not late and asyncio.get_running_loop().time() > self._answered_s + LATE_S:
                    late = True
                    logger.warning("no answer from the chain at %s for %g s: %s", shown(self._url), LATE_S, error)
            except Exception as error:
                assert self._tell_failure is not None
                self._tell_failure(error)
                return

    async def _look(self) -> None:
        """Read where the chain ends, and tell the node if more counts than before."""
        before = self._counted
        head, now = await counted(self._network, before, self._confirmations)
        self._head, self._answered_s = head, asyncio.get_running_loop().time()
        if before is not None and now.number == before.number:
            return
        first = before.number + 1 if before is not None else self._places.block
        self._touched = before is None or await self._members_changed(first, now.number)
        # From here to the end nothing waits: a receipt and the state that it left count at the same moment.
        self._counted, self._view.height = now, now.number
        event, self._block_event = self._block_event, asyncio.Event()
        event.set()
        if self._tell_block is not None and before is not None:
            self._tell_block()

    async def _members_changed(self, first: int, last: int) -> bool:
        wanted = {"fromBlock": hex(first), "toBlock": hex(last), "address": to_hex(self._places.consortium)}
        try:
            return bool(await self._network.endpoint.request("eth_getLogs", wanted))
        except RejectedError:
            return True  # too many blocks at once: the members are read again
