"""The real node's part in blind rounds, with vectors of a few coordinates, shown to a watch; liars and mistakes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.blind.watch import Watch
from swarm.blind import Confirm, GiveShares, HaveMasks, MaskDuty, MaskState, MaskTerms, RevealMask, Stage
from swarm.config import Policy
from swarm.encoding import Address, Digest, keccak256
from swarm.errors import RejectedError
from swarm.ledger.client import Run
from swarm.merge.blind.blob import blob_of
from swarm.merge.blind.keys import Fresh
from swarm.merge.blind.masks import Ring, apply
from swarm.merge.blind.merging import BadVector, BlindMerged
from swarm.merge.blind.unmask import Survivors, Unmasking, masks_of, reveal_of
from swarm.merkle import digest_of
from swarm.node.mask_log import MaskLog
from swarm.node.masking import Masking, Veil
from swarm.node.participation import Participation
from swarm.rounds import Attest, Duty, Have, Merge, Phase, Publish, Refuse, ReportMissing, RoundState

COORDINATES = 4
VECTOR_BYTES = 32 + 4 * COORDINATES
"""The attempt's context stands before the coordinates."""


def checkpoint_of(base: bytes, total: Ring) -> bytes:
    """The bytes of the checkpoint that a sum gives."""
    return digest_of(base) + total.astype("<u4").tobytes()


class Light(Masking):
    """Masks whole numbers as they are; for the rest it is the node's."""

    watch: Watch
    chance: random.Random

    async def _pause(self, step: str) -> None:
        """A moment at which a machine may die."""
        self.watch.step(self._me, step, before=True)
        await asyncio.sleep(self.chance.uniform(0.0, 0.02))

    async def _mask(self, run: Run, state: RoundState, veil: Veil, policy: Policy) -> None:
        masks = veil.state
        assert veil.plain is not None
        keys, fresh = self._secrets(run, state, masks)
        all_masks = masks_of(self._frozen(keys.attempt, masks), keys, fresh)
        plain = np.frombuffer(veil.plain.read_bytes(), "<u4")
        vector = plain.astype(np.uint32)
        apply(all_masks, 0, vector)
        data = keys.attempt.context + vector.astype("<u4").tobytes()
        self.watch.made(self._me, masks.attempt, digest_of(data), [mask.key for mask in all_masks], plain)
        out = self._masked_place(run.id, masks.attempt)
        out.write_bytes(data)
        await self._pause("made")
        self.log.mask(run.id, masks.attempt, digest_of(data))
        await self._pause("logged")

    async def serve(self, run: int, attempt: int, submitted: Digest) -> None:
        """Others may have it from now on."""
        logged = self.log.read(run, attempt)
        if logged is not None and logged.entry.masked == submitted:
            self.watch.exposed(self._me, submitted)
        await super().serve(run, attempt, submitted)

    async def merge(
        self, duty: Merge, run: Run, state: RoundState, veil: Veil, policy: Policy, out: Path
    ) -> BlindMerged | BadVector:
        """The survivors' sum without its masks."""
        found = self._unmasking(state, veil)
        assert isinstance(found, Unmasking)
        total = np.zeros(COORDINATES, np.uint32)
        for submission in duty.submissions:
            total += np.frombuffer(self._store.read(submission.digest, 0, VECTOR_BYTES)[32:], "<u4")
        apply(found.masks, 0, total)
        base = self._store.path(duty.base).read_bytes()
        data = checkpoint_of(base, total)
        await asyncio.to_thread(out.write_bytes, data)
        return BlindMerged(digest_of(data), (), len(data), 1, 0.0, "")

    def _fault_of(self, state: RoundState, veil: Veil, digest: Digest) -> str:
        if self._store.size(digest) != VECTOR_BYTES:
            return "it has another size"
        context = self._store.read(digest, 0, 32)
        return "" if context == self._context(state, veil) else "it is of another attempt"

    def size_max(self, base: Digest) -> int:
        """Bytes of a vector."""
        return VECTOR_BYTES


class Work(Participation):
    """The node's participation; the watch sees what it shows others."""

    masks_with = Light
    masking: Light
    watch: Watch


# --- liars


class WrongSecret(Light):
    """Opens its mask with another secret than it committed to."""

    async def _reveal(self, run: Run, state: RoundState, veil: Veil, survivors: frozenset[Address]) -> None:
        await self._transact(self._contracts.masks.reveal(veil.state, survivors, bytes(16), []))


class _Not(Light):
    """Leaves duties undone."""

    without: tuple[type[Any], ...] = ()

    def _rule(
        self, state: RoundState, masks: MaskState, have: HaveMasks, now_s: float, terms: MaskTerms, complete: bool
    ) -> frozenset[MaskDuty]:
        owed = super()._rule(state, masks, have, now_s, terms, complete)
        return frozenset(duty for duty in owed if not isinstance(duty, self.without))


class Mute(_Not):
    """Never opens anything."""

    without = RevealMask, GiveShares


class BadShares(Light):
    """Seals for most others what does not open."""

    async def _join(self, run: Run, state: RoundState, veil: Veil) -> None:
        masks = veil.state
        seed = self.log.seed(run.id, masks.attempt)
        attempt = self._attempt(state, run, masks)
        blob = blob_of(self._keys(attempt, run, masks), Fresh.of(seed, attempt))
        entries = tuple(
            replace(entry, sealed=bytes(len(entry.sealed))) if self.chance.random() < 0.7 else entry
            for entry in blob.entries
        )
        digest = self._store.put(replace(blob, entries=entries).encode())
        self.log.join(run.id, masks.attempt, seed, digest)
        await self._transact(
            self._contracts.masks.join(masks, digest, blob.self_commitment, blob.recovery_commitment)
        )  # fmt: skip


class HidesBlob(Light):
    """Joins, and gives nobody what it joined with."""

    async def _join(self, run: Run, state: RoundState, veil: Veil) -> None:
        hidden = keccak256(b"hidden %d" % veil.state.attempt)
        await self._transact(self._contracts.masks.join(veil.state, hidden, bytes([1]) * 32, bytes([2]) * 32))


class Outside(_Not):
    """Confirms nobody, and submits all the same."""

    without = (Confirm,)

    def masked(self, run: Run, veil: Veil) -> Digest | None:
        """Some bytes of the right size."""
        return self._store.put(bytes(VECTOR_BYTES)) if veil.state.stage is Stage.FROZEN else None


class Withholds(Light):
    """Submits what nobody ever sees, as long as that goes well."""

    def masked(self, run: Run, veil: Veil) -> Digest | None:
        """A digest of nothing."""
        found = super().masked(run, veil)
        return keccak256(found) if found is not None and veil.state.attempt == 1 else found


class Garbage(Light):
    """Submits what is no vector, the first time."""

    def masked(self, run: Run, veil: Veil) -> Digest | None:
        """Some bytes."""
        found = super().masked(run, veil)
        return self._store.put(b"no vector") if found is not None and veil.state.attempt == 1 else found


class DropsEdges(Light):
    """Confirms whom it likes."""

    def _rule(
        self, state: RoundState, masks: MaskState, have: HaveMasks, now_s: float, terms: MaskTerms, complete: bool
    ) -> frozenset[MaskDuty]:
        owed = super()._rule(state, masks, have, now_s, terms, complete)
        chance = random.Random(masks.attempt)
        return frozenset(
            replace(duty, held=frozenset(m for m in sorted(duty.held) if chance.random() < 0.5))
            if isinstance(duty, Confirm)
            else duty
            for duty in owed
        )


class WrongSeeds(Light):
    """Opens its own mask, and other seeds than it shared with those who dropped out."""

    async def _reveal(self, run: Run, state: RoundState, veil: Veil, survivors: frozenset[Address]) -> None:
        keys, fresh = self._secrets(run, state, veil.state)
        settled = Survivors(self._frozen(keys.attempt, veil.state), survivors)
        reveal = reveal_of(settled, keys, fresh)
        seeds = [bytes([7]) * 32] * len(reveal.pair_seeds)
        await self._transact(self._contracts.masks.reveal(veil.state, survivors, reveal.self_seed, seeds))


class FalseShares(Light):
    """Is silent for itself, and gives false shares of others."""

    async def _reveal(self, run: Run, state: RoundState, veil: Veil, survivors: frozenset[Address]) -> None:
        await asyncio.sleep(1.0)

    async def _give(self, run: Run, state: RoundState, veil: Veil, duty: GiveShares) -> None:
        secrets, seeds = (dict.fromkeys(some, bytes([9]) * 16) for some in (duty.secrets, duty.seeds))
        await self._transact(self._contracts.masks.reveal_shares(veil.state, secrets, seeds))


class TwoSets(Light):
    """Opens its mask for every set that it can think of."""

    async def _reveal(self, run: Run, state: RoundState, veil: Veil, survivors: frozenset[Address]) -> None:
        keys, fresh = self._secrets(run, state, veil.state)
        frozen = self._frozen(keys.attempt, veil.state)
        for left in (*sorted(survivors - {self._me}), None):
            members = survivors - {left}
            with contextlib.suppress(ValueError, RejectedError):
                reveal = reveal_of(Survivors(frozen, frozenset(members)), keys, fresh)
                seeds = list(reveal.pair_seeds.values())
                await self._transact(self._contracts.masks.reveal(veil.state, members, reveal.self_seed, seeds))


class OtherKind(Light):
    """Gives its shares of both secrets of whoever is missing."""

    async def _give(self, run: Run, state: RoundState, veil: Veil, duty: GiveShares) -> None:
        some = duty.secrets | duty.seeds
        held = {member: one for member, one in veil.held.items() if one is not None and member in some}
        secrets = {member: one.self_share for member, one in held.items()}
        seeds = {member: one.recovery_share for member, one in held.items()}
        await self._transact(self._contracts.masks.reveal_shares(veil.state, secrets, seeds))


class WrongSum(Work):
    """Publishes what is no sum, attests that of its fellows and refuses right ones."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        return frozenset(self._turned(duty, state) for duty in super()._owed(state, have, now_s, policy))

    def _turned(self, duty: Duty, state: RoundState) -> Duty:
        match duty:
            case Publish():
                return replace(duty, checkpoint=keccak256(duty.checkpoint))
            case Attest(run=run, round=round_, view=view, checkpoint=checkpoint):
                return Refuse(run, round_, view, state.leader, checkpoint, keccak256(checkpoint))
            case Refuse(run=run, round=round_, view=view, published=published):
                return Attest(run, round_, view, published)
        return duty


class Slanderer(Work):
    """Reports every other vector missing."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        submitters = {s.member for s in state.merged}
        if state.phase is not Phase.MERGE or self._me not in submitters:
            return owed
        reported = {member for reporter, member in state.missing if reporter == self._me}
        victims = submitters - reported - {self._me}
        return owed | {ReportMissing(state.run, state.round, member) for member in victims}


def lying(kind: type[Light]) -> type[Work]:
    """A node that does its part in blind rounds in another way."""
    return type(f"Lying{kind.__name__}", (Work,), {"masks_with": kind})


LIES: Mapping[str, type[Work]] = {
    "wrong secret": lying(WrongSecret),
    "mute": lying(Mute),
    "bad shares": lying(BadShares),
    "outside": lying(Outside),
    "withholds": lying(Withholds),
    "hides blob": lying(HidesBlob),
    "drops edges": lying(DropsEdges),
    "wrong seeds": lying(WrongSeeds),
    "false shares": lying(FalseShares),
    "two sets": lying(TwoSets),
    "other kind": lying(OtherKind),
    "garbage": lying(Garbage),
    "wrong sum": WrongSum,
    "slander": Slanderer,
}

# --- mistakes, planted into every honest member


class _LateMaskLog(MaskLog):
    """Keeps what was masked in memory until the attempt is over."""

    def mask(self, run: int, attempt: int, masked: Digest) -> None:
        """Nothing is on the disk."""
        logged = self._joined(run, attempt)
        self._known[run, attempt] = replace(logged, entry=replace(logged.entry, masked=masked))


class ReusesMasks(Light):
    """Writes down that masks are used only after others have the vector."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.log = _LateMaskLog(self.log.folder, parts["entropy"])


class _NoRevealLog(MaskLog):
    def reveal(self, run: int, attempt: int, survivors: frozenset[Address]) -> None:
        """Nothing is on the disk."""


class RevealsUnlogged(Light):
    """Opens masks without having written down for whom."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.log = _NoRevealLog(self.log.folder, parts["entropy"])


class TakesAnyAttempt(Light):
    """Opens masks for a vector that was masked in the attempt before."""

    def _fault_of(self, state: RoundState, veil: Veil, digest: Digest) -> str:
        return "" if self._store.size(digest) == VECTOR_BYTES else "it has another size"


class GivesBoth(OtherKind):
    """Gives shares of both secrets of one member."""


MISTAKES: Mapping[str, type[Work]] = {
    "": Work,
    "reused mask": lying(ReusesMasks),
    "reveal before its log entry": lying(RevealsUnlogged),
    "both kinds of share": lying(GivesBoth),
    "a vector of another attempt": lying(TakesAnyAttempt),
}
"""Of members; `sim.blind.world` has those of the contract."""


def work_of(lie: str, mistake: str) -> type[Work]:
    """What a member runs: the liar's rules if it lies, else the mistake that all the others make."""
    return LIES[lie] if lie else MISTAKES.get(mistake, Work)
