"""Whether a proposal may be made in its view, told again from the specification's words and apart from the machine.

Source: isProposalJustification in Consensys/qbft-formal-spec-and-verification, dafny/spec/L1.
"""

from __future__ import annotations

from collections.abc import Collection

from sim.cheap import CHAIN_ID, builder_of, recover
from swarm.consensus.messages import Prepared, Proposal, prepare_digest, round_change_digest
from swarm.encoding import Address, Digest


def is_justified(proposal: Proposal, proposer: Address, validators: Collection[Address]) -> bool:
    """A quorum changed to the view; what any of them holds prepared in the highest view is what is proposed.

    What nobody holds prepared is in the proposer's own name.
    """
    named = builder_of(proposal.payload) == proposer
    if proposal.view == 0:
        return named
    quorum = (len(validators) * 2 - 1) // 3 + 1
    changes = {
        _signer(round_change_digest(CHAIN_ID, proposal.height, proposal.view, promise.prepared), promise.signature)
        for promise in proposal.round_changes
    }
    if len(changes) < quorum or not changes <= set(validators):
        return False
    locks = [promise.prepared for promise in proposal.round_changes if promise.prepared is not None]
    if not locks:
        return named
    view = max(lock.view for lock in locks)
    if view >= proposal.view or Prepared(view, proposal.digest) not in locks:
        return False
    signed = prepare_digest(CHAIN_ID, proposal.height, view, proposal.digest)
    prepares = {_signer(signed, signature) for signature in proposal.prepares}
    return len(prepares) >= quorum and prepares <= set(validators)


def _signer(digest: Digest, signature: bytes) -> Address:
    try:
        return recover(digest, signature)
    except ValueError:
        return b"nobody"
