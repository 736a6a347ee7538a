"""A quorum of commit seals: what lets anybody check that a block was decided, without having been there.

A seal is the signature of a `Commit`. All seals of a certificate belong to one view: validators that are locked on
different values in different views may each have sealed one, so seals from several views can add up to a quorum for
two different blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.config import MEMBERS_MAX
from swarm.consensus.messages import VIEW_BITS, commit_digest
from swarm.encoding import Address, Digest, data_of, list_of, number, pack, short, unpack
from swarm.errors import PeerError
from swarm.identity import SIGNATURE_BYTES
from swarm.identity import recover as recover_secp256k1
from swarm.quorum import quorum

# 128 seals of 65 bytes and their headers come to 8.6 KB.
CERTIFICATE_BYTES_MAX = 16 << 10


@dataclass(frozen=True)
class Certificate:
    """The view of a decision and its seals, sorted by the validators' addresses."""

    view: int
    seals: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Canonical bytes."""
        return pack([self.view, list(self.seals)])

    @classmethod
    def decode(cls, data: bytes) -> Certificate:
        """The certificate in canonical bytes.

        Raises:
            PeerError: anything else.
        """
        try:
            view, seals = list_of(unpack(data, max_bytes=CERTIFICATE_BYTES_MAX), size=2)
            parts = list_of(seals, size_max=MEMBERS_MAX)
            return cls(number(view, bits=VIEW_BITS), tuple(data_of(seal, size=SIGNATURE_BYTES) for seal in parts))
        except ValueError as error:
            raise PeerError(f"not a certificate: {error}", evidence=data[:CERTIFICATE_BYTES_MAX]) from error


def check_certificate(
    certificate: Certificate,
    *,
    chain_id: int,
    height: int,
    digest: Digest,
    validators: Sequence[Address],
    recover: Callable[[Digest, bytes], Address] = recover_secp256k1,
) -> None:
    """Nothing, if a quorum of the height's validators sealed this digest in one view.

    Raises:
        PeerError: too few or too many seals, one that is not a validator's over this digest and view, or not sorted
            by address without repetition.
    """
    needed, found = quorum(len(validators)), len(certificate.seals)
    if not needed <= found <= len(validators):
        raise PeerError(
            f"certificate of height {height} has {found} seals; {needed} to {len(validators)} are expected",
            evidence=certificate,
        )
    members = frozenset(validators)
    sealed = commit_digest(chain_id, height, certificate.view, digest)
    last = b""
    for seal in certificate.seals:
        try:
            signer = recover(sealed, seal)
        except ValueError as error:
            raise PeerError(
                f"certificate of height {height} has a broken seal: {error}", evidence=certificate
            ) from error
        if signer not in members:
            raise PeerError(
                f"certificate of height {height}: no validator sealed block {short(digest)} in view {certificate.view} "
                f"with one of its seals (it gives {short(signer)})",
                evidence=certificate,
            )
        if signer <= last:
            raise PeerError(
                f"certificate of height {height}: the seal of {short(signer)} is repeated or out of order",
                evidence=certificate,
            )
        last = signer
