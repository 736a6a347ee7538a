"""The node's part in runs: it asks `duties` what it owes, and does it.

Nothing about a round is kept here that the ledger and the store do not hold, but for the update that training
just gave: after a crash training gives it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from swarm.blind import (
    Confirm,
    ForgetKey,
    Freeze,
    GiveShares,
    JoinMasks,
    MaskDuty,
    MaskUpdate,
    OpenBlob,
    RenewKey,
    Return,
    RevealMask,
    Rotate,
    SetKey,
    summed,
)
from swarm.config import Policy
from swarm.encoding import Address, Digest, data_of, list_of, number, pack, short, to_hex, unpack
from swarm.errors import ConfigError, PeerError, RejectedError, StorageError, UnavailableError
from swarm.identity import Identity
from swarm.ledger.client import Contracts, Run
from swarm.ledger.endpoint import Call
from swarm.merge import BadUpdate, Merged, merge, update_size
from swarm.merge.alarm import Settled
from swarm.merge.blind.blob import BLOB_BYTES_MAX
from swarm.merge.blind.merging import BadVector
from swarm.merkle import chunk_count
from swarm.net.transfer import pull
from swarm.net.transport import Transport
from swarm.node.alarm import Alarm, alarm_of
from swarm.node.masking import Masking, Veil
from swarm.node.reports import Reports
from swarm.node.telling import Telling
from swarm.node.verification import Findings, Verification
from swarm.rounds import (
    Advance,
    Attest,
    Duty,
    Fetch,
    Have,
    Hear,
    Inspect,
    Merge,
    Phase,
    Publish,
    Refuse,
    ReportMissing,
    RoundState,
    RunState,
    Shares,
    Submission,
    Submit,
    Update,
    Verify,
    duties,
    needed_whole,
    next_change_s,
    same_work,
)
from swarm.store import Store

logger = logging.getLogger(__name__)

CUSTODY = "/swarm/custody/1"
TRANSACTION_S = 20.0
"""How long a transaction may take to be in a block before the duty is asked for again."""
RETRY_S = 0.5
REFUSED_PAUSE_MAX_S = 30.0
LOOK_AGAIN_S = 2.0
STORAGE_RETRY_S = 10.0
OBJECT_MAX_BYTES = 8 << 30
POLICY_MAX_BYTES = 64 << 10


class Terms(TypedDict):
    """What the policy says about duties, and how this round is verified."""

    merge_s: float
    submissions_min: int
    shares: Shares | None


@dataclass
class Effort:
    """One open run, as this node follows it."""

    run: Run
    policy: Policy | None = None
    state: RoundState | None = None
    update: Update | None = None
    merges: dict[tuple[Digest, tuple[Submission, ...]], Digest] = field(default_factory=dict)
    """What this node's merge of a base and its submissions gave, in the current round."""
    findings: Findings = field(default_factory=Findings)
    """What this node found of others' submissions and publications, in the current round."""
    veil: Veil | None = None
    """Of a blind run: the masks of its round."""
    waits_since_s: dict[Digest, float] = field(default_factory=dict)
    """Since when the bytes of a submission, which this node needs, are absent here."""
    attached: bool = False
    """Training is attached: this member is awaited in rounds."""
    leads: bool = True
    """It merges when it is its turn."""
    over_budget: frozenset[Address] | None = None
    """Of a private run: who submitted in the current round with an epsilon that the policy does not allow, or with
    none; None before this node looked."""
    alarm: Alarm | None = None
    """Where the policy says that an alarm acts: what it makes of `state`; None before this node looked."""
    unfit: bool = False
    """Its policy is not what the ledger says; said once in the log."""
    submitted: int = -1
    """The last round that took this node's submission."""


class Participation:
    """Performs duties for every run of this member."""

    masks_with: type[Masking] = Masking
    """What does blind rounds; tests have ones that break rules."""

    def __init__(
        self,
        *,
        identity: Identity,
        contracts: Contracts,
        store: Store,
        transport: Transport,
        scratch: Path,
        clock: Callable[[], float],
        on_failure: Callable[[BaseException], None],
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._identity = identity
        self._me = identity.address
        self._contracts = contracts
        self._store = store
        self._transport = transport
        self._scratch = scratch
        self.reports = Reports(scratch.parent / "reports")
        """What this node's merges saw, for people."""
        self._clock = clock
        self._on_failure = on_failure
        self._verification = Verification(contracts, store, transport, scratch)
        self.masking = self.masks_with(
            me=identity.address,
            contracts=contracts,
            store=store,
            folder=scratch.parent / "blind",
            entropy=entropy,
            clock=clock,
            transact=self.transact,
        )
        self.telling = Telling(contracts)
        """What members told with their submissions."""
        self.efforts: dict[int, Effort] = {}
        self._running: dict[tuple[object, ...], asyncio.Task[None]] = {}
        self._pauses: dict[tuple[object, ...], float] = {}
        """How long to wait after the next refusal of a duty that still stands."""
        self._changed = asyncio.Event()
        self._stirred = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head_stale = True
        self._closed = False

    # --- life

    def start(self) -> None:
        """Serve custody; call before the transport starts."""
        self._transport.serve(CUSTODY, self._take_custody)

    def run(self) -> None:
        """Begin to perform duties."""
        self._loop = asyncio.get_running_loop().create_task(self._follow())
        self._stirred.set()

    async def close(self) -> None:
        """Stop what is running; it will be owed again at the next start."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task in (self._loop, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_block(self) -> None:
        """The ledger has a new block."""
        self._head_stale = True
        self._stirred.set()

    def stir(self) -> None:
        """Look again at what is owed: something arrived, or a time has come."""
        self._stirred.set()

    # --- duties

    async def _follow(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            try:
                if self._head_stale:
                    self._head_stale = False
                    await self._read_ledger()
                self._start_duties()
            except (UnavailableError, RejectedError) as error:
                logger.info("the ledger could not be read: %s", error)
                self._head_stale = True
                self._stir_later(RETRY_S)
            except StorageError as error:
                logger.error("runs: %s", error)
                self._head_stale = True
                self._stir_later(STORAGE_RETRY_S)
            except Exception as error:
                self._on_failure(error)
                return

    async def _read_ledger(self) -> None:
        known = max(self.efforts, default=0)
        for run in await self._contracts.runs(after=known):
            self.efforts[run.id] = Effort(run)
        for effort in self.efforts.values():
            if effort.state is not None and effort.run.state in (RunState.FINISHED, RunState.STOPPED):
                continue
            before = effort.state
            effort.state, effort.alarm = await self._read_round(effort)
            state = effort.state
            effort.run = replace(effort.run, state=state.state, round=state.round, checkpoint=state.base)
            self._store.pin_only(
                {state.base, effort.run.policy, *(s.digest for s in state.submissions)}
                | ({state.published} if state.published is not None else set()),
                f"run {state.run}",
            )
            if before is None or (before.round, before.state) != (state.round, state.state):
                effort.merges, effort.findings, effort.waits_since_s = {}, Findings(), {}
                self._drop_pieces(before)
                if effort.update is not None and effort.update.round < state.round:
                    effort.update = None
                if before is not None and before.round < state.round:
                    logger.info(
                        "run %d round %d: closed with checkpoint %s", state.run, before.round, short(state.base)
                    )
            if self._knows_policy(effort) and effort.policy is not None and effort.policy.private:
                effort.over_budget = await self._over_budget(effort.policy, state)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _over_budget(self, policy: Policy, state: RoundState) -> frozenset[Address]:
        """Who submitted without an epsilon that the policy allows: everybody reads the same on the ledger."""
        if state.phase is Phase.SUBMIT or not state.submissions:
            return frozenset()
        told = await self.telling.now(state.run)
        # The ledger may be further by now, and a member of this round be missing there: its round is over.
        members = {s.member for s in state.merged}
        return frozenset(member for member in members & told.keys() if not policy.allows(told[member]))

    async def _read_round(self, effort: Effort) -> tuple[RoundState, Alarm | None]:
        """The round, and in a blind run its masks, as of one block: what is opened depends on all."""
        while True:
            contracts = self._contracts.at(await self._contracts.height()) if effort.run.blind else self._contracts
            state, alarm = await contracts.round_state(effort.run.id), None
            policy = effort.policy if self._knows_policy(effort) else None
            if policy is not None and policy.acts_on_alarm and state.state is RunState.OPEN:
                alarm = await alarm_of(self.telling, policy, effort.run, state)
                if alarm is None:
                    continue  # the ledger has gone on meanwhile
                self._store.pin_only({alarm.before}, f"alarm of run {state.run}")
            if effort.run.blind:
                grouped = alarm.grouped if alarm is not None else None
                effort.veil = await self.masking.read(effort.run, state, effort.veil, contracts, grouped=grouped)
            return state, alarm

    def _start_duties(self) -> None:
        now_s = self._clock()
        owed: set[Duty | MaskDuty] = set()
        wake_s: list[float] = []
        for effort in self.efforts.values():
            state = effort.state
            if state is None or not (effort.attached or self._takes_part(state)):
                continue
            if state.state is RunState.FINISHED and not self._store.has(state.base):
                owed.add(Fetch(state.base, self._others(state)))
            if state.state is not RunState.OPEN:
                continue
            if effort.policy is None and not self._store.has(effort.run.policy):
                owed.add(Fetch(effort.run.policy, self._others(state)))
            if not self._knows_policy(effort):
                continue
            assert effort.policy is not None
            unlooked = effort.policy.acts_on_alarm and effort.alarm is None
            if unlooked or (effort.policy.private and effort.over_budget is None):
                self._head_stale = True
                self.stir()
                continue
            ends_with = effort.alarm.settled if effort.alarm is not None else None
            if ends_with is not None:
                owed |= self._owed_settled(effort, ends_with, state, now_s, effort.policy)
            elif effort.veil is not None:
                owed |= self._owed_blind(effort, effort.veil, state, now_s, effort.policy)
                again_s = self.masking.wakes_s(state, effort.veil, effort.policy, now_s)
                if again_s is not None:
                    wake_s.append(again_s - now_s)
                state = summed(state, effort.veil.state)
            have = self._have(effort, state)
            if ends_with is None and effort.veil is None:
                owed |= self._owed(state, have, now_s, effort.policy)
            again_s = next_change_s(state, self._me, have, now_s, **self._terms(state, effort.policy))
            if again_s is not None:
                wake_s.append(again_s - now_s)
        work = {same_work(duty): duty for duty in sorted(owed, key=repr)}
        self._pauses = {key: pause_s for key, pause_s in self._pauses.items() if key in work}
        for key, duty in work.items():
            if key not in self._running:
                self._running[key] = asyncio.get_running_loop().create_task(self._perform(duty))
        for key, task in self._running.items():
            if key[0] in (Fetch, Verify) and key not in work:
                task.cancel()
        if wake_s:
            self._stir_later(max(min(wake_s), 0.0) + 0.01)

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        """The rule that this node follows; a simulated liar follows another."""
        return duties(state, self._me, have, now_s, **self._terms(state, policy))

    def _owed_settled(
        self, effort: Effort, ends_with: Settled, state: RoundState, now_s: float, policy: Policy
    ) -> frozenset[Duty | MaskDuty]:
        """Whatever was submitted, the round ends with a checkpoint that stood before: nothing is merged or opened."""
        checkpoint, merging = ends_with.checkpoint, (state.base, state.merged)
        fetched: set[Duty | MaskDuty] = set()
        if not self._store.has(checkpoint):
            fetched.add(Fetch(checkpoint, self._others(state)))
        elif effort.merges.get(merging) != checkpoint:
            effort.merges[merging] = checkpoint
            logger.warning(
                "run %d round %d: ends with %s: %s", state.run, state.round, short(checkpoint), ends_with.why
            )
            self.reports.settled(state.run, state.round, checkpoint, ends_with.why)
        have = self._have(effort, state)
        owed: set[Duty | MaskDuty] = {
            duty
            for duty in self._owed(state, have, now_s, policy)
            if not isinstance(duty, Merge | Inspect | Verify | Hear | ReportMissing)
        }
        if effort.veil is not None:
            asked = self.masking.owed(
                effort.run, state, effort.veil, policy, now_s, attached=effort.attached, complete=False
            )
            owed |= {duty for duty in asked if not isinstance(duty, RevealMask | GiveShares)}
        return frozenset(owed | fetched)

    def _owed_blind(
        self, effort: Effort, veil: Veil, state: RoundState, now_s: float, policy: Policy
    ) -> frozenset[Duty | MaskDuty]:
        """As in any round, but for what is submitted and when it is merged; and what the masks ask for."""
        update, run = effort.update, effort.run
        if veil.state.spent:
            # Its updates were in a sum that may be known: the round closes as it began.
            effort.merges[state.base, state.merged] = state.base
            have = replace(self._have(effort, state), update=update and replace(update, digest=state.base))
            return self._owed(state, have, now_s, policy)
        effort.findings.unusable |= self.masking.unfit(state, veil)
        masked = self.masking.masked(run, veil)
        if masked is not None:
            metrics = update.metrics if update is not None else {}
            update = Update(state.round, masked, 0, metrics)
        elif self.masking.gives_up(state, veil, policy, now_s):
            masked, update = state.base, Update(state.round, state.base, 0)
        seen = summed(state, veil.state)
        have = replace(self._have(effort, seen), update=update if masked is not None else None)
        owed = self._owed(seen, have, now_s, policy)
        merges = {duty for duty in owed if isinstance(duty, Merge)}
        complete = bool(merges) or have.merged is not None
        if not self.masking.may_merge(state, veil, policy):
            owed -= merges
        return owed | self.masking.owed(run, state, veil, policy, now_s, attached=effort.attached, complete=complete)

    def _terms(self, state: RoundState, policy: Policy) -> Terms:
        return Terms(merge_s=policy.merge_s, submissions_min=policy.submissions_min, shares=self._shares(state, policy))

    def _shares(self, state: RoundState, policy: Policy | None) -> Shares | None:
        """None where everybody merges everything again."""
        if policy is None or not policy.by_chunks:
            return None
        submitters = {s.member for s in state.merged}
        if len(submitters if state.phase is not Phase.SUBMIT else submitters | {*state.expected}) <= (
            policy.verify_all_members
        ):
            return None
        # As long as the base is not here nobody knows how large it is; then nothing is fetched beforehand.
        size = self._store.size(state.base) if self._store.has(state.base) else None
        if size is not None and size <= policy.verify_all_bytes:
            return None
        return Shares(chunk_count(size or 0), policy.attest_s)

    def _drop_pieces(self, before: RoundState | None) -> None:
        """Of the last round's updates, those of which only some chunks came."""
        for submission in before.submissions if before is not None else ():
            if not self._store.has(submission.digest):
                self._store.remove(submission.digest)

    def _takes_part(self, state: RoundState) -> bool:
        return self._me in state.expected or any(s.member == self._me for s in state.submissions)

    def _others(self, state: RoundState) -> tuple[Address, ...]:
        return tuple(member for member in state.expected if member != self._me)

    def _have(self, effort: Effort, state: RoundState) -> Have:
        named = {state.base, *(s.digest for s in state.submissions)}
        objects = frozenset(digest for digest in named if self._store.has(digest))
        needed = needed_whole(state, self._me, self._shares(state, effort.policy))
        absent = [s.digest for s in needed if s.digest not in objects] if state.phase is not Phase.SUBMIT else []
        effort.waits_since_s = {digest: effort.waits_since_s.get(digest, self._clock()) for digest in absent}
        found, published = effort.findings, (state.published or b"", state.merged)
        return Have(
            objects=objects,
            waits_since_s=effort.waits_since_s,
            update=effort.update,
            merged=effort.merges.get((state.base, state.merged)),
            unusable=found.unusable,
            over_budget=effort.over_budget or frozenset(),
            inspected=found.inspected,
            verified=found.verified.get(published, 0),
            wrong=found.wrong.get(published),
            heard=found.heard.get(state.view, frozenset()),
        )

    def _knows_policy(self, effort: Effort) -> bool:
        if effort.policy is None and not effort.unfit and self._store.has(effort.run.policy):
            try:
                effort.policy = self.read_policy(effort.run)
            except ConfigError as error:
                effort.unfit = True
                logger.error("run %d: this node takes no part: %s", effort.run.id, error)
        return effort.policy is not None

    def read_policy(self, run: Run) -> Policy:
        """The policy in the store; ConfigError if its numbers are not the ledger's."""
        policy = Policy.decode(self._store.read(run.policy, 0, self._store.size(run.policy)))
        found = (policy.rounds, policy.submissions_min, 0 if policy.blind else policy.weight_max)
        if found != (run.rounds, run.submissions_min, run.weight_max):
            raise ConfigError(f"run {run.id}: the ledger's numbers are not those of the policy {short(run.policy)}")
        return policy

    def _stir_later(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.stir)

    async def _perform(self, duty: Duty | MaskDuty) -> None:
        try:
            match duty:
                case Fetch():
                    await self._fetch(duty)
                case Submit():
                    await self._submit(duty)
                case Merge():
                    await self._merge(duty)
                case Inspect() | Verify() | Hear():
                    await self._verify(duty)
                case Publish(run=run, round=round_, view=view, checkpoint=checkpoint):
                    await self.transact(self._contracts.publish(run, round_, view, checkpoint))
                    logger.info("run %d round %d view %d: published %s", run, round_, view, short(checkpoint))
                case Attest(run=run, round=round_, view=view, checkpoint=checkpoint, parts=parts):
                    await self.transact(self._contracts.attest(run, round_, view, checkpoint, parts))
                case Refuse():
                    await self._refuse(duty)
                case Return(run=run):
                    await self.transact(self._contracts.join(run, self.efforts[run].leads))
                case (
                    SetKey() | RenewKey() | ForgetKey() | Rotate() | JoinMasks() | OpenBlob() | Confirm() | Freeze()
                    | MaskUpdate() | RevealMask() | GiveShares()
                ):  # fmt: skip
                    await self._unveil(duty)
                case ReportMissing(run=run, round=round_, member=member):
                    logger.warning("run %d round %d: the update of %s never came", run, round_, short(member))
                    if (veil := self.efforts[run].veil) is not None:
                        veil.reported = True
                    await self.transact(self._contracts.report_missing(run, round_, member))
                case Advance(run=run, round=round_, view=view):
                    await self.transact(self._contracts.advance(run, round_, view))
        except RejectedError as error:
            # The state moved on meanwhile. Where the duty still stands, this node's clock is ahead of the others':
            # each refused call takes room in a block, so they grow rare.
            logger.debug("%s: %s", type(duty).__name__, error)
            pause_s = self._pauses.get(same_work(duty), RETRY_S)
            self._pauses[same_work(duty)] = min(2 * pause_s, REFUSED_PAUSE_MAX_S)
            await asyncio.sleep(pause_s)
        except (UnavailableError, PeerError) as error:
            # A peer is away: the duty is asked for again if it still stands.
            logger.debug("%s: %s", type(duty).__name__, error)
            await asyncio.sleep(RETRY_S)
        except StorageError as error:
            # The ledger and the votes have room of their own: this node goes on voting while somebody makes some here.
            logger.error("%s: %s", type(duty).__name__, error)
            await asyncio.sleep(STORAGE_RETRY_S)
        except Exception as error:
            self._on_failure(error)
        finally:
            self._running.pop(same_work(duty), None)
            self.stir()

    async def _unveil(self, duty: MaskDuty) -> None:
        effort = self.efforts[duty.run] if not isinstance(duty, Fetch) else None
        if effort is None or effort.veil is None or effort.state is None or effort.policy is None:
            return
        await self.masking.perform(duty, effort.run, effort.state, effort.veil, effort.policy)

    async def transact(self, call: Call) -> None:
        """Sign a call with the node's key and wait until the ledger took it."""
        await self._contracts.transact(self._identity, call, timeout_s=TRANSACTION_S)

    async def _fetch(self, duty: Fetch) -> None:
        if not self._store.has(duty.digest):
            size_max = self._size_max(duty.digest)
            sync = not self._is_update(duty.digest)
            await pull(self._transport, self._store, duty.digest, duty.sources, size_max=size_max, sync=sync)

    def _is_update(self, digest: Digest) -> bool:
        """Somebody's update: after a power cut it is fetched again."""
        states = [effort.state for effort in self.efforts.values() if effort.state is not None]
        return any(digest == submission.digest for state in states for submission in state.submissions)

    def _size_max(self, digest: Digest) -> int:
        """An update has its checkpoint's tensors, so a member that submits something larger fills nobody's disk."""
        for effort in self.efforts.values():
            state = effort.state
            if state is not None and digest in {s.digest for s in state.submissions} and self._store.has(state.base):
                return self._update_bytes(effort, state)
            if effort.veil is not None and digest in {seat.blob for seat in effort.veil.state.seats}:
                return BLOB_BYTES_MAX
        return OBJECT_MAX_BYTES

    def _update_bytes(self, effort: Effort, state: RoundState) -> int:
        """The size of an update on this round's checkpoint."""
        if effort.run.blind:
            return max(self.masking.size_max(state.base), self._store.size(state.base))
        if effort.policy is not None and effort.policy.encoded:
            return update_size(self._store.path(state.base), effort.policy)
        return self._store.size(state.base)

    async def _submit(self, duty: Submit) -> None:
        effort, update = self.efforts[duty.run], duty.update
        if effort.veil is None:
            # On this disk before the ledger hears of it; others may have their copies meanwhile.
            await asyncio.gather(self._give_custody(duty), asyncio.to_thread(self._store.sync, update.digest))
        call = self._contracts.submit(duty.run, duty.round, update.digest, update.weight, update.metrics)
        await self.transact(call)
        if effort.veil is not None:
            await self.masking.serve(duty.run, effort.veil.state.attempt, update.digest)
        effort.submitted = max(effort.submitted, duty.round)
        logger.info("run %d round %d: submitted %s", duty.run, duty.round, short(update.digest))

    async def _give_custody(self, duty: Submit) -> None:
        """Copies at others first: a member that dies after its submission takes nothing with it."""
        if not duty.custodians_min:
            return
        message = pack([duty.run, duty.round, duty.update.digest])
        effort = self.efforts[duty.run]
        assert effort.policy is not None
        patience_s = effort.policy.submit_s / 2

        async def offer(member: Address) -> None:
            await self._transport.request(member, CUSTODY, message, timeout_s=patience_s)

        # Where all need every update, all are asked at once; else no more than have to hold it.
        waiting = list(duty.custodians)
        state = effort.state
        first = len(waiting) if state and not self._shares(state, effort.policy) else duty.custodians_min
        offers = {asyncio.get_running_loop().create_task(offer(member)) for member in waiting[:first]}
        del waiting[:first]
        held, pending = 0, set(offers)
        until_s = asyncio.get_running_loop().time() + patience_s
        try:
            while pending and held < duty.custodians_min:
                left_s = max(until_s - asyncio.get_running_loop().time(), 0.0)
                done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                failed = sum(1 for task in done if task.exception() is not None)
                held += len(done) - failed
                again = {asyncio.get_running_loop().create_task(offer(member)) for member in waiting[:failed]}
                del waiting[:failed]
                offers, pending = offers | again, pending | again
        finally:
            # Those under way go on by themselves at the other end; their answers are not needed any more.
            for task in offers:
                task.cancel()
            await asyncio.gather(*offers, return_exceptions=True)
        if held < duty.custodians_min:
            logger.warning("run %d round %d: only %d members hold this update", duty.run, duty.round, held)
            if not held:
                raise UnavailableError("no other member can be reached to hold the update")

    async def _take_custody(self, member: Address, payload: bytes) -> bytes:
        run_item, round_item, digest_item = list_of(unpack(payload, max_bytes=128), size=3)
        run, round_, digest = number(run_item), number(round_item), data_of(digest_item, size=32)
        effort = self.efforts.get(run)
        state = effort.state if effort is not None else None
        if effort is None or state is None or state.state is not RunState.OPEN:
            raise UnavailableError(f"run {run} is not open here")
        if round_ < state.round:
            raise PeerError(
                f"an update for round {round_} of run {run}, which is in round {state.round}", member=member
            )
        # A member that the round no longer waits for may submit all the same.
        if member not in state.expected and member not in await self._contracts.participants(run):
            raise PeerError(f"an update for run {run}, which {short(member)} has not joined", member=member)
        # Every update has the checkpoint's schema, so its size is known before a byte of it is asked for.
        if not self._store.has(state.base):
            raise UnavailableError("this node has no checkpoint to compare with yet")
        if effort.veil is not None:
            self.masking.take_one(effort.veil, member, digest)
        size_max = self._update_bytes(effort, state)
        await pull(self._transport, self._store, digest, (member,), size_max=size_max, sync=False)
        self.stir()
        return b"held"

    async def _merge_blind(self, duty: Merge, effort: Effort, veil: Veil) -> None:
        state, policy = effort.state, effort.policy
        if state is None or policy is None or state.round != duty.round:
            return
        with self._store.draft(self._store.size(duty.base)) as out:
            merged = await self.masking.merge(duty, effort.run, state, veil, policy, out)
            if isinstance(merged, BadVector):
                effort.findings.unusable |= {s.digest for s in duty.submissions if s.member == merged.member}
                return
            await asyncio.to_thread(self._store.put_file, out, move=True)
        self.reports.summed(duty.run, duty.round, merged, duty.submissions)
        if effort.state is not None and effort.state.round == duty.round:
            effort.merges[(duty.base, duty.submissions)] = merged.digest
        logger.info("run %d round %d: opened the sum of %d updates", duty.run, duty.round, len(duty.submissions))

    async def _merge(self, duty: Merge) -> None:
        effort = self.efforts[duty.run]
        policy = effort.policy
        assert policy is not None
        if effort.veil is not None:
            await self._merge_blind(duty, effort, effort.veil)
            return
        inputs = [self._store.path(s.digest) for s in duty.submissions]
        weights = [s.weight for s in duty.submissions]

        def work() -> Merged:
            with self._store.draft(self._store.size(duty.base)) as out:
                merged = merge(self._store.path(duty.base), inputs, weights, policy, out)
                self._store.put_file(out, move=True, leaves=merged.leaves)
                return merged

        try:
            merged = await asyncio.to_thread(work)
        except BadUpdate as error:
            bad = duty.submissions[error.index]
            effort.findings.unusable |= {bad.digest}
            logger.warning("run %d round %d: no merge takes the update of %s: %s", duty.run, duty.round,
                           short(bad.member), error)  # fmt: skip
            self.reports.unusable(duty.run, duty.round, bad.member, str(error))
            return
        digest = merged.digest
        self.reports.merged(duty.run, duty.round, digest, duty.submissions, merged.reports)
        if effort.state is not None and effort.state.round == duty.round:
            effort.merges[(duty.base, duty.submissions)] = digest
        logger.info("run %d round %d: merged %d updates", duty.run, duty.round, len(duty.submissions))

    async def _verify(self, duty: Inspect | Verify | Hear) -> None:
        effort = self.efforts[duty.run]
        state, policy, findings = effort.state, effort.policy, effort.findings
        assert policy is not None
        if state is None or state.round != duty.round:
            return
        match duty:
            case Inspect():
                await self._verification.inspect(duty, policy, findings)
            case Verify():
                await self._verification.verify(duty, state, policy, findings)
            case Hear() if state.view == duty.view and state.published is not None:
                await self._verification.hear(duty, state, policy, findings)

    async def _refuse(self, duty: Refuse) -> None:
        effort = self.efforts[duty.run]
        evidence, where = duty.evidence, "as its evidence shows"
        if effort.veil is not None or (effort.alarm is not None and effort.alarm.settled is not None):
            # The ledger and the vectors show it: `swarm audit` opens the sum again, or hears the alarm.
            evidence, where = duty.published, "as the audit of the ledger shows"
        if evidence is None:
            assert effort.state is not None
            assert effort.policy is not None
            evidence, where = await self._verification.evidence(duty, effort.state, effort.policy)
        logger.warning("run %d round %d view %d: %s published %s, this node found %s: refused (%s)", duty.run,
                       duty.round, duty.view, short(duty.leader), short(duty.published), short(duty.found),
                       where)  # fmt: skip
        await self.transact(self._contracts.refuse(duty.run, duty.round, duty.view, duty.found, evidence))

    # --- for training

    async def hold(self, effort: Effort, digest: Digest, size_max: int) -> None:
        """Have an object, from whoever has it; UnavailableError when nobody gives it."""
        for attempt in range(20):
            if self._store.has(digest):
                return
            sources = tuple(sorted(self._transport.connected()))
            try:
                await pull(self._transport, self._store, digest, sources, size_max=size_max)
            except (UnavailableError, PeerError) as error:
                logger.debug("run %d: %s, try %d: %s", effort.run.id, short(digest), attempt, error)
                await asyncio.sleep(RETRY_S)
        raise UnavailableError(f"no member that can be reached has the object {to_hex(digest)} of run {effort.run.id}")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns once the condition holds; looked at after every block."""
        while not holds():
            # Also looks again when no block comes: whether this node is caught up changes without one.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._changed.wait()
