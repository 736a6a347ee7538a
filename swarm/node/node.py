"""One member's node: a ledger, a store and a transport, kept in step with the other members'.

It has no settings of its own: whoever makes one (a process, the simulator) passes its parts in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from web3 import AsyncWeb3

from swarm.encoding import to_hex
from swarm.errors import StorageError
from swarm.identity import Identity, checksum
from swarm.ledger.client import Contracts, Member
from swarm.ledger.ledger import Ledger
from swarm.ledger.rpc import LedgerProvider, Rpc
from swarm.net.transfer import serve_objects
from swarm.net.transport import Transport
from swarm.node.agreement import Agreement
from swarm.node.participation import Participation
from swarm.node.training import Training
from swarm.rounds import fault_max
from swarm.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Node:
    """Votes or follows, serves objects, and performs its member's duties until it is closed."""

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        ledger: Ledger,
        store: Store,
        transport: Transport,
        scratch: Path,
        clock: Callable[[], float],
        view_timeout_s: float,
        leads: bool = True,
        participation: type[Participation] = Participation,
    ) -> None:
        self.name = name
        self.identity = identity
        self.ledger = ledger
        self.store = store
        self.transport = transport
        self.members: tuple[Member, ...] = ()
        self._block_event = asyncio.Event()
        self._failure: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
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
        self.contracts = Contracts(AsyncWeb3(LedgerProvider(self.rpc)), on_block=self.next_block)
        self.participation = participation(
            identity=identity,
            contracts=self.contracts,
            store=store,
            transport=transport,
            scratch=scratch,
            clock=clock,
            on_failure=self._on_failure,
        )
        self.training = Training(
            me=identity.address,
            work=self.participation,
            contracts=self.contracts,
            store=store,
            leads=leads,
            caught_up=lambda: self.agreement.caught_up,
        )

    async def start(self) -> None:
        """Listen, catch up and take part. ConfigError: the port is in use or not ours to take."""
        self._failure = asyncio.get_running_loop().create_future()
        self.agreement.start()
        self.participation.start()
        serve_objects(self.transport, self.store, lambda member, digest: True)
        await self._read_members()
        await self.transport.start()
        self.agreement.run()
        self.participation.run()
        if self.identity.address not in {member.address for member in self.members}:
            logger.warning(
                "%s is no member by this node's ledger (height %d): the others hang up unless theirs says so",
                checksum(self.identity.address),
                self.ledger.head.number,
            )
        logger.info("height %d: %s listens, %d members", self.ledger.head.number, self.name, len(self.members))

    async def close(self) -> None:
        """Stop in order; what was agreed is on disk."""
        await self.participation.close()
        await self.agreement.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()
        self.ledger.close()

    async def failed(self) -> None:
        """Returns never; raises what this node cannot go on with (a full disk, its own mistake)."""
        assert self._failure is not None
        await self._failure

    def _on_failure(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    # --- blocks

    def _on_block(self) -> None:
        self.participation.on_block()
        event, self._block_event = self._block_event, asyncio.Event()
        event.set()
        if self.ledger.touched_members():
            self._start(self._read_members())

    async def next_block(self) -> None:
        """Returns when the ledger has another block than now."""
        await self._block_event.wait()

    def _start(self, work: Awaitable[T]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_members(self) -> None:
        """Whom this node speaks to is what the ledger says, at each change."""
        try:
            self.members = await self.contracts.members()
        except StorageError as error:
            self._on_failure(error)
            return
        self.transport.set_members({member.address: member.endpoint for member in self.members})

    # --- what people ask

    async def status(self) -> dict[str, Any]:
        """What this node knows, for people and scripts."""
        connected = self.transport.connected()
        validators = self.ledger.validators()
        head = self.ledger.head
        me = self.identity.address
        return {
            "name": self.name,
            "address": checksum(me),
            "peer_id": self.identity.peer_id,
            "height": head.number,
            "height_seen": self.agreement.height_seen,
            "head": to_hex(head.hash),
            "timestamp_ms": head.timestamp_ms,
            "chain_id": self.ledger.chain_id,
            "validators": [checksum(validator) for validator in validators],
            "faults_tolerated": fault_max(len(validators)),
            "members": [
                {
                    "name": member.name,
                    "address": checksum(member.address),
                    "validator": member.address in validators,
                    "connected": member.address in connected or member.address == me,
                }
                for member in self.members
            ],
            "runs": [self._run_status(number) for number in sorted(self.participation.efforts)],
        }

    def _run_status(self, number: int) -> dict[str, Any]:
        effort = self.participation.efforts[number]
        run, state = effort.run, effort.state
        status: dict[str, Any] = {
            "id": run.id,
            "name": run.name,
            "state": run.state.name.lower(),
            "round": run.round,
            "rounds": run.rounds,
            "checkpoint": to_hex(run.checkpoint),
        }
        if state is not None:
            status |= {
                "phase": state.phase.name.lower(),
                "view": state.view,
                "leader": checksum(state.leader) if any(state.leader) else None,
                "deadline_s": state.deadline_s,
                "expected": [checksum(member) for member in state.expected],
                "submitted": [checksum(s.member) for s in state.submissions if not s.struck],
                "published": to_hex(state.published) if state.published else None,
                "attested": sorted(checksum(member) for member in state.attested),
                "refused": sorted(checksum(member) for member in state.refused),
            }
        return status
