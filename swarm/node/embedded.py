"""The members' own ledger as a node's chain: every block is verified here, and voted on where this member does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swarm.config import RpcConfig
from swarm.encoding import to_hex
from swarm.identity import Identity, checksum
from swarm.ledger.client import Contracts
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import Asked, Rpc
from swarm.net.transport import Transport
from swarm.node.agreement import Agreement
from swarm.node.standby import Standby, part
from swarm.quorum import faults_max

if TYPE_CHECKING:
    from swarm.ledger.web_server import Server


class EmbeddedChain:
    """A `Chain` over a ledger on this node's disk, kept in step with the other members' over the transport.

    Args:
        rpc: where others read the ledger as JSON-RPC; None: nowhere.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        ledger: Ledger,
        transport: Transport,
        clock: Callable[[], float],
        view_timeout_s: float,
        rpc: RpcConfig | None = None,
    ) -> None:
        self.ledger = ledger
        self._transport = transport
        self._block_event = asyncio.Event()
        self._tell_block: Callable[[], None] | None = None
        self._tell_failure: Callable[[BaseException], None] | None = None
        self.agreement = Agreement(
            identity=identity,
            ledger=ledger,
            transport=transport,
            clock=clock,
            view_timeout_s=view_timeout_s,
            on_block=self._on_block,
            on_failure=self._on_failure,
        )
        self.rpc = Rpc(ledger, self.agreement.add_transaction)
        self.contracts = Contracts(Asked(self.rpc), on_block=self.next_block)
        self.standby = Standby(
            identity=identity,
            contracts=self.contracts,
            agreement=self.agreement,
            memory=ledger.folder / "silences.json",
            clock=clock,
            on_failure=self._on_failure,
        )
        self.server = None if rpc is None else self._server(rpc)

    def _server(self, config: RpcConfig) -> Server:
        from swarm.ledger.web import Web  # a fifth of a second, for those who serve
        from swarm.ledger.web_server import Server

        web = Web(
            self.ledger,
            config,
            self.agreement.add_transaction,
            clock=time.monotonic,
            height_seen=lambda: 0 if self.agreement.caught_up else self.agreement.height_seen,
            peers=lambda: len(self._transport.connected()),
        )
        self.ledger.on_waiting = web.on_waiting
        return Server(web, self.next_block)

    def show_metrics(self, metrics: Callable[[], bytes]) -> None:
        """Answer `/metrics` with this where JSON-RPC is served; before `start`."""
        if self.server is not None:
            self.server.web.metrics.text = metrics

    async def start(self, on_block: Callable[[], None], on_failure: Callable[[BaseException], None]) -> None:
        """Serve the ledger's protocols; ConfigError: others cannot read it at the address that the site names."""
        self._tell_block, self._tell_failure = on_block, on_failure
        self.agreement.start()
        if self.server is not None:
            await self.server.start()

    def run(self) -> None:
        """Begin to vote and to follow."""
        self.agreement.run()
        self.standby.run()

    async def stop(self) -> None:
        """Hang up on readers, and stop every timer and task of the agreement."""
        if self.server is not None:
            await self.server.close()
        await self.standby.close()
        await self.agreement.close()

    async def close(self) -> None:
        """Close the ledger; what was agreed is on disk."""
        self.let_go()

    def let_go(self) -> None:
        """Close the ledger's files."""
        self.ledger.close()

    @property
    def height(self) -> int:
        """The number of the last block."""
        return self.ledger.head.number

    @property
    def caught_up(self) -> bool:
        """Whether this node knows of no later block."""
        return self.agreement.caught_up

    @property
    def touched_members(self) -> bool:
        """Whether the last block changed the state of the consortium."""
        return self.ledger.touched_members()

    async def next_block(self) -> None:
        """Returns when the ledger has another block than now."""
        await self._block_event.wait()

    async def request(self, method: str, params: Sequence[Any]) -> Any:
        """The `result` of a JSON-RPC request; RpcError otherwise."""
        return self.rpc.handle(method, params)

    async def status(self) -> Mapping[str, Any]:
        """Where the ledger is."""
        head = self.ledger.head
        validators = self.ledger.validators()
        return {
            "height": head.number,
            "height_seen": self.agreement.height_seen,
            "head": to_hex(head.hash),
            "timestamp_ms": head.timestamp_ms,
            "chain_id": self.ledger.chain_id,
            "validators": [checksum(validator) for validator in validators],
            "faults_tolerated": faults_max(len(validators)),
            **await self._liveness(),
            "contradictions": [
                {
                    "member": checksum(one.member),
                    "kind": one.contradiction.kind,
                    "height": one.contradiction.first.height,
                    "view": one.contradiction.first.view,
                    "path": str(one.path),
                }
                for one in self.agreement.contradictions.kept()
            ],
            "rpc": None if self.server is None else self.server.url,
            "conflicts": [{"height": height, "hash": to_hex(digest)} for height, digest in self.ledger.conflicts()],
        }

    async def _liveness(self) -> dict[str, Any]:
        """Who votes, who does not and why, and what keeps the ledger awake."""
        standbys = frozenset(await self.contracts.standbys())
        recovery = self.ledger.recovery
        return {
            "parts": {checksum(m.address): part(m, standbys) for m in await self.contracts.members()},
            "heights": {checksum(member): height for member, height in self.agreement.heights.items()},
            "floor": await self.contracts.floor(),
            "standby_after_s": await self.contracts.absence_s(),
            "silent_s": {checksum(member): silence_s for member, silence_s in self.standby.silent_s.items()},
            "asleep_since_s": self.standby.asleep_since_s,
            "recovery": None if recovery is None else recovery.manifest.height + 1,
        }

    def _on_block(self) -> None:
        event, self._block_event = self._block_event, asyncio.Event()
        event.set()
        if self._tell_block is not None:
            self._tell_block()

    def _on_failure(self, error: BaseException) -> None:
        if self._tell_failure is not None:
            self._tell_failure(error)
