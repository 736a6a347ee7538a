"""One member's node: a chain, a store and a transport, kept in step with the other members'.

It has no settings of its own: whoever makes one (a process, the simulator) passes its parts in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from swarm.config import Proxy
from swarm.encoding import to_hex
from swarm.errors import RejectedError, StorageError, UnavailableError
from swarm.identity import Identity, checksum
from swarm.ledger.client import Member
from swarm.net.probe import Probe
from swarm.net.transfer import serve_objects
from swarm.net.transport import Transport
from swarm.node.chain import Chain
from swarm.node.participation import RETRY_S, Participation
from swarm.node.training import Training
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
        chain: Chain,
        store: Store,
        transport: Transport,
        scratch: Path,
        clock: Callable[[], float],
        leads: bool = True,
        proxy: Proxy | None = None,
        relays: bool = False,
        next_update: Path | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        participation: type[Participation] = Participation,
    ) -> None:
        self.name = name
        self.identity = identity
        self.chain = chain
        self.store = store
        self.transport = transport
        self.members: tuple[Member, ...] = ()
        self.probe = Probe(
            transport,
            lambda: {member.address: member.endpoint for member in self.members},
            clock,
            proxy=proxy,
            relays=relays,
        )
        self._failure: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.contracts = chain.contracts
        self.participation = participation(
            identity=identity,
            contracts=self.contracts,
            store=store,
            transport=transport,
            scratch=scratch,
            clock=clock,
            on_failure=self._on_failure,
            entropy=entropy,
        )
        self.training = Training(
            me=identity.address,
            work=self.participation,
            contracts=self.contracts,
            store=store,
            leads=leads,
            caught_up=lambda: self.chain.caught_up,
            next_update=next_update,
        )

    async def start(self) -> None:
        """Listen, catch up and take part.

        Raises:
            ConfigError: the port is in use or not ours to take, or the chain is not the one that the settings mean.
            UnavailableError: the chain does not answer.
        """
        self._failure = asyncio.get_running_loop().create_future()
        await self.chain.start(self._on_block, self._on_failure)
        self.participation.start()
        self.probe.serve()
        serve_objects(self.transport, self.store, lambda member, digest: True)
        await self._read_members()
        await self.transport.start()
        self.chain.run()
        self.participation.run()
        if self.identity.address not in {member.address for member in self.members}:
            named = next((member.address for member in self.members if member.name == self.name), None)
            logger.warning(
                "%s is no member by this node's ledger (height %d)%s: the others hang up unless theirs says so",
                checksum(self.identity.address),
                self.chain.height,
                "" if named is None else f", by which {self.name} is {checksum(named)}",
            )
        logger.info("height %d: %s listens, %d members", self.chain.height, self.name, len(self.members))

    async def close(self) -> None:
        """Stop in order; what was agreed is on disk."""
        await self.participation.close()
        await self.chain.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()
        await self.chain.close()

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
        if self.chain.touched_members:
            self._start(self._read_members_again())

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

    async def _read_members_again(self) -> None:
        while True:
            try:
                return await self._read_members()
            except (UnavailableError, RejectedError) as error:
                logger.info("the members could not be read: %s", error)
                await asyncio.sleep(RETRY_S)

    # --- what people ask

    async def status(self) -> dict[str, Any]:
        """What this node knows, for people and scripts."""
        connected = self.transport.connected()
        chain = await self.chain.status()
        me = self.identity.address
        return {
            "name": self.name,
            "address": checksum(me),
            "peer_id": self.identity.peer_id,
            **chain,
            "members": [
                {
                    "name": member.name,
                    "address": checksum(member.address),
                    "validator": checksum(member.address) in chain["validators"],
                    "connected": member.address in connected or member.address == me,
                }
                for member in self.members
            ],
            "runs": [self._run_status(number) for number in sorted(self.participation.efforts)],
        }

    def network(self) -> list[dict[str, Any]]:
        """The members and what was exchanged with each: bytes, rates in bytes a second, seconds of a round trip."""
        connected, now_s = self.transport.connected(), asyncio.get_running_loop().time()
        found = []
        for member in self.members:
            if member.address == self.identity.address:
                continue
            traffic = self.transport.meter.of(member.address)
            up_s, down_s = traffic.rates(now_s)
            counted = {one.name: getattr(traffic, one.name) for one in fields(traffic) if not one.name.startswith("_")}
            found.append(
                {
                    "name": member.name,
                    "address": checksum(member.address),
                    "endpoint": member.endpoint,
                    "connected": member.address in connected,
                    "sent_bytes_s": up_s,
                    "received_bytes_s": down_s,
                    **counted,
                }
            )
        return found

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
        if effort.veil is not None:
            masks = effort.veil.state
            status["masks"] = {
                "stage": masks.stage.name.lower(),
                "attempt": masks.attempt,
                "joined": sorted(checksum(member) for member in masks.joined),
                "survivors": sorted(checksum(member) for member in masks.survivors),
                "revealed": sorted(checksum(member) for member in masks.revealed),
                "spent": masks.spent,
            }
        return status
