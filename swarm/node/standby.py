"""The node's part in standby: it listens for the other validators, reports those that are silent for long, and comes
back by itself when others put this one on standby. The rules are in `swarm.consensus.standby` and in the contract.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from swarm.consensus.standby import Report, absentees, listened, owed
from swarm.encoding import Address, from_hex, to_hex
from swarm.errors import RejectedError, StorageError, UnavailableError
from swarm.identity import Identity, checksum
from swarm.ledger.client import Contracts, Member
from swarm.quorum import quorum

logger = logging.getLogger(__name__)

BEAT_S = 5.0
"""How often a node looks; members tell their height every two seconds."""
WRITE_S = 600.0
"""How often what was heard is written down: a power cut makes this node more patient, never less."""
TRANSACTION_S = 60.0
LISTEN_S = 3 * BEAT_S
"""Who was not heard for so long counts as silent: a lost message is no silence."""
PAUSE_S = 10.0
PAUSE_MAX_S = 600.0
"""How long a node waits after the ledger did not take its word: at first, and at most."""
FILE_BYTES_MAX = 1 << 16


def part(member: Member, standbys: Collection[Address]) -> str:
    """What a member does for blocks: `votes`, `leave`, `standby` or `follows`."""
    if not member.validator:
        return "follows"
    if member.standing:
        return "votes"
    return "standby" if member.address in standbys else "leave"


class Listener(Protocol):
    """Whom this node heard: `Agreement`."""

    @property
    def caught_up(self) -> bool: ...

    def heard_since(self, since_s: float) -> frozenset[Address]: ...

    def validators(self) -> tuple[Address, ...]: ...


class Standby:
    """Listens, reports and resumes for one member. Times are the loop's; `clock` is for people.

    Args:
        memory: a file in which the silences outlive the node.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        contracts: Contracts,
        agreement: Listener,
        memory: Path,
        clock: Callable[[], float],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._identity = identity
        self._me = identity.address
        self._contracts = contracts
        self._agreement = agreement
        self._memory = memory
        self._clock = clock
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._looked_s = 0.0
        self._written_s = 0.0
        self._pause_s = PAUSE_S
        self._pause_until_s = 0.0
        self.silent_s: dict[Address, float] = _read(memory)
        """For how long each other validator has been silent while this node listened."""
        self.asleep_since_s: float | None = None
        """Unix seconds: since when this node hears too few validators for a block; None while there are enough."""

    def run(self) -> None:
        """Begin to listen."""
        self._looked_s = self._written_s = asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Stop, and write down what was heard."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        self._write()

    async def _listen(self) -> None:
        try:
            while True:
                await asyncio.sleep(BEAT_S)
                await self._beat()
        except (StorageError, AssertionError) as error:
            self._on_failure(error)

    async def _beat(self) -> None:
        now_s = asyncio.get_running_loop().time()
        validators = self._agreement.validators()
        heard = self._agreement.heard_since(now_s - LISTEN_S)
        self.silent_s = listened(
            self.silent_s, me=self._me, validators=validators, heard=heard, elapsed_s=now_s - self._looked_s
        )
        self._looked_s = now_s
        up = len(heard & frozenset(validators)) + (self._me in validators)
        if up >= quorum(len(validators)):
            self.asleep_since_s = None
        elif self.asleep_since_s is None:
            self.asleep_since_s = self._clock()
        if now_s - self._written_s > WRITE_S:
            self._written_s = now_s
            self._write()
        if self.asleep_since_s is None and now_s >= self._pause_until_s:
            await self._say(validators)

    async def _say(self, validators: Collection[Address]) -> None:
        """Perform what is owed. What the ledger does not take is tried again after a pause."""
        try:
            absence_s = await self._contracts.absence_s()
            absent = absentees(
                self.silent_s, validators=validators, floor=await self._contracts.floor(), absence_s=absence_s
            )
            asked = [*absent, self._me] if self._me in validators else absent
            due = owed(
                me=self._me,
                validators=validators,
                on_standby=self._me in await self._contracts.standbys(),
                caught_up=self._agreement.caught_up,
                absent=absent,
                reporters={one: await self._contracts.reporters(one) for one in asked},
            )
            if due is None:
                return
            if isinstance(due, Report):
                logger.warning("%s has been silent for %.0f s: reported", checksum(due.member), absence_s)
                call = self._contracts.report_absent(due.member)
            else:
                logger.info("this node is back: it says so on the ledger")
                call = self._contracts.resume()
            await self._contracts.transact(self._identity, call, timeout_s=TRANSACTION_S)
            self._pause_s = PAUSE_S
        except (RejectedError, UnavailableError) as error:
            logger.info("standby: %s", error)
            self._pause_until_s = asyncio.get_running_loop().time() + self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def _write(self) -> None:
        """Replace the file as a whole. A disk that refuses is the ledger's to report: this is only patience."""
        text = json.dumps({to_hex(one): round(silence_s) for one, silence_s in self.silent_s.items()})
        fresh = self._memory.with_suffix(".new")
        try:
            fresh.write_text(text)
            os.replace(fresh, self._memory)
        except OSError as error:
            logger.warning("%s cannot be written: %s; after a restart this node listens anew", self._memory, error)


def _read(path: Path) -> dict[Address, float]:
    """What was written; nothing where the file is missing or is not what this node wrote."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
        found: Mapping[str, object] = json.loads(path.read_text())
        silent_s = {from_hex(one, size=20): float(str(silence_s)) for one, silence_s in found.items()}
        if not all(0 <= silence_s < 1e12 for silence_s in silent_s.values()):
            raise ValueError("a silence is no time")
        return silent_s
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        logger.warning("%s cannot be read: %s; this node listens anew", path, error)
        return {}
