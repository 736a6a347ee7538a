"""What the machine asks of its shell, and the one thing it borrows from it: a key that signs.

The shell performs effects in order and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from swarm.consensus.certificate import Certificate
from swarm.consensus.contradiction import Contradiction
from swarm.encoding import Address, Digest


class Authenticator(Protocol):
    """A validator's key, and how to tell whose key made a signature (65 bytes)."""

    @property
    def me(self) -> Address:
        """The address of this validator."""

    def sign(self, digest: Digest) -> bytes:
        """This validator's signature over a 32-byte digest."""

    def recover(self, digest: Digest, signature: bytes) -> Address:
        """Who signed; ValueError if nobody can have. Some are asked for again: remember them."""


@dataclass(frozen=True)
class Save:
    """Write the machine's whole durable state of a height and sync it before the effects that follow."""

    record: bytes
    height: int


@dataclass(frozen=True)
class Broadcast:
    """Send an encoded message to every validator but this one."""

    message: bytes


@dataclass(frozen=True)
class Decide:
    """Append the payload: it is final. Always the last effect; then call `Consensus.advance`."""

    payload: bytes
    certificate: Certificate
    height: int


@dataclass(frozen=True)
class Help:
    """The member still votes on a height that is decided: send it that decision with its certificate."""

    member: Address
    height: int


@dataclass(frozen=True)
class Accuse:
    """The member contradicted itself: keep the evidence where the operators find it."""

    member: Address
    contradiction: Contradiction


Effect: TypeAlias = Save | Broadcast | Decide | Help | Accuse
