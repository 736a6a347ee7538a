"""Machines with one mistake each: the simulator must notice every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from swarm.consensus import Certificate, Consensus, Decide, Effect, Qbft
from swarm.consensus.messages import Proposal, commit_digest
from swarm.consensus.record import Lock
from swarm.consensus.voters import Voters
from swarm.encoding import Address, Digest
from swarm.errors import PeerError
from swarm.quorum import quorum


class _ForgetsLock(Qbft):
    def _shown_lock(self) -> Lock | None:
        return None


class ForgetsLock(Consensus):
    """Round changes never show what was prepared."""

    machine = _ForgetsLock


class _LowQuorum(Qbft):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._voters.quorum -= 1


class LowQuorum(Consensus):
    """One vote less is taken for a quorum."""

    machine = _LowQuorum


class _Credulous(Voters):
    def check_justification(self, proposal: Proposal) -> None:
        return


class _Unjustified(Qbft):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._voters.__class__ = _Credulous


class Unjustified(Consensus):
    """A later view's proposal is accepted whatever stands behind it."""

    machine = _Unjustified


class _MixesViews(Qbft):
    def _upon_commit(self) -> None:
        for digest, count in Counter(c.digest for c in self._commits.values()).items():
            payload = self._payload_of(digest) if count >= self._voters.quorum else None
            if payload is not None and not self.decided:
                commits = {sender: commit for sender, commit in self._commits.items() if commit.digest == digest}
                seals = self._first_quorum({sender: commit.signature for sender, commit in commits.items()})
                certificate = Certificate(max(commit.view for commit in commits.values()), seals)
                self.decided = True
                self._sending.append(Decide(payload, certificate, self.height))


class MixesViews(Consensus):
    """Commits of different views are counted together."""

    machine = _MixesViews


def check_mixed(
    certificate: Certificate,
    *,
    chain_id: int,
    height: int,
    digest: Digest,
    validators: Sequence[Address],
    recover: Callable[[Digest, bytes], Address],
) -> None:
    """The check that goes with it: each seal may be of another view."""
    signers = set()
    for seal in certificate.seals:
        for view in range(certificate.view + 1):
            try:
                signers.add(recover(commit_digest(chain_id, height, view, digest), seal))
                break
            except ValueError:
                continue
    if len(signers & set(validators)) < quorum(len(validators)):
        raise PeerError("too few seals")


class _NeverResends(Qbft):
    def _send_votes(self) -> None:
        return


class NeverResends(Consensus):
    """What is lost stays lost."""

    machine = _NeverResends


class Hurries(Qbft):
    """The time of a view runs as soon as this validator is in it, whether others have come as far or not."""

    def _enter(self, view: int, now_s: float) -> None:
        super()._enter(view, now_s)
        self._run_timer(now_s)


class _BelievesAnyLock(Voters):
    def check_justification(self, proposal: Proposal) -> None:
        """The rule without its last step: any of the prepared values will do, not only that of the highest view."""
        prepared = [promise.prepared for promise in proposal.round_changes if promise.prepared is not None]
        mine = [entry for entry in prepared if entry.digest == proposal.digest]
        if proposal.view == 0 or len(prepared) < 2 or not mine:
            super().check_justification(proposal)
        else:
            self.check_prepares(mine[0], proposal.prepares, proposal)


class _AnyLock(Qbft):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._voters.__class__ = _BelievesAnyLock


class AnyLock(Consensus):
    """A proposal may be what was prepared in a lower view than the highest that its round changes show."""

    machine = _AnyLock


class _AnyProposer(Qbft):
    def _take_proposal(self, message: Proposal) -> bool:
        proposer = self._voters.proposer
        sender = self._voters.sender(message)
        self._voters.proposer = lambda view: sender  # type: ignore[method-assign]
        try:
            return super()._take_proposal(message)
        finally:
            self._voters.proposer = proposer  # type: ignore[method-assign]


class AnyProposer(Consensus):
    """Whoever proposes first is believed."""

    machine = _AnyProposer


class _NeverJumps(Qbft):
    def _upon_f_plus_1_round_change(self, now_s: float) -> None:
        return


class NeverJumps(Consensus):
    """f + 1 members in later views take nobody along."""

    machine = _NeverJumps


class _Impatient(Qbft):
    def _run_timer(self, now_s: float) -> None:
        self._view_deadline_s = now_s + self._timeout_s


class Impatient(Consensus):
    """The time of a view does not grow."""

    machine = _Impatient


class OldValidators(Consensus):
    """A change of validators is not noticed by who goes on."""

    def advance(
        self, height: int, proposers: tuple[Address, ...], now_s: float, *, saved: bytes | None = None
    ) -> list[Effect]:
        """As if the validators were those of the height before."""
        return super().advance(height, self._proposers, now_s, saved=saved)


class AnyName(Consensus):
    """A new block may be in another validator's name than its proposer's."""

    def __init__(self, **settings: Any) -> None:
        judge = settings["judge"]
        super().__init__(**{**settings, "judge": lambda payload, proposer: judge(payload, payload[41:61])})
