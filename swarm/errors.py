"""The errors of this project: the family says who can act on it.

`ConfigError` the operator, `PeerError` nobody here (drop it, keep the evidence), `UnavailableError`
try again, `RejectedError` the ledger said no and why. A caller's slip is a `ValueError`; our own
mistake is an assertion and stops the node.
"""

from __future__ import annotations


class SwarmError(Exception):
    """Anything this project refuses or could not do, in words for the person who can act on it."""


class ConfigError(SwarmError):
    """The operator can mend it: a file, a key in it, what was found and what is possible."""


class PeerError(SwarmError):
    """A member or stranger broke a rule. Never fatal to the node that noticed it."""

    def __init__(self, message: str, *, member: bytes | None = None, evidence: object = None) -> None:
        super().__init__(message)
        self.member = member
        self.evidence = evidence


class UnavailableError(SwarmError):
    """Not now: a peer is away, bytes have not arrived, the ledger sleeps. Try again."""


class RejectedError(SwarmError):
    """The ledger said no; the message is its reason."""


class StorageError(SwarmError):
    """This machine's disk would not take or give the bytes: full, read-only, or damaged."""
