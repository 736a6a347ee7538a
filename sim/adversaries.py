"""Members that lie about merges and updates, and honest ones that make a known mistake.

Each is the real `Participation` that follows another rule than `swarm.rounds.duties`. What dishonest validators may
do to blocks is in `sim.consensus`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from swarm.config import Policy
from swarm.encoding import Digest, sha256
from swarm.ledger.ledger import Ledger
from swarm.node.participation import Participation
from swarm.rounds import Attest, Duty, Have, Phase, Publish, Refuse, ReportMissing, RoundState, Submit

# --- liars


class WrongDigest(Participation):
    """Publishes a digest that is no merge of anything, and serves no bytes for it."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            replace(duty, checkpoint=sha256(b"no merge" + duty.checkpoint)) if isinstance(duty, Publish) else duty
            for duty in owed
        )


class FlippedBit(Participation):
    """Publishes its merge with one bit of one parameter changed, and serves those bytes."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            replace(duty, checkpoint=self._flipped(duty.checkpoint)) if isinstance(duty, Publish) else duty
            for duty in owed
        )

    def _flipped(self, checkpoint: Digest) -> Digest:
        data = bytearray(self._store.read(checkpoint, 0, self._store.size(checkpoint)))
        data[-1] ^= 1
        return self._store.put(bytes(data))


class Withholder(Participation):
    """Submits a digest whose bytes it gives to nobody; for the rest it does as it should."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            replace(duty, update=replace(duty.update, digest=sha256(b"hidden" + duty.update.digest)), custodians_min=0)
            if isinstance(duty, Submit)
            else duty
            for duty in owed
        )


class Refuser(Participation):
    """Refuses every merge of others, right or not."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(
            Refuse(duty.run, duty.round, duty.view, state.leader, duty.checkpoint, sha256(b"I found" + duty.checkpoint))
            if isinstance(duty, Attest)
            else duty
            for duty in owed
        )


class Silent(Participation):
    """Submits, then says nothing: it neither publishes nor attests."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(duty for duty in owed if not isinstance(duty, Publish | Attest))


class Slanderer(Participation):
    """Reports every other submission missing as soon as the merge begins."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        submitters = {s.member for s in state.merged}
        if state.phase is not Phase.MERGE or self._me not in submitters or not owed:
            return owed
        reported = {member for reporter, member in state.missing if reporter == self._me}
        victims = submitters - reported - {self._me}
        return owed | {ReportMissing(state.run, state.round, member) for member in victims}


LIES: Mapping[str, type[Participation]] = {
    "wrong": WrongDigest,
    "bit": FlippedBit,
    "withhold": Withholder,
    "refuse": Refuser,
    "silent": Silent,
    "slander": Slanderer,
}

# --- mistakes, planted into every honest member


class Credulous(Participation):
    """Attests what the leader published without having merged."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        submitters = {s.member for s in state.merged}
        silent = self._me in submitters - state.attested - state.refused
        if state.phase is not Phase.ATTEST or state.published is None or not silent:
            return owed
        kept = frozenset(duty for duty in owed if not isinstance(duty, Refuse))
        return kept | {Attest(state.run, state.round, state.view, state.published)}


class Careless(Participation):
    """Submits although nobody else holds the update."""

    def _owed(self, state: RoundState, have: Have, now_s: float, policy: Policy) -> frozenset[Duty]:
        owed = super()._owed(state, have, now_s, policy)
        return frozenset(replace(duty, custodians_min=0) if isinstance(duty, Submit) else duty for duty in owed)


class Forgetful(Ledger):
    """Keeps no vote: after a restart its validator may say something else."""

    def save_vote(self, height: int, record: bytes) -> None:
        """Nothing is written."""

    def saved_vote(self, height: int) -> bytes | None:
        """Nothing was."""
        return None


MISTAKES: Mapping[str, tuple[type[Participation], type[Ledger]]] = {
    "": (Participation, Ledger),
    "credulous": (Credulous, Ledger),
    "careless": (Careless, Ledger),
    "forgetful": (Participation, Forgetful),
}


def behaviour(*, liar: str, mistake: str, dishonest: bool) -> tuple[type[Participation], type[Ledger]]:
    """What a member runs: the liar's rule if it is the dishonest one, else the mistake that all the others make."""
    return (LIES[liar], Ledger) if dishonest else MISTAKES[mistake]
