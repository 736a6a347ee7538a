"""The node in blind rounds: asks `mask_duties` what it owes, writes down what it must not forget, and does it.

The plain update and the weight stay in this node's own folder, never in the store that serves others. What the ledger
and the blobs say is read again after a restart; the secrets are in the log alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from swarm.blind import (
    SURVIVORS_MIN,
    Confirm,
    ForgetKey,
    Freeze,
    GiveShares,
    HaveMasks,
    JoinMasks,
    MaskDuty,
    MaskState,
    MaskTerms,
    MaskUpdate,
    OpenBlob,
    RenewKey,
    RevealMask,
    RevealTold,
    Rotate,
    SetKey,
    Stage,
    Told,
    enough,
    gives_up,
    mask_duties,
    next_mask_change_s,
)
from swarm.config import Policy
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError, StorageError
from swarm.ledger.client import Contracts, Run
from swarm.ledger.endpoint import Call
from swarm.merge.blind.blob import Blob, Held, blob_of, open_blob
from swarm.merge.blind.encode import Encoding, Unfit, encode
from swarm.merge.blind.groups import groups_of
from swarm.merge.blind.keys import Attempt, Fresh, Keys, Seat
from swarm.merge.blind.merging import BadVector, BlindMerged, merge
from swarm.merge.blind.unmask import (
    Edge,
    Frozen,
    Missing,
    Reveal,
    Said,
    Shares,
    Survivors,
    Unmasking,
    masks_of,
    reveal_of,
    shares_of,
    unmasking,
)
from swarm.merge.blind.vector import Masked, Vector
from swarm.merge.schema import Schema
from swarm.merge.server import model_schema, server_of
from swarm.node.mask_log import MaskLog, sync_folder
from swarm.rounds import Merge, Phase, RoundState
from swarm.store import Store

logger = logging.getLogger(__name__)

Transact = Callable[[Call], Awaitable[None]]


@dataclass
class Veil:
    """A blind run's current round, as this node follows it."""

    run: Run
    state: MaskState
    told: tuple[Told, ...] = ()
    since_s: float = 0.0
    """When this node saw the first submission in this attempt, by its own clock."""
    held: dict[Address, Held | None] = field(default_factory=dict)
    """What others' blobs hold for this node; None: nothing right."""
    formed: dict[Digest, str] = field(default_factory=dict)
    """Why a submitted file is no masked vector of this model; empty where it is one."""
    plain: Path | None = None
    """Training's update for this round."""
    weight: int = 0
    offered: dict[Address, Digest] = field(default_factory=dict)
    """The vector that each member gave into custody in this attempt."""
    unmasked: tuple[tuple[Told, ...], Unmasking | Missing | None] | None = None
    """What was told, and what follows from it."""
    reported: bool = False
    """This node said in this attempt that bytes never came, whether the ledger has it yet or not."""


class Masking:
    """Performs what `mask_duties` asks for.

    Args:
        folder: this node's own, of which nothing is served.
        entropy: so many random bytes, from the operating system but in simulations.
        clock: Unix seconds.
        transact: signs a call and waits until the ledger took it.
    """

    def __init__(
        self,
        *,
        me: Address,
        contracts: Contracts,
        store: Store,
        folder: Path,
        entropy: Callable[[int], bytes],
        clock: Callable[[], float],
        transact: Transact,
    ) -> None:
        self._me = me
        self._contracts = contracts
        self._store = store
        self._folder = folder
        self._transact = transact
        self._clock = clock
        self._chain_id = 0
        self.log = MaskLog(folder, entropy)
        self._serving = asyncio.Lock()
        self._leaves: dict[Digest, tuple[Digest, ...]] = {}
        """Of masked vectors that this process wrote."""
        self._clear()

    def _clear(self) -> None:
        """What a process that was killed left half done: plain updates; a masked vector is kept if the log names it."""
        for place in self._folder.glob("plain-*"):
            place.unlink(missing_ok=True)
        for place in self._folder.glob("*.masked"):
            run, attempt = (int(part) for part in place.stem.split("-"))
            logged = self.log.read(run, attempt)
            if logged is None or not logged.seed or logged.entry.masked is None:
                place.unlink(missing_ok=True)

    # --- what is known

    async def read(
        self,
        run: Run,
        state: RoundState,
        before: Veil | None,
        contracts: Contracts,
        *,
        grouped: Collection[int] | None = None,
    ) -> Veil:
        """The masks of the round that `state` tells of, as of the same block.

        Args:
            contracts: as they were right after the block that `state` was read from.
            grouped: of a round that is merged in groups, the attempts in which a mask was opened.
        """
        if not self._chain_id:
            self._chain_id = await self._contracts.chain_id()
        masks = await contracts.masks.state(run.id, self._me)
        if grouped is not None:
            masks = in_groups(state.base, masks, grouped)
        same = before is not None and (before.state.round, before.state.attempt) == (masks.round, masks.attempt)
        veil = before if same and before is not None else Veil(run, masks)
        if before is not None and not same and before.state.round == masks.round:
            veil.plain, veil.weight = before.plain, before.weight
        veil.state = masks
        if masks.fixed_s:
            veil.told = await contracts.secrets_told(masks)
        if before is None or not same:
            self._part(run.id, masks, before)
        blobs = {seat.blob for seat in masks.seats if seat.blob is not None}
        self._store.pin_only(blobs, f"masks of run {run.id}")
        mine = next((s.digest for s in state.submissions if s.member == self._me), None)
        if mine is not None:
            await self.serve(run.id, masks.attempt, mine)
        return veil

    async def serve(self, run: int, attempt: int, submitted: Digest) -> None:
        """Others may have this node's masked vector now that the ledger names it.

        Not earlier: a disk that is restored after others had a vector, and before the ledger knew, would mask another.
        """
        place, logged = self._masked_place(run, attempt), self.log.read(run, attempt)
        async with self._serving:
            if logged is not None and logged.entry.masked == submitted and place.exists():
                leaves = self._leaves.pop(submitted, None)
                await asyncio.to_thread(self._store.put_file, place, move=True, leaves=leaves)

    def _masked_place(self, run: int, attempt: int) -> Path:
        return self._folder / f"{run}-{attempt}.masked"

    def _part(self, run: int, masks: MaskState, before: Veil | None) -> None:
        """Another attempt, or another round: what belonged to the last one is erased."""
        self.log.erase(run, but=masks.attempt)
        for place in self._folder.glob(f"{run}-*.masked"):
            if place != self._masked_place(run, masks.attempt):
                place.unlink(missing_ok=True)
        for place in self._folder.glob(f"plain-{run}-*"):
            if before is None or before.plain != place or before.state.round != masks.round:
                place.unlink(missing_ok=True)

    def take(self, run: Run, veil: Veil, path: Path, weight: int) -> None:
        """Keep training's update until it is masked; `path` may go afterwards."""
        place = self._folder / f"plain-{run.id}-{veil.state.round}.safetensors"
        draft = place.with_suffix(".part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            shutil.copyfile(path, draft)
            draft.chmod(0o600)
            os.replace(draft, place)
        except OSError as error:
            raise StorageError(f"the update cannot be kept in {self._folder}: {error}") from error
        veil.plain, veil.weight = place, weight

    def masked(self, run: Run, veil: Veil) -> Digest | None:
        """This node's masked vector of the attempt, if it may be submitted."""
        masks = veil.state
        logged = self.log.read(run.id, masks.attempt) if masks.stage is Stage.FROZEN else None
        if logged is None or self._me not in masks.frozen or self.log.sits_out(run.id, masks.round):
            return None
        digest = logged.entry.masked
        return digest if self._has_masked(run.id, masks.attempt, digest) else None

    def _has_masked(self, run: int, attempt: int, digest: Digest | None) -> bool:
        return digest is not None and (self._masked_place(run, attempt).exists() or self._store.has(digest))

    def take_one(self, veil: Veil, member: Address, digest: Digest) -> None:
        """PeerError if a member gives a second vector in one attempt: under the same masks the two would open both."""
        first = veil.offered.setdefault(member, digest)
        if first != digest and not veil.state.spent:
            raise PeerError(
                f"{short(member)} gives {short(digest)} in attempt {veil.state.attempt}, where it gave {short(first)}: "
                "one vector is masked in an attempt", member=member,
            )  # fmt: skip

    def unfit(self, state: RoundState, veil: Veil) -> frozenset[Digest]:
        """Survivors' files that are here and are no masked vectors of this model and attempt: looked at before a secret
        is told. One of the attempt before may count in this one, if it was under way when the round began again."""
        masks = veil.state
        if state.phase is Phase.SUBMIT or masks.stage is not Stage.FROZEN or masks.spent:
            return frozenset()
        if not self._store.has(state.base):
            return frozenset()
        for submission in state.submissions:
            digest = submission.digest
            if digest not in veil.formed and self._store.has(digest):
                veil.formed[digest] = self._fault_of(state, veil, digest)
                if veil.formed[digest]:
                    logger.warning(
                        "run %d round %d: what %s submitted is no masked vector: %s",
                        state.run, state.round, short(submission.member), veil.formed[digest],
                    )  # fmt: skip
        return frozenset(digest for digest, fault in veil.formed.items() if fault)

    def _fault_of(self, state: RoundState, veil: Veil, digest: Digest) -> str:
        wanted = self._vector(state.base, self._context(state, veil)).schema
        try:
            found = Schema.of_file(self._store.path(digest))
        except ValueError as error:
            return str(error)
        return "" if found == wanted else "it has other tensors than a masked vector of this model and attempt"

    def _context(self, state: RoundState, veil: Veil) -> Digest:
        return self._attempt(state, veil.run, veil.state).context

    def _vector(self, base: Digest, context: Digest) -> Vector:
        return Vector(model_schema(Schema.of_file(self._store.path(base))), context)

    def size_max(self, base: Digest) -> int:
        """Bytes of a masked vector on this checkpoint."""
        return self._vector(base, bytes(32)).schema.size_bytes

    # --- duties

    def owed(
        self, run: Run, state: RoundState, veil: Veil, policy: Policy, now_s: float, *, attached: bool, complete: bool
    ) -> frozenset[MaskDuty]:
        """What this node owes now for the masks of the round."""
        have = self._have(run, state, veil, now_s, attached=attached)
        return self._rule(state, veil.state, have, now_s, terms_of(policy), complete)

    def _rule(
        self, state: RoundState, masks: MaskState, have: HaveMasks, now_s: float, terms: MaskTerms, complete: bool
    ) -> frozenset[MaskDuty]:
        """The rule that this node follows; one that lies follows another."""
        return mask_duties(state, masks, self._me, have, now_s, terms, complete=complete)

    def wakes_s(self, state: RoundState, veil: Veil, policy: Policy, now_s: float) -> float | None:
        """When to ask again although nothing arrived."""
        change_s = next_mask_change_s(state, veil.state, self._me, now_s, terms_of(policy))
        times = [time for time in (change_s, veil.since_s + policy.submit_s) if time is not None and time > now_s]
        return min(times, default=None)

    def gives_up(self, state: RoundState, veil: Veil, policy: Policy, now_s: float) -> bool:
        """Whether this node, outside the attempt, sees that too few are left in it."""
        if state.submissions and not veil.since_s:
            veil.since_s = now_s
        return gives_up(state, veil.state, self._me, veil.since_s, now_s, terms_of(policy))

    def may_merge(self, state: RoundState, veil: Veil, policy: Policy) -> bool:
        """Whether all that takes the masks off is known."""
        if not enough(state, veil.state, terms_of(policy)):
            return False
        return isinstance(self._unmasking(state, veil), Unmasking)

    def _have(self, run: Run, state: RoundState, veil: Veil, now_s: float, *, attached: bool) -> HaveMasks:
        masks = veil.state
        key = self.log.key(run.id, masks.round, now_s)
        logged = self.log.read(run.id, masks.attempt)
        unmasked = self._unmasking(state, veil) if masks.fixed_s else None
        lacking = None
        if isinstance(unmasked, Missing):
            lacking = unmasked.self_seeds, unmasked.recovery_seeds
        mine = [part for part in veil.told if not isinstance(part, RevealTold) and part.member == self._me]
        digest = logged.entry.masked if logged is not None else None
        return HaveMasks(
            key=key.public,
            last_key=key.last_public,
            key_rounds=masks.round - key.round,
            key_age_s=now_s - key.since_s,
            entry=logged.entry if logged is not None and logged.seed else None,
            before=self.log.masked_before(run.id, masks.attempt),
            sits_out=self.log.sits_out(run.id, masks.round),
            attached=attached,
            plain=veil.plain is not None and self._store.has(state.base),
            blobs=frozenset(seat.blob for seat in masks.seats if seat.blob and self._store.has(seat.blob)),
            right=frozenset(member for member, held in veil.held.items() if held is not None),
            wrong=frozenset(member for member, held in veil.held.items() if held is None),
            masked=self._has_masked(run.id, masks.attempt, digest),
            missing=lacking,
            given=frozenset(member for part in mine for member in (*part.secrets, *part.seeds)),
            reported=veil.reported,
        )

    async def perform(self, duty: MaskDuty, run: Run, state: RoundState, veil: Veil, policy: Policy) -> None:
        """Do it; what is written into the log is on disk before anybody sees what follows."""
        masks = veil.state
        if isinstance(duty, JoinMasks | OpenBlob | Confirm | Freeze | MaskUpdate | RevealMask | GiveShares) and (
            (duty.round, duty.attempt) != (masks.round, masks.attempt)
        ):
            return
        match duty:
            case SetKey(key=key):
                await self._transact(self._contracts.masks.set_key(run.id, key))
                logger.info("run %d: this node's key for masks is on the ledger", run.id)
            case RenewKey(round=round_):
                self.log.renew(run.id, round_, self._clock())
                logger.info("run %d round %d: a new key for masks, from the next attempt on", run.id, round_)
            case ForgetKey():
                self.log.forget(run.id)
            case Rotate(round=round_):
                self.log.rotate(run.id, round_, self._clock())
                logger.warning(
                    "run %d round %d: the ledger knows what this node did in this round, its disk does not: was it "
                    "restored from a backup? It takes a new key and sits the round out", run.id, round_,
                )  # fmt: skip
            case JoinMasks():
                await self._join(run, state, veil)
            case OpenBlob(member=member, blob=blob):
                veil.held[member] = await asyncio.to_thread(self._open, run, state, veil, member, blob)
            case Confirm(held=held):
                await self._transact(self._contracts.masks.confirm(masks, held))
            case Freeze(attempt=attempt):
                await self._transact(self._contracts.masks.freeze(run.id, attempt))
            case MaskUpdate():
                await self._mask(run, state, veil, policy)
            case RevealMask(survivors=survivors):
                await self._reveal(run, state, veil, survivors)
            case GiveShares():
                await self._give(run, state, veil, duty)

    # --- joining

    def _attempt(self, state: RoundState, run: Run, masks: MaskState) -> Attempt:
        seats = sorted((Seat(seat.member, seat.number, seat.key) for seat in masks.seats), key=lambda one: one.member)
        address = self._contracts.masks.address
        return Attempt(
            self._chain_id, address, run.id, masks.round, masks.attempt, run.policy, state.base, tuple(seats)
        )  # fmt: skip

    def _secrets(self, run: Run, state: RoundState, masks: MaskState) -> tuple[Keys, Fresh]:
        attempt = self._attempt(state, run, masks)
        keys = self._keys(attempt, run, masks)
        return keys, Fresh.of(self.log.seed(run.id, masks.attempt), attempt)

    def _keys(self, attempt: Attempt, run: Run, masks: MaskState) -> Keys:
        seat = masks.seat(self._me)
        assert seat is not None
        return Keys(attempt, self._me, self.log.key(run.id, masks.round, self._clock()).secret_of(seat.key))

    async def _join(self, run: Run, state: RoundState, veil: Veil) -> None:
        masks = veil.state
        seed = self.log.seed(run.id, masks.attempt)
        attempt = self._attempt(state, run, masks)
        keys = self._keys(attempt, run, masks)
        blob = await asyncio.to_thread(blob_of, keys, Fresh.of(seed, attempt))
        digest = self._store.put(blob.encode())
        self.log.join(run.id, masks.attempt, seed, digest)
        call = self._contracts.masks.join(masks, digest, blob.self_commitment, blob.recovery_commitment)
        await self._transact(call)
        logger.info("run %d round %d: joined attempt %d", run.id, masks.round, masks.attempt)

    def _open(self, run: Run, state: RoundState, veil: Veil, member: Address, digest: Digest) -> Held | None:
        seat = veil.state.seat(member)
        assert seat is not None
        keys, _ = self._secrets(run, state, veil.state)
        try:
            blob = self._blob(keys.attempt, member, digest)
            if (blob.self_commitment, blob.recovery_commitment) != (seat.commitment, seat.recovery):
                raise PeerError(f"the blob of {short(member)} has other commitments than the ledger", member=member)
            held = open_blob(keys, blob)
        except PeerError as error:
            logger.warning("run %d round %d: no masks with %s: %s", run.id, state.round, short(member), error)
            return None
        if not held.agrees:
            logger.warning("run %d round %d: no masks with %s: its seed is another", run.id, state.round, short(member))
        return held if held.agrees else None

    def _blob(self, attempt: Attempt, member: Address, digest: Digest) -> Blob:
        return Blob.decode(self._store.read(digest, 0, self._store.size(digest)), attempt, member)

    # --- submitting

    def _frozen(self, attempt: Attempt, masks: MaskState) -> Frozen:
        return Frozen(attempt, masks.frozen, dropped_edges(masks), masks.groups)

    def _encoding(self, attempt: Attempt, policy: Policy, masks: MaskState) -> Encoding:
        return Encoding.under(policy, self._store.path(attempt.base), len(masks.frozen), attempt.context)

    async def _mask(self, run: Run, state: RoundState, veil: Veil, policy: Policy) -> None:
        masks, plain = veil.state, veil.plain
        assert plain is not None
        keys, fresh = self._secrets(run, state, masks)
        all_masks = masks_of(self._frozen(keys.attempt, masks), keys, fresh)
        out = self._masked_place(run.id, masks.attempt)
        encoding = self._encoding(keys.attempt, policy, masks)

        def work() -> tuple[Digest, int]:
            encoded = encode(plain, veil.weight, encoding, all_masks, out)
            sync_file(out)
            self.log.mask(run.id, masks.attempt, encoded.digest)
            self._leaves = {encoded.digest: encoded.leaves}
            return encoded.digest, encoded.clipped

        try:
            digest, clipped = await asyncio.to_thread(work)
        except Unfit as error:
            logger.error("run %d round %d: the update cannot be masked: %s", run.id, state.round, error)
            veil.plain = None
            return
        if clipped:
            logger.warning("run %d round %d: %d values were beyond their tensor's range and are clipped",
                           run.id, state.round, clipped)  # fmt: skip
        logger.info("run %d round %d: masked the update as %s", run.id, state.round, short(digest))

    # --- opening the sum

    async def _reveal(self, run: Run, state: RoundState, veil: Veil, survivors: frozenset[Address]) -> None:
        masks = veil.state
        keys, fresh = self._secrets(run, state, masks)
        settled = Survivors(self._frozen(keys.attempt, masks), survivors)
        await asyncio.to_thread(self.log.reveal, run.id, masks.attempt, survivors)
        reveal = reveal_of(settled, keys, fresh)
        seeds = [reveal.pair_seeds[seat.member] for seat in masks.seats if seat.member in reveal.pair_seeds]
        await self._transact(self._contracts.masks.reveal(masks, survivors, reveal.self_seed, seeds))
        logger.info("run %d round %d: opened its mask for a sum of %d", run.id, state.round, len(survivors))

    async def _give(self, run: Run, state: RoundState, veil: Veil, duty: GiveShares) -> None:
        masks = veil.state
        keys, _ = self._secrets(run, state, masks)
        for seat in masks.seats:
            if seat.member in duty.secrets | duty.seeds and seat.member not in veil.held and seat.blob is not None:
                veil.held[seat.member] = await asyncio.to_thread(
                    self._open, run, state, veil, seat.member, seat.blob
                )  # fmt: skip
        held = {member: one for member, one in veil.held.items() if one is not None}
        settled = Survivors(self._frozen(keys.attempt, masks), masks.survivors)
        shares = shares_of(settled, Missing(duty.secrets, duty.seeds), self._me, held)
        if shares.self_shares or shares.recovery_shares:
            logger.warning("run %d round %d: gives its shares of what %d others did not open", run.id, state.round,
                           len(shares.self_shares) + len(shares.recovery_shares))  # fmt: skip
            call = self._contracts.masks.reveal_shares(masks, shares.self_shares, shares.recovery_shares)
            await self._transact(call)

    def _unmasking(self, state: RoundState, veil: Veil) -> Unmasking | Missing | None:
        """What takes the masks off, or what is lacking; None where that cannot be known (yet), or ever."""
        masks = veil.state
        seats = [seat for seat in masks.seats if seat.member in masks.frozen]
        if not masks.survivors or not all(seat.blob is not None and self._store.has(seat.blob) for seat in seats):
            return None
        if any(len(group & masks.survivors) < SURVIVORS_MIN for group in masks.groups):
            return None
        if veil.unmasked is None or veil.unmasked[0] != veil.told:
            veil.unmasked = veil.told, self._unmask(state, veil)
        return veil.unmasked[1]

    def _unmask(self, state: RoundState, veil: Veil) -> Unmasking | Missing | None:
        masks = veil.state
        attempt = self._attempt(state, veil.run, masks)
        frozen = self._frozen(attempt, masks)
        neighbors = {member: frozen.neighbors(member) for member in masks.frozen}
        try:
            blobs = {
                seat.member: self._blob(attempt, seat.member, seat.blob)
                for seat in masks.seats
                if seat.member in masks.frozen and seat.blob is not None
            }
            settled = Survivors(frozen, masks.survivors)
            return unmasking(settled, blobs, [said(part, masks, neighbors) for part in veil.told])
        except PeerError as error:
            logger.error("run %d round %d: the sum cannot be opened: %s", masks.run, masks.round, error)
            return None

    async def merge(
        self, duty: Merge, run: Run, state: RoundState, veil: Veil, policy: Policy, out: Path
    ) -> BlindMerged | BadVector:
        """The merge of the survivors' vectors, in `out`; or whose file is no masked vector."""
        found = self._unmasking(state, veil)
        assert isinstance(found, Unmasking)
        vectors = [Masked(s.member, self._store.path(s.digest)) for s in duty.submissions]
        encoding = self._encoding(self._attempt(state, run, veil.state), policy, veil.state)
        work = partial(merge, self._store.path(duty.base), vectors, found, encoding, out, server=server_of(policy))
        try:
            merged = await asyncio.to_thread(work)
        except BadVector as error:
            return error
        for group in merged.groups:
            if group.refused:
                names = ", ".join(map(short, group.members))
                logger.warning("run %d round %d: the group of %s counts as no change: %s", duty.run, duty.round, names,
                               group.refused)  # fmt: skip
        if merged.refused:
            logger.error("run %d round %d: the round changes nothing: %s", duty.run, duty.round, merged.refused)
        return merged


def dropped_edges(masks: MaskState) -> frozenset[Edge]:
    """The pairs of frozen members without a mask in common."""
    edges = {seat.member: seat.edges for seat in masks.seats}
    return frozenset(
        frozenset((one, other))
        for one in masks.frozen
        for other in masks.frozen
        if one < other and (other not in edges[one] or one not in edges[other])
    )


def in_groups(base: Digest, masks: MaskState, opened: Collection[int]) -> MaskState:
    """The masks of a round that is merged in groups.

    Args:
        opened: the attempts of the round in which a mask was opened. Those of a group are fewer than may lie, so the
            contract does not call the round spent for them; but their sum may be known, and no other is opened.
    """
    if any(attempt < masks.attempt for attempt in opened):
        return replace(masks, spent=True)
    seats = {seat.member: seat.seat for seat in masks.seats if seat.member in masks.frozen}
    return replace(masks, groups=groups_of(base, seats, dropped_edges(masks)))


def terms_of(policy: Policy) -> MaskTerms:
    """What the policy says about masks."""
    return MaskTerms(policy.submit_s, policy.merge_s, policy.submissions_min)


def said(told: Told, masks: MaskState, neighbors: Mapping[Address, tuple[Address, ...]]) -> Said:
    """What a member revealed, as the rules take it: seeds are in the order of seats of those who dropped out."""
    if isinstance(told, RevealTold):
        gone = [
            seat.member
            for seat in masks.seats
            if seat.member in neighbors[told.member] and seat.member not in masks.survivors
        ]
        return Reveal(told.member, told.secret, dict(zip(gone, told.seeds, strict=False)))
    return Shares(told.member, told.secrets, told.seeds)


def sync_file(path: Path) -> None:
    """Have a file's bytes and its name on disk."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path} cannot be kept: {error}") from error
