"""The validators of one height: who signed what, whose turn it is, and whether a quorum stands behind a claim.

The machine of the height is `qbft`; here is what it takes for true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from swarm.consensus.messages import (
    Message,
    Prepared,
    Proposal,
    prepare_digest,
    round_change_digest,
    signed_digest,
)
from swarm.encoding import Address, Digest, short
from swarm.errors import PeerError
from swarm.quorum import faults_max, quorum


class Voters:
    """Recovers who signed, and checks what a proposal and a round change claim."""

    def __init__(
        self,
        *,
        chain_id: int,
        height: int,
        proposers: tuple[Address, ...],
        recover: Callable[[Digest, bytes], Address],
    ) -> None:
        self.quorum = quorum(len(proposers))
        self.faults_max = faults_max(len(proposers))
        self._chain_id = chain_id
        self._height = height
        self._proposers = proposers
        self._validators = frozenset(proposers)
        self._recover = recover

    def proposer(self, view: int) -> Address:
        """Whose turn it is to propose."""
        return self._proposers[view % len(self._proposers)]

    def sender(self, message: Message) -> Address:
        """The validator who signed a message.

        Raises:
            PeerError: nobody of this height's validators did.
        """
        signer = self.signer(signed_digest(message, self._chain_id), message.signature)
        if signer is None:
            raise PeerError(f"{name_of(message)} has no validator's signature", evidence=message)
        return signer

    def signer(self, digest: Digest, signature: bytes) -> Address | None:
        """The validator whose signature this is; None if it is nobody's or another's."""
        try:
            signer = self._recover(digest, signature)
        except ValueError:
            return None
        return signer if signer in self._validators else None

    def check_justification(self, proposal: Proposal) -> None:
        """isProposalJustification: why this payload may be proposed in this view.

        In view 0 anything may be. Later: a quorum of round changes to the view; if some are prepared, the proposal is
        what was prepared in the highest of their views, and a quorum's prepares show it.
        """
        where = name_of(proposal)
        if proposal.view == 0:
            if proposal.round_changes or proposal.prepares:
                raise PeerError(f"{where} needs no justification and has one", evidence=proposal)
            return
        senders = set()
        for promise in proposal.round_changes:
            signed = round_change_digest(self._chain_id, self._height, proposal.view, promise.prepared)
            sender = self.signer(signed, promise.signature)
            if sender is None or sender in senders:
                raise PeerError(f"{where} has a round change that is nobody's or repeated", evidence=proposal)
            senders.add(sender)
        if len(senders) < self.quorum:
            raise PeerError(f"{where} has {len(senders)} round changes, a quorum is {self.quorum}", evidence=proposal)
        prepared = [promise.prepared for promise in proposal.round_changes if promise.prepared is not None]
        if not prepared:
            if proposal.prepares:
                raise PeerError(f"{where} has prepares though nothing was prepared", evidence=proposal)
            return
        highest = max(entry.view for entry in prepared)
        if Prepared(highest, proposal.digest) not in prepared:
            raise PeerError(f"{where} is not what was prepared in view {highest}", evidence=proposal)
        self.check_prepares(Prepared(highest, proposal.digest), proposal.prepares, proposal)

    def check_prepares(self, prepared: Prepared, prepares: Sequence[bytes], message: Message) -> None:
        """Nothing, if a quorum signed prepares for this view and digest; PeerError says that `message` lies."""
        signed = prepare_digest(self._chain_id, self._height, prepared.view, prepared.digest)
        senders = {self.signer(signed, signature) for signature in prepares}
        if None in senders or len(senders) != len(prepares) or len(senders) < self.quorum:
            raise PeerError(
                f"{name_of(message)} claims {short(prepared.digest)} was prepared in view {prepared.view} and shows no "
                "quorum of prepares",
                evidence=message,
            )


def name_of(message: Message) -> str:
    """What a person calls a message."""
    return f"{type(message).__name__} of height {message.height}, view {message.view}"
