"""Evidence that a validator contradicted itself: two of its signed messages that no honest one signs both.

It proves itself: whoever knows the chain's number recovers the signer from both. A payload and a justification are no
part of what is signed, so they are left out, and a contradiction is a few hundred bytes. Apart from a lie, only two
nodes with one key, or a lost vote log, make one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from swarm.consensus.messages import Message, Proposal, RoundChange, decode_message, encode_message, signed_digest
from swarm.encoding import Address, Digest, data_of, list_of, number, pack, unpack
from swarm.errors import PeerError
from swarm.identity import recover as recover_secp256k1

# Two messages of at most 200 bytes each.
CONTRADICTION_BYTES_MAX = 1024


@dataclass(frozen=True)
class Contradiction:
    """Two messages of one kind, height and view for different things."""

    chain_id: int
    """What the signatures name as their chain."""
    first: Message
    second: Message

    @classmethod
    def of(cls, first: Message, second: Message, chain_id: int) -> Contradiction:
        """The two without what their signatures do not cover."""
        return cls(chain_id, _bare(first), _bare(second))

    @property
    def kind(self) -> str:
        """Which messages these are: `Proposal`, `Prepare`, `Commit` or `RoundChange`."""
        return type(self.first).__name__

    def signer(self, recover: Callable[[Digest, bytes], Address] = recover_secp256k1) -> Address:
        """Who signed both.

        Raises:
            PeerError: they do not contradict each other, or are not by one signer.
        """
        first, second = self.first, self.second
        if type(first) is not type(second) or (first.height, first.view) != (second.height, second.view):
            raise PeerError("two messages of different kinds, heights or views contradict nothing", evidence=self)
        digests = signed_digest(first, self.chain_id), signed_digest(second, self.chain_id)
        if digests[0] == digests[1]:
            raise PeerError("the same vote twice contradicts nothing", evidence=self)
        try:
            signers = recover(digests[0], first.signature), recover(digests[1], second.signature)
        except ValueError as error:
            raise PeerError(f"one of the two is signed by nobody: {error}", evidence=self) from error
        if signers[0] != signers[1]:
            raise PeerError("the two are signed by different members", evidence=self)
        return signers[0]

    def encode(self) -> bytes:
        """Canonical bytes."""
        return pack([self.chain_id, encode_message(self.first), encode_message(self.second)])

    @classmethod
    def decode(cls, data: bytes) -> Contradiction:
        """The contradiction in canonical bytes; `signer` says whether it is one.

        Raises:
            PeerError: anything else.
        """
        try:
            chain_id, first, second = list_of(unpack(data, max_bytes=CONTRADICTION_BYTES_MAX), size=3)
            return cls.of(decode_message(data_of(first)), decode_message(data_of(second)), number(chain_id, bits=256))
        except ValueError as error:
            raise PeerError(f"not a contradiction: {error}", evidence=data[:CONTRADICTION_BYTES_MAX]) from error


def _bare(message: Message) -> Message:
    match message:
        case Proposal():
            return replace(message, payload=b"", round_changes=(), prepares=())
        case RoundChange():
            return replace(message, payload=b"", prepares=())
        case _:
            return message
