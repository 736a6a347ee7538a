"""What a training process asks of its node: join a run, submit an update, learn where the run goes on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swarm.config import EPSILON, Policy
from swarm.course import Best, best, ended_after, sync_interval
from swarm.encoding import ZERO_DIGEST, Address, Digest
from swarm.errors import ConfigError, RejectedError, UnavailableError
from swarm.identity import checksum
from swarm.ledger.client import Contracts, encode_metrics
from swarm.merge import check_update
from swarm.node.participation import OBJECT_MAX_BYTES, Effort, Participation
from swarm.rounds import Phase, RunState, Update
from swarm.store import Store

POLICY_MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class Checkpoint:
    """Where training goes on from."""

    run: int
    round: int
    digest: Digest
    path: Path
    finished: bool
    """The ledger says so, or what the members told ends the run early by its policy."""
    sync_interval: int
    """Batches until the next exchange."""
    best: Best | None = None
    """The best checkpoint so far, where the policy says what is better."""
    epsilon: float = 0.0
    """The most that the ledger says this site has spent of its privacy budget in a private run."""


class Training:
    """Serves training; the duties that follow are `Participation`'s.

    Args:
        leads: whether this member merges when it is its turn.
        caught_up: whether this node's ledger is where the others' are, as far as it knows.
        next_update: where a file may be left for training to write its next update over.
    """

    def __init__(
        self,
        *,
        me: Address,
        work: Participation,
        contracts: Contracts,
        store: Store,
        leads: bool,
        caught_up: Callable[[], bool],
        next_update: Path | None = None,
    ) -> None:
        self._me = me
        self._work = work
        self._contracts = contracts
        self._telling = work.telling
        self._store = store
        self._leads = leads
        self._caught_up = caught_up
        self._next_update = next_update

    async def find(self, name: str) -> Effort:
        """The newest run of this name (or with this number); ConfigError names the ones there are."""
        for effort in sorted(self._work.efforts.values(), key=lambda e: -e.run.id):
            if name in (effort.run.name, str(effort.run.id)):
                return effort
        names = ", ".join(sorted({e.run.name for e in self._work.efforts.values()})) or "none yet"
        raise ConfigError(f"the ledger has no run {name!r} (there are: {names}); `swarm run propose` makes one")

    async def attach(self, name: str) -> tuple[Checkpoint, Policy]:
        """Join the run as soon as it is open and this site's operator approved; its current checkpoint and policy.

        Raises:
            ConfigError: there is no such run, the operator has not approved it, or it was stopped.
            UnavailableError: the same, but this node is still catching up with the others: ask again.
        """
        try:
            return await self._attach(name)
        except ConfigError as error:
            if self._caught_up():
                raise
            raise UnavailableError(f"this node is catching up with the ledger; so far {error}") from error

    async def _attach(self, name: str) -> tuple[Checkpoint, Policy]:
        if await self._contracts.member(self._me) is None:
            raise ConfigError(
                f"{checksum(self._me)} is no member of this consortium, by the ledger as this node has it; a member's "
                "operator nominates it (`swarm members nominate`) and the others approve"
            )
        effort = await self.find(name)
        await self._work.until(lambda: effort.state is not None and effort.run.state is not RunState.PROPOSED)
        run = effort.run
        assert effort.state is not None
        if run.state is RunState.OPEN and self._me not in await self._contracts.approvals(run.id):
            raise ConfigError(
                f"this site's operator has not approved run {run.id} ({run.name}); "
                f"`swarm run approve SITE.toml {run.id}` does it"
            )
        if run.state is RunState.STOPPED:
            raise ConfigError(f"run {run.id} ({run.name}) was stopped by the members; propose a new one")
        joined = self._me in await self._contracts.participants(run.id)
        if run.state is RunState.OPEN and (not joined or self._me not in effort.state.expected):
            try:
                await self._work.transact(self._contracts.join(run.id, self._leads))
            except RejectedError:
                # This node may have been behind: the run can be over by the block that holds the call.
                if (await self._contracts.run(run.id)).state is RunState.OPEN:
                    raise
        effort.attached, effort.leads = True, self._leads
        await self._work.hold(effort, effort.run.policy, POLICY_MAX_BYTES)
        effort.policy = self._work.read_policy(effort.run)
        return await self._checkpoint(effort, effort.policy), effort.policy

    async def submit(
        self, run: int, round_: int, path: Path, weight: int, metrics: Mapping[str, float]
    ) -> tuple[Digest, bool]:
        """Check and keep an update and submit it; its digest, and whether the round took it.

        Raises:
            ConfigError: it does not fit the run's model, or holds a value that is not finite; names what differs.
        """
        effort = self._effort(run)
        if effort.policy is None or effort.state is None:
            raise ConfigError(f"attach to run {run} before submitting to it")
        if effort.state.round > round_ or effort.run.state is not RunState.OPEN:
            return ZERO_DIGEST, False
        try:
            encode_metrics(metrics)
        except ValueError as error:
            raise ConfigError(f"the metrics do not fit a submission: {error}") from error
        if not effort.policy.allows(metrics):
            raise ConfigError(
                f"run {run} ({effort.run.name}) is private: a submission declares {EPSILON}, at most "
                f"{effort.policy.epsilon:g}, found {metrics.get(EPSILON)}; `swarm.private` in the training loop does it"
            )
        await self._work.hold(effort, effort.run.checkpoint, OBJECT_MAX_BYTES)
        base = self._store.path(effort.run.checkpoint)
        try:
            await asyncio.to_thread(check_update, base, path, effort.policy)
        except ValueError as error:
            raise ConfigError(f"the update does not fit run {run} ({effort.run.name}): {error}") from error
        if effort.run.blind:
            if effort.veil is None or effort.veil.state.round != round_:
                return ZERO_DIGEST, False
            # What is not masked is never in the store, from which others read.
            await asyncio.to_thread(self._work.masking.take, effort.run, effort.veil, path, weight)
            digest, weight = ZERO_DIGEST, 0
        else:
            keep = functools.partial(self._store.put_file, share=True, sync=False, successor=self._next_update)
            digest = await asyncio.to_thread(keep, path)
        effort.update = Update(round_, digest, min(weight, effort.policy.weight_max), dict(metrics))
        self._work.stir()

        def settled() -> bool:
            state = effort.state
            assert state is not None
            mine = {s.member for s in state.submissions}
            return state.round > round_ or state.state is not RunState.OPEN or self._me in mine

        await self._work.until(settled)
        state = effort.state
        listed = state.round == round_ and any(s.member == self._me for s in state.submissions)
        return digest, listed or effort.submitted >= round_

    async def wait(self, run: int, round_: int) -> Checkpoint:
        """The checkpoint after round `round_` has closed; or the present one, of the same round, if that has to be
        submitted to again: it started again, and this node, started again as well, has no update any more.
        """
        effort = self._effort(run)

        def settled() -> bool:
            state = effort.state
            if state is None:
                return False
            if state.round > round_ or state.state is not RunState.OPEN:
                return True
            submitters = {s.member for s in state.submissions}
            mine = effort.update is not None or self._me in submitters
            return state.phase is Phase.SUBMIT and not mine and self._caught_up()

        await self._work.until(settled)
        if effort.policy is None:
            raise ConfigError(f"attach to run {run} before waiting for it")
        return await self._checkpoint(effort, effort.policy)

    def _effort(self, run: int) -> Effort:
        effort = self._work.efforts.get(run)
        if effort is None:
            raise ConfigError(f"the ledger has no run {run}")
        return effort

    async def _checkpoint(self, effort: Effort, policy: Policy) -> Checkpoint:
        while True:
            run = effort.run
            await self._work.hold(effort, run.checkpoint, OBJECT_MAX_BYTES)
            told = await self._telling.rounds(run.id, run.round) if policy.reads_metrics else []
            epsilon = await self._telling.epsilon(run.id, self._me) if policy.private else 0.0
            if run.checkpoint == effort.run.checkpoint:
                return Checkpoint(
                    run=run.id,
                    round=run.round,
                    digest=run.checkpoint,
                    path=self._store.path(run.checkpoint),
                    finished=run.state in (RunState.FINISHED, RunState.STOPPED)
                    or ended_after(policy, told) is not None,
                    sync_interval=sync_interval(policy, told),
                    best=best(policy, told),
                    epsilon=epsilon,
                )
